/* numbers.cuh - the 16-bit formats of Adam's moments (recipe D10) and stochastic rounding, for optim.cu. */
#ifndef NUMBERS_CUH
#define NUMBERS_CUH

#include "cuda.cuh"

/* 1-6-9: sign, exponent of bias 60, significand; 0-6-10 has no sign.  No subnormals, infinities or NaN: the word 0
 * is zero, all else ordinary; encoding clamps and rounds magnitudes half up. */
struct m1_6_9 {
	uint16_t u;
};
struct v0_6_10 {
	uint16_t u;
};

/* Exponent and `bits` of significand of a magnitude, as one integer; 0 for what is below the smallest. */
DEVICE uint32_t moment_code(float x, int bits)
{
	const float top = bits == 9 ? 15.984375f : 15.9921875f;
	float a = fabsf(x);
	a = a < top ? a : top; /* a NaN, too, becomes the largest */
	uint32_t u = float_to_bits(a) + (1u << (22 - bits)), code = u >> (23 - bits), least = (uint32_t)(127 - 60) << bits;
	return code <= least ? 0 : code - least;
}

DEVICE float moment_value(uint32_t code, int bits)
{
	return code ? bits_to_float((code + ((uint32_t)(127 - 60) << bits)) << (23 - bits)) : 0;
}

DEVICE float to_f(m1_6_9 x)
{
	float a = moment_value(x.u & 0x7fff, 9);
	return x.u & 0x8000 ? -a : a;
}

DEVICE float to_f(v0_6_10 x)
{
	return moment_value(x.u, 10);
}

DEVICE void from_f(m1_6_9 &y, float x)
{
	uint32_t code = moment_code(x, 9);
	y.u = (uint16_t)(code | (code && x < 0 ? 0x8000u : 0));
}

DEVICE void from_f(v0_6_10 &y, float x)
{
	y.u = (uint16_t)moment_code(x < 0 ? 0 : x, 10);
}

/* Up with the probability of the part that is cut off. */
DEVICE void round_randomly(float &y, float x, uint32_t)
{
	y = x;
}

DEVICE void round_randomly(bf16 &y, float x, uint32_t bits)
{
	uint32_t u = float_to_bits(x);
	if (finite(x))
		u += bits >> 16;
	else if (x != x)
		u |= 0x400000;
	y.u = (uint16_t)(u >> 16);
}

DEVICE void round_randomly(f16 &y, float x, uint32_t bits)
{
	/* The step of f16 here: 2^-24 below 2^-14, else 2^-10 of the leading bit. */
	uint32_t u = float_to_bits(x);
	float step = fabsf(x) < 0x1p-14f ? 0x1p-24f : bits_to_float((u & 0x7f800000u)) * 0x1p-10f;
	if (!finite(x)) {
		from_f(y, x);
		return;
	}
	float low = floorf(x / step), part = x / step - low;
	from_f(y, (low + (part > (bits >> 8) * 0x1p-24f ? 1.0f : 0.0f)) * step);
}

#endif
