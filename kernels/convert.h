/* convert.h - bf16 and f16 to f32 and back, round to nearest even; inline, so that loops over
 * them become vector code.  NaN stays NaN; f16 overflow gives infinity, f16 subnormals are exact. */
#ifndef CONVERT_H
#define CONVERT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ops.h"

static inline uint32_t float_bits(float x)
{
	uint32_t u;
	memcpy(&u, &x, 4);
	return u;
}

static inline float bits_float(uint32_t u)
{
	float x;
	memcpy(&x, &u, 4);
	return x;
}

static inline float bf16_to_f32(uint16_t h)
{
	return bits_float((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float x)
{
	uint32_t u = float_bits(x);
	uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
	/* Rounding could carry a NaN into infinity: keep it quiet instead. */
	return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
}

static inline float f16_to_f32(uint16_t h)
{
	/* The exponent moves from bias 15 to 127 by a product, which also normalises subnormals. */
	float x = bits_float((uint32_t)(h & 0x7fff) << 13) * 0x1p112f;
	uint32_t u = float_bits(x) | ((h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0);
	return bits_float(u | (uint32_t)(h & 0x8000) << 16);
}

static inline uint16_t f32_to_f16(float x)
{
	uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
	/* Below 2^-14 the sum with 0.5 rounds to multiples of 2^-24, f16's subnormal step. */
	uint32_t small = float_bits(bits_float(a) + 0.5f) - 0x3f000000;
	uint32_t normal = (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13;
	/* Masks, not branches: those would keep loops from becoming vector code. */
	uint32_t tiny = -(uint32_t)(a < 0x38800000), huge = -(uint32_t)(a >= 0x477ff000);
	uint32_t h = (small & tiny) | (normal & ~tiny);
	h = (h & ~huge) | (0x7c00 & huge) | (0x200 & -(uint32_t)(a > 0x7f800000));
	return (uint16_t)(h | sign);
}

/* Element i of a tensor of type t. */
static inline float load_as_f32(const void *p, enum dtype t, size_t i)
{
	if (t == DT_F32)
		return ((const float *)p)[i];
	uint16_t h = ((const uint16_t *)p)[i];
	return t == DT_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

static inline void store_from_f32(void *p, enum dtype t, size_t i, float x)
{
	if (t == DT_F32)
		((float *)p)[i] = x;
	else
		((uint16_t *)p)[i] = t == DT_BF16 ? f32_to_bf16(x) : f32_to_f16(x);
}

/* n elements, one thread; y and x must not overlap. */
static inline void row_to_f32(float *restrict y, const void *restrict x, enum dtype t, size_t n)
{
	const uint16_t *restrict h = x;
	if (t == DT_F32)
		memcpy(y, x, 4 * n);
	else if (t == DT_BF16)
		for (size_t i = 0; i < n; i++)
			y[i] = bf16_to_f32(h[i]);
	else
		for (size_t i = 0; i < n; i++)
			y[i] = f16_to_f32(h[i]);
}

static inline void row_from_f32(void *restrict y, enum dtype t, const float *restrict x, size_t n)
{
	uint16_t *restrict h = y;
	if (t == DT_F32)
		memcpy(y, x, 4 * n);
	else if (t == DT_BF16)
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_bf16(x[i]);
	else
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_f16(x[i]);
}

/* Byte address of element i. */
static inline const void *at_const(const void *p, enum dtype t, size_t i)
{
	return (const char *)p + i * dtype_bytes(t);
}

static inline void *at(void *p, enum dtype t, size_t i)
{
	return (char *)p + i * dtype_bytes(t);
}

#endif
