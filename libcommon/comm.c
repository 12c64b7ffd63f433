/* comm.c - see comm.h. */
#include "comm.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/plugin.h"

#define PLUGIN "dalle-mpi.so"
#define PLUGIN_SYMBOL "dalle_mpi_comm"

/* What Open MPI, MPICH and its kin, and srun tell the processes that they start.  SLURM_NTASKS will not do: a batch script,
 * which is one process, has it too. */
static bool started_with_others(void)
{
	static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		const char *text = getenv(names[i]);
		struct error ignored = {0};
		int64_t n;
		if (text && parse_int(text, 2, INT32_MAX, &n, &ignored) == 0)
			return true;
	}
	return false;
}

static int open_plugin(struct comm *c, struct error *e)
{
	const struct comm_plugin *(*get)(void);
	char path[PATH_MAX], why[400];
	if (plugin_find(PLUGIN, "MPI backend", path, sizeof path, why, sizeof why))
		return fail(e, STATUS_FAIL, "%s", why);
	*(void **)&get = plugin_symbol(path, PLUGIN_SYMBOL, why, sizeof why);
	if (!get)
		return fail(e, STATUS_FAIL, "%s", why);
	const struct comm_plugin *p = get();
	if (p->abi != COMM_ABI || p->size != sizeof *c)
		return fail(e, STATUS_FAIL, PLUGIN ": made for another version: ABI %u size %u, expected ABI %d size %zu", p->abi,
		            p->size, COMM_ABI, sizeof *c);
	return p->open(c, e);
}

/* A launcher of another MPI, or srun without its support, starts processes that do not find each other. */
static int check_others(struct comm *c, struct error *e)
{
	if (c->size > 1)
		return 0;
	comm_close(c);
	return fail(e, STATUS_FAIL, "MPI finds this one alone, expected mpirun or srun of the MPI that " PLUGIN " was built with");
}

int comm_open(struct comm *c, enum comm_choice how, struct error *e)
{
	const struct comm alone = {.size = 1, .local_size = 1, .sharing = 1};
	bool others = started_with_others();
	struct error why = {0};
	*c = alone;
	if (how == COMM_NONE || (how == COMM_AUTO && !others))
		return 0;
	if (open_plugin(c, &why) == 0 && (!others || check_others(c, &why) == 0))
		return 0;
	*c = alone;
	return others ? fail(e, why.status, "started with other processes, but %.300s; --comm none trains in each by itself", why.text) :
	                fail(e, why.status, "%s", why.text);
}

int comm_sum(struct comm *c, void *x, size_t n, enum comm_type type, struct error *e)
{
	return c->backend ? c->backend->sum(c, x, n, type, e) : 0;
}

int comm_broadcast(struct comm *c, void *x, size_t bytes, struct error *e)
{
	return c->backend ? c->backend->broadcast(c, x, bytes, e) : 0;
}

void comm_abort(struct comm *c, int status)
{
	if (c->backend)
		c->backend->abort(c, status);
}

void comm_close(struct comm *c)
{
	if (c->backend)
		c->backend->close(c);
	*c = (struct comm){.size = 1, .local_size = 1, .sharing = 1};
}
