/* norm.cu - norm.c on a GPU: layer norm and division by the Euclidean length.  A norm reads each row once and keeps
 * it in the registers of a block; gains and biases are summed over strips of rows, then over the strips. */
#include "strips.cuh"

namespace FOR_TYPE {

/* 768 threads leave each 80 registers, so that three blocks of a row of 2048 run at once on a multiprocessor. */
enum { ROW_WARPS = 24, ROW_THREADS = ROW_WARPS * WARP, ANY_THREADS = 256, GROUPS = 2, EACH = 4 * GROUPS };
enum { WARP_ROWS = 4 }; /* of a block whose warps have a row each */
static const float NORM_EPS = 1e-5f, LENGTH_MIN = 1e-12f;

/* ---- a row in the registers of a block: EACH columns a thread, in groups of four ---- */

static bool fits_registers(int C)
{
	return C % 4 == 0 && C <= EACH * ROW_THREADS;
}

static unsigned row_threads(int C)
{
	return (unsigned)ceil_div(C, EACH * WARP) * WARP;
}

DEVICE int group_column(int q)
{
	return 4 * ((int)threadIdx.x + q * (int)blockDim.x);
}

/* Zeros from column C on. */
template <class S> DEVICE void take_row(float v[EACH], const S *row, int C)
{
#pragma unroll
	for (int q = 0; q < GROUPS; q++)
		if (group_column(q) < C)
			load<4>(v + 4 * q, row + group_column(q));
		else
			v[4 * q] = v[4 * q + 1] = v[4 * q + 2] = v[4 * q + 3] = 0;
}

template <class S> DEVICE void put_row(S *row, const float v[EACH], int C)
{
#pragma unroll
	for (int q = 0; q < GROUPS; q++)
		if (group_column(q) < C)
			store<4>(row + group_column(q), v + 4 * q);
}

DEVICE size_t warp_row()
{
	return (size_t)blockIdx.x * WARP_ROWS + threadIdx.x / WARP;
}

static dim3 row_grid(size_t rows)
{
	return dim3((unsigned)ceil_div(rows, WARP_ROWS));
}

/* ---- layer norm ---- */

/* A block a row, which it reads once.  Two passes for the variance: mean(x^2) - mean^2 loses everything on rows far from
 * zero. */
KERNEL __launch_bounds__(ROW_THREADS) norm_fwd_kernel(T *y, float *mean, float *rstd, const float *x, const float *w,
                                                      const float *b, int C)
{
	float v[EACH], gain[EACH], bias[EACH], *room = (float *)SHARED, s = 0;
	size_t r = blockIdx.x;
	await_previous();
	let_next_start();
	take_row(v, x + r * C, C);
	take_row(gain, w, C);
#pragma unroll
	for (int k = 0; k < EACH; k++)
		s += v[k];
	float mu = block_sum(s, room) / C;
	s = 0;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		v[k] -= mu;
		s += group_column(k / 4) < C ? v[k] * v[k] : 0;
	}
	float rs = 1.0f / sqrtf(block_sum(s, room) / C + NORM_EPS);
	take_row(bias, b, C);
#pragma unroll
	for (int k = 0; k < EACH; k++)
		v[k] = v[k] * rs * gain[k] + bias[k];
	put_row(y + r * C, v, C);
	if (threadIdx.x == 0) {
		mean[r] = mu;
		rstd[r] = rs;
	}
}

/* The same for any width: a warp a row. */
KERNEL norm_fwd_any_kernel(T *y, float *mean, float *rstd, const float *x, const float *w, const float *b, size_t rows, int C)
{
	size_t r = warp_row();
	await_previous();
	let_next_start();
	if (r >= rows)
		return;
	float s = 0;
	x += r * C;
	y += r * C;
	for (int c = lane_id(); c < C; c += WARP)
		s += x[c];
	float mu = warp_sum(s) / C;
	s = 0;
	for (int c = lane_id(); c < C; c += WARP)
		s += (x[c] - mu) * (x[c] - mu);
	float rs = 1.0f / sqrtf(warp_sum(s) / C + NORM_EPS);
	for (int c = lane_id(); c < C; c += WARP)
		from_f(y[c], (x[c] - mu) * rs * w[c] + b[c]);
	if (lane_id() == 0) {
		mean[r] = mu;
		rstd[r] = rs;
	}
}

void norm_fwd(struct dev *d, void *y, float *mean, float *rstd, const float *x, const float *w, const float *b, size_t rows,
              int C, int flags)
{
	struct written out = {{{y, rows * C * sizeof(T)}, {mean, rows * sizeof *mean}, {rstd, rows * sizeof *rstd}}};
	if (!T_IS_F32 && flags & OP_F32)
		for_f32::norm_fwd(d, y, mean, rstd, x, w, b, rows, C, flags);
	else if (fits_registers(C) && aligned(y, 16) && aligned(x, 16) && aligned(w, 16) && aligned(b, 16))
		launch_early(d, out, norm_fwd_kernel, dim3((unsigned)rows), dim3(row_threads(C)), ROW_WARPS * sizeof(float), (T *)y, mean,
		             rstd, x, w, b, C);
	else
		launch_early(d, out, norm_fwd_any_kernel, row_grid(rows), dim3(WARP_ROWS * WARP), 0, (T *)y, mean, rstd, x, w, b, rows, C);
}

