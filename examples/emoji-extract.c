/* emoji-extract.c - pictures with captions that every Debian machine can have: the colour
 * emoji of a font file and their names in Unicode's list.  Writes one PNG per emoji, and
 * lists that img-pack reads, split into training and held-out parts by hashes of the code
 * points, so that anybody gets the same split.
 *
 * From code points to picture: cmap format 12 (code point to glyph), GSUB type 4 (glyphs to
 * ligature glyph), CBLC index format 1 (glyph to place), CBDT image format 17 (a PNG file).
 * The font is untrusted input: every read is bounded, see u16() and u32(). */
#include "../libcommon/opt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_POINTS = 16, GLYPHS = 65536, MAX_TEXT_FIELD = 256 };

static const char *font_path = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf";
static const char *list_path = "/usr/share/unicode/emoji/emoji-test.txt";
static const char *folder = "emoji";
static const char *const split_names[] = {"train", "combo", "cross", "novel", "dup"};
enum split { TRAIN, COMBO, CROSS, NOVEL, DUP, SPLITS };

/* ---- bounded big-endian reads ---- */

struct table {
	const uint8_t *p;
	size_t n;
};

/* Reads outside of the table give 0, which every caller below takes for "nothing there". */
static uint32_t u16(struct table t, size_t at)
{
	return at + 2 <= t.n ? (uint32_t)t.p[at] << 8 | t.p[at + 1] : 0;
}

static uint32_t u32(struct table t, size_t at)
{
	return at + 4 <= t.n ? u16(t, at) << 16 | u16(t, at + 2) : 0;
}

static struct table part(struct table t, size_t at)
{
	return at < t.n ? (struct table){t.p + at, t.n - at} : (struct table){NULL, 0};
}

static struct table find_table(struct table font, const char *tag)
{
	uint32_t count = u16(font, 4);
	for (uint32_t i = 0; i < count; i++) {
		size_t row = 12 + 16 * (size_t)i, offset = u32(font, row + 8), length = u32(font, row + 12);
		if (row + 16 > font.n)
			break;
		if (memcmp(font.p + row, tag, 4) == 0 && offset <= font.n && length <= font.n - offset)
			return (struct table){font.p + offset, length};
	}
	return (struct table){NULL, 0};
}

/* ---- the font ---- */

struct font {
	struct table cmap, gsub, cblc, cbdt; /* cmap: its format 12 part */
};

static struct table find_cmap12(struct table cmap)
{
	for (uint32_t i = 0; i < u16(cmap, 2); i++) {
		struct table t = part(cmap, u32(cmap, 4 + 8 * (size_t)i + 4));
		if (u16(t, 0) == 12)
			return t;
	}
	return (struct table){NULL, 0};
}

static int font_open(struct font *f, const struct buf *file, struct error *e)
{
	struct table all = {file->p, file->n};
	f->cmap = find_cmap12(find_table(all, "cmap"));
	f->gsub = find_table(all, "GSUB");
	f->cblc = find_table(all, "CBLC");
	f->cbdt = find_table(all, "CBDT");
	if (!f->cmap.n || !f->gsub.n || !f->cblc.n || !f->cbdt.n)
		return fail(e, STATUS_BAD, "%s: expected a font with PNG pictures (tables cmap format 12, GSUB, CBLC, CBDT)",
			    font_path);
	return 0;
}

static uint32_t glyph_of_point(const struct font *f, uint32_t point)
{
	uint32_t groups = u32(f->cmap, 12);
	for (size_t i = 0, at = 16; i < groups && at + 12 <= f->cmap.n; i++, at += 12) {
		uint32_t first = u32(f->cmap, at), last = u32(f->cmap, at + 4);
		if (point >= first && point <= last)
			return (u32(f->cmap, at + 8) + (point - first)) & 0xffff;
	}
	return 0;
}

/* Place of a glyph in a coverage table, -1 when it is not in it. */
static int64_t coverage_index(struct table t, uint32_t glyph)
{
	uint32_t format = u16(t, 0), count = u16(t, 2);
	for (size_t i = 0; format == 1 && i < count; i++)
		if (u16(t, 4 + 2 * i) == glyph)
			return (int64_t)i;
	for (size_t i = 0; format == 2 && i < count; i++) {
		uint32_t first = u16(t, 4 + 6 * i), last = u16(t, 6 + 6 * i);
		if (glyph >= first && glyph <= last)
			return (int64_t)u16(t, 8 + 6 * i) + (glyph - first);
	}
	return -1;
}

