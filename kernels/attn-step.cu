/* attn-step.cu - attn-step.c on a GPU: one step of decoding, one query a row against the cached keys and values of its
 * caption and the ring of its image states (attn_step of ops.h).
 *
 * Two kernels.  One, for every type and width, takes one head of one row a block; it is for few rows, where waiting for memory
 * is all there is to shorten: all keys are under way at once, and there is one barrier.  The other, for 16-bit types, takes
 * one head of 16 rows, so that the text that samples share is read once for them, and goes to tensor cores; the image
 * keys are each row's own.
 *
 * Keys are split into shares, by their numbers alone: each has its own largest score, sum of exponentials and sum of values,
 * and shares are added in order.  So a row has the same bits whatever rows are beside it.  Scores are logarithms to base 2. */
#include "attn.cuh"
#include "mma.cuh"

namespace FOR_TYPE {

struct step {
	T *y, *image;
	const T *text, *qkv;
	const int32_t *context, *slot, *pos;
	struct mask m;
	int window, n_text, B, H, D;
	unsigned part, stride; /* H D: elements from a query to its key, from a key to its value; 2 H D: to the next state */
	float scale; /* of scores */
};

DEVICE float power(float x)
{
#if T_IS_F32
	return exp2f(x);
#else
	return fast_exp2(x);
#endif
}

/* What scores are counted from; where nothing was seen, exponents are then of -infinity, not of NaN. */
DEVICE float base_of(float top)
{
	return top == -INFINITY ? 0 : top;
}

/* ---- one head of a row, and its keys by number: the text's, then the image's from the nearest back ---- */

struct row {
	size_t q, text, ring; /* where in qkv and the caches */
	int pos, place;       /* place in the ring of the row's own state */
	int step;             /* from an image key back to the next; for all kinds but CONV */
	int keys;             /* numbers of keys; of CONV some may be of states before the first */
};

DEVICE int taps_across(const struct mask &m)
{
	return min(2 * m.h + 1, m.W);
}

DEVICE int image_keys(const struct mask &m, int pos)
{
	if (m.kind == ATTN_ROW)
		return min(m.W, pos) + 1;
	if (m.kind == ATTN_COLUMN)
		return pos / m.W + 1;
	if (m.kind == ATTN_CONV)
		return m.h * taps_across(m) + (m.centred ? min(m.h + 1, m.W) : taps_across(m));
	return pos + 1;
}

/* Called by whole warps.  Of an idle row only pos is of use. */
DEVICE struct row row_of(const struct step &s, int b, int h)
{
	/* Three lanes, so that the three arrive together: otherwise the other two would be loaded after a look at the first. */
	const int32_t *from = lane_id() == 0 ? s.pos : lane_id() == 1 ? s.slot : s.context;
	int x = from[b], pos = __shfl_sync(ALL_LANES, x, 0), slot = __shfl_sync(ALL_LANES, x, 1);
	int context = __shfl_sync(ALL_LANES, x, 2);
	unsigned at = (unsigned)(h * s.D);
	return row{(size_t)b * 3 * s.part + at, (size_t)context * s.n_text * s.stride + at, (size_t)slot * s.window * s.stride + at,
	           pos, pos % s.window, s.m.kind == ATTN_COLUMN ? s.m.W : 1, s.n_text + image_keys(s.m, pos)};
}

/* How far back image key n is. */
DEVICE int back_of(const struct mask &m, const struct row &r, int n)
{
	if (m.kind != ATTN_CONV)
		return n * r.step;
	int across = taps_across(m), k = n % across;
	return n / across * m.W + (k <= m.h ? k : m.W - across + k);
}

/* Where key number n is: states of the text (with TEXT), then places of the ring.  The row's own state is taken from where it
 * comes from, so that no one waits until it is in the ring. */
enum { OWN = -1, NONE = -2 };

template <bool TEXT> DEVICE int place_of(const struct step &s, const struct row &r, int n)
{
	if (TEXT && n < s.n_text)
		return n;
	int back = n < r.keys ? back_of(s.m, r, n - s.n_text) : INT32_MAX, place = r.place - back;
	if (back > r.pos)
		return NONE;
	return back == 0 ? OWN : (TEXT ? s.n_text : 0) + (place < 0 ? place + s.window : place);
}

/* Where this lane's columns of the keys begin; in bytes, so that a key's address is one product and sum. */
struct places {
	const char *text, *ring, *own;
};

DEVICE struct places places_of(const struct step &s, const struct row &r, int column)
{
	return places{(const char *)(s.text + r.text + column), (const char *)(s.image + r.ring + column),
	              (const char *)(s.qkv + r.q + s.part + column)};
}

/* Of NONE the own one again: what is loaded and not used costs less than zeros. */
template <bool TEXT> DEVICE const T *key_at(const struct step &s, const struct places &at, int place)
{
	bool text = TEXT && place < s.n_text;
	int n = max(TEXT && !text ? place - s.n_text : place, 0);
	const char *x = place < 0 ? at.own : text ? at.text : at.ring;
	return (const T *)(x + (size_t)(unsigned)n * (s.stride * (unsigned)sizeof(T)));
}

/* ---- walks: LANES lanes take a key, each TURNS times N of its columns ---- */

/* N elements as they are loaded: taken apart at once, they would be waited for. */
template <int N> struct alignas(N * sizeof(T)) words {
	uint32_t w[N * sizeof(T) / 4];
};
template <> struct words<1> {
	T x;
};

DEVICE float element(const struct words<1> &k, int)
{
	return to_f(k.x);
}

#if !T_IS_F32
DEVICE float low_of(uint32_t pair)
{
	return to_f(T{(uint16_t)pair});
}

DEVICE float high_of(uint32_t pair)
{
	return to_f(T{(uint16_t)(pair >> 16)});
}
#endif

template <int N> DEVICE float element(const struct words<N> &k, int i)
{
#if T_IS_F32
	return bits_to_float(k.w[i]);
#else
	return i % 2 ? high_of(k.w[i / 2]) : low_of(k.w[i / 2]);
#endif
}

/* One state's columns that a lane has. */
template <int N, int TURNS> struct columns {
	struct words<N> at[TURNS];
};

/* Softmax over some keys: the largest score; with it as 1, the sum of exponentials and of values weighed by them. */
template <int N, int TURNS> struct share {
	float top, total, sum[TURNS][N];
};

/* The lane's columns of a state, from x on, of which `left` exist; of rows that a single turn does, all lanes have some. */
template <int N, int LANES, int TURNS> DEVICE struct columns<N, TURNS> fetch(const T *x, int left)
{
	struct columns<N, TURNS> k = {};
#pragma unroll
	for (int t = 0; t < TURNS; t++)
		if (TURNS == 1 || t * LANES * N < left)
			k.at[t] = *(const struct words<N> *)(x + t * LANES * N);
	return k;
}

/* The row's own key and value into its ring. */
template <int N, int LANES, int TURNS> DEVICE void keep_state(const struct step &s, const struct row &r)
{
	const T *from = s.qkv + r.q + s.part;
	T *to = s.image + r.ring + (size_t)r.place * s.stride;
	int column = lane_id() % LANES * N;
#pragma unroll
	for (int t = 0; t < TURNS; t++)
		if (lane_id() < LANES && column < s.D - t * LANES * N) {
			size_t c = (size_t)(column + t * LANES * N);
			*(struct words<N> *)(to + c) = *(const struct words<N> *)(from + c);
			*(struct words<N> *)(to + s.part + c) = *(const struct words<N> *)(from + s.part + c);
		}
}

/* q . key, known to all LANES. */
template <int N, int LANES, int TURNS>
DEVICE float score_of(const struct columns<N, TURNS> &q, const struct columns<N, TURNS> &key)
{
	float sum = 0;
#pragma unroll
	for (int t = 0; t < TURNS; t++)
#pragma unroll
		for (int i = 0; i < N; i++)
			sum += element(q.at[t], i) * element(key.at[t], i);
#pragma unroll
	for (int o = LANES / 2; o; o /= 2)
		sum += __shfl_xor_sync(ALL_LANES, sum, o);
	return sum;
}

/* Another largest score. */
template <int N, int TURNS> DEVICE void raise(struct share<N, TURNS> &k, float top)
{
	float shrink = power(k.top - base_of(top));
	k.top = top;
	k.total *= shrink;
#pragma unroll
	for (int t = 0; t < TURNS; t++)
#pragma unroll
		for (int i = 0; i < N; i++)
			k.sum[t][i] *= shrink;
}

template <int N, int TURNS> DEVICE void weigh(struct share<N, TURNS> &k, float p, const struct columns<N, TURNS> &value)
{
	k.total += p;
#pragma unroll
	for (int t = 0; t < TURNS; t++)
#pragma unroll
		for (int i = 0; i < N; i++)
			k.sum[t][i] += p * element(value.at[t], i);
}

/* Sums over the groups of lanes, which have shares of their own; all lanes get the warp's. */
template <int N, int LANES, int TURNS> DEVICE void gather(struct share<N, TURNS> &k)
{
	float top = k.top;
#pragma unroll
	for (int o = LANES; o < WARP; o *= 2)
		top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, o));
	raise(k, top);
