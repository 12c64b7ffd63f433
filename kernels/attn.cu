/* attn.cu - attn.c on a GPU: attention with the paper's masks, forward, backward and one step of decoding.
 * The kernels here work for every type and head width, a warp for each query or key; 16-bit types with common
 * widths go to the tensor cores instead (flash.cu, flash-bwd.cu).  All sums run in a fixed order. */
#include "attn.cuh"

#include "flash.cuh"

namespace FOR_TYPE {

enum { WARPS = 4, D_MAX = 256, EACH = D_MAX / WARP /* columns of a row that a lane holds */ };

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

DEVICE int lane_id()
{
	return (int)(threadIdx.x % WARP);
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

static bool width_fits(struct dev *d, int D)
{
	if (D > D_MAX)
		cuda_fail(d, "heads of width %d, expected at most %d", D, D_MAX);
	return D <= D_MAX;
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

/* ---- one step of decoding: a block for each head of each sequence ---- */

/* Image states that state `pos` may see, in order: first + n * step, n < count (CONV: of these the taps). */
struct reach {
	int first, step, count;
};

DEVICE struct reach reach_of(const struct mask &m, int pos)
{
	if (m.kind == ATTN_COLUMN)
		return reach{pos % m.W, m.W, pos / m.W + 1};
	int far = m.kind == ATTN_ROW ? m.W : m.kind == ATTN_CONV ? m.reach - 1 : pos, first = max(pos - far, 0);
	return reach{first, 1, pos - first + 1};
}

/* Where the keys of one head lie, and the values H * D elements after each. */
struct kept {
	const T *text, *image; /* of the caption, of the ring */
	size_t stride;
	int n_text, window;
	struct reach reach;
};

/* Key number n; NULL: the mask leaves it out. */
DEVICE const T *kept_key(const struct mask &m, const struct kept &k, int pos, int n)
{
	if (n < k.n_text)
		return k.text + n * k.stride;
	int p = k.reach.first + (n - k.n_text) * k.reach.step;
	if (m.kind == ATTN_CONV && !conv_tap(m, pos - p))
		return NULL;
	return k.image + p % k.window * k.stride;
}

/* How the lanes of a warp share keys: `groups` keys at a time, `lanes` to each, N elements of 16 bytes (or 1 where rows
 * are not made of those) a lane and turn. */
struct sharing {
	int lanes, groups, group, lane;
};

template <int N> DEVICE struct sharing sharing_of(int D)
{
	int lanes = 1;
	while (lanes < WARP && lanes * N < D)
		lanes *= 2;
	return sharing{lanes, WARP / lanes, lane_id() / lanes, lane_id() % lanes};
}

/* score[e] = query . key e for all keys of the block; -infinity where the mask leaves one out. */
template <int N>
DEVICE void step_scores(float *score, const float *query, const struct mask &m, const struct kept &k, int at, int n, int D)
{
	struct sharing by = sharing_of<N>(D);
	for (int e0 = (int)threadIdx.x / WARP * by.groups; e0 < n; e0 += WARPS * by.groups) {
		int e = e0 + by.group;
		const T *x = e < n ? kept_key(m, k, at, e) : NULL;
		float s = 0, v[N];
		for (int c = by.lane * N; x && c < D; c += by.lanes * N) {
			load<N>(v, x + c);
#pragma unroll
			for (int i = 0; i < N; i++)
				s += query[c + i] * v[i];
		}
		for (int o = by.lanes / 2; o; o /= 2)
			s += __shfl_xor_sync(ALL_LANES, s, o);
		if (e < n && by.lane == 0)
			score[e] = x ? s : -INFINITY;
	}
}

/* sums[D] of the warp = the values weighed by score, `part` elements after the keys. */
template <int N>
DEVICE void step_values(float *sums, const float *score, const struct mask &m, const struct kept &k, size_t part,
			int at, int n, int D)
{
	enum { TURNS = 8 / N };
	struct sharing by = sharing_of<N>(D);
	float sum[TURNS][N] = {}, v[N];
	for (int e = (int)threadIdx.x / WARP * by.groups + by.group; e < n; e += WARPS * by.groups) {
		const T *x = kept_key(m, k, at, e);
#pragma unroll
		for (int t = 0; t < TURNS; t++) {
			int c = (t * by.lanes + by.lane) * N;
			if (!x || c >= D)
				continue;
			load<N>(v, x + part + c);
#pragma unroll
			for (int i = 0; i < N; i++)
				sum[t][i] += score[e] * v[i];
		}
	}
#pragma unroll
	for (int t = 0; t < TURNS; t++)
#pragma unroll
		for (int i = 0; i < N; i++) {
			for (int o = by.lanes; o < WARP; o *= 2)
				sum[t][i] += __shfl_xor_sync(ALL_LANES, sum[t][i], o);
			int c = (t * by.lanes + by.lane) * N + i;
			if (by.group == 0 && c < D)
				sums[c] = sum[t][i];
		}
}

template <int N>
KERNEL attn_step_kernel(T *y, const T *text, T *image, int window, const T *qkv, const int32_t *context, const int32_t *slot,
                        const int32_t *pos, struct mask m, int n_text, int H, int D, float scale)
{
	int h = (int)blockIdx.x % H, b = (int)blockIdx.x / H, at = pos[b];
	size_t part = (size_t)H * D;
	const T *q = qkv + (size_t)b * 3 * part + (size_t)h * D;
	T *out = y + (size_t)b * part + (size_t)h * D;
	if (at < 0) {
		for (int c = (int)threadIdx.x; c < D; c += WARPS * WARP)
			out[c] = make<T>(0);
		return;
	}
	T *ring = image + (size_t)slot[b] * window * 2 * part + (size_t)h * D;
	struct kept k = {text + (size_t)context[b] * n_text * 2 * part + (size_t)h * D, ring, 2 * part, n_text, window,
	                 reach_of(m, at)};
	float *query = (float *)SHARED, *room = query + D, *sums = room + WARPS, *score = sums + WARPS * D;
	int n = n_text + k.reach.count;
	for (int c = (int)threadIdx.x; c < D; c += WARPS * WARP) {
		ring[at % window * k.stride + c] = q[part + c];
		ring[at % window * k.stride + part + c] = q[2 * part + c];
		query[c] = scale * to_f(q[c]);
	}
	__syncthreads();
	step_scores<N>(score, query, m, k, at, n, D);
	__syncthreads();
	float top = -INFINITY, total = 0;
	for (int e = (int)threadIdx.x; e < n; e += WARPS * WARP)
		top = fmaxf(top, score[e]);
	top = block_max(top, room);
	for (int e = (int)threadIdx.x; e < n; e += WARPS * WARP) {
		score[e] = expf(score[e] - top);
		total += score[e];
	}
	total = block_sum(total, room); /* its barriers also make the scores known to all */
	step_values<N>(sums + threadIdx.x / WARP * D, score, m, k, part, at, n, D);
	__syncthreads();
	for (int c = (int)threadIdx.x; c < D; c += WARPS * WARP) {
		float s = 0;
		for (int w = 0; w < WARPS; w++)
			s += sums[w * D + c];
		out[c] = make<T>(s / total);
	}
}

void attn_step(struct dev *d, void *y, const struct attn_cache *c, const void *qkv, const int32_t *context,
               const int32_t *slot, const int32_t *pos, int B, int H, int D, const struct attn_mask *am)
{
	struct mask m = mask_of(am);
	int most = am->n_text + am->grid_w * am->grid_h;
	size_t shared = ((size_t)D * (WARPS + 1) + WARPS + most) * sizeof(float);
	if (!width_fits(d, D))
		return;
	if (shared > d->shared_max) {
		cuda_fail(d, "%d states, more than shared memory holds", most);
		return;
	}
	enum { CHUNK = 16 / (int)sizeof(T) };
	bool chunks = D % CHUNK == 0 && aligned(c->text, 16) && aligned(c->image, 16);
	launch(d, chunks ? attn_step_kernel<CHUNK> : attn_step_kernel<1>, dim3((unsigned)H * (unsigned)B),
	       dim3(WARPS * WARP), shared, (T *)y, (const T *)c->text, (T *)c->image, c->window, (const T *)qkv,
	       context, slot, pos, m, am->n_text, H, D, 1.0f / sqrtf((float)D));
}
}
