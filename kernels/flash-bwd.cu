/* flash-bwd.cu - the gradients of attention on tensor cores, in one walk: five products of tiles, as many as there must be.
 *
 * A block takes whole heads, one after the other.  Tile by tile of keys, dk and dv stay in registers while it walks
 * over the queries that see the tile; what each visit adds to a tile of dq lies in device memory between the visits, in
 * the order in which the threads hold it, so that every thread reads just what it has written itself: no atomics, no
 * barriers, every sum in one order.  As there are only as many blocks as run at once, and each uses its piece of that
 * memory again for the next head, it stays in the second-level cache. */
#include "flash-tiles.cuh"

namespace FOR_TYPE {

/* WARPS warps of 16 keys each; tiles of QUERIES, whose dq is shared out among the warps by strips of 16 and then by
 * columns of the head. */
template <int DP_, int WARPS_, int QUERIES_> struct shape {
	enum {
		DP = DP_, WARPS = WARPS_, QUERIES = QUERIES_, THREADS = WARPS * WARP, KEYS = 16 * WARPS,
		STRIPS = QUERIES / 16, COLUMNS = DP / (WARPS / STRIPS), /* of dq, a warp */
		K_SIZE = KEYS * (DP + PAD), Q_SIZE = QUERIES * (DP + PAD), G_LINE = QUERIES + PAD, G_SIZE = KEYS * G_LINE,
		BLOCKS = 8 / WARPS, /* at once on a multiprocessor */
	};
	static_assert(QUERIES <= THREADS && WARPS % STRIPS == 0 && COLUMNS % 16 == 0, "dq does not share out");
};

/* In shared memory; turn 0 and 1 hold this tile of queries and the next one. */
template <class S> DEVICE T *keys_at() /* [KEYS][DP + PAD] */
{
	return (T *)SHARED;
}

template <class S> DEVICE T *values_at()
{
	return keys_at<S>() + S::K_SIZE;
}

template <class S> DEVICE T *queries_at(int turn) /* [QUERIES][DP + PAD] */
{
	return values_at<S>() + S::K_SIZE + turn * S::Q_SIZE;
}

template <class S> DEVICE T *dy_at(int turn)
{
	return queries_at<S>(2 + turn);
}

template <class S> DEVICE T *gradients_at() /* of the scores, [KEYS][QUERIES + PAD] */
{
	return queries_at<S>(4);
}

template <class S> DEVICE float *statistics_at(int turn) /* [2][QUERIES]: log2 of the sum of exponentials, delta */
{
	return (float *)(gradients_at<S>() + S::G_SIZE) + turn * 2 * S::QUERIES;
}

template <class S> static size_t room_bytes()
{
	return (2 * S::K_SIZE + 4 * S::Q_SIZE + S::G_SIZE) * sizeof(T) + 4 * S::QUERIES * sizeof(float);
}

/* The tiles of queries, first .. last, that see some of the keys key0 .. end - 1. */
template <class S> DEVICE void query_tiles(const struct mask &m, int key0, int end, int &first, int &last)
{
	int text = (m.text + S::QUERIES - 1) / S::QUERIES;
	if (m.kind == ATTN_FULL) {
		first = 0, last = text - 1;
	} else if (key0 < m.text) {
		first = key0 / S::QUERIES, last = tile_count(m, S::QUERIES) - 1;
	} else {
		first = text + (key0 - m.text) / S::QUERIES, last = text + (last_query(m, end - 1) - m.text) / S::QUERIES;
	}
}

/* Statistics of one query, by the first threads of the block. */
struct statistics {
	float lse2, delta;
};

template <class S>
DEVICE struct statistics statistics_of(const float *lse, const float *delta, const struct mask &m, int i, int end)
{
	if (threadIdx.x >= S::QUERIES || i >= end)
		return statistics{0, 0};
	int at = state_at(m, i);
	return statistics{lse[at] * LOG2E, delta[at]};
}

template <class S> DEVICE void put_statistics(float *stat, struct statistics s)
{
	if (threadIdx.x < S::QUERIES) {
		stat[threadIdx.x] = s.lse2;
		stat[S::QUERIES + threadIdx.x] = s.delta;
	}
}

/* For the warp's 16 keys from k0 on and the queries i0 .. to - 1: scores s become p, and g = v . dy the gradient
 * of the scores, p (g - delta); both 0 where a query does not see the key, which MASKED looks at.
 * Without branches, which the compiler would multiply with each other when it unrolls this. */
template <class S, bool MASKED, bool GAPS>
DEVICE void gradient_tile(float s[S::QUERIES / 8][4], float g[S::QUERIES / 8][4], const float *stat, const struct mask &m,
                          int k0, int keys, int i0, int to, float scale2)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int key = k0 + lane_row(r);
		struct span seen = queries_seeing(m, key, keys, to);
#pragma unroll
		for (int j = 0; j < S::QUERIES / 8; j++)
#pragma unroll
			for (int q = 0; q < 2; q++) {
				int column = 8 * j + lane_column(q), i = i0 + column, e = 2 * r + q;
				bool hidden = MASKED && ((i < seen.first) | (i > seen.last) | (GAPS && !conv_tap(m, max(i - key, 0))));
				float p = fast_exp2(s[j][e] * scale2 - stat[column]), ds = p * (g[j][e] - stat[S::QUERIES + column]);
				s[j][e] = hidden ? 0 : p;
				g[j][e] = hidden ? 0 : ds;
			}
	}
}

