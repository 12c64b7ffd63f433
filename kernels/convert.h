/* convert.h - 16-bit floats to f32 and back; inline, so that loops over them become vector code.  bf16 and f16 are
 * rounded to nearest even or at random; NaN stays NaN, f16 overflow gives infinity, f16 subnormals are exact.
 * 1-6-9 and 0-6-10 hold Adam's moments.  C and C++. */
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

/* ---- at random: up with the probability of how far x is on the way from the value below, seen from 0, to the one
 * above, which `bits`, evenly distributed, decide.  No bias but 2^-24 of a step for f16 subnormals. ---- */

static inline uint16_t f32_to_bf16_random(float x, uint32_t bits)
{
	uint32_t u = float_bits(x), rounded = (u + (bits & 0xffff)) >> 16;
	uint32_t finite = -(uint32_t)((u & 0x7fffffff) < 0x7f800000);
	return (uint16_t)((rounded & finite) | (f32_to_bf16(x) & ~finite));
}

static inline uint16_t f32_to_f16_random(float x, uint32_t bits)
{
	uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
	/* Below 2^-14 the steps are of 2^-24: whole ones and a rest in [0, 1), which is exact. */
	float steps = bits_float(a & -(uint32_t)(a < 0x38800000)) * 0x1p24f;
	uint32_t whole = (uint32_t)(int32_t)steps;
	uint32_t small = whole + ((float)(int32_t)(bits >> 8) * 0x1p-24f < steps - (float)(int32_t)whole);
	uint32_t normal = (a + (bits & 0x1fff) - 0x38000000) >> 13;
	uint32_t tiny = -(uint32_t)(a < 0x38800000), huge = -(uint32_t)(a >= 0x47800000);
	uint32_t h = ((small & tiny) | (normal & ~tiny)) & ~huge;
	return (uint16_t)(h | (f32_to_f16(x) & huge) | sign);
}

/* ---- Adam's moments (recipe D10) ----
 *
 *	1-6-9    (-1)^s 2^(e-60) (1 + m/512)    bits s eeeeee mmmmmmmmm, up to 15.984375
 *	0-6-10   2^(e-60) (1 + m/1024)          bits eeeeee mmmmmmmmmm, up to 15.9921875
 *
 * The word 0 is 0; all other words are ordinary: no subnormals, infinities or NaN.  Magnitudes are rounded half up, larger
 * ones become the largest (a NaN too: look for those before), smaller ones than word 1 become 0. */

static inline uint16_t f32_to_1_6_9(float x)
{
	uint32_t u = float_bits(x), a = u & 0x7fffffff;
	const uint32_t most = 0x417fc000 /* 15.984375 */, least = 0x21804000 /* 2^-60 (1 + 1/512) */;
	a = a > most ? most : a;
	uint32_t h = ((a + 0x2000) >> 14) - (67 << 9); /* bias 127 to 60 */
	return (uint16_t)((h | (u >> 16 & 0x8000)) & -(uint32_t)(a >= least));
}

static inline float f32_from_1_6_9(uint16_t h)
{
	uint32_t a = ((uint32_t)(h & 0x7fff) + (67 << 9)) << 14;
	return bits_float((a | (uint32_t)(h & 0x8000) << 16) & -(uint32_t)(h != 0));
}

/* x < 0 gives 0. */
static inline uint16_t f32_to_0_6_10(float x)
{
	uint32_t u = float_bits(x), a = u & 0x7fffffff;
	const uint32_t most = 0x417fe000 /* 15.9921875 */, least = 0x21802000 /* 2^-60 (1 + 1/1024) */;
	a = a > most ? most : a;
	uint32_t h = ((a + 0x1000) >> 13) - (67 << 10);
	return (uint16_t)(h & -(uint32_t)(a >= least) & -(uint32_t)(u < 0x80000000));
}

static inline float f32_from_0_6_10(uint16_t h)
{
	return bits_float((((uint32_t)h + (67 << 10)) << 13) & -(uint32_t)(h != 0));
}

/* ---- elements and rows of any type ---- */

/* Element i of a tensor of type t. */
static inline float load_as_f32(const void *p, enum dtype t, size_t i)
{
	if (t == DT_F32)
		return ((const float *)p)[i];
	uint16_t h = ((const uint16_t *)p)[i];
	return t == DT_BF16 ? bf16_to_f32(h) : t == DT_F16 ? f16_to_f32(h) :
	       t == DT_1_6_9 ? f32_from_1_6_9(h) : f32_from_0_6_10(h);
}

static inline void store_from_f32(void *p, enum dtype t, size_t i, float x)
{
	if (t == DT_F32)
		((float *)p)[i] = x;
	else
		((uint16_t *)p)[i] = t == DT_BF16 ? f32_to_bf16(x) : t == DT_F16 ? f32_to_f16(x) :
		                     t == DT_1_6_9 ? f32_to_1_6_9(x) : f32_to_0_6_10(x);
}

/* n elements, one thread; y and x must not overlap. */
static inline void row_to_f32(float *__restrict y, const void *__restrict x, enum dtype t, size_t n)
{
	const uint16_t *__restrict h = (const uint16_t *)x;
	if (t == DT_F32)
		memcpy(y, x, 4 * n);
	else if (t == DT_BF16)
		for (size_t i = 0; i < n; i++)
			y[i] = bf16_to_f32(h[i]);
	else if (t == DT_F16)
		for (size_t i = 0; i < n; i++)
			y[i] = f16_to_f32(h[i]);
	else if (t == DT_1_6_9)
		for (size_t i = 0; i < n; i++)
			y[i] = f32_from_1_6_9(h[i]);
	else
		for (size_t i = 0; i < n; i++)
			y[i] = f32_from_0_6_10(h[i]);
}

static inline void row_from_f32(void *__restrict y, enum dtype t, const float *__restrict x, size_t n)
{
	uint16_t *__restrict h = (uint16_t *)y;
	if (t == DT_F32)
		memcpy(y, x, 4 * n);
	else if (t == DT_BF16)
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_bf16(x[i]);
	else if (t == DT_F16)
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_f16(x[i]);
	else if (t == DT_1_6_9)
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_1_6_9(x[i]);
	else
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_0_6_10(x[i]);
}

/* bf16 or f16, at random. */
static inline void row_from_f32_random(void *__restrict y, enum dtype t, const float *__restrict x,
                                       const uint32_t *__restrict bits, size_t n)
{
	uint16_t *__restrict h = (uint16_t *)y;
	if (t == DT_BF16)
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_bf16_random(x[i], bits[i]);
	else
		for (size_t i = 0; i < n; i++)
			h[i] = f32_to_f16_random(x[i], bits[i]);
}

/* NaN and infinities become 0 (OP_FILTER). */
static inline float finite_or_zero(float x)
{
	uint32_t u = float_bits(x);
	return bits_float(u & -(uint32_t)((u & 0x7f800000) != 0x7f800000));
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
