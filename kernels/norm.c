/* norm.c - layer norm and division by the Euclidean length, rows of C values.  Statistics in f32;
 * a row is summed in eight lanes of fixed order, gains and biases in blocks of rows, so nothing
 * depends on the thread count. */
#include "cpu.h"
#include "vec.h"

#include <math.h>

enum { SMALL = 8192 /* fewer elements: one thread */, STRIP = 64, ROW_BLOCK = 32 };
static const float NORM_EPS = 1e-5f, LENGTH_MIN = 1e-12f;

/* The row r of a T tensor in f32: itself, or converted into buf. */
static VINLINE const float *row_f32(float *buf, const void *x, enum dtype t, size_t r, int C)
{
	if (t == DT_F32)
		return (const float *)x + r * C;
	row_to_f32(buf, at_const(x, t, r * C), t, C);
	return buf;
}

static VINLINE float row_sum(const float *x, size_t n)
{
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		s += v_row(x, i, n, 0);
	return v_sum(s);
}

static VINLINE float row_dot(const float *x, const float *y, size_t n)
{
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		s += v_row(x, i, n, 0) * v_row(y, i, n, 0);
	return v_sum(s);
}

/* ---- layer norm ---- */

/* Two passes for the variance: mean(x^2) - mean^2 loses everything on rows far from zero. */
CLONES static void norm_row(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, int C)
{
	float mu = row_sum(x, C) / C;
	vf s = v_set(0);
	for (size_t i = 0, n = C; i < n; i += VL) {
		vf c = v_row(x, i, n, mu) - mu;
		s += c * c;
	}
	float rs = 1.0f / sqrtf(v_sum(s) / C + NORM_EPS);
	for (int i = 0; i < C; i++)
		y[i] = (x[i] - mu) * rs * w[i] + b[i];
	*mean = mu;
	*rstd = rs;
}

CLONES static void narrow_row(void *y, enum dtype t, const float *x, int C)
{
	row_from_f32(y, t, x, C);
}

void cpu_norm_fwd(struct dev *d, void *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                  size_t rows, int C, int flags)
{
	enum dtype t = call_type(d, flags);
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *buf = cpu_scratch(d, "norm_fwd", (size_t)d->threads * C * sizeof(float));
	if (!buf)
		rows = 0;
#pragma omp parallel for num_threads(d->threads) if (rows * C > SMALL)
	for (size_t r = 0; r < rows; r++) {
		float *out = t == DT_F32 ? (float *)y + r * C : buf + (size_t)cpu_thread() * C;
		norm_row(out, mean + r, rstd + r, x + r * C, w, b, C);
		if (t != DT_F32)
			narrow_row(at(y, t, r * C), t, out, C);
	}
	cpu_scratch_end(d, mark);
}

/* dx = scale rstd (g - mean(g) - xhat mean(g xhat)), g = w dy. */
CLONES static void norm_row_bwd(float *dx, float *buf, const void *dy, enum dtype t, const float *x, const float *w,
                                float mean, float rstd, int C, float scale, int flags)
{
	const float *g = row_f32(buf, dy, t, 0, C);
	vf sg = v_set(0), sx = v_set(0);
	for (size_t i = 0, n = C; i < n; i += VL) {
		vf wg = v_row(g, i, n, 0) * v_row(w, i, n, 0);
		sg += wg;
		sx += wg * (v_row(x, i, n, 0) - mean) * rstd;
	}
	float mg = v_sum(sg) / C, mx = v_sum(sx) / C;
	if (!(flags & OP_ADD))
		memset(dx, 0, C * sizeof(float));
	if (flags & OP_FILTER)
		for (int i = 0; i < C; i++)
			dx[i] += finite_or_zero(scale * (rstd * (w[i] * g[i] - mg - (x[i] - mean) * rstd * mx)));
	else
		for (int i = 0; i < C; i++)
			dx[i] += scale * (rstd * (w[i] * g[i] - mg - (x[i] - mean) * rstd * mx));
}

/* The row of dx for the product before. */
CLONES static void next_row(void *dy, enum dtype t, float *buf, const float *dx, int C, float scale)
{
	float *v = t == DT_F32 ? (float *)dy : buf;
	for (int i = 0; i < C; i++)
		v[i] = finite_or_zero(scale * dx[i]);
	if (t != DT_F32)
		row_from_f32(dy, t, v, C);
}

