/* attn-multiply.h - the product of small tiles of attention, included by attn-tiles.h once per instruction set with
 *   ISA     suffix of the names          TARGET  function attribute
 *   LANES   floats of a vector           MR      rows of a register tile, which is PANEL columns wide
 * and the macros undefined at the end.  PANEL, a multiple of LANES, and K_BLOCK are its constants. */

#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)
#define NAME(x) GLUE(x, ISA)
#define VEC NAME(vec_)
#define NV (PANEL / LANES)

typedef float VEC __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* c[rows, PANEL] = or += a b over k; a(i, p) = a[i * across + p * along], b[k, PANEL] with its rows ldb
 * apart.  rows is a constant where this is inlined: MR x NV sums stay in registers. */
TARGET static VINLINE void NAME(tile_)(int rows, float *c, size_t ldc, const float *a, size_t across, size_t along,
                                       const float *b, size_t ldb, size_t k, int add)
{
	VEC s[MR][NV];
#pragma GCC unroll 8
	for (int i = 0; i < rows; i++)
		for (int j = 0; j < NV; j++)
			s[i][j] = add ? *(const VEC *)(c + i * ldc + j * LANES) : (VEC){0};
	for (size_t p = 0; p < k; p++, a += along, b += ldb) {
		VEC v[NV];
		for (int j = 0; j < NV; j++)
			v[j] = *(const VEC *)(b + j * LANES);
#pragma GCC unroll 8
		for (int i = 0; i < rows; i++)
			for (int j = 0; j < NV; j++)
				s[i][j] += a[i * across] * v[j];
	}
#pragma GCC unroll 8
	for (int i = 0; i < rows; i++)
		for (int j = 0; j < NV; j++)
			*(VEC *)(c + i * ldc + j * LANES) = s[i][j];
}

/* c[m, n] = or += a[m, k] b[k, n], n a multiple of PANEL; b's panels of PANEL columns lie `panel`
 * apart.  k in blocks, so that a block of b stays in the first cache for all m. */
TARGET static void NAME(multiply_)(float *c, size_t ldc, const float *a, size_t across, size_t along, const float *b,
                                   size_t ldb, size_t panel, size_t m, size_t n, size_t k, int add)
{
	for (size_t k0 = 0; k0 < k; k0 += K_BLOCK, a += K_BLOCK * along, b += K_BLOCK * ldb) {
		size_t kn = k - k0 < K_BLOCK ? k - k0 : K_BLOCK;
		for (size_t j = 0; j < n; j += PANEL) {
			const float *bj = b + j / PANEL * panel;
			size_t i = 0;
			for (; i + MR <= m; i += MR)
				NAME(tile_)(MR, c + i * ldc + j, ldc, a + i * across, across, along, bj, ldb, kn, add || k0);
			for (; i + 2 <= m; i += 2)
				NAME(tile_)(2, c + i * ldc + j, ldc, a + i * across, across, along, bj, ldb, kn, add || k0);
			if (i < m)
				NAME(tile_)(1, c + i * ldc + j, ldc, a + i * across, across, along, bj, ldb, kn, add || k0);
		}
	}
}

#undef NV
#undef VEC
#undef NAME
#undef GLUE
#undef GLUE2
#undef ISA
#undef TARGET
#undef LANES
#undef MR