/* The warp's rows of a tile of gradients into shared memory, for the product with all keys. */
template <class S> DEVICE void put_gradients(T *ds, int row0, const uint32_t f[S::QUERIES / 16][4])
{
#pragma unroll
	for (int k = 0; k < S::QUERIES / 16; k++)
#pragma unroll
		for (int e = 0; e < 4; e++)
			*(uint32_t *)(ds + (row0 + lane_row(e % 2)) * S::G_LINE + 16 * k + 8 * (e / 2) + lane_column(0)) = f[k][e];
}

/* dk and dv of the warp's 16 keys += what the queries of one tile give; their gradients into shared memory. */
template <class S>
DEVICE void take_queries(float dk[1][S::DP / 8][4], float dv[1][S::DP / 8][4], int turn,
                         const struct mask &m, int key0, int keys, int i0, int to, float scale2)
{
	int row = (int)threadIdx.x / WARP * 16, k0 = key0 + row, k1 = min(k0 + 16, keys) - 1;
	float s[1][S::QUERIES / 8][4], g[1][S::QUERIES / 8][4];
	uint32_t f[1][S::QUERIES / 16][4] = {};
	enum seen seen = k0 < keys ? tile_seen(m, i0, to - 1, k0, k1) : SEEN_NONE;
	if (seen == SEEN_NONE) {
		put_gradients<S>(gradients_at<S>(), row, f[0]);
		return;
	}
	scores<S::DP, S::QUERIES, 1>(s, keys_at<S>(), row, queries_at<S>(turn));
	scores<S::DP, S::QUERIES, 1>(g, values_at<S>(), row, dy_at<S>(turn));
	if (seen == SEEN_ALL && k1 - k0 == 15 && to - i0 == S::QUERIES)
		gradient_tile<S, false, false>(s[0], g[0], statistics_at<S>(turn), m, k0, keys, i0, to, scale2);
	else if (has_gaps(m, k0))
		gradient_tile<S, true, true>(s[0], g[0], statistics_at<S>(turn), m, k0, keys, i0, to, scale2);
	else
		gradient_tile<S, true, false>(s[0], g[0], statistics_at<S>(turn), m, k0, keys, i0, to, scale2);
	fragments_of<S::QUERIES>(f[0], s[0]);
	weigh<S::DP, S::QUERIES, 1>(dv, f, dy_at<S>(turn));
	fragments_of<S::QUERIES>(f[0], g[0]);
	put_gradients<S>(gradients_at<S>(), row, f[0]);
	weigh<S::DP, S::QUERIES, 1>(dk, f, queries_at<S>(turn));
}

