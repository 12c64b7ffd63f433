/* pairs.h - tensors on two sides, the CPU's references and a device under test, and their comparison: what the tests of
 * the CUDA backend share.  Outputs begin as NaN and end in sentinels. */
#ifndef PAIRS_H
#define PAIRS_H

#include "check.h"
#include "../kernels/convert.h"
#include "../kernels/cpu.h"
#include "../kernels/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused)) static

enum { GUARD = 64 };
static const char *const type_names[] = {"f32", "bf16", "f16", "1-6-9", "0-6-10"};

/* 0: the CPU's references; 1: the device under test. */
static struct side {
	const struct ops *o;
	struct dev *d;
} side[2];
static enum dtype T;

/* The same tensor on both sides. */
struct pair {
	enum dtype t;
	size_t n;
	void *p[2];
};

/* EACH_SIDE(statement) with o, d and s. */
#define EACH_SIDE(...)                                                                             \
	for (int s = 0; s < 2; s++) {                                                              \
		const struct ops *o = side[s].o;                                                   \
		struct dev *d = side[s].d;                                                         \
		__VA_ARGS__;                                                                       \
	}

static void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "out of memory\n");
		exit(1);
	}
	return p;
}

static double uniform(double lo, double hi)
{
	static uint64_t state = 88172645463325252u;
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	return lo + (hi - lo) * (double)(state >> 11) * 0x1p-53;
}

/* Bytes to both sides, and sentinels after them. */
static struct pair pair_bytes(enum dtype t, size_t n, size_t size, const void *v)
{
	struct pair x = {t, n, {NULL, NULL}};
	char *h = must(malloc(n * size + GUARD));
	memcpy(h, v, n * size);
	memset(h + n * size, 0xA5, GUARD);
	EACH_SIDE(x.p[s] = must(o->alloc(d, n * size + GUARD)); o->put(d, x.p[s], h, n * size + GUARD));
	EACH_SIDE(char e[64]; o->sync(d, e, sizeof e));
	free(h);
	return x;
}

static struct pair pair_of(enum dtype t, size_t n, double lo, double hi)
{
	void *h = must(calloc(n + 1, 4));
	for (size_t i = 0; i < n; i++)
		store_from_f32(h, t, i, (float)uniform(lo, hi));
	struct pair x = pair_bytes(t, n, dtype_bytes(t), h);
	free(h);
	return x;
}

/* f32 values that t can hold. */
UNUSED struct pair pair_rounded(enum dtype t, size_t n, double lo, double hi)
{
	float *h = must(calloc(n + 1, sizeof *h));
	for (size_t i = 0; i < n; i++) {
		float cell;
		store_from_f32(&cell, t, 0, (float)uniform(lo, hi));
		h[i] = load_as_f32(&cell, t, 0);
	}
	struct pair x = pair_bytes(DT_F32, n, sizeof *h, h);
	free(h);
	return x;
}

static struct pair pair_output(enum dtype t, size_t n)
{
	return pair_of(t, n, NAN, NAN);
}

UNUSED struct pair pair_ints(size_t n, const int32_t *v)
{
	return pair_bytes(DT_F32, n, 4, v);
}

/* n integers in [lo, hi]. */
UNUSED struct pair pair_range(size_t n, int lo, int hi)
{
	int32_t *v = must(calloc(n + 1, sizeof *v));
	for (size_t i = 0; i < n; i++)
		v[i] = lo + (int32_t)(uniform(0, 1) * (hi - lo + 1));
	struct pair x = pair_ints(n, v);
	free(v);
	return x;
}

/* n bytes to be written. */
UNUSED struct pair pair_noise(size_t n)
{
	unsigned char *h = must(malloc(n + 1));
	memset(h, 0xEE, n);
	struct pair x = pair_bytes(DT_F32, n, 1, h);
	free(h);
	return x;
}

static void pair_free(struct pair *x)
{
	EACH_SIDE(o->release(d, x->p[s]));
}

#define FREE(...)                                                                                  \
	do {                                                                                       \
		struct pair *all_[] = {__VA_ARGS__};                                               \
		for (size_t i_ = 0; i_ < sizeof all_ / sizeof *all_; i_++)                         \
			pair_free(all_[i_]);                                                       \
	} while (0)

