/* cuda.cuh - inside the CUDA plugin: the device, the element types, launches and reductions.
 *
 * Every .cu file with T operands is compiled once per activation type from the same source: -DTYPE=f32, bf16
 * or f16 gives T and the namespace, for_f32, for_bf16 or for_f16, that its entries are in; cuda.cu puts them into
 * three tables and picks by the type of the device.  A call with OP_F32 is passed on to for_f32's entry.
 *
 * With -DCUDA_EMULATED the same sources are plain C++ and emu.h plays the device (tests without a GPU):
 * nothing here may use more of CUDA than emu.h has. */
#ifndef CUDA_CUH
#define CUDA_CUH

#ifdef CUDA_EMULATED
#include "emu.h"
#else
#include <cublasLt.h>
#include <cuda_runtime.h>
#endif

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "entries.h"
#include "ops.h"
#include "philox.h"

#define DEVICE __device__ static __forceinline__
#define KERNEL static __global__ void

/* ---- element types ---- */

struct bf16 {
	uint16_t u;
};
struct f16 {
	uint16_t u;
};

#define DT_OF_f32 DT_F32
#define DT_OF_bf16 DT_BF16
#define DT_OF_f16 DT_F16
#define IS_F32_f32 1
#define IS_F32_bf16 0
#define IS_F32_f16 0
#define PASTE2_(a, b) a##b
#define PASTE2(a, b) PASTE2_(a, b)
typedef float f32;
#ifdef TYPE
typedef TYPE T;
#define T_DTYPE PASTE2(DT_OF_, TYPE)       /* DT_F32, DT_BF16 or DT_F16 */
#define T_IS_F32 PASTE2(IS_F32_, TYPE)
#define FOR_TYPE PASTE2(for_, TYPE) /* the namespace; entry `cast` of ops.h is its function cast */
#endif

/* ---- the device ---- */

enum { CUDA_CHUNKS = 40, CUDA_GRAPHS = 64, CUDA_PLANS = 512 };
enum { CUDA_WORKSPACE = 32 << 20 }; /* bytes for cuBLASLt */

struct product_plan; /* matmul.cu */

/* The stretches of device memory that a kernel writes; 0 bytes: none. */
struct written {
	struct {
		const void *p;
		size_t bytes;
	} at[3];
};

struct dev {
	enum dtype type;
	int index, sms;
	size_t shared_max; /* bytes of shared memory a block can ask for */
	cudaStream_t stream; /* work is queued through queue_of() only */
	bool early;          /* kernels can start early: see launch_early */
	struct written last; /* what the work that was queued last writes, where that is known */
	bool last_known;
	const char *op;    /* the entry that runs now, for messages */
	char error[256];   /* "op: reason" of the first failure; empty: none */
	bool eager;        /* DALLE_CUDA_SYNC: wait after every entry, to find the one that fails */
	/* Scratch of one entry, cut from the front of the last chunk.  Older chunks stay: queued work and graphs may
	 * still use them. */
	struct {
		char *base;
		size_t size;
	} chunk[CUDA_CHUNKS];
	int chunks;
	size_t scratch_used;
	int recording; /* id being captured, -1: none */
	struct {
		int id;
		cudaGraphExec_t exec; /* NULL: has run once, not recorded yet */
	} graph[CUDA_GRAPHS];
	int graphs;
	struct {
		char *p;
		size_t bytes;
	} *block; /* what alloc has given */
	int blocks, block_room;
	int *flag; /* device: set by kernels that meet bad values, read by sync */
	bool without_lt;    /* DALLE_CUDA_LT=0: cuBLASLt is not wanted */
	char products[128]; /* who makes the 16-bit products, for describe */
	cublasLtHandle_t lt; /* NULL: cuBLASLt is not there */
	void *workspace;
	struct product_plan *plans;
	int plan_count;
	struct ncclComm *ranks; /* NULL: not joined */
};

/* Every entry for every type, hidden in the plugin. */
template <class F> struct pointee;
template <class F> struct pointee<F *> {
	typedef F type;
};
#define DECLARE_ENTRY(name) pointee<decltype(ops::name)>::type name;
namespace for_f32 {
OPS_ENTRIES(DECLARE_ENTRY)
}
namespace for_bf16 {
OPS_ENTRIES(DECLARE_ENTRY)
}
namespace for_f16 {
OPS_ENTRIES(DECLARE_ENTRY)
}

/* What a kernel found, as bits of *d->flag. */
enum { FLAG_TARGET = 1, FLAG_LOGITS = 2 };

