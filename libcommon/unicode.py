"""Writes unicode-tables.h: letters, numbers and lower case of Unicode as ranges.

    python3 libcommon/unicode.py > libcommon/unicode-tables.h

Categories as in the expressions \\p{L} and \\p{N}.  Lower case is the simple mapping, one code
point to one; rows are {first, last, step, difference}."""
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


print(f"/* Made by unicode.py from Unicode {unicodedata.unidata_version}; see there. */")
print_ranges("letter_ranges", ranges(lambda c: unicodedata.category(chr(c))[0] == "L"))
print_ranges("number_ranges", ranges(lambda c: unicodedata.category(chr(c))[0] == "N"))
rows = lower_rows()
print("static const struct lower_row lower_rows[] = {")
for i in range(0, len(rows), 4):
    print("\t" + " ".join(f"{{0x{a:X}, 0x{b:X}, {s}, {d}}}," for a, b, s, d in rows[i:i + 4]))
print("};")
