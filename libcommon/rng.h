/* rng.h - host-side draws from kernels/philox.h, keyed by (seed, purpose, index). */
#ifndef RNG_H
#define RNG_H

#include "../kernels/philox.h"

#include <stddef.h>

/* Draw number `index` of stream `stream` for `purpose`. */
uint32_t rng_u32(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index);
double rng_unit(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index); /* (0,1), 32 bits */
/* Uniform integer in [0, n), n >= 1, by multiplication of 64 random bits (bias below 2^-32). */
uint32_t rng_below(uint64_t seed, enum rng_purpose purpose, uint32_t stream, uint64_t index, uint32_t n);
/* n normal draws of standard deviation std (Box-Muller), for weights. */
void rng_normal(float *out, size_t n, float std, uint64_t seed, enum rng_purpose purpose, uint32_t stream);
/* A permutation of 0..n-1 (Fisher-Yates). */
void rng_permute(uint32_t *out, uint32_t n, uint64_t seed, enum rng_purpose purpose, uint32_t stream);

#endif