/* Keep the first failure for sync(). */
void cuda_fail(struct dev *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Whether the call went well; else the sticky error is set. */
bool cuda_ok(struct dev *d, cudaError_t e);
/* Bytes from p to the end of what alloc gave, for a kernel that may write anywhere in it; all memory beyond p where that is not
 * known. */
size_t cuda_bytes_from(const struct dev *d, const void *p);
/* Scratch memory of the running entry, 256-byte aligned, not zeroed; NULL with the sticky error set. */
void *cuda_scratch(struct dev *d, size_t bytes);
/* The same for what can be done without: NULL is no error. */
void *cuda_scratch_wish(struct dev *d, size_t bytes);
/* matmul.cu: cuBLASLt, where it is installed, and what is kept of it. */
void products_open(struct dev *d);
void products_close(struct dev *d);
/* ranks.cu: NCCL, loaded when ranks ask for it. */
int plugin_ranks_id(void *id, char *err, size_t n);
int plugin_ranks_join(struct dev *d, const void *id, int rank, int size, char *err, size_t n);
void plugin_ranks_sum(struct dev *d, float *x, size_t n);
void ranks_close(struct dev *d);

static inline size_t ceil_div(size_t n, size_t by)
{
	return (n + by - 1) / by;
}

/* Division of 0 <= n < 2^31 by a number that is known at the launch: three instructions in place of twenty.  With `by` at
 * most 2^shift, times = 2^(31 + shift) / by rounded up is too large by less than by / 2^(31 + shift), which n times over
 * is less than 1. */
struct divisor {
	uint32_t times, shift;
};

static inline struct divisor divisor_of(int by)
{
	uint32_t shift = 0;
	while ((uint64_t)1 << shift < (uint64_t)by)
		shift++;
	return divisor{by > 0 ? (uint32_t)((((uint64_t)1 << (31 + shift)) + (uint64_t)by - 1) / (uint64_t)by) : 0, shift};
}

DEVICE int quotient(int n, const struct divisor &d)
{
	return (int)((uint64_t)((uint32_t)n * 2) * d.times >> 32 >> d.shift);
}

/* The stream, for work of any kind: what it writes is not known. */
static inline cudaStream_t queue_of(struct dev *d)
{
	d->last_known = false;
	return d->stream;
}

/* Whether it is queued. */
template <class... P, class... A>
static bool launch_as(struct dev *d, bool early, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... a)
{
	if ((size_t)grid.x * grid.y * grid.z == 0 || d->error[0])
		return false;
	if (shared > 48 << 10 &&
	    !cuda_ok(d, cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared)))
		return false;
	/* A multiprocessor divides its memory between shared memory and cache as the kernel on it wishes, and takes no block that
	 * does not fit that; so those that are to overlap all wish the same. */
	if (early && !cuda_ok(d, cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
	                                              cudaSharedmemCarveoutMaxShared)))
		return false;
	cudaStream_t stream = queue_of(d);
#ifdef CUDA_EMULATED
	(void)stream;
	emu_launch((const void *)kernel, grid, block, shared, early, [=] { kernel(static_cast<P>(a)...); });
#else
	cudaLaunchAttribute how = {};
	how.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	how.val.programmaticStreamSerializationAllowed = 1;
	cudaLaunchConfig_t config = {};
	config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
	config.attrs = &how, config.numAttrs = early ? 1 : 0;
	cudaLaunchKernelEx(&config, kernel, static_cast<P>(a)...);
#endif
	return cuda_ok(d, cudaGetLastError());
}

/* The only two ways kernels are launched; `shared` bytes are what SHARED points to. */
template <class... P, class... A>
static void launch(struct dev *d, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... a)
{
	launch_as(d, false, kernel, grid, block, shared, a...);
}

/* A kernel that may start while the work queued before it still runs; w: all that it writes.  Nobody vouches for the order
 * but the kernel itself:
 *   - Every thread calls await_previous(), and before that neither reads what earlier work may have written nor writes,
 *     nor calls let_next_start().
 * So once a kernel lets the next one start, all before it has ended and is visible, and the next one can
 * overlap with this one alone (with one that never lets it, in its last moments).  Therefore
 *   - before await_previous() a kernel may read what is settled(): what the work queued last does not write.
 * That is asked when the kernel is queued and passed to it.  What a graph begins with follows on unknown work. */
template <class... P, class... A>
static void launch_early(struct dev *d, const struct written &w, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                         A... a)
{
	if (launch_as(d, d->early, kernel, grid, block, shared, a...)) {
		d->last = w;
		d->last_known = true;
	}
}

/* Whether a kernel that is queued now can read these bytes before await_previous(). */
static inline bool settled(const struct dev *d, const void *p, size_t bytes)
{
	bool apart = d->early && d->last_known;
	for (int i = 0; i < 3; i++) {
		uintptr_t a = (uintptr_t)d->last.at[i].p, b = (uintptr_t)p;
		apart = apart && (a + d->last.at[i].bytes <= b || b + bytes <= a || !d->last.at[i].bytes);
	}
	return apart;
}

