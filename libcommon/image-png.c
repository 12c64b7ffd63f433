/* image-png.c - PNG through libpng's row interface.  libpng undoes compression, filters and
 * interlacing; samples, palettes and transparency are interpreted here, because libpng's
 * transformations and its simplified interface are where its holes have been.  Ancillary
 * chunks other than tRNS are skipped unread. */
#include "image.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

/* All state lives here and not in locals, which a longjmp would leave undefined. */
struct png_job {
	const uint8_t *p;
	size_t n, at;
	const struct image_options *options;
	struct pixels *out;
	uint8_t *rows; /* one raw row, or all of an interlaced picture */
	png_bytep *row_list;
	uint32_t width, height, max;
	int depth, type, passes;
	bool has_key;
	png_color_16 key;         /* the transparent colour of pictures without alpha or palette */
	uint8_t palette[256][3];  /* over the background; entries beyond the file's are black */
	char message[160];
};

static void on_error(png_structp png, png_const_charp text)
{
	struct png_job *job = png_get_error_ptr(png);
	snprintf(job->message, sizeof job->message, "%s", text);
	png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text)
{
}

static void on_read(png_structp png, png_bytep to, size_t n)
{
	struct png_job *job = png_get_io_ptr(png);
	if (n > job->n - job->at)
		png_error(png, "the file ends too early");
	memcpy(to, job->p + job->at, n);
	job->at += n;
}

/* ---- samples to RGB8 ---- */

static inline uint32_t sample(const uint8_t *row, size_t i, int depth)
{
	switch (depth) {
	case 8: return row[i];
	case 16: return (uint32_t)row[2 * i] << 8 | row[2 * i + 1];
	default: { /* 1, 2, 4: from the high bits on */
		size_t per_byte = 8 / (size_t)depth, shift = 8 - (size_t)depth * (i % per_byte + 1);
		return row[i / per_byte] >> shift & ((1u << depth) - 1);
	}
	}
}

static void palette_row(const struct png_job *job, uint8_t *to, const uint8_t *row)
{
	for (size_t x = 0; x < job->width; x++)
		memcpy(to + 3 * x, job->palette[sample(row, x, job->depth)], 3);
}

/* Grey and RGB without alpha channel; the colour of tRNS, compared at full depth, is transparent. */
static void opaque_row(const struct png_job *job, uint8_t *to, const uint8_t *row)
{
	int channels = job->type & PNG_COLOR_MASK_COLOR ? 3 : 1;
	uint32_t max = job->max;
	for (size_t x = 0; x < job->width; x++) {
		uint32_t c[3];
		for (int i = 0; i < 3; i++)
			c[i] = sample(row, x * (size_t)channels + (channels == 3 ? (size_t)i : 0), job->depth);
		bool clear = job->has_key && (channels == 3 ? c[0] == job->key.red && c[1] == job->key.green && c[2] == job->key.blue
							    : c[0] == job->key.gray);
		for (int i = 0; i < 3; i++)
			to[3 * x + (size_t)i] = clear ? job->options->background[i] : image_blend(c[i], max, max, 0);
	}
}

static void alpha_row(const struct png_job *job, uint8_t *to, const uint8_t *row)
{
	size_t channels = job->type & PNG_COLOR_MASK_COLOR ? 4 : 2;
	for (size_t x = 0; x < job->width; x++) {
		uint32_t a = sample(row, x * channels + channels - 1, job->depth);
		for (size_t i = 0; i < 3; i++) {
			uint32_t c = sample(row, x * channels + (channels == 4 ? i : 0), job->depth);
			to[3 * x + i] = image_blend(c, a, job->max, job->options->background[i]);
		}
	}
}

static void convert_row(const struct png_job *job, uint32_t y, const uint8_t *row)
{
	uint8_t *to = job->out->rgb + 3 * (size_t)y * job->width;
	if (job->type == PNG_COLOR_TYPE_PALETTE)
		palette_row(job, to, row);
	else if (job->type & PNG_COLOR_MASK_ALPHA)
		alpha_row(job, to, row);
	else if (job->type == PNG_COLOR_TYPE_RGB && job->depth == 8 && !job->has_key)
		memcpy(to, row, 3 * (size_t)job->width);
	else
		opaque_row(job, to, row);
}

/* ---- reading ---- */

static void read_transparency(struct png_job *job, png_structp png, png_infop info)
{
	png_bytep alpha = NULL;
	png_color_16p key = NULL;
	png_colorp colours = NULL;
	int alphas = 0, count = 0;
	bool present = png_get_tRNS(png, info, &alpha, &alphas, &key) != 0;
	if (job->type != PNG_COLOR_TYPE_PALETTE) {
		job->has_key = present && key;
		if (job->has_key)
			job->key = *key;
		return;
	}
	if (!png_get_PLTE(png, info, &colours, &count))
		png_error(png, "the palette is missing");
	for (int i = 0; i < count && i < 256; i++) {
		uint32_t a = present && alpha && i < alphas ? alpha[i] : 255;
		const uint8_t *b = job->options->background;
		job->palette[i][0] = image_blend(colours[i].red, a, 255, b[0]);
		job->palette[i][1] = image_blend(colours[i].green, a, 255, b[1]);
		job->palette[i][2] = image_blend(colours[i].blue, a, 255, b[2]);
	}
}