#pragma unroll
	for (int o = LANES; o < WARP; o *= 2) {
		k.total += __shfl_xor_sync(ALL_LANES, k.total, o);
#pragma unroll
		for (int t = 0; t < TURNS; t++)
#pragma unroll
			for (int i = 0; i < N; i++)
				k.sum[t][i] += __shfl_xor_sync(ALL_LANES, k.sum[t][i], o);
	}
}

/* The share of the warp in the keys with numbers from `from` on, of which it takes WARP / LANES at a time, `by` after one
 * another; AHEAD times as many are under way.  TEXT: some of them are the text's. */
template <bool TEXT, int N, int LANES, int TURNS, int AHEAD>
DEVICE struct share<N, TURNS> walk(const struct step &s, const struct row &r, int from, int by)
{
	enum { TOGETHER = WARP / LANES }; /* AHEAD times that is at most WARP */
	struct share<N, TURNS> k = {-INFINITY, 0, {}};
	int column = lane_id() % LANES * N, left = s.D - column;
	bool spare = TURNS == 1 && left <= 0; /* a lane beyond D takes the first columns, and nothing of the query */
	struct places at = places_of(s, r, spare ? 0 : column);
	struct columns<N, TURNS> q = fetch<N, LANES, TURNS>(s.qkv + r.q + (spare ? 0 : column), left), key[AHEAD], value[AHEAD];
	if (spare)
		q = {};
	float score[AHEAD];
	for (; from < r.keys; from += AHEAD * by) {
		float top = k.top;
		/* Each lane looks for one of the keys. */
		int mine = place_of<TEXT>(s, r, from + lane_id() / TOGETHER * by + lane_id() % TOGETHER);
#pragma unroll
		for (int a = 0; a < AHEAD; a++) {
			int place = __shfl_sync(ALL_LANES, mine, a * TOGETHER + lane_id() / LANES);
			const T *x = key_at<TEXT>(s, at, place);
			score[a] = place == NONE ? -INFINITY : s.scale;
			key[a] = fetch<N, LANES, TURNS>(x, left);
			value[a] = fetch<N, LANES, TURNS>(x + s.part, left);
		}
#pragma unroll
		for (int a = 0; a < AHEAD; a++) {
			float dot = score_of<N, LANES, TURNS>(q, key[a]);
			score[a] = score[a] == -INFINITY ? score[a] : score[a] * dot;
			top = fmaxf(top, score[a]);
		}
		raise(k, top);
#pragma unroll
		for (int a = 0; a < AHEAD; a++)
			weigh(k, power(score[a] - base_of(top)), value[a]);
	}
	gather<N, LANES, TURNS>(k);
	return k;
}

