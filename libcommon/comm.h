/* comm.h - the ranks: processes, started together by mpirun or srun, that train one model.  Each works on its share of
 * an update's batches; sums over all ranks make their gradients one.
 *
 * Every rank makes the same calls in the same order with the same sizes; a call waits for the others.  Results have the
 * same bits on all ranks, so that ranks that begin with the same weights keep the same weights.  Pointers are host memory;
 * devices that can sum by themselves do (ranks_sum of kernels/ops.h).  A rank that fails alone would leave the others
 * waiting: it ends them all with comm_abort.
 *
 * The backend is a plugin (kernels/plugin.h), dalle-mpi.so, that exports `const struct comm_plugin *dalle_mpi_comm(void)`:
 * no program links to MPI. */
#ifndef COMM_H
#define COMM_H

#include <stddef.h>

#include "util.h"

/* What is summed.  COMM_1_6_9: the 16-bit format of recipe D10, added in f32; infinities become the largest value
 * (E10 step 4). */
enum comm_type { COMM_F32, COMM_F64, COMM_1_6_9 };

struct comm {
	int rank, size;
	int local_rank, local_size; /* among the ranks of this machine, from 0: whose GPU is whose */
	int sharing;    /* ranks that may run on the same processors as this one, it included */
	const struct comm_backend *backend; /* NULL: this process alone */
	void *state;
};

/* What a backend brings; calls return 0 or -1. */
struct comm_backend {
	int (*sum)(struct comm *c, void *x, size_t n, enum comm_type type, struct error *e);
	int (*broadcast)(struct comm *c, void *x, size_t bytes, struct error *e);
	void (*abort)(struct comm *c, int status);
	void (*close)(struct comm *c);
};

#define COMM_ABI 2
struct comm_plugin {
	uint32_t abi, size; /* COMM_ABI, sizeof(struct comm) */
	int (*open)(struct comm *c, struct error *e); /* fills c */
};

/* How the option --comm is meant: AUTO is MPI in a process that mpirun or srun started with others, by what these leave in
 * the environment. */
enum comm_choice { COMM_AUTO, COMM_NONE, COMM_MPI };
#define COMM_CHOICES "auto|none|mpi"

/* 0, or -1 with c alone: STATUS_FAIL when MPI cannot be had. */
int comm_open(struct comm *c, enum comm_choice how, struct error *e);
/* x (n) = its sum over all ranks.  0 or -1. */
int comm_sum(struct comm *c, void *x, size_t n, enum comm_type type, struct error *e);
/* x becomes what rank 0 has.  0 or -1. */
int comm_broadcast(struct comm *c, void *x, size_t bytes, struct error *e);
/* End all ranks with this exit status; does not return, but in a process alone. */
void comm_abort(struct comm *c, int status);
void comm_close(struct comm *c); /* waits for the others */

#endif
