/* dot.h - products of bf16 matrices by the instructions that multiply pairs of bf16 numbers (AVX512-BF16).  Nothing is
 * packed: both operands are read along k, so that a product of few rows costs one reading of the weights.
 * Every element is one chain of additions of its own, so that a row's bits do not depend on the rows around it. */
#ifndef DOT_H
#define DOT_H

#include "gemm.h"

/* Whether this CPU and compiler can. */
int cpu_dot_works(void);
/* c[m, ldc] (f32) = the columns j .. j+n-1 of g's product before bias and the rest; a and b are bf16, along = 1. */
void cpu_dot_block(float *c, size_t ldc, const struct gemm *g, size_t j, size_t n);

#endif