/* Both sides' values as doubles; the sentinels must be whole. */
static double *pair_get(const struct pair *x, int s, const char *what)
{
	size_t bytes = x->n * dtype_bytes(x->t);
	unsigned char *h = must(malloc(bytes + GUARD));
	double *v = must(calloc(x->n + 1, sizeof *v));
	side[s].o->get(side[s].d, h, x->p[s], bytes + GUARD);
	int whole = 1;
	for (size_t i = 0; i < GUARD; i++)
		whole &= h[bytes + i] == 0xA5;
	CHECK(whole, "%s: writes past the end", what);
	for (size_t i = 0; i < x->n; i++)
		v[i] = load_as_f32(h, x->t, i);
	free(h);
	return v;
}

/* Roots of mean squares of the difference and of the reference; infinite if finite values differ from others. */
static double far_apart(const double *want, const double *got, size_t n, double *most)
{
	double diff = 0, size = 1e-30, big = 1e-30;
	*most = 0;
	for (size_t i = 0; i < n; i++) {
		if (isfinite(want[i]) != isfinite(got[i]) || (!isfinite(want[i]) && isnan(want[i]) != isnan(got[i])))
			return *most = INFINITY;
		if (!isfinite(want[i]))
			continue;
		diff += (got[i] - want[i]) * (got[i] - want[i]);
		size += want[i] * want[i];
		*most = fmax(*most, fabs(got[i] - want[i]));
		big = fmax(big, fabs(want[i]));
	}
	*most /= big;
	return sqrt(diff / size);
}

/* One rounding to the type, and a few f32 operations in another order.  With many values and terms: of the largest values
 * some are rounded to the neighbour, two of these units away, and the error of sums grows with the root of their terms. */
static bool many;
static double unit(enum dtype t)
{
	double one = t == DT_BF16 ? 0x1p-8 : t == DT_F16 ? 0x1p-11 : t == DT_F32 ? 1e-6 : t == DT_1_6_9 ? 0x1p-9 : 0x1p-10;
	return !many ? one : t == DT_F32 ? 4 * one : 2 * one;
}

/* Both sides agree within `units` roundings of the largest value (and in the mean). */
static void same(const struct pair *x, double units, const char *what)
{
	double *want = pair_get(x, 0, what), *got = pair_get(x, 1, what), most;
	double mean = far_apart(want, got, x->n, &most), allowed = units * unit(x->t);
	CHECK(most <= allowed && mean <= allowed, "%s (%s device, %s): off by %.3g, %.3g in the mean, allowed %.3g", what,
	      type_names[T], type_names[x->t], most, mean, allowed);
	free(want);
	free(got);
}

/* Values rounded at random by the same bits, or to 16 bits: only a sum whose last bits differ may round otherwise. */
UNUSED void mostly_equal(const struct pair *x, const char *what)
{
	double *want = pair_get(x, 0, what), *got = pair_get(x, 1, what);
	size_t differ = 0;
	for (size_t i = 0; i < x->n; i++)
		differ += want[i] != got[i];
	CHECK(differ <= x->n / 50, "%s (%s device): %zu of %zu differ", what, type_names[T], differ, x->n);
	free(want);
	free(got);
}

UNUSED void same_bytes(const struct pair *x, size_t size, const char *what)
{
	unsigned char *h[2];
	for (int s = 0; s < 2; s++) {
		h[s] = must(malloc(x->n * size + GUARD));
		side[s].o->get(side[s].d, h[s], x->p[s], x->n * size + GUARD);
	}
	size_t bad = 0;
	for (size_t i = 0; i < x->n * size + GUARD; i++)
		bad += h[0][i] != h[1][i];
	CHECK(bad == 0, "%s (%s device): %zu of %zu bytes differ", what, type_names[T], bad, x->n * size);
	free(h[0]), free(h[1]);
}

static void open_both(enum dtype t)
{
	char err[256];
	int index = 0;
	T = t;
	side[0].o = cpu_reference_ops();
	side[1].o = ops_find("cuda", &index, err, sizeof err);
	if (!side[1].o) {
		fprintf(stderr, "cuda: %s\n", err);
		exit(1);
	}
	EACH_SIDE(side[s].d = o->open(0, t, 1, err, sizeof err); if (!side[s].d) {
		fprintf(stderr, "%s: %s\n", o->name, err);
		exit(1);
	} (void)d);
}

static void close_both(void)
{
	EACH_SIDE(char err[256] = ""; CHECK(o->sync(d, err, sizeof err) == 0, "%s: no sticky error: %s", o->name, err);
	          o->close(d));
}

#endif