/* The warp's columns, each by the first lane that has it. */
template <int N, int LANES, int TURNS> DEVICE void put_sums(float *to, const struct share<N, TURNS> &k, int D)
{
	enum { V = N % 4 ? 1 : 4 };
	int lane = lane_id();
#pragma unroll
	for (int t = 0; t < TURNS; t++)
#pragma unroll
		for (int i = 0; i < N; i += V)
			if (lane < LANES && (t * LANES + lane) * N < D)
				store<V>(to + (t * LANES + lane) * N + i, &k.sum[t][i]);
}

/* y[N] = the softmax over COUNT shares, in order: top[] and total[] `step` apart, sums `size` apart. */
template <int COUNT, int N>
DEVICE void merge(float y[N], const float *sum, int size, const float *top, const float *total, int step)
{
	float high = -INFINITY, all = 0, x[N];
#pragma unroll
	for (int k = 0; k < COUNT; k++)
		high = fmaxf(high, top[k * step]);
#pragma unroll
	for (int i = 0; i < N; i++)
		y[i] = 0;
#pragma unroll
	for (int k = 0; k < COUNT; k++) {
		float p = power(top[k * step] - base_of(high));
		load<N>(x, sum + k * size);
		all += p * total[k * step];
#pragma unroll
		for (int i = 0; i < N; i++)
			y[i] += p * x[i];
	}
	float gain = 1.0f / all;
#pragma unroll
	for (int i = 0; i < N; i++)
		y[i] *= gain;
}

