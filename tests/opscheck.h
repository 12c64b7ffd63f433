/* opscheck.h - for the tests of struct ops: tensors of known values on the device, outputs filled with
 * NaN and followed by sentinels, comparison with references in double, and gradients by central
 * differences.  OPS_DEVICE names the backend ("cpu" when it is not set), so that the same
 * programs test them all. */
#ifndef OPSCHECK_H
#define OPSCHECK_H

#include "check.h"
#include "../kernels/convert.h"
#include "../kernels/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused)) static

enum { GUARD = 64 };
static const enum dtype all_types[] = {DT_F32, DT_BF16, DT_F16};
static const char *const type_names[] = {"f32", "bf16", "f16", "1-6-9", "0-6-10"};

static const struct ops *ops;
static struct dev *dev;
static enum dtype T; /* activation type of dev */

struct tensor {
	enum dtype type;
	size_t n;
	void *p;   /* on the device, n elements and GUARD bytes */
	double *v; /* host, the values as stored */
};

UNUSED void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "out of memory\n");
		exit(1);
	}
	return p;
}

UNUSED void device_open(enum dtype t, int threads)
{
	char err[256];
	const char *name = getenv("OPS_DEVICE");
	int index = 0;
	ops = ops_find(name ? name : "cpu", &index, err, sizeof err);
	dev = ops ? ops->open(index, t, threads, err, sizeof err) : NULL;
	if (!dev) {
		fprintf(stderr, "%s: %s\n", name ? name : "cpu", err);
		exit(1);
	}
	T = t;
}

/* Ends a device: nothing may have failed. */
UNUSED void device_close(void)
{
	char err[256] = "";
	CHECK(ops->sync(dev, err, sizeof err) == 0, "no sticky error: %s", err);
	ops->close(dev);
}

/* A small generator of its own, in [lo, hi). */
UNUSED double uniform(double lo, double hi)
{
	static uint64_t state = 88172645463325252u;
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	return lo + (hi - lo) * (double)(state >> 11) * 0x1p-53;
}

UNUSED struct tensor tensor_new(enum dtype t, size_t n)
{
	size_t bytes = n * dtype_bytes(t) + GUARD;
	return (struct tensor){t, n, must(ops->alloc(dev, bytes)), must(calloc(n + 1, sizeof(double)))};
}

/* Values of x->v to the device, rounded to its type, and back into x->v; sentinels after them. */
UNUSED void tensor_put(struct tensor *x)
{
	size_t bytes = x->n * dtype_bytes(x->type);
	char *h = must(malloc(bytes + GUARD));
	for (size_t i = 0; i < x->n; i++) {
		store_from_f32(h, x->type, i, (float)x->v[i]);
		x->v[i] = load_as_f32(h, x->type, i);
	}
	memset(h + bytes, 0xA5, GUARD);
	ops->put(dev, x->p, h, bytes + GUARD);
	free(h);
}

UNUSED struct tensor tensor_random(enum dtype t, size_t n, double lo, double hi)
{
	struct tensor x = tensor_new(t, n);
	for (size_t i = 0; i < n; i++)
		x.v[i] = uniform(lo, hi);
	tensor_put(&x);
	return x;
}

UNUSED struct tensor tensor_fill(enum dtype t, size_t n, double value)
{
	struct tensor x = tensor_new(t, n);
	for (size_t i = 0; i < n; i++)
		x.v[i] = value;
	tensor_put(&x);
	return x;
}

UNUSED struct tensor tensor_output(enum dtype t, size_t n)
{
	return tensor_fill(t, n, NAN);
}

/* Device to x->v; the sentinels must be whole. */
UNUSED void tensor_get(struct tensor *x, const char *what)
{
	size_t bytes = x->n * dtype_bytes(x->type);
	unsigned char *h = must(malloc(bytes + GUARD));
	ops->get(dev, h, x->p, bytes + GUARD);
	for (size_t i = 0; i < x->n; i++)
		x->v[i] = load_as_f32(h, x->type, i);
	int whole = 1;
	for (size_t i = 0; i < GUARD; i++)
		whole &= h[bytes + i] == 0xA5;
	CHECK(whole, "%s: writes past the end", what);
	free(h);
}

UNUSED void tensor_free(struct tensor *x)
{
	ops->release(dev, x->p);
	free(x->v);
}

UNUSED int32_t *ints_put(const int32_t *v, size_t n)
{
	int32_t *p = must(ops->alloc(dev, n * 4 + 1));
	ops->put(dev, p, v, n * 4);
	return p;
}

/* Greatest difference over greatest magnitude; infinite when anything is not finite.  f16 rounds small numbers to
 * multiples of 2^-24: half of that is no error. */
UNUSED double distance(const double *got, const double *want, size_t n, enum dtype t)
{
	double far = 0, big = 1e-30;
	for (size_t i = 0; i < n; i++) {
		if (!isfinite(got[i]) || !isfinite(want[i]))
			return INFINITY;
		far = fmax(far, fabs(got[i] - want[i]) - (t == DT_F16 ? 0x1p-25 : 0));
		big = fmax(big, fabs(want[i]));
	}
	return far / big;
}

/* Rounding of a stored value, with room for a handful of f32 operations. */
UNUSED double bound(enum dtype t)
{
	static const double half_step[] = {4e-6, 0x1p-8 * 1.01, 0x1p-11 * 1.02, 0x1p-10 * 1.01, 0x1p-11 * 1.02};
	return half_step[t];
}

UNUSED void near(struct tensor *x, const double *want, double tolerance, const char *what)
{
	tensor_get(x, what);
	double e = distance(x->v, want, x->n, x->type);
	CHECK(e <= tolerance, "%s (%s device, %s): off by %.3g, allowed %.3g", what, type_names[T], type_names[x->type], e,
	      tolerance);
}

/* gradient[nx] of sum dy y by central differences, y[ny] = f(x). */
UNUSED void differences(double *gradient, void (*f)(double *y, const double *x, const void *with), double *x, size_t nx,
                        const double *dy, size_t ny, const void *with)
{
	const double h = 1e-5;
	double *y = must(calloc(ny, sizeof *y));
	for (size_t i = 0; i < nx; i++) {
		double keep = x[i], sum = 0;
		x[i] = keep + h;
		f(y, x, with);
		for (size_t k = 0; k < ny; k++)
			sum += dy[k] * y[k];
		x[i] = keep - h;
		f(y, x, with);
		for (size_t k = 0; k < ny; k++)
			sum -= dy[k] * y[k];
		x[i] = keep;
		gradient[i] = sum / (2 * h);
	}
	free(y);
}

#endif
