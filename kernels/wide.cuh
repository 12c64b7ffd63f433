/* wide.cuh - linear layers with f32 operands on a device of a 16-bit type (wide.cu): as linear_fwd and linear_bwd with OP_F32;
 * false: not for this call, nothing is done. */
#ifndef WIDE_CUH
#define WIDE_CUH

#include "cuda.cuh"

namespace for_bf16 {
bool wide_fwd(struct dev *d, float *y, const float *x, const float *w, const float *b, size_t rows, int in, int out);
/* dx written; dw added to. */
bool wide_dx(struct dev *d, float *dx, const float *dy, const float *w, size_t rows, int in, int out);
bool wide_dw(struct dev *d, float *dw, const float *dy, const float *x, size_t rows, int in, int out);
}

#endif
