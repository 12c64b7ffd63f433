/* emu.cc - see emu.h: the threads of a block as fibres, their rendezvous, and the tensor core by its definition. */
#include "emu.h"

#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <map>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN 1
#else
#define ASAN 0
#endif

emu_state emu;

/* ---- fibres ---- */

enum { STACK = 256 << 10 };

struct copy {
	void *to;
	const void *from; /* NULL: zeros */
};

struct fibre {
	ucontext_t context;
	void *sp; /* where the fibre stopped */
	char *stack;
	bool made, done;
	bool waited; /* has called await_previous */
	const unsigned *gate; /* waits while *gate == seen; NULL: it can run */
	unsigned seen;
	unsigned meetings; /* of its warp that it has been to */
	std::vector<std::vector<copy>> copies; /* groups under way; the last is not committed yet */
};

struct warp {
	emu_slots slots[2];
	unsigned generation, arrived, size;
};

static fibre fibres[EMU_THREADS];
static warp warps[EMU_THREADS / 32];
static unsigned threads, alive, barrier_generation, barrier_arrived;
static struct {
	int line;
	const char *file;
} barrier; /* where the threads that have arrived are */
static int current;
static bool reverse_order;
static const std::function<void()> *body;

/* The 16 bytes that were at an address when they were read early. */
struct emu_reads {
	std::map<const void *, std::array<char, 16>> at;
};
struct run_ends {}; /* thrown in a run that goes as far as await_previous */
static enum emu_turn turn;
static emu_reads *reads;
static void *scheduler_sp;

#if defined(__x86_64__)
extern "C" void emu_switch(void **from, void *to);
asm(".text\n"
    ".globl emu_switch\n"
    ".hidden emu_switch\n"
    ".type emu_switch, @function\n"
    "emu_switch:\n"
    "	pushq %rbp\n	pushq %rbx\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
    "	movq %rsp, (%rdi)\n"
    "	movq %rsi, %rsp\n"
    "	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbx\n	popq %rbp\n"
    "	ret\n");
#else
/* Elsewhere the slower switch of the C library; sp is then the context. */
static void emu_switch(void **from, void *to)
{
	ucontext_t here;
	*from = &here;
	swapcontext(&here, (ucontext_t *)to);
}
#endif

void emu_stop(const char *what)
{
	fprintf(stderr, "emulated device: %s (block %u %u %u, thread %u of %u)\n", what, emu.block.x, emu.block.y, emu.block.z,
	        emu.thread.x, threads);
	abort();
}

static void place(int i)
{
	current = i;
	unsigned x = emu.block_dim.x, y = emu.block_dim.y;
	emu.thread = dim3((unsigned)i % x, (unsigned)i / x % y, (unsigned)i / x / y);
}

/* The k-th thread after the current one within a group of `size` that begins at `base`, in the order of the run. */
static unsigned after(unsigned k, unsigned base, unsigned size)
{
	unsigned at = (unsigned)current - base;
	return base + (reverse_order ? at + size - k : at + k) % size;
}

/* The next fibre that can run; -1: all are done.  Those of the same warp first: warps get as far apart as barriers let
 * them, so that one that is missing shows. */
static int next_fibre()
{
	unsigned base = (unsigned)current / 32 * 32, own = threads - base < 32 ? threads - base : 32;
	for (unsigned k = 1; k <= own + threads; k++) {
		unsigned i = k <= own ? after(k, base, own) : after(k - own, 0, threads);
		fibre *f = &fibres[i];
		if (!f->done && (!f->gate || *f->gate != f->seen))
			return (int)i;
	}
	if (alive)
		emu_stop("threads of a block wait for each other at different places");
	return -1;
}

#if ASAN
static size_t scheduler_size;

/* The lowest address of the stack that the blocks were started from. */
static void *scheduler_bottom()
{
	static pthread_t known;
	static void *bottom;
	if (bottom && pthread_equal(known, pthread_self()))
		return bottom;
	pthread_attr_t a;
	known = pthread_self();
	pthread_getattr_np(known, &a);
	pthread_attr_getstack(&a, &bottom, &scheduler_size);
	pthread_attr_destroy(&a);
	return bottom;
}
#endif

static void switch_to(void **from, int to)
{
	void *target = to < 0 ? scheduler_sp : fibres[to].sp;
	if (to >= 0)
		place(to);
#if ASAN
	void *fake;
	if (to < 0)
		__sanitizer_start_switch_fiber(&fake, scheduler_bottom(), scheduler_size);
	else
		__sanitizer_start_switch_fiber(&fake, fibres[to].stack, STACK);
	emu_switch(from, target);
	__sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
	emu_switch(from, target);
#endif
}

static void wait_at(const unsigned *gate, unsigned seen)
{
	fibre *me = &fibres[current];
	me->gate = gate;
	me->seen = seen;
	int to = next_fibre();
	if (to != (int)(me - fibres))
		switch_to(&me->sp, to);
	me->gate = NULL;
}

