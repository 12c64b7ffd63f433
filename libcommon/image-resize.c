/* image-resize.c - separable resizing with integer weights: every weight is an exact whole
 * number over a common denominator and every sum is exact, so that the result is the
 * definition in image.h on any machine, rounded once, half to even. */
#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANCZOS_UNIT = 1 << 14 };

/* The source pixels that make one result pixel, along one axis. */
struct tap {
	uint32_t first, count;
	size_t weights; /* index of the first into axis.w */
};

struct axis {
	struct tap *taps; /* one per result pixel of the window */
	int32_t *w;
	size_t used, cap;
	double unit; /* sum of the weights of each tap */
};

static void axis_free(struct axis *a)
{
	free(a->taps);
	free(a->w);
}

/* Adds `weight` of source pixel `at` to the tap; beyond the edge the last pixel repeats. */
static int tap_add(struct axis *a, struct tap *t, uint64_t at, uint32_t in, int64_t weight, struct error *e)
{
	if (at >= in)
		at = in - 1;
	if (t->count && at == t->first + t->count - 1) {
		a->w[t->weights + t->count - 1] += (int32_t)weight;
		return 0;
	}
	if (ARRAY_ROOM(a->w, a->used + 1, &a->cap, e))
		return -1;
	if (t->count == 0)
		t->first = (uint32_t)at;
	t->count++;
	a->w[a->used++] = (int32_t)weight;
	return 0;
}

/* The mean over [i*step, (i+1)*step) in units where a source pixel is `size` long. */
static int area_tap(struct axis *a, struct tap *t, uint64_t i, uint64_t step, uint64_t size, uint32_t in, struct error *e)
{
	uint64_t from = i * step, to = from + step;
	a->unit = (double)step;
	for (uint64_t at = from / size; at * size < to; at++) {
		uint64_t left = at * size > from ? at * size : from;
		uint64_t right = (at + 1) * size < to ? (at + 1) * size : to;
		if (tap_add(a, t, at, in, (int64_t)(right - left), e))
			return -1;
	}
	return 0;
}

static double lanczos(double x)
{
	if (x == 0)
		return 1;
	if (x <= -3 || x >= 3)
		return 0;
	return 3 * sin(M_PI * x) * sin(M_PI * x / 3) / (M_PI * M_PI * x * x);
}

/* Weights rounded to 1/LANCZOS_UNIT; the largest takes up what is missing to the exact sum. */
static int lanczos_tap(struct axis *a, struct tap *t, uint32_t i, uint32_t in, uint32_t out, struct error *e)
{
	double scale = (double)in / out, wide = scale > 1 ? scale : 1, centre = (i + 0.5) * scale, sum = 0;
	int64_t first = (int64_t)ceil(centre - 3 * wide - 0.5), last = (int64_t)floor(centre + 3 * wide - 0.5);
	int64_t left = LANCZOS_UNIT;
	a->unit = LANCZOS_UNIT;
	first = first < 0 ? 0 : first;
	last = last >= in ? in - 1 : last;
	for (int64_t at = first; at <= last; at++)
		sum += lanczos(((double)at + 0.5 - centre) / wide);
	for (int64_t at = first; at <= last; at++) {
		int64_t w = llrint(LANCZOS_UNIT * lanczos(((double)at + 0.5 - centre) / wide) / sum);
		left -= w;
		if (tap_add(a, t, (uint64_t)at, in, w, e))
			return -1;
	}
	size_t middle = (size_t)floor(centre) - t->first;
	a->w[t->weights + (middle < t->count ? middle : t->count - 1)] += (int32_t)left;
	return 0;
}

static int make_tap(struct axis *a, struct tap *t, uint32_t i, uint32_t in, uint32_t out, enum resize_filter f,
		    struct error *e)
{
	switch (f) {
	case RESIZE_NEAREST:
		a->unit = 1;
		return tap_add(a, t, (2 * (uint64_t)i + 1) * in / (2 * (uint64_t)out), in, 1, e);
	case RESIZE_TF_AREA:
		if (out > 1 && in > 1)
			return area_tap(a, t, i, in - 1, out - 1, in, e);
		return area_tap(a, t, out > 1 ? 0 : i, 1, 1, in, e);
	case RESIZE_AREA: return area_tap(a, t, i, in, out, in, e);
	case RESIZE_AUTO: return make_tap(a, t, i, in, out, out > in ? RESIZE_LANCZOS : RESIZE_AREA, e);
	case RESIZE_LANCZOS: break;
	}
	return lanczos_tap(a, t, i, in, out, e);
}

