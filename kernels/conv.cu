/* conv.cu - conv.c on a GPU: convolutions as products with gathered neighbourhoods (gemm.cu), and the ops that
 * move pixels. */
#include "gemm.cuh"

namespace FOR_TYPE {

/* ---- convolutions ---- */

struct shape {
	int N, H, W, in, out, k;
};

static int pixels_of(const struct shape *s)
{
	return s->N * s->H * s->W;
}

/* Channels that come together in the order of the summed index: few, so that the nine (or 49) neighbours of a pixel are read
 * while they are still in the first-level cache. */
static int group_of(int C)
{
	enum { GROUP = 32 };
	return C % GROUP == 0 ? GROUP : C;
}

static struct operand neighbourhoods(const void *x, int C, bool k_first, int group, const struct shape *s)
{
	int taps = s->k * s->k;
	return operand{x, C, k_first, taps, s->k, s->H, s->W, group, divisor_of(s->H), divisor_of(s->W), divisor_of(s->k),
	               divisor_of(taps), divisor_of(group)};
}

/* Channels of a gathered factor as they lie in memory: whole chunks of 16 bytes, for the colours of a picture, too. */
static int padded(int C, const struct shape *s)
{
	enum { CHUNK = 16 / (int)sizeof(T) };
	return s->k == 1 ? C : (C + CHUNK - 1) / CHUNK * CHUNK;
}

struct pad_op {
	T *y;
	const T *x;
	int C, wide;
	template <int N> __device__ void at(size_t i) const
	{
		int c = (int)(i % wide);
		y[i] = c < C ? x[i / wide * C + c] : make<T>(0);
	}
};

/* x[pixels, C] with its channels padded by zeros; NULL when there is no memory for them. */
static const void *pad(struct dev *d, const void *x, int C, const struct shape *s)
{
	int wide = padded(C, s);
	size_t n = (size_t)pixels_of(s) * wide;
	if (wide == C)
		return x;
	T *y = (T *)cuda_scratch(d, n * sizeof *y);
	if (y)
		map(d, n, false, pad_op{y, (const T *)x, C, wide});
	return y;
}

/* wk[out, k] from w[out, in, tap], k as in struct operand, over `inner` channels, those beyond `in` being zeros; turned:
 * wk[in, k], k over taps in reverse and out. */
struct reorder_op {
	T *wk;
	const T *w;
	int in, out, taps, inner, group;
	bool turned;
	template <int N> __device__ void at(size_t i) const
	{
		int k = (int)(i % ((size_t)inner * taps)), r = (int)(i / ((size_t)inner * taps));
		int tap = k / group % taps, c = k / group / taps * group + k % group;
		int o = turned ? c : r, from = turned ? r : c, q = turned ? taps - 1 - tap : tap;
		wk[i] = o < out && from < in ? w[((size_t)o * in + from) * taps + q] : make<T>(0);
	}
};

static const T *reorder(struct dev *d, const void *w, const struct shape *s, bool turned)
{
	int taps = s->k * s->k, inner = padded(turned ? s->out : s->in, s);
	size_t n = (size_t)inner * taps * (turned ? s->in : s->out);
	if (taps == 1 && !turned)
		return (const T *)w;
	T *wk = (T *)cuda_scratch(d, n * sizeof *wk);
	if (wk)
		map(d, n, false, reorder_op{wk, (const T *)w, s->in, s->out, taps, inner, group_of(inner), turned});
	return wk;
}

static bool fits(struct dev *d, const struct shape *s)
{
	size_t n = (size_t)s->N * s->H * s->W;
	if (n > INT32_MAX)
		cuda_fail(d, "%zu pixels, expected less than 2^31", n);
	return n <= INT32_MAX && n > 0;
}

void conv_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, int N, int H, int W, int in, int out,
              int k, int flags)
{
	struct shape s = {N, H, W, in, out, k};
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::conv_fwd(d, y, x, w, b, N, H, W, in, out, k, flags);
		return;
	}
	if (!fits(d, &s))
		return;
	const T *wk = reorder(d, w, &s, false);
	const void *wide = pad(d, x, in, &s);
	if (!wk || !wide)
		return;
	int C = padded(in, &s), depth = C * k * k;
	struct product p = {neighbourhoods(wide, C, true, group_of(C), &s), lines(wk, depth, true), pixels_of(&s), out, depth, y,
	                    false, NULL, (flags & OP_RELU) != 0, b, 1};
	own_product(d, &p);
}

static void conv_dx(struct dev *d, void *dx, const void *dy, const void *w, const struct shape *s)
{
	int C = padded(s->out, s), depth = C * s->k * s->k;
	const T *wk = reorder(d, w, s, true);
	const void *wide = pad(d, dy, s->out, s);
	if (!wk || !wide)
		return;
	struct product p = {neighbourhoods(wide, C, true, group_of(C), s), lines(wk, depth, true), pixels_of(s), s->in, depth, dx,
	                    false, NULL, false, NULL, 1};
	own_product(d, &p);
}