/* How far a row's ring goes on behind the first is not known here. */
static struct written written_by(const struct dev *d, const struct step &s)
{
	return written{{{s.y, (size_t)s.B * s.part * sizeof(T)}, {s.image, cuda_bytes_from(d, s.image)}, {NULL, 0}}};
}

/* ---- any type and width: a block for a head of a row ---- */

enum { WARPS = 16 };

template <int N, int LANES, int TURNS, int AHEAD>
KERNEL __launch_bounds__(WARPS *WARP, T_IS_F32 && N > 1 ? 2 : 1) attn_step_kernel(struct step s)
{
	enum { TOGETHER = WARP / LANES };
	int h = (int)blockIdx.x % s.H, b = (int)blockIdx.x / s.H, warp = (int)threadIdx.x / WARP;
	T *y = s.y + (size_t)b * s.part + h * s.D;
	float *sum = (float *)SHARED, *top = sum + WARPS * s.D, *total = top + WARPS;
	await_previous();
	let_next_start();
	struct row r = row_of(s, b, h);
	if (r.pos < 0) {
		for (int c = (int)threadIdx.x; c < s.D; c += WARPS * WARP)
			y[c] = make<T>(0);
		return;
	}
	struct share<N, TURNS> k = walk<true, N, LANES, TURNS, AHEAD>(s, r, warp * TOGETHER, WARPS * TOGETHER);
	put_sums<N, LANES, TURNS>(sum + warp * s.D, k, s.D);
	if (lane_id() == 0) {
		top[warp] = k.top;
		total[warp] = k.total;
	}
	if (warp == WARPS - 1)
		keep_state<N, LANES, TURNS>(s, r);
	__syncthreads();
	for (int c = (int)threadIdx.x; c < s.D; c += WARPS * WARP) {
		float x[1];
		merge<WARPS, 1>(x, sum + c, s.D, top, total, 1);
		y[c] = make<T>(x[0]);
	}
}

static void any_step(struct dev *d, const struct step &s)
{
	enum { N = 16 / (int)sizeof(T), AHEAD = T_IS_F32 ? 2 : 5 };
	void (*kernel)(struct step) = attn_step_kernel<1, WARP, HEAD_MOST / WARP, 1>;
	if (s.D % N == 0 && s.D <= WARP * N && aligned(s.text, 16) && aligned(s.image, 16) && aligned(s.qkv, 16))
		kernel = s.D <= 8 * N    ? attn_step_kernel<N, 8, 1, AHEAD>
			 : s.D <= 16 * N ? attn_step_kernel<N, 16, 1, AHEAD>
					 : attn_step_kernel<N, WARP, 1, AHEAD>;
	launch_early(d, written_by(d, s), kernel, dim3((unsigned)s.H * (unsigned)s.B), dim3(WARPS * WARP),
	             WARPS * ((size_t)s.D + 2) * sizeof(float), s);
}

/* ---- tensor cores: a block for a head of 16 rows ---- */

#if T_IS_F32
static bool tile_step(struct dev *, const struct step &)
{
	return false;
}
#else
enum { ROWS = 16, KEYS = 16, FEW_WARPS = 8, MANY_WARPS = 16 };

/* Shares of the rows: of the text's keys, KEYS at a time each share in turn, and behind them of the image's.  Less than 99 KiB,
 * which every device has. */