/* What the kernels of the backward work on; see ops.h. */
struct norm_gradient {
	float *dx;   /* NULL: not wanted */
	T *next;     /* NULL: not wanted; may be dy: a thread has read what it overwrites, and no other reads it */
	float *part; /* [strips, sums, C]: dw, db and, with three sums, those of next; NULL: not wanted */
	const T *dy;
	const float *x, *w, *mean, *rstd;
	size_t rows;
	int C, sums;
	float scale, next_scale;
	bool add, filter;
};

/* dx = rstd (g - mean(g) - xhat mean(g xhat)), g = w dy; here for one element, as it is stored. */
DEVICE float norm_dx(const struct norm_gradient &n, float g, float xhat, float rs, float mg, float mx, float old)
{
	float v = n.scale * (rs * (g - mg - xhat * mx));
	return (n.filter && !finite(v) ? 0 : v) + old;
}

/* What the next product takes of it. */
DEVICE float norm_next_value(const struct norm_gradient &n, float dx)
{
	float v = n.next_scale * dx;
	return finite(v) ? v : 0;
}

/* Means of a and b over the block.  room: two values a warp, not the ones of the call before, which may still be read. */
DEVICE void block_means(float &a, float &b, float *room, int C)
{
	int warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
	a = warp_sum(a), b = warp_sum(b);
	if (threadIdx.x % WARP == 0)
		room[2 * warp] = a, room[2 * warp + 1] = b;
	__syncthreads();
	a = room[0], b = room[1];
	for (int i = 1; i < warps; i++)
		a += room[2 * i], b += room[2 * i + 1];
	a /= C, b /= C;
}

/* A block walks over a strip of rows with the row in registers: everything is read once. */
KERNEL __launch_bounds__(ROW_THREADS) norm_bwd_kernel(struct norm_gradient n)
{
	float sw[EACH] = {}, sb[EACH] = {}, st[EACH] = {}, gain[EACH], g[EACH], v[EACH], old[EACH];
	float *room = (float *)SHARED;
	size_t from, to;
	strip_rows(from, to, n.rows, blockIdx.x, gridDim.x);
	take_row(gain, n.w, n.C);
	for (size_t r = from; r < to; r++) {
		float sg = 0, sx = 0, mu = n.mean[r], rs = n.rstd[r];
		take_row(g, n.dy + r * n.C, n.C);
		take_row(v, n.x + r * n.C, n.C);
		take_row(old, n.dx + r * n.C, n.dx && n.add ? n.C : 0);
#pragma unroll
		for (int k = 0; k < EACH; k++) {
			v[k] = (v[k] - mu) * rs;
			sw[k] += g[k] * v[k];
			sb[k] += g[k];
			g[k] *= gain[k];
			sg += g[k];
			sx += g[k] * v[k];
		}
		if (!n.dx)
			continue;
		block_means(sg, sx, room + (r - from) % 2 * 2 * ROW_WARPS, n.C);
#pragma unroll
		for (int k = 0; k < EACH; k++)
			v[k] = norm_dx(n, g[k], v[k], rs, sg, sx, old[k]);
		put_row(n.dx + r * n.C, v, n.C);
#pragma unroll
		for (int k = 0; k < EACH; k++) {
			v[k] = norm_next_value(n, v[k]);
			st[k] += to_f(make<T>(v[k]));
		}
		if (n.next)
			put_row(n.next + r * n.C, v, n.C);
	}
	float *part = n.part + (size_t)blockIdx.x * n.sums * n.C;
	if (!n.part)
		return;
	put_row(part, sw, n.C);
	put_row(part + n.C, sb, n.C);
	put_row(part + 2 * n.C, st, n.sums > 2 ? n.C : 0);
}

