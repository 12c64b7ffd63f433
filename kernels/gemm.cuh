/* gemm.cuh - our own matrix products on a GPU (gemm.cu): all f32 products, whose rows must not depend on their
 * number; every convolution; and 16-bit products that cuBLASLt declines. */
#ifndef GEMM_CUH
#define GEMM_CUH

#include "cuda.cuh"

/* One factor, by rows of the product (a: rows of c, b: columns of c) and the summed index k.
 *   k_first   element(row, k) = p[row * C + k]: k is contiguous
 *   else      element(row, k) = p[k * C + row]
 * or, with taps > 1, the neighbourhoods of a picture x[N,H,W,C], side * side = taps: a pixel and (tap, channel) in
 * place of row and k (k_first), or of k and row.  Tap and channel are one number, in groups of `group` channels:
 * ((channel / group) * taps + tap) * group + channel % group. */
struct operand {
	const void *p;
	int C;         /* elements of a line; must be `lines of k` or of rows of the other kind */
	bool k_first;
	int taps, side, H, W, group;
	struct divisor by_H, by_W, by_side, by_taps, by_group; /* taps > 1 */
};

/* A plain factor of lines of C elements. */
static inline struct operand lines(const void *p, int C, bool k_first)
{
	return operand{p, C, k_first, 1, 1, 1, 1, C, {}, {}, {}, {}, {}};
}

/* c[m, n] = sum over k a(m, k) b(n, k). */
struct product {
	struct operand a, b;
	int m, n, k;
	void *c;           /* [m, n] */
	bool c_f32;        /* c is f32 although T is not */
	const float *add;  /* what the sum is added to, laid out as c, which is f32 and may be it; NULL: nothing */
	bool relu;
	const float *bias; /* [n] or NULL */
	int splits;        /* more than 1: c is f32 [splits, m, n], parts of the sum */
};

namespace FOR_TYPE {
void own_product(struct dev *d, const struct product *p);
/* As many splits as fill the device, when the product itself is small. */
int product_splits(const struct dev *d, int m, int n, int k);
/* dw[m, C, taps] += the product's sum, in the weights' order (the product's n runs over taps, then over `wide` channels, of
 * which the first C are there); dw_t: dw is T. */
void weight_gradient(struct dev *d, void *dw, bool dw_t, struct product *p, int C, int wide, int taps);
/* sums[C] += column sums of x[rows, C]. */
void column_sums(struct dev *d, float *sums, const void *x, size_t rows, int C);
}

#endif