template <int DP> struct tile {
	enum { TEXTS = DP == 64 ? 16 : 8, SHARES = TEXTS + 1 };
	float sum[SHARES][ROWS][DP + 4], top[SHARES][ROWS], total[SHARES][ROWS];
};

/* 8 elements from column c on as registers; zeros where there are none. */
DEVICE void load16(uint32_t r[4], const T *x, int c, bool there)
{
	pack<uint32_t, 4> k = {};
	if (there)
		k = *(const pack<uint32_t, 4> *)(x + c);
#pragma unroll
	for (int i = 0; i < 4; i++)
		r[i] = k.v[i];
}

/* Scores are sums over columns in any order, as long as queries and keys have the same: lane l % 4 loads 8 in a row, of
 * which two products take 4 each.  So neither goes through shared memory. */
template <int DP> DEVICE void load_queries(uint32_t q[DP / 16][4], const struct step &s, int row0, int h)
{
	uint32_t x[4];
#pragma unroll
	for (int r = 0; r < 2; r++)
#pragma unroll
		for (int j = 0; j < DP / 32; j++) {
			int b = row0 + lane_id() / 4 + 8 * r, c = 32 * j + lane_id() % 4 * 8;
			load16(x, s.qkv + (size_t)b * 3 * s.part + h * s.D, c, b < s.B && c < s.D);
			q[2 * j][r] = x[0];
			q[2 * j][r + 2] = x[1];
			q[2 * j + 1][r] = x[2];
			q[2 * j + 1][r + 2] = x[3];
		}
}

/* The first n of 16 keys; those of half t are columns of a product. */
template <int DP> DEVICE void load_keys(uint32_t k[2][DP / 32][4], const T *key, unsigned stride, int n, int D)
{
	key += (size_t)(lane_id() / 4) * stride + lane_id() % 4 * 8;
#pragma unroll
	for (int t = 0; t < 2; t++)
#pragma unroll
		for (int j = 0; j < DP / 32; j++)
			load16(k[t][j], key + (size_t)(8 * t) * stride, 32 * j, 8 * t < n - lane_id() / 4 && 32 * j < D - lane_id() % 4 * 8);
}

/* The values' columns can also come in any order: lane l / 4 loads 8 in a row, the e-th of which is its column of product
 * e; l % 4 says for which four of 16 keys. */
template <int DP> DEVICE void load_values(uint32_t v[DP / 64][4][4], const T *value, unsigned stride, int n, int D)
{
	value += (size_t)(lane_id() % 4 * 2) * stride + lane_id() / 4 * 8;
#pragma unroll
	for (int j = 0; j < DP / 64; j++)
#pragma unroll
		for (int i = 0; i < 4; i++) {
			int at = i % 2 + i / 2 * 8;
			load16(v[j][i], value + (size_t)at * stride, 64 * j, at < n - lane_id() % 4 * 2 && 64 * j < D - lane_id() / 4 * 8);
		}
}

/* Element e of a and of b. */
DEVICE uint32_t pair_at(const uint32_t a[4], const uint32_t b[4], int e)
{
	return e % 2 ? a[e / 2] >> 16 | (b[e / 2] & 0xffff0000u) : (a[e / 2] & 0xffffu) | b[e / 2] << 16;
}

/* What a warp knows of the text for 16 queries: rows l / 4 and that + 8 of lane l, in the layout of mma's sums; `total` is of
 * the lane's own keys. */
template <int DP> struct text_share {
	float top[2], total[2], sum[DP / 8][4];
};

/* Scores p of 16 keys, of which n exist, become exponentials. */
template <int DP> DEVICE void soften(struct text_share<DP> &k, float p[2][4], float scale, int n)
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		float top = k.top[r], part = 0;
#pragma unroll
		for (int e = 0; e < 4; e++) {
			float &x = p[e / 2][2 * r + e % 2];
			x = e / 2 * 8 + lane_id() % 4 * 2 + e % 2 < n ? scale * x : -INFINITY;
			top = fmaxf(top, x);
		}
		top = row_max(top);
		float base = base_of(top), shrink = power(k.top[r] - base);
#pragma unroll
		for (int e = 0; e < 4; e++)
			part += p[e / 2][2 * r + e % 2] = power(p[e / 2][2 * r + e % 2] - base);
		k.top[r] = top;
		k.total[r] = k.total[r] * shrink + part;
