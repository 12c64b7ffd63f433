/* wide.cu - linear layers with f32 operands on a device of a 16-bit type: the transformer's heads, the dVAE's logits.
 * Plain f32 arithmetic has a fifteenth of the rate of tensor cores, and these layers would take a sixth of an update.
 *
 * Each number is a sum of two bf16 numbers, but for a rest below 2^-18 of it, so that a product is the sum of four, of which
 * the least, again below 2^-18, is left out.  The other three are one bf16 product with a sum of three times the length,
 * added up in f32.  So each product is right to 2^-16 of itself; tensor cores add up towards zero, which costs a sum of
 * thousands of terms as much again.  Values that are not finite give sums that are not.
 *
 * A few rows, as in decoding, are bound by reading the weights: plain f32. */
#include "wide.cuh"

#include "few.cuh"
#include "products.cuh"

namespace for_bf16 {

/* ---- parts ---- */

/* Which part stands where, of the one factor and of the other: great x great, less x great, great x less. */
enum order { GREAT_LESS_GREAT, GREAT_GREAT_LESS };

/* to = three parts of x[rows, K]: side by side, [rows, 3, K], or one after the other, [3, rows, K]. */
struct parts_op {
	bf16 *to;
	const float *x;
	size_t rows, K;
	bool stacked;
	enum order order;
	template <int N> __device__ void at(size_t i) const
	{
		size_t row = stacked ? 0 : i / K, first = i + 2 * row * K, next = stacked ? rows * K : K;
		float v[N], less[N];
		load<N>(v, x + i);
#pragma unroll
		for (int k = 0; k < N; k++) {
			float great = to_f(make<bf16>(v[k]));
			less[k] = finite(great) ? v[k] - great : 0; /* or infinity would become NaN here */
		}
		store<N>(to + first, v);
		store<N>(to + first + (order == GREAT_LESS_GREAT ? 2 : 1) * next, v);
		store<N>(to + first + (order == GREAT_LESS_GREAT ? 1 : 2) * next, less);
	}
};

static void parts_into(struct dev *d, bf16 *to, const float *x, size_t rows, int K, bool stacked, enum order order)
{
	map(d, rows * K, K % 4 == 0 && aligned(x, 16), parts_op{to, x, rows, (size_t)K, stacked, order});
}

/* Room for the parts of n numbers and, behind them, of m more; NULL: then plain f32 must do. */
static bf16 *parts_room(struct dev *d, size_t n, size_t m)
{
	return (bf16 *)cuda_scratch_wish(d, 3 * (n + m) * sizeof(bf16));
}

/* Rows are taken in pieces, so that their parts take at most 100 MB; small ones where tests have to meet them. */
static size_t piece_of(size_t rows, int in, int out)
{
#ifdef CUDA_EMULATED
	enum { MOST = 1 << 13 };
#else
	enum { MOST = 1 << 24 };
#endif
	size_t fit = MOST / (size_t)(in > out ? in : out) + 1;
	return rows < fit ? rows : fit;
}

/* Lines of whole chunks of 16 bytes, and sums that can be counted. */
static bool fits(struct dev *d, int in, int out)
{
	return library_there(d) && in % 8 == 0 && out % 8 == 0 && in < INT32_MAX / 3 && out < INT32_MAX / 3;
}

/* ---- a few rows: a warp a column ---- */

enum { WARPS = 8 };

/* Not launched early: x comes out of the first-level cache, of which those kernels leave little. */
KERNEL __launch_bounds__(WARPS * WARP) few_wide_kernel(float *y, const float *x, const float *w, const float *b, int rows,
                                                      int in, int out)
{
	int lane = (int)(threadIdx.x % WARP), column = (int)(blockIdx.x * WARPS + threadIdx.x / WARP);
	float sum[FEW_ROWS] = {};
	if (column >= out)
		return;
	w += (size_t)column * in;
#pragma unroll 4
	for (int c = lane * 4; c < in; c += WARP * 4) {
		float a[4], v[4];
		load<4>(a, w + c);
#pragma unroll
		for (int r = 0; r < FEW_ROWS; r++) {
			if (r >= rows)
				continue;
			load<4>(v, x + (size_t)r * in + c);
#pragma unroll
			for (int k = 0; k < 4; k++)
				sum[r] += a[k] * v[k];
		}
	}
#pragma unroll
	for (int r = 0; r < FEW_ROWS; r++) {
		float s = warp_sum(sum[r]);
		if (lane == 0 && r < rows)
			y[(size_t)r * out + column] = s + (b ? b[column] : 0);
	}
}

static bool few_wide(struct dev *d, float *y, const float *x, const float *w, const float *b, size_t rows, int in, int out)
{
	if (rows > FEW_ROWS || in % 4 || !aligned(x, 16) || !aligned(w, 16))
		return false;
	launch(d, few_wide_kernel, dim3((unsigned)ceil_div(out, WARPS)), dim3(WARPS * WARP), 0, y, x, w, b, (int)rows, in, out);
	return true;
}

/* ---- entries: what the library declines is left to plain f32 ---- */

bool wide_fwd(struct dev *d, float *y, const float *x, const float *w, const float *b, size_t rows, int in, int out)
{
	size_t piece = piece_of(rows, in, out);
	if (few_wide(d, y, x, w, b, rows, in, out))
		return true;
	size_t weights = (size_t)out * in;
	bf16 *w3 = fits(d, in, out) ? parts_room(d, weights, piece * in) : NULL;
	if (!w3)
		return false;
	bf16 *x3 = w3 + 3 * weights;
	parts_into(d, w3, w, out, in, false, GREAT_GREAT_LESS);
	for (size_t r = 0, n; r < rows; r += n) {
		n = rows - r < piece ? rows - r : piece;
		parts_into(d, x3, x + r * in, n, in, false, GREAT_LESS_GREAT);
		struct library_product l = {product_of(out, (int)n, 3 * in, 1, 0, 1), w3, x3, y + r * out, NULL, b};
		if (!library_run(d, &l))
			for_f32::linear_fwd(d, y + r * out, x + r * in, w, b, n, in, out, OP_F32);
	}
	return true;
}

/* The summed index is a row of w. */
bool wide_dx(struct dev *d, float *dx, const float *dy, const float *w, size_t rows, int in, int out)
{
	size_t piece = piece_of(rows, in, out);
	size_t weights = (size_t)out * in;
	bf16 *w3 = fits(d, in, out) ? parts_room(d, weights, piece * out) : NULL;
	if (!w3)
		return false;
	bf16 *dy3 = w3 + 3 * weights;
	parts_into(d, w3, w, out, in, true, GREAT_GREAT_LESS);
	for (size_t r = 0, n; r < rows; r += n) {
		n = rows - r < piece ? rows - r : piece;
		parts_into(d, dy3, dy + r * out, n, out, false, GREAT_LESS_GREAT);
		struct library_product l = {product_of(in, (int)n, 3 * out, 0, 0, 1), w3, dy3, dx + r * in, NULL, NULL};
		if (!library_run(d, &l))
			for_f32::linear_bwd(d, dx + r * in, NULL, NULL, dy + r * out, NULL, w, n, in, out, OP_F32);
	}
	return true;
}

/* The summed index is a row of dy and x. */
bool wide_dw(struct dev *d, float *dw, const float *dy, const float *x, size_t rows, int in, int out)
{
	size_t piece = piece_of(rows, in, out);
	bf16 *dy3 = fits(d, in, out) ? parts_room(d, piece * out, piece * in) : NULL;
	if (!dy3)
		return false;
	bf16 *x3 = dy3 + 3 * piece * out;
	for (size_t r = 0, n; r < rows; r += n) {
		n = rows - r < piece ? rows - r : piece;
		parts_into(d, dy3, dy + r * out, n, out, true, GREAT_LESS_GREAT);
		parts_into(d, x3, x + r * in, n, in, true, GREAT_GREAT_LESS);
		struct library_product l = {product_of(in, out, 3 * (int)n, 0, 1, 1), x3, dy3, dw, dw, NULL};
		if (!library_run(d, &l))
			for_f32::linear_bwd(d, NULL, dw, NULL, dy + r * out, x + r * in, NULL, n, in, out, OP_F32);
	}
	return true;
}
}
