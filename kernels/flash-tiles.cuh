/* flash-tiles.cuh - what the forward (flash.cu) and the backward (flash-bwd.cu) of attention on tensor cores share: tiles of
 * a head's rows in shared memory, products of tiles by a warp, and what the mask leaves of a tile.
 *
 * DP is the head's width padded with zeros, MT how many strips of 16 rows a warp has of its product.  Tiles of
 * queries and of keys do not mix text and image. */
#ifndef FLASH_TILES_CUH
#define FLASH_TILES_CUH

#include "flash.cuh"
#include "mma.cuh"

namespace FOR_TYPE {

enum { PAD = 8, CHUNK = 8 };

/* ---- tiles in shared memory: [ROWS][DP + PAD]; the padding keeps eight rows of a matrix in different banks ---- */

/* The rows of a head: row i is the D elements at p + i * stride.  A head's elements are no further apart than an int can
 * say (see suits), which saves half of the address arithmetic. */
struct rows {
	const T *p;
	int stride;
};

/* The rows at places from .. of the mask's order, of two tensors at once (where a place is costs divisions, and is found
 * once); places from `to` on are zeros. */
template <int ROWS, int DP, int THREADS>
DEVICE void fetch_two(T *ta, struct rows a, T *tb, struct rows b, const struct mask &m, int from, int to, int D)
{
	for (int c = (int)threadIdx.x; c < ROWS * (DP / CHUNK); c += THREADS) {
		int row = c / (DP / CHUNK), column = c % (DP / CHUNK) * CHUNK, at = row * (DP + PAD) + column;
		bool there = from + row < to && column < D;
		int state = there ? state_at(m, from + row) : 0;
		copy16(ta + at, a.p + state * a.stride + column, !there);
		copy16(tb + at, b.p + state * b.stride + column, !there);
	}
}

template <int ROWS, int DP, int THREADS>
DEVICE void fetch(T *tile, struct rows x, const struct mask &m, int from, int to, int D)
{
	for (int c = (int)threadIdx.x; c < ROWS * (DP / CHUNK); c += THREADS) {
		int row = c / (DP / CHUNK), column = c % (DP / CHUNK) * CHUNK;
		bool there = from + row < to && column < D;
		int state = there ? state_at(m, from + row) : 0;
		copy16(tile + row * (DP + PAD) + column, x.p + state * x.stride + column, !there);
	}
}

/* Lines of LINE elements.  a fragment: rows row0 .. row0 + 15, columns k0 .. k0 + 15 of the tile. */
template <int LINE> DEVICE void a_of(uint32_t r[4], const T *tile, int row0, int k0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices(r, tile + (row0 + lane % 8 + lane / 8 % 2 * 8) * LINE + k0 + lane / 16 * 8);
}

/* The same of a tile that lies transposed: its rows are k. */
template <int LINE> DEVICE void a_transposed(uint32_t r[4], const T *tile, int row0, int k0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices_transposed(r, tile + (k0 + lane % 8 + lane / 16 * 8) * LINE + row0 + lane / 8 % 2 * 8);
}

/* Two b fragments: the tile's rows n0 .. n0 + 15 are the product's columns, its columns the summed index. */
template <int LINE> DEVICE void b_of(uint32_t r[4], const T *tile, int n0, int k0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices(r, tile + (n0 + lane % 8 + lane / 16 * 8) * LINE + k0 + lane / 8 % 2 * 8);
}

/* The same with the tile's rows as the summed index and its columns as the product's. */
template <int LINE> DEVICE void b_transposed(uint32_t r[4], const T *tile, int k0, int n0)
{
	int lane = (int)threadIdx.x % WARP;
	load_matrices_transposed(r, tile + (k0 + lane % 8 + lane / 8 % 2 * 8) * LINE + n0 + lane / 16 * 8);
}

/* ---- products of a warp ---- */

/* s[16 MT, COLUMNS] = rows row0.. of a times the rows of b, over DP. */
template <int DP, int COLUMNS, int MT>
DEVICE void scores(float s[MT][COLUMNS / 8][4], const T *a, int row0, const T *b)
{
#pragma unroll
	for (int i = 0; i < MT; i++)
#pragma unroll
		for (int j = 0; j < COLUMNS / 8; j++)
			s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0;
#pragma unroll
	for (int k = 0; k < DP; k += 16) {
		uint32_t fa[MT][4], fb[4];
#pragma unroll
		for (int i = 0; i < MT; i++)
			a_of<DP + PAD>(fa[i], a, row0 + 16 * i, k);
#pragma unroll
		for (int j = 0; j < COLUMNS / 16; j++) {
			b_of<DP + PAD>(fb, b, 16 * j, k);
#pragma unroll
			for (int i = 0; i < MT; i++) {
				mma(s[i][2 * j], fa[i], fb, T());
				mma(s[i][2 * j + 1], fa[i], fb + 2, T());
			}
		}
	}
}

/* Sums p[16, COLUMNS] rounded to T, as fragments of a. */
template <int COLUMNS> DEVICE void fragments_of(uint32_t f[COLUMNS / 16][4], const float p[COLUMNS / 8][4])
{
#pragma unroll
	for (int k = 0; k < COLUMNS / 16; k++) {
		f[k][0] = pair_of(p[2 * k][0], p[2 * k][1], T());
		f[k][1] = pair_of(p[2 * k][2], p[2 * k][3], T());
		f[k][2] = pair_of(p[2 * k + 1][0], p[2 * k + 1][1], T());
		f[k][3] = pair_of(p[2 * k + 1][2], p[2 * k + 1][3], T());
	}
}

/* sum[16 MT, DP] += p[16 MT, ROWS] times the tile b[ROWS, DP]. */
template <int DP, int ROWS, int MT>
DEVICE void weigh(float sum[MT][DP / 8][4], const uint32_t p[MT][ROWS / 16][4], const T *b)
{
#pragma unroll
	for (int k = 0; k < ROWS / 16; k++)
#pragma unroll
		for (int j = 0; j < DP / 16; j++) {
			uint32_t fb[4];
			b_transposed<DP + PAD>(fb, b, 16 * k, 16 * j);
#pragma unroll
			for (int i = 0; i < MT; i++) {
				mma(sum[i][2 * j], p[i][k], fb, T());
				mma(sum[i][2 * j + 1], p[i][k], fb + 2, T());
			}
		}
}

/* Row r (0, 1) and column q (0, 1) of what a lane holds of the fragment whose first row and column are 0. */
DEVICE int lane_row(int r)
{
	return (int)threadIdx.x % WARP / 4 + 8 * r;
}

DEVICE int lane_column(int q)
{
	return (int)threadIdx.x % 4 * 2 + q;
}

/* Rows row0 + .. of y = gain[r] * sum, below `to`; y is the head's. */
template <int DP>
DEVICE void store_rows(T *y, int stride, const struct mask &m, int row0, int to, int D, const float sum[DP / 8][4],
                       const float gain[2])
{
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int i = row0 + lane_row(r);
		if (i >= to)
			continue;
		T *out = y + state_at(m, i) * stride + lane_column(0);
#pragma unroll
		for (int j = 0; j < DP / 8; j++)
			if (8 * j < D)
				*(uint32_t *)(out + 8 * j) = pair_of(gain[r] * sum[j][2 * r], gain[r] * sum[j][2 * r + 1], T());
	}
}

