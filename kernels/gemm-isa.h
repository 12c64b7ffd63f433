/* gemm-isa.h - the inner loops of gemm.c, included once per instruction set with
 *   ISA     suffix of the names          TARGET  function attribute
 *   LANES   floats of a vector           MR, NV  register tile: MR rows x NV vectors
 * and the macros undefined at the end. */

#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)
#define NAME(x) GLUE(x, ISA)
#define VEC NAME(vec_)
#define NR (LANES * NV)
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float VEC __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* c[MR, NR] (rows ldc apart) = or += a^T b over k, for packed panels a[k, MR] and b[k, NR]. */
TARGET static void NAME(tile_)(float *restrict c, size_t ldc, const float *restrict a, const float *restrict b, size_t k,
			       int add)
{
	VEC s[MR][NV] = { { { 0 } } };
	for (size_t p = 0; p < k; p++, a += MR, b += NR) {
		VEC v[NV];
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			v[j] = *(const VEC *)(b + j * LANES);
#pragma GCC unroll 16
		for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
			for (int j = 0; j < NV; j++)
				s[i][j] += a[i] * v[j];
	}
#pragma GCC unroll 16
	for (int i = 0; i < MR; i++, c += ldc)
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++) {
			VEC *out = (VEC *)(c + j * LANES);
			if (add)
				s[i][j] += *out;
			*out = s[i][j];
		}
}

/* The same without packing a, for a constant number of rows: s[rows, NR] = a b, or its sums go on (the chain of
 * additions is that of tile_). */
INLINE void NAME(rows_)(int rows, float *restrict c, const float *restrict a, size_t across, const float *restrict b,
			size_t k, int go_on)
{
	VEC s[MR][NV];
#pragma GCC unroll 16
	for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			s[i][j] = go_on ? *(const VEC *)(c + i * NR + j * LANES) : (VEC){ 0 };
	for (size_t p = 0; p < k; p++, a++, b += NR) {
		VEC v[NV];
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			v[j] = *(const VEC *)(b + j * LANES);
#pragma GCC unroll 16
		for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
			for (int j = 0; j < NV; j++)
				s[i][j] += a[(size_t)i * across] * v[j];
	}
#pragma GCC unroll 16
	for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
		for (int j = 0; j < NV; j++)
			*(VEC *)(c + i * NR + j * LANES) = s[i][j];
}

/* rows_ for any m. */
TARGET static void NAME(few_)(float *c, const float *a, size_t across, const float *b, size_t m, size_t k, int go_on)
{
	size_t i = 0;
	for (; i + MR <= m; i += MR)
		NAME(rows_)(MR, c + i * NR, a + i * across, across, b, k, go_on);
	if (MR > 8 && i + 8 <= m) {
		NAME(rows_)(MR > 8 ? 8 : 1, c + i * NR, a + i * across, across, b, k, go_on);
		i += 8;
	}
	if (i + 4 <= m) {
		NAME(rows_)(4, c + i * NR, a + i * across, across, b, k, go_on);
		i += 4;
	}
	if (i + 2 <= m) {
		NAME(rows_)(2, c + i * NR, a + i * across, across, b, k, go_on);
		i += 2;
	}
	if (i < m)
		NAME(rows_)(1, c + i * NR, a + i * across, across, b, k, go_on);
}

/* By address: a vector passed as such would depend on the instruction set. */
INLINE void NAME(load8_)(vec8 *v, const void *x, enum dtype t, size_t i)
{
	if (t == DT_F32)
		*v = *(const vec8 *)((const float *)x + i);
	else
		for (int j = 0; j < 8; j++)
			(*v)[j] = load_as_f32(x, t, i + (size_t)j);
}

/* The first n of 8; n is a constant 4, 6 or >= 8 after inlining. */
INLINE void NAME(load_part_)(vec8 *v, const void *x, enum dtype t, size_t i, int n)
{
	*v = (vec8){ 0 };
	if (n >= 8)
		NAME(load8_)(v, x, t, i);
	for (int j = 0; j < n && n < 8; j++)
		(*v)[j] = load_as_f32(x, t, i + (size_t)j);
}

INLINE void NAME(store_part_)(float *out, const vec8 *v, int n)
{
	if (n >= 8) {
		*(vec8 *)out = *v;
		return;
	}
	*(vec4 *)out = __builtin_shufflevector(*v, *v, 0, 1, 2, 3);
	if (n == 6)
		*(vec2 *)(out + 4) = __builtin_shufflevector(*v, *v, 4, 5);
}

