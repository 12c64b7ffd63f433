/* strips.cuh - sums over the rows of a matrix on a GPU without atomic additions: every block sums a strip of rows, in
 * their order, and leaves its sums as a part; then the parts are added.  Which rows a strip has depends on the number of rows
 * and the device only, and so does the order of every sum. */
#ifndef STRIPS_CUH
#define STRIPS_CUH

#include "cuda.cuh"

enum { STRIP_SUMS = 3, TOTAL_WARPS = 8 };

/* Up to three rows of sums: out[C] += factor * the sum over the strips; NULL: not wanted. */
struct strip_totals {
	float *out[STRIP_SUMS];
	float factor[STRIP_SUMS];
};

/* The rows of strip number `strip`. */
DEVICE void strip_rows(size_t &from, size_t &to, size_t rows, unsigned strip, unsigned strips)
{
	from = rows * strip / strips;
	to = rows * (strip + 1) / strips;
}

/* part[strips, gridDim.y, C].  A lane a column; each warp adds every eighth strip, so that reads of many are under way. */
KERNEL strips_total_kernel(struct strip_totals t, const float *part, int strips, int C)
{
	float *room = (float *)SHARED, s = 0;
	int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, c = (int)blockIdx.x * WARP + lane;
	float *out = blockIdx.y == 0 ? t.out[0] : blockIdx.y == 1 ? t.out[1] : t.out[2];
	float factor = blockIdx.y == 0 ? t.factor[0] : blockIdx.y == 1 ? t.factor[1] : t.factor[2];
	for (int k = warp; k < strips && c < C; k += TOTAL_WARPS)
		s += part[((size_t)k * gridDim.y + blockIdx.y) * C + c];
	room[threadIdx.x] = s;
	__syncthreads();
	if (warp || c >= C || !out)
		return;
	for (int i = 1; i < TOTAL_WARPS; i++)
		s += room[i * WARP + lane];
	out[c] += factor * s;
}

static void strips_total(struct dev *d, const struct strip_totals *t, int sums, const float *part, int strips, int C)
{
	dim3 grid((unsigned)ceil_div(C, WARP), (unsigned)sums);
	launch(d, strips_total_kernel, grid, dim3(TOTAL_WARPS * WARP), TOTAL_WARPS * WARP * sizeof(float), *t, part, strips, C);
}

#endif