/* The warp's part of a tile of dq += gradients^T k: strip w % STRIPS, columns from w / STRIPS * COLUMNS on. */
template <class S> DEVICE void add_dq(float dq[S::COLUMNS / 8][4])
{
	int warp = (int)threadIdx.x / WARP, row = warp % S::STRIPS * 16, column = warp / S::STRIPS * S::COLUMNS;
#pragma unroll
	for (int k = 0; k < S::KEYS; k += 16) {
		uint32_t fa[4], fb[4];
		a_transposed<S::G_LINE>(fa, gradients_at<S>(), row, k);
#pragma unroll
		for (int j = 0; j < S::COLUMNS / 16; j++) {
			b_transposed<S::DP + PAD>(fb, keys_at<S>(), k, column + 16 * j);
			mma(dq[2 * j], fa, fb, T());
			mma(dq[2 * j + 1], fa, fb + 2, T());
		}
	}
}

/* Where the thread keeps its part of a tile of dq between the visits: 16 bytes for each fragment. */
template <class S> DEVICE float *kept_dq(float *kept, int tile)
{
	return kept + ((size_t)tile * (S::COLUMNS / 8) * S::THREADS + threadIdx.x) * 4;
}

template <class S> DEVICE void load_dq(float dq[S::COLUMNS / 8][4], const float *kept, bool first)
{
#pragma unroll
	for (int j = 0; j < S::COLUMNS / 8; j++) {
		dq[j][0] = dq[j][1] = dq[j][2] = dq[j][3] = 0;
		if (!first)
			load<4>(dq[j], kept + j * S::THREADS * 4);
	}
}

template <class S> DEVICE void store_dq(float *kept, const float dq[S::COLUMNS / 8][4])
{
#pragma unroll
	for (int j = 0; j < S::COLUMNS / 8; j++)
		store<4>(kept + j * S::THREADS * 4, dq[j]);
}

/* One head. */
struct work {
	struct head t;
	struct rows dy;
	const float *lse, *delta;
	float *kept;
	T *dqkv;
	int D;
	float scale;
};

/* The copies of tile n of the queries and of their dy begin; what is told of the tile: its first query and its end. */
template <class S> DEVICE void fetch_queries(const struct work &w, const struct mask &m, int turn, int n, int &i0, int &to)
{
	tile_rows<S::QUERIES>(m, n, i0, to);
	fetch_two<S::QUERIES, S::DP, S::THREADS>(queries_at<S>(turn), w.t.q, dy_at<S>(turn), w.dy, m, i0, to, w.D);
	copies_commit();
}

/* The warp's part of a tile of dq, queries i0 .. to - 1: into the result, or aside for the next visit. */
template <class S>
DEVICE void leave_dq(const struct work &w, const struct mask &m, float *kept, int i0, int to, bool last,
                     const float dq[S::COLUMNS / 8][4])
{
	int warp = (int)threadIdx.x / WARP, column = warp / S::STRIPS * S::COLUMNS;
	const float gain[2] = {w.scale, w.scale};
	if (last)
		store_rows<S::COLUMNS>(w.dqkv + column, w.t.q.stride, m, i0 + warp % S::STRIPS * 16, to, w.D - column, dq, gain);
	else
		store_dq<S>(kept, dq);
}

