/* elem.cu - elem.c on a GPU: casts, residual sum, ReLU, GELU, pixels, embedding tables.  Bound by memory:
 * four elements a thread and step. */
#include "gelu.cuh"
#include "strips.cuh"

namespace FOR_TYPE {

/* ---- casts and the residual sum ---- */

struct cast_op {
	T *y;
	const float *x;
	float scale;
	int filter;
	template <int N> __device__ void at(size_t i) const
	{
		float v[N];
		load<N>(v, x + i);
		for (int k = 0; k < N; k++) {
			v[k] *= scale;
			v[k] = filter && !finite(v[k]) ? 0 : v[k];
		}
		store<N>(y + i, v);
	}
};

void cast(struct dev *d, void *y, const float *x, size_t n, float scale, int flags)
{
	if (!T_IS_F32 && flags & OP_F32)
		for_f32::cast(d, y, x, n, scale, flags);
	else
		map(d, n, aligned(x, 16) && aligned(y, 16), cast_op{(T *)y, x, scale, flags & OP_FILTER});
}

struct uncast_op {
	float *y;
	const T *x;
	float scale;
	template <int N> __device__ void at(size_t i) const
	{
		float v[N];
		load<N>(v, x + i);
		for (int k = 0; k < N; k++)
			v[k] *= scale;
		store<N>(y + i, v);
	}
};

void uncast(struct dev *d, float *y, const void *x, size_t n, float scale)
{
	map(d, n, aligned(x, 16) && aligned(y, 16), uncast_op{y, (const T *)x, scale});
}

struct add_op {
	float *y;
	const float *x;
	const T *r;
	float gain;
	template <int N> __device__ void at(size_t i) const
	{
		float v[N], w[N];
		load<N>(v, x + i);
		load<N>(w, r + i);
		for (int k = 0; k < N; k++)
			v[k] += gain * w[k];
		store<N>(y + i, v);
	}
};

void add(struct dev *d, float *y, const float *x, const void *r, float gain, size_t n)
{
	map(d, n, aligned(x, 16) && aligned(y, 16) && aligned(r, 16), add_op{y, x, (const T *)r, gain});
}

/* ---- ReLU ---- */

struct relu_op {
	T *y;
	const float *x;
	template <int N> __device__ void at(size_t i) const
	{
		float v[N];
		load<N>(v, x + i);
		/* Written so that a NaN stays one. */
		for (int k = 0; k < N; k++)
			v[k] = v[k] < 0 ? 0 : v[k];
		store<N>(y + i, v);
	}
};

void relu_fwd(struct dev *d, void *y, const float *x, size_t n, int flags)
{
	if (!T_IS_F32 && flags & OP_F32)
		for_f32::relu_fwd(d, y, x, n, flags);
	else
		map(d, n, aligned(x, 16) && aligned(y, 16), relu_op{(T *)y, x});
}

struct relu_bwd_op {
	T *dx;
	const T *dy, *y;
	template <int N> __device__ void at(size_t i) const
	{
		float g[N], v[N];
		load<N>(g, dy + i);
		load<N>(v, y + i);
		for (int k = 0; k < N; k++)
			g[k] = v[k] > 0 ? g[k] : 0;
		store<N>(dx + i, g);
	}
};

void relu_bwd(struct dev *d, void *dx, const void *dy, const void *y, size_t n)
{
	if (dx)
		map(d, n, aligned(dx, 16) && aligned(dy, 16) && aligned(y, 16), relu_bwd_op{(T *)dx, (const T *)dy, (const T *)y});
}

struct relu_bwd_add_op {
	float *dx;
	const T *dy;
	const float *x;
	template <int N> __device__ void at(size_t i) const
	{
		float s[N], g[N], v[N];
		load<N>(s, dx + i);
		load<N>(g, dy + i);
		load<N>(v, x + i);
		for (int k = 0; k < N; k++)
			s[k] += v[k] > 0 ? g[k] : 0;
		store<N>(dx + i, s);
	}
};

void relu_bwd_add(struct dev *d, float *dx, const void *dy, const float *x, size_t n, int flags)
{
	if (!T_IS_F32 && flags & OP_F32)
		for_f32::relu_bwd_add(d, dx, dy, x, n, flags);
	else if (dx)
		map(d, n, aligned(dx, 16) && aligned(dy, 16) && aligned(x, 16), relu_bwd_add_op{dx, (const T *)dy, x});
}

/* ---- GELU ---- */

/* The derivative: s + u s' with s the gate. */
DEVICE float gelu_slope(float u, int exact)
{
	if (exact) {
		float bell = expf(-0.5f * u * u);
		return normal_cdf(u) + 0.39894228f * u * bell;
	}
	float s = 1.0f / (1.0f + expf(-1.702f * u));
	return s + 1.702f * u * (s * (1.0f - s));
}

struct gelu_op {
	T *y;
	const T *u;
	int exact;
	template <int N> __device__ void at(size_t i) const
	{
		float v[N];
		load<N>(v, u + i);
		for (int k = 0; k < N; k++)
			v[k] = gelu(v[k], exact);
		store<N>(y + i, v);
	}
};

void gelu_fwd(struct dev *d, void *y, const void *u, size_t n, int exact)
{
	map(d, n, aligned(y, 16) && aligned(u, 16), gelu_op{(T *)y, (const T *)u, exact});
}

struct gelu_bwd_op {
	T *du;
	const T *dy, *u;
	int exact;
	template <int N> __device__ void at(size_t i) const
	{
		float g[N], v[N];
		load<N>(g, dy + i);
		load<N>(v, u + i);
		for (int k = 0; k < N; k++)
			g[k] *= gelu_slope(v[k], exact);
		store<N>(du + i, g);
	}
};

enum { SUM_THREADS = 128, SUM_BLOCKS = 12 /* a multiprocessor */, CHUNK = 16 / (int)sizeof(T) };

/* The same, N columns a thread, a strip of rows a block; part[strips, C]. */
template <int N>
KERNEL __launch_bounds__(SUM_THREADS, SUM_BLOCKS) gelu_bwd_kernel(T *du, float *part, const T *dy, const T *u, size_t rows,
                                                                 int C, int exact)
{
	int c = (int)(blockIdx.x * SUM_THREADS + threadIdx.x) * N;
	if (c >= C)
		return;
	float s[N] = {}, g[N], v[N];
	size_t from, to;
	strip_rows(from, to, rows, blockIdx.y, gridDim.y);
	for (size_t r = from; r < to; r++) {
		load<N>(g, dy + r * C + c);
		load<N>(v, u + r * C + c);
#pragma unroll
		for (int k = 0; k < N; k++) {
			g[k] *= gelu_slope(v[k], exact);
			s[k] += to_f(make<T>(g[k]));
		}
		if (du)
			store<N>(du + r * C + c, g);
	}
	store<N>(part + (size_t)blockIdx.y * C + c, s);
}

static void gelu_bwd_summed(struct dev *d, T *du, float *db, const T *dy, const T *u, size_t rows, int C, int exact)
{
	bool vector = C % CHUNK == 0 && aligned(du, 16) && aligned(dy, 16) && aligned(u, 16);
	size_t columns = ceil_div(C, SUM_THREADS * (vector ? CHUNK : 1)), strips = ceil_div((size_t)d->sms * SUM_BLOCKS, columns);
	strips = rows < strips ? rows : strips;
	float *part = (float *)cuda_scratch(d, strips * C * sizeof *part);
	if (!part || !strips)
		return;
	launch(d, vector ? gelu_bwd_kernel<CHUNK> : gelu_bwd_kernel<1>, dim3((unsigned)columns, (unsigned)strips),
	       dim3(SUM_THREADS), 0, du, part, dy, u, rows, C, exact);
	struct strip_totals t = {{db}, {1}};
	strips_total(d, &t, 1, part, (int)strips, C);
}

void gelu_bwd(struct dev *d, void *du, float *db, const void *dy, const void *u, size_t rows, int C, int exact)
{
	if (db)
		gelu_bwd_summed(d, (T *)du, db, (const T *)dy, (const T *)u, rows, C, exact);
	else if (du)
		map(d, rows * C, aligned(du, 16) && aligned(dy, 16) && aligned(u, 16),
		    gelu_bwd_op{(T *)du, (const T *)dy, (const T *)u, exact});
}

/* ---- pixels ---- */

struct pixels_op {
	float *x;
	const uint8_t *rgb;
	float scale[3], shift[3];
	template <int N> __device__ void at(size_t i) const
	{
		for (int k = 0; k < N; k++) {
			int c = (int)((i + k) % 3);
			float gain = c == 0 ? scale[0] : c == 1 ? scale[1] : scale[2];
			float rest = c == 0 ? shift[0] : c == 1 ? shift[1] : shift[2];
			x[i + k] = rgb[i + k] * gain + rest;
		}
	}
};

void pixels(struct dev *d, float *x, const uint8_t *rgb, size_t n_pixels, const float scale[3], const float shift[3])
{
	map(d, 3 * n_pixels, true,
	    pixels_op{x, rgb, {scale[0], scale[1], scale[2]}, {shift[0], shift[1], shift[2]}});
}

/* ---- embeddings ---- */

/* A block a row. */
KERNEL embed_kernel(float *h, const float *table, const int32_t *idx, int C, int add)
{
	size_t r = blockIdx.x;
	await_previous();
	let_next_start();
	int32_t k = idx[r];
	for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x) {
		float x = k >= 0 ? table[(size_t)k * C + c] : 0;
		h[r * C + c] = add ? h[r * C + c] + x : x;
	}
}