#pragma unroll
		for (int j = 0; j < DP / 8; j++) {
			k.sum[j][2 * r] *= shrink;
			k.sum[j][2 * r + 1] *= shrink;
		}
	}
}

/* sum += p v.  p is taken in two parts, itself rounded to T and what is lost by that: there are products to spare, and so the
 * result differs from that of the other kernel by the order of f32 sums only. */
template <int DP> DEVICE void weigh_text(struct text_share<DP> &k, const float p[2][4], const uint32_t v[DP / 64][4][4])
{
	uint32_t near[4], rest[4], b[2];
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const float *x = &p[i / 2][i % 2 * 2];
		near[i] = pair_of(x[0], x[1], T());
		rest[i] = pair_of(x[0] - low_of(near[i]), x[1] - high_of(near[i]), T());
	}
#pragma unroll
	for (int j = 0; j < DP / 64; j++)
#pragma unroll
		for (int e = 0; e < 8; e++) {
			b[0] = pair_at(v[j][0], v[j][1], e);
			b[1] = pair_at(v[j][2], v[j][3], e);
			mma(k.sum[8 * j + e], near, b, T());
			mma(k.sum[8 * j + e], rest, b, T());
		}
}

/* One share of a caption's keys, for all queries of the tile. */
template <int DP>
DEVICE struct text_share<DP> walk_text(const struct step &s, const uint32_t q[DP / 16][4], const T *text, int share)
{
	struct text_share<DP> k = {{-INFINITY, -INFINITY}, {}, {}};
#pragma unroll 1
	for (int n = share * KEYS; n < s.n_text; n += tile<DP>::TEXTS * KEYS) {
		const T *x = text + (size_t)n * s.stride;
		uint32_t key[2][DP / 32][4], value[DP / 64][4][4];
		float p[2][4] = {};
		load_keys<DP>(key, x, s.stride, s.n_text - n, s.D);
		load_values<DP>(value, x + s.part, s.stride, s.n_text - n, s.D);
#pragma unroll
		for (int j = 0; j < DP / 32; j++)
#pragma unroll
			for (int t = 0; t < 2; t++) {
				mma(p[t], q[2 * j], key[t][j], T());
				mma(p[t], q[2 * j + 1], key[t][j] + 2, T());
			}
		soften<DP>(k, p, s.scale, s.n_text - n);
		weigh_text<DP>(k, p, value);
	}
	return k;
}

/* Into shared memory, for the rows whose bit is set.  A lane has 16 columns in a row (see load_values). */
template <int DP> DEVICE void put_text(struct tile<DP> *to, const struct text_share<DP> &k, int share, unsigned rows)
{
	int p = lane_id() % 4;
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int row = lane_id() / 4 + 8 * r;
		float total = row_sum(k.total[r]);
		if (!(rows >> row & 1))
			continue;
		if (p == 0) {
			to->top[share][row] = k.top[r];
			to->total[share][row] = total;
		}
#pragma unroll
		for (int e = 0; e < DP / 4; e += 4) {
			float x[4];
#pragma unroll
			for (int i = 0; i < 4; i++)
				x[i] = k.sum[e / 16 * 8 + e % 8 + i][2 * r + e % 16 / 8];
			store<4>(&to->sum[share][row][e / 16 * 64 + 16 * p + e % 16], x);
		}
	}
}

/* Rows of one caption are done together; each caption of the tile is walked for all rows, but only its own keep what
 * comes of it. */
template <int DP> DEVICE void texts(struct tile<DP> *to, const struct step &s, int row0, int h)
{
	int b = row0 + lane_id(), mine = -1;
	uint32_t q[DP / 16][4];
	if (lane_id() < ROWS && b < s.B && s.pos[b] >= 0)
		mine = s.context[b];
	load_queries<DP>(q, s, row0, h);
#pragma unroll 1
	for (int r = 0; r < ROWS; r++) {
		int context = __shfl_sync(ALL_LANES, mine, r);
		unsigned rows = __ballot_sync(ALL_LANES, mine == context);
		if (context < 0 || rows & ((1u << r) - 1))
			continue;
		const T *text = s.text + (size_t)context * s.n_text * s.stride + h * s.D;
#pragma unroll 1
		for (int i = (int)threadIdx.x / WARP; i < tile<DP>::TEXTS; i += (int)blockDim.x / WARP)
			put_text<DP>(to, walk_text<DP>(s, q, text, i), i, rows);
	}
}