/* ---- masks of tiles ---- */

/* How many of the queries from q0 to q1 see how many of the keys from k0 to k1, both inclusive and neither mixing text
 * and image: surely none, surely all, or some. */
enum seen { SEEN_NONE, SEEN_SOME, SEEN_ALL };
DEVICE enum seen tile_seen(const struct mask &m, int q0, int q1, int k0, int k1)
{
	if (m.kind == ATTN_FULL)
		return SEEN_ALL;
	if (q1 < k0)
		return SEEN_NONE;
	if (k1 < m.text)
		return q0 >= k1 ? SEEN_ALL : SEEN_SOME;
	if (k1 < first_image_key(m, q0))
		return SEEN_NONE;
	return m.kind != ATTN_CONV && q0 >= k1 && k0 >= first_image_key(m, q1) ? SEEN_ALL : SEEN_SOME;
}

/* Places first .. last, without those that conv_tap leaves out where has_gaps. */
struct span {
	int first, last;
};

/* The keys of a tile, k0 .. to - 1, that query i sees. */
DEVICE struct span keys_seen(const struct mask &m, int i, int k0, int to)
{
	if (m.kind == ATTN_FULL)
		return span{k0, to - 1};
	return span{k0 < m.text ? 0 : first_image_key(m, i), min(i, to - 1)};
}

/* The queries of a tile, below `to`, that see key j of a tile of keys that ends before `end`. */
DEVICE struct span queries_seeing(const struct mask &m, int j, int end, int to)
{
	if (m.kind == ATTN_FULL || j >= end)
		return span{0, j < end ? to - 1 : -1};
	return span{j, min(last_query(m, j), to - 1)};
}

/* Whether the mask has gaps among the keys from k0 on. */
DEVICE bool has_gaps(const struct mask &m, int k0)
{
	return m.kind == ATTN_CONV && k0 >= m.text;
}

/* Tile number n, of ROWS places, begins at row0 and ends before `to`. */
template <int ROWS> DEVICE void tile_rows(const struct mask &m, int n, int &row0, int &to)
{
	int text = (m.text + ROWS - 1) / ROWS;
	row0 = n < text ? n * ROWS : m.text + (n - text) * ROWS;
	to = min(row0 + ROWS, n < text ? m.text : m.S);
}

__host__ __device__ static inline int tile_count(const struct mask &m, int rows)
{
	return (m.text + rows - 1) / rows + (m.S - m.text + rows - 1) / rows;
}

/* ---- heads ---- */

/* One head of one sequence: slices of qkv[B,S,3,H,D], and where those of y[B,S,H,D] begin and how far apart they are. */
struct head {
	struct rows q, k, v;
	size_t y;
	int y_stride;
};

DEVICE struct head head_of(const T *qkv, const struct mask &m, int H, int D, int h, int b)
{
	int part = H * D, stride = 3 * part;
	const T *q = qkv + (size_t)b * m.S * stride + h * D;
	return head{{q, stride}, {q + part, stride}, {q + 2 * part, stride}, (size_t)b * m.S * part + h * D, part};
}

/* Whether rows are made of whole chunks, a sequence is not too long for ints, and a block can have so much shared memory. */
static inline bool suits(const struct dev *d, int H, int D, const struct mask *m, size_t shared)
{
	return D % CHUNK == 0 && D <= 128 && (size_t)m->S * 3 * H * D <= INT32_MAX && shared <= d->shared_max;
}
}

#endif
