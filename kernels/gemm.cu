/* gemm.cu - our own matrix products on a GPU: blocks of BM x BN sums, slices of the factors in shared memory.  16-bit
 * types go to the tensor cores with three slices under way; f32 is plain multiply-add with the next slice in registers.
 * Sums run over k in one order whatever the number of rows.
 *
 * A convolution is such a product with the picture's neighbourhoods as a factor: they are gathered slice by slice into
 * shared memory and never written out. */
#include "gemm.cuh"
#include "mma.cuh"
#include "strips.cuh"

namespace FOR_TYPE {

enum {
	BM = 128, THREADS = 256,
	CHUNK = 16 / (int)sizeof(T),       /* elements of 16 bytes */
	BK = T_IS_F32 ? 16 : 32,
	PAD = T_IS_F32 ? 4 : 8, STAGES = 3,
};

/* ---- where the elements of a factor are ---- */

/* A line of a factor: the pixel that the gathered neighbourhood is around. */
struct line {
	const T *p; /* the line, or the centre pixel's; NULL: beyond the last */
	int y, x;
};

DEVICE struct line line_at(const struct operand &o, int i, int count)
{
	struct line l = {NULL, 0, 0};
	if (i >= count)
		return l;
	l.p = (const T *)o.p + (size_t)i * o.C;
	if (o.taps > 1) {
		int row = quotient(i, o.by_W);
		l.x = i - row * o.W;
		l.y = row - quotient(row, o.by_H) * o.H;
	}
	return l;
}

/* Where the tap and channel numbered j are, as seen from a pixel. */
struct neighbour {
	int dy, dx, offset;
};

DEVICE struct neighbour neighbour_at(const struct operand &o, int j)
{
	int q = quotient(j, o.by_group), group = quotient(q, o.by_taps), tap = q - group * o.taps;
	int down = quotient(tap, o.by_side), dy = down - o.side / 2, dx = tap - down * o.side - o.side / 2;
	return neighbour{dy, dx, (dy * o.W + dx) * o.C + group * o.group + (j - q * o.group)};
}

DEVICE const T *neighbour_of(const struct operand &o, const struct line &l, const struct neighbour &n)
{
	bool there = l.p && (unsigned)(l.y + n.dy) < (unsigned)o.H && (unsigned)(l.x + n.dx) < (unsigned)o.W;
	return there ? l.p + n.offset : NULL;
}

/* Element j of the line (its index along k or rows); NULL: zero. */
DEVICE const T *element(const struct operand &o, const struct line &l, int j, int count)
{
	if (!l.p || j >= count)
		return NULL;
	return o.taps == 1 ? l.p + j : neighbour_of(o, l, neighbour_at(o, j));
}

/* CHUNK elements from j on into out; VECTOR: they are together and aligned. */
template <bool VECTOR> DEVICE void gather(T *out, const struct operand &o, const struct line &l, int j, int count)
{
	if constexpr (VECTOR) {
		const T *p = element(o, l, j, count);
		if (p)
			*(pack<T, CHUNK> *)out = *(const pack<T, CHUNK> *)p;
		else
			memset(out, 0, 16);
	} else {
#pragma unroll
		for (int e = 0; e < CHUNK; e++) {
			const T *p = element(o, l, j + e, count);
			out[e] = p ? *p : make<T>(0);
		}
	}
}

/* ---- the result ---- */

struct result {
	void *c;
	const float *add, *bias;
	int m, n;
	bool c_f32, relu;
	bool pairs; /* two neighbouring columns, the first an even one, lie at a multiple of their size together, everywhere */
};

DEVICE float finished(const struct result &c, float v, float bias, float before)
{
	v += bias;
	v = c.relu && v < 0 ? 0 : v;
	return c.add ? before + v : v;
}

DEVICE void put(const struct result &c, int i, int j, float v)
{
	if (i >= c.m || j >= c.n)
		return;
	size_t at = (size_t)i * c.n + j;
	v = finished(c, v, c.bias ? c.bias[j] : 0, c.add ? c.add[at] : 0);
	if (c.c_f32)
		((float *)c.c)[at] = v;
	else
		((T *)c.c)[at] = make<T>(v);
}

/* This block's part of k, a multiple of BK but for the last. */
DEVICE void k_range(int &from, int &to, int k)
{
	int slices = (k + BK - 1) / BK, z = (int)blockIdx.z, parts = (int)gridDim.z;
	from = (int)((long)slices * z / parts) * BK;
	to = min(k, (int)((long)slices * (z + 1) / parts) * BK);
}

#if T_IS_F32
/* ---- f32: 8 x BN/16 sums a thread ---- */

/* Of a slice: what is on its way lies in registers, and with 64 sums there are no more. */
template <int BN> struct depth {
	enum { OF = BN == 128 ? BK / 2 : BK };
};

/* The slice of one factor, [DEPTH][ROWS + PAD] in shared memory: first into registers. */
template <int ROWS, int DEPTH, bool K_FIRST, bool VECTOR> struct slice {
	enum { EACH = ROWS * DEPTH / CHUNK / THREADS };
	T reg[EACH][CHUNK];

	/* Which chunk thread t's chunk e is: a row and the first k, or a k and the first row. */
	DEVICE void where(int e, int &line, int &along)
	{
		int c = e * THREADS + (int)threadIdx.x, per = (K_FIRST ? DEPTH : ROWS) / CHUNK;
		line = c / per;
		along = c % per * CHUNK;
	}

	__device__ void fetch(const struct operand &o, int row0, int rows, int k0, int k)
	{
		for (int e = 0; e < EACH; e++) {
			int at, along;
			where(e, at, along);
			struct line l = line_at(o, (K_FIRST ? row0 : k0) + at, K_FIRST ? rows : k);
			gather<VECTOR>(reg[e], o, l, (K_FIRST ? k0 : row0) + along, K_FIRST ? k : rows);
		}
	}

	__device__ void place(float *shared) const
	{
		for (int e = 0; e < EACH; e++) {
			int at, along;
			where(e, at, along);
			for (int q = 0; q < CHUNK; q++)
				shared[K_FIRST ? (along + q) * (ROWS + PAD) + at : at * (ROWS + PAD) + along + q] = reg[e][q];
		}
	}
};

template <bool KA, bool KB, bool VECTOR, int BN>
KERNEL __launch_bounds__(THREADS, 2) product_kernel(struct operand a, struct operand b, struct result c, int k)
{
	enum { DEPTH = depth<BN>::OF, TN = BN / 16, A_SLICE = DEPTH * (BM + PAD), B_SLICE = DEPTH * (BN + PAD) };
	float *as = (float *)SHARED, *bs = as + 2 * A_SLICE;
	int row0 = (int)blockIdx.x * BM, column0 = (int)blockIdx.y * BN, tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
	float sum[8][TN] = {};
	slice<BM, DEPTH, KA, VECTOR> na;
	slice<BN, DEPTH, KB, VECTOR> nb;
	int from, to, turn = 0;
	k_range(from, to, k);
	na.fetch(a, row0, c.m, from, to);
	nb.fetch(b, column0, c.n, from, to);
	na.place(as);
	nb.place(bs);
	__syncthreads();
	for (int k0 = from; k0 < to; k0 += DEPTH, turn ^= 1) {
		bool more = k0 + DEPTH < to;
		if (more) {
			na.fetch(a, row0, c.m, k0 + DEPTH, to);
			nb.fetch(b, column0, c.n, k0 + DEPTH, to);
		}
		const float *pa = as + turn * A_SLICE + ty * 4, *pb = bs + turn * B_SLICE + tx * 4;
#pragma unroll
		for (int p = 0; p < DEPTH; p++, pa += BM + PAD, pb += BN + PAD) {
			float x[8], y[TN];
			load<4>(x, pa);
			load<4>(x + 4, pa + 64);
			for (int j = 0; j < TN; j += 4)
				load<4>(y + j, pb + 16 * j);
#pragma unroll
			for (int i = 0; i < 8; i++)
#pragma unroll
				for (int j = 0; j < TN; j++)
					sum[i][j] += x[i] * y[j];
		}
		if (more) {
			na.place(as + (turn ^ 1) * A_SLICE);
			nb.place(bs + (turn ^ 1) * B_SLICE);
		}
		__syncthreads();
	}
	c.c = (float *)c.c + (size_t)blockIdx.z * c.m * c.n;
	/* Unrolled, or the sums would be kept in memory. */
#pragma unroll
	for (int i = 0; i < 8; i++)
#pragma unroll
		for (int j = 0; j < TN; j++)
			put(c, row0 + i / 4 * 64 + ty * 4 + i % 4, column0 + j / 4 * 64 + tx * 4 + j % 4, sum[i][j]);
}

template <int BN> static size_t product_shared()
{
	return 2 * (size_t)depth<BN>::OF * (BM + PAD + BN + PAD) * sizeof(float);
}

#else
/* ---- 16 bits: tensor cores ---- */

/* The slice of one factor in shared memory: [ROWS][BK + PAD], or [BK][ROWS + PAD]; the padding keeps the eight rows of
 * a matrix in different banks. */
template <int ROWS, bool K_FIRST> struct tile {
	enum {
		LINES = K_FIRST ? ROWS : BK, ALONG = K_FIRST ? BK : ROWS, LINE = ALONG + PAD,
		SIZE = LINES * LINE, EACH = ROWS * BK / CHUNK / THREADS,
	};
};

template <int ROWS, bool K_FIRST, bool VECTOR>
DEVICE void fetch(T *shared, const struct operand &o, int row0, int rows, int k0, int k)
{
	typedef tile<ROWS, K_FIRST> t;
	/* All of the slice is of one tap: its place is the same for the whole block. */
	bool one_tap = VECTOR && K_FIRST && o.taps > 1 && o.group % BK == 0;
	struct neighbour n = one_tap ? neighbour_at(o, k0) : neighbour{0, 0, 0};
#pragma unroll
	for (int e = 0; e < t::EACH; e++) {
		int c = e * THREADS + (int)threadIdx.x, at = c / (t::ALONG / CHUNK), along = c % (t::ALONG / CHUNK) * CHUNK;
		struct line l = line_at(o, (K_FIRST ? row0 : k0) + at, K_FIRST ? rows : k);
		T *to = shared + at * t::LINE + along;
		int j = (K_FIRST ? k0 : row0) + along, count = K_FIRST ? k : rows;
		if constexpr (VECTOR) {
			const T *p = one_tap ? neighbour_of(o, l, n) : element(o, l, j, count);
			if (one_tap)
				copy16_again(to, p ? p + along : o.p, !p); /* eight other pixels have this neighbour */
			else
				copy16(to, p ? p : o.p, !p);
		} else {
			gather<false>(to, o, l, j, count);
		}
	}
}

/* a of 16 rows from row0 on and k0 .. k0 + 15. */
template <int ROWS, bool K_FIRST> DEVICE void a_fragment(uint32_t r[4], const T *shared, int row0, int k0)
{
	int lane = (int)threadIdx.x % WARP, i = lane % 8, m = lane / 8, row = row0 + m % 2 * 8, k = k0 + m / 2 * 8;
	if (K_FIRST)
		load_matrices(r, shared + (row + i) * tile<ROWS, true>::LINE + k);
	else
		load_matrices_transposed(r, shared + (k + i) * tile<ROWS, false>::LINE + row);
}

/* b of 16 columns, two fragments. */
template <int ROWS, bool K_FIRST> DEVICE void b_fragments(uint32_t r[4], const T *shared, int column0, int k0)
{
	int lane = (int)threadIdx.x % WARP, i = lane % 8, m = lane / 8, column = column0 + m / 2 * 8, k = k0 + m % 2 * 8;
	if (K_FIRST)
		load_matrices(r, shared + (column + i) * tile<ROWS, true>::LINE + k);
	else
		load_matrices_transposed(r, shared + (k + i) * tile<ROWS, false>::LINE + column);
}

/* One integer: the compiler would store two floats one by one. */
DEVICE void put_two(float *c, const float x[2])
{
	*(uint64_t *)c = (uint64_t)float_to_bits(x[1]) << 32 | float_to_bits(x[0]);
}

DEVICE void put_two(T *c, const float x[2])
{
	*(uint32_t *)c = pair_of(x[0], x[1], T());
}

/* A lane's sums, the first at (row, column).  All that a column is added to is read before any of it is written: behind a
 * write to what may be the same memory each would be waited for. */
template <class S, int MT, int NT> DEVICE void put_pairs(const struct result &c, const float (&sum)[MT][NT][4], int row, int column)
{
#pragma unroll
	for (int j = 0; j < NT; j++, column += 8) {
		float bias[2] = {}, before[2 * MT][2] = {};
		if (c.bias && column < c.n)
			load<2>(bias, c.bias + column);
		if (c.add && column < c.n) {
#pragma unroll
			for (int i = 0; i < 2 * MT; i++)
				if (row + 8 * i < c.m)
					load<2>(before[i], c.add + (size_t)(row + 8 * i) * c.n + column);
		}
#pragma unroll
		for (int i = 0; i < 2 * MT; i++) {
			const float *v = sum[i / 2][j] + i % 2 * 2;
			const float x[2] = {finished(c, v[0], bias[0], before[i][0]), finished(c, v[1], bias[1], before[i][1])};
			if (row + 8 * i < c.m && column < c.n)
				put_two((S *)c.c + (size_t)(row + 8 * i) * c.n + column, x);
		}
	}
}

template <int MT, int NT> DEVICE void put_each(const struct result &c, const float (&sum)[MT][NT][4], int row, int column)
{
#pragma unroll
	for (int i = 0; i < MT; i++)
#pragma unroll
		for (int j = 0; j < NT; j++)
#pragma unroll
			for (int q = 0; q < 4; q++)
				put(c, row + 16 * i + q / 2 * 8, column + 8 * j + q % 2, sum[i][j][q]);
}

template <bool KA, bool KB, bool VECTOR, int BN>
KERNEL __launch_bounds__(THREADS) product_kernel(struct operand a, struct operand b, struct result c, int k)
{
	/* Eight warps: 2 x 4 of 64 x 32 sums, or 4 x 2 of 32 x 32. */
	enum {
		WARPS_N = BN / 32, WM = BM / (8 / WARPS_N), MT = WM / 16, NT = 4,
		A_SLICE = tile<BM, KA>::SIZE, B_SLICE = tile<BN, KB>::SIZE,
	};
	T *as = (T *)SHARED, *bs = as + STAGES * A_SLICE;
	int row0 = (int)blockIdx.x * BM, column0 = (int)blockIdx.y * BN, lane = (int)threadIdx.x % WARP;
	int warp = (int)threadIdx.x / WARP, wr = warp / WARPS_N * WM, wc = warp % WARPS_N * 32, from, to;
	float sum[MT][NT][4] = {};
	k_range(from, to, k);
	for (int s = 0; s < STAGES - 1; s++) {
		if (from + s * BK < to) {
			fetch<BM, KA, VECTOR>(as + s * A_SLICE, a, row0, c.m, from + s * BK, to);
			fetch<BN, KB, VECTOR>(bs + s * B_SLICE, b, column0, c.n, from + s * BK, to);
		}
		copies_commit();
	}
	for (int k0 = from, turn = 0; k0 < to; k0 += BK, turn = turn + 1 == STAGES ? 0 : turn + 1) {
		copies_wait<STAGES - 2>();
		__syncthreads();
		int ahead = k0 + (STAGES - 1) * BK, place = turn == 0 ? STAGES - 1 : turn - 1;
		if (ahead < to) {
			fetch<BM, KA, VECTOR>(as + place * A_SLICE, a, row0, c.m, ahead, to);
			fetch<BN, KB, VECTOR>(bs + place * B_SLICE, b, column0, c.n, ahead, to);
		}
		copies_commit();
#pragma unroll
		for (int p = 0; p < BK; p += 16) {
			uint32_t fa[MT][4], fb[NT / 2][4];
#pragma unroll
			for (int i = 0; i < MT; i++)
				a_fragment<BM, KA>(fa[i], as + turn * A_SLICE, wr + 16 * i, p);
#pragma unroll
			for (int j = 0; j < NT / 2; j++)
				b_fragments<BN, KB>(fb[j], bs + turn * B_SLICE, wc + 16 * j, p);
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int j = 0; j < NT; j++)
					mma(sum[i][j], fa[i], fb[j / 2] + j % 2 * 2, T());
		}
	}
	c.c = (char *)c.c + (size_t)blockIdx.z * c.m * c.n * sizeof(float); /* parts are f32 */
	int row = row0 + wr + lane / 4, column = column0 + wc + lane % 4 * 2;
	if (c.pairs && c.c_f32)
		put_pairs<float>(c, sum, row, column);
	else if (c.pairs)
		put_pairs<T>(c, sum, row, column);
	else
		put_each(c, sum, row, column);
}

