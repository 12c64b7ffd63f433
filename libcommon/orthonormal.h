/* orthonormal.h - an orthonormal basis by Householder reflections (E10 step 5: Gram-Schmidt was unstable there).
 *
 * In blocks of ORTHONORMAL_BLOCK vectors: what reflects all vectors after a block is two matrix products, so that nearly
 * all of the work is done by the device's products.  A vector that depends on those before it, or is 0, gives another unit
 * vector: the result is orthonormal whatever comes in, if it is finite. */
#ifndef ORTHONORMAL_H
#define ORTHONORMAL_H

#include "../kernels/ops.h"

enum { ORTHONORMAL_BLOCK = 32 };

/* Floats of scratch for r vectors of n elements. */
size_t orthonormal_scratch(size_t r, size_t n);
/* The r <= n rows of x (r, n) become orthonormal; the first k of them span what the first k rows spanned.  ops and dev: a
 * CPU device, whose memory is the host's and whose entries have finished when they return. */
void orthonormal_rows(const struct ops *ops, struct dev *dev, float *x, size_t r, size_t n, float *scratch);

#endif
