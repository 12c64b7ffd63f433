/* flash.cu - attention on tensor cores: scores exist only as tiles of 64 x 64 in registers, tiles of keys that the
 * mask hides from all queries of a tile are not visited, statistics are f32.
 *
 * Four warps a block.  The forward and dq take 64 queries (16 a warp) and walk over the keys; dk and dv take 64 keys
 * and walk over the queries.  Two walks cost 7 products of tiles where one with sums in memory would cost 5, but every
 * sum has one order, and nothing is added by atomics.  DP is the head's width padded with zeros. */
#include "flash.cuh"
#include "mma.cuh"

namespace FOR_TYPE {

enum { TILE = 64, WARPS = 4, THREADS = WARPS * WARP, PAD = 8, CHUNK = 8 };
enum { FWD_TILES = 5, BWD_TILES = 6 }; /* in shared memory: of the queries, and two of keys and values each */

/* ---- tiles in shared memory: [ROWS][DP + PAD] ---- */

/* The rows of places from .. of one head, x[state * stride + c]; places from `to` on are zeros. */
template <int ROWS, int DP>
DEVICE void fetch(T *tile, const T *x, size_t stride, const struct mask &m, int from, int to, int D)
{
	for (int c = (int)threadIdx.x; c < ROWS * (DP / CHUNK); c += THREADS) {
		int row = c / (DP / CHUNK), column = c % (DP / CHUNK) * CHUNK, i = from + row;
		bool there = i < to && column < D;
		copy16(tile + row * (DP + PAD) + column, there ? x + state_at(m, i) * stride + column : x, !there);
	}
}

/* a fragment: rows row0 .. row0 + 15, columns k0 .. k0 + 15 of the tile. */
template <int DP> DEVICE void a_of(uint32_t r[4], const T *tile, int row0, int k0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices(r, tile + (row0 + lane % 8 + lane / 8 % 2 * 8) * (DP + PAD) + k0 + lane / 16 * 8);
}

/* Two b fragments: the tile's rows n0 .. n0 + 15 are the product's columns, its columns the summed index. */
template <int DP> DEVICE void b_of(uint32_t r[4], const T *tile, int n0, int k0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices(r, tile + (n0 + lane % 8 + lane / 16 * 8) * (DP + PAD) + k0 + lane / 8 % 2 * 8);
}

/* The same with the tile's rows as the summed index and its columns as the product's. */
template <int DP> DEVICE void b_transposed(uint32_t r[4], const T *tile, int k0, int n0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices_transposed(r, tile + (k0 + lane % 8 + lane / 8 % 2 * 8) * (DP + PAD) + n0 + lane / 16 * 8);
}

/* s[16, COLUMNS] = rows row0.. of a times the rows of b, over DP. */
template <int DP, int COLUMNS> DEVICE void scores(float s[COLUMNS / 8][4], const T *a, int row0, const T *b)
{
#pragma unroll
	for (int j = 0; j < COLUMNS / 8; j++)
		s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
	for (int k = 0; k < DP; k += 16) {
		uint32_t fa[4], fb[4];
		a_of<DP>(fa, a, row0, k);
#pragma unroll
		for (int j = 0; j < COLUMNS / 16; j++) {
			b_of<DP>(fb, b, 16 * j, k);
			mma(s[2 * j], fa, fb, T());
			mma(s[2 * j + 1], fa, fb + 2, T());
		}
	}
}

/* sum[16, DP] += p[16, ROWS] times the tile b[ROWS, DP]; p is rounded to T. */
template <int DP, int ROWS> DEVICE void weigh(float sum[DP / 8][4], const float p[ROWS / 8][4], const T *b)
{
#pragma unroll
	for (int k = 0; k < ROWS / 16; k++) {
		uint32_t fa[4], fb[4];
		fa[0] = pair_of(p[2 * k][0], p[2 * k][1], T());
		fa[1] = pair_of(p[2 * k][2], p[2 * k][3], T());
		fa[2] = pair_of(p[2 * k + 1][0], p[2 * k + 1][1], T());
		fa[3] = pair_of(p[2 * k + 1][2], p[2 * k + 1][3], T());
#pragma unroll
		for (int j = 0; j < DP / 16; j++) {
			b_transposed<DP>(fb, b, 16 * k, 16 * j);
			mma(sum[2 * j], fa, fb, T());
			mma(sum[2 * j + 1], fa, fb + 2, T());
		}
	}
}

/* Row r of the two that a lane holds of a fragment (r = 0, 1), and column q of the two of its tile j. */
DEVICE int fragment_row(int r)
{
	return (int)(threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4) + 8 * r;
}

DEVICE int fragment_column(int j, int q)
{
	return 8 * j + (int)(threadIdx.x % 4) * 2 + q;
}

/* y[place row0 + ..] = gain[r] * sum, for the block's rows below `to`. */
template <int DP>
DEVICE void store_rows(T *y, size_t stride, const struct mask &m, int row0, int to, int D, const float sum[DP / 8][4],
                       const float gain[2])
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int i = row0 + fragment_row(r);
		if (i >= to)
			continue;
		T *out = y + state_at(m, i) * stride;
#pragma unroll
		for (int j = 0; j < DP / 8; j++)
			if (8 * j < D)
				*(uint32_t *)(out + fragment_column(j, 0)) = pair_of(gain[r] * sum[j][2 * r], gain[r] * sum[j][2 * r + 1], T());
	}
}