/* A ligature of exactly these glyphs in one GSUB type 4 subtable; 0 when there is none. */
static uint32_t ligature_in(struct table t, const uint32_t *glyphs, size_t n)
{
	int64_t index = u16(t, 0) == 1 ? coverage_index(part(t, u16(t, 2)), glyphs[0]) : -1;
	if (index < 0 || index >= u16(t, 4))
		return 0;
	struct table set = part(t, u16(t, 6 + 2 * (size_t)index));
	for (size_t i = 0; i < u16(set, 0); i++) {
		struct table ligature = part(set, u16(set, 2 + 2 * i));
		size_t same = 1;
		if (u16(ligature, 2) != n)
			continue;
		while (same < n && u16(ligature, 4 + 2 * (same - 1)) == glyphs[same])
			same++;
		if (same == n)
			return u16(ligature, 0);
	}
	return 0;
}

static uint32_t ligature_of(const struct font *f, const uint32_t *glyphs, size_t n)
{
	struct table lookups = part(f->gsub, u16(f->gsub, 8));
	for (size_t i = 0; i < u16(lookups, 0); i++) {
		struct table lookup = part(lookups, u16(lookups, 2 + 2 * i));
		for (size_t k = 0; u16(lookup, 0) == 4 && k < u16(lookup, 4); k++) {
			uint32_t glyph = ligature_in(part(lookup, u16(lookup, 6 + 2 * k)), glyphs, n);
			if (glyph)
				return glyph;
		}
	}
	return 0;
}

/* The glyph of a sequence of code points; 0 when the font has none. */
static uint32_t glyph_of_sequence(const struct font *f, const uint32_t *points, size_t n)
{
	uint32_t glyphs[MAX_POINTS];
	size_t count = 0;
	for (size_t i = 0; i < n; i++) {
		if (points[i] == 0xFE0F) /* "show in colour": is in no ligature */
			continue;
		glyphs[count++] = glyph_of_point(f, points[i]);
		if (!glyphs[count - 1])
			return 0;
	}
	return count < 2 ? (count ? glyphs[0] : 0) : ligature_of(f, glyphs, count);
}

/* The PNG file of a glyph; n = 0 when there is none or the formats are others than ours. */
static struct table png_of_glyph(const struct font *f, uint32_t glyph)
{
	static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
	struct table none = {NULL, 0}, index = part(f->cblc, u32(f->cblc, 8)); /* of the first size */
	for (size_t i = 0; i < u32(f->cblc, 16) && 8 * i < index.n; i++) {
		uint32_t first = u16(index, 8 * i), last = u16(index, 8 * i + 2);
		if (glyph < first || glyph > last)
			continue;
		struct table sub = part(index, u32(index, 8 * i + 4));
		if (u16(sub, 0) != 1 || u16(sub, 2) != 17)
			return none;
		struct table image = part(f->cbdt, (size_t)u32(sub, 4) + u32(sub, 8 + 4 * (size_t)(glyph - first)));
		size_t length = u32(image, 5); /* after five bytes of metrics */
		if (image.n < 9 || length > image.n - 9 || length < 8 || memcmp(image.p + 9, signature, 8) != 0)
			return none;
		return (struct table){image.p + 9, length};
	}
	return none;
}

/* ---- SHA-1 (FIPS 180-4) of short text, for the splits ---- */

static uint32_t rotate(uint32_t x, int by)
{
	return x << by | x >> (32 - by);
}

