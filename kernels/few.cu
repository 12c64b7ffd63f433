/* few.cu - linear layers of at most FEW_ROWS rows, as in decoding: bound by reading the weights, each once.
 *
 * A block takes 16 columns at a time.  Its warps share the summed index in chunks of 64, and each keeps several chunks of
 * weights on their way to shared memory, through all the columns of the block without a pause; where the weights are settled,
 * the first of them already before the kernel's turn.  The products are the tensor cores', with the weights as the
 * 16 rows of a and x as the 8 columns of b: what rows are missing are zeros.  So a row's bits do not depend on the
 * others, and the warps' sums are added in the order of the warps. */
#include "few.cuh"

#include "gelu.cuh"
#include "mma.cuh"

namespace FOR_TYPE {

enum {
	WARPS = 8, TILE = 16,
	DEPTH = 64, PIECE = 8, PIECES = DEPTH / PIECE, /* a line of a chunk is 128 bytes, in pieces of 16 */
	LINE = TILE + 4,                               /* of sums: lanes then write to different banks */
};

/* Piece j of a line; lines that a matrix is read from at once lie in different banks. */
DEVICE T *piece(T *chunk, int line, int j)
{
	return chunk + line * DEPTH + (j ^ (line & 1) * (PIECES / 2)) * PIECE;
}

/* ---- the chunks that are on their way ---- */

/* A warp copies STEP lines at once, a lane piece lane_j() of line lane_line() and of every STEP-th one after it. */
enum { STEP = WARP / PIECES };

DEVICE int lane_line()
{
	return (int)threadIdx.x % WARP / PIECES;
}

DEVICE int lane_j()
{
	return (int)threadIdx.x % PIECES;
}

struct ring {
	T *base;  /* of the warp */
	int size; /* elements of a chunk: TILE columns of w, and the rows of x */
	int tiles, chunks;
};

/* A warp's chunks in their order: every WARPS-th one of each of the block's tiles. */
struct walk {
	const T *w; /* the lane's first piece */
	int tile, chunk, place /* in the ring */;
};

DEVICE void go_to(struct walk &a, const struct few &f, int tile)
{
	a.tile = tile;
	a.chunk = (int)threadIdx.x / WARP;
	a.w = (const T *)f.w + (size_t)(tile * TILE + lane_line()) * f.in + a.chunk * DEPTH + lane_j() * PIECE;
}

template <int STAGES> DEVICE void advance(struct walk &a, const struct few &f, const struct ring &r)
{
	a.place = a.place + 1 == STAGES ? 0 : a.place + 1;
	a.chunk += WARPS;
	a.w += WARPS * DEPTH;
	if (a.chunk >= r.chunks)
		go_to(a, f, a.tile + (int)gridDim.x);
}

/* Columns and indices beyond the last are zeros. */
DEVICE void fetch(const struct few &f, const struct ring &r, const struct walk &a, bool weights, bool rows)
{
	int k = a.chunk * DEPTH + lane_j() * PIECE, left = f.out - a.tile * TILE - lane_line();
	T *to = piece(r.base + a.place * r.size, lane_line(), lane_j());
	const T *x = (const T *)f.x + (size_t)lane_line() * f.in + k;
	if (a.tile >= r.tiles)
		return;
#pragma unroll
	for (int line = 0; line < TILE; line += STEP)
		if (weights)
			copy16(to + line * DEPTH, a.w + (size_t)line * f.in, k >= f.in || line >= left);
#pragma unroll
	for (int line = 0; line < FEW_ROWS; line += STEP)
		if (rows && lane_line() + line < f.rows)
			copy16(to + (TILE + line) * DEPTH, x + (size_t)line * f.in, k >= f.in);
}

/* The first STAGES - 1 chunks; early: the weights are settled, and the kernel's turn may be far. */
template <int STAGES> DEVICE struct walk begin(const struct few &f, const struct ring &r, bool early)
{
	struct walk first = {NULL, 0, 0, 0};
	go_to(first, f, (int)threadIdx.x / WARP < r.chunks ? (int)blockIdx.x : r.tiles);
	struct walk ahead = first;
	for (int s = 0; s < STAGES - 1 && early; s++, advance<STAGES>(ahead, f, r))
		fetch(f, r, ahead, true, false);
	await_previous();
	let_next_start();
	ahead = first;
	for (int s = 0; s < STAGES - 1; s++, advance<STAGES>(ahead, f, r)) {
		fetch(f, r, ahead, !early, true);
		copies_commit();
	}
	return ahead;
}

/* ---- sums ---- */

/* sum[16, 8] += a chunk's weights times its rows, in mma's layout.  Which k an element of a fragment stands for does not
 * matter as long as both factors agree: so a lane takes whole pieces. */
DEVICE void multiply(float sum[4], T *chunk, int rows)
{
	typedef pack<uint32_t, 4> fragment;
	int lane = (int)threadIdx.x % WARP, g = lane / 4;
#pragma unroll
	for (int j = 0; j < PIECES; j += 4) {
		fragment w0 = *(const fragment *)piece(chunk, g, lane % 4 + j), w8 = *(const fragment *)piece(chunk, g + 8, lane % 4 + j);
		fragment x = {};
		if (g < rows)
			x = *(const fragment *)piece(chunk, TILE + g, lane % 4 + j);
#pragma unroll
		for (int i = 0; i < 4; i += 2) {
			const uint32_t a[4] = {w0.v[i], w8.v[i], w0.v[i + 1], w8.v[i + 1]}, b[2] = {x.v[i], x.v[i + 1]};
			mma(sum, a, b, T());
		}
	}
}

/* A warp's sums to part[rows, LINE]. */
DEVICE void leave(float *part, const float sum[4], int rows)
{
	int lane = (int)threadIdx.x % WARP;
#pragma unroll
	for (int q = 0; q < 4; q++) {
		int column = lane / 4 + q / 2 * 8, r = lane % 4 * 2 + q % 2;
		if (r < rows)
			part[r * LINE + column] = sum[q];
	}
}

/* The result that a thread finishes, if any, and what it adds: read before the sums are there. */
struct result {
	bool mine;
	size_t at;
	float bias, before;
};

DEVICE struct result result_of(const struct few &f, int tile)
{
	int row = (int)threadIdx.x / TILE, column = tile * TILE + (int)threadIdx.x % TILE;
	struct result r = {row < f.rows && column < f.out, (size_t)row * f.out + column, 0, 0};
	if (r.mine && f.b)
		r.bias = f.b[column];
	if (r.mine && f.add)
		r.before = f.add[r.at];
	return r;
}

DEVICE void finish(const struct few &f, const struct result &r, const float *parts)
{
	int part = f.rows * LINE;
	float v = 0;
	if (!r.mine)
		return;
	parts += threadIdx.x / TILE * LINE + threadIdx.x % TILE;
#pragma unroll
	for (int w = 0; w < WARPS; w++)
		v += parts[w * part];
	v += r.bias;
	T u = make<T>(v);
	if (f.u) {
		((T *)f.u)[r.at] = u;
		((T *)f.y)[r.at] = make<T>(gelu(to_f(u), f.exact));
	} else if (f.wide) {
		((float *)f.y)[r.at] = f.add ? r.before + v : v;
	} else {
		((T *)f.y)[r.at] = u;
	}
}

/* ---- the kernel ---- */

template <int STAGES> KERNEL __launch_bounds__(WARPS * WARP) few_kernel(struct few f, bool early)
{
	int warp = (int)threadIdx.x / WARP, size = (TILE + f.rows) * DEPTH, part = f.rows * LINE;
	struct ring r = {(T *)SHARED + warp * STAGES * size, size, (f.out + TILE - 1) / TILE, (f.in + DEPTH - 1) / DEPTH};
	float *parts = (float *)((T *)SHARED + WARPS * STAGES * size);
	struct walk ahead = begin<STAGES>(f, r, early);
	/* Two sets of parts in turn: one barrier a tile is enough. */
	for (int tile = (int)blockIdx.x, place = 0, odd = 0; tile < r.tiles; tile += (int)gridDim.x, odd ^= 1) {
		float *set = parts + odd * WARPS * part, sum[4] = {};
		struct result mine = result_of(f, tile);
		for (int chunk = warp; chunk < r.chunks; chunk += WARPS) {
			copies_wait<STAGES - 2>();
			__syncwarp();
			fetch(f, r, ahead, true, true);
			copies_commit();
			advance<STAGES>(ahead, f, r);
			multiply(sum, r.base + place * size, f.rows);
			place = place + 1 == STAGES ? 0 : place + 1;
		}
		leave(set + warp * part, sum, f.rows);
		__syncthreads();
		finish(f, mine, set);
	}
}

static size_t few_shared(int stages, int rows)
{
	return WARPS * (stages * (TILE + rows) * DEPTH * sizeof(T) + 2 * rows * LINE * sizeof(float));
}

/* Whether it fits into `room` bytes of shared memory. */
template <int STAGES> static bool run(struct dev *d, const struct few &f, size_t room)
{
	size_t tiles = ceil_div(f.out, TILE), blocks = ceil_div(tiles, ceil_div(tiles, d->sms)); /* as many tiles for each */
	size_t results = (size_t)f.rows * f.out, shared = few_shared(STAGES, f.rows);
	struct written w = {{{f.y, results * (f.wide ? sizeof(float) : sizeof(T))}, {f.u, f.u ? results * sizeof(T) : 0}, {NULL, 0}}};
	bool early = settled(d, f.w, (size_t)f.in * f.out * sizeof(T));
	if (shared > room)
		return false;
	launch_early(d, w, few_kernel<STAGES>, dim3((unsigned)blocks), dim3(WARPS * WARP), shared, f, early);
	return true;
}

bool few_rows(struct dev *d, struct few f, size_t rows)
{
	enum { SYSTEM = 1 << 10 }; /* bytes of shared memory that are kept for each block */
	size_t half = (d->shared_max - SYSTEM) / 2;
	if (!rows || rows > FEW_ROWS || f.in % PIECE || !aligned(f.x, 16) || !aligned(f.w, 16))
		return false;
	f.rows = (int)rows;
	/* As much on its way as leaves room for the next kernel's blocks beside this one's; at the least 32 KB. */
	return run<6>(d, f, half) || run<5>(d, f, half) || run<4>(d, f, half) || run<3>(d, f, d->shared_max);
}
}
