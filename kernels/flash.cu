/* flash.cu - attention on tensor cores, forward: scores exist only as tiles in registers, tiles of keys that the mask
 * hides from all queries of a warp are not computed, statistics are f32.
 *
 * Four warps a block, with MT strips of 16 queries each, walk over the keys; with two strips each fragment of keys and
 * values that is read from shared memory serves two products. */
#include "flash-tiles.cuh"

namespace FOR_TYPE {

enum { WARPS = 4, THREADS = WARPS * WARP, KEYS = 64 /* of a tile */ };

/* The walk over the keys of a tile of queries: [0, text) and then [image, end). */
struct walk {
	int text, image, end;
};

DEVICE struct walk walk_of(const struct mask &m, int row0, int to)
{
	if (m.kind == ATTN_FULL)
		return walk{m.S, m.S, m.S};
	if (row0 < m.text)
		return walk{to, to, to};
	return walk{m.text, first_image_key(m, row0), to};
}

DEVICE int walk_tiles(const struct walk &w)
{
	return (w.text + KEYS - 1) / KEYS + (w.end - w.image + KEYS - 1) / KEYS;
}

DEVICE void walk_tile(const struct walk &w, int n, int &from, int &to)
{
	int text = (w.text + KEYS - 1) / KEYS;
	from = n < text ? n * KEYS : w.image + (n - text) * KEYS;
	to = min(from + KEYS, n < text ? w.text : w.end);
}

/* Scores of keys that a query does not see become -infinity; row0: the strip's first query.  Without branches, which the
 * compiler would multiply with each other when it unrolls this. */
template <bool GAPS>
DEVICE void mask_strip(float s[KEYS / 8][4], const struct mask &m, int row0, int from, int to)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int i = row0 + lane_row(r);
		struct span keys = keys_seen(m, i, from, to);
#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
			for (int q = 0; q < 2; q++) {
				int key = from + 8 * j + lane_column(q);
				bool hidden = (key < keys.first) | (key > keys.last) | (GAPS && !conv_tap(m, max(i - key, 0)));
				s[j][2 * r + q] = hidden ? -INFINITY : s[j][2 * r + q];
			}
	}
}

/* One tile of scores of a strip into its running softmax: s becomes exp2, what has been summed so far shrinks by the new
 * maximum.  A lane keeps of its two rows the greatest score, its own part of the sum of exponentials, and of the
 * values weighed by them. */
template <int DP>
DEVICE void softmax_strip(float s[KEYS / 8][4], float sum[DP / 8][4], float top[2], float total[2], float scale)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		float high = top[r];
#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
			high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
		high = row_max(high);
		/* Nothing seen yet: exponents of -infinity, not of NaN. */
		float base = high == -INFINITY ? 0 : high * scale, shrink = fast_exp2(top[r] * scale - base), part = 0;
#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
			for (int q = 0; q < 2; q++) {
				s[j][2 * r + q] = fast_exp2(s[j][2 * r + q] * scale - base);
				part += s[j][2 * r + q];
			}
		top[r] = high;
		total[r] = total[r] * shrink + part;
#pragma unroll
		for (int j = 0; j < DP / 8; j++) {
			sum[j][2 * r] *= shrink;
			sum[j][2 * r + 1] *= shrink;
		}
	}
}

/* What the queries row0 .. of a warp, below `end`, take from a tile of keys from .. to - 1. */
template <int DP, int MT>
DEVICE void take_tile(float sum[MT][DP / 8][4], float top[MT][2], float total[MT][2], const T *q, const T *k, const T *v,
                      const struct mask &m, int row0, int end, int from, int to, float scale)
{
	enum seen seen = row0 < end ? tile_seen(m, row0, min(row0 + 16 * MT, end) - 1, from, to - 1) : SEEN_NONE;
	float s[MT][KEYS / 8][4];
	uint32_t p[MT][KEYS / 16][4];
	if (seen == SEEN_NONE)
		return;
	scores<DP, KEYS, MT>(s, q, (int)threadIdx.x / WARP * 16 * MT, k);
#pragma unroll
	for (int i = 0; i < MT; i++) {
		if (has_gaps(m, from))
			mask_strip<true>(s[i], m, row0 + 16 * i, from, to);
		else if (seen == SEEN_SOME || to - from < KEYS)
			mask_strip<false>(s[i], m, row0 + 16 * i, from, to);
		softmax_strip<DP>(s[i], sum[i], top[i], total[i], scale);
		fragments_of<KEYS>(p[i], s[i]);
	}
	weigh<DP, KEYS, MT>(sum, p, v);
}

