/* emu.h - a CUDA device played by the host, for tests on machines without a GPU: the .cu files compiled as
 * C++ with -DCUDA_EMULATED link to emu*.cc instead of the CUDA runtime and NCCL.
 *
 * Blocks run one after the other; the threads of a block are fibres that switch at barriers and at what a warp
 * does together, so a kernel that misses a barrier, or reaches one with some threads only, gives wrong
 * results or stops with a message.  Shared memory is filled with a poison before every block.  The order in
 * which threads run can be turned round (EMU_ORDER=reverse), and with it whether asynchronous copies arrive at once or as
 * late as they may: both must give the same.  With EMU_GUARD=1 device memory cannot be touched outside of kernels and
 * copies.
 *
 * Work that is queued runs as late as it may, when the host waits.  A launch that a device would refuse fails as it does
 * there: too many blocks or threads, more shared memory than the kernel has asked for, or than a block can have
 * (EMU_SHARED, KiB, in place of 227).  EMU_SMS is its number of multiprocessors, by which kernels choose their grids (1).
 * With EMU_DRY=1 nothing is computed or copied and memory has no bounds: launches of any size are checked.
 *
 * A kernel that may start early does: as far as it gets without waiting for what was queued before it.
 *
 * Only what the kernels use is here. */
#ifndef EMU_H
#define EMU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <memory>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
	unsigned x, y, z;
	dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* ---- where a thread is ---- */

struct emu_state {
	dim3 thread, block, block_dim, grid_dim;
	char *shared;
	size_t shared_bytes;
};
extern emu_state emu;
#define threadIdx emu.thread
#define blockIdx emu.block
#define blockDim emu.block_dim
#define gridDim emu.grid_dim
#define SHARED emu.shared
enum { EMU_THREADS = 1024 }; /* of a block, at most */

void emu_launch(const void *kernel, dim3 grid, dim3 block, size_t shared, bool early, std::function<void()> body);

/* ---- what threads do together ---- */

/* All threads of the block, at the same place of the source. */
void __syncthreads(int line = __builtin_LINE(), const char *file = __builtin_FILE());
void __syncwarp();
/* A rendezvous of the warp, of which no lane may have ended: every lane leaves `bytes` at *mine and finds what all lanes
 * left. */
enum { EMU_SLOT = 64 };
struct emu_slots {
	char lane[32][EMU_SLOT];
};
emu_slots *emu_meet(const void *mine, size_t bytes);
int emu_lane();

template <class S> static inline S emu_from_lane(S x, int lane)
{
	S y;
	memcpy(&y, emu_meet(&x, sizeof x)->lane[lane], sizeof y);
	return y;
}

template <class S> static inline S __shfl_xor_sync(unsigned, S x, int mask)
{
	return emu_from_lane(x, emu_lane() ^ mask);
}

template <class S> static inline S __shfl_sync(unsigned, S x, int lane)
{
	return emu_from_lane(x, lane & 31);
}

template <class S> static inline S __shfl_up_sync(unsigned, S x, int by)
{
	int lane = emu_lane();
	return emu_from_lane(x, lane >= by ? lane - by : lane);
}

static inline unsigned __ballot_sync(unsigned, int yes)
{
	emu_slots *s = emu_meet(&yes, sizeof yes);
	unsigned out = 0;
	for (int i = 0; i < 32; i++) {
		int y;
		memcpy(&y, s->lane[i], sizeof y);
		out |= (unsigned)(y != 0) << i;
	}
	return out;
}

/* Integers only: sums of floats in no fixed order are not allowed in the kernels. */
static inline int atomicOr(int *p, int x)
{
	int old = *p;
	*p |= x;
	return old;
}

/* ---- kernels that start early ---- */

/* Such a kernel runs twice: before the work that was queued before it as far as every thread's await_previous, where that run
 * ends, and whole after that work.  What is copied to shared memory before await_previous must be the same both times; plain
 * loads and stores before it are not looked at. */
void emu_await_previous();
void emu_let_next_start();

/* ---- arithmetic ---- */

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

float emu_from_f16(uint16_t h);
uint16_t emu_to_f16(float x);
uint16_t emu_to_bf16(float x);

/* ---- tensor cores and asynchronous copies: bodies of the wrappers in mma.cuh ---- */

/* One warp: d[16,8] = a[16,16] b[16,8] + c in the register layout of mma.m16n8k16; is_bf16 or f16. */
void emu_mma(float c[4], const uint32_t a[4], const uint32_t b[2], bool is_bf16);
/* One warp: the four 8 x 8 matrices whose rows the lanes point to. */
void emu_ldmatrix(uint32_t r[4], const void *row, bool transposed);

/* 16 bytes from device to shared memory (zeros: nothing read), which have arrived when the thread has waited for
 * them; commit ends a group, wait leaves at most `groups` of them under way. */
void emu_copy16(void *shared, const void *device, bool zeros);
void emu_copies_commit();
void emu_copies_wait(int groups);

/* ---- the runtime's calls ---- */

typedef int cudaError_t;
enum {
	cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100,
};
typedef struct emu_stream *cudaStream_t;
typedef struct emu_graph *cudaGraph_t;
typedef struct emu_graph *cudaGraphExec_t;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking, cudaStreamCaptureModeRelaxed };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum { cudaSharedmemCarveoutMaxShared = 100 };
struct cudaDeviceProp {
	char name[64];
	int major, minor, multiProcessorCount;
	size_t totalGlobalMem, sharedMemPerBlockOptin;
};

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e);
cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value);
cudaError_t cudaGetLastError();
/* Host code that reads and writes device memory in the order of the stream: library products, sums over ranks. */
void emu_host(const std::function<void()> &f);
const char *cudaGetErrorString(cudaError_t e);

/* ---- between emu.cc and emu-runtime.cc ---- */

/* How a grid is run: alone, or early in two runs, the first of which notes what it reads. */
enum emu_turn { EMU_ALONE, EMU_AHEAD, EMU_IN_TURN };
struct emu_reads;
void emu_run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body, enum emu_turn turn = EMU_ALONE,
                  emu_reads *reads = NULL);
std::shared_ptr<emu_reads> emu_new_reads();
void emu_touch(bool on); /* device memory may be touched from now on; calls nest */
void emu_stop(const char *what);
int emu_device(); /* which one the process computes on */

/* ---- NCCL: ranks on one machine, emu-ranks.cc ---- */

typedef struct ncclComm *ncclComm_t;
struct ncclUniqueId {
	char internal[128];
};
enum ncclResult_t { ncclSuccess, ncclSystemError = 2, ncclInvalidUsage = 5 };
enum ncclDataType_t { ncclFloat32 };
enum ncclRedOp_t { ncclSum };
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank);
ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t s);
ncclResult_t ncclCommAbort(ncclComm_t c);
const char *ncclGetErrorString(ncclResult_t r);

typedef void *cublasLtHandle_t; /* products are loops here: see matmul.cu */

#endif
