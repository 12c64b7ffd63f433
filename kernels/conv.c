/* conv.c - convolutions on the CPU without a library, and the ops that move pixels: max-pooling,
 * nearest upsampling, space to depth.
 *
 * A convolution is a product: each pixel's k x k x in neighbourhood becomes a line ("im2col", a few MiB at
 * a time) and the weights become rows in the same order (ky, kx, channel).  The gradient of the input is
 * the convolution of dy with the weights turned by half a turn and in and out swapped. */
#include "gemm.h"

enum { LINE_BYTES = 4 << 20 }; /* of neighbourhoods at a time */

struct shape {
	int N, H, W, k;
	size_t in, out;
};

static size_t pixels(const struct shape *s)
{
	return (size_t)s->N * (size_t)s->H * (size_t)s->W;
}

static size_t taps(const struct shape *s)
{
	return (size_t)s->k * (size_t)s->k;
}

/* col[i, ky, kx, in] = x around pixel first + i, zero outside of the picture. */
static void gather(const struct dev *d, void *col, const void *x, enum dtype t, const struct shape *s, size_t first,
		   size_t n)
{
	int h = (s->k - 1) / 2;
	size_t cell = s->in * dtype_bytes(t), line = cell * taps(s), W = (size_t)s->W, H = (size_t)s->H;
#pragma omp parallel for num_threads(d->threads)
	for (size_t i = 0; i < n; i++) {
		size_t p = first + i, picture = p / (W * H) * (W * H);
		int py = (int)(p / W % H), px = (int)(p % W);
		char *out = (char *)col + i * line;
		for (int y = py - h; y <= py + h; y++)
			for (int z = px - h; z <= px + h; z++, out += cell) {
				if (y < 0 || y >= s->H || z < 0 || z >= s->W)
					memset(out, 0, cell);
				else
					memcpy(out, at_const(x, t, (picture + (size_t)y * W + (size_t)z) * s->in), cell);
			}
	}
}

/* Lines to gather at a time; it depends on the shape alone, and with it every sum's order. */
static size_t lines_at_once(const struct shape *s)
{
	size_t n = LINE_BYTES / (s->in * taps(s) * sizeof(float)), all = pixels(s);
	n = n < 64 ? 64 : n;
	return n < all ? n : all;
}

/* y = conv(x, wk) with wk[out, ky, kx, in] in f32. */
static void convolve(struct dev *d, const char *op, void *y, const void *x, const float *wk, const float *b, enum dtype t,
		     const struct shape *s, int relu)
{
	size_t n = lines_at_once(s), depth = s->in * taps(s);
	struct scratch_mark mark = cpu_scratch_begin(d);
	void *col = s->k == 1 ? NULL : cpu_scratch(d, op, n * depth * dtype_bytes(t));
	if (s->k == 1)
		n = pixels(s);
	for (size_t p = 0; p < pixels(s) && (col || s->k == 1); p += n) {
		size_t m = pixels(s) - p < n ? pixels(s) - p : n;
		if (col)
			gather(d, col, x, t, s, p, m);
		cpu_gemm(d, op,
			 &(struct gemm){
				 .m = m, .n = s->out, .k = depth,
				 .a = { col ? col : x, t, depth, 1 },
				 .b = { wk, DT_F32, depth, 1 },
				 .c = at(y, t, p * s->out), .c_type = t, .ldc = s->out,
				 .bias = b, .relu = relu,
			 });
	}
	cpu_scratch_end(d, mark);
}

