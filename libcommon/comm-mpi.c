/* comm-mpi.c - the plugin dalle-mpi.so: ranks by MPI.  It is loaded by programs that it imports nothing from, and is the only
 * file that knows MPI. */
#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/convert.h"
#include "comm.h"

/* Elements of one message at most: counts are int, and a sum needs memory beside what is summed. */
enum { PIECE = 1 << 22 };

struct mpi_state {
	MPI_Op add_1_6_9;
	int *counts, *starts; /* (size) who sums which elements of a piece */
	void *part;           /* this rank's share of a piece */
};

static int failed(struct error *e, const char *what, int code)
{
	char text[MPI_MAX_ERROR_STRING] = "";
	int n;
	if (MPI_Error_string(code, text, &n))
		text[0] = 0;
	if (!e->status)
		snprintf(e->text, sizeof e->text, "MPI: %s: %.300s", what, text);
	e->status = STATUS_FAIL;
	return -1;
}

static int no_memory(struct error *e)
{
	snprintf(e->text, sizeof e->text, "MPI: out of memory");
	e->status = STATUS_LIMIT;
	return -1;
}

/* ---- sums ---- */

static void add_1_6_9(void *in, void *inout, int *n, MPI_Datatype *type)
{
	const uint16_t *x = in;
	uint16_t *y = inout;
	for (int i = 0; i < *n; i++)
		y[i] = f32_to_1_6_9(f32_from_1_6_9(x[i]) + f32_from_1_6_9(y[i]));
}

/* An all-reduce need not give the same bits to all ranks.  Here each element is summed by one rank, which then hands it
 * out; together this moves no more bytes than a ring's all-reduce. */
static int sum_piece(const struct comm *c, void *x, int n, MPI_Datatype type, MPI_Op op)
{
	struct mpi_state *r = c->state;
	for (int i = 0; i < c->size; i++) {
		r->starts[i] = (int)((int64_t)n * i / c->size);
		r->counts[i] = (int)((int64_t)n * (i + 1) / c->size) - r->starts[i];
	}
	int code = MPI_Reduce_scatter(x, r->part, r->counts, type, op, MPI_COMM_WORLD);
	if (code == MPI_SUCCESS)
		code = MPI_Allgatherv(r->part, r->counts[c->rank], type, x, r->counts, r->starts, type, MPI_COMM_WORLD);
	return code;
}

static int mpi_sum(struct comm *c, void *x, size_t n, enum comm_type type, struct error *e)
{
	struct mpi_state *r = c->state;
	const struct {
		MPI_Datatype type;
		size_t width;
		MPI_Op op;
	} of[] = {
		[COMM_F32] = {MPI_FLOAT, 4, MPI_SUM},
		[COMM_F64] = {MPI_DOUBLE, 8, MPI_SUM},
		[COMM_1_6_9] = {MPI_UINT16_T, 2, r->add_1_6_9},
	};
	for (size_t done = 0; done < n; done += PIECE) {
		int some = n - done < PIECE ? (int)(n - done) : PIECE;
		int code = sum_piece(c, (char *)x + done * of[type].width, some, of[type].type, of[type].op);
		if (code != MPI_SUCCESS)
			return failed(e, "a sum over the ranks failed", code);
	}
	return 0;
}

static int mpi_broadcast(struct comm *c, void *x, size_t bytes, struct error *e)
{
	const size_t most = (size_t)8 * PIECE;
	for (size_t done = 0; done < bytes; done += most) {
		size_t some = bytes - done < most ? bytes - done : most;
		int code = MPI_Bcast((char *)x + done, (int)some, MPI_BYTE, 0, MPI_COMM_WORLD);
		if (code != MPI_SUCCESS)
			return failed(e, "a broadcast to the ranks failed", code);
	}
	return 0;
}

/* ---- begin and end ---- */

/* How many ranks of this machine may run on a processor that this one may run on: launchers bind ranks to cores or not.
 * Where a rank cannot be asked (more processors than cpu_set_t has) it counts as running on all. */
static int count_sharing(MPI_Comm local, int size, int *sharing)
{
	cpu_set_t own, *all = malloc((size_t)size * sizeof *all), both;
	CPU_ZERO(&own);
	if (!all)
		return MPI_ERR_NO_MEM;
	if (sched_getaffinity(0, sizeof own, &own))
		memset(&own, 0xff, sizeof own);
	int code = MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, local);
	for (int i = 0; code == MPI_SUCCESS && i < size; i++) {
		CPU_AND(&both, &own, &all[i]);
		*sharing += CPU_COUNT(&both) > 0;
	}
	free(all);
	return code;
}

static int look_at_machine(struct comm *c)
{
	MPI_Comm local;
	int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &local);
	c->sharing = 0;
	if (code != MPI_SUCCESS)
		return code;
	if ((code = MPI_Comm_rank(local, &c->local_rank)) == MPI_SUCCESS &&
	    (code = MPI_Comm_size(local, &c->local_size)) == MPI_SUCCESS)
		code = count_sharing(local, c->local_size, &c->sharing);
	MPI_Comm_free(&local);
	return code;
}

static void mpi_close(struct comm *c)
{
	struct mpi_state *r = c->state;
	MPI_Op_free(&r->add_1_6_9);
	free(r->counts);
	free(r->starts);
	free(r->part);
	free(r);
	MPI_Finalize();
}

static void mpi_abort(struct comm *c, int status)
{
	fflush(stderr);
	MPI_Abort(MPI_COMM_WORLD, status);
	_Exit(status);
}

static int start_sums(struct comm *c, struct error *e)
{
	struct mpi_state *r = c->state = calloc(1, sizeof *r);
	size_t size = (size_t)c->size;
	if (!r)
		return no_memory(e);
	r->counts = malloc(size * sizeof *r->counts);
	r->starts = malloc(size * sizeof *r->starts);
	r->part = malloc(((size_t)PIECE / size + 1) * sizeof(double));
	if (!r->counts || !r->starts || !r->part)
		return no_memory(e);
	int code = MPI_Op_create(add_1_6_9, 1, &r->add_1_6_9);
	return code == MPI_SUCCESS ? 0 : failed(e, "no operation of its own", code);
}

static int mpi_open(struct comm *c, struct error *e)
{
	static const struct comm_backend backend = {mpi_sum, mpi_broadcast, mpi_abort, mpi_close};
	int provided, code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
	if (code != MPI_SUCCESS)
		return failed(e, "does not start", code);
	MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	if ((code = MPI_Comm_rank(MPI_COMM_WORLD, &c->rank)) != MPI_SUCCESS ||
	    (code = MPI_Comm_size(MPI_COMM_WORLD, &c->size)) != MPI_SUCCESS || (code = look_at_machine(c)) != MPI_SUCCESS)
		return failed(e, "the ranks could not be counted", code);
	c->backend = &backend;
	return start_sums(c, e);
}

__attribute__((visibility("default"))) const struct comm_plugin *dalle_mpi_comm(void);
const struct comm_plugin *dalle_mpi_comm(void)
{
	static const struct comm_plugin plugin = {COMM_ABI, sizeof(struct comm), mpi_open};
	return &plugin;
}