template <bool KA, bool KB> static size_t shared_of(int bn)
{
	size_t b = bn == 128 ? (size_t)tile<128, KB>::SIZE : (size_t)tile<64, KB>::SIZE;
	return STAGES * (tile<BM, KA>::SIZE + b) * sizeof(T);
}
#endif

/* ---- launches ---- */

static bool in_pairs(const struct result *c)
{
	return c->n % 2 == 0 && aligned(c->c, 2 * (c->c_f32 ? sizeof(float) : sizeof(T))) && aligned(c->add, 2 * sizeof(float)) &&
	       aligned(c->bias, 2 * sizeof(float));
}

template <bool KA, bool KB, bool VECTOR, int BN> static void run(struct dev *d, const struct product *p)
{
	struct result c = {p->c, p->add, p->bias, p->m, p->n, p->c_f32 || p->splits > 1, p->relu, false};
	c.pairs = in_pairs(&c);
	dim3 grid((unsigned)ceil_div(p->m, BM), (unsigned)ceil_div(p->n, BN), (unsigned)(p->splits > 1 ? p->splits : 1));
#if T_IS_F32
	size_t shared = product_shared<BN>();
#else
	size_t shared = shared_of<KA, KB>(BN);
#endif
	launch(d, product_kernel<KA, KB, VECTOR, BN>, grid, dim3(THREADS), shared, p->a, p->b, c, p->k);
}