static dim3 row_threads(int C)
{
	return dim3(C <= 64 ? 64 : C <= 128 ? 128 : 256);
}

void embed_fwd(struct dev *d, float *h, const float *table, const int32_t *idx, size_t rows, int C, int add)
{
	struct written out = {{{h, rows * C * sizeof *h}, {NULL, 0}, {NULL, 0}}};
	launch_early(d, out, embed_kernel, dim3((unsigned)rows), row_threads(C), 0, h, table, idx, C, add);
}

enum { LINK_THREADS = 256 };

/* next[r] = the next row with the index of row r, -1: none; first[r] = no row before r has it.  Quadratic in the
 * rows, but with a compare of integers in shared memory: 0.1 ms for the 10,000 rows of a batch. */
KERNEL link_rows_kernel(int32_t *next, int32_t *first, const int32_t *idx, int rows)
{
	int32_t *tile = (int32_t *)SHARED;
	int r = (int)(blockIdx.x * LINK_THREADS + threadIdx.x);
	int32_t mine = r < rows ? idx[r] : -1, after = -1, leads = 1;
	for (int t = 0; t < rows; t += LINK_THREADS) {
		int j = t + (int)threadIdx.x;
		__syncthreads();
		tile[threadIdx.x] = j < rows ? idx[j] : -1;
		__syncthreads();
		for (int k = 0; k < LINK_THREADS; k++) {
			bool same = tile[k] == mine;
			if (same && t + k < r)
				leads = 0;
			if (same && t + k > r && after < 0)
				after = t + k;
		}
	}
	if (r < rows) {
		next[r] = after;
		first[r] = leads && mine >= 0;
	}
}

