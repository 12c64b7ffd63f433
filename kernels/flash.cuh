/* flash.cuh - attention on tensor cores (flash.cu, flash-bwd.cu), for 16-bit types and heads of a multiple of 8, at most 128,
 * columns; false: not for this call. */
#ifndef FLASH_CUH
#define FLASH_CUH

#include "attn.cuh"

namespace FOR_TYPE {
#if T_IS_F32
static inline bool flash_fwd(struct dev *, void *, float *, const void *, int, int, int, const struct mask *)
{
	return false;
}

static inline bool flash_bwd(struct dev *, void *, const void *, const void *, const float *, const float *, int, int, int,
                             const struct mask *)
{
	return false;
}
#else
bool flash_fwd(struct dev *d, void *y, float *lse, const void *qkv, int B, int H, int D, const struct mask *m);
bool flash_bwd(struct dev *d, void *dqkv, const void *dy, const void *qkv, const float *lse, const float *delta, int B,
	       int H, int D, const struct mask *m);
#endif
}

#endif
