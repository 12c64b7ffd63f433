/* image.c - see image.h: formats by content, size limits, simple drawing.  The decoders are in
 * image-png.c, image-jpeg.c and image-pnm.c. */
#include "image.h"

#include <stdlib.h>
#include <string.h>

enum image_kind image_kind(const uint8_t *p, size_t n)
{
	if (n >= 8 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0)
		return IMAGE_PNG;
	if (n >= 3 && memcmp(p, "\xff\xd8\xff", 3) == 0)
		return IMAGE_JPEG;
	if (n >= 3 && p[0] == 'P' && p[1] >= '5' && p[1] <= '7' &&
	    (p[2] == '\n' || (p[1] != '7' && (p[2] == ' ' || p[2] == '\t' || p[2] == '\r' || p[2] == '#'))))
		return IMAGE_PNM;
	return IMAGE_UNKNOWN;
}

static int decode_pnm(struct pixels *out, const void *p, size_t n, const struct image_options *o, const char *name,
		      struct error *e)
{
	struct input s;
	input_memory(&s, p, n, name);
	return image_read_pnm(out, &s, o, e) == 1 ? 0 : fail(e, STATUS_BAD, "%s: empty picture", name);
}

/* What it is instead of a picture that is read here. */
static const char *other_kind(const uint8_t *p, size_t n)
{
	static const struct {
		const char *magic;
		size_t at, n;
		const char *what;
	} known[] = {{"GIF8", 0, 4, "is a GIF picture"}, {"WEBP", 8, 4, "is a WebP picture"}, {"BM", 0, 2, "is a BMP picture"},
	             {"II*", 0, 4, "is a TIFF picture"}, {"MM\0*", 0, 4, "is a TIFF picture"},
	             {"ftyp", 4, 4, "is an AVIF or HEIF picture, or a film"}};
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (n >= known[i].at + known[i].n && memcmp(p + known[i].at, known[i].magic, known[i].n) == 0)
			return known[i].what;
	return n ? "is no picture" : "is empty";
}

int image_decode(struct pixels *out, const void *p, size_t n, const struct image_options *o, const char *name,
		 struct error *e)
{
	switch (image_kind(p, n)) {
	case IMAGE_PNG: return image_decode_png(out, p, n, o, name, e);
	case IMAGE_JPEG: return image_decode_jpeg(out, p, n, o, name, e);
	case IMAGE_PNM: return decode_pnm(out, p, n, o, name, e);
	case IMAGE_UNKNOWN: break;
	}
	return fail(e, STATUS_BAD, "%s: %s, expected PNG, JPEG, PPM, PGM or PAM", name, other_kind(p, n));
}

int image_check_size(uint64_t width, uint64_t height, const struct image_options *o, const char *name,
		     struct error *e)
{
	if (width == 0 || height == 0)
		return fail(e, STATUS_BAD, "%s: empty picture of %llu x %llu pixels", name, (unsigned long long)width,
			    (unsigned long long)height);
	if (width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE || width * height > o->max_pixels)
		return fail(e, STATUS_LIMIT, "%s: %llu x %llu pixels, expected sides of at most %d and %llu pixels in all",
			    name, (unsigned long long)width, (unsigned long long)height, IMAGE_MAX_SIDE,
			    (unsigned long long)o->max_pixels);
	return 0;
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int image_parse_colour(const char *option, const char *text, uint8_t rgb[3], struct error *e)
{
	static const struct {
		const char *name, *hex;
	} names[] = {{"white", "ffffff"}, {"black", "000000"}, {"grey", "808080"}, {"gray", "808080"}};
	const char *hex = text + (text[0] == '#');
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcmp(text, names[i].name) == 0)
			hex = names[i].hex;
	bool good = strlen(hex) == 6;
	for (int i = 0; good && i < 3; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);
		good = high >= 0 && low >= 0;
		rgb[i] = (uint8_t)(high * 16 + low);
	}
	return good ? 0 : fail(e, STATUS_USAGE, "%s: '%s' is no colour, expected RRGGBB in hex, white, black or grey",
	                       option, text);
}

void image_free(struct pixels *p)
{
	free(p->rgb);
	*p = (struct pixels){0};
}

void image_fill(struct pixels *p, const uint8_t rgb[3])
{
	size_t n = (size_t)p->width * p->height;
	for (size_t i = 0; i < n; i++)
		memcpy(p->rgb + 3 * i, rgb, 3);
}

void image_paste(struct pixels *to, int64_t x, int64_t y, const struct pixels *from)
{
	int64_t left = x < 0 ? -x : 0, right = from->width, top = y < 0 ? -y : 0, bottom = from->height;
	if (x + right > to->width)
		right = to->width - x;
	if (y + bottom > to->height)
		bottom = to->height - y;
	for (int64_t row = top; row < bottom && right > left; row++)
		memcpy(to->rgb + 3 * ((size_t)(y + row) * to->width + (size_t)(x + left)),
		       from->rgb + 3 * ((size_t)row * from->width + (size_t)left), 3 * (size_t)(right - left));
}

void image_mirror(struct pixels *p)
{
	for (size_t y = 0; y < p->height; y++) {
		uint8_t *left = p->rgb + 3 * y * p->width, *right = left + 3 * ((size_t)p->width - 1);
		for (; left < right; left += 3, right -= 3) {
			uint8_t kept[3];
			memcpy(kept, left, 3);
			memcpy(left, right, 3);
			memcpy(right, kept, 3);
		}
	}
}

int image_orient(struct pixels *p, int orientation, struct error *e)
{
	if (orientation < 2 || orientation > 8)
		return 0;
	/* 5..8 swap the axes; result (x, y) comes from (u, v) after mirroring either. */
	bool swap = orientation >= 5;
	bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
	bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
	struct pixels turned = {0};
	if (pixels_resize(&turned, swap ? p->height : p->width, swap ? p->width : p->height, e))
		return -1;
	for (uint32_t y = 0; y < turned.height; y++) {
		for (uint32_t x = 0; x < turned.width; x++) {
			size_t u = swap ? y : x, v = swap ? x : y;
			u = flip_x ? p->width - 1 - u : u;
			v = flip_y ? p->height - 1 - v : v;
			memcpy(turned.rgb + 3 * ((size_t)y * turned.width + x), p->rgb + 3 * (v * p->width + u), 3);
		}
	}
	struct pixels old = *p;
	*p = turned;
	image_free(&old);
	return 0;
}