/* Columns c .. c+n-1 of its sums, in the order of norm_strip_bwd's. */
CLONES static void next_strip(float *db, const float *dx, enum dtype t, size_t rows, int C, int c, int n, float scale)
{
	for (size_t r0 = 0; r0 < rows; r0 += ROW_BLOCK) {
		float s[STRIP] = {0}, v[STRIP];
		uint16_t rounded[STRIP];
		for (size_t r = r0; r < rows && r < r0 + ROW_BLOCK; r++) {
			for (int i = 0; i < n; i++)
				v[i] = finite_or_zero(scale * dx[r * C + c + i]);
			if (t != DT_F32) {
				row_from_f32(rounded, t, v, n);
				row_to_f32(v, rounded, t, n);
			}
			for (int i = 0; i < n; i++)
				s[i] += v[i];
		}
		for (int i = 0; i < n; i++)
			db[c + i] += s[i];
	}
}

/* Columns c .. c+n-1 of dw and db over all rows: per ROW_BLOCK rows first, then into the gradient, which
 * also keeps the f32 sum of many rows accurate. */
CLONES static void norm_strip_bwd(float *dw, float *db, const void *dy, enum dtype t, const float *x, const float *mean,
                                  const float *rstd, size_t rows, int C, int c, int n, float scale)
{
	for (size_t r0 = 0; r0 < rows; r0 += ROW_BLOCK) {
		float sw[STRIP] = {0}, sb[STRIP] = {0}, g[STRIP];
		for (size_t r = r0; r < rows && r < r0 + ROW_BLOCK; r++) {
			row_to_f32(g, at_const(dy, t, r * C + c), t, n);
			const float *xr = x + r * C + c;
			for (int i = 0; i < n; i++) {
				sw[i] += g[i] * ((xr[i] - mean[r]) * rstd[r]);
				sb[i] += g[i];
			}
		}
		for (int i = 0; dw && i < n; i++)
			dw[c + i] += scale * sw[i];
		for (int i = 0; db && i < n; i++)
			db[c + i] += scale * sb[i];
	}
}

void cpu_norm_bwd(struct dev *d, float *dx, float *dw, float *db, const void *dy, const float *x, const float *w,
                  const float *mean, const float *rstd, size_t rows, int C, float scale, int flags,
                  const struct norm_next *next)
{
	enum dtype t = call_type(d, flags);
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *buf = cpu_scratch(d, "norm_bwd", (size_t)d->threads * C * sizeof(float));
	if (!buf)
		rows = 0;
#pragma omp parallel num_threads(d->threads) if (rows * C > SMALL)
	{
		/* All of dy is read here before next->dy, which may be it, is written. */
		if (dw || db) {
#pragma omp for
			for (int c = 0; c < C; c += STRIP)
				norm_strip_bwd(dw, db, dy, t, x, mean, rstd, rows, C, c, C - c < STRIP ? C - c : STRIP, scale);
		}
		if (dx) {
#pragma omp for
			for (size_t r = 0; r < rows; r++) {
				float *own = buf + (size_t)cpu_thread() * C;
				norm_row_bwd(dx + r * C, own, at_const(dy, t, r * C), t, x + r * C, w, mean[r], rstd[r], C, scale, flags);
				if (next && next->dy)
					next_row(at(next->dy, t, r * C), t, own, dx + r * C, C, next->scale);
			}
		}
		if (dx && next && next->db) {
#pragma omp for
			for (int c = 0; c < C; c += STRIP)
				next_strip(next->db, dx, t, rows, C, c, C - c < STRIP ? C - c : STRIP, next->scale);
		}
	}
	cpu_scratch_end(d, mark);
}

/* ---- length ---- */

CLONES static void l2_row(float *y, float *rnorm, const float *x, int C)
{
	float length = sqrtf(row_dot(x, x, C));
	/* A row of zeros stays one instead of becoming NaN. */
	float rn = 1.0f / (length < LENGTH_MIN ? LENGTH_MIN : length);
	for (int i = 0; i < C; i++)
		y[i] = x[i] * rn;
	*rnorm = rn;
}

void cpu_l2_fwd(struct dev *d, float *y, float *rnorm, const float *x, size_t rows, int C)
{
#pragma omp parallel for num_threads(d->threads) if (rows * C > SMALL)
	for (size_t r = 0; r < rows; r++)
		l2_row(y + r * C, rnorm + r, x + r * C, C);
}

/* dx = (dy - y (y . dy)) / |x| */
CLONES static void l2_row_bwd(float *dx, const float *dy, const float *y, float rnorm, int C)
{
	float along = row_dot(y, dy, C);
	for (int i = 0; i < C; i++)
		dx[i] = (dy[i] - y[i] * along) * rnorm;
}

void cpu_l2_bwd(struct dev *d, float *dx, const float *dy, const float *y, const float *rnorm, size_t rows, int C)
{
	if (!dx)
		return;
#pragma omp parallel for num_threads(d->threads) if (rows * C > SMALL)
	for (size_t r = 0; r < rows; r++)
		l2_row_bwd(dx + r * C, dy + r * C, y + r * C, rnorm[r], C);
}
