/* emu-runtime.cc - see emu.h: the runtime's calls of a device that the host plays: memory, launches, streams, graphs. */
#include "emu.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#else
#define ASAN 0
#endif

static void run_queued();

/* ---- memory: a region of its own, or the allocator that sanitizers watch ---- */

enum { GRAIN = 256, GAP = 256 };
static const size_t REGION = (size_t)3 << 30, DRY_REGION = (size_t)1 << 45;
static char *region;
struct piece {
	size_t at, size;
};
static std::vector<piece> pieces; /* in use, by address */
static bool guard;
static int depth;

static bool dry()
{
	const char *on = getenv("EMU_DRY");
	return on && *on == '1';
}

static size_t region_size()
{
	return dry() ? DRY_REGION : REGION;
}

void emu_touch(bool on)
{
	if (!guard || !region)
		return;
	depth += on ? 1 : -1;
	if (depth == (on ? 1 : 0))
		mprotect(region, REGION, on ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static size_t in_use()
{
	size_t n = 0;
	for (const piece &p : pieces)
		n += p.size;
	return n;
}

static void *region_take(size_t bytes)
{
	if (!region) {
		void *p = mmap(NULL, region_size(), dry() ? PROT_NONE : PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED)
			return NULL;
		region = (char *)p;
		const char *g = getenv("EMU_GUARD");
		guard = g && *g == '1';
		if (guard)
			mprotect(region, REGION, PROT_NONE);
	}
	size_t size = (bytes + GAP + GRAIN - 1) / GRAIN * GRAIN, at = 0, i = 0;
	for (; i < pieces.size() && pieces[i].at - at < size; i++)
		at = pieces[i].at + pieces[i].size;
	if (at + size > region_size())
		return NULL;
	pieces.insert(pieces.begin() + (long)i, piece{at, size});
	if (dry())
		return region + at;
	emu_touch(true);
	memset(region + at, 0xFF, size);
	emu_touch(false);
	return region + at;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
	if (bytes > region_size()) {
		*p = NULL;
	} else if (ASAN) {
		if (posix_memalign(p, GRAIN, bytes ? bytes : 1))
			*p = NULL;
		else
			memset(*p, 0xFF, bytes);
	} else {
		*p = region_take(bytes);
	}
	return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *p)
{
	if (!p)
		return cudaSuccess;
	run_queued();
	if (ASAN) {
		free(p);
		return cudaSuccess;
	}
	for (size_t i = 0; i < pieces.size(); i++)
		if (region + pieces[i].at == p) {
			pieces.erase(pieces.begin() + (long)i);
			return cudaSuccess;
		}
	emu_stop("freed what was not allocated");
	return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *room, size_t *total)
{
	*total = region_size();
	*room = region_size() - in_use();
	return cudaSuccess;
}

/* ---- streams: work runs when the host waits, or is kept while a graph is captured ---- */

struct emu_graph {
	std::vector<std::function<void()>> work;
};
static emu_graph *capturing;
static std::vector<std::function<void()>> queued;

static void run_queued()
{
	if (capturing)
		emu_stop("waiting while a graph is captured");
	for (size_t i = 0; i < queued.size(); i++)
		queued[i]();
	queued.clear();
}

/* Where work goes now. */
static std::vector<std::function<void()>> &work()
{
	return capturing ? capturing->work : queued;
}

static void queue(const std::function<void()> &f)
{
	if (!dry())
		work().push_back(f);
}

/* ---- launches, refused as a device refuses them ---- */

enum { SHARED_AT_FIRST = 48 << 10 };
static std::map<const void *, int> shared_asked; /* by kernel */
static cudaError_t last_error;

static int shared_most()
{
	const char *kib = getenv("EMU_SHARED");
	return (kib ? atoi(kib) : 227) << 10;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value)
{
	bool carveout = attribute == cudaFuncAttributePreferredSharedMemoryCarveout;
	if (value > (carveout ? 100 : shared_most()))
		return last_error = cudaErrorInvalidValue;
	if (!carveout)
		shared_asked[kernel] = value;
	return cudaSuccess;
}

static bool allowed(const void *kernel, dim3 grid, dim3 block, size_t shared)
{
	size_t asked = shared_asked.count(kernel) ? (size_t)shared_asked[kernel] : 0, n = (size_t)block.x * block.y * block.z;
	bool blocks = grid.x >= 1 && grid.x <= INT32_MAX && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
	return blocks && n >= 1 && n <= EMU_THREADS && block.z <= 64 && (shared <= SHARED_AT_FIRST || shared <= asked);
}

void emu_launch(const void *kernel, dim3 grid, dim3 block, size_t shared, bool early, std::function<void()> f)
{
	std::shared_ptr<emu_reads> reads;
	if (!allowed(kernel, grid, block, shared)) {
		last_error = cudaErrorInvalidConfiguration;
		return;
	}
	if (early && !work().empty()) {
		reads = emu_new_reads();
		work().insert(work().end() - 1, [=] { emu_run_grid(grid, block, shared, f, EMU_AHEAD, reads.get()); });
	}
	queue([=] { emu_run_grid(grid, block, shared, f, early ? EMU_IN_TURN : EMU_ALONE, reads.get()); });
}

/* ---- copies: from the host's memory as it is now, to it at once ---- */

static void copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width, size_t rows)
{
	emu_touch(true);
	for (size_t r = 0; r < rows; r++)
		memcpy((char *)dst + r * dst_stride, (const char *)src + r * src_stride, width);
	emu_touch(false);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t)
{
	if (capturing && kind != cudaMemcpyDeviceToDevice)
		emu_stop("a graph must not hold host memory");
	if (width > dst_stride || width > src_stride)
		return last_error = cudaErrorInvalidValue;
	if (dry())
		return cudaSuccess;
	if (kind == cudaMemcpyDeviceToDevice) {
		queue([=] { copy_rows(dst, dst_stride, src, src_stride, width, rows); });
	} else if (kind == cudaMemcpyHostToDevice) {
		std::vector<char> staged(width * rows);
		for (size_t r = 0; r < rows; r++)
			memcpy(staged.data() + r * width, (const char *)src + r * src_stride, width);
		queue([=] { copy_rows(dst, dst_stride, staged.data(), width, width, rows); });
	} else {
		run_queued();
		copy_rows(dst, dst_stride, src, src_stride, width, rows);
	}
	return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t s)
{
	return cudaMemcpy2DAsync(dst, bytes, src, bytes, bytes, 1, kind, s);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t)
{
	queue([=] {
		emu_touch(true);
		memset(p, value, bytes);
		emu_touch(false);
	});
	return cudaSuccess;
}

void emu_host(const std::function<void()> &f)
{
	queue([=] {
		emu_touch(true);
		f();
		emu_touch(false);
	});
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t, int)
{
	capturing = new emu_graph;
	return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g)
{
	*g = capturing;
	capturing = NULL;
	return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
	*e = new emu_graph(*g);
	return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t)
{
	if (capturing)
		emu_stop("a graph launched while another is captured");
	for (const std::function<void()> &f : e->work)
		queue(f);
	return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
	delete g;
	return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
	delete e;
	return cudaSuccess;
}

/* ---- the rest of the runtime ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
	const char *s = getenv("EMU_DEVICES");
	*n = s ? atoi(s) : 1;
	return *n ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
	const char *sms = getenv("EMU_SMS");
	*p = cudaDeviceProp{"emulated device", 9, 0, sms ? atoi(sms) : 1, REGION, (size_t)shared_most()};
	return cudaSuccess;
}

static int device;

cudaError_t cudaSetDevice(int index)
{
	device = index;
	return cudaSuccess;
}

int emu_device()
{
	return device;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
	*s = NULL;
	return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t)
{
	run_queued();
	return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
	run_queued();
	return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
	cudaError_t e = last_error;
	last_error = cudaSuccess;
	return e;
}

const char *cudaGetErrorString(cudaError_t e)
{
	switch (e) {
	case cudaErrorInvalidValue: return "invalid argument";
	case cudaErrorMemoryAllocation: return "out of memory";
	case cudaErrorInvalidConfiguration: return "invalid configuration argument";
	case cudaErrorNoDevice: return "no CUDA-capable device is detected";
	default: return "no error";
	}
}
