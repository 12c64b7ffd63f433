/* frechet.c - see frechet.h. */
#include "frechet.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- moments ---- */

int moments_init(struct moments *m, size_t width, struct error *e)
{
	m->width = width;
	m->pivot = mem_zero(width, sizeof *m->pivot, e);
	m->sum = mem_zero(width, sizeof *m->sum, e);
	m->delta = mem_zero(width, sizeof *m->delta, e);
	m->products = mem_zero(width, width * sizeof *m->products, e);
	return m->pivot && m->sum && m->delta && m->products ? 0 : -1;
}

void moments_free(struct moments *m)
{
	free(m->pivot);
	free(m->sum);
	free(m->delta);
	free(m->products);
	*m = (struct moments){0};
}

void moments_add(struct moments *m, const float *x, size_t n)
{
	for (size_t k = 0; k < n; k++, x += m->width, m->n++) {
		for (size_t i = 0; m->n == 0 && i < m->width; i++)
			m->pivot[i] = (double)x[i];
		for (size_t i = 0; i < m->width; i++) {
			m->delta[i] = (double)x[i] - m->pivot[i];
			m->sum[i] += m->delta[i];
		}
		for (size_t i = 0; i < m->width; i++) {
			double *row = m->products + i * m->width, d = m->delta[i];
			for (size_t j = 0; j <= i; j++)
				row[j] += d * m->delta[j];
		}
	}
}

/* The covariance, both triangles, into out (width, width). */
static void covariance(const struct moments *m, double *out)
{
	double n = (double)m->n;
	for (size_t i = 0; i < m->width; i++)
		for (size_t j = 0; j <= i; j++)
			out[i * m->width + j] = out[j * m->width + i] =
				(m->products[i * m->width + j] - m->sum[i] * m->sum[j] / n) / (n - 1);
}

/* ---- eigenvalues ---- */

static double dot(const double *a, const double *b, size_t n)
{
	double sum = 0;
#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/* The reflection that leaves of column k only its first value below the diagonal, applied from both sides to the square
 * below and right of (k, k).  v and w (n) are workspace.  Returns that value. */
static double reflect(double *a, size_t n, size_t k, double *v, double *w)
{
	size_t m = n - k - 1;
	for (size_t i = 0; i < m; i++)
		v[i] = a[(k + 1 + i) * n + k];
	double length = sqrt(dot(v, v, m)), value = v[0] > 0 ? -length : length;
	v[0] -= value;
	double square = dot(v, v, m);
	if (square == 0)
		return value;
#pragma omp parallel for schedule(static) if (m > 128)
	for (size_t i = 0; i < m; i++)
		w[i] = 2 / square * dot(a + (k + 1 + i) * n + k + 1, v, m);
	double along = dot(w, v, m) / square;
	for (size_t i = 0; i < m; i++)
		w[i] -= along * v[i];
#pragma omp parallel for schedule(static) if (m > 128)
	for (size_t i = 0; i < m; i++) {
		double *row = a + (k + 1 + i) * n + k + 1;
		for (size_t j = 0; j < m; j++)
			row[j] -= v[i] * w[j] + w[i] * v[j];
	}
	return value;
}

/* How many eigenvalues of the tridiagonal matrix lie below x: the negative pivots of T - x (Sturm).  square[i] is that of
 * the value between i - 1 and i. */
static size_t below(const double *d, const double *square, size_t n, double x, double least)
{
	size_t count = 0;
	double pivot = 1;
	for (size_t i = 0; i < n; i++) {
		pivot = d[i] - x - (i ? square[i] / pivot : 0);
		if (fabs(pivot) < least)
			pivot = -least;
		count += pivot < 0;
	}
	return count;
}

/* The k-th smallest eigenvalue by bisection of low .. high. */
static double bisect(const double *d, const double *square, size_t n, size_t k, double low, double high, double least)
{
	for (;;) {
		double middle = low + (high - low) / 2;
		if (middle <= low || middle >= high || high - low <= DBL_EPSILON * fabs(middle) + least)
			return middle;
		if (below(d, square, n, middle, least) > k)
			high = middle;
		else
			low = middle;
	}
}

int symmetric_eigenvalues(double *a, size_t n, double *out, struct error *e)
{
	double *work = mem_zero(n + 1, 4 * sizeof *work, e), most = 0;
	double *d = work, *square = d + n, *v = square + n + 1, *w = v + n;
	if (!work)
		return -1;
	for (size_t k = 0; k + 1 < n; k++)
		square[k + 1] = reflect(a, n, k, v, w);
	for (size_t k = 0; k < n; k++) {
		d[k] = a[k * n + k];
		double reach = fabs(d[k]) + fabs(square[k]) + fabs(square[k + 1]); /* Gershgorin */
		most = reach > most || isnan(reach) ? reach : most;
	}
	int r = isfinite(most) ? 0 : fail(e, STATUS_FAIL, "the features are not finite");
	for (size_t k = 0; k < n; k++)
		square[k] *= square[k];
	double least = DBL_MIN + DBL_EPSILON * DBL_EPSILON * most;
#pragma omp parallel for schedule(static)
	for (size_t k = 0; k < n; k++)
		out[k] = r ? NAN : bisect(d, square, n, k, -most, most, least);
	free(work);
	return r;
}

/* ---- the distance ---- */

/* L (n, n) with a = L L^T; zero columns where a is singular.  The largest pivot first keeps rounding small. */
static void factor(double *l, const double *a, size_t n, double *left)
{
	double first = 0;
	memset(l, 0, n * n * sizeof *l);
	for (size_t i = 0; i < n; i++)
		left[i] = a[i * n + i];
	for (size_t k = 0; k < n; k++) {
		size_t p = 0;
		for (size_t i = 1; i < n; i++)
			p = left[i] > left[p] ? i : p;
		first = k == 0 ? left[p] : first;
		if (!(left[p] > (double)n * DBL_EPSILON * first))
			return;
		double root = sqrt(left[p]);
		for (size_t i = 0; i < n; i++) {
			double value = (a[i * n + p] - dot(l + i * n, l + p * n, k)) / root;
			l[i * n + k] = i == p ? root : left[i] > 0 ? value : 0; /* rows that were pivots are done */
		}
		for (size_t i = 0; i < n; i++)
			left[i] -= l[i * n + k] * l[i * n + k];
		left[p] = 0;
	}
}

/* out = x^T y, all (n, n). */
static void product(double *out, const double *x, const double *y, size_t n)
{
	memset(out, 0, n * n * sizeof *out);
#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < n; k++) {
			double f = x[k * n + i];
			for (size_t j = 0; j < n; j++)
				out[i * n + j] += f * y[k * n + j];
		}
}

