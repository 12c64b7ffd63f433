/* cuda.cu - the CUDA plugin's device, memory, stream and sticky error, and its table: the one exported
 * symbol.  The computing entries live in the .cu files beside their .c references, once per type. */
#include "cuda.cuh"

#include <stdarg.h>
#include <stdlib.h>

enum { OLDEST_MAJOR = 8 }; /* compute capability 8.0: bf16 on tensor cores, asynchronous copies */

/* ---- errors ---- */

void cuda_fail(struct dev *d, const char *fmt, ...)
{
	if (d->error[0])
		return;
	int at = snprintf(d->error, sizeof d->error, "%s: ", d->op ? d->op : "device");
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(d->error + at, sizeof d->error - (size_t)at, fmt, ap);
	va_end(ap);
}

bool cuda_ok(struct dev *d, cudaError_t e)
{
	if (e != cudaSuccess) {
		cuda_fail(d, "%s", cudaGetErrorString(e));
		cudaGetLastError(); /* or the next launch would tell it again */
	}
	return e == cudaSuccess;
}

/* ---- opening ---- */

static int device_count(cudaError_t *why)
{
	int n = 0;
	*why = cudaGetDeviceCount(&n);
	if (*why != cudaSuccess) {
		cudaGetLastError(); /* is told once, here */
		return 0;
	}
	return n;
}

static int plugin_count(void)
{
	cudaError_t why;
	return device_count(&why);
}

static enum dtype plugin_preferred(int)
{
	return DT_BF16;
}

/* Whether the device exists and is new enough; else err says why. */
static bool usable(int index, cudaDeviceProp *p, char *err, size_t n)
{
	cudaError_t e;
	int count = device_count(&e);
	if (count == 0)
		snprintf(err, n, "no usable CUDA device: %s", cudaGetErrorString(e));
	else if (index >= count)
		snprintf(err, n, "there are %d CUDA devices, 0..%d", count, count - 1);
	else if ((e = cudaGetDeviceProperties(p, index)) != cudaSuccess)
		snprintf(err, n, "CUDA device %d: %s", index, cudaGetErrorString(e));
	else if (p->major < OLDEST_MAJOR)
		snprintf(err, n, "CUDA device %d, %s, has compute capability %d.%d, expected %d.0 or newer", index, p->name, p->major,
		         p->minor, OLDEST_MAJOR);
	else
		return true;
	return false;
}

/* Any kernel, to be asked for which devices the plugin's code was generated. */
KERNEL nothing_kernel()
{
}

/* Whether kernels can start early.  The code that the device takes must hold the waiting: for one generated for older devices
 * there is none.  Graphs hold such launches since CUDA 12.3. */
static bool starts_early(const cudaDeviceProp *p)
{
#ifdef CUDA_EMULATED
	return p->major >= 9;
#else
	cudaFuncAttributes code;
	int driver = 0;
	bool known = cudaDriverGetVersion(&driver) == cudaSuccess && cudaFuncGetAttributes(&code, nothing_kernel) == cudaSuccess;
	cudaGetLastError();
	return known && p->major >= 9 && code.ptxVersion >= 90 && driver >= 12030 && CUDART_VERSION >= 12030;
#endif
}

static bool start(struct dev *d, char *err, size_t n)
{
	cudaError_t e = cudaSetDevice(d->index);
	if (e == cudaSuccess)
		e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
	if (e == cudaSuccess)
		e = cudaMalloc((void **)&d->flag, sizeof *d->flag);
	if (e == cudaSuccess)
		e = cudaMemsetAsync(d->flag, 0, sizeof *d->flag, queue_of(d));
	if (e == cudaSuccess)
		products_open(d);
	else
		snprintf(err, n, "CUDA device %d: %s", d->index, cudaGetErrorString(e));
	return e == cudaSuccess;
}