static void open_barrier()
{
	barrier_arrived = 0;
	barrier_generation++;
}

static void fibre_main()
{
#if ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
	for (;;) {
		fibre *me = &fibres[current];
		try {
			(*body)();
			if (turn != EMU_ALONE && !me->waited)
				emu_stop("a thread of a kernel that starts early has not waited for the work before it");
		} catch (const run_ends &) {
		}
		me->done = true;
		alive--;
		warp *w = &warps[(me - fibres) / 32];
		if (w->arrived)
			emu_stop("a thread ended while its warp waits for it");
		w->size--;
		if (barrier_arrived)
			emu_stop("a thread ended while others wait for it at a barrier");
		switch_to(&me->sp, next_fibre());
	}
}

static void make_fibre(fibre *f)
{
	f->stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->stack == MAP_FAILED)
		emu_stop("no memory for a stack");
#if defined(__x86_64__)
	/* As if it had called emu_switch: six registers, the address to return to, and a stack aligned for a call. */
	void **sp = (void **)(f->stack + STACK - 64);
	*--sp = NULL;
	*--sp = (void *)fibre_main;
	for (int i = 0; i < 6; i++)
		*--sp = NULL;
	f->sp = sp;
#else
	getcontext(&f->context);
	f->context.uc_stack.ss_sp = f->stack;
	f->context.uc_stack.ss_size = STACK;
	makecontext(&f->context, fibre_main, 0);
	f->sp = &f->context;
#endif
	f->made = true;
}

static void run_block()
{
	memset(emu.shared, 0xFF, emu.shared_bytes); /* NaN in every float format */
	alive = threads;
	barrier_arrived = 0;
	for (unsigned i = 0; i < threads; i++) {
		fibre *f = &fibres[i];
		if (!f->made)
			make_fibre(f);
		f->done = f->waited = false;
		f->gate = NULL;
		f->meetings = 0;
		f->copies.assign(1, std::vector<copy>());
	}
	for (unsigned w = 0; w * 32 < threads; w++) {
		warps[w].arrived = 0;
		warps[w].size = threads - w * 32 < 32 ? threads - w * 32 : 32;
	}
	switch_to(&scheduler_sp, reverse_order ? (int)threads - 1 : 0);
}

void emu_run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &f, enum emu_turn t, emu_reads *r)
{
	turn = t;
	reads = r;
	if (turn == EMU_AHEAD)
		reads->at.clear();
	threads = block.x * block.y * block.z;
	const char *order = getenv("EMU_ORDER");
	reverse_order = order && strcmp(order, "reverse") == 0;
	emu_touch(true);
	body = &f;
	emu.grid_dim = grid;
	emu.block_dim = block;
	emu.shared_bytes = shared;
	/* Exactly as large as asked for, so that sanitizers see a step beyond; aligned as on a device. */
	void *memory;
	if (posix_memalign(&memory, 128, shared ? shared : 1))
		emu_stop("no memory for a block");
	emu.shared = (char *)memory;
	for (unsigned z = 0; z < grid.z; z++)
		for (unsigned y = 0; y < grid.y; y++)
			for (unsigned x = 0; x < grid.x; x++) {
				emu.block = dim3(x, y, z);
				run_block();
			}
	free(memory);
	emu_touch(false);
}

/* ---- what threads do together ---- */

void __syncthreads(int line, const char *file)
{
	unsigned seen = barrier_generation;
	if (alive < threads)
		emu_stop("a barrier that some threads of the block have ended before");
	if (barrier_arrived && (line != barrier.line || strcmp(file, barrier.file)))
		emu_stop("threads of a block are at different barriers");
	barrier.line = line;
	barrier.file = file;
	if (++barrier_arrived == alive)
		open_barrier();
	else
		wait_at(&barrier_generation, seen);
}

int emu_lane()
{
	return current & 31;
}

static emu_slots *meet(const void *mine, size_t bytes)
{
	warp *w = &warps[current / 32];
	fibre *me = &fibres[current];
	/* Two sets in turn: a lane cannot be two meetings ahead of one that still reads. */
	emu_slots *s = &w->slots[me->meetings++ & 1];
	if (bytes > EMU_SLOT)
		emu_stop("too much for a meeting of lanes");
	memcpy(s->lane[current & 31], mine, bytes);
	unsigned seen = w->generation;
	if (++w->arrived == w->size) {
		w->arrived = 0;
		w->generation++;
	} else {
		wait_at(&w->generation, seen);
	}
	return s;
}

emu_slots *emu_meet(const void *mine, size_t bytes)
{
	if (warps[current / 32].size < 32)
		emu_stop("lanes that a warp needs have ended or do not exist");
	return meet(mine, bytes);
}

