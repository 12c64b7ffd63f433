/* latent.c - the discrete VAE's own functions: the Gumbel-softmax relaxation and the KL to the
 * uniform code (recipe B15, B16), the logit-Laplace likelihood (B10, B11) and the picture of its
 * mean (B13).  Each row or pixel is computed alone: same bits for any batch or thread count. */
#include "cpu.h"
#include "philox.h"
#include "vec.h"

#include <math.h>

enum { PIXELS = 8 * VL, SMALL = 4096 };

/* ---- Gumbel-softmax ---- */

struct moments {
	float top, lse, entropy; /* greatest logit; log of the sum of exp; sum of q ln q (not negated) */
};

/* q ln q is summed as e (x - top) so that codes of probability 0 give 0, not NaN; -inf logits too. */
static VINLINE struct moments row_moments(const float *x, size_t n)
{
	vf m = v_set(-INFINITY), s = v_set(0), w = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		m = v_max(v_row(x, i, n, -INFINITY), m);
	float top = v_greatest(m);
	for (size_t i = 0; i < n; i += VL) {
		vf c = v_row(x, i, n, -INFINITY) - top, e = v_exp(c);
		s += e;
		w += e * v_select(c < -87.0f, v_set(-87.0f), c);
	}
	float sum = v_sum(s), log_sum = logf(sum);
	return (struct moments){top, top + log_sum, v_sum(w) / sum - log_sum};
}

/* z = uniform numbers for the elements first .. first+n-1 of one step: two thirds of the time of
 * gumbel_fwd, which is little beside the decoder that follows. */
static void gumbel_uniform(float *z, size_t n, uint64_t seed, uint32_t step, uint64_t first)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits[4];
		philox(bits, seed, (uint32_t)(first + i), (uint32_t)((first + i) >> 32), step, RNG_GUMBEL);
		z[i] = philox_unit(bits[0]);
	}
}

/* z = softmax((x + g) / tau), g = -ln(-ln u) the standard Gumbel noise. */
CLONES static void gumbel_row(float *z, const float *x, size_t n, float tau, uint64_t seed, uint32_t step,
                              uint64_t first)
{
	vf m = v_set(-INFINITY), s = v_set(0);
	gumbel_uniform(z, n, seed, step, first);
	for (size_t i = 0; i < n; i += VL) {
		vf noise = -v_log(-v_log(v_row(z, i, n, 0.5f)));
		vf y = (v_row(x, i, n, -INFINITY) + noise) / tau;
		v_row_store(z, i, n, y);
		m = v_max(y, m);
	}
	float top = v_greatest(m);
	for (size_t i = 0; i < n; i += VL) {
		vf e = v_exp(v_row(z, i, n, -INFINITY) - top);
		s += e;
		v_row_store(z, i, n, e);
	}
	float r = 1.0f / v_sum(s);
	for (size_t i = 0; i < n; i++)
		z[i] *= r;
}

CLONES static float kl_row(const float *x, size_t n)
{
	return row_moments(x, n).entropy + logf((float)n);
}

void cpu_gumbel_fwd(struct dev *d, float *z, float *kl, const float *logits, size_t rows, int V, float tau,
                    uint64_t seed, uint32_t step, uint64_t first_row)
{
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < rows; r++) {
		if (kl)
			kl[r] = kl_row(logits + r * V, V);
		if (z && tau > 0)
			gumbel_row(z + r * V, logits + r * V, V, tau, seed, step, (first_row + r) * (uint64_t)V);
	}
	if (z && !(tau > 0)) {
		struct scratch_mark mark = cpu_scratch_begin(d);
		int32_t *best = cpu_scratch(d, "gumbel_fwd", rows * sizeof(int32_t));
		if (best) {
			cpu_argmax(d, best, logits, rows, V);
			cpu_onehot(d, z, best, rows, V);
		}
		cpu_scratch_end(d, mark);
	}
}

CLONES static void gumbel_row_bwd(float *dx, const float *dz, const float *z, const float *x, size_t n, float tau,
                                  float kl_scale)
{
	/* tau = 0 was a one-hot: nothing flows through it. */
	float through = tau > 0 ? 1.0f / tau : 0;
	struct moments q = kl_scale != 0 ? row_moments(x, n) : (struct moments){0};
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		s += v_row(dz, i, n, 0) * v_row(z, i, n, 0);
	float along = v_sum(s);
	for (size_t i = 0; i < n; i += VL) {
		vf g = v_row(z, i, n, 0) * (v_row(dz, i, n, 0) - along) * through;
		if (kl_scale != 0) {
			vf lq = v_row(x, i, n, 0) - q.lse;
			lq = v_select(lq < -87.0f, v_set(-87.0f), lq);
			g += kl_scale * v_exp(lq) * (lq - q.entropy);
		}
		v_row_store(dx, i, n, g);
	}
}

void cpu_gumbel_bwd(struct dev *d, float *dlogits, const float *dz, const float *z, const float *logits, size_t rows,
                    int V, float tau, float kl_scale)
{
	if (!dlogits)
		return;
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < rows; r++)
		gumbel_row_bwd(dlogits + r * V, dz + r * V, z + r * V, logits + r * V, V, tau, kl_scale);
}

/* ---- usage of the codes ---- */

/* e = exp(x - top); its sum. */
static VINLINE float exp_row(float *e, const float *x, size_t n)
{
	vf m = v_set(-INFINITY), s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		m = v_max(v_row(x, i, n, -INFINITY), m);
	float top = v_greatest(m);
	for (size_t i = 0; i < n; i += VL) {
		vf v = v_exp(v_row(x, i, n, -INFINITY) - top);
		v_row_store(e, i, n, v);
		s += v;
	}
	return v_sum(s);
}