/* tr (A B)^(1/2) of two covariances; work (4, n, n) + (n). */
static int root_trace(const struct moments *a, const struct moments *b, double *work, double *out, struct error *e)
{
	size_t n = a->width;
	double *A = work, *L = A + n * n, *T = L + n * n, *M = T + n * n, *values = M + n * n;
	covariance(a, A);
	factor(L, A, n, values);
	covariance(b, A);
	product(T, A, L, n); /* B L: B is its own transpose */
	product(M, L, T, n); /* L^T B L */
	if (symmetric_eigenvalues(M, n, values, e))
		return -1;
	*out = 0;
	for (size_t i = 0; i < n; i++)
		*out += values[i] > 0 ? sqrt(values[i]) : 0;
	return 0;
}

static double variance(const struct moments *m, size_t i)
{
	double n = (double)m->n;
	return (m->products[i * m->width + i] - m->sum[i] * m->sum[i] / n) / (n - 1);
}

int frechet_distance(const struct moments *a, const struct moments *b, double *out, struct error *e)
{
	size_t n = a->width;
	double root, sum = 0;
	if (a->n < 2 || b->n < 2)
		return fail(e, STATUS_BAD, "%llu and %llu records, expected two or more on each side", (unsigned long long)a->n,
		            (unsigned long long)b->n);
	double *work = mem_alloc(4 * n + 1, n * sizeof *work, e);
	int r = work ? root_trace(a, b, work, &root, e) : -1;
	free(work);
	if (r)
		return -1;
	for (size_t i = 0; i < n; i++) {
		double d = a->pivot[i] + a->sum[i] / (double)a->n - b->pivot[i] - b->sum[i] / (double)b->n;
		sum += d * d + variance(a, i) + variance(b, i);
	}
	*out = sum > 2 * root ? sum - 2 * root : 0; /* rounding goes below 0 for equal sets */
	return 0;
}

/* ---- precision and recall ---- */

/* The k-th smallest squared distance from vector i to the others; nearest (k) is workspace. */
static float neighbour(const float *x, size_t n, size_t width, size_t i, size_t k, float *nearest)
{
	size_t held = 0;
	for (size_t j = 0; j < n; j++) {
		float d = i == j ? INFINITY : squared_distance(x + i * width, x + j * width, width);
		if (i == j || (held == k && !(d < nearest[k - 1])))
			continue;
		size_t at = held < k ? held++ : k - 1;
		for (; at && nearest[at - 1] > d; at--)
			nearest[at] = nearest[at - 1];
		nearest[at] = d;
	}
	return nearest[k - 1];
}

static int radii(const float *x, size_t n, size_t width, size_t k, float *out, struct error *e)
{
	int bad = 0;
#pragma omp parallel
	{
		struct error own = {0};
		float *nearest = mem_alloc(k, sizeof *nearest, &own);
#pragma omp for schedule(static)
		for (size_t i = 0; i < n; i++)
			out[i] = nearest ? neighbour(x, n, width, i, k, nearest) : 0;
		if (!nearest) {
#pragma omp atomic write
			bad = 1;
		}
		free(nearest);
	}
	return bad ? fail(e, STATUS_LIMIT, "out of memory") : 0;
}

/* The share of y that is within the radius of some x. */
static double covered(const float *x, const float *radius, size_t n, const float *y, size_t m, size_t width)
{
	size_t count = 0;
#pragma omp parallel for schedule(static) reduction(+ : count)
	for (size_t j = 0; j < m; j++) {
		size_t i = 0;
		while (i < n && squared_distance(x + i * width, y + j * width, width) > radius[i])
			i++;
		count += i < n;
	}
	return (double)count / (double)m;
}

int precision_recall(const float *real, size_t n, const float *made, size_t m, size_t width, size_t k, double *precision,
                     double *recall, struct error *e)
{
	if (k < 1 || k >= n || k >= m)
		return fail(e, STATUS_BAD, "%zu neighbours of %zu and %zu records, expected more records", k, n, m);
	float *radius = mem_alloc(n > m ? n : m, sizeof *radius, e);
	int r = radius ? radii(real, n, width, k, radius, e) : -1;
	if (r == 0) {
		*precision = covered(real, radius, n, made, m, width);
		r = radii(made, m, width, k, radius, e);
	}
	if (r == 0)
		*recall = covered(made, radius, m, real, n, width);
	free(radius);
	return r;
}
