/* test-attn-multiply.c - the small products of attn.c for every instruction set that this CPU has, not only for the
 * best, which the other tests run: against a loop in double, odd sizes, both orders of a, writing and adding,
 * and nothing written outside of the result. */
#include "../kernels/attn-tiles.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>

typedef void multiply_fn(float *c, size_t ldc, const float *a, size_t across, size_t along, const float *b, size_t ldb,
                         size_t panel, size_t m, size_t n, size_t k, int add);

enum { M = 21, N = 3 * PANEL, K = 2 * K_BLOCK + 9, LDC = N + 5 };
static float a[M * K], b[K * N], c[(M + 1) * LDC], before[(M + 1) * LDC];

static float noise(void)
{
	static uint32_t state = 1;
	state = state * 1664525 + 1013904223;
	return (float)(int32_t)state * 0x1p-31f;
}

/* b as panels one after another (ldb PANEL) or as plain rows (ldb N). */
static double b_at(size_t p, size_t j, int rows, size_t k)
{
	return rows ? b[p * N + j] : b[j / PANEL * k * PANEL + p * PANEL + j % PANEL];
}

static int case_fails(multiply_fn *f, size_t m, size_t n, size_t k, int transposed, int rows, int add)
{
	size_t across = transposed ? 1 : K, along = transposed ? M : 1;
	for (size_t i = 0; i < (M + 1) * LDC; i++)
		c[i] = before[i] = noise();
	f(c, LDC, a, across, along, b, rows ? N : PANEL, rows ? PANEL : k * PANEL, m, n, k, add);
	for (size_t i = 0; i < M + 1; i++)
		for (size_t j = 0; j < LDC; j++) {
			double want = before[i * LDC + j], size = 1;
			if (i < m && j < n) {
				want = add ? want : 0;
				for (size_t p = 0; p < k; p++) {
					double x = a[i * across + p * along] * b_at(p, j, rows, k);
					want += x, size += fabs(x);
				}
			} else if (c[i * LDC + j] != before[i * LDC + j]) {
				return 1;
			}
			if (!(fabs(c[i * LDC + j] - want) <= 1e-6 * size))
				return 1;
		}
	return 0;
}

static void check_isa(const char *name, multiply_fn *f)
{
	static const size_t depths[] = {1, 2, 31, 64, K_BLOCK, K_BLOCK + 1, K};
	for (size_t m = 1; m <= M; m++)
		for (size_t n = PANEL; n <= N; n += PANEL)
			for (size_t d = 0; d < sizeof depths / sizeof *depths; d++)
				for (int flags = 0; flags < 8; flags++)
					CHECK(!case_fails(f, m, n, depths[d], flags & 1, flags >> 1 & 1, flags >> 2),
					      "%s: %zu x %zu x %zu, flags %d", name, m, n, depths[d], flags);
}

int main(void)
{
	for (size_t i = 0; i < M * K; i++)
		a[i] = noise();
	for (size_t i = 0; i < K * N; i++)
		b[i] = noise();
	check_isa("plain", multiply_plain);
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		check_isa("avx2", multiply_avx2);
	if (__builtin_cpu_supports("avx512f"))
		check_isa("avx512", multiply_avx512);
#endif
	return check_done();
}
