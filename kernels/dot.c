/* dot.c - see dot.h. */
#include "dot.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE TARGET static inline __attribute__((always_inline))
enum { MR = 6, NR = 4, STEP = 32, K_BLOCK = 1024, ROWS = 48 /* of a at a time: they stay in L2 */ };

int cpu_dot_works(void)
{
	return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

INLINE __m512 add_pairs(__m512 a, __m512 b)
{
	return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

/* Sums of four vectors, each over its lanes in one fixed order. */
INLINE __m128 sums4(const __m512 s[NR])
{
	__m512d low = _mm512_castps_pd(add_pairs(s[0], s[2])), high = _mm512_castps_pd(add_pairs(s[1], s[3]));
	__m512d q = _mm512_castps_pd(add_pairs(_mm512_castpd_ps(low), _mm512_castpd_ps(high))); /* s0 s1 s2 s3 in each quarter */
	__m256 half = _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(q)), _mm256_castpd_ps(_mm512_extractf64x4_pd(q, 1)));
	return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* c[m, NR] = or += a b^T; m is a constant where this is inlined. */
INLINE void tile(int m, float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t k,
		 int add)
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
	for (int i = 0; i < m; i++, c += ldc)
		_mm_storeu_ps(c, add ? _mm_add_ps(_mm_loadu_ps(c), sums4(s[i])) : sums4(s[i]));
}

/* tile for any m. */
TARGET static void tiles(float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t m,
			 size_t k, int add)
{
	size_t i = 0;
	for (; i + MR <= m; i += MR)
		tile(MR, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, add);
	if (i + 4 <= m) {
		tile(4, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, add);
		i += 4;
	}
	if (i + 2 <= m) {
		tile(2, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, add);
		i += 2;
	}
	if (i < m)
		tile(1, c + i * ldc, ldc, a + i * lda, lda, b, ldb, k, add);
}

/* NR columns of m rows, K_BLOCK at a time: so much of b stays in L1. */
static void columns(float *c, size_t ldc, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t m, size_t k)
{
	for (size_t p = 0; p < k; p += K_BLOCK)
		tiles(c, ldc, a + p, lda, b + p, ldb, m, k - p < K_BLOCK ? k - p : K_BLOCK, p > 0);
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