/* y and lse of a strip. */
template <int DP>
DEVICE void finish_strip(T *y, float *lse, const struct head &t, const struct mask &m, int row0, int end, int D,
                         const float sum[DP / 8][4], const float top[2], float total[2], float scale)
{
	float gain[2];
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int i = row0 + lane_row(r);
		total[r] = row_sum(total[r]);
		gain[r] = 1.0f / total[r];
		if (i < end && threadIdx.x % 4 == 0)
			lse[state_at(m, i)] = top[r] * scale + logf(total[r]);
	}
	store_rows<DP>(y + t.y, t.y_stride, m, row0, end, D, sum, gain);
}

template <int DP, int MT>
KERNEL __launch_bounds__(THREADS) flash_fwd_kernel(T *y, float *lse, const T *qkv, struct mask m, int H, int D, float scale)
{
	enum { ROWS = 16 * MT * WARPS, SIZE = KEYS * (DP + PAD) };
	T *qs = (T *)SHARED, *ks = qs + ROWS * (DP + PAD), *vs = ks + 2 * SIZE;
	struct head t = head_of(qkv, m, H, D, (int)blockIdx.y, (int)blockIdx.z);
	int row0, end, from, to, warp0;
	tile_rows<ROWS>(m, (int)(gridDim.x - 1 - blockIdx.x), row0, end); /* the longest walks first */
	struct walk w = walk_of(m, row0, end);
	int tiles = walk_tiles(w);
	float sum[MT][DP / 8][4] = {}, top[MT][2], total[MT][2] = {};
#pragma unroll
	for (int i = 0; i < MT; i++)
		top[i][0] = top[i][1] = -INFINITY;
	warp0 = row0 + (int)threadIdx.x / WARP * 16 * MT;
	fetch<ROWS, DP, THREADS>(qs, t.q, m, row0, end, D);
	walk_tile(w, 0, from, to);
	fetch_two<KEYS, DP, THREADS>(ks, t.k, vs, t.v, m, from, to, D);
	copies_commit();
	for (int n = 0; n < tiles; n++) {
		int here = n % 2 * SIZE, next = SIZE - here;
		copies_wait<0>();
		__syncthreads(); /* tile n is there, and all have done with tile n - 1 */
		if (n + 1 < tiles) {
			walk_tile(w, n + 1, from, to);
			fetch_two<KEYS, DP, THREADS>(ks + next, t.k, vs + next, t.v, m, from, to, D);
			copies_commit();
		}
		walk_tile(w, n, from, to);
		take_tile<DP, MT>(sum, top, total, qs, ks + here, vs + here, m, warp0, end, from, to, scale * LOG2E);
	}
	lse += ((size_t)blockIdx.z * H + blockIdx.y) * m.S;
#pragma unroll
	for (int i = 0; i < MT; i++)
		finish_strip<DP>(y, lse, t, m, warp0 + 16 * i, end, D, sum[i], top[i], total[i], scale);
}

template <int DP, int MT>
static bool fwd_run(struct dev *d, T *y, float *lse, const T *qkv, int B, int H, int D, const struct mask *m)
{
	enum { ROWS = 16 * MT * WARPS };
	size_t shared = (ROWS + 4 * KEYS) * (DP + PAD) * sizeof(T);
	dim3 grid((unsigned)tile_count(*m, ROWS), (unsigned)H, (unsigned)B);
	if (!suits(d, H, D, m, shared))
		return false;
	launch(d, flash_fwd_kernel<DP, MT>, grid, dim3(THREADS), shared, y, lse, qkv, *m, H, D, 1.0f / sqrtf((float)D));
	return true;
}

bool flash_fwd(struct dev *d, void *y, float *lse, const void *qkv, int B, int H, int D, const struct mask *m)
{
	if (!aligned(y, 16) || !aligned(qkv, 16))
		return false;
	if (D <= 64)
		return fwd_run<64, 2>(d, (T *)y, lse, (const T *)qkv, B, H, D, m);
	return fwd_run<128, 1>(d, (T *)y, lse, (const T *)qkv, B, H, D, m);
}
}
