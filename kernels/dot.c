/* dot.c - see dot.h. */
#include "dot.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE TARGET static inline __attribute__((always_inline))
enum { MR = 6, NR = 4, STEP = 32, ROWS = 48 /* of a at a time: they stay in L2 */ };

int cpu_dot_works(void)
{
	return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* Sums of four vectors, each over its lanes in one fixed order. */
INLINE __m128 sums4(const __m512 s[NR])
{
	__m128 q[NR];
	for (int j = 0; j < NR; j++) {
		__m256 half = _mm256_add_ps(_mm512_castps512_ps256(s[j]), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(s[j]), 1)));
		q[j] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
	}
	return _mm_hadd_ps(_mm_hadd_ps(q[0], q[1]), _mm_hadd_ps(q[2], q[3]));
}

/* c[m, NR] = a b^T; m is a constant where this is inlined. */
INLINE void tile(int m, float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t k)
{
	__m512 s[MR][NR];
#pragma GCC unroll 6
	for (int i = 0; i < m; i++)
#pragma GCC unroll 4
		for (int j = 0; j < NR; j++)
			s[i][j] = _mm512_setzero_ps();
	for (size_t p = 0; p < k; p += STEP) {
		__mmask32 part = k - p >= STEP ? 0xffffffff : (1u << (k - p)) - 1;
		__m512bh x[MR];
#pragma GCC unroll 6
		for (int i = 0; i < m; i++)
			x[i] = (__m512bh)_mm512_maskz_loadu_epi16(part, a + (size_t)i * lda + p);
#pragma GCC unroll 4
		for (int j = 0; j < NR; j++) {
			__m512bh y = (__m512bh)_mm512_maskz_loadu_epi16(part, b + (size_t)j * ldb + p);
#pragma GCC unroll 6
			for (int i = 0; i < m; i++)
				s[i][j] = _mm512_dpbf16_ps(s[i][j], x[i], y);
		}
	}
#pragma GCC unroll 6
	for (int i = 0; i < m; i++)
		_mm_storeu_ps(c + (size_t)i * ldc, sums4(s[i]));
}

/* NR columns of m rows. */
TARGET static void columns(float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t m,
			   size_t k)
{
	size_t i = 0;
	for (; i + MR <= m; i += MR)
		tile(MR, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k);
	if (i + 4 <= m) {
		tile(4, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k);
		i += 4;
	}
	if (i + 2 <= m) {
		tile(2, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k);
		i += 2;
	}
	if (i < m)
		tile(1, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k);
}

/* The last n < NR columns, one by one as NR equal ones. */
static void last_columns(float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t m,
			 size_t n, size_t k)
{
	for (size_t j = 0; j < n; j++) {
		float four[ROWS][NR];
		columns(four[0], NR, a, lda, b + j * ldb, 0, m, k);
		for (size_t i = 0; i < m; i++)
			c[i * ldc + j] = four[i][0];
	}
}

void cpu_dot_block(float *c, size_t ldc, const struct gemm *g, size_t j, size_t n)
{
	size_t lda = g->a.across, ldb = g->b.across;
	const uint16_t *b = (const uint16_t *)g->b.p + j * ldb;
	for (size_t i = 0; i < g->m; i += ROWS) {
		const uint16_t *a = (const uint16_t *)g->a.p + i * lda;
		size_t m = g->m - i < ROWS ? g->m - i : ROWS, q = 0;
		for (; q + NR <= n; q += NR)
			columns(c + i * ldc + q, ldc, a, lda, b + q * ldb, ldb, m, g->k);
		if (q < n)
			last_columns(c + i * ldc + q, ldc, a, lda, b + q * ldb, ldb, m, n - q, g->k);
	}
}
#else
int cpu_dot_works(void)
{
	return 0;
}

void cpu_dot_block(float *c, size_t ldc, const struct gemm *g, size_t j, size_t n)
{
}
#endif
