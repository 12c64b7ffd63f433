/* philox.h - counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel
 * Random Numbers: As Easy as 1, 2, 3").  A draw is a function of (key, counter), so the
 * same for any thread count, batch size or device.  Plain C subset, shared with CUDA. */
#ifndef PHILOX_H
#define PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN __host__ __device__ static inline
#else
#define PHILOX_FN static inline
#endif

/* What the draws are for: the last counter word, so that uses never share numbers. */
enum rng_purpose {
	RNG_INIT = 1,     /* weights */
	RNG_GUMBEL = 2,   /* dVAE relaxation noise */
	RNG_SAMPLE = 3,   /* tokens of dalle-sample */
	RNG_SHUFFLE = 4,  /* order of training records */
	RNG_AUGMENT = 5,  /* crops and flips */
	RNG_BPE = 6,      /* BPE dropout */
	RNG_ROUND = 7,    /* stochastic rounding of weights */
	RNG_CAPTION = 8,  /* caption dropout */
	RNG_DROPOUT = 9,  /* image tokens hidden while training */
	RNG_POWERSGD = 10, /* the fixed Q of each matrix */
};

/* One of the ten rounds, and the step of the key after it. */
PHILOX_FN void philox_round(uint32_t *c0, uint32_t *c1, uint32_t *c2, uint32_t *c3, uint32_t k0, uint32_t k1)
{
	uint64_t p0 = (uint64_t)0xD2511F53u * *c0, p1 = (uint64_t)0xCD9E8D57u * *c2;
	uint32_t n0 = (uint32_t)(p1 >> 32) ^ *c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ *c3 ^ k1;
	*c1 = (uint32_t)p1;
	*c3 = (uint32_t)p0;
	*c0 = n0;
	*c2 = n2;
}

PHILOX_FN void philox_bump(uint32_t *k0, uint32_t *k1)
{
	*k0 += 0x9E3779B9u;
	*k1 += 0xBB67AE85u;
}

PHILOX_FN void philox(uint32_t out[4], uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t purpose)
{
	uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), c3 = purpose;
	for (int round = 0; round < 10; round++) {
		philox_round(&c0, &c1, &c2, &c3, k0, k1);
		philox_bump(&k0, &k1);
	}
	out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* 32 random bits to (0, 1), never 0 and never 1: the logarithm of either end is finite. */
PHILOX_FN float philox_unit(uint32_t x)
{
	return ((float)(x >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

#endif
