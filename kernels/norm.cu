/* norm.cu - norm.c on a GPU: layer norm and division by the Euclidean length.  A warp a row, which stays in the
 * first cache between the passes; gains and biases are summed over strips of rows, then over the strips. */
#include "cuda.cuh"

namespace FOR_TYPE {

enum { ROW_WARPS = 4, STRIPS = 128, COLUMN_THREADS = 128 };
static const float NORM_EPS = 1e-5f, LENGTH_MIN = 1e-12f;

DEVICE size_t warp_row()
{
	return (size_t)blockIdx.x * ROW_WARPS + threadIdx.x / WARP;
}

DEVICE int lane_id()
{
	return (int)(threadIdx.x % WARP);
}

static dim3 row_grid(size_t rows)
{
	return dim3((unsigned)ceil_div(rows, ROW_WARPS));
}

/* ---- layer norm ---- */

/* Two passes for the variance: mean(x^2) - mean^2 loses everything on rows far from zero. */
template <int N>
KERNEL norm_fwd_kernel(T *y, float *mean, float *rstd, const float *x, const float *w, const float *b, size_t rows, int C)
{
	size_t r = warp_row();
	if (r >= rows)
		return;
	float s = 0, v[N], gain[N], bias[N];
	x += r * C;
	y += r * C;
	for (int c = lane_id() * N; c < C; c += WARP * N) {
		load<N>(v, x + c);
		for (int k = 0; k < N; k++)
			s += v[k];
	}
	float mu = warp_sum(s) / C;
	s = 0;
	for (int c = lane_id() * N; c < C; c += WARP * N) {
		load<N>(v, x + c);
		for (int k = 0; k < N; k++)
			s += (v[k] - mu) * (v[k] - mu);
	}
	float rs = 1.0f / sqrtf(warp_sum(s) / C + NORM_EPS);
	for (int c = lane_id() * N; c < C; c += WARP * N) {
		load<N>(v, x + c);
		load<N>(gain, w + c);
		load<N>(bias, b + c);
		for (int k = 0; k < N; k++)
			v[k] = (v[k] - mu) * rs * gain[k] + bias[k];
		store<N>(y + c, v);
	}
	if (lane_id() == 0) {
		mean[r] = mu;
		rstd[r] = rs;
	}
}

void norm_fwd(struct dev *d, void *y, float *mean, float *rstd, const float *x, const float *w, const float *b, size_t rows,
              int C, int flags)
{
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::norm_fwd(d, y, mean, rstd, x, w, b, rows, C, flags);
		return;
	}
	bool vector = C % 4 == 0 && aligned(y, 16) && aligned(x, 16) && aligned(w, 16) && aligned(b, 16);
	launch(d, vector ? norm_fwd_kernel<4> : norm_fwd_kernel<1>, row_grid(rows), dim3(ROW_WARPS * WARP), 0, (T *)y, mean, rstd,
	       x, w, b, rows, C);
}

/* dx = rstd (g - mean(g) - xhat mean(g xhat)), g = w dy. */
template <int N>
KERNEL norm_bwd_kernel(float *dx, const T *dy, const float *x, const float *w, const float *mean, const float *rstd,
                       size_t rows, int C, float scale, int flags)
{
	size_t r = warp_row();
	if (r >= rows)
		return;
	float sg = 0, sx = 0, g[N], v[N], gain[N], old[N], mu = mean[r], rs = rstd[r];
	x += r * C, dx += r * C, dy += r * C;
	for (int c = lane_id() * N; c < C; c += WARP * N) {
		load<N>(g, dy + c);
		load<N>(v, x + c);
		load<N>(gain, w + c);
		for (int k = 0; k < N; k++) {
			sg += gain[k] * g[k];
			sx += gain[k] * g[k] * (v[k] - mu) * rs;
		}
	}
	float mg = warp_sum(sg) / C, mx = warp_sum(sx) / C;
	for (int c = lane_id() * N; c < C; c += WARP * N) {
		load<N>(g, dy + c);
		load<N>(v, x + c);
		load<N>(gain, w + c);
		for (int k = 0; k < N; k++) {
			v[k] = scale * (rs * (gain[k] * g[k] - mg - (v[k] - mu) * rs * mx));
			v[k] = flags & OP_FILTER && !finite(v[k]) ? 0 : v[k];
		}
		if (flags & OP_ADD) {
			load<N>(old, dx + c);
			for (int k = 0; k < N; k++)
				v[k] += old[k];
		}
		store<N>(dx + c, v);
	}
}