void __syncwarp()
{
	char nothing = 0;
	meet(&nothing, 1);
}

/* ---- numbers ---- */

/* A GPU's NaN is always the same. */
uint16_t emu_to_bf16(float x) { return x != x ? 0x7fff : f32_to_bf16(x); }
uint16_t emu_to_f16(float x) { return x != x ? 0x7fff : f32_to_f16(x); }
float emu_from_f16(uint16_t h) { return f16_to_f32(h); }

/* ---- tensor cores ---- */

static float half_of(uint32_t pair, int high, bool is_bf16)
{
	uint16_t h = (uint16_t)(high ? pair >> 16 : pair);
	return is_bf16 ? bf16_to_f32(h) : f16_to_f32(h);
}

void emu_mma(float c[4], const uint32_t a[4], const uint32_t b[2], bool is_bf16)
{
	uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]}, other[6];
	emu_slots *s = emu_meet(mine, sizeof mine);
	int lane = emu_lane(), group = lane / 4, pair = lane % 4;
	/* c[0], c[1]: row group, columns 2 pair and 2 pair + 1; c[2], c[3]: row group + 8. */
	for (int k = 0; k < 16; k++) {
		/* a[r, k]: lane (r % 8) * 4 + k % 8 / 2, register (r >= 8) + 2 (k >= 8), half k % 2. */
		float av[2], bv[2];
		memcpy(other, s->lane[group * 4 + k % 8 / 2], sizeof other);
		for (int r = 0; r < 2; r++)
			av[r] = half_of(other[r + 2 * (k >= 8)], k % 2, is_bf16);
		/* b[k, n]: lane n * 4 + k % 8 / 2, register k >= 8, half k % 2. */
		for (int n = 0; n < 2; n++) {
			memcpy(other, s->lane[(2 * pair + n) * 4 + k % 8 / 2], sizeof other);
			bv[n] = half_of(other[4 + (k >= 8)], k % 2, is_bf16);
		}
		for (int r = 0; r < 2; r++)
			for (int n = 0; n < 2; n++)
				c[2 * r + n] += av[r] * bv[n];
	}
}

void emu_ldmatrix(uint32_t r[4], const void *row, bool transposed)
{
	emu_slots *s = emu_meet(&row, sizeof row);
	int lane = emu_lane();
	for (int m = 0; m < 4; m++) {
		uint16_t pair[2];
		for (int h = 0; h < 2; h++) {
			int at_row = transposed ? 2 * (lane % 4) + h : lane / 4, column = transposed ? lane / 4 : 2 * (lane % 4) + h;
			const uint16_t *p;
			memcpy(&p, s->lane[8 * m + at_row], sizeof p);
			if ((uintptr_t)p % 16)
				emu_stop("a matrix row is not 16-byte aligned");
			pair[h] = p[column];
		}
		r[m] = pair[0] | (uint32_t)pair[1] << 16;
	}
	__syncwarp(); /* rows may be overwritten after this */
}

/* ---- kernels that start early ---- */

std::shared_ptr<emu_reads> emu_new_reads()
{
	return std::make_shared<emu_reads>();
}

void emu_await_previous()
{
	fibres[current].waited = true;
	if (turn == EMU_AHEAD)
		throw run_ends();
}

void emu_let_next_start()
{
	if (!fibres[current].waited)
		emu_stop("lets the next kernel start without having waited for the work before it");
}

/* Without a run ahead, as after the host has waited, there is nothing to compare with. */
static void read_early(const void *p)
{
	std::array<char, 16> now;
	memcpy(now.data(), p, sizeof now);
	if (turn == EMU_AHEAD)
		reads->at[p] = now;
	else if (reads && reads->at.count(p) && reads->at[p] != now)
		emu_stop("what a kernel read before it has waited was still to be written");
}

/* ---- asynchronous copies ---- */

static void arrive(const copy &k)
{
	if (k.from)
		memcpy(k.to, k.from, 16);
	else
		memset(k.to, 0, 16);
}

/* As late as they may, or, in the other order, at once. */
void emu_copy16(void *shared, const void *device, bool zeros)
{
	if ((uintptr_t)shared % 16 || (!zeros && (uintptr_t)device % 16))
		emu_stop("a copy of 16 bytes is not aligned");
	if (turn != EMU_ALONE && !zeros && !fibres[current].waited)
		read_early(device);
	copy c = {shared, zeros ? NULL : device};
	if (reverse_order)
		arrive(c);
	else
		fibres[current].copies.back().push_back(c);
}

void emu_copies_commit()
{
	fibres[current].copies.emplace_back();
}

void emu_copies_wait(int groups)
{
	std::vector<std::vector<copy>> &c = fibres[current].copies;
	while ((int)c.size() - 1 > groups) {
		for (const copy &k : c.front())
			arrive(k);
		c.erase(c.begin());
	}
}