/* The same for any width: nothing is kept, each thread adds to its own columns of the strip's sums. */
KERNEL norm_bwd_any_kernel(struct norm_gradient n)
{
	float *room = (float *)SHARED, *sw = n.part + (size_t)blockIdx.x * n.sums * n.C, *sb = sw + n.C, *st = sb + n.C;
	int first = (int)threadIdx.x, step = (int)blockDim.x;
	size_t from, to;
	strip_rows(from, to, n.rows, blockIdx.x, gridDim.x);
	for (int c = first; n.part && c < n.C; c += step)
		for (int k = 0; k < n.sums; k++)
			sw[k * n.C + c] = 0;
	for (size_t r = from; r < to; r++) {
		float sg = 0, sx = 0, mu = n.mean[r], rs = n.rstd[r];
		const T *dy = n.dy + r * n.C;
		const float *x = n.x + r * n.C;
		for (int c = first; c < n.C; c += step) {
			float g = to_f(dy[c]), xhat = (x[c] - mu) * rs;
			if (n.part)
				sw[c] += g * xhat, sb[c] += g;
			sg += n.w[c] * g;
			sx += n.w[c] * g * xhat;
		}
		if (!n.dx)
			continue;
		block_means(sg, sx, room + (r - from) % 2 * 2 * ROW_WARPS, n.C);
		for (int c = first; c < n.C; c += step) {
			float *dx = n.dx + r * n.C + c;
			*dx = norm_dx(n, n.w[c] * to_f(dy[c]), (x[c] - mu) * rs, rs, sg, sx, n.add ? *dx : 0);
			T next = make<T>(norm_next_value(n, *dx));
			if (n.next)
				n.next[r * n.C + c] = next;
			if (n.sums > 2)
				st[c] += to_f(next);
		}
	}
}

/* As many strips as blocks run at once. */
static unsigned norm_strips(const struct dev *d, size_t rows, unsigned threads)
{
	size_t strips = (size_t)d->sms * (ROW_THREADS / threads);
	return (unsigned)(rows < strips ? rows : strips);
}

void norm_bwd(struct dev *d, float *dx, float *dw, float *db, const void *dy, const float *x, const float *w,
              const float *mean, const float *rstd, size_t rows, int C, float scale, int flags, const struct norm_next *next)
{
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::norm_bwd(d, dx, dw, db, dy, x, w, mean, rstd, rows, C, scale, flags, next);
		return;
	}
	void *ndy = next && dx ? next->dy : NULL;
	float *ndb = next && dx ? next->db : NULL;
	bool held = fits_registers(C) && aligned(dx, 16) && aligned(dy, 16) && aligned(x, 16) && aligned(w, 16) && aligned(ndy, 16);
	unsigned threads = held ? row_threads(C) : (unsigned)ANY_THREADS, strips = norm_strips(d, rows, threads);
	struct norm_gradient n = {dx, (T *)ndy, NULL, (const T *)dy, x, w, mean, rstd, rows, C, ndb ? 3 : 2, scale,
	                          next ? next->scale : 0, (flags & OP_ADD) != 0, (flags & OP_FILTER) != 0};
	bool wanted = dw || db || ndb;
	if (!strips || (!dx && !wanted))
		return;
	if (wanted && !(n.part = (float *)cuda_scratch(d, (size_t)strips * n.sums * C * sizeof *n.part)))
		return;
	launch(d, held ? norm_bwd_kernel : norm_bwd_any_kernel, dim3(strips), dim3(threads), 4 * ROW_WARPS * sizeof(float), n);
	struct strip_totals t = {{dw, db, ndb}, {scale, scale, 1}};
	if (wanted)
		strips_total(d, &t, n.sums, n.part, (int)strips, C);
}

/* ---- length ---- */

KERNEL l2_fwd_kernel(float *y, float *rnorm, const float *x, size_t rows, int C)
{
	size_t r = warp_row();
	if (r >= rows)
		return;
	float s = 0;
	for (int c = lane_id(); c < C; c += WARP)
		s += x[r * C + c] * x[r * C + c];
	float length = sqrtf(warp_sum(s));
	/* A row of zeros stays one instead of becoming NaN. */
	float rn = 1.0f / (length < LENGTH_MIN ? LENGTH_MIN : length);
	for (int c = lane_id(); c < C; c += WARP)
		y[r * C + c] = x[r * C + c] * rn;
	if (lane_id() == 0)
		rnorm[r] = rn;
}

void l2_fwd(struct dev *d, float *y, float *rnorm, const float *x, size_t rows, int C)
{
	launch(d, l2_fwd_kernel, row_grid(rows), dim3(WARP_ROWS * WARP), 0, y, rnorm, x, rows, C);
}

/* dx = (dy - y (y . dy)) / |x| */
KERNEL l2_bwd_kernel(float *dx, const float *dy, const float *y, const float *rnorm, size_t rows, int C)
{
	size_t r = warp_row();
	if (r >= rows)
		return;
	float s = 0, rn = rnorm[r];
	for (int c = lane_id(); c < C; c += WARP)
		s += y[r * C + c] * dy[r * C + c];
	float along = warp_sum(s);
	for (int c = lane_id(); c < C; c += WARP)
		dx[r * C + c] = (dy[r * C + c] - y[r * C + c] * along) * rn;
}

void l2_bwd(struct dev *d, float *dx, const float *dy, const float *y, const float *rnorm, size_t rows, int C)
{
	if (dx)
		launch(d, l2_bwd_kernel, row_grid(rows), dim3(WARP_ROWS * WARP), 0, dx, dy, y, rnorm, rows, C);
}
}