/* part[strip, 2, C]: sums of the strip's rows for dw and db, one column a thread. */
KERNEL norm_strips_kernel(float *part, const T *dy, const float *x, const float *mean, const float *rstd, size_t rows, int C)
{
	int c = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x), strip = (int)blockIdx.y, strips = (int)gridDim.y;
	if (c >= C)
		return;
	size_t from = rows * strip / strips, to = rows * (strip + 1) / strips;
	float sw = 0, sb = 0;
	for (size_t r = from; r < to; r++) {
		float g = to_f(dy[r * C + c]);
		sw += g * ((x[r * C + c] - mean[r]) * rstd[r]);
		sb += g;
	}
	part[(size_t)strip * 2 * C + c] = sw;
	part[((size_t)strip * 2 + 1) * C + c] = sb;
}

KERNEL norm_columns_kernel(float *dw, float *db, const float *part, int strips, int C, float scale)
{
	int c = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x);
	if (c >= C)
		return;
	float sw = 0, sb = 0;
	for (int s = 0; s < strips; s++) {
		sw += part[(size_t)s * 2 * C + c];
		sb += part[((size_t)s * 2 + 1) * C + c];
	}
	if (dw)
		dw[c] += scale * sw;
	if (db)
		db[c] += scale * sb;
}

static void norm_parameters(struct dev *d, float *dw, float *db, const T *dy, const float *x, const float *mean,
                            const float *rstd, size_t rows, int C, float scale)
{
	int strips = rows < STRIPS ? (int)rows : STRIPS;
	float *part = (float *)cuda_scratch(d, (size_t)strips * 2 * C * sizeof *part);
	unsigned columns = (unsigned)ceil_div(C, COLUMN_THREADS);
	if (!part)
		return;
	launch(d, norm_strips_kernel, dim3(columns, (unsigned)strips), dim3(COLUMN_THREADS), 0, part, dy, x, mean, rstd, rows, C);
	launch(d, norm_columns_kernel, dim3(columns), dim3(COLUMN_THREADS), 0, dw, db, part, strips, C, scale);
}

void norm_bwd(struct dev *d, float *dx, float *dw, float *db, const void *dy, const float *x, const float *w,
              const float *mean, const float *rstd, size_t rows, int C, float scale, int flags)
{
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::norm_bwd(d, dx, dw, db, dy, x, w, mean, rstd, rows, C, scale, flags);
		return;
	}
	bool vector = C % 4 == 0 && aligned(dx, 16) && aligned(dy, 16) && aligned(x, 16) && aligned(w, 16);
	/* First the parameters: dx may be what dy or x shares its place with, never the other way round. */
	if (dw || db)
		norm_parameters(d, dw, db, (const T *)dy, x, mean, rstd, rows, C, scale);
	if (dx)
		launch(d, vector ? norm_bwd_kernel<4> : norm_bwd_kernel<1>, row_grid(rows), dim3(ROW_WARPS * WARP), 0, dx,
		       (const T *)dy, x, w, mean, rstd, rows, C, scale, flags);
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
	launch(d, l2_fwd_kernel, row_grid(rows), dim3(ROW_WARPS * WARP), 0, y, rnorm, x, rows, C);
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
		launch(d, l2_bwd_kernel, row_grid(rows), dim3(ROW_WARPS * WARP), 0, dx, dy, y, rnorm, rows, C);
}
}
