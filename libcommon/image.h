/* image.h - pictures: decoding (PNG, JPEG, PPM/PGM/PAM) into 8-bit RGB, composited over a
 * background; resizing with exact definitions; the crops of the paper; PNG writing.
 * All input is hostile: sizes are bounded before memory is taken for them.
 *
 * Values are used as they are stored (gamma-encoded, profiles ignored), as the paper's and
 * every other pipeline of this kind does. */
#ifndef IMAGE_H
#define IMAGE_H

#include "input.h"
#include "stream.h"

/* ---- decoding ---- */

enum image_kind { IMAGE_UNKNOWN, IMAGE_PNG, IMAGE_JPEG, IMAGE_PNM };
/* What the first bytes of a file (8 or more) say that it is. */
enum image_kind image_kind(const uint8_t *p, size_t n);

enum {
	IMAGE_MAX_SIDE = STREAM_MAX_SIDE,
	IMAGE_MAX_FILE = 1 << 28,        /* bytes of an encoded picture */
	IMAGE_MAX_CHUNK = 8 << 20,       /* bytes of a PNG chunk held in memory */
	IMAGE_MAX_SCANS = 200,           /* of a progressive JPEG: each costs time for the whole picture */
};

struct image_options {
	uint8_t background[3]; /* what shows through transparent parts */
	/* A JPEG may come out at 1/2, 1/4 or 1/8 of its size (averaged in the DCT domain, several
	 * times faster) as long as its shorter side stays at least this; 0: always full size. */
	uint32_t least_side;
	uint64_t max_pixels; /* larger pictures are STATUS_LIMIT; at most IMAGE_MAX_SIDE squared */
};
#define IMAGE_DEFAULTS {{255, 255, 255}, 0, 100000000}

/* Decode a whole file held in memory, format by content.  `name` is for messages.  STATUS_BAD
 * for what is damaged or no picture, STATUS_LIMIT for what is too large.  A JPEG is turned
 * upright as its EXIF orientation says. */
int image_decode(struct pixels *out, const void *p, size_t n, const struct image_options *o, const char *name,
		 struct error *e);
/* One of concatenated PPM (P6), PGM (P5) or PAM (P7) pictures: 1, 0 at the end, -1. */
int image_read_pnm(struct pixels *out, struct input *s, const struct image_options *o, struct error *e);
/* "RRGGBB" with or without "#", or black, white, grey (gray); STATUS_USAGE naming `option` for others. */
int image_parse_colour(const char *option, const char *text, uint8_t rgb[3], struct error *e);

/* ---- parts of the decoders, one per format ---- */

int image_decode_png(struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o, const char *name,
		     struct error *e);
int image_decode_jpeg(struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o, const char *name,
		      struct error *e);
/* STATUS_BAD/LIMIT when the size is empty or beyond the limits. */
int image_check_size(uint64_t width, uint64_t height, const struct image_options *o, const char *name,
		     struct error *e);
/* Turn and mirror in place: orientation 1..8 as EXIF numbers them. */
int image_orient(struct pixels *p, int orientation, struct error *e);

/* The sample c of range 0..max with alpha a (0..max) over an 8-bit background, rounded once. */
static inline uint8_t image_blend(uint32_t c, uint32_t a, uint32_t max, uint32_t background)
{
	uint64_t m = max, square = m * m;
	return (uint8_t)((255 * (uint64_t)c * a + (uint64_t)background * m * (m - a) + square / 2) / square);
}

/* ---- drawing ---- */

void image_free(struct pixels *p); /* of a picture that is not part of a record */

void image_fill(struct pixels *p, const uint8_t rgb[3]);
/* Copies `from` into `to` with its corner at (x, y); parts outside of `to` are cut. */
void image_paste(struct pixels *to, int64_t x, int64_t y, const struct pixels *from);
void image_mirror(struct pixels *p); /* left for right */

/* ---- resizing ---- */

struct rect {
	uint32_t x, y, width, height;
};

enum resize_filter {
	RESIZE_AUTO,    /* area when shrinking, Lanczos when enlarging, each axis for itself */
	RESIZE_AREA,    /* mean over the source interval [i*s, (i+1)*s), s = in/out */
	RESIZE_TF_AREA, /* the same with s = (in-1)/(out-1), edge pixels repeated: what the paper used (B24) */
	RESIZE_LANCZOS, /* Lanczos-3, widened by s when shrinking */
	RESIZE_NEAREST, /* the source pixel under the centre */
};
#define RESIZE_NAMES "auto|area|tf-area|lanczos|nearest"

/* The part `from` of `in`, resized to width x height, of which `window` is computed into
 * `out` (a size of its own; not `in`).  The averages are exact sums, rounded half to even. */
int image_resize(struct pixels *out, const struct pixels *in, struct rect from, uint32_t width, uint32_t height,
		 struct rect window, enum resize_filter filter, struct error *e);
/* The whole of it. */
int image_scale(struct pixels *out, const struct pixels *in, uint32_t width, uint32_t height,
		enum resize_filter filter, struct error *e);

/* ---- as Pillow computes, to the byte (image-pillow.c) ---- */

/* `in` resampled to width x height with Pillow's antialiased BICUBIC, of which `window` (not empty) is computed into
 * `out` (not `in`). */
int image_bicubic(struct pixels *out, const struct pixels *in, uint32_t width, uint32_t height, struct rect window,
		  struct error *e);
/* Pillow's GaussianBlur(radius), in place: the radius (0 to IMAGE_MAX_BLUR) is the deviation in pixels. */
enum { IMAGE_MAX_BLUR = 1000 };
int image_blur(struct pixels *p, double radius, struct error *e);

/* ---- crops to a square ---- */

enum crop_mode {
	CROP_CENTER, /* the largest square in the middle */
	CROP_RANDOM, /* a largest square anywhere */
	CROP_DVAE,   /* paper A.2 listing 1: random square, to 9/8..12/8 of the size, random window, mirrored by chance */
	CROP_DALLE,  /* paper B.2 listing 2: near the middle, to 1..9/8 of the size, random window, never mirrored */
	CROP_PAD,    /* the whole picture, the rest filled with the background */
};
#define CROP_NAMES "center|random|paper-dvae|paper-dalle|pad"

struct crop {
	struct rect from;       /* of the source */
	uint32_t width, height; /* resized to */
	struct rect window;     /* of that, kept */
	uint32_t x, y;          /* where it goes in the result */
	bool mirrored;
};
/* Geometry of one crop to size x size.  Chance is keyed by (seed, variant, index); index is the
 * hash of the record's key.  The paper's crops refuse pictures smaller than `size` (B23): STATUS_BAD. */
int crop_plan(struct crop *c, enum crop_mode mode, uint32_t width, uint32_t height, uint32_t size, uint64_t seed,
	      uint32_t variant, uint64_t index, struct error *e);
/* Carry it out.  The paper's crops want RESIZE_TF_AREA. */
int crop_apply(struct pixels *out, const struct pixels *in, const struct crop *c, uint32_t size,
	       const uint8_t background[3], enum resize_filter filter, struct error *e);
/* The least_side that leaves enough of a JPEG for this crop. */
uint32_t crop_least_side(enum crop_mode mode, uint32_t size);

/* ---- PNG writing ---- */

struct image_text {
	const char *keyword; /* 1..79 characters of ASCII */
	const char *text;    /* UTF-8 */
};
/* Appends an RGB8 PNG file to `out`, with text chunks (tEXt, or iTXt when not ASCII).  The same
 * input gives the same bytes. */
int image_write_png(struct buf *out, const struct pixels *p, const struct image_text *text, size_t texts,
		    struct error *e);

#endif
