/* test-frechet.c - Frechet distance, precision and recall against numpy and scipy (tests/golden/make_frechet.py), and the
 * eigenvalues against a matrix whose own are known. */
#include "../libcommon/frechet.h"
#include "check.h"
#include "golden/frechet.h"

#include <math.h>
#include <stdlib.h>

enum { NEIGHBOURS = 3 };

static uint32_t state = 5;
static double draw(void)
{
	state = state * 1664525u + 1013904223u;
	return (double)(state >> 8) / (1 << 23) - 1;
}

/* The script's vectors (n, width). */
static float *side(int n, int width, double offset, double spread, int rank)
{
	struct error e = {0};
	size_t total = (size_t)n * (size_t)width, w = (size_t)width;
	double *x = mem_alloc(total, sizeof *x, &e);
	float *out = mem_alloc(total, sizeof *out, &e);
	if (!x || !out)
		abort();
	for (size_t i = 0; i < total; i++)
		x[i] = draw();
	for (size_t i = 0; i < total; i++)
		if (i % w)
			x[i] = rank > 0 && i % w >= (size_t)rank ? x[i - (size_t)rank] : 0.6 * x[i] + 0.4 * x[i - 1];
	for (size_t i = 0; i < total; i++)
		out[i] = (float)(offset + spread * x[i]);
	free(x);
	return out;
}

static double distance(const float *a, int n, const float *b, int m, int width, int part)
{
	struct error e = {0};
	struct moments A = {0}, B = {0};
	double d = NAN;
	moments_init(&A, (size_t)width, &e);
	moments_init(&B, (size_t)width, &e);
	for (int i = 0; i < n; i += part)
		moments_add(&A, a + (size_t)i * (size_t)width, (size_t)(n - i < part ? n - i : part));
	moments_add(&B, b, (size_t)m);
	CHECK(frechet_distance(&A, &B, &d, &e) == 0, "%s", e.text);
	moments_free(&A);
	moments_free(&B);
	return d;
}

static void test_golden(void)
{
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct error e = {0};
		const int n = cases[i].n, m = cases[i].m, width = cases[i].width;
		float *a = side(n, width, cases[i].offset, 1.0, 0);
		float *b = cases[i].rank < 0 ? a : side(m, width, cases[i].offset + 0.1, 0.8, cases[i].rank);
		double d = distance(a, n, b, m, width, n), want = cases[i].distance, precision = -1, recall = -1;
		/* Zero eigenvalues come out as rounding, whose root is what is left. */
		CHECK(fabs(d - want) < 1e-6 * (1 + fabs(want)), "%s: distance %.12g, expected %.12g", cases[i].name, d, want);
		CHECK(d == distance(a, n, b, m, width, 7), "%s: depends on the batches", cases[i].name);
		CHECK(precision_recall(a, (size_t)n, b, (size_t)m, (size_t)width, NEIGHBOURS, &precision, &recall, &e) == 0, "%s", e.text);
		CHECK(fabs(precision - cases[i].precision) < 1e-8 && fabs(recall - cases[i].recall) < 1e-8,
		      "%s: precision %.6f and recall %.6f, expected %.6f and %.6f", cases[i].name, precision, recall, cases[i].precision,
		      cases[i].recall);
		if (b != a)
			free(b);
		free(a);
	}
}

/* min(i, j) + 1 has the eigenvalues 1 / (4 sin^2((2k + 1) pi / (4n + 2))). */
static void test_eigenvalues(void)
{
	static const size_t sizes[] = {1, 2, 3, 17, 200};
	for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
		struct error e = {0};
		size_t n = sizes[s];
		double *a = mem_alloc(n, n * sizeof *a, &e), *got = mem_alloc(n, sizeof *got, &e), worst = 0, most = 0;
		for (size_t i = 0; i < n * n; i++)
			a[i] = (double)((i / n < i % n ? i / n : i % n) + 1);
		CHECK(symmetric_eigenvalues(a, n, got, &e) == 0, "%s", e.text);
		for (size_t k = 0; k < n; k++) {
			double root = 2 * sin((double)(2 * (n - 1 - k) + 1) * M_PI / (double)(4 * n + 2)), want = 1 / (root * root);
			worst = fmax(worst, fabs(got[k] - want));
			most = fmax(most, want);
		}
		CHECK(worst < 1e-13 * most, "%zu eigenvalues: off by %g of %g", n, worst, most);
		free(a);
		free(got);
	}
	struct error e = {0};
	double bad[4] = {1, NAN, NAN, 1}, out[2];
	CHECK(symmetric_eigenvalues(bad, 2, out, &e) && e.status == STATUS_FAIL, "NaN is told");
}

static void test_refusals(void)
{
	struct error e = {0};
	struct moments a = {0}, b = {0};
	const float x[6] = {1, 2, 3, 4, 5, 6};
	double d, p, r;
	moments_init(&a, 2, &e);
	moments_init(&b, 2, &e);
	moments_add(&a, x, 3);
	moments_add(&b, x, 1);
	CHECK(frechet_distance(&a, &b, &d, &e) && e.status == STATUS_BAD, "one record has no covariance");
	e = (struct error){0};
	CHECK(precision_recall(x, 3, x, 3, 2, 3, &p, &r, &e) && e.status == STATUS_BAD, "three of three have no third neighbour");
	moments_free(&a);
	moments_free(&b);
}

int main(void)
{
	test_golden();
	test_eigenvalues();
	test_refusals();
	return check_done();
}