static void plugin_close(struct dev *d)
{
	if (!d)
		return;
	if (d->stream)
		cudaStreamSynchronize(d->stream);
	for (int i = 0; i < d->graphs; i++)
		if (d->graph[i].exec)
			cudaGraphExecDestroy(d->graph[i].exec);
	ranks_close(d);
	products_close(d);
	for (int i = 0; i < d->chunks; i++)
		cudaFree(d->chunk[i].base);
	cudaFree(d->flag);
	if (d->stream)
		cudaStreamDestroy(d->stream);
	free(d->block);
	free(d);
}

static struct dev *plugin_open(int index, enum dtype t, int, char *err, size_t n)
{
	cudaDeviceProp p;
	if (!usable(index, &p, err, n))
		return NULL;
	struct dev *d = (struct dev *)calloc(1, sizeof *d);
	if (!d) {
		snprintf(err, n, "out of memory");
		return NULL;
	}
	const char *eager = getenv("DALLE_CUDA_SYNC"), *lt = getenv("DALLE_CUDA_LT"), *early = getenv("DALLE_CUDA_EARLY");
	d->type = t;
	d->index = index;
	d->sms = p.multiProcessorCount;
	d->shared_max = p.sharedMemPerBlockOptin;
	d->recording = -1;
	d->without_lt = lt && *lt == '0';
	d->eager = eager && *eager && *eager != '0';
	if (start(d, err, n)) {
		d->early = !d->eager && !(early && *early == '0') && starts_early(&p);
		return d;
	}
	plugin_close(d);
	return NULL;
}

static enum dtype plugin_type(const struct dev *d)
{
	return d->type;
}

static void plugin_describe(const struct dev *d, char *out, size_t n)
{
	cudaDeviceProp p;
	if (cudaGetDeviceProperties(&p, d->index) == cudaSuccess)
		snprintf(out, n, "%s, %.0f GiB, sm_%d%d, %d multiprocessors%s%s", p.name, (double)p.totalGlobalMem / (1 << 30), p.major,
		         p.minor, p.multiProcessorCount, d->products[0] ? ", " : "", d->products);
	else
		snprintf(out, n, "CUDA device %d", d->index);
}

/* ---- memory ---- */

static const size_t SCRATCH_LEAST = 4 << 20;
static const size_t RESERVE = (size_t)256 << 20; /* for the driver and scratch memory, of which large models need more: */
enum { RESERVED_SHARE = 64 };                    /* 2 GiB of 141 */

static uint64_t plugin_memory(const struct dev *)
{
	size_t room = 0, total = 0;
	if (cudaMemGetInfo(&room, &total) != cudaSuccess)
		return 0;
	size_t reserve = total / RESERVED_SHARE > RESERVE ? total / RESERVED_SHARE : RESERVE;
	return room > reserve ? room - reserve : 0;
}

static int find_block(const struct dev *d, const void *p)
{
	int i = 0;
	while (i < d->blocks && ((const char *)p < d->block[i].p || (const char *)p >= d->block[i].p + d->block[i].bytes))
		i++;
	return i;
}

size_t cuda_bytes_from(const struct dev *d, const void *p)
{
	int i = find_block(d, p);
	return i < d->blocks ? d->block[i].bytes - (size_t)((const char *)p - d->block[i].p) : UINTPTR_MAX - (uintptr_t)p;
}

/* A block that finds no room in the list is one of which nothing is known. */
static void note_block(struct dev *d, void *p, size_t bytes)
{
	if (d->blocks == d->block_room) {
		int room = d->block_room ? 2 * d->block_room : 64;
		void *more = realloc(d->block, (size_t)room * sizeof *d->block);
		if (!more)
			return;
		d->block = (decltype(d->block))more;
		d->block_room = room;
	}
	d->block[d->blocks].p = (char *)p;
	d->block[d->blocks++].bytes = bytes;
}

static void *plugin_alloc(struct dev *d, size_t bytes)
{
	void *p = NULL;
	if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
		cudaGetLastError(); /* the caller tells it */
		return NULL;
	}
	note_block(d, p, bytes);
	cuda_ok(d, cudaMemsetAsync(p, 0, bytes, queue_of(d)));
	return p;
}