/* ---- masks of tiles ---- */

/* Whether query i sees key j; first: the first image key of i, or 0.  Both exist. */
DEVICE bool visible(const struct mask &m, int i, int j, int first)
{
	if (m.kind == ATTN_FULL)
		return true;
	if (j > i)
		return false;
	if (j < m.text)
		return true;
	return j >= first && (m.kind != ATTN_CONV || conv_tap(m, i - j));
}

/* Keys from .. to - 1 of a tile are all seen by queries row0 ..: text before them, or no mask. */
DEVICE bool all_visible(const struct mask &m, int row0, int to)
{
	return m.kind == ATTN_FULL ? to <= m.S : to <= m.text && to <= row0 + 1;
}

/* Tiles of queries do not mix text and image; tile number n of S states begins at row0 and ends before to. */
DEVICE void tile_rows(const struct mask &m, int n, int &row0, int &to)
{
	int text = (m.text + TILE - 1) / TILE;
	row0 = n < text ? n * TILE : m.text + (n - text) * TILE;
	to = min(row0 + TILE, n < text ? m.text : m.S);
}

static unsigned tile_count(const struct mask *m)
{
	return (unsigned)(ceil_div(m->text, TILE) + ceil_div(m->S - m->text, TILE));
}

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
	return (w.text + TILE - 1) / TILE + (w.end - w.image + TILE - 1) / TILE;
}

DEVICE void walk_tile(const struct walk &w, int n, int &from, int &to)
{
	int text = (w.text + TILE - 1) / TILE;
	from = n < text ? n * TILE : w.image + (n - text) * TILE;
	to = min(from + TILE, n < text ? w.text : w.end);
}

/* What is kept of a head's place in memory. */
struct head {
	const T *q, *k, *v;
	size_t in, out; /* elements between states in qkv, in y */
	size_t y;       /* offset in y */
};

DEVICE struct head head_of(const T *qkv, const struct mask &m, int H, int D)
{
	size_t h = blockIdx.y, b = blockIdx.z, part = (size_t)H * D;
	const T *q = qkv + b * m.S * 3 * part + h * D;
	return head{q, q + part, q + 2 * part, 3 * part, part, b * m.S * part + h * D};
}

/* ---- forward ---- */

/* One tile of scores into the running softmax: s becomes exp2, sums shrink by the new maximum. */
template <int DP>
DEVICE void softmax_tile(float s[TILE / 8][4], float sum[DP / 8][4], float top[2], float total[2], float scale)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		float high = top[r];
#pragma unroll
		for (int j = 0; j < TILE / 8; j++)
			high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
		high = row_max(high);
		/* Nothing seen yet: exponents of -infinity, not of NaN. */
		float base = high == -INFINITY ? 0 : high * scale, shrink = fast_exp2(top[r] * scale - base), part = 0;
#pragma unroll
		for (int j = 0; j < TILE / 8; j++)
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

/* Scores of what is not seen become -infinity. */
DEVICE void mask_tile(float s[TILE / 8][4], const struct mask &m, int row0, int from, int to, const int first[2])
{
	if (to - from == TILE && all_visible(m, row0, to))
		return;
#pragma unroll
	for (int j = 0; j < TILE / 8; j++)
#pragma unroll
		for (int e = 0; e < 4; e++) {
			int key = from + fragment_column(j, e % 2);
			if (key >= to || !visible(m, row0 + fragment_row(e / 2), key, first[e / 2]))
				s[j][e] = -INFINITY;
		}
}

