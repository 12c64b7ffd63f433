/* few.cuh - linear layers of a few rows (few.cu), for 16-bit types; false: not for this call. */
#ifndef FEW_CUH
#define FEW_CUH

#include "cuda.cuh"

enum { FEW_ROWS = 8 };

/* y[rows, out] = x[rows, in] w[out, in]^T + b[out], or y = gelu of that. */
struct few {
	void *y;
	void *u;          /* T: what y is the GELU of; NULL: no GELU */
	const void *x, *w;
	const float *b;   /* may be NULL */
	int in, out;
	bool wide;        /* y is f32 although T is not */
	const float *add; /* what that y is added to, laid out as it, and may be it; NULL: nothing */
	int exact;        /* which GELU */
	int rows;
};

namespace FOR_TYPE {
#if T_IS_F32
static inline bool few_rows(struct dev *, struct few, size_t)
{
	return false;
}
#else
bool few_rows(struct dev *d, struct few f, size_t rows);
#endif
}

#endif