static void plugin_release(struct dev *d, void *p)
{
	int i = find_block(d, p);
	if (!p)
		return;
	if (i < d->blocks)
		d->block[i] = d->block[--d->blocks];
	cuda_ok(d, cudaStreamSynchronize(d->stream));
	cuda_ok(d, cudaFree(p));
}

/* A new chunk of `size` bytes in front. */
static bool add_chunk(struct dev *d, size_t size)
{
	void *base = NULL;
	if (d->chunks == CUDA_CHUNKS || cudaMalloc(&base, size) != cudaSuccess) {
		cudaGetLastError(); /* the caller tells it */
		return false;
	}
	d->chunk[d->chunks].base = (char *)base;
	d->chunk[d->chunks++].size = size;
	d->scratch_used = 0;
	return true;
}

void *cuda_scratch_wish(struct dev *d, size_t bytes)
{
	bytes = ceil_div(bytes, 256) * 256;
	if (!d->chunks || d->chunk[d->chunks - 1].size - d->scratch_used < bytes) {
		size_t twice = d->chunks ? 2 * d->chunk[d->chunks - 1].size : SCRATCH_LEAST;
		if ((twice <= bytes || !add_chunk(d, twice)) && !add_chunk(d, bytes))
			return NULL;
	}
	void *p = d->chunk[d->chunks - 1].base + d->scratch_used;
	d->scratch_used += bytes;
	return p;
}

void *cuda_scratch(struct dev *d, size_t bytes)
{
	void *p = cuda_scratch_wish(d, bytes);
	if (!p)
		cuda_fail(d, "out of memory: %zu bytes of scratch", bytes);
	return p;
}

static void plugin_put(struct dev *d, void *dst, const void *host, size_t bytes)
{
	if (bytes)
		cuda_ok(d, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, queue_of(d)));
}

static void plugin_get(struct dev *d, void *host, const void *src, size_t bytes)
{
	if (bytes && cuda_ok(d, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, queue_of(d))))
		cuda_ok(d, cudaStreamSynchronize(d->stream));
}

static void plugin_copy2d(struct dev *d, void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t bytes,
                          size_t rows)
{
	if (!bytes || !rows)
		return;
	if (rows == 1 || (dst_stride == bytes && src_stride == bytes))
		cuda_ok(d, cudaMemcpyAsync(dst, src, bytes * rows, cudaMemcpyDeviceToDevice, queue_of(d)));
	else
		cuda_ok(d, cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, bytes, rows, cudaMemcpyDeviceToDevice, queue_of(d)));
}

static void plugin_zero(struct dev *d, void *p, size_t bytes)
{
	if (bytes)
		cuda_ok(d, cudaMemsetAsync(p, 0, bytes, queue_of(d)));
}

/* What kernels found becomes the sticky error. */
static void read_flag(struct dev *d)
{
	int flag = 0;
	if (!cuda_ok(d, cudaMemcpyAsync(&flag, d->flag, sizeof flag, cudaMemcpyDeviceToHost, queue_of(d))) ||
	    !cuda_ok(d, cudaStreamSynchronize(d->stream)) || !flag)
		return;
	cuda_ok(d, cudaMemsetAsync(d->flag, 0, sizeof flag, queue_of(d)));
	if (flag & FLAG_TARGET) {
		d->op = "xent";
		cuda_fail(d, "a target is out of range");
	}
	if (flag & FLAG_LOGITS) {
		d->op = "draw";
		cuda_fail(d, "logits that are not finite");
	}
}

static int plugin_sync(struct dev *d, char *err, size_t n)
{
	d->op = "sync";
	if (cuda_ok(d, cudaStreamSynchronize(d->stream)))
		read_flag(d);
	if (!d->error[0])
		return 0;
	snprintf(err, n, "%s", d->error);
	d->error[0] = 0;
	return -1;
}

/* ---- recorded work ---- */

static int find_graph(const struct dev *d, int id)
{
	for (int i = 0; i < d->graphs; i++)
		if (d->graph[i].id == id)
			return i;
	return -1;
}

