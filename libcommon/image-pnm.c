/* image-pnm.c - PPM (P6), PGM (P5) and PAM (P7), one after the other as netpbm concatenates
 * them; any maxval up to 65535. */
#include "image.h"

#include <stdlib.h>
#include <string.h>

struct pnm {
	uint64_t width, height, depth, max;
	bool colour, alpha;
};

enum { MAX_HEADER_LINE = 1024, MAX_HEADER_LINES = 256 };

static int damaged(const struct input *s, const char *what, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: damaged PNM: %s", s->name, what);
}

static bool is_space(int c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

/* A number of a P5 or P6 header, with the one byte after it; comments run to the line's end. */
static int header_number(struct input *s, uint64_t *out, struct error *e)
{
	int c = input_byte(s, e);
	for (int skipped = 0; is_space(c) || c == '#'; skipped++) {
		while (c == '#' && (c = input_byte(s, e)) >= 0 && c != '\n' && c != '\r')
			c = '#';
		c = input_byte(s, e);
		if (skipped > MAX_HEADER_LINE * MAX_HEADER_LINES)
			return damaged(s, "no size in the header", e);
	}
	if (c < '0' || c > '9')
		return damaged(s, c == -1 ? "ends inside the header" : "expected a number in the header", e);
	for (*out = 0; c >= '0' && c <= '9'; c = input_byte(s, e))
		if ((*out = *out * 10 + (uint64_t)(c - '0')) > 1 << 20)
			return damaged(s, "a number of the header is out of range", e);
	/* A comment may follow the number at once, and ends its line. */
	while (c == '#' && (c = input_byte(s, e)) >= 0 && c != '\n')
		c = '#';
	return is_space(c) ? 0 : damaged(s, "expected white space after a number of the header", e);
}

static int read_header(struct pnm *h, struct input *s, bool colour, struct error *e)
{
	h->colour = colour;
	h->depth = colour ? 3 : 1;
	return header_number(s, &h->width, e) || header_number(s, &h->height, e) || header_number(s, &h->max, e) ? -1 : 0;
}

static int pam_line(struct pnm *h, const struct input *s, char *line, bool *has_type, struct error *e)
{
	static const char *const types[] = {"BLACKANDWHITE", "GRAYSCALE", "RGB"};
	char *save = NULL, *word = strtok_r(line, " \t", &save), *value = word ? strtok_r(NULL, " \t", &save) : NULL;
	uint64_t *number = NULL;
	if (!word || *word == '#')
		return 0;
	if (!value)
		return damaged(s, "a line of the PAM header has no value", e);
	if (strcmp(word, "TUPLTYPE") == 0) {
		size_t n = strcspn(value, "_");
		for (int i = 0; i < 3; i++) {
			if (strlen(types[i]) == n && memcmp(types[i], value, n) == 0) {
				h->colour = i == 2;
				h->alpha = strcmp(value + n, "_ALPHA") == 0;
				*has_type = true;
			}
		}
		return 0;
	}
	number = strcmp(word, "WIDTH") == 0    ? &h->width
		 : strcmp(word, "HEIGHT") == 0 ? &h->height
		 : strcmp(word, "DEPTH") == 0  ? &h->depth
		 : strcmp(word, "MAXVAL") == 0 ? &h->max
					       : NULL;
	int64_t v;
	struct error bad = {0};
	if (!number || parse_int(value, 1, 1 << 20, &v, &bad))
		return damaged(s, number ? "a number of the PAM header is out of range" : "unknown line in the PAM header", e);
	*number = (uint64_t)v;
	return 0;
}

static int read_pam_header(struct pnm *h, struct input *s, struct error *e)
{
	struct buf line = {0};
	bool has_type = false;
	int r = -1;
	for (int lines = 0; lines < MAX_HEADER_LINES; lines++) {
		r = input_line(s, &line, MAX_HEADER_LINE, e);
		if (r == 0)
			r = damaged(s, "ends inside the header", e);
		if (r < 0 || strcmp((char *)line.p, "ENDHDR") == 0)
			break;
		r = pam_line(h, s, (char *)line.p, &has_type, e);
		if (r < 0)
			break;
		r = -1;
	}
	buf_free(&line);
	if (r < 0)
		return damaged(s, "the PAM header has no end", e);
	if (!has_type) { /* without a known type the number of channels tells */
		h->colour = h->depth >= 3;
		h->alpha = h->depth == 2 || h->depth == 4;
	}
	if (h->depth > 16 || h->depth < (h->colour ? 3u : 1u) + h->alpha)
		return damaged(s, "the depth does not fit the tuple type", e);
	return 0;
}

static void convert_row(const struct pnm *h, uint8_t *to, const uint8_t *row, const uint8_t background[3])
{
	size_t depth = (size_t)h->depth, wide = h->max > 255;
	uint32_t max = (uint32_t)h->max;
	for (size_t x = 0; x < h->width; x++) {
		uint32_t v[4];
		for (size_t i = 0; i < 4 && i < depth; i++) {
			const uint8_t *p = row + (x * depth + i) * (1 + wide);
			uint32_t c = wide ? (uint32_t)p[0] << 8 | p[1] : p[0];
			v[i] = c > max ? max : c;
		}
		uint32_t a = !h->alpha ? max : v[h->colour ? 3 : 1];
		for (size_t i = 0; i < 3; i++)
			to[3 * x + i] = image_blend(v[h->colour ? i : 0], a, max, background[i]);
	}
}

static int read_rows(const struct pnm *h, struct pixels *out, struct input *s, const struct image_options *o,
		     struct error *e)
{
	size_t bytes = (size_t)h->width * (size_t)h->depth * (h->max > 255 ? 2 : 1);
	bool plain = h->colour && h->depth == 3 && h->max == 255;
	uint8_t *row = mem_alloc(bytes, 1, e);
	int r = row ? 0 : -1;
	for (size_t y = 0; r == 0 && y < h->height; y++) {
		uint8_t *to = out->rgb + 3 * y * (size_t)h->width;
		int64_t got = input_read(s, plain ? to : row, bytes, e);
		if (got != (int64_t)bytes)
			r = got < 0 ? -1 : damaged(s, "ends inside the picture", e);
		else if (!plain)
			convert_row(h, to, row, o->background);
	}
	free(row);
	return r;
}

int image_read_pnm(struct pixels *out, struct input *s, const struct image_options *o, struct error *e)
{
	struct pnm h = {0};
	size_t got;
	const uint8_t *magic = input_peek(s, 3, &got, e);
	if (!magic)
		return -1;
	if (got == 0)
		return 0;
	if (image_kind(magic, got) != IMAGE_PNM)
		return damaged(s, "expected P5, P6 or P7", e);
	bool pam = magic[1] == '7', colour = magic[1] == '6';
	if (input_skip(s, pam ? 3 : 2, e) < 0 || (pam ? read_pam_header(&h, s, e) : read_header(&h, s, colour, e)))
		return -1;
	if (h.max < 1 || h.max > 65535)
		return damaged(s, "maxval is not 1 to 65535", e);
	if (image_check_size(h.width, h.height, o, s->name, e) ||
	    pixels_resize(out, (uint32_t)h.width, (uint32_t)h.height, e) || read_rows(&h, out, s, o, e))
		return -1;
	return 1;
}
