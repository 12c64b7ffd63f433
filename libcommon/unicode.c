/* unicode.c - see unicode.h.  Composition as Unicode Standard Annex 15 defines it: take everything apart, order the
 * marks after each starter by class, put together again what has a code point of its own. */
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

struct split_row {
	uint32_t whole, first, second; /* second 0: another code point for the same */
};
struct join_row {
	uint32_t first, second, whole;
};
struct class_row {
	uint32_t first, last;
	int class;
};
#include "unicode-nfc.h"

/* ---- UTF-8 ---- */

uint32_t utf8_decode(const uint8_t *p, size_t n, size_t *length)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t k = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
	uint32_t c = k == 1 ? p[0] : k ? p[0] & (0x7Fu >> k) : NOT_UTF8;
	*length = 1;
	if (k == 0 || k > n)
		return NOT_UTF8;
	for (size_t i = 1; i < k; i++) {
		if (p[i] >> 6 != 2)
			return NOT_UTF8;
		c = c << 6 | (p[i] & 0x3F);
	}
	if (c < least[k] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
		return NOT_UTF8;
	*length = k;
	return c;
}

size_t utf8_encode(uint8_t out[4], uint32_t c)
{
	if (c < 0x80) {
		out[0] = (uint8_t)c;
		return 1;
	}
	size_t k = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	for (size_t i = k; i-- > 1; c >>= 6)
		out[i] = (uint8_t)(0x80 | (c & 0x3F));
	out[0] = (uint8_t)(0xF00u >> k | c);
	return k;
}

/* ---- composition ---- */

/* Syllables of Hangul are numbered: (leading * 21 + vowel) * 28 + trailing. */
enum { LEADING = 0x1100, VOWEL = 0x1161, TRAILING = 0x11A7, SYLLABLE = 0xAC00, LEADINGS = 19, VOWELS = 21, TRAILINGS = 28,
       SYLLABLES = LEADINGS * VOWELS * TRAILINGS };

static int by_range(const void *key, const void *row)
{
	uint32_t c = *(const uint32_t *)key;
	const uint32_t *range = row;
	return (c > range[1]) - (c < range[0]);
}

const void *code_row(const void *rows, size_t n, size_t size, uint32_t c)
{
	return bsearch(&c, rows, n, size, by_range);
}

static int class_of(uint32_t c)
{
	const struct class_row *r = c < classes[0].first ? NULL : CODE_ROW(classes, c);
	return r ? r->class : 0;
}

static int by_whole(const void *key, const void *row)
{
	uint32_t c = *(const uint32_t *)key, whole = ((const struct split_row *)row)->whole;
	return (c > whole) - (c < whole);
}

/* c taken apart as far as it goes, at most 4 code points, to out; their number. */
static size_t take_apart(uint32_t *out, uint32_t c)
{
	if (c >= SYLLABLE && c < SYLLABLE + SYLLABLES) {
		uint32_t i = c - SYLLABLE, t = i % TRAILINGS;
		out[0] = LEADING + i / (VOWELS * TRAILINGS);
		out[1] = VOWEL + i / TRAILINGS % VOWELS;
		out[2] = TRAILING + t;
		return t ? 3 : 2;
	}
	const struct split_row *r = c < splits[0].whole ? NULL : bsearch(&c, splits, ARRAY_LEN(splits), sizeof *splits, by_whole);
	if (!r) {
		out[0] = c;
		return 1;
	}
	size_t n = take_apart(out, r->first); /* the second never splits */
	if (r->second)
		out[n++] = r->second;
	return n;
}

static int by_parts(const void *key, const void *row)
{
	const struct join_row *a = key, *b = row;
	if (a->first != b->first)
		return a->first < b->first ? -1 : 1;
	return (a->second > b->second) - (a->second < b->second);
}

/* The code point for a followed by b; 0: none. */
static uint32_t put_together(uint32_t a, uint32_t b)
{
	if (a - LEADING < LEADINGS && b - VOWEL < VOWELS)
		return SYLLABLE + ((a - LEADING) * VOWELS + (b - VOWEL)) * TRAILINGS;
	if (a - SYLLABLE < SYLLABLES && (a - SYLLABLE) % TRAILINGS == 0 && b - TRAILING - 1 < TRAILINGS - 1)
		return a + (b - TRAILING);
	const struct join_row key = {a, b, 0}, *r = bsearch(&key, joins, ARRAY_LEN(joins), sizeof *joins, by_parts);
	return r ? r->whole : 0;
}

struct mark {
	uint32_t c, at; /* at: its place before ordering, so that equal classes keep theirs */
	int class;
};

static int by_class(const void *a, const void *b)
{
	const struct mark *x = a, *y = b;
	return x->class != y->class ? (x->class > y->class) - (x->class < y->class) : (x->at > y->at) - (x->at < y->at);
}

/* Code points of the text taken apart, into s (room for 2 a byte); bytes that are not UTF-8 lie above all. */
static size_t split_text(struct mark *s, const uint8_t *p, size_t n)
{
	size_t count = 0;
	for (size_t i = 0, length; i < n; i += length) {
		uint32_t parts[4] = {utf8_decode(p + i, n - i, &length)};
		size_t k = 1;
		if (parts[0] == NOT_UTF8)
			parts[0] += p[i];
		else
			k = take_apart(parts, parts[0]);
		for (size_t j = 0; j < k; j++, count++)
			s[count] = (struct mark){parts[j], (uint32_t)count, class_of(parts[j])};
	}
	return count;
}

static void order_marks(struct mark *s, size_t n)
{
	for (size_t i = 0, end; i < n; i = end + 1) {
		for (end = i; end < n && s[end].class; end++)
			;
		qsort(s + i, end - i, sizeof *s, by_class);
	}
}

/* A mark joins the last starter unless one of the same or a higher class stands between. */
static size_t join_marks(struct mark *s, size_t n)
{
	size_t count = 0, starter = SIZE_MAX;
	int last = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t whole = starter != SIZE_MAX && (last == 0 || last < s[i].class) ? put_together(s[starter].c, s[i].c) : 0;
		if (whole) {
			s[starter].c = whole;
			continue;
		}
		if (s[i].class == 0)
			starter = count;
		last = s[i].class;
		s[count++] = s[i];
	}
	return count;
}

int unicode_compose(const void *text, size_t n, struct buf *out, struct error *e)
{
	const uint8_t *p = text;
	size_t plain = 0;
	while (plain < n && p[plain] < 0xCC) /* nothing below U+0300 joins what stands before it, or splits for good */
		plain++;
	if (plain == n)
		return buf_set(out, n ? text : "", n, e);
	struct mark *s = mem_alloc(2 * n, sizeof *s, e);
	if (!s || buf_set(out, "", 0, e) || buf_reserve(out, 3 * n + 8, e)) {
		free(s);
		return -1;
	}
	size_t count = split_text(s, p, n);
	order_marks(s, count);
	count = join_marks(s, count);
	for (size_t i = 0; i < count; i++) {
		if (s[i].c >= NOT_UTF8)
			out->p[out->n++] = (uint8_t)(s[i].c - NOT_UTF8);
		else
			out->n += utf8_encode(out->p + out->n, s[i].c);
	}
	out->p[out->n] = 0;
	free(s);
	return 0;
}