static int plugin_replay(struct dev *d, int id)
{
	int i = find_graph(d, id);
	if (i < 0 || !d->graph[i].exec || d->recording >= 0)
		return 0;
	return cuda_ok(d, cudaGraphLaunch(d->graph[i].exec, queue_of(d)));
}

/* The first time the work just runs: kernels are loaded, scratch memory grows and cuBLASLt is asked for algorithms, none of
 * which a capture should hold.  Still relaxed, for what the first time did not meet. */
static void plugin_record_begin(struct dev *d, int id)
{
	int i = find_graph(d, id);
	if (d->recording >= 0 || d->eager)
		return;
	if (i < 0 && d->graphs < CUDA_GRAPHS) {
		d->graph[d->graphs].id = id;
		d->graph[d->graphs++].exec = NULL;
	} else if (i >= 0 && d->graph[i].exec) {
		cuda_ok(d, cudaGraphExecDestroy(d->graph[i].exec));
		d->graph[i].exec = NULL;
	} else if (i >= 0 && cuda_ok(d, cudaStreamBeginCapture(queue_of(d), cudaStreamCaptureModeRelaxed))) {
		d->recording = id;
	}
}

static void plugin_record_end(struct dev *d, int id)
{
	cudaGraph_t g = NULL;
	cudaGraphExec_t exec;
	if (d->recording != id)
		return;
	d->recording = -1;
	if (!cuda_ok(d, cudaStreamEndCapture(queue_of(d), &g)))
		return;
	/* Work that has failed on the way is not all there. */
	if (!d->error[0] && cuda_ok(d, cudaGraphInstantiate(&exec, g, 0))) {
		d->graph[find_graph(d, id)].exec = exec;
		cuda_ok(d, cudaGraphLaunch(exec, queue_of(d)));
	}
	cudaGraphDestroy(g);
}

/* ---- the table ---- */

#define COUNT_ENTRY(entry) OP_##entry,
enum op_number { OPS_ENTRIES(COUNT_ENTRY) };
#define NAME_ENTRY(entry) #entry,
static const char *const op_names[] = {OPS_ENTRIES(NAME_ENTRY)};

#define ENTRIES_TYPED(X)                                                                           \
	ENTRIES_ELEM(X) ENTRIES_MATMUL(X) ENTRIES_CONV(X) ENTRIES_NORM(X) ENTRIES_ATTN(X) ENTRIES_LOSS(X)
/* No T among their operands, or one that they are told: compiled once. */
#define ENTRIES_ONCE(X) ENTRIES_LATENT(X) ENTRIES_OPTIM(X)

static struct ops typed[DT_F16 + 1]; /* computing entries by enum dtype */
static struct ops table;

/* Every computing entry goes through here to the one for the device's type. */
template <auto entry, int number, class... A> static void pass(struct dev *d, A... a)
{
	d->op = op_names[number];
	d->scratch_used = 0;
	if (d->error[0])
		return;
	(typed[d->type].*entry)(d, a...);
	if (d->eager && cuda_ok(d, cudaStreamSynchronize(d->stream)))
		read_flag(d);
}

static void fill_tables(void)
{
#define FILL_TYPED(name)                                                                           \
	typed[DT_F32].name = for_f32::name;                                                        \
	typed[DT_BF16].name = for_bf16::name;                                                      \
	typed[DT_F16].name = for_f16::name;                                                        \
	table.name = pass<&ops::name, OP_##name>;
#define FILL_ONCE(name)                                                                            \
	typed[DT_F32].name = typed[DT_BF16].name = typed[DT_F16].name = for_f32::name;             \
	table.name = pass<&ops::name, OP_##name>;
#define FILL_DEVICE(name) table.name = plugin_##name;
	ENTRIES_TYPED(FILL_TYPED)
	ENTRIES_ONCE(FILL_ONCE)
	ENTRIES_CPU(FILL_DEVICE)
	table.abi = OPS_ABI;
	table.size = sizeof table;
	table.name = "cuda";
}

extern "C" __attribute__((visibility("default"))) const struct ops *dalle_cuda_ops(void)
{
	/* The loader calls this once, before any thread uses the table. */
	if (!table.abi)
		fill_tables();
	return &table;
}