/* Up to 8 lines of x from element p on, as out[q * width + line] for q < 8. */
INLINE void NAME(pack_square_)(float *restrict out, int width, int lines,
									     const void *x, enum dtype t, size_t across,
									     size_t p)
{
	vec8 r[8], half[8], quad[8];
#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		if (i < lines)
			NAME(load8_)(&r[i], x, t, (size_t)i * across + p);
		else
			r[i] = (vec8){ 0 };
#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) { /* transposed 2 x 2 cells, then 4 x 4, then all */
		half[i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
		half[i + 4] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
	}
#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		int from = i / 2 * 2 + i % 2 * 4; /* columns 0 1, 2 3 of lines 0..3; the same of lines 4..7 */
		quad[2 * i] = __builtin_shufflevector(half[from], half[from + 1], 0, 1, 8, 9, 4, 5, 12, 13);
		quad[2 * i + 1] = __builtin_shufflevector(half[from], half[from + 1], 2, 3, 10, 11, 6, 7, 14, 15);
	}
#pragma GCC unroll 8
	for (int q = 0; q < 8; q++) {
		vec8 low = quad[q % 4], high = quad[q % 4 + 4], column;
		if (q < 4)
			column = __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
		else
			column = __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
		NAME(store_part_)(out + q * width, &column, lines);
	}
}

/* One panel out[k, width] from `lines` <= width lines of x, element (i, p) at x[i * across + p]. */
INLINE void NAME(pack_lines_)(float *restrict out, int width, const void *x,
									    enum dtype t, size_t across, int lines, size_t k)
{
	size_t p = 0;
	if (lines < width) {
		memset(out, 0, k * (size_t)width * sizeof *out);
	} else {
		/* 64 bytes of each line in turn: lines a power of two apart push each other out of the first cache. */
		for (; p + 16 <= k; p += 16)
#pragma GCC unroll 4
			for (int i = 0; i < width; i += 8)
#pragma GCC unroll 2
				for (int q = 0; q < 16; q += 8)
					NAME(pack_square_)(out + (p + (size_t)q) * (size_t)width + i, width,
							   width - i < 8 ? width - i : 8, at_const(x, t, (size_t)i * across), t,
							   across, p + (size_t)q);
	}
	for (; p < k; p++)
		for (int i = 0; i < lines; i++)
			out[p * (size_t)width + (size_t)i] = load_as_f32(x, t, (size_t)i * across + p);
}

/* Panels out[(n + width - 1) / width][k, width] from n lines of x; missing lines are 0. */
INLINE void NAME(pack_of_)(float *restrict out, int width, const void *x,
									 enum dtype t, size_t across, size_t along, size_t n,
									 size_t k)
{
	size_t w = (size_t)width, whole = n / w * w;
	if (across != 1) {
		for (size_t i = 0; i < n; i += w)
			NAME(pack_lines_)(out + i * k, width, at_const(x, t, i * across), t, across,
					  (int)(n - i < w ? n - i : w), k);
		return;
	}
	/* All panels side by side: a row of x is read once from end to end. */
	if (whole < n)
		memset(out + whole * k, 0, w * k * sizeof *out);
	for (size_t p = 0; p < k; p++) {
		const void *row = at_const(x, t, p * along);
		for (size_t i = 0; i < n; i += 64 / dtype_bytes(t)) /* rows may lie pages apart: no hardware prefetch */
			__builtin_prefetch(at_const(row, t, 8 * along + i));
		for (size_t i = 0; i < whole; i += w)
#pragma GCC unroll 4
			for (int j = 0; j < width; j += 8) {
				vec8 v;
				NAME(load_part_)(&v, row, t, i + (size_t)j, width - j);
				NAME(store_part_)(out + i * k + p * w + j, &v, width - j);
			}
		for (size_t i = whole; i < n; i++)
			out[whole * k + p * w + i - whole] = load_as_f32(row, t, i);
	}
}

/* The type and the width become constants here: three loops each instead of a test per element. */
#define PACK(which, width)                                                                         \
	TARGET static void NAME(which)(float *out, const void *x, enum dtype t, size_t across, size_t along, size_t n, \
				       size_t k)                                                   \
	{                                                                                          \
		if (t == DT_F32)                                                                   \
			NAME(pack_of_)(out, width, x, DT_F32, across, along, n, k);                \
		else if (t == DT_BF16)                                                             \
			NAME(pack_of_)(out, width, x, DT_BF16, across, along, n, k);               \
		else                                                                               \
			NAME(pack_of_)(out, width, x, DT_F16, across, along, n, k);                \
	}
PACK(pack_a_, MR)
PACK(pack_b_, NR)

static const struct isa NAME(isa_) = { MR, NR, NAME(tile_), NAME(few_), NAME(pack_a_), NAME(pack_b_) };

#undef PACK
#undef INLINE
#undef VEC
#undef NR
#undef NAME
#undef GLUE
#undef GLUE2
#undef ISA
#undef TARGET
#undef LANES
#undef MR
#undef NV
