/* image-pillow.c - two operations as the Pillow library computes them, byte for byte: bicubic resampling, which CLIP's
 * pictures went through in training (recipe H7), and the Gaussian blur of the paper's evaluation (G6).  Both work on
 * 8-bit values along one axis after the other, rounding in between, so the order of the axes matters. */
#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- bicubic ---- */

enum { WEIGHT_BITS = 22 }; /* weights are whole numbers over 2^22 */

/* Per result pixel along one axis: its source pixels first .. first + count - 1 and their weights. */
struct kernel {
	uint32_t first, count;
	int32_t *w;
};

struct kernels {
	struct kernel *at; /* one per result pixel of the window */
	int32_t *weights;
};

static void kernels_free(struct kernels *k)
{
	free(k->at);
	free(k->weights);
}

/* Keys' cubic with a = -1/2. */
static double cubic(double x)
{
	const double a = -0.5;
	x = fabs(x);
	if (x < 1)
		return ((a + 2) * x - (a + 3)) * x * x + 1;
	if (x < 2)
		return (((x - 5) * x + 8) * x - 4) * a;
	return 0;
}

/* The kernel of result pixel i of `out`, made of `in`; w has room for the whole support, real for the same. */
static void kernel_make(struct kernel *k, uint32_t i, uint32_t in, uint32_t out, double *real)
{
	double scale = (double)in / out, wide = scale < 1 ? 1 : scale, support = 2 * wide, sum = 0;
	double centre = (i + 0.5) * scale, step = 1 / wide;
	int64_t first = (int64_t)(centre - support + 0.5), end = (int64_t)(centre + support + 0.5);
	first = first < 0 ? 0 : first;
	end = end > in ? in : end;
	k->first = (uint32_t)first;
	k->count = (uint32_t)(end - first);
	for (uint32_t x = 0; x < k->count; x++) {
		real[x] = cubic(((double)(x + first) - centre + 0.5) * step);
		sum += real[x];
	}
	for (uint32_t x = 0; x < k->count; x++) {
		double w = sum != 0 ? real[x] / sum : real[x];
		k->w[x] = (int32_t)((w < 0 ? -0.5 : 0.5) + w * (1 << WEIGHT_BITS));
	}
}

/* Result pixels first .. first + n - 1 of `out`. */
static int kernels_make(struct kernels *k, uint32_t in, uint32_t out, uint32_t first, uint32_t n, struct error *e)
{
	double wide = in > out ? (double)in / out : 1;
	size_t room = (size_t)ceil(2 * wide) * 2 + 1;
	double *real = mem_alloc(room, sizeof *real, e);
	k->at = mem_alloc(n, sizeof *k->at, e);
	k->weights = mem_alloc(n, room * sizeof *k->weights, e);
	bool good = real && k->at && k->weights;
	for (uint32_t i = 0; good && i < n; i++) {
		k->at[i].w = k->weights + i * room;
		kernel_make(&k->at[i], first + i, in, out, real);
	}
	free(real);
	return good ? 0 : -1;
}

