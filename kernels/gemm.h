/* gemm.h - the matrix product behind linear and conv on the CPU, without any library.
 *
 * Every element of the result is one chain of additions over k in a fixed order, so a row's bits
 * depend neither on the other rows nor on the number of threads. */
#ifndef GEMM_H
#define GEMM_H

#include "cpu.h"

/* Element (i, k) is p[i * across + k * along], in elements; one of the strides is 1. */
struct operand {
	const void *p;
	enum dtype type;
	size_t across, along;
};

/* c[i, j] = sum over k of a(i, k) * b(j, k), then + bias[j], max(0, .), and stored or added.  Products and
 * sums are f32 whatever the types. */
struct gemm {
	size_t m, n, k;
	struct operand a, b;
	void *c; /* [m, n], rows ldc elements apart */
	enum dtype c_type;
	size_t ldc;
	const float *bias; /* [n], or NULL */
	int relu;
	const void *add; /* what the sum is added to, laid out as c, which it may be; NULL: nothing.  Rounded once where c is not f32 */
};

/* 0, or -1 with d's sticky error set in op's name (no scratch memory). */
int cpu_gemm(struct dev *d, const char *op, const struct gemm *g);

/* Whether a forward product of so many rows of type t is best left to cpu_gemm: bf16 instructions, few rows. */
int cpu_gemm_dots(size_t rows, enum dtype t);

/* sums[n] += column sums of x[rows, n] of type t; the same bits for any number of threads. */
void cpu_column_sums(struct dev *d, const char *op, float *sums, const void *x, enum dtype t, size_t rows, size_t n);

#endif