static void sha1_block(uint32_t h[5], const uint8_t block[64])
{
	uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
	for (int i = 0; i < 16; i++)
		w[i] = u32((struct table){block, 64}, 4 * (size_t)i);
	for (int i = 16; i < 80; i++)
		w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
	for (int i = 0; i < 80; i++) {
		uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
		uint32_t k = i < 20 ? 0x5A827999 : i < 40 ? 0x6ED9EBA1 : i < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
		uint32_t next = rotate(a, 5) + f + e + k + w[i];
		e = d, d = c, c = rotate(b, 30), b = a, a = next;
	}
	h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

/* The first 8 hex digits of SHA-1(text) as a number, modulo n. */
static uint32_t bucket(const char *text, uint32_t n)
{
	uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
	uint8_t block[64];
	size_t length = strlen(text), at = 0;
	for (; length - at >= 64; at += 64)
		sha1_block(h, (const uint8_t *)text + at);
	memset(block, 0, sizeof block);
	memcpy(block, text + at, length - at);
	block[length - at] = 0x80;
	if (length - at >= 56) {
		sha1_block(h, block);
		memset(block, 0, sizeof block);
	}
	for (int i = 0; i < 8; i++)
		block[56 + i] = (uint8_t)((uint64_t)length * 8 >> (56 - 8 * i));
	sha1_block(h, block);
	return h[0] % n;
}

/* ---- one emoji of the list ---- */

struct emoji {
	uint32_t points[MAX_POINTS];
	size_t n;
	char caption[MAX_TEXT_FIELD], version[16], group[MAX_TEXT_FIELD], subgroup[MAX_TEXT_FIELD];
	char name[MAX_TEXT_FIELD];  /* all code points, joined by '-' */
	char base[MAX_TEXT_FIELD];  /* without skin tones and U+FE0F */
	char tones[MAX_TEXT_FIELD]; /* skin tones, joined by '+' */
	uint32_t bases[MAX_POINTS];
	size_t base_count;
};

static void append(char *to, const char *separator, const char *text)
{
	size_t n = strlen(to);
	snprintf(to + n, MAX_TEXT_FIELD - n, "%s%s", n ? separator : "", text);
}

static void describe(struct emoji *m)
{
	static const char *const tones[] = {"light", "medium-light", "medium", "medium-dark", "dark"};
	m->name[0] = m->base[0] = m->tones[0] = 0;
	m->base_count = 0;
	for (size_t i = 0; i < m->n; i++) {
		char hex[16];
		uint32_t point = m->points[i];
		snprintf(hex, sizeof hex, "%04X", (unsigned)point);
		append(m->name, "-", hex);
		if (point >= 0x1F3FB && point <= 0x1F3FF) {
			append(m->tones, "+", tones[point - 0x1F3FB]);
		} else if (point != 0xFE0F) {
			append(m->base, "-", hex);
			m->bases[m->base_count++] = point;
		}
	}
}

/* "gender|role" of sequences like woman + ZWJ + rocket, or runner + ZWJ + female sign;
 * false for others.  Hair styles and the children of families stand in the same place as a
 * role but are none. */
static bool role_of(const struct emoji *m, char role[MAX_TEXT_FIELD])
{
	if (m->base_count != 3 || m->bases[1] != 0x200D)
		return false;
	uint32_t who = m->bases[0], what = m->bases[2];
	const char *gender = who == 0x1F468 ? "man" : who == 0x1F469 ? "woman" : who == 0x1F9D1 ? "person" : NULL;
	bool hair = what >= 0x1F9B0 && what <= 0x1F9B3, child = what == 0x1F466 || what == 0x1F467;
	if ((!gender || hair || child) && (what == 0x2640 || what == 0x2642)) {
		gender = what == 0x2640 ? "woman" : "man";
		what = who;
	} else if (!gender || hair || child) {
		return false;
	}
	snprintf(role, MAX_TEXT_FIELD, "%s|%04X", gender, (unsigned)what);
	return true;
}

/* The later rule wins; whether the glyph occurred before is the caller's to know. */
static enum split split_of(const struct emoji *m)
{
	char role[MAX_TEXT_FIELD], pair[2 * MAX_TEXT_FIELD];
	enum split split = TRAIN;
	bool has_role = role_of(m, role);
	snprintf(pair, sizeof pair, "%s|%s", m->base, m->tones);
	if (m->tones[0] && m->n > 1 && bucket(pair, 10) == 0)
		split = COMBO;
	if (has_role && bucket(role, 12) == 0)
		split = CROSS;
	if (!has_role && strcmp(m->group, "Component") != 0 && bucket(m->base, 20) == 0)
		split = NOVEL;
	return split;
}

/* Copies the rest of a "# group: NAME" line. */
static bool heading(const char *line, const char *prefix, char *to)
{
	size_t n = strlen(prefix);
	if (strncmp(line, prefix, n) != 0)
		return false;
	snprintf(to, MAX_TEXT_FIELD, "%s", line + n);
	return true;
}

/* "1F44B 1F3FB ; fully-qualified # (the emoji) E1.0 waving hand: light skin tone".  True when
 * the line is an emoji of its own: not another spelling of one. */
static bool parse_line(struct emoji *m, const char *line)
{
	const char *status = strchr(line, ';'), *comment = status ? strchr(status, '#') : NULL;
	if (!comment || (strncmp(status, "; fully-qualified", 17) != 0 && strncmp(status, "; component", 11) != 0))
		return false;
	m->n = 0;
	for (const char *p = line; p < status;) {
		char *end;
		unsigned long point = strtoul(p, &end, 16);
		if (end == p)
			break;
		if (m->n == MAX_POINTS || point == 0 || point > 0x10FFFF)
			return false;
		m->points[m->n++] = (uint32_t)point;
		p = end;
	}
	const char *version = strstr(comment, " E"), *name = version ? strchr(version + 1, ' ') : NULL;
	if (!m->n || !name || (size_t)(name - version) > sizeof m->version)
		return false;
	snprintf(m->version, sizeof m->version, "%.*s", (int)(name - version - 1), version + 1);
	snprintf(m->caption, sizeof m->caption, "%s", name + 1);
	describe(m);
	return true;
}

/* ---- output ---- */

static int put_file(const char *name, const char *suffix, const void *p, size_t n, struct error *e)
{
	struct buf path = {0};
	int r = buf_printf(&path, e, "%s/%s%s", folder, name, suffix);
	if (r == 0)
		r = write_file((const char *)path.p, p, n, true, e);
	buf_free(&path);
	return r;
}

struct lists {
	struct buf pairs, split[SPLITS];
	uint32_t count[SPLITS], without;
	bool seen[GLYPHS];
};

static int add_emoji(struct lists *l, const struct font *f, const struct emoji *m, struct error *e)
{
	uint32_t glyph = glyph_of_sequence(f, m->points, m->n);
	struct table png = glyph ? png_of_glyph(f, glyph) : (struct table){NULL, 0};
	if (!png.n) {
		note(1, "%s: no picture of %s (%s)", font_path, m->name, m->caption);
		l->without++;
		return 0;
	}
	enum split split = l->seen[glyph] ? DUP : split_of(m);
	l->seen[glyph] = true;
	l->count[split]++;
	if (buf_printf(&l->pairs, e, "%s.png\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m->name, m->caption, m->name,
		       split_names[split], m->group, m->subgroup, m->version, m->base, m->tones) ||
	    buf_printf(&l->split[split], e, "%s.png\t%s\n", m->name, m->caption))
		return -1;
	return put_file(m->name, ".png", png.p, png.n, e);
}

static int walk_list(struct lists *l, const struct font *f, struct buf *text, struct error *e)
{
	struct emoji m = {.n = 0};
	char *save = NULL;
	for (char *line = strtok_r((char *)text->p, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
		if (heading(line, "# group: ", m.group) || heading(line, "# subgroup: ", m.subgroup))
			continue;
		if (parse_line(&m, line) && add_emoji(l, f, &m, e))
			return -1;
	}
	return 0;
}

static int write_lists(const struct lists *l, struct error *e)
{
	uint32_t total = 0;
	for (int i = 0; i < SPLITS; i++) {
		total += l->count[i];
		if (put_file(split_names[i], ".tsv", l->split[i].p, l->split[i].n, e))
			return -1;
		note(1, "%s: %u", split_names[i], l->count[i]);
	}
	if (!total)
		return fail(e, STATUS_BAD, "no emoji of %s has a picture in %s: expected CBLC index format 1 and CBDT image format 17",
			    list_path, font_path);
	if (l->without)
		warn("%s: %u emoji of %s have no picture here", font_path, l->without, list_path);
	return put_file("pairs", ".tsv", l->pairs.p, l->pairs.n, e);
}

static int extract(struct error *e)
{
	struct buf file = {0}, text = {0};
	struct font font;
	struct lists *lists = mem_zero(1, sizeof *lists, e);
	int r = -1;
	if (lists && read_file(font_path, 1 << 28, &file, e) == 0 && read_file(list_path, 1 << 26, &text, e) == 0 &&
	    font_open(&font, &file, e) == 0) {
		if (mkdir(folder, 0777) && errno != EEXIST)
			r = fail_errno(e, "%s", folder);
		else if (walk_list(lists, &font, &text, e) == 0)
			r = write_lists(lists, e);
	}
	for (int i = 0; lists && i < SPLITS; i++)
		buf_free(&lists->split[i]);
	if (lists)
		buf_free(&lists->pairs);
	free(lists);
	buf_free(&file);
	buf_free(&text);
	return r;
}

int main(int argc, char **argv)
{
	const struct opt options[] = {
	    OPT_STRING('D', "directory", &folder, "DIR", "write pictures and lists into DIR"),
	    OPT_STRING('f', "font", &font_path, "FILE", "TrueType font with PNG pictures"),
	    OPT_STRING('l', "list", &list_path, "FILE", "Unicode's emoji-test.txt"), OPT_END};
	const struct tool tool = {"emoji-extract", "[OPTION]...",
				  "Write the pictures of an emoji font, with their names as captions", options};
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (first < argc)
		return finish(opt_misuse("no operands are expected, got '%s'", argv[first]));
	return finish(extract(&e) ? report(&e) : STATUS_OK);
}
