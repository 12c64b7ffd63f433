/* latent.cu - latent.c on a GPU: Gumbel-softmax and KL to the uniform code (a block a row), the logit-Laplace
 * likelihood and the picture of its mean (a thread a pixel).  No T operand: compiled once. */
#include "cuda.cuh"

namespace FOR_TYPE {

enum { ROW_THREADS = 256, ROW_ROOM = ROW_THREADS / WARP };

/* ---- Gumbel-softmax ---- */

struct moments {
	float lse, entropy; /* log of the sum of exp; sum of q ln q (not negated) */
};

/* q ln q is summed as e (x - top), so that codes of probability 0 give 0, not NaN; -infinity, too. */
DEVICE struct moments row_moments(const float *x, int V, float *room)
{
	float top = -INFINITY, s = 0, w = 0;
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		top = max_nan(x[i], top);
	top = block_max(top, room);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS) {
		float c = x[i] - top, e = expf(c);
		s += e;
		w += e * (c < -87.0f ? -87.0f : c);
	}
	s = block_sum(s, room);
	w = block_sum(w, room);
	return moments{top + logf(s), w / s - logf(s)};
}

KERNEL gumbel_fwd_kernel(float *z, float *kl, const float *logits, int V, float tau, uint64_t seed, uint32_t step,
                         uint64_t first_row)
{
	float *room = (float *)SHARED;
	size_t r = blockIdx.x;
	const float *x = logits + r * V;
	if (kl) {
		struct moments q = row_moments(x, V, room);
		if (threadIdx.x == 0)
			kl[r] = q.entropy + logf((float)V);
	}
	if (!z)
		return;
	float top = -INFINITY, s = 0;
	z += r * V;
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS) {
		uint64_t e = (first_row + r) * (uint64_t)V + i;
		uint32_t bits[4];
		philox(bits, seed, (uint32_t)e, (uint32_t)(e >> 32), step, RNG_GUMBEL);
		float y = (x[i] - logf(-logf(philox_unit(bits[0])))) / tau;
		z[i] = y;
		top = max_nan(y, top);
	}
	top = block_max(top, room);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS) {
		z[i] = expf(z[i] - top);
		s += z[i];
	}
	float scale = 1.0f / block_sum(s, room);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		z[i] *= scale;
}

void gumbel_fwd(struct dev *d, float *z, float *kl, const float *logits, size_t rows, int V, float tau, uint64_t seed,
                uint32_t step, uint64_t first_row)
{
	float *noisy = tau > 0 ? z : NULL;
	if (kl || noisy)
		launch(d, gumbel_fwd_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(float), noisy, kl, logits, V,
		       tau, seed, step, first_row);
	if (!z || tau > 0)
		return;
	int32_t *best = (int32_t *)cuda_scratch(d, rows * sizeof *best);
	if (!best)
		return;
	argmax(d, best, logits, rows, V);
	onehot(d, z, best, rows, V);
}

KERNEL gumbel_bwd_kernel(float *dlogits, const float *dz, const float *z, const float *logits, int V, float tau,
                         float kl_scale)
{
	float *room = (float *)SHARED, s = 0;
	size_t at = (size_t)blockIdx.x * V;
	/* tau = 0 was a one-hot: nothing flows through it. */
	float through = tau > 0 ? 1.0f / tau : 0;
	struct moments q = {0, 0};
	if (kl_scale != 0)
		q = row_moments(logits + at, V, room);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		s += dz[at + i] * z[at + i];
	float along = block_sum(s, room);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS) {
		float g = z[at + i] * (dz[at + i] - along) * through;
		if (kl_scale != 0) {
			float lq = logits[at + i] - q.lse;
			lq = lq < -87.0f ? -87.0f : lq;
			g += kl_scale * expf(lq) * (lq - q.entropy);
		}
		dlogits[at + i] = g;
	}
}

void gumbel_bwd(struct dev *d, float *dlogits, const float *dz, const float *z, const float *logits, size_t rows, int V,
                float tau, float kl_scale)
{
	if (dlogits)
		launch(d, gumbel_bwd_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(float), dlogits, dz, z, logits,
		       V, tau, kl_scale);
}

/* ---- how much each code is used ---- */

enum { STRIPS = 128 };

KERNEL usage_lse_kernel(float *lse, const float *logits, int V)
{
	struct moments q = row_moments(logits + (size_t)blockIdx.x * V, V, (float *)SHARED);
	if (threadIdx.x == 0)
		lse[blockIdx.x] = q.lse;
}

