/* attn-tiles.h - the products of attn-multiply.h for every instruction set: multiply_plain, multiply_avx2 and
 * multiply_avx512, for attn.c, which picks one, and for its test, which tries all. */
#ifndef ATTN_TILES_H
#define ATTN_TILES_H

#include "vec.h"

enum { PANEL = 2 * VL, K_BLOCK = 128 };

#define ISA plain
#define TARGET
#define LANES 4
#define MR 2
#include "attn-multiply.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MR 4
#include "attn-multiply.h"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define MR 8
#include "attn-multiply.h"
#endif

#endif
