/* rng.c - see rng.h. */
#include "rng.h"

#include <math.h>

uint32_t rng_u32(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index)
{
	uint32_t r[4];
	philox(r, seed, (uint32_t)index, (uint32_t)(index >> 32), stream, purpose);
	return r[0];
}

double rng_unit(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index)
{
	return (rng_u32(seed, purpose, stream, index) + 0.5) / 4294967296.0;
}

uint32_t rng_below(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index, uint32_t n)
{
	uint32_t r[4];
	philox(r, seed, (uint32_t)index, (uint32_t)(index >> 32), stream, purpose);
	uint64_t bits = (uint64_t)r[0] << 32 | r[1];
	return (uint32_t)(__extension__((unsigned __int128)bits) * n >> 64);
}

void rng_normal(float *out, size_t n, float std, uint64_t seed, enum rng_purpose purpose, uint32_t stream)
{
	/* The paper's sizes draw billions. */
#pragma omp parallel for schedule(static) if (n > 1 << 16)
	for (size_t i = 0; i < n; i += 4) {
		uint32_t r[4];
		size_t block = i / 4;
		philox(r, seed, (uint32_t)block, (uint32_t)((uint64_t)block >> 32), stream, purpose);
		for (size_t j = 0; j < 4 && i + j < n; j++) {
			/* Two uniforms make two normals: the pair (0,1) fills j = 0, 1, the pair (2,3) the rest. */
			double radius = sqrt(-2 * log((r[j & 2] + 0.5) / 4294967296.0));
			double angle = 2 * M_PI * ((r[(j & 2) + 1] + 0.5) / 4294967296.0);
			out[i + j] = (float)(std * radius * (j & 1 ? sin(angle) : cos(angle)));
		}
	}
}

void rng_permute(uint32_t *out, uint32_t n, uint64_t seed, enum rng_purpose purpose, uint32_t stream)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = rng_below(seed, purpose, stream, i, i + 1);
		out[i] = out[j];
		out[j] = i;
	}
}