template <bool KA, bool KB> static void run_kind(struct dev *d, const struct product *p, bool vector)
{
	if (vector && p->n > 64)
		run<KA, KB, true, 128>(d, p);
	else if (vector)
		run<KA, KB, true, 64>(d, p);
	else
		run<KA, KB, false, 64>(d, p);
}

/* Lines of whole, aligned chunks.  What a padded line has beyond its rows goes into sums that nobody stores. */
static bool in_chunks(const struct operand *o, int rows, int k)
{
	bool padded = !o->k_first && o->taps == 1;
	return o->C % CHUNK == 0 && (padded || (o->k_first ? k : rows) % CHUNK == 0) && aligned(o->p, 16);
}

void own_product(struct dev *d, const struct product *p)
{
	bool vector = in_chunks(&p->a, p->m, p->k) && in_chunks(&p->b, p->n, p->k);
	if (p->a.k_first && p->b.k_first)
		run_kind<true, true>(d, p, vector);
	else if (p->a.k_first)
		run_kind<true, false>(d, p, vector);
	else
		run_kind<false, false>(d, p, vector);
}

int product_splits(const struct dev *d, int m, int n, int k)
{
	int tiles = (int)(ceil_div(m, BM) * ceil_div(n, n > 64 ? 128 : 64)), most = k / (8 * BK), want = 2 * d->sms / tiles;
	int splits = want < most ? want : most;
	return splits > 1 ? splits : 1;
}

