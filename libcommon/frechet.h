/* frechet.h - how far two sets of feature vectors are apart: the Frechet distance of the Gaussians fitted to them, and
 * precision and recall by nearest neighbours.  All sums are in double. */
#ifndef FRECHET_H
#define FRECHET_H

#include "util.h"

/* Mean and covariance of a stream of vectors, in memory that does not grow.  Zero-initialise; free with moments_free. */
struct moments {
	size_t width;
	uint64_t n;
	double *pivot;    /* (width) the first vector: sums are of what differs from it, which keeps their digits */
	double *sum;      /* (width) */
	double *products; /* (width, width), column <= row */
	double *delta;    /* (width) workspace */
};
int moments_init(struct moments *m, size_t width, struct error *e);
void moments_free(struct moments *m);
/* x (n, width).  The sums do not depend on how the vectors come in batches. */
void moments_add(struct moments *m, const float *x, size_t n);

/* |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), covariances with n - 1 as numpy's; each of a and b holds two vectors
 * or more (else STATUS_BAD).  The root's trace is that of (L^T B L)^(1/2), A = L L^T: symmetric, so that the eigenvalues
 * are real, and right for singular A and B too. */
int frechet_distance(const struct moments *a, const struct moments *b, double *out, struct error *e);

/* Kynkaanniemi et al. 2019: precision is the share of `made` (m, width) that lies within the distance from some vector of
 * `real` (n, width) to its k-th neighbour in `real`; recall the same with the sets exchanged.  1 <= k < n and m, else
 * STATUS_BAD. */
int precision_recall(const float *real, size_t n, const float *made, size_t m, size_t width, size_t k, double *precision,
                     double *recall, struct error *e);

/* Eigenvalues of the symmetric a (n, n), which is overwritten, into out (n), ascending, each to the rounding of
 * the largest. */
int symmetric_eigenvalues(double *a, size_t n, double *out, struct error *e);

#endif