/* part[strip, V]: sums of q over the strip's rows, one column a thread. */
KERNEL usage_strips_kernel(float *part, const float *logits, const float *lse, size_t rows, int V)
{
	int k = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
	size_t from = rows * blockIdx.y / gridDim.y, to = rows * (blockIdx.y + 1) / gridDim.y;
	if (k >= V)
		return;
	float s = 0;
	for (size_t r = from; r < to; r++)
		s += expf(logits[r * V + k] - lse[r]);
	part[(size_t)blockIdx.y * V + k] = s;
}

KERNEL usage_total_kernel(float *sum, const float *part, int strips, int V)
{
	int k = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
	if (k >= V)
		return;
	float s = 0;
	for (int i = 0; i < strips; i++)
		s += part[(size_t)i * V + k];
	sum[k] += s;
}

void usage_fwd(struct dev *d, float *sum, const float *logits, size_t rows, int V)
{
	size_t strips = rows < STRIPS ? rows : (size_t)STRIPS;
	float *lse = (float *)cuda_scratch(d, rows * sizeof *lse), *part = (float *)cuda_scratch(d, strips * V * sizeof *part);
	unsigned columns = (unsigned)ceil_div(V, ROW_THREADS);
	if (!lse || !part || !rows)
		return;
	launch(d, usage_lse_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(float), lse, logits, V);
	launch(d, usage_strips_kernel, dim3(columns, (unsigned)strips), dim3(ROW_THREADS), 0, part, logits, lse, rows, V);
	launch(d, usage_total_kernel, dim3(columns), dim3(ROW_THREADS), 0, sum, part, (int)strips, V);
}

KERNEL usage_bwd_kernel(float *dlogits, const float *c, const float *logits, int V)
{
	float *room = (float *)SHARED, s = 0;
	size_t at = (size_t)blockIdx.x * V;
	float lse = row_moments(logits + at, V, room).lse;
	for (int k = (int)threadIdx.x; k < V; k += ROW_THREADS)
		s += expf(logits[at + k] - lse) * c[k];
	float mean = block_sum(s, room);
	for (int k = (int)threadIdx.x; k < V; k += ROW_THREADS)
		dlogits[at + k] += expf(logits[at + k] - lse) * (c[k] - mean);
}

void usage_bwd(struct dev *d, float *dlogits, const float *c, const float *logits, size_t rows, int V)
{
	if (dlogits)
		launch(d, usage_bwd_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(float), dlogits, c, logits, V);
}

/* ---- logit-Laplace ---- */

struct laplace_op {
	float *nll, *dout;
	const float *out, *x;
	float floor, scale;
	template <int N> __device__ void at(size_t p) const
	{
		float sum = 0;
		for (int c = 0; c < 3; c++) {
			float mu = out[6 * p + c], raw = out[6 * p + 3 + c], v = x[3 * p + c];
			float b = raw < floor ? floor : raw, lx = logf(v), l1 = logf(1.0f - v);
			float gap = lx - l1 - mu, rate = expf(-b), far = fabsf(gap) * rate;
			sum += 0.69314718f + b + lx + l1 + far;
			if (!dout)
				continue;
			/* d|gap|/dmu is 0 where the gap is: the middle of the corner; below the floor only what would raise
			 * it; a NaN stays one. */
			float slope = 1.0f - far, dmu = gap > 0 ? -rate : gap < 0 ? rate : gap;
			dout[6 * p + c] = scale * dmu;
			dout[6 * p + 3 + c] = scale * (raw < floor && slope > 0 ? 0 : slope);
		}
		if (nll)
			nll[p] = sum;
	}
};

void logit_laplace(struct dev *d, float *nll, float *dout, const float *out, const float *x, size_t n_pixels, float floor,
                   float scale)
{
	map(d, n_pixels, false, laplace_op{nll, dout, out, x, floor, scale});
}

struct reconstruct_op {
	uint8_t *rgb;
	const float *out;
	float gain, shift;
	template <int N> __device__ void at(size_t p) const
	{
		for (int c = 0; c < 3; c++) {
			float y = (1.0f / (1.0f + expf(-out[6 * p + c])) - shift) * gain;
			y = y > 0 ? y : 0;
			rgb[3 * p + c] = (uint8_t)((y < 255 ? y : 255) + 0.5f);
		}
	}
};

void reconstruct(struct dev *d, uint8_t *rgb, const float *out, size_t n_pixels, float scale, float shift)
{
	map(d, n_pixels, false, reconstruct_op{rgb, out, 255.0f / scale, shift});
}
}