void cpu_conv_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, int N, int H, int W, int in,
		  int out, int k, int flags)
{
	enum dtype t = call_type(d, flags);
	struct shape s = { N, H, W, k, (size_t)in, (size_t)out };
	size_t n = taps(&s);
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *wk = cpu_scratch(d, "conv_fwd", s.out * s.in * n * sizeof *wk);
	if (wk) {
#pragma omp parallel for num_threads(d->threads)
		for (size_t o = 0; o < s.out; o++)
			for (size_t i = 0; i < s.in; i++)
				for (size_t q = 0; q < n; q++)
					wk[(o * n + q) * s.in + i] = load_as_f32(w, t, (o * s.in + i) * n + q);
		convolve(d, "conv_fwd", y, x, wk, b, t, &s, flags & OP_RELU);
	}
	cpu_scratch_end(d, mark);
}

/* dx[N, H, W, in]: a convolution from out to in channels. */
static void conv_input_gradient(struct dev *d, void *dx, const void *dy, const void *w, enum dtype t, const struct shape *s)
{
	struct shape back = { s->N, s->H, s->W, s->k, s->out, s->in };
	size_t n = taps(s);
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *wk = cpu_scratch(d, "conv_bwd", s->out * s->in * n * sizeof *wk);
	if (wk) {
#pragma omp parallel for num_threads(d->threads)
		for (size_t i = 0; i < s->in; i++)
			for (size_t o = 0; o < s->out; o++)
				for (size_t q = 0; q < n; q++)
					wk[(i * n + n - 1 - q) * s->out + o] = load_as_f32(w, t, (o * s->in + i) * n + q);
		convolve(d, "conv_bwd", dx, dy, wk, NULL, t, &back, 0);
	}
	cpu_scratch_end(d, mark);
}

/* dw[out, in, ky, kx] += sum over pixels of dy (out) x neighbourhood of x (in, ky, kx). */
static void conv_weight_gradient(struct dev *d, float *dw, const void *dy, const void *x, enum dtype t,
				 const struct shape *s)
{
	size_t n = lines_at_once(s), q = taps(s), depth = s->in * q;
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *dwk = cpu_scratch(d, "conv_bwd", s->out * depth * sizeof *dwk); /* [out, ky, kx, in] */
	void *col = cpu_scratch(d, "conv_bwd", n * depth * dtype_bytes(t));
	if (!dwk || !col)
		goto out;
	memset(dwk, 0, s->out * depth * sizeof *dwk);
	for (size_t p = 0; p < pixels(s); p += n) {
		size_t m = pixels(s) - p < n ? pixels(s) - p : n;
		gather(d, col, x, t, s, p, m);
		cpu_gemm(d, "conv_bwd",
			 &(struct gemm){
				 .m = s->out, .n = depth, .k = m,
				 .a = { at_const(dy, t, p * s->out), t, 1, s->out },
				 .b = { col, t, 1, depth },
				 .c = dwk, .c_type = DT_F32, .ldc = depth,
				 .add = dwk,
			 });
	}
#pragma omp parallel for num_threads(d->threads)
	for (size_t o = 0; o < s->out; o++)
		for (size_t i = 0; i < s->in; i++)
			for (size_t r = 0; r < q; r++)
				dw[(o * s->in + i) * q + r] += dwk[(o * q + r) * s->in + i];
out:
	cpu_scratch_end(d, mark);
}

void cpu_conv_bwd(struct dev *d, void *dx, float *dw, float *db, const void *dy, const void *x, const void *w, int N, int H,
		  int W, int in, int out, int k, int flags)
{
	enum dtype t = call_type(d, flags);
	struct shape s = { N, H, W, k, (size_t)in, (size_t)out };
	if (dx)
		conv_input_gradient(d, dx, dy, w, t, &s);
	if (dw)
		conv_weight_gradient(d, dw, dy, x, t, &s);
	if (db)
		cpu_column_sums(d, "conv_bwd", db, dy, t, pixels(&s), s.out);
}

/* ---- pixels ---- */