CLONES static void usage_row(float *sum, float *e, const float *x, size_t n)
{
	float r = 1.0f / exp_row(e, x, n);
	for (size_t i = 0; i < n; i++)
		sum[i] += e[i] * r;
}

void cpu_usage_fwd(struct dev *d, float *sum, const float *logits, size_t rows, int V)
{
	enum { ROWS = 64 }; /* per partial sum: fixed, so that the order is too */
	size_t parts = (rows + ROWS - 1) / ROWS, n = V;
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *partial = cpu_scratch(d, "usage_fwd", 2 * parts * n * sizeof *partial); /* [parts, V], and a row of each */
	if (partial) {
		memset(partial, 0, parts * n * sizeof *partial);
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
		for (size_t p = 0; p < parts; p++)
			for (size_t r = p * ROWS; r < rows && r < (p + 1) * ROWS; r++)
				usage_row(partial + p * n, partial + (parts + p) * n, logits + r * n, n);
		for (size_t i = 0; i < parts * n; i++)
			sum[i % n] += partial[i];
	}
	cpu_scratch_end(d, mark);
}

CLONES static void usage_row_bwd(float *dx, float *e, const float *c, const float *x, size_t n)
{
	float r = 1.0f / exp_row(e, x, n);
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		s += v_row(e, i, n, 0) * v_row(c, i, n, 0);
	float along = v_sum(s) * r;
	for (size_t i = 0; i < n; i++)
		dx[i] += e[i] * r * (c[i] - along);
}

void cpu_usage_bwd(struct dev *d, float *dlogits, const float *c, const float *logits, size_t rows, int V)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *e = dlogits ? cpu_scratch(d, "usage_bwd", (size_t)d->threads * V * sizeof *e) : NULL;
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < (e ? rows : 0); r++)
		usage_row_bwd(dlogits + r * V, e + (size_t)cpu_thread() * V, c, logits + r * V, V);
	cpu_scratch_end(d, mark);
}

/* ---- logit-Laplace ---- */

/* Up to PIXELS pixels; their three channels lie side by side in the vectors, unused lanes hold 1/2. */
CLONES static void laplace_block(float *nll, float *dout, const float *out, const float *x, size_t n, float floor,
                                 float scale)
{
	float mu[3 * PIXELS], lb[3 * PIXELS], v[3 * PIXELS];
	for (size_t i = 0; i < 3 * PIXELS; i++)
		mu[i] = lb[i] = 0, v[i] = 0.5f;
	for (size_t p = 0; p < n; p++)
		for (int c = 0; c < 3; c++) {
			mu[3 * p + c] = out[6 * p + c];
			lb[3 * p + c] = out[6 * p + 3 + c];
			v[3 * p + c] = x[3 * p + c];
		}
	for (size_t i = 0; i < 3 * n; i += VL) {
		vf value = v_load(v + i), raw = v_load(lb + i), b = v_max(raw, v_set(floor));
		vf lx = v_log(value), l1 = v_log(1.0f - value);
		vf gap = lx - l1 - v_load(mu + i), rate = v_exp(-b), far = v_abs(gap) * rate;
		v_store(v + i, 0.69314718f + b + lx + l1 + far);
		/* d|gap|/dmu is 0 where the gap is: the middle of the corner. */
		v_store(mu + i, v_select(gap > 0, -rate, v_select(gap < 0, rate, gap)));
		/* Below the floor only what would raise it; a NaN stays one. */
		vf slope = 1.0f - far;
		v_store(lb + i, v_select(raw < floor, v_select(slope > 0, v_set(0), slope), slope));
	}
	for (size_t p = 0; p < n; p++) {
		if (nll)
			nll[p] = v[3 * p] + v[3 * p + 1] + v[3 * p + 2];
		for (int c = 0; dout && c < 3; c++) {
			dout[6 * p + c] = scale * mu[3 * p + c];
			dout[6 * p + 3 + c] = scale * lb[3 * p + c];
		}
	}
}

void cpu_logit_laplace(struct dev *d, float *nll, float *dout, const float *out, const float *x, size_t n_pixels,
                       float floor, float scale)
{
#pragma omp parallel for num_threads(d->threads) if (n_pixels > SMALL)
	for (size_t p = 0; p < n_pixels; p += PIXELS)
		laplace_block(nll ? nll + p : NULL, dout ? dout + 6 * p : NULL, out + 6 * p, x + 3 * p,
		              n_pixels - p < PIXELS ? n_pixels - p : PIXELS, floor, scale);
}

CLONES static void reconstruct_block(uint8_t *rgb, const float *out, size_t n, float gain, float shift)
{
	float v[3 * PIXELS];
	for (size_t p = 0; p < n; p++)
		for (int c = 0; c < 3; c++)
			v[3 * p + c] = out[6 * p + c];
	v_pad(v, 3 * n);
	for (size_t i = 0; i < 3 * n; i += VL) {
		vf y = (1.0f / (1.0f + v_exp(-v_load(v + i))) - shift) * gain;
		v_store(v + i, v_min(v_max(y, v_set(0)), v_set(255)) + 0.5f);
	}
	for (size_t i = 0; i < 3 * n; i++)
		rgb[i] = (uint8_t)v[i];
}

void cpu_reconstruct(struct dev *d, uint8_t *rgb, const float *out, size_t n_pixels, float scale, float shift)
{
#pragma omp parallel for num_threads(d->threads) if (n_pixels > SMALL)
	for (size_t p = 0; p < n_pixels; p += PIXELS)
		reconstruct_block(rgb + 3 * p, out + 6 * p, n_pixels - p < PIXELS ? n_pixels - p : PIXELS, 255.0f / scale, shift);
}
