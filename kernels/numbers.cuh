/* numbers.cuh - the 16-bit formats of Adam's moments (recipe D10) and stochastic rounding, for optim.cu. */
#ifndef NUMBERS_CUH
#define NUMBERS_CUH

#include "cuda.cuh"

/* As in convert.h, bit for bit. */
struct m1_6_9 {
	uint16_t u;
};
struct v0_6_10 {
	uint16_t u;
};

DEVICE float to_f(m1_6_9 x)
{
	uint32_t a = ((uint32_t)(x.u & 0x7fff) + (67 << 9)) << 14; /* bias 60 to 127 */
	return x.u ? bits_to_float(a | (uint32_t)(x.u & 0x8000) << 16) : 0;
}

DEVICE float to_f(v0_6_10 x)
{
	return x.u ? bits_to_float(((uint32_t)x.u + (67 << 10)) << 13) : 0;
}

DEVICE void from_f(m1_6_9 &y, float x)
{
	const uint32_t most = 0x417fc000 /* 15.984375 */, least = 0x21804000 /* 2^-60 (1 + 1/512) */;
	uint32_t u = float_to_bits(x), a = u & 0x7fffffff;
	a = a > most ? most : a;
	y.u = (uint16_t)(a < least ? 0 : (((a + 0x2000) >> 14) - (67 << 9)) | (u >> 16 & 0x8000));
}

DEVICE void from_f(v0_6_10 &y, float x)
{
	const uint32_t most = 0x417fe000 /* 15.9921875 */, least = 0x21802000 /* 2^-60 (1 + 1/1024) */;
	uint32_t u = float_to_bits(x), a = u & 0x7fffffff;
	a = a > most ? most : a;
	y.u = (uint16_t)(a < least || u >= 0x80000000 ? 0 : ((a + 0x1000) >> 13) - (67 << 10));
}

/* ---- at random: up with the probability of how far x is on the way up; the bits are those of convert.h ---- */

DEVICE void round_randomly(bf16 &y, float x, uint32_t bits)
{
	if (finite(x))
		y.u = (uint16_t)((float_to_bits(x) + (bits & 0xffff)) >> 16);
	else
		from_f(y, x);
}

DEVICE void round_randomly(f16 &y, float x, uint32_t bits)
{
	uint32_t u = float_to_bits(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
	if (a >= 0x47800000) {
		from_f(y, x);
	} else if (a < 0x38800000) {
		/* Steps of 2^-24: whole ones and a rest in [0, 1), which is exact. */
		float steps = bits_to_float(a) * 0x1p24f;
		uint32_t whole = (uint32_t)steps;
		y.u = (uint16_t)(sign | (whole + ((float)(bits >> 8) * 0x1p-24f < steps - (float)whole)));
	} else {
		y.u = (uint16_t)(sign | ((a + (bits & 0x1fff) - 0x38000000) >> 13));
	}
}

#endif