static void conv_dw(struct dev *d, float *dw, const void *dy, const void *x, const struct shape *s)
{
	int taps = s->k * s->k, C = padded(s->in, s), rows = padded(s->out, s);
	const void *wide = pad(d, x, s->in, s), *wide_dy = pad(d, dy, s->out, s);
	if (!wide || !wide_dy)
		return;
	struct product p = {lines(wide_dy, rows, false), neighbourhoods(wide, C, false, C, s), s->out, C * taps, pixels_of(s), NULL,
	                    false, NULL, false, NULL, 1};
	weight_gradient(d, dw, false, &p, s->in, C, taps);
}

void conv_bwd(struct dev *d, void *dx, float *dw, float *db, const void *dy, const void *x, const void *w, int N, int H,
              int W, int in, int out, int k, int flags)
{
	struct shape s = {N, H, W, in, out, k};
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::conv_bwd(d, dx, dw, db, dy, x, w, N, H, W, in, out, k, flags);
		return;
	}
	if (!fits(d, &s))
		return;
	if (dx)
		conv_dx(d, dx, dy, w, &s);
	if (dw)
		conv_dw(d, dw, dy, x, &s);
	if (db)
		column_sums(d, db, dy, (size_t)pixels_of(&s), out);
}

/* ---- pixels: a thread an element of the smaller picture ---- */

/* Element i of a picture [N,H,W,C]. */
struct spot {
	size_t n, y, x, c;
};

DEVICE struct spot spot_of(size_t i, int H, int W, int C)
{
	return spot{i / C / W / H, i / C / W % H, i / C % W, i % C};
}

/* The first of the four elements of [N,2H,2W,C] that belong to the spot. */
DEVICE size_t four_at(const struct spot &s, int H, int W, int C)
{
	return (((s.n * H + s.y) * 2 * W + s.x) * 2) * C + s.c;
}

struct maxpool_op {
	float *y;
	uint8_t *which;
	const float *x;
	int H, W, C; /* of y */
	template <int N> __device__ void at(size_t i) const
	{
		size_t a = four_at(spot_of(i, H, W, C), H, W, C), line = (size_t)2 * W * C;
		float best = x[a];
		uint8_t place = 0;
		for (int q = 1; q < 4; q++) {
			float v = x[a + (q / 2) * line + (q % 2) * C];
			place = v > best ? (uint8_t)q : place;
			best = v > best ? v : best;
		}
		y[i] = best;
		which[i] = place;
	}
};

void maxpool_fwd(struct dev *d, float *y, uint8_t *which, const float *x, int N, int H, int W, int C)
{
	map(d, (size_t)N * (H / 2) * (W / 2) * C, false, maxpool_op{y, which, x, H / 2, W / 2, C});
}

struct maxpool_bwd_op {
	float *dx;
	const float *dy;
	const uint8_t *which;
	int H, W, C; /* of dy */
	template <int N> __device__ void at(size_t i) const
	{
		size_t a = four_at(spot_of(i, H, W, C), H, W, C), line = (size_t)2 * W * C;
		for (int q = 0; q < 4; q++)
			dx[a + (q / 2) * line + (q % 2) * C] = which[i] == q ? dy[i] : 0;
	}
};

void maxpool_bwd(struct dev *d, float *dx, const float *dy, const uint8_t *which, int N, int H, int W, int C)
{
	if (dx)
		map(d, (size_t)N * (H / 2) * (W / 2) * C, false, maxpool_bwd_op{dx, dy, which, H / 2, W / 2, C});
}

struct upsample_op {
	float *y;
	const float *x;
	int H, W, C;
	template <int N> __device__ void at(size_t i) const
	{
		size_t a = four_at(spot_of(i, H, W, C), H, W, C), line = (size_t)2 * W * C;
		y[a] = y[a + C] = y[a + line] = y[a + line + C] = x[i];
	}
};

void upsample_fwd(struct dev *d, float *y, const float *x, int N, int H, int W, int C)
{
	map(d, (size_t)N * H * W * C, false, upsample_op{y, x, H, W, C});
}

struct upsample_bwd_op {
	float *dx;
	const float *dy;
	int H, W, C;
	template <int N> __device__ void at(size_t i) const
	{
		size_t a = four_at(spot_of(i, H, W, C), H, W, C), b = a + (size_t)2 * W * C;
		dx[i] = (dy[a] + dy[a + C]) + (dy[b] + dy[b + C]);
	}
};

void upsample_bwd(struct dev *d, float *dx, const float *dy, int N, int H, int W, int C)
{
	if (dx)
		map(d, (size_t)N * H * W * C, false, upsample_bwd_op{dx, dy, H, W, C});
}

/* deep[N,H/s,W/s,(C,dy,dx)] and flat[N,H,W,C]; i runs over flat. */
struct depth_op {
	float *to;
	const float *from;
	int H, W, C, s;
	bool deeper;
	template <int N> __device__ void at(size_t i) const
	{
		struct spot p = spot_of(i, H, W, C);
		size_t cell = (p.n * (H / s) + p.y / s) * (W / s) + p.x / s, deep = ((cell * C + p.c) * s + p.y % s) * s + p.x % s;
		to[deeper ? deep : i] = from[deeper ? i : deep];
	}
};

void space_to_depth(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s)
{
	map(d, (size_t)N * H * W * C, false, depth_op{y, x, H, W, C, s, true});
}

void depth_to_space(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s)
{
	map(d, (size_t)N * H * W * C, false, depth_op{y, x, H, W, C, s, false});
}
}
