/* gelu.cuh - GELU of one value, for elem.cu and few.cu. */
#ifndef GELU_CUH
#define GELU_CUH

#include "cuda.cuh"

DEVICE float normal_cdf(float u)
{
	return 0.5f * erfcf(-0.70710678f * u);
}

DEVICE float gelu(float u, int exact)
{
	return exact ? u * normal_cdf(u) : u / (1.0f + expf(-1.702f * u));
}

#endif