void cpu_maxpool_fwd(struct dev *d, float *y, uint8_t *which, const float *x, int N, int H, int W, int C)
{
	size_t c = (size_t)C, w = (size_t)W, rows = (size_t)N * (size_t)H / 2;
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++)
		for (size_t j = 0; j < w / 2; j++) {
			/* H is even: pairs of rows never straddle two pictures. */
			const float *a = x + (2 * r * w + 2 * j) * c, *b = a + w * c;
			size_t out = (r * (w / 2) + j) * c;
			for (size_t i = 0; i < c; i++) {
				const float v[4] = { a[i], a[i + c], b[i], b[i + c] };
				float best = v[0];
				uint8_t place = 0;
				for (int q = 1; q < 4; q++) {
					place = v[q] > best ? (uint8_t)q : place;
					best = v[q] > best ? v[q] : best;
				}
				y[out + i] = best;
				which[out + i] = place;
			}
		}
}

void cpu_maxpool_bwd(struct dev *d, float *dx, const float *dy, const uint8_t *which, int N, int H, int W, int C)
{
	size_t c = (size_t)C, w = (size_t)W, rows = (size_t)N * (size_t)H / 2;
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++)
		for (size_t j = 0; j < w / 2; j++) {
			float *a = dx + (2 * r * w + 2 * j) * c, *b = a + w * c;
			size_t from = (r * (w / 2) + j) * c;
			for (size_t i = 0; i < c; i++) {
				float g = dy[from + i];
				int place = which[from + i];
				a[i] = place == 0 ? g : 0;
				a[i + c] = place == 1 ? g : 0;
				b[i] = place == 2 ? g : 0;
				b[i + c] = place == 3 ? g : 0;
			}
		}
}

void cpu_upsample_fwd(struct dev *d, float *y, const float *x, int N, int H, int W, int C)
{
	size_t c = (size_t)C, w = (size_t)W, rows = (size_t)N * (size_t)H;
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++) {
		float *line = y + 4 * r * w * c; /* output rows 2r and 2r + 1, 2w pixels each */
		for (size_t j = 0; j < w; j++)
			for (size_t q = 0; q < 2; q++)
				memcpy(line + (2 * j + q) * c, x + (r * w + j) * c, c * sizeof *y);
		memcpy(line + 2 * w * c, line, 2 * w * c * sizeof *y);
	}
}

void cpu_upsample_bwd(struct dev *d, float *dx, const float *dy, int N, int H, int W, int C)
{
	size_t c = (size_t)C, w = (size_t)W, rows = (size_t)N * (size_t)H;
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++)
		for (size_t j = 0; j < w; j++) {
			const float *a = dy + (4 * r * w + 2 * j) * c, *b = a + 2 * w * c;
			float *out = dx + (r * w + j) * c;
			for (size_t i = 0; i < c; i++)
				out[i] = (a[i] + a[i + c]) + (b[i] + b[i + c]);
		}
}

/* One block row of pictures at a time: y[W/s, (C, dy, dx)] from x[dy, W, C]. */
void cpu_space_to_depth(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s)
{
	size_t c = (size_t)C, w = (size_t)W, S = (size_t)s, rows = (size_t)N * (size_t)(H / s);
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++)
		for (size_t dy = 0; dy < S; dy++)
			for (size_t px = 0; px < w; px++)
				for (size_t i = 0; i < c; i++)
					y[(r * (w / S) + px / S) * c * S * S + (i * S + dy) * S + px % S] =
						x[((r * S + dy) * w + px) * c + i];
}

void cpu_depth_to_space(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s)
{
	size_t c = (size_t)C, w = (size_t)W, S = (size_t)s, rows = (size_t)N * (size_t)(H / s);
#pragma omp parallel for num_threads(d->threads)
	for (size_t r = 0; r < rows; r++)
		for (size_t dy = 0; dy < S; dy++)
			for (size_t px = 0; px < w; px++)
				for (size_t i = 0; i < c; i++)
					y[((r * S + dy) * w + px) * c + i] =
						x[(r * (w / S) + px / S) * c * S * S + (i * S + dy) * S + px % S];
}
