/* optim.c - the optimizer's entries: AdamW with clipped variance (recipe C21, C24, D11), sums
 * over whole tensors, and the running average of weights (C25). */
#include "cpu.h"
#include "vec.h"

#include <math.h>

enum { BLOCK = 4096, PARTS = 512, SMALL = 16384 };

/* The update of D11, eps beside the uncorrected root:
 *     w -= lr * decay * w + lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
 * v is clipped first and stored clipped (J18); 0 * NaN stays NaN on purpose: a caller that wants to skip a
 * step does not call. */
CLONES static void adamw_block(float *w, void *wt, enum dtype t, float *m, float *v, const float *g, size_t n,
                               const struct adamw *a, float rate)
{
	float keep = 1.0f - a->lr * a->decay, top = a->v_max > 0 ? a->v_max : INFINITY;
	float b1 = a->beta1, b2 = a->beta2, scale = a->g_scale, eps = a->eps;
	for (size_t i = 0; i < n; i++) {
		float x = scale * g[i];
		float mi = b1 * m[i] + (1.0f - b1) * x, vi_ = b2 * v[i] + (1.0f - b2) * x * x;
		vi_ = vi_ > top ? top : vi_;
		m[i] = mi;
		v[i] = vi_;
		w[i] = keep * w[i] - rate * mi / (sqrtf(vi_) + eps);
	}
	if (wt && wt != (void *)w)
		row_from_f32(wt, t, w, n);
}

void cpu_adamw(struct dev *d, float *w, void *wt, float *m, float *v, const float *g, size_t n, const struct adamw *a)
{
	double correct1 = 1.0 - pow(a->beta1, (double)a->step), correct2 = 1.0 - pow(a->beta2, (double)a->step);
	float rate = (float)(a->lr * sqrt(correct2) / correct1);
	enum dtype t = d->type;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t o = 0; o < n; o += BLOCK)
		adamw_block(w + o, wt == (void *)w || !wt ? NULL : at(wt, t, o), t, m + o, v + o, g + o,
		            n - o < BLOCK ? n - o : BLOCK, a, rate);
}

CLONES static void average_block(float *avg, const float *w, size_t n, float decay)
{
	for (size_t i = 0; i < n; i++)
		avg[i] = decay * avg[i] + (1.0f - decay) * w[i];
}

void cpu_average(struct dev *d, float *avg, const float *w, size_t n, float decay)
{
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t o = 0; o < n; o += BLOCK)
		average_block(avg + o, w + o, n - o < BLOCK ? n - o : BLOCK, decay);
}

/* ---- sums: double, in eight lanes over a fixed number of parts, so the same for any thread count ---- */

CLONES static double sum_part(const float *x, size_t n, int squares)
{
	double lane[VL] = {0}, s = 0;
	size_t i = 0;
	for (; i + VL <= n; i += VL)
		for (int k = 0; k < VL; k++)
			lane[k] += squares ? (double)x[i + k] * x[i + k] : (double)x[i + k];
	for (; i < n; i++)
		s += squares ? (double)x[i] * x[i] : (double)x[i];
	for (int k = 0; k < VL; k++)
		s += lane[k];
	return s;
}

static void add_sum(struct dev *d, double *sum, const float *x, size_t n, int squares)
{
	double part[PARTS] = {0};
	size_t share = n / PARTS + 1; /* parts past the end are empty */
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t p = 0; p < PARTS; p++)
		if (p * share < n)
			part[p] = sum_part(x + p * share, n - p * share < share ? n - p * share : share, squares);
	double s = 0;
	for (int p = 0; p < PARTS; p++)
		s += part[p];
	*sum += s;
}

void cpu_sumsq(struct dev *d, double *sum, const float *x, size_t n)
{
	add_sum(d, sum, x, n, 1);
}

void cpu_sum(struct dev *d, double *sum, const float *x, size_t n)
{
	add_sum(d, sum, x, n, 0);
}