/* Result pixels first .. first + n - 1 of `out` pixels, made of `in`. */
static int axis_make(struct axis *a, uint32_t in, uint32_t out, uint32_t first, uint32_t n, enum resize_filter f,
		     struct error *e)
{
	a->taps = mem_zero(n, sizeof *a->taps, e);
	if (!a->taps)
		return -1;
	for (uint32_t i = 0; i < n; i++) {
		a->taps[i].weights = a->used;
		if (make_tap(a, &a->taps[i], first + i, in, out, f, e))
			return -1;
	}
	return 0;
}

/* One source row shrunk or stretched to the result's width: to[x][c] = sum of w * from[..][c].
 * Weights of an area are at most 2^14 in sum and those of Lanczos near it: 32 bits hold it. */
static void across(int32_t *to, const uint8_t *from, const struct axis *a, uint32_t n)
{
	for (uint32_t x = 0; x < n; x++) {
		const struct tap *t = &a->taps[x];
		const int32_t *w = a->w + t->weights;
		const uint8_t *p = from + 3 * (size_t)t->first;
		int32_t r = 0, g = 0, b = 0;
		for (uint32_t k = 0; k < t->count; k++, p += 3) {
			r += w[k] * p[0];
			g += w[k] * p[1];
			b += w[k] * p[2];
		}
		to[3 * (size_t)x] = r;
		to[3 * (size_t)x + 1] = g;
		to[3 * (size_t)x + 2] = b;
	}
}

/* Doubles hold every sum exactly (below 2^40) and vectorise; a tie of the true quotient is a
 * tie in double too, so rint is half to even of the exact mean. */
static void add_row(double *sum, const int32_t *row, int32_t w, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum[i] += (double)w * row[i];
}

static void round_row(uint8_t *to, const double *sum, double unit, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		double v = rint(sum[i] / unit);
		to[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
	}
}

/* Down the rows; the last row that was computed is kept, as neighbours share it. */
static void down(struct pixels *out, const struct pixels *in, struct rect from, const struct axis *ax,
		 const struct axis *ay, int32_t *row, double *sum)
{
	size_t n = 3 * (size_t)out->width;
	uint64_t held = UINT64_MAX;
	for (uint32_t y = 0; y < out->height; y++) {
		const struct tap *t = &ay->taps[y];
		memset(sum, 0, n * sizeof *sum);
		for (uint32_t k = 0; k < t->count; k++) {
			uint64_t at = (uint64_t)from.y + t->first + k;
			if (at != held)
				across(row, in->rgb + 3 * (at * in->width + from.x), ax, out->width);
			held = at;
			add_row(sum, row, ay->w[t->weights + k], n);
		}
		round_row(out->rgb + n * y, sum, ax->unit * ay->unit, n);
	}
}

int image_resize(struct pixels *out, const struct pixels *in, struct rect from, uint32_t width, uint32_t height,
		 struct rect window, enum resize_filter filter, struct error *e)
{
	struct axis ax = {0}, ay = {0};
	size_t n = 3 * (size_t)window.width;
	if (pixels_resize(out, window.width, window.height, e))
		return -1;
	int32_t *row = mem_alloc(n, sizeof *row, e);
	double *sum = mem_alloc(n, sizeof *sum, e);
	int r = row && sum && axis_make(&ax, from.width, width, window.x, window.width, filter, e) == 0 &&
			axis_make(&ay, from.height, height, window.y, window.height, filter, e) == 0
		    ? 0
		    : -1;
	if (r == 0)
		down(out, in, from, &ax, &ay, row, sum);
	axis_free(&ax);
	axis_free(&ay);
	free(row);
	free(sum);
	return r;
}

int image_scale(struct pixels *out, const struct pixels *in, uint32_t width, uint32_t height,
		enum resize_filter filter, struct error *e)
{
	return image_resize(out, in, (struct rect){0, 0, in->width, in->height}, width, height,
			    (struct rect){0, 0, width, height}, filter, e);
}