/* The block of an index's first row adds all its rows, in their order.  A thread has GROUPS times N columns, so that a long
 * chain of rows, each found through the one before, is walked once. */
template <int N>
KERNEL embed_bwd_kernel(float *dtable, const float *dh, const int32_t *idx, const int32_t *next, const int32_t *first, int C)
{
	enum { GROUPS = 2 };
	int r = (int)blockIdx.x, step = (int)blockDim.x * N;
	if (!first[r])
		return;
	dtable += (size_t)idx[r] * C;
	for (int c0 = (int)threadIdx.x * N; c0 < C; c0 += GROUPS * step) {
		float s[GROUPS][N], v[N];
#pragma unroll
		for (int q = 0; q < GROUPS; q++)
			if (c0 + q * step < C)
				load<N>(s[q], dtable + c0 + q * step);
		for (int k = r; k >= 0; k = next[k])
#pragma unroll
			for (int q = 0; q < GROUPS; q++) {
				if (c0 + q * step >= C)
					continue;
				load<N>(v, dh + (size_t)k * C + c0 + q * step);
#pragma unroll
				for (int i = 0; i < N; i++)
					s[q][i] += v[i];
			}
#pragma unroll
		for (int q = 0; q < GROUPS; q++)
			if (c0 + q * step < C)
				store<N>(dtable + c0 + q * step, s[q]);
	}
}

void embed_bwd(struct dev *d, float *dtable, const float *dh, const int32_t *idx, size_t rows, int C)
{
	if (!dtable)
		return;
	int32_t *next = (int32_t *)cuda_scratch(d, rows * sizeof *next), *first = (int32_t *)cuda_scratch(d, rows * sizeof *first);
	if (!next || !first)
		return;
	launch(d, link_rows_kernel, dim3((unsigned)ceil_div(rows, LINK_THREADS)), dim3(LINK_THREADS), LINK_THREADS * sizeof *next,
	       next, first, idx, rows);
	bool vector = C % 4 == 0 && aligned(dtable, 16) && aligned(dh, 16);
	launch(d, vector ? embed_bwd_kernel<4> : embed_bwd_kernel<1>, dim3((unsigned)rows), row_threads(C), 0, dtable, dh, idx, next,
	       first, C);
}
}
