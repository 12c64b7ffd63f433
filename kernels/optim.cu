/* optim.cu - optim.c on a GPU: AdamW over all number formats, sums over whole tensors and the running average.
 * The types are told with each call, so this file is compiled once. */
#include "cuda.cuh"
#include "numbers.cuh"

namespace FOR_TYPE {

enum { SUM_THREADS = 256 };
static const size_t SUM_BLOCKS = 1024;

/* ---- AdamW ---- */

struct adamw_numbers {
	float keep, rate, beta1, beta2, top, g_scale, eps;
	uint64_t seed, first;
	uint32_t step;
};

/* f32 weights, and their copy; or weights of 16 bits, rounded at random. */
template <int N, class C> DEVICE void keep_weights(float *w, C *wt, const float *x, size_t, const struct adamw_numbers &)
{
	store<N>(w, x);
	if (wt)
		store<N>(wt, x);
}

template <int N, class W, class C>
DEVICE void keep_weights(W *w, C *, const float *x, size_t i, const struct adamw_numbers &a)
{
	for (int k = 0; k < N; k++) {
		uint64_t e = a.first + i + k;
		uint32_t bits[4];
		philox(bits, a.seed, (uint32_t)e, (uint32_t)(e >> 32), a.step, RNG_ROUND);
		round_randomly(w[k], x[k], bits[0]);
	}
}

template <class W, class M, class V, class G, class C> struct adamw_op {
	W *w;
	C *wt;
	M *m;
	V *v;
	const G *g;
	struct adamw_numbers a;
	template <int N> __device__ void at(size_t i) const
	{
		float w_[N], m_[N], v_[N], g_[N];
		load<N>(w_, w + i);
		load<N>(m_, m + i);
		load<N>(v_, v + i);
		load<N>(g_, g + i);
		for (int k = 0; k < N; k++) {
			float x = a.g_scale * g_[k];
			m_[k] = a.beta1 * m_[k] + (1.0f - a.beta1) * x;
			v_[k] = a.beta2 * v_[k] + (1.0f - a.beta2) * x * x;
			v_[k] = v_[k] > a.top ? a.top : v_[k];
			w_[k] = a.keep * w_[k] - a.rate * m_[k] / (sqrtf(v_[k]) + a.eps);
		}
		store<N>(m + i, m_);
		store<N>(v + i, v_);
		keep_weights<N>(w + i, wt ? wt + i : NULL, w_, i, a);
	}
};

template <class W, class M, class V, class G, class C>
static void adamw_run(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw_numbers *a)
{
	void *wt = x->wt == x->w ? NULL : x->wt;
	bool vector = aligned(x->w, 16) && aligned(wt, 16) && aligned(x->m, 16) && aligned(x->v, 16) && aligned(x->g, 16);
	map(d, n, vector, adamw_op<W, M, V, G, C>{(W *)x->w, (C *)wt, (M *)x->m, (V *)x->v, (const G *)x->g, *a});
}

template <class W, class M, class V, class C>
static void adamw_g(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw_numbers *a)
{
	if (x->g_type == DT_F32)
		adamw_run<W, M, V, float, C>(d, x, n, a);
	else
		adamw_run<W, M, V, C, C>(d, x, n, a);
}

template <class W, class M, class C>
static void adamw_v(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw_numbers *a)
{
	if (x->v_type == DT_F32)
		adamw_g<W, M, float, C>(d, x, n, a);
	else
		adamw_g<W, M, v0_6_10, C>(d, x, n, a);
}

template <class W, class C>
static void adamw_m(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw_numbers *a)
{
	if (x->m_type == DT_F32)
		adamw_v<W, float, C>(d, x, n, a);
	else
		adamw_v<W, m1_6_9, C>(d, x, n, a);
}

/* C is the device's type, that of copies and of what is not f32. */
template <class C> static void adamw_w(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw_numbers *a)
{
	if (x->w_type == DT_F32)
		adamw_m<float, C>(d, x, n, a);
	else
		adamw_m<C, C>(d, x, n, a);
}

void adamw(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw *a)
{
	double correct1 = 1.0 - pow((double)a->beta1, (double)a->step), correct2 = 1.0 - pow((double)a->beta2, (double)a->step);
	struct adamw_numbers k = {1.0f - a->lr * a->decay, (float)(a->lr * sqrt(correct2) / correct1), a->beta1, a->beta2,
		a->v_max > 0 ? a->v_max : INFINITY, a->g_scale, a->eps, a->seed, a->first, (uint32_t)a->step};
	if (d->type == DT_F32)
		adamw_w<float>(d, x, n, &k);
	else if (d->type == DT_BF16)
		adamw_w<bf16>(d, x, n, &k);
	else
		adamw_w<f16>(d, x, n, &k);
}

template <class W> struct average_op {
	float *avg;
	const W *w;
	float decay;
	template <int N> __device__ void at(size_t i) const
	{
		float a[N], x[N];
		load<N>(a, avg + i);
		load<N>(x, w + i);
		for (int k = 0; k < N; k++)
			a[k] = decay * a[k] + (1.0f - decay) * x[k];
		store<N>(avg + i, a);
	}
};

void average(struct dev *d, float *avg, const void *w, enum dtype type, size_t n, float decay)
{
	bool vector = aligned(avg, 16) && aligned(w, 16);
	if (type == DT_F32)
		map(d, n, vector, average_op<float>{avg, (const float *)w, decay});
	else if (type == DT_BF16)
		map(d, n, vector, average_op<bf16>{avg, (const bf16 *)w, decay});
	else
		map(d, n, vector, average_op<f16>{avg, (const f16 *)w, decay});
}

/* ---- sums: doubles, a share of the tensor for each of a fixed number of blocks, then over the blocks ---- */

template <class S> KERNEL sum_kernel(double *part, const S *x, size_t n, int squares)
{
	double *room = (double *)SHARED, s = 0;
	size_t share = (n + gridDim.x - 1) / gridDim.x, from = share * blockIdx.x, to = from + share < n ? from + share : n;
	for (size_t i = from + threadIdx.x; i < to; i += SUM_THREADS) {
		double v = to_f(x[i]);
		s += squares ? v * v : v;
	}
	s = block_sum(s, room);
	if (threadIdx.x == 0)
		part[blockIdx.x] = s;
}

KERNEL sum_parts_kernel(double *sum, const double *part, int parts)
{
	double *room = (double *)SHARED, s = 0;
	for (int i = (int)threadIdx.x; i < parts; i += SUM_THREADS)
		s += part[i];
	s = block_sum(s, room);
	if (threadIdx.x == 0)
		*sum += s;
}

template <class S> static void add_sum(struct dev *d, double *sum, const S *x, size_t n, int squares)
{
	size_t blocks = ceil_div(n, 4 * SUM_THREADS), room = SUM_THREADS / WARP * sizeof(double);
	blocks = blocks < SUM_BLOCKS ? blocks : SUM_BLOCKS;
	double *part = (double *)cuda_scratch(d, SUM_BLOCKS * sizeof *part);
	if (!part)
		return;
	launch(d, sum_kernel<S>, dim3((unsigned)blocks), dim3(SUM_THREADS), room, part, x, n, squares);
	launch(d, sum_parts_kernel, dim3(1), dim3(SUM_THREADS), room, sum, part, (int)blocks);
}

void sumsq(struct dev *d, double *total, const void *x, enum dtype type, size_t n)
{
	if (type == DT_F32)
		add_sum(d, total, (const float *)x, n, 1);
	else if (type == DT_BF16)
		add_sum(d, total, (const bf16 *)x, n, 1);
	else
		add_sum(d, total, (const f16 *)x, n, 1);
}

void sum(struct dev *d, double *total, const float *x, size_t n)
{
	add_sum(d, total, x, n, 0);
}
}
