/* optim.c - the optimizer's entries: AdamW with clipped variance (recipe C21, C24, D11) over tensors of any storage (D10,
 * D12), sums over whole tensors, and the running average of weights (C25).  All arithmetic is f32, on blocks that stay in
 * the first cache. */
#include "cpu.h"
#include "philox.h"
#include "vec.h"

#include <math.h>

enum { BLOCK = 1024, PARTS = 512, SMALL = 16384 };

/* ---- AdamW ---- */

/* The update of D11, eps beside the uncorrected root:
 *     w -= lr * decay * w + lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
 * v is clipped first and stored clipped (J18); 0 * NaN stays NaN on purpose: a caller that wants to skip a
 * step does not call. */
static VINLINE void adamw_row(float *restrict w, float *restrict m, float *restrict v, const float *restrict g, size_t n,
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
}

/* bits[i] = philox(seed, (first + i) lo, hi, step, RNG_ROUND)[0], a round for all n at a time, which becomes vector code. */
static VINLINE void random_row(uint32_t *bits, size_t n, uint64_t seed, uint64_t first, uint32_t step)
{
	uint32_t c1[BLOCK], c2[BLOCK], c3[BLOCK], k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
	for (size_t i = 0; i < n; i++) {
		bits[i] = (uint32_t)(first + i);
		c1[i] = (uint32_t)((first + i) >> 32);
		c2[i] = step;
		c3[i] = RNG_ROUND;
	}
	for (int round = 0; round < 10; round++) {
		for (size_t i = 0; i < n; i++)
			philox_round(&bits[i], &c1[i], &c2[i], &c3[i], k0, k1);
		philox_bump(&k0, &k1);
	}
}

/* n values in f32: in place, or in buf. */
static VINLINE float *values(float *buf, void *x, enum dtype t, size_t n)
{
	if (t == DT_F32)
		return x;
	row_to_f32(buf, x, t, n);
	return buf;
}

/* At most BLOCK elements, the first of them number `first`. */
CLONES static void adamw_block(const struct adamw_tensor *x, enum dtype t, size_t n, const struct adamw *a, float rate,
                               uint64_t first)
{
	float bw[BLOCK], bm[BLOCK], bv[BLOCK], bg[BLOCK];
	float *w = values(bw, x->w, x->w_type, n), *m = values(bm, x->m, x->m_type, n), *v = values(bv, x->v, x->v_type, n);
	const float *g = values(bg, (void *)(uintptr_t)x->g, x->g_type, n);
	adamw_row(w, m, v, g, n, a, rate);
	if (x->m_type != DT_F32)
		row_from_f32(x->m, x->m_type, m, n);
	if (x->v_type != DT_F32)
		row_from_f32(x->v, x->v_type, v, n);
	if (x->w_type != DT_F32) {
		uint32_t bits[BLOCK];
		random_row(bits, n, a->seed, first, (uint32_t)a->step);
		row_from_f32_random(x->w, x->w_type, w, bits, n);
	} else if (x->wt && x->wt != x->w) {
		row_from_f32(x->wt, t, w, n);
	}
}

/* Elements from o on. */
static struct adamw_tensor part_of(const struct adamw_tensor *x, enum dtype t, size_t o)
{
	struct adamw_tensor p = *x;
	p.w = at(x->w, x->w_type, o);
	p.m = at(x->m, x->m_type, o);
	p.v = at(x->v, x->v_type, o);
	p.g = at_const(x->g, x->g_type, o);
	p.wt = !x->wt ? NULL : x->wt == x->w ? p.w : at(x->wt, t, o);
	return p;
}

void cpu_adamw(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw *a)
{
	double correct1 = 1.0 - pow(a->beta1, (double)a->step), correct2 = 1.0 - pow(a->beta2, (double)a->step);
	float rate = (float)(a->lr * sqrt(correct2) / correct1);
	enum dtype t = d->type;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t o = 0; o < n; o += BLOCK) {
		struct adamw_tensor p = part_of(x, t, o);
		adamw_block(&p, t, n - o < BLOCK ? n - o : BLOCK, a, rate, a->first + o);
	}
}

CLONES static void average_block(float *avg, const void *w, enum dtype t, size_t n, float decay)
{
	float buf[BLOCK];
	const float *x = values(buf, (void *)(uintptr_t)w, t, n);
	for (size_t i = 0; i < n; i++)
		avg[i] = decay * avg[i] + (1.0f - decay) * x[i];
}

void cpu_average(struct dev *d, float *avg, const void *w, enum dtype type, size_t n, float decay)
{
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t o = 0; o < n; o += BLOCK)
		average_block(avg + o, at_const(w, type, o), type, n - o < BLOCK ? n - o : BLOCK, decay);
}

/* ---- sums: double, in eight lanes over a fixed number of parts, so the same for any thread count ---- */

/* Adds n values to the lanes; what is left of whole vectors goes to the first ones. */
static VINLINE void add_lanes(double lane[VL], const float *x, size_t n, int squares)
{
	size_t i = 0;
	for (; i + VL <= n; i += VL)
		for (int k = 0; k < VL; k++)
			lane[k] += squares ? (double)x[i + k] * x[i + k] : (double)x[i + k];
	for (int k = 0; i < n; i++, k++)
		lane[k] += squares ? (double)x[i] * x[i] : (double)x[i];
}

CLONES static double sum_part(const void *x, enum dtype t, size_t n, int squares)
{
	double lane[VL] = {0}, s = 0;
	float buf[BLOCK];
	if (t == DT_F32)
		add_lanes(lane, x, n, squares);
	else
		for (size_t o = 0; o < n; o += BLOCK) {
			size_t some = n - o < BLOCK ? n - o : BLOCK;
			row_to_f32(buf, at_const(x, t, o), t, some);
			add_lanes(lane, buf, some, squares);
		}
	for (int k = 0; k < VL; k++)
		s += lane[k];
	return s;
}

static void add_sum(struct dev *d, double *sum, const void *x, enum dtype t, size_t n, int squares)
{
	double part[PARTS] = {0};
	size_t share = n / PARTS + 1; /* parts past the end are empty */
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t p = 0; p < PARTS; p++)
		if (p * share < n)
			part[p] = sum_part(at_const(x, t, p * share), t, n - p * share < share ? n - p * share : share, squares);
	double s = 0;
	for (int p = 0; p < PARTS; p++)
		s += part[p];
	*sum += s;
}

void cpu_sumsq(struct dev *d, double *sum, const void *x, enum dtype type, size_t n)
{
	add_sum(d, sum, x, type, n, 1);
}

void cpu_sum(struct dev *d, double *sum, const float *x, size_t n)
{
	add_sum(d, sum, x, DT_F32, n, 0);
}
