/* products.cuh - matrix products by cuBLASLt (matmul.cu), for 16-bit types. */
#ifndef PRODUCTS_CUH
#define PRODUCTS_CUH

#include "cuda.cuh"

/* What decides on an algorithm.  All in the library's terms, column after column:
 * d[m,n] = op(a)[m,k] op(b)[k,n] (+ c) (+ bias[m]). */
struct product_shape {
	int m, n, k;
	int a_transposed, b_transposed;
	int d_f32, add, bias;
	int alignment;   /* bytes, of all pointers */
	enum dtype type; /* of a and b */
};

static inline struct product_shape product_of(int m, int n, int k, int a_transposed, int b_transposed, int d_f32)
{
	return product_shape{m, n, k, a_transposed, b_transposed, d_f32, 0, 0, 0, DT_F32};
}

struct library_product {
	struct product_shape s; /* add, bias, alignment and type are filled in by library_run */
	const void *a, *b;
	void *d;
	const void *c;    /* what is added, of d's type; may be d; NULL: nothing */
	const void *bias; /* [m], of d's type, or NULL */
};

namespace FOR_TYPE {
/* Whether the library is there and did it. */
bool library_run(struct dev *d, struct library_product *l);
bool library_there(const struct dev *d);
}

#endif