static int read_header(struct png_job *job, png_structp png, png_infop info, const char *name, struct error *e)
{
	png_set_user_limits(png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
	png_set_chunk_malloc_max(png, IMAGE_MAX_CHUNK);
	/* -1: everything that is not needed to draw the picture, known to libpng or not. */
	png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
	png_set_read_fn(png, job, on_read);
	png_read_info(png, info);
	job->width = png_get_image_width(png, info);
	job->height = png_get_image_height(png, info);
	job->depth = png_get_bit_depth(png, info);
	job->type = png_get_color_type(png, info);
	job->max = (1u << job->depth) - 1;
	if (image_check_size(job->width, job->height, job->options, name, e))
		return -1;
	read_transparency(job, png, info);
	job->passes = png_set_interlace_handling(png);
	png_read_update_info(png, info);
	return 0;
}

/* Rows come one by one; an interlaced picture only whole, after seven passes. */
static int read_rows(struct png_job *job, png_structp png, png_infop info, struct error *e)
{
	size_t bytes = png_get_rowbytes(png, info), held = job->passes > 1 ? job->height : 1;
	if (pixels_resize(job->out, job->width, job->height, e) || !(job->rows = mem_alloc(held, bytes, e)))
		return -1;
	if (job->passes > 1) {
		job->row_list = mem_alloc(held, sizeof *job->row_list, e);
		if (!job->row_list)
			return -1;
		for (size_t y = 0; y < held; y++)
			job->row_list[y] = job->rows + y * bytes;
		png_read_image(png, job->row_list);
	}
	for (uint32_t y = 0; y < job->height; y++) {
		if (job->passes == 1)
			png_read_row(png, job->rows, NULL);
		convert_row(job, y, job->passes > 1 ? job->row_list[y] : job->rows);
	}
	png_read_end(png, NULL);
	return 0;
}

int image_decode_png(struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o, const char *name,
		     struct error *e)
{
	struct png_job *job = mem_zero(1, sizeof *job, e);
	if (!job)
		return -1;
	job->p = p, job->n = n, job->options = o, job->out = out;
	volatile int r = -1;
	png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, job, on_error, on_warning);
	png_infop info = png ? png_create_info_struct(png) : NULL;
	if (!info)
		fail(e, STATUS_LIMIT, "%s: out of memory", name);
	else if (setjmp(png_jmpbuf(png)))
		r = fail(e, STATUS_BAD, "%s: damaged PNG: %s", name, job->message);
	else
		r = read_header(job, png, info, name, e) ? -1 : read_rows(job, png, info, e);
	png_destroy_read_struct(&png, &info, NULL);
	free(job->rows);
	free(job->row_list);
	free(job);
	return r;
}

/* ---- writing ---- */

struct png_sink {
	struct buf *out;
	struct error *e;
};

static void sink_write(png_structp png, png_bytep p, size_t n)
{
	struct png_sink *sink = png_get_io_ptr(png);
	if (buf_add(sink->out, p, n, sink->e))
		png_error(png, "out of memory");
}

static void sink_flush(png_structp png)
{
}

static void sink_error(png_structp png, png_const_charp text)
{
	struct png_sink *sink = png_get_error_ptr(png);
	fail(sink->e, STATUS_FAIL, "cannot write PNG: %s", text);
	png_longjmp(png, 1);
}

static bool is_ascii(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s >= 128)
			return false;
	return true;
}

static void set_texts(png_structp png, png_infop info, const struct image_text *texts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		png_text t = {.compression = is_ascii(texts[i].text) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
			      .key = (char *)(uintptr_t)texts[i].keyword,
			      .text = (char *)(uintptr_t)texts[i].text,
			      .text_length = strlen(texts[i].text),
			      .lang = "",
			      .lang_key = ""};
		png_set_text(png, info, &t, 1);
	}
}

int image_write_png(struct buf *out, const struct pixels *p, const struct image_text *text, size_t texts,
		    struct error *e)
{
	struct png_sink sink = {out, e};
	volatile int r = -1;
	png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &sink, sink_error, on_warning);
	png_infop info = png ? png_create_info_struct(png) : NULL;
	if (!info) {
		fail(e, STATUS_LIMIT, "out of memory");
	} else if (setjmp(png_jmpbuf(png)) == 0) {
		png_set_write_fn(png, &sink, sink_write, sink_flush);
		png_set_user_limits(png, IMAGE_MAX_SIDE * 4, IMAGE_MAX_SIDE * 4); /* sheets are larger than pictures */
		png_set_IHDR(png, info, p->width, p->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
			     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
		png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_FILTER_NONE | PNG_FILTER_SUB | PNG_FILTER_UP | PNG_FILTER_PAETH);
		png_set_compression_level(png, 5);
		set_texts(png, info, text, texts);
		png_write_info(png, info);
		for (size_t y = 0; y < p->height; y++)
			png_write_row(png, p->rgb + 3 * y * p->width);
		png_write_end(png, NULL);
		r = 0;
	}
	png_destroy_write_struct(&png, &info);
	return r;
}
