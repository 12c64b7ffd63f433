/* mma.cuh - tensor cores and asynchronous copies behind a few wrappers, each with an emulated body (emu.h). */
#ifndef MMA_CUH
#define MMA_CUH

#include "cuda.cuh"

/* c[16,8] += a[16,16] b[16,8] by one warp, f32 sums.  Lane l holds, with g = l / 4 and p = l % 4,
 *   c[0..1]: row g, columns 2p, 2p + 1;  c[2..3]: row g + 8
 *   a[0]: row g, k = 2p, 2p + 1;  a[1]: row g + 8;  a[2], a[3]: the same, k + 8
 *   b[0]: k = 2p, 2p + 1, column g;  b[1]: k + 8 */
DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2], bf16)
{
#ifdef CUDA_EMULATED
	emu_mma(c, a, b, true);
#else
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2], f16)
{
#ifdef CUDA_EMULATED
	emu_mma(c, a, b, false);
#else
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lane l points to row l % 8 of matrix l / 8, 16 bytes,
 * 16-byte aligned.  r[m] of lane l: row l / 4, columns 2 (l % 4) and the next; transposed: those rows of that column. */
DEVICE void load_matrices(uint32_t r[4], const void *row)
{
#ifdef CUDA_EMULATED
	emu_ldmatrix(r, row, false);
#else
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	             : "r"((uint32_t)__cvta_generic_to_shared(row))
	             : "memory");
#endif
}

DEVICE void load_matrices_transposed(uint32_t r[4], const void *row)
{
#ifdef CUDA_EMULATED
	emu_ldmatrix(r, row, true);
#else
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	             : "r"((uint32_t)__cvta_generic_to_shared(row))
	             : "memory");
#endif
}

/* 16 bytes to shared memory, both aligned; or zeros, and nothing is read from `device`.  They have arrived for this
 * thread after copies_wait, for others after a barrier that follows. */
DEVICE void copy16(void *shared, const void *device, bool zeros)
{
#ifdef CUDA_EMULATED
	emu_copy16(shared, device, zeros);
#else
	int bytes = zeros ? 0 : 16;
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(device),
	             "r"(bytes)
	             : "memory");
#endif
}

/* The same through the first-level cache, for what other threads of the block read soon, too. */
DEVICE void copy16_again(void *shared, const void *device, bool zeros)
{
#ifdef CUDA_EMULATED
	emu_copy16(shared, device, zeros);
#else
	int bytes = zeros ? 0 : 16;
	asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(device),
	             "r"(bytes)
	             : "memory");
#endif
}

/* Ends a group of copies. */
DEVICE void copies_commit()
{
#ifdef CUDA_EMULATED
	emu_copies_commit();
#else
	asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most GROUPS of this thread's groups are under way. */
template <int GROUPS> DEVICE void copies_wait()
{
#ifdef CUDA_EMULATED
	emu_copies_wait(GROUPS);
#else
	asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

/* Two values as one register of 16-bit elements, the first in the low half. */
DEVICE uint32_t pair_of(float low, float high, bf16)
{
#ifdef CUDA_EMULATED
	return emu_to_bf16(low) | (uint32_t)emu_to_bf16(high) << 16;
#else
	uint32_t r;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
#endif
}

DEVICE uint32_t pair_of(float low, float high, f16)
{
#ifdef CUDA_EMULATED
	return emu_to_f16(low) | (uint32_t)emu_to_f16(high) << 16;
#else
	uint32_t r;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
#endif
}

/* Sum and maximum over the four lanes that share a row of c. */
DEVICE float row_sum(float x)
{
	x += __shfl_xor_sync(ALL_LANES, x, 1);
	return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

DEVICE float row_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
	return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* ---- exponents ---- */

static const float LOG2E = 1.4426950408889634f;

/* 2^x; its relative error, 2^-22, is far below a 16-bit type's. */
DEVICE float fast_exp2(float x)
{
#ifdef CUDA_EMULATED
	return exp2f(x);
#else
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
#endif
}

#endif
