/* gemm-isa.h - the inner loops of gemm.c, included once per instruction set with
 *   ISA     suffix of the names          TARGET  function attribute
 *   LANES   floats of a vector           MR, NV  register tile: MR rows x NV vectors
 * and the macros undefined at the end. */

#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)
#define NAME(x) GLUE(x, ISA)
#define VEC NAME(vec_)
#define NR (LANES * NV)

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

/* out[k, width] from `rows` <= width lines of x, element (i, p) at x[i * across + p * along]; missing lines are 0. */
TARGET static inline __attribute__((always_inline)) void NAME(pack_of_)(float *restrict out, int width, const void *x,
									 enum dtype t, size_t across, size_t along,
									 int rows, size_t k)
{
	enum { PART = 32 };
	float part[PART];
	if (rows < width)
		memset(out, 0, k * (size_t)width * sizeof *out);
	if (across == 1) {
		for (size_t p = 0; p < k; p++)
			for (int i = 0; i < rows; i++)
				out[p * (size_t)width + (size_t)i] = load_as_f32(at_const(x, t, p * along), t, (size_t)i);
		return;
	}
	for (int i = 0; i < rows; i++) {
		const void *line = at_const(x, t, (size_t)i * across);
		for (size_t p = 0; p < k; p += PART) {
			size_t n = k - p < PART ? k - p : PART;
			for (size_t q = 0; q < n; q++)
				part[q] = load_as_f32(line, t, p + q);
			for (size_t q = 0; q < n; q++)
				out[(p + q) * (size_t)width + (size_t)i] = part[q];
		}
	}
}

/* The type and the width become constants here: three loops each instead of a test per element. */
#define PACK(which, width)                                                                         \
	TARGET static void NAME(which)(float *out, const void *x, enum dtype t, size_t across, size_t along, int rows, \
				       size_t k)                                                   \
	{                                                                                          \
		if (t == DT_F32)                                                                   \
			NAME(pack_of_)(out, width, x, DT_F32, across, along, rows, k);             \
		else if (t == DT_BF16)                                                             \
			NAME(pack_of_)(out, width, x, DT_BF16, across, along, rows, k);            \
		else                                                                               \
			NAME(pack_of_)(out, width, x, DT_F16, across, along, rows, k);             \
	}
PACK(pack_a_, MR)
PACK(pack_b_, NR)

static const struct isa NAME(isa_) = { MR, NR, NAME(tile_), NAME(pack_a_), NAME(pack_b_) };

#undef PACK
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
