/* attn.cu - attn.c on a GPU: attention with the paper's masks, forward and backward.
 * The kernels here work for every type and head width, a warp for each query or key; 16-bit types with common
 * widths go to the tensor cores instead (flash.cu, flash-bwd.cu).  All sums run in a fixed order. */
#include "attn.cuh"

#include "flash.cuh"

namespace FOR_TYPE {

enum { WARPS = 4, EACH = HEAD_MOST / WARP /* columns of a row that a lane holds */ };

/* One head of one sequence: slices of qkv[S,3,H,D] and of y[S,H,D]. */
struct head {
	const T *q, *k, *v;
	size_t in, out; /* elements between states */
	int D;
};

DEVICE struct head head_of(const T *qkv, const struct mask &m, int H, int D, int b, int h)
{
	size_t part = (size_t)H * D;
	const T *q = qkv + (size_t)b * m.S * 3 * part + (size_t)h * D;
	return head{q, q + part, q + 2 * part, 3 * part, part, D};
}

DEVICE float dot(const float *x, const T *y, int D)
{
	float s = 0;
	for (int c = 0; c < D; c++)
		s += x[c] * to_f(y[c]);
	return s;
}

/* Shared memory of a warp: two rows of D, and two values for each lane. */
struct rows {
	float *a, *b, *p, *s;
};

DEVICE struct rows rows_of(int D)
{
	float *at = (float *)SHARED + threadIdx.x / WARP * (2 * D + 2 * WARP);
	return rows{at, at + D, at + 2 * D, at + 2 * D + WARP};
}

static size_t rows_bytes(int D)
{
	return WARPS * (2 * (size_t)D + 2 * WARP) * sizeof(float);
}

DEVICE void load_row(float *to, const T *x, int D)
{
	for (int c = lane_id(); c < D; c += WARP)
		to[c] = to_f(x[c]);
}

/* sum[e] += the column lane + 32 e of weight[k] * row k for 32 rows; weights of 0 are not read. */
template <class ROW> DEVICE void add_rows(float sum[EACH], const float *weight, int D, ROW row)
{
	for (int k = 0; k < WARP; k++) {
		float w = weight[k];
		if (w == 0)
			continue;
		const T *x = row(k);
#pragma unroll
		for (int e = 0; e < EACH; e++)
			if (e * WARP + lane_id() < D)
				sum[e] += w * to_f(x[e * WARP + lane_id()]);
	}
}

DEVICE void store_row(T *y, const float sum[EACH], int D, float gain)
{
#pragma unroll
	for (int e = 0; e < EACH; e++)
		if (e * WARP + lane_id() < D)
			y[e * WARP + lane_id()] = make<T>(gain * sum[e]);
}

/* Keys of query i as 32-wide steps over [0, text part) and [image part]. */
struct keys {
	int text, from, to;
};

DEVICE struct keys keys_of(const struct mask &m, int i)
{
	if (m.kind == ATTN_FULL)
		return keys{m.S, 0, 0};
	if (i < m.text)
		return keys{i + 1, 0, 0};
	return keys{m.text, first_image_key(m, i), i + 1};
}

/* Key number n of the query; -1: beyond the last, or not seen. */
DEVICE int key_at(const struct mask &m, const struct keys &k, int i, int n)
{
	if (n < k.text)
		return n;
	int j = k.from + n - k.text;
	if (j >= k.to || (m.kind == ATTN_CONV && !conv_tap(m, i - j)))
		return -1;
	return j;
}

/* Row number k of the 32 whose places the lanes hold; index in shared memory. */
struct row_at {
	const T *base;
	size_t stride;
	const struct mask *m;
	const float *place; /* [32] */
	DEVICE const T *at(const struct row_at *r, int k)
	{
		return r->base + (size_t)state_at(*r->m, (int)r->place[k]) * r->stride;
	}
	__device__ const T *operator()(int k) const
	{
		return at(this, k);
	}
};

/* ---- forward ---- */

KERNEL attn_fwd_kernel(T *y, float *lse, const T *qkv, struct mask m, int H, int D, float scale)
{
	int i = (int)(blockIdx.x * WARPS + threadIdx.x / WARP), h = (int)blockIdx.y, b = (int)blockIdx.z;
	if (i >= m.S)
		return;
	struct rows r = rows_of(D);
	struct head t = head_of(qkv, m, H, D, b, h);
	struct keys k = keys_of(m, i);
	int n = k.text + k.to - k.from, at = state_at(m, i);
	float sum[EACH] = {}, top = -INFINITY, total = 0;
	load_row(r.a, t.q + at * t.in, D);
	__syncwarp();
	for (int n0 = 0; n0 < n; n0 += WARP) {
		int j = key_at(m, k, i, n0 + lane_id());
		float s = j < 0 ? -INFINITY : scale * dot(r.a, t.k + state_at(m, j) * t.in, D);
		float higher = fmaxf(top, warp_max(s)), p = 0;
		if (higher == -INFINITY)
			continue;
		p = j < 0 ? 0 : expf(s - higher);
		float shrink = expf(top - higher);
		total = total * shrink + warp_sum(p);
#pragma unroll
		for (int e = 0; e < EACH; e++)
			sum[e] *= shrink;
		top = higher;
		r.p[lane_id()] = p;
		r.s[lane_id()] = (float)j;
		__syncwarp();
		add_rows(sum, r.p, D, row_at{t.v, t.in, &m, r.s});
		__syncwarp();
	}
	store_row(y + ((size_t)b * m.S + at) * t.out + (size_t)h * D, sum, D, 1.0f / total);
	if (lane_id() == 0)
		lse[((size_t)b * H + h) * m.S + at] = top + logf(total);
}

static dim3 warp_grid(int n, int H, int B)
{
	return dim3((unsigned)ceil_div(n, WARPS), (unsigned)H, (unsigned)B);
}

void attn_fwd(struct dev *d, void *y, float *lse, const void *qkv, int B, int H, int D, const struct attn_mask *am)
{
	struct mask m = mask_of(am);
	if (!width_fits(d, D) || flash_fwd(d, y, lse, qkv, B, H, D, &m))
		return;
	launch(d, attn_fwd_kernel, warp_grid(m.S, H, B), dim3(WARPS * WARP), rows_bytes(D), (T *)y, lse, (const T *)qkv, m, H, D,
	       1.0f / sqrtf((float)D));
}

/* ---- backward ---- */

/* delta[B,H,S] = dy . y, which is also the sum over the keys of p times (dy . v): `lanes` lanes, a power of two, for each
 * head of each state, with N elements each at once. */
template <int N>
KERNEL attn_delta_kernel(float *delta, const T *dy, const T *y, size_t heads, int lanes, int S, int H, int D)
{
	size_t n = ((size_t)blockIdx.x * WARPS * WARP + threadIdx.x) / lanes; /* (b, state, head) */
	int lane = (int)threadIdx.x % lanes;
	float s = 0, g[N], v[N];
	for (int c = lane * N; c < D && n < heads; c += lanes * N) {
		load<N>(g, dy + n * D + c);
		load<N>(v, y + n * D + c);
#pragma unroll
		for (int i = 0; i < N; i++)
			s += g[i] * v[i];
	}
	for (int o = lanes / 2; o; o /= 2)
		s += __shfl_xor_sync(ALL_LANES, s, o);
	if (n < heads && lane == 0) {
		size_t h = n % H, state = n / H % S, b = n / H / S;
		delta[(b * H + h) * S + state] = s;
	}
}

static void attn_delta(struct dev *d, float *delta, const void *dy, const void *y, int B, int S, int H, int D)
{
	enum { CHUNK = 16 / (int)sizeof(T) };
	bool chunks = D % CHUNK == 0 && aligned(dy, 16) && aligned(y, 16);
	int each = chunks ? CHUNK : 1, lanes = 1;
	size_t heads = (size_t)B * S * H;
	while (lanes < WARP && lanes * each < D)
		lanes *= 2;
	launch(d, chunks ? attn_delta_kernel<CHUNK> : attn_delta_kernel<1>, dim3((unsigned)ceil_div(heads * lanes, WARPS * WARP)),
	       dim3(WARPS * WARP), 0, delta, (const T *)dy, (const T *)y, heads, lanes, S, H, D);
}

KERNEL attn_dq_kernel(T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta, struct mask m, int H, int D,
                      float scale)
{
	int i = (int)(blockIdx.x * WARPS + threadIdx.x / WARP), h = (int)blockIdx.y, b = (int)blockIdx.z;
	if (i >= m.S)
		return;
	struct rows r = rows_of(D);
	struct head t = head_of(qkv, m, H, D, b, h);
	struct keys k = keys_of(m, i);
	int n = k.text + k.to - k.from, at = state_at(m, i);
	size_t stat = ((size_t)b * H + h) * m.S + at;
	float sum[EACH] = {};
	load_row(r.a, t.q + at * t.in, D);
	load_row(r.b, dy + ((size_t)b * m.S + at) * t.out + (size_t)h * D, D);
	__syncwarp();
	for (int n0 = 0; n0 < n; n0 += WARP) {
		int j = key_at(m, k, i, n0 + lane_id());
		float ds = 0;
		if (j >= 0) {
			size_t from = state_at(m, j) * t.in;
			float p = expf(scale * dot(r.a, t.k + from, D) - lse[stat]);
			ds = p * (dot(r.b, t.v + from, D) - delta[stat]);
		}
		r.p[lane_id()] = ds;
		r.s[lane_id()] = (float)j;
		__syncwarp();
		add_rows(sum, r.p, D, row_at{t.k, t.in, &m, r.s});
		__syncwarp();
	}
	store_row(dqkv + (t.q - qkv) + at * t.in, sum, D, scale);
}

KERNEL attn_dkv_kernel(T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta, struct mask m, int H, int D,
                       float scale)
{
	int j = (int)(blockIdx.x * WARPS + threadIdx.x / WARP), h = (int)blockIdx.y, b = (int)blockIdx.z;
	if (j >= m.S)
		return;
	struct rows r = rows_of(D);
	struct head t = head_of(qkv, m, H, D, b, h);
	int at = state_at(m, j), last = last_query(m, j);
	const T *g = dy + (size_t)b * m.S * t.out + (size_t)h * D;
	const float *l = lse + ((size_t)b * H + h) * m.S, *mean = delta + ((size_t)b * H + h) * m.S;
	float dk[EACH] = {}, dv[EACH] = {};
	load_row(r.a, t.k + at * t.in, D);
	load_row(r.b, t.v + at * t.in, D);
	/* Lanes note their p, then their ds: places are counted from i0, so no list of them is needed. */
	for (int i0 = m.kind == ATTN_FULL ? 0 : j; i0 <= last; i0 += WARP) {
		int i = i0 + lane_id();
		bool seen = i <= last && !(m.kind == ATTN_CONV && j >= m.text && !conv_tap(m, i - j));
		float p = 0, ds = 0;
		__syncwarp();
		if (seen) {
			int from = state_at(m, i);
			p = expf(scale * dot(r.a, t.q + from * t.in, D) - l[from]);
			ds = p * (dot(r.b, g + from * t.out, D) - mean[from]);
		}
		r.p[lane_id()] = p;
		r.s[lane_id()] = ds;
		__syncwarp();
		for (int k = 0; k < WARP && i0 + k <= last; k++) {
			size_t from = state_at(m, i0 + k);
			float wp = r.p[k], ws = r.s[k];
#pragma unroll
			for (int e = 0; e < EACH; e++)
				if (e * WARP + lane_id() < D) {
					dv[e] += wp * to_f(g[from * t.out + e * WARP + lane_id()]);
					dk[e] += ws * to_f(t.q[from * t.in + e * WARP + lane_id()]);
				}
		}
	}
	store_row(dqkv + (t.k - qkv) + at * t.in, dk, D, scale);
	store_row(dqkv + (t.v - qkv) + at * t.in, dv, D, 1);
}

void attn_bwd(struct dev *d, void *dqkv, const void *dy, const void *qkv, const void *y, const float *lse, int B, int H,
	      int D, const struct attn_mask *am)
{
	struct mask m = mask_of(am);
	if (!dqkv || !width_fits(d, D))
		return;
	float *delta = (float *)cuda_scratch(d, (size_t)B * H * m.S * sizeof *delta), scale = 1.0f / sqrtf((float)D);
	dim3 grid = warp_grid(m.S, H, B), block(WARPS * WARP);
	if (!delta)
		return;
	attn_delta(d, delta, dy, y, B, m.S, H, D);
	if (flash_bwd(d, dqkv, dy, qkv, lse, delta, B, H, D, &m))
		return;
	launch(d, attn_dq_kernel, grid, block, rows_bytes(D), (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, m, H, D, scale);
	launch(d, attn_dkv_kernel, grid, block, rows_bytes(D), (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, m, H, D,
	       scale);
}
}