/* Each row's own image keys, a row a warp; and what is kept of it. */
template <int DP> DEVICE void images(struct tile<DP> *to, const struct step &s, int row0, int h)
{
	enum { LANES = DP / 8, AHEAD = 5, SHARE = tile<DP>::TEXTS };
	for (int row = (int)threadIdx.x / WARP; row < ROWS && row0 + row < s.B; row += (int)blockDim.x / WARP) {
		struct row r = row_of(s, row0 + row, h);
		if (r.pos < 0)
			continue;
		struct share<8, 1> k = walk<false, 8, LANES, 1, AHEAD>(s, r, s.n_text, WARP / LANES);
		put_sums<8, LANES, 1>(to->sum[SHARE][row], k, s.D);
		if (lane_id() == 0) {
			to->top[SHARE][row] = k.top;
			to->total[SHARE][row] = k.total;
		}
		keep_state<8, LANES, 1>(s, r);
	}
}

/* The number of warps is the block's: shares do not depend on it. */
template <int DP> KERNEL __launch_bounds__((DP == 64 ? MANY_WARPS : FEW_WARPS) * WARP) attn_step_tile_kernel(struct step s)
{
	struct tile<DP> *t = (struct tile<DP> *)SHARED;
	int h = (int)blockIdx.x % s.H, row0 = (int)blockIdx.x / s.H * ROWS, chunks = s.D / 4;
	/* Every other warp begins with the image: text comes from the second-level cache, the image's keys from memory, and neither
	 * waits while the other is busy. */
	bool first = threadIdx.x / WARP % 2;
	await_previous();
	let_next_start();
	if (first)
		images<DP>(t, s, row0, h);
	texts<DP>(t, s, row0, h);
	if (!first)
		images<DP>(t, s, row0, h);
	__syncthreads();
	for (int i = (int)threadIdx.x; i < ROWS * chunks; i += (int)blockDim.x) {
		int row = i / chunks, c = i % chunks * 4, b = row0 + row;
		float y[4] = {};
		if (b >= s.B)
			break;
		if (s.pos[b] >= 0)
			merge<tile<DP>::SHARES, 4>(y, &t->sum[0][row][c], ROWS * (DP + 4), &t->top[0][row], &t->total[0][row], ROWS);
		store<4>(s.y + (size_t)b * s.part + h * s.D + c, y);
	}
}

/* From as many rows on as a block takes: fewer would leave most of it idle. */
static bool tile_step(struct dev *d, const struct step &s)
{
	size_t blocks = (size_t)s.H * ceil_div(s.B, ROWS), shared = s.D <= 64 ? sizeof(struct tile<64>) : sizeof(struct tile<128>);
	if (s.B < ROWS || s.D % 8 || s.D > 128 || !aligned(s.y, 8) || !aligned(s.text, 16) || !aligned(s.image, 16) ||
	    !aligned(s.qkv, 16))
		return false;
	/* Two blocks run on a processor at once; where there is one for each, twice the warps. */
	int warps = s.D <= 64 && blocks <= (size_t)d->sms ? MANY_WARPS : FEW_WARPS;
	launch_early(d, written_by(d, s), s.D <= 64 ? attn_step_tile_kernel<64> : attn_step_tile_kernel<128>, dim3((unsigned)blocks),
	             dim3((unsigned)(warps * WARP)), shared, s);
	return true;
}
#endif

void attn_step(struct dev *d, void *y, const struct attn_cache *c, const void *qkv, const int32_t *context,
               const int32_t *slot, const int32_t *pos, int B, int H, int D, const struct attn_mask *am)
{
	struct step s = {(T *)y, (T *)c->image, (const T *)c->text, (const T *)qkv, context, slot, pos, mask_of(am), c->window,
	                 am->n_text, B, H, D, (unsigned)(H * D), (unsigned)(2 * H * D), LOG2E / sqrtf((float)D)};
	if (width_fits(d, D) && !tile_step(d, s))
		any_step(d, s);
}
}