static uint8_t rounded(int32_t sum)
{
	sum >>= WEIGHT_BITS;
	return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* n result pixels, each the weighted sum of pixels `step` bytes apart that begin at p. */
static void weigh(uint8_t *to, const struct kernel *k, const uint8_t *p, size_t step)
{
	int32_t r = 1 << (WEIGHT_BITS - 1), g = r, b = r;
	for (uint32_t i = 0; i < k->count; i++, p += step) {
		r += k->w[i] * p[0];
		g += k->w[i] * p[1];
		b += k->w[i] * p[2];
	}
	to[0] = rounded(r);
	to[1] = rounded(g);
	to[2] = rounded(b);
}

/* Rows top .. top + middle->height - 1 of `in`, resampled to the window's columns. */
static void across(struct pixels *middle, const struct pixels *in, uint32_t top, const struct kernel *k)
{
	for (size_t y = 0; y < middle->height; y++) {
		const uint8_t *row = in->rgb + 3 * (y + top) * in->width;
		uint8_t *to = middle->rgb + 3 * y * middle->width;
		for (size_t x = 0; x < middle->width; x++)
			weigh(to + 3 * x, &k[x], row + 3 * (size_t)k[x].first, 3);
	}
}

static void down(struct pixels *out, const struct pixels *middle, uint32_t top, const struct kernel *k)
{
	size_t step = 3 * (size_t)out->width;
	for (size_t y = 0; y < out->height; y++)
		for (size_t x = 0; x < out->width; x++)
			weigh(out->rgb + y * step + 3 * x, &k[y], middle->rgb + (size_t)(k[y].first - top) * step + 3 * x, step);
}

int image_bicubic(struct pixels *out, const struct pixels *in, uint32_t width, uint32_t height, struct rect window,
		  struct error *e)
{
	struct kernels kx = {0}, ky = {0};
	struct pixels middle = {0};
	int r = -1;
	if (kernels_make(&kx, in->width, width, window.x, window.width, e) == 0 &&
	    kernels_make(&ky, in->height, height, window.y, window.height, e) == 0) {
		const struct kernel *last = &ky.at[window.height - 1];
		uint32_t top = ky.at[0].first;
		if (pixels_resize(&middle, window.width, last->first + last->count - top, e) == 0 &&
		    pixels_resize(out, window.width, window.height, e) == 0) {
			across(&middle, in, top, kx.at);
			down(out, &middle, top, ky.at);
			r = 0;
		}
	}
	kernels_free(&kx);
	kernels_free(&ky);
	image_free(&middle);
	return r;
}

/* ---- blur ---- */

enum { BLUR_PASSES = 3 };

/* A box of fractional radius: the mean over 2 * whole + 1 pixels and, with a lower weight, one more at each end. */
struct box {
	uint32_t whole;
	uint32_t inner, outer; /* weights over 2^24 */
};

/* The box whose repetition has the deviation sigma (Gwosdek et al. 2011, equations 7, 11, 14), in floats as there. */
static struct box box_of(float sigma)
{
	float variance = sigma * sigma / BLUR_PASSES;
	float length = (float)sqrt(12.0 * (double)variance + 1.0);
	float whole = (float)floor(((double)length - 1.0) / 2.0);
	float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
	part /= 6 * (variance - (whole + 1) * (whole + 1));
	float radius = whole + part;
	struct box b = {.whole = (uint32_t)radius};
	b.inner = (uint32_t)((float)(1 << 24) / (radius * 2 + 1));
	b.outer = ((1u << 24) - (b.whole * 2 + 1) * b.inner) / 2;
	return b;
}

/* One channel of a line of n pixels; beyond the ends the last pixel repeats. */
static void blur_line(uint8_t *to, const uint8_t *from, uint32_t n, size_t step, struct box b)
{
	int64_t last = (int64_t)n - 1, r = b.whole;
	uint32_t sum = 0;
#define AT(i) from[(size_t)((i) < 0 ? 0 : (i) > last ? last : (i)) * step]
	for (int64_t i = -r; i <= r; i++)
		sum += AT(i);
	for (int64_t x = 0; x <= last; x++) {
		uint32_t ends = (uint32_t)AT(x - r - 1) + AT(x + r + 1);
		to[x] = (uint8_t)((sum * b.inner + ends * b.outer + (1u << 23)) >> 24);
		sum += (uint32_t)AT(x + r + 1) - AT(x - r);
	}
#undef AT
}

/* Every line of one axis: `lines` of them, `next` bytes apart, n pixels of `step` bytes each. */
static void blur_axis(uint8_t *rgb, size_t lines, size_t next, uint32_t n, size_t step, struct box b, uint8_t *line)
{
	for (size_t i = 0; i < lines; i++) {
		for (int c = 0; c < 3; c++) {
			uint8_t *p = rgb + i * next + c;
			for (int pass = 0; pass < BLUR_PASSES; pass++) {
				blur_line(line, p, n, step, b);
				for (size_t x = 0; x < n; x++)
					p[x * step] = line[x];
			}
		}
	}
}

int image_blur(struct pixels *p, double radius, struct error *e)
{
	if (radius == 0)
		return 0;
	uint8_t *line = mem_alloc(p->width > p->height ? p->width : p->height, 1, e);
	if (!line)
		return -1;
	struct box b = box_of((float)radius);
	size_t row = 3 * (size_t)p->width;
	blur_axis(p->rgb, p->height, row, p->width, 3, b, line);
	blur_axis(p->rgb, p->width, 3, p->height, row, b, line);
	free(line);
	return 0;
}
