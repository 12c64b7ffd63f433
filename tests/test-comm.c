/* test-comm.c - sums over ranks: of this process alone, or, started by mpirun (cli/ranks.sh), of all.  With an argument
 * the last rank aborts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/convert.h"
#include "../libcommon/comm.h"
#include "../libcommon/rng.h"
#include "check.h"

enum { MANY = (1 << 22) + 7 }; /* more than one message */

static struct comm c;
static struct error e;

/* What rank r gives at place i: whole numbers, whose sums are exact. */
static double given(int r, size_t i)
{
	return (double)((i * 7 + (size_t)r * 13) % 1001) - 500;
}

static void test_f32(size_t n)
{
	float *x = malloc(n * sizeof *x);
	size_t wrong = 0;
	for (size_t i = 0; i < n; i++)
		x[i] = (float)given(c.rank, i);
	CHECK(comm_sum(&c, x, n, COMM_F32, &e) == 0, "%s", e.text);
	for (size_t i = 0; i < n; i++) {
		double want = 0;
		for (int r = 0; r < c.size; r++)
			want += given(r, i);
		wrong += (double)x[i] != want;
	}
	CHECK(wrong == 0, "%zu of %zu sums are wrong", wrong, n);
	free(x);
}

static void test_f64(void)
{
	double x[3] = {c.rank + 1, 0x1p-60 * (c.rank + 1), c.rank == c.size - 1 ? INFINITY : 1}, want = c.size * (c.size + 1) / 2.0;
	CHECK(comm_sum(&c, x, 3, COMM_F64, &e) == 0, "%s", e.text);
	CHECK(x[0] == want && x[1] == 0x1p-60 * want && isinf(x[2]), "%g %g %g", x[0], x[1], x[2]);
}

static void test_1_6_9(void)
{
	uint16_t x[4] = {f32_to_1_6_9(0.5f), f32_to_1_6_9(-15), f32_to_1_6_9(c.rank ? 0 : 3), f32_to_1_6_9(c.rank ? -0.25f : 0.25f)};
	CHECK(comm_sum(&c, x, 4, COMM_1_6_9, &e) == 0, "%s", e.text);
	CHECK(f32_from_1_6_9(x[0]) == 0.5f * (float)c.size, "%g", (double)f32_from_1_6_9(x[0]));
	CHECK(f32_from_1_6_9(x[1]) == (c.size > 1 ? -15.984375f : -15), "clamped: %g", (double)f32_from_1_6_9(x[1]));
	CHECK(f32_from_1_6_9(x[2]) == 3, "%g", (double)f32_from_1_6_9(x[2]));
	CHECK(f32_from_1_6_9(x[3]) == 0.25f - 0.25f * (float)(c.size - 1), "%g", (double)f32_from_1_6_9(x[3]));
}

/* Sums that depend on their order have the same bits everywhere; one rank's infinity reaches all. */
static void test_same_bits(void)
{
	enum { N = 10007 };
	float x[N], of_0[N];
	rng_normal(x, N, 1, 5, RNG_INIT, (uint32_t)c.rank);
	if (c.rank == c.size - 1)
		x[N - 1] = -INFINITY;
	CHECK(comm_sum(&c, x, N, COMM_F32, &e) == 0, "%s", e.text);
	memcpy(of_0, x, sizeof x);
	CHECK(comm_broadcast(&c, of_0, sizeof of_0, &e) == 0, "%s", e.text);
	CHECK(memcmp(of_0, x, sizeof x) == 0, "rank %d has other bits than rank 0", c.rank);
	CHECK(isinf(x[N - 1]), "%g", (double)x[N - 1]);
}

static void test_broadcast(void)
{
	const size_t n = ((size_t)32 << 20) + 5; /* more than one message */
	unsigned char *x = malloc(n);
	memset(x, c.rank ? 1 : 77, n);
	CHECK(comm_broadcast(&c, x, n, &e) == 0, "%s", e.text);
	CHECK(x[0] == 77 && x[n - 1] == 77 && memcmp(x, x + 1, n - 1) == 0, "not what rank 0 has");
	free(x);
}

/* The last rank leaves while the others wait: they must not wait for ever. */
static void test_abort(void)
{
	double x = 1;
	if (c.rank == c.size - 1)
		comm_abort(&c, STATUS_BAD);
	CHECK(comm_sum(&c, &x, 1, COMM_F64, &e) == 0, "%s", e.text);
}

int main(int argc, char **argv)
{
	if (!CHECK(comm_open(&c, COMM_AUTO, &e) == 0, "%s", e.text))
		return check_done();
	CHECK(c.size >= 1 && c.rank < c.size && c.local_rank < c.size && c.sharing >= 1 && c.sharing <= c.size, "rank %d of %d",
	      c.rank, c.size);
	if (argc > 1)
		test_abort();
	test_f32(1);
	test_f32(1001);
	test_f32(MANY);
	test_f64();
	test_1_6_9();
	test_same_bits();
	test_broadcast();
	comm_close(&c);
	return check_done();
}