/* All work queued before this kernel has ended, and what it wrote can be read. */
DEVICE void await_previous()
{
#ifdef CUDA_EMULATED
	emu_await_previous();
#elif __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may start once all blocks have come here. */
DEVICE void let_next_start()
{
#ifdef CUDA_EMULATED
	emu_let_next_start();
#elif __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#ifndef CUDA_EMULATED
extern __shared__ __align__(128) char shared_bytes[];
#define SHARED shared_bytes
#endif

/* ---- conversions: round to nearest even; NaN stays NaN ---- */

DEVICE float bits_to_float(uint32_t u)
{
	float x;
	memcpy(&x, &u, 4);
	return x;
}

DEVICE uint32_t float_to_bits(float x)
{
	uint32_t u;
	memcpy(&u, &x, 4);
	return u;
}

DEVICE float to_f(float x)
{
	return x;
}

DEVICE float to_f(bf16 x)
{
	return bits_to_float((uint32_t)x.u << 16);
}

DEVICE float to_f(f16 x)
{
#ifdef CUDA_EMULATED
	return emu_from_f16(x.u);
#else
	float y;
	asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.u));
	return y;
#endif
}

DEVICE void from_f(float &y, float x)
{
	y = x;
}

DEVICE void from_f(bf16 &y, float x)
{
#ifdef CUDA_EMULATED
	y.u = emu_to_bf16(x);
#else
	asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.u) : "f"(x));
#endif
}

DEVICE void from_f(f16 &y, float x)
{
#ifdef CUDA_EMULATED
	y.u = emu_to_f16(x);
#else
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.u) : "f"(x));
#endif
}

template <class S> DEVICE S make(float x)
{
	S y;
	from_f(y, x);
	return y;
}

/* ---- N elements at once ---- */

template <class S, int N> struct alignas(sizeof(S) * N) pack {
	S v[N];
};

/* x[0..N-1] = the elements at p, whose address is a multiple of their size together. */
template <int N, class S> DEVICE void load(float *x, const S *p)
{
	pack<S, N> k = *(const pack<S, N> *)p;
#pragma unroll
	for (int i = 0; i < N; i++)
		x[i] = to_f(k.v[i]);
}

template <int N, class S> DEVICE void store(S *p, const float *x)
{
	pack<S, N> k;
#pragma unroll
	for (int i = 0; i < N; i++)
		from_f(k.v[i], x[i]);
	*(pack<S, N> *)p = k;
}

static inline bool aligned(const void *p, size_t bytes)
{
	return (uintptr_t)p % bytes == 0;
}

/* f.template at<N>(i) for the elements i .. i+N-1, all of n: N = 4 where `vector`, and 1 at the end. */
template <int N, class F> KERNEL map_kernel(size_t n, F f)
{
	size_t stride = (size_t)gridDim.x * blockDim.x * N, i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
	for (; i + N <= n; i += stride)
		f.template at<N>(i);
	for (; N > 1 && i < n; i++)
		f.template at<1>(i);
}

template <class F> static void map(struct dev *d, size_t n, bool vector, F f)
{
	enum { THREADS = 256 };
	size_t blocks = ceil_div(n, THREADS * (vector ? 4 : 1)), most = (size_t)d->sms * 16;
	dim3 grid((unsigned)(blocks < most ? blocks : most));
	if (vector)
		launch(d, map_kernel<4, F>, grid, dim3(THREADS), 0, n, f);
	else
		launch(d, map_kernel<1, F>, grid, dim3(THREADS), 0, n, f);
}

/* ---- reductions of a warp: every lane gets the result, in the same order of operations ---- */

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu

DEVICE int lane_id()
{
	return (int)(threadIdx.x % WARP);
}

template <class S> DEVICE S warp_sum(S x)
{
#pragma unroll
	for (int o = WARP / 2; o; o /= 2)
		x += __shfl_xor_sync(ALL_LANES, x, o);
	return x;
}

/* A NaN wins and stays. */
DEVICE float max_nan(float a, float b)
{
	return a > b || a != a ? a : b;
}

DEVICE float warp_max(float x)
{
#pragma unroll
	for (int o = WARP / 2; o; o /= 2)
		x = max_nan(x, __shfl_xor_sync(ALL_LANES, x, o));
	return x;
}

/* The same over a block of whole warps; room: one value a warp in shared memory.  All threads call it. */
template <class S> DEVICE S block_sum(S x, S *room)
{
	int warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
	x = warp_sum(x);
	__syncthreads(); /* room may still be read from the use before */
	if (threadIdx.x % WARP == 0)
		room[warp] = x;
	__syncthreads();
	x = room[0];
	for (int i = 1; i < warps; i++)
		x += room[i];
	return x;
}

DEVICE float block_max(float x, float *room)
{
	int warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
	x = warp_max(x);
	__syncthreads();
	if (threadIdx.x % WARP == 0)
		room[warp] = x;
	__syncthreads();
	x = room[0];
	for (int i = 1; i < warps; i++)
		x = max_nan(x, room[i]);
	return x;
}

/* Whether x is neither NaN nor infinite. */
DEVICE bool finite(float x)
{
	return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u;
}

#endif
