/* orthonormal.c - see orthonormal.h.
 *
 * Reflections H_j = 1 - t_j v_j v_j^T, v_j zero before element j, of a block of b vectors together are
 * H_0 H_1 ... = 1 - V^T T V with V (b, n) of rows v_j and T (b, b) upper triangular (Schreiber and Van Loan 1989). */
#include "orthonormal.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum { NB = ORTHONORMAL_BLOCK };

/* What the reflections are kept in. */
struct work {
	const struct ops *ops;
	struct dev *dev;
	size_t r, n;
	float *v; /* (r, n) */
	float *t; /* of each block (NB, NB) */
	float *y; /* (NB, r): products of a block's vectors with those that reflect() changes */
};

static size_t blocks(size_t r)
{
	return (r + NB - 1) / NB;
}

size_t orthonormal_scratch(size_t r, size_t n)
{
	return r * n + blocks(r) * NB * NB + NB * r;
}

static double dot(const float *a, const float *b, size_t n)
{
	double sum = 0;
#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += (double)a[i] * b[i];
	return sum;
}

static void subtract(float *x, const float *v, float times, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] -= times * v[i];
}

/* v (n), which reflects x onto element j of those from j on, and its t; 0 where x is there already. */
static float reflection(float *v, const float *x, size_t j, size_t n)
{
	double tail = dot(x + j + 1, x + j + 1, n - j - 1);
	memset(v, 0, n * sizeof *v);
	v[j] = 1;
	if (tail == 0)
		return 0;
	double by = 1 / (x[j] + copysign(sqrt((double)x[j] * x[j] + tail), x[j])); /* the sign that does not cancel */
	for (size_t i = j + 1; i < n; i++)
		v[i] = (float)(x[i] * by);
	return (float)(2 / dot(v + j, v + j, n - j)); /* of v as it was rounded: orthogonal to rounding */
}

/* Column j of t: what reflection j, with factor tj, adds to those before it in the block at v, whose first vector is i. */
static void extend(float *t, const float *v, float tj, size_t j, size_t i, size_t n)
{
	double with[NB];
	for (size_t l = 0; l < j; l++)
		with[l] = dot(v + l * n + i + j, v + j * n + i + j, n - i - j);
	for (size_t l = 0; l < j; l++) {
		double sum = 0;
		for (size_t m = l; m < j; m++)
			sum += t[l * NB + m] * with[m];
		t[l * NB + j] = (float)(-tj * sum);
	}
	t[j * NB + j] = tj;
}

/* Reflections of the b vectors of x from i on, each applied to those after it in the block. */
static void factor(struct work *w, float *x, size_t i, size_t b)
{
	size_t n = w->n;
	float *v = w->v + i * n, *t = w->t + i / NB * NB * NB;
	for (size_t j = 0; j < b; j++) {
		float *vj = v + j * n, tj = reflection(vj, x + (i + j) * n, i + j, n);
		for (size_t k = j + 1; k < b; k++) {
			float *xk = x + (i + k) * n;
			subtract(xk + i + j, vj + i + j, (float)(tj * dot(vj + i + j, xk + i + j, n - i - j)), n - i - j);
		}
		extend(t, v, tj, j, i, n);
	}
}

/* y (b, k) = -T y, or -T^T y. */
static void triangle(float *y, const float *t, size_t b, size_t k, bool transposed)
{
	for (size_t step = 0; step < b; step++) { /* rows in the order in which those that others need come later */
		size_t row = transposed ? b - 1 - step : step, from = transposed ? 0 : row, to = transposed ? row + 1 : b;
		float own = -t[row * NB + row];
		for (size_t c = 0; c < k; c++)
			y[row * k + c] *= own;
		for (size_t m = from; m < to; m++)
			if (m != row)
				subtract(y + row * k, y + m * k, transposed ? t[m * NB + row] : t[row * NB + m], k);
	}
}

/* The b reflections from i on, applied to the k vectors at x: all of them, last first, or, transposed, first first. */
static void reflect(struct work *w, float *x, size_t k, size_t i, size_t b, bool transposed)
{
	float *v = w->v + i * w->n;
	if (!k)
		return;
	w->ops->linear_fwd(w->dev, w->y, v, x, NULL, b, (int)w->n, (int)k, OP_F32);
	triangle(w->y, w->t + i / NB * NB * NB, b, k, transposed);
	w->ops->linear_bwd(w->dev, NULL, x, NULL, w->y, v, NULL, b, (int)w->n, (int)k, OP_F32);
}

void orthonormal_rows(const struct ops *ops, struct dev *dev, float *x, size_t r, size_t n, float *scratch)
{
	struct work w = {ops, dev, r, n, scratch, scratch + r * n, scratch + r * n + blocks(r) * NB * NB};
	for (size_t i = 0; i < r; i += NB) {
		size_t b = r - i < NB ? r - i : NB;
		factor(&w, x, i, b);
		reflect(&w, x + (i + b) * n, r - i - b, i, b, true);
	}
	memset(x, 0, r * n * sizeof *x);
	for (size_t i = 0; i < r; i++)
		x[i * n + i] = 1;
	for (size_t last = blocks(r); last-- > 0;) {
		size_t i = last * NB, b = r - i < NB ? r - i : NB;
		reflect(&w, x + i * n, r - i, i, b, false);
	}
}
