"""Writes unicode-tables.h: letters, numbers and lower case of Unicode as ranges; with an argument
unicode-nfc.h: canonical decompositions, compositions and combining classes.

    python3 libcommon/unicode.py > libcommon/unicode-tables.h
    python3 libcommon/unicode.py nfc > libcommon/unicode-nfc.h

Categories as in the expressions \\p{L} and \\p{N}.  Lower case is the simple mapping, one code
point to one; rows are {first, last, step, difference}."""
import sys
import unicodedata


def ranges(test):
    found = []
    for c in range(0x110000):
        if not test(c):
            continue
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def print_ranges(name, found):
    print(f"static const struct code_range {name}[] = {{")
    for i in range(0, len(found), 6):
        print("\t" + " ".join(f"{{0x{a:X}, 0x{b:X}}}," for a, b in found[i:i + 6]))
    print("};")


def lower_rows():
    pairs = [(c, ord(chr(c).lower())) for c in range(0x110000) if len(chr(c).lower()) == 1 and chr(c).lower() != chr(c)]
    rows = []
    for c, low in pairs:
        row = rows[-1] if rows else None
        if row and low - c == row[3] and c - row[1] in (1, 2) and (row[0] == row[1] or c - row[1] == row[2]):
            row[2], row[1] = c - row[1], c
        else:
            rows.append([c, c, 1, low - c])
    return rows


def print_rows(kind, name, rows, per_line=5):
    print(f"static const struct {kind} {name}[] = {{")
    for i in range(0, len(rows), per_line):
        print("\t" + " ".join("{" + ", ".join(r) + "}," for r in rows[i:i + per_line]))
    print("};")


def tables():
    print_ranges("letter_ranges", ranges(lambda c: unicodedata.category(chr(c))[0] == "L"))
    print_ranges("number_ranges", ranges(lambda c: unicodedata.category(chr(c))[0] == "N"))
    print_rows("lower_row", "lower_rows", [(f"0x{a:X}", f"0x{b:X}", str(s), str(d)) for a, b, s, d in lower_rows()], 4)


def canonical(c):
    """What c decomposes into, one step; Hangul is arithmetic."""
    d = unicodedata.decomposition(chr(c))
    return [int(x, 16) for x in d.split()] if d and d[0] != "<" else None


def nfc():
    split = [(c, (canonical(c) + [0])[:2]) for c in range(0x110000) if canonical(c)]
    print_rows("split_row", "splits", [(f"0x{c:X}", f"0x{a:X}", f"0x{b:X}") for c, (a, b) in split])
    joined = sorted((a, b, c) for c, (a, b) in split if b and unicodedata.normalize("NFC", chr(c)) == chr(c))
    print_rows("join_row", "joins", [(f"0x{a:X}", f"0x{b:X}", f"0x{c:X}") for a, b, c in joined])
    rows = []
    for c in range(0x110000):
        k = unicodedata.combining(chr(c))
        if k and rows and rows[-1][1] == c - 1 and rows[-1][2] == k:
            rows[-1][1] = c
        elif k:
            rows.append([c, c, k])
    print_rows("class_row", "classes", [(f"0x{a:X}", f"0x{b:X}", str(k)) for a, b, k in rows])


print(f"/* Made by unicode.py from Unicode {unicodedata.unidata_version}; see there. */")
nfc() if sys.argv[1:] else tables()