/* The walk of one tile of keys over the queries that see it. */
template <class S> DEVICE void key_tile(const struct work &w, const struct mask &m, int tile, bool last_tile)
{
	int key0, keys, first, last, i0, to, next, end, row = (int)threadIdx.x / WARP * 16;
	float dk[1][S::DP / 8][4] = {}, dv[1][S::DP / 8][4] = {}, dq[S::COLUMNS / 8][4];
	const float gain[2] = {w.scale, w.scale}, one[2] = {1, 1};
	tile_rows<S::KEYS>(m, tile, key0, keys);
	query_tiles<S>(m, key0, keys, first, last);
	__syncthreads(); /* all have done with the tile of keys before */
	fetch_two<S::KEYS, S::DP, S::THREADS>(keys_at<S>(), w.t.k, values_at<S>(), w.t.v, m, key0, keys, w.D);
	fetch_queries<S>(w, m, 0, first, next, end);
	struct statistics stat = statistics_of<S>(w.lse, w.delta, m, next + (int)threadIdx.x, end);
	for (int n = first, turn = 0; n <= last; n++, turn ^= 1) {
		float *kept = kept_dq<S>(w.kept, n);
		put_statistics<S>(statistics_at<S>(turn), stat);
		copies_wait<0>();
		__syncthreads(); /* tile n is there, and all have done with tile n - 1 */
		i0 = next, to = end;
		if (n < last) {
			fetch_queries<S>(w, m, turn ^ 1, n + 1, next, end);
			stat = statistics_of<S>(w.lse, w.delta, m, next + (int)threadIdx.x, end);
		}
		take_queries<S>(dk, dv, turn, m, key0, keys, i0, to, w.scale * LOG2E);
		load_dq<S>(dq, kept, tile == 0); /* every query sees some key of the first tile */
		__syncthreads();                 /* the gradients are there */
		add_dq<S>(dq);
		/* No key after the query's own, which lies in this tile; or every query sees the last. */
		leave_dq<S>(w, m, kept, i0, to, m.kind == ATTN_FULL ? last_tile : i0 >= key0 && i0 < keys, dq);
	}
	store_rows<S::DP>(w.dqkv + (w.t.k.p - w.t.q.p), w.t.k.stride, m, key0 + row, keys, w.D, dk[0], gain);
	store_rows<S::DP>(w.dqkv + (w.t.v.p - w.t.q.p), w.t.v.stride, m, key0 + row, keys, w.D, dv[0], one);
}

/* kept[gridDim.x, tiles of queries, QUERIES * DP] */
template <class S>
KERNEL __launch_bounds__(S::THREADS, S::BLOCKS)
flash_bwd_kernel(T *dqkv, float *kept, const T *dy, const T *qkv, const float *lse, const float *delta, struct mask m,
                 int heads, int H, int D, float scale)
{
	int key_tiles = tile_count(m, S::KEYS);
	kept += (size_t)blockIdx.x * tile_count(m, S::QUERIES) * S::QUERIES * S::DP;
	for (int n = (int)blockIdx.x; n < heads; n += (int)gridDim.x) {
		struct head t = head_of(qkv, m, H, D, n % H, n / H);
		size_t stat = (size_t)n * m.S;
		struct work w = {t, {dy + t.y, t.y_stride}, lse + stat, delta + stat, kept, dqkv + (t.q.p - qkv), D, scale};
		for (int k = 0; k < key_tiles; k++)
			key_tile<S>(w, m, k, k == key_tiles - 1);
	}
}

template <class S>
static bool bwd_run(struct dev *d, T *dqkv, const T *dy, const T *qkv, const float *lse, const float *delta, int B, int H,
                    int D, const struct mask *m)
{
	int heads = B * H, most = d->sms * S::BLOCKS, blocks = heads < most ? heads : most;
	size_t piece = (size_t)tile_count(*m, S::QUERIES) * S::QUERIES * S::DP;
	if (!suits(d, H, D, m, room_bytes<S>()))
		return false;
	float *kept = (float *)cuda_scratch(d, blocks * piece * sizeof *kept);
	if (kept)
		launch(d, flash_bwd_kernel<S>, dim3((unsigned)blocks), dim3(S::THREADS), room_bytes<S>(), dqkv, kept, dy, qkv, lse,
		       delta, *m, heads, H, D, 1.0f / sqrtf((float)D));
	return true;
}

bool flash_bwd(struct dev *d, void *dqkv, const void *dy, const void *qkv, const float *lse, const float *delta, int B,
	       int H, int D, const struct mask *m)
{
	if (!aligned(dqkv, 16) || !aligned(dy, 16) || !aligned(qkv, 16) || m->text == 0)
		return false;
	if (D <= 64)
		return bwd_run<struct shape<64, 8, 64>>(d, (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, B, H, D, m);
	return bwd_run<struct shape<128, 4, 32>>(d, (T *)dqkv, (const T *)dy, (const T *)qkv, lse, delta, B, H, D, m);
}
}