struct gradient_op {
	void *dw;
	bool dw_t;
	const float *part;
	int splits, C, wide, taps;
	size_t n; /* of the product */
	template <int N> __device__ void at(size_t i) const
	{
		/* i = (m * taps + tap) * wide + channel; in dw the channel comes before the tap. */
		size_t channel = i % wide, tap = i / wide % taps, m = i / wide / taps, to = (m * C + channel) * taps + tap;
		float s = 0;
		if (channel >= (size_t)C)
			return;
		for (int k = 0; k < splits; k++)
			s += part[k * n + i];
		if (dw_t)
			((T *)dw)[to] = make<T>(to_f(((T *)dw)[to]) + s);
		else
			((float *)dw)[to] += s;
	}
};

void weight_gradient(struct dev *d, void *dw, bool dw_t, struct product *p, int C, int wide, int taps)
{
	size_t n = (size_t)p->m * p->n;
	p->splits = product_splits(d, p->m, p->n, p->k);
	p->c_f32 = true;
	p->c = cuda_scratch(d, n * p->splits * sizeof(float));
	if (!p->c)
		return;
	own_product(d, p);
	map(d, n, false, gradient_op{dw, dw_t, (const float *)p->c, p->splits, C, wide, taps, n});
}

/* ---- column sums ---- */

enum { STRIPS = 256, COLUMN_THREADS = 128 };

KERNEL column_strips_kernel(float *part, const T *x, size_t rows, int C)
{
	int c = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x);
	size_t from, to;
	strip_rows(from, to, rows, blockIdx.y, gridDim.y);
	if (c >= C)
		return;
	float s = 0;
	for (size_t r = from; r < to; r++)
		s += to_f(x[r * C + c]);
	part[(size_t)blockIdx.y * C + c] = s;
}

void column_sums(struct dev *d, float *sums, const void *x, size_t rows, int C)
{
	size_t strips = ceil_div(rows, 32) < STRIPS ? ceil_div(rows, 32) : (size_t)STRIPS;
	float *part = (float *)cuda_scratch(d, strips * C * sizeof *part);
	unsigned columns = (unsigned)ceil_div(C, COLUMN_THREADS);
	if (!part || !strips)
		return;
	launch(d, column_strips_kernel, dim3(columns, (unsigned)strips), dim3(COLUMN_THREADS), 0, part, (const T *)x, rows, C);
	struct strip_totals t = {{sums}, {1}};
	strips_total(d, &t, 1, part, (int)strips, C);
}
}
