/* cpu.h - inside the CPU backend: the device, its scratch memory and sticky error, and the
 * entries that the reference files define.  Nothing outside kernels/ and tests/ includes this.
 *
 * Each entry NAME of struct ops is a function cpu_NAME with exactly the type of that entry,
 * declared here and entered into the table by cpu.c; entries.h lists them by file. */
#ifndef CPU_H
#define CPU_H

#ifdef _OPENMP
#include <omp.h>
#endif

#include "convert.h"
#include "entries.h"
#include "ops.h"

enum { SCRATCH_CHUNKS = 32 };

struct scratch_mark {
	int chunk;
	size_t used;
};

struct dev {
	enum dtype type; /* of T operands without OP_F32 */
	int threads;     /* at least 1; give it to every `omp parallel` as num_threads */
	struct {
		char *base;
		size_t size, used;
	} chunk[SCRATCH_CHUNKS];
	int chunks;          /* in use or kept; 0 before the first piece */
	int current;         /* chunk that the next piece is cut from */
	char error[256];     /* "op: reason" of the first failure; empty: none */
	void *accelerator;   /* state of an overriding library; NULL: none yet, or it failed to start */
	int accelerator_failed;
	void (*accelerator_close)(struct dev *d);
};

/* The type of this call's T operands. */
static inline enum dtype call_type(const struct dev *d, int flags)
{
	return flags & OP_F32 ? DT_F32 : d->type;
}

/* The least multiple of unit that is not below n. */
static inline size_t cpu_round_up(size_t n, size_t unit)
{
	return (n + unit - 1) / unit * unit;
}

/* Index of the calling thread in its team, below d->threads. */
static inline int cpu_thread(void)
{
#ifdef _OPENMP
	return omp_get_thread_num();
#else
	return 0;
#endif
}

/* Does /proc/cpuinfo list this instruction set ("avx2", "amx_bf16")? */
int cpu_has(const char *flag);

/* Keep the first failure for sync(). */
void cpu_fail(struct dev *d, const char *op, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Scratch memory of one op, 64-byte aligned, not zeroed; NULL (and a sticky error in op's name) when there
 * is none.  Pieces stay valid until cpu_scratch_end with the mark taken before them.  The memory is
 * kept for later ops, so that steady state allocates nothing:
 *     struct scratch_mark m = cpu_scratch_begin(d);
 *     float *t = cpu_scratch(d, "conv_fwd", bytes);
 *     ...
 *     cpu_scratch_end(d, m);
 * To be called outside of parallel regions. */
struct scratch_mark cpu_scratch_begin(struct dev *d);
void *cpu_scratch(struct dev *d, const char *op, size_t bytes);
void cpu_scratch_end(struct dev *d, struct scratch_mark m);

#define OPS_DECLARE(name) __typeof__(*((struct ops *)0)->name) cpu_##name;
OPS_ENTRIES(OPS_DECLARE)
#undef OPS_DECLARE

/* The table of references alone, without oneDNN: what overriding entries are tested against. */
const struct ops *cpu_reference_ops(void);

/* dnnl.c: replace the entries that oneDNN does better; all: also those in which it is faster but does not keep
 * a row's bits (f32 linear), for tests and measurements. */
void dnnl_override(struct ops *o);
void dnnl_override_all(struct ops *o);
/* dnnl.c: append "; oneDNN 2.6.3 (avx2)" to a description. */
void dnnl_describe(char *out, size_t n);

#endif