template <int DP>
KERNEL __launch_bounds__(THREADS) flash_fwd_kernel(T *y, float *lse, const T *qkv, struct mask m, int H, int D, float scale)
{
	enum { SIZE = TILE * (DP + PAD) };
	T *qs = (T *)SHARED, *ks = qs + SIZE, *vs = ks + 2 * SIZE;
	struct head t = head_of(qkv, m, H, D);
	int row0, end, from, to, first[2];
	tile_rows(m, (int)(gridDim.x - 1 - blockIdx.x), row0, end); /* the longest walks first */
	struct walk w = walk_of(m, row0, end);
	int tiles = walk_tiles(w);
	float sum[DP / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
	for (int r = 0; r < 2; r++)
		first[r] = row0 + fragment_row(r) < m.text ? 0 : first_image_key(m, row0 + fragment_row(r));
	fetch<TILE, DP>(qs, t.q, t.in, m, row0, end, D);
	walk_tile(w, 0, from, to);
	fetch<TILE, DP>(ks, t.k, t.in, m, from, to, D);
	fetch<TILE, DP>(vs, t.v, t.in, m, from, to, D);
	copies_commit();
	for (int n = 0; n < tiles; n++) {
		const T *k = ks + n % 2 * SIZE, *v = vs + n % 2 * SIZE;
		if (n + 1 < tiles) {
			walk_tile(w, n + 1, from, to);
			fetch<TILE, DP>(ks + (n + 1) % 2 * SIZE, t.k, t.in, m, from, to, D);
			fetch<TILE, DP>(vs + (n + 1) % 2 * SIZE, t.v, t.in, m, from, to, D);
		}
		copies_commit();
		copies_wait<1>();
		__syncthreads();
		float s[TILE / 8][4];
		scores<DP, TILE>(s, qs, (int)threadIdx.x / WARP * 16, k);
		walk_tile(w, n, from, to);
		mask_tile(s, m, row0, from, to, first);
		softmax_tile<DP>(s, sum, top, total, scale * LOG2E);
		weigh<DP, TILE>(sum, s, v);
		__syncthreads(); /* the tiles may be overwritten */
	}
	float gain[2];
	for (int r = 0; r < 2; r++) {
		int i = row0 + fragment_row(r);
		total[r] = row_sum(total[r]);
		gain[r] = 1.0f / total[r];
		if (i < end && threadIdx.x % 4 == 0)
			lse[((size_t)blockIdx.z * H + blockIdx.y) * m.S + state_at(m, i)] = top[r] * scale + logf(total[r]);
	}
	store_rows<DP>(y + t.y, t.out, m, row0, end, D, sum, gain);
}

template <int DP> static size_t tiles_bytes(int count)
{
	return (size_t)count * TILE * (DP + PAD) * sizeof(T);
}

/* Whether rows are made of whole chunks, and `tiles` tiles fit into shared memory (of sm_86 and sm_89, five of the wide). */
static bool suits(const struct dev *d, int D, int tiles)
{
	return D % CHUNK == 0 && D <= 128 && (D <= 64 ? tiles_bytes<64>(tiles) : tiles_bytes<128>(tiles)) <= d->shared_max;
}

bool flash_fwd(struct dev *d, void *y, float *lse, const void *qkv, int B, int H, int D, const struct mask *m)
{
	dim3 grid(tile_count(m), (unsigned)H, (unsigned)B), block(THREADS);
	float scale = 1.0f / sqrtf((float)D);
	if (!suits(d, D, FWD_TILES) || !aligned(y, 16) || !aligned(qkv, 16))
		return false;
	if (D <= 64)
		launch(d, flash_fwd_kernel<64>, grid, block, tiles_bytes<64>(FWD_TILES), (T *)y, lse, (const T *)qkv, *m, H, D, scale);
	else
		launch(d, flash_fwd_kernel<128>, grid, block, tiles_bytes<128>(FWD_TILES), (T *)y, lse, (const T *)qkv, *m, H, D, scale);
	return true;
}

/* ---- backward: dq ---- */

/* s = scores, g = dy . v: s becomes the gradient of the scores, p (g - delta). */
DEVICE void gradient_tile(float s[TILE / 8][4], const float g[TILE / 8][4], const float lse2[2], const float delta[2],
                          float scale2)
{
#pragma unroll
	for (int j = 0; j < TILE / 8; j++)
#pragma unroll
		for (int e = 0; e < 4; e++)
			s[j][e] = fast_exp2(s[j][e] * scale2 - lse2[e / 2]) * (g[j][e] - delta[e / 2]);
}

template <int DP>
KERNEL __launch_bounds__(THREADS) flash_dq_kernel(T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta,
                                                  struct mask m, int H, int D, float scale)
{
	enum { SIZE = TILE * (DP + PAD) };
	T *qs = (T *)SHARED, *gs = qs + SIZE, *ks = gs + SIZE, *vs = ks + 2 * SIZE;
	struct head t = head_of(qkv, m, H, D);
	int row0, end, from, to, first[2];
	tile_rows(m, (int)(gridDim.x - 1 - blockIdx.x), row0, end);
	struct walk w = walk_of(m, row0, end);
	int tiles = walk_tiles(w);
	float sum[DP / 8][4] = {}, lse2[2], mean[2];
	for (int r = 0; r < 2; r++) {
		int i = row0 + fragment_row(r), at = state_at(m, min(i, end - 1));
		size_t stat = ((size_t)blockIdx.z * H + blockIdx.y) * m.S + at;
		first[r] = i < m.text ? 0 : first_image_key(m, i);
		lse2[r] = lse[stat] * LOG2E;
		mean[r] = delta[stat];
	}
	fetch<TILE, DP>(qs, t.q, t.in, m, row0, end, D);
	fetch<TILE, DP>(gs, dy + t.y, t.out, m, row0, end, D);
	walk_tile(w, 0, from, to);
	fetch<TILE, DP>(ks, t.k, t.in, m, from, to, D);
	fetch<TILE, DP>(vs, t.v, t.in, m, from, to, D);
	copies_commit();
	for (int n = 0; n < tiles; n++) {
		const T *k = ks + n % 2 * SIZE, *v = vs + n % 2 * SIZE;
		int row = (int)threadIdx.x / WARP * 16;
		if (n + 1 < tiles) {
			walk_tile(w, n + 1, from, to);
			fetch<TILE, DP>(ks + (n + 1) % 2 * SIZE, t.k, t.in, m, from, to, D);
			fetch<TILE, DP>(vs + (n + 1) % 2 * SIZE, t.v, t.in, m, from, to, D);
		}
		copies_commit();
		copies_wait<1>();
		__syncthreads();
		float s[TILE / 8][4], g[TILE / 8][4];
		scores<DP, TILE>(s, qs, row, k);
		walk_tile(w, n, from, to);
		mask_tile(s, m, row0, from, to, first);
		scores<DP, TILE>(g, gs, row, v);
		gradient_tile(s, g, lse2, mean, scale * LOG2E);
		weigh<DP, TILE>(sum, s, k);
		__syncthreads();
	}
	float gain[2] = {scale, scale};
	store_rows<DP>(dqkv + (t.q - qkv), t.in, m, row0, end, D, sum, gain);
}

/* ---- backward: dk and dv, the same with keys as rows and QT queries as columns ---- */

/* p[16 keys, QT queries] = exp of the scores s, 0 where not seen; s becomes the gradient of the scores. */
template <int QT>
DEVICE void gradient_columns(float p[QT / 8][4], float s[QT / 8][4], const float g[QT / 8][4], const struct mask &m,
			     int key0, int keys, int query0, int queries, const float *lse, const float *delta,
			     float scale2)
{
#pragma unroll
	for (int j = 0; j < QT / 8; j++)
#pragma unroll
		for (int e = 0; e < 4; e++) {
			int column = fragment_column(j, e % 2), i = query0 + column, k = key0 + fragment_row(e / 2);
			bool seen = i < queries && k < keys && visible(m, i, k, i < m.text ? 0 : first_image_key(m, i));
			p[j][e] = seen ? fast_exp2(s[j][e] * scale2 - lse[column] * LOG2E) : 0;
			s[j][e] = seen ? p[j][e] * (g[j][e] - delta[column]) : 0;
		}
}

/* Statistics of QT queries into shared memory: lse, then delta. */
template <int QT>
DEVICE void fetch_statistics(float *to, const float *lse, const float *delta, const struct mask &m, int from, int end)
{
	for (int c = (int)threadIdx.x; c < QT; c += THREADS) {
		int at = state_at(m, min(from + c, end - 1));
		to[c] = lse[at];
		to[QT + c] = delta[at];
	}
}

template <int DP, int QT>
KERNEL __launch_bounds__(THREADS) flash_dkv_kernel(T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta,
                                                   struct mask m, int H, int D, float scale)
{
	enum { SIZE = TILE * (DP + PAD), Q_SIZE = QT * (DP + PAD) };
	T *ks = (T *)SHARED, *vs = ks + SIZE, *qs = vs + SIZE, *gs = qs + 2 * Q_SIZE;
	float *stats = (float *)(gs + 2 * Q_SIZE);
	struct head t = head_of(qkv, m, H, D);
	size_t stat = ((size_t)blockIdx.z * H + blockIdx.y) * m.S;
	int key0, end, row = (int)threadIdx.x / WARP * 16;
	tile_rows(m, (int)blockIdx.x, key0, end);
	int i0 = m.kind == ATTN_FULL ? 0 : key0, last = last_query(m, end - 1) + 1, tiles = (last - i0 + QT - 1) / QT;
	float dk[DP / 8][4] = {}, dv[DP / 8][4] = {};
	fetch<TILE, DP>(ks, t.k, t.in, m, key0, end, D);
	fetch<TILE, DP>(vs, t.v, t.in, m, key0, end, D);
	fetch<QT, DP>(qs, t.q, t.in, m, i0, last, D);
	fetch<QT, DP>(gs, dy + t.y, t.out, m, i0, last, D);
	copies_commit();
	for (int n = 0; n < tiles; n++, i0 += QT) {
		const T *q = qs + n % 2 * Q_SIZE, *g = gs + n % 2 * Q_SIZE;
		if (n + 1 < tiles) {
			fetch<QT, DP>(qs + (n + 1) % 2 * Q_SIZE, t.q, t.in, m, i0 + QT, last, D);
			fetch<QT, DP>(gs + (n + 1) % 2 * Q_SIZE, dy + t.y, t.out, m, i0 + QT, last, D);
		}
		copies_commit();
		fetch_statistics<QT>(stats, lse + stat, delta + stat, m, i0, last);
		copies_wait<1>();
		__syncthreads();
		float p[QT / 8][4], s[QT / 8][4], dp[QT / 8][4];
		scores<DP, QT>(s, ks, row, q);
		scores<DP, QT>(dp, vs, row, g);
		gradient_columns<QT>(p, s, dp, m, key0, end, i0, last, stats, stats + QT, scale * LOG2E);
		weigh<DP, QT>(dv, p, g);
		weigh<DP, QT>(dk, s, q);
		__syncthreads();
	}
	float gain[2] = {scale, scale}, one[2] = {1, 1};
	store_rows<DP>(dqkv + (t.k - qkv), t.in, m, key0, end, D, dk, gain);
	store_rows<DP>(dqkv + (t.v - qkv), t.in, m, key0, end, D, dv, one);
}

template <int DP, int QT>
static void bwd_run(struct dev *d, T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta, int B,
		    int H, int D, const struct mask *m)
{
	dim3 grid(tile_count(m), (unsigned)H, (unsigned)B), block(THREADS);
	float scale = 1.0f / sqrtf((float)D);
	size_t columns = 4 * (size_t)QT * (DP + PAD) * sizeof(T) + 2 * QT * sizeof(float);
	launch(d, flash_dq_kernel<DP>, grid, block, tiles_bytes<DP>(BWD_TILES), dqkv, dy, qkv, lse, delta, *m, H, D, scale);
	launch(d, flash_dkv_kernel<DP, QT>, grid, block, tiles_bytes<DP>(2) + columns, dqkv, dy, qkv, lse, delta, *m, H, D, scale);
}

bool flash_bwd(struct dev *d, void *dqkv, const void *dy, const void *qkv, const float *lse, const float *delta, int B,
	       int H, int D, const struct mask *m)
{
	if (!suits(d, D, BWD_TILES) || !aligned(dqkv, 16) || !aligned(dy, 16) || !aligned(qkv, 16))
		return false;
	if (D <= 64)
		bwd_run<64, 64>(d, (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, B, H, D, m);
	else
		bwd_run<128, 32>(d, (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, B, H, D, m);
	return true;
}
}
