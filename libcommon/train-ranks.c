/* train-ranks.c - one training by several ranks (comm.h).  The batches that --accumulate sums into an update are shared out:
 * rank r computes those with number p where p % size = r.  All ranks walk the same data in the same order, sum gradients and
 * metrics, and make the same update; rank 0 alone writes.  Whatever a rank could decide by itself (a stop that was asked
 * for, a failure) is decided together in ranks_agree. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "hash.h"
#include "train-run.h"

enum { GRADIENTS = 1 << 22 }; /* summed at once at most, but for a larger tensor */

/* ---- begin and end ---- */

/* Every rank reads the data for itself, and stdin belongs to one. */
static int refuse_pipe(const char *file, struct error *e)
{
	struct stat st;
	bool given = file && strcmp(file, "-") != 0;
	if (given && (stat(file, &st) || S_ISREG(st.st_mode)))
		return 0; /* what is missing is told by who opens it */
	return fail(e, STATUS_USAGE, "%s: is a pipe or a device, expected a file: each rank reads it", given ? file : "stdin");
}

static int check_use(const struct ranks *k, const struct train_options *o, char *const *files, int n, struct error *e)
{
	if (k->c.size > o->accumulate)
		return fail(e, STATUS_USAGE, "--accumulate %lld is less than the %d ranks, which share out an update's batches: give %d "
		            "or more", (long long)o->accumulate, k->c.size, k->c.size);
	if (n == 0 && !o->dry_run && refuse_pipe(NULL, e))
		return -1;
	for (int i = 0; i < n; i++)
		if (refuse_pipe(files[i], e))
			return -1;
	return (o->eval && refuse_pipe(o->eval, e)) || (o->init && refuse_pipe(o->init, e)) ? -1 : 0;
}

int ranks_need_file(const struct ranks *k, const char *file, struct error *e)
{
	return k->c.size > 1 ? refuse_pipe(file, e) : 0;
}

/* Launchers may bind ranks to fewer processors than their share: Open MPI binds one or two to a core each.  Where the ranks of
 * a machine share their processors they are not bound apart. */
static void tell_binding(const struct comm *c)
{
	cpu_set_t set;
	int64_t online = sysconf(_SC_NPROCESSORS_ONLN);
	if ((c->local_size > 1 && c->sharing == c->local_size) || sched_getaffinity(0, sizeof set, &set))
		return;
	int count = CPU_COUNT(&set);
	if ((int64_t)count * c->local_size < online * c->sharing)
		note(0, "rank %d may run on %d of this machine's %lld processors, with %d of its %d rank%s: mpirun --bind-to none lets them"
		     " divide all", c->rank, count, (long long)online, c->sharing, c->local_size, plural((uint64_t)c->local_size));
}

/* Unless it was said how many: the ranks of a machine take no more threads together than one process would. */
static void share_machine(const struct ranks *k, struct run_options *run)
{
	int threads = cpu_usable_threads() / k->c.sharing;
	run->gpu = k->c.local_rank;
	if (run->threads || getenv("OMP_NUM_THREADS"))
		return;
	if (k->c.sharing > 1)
		run->threads = threads > 0 ? threads : 1;
	tell_binding(&k->c);
}

int ranks_open(struct ranks *k, struct train_options *o, struct run_options *run, char *const *files, int n, struct error *e)
{
	*k = (struct ranks){0};
	o->ranks = k;
	if (comm_open(&k->c, (enum comm_choice)o->comm, e))
		return -1;
	if (k->c.size == 1)
		return 0;
	if (k->c.rank)
		verbosity = -1;
	share_machine(k, run);
	return check_use(k, o, files, n, e);
}

static void prefix_rank(const struct ranks *k, struct error *e)
{
	struct error own = *e;
	snprintf(e->text, sizeof e->text, "rank %d: %.450s", k->c.rank, own.text);
}

int ranks_close(struct ranks *k, int status, struct error *e)
{
	k->ends = !k->met;
	if (k->ends) /* before train_run, where the others may wait */
		ranks_agree(k, e->status ? -1 : 0, NULL, e);
	if (e->text[0] && !k->told && k->c.rank)
		prefix_rank(k, e);
	if (e->text[0])
		report(e);
	status = e->status ? e->status : status;
	if (e->status && !k->told)
		comm_abort(&k->c, status);
	comm_close(&k->c);
	return status;
}

/* ---- agreeing ---- */

/* What each rank gives to the sum: metrics, whether it was asked to stop, whether it does not train, marks of how it failed. */
enum { STOP = METRICS_MAX, ENDS, FIRST_FAILED, FAILED /* + status */, WORDS = FAILED + STATUS_LIMIT + 1 };

/* A failure of rank 0 is told by rank 0 alone: most often all fail alike. */
static int share_failure(struct ranks *k, const double *x, struct error *e)
{
	struct error own = *e;
	k->told = true;
	*e = (struct error){.status = own.status};
	for (int s = STATUS_LIMIT; s > 0 && !e->status; s--)
		if (x[FAILED + s] > 0)
			e->status = s;
	if (k->c.rank == 0)
		*e = own.status ? own : *e;
	else if (own.status && x[FIRST_FAILED] == 0) {
		*e = own;
		prefix_rank(k, e);
	}
	return -1;
}

int ranks_agree(struct ranks *k, int result, struct metrics *m, struct error *e)
{
	double x[WORDS] = {0};
	bool failed = false;
	int status = result >= 0 ? 0 : e->status > 0 && e->status <= STATUS_LIMIT ? e->status : STATUS_FAIL;
	k->met = true;
	if (k->c.size <= 1)
		return result;
	for (int i = 0; m && i < m->n; i++)
		x[i] = m->at[i].value;
	x[STOP] = stop_requested != 0;
	x[ENDS] = k->ends;
	x[FIRST_FAILED] = result < 0 && k->c.rank == 0;
	x[FAILED + status] = 1;
	if (comm_sum(&k->c, x, WORDS, COMM_F64, e))
		return -1;
	for (int i = 0; m && i < m->n; i++)
		m->at[i].value = x[i];
	k->stop = x[STOP] > 0;
	for (int s = 1; s <= STATUS_LIMIT; s++)
		failed = failed || x[FAILED + s] > 0;
	if (failed)
		return share_failure(k, x, e);
	if (x[ENDS] > 0 && !k->ends)
		return fail(e, STATUS_USAGE, "another rank does not train, expected the same options of all ranks (--dry-run)");
	return result;
}

bool ranks_stop(const struct ranks *k)
{
	return k->c.size > 1 ? k->stop : stop_requested != 0;
}

/* ---- gradients ---- */

size_t ranks_message(const struct params *p)
{
	size_t most = p->total < GRADIENTS ? p->total : GRADIENTS;
	for (int i = 0; i < p->count; i++)
		most = p->rows[i].n > most ? p->rows[i].n : most;
	return most;
}

int ranks_prepare(struct train_run *r, struct error *e)
{
	if (r->ranks->c.size <= 1)
		return 0;
	r->host = mem_alloc(ranks_message(r->p), sizeof *r->host, e);
	return r->host ? 0 : -1;
}

/* The gradients of rows [first, last), one after the other, between the device and r->host; *n: elements. */
static int copy_gradients(struct train_run *r, int first, int last, bool get, size_t *n, struct error *e)
{
	struct params *p = r->p;
	*n = 0;
	for (int i = first; i < last; i++) {
		const struct param *row = &p->rows[i];
		float *x = r->host + *n;
		if (get ? params_get(p, row, BLOCK_G, x, e) : params_put(p, row, BLOCK_G, x, e))
			return -1;
		*n += row->n;
	}
	return 0;
}

/* Where the rows end that are summed together with row `first`. */
static int end_of_message(const struct params *p, int first)
{
	size_t n = p->rows[first].n;
	int last = first + 1;
	while (last < p->count && n + p->rows[last].n <= GRADIENTS)
		n += p->rows[last++].n;
	return last;
}

int ranks_sum_gradients(struct train_run *r, struct error *e)
{
	size_t n;
	if (r->ranks->c.size <= 1)
		return 0;
	if (r->joined) {
		r->p->ops->ranks_sum(r->p->dev, r->p->g, r->p->total);
		return 0;
	}
	for (int first = 0, last; first < r->p->count; first = last) {
		last = end_of_message(r->p, first);
		if (copy_gradients(r, first, last, true, &n, e) || comm_sum(&r->ranks->c, r->host, n, COMM_F32, e) ||
		    copy_gradients(r, first, last, false, &n, e))
			return -1;
	}
	return 0;
}

/* ---- the same weights ---- */

/* What rank 0 drew or read. */
static int broadcast_weights(struct train_run *r, struct error *e)
{
	struct params *p = r->p;
	for (int i = 0; i < p->count; i++) {
		const struct param *row = &p->rows[i];
		if (params_get(p, row, BLOCK_W, r->host, e) ||
		    comm_broadcast(&r->ranks->c, r->host, row->n * sizeof *r->host, e) || params_put(p, row, BLOCK_W, r->host, e))
			return -1;
	}
	return 0;
}

/* ---- the same command ---- */

/* What decides which calls the ranks make together, and the bits they compute: must be equal everywhere. */
static json_t *command_json(const struct train_run *r)
{
	const struct train_options *o = r->o;
	json_t *j = json_is_object(r->t->config) ? json_copy(r->t->config) : json_object();
	json_t *more = json_pack("{s:I,s:I,s:I,s:I,s:b,s:b,s:s,s:s,s:s}", "accumulate", (json_int_t)o->accumulate, "save-every",
	                         (json_int_t)o->save_every, "eval-every", (json_int_t)r->eval_every, "patience",
	                         (json_int_t)o->patience, "keep-state", o->keep_state, "preview", r->t->preview != NULL, "eval",
	                         r->eval ? loader_identity(r->eval) : "none", "device", r->p->ops->name, "precision",
	                         dtype_name(r->p->ops->type(r->p->dev)));
	if (!j || !more || json_object_update(j, r->identity) || json_object_update(j, more)) {
		json_decref(j);
		j = NULL;
	}
	json_decref(more);
	return j;
}

static int compare_command(const struct train_run *r, const char *own, const char *of_0, struct error *e)
{
	struct buf what = {0};
	if (strcmp(own, of_0) == 0)
		return 0;
	json_t *here = json_loads(own, 0, NULL), *there = json_loads(of_0, 0, NULL);
	if (here && there && train_differences(&what, r->o->table, "here", there, here, e) == 0 && what.n)
		fail(e, STATUS_FAIL, "%s: rank 0 has %s; expected the same options, data and kind of device on all ranks", r->o->output,
		     (char *)what.p);
	buf_free(&what);
	json_decref(here);
	json_decref(there);
	return fail(e, STATUS_FAIL, "%s: its run is another than that of rank 0, expected the same options", r->o->output);
}

static int same_command(struct train_run *r, struct error *e)
{
	json_t *j = command_json(r);
	char *own = j ? json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS) : NULL, *of_0 = NULL;
	uint64_t n = own ? strlen(own) + 1 : 0;
	int result = -1;
	json_decref(j);
	if (comm_broadcast(&r->ranks->c, &n, sizeof n, e) == 0 && n)
		of_0 = r->ranks->c.rank == 0 ? own : mem_alloc(n, 1, e);
	if (of_0 && comm_broadcast(&r->ranks->c, of_0, n, e) == 0 && own) /* who lacks its own still takes part */
		result = compare_command(r, own, of_0, e);
	else
		fail(e, STATUS_LIMIT, "out of memory");
	if (of_0 != own)
		free(of_0);
	free(own);
	return ranks_agree(r->ranks, result, NULL, e);
}

/* ---- the same state ---- */

static int hash_json(struct hash *h, json_t *j, struct error *e)
{
	char *text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS);
	if (!text)
		return fail(e, STATUS_LIMIT, "out of memory");
	hash_add(h, text, strlen(text) + 1);
	free(text);
	return 0;
}

static int hash_counters(struct hash *h, const struct train_run *r, struct error *e)
{
	struct loader_state at = loader_state(r->data);
	const struct train_best *b = &r->best;
	const uint64_t numbers[] = {(uint64_t)r->step, at.epoch, at.position, r->eval_due, b->known, b->known ? (uint64_t)b->step : 0,
	                            (uint64_t)b->without_gain};
	json_t *plateau = r->t->plateau.most ? train_plateau_json(r) : json_object();
	json_t *scales = r->p->scales.units ? grad_scale_json(&r->p->scales) : json_object();
	hash_add(h, numbers, sizeof numbers);
	hash_add(h, &b->loss, sizeof b->loss);
	int result = hash_json(h, plateau, e) || hash_json(h, scales, e) ? -1 : 0;
	json_decref(plateau);
	json_decref(scales);
	return result;
}

static int hash_blocks(struct hash *h, struct train_run *r, struct error *e)
{
	const enum params_block blocks[] = {BLOCK_W, BLOCK_M, BLOCK_V, BLOCK_AVG};
	struct params *p = r->p;
	for (size_t k = 0; k < ARRAY_LEN(blocks) - !train_averages(r->t); k++)
		for (int i = 0; i < p->count; i++) {
			if (params_get(p, &p->rows[i], blocks[k], r->host, e))
				return -1;
			hash_add(h, r->host, p->rows[i].n * sizeof *r->host);
		}
	return 0;
}

/* 0 when this rank's state has the same bits as rank 0's, 1 when not, -1. */
static int compare_state(struct train_run *r, struct error *e)
{
	char own[ID_LENGTH + 1] = "", of_0[ID_LENGTH + 1];
	struct hash *h = hash_new(e);
	int result = h && hash_counters(h, r, e) == 0 && hash_blocks(h, r, e) == 0 ? 0 : -1;
	if (h)
		hash_finish(h, own);
	memcpy(of_0, own, sizeof own);
	if (comm_broadcast(&r->ranks->c, of_0, sizeof of_0, e) || result)
		return -1;
	return memcmp(own, of_0, sizeof own) != 0;
}

int ranks_same(struct train_run *r, struct error *e)
{
	if (r->ranks->c.size <= 1)
		return 0;
	int result = compare_state(r, e);
	if (result == 1)
		result = fail(e, STATUS_FAIL, "%s: step %lld: weights or state have other bits than those of rank 0, expected all ranks"
		              " to compute alike (the same programs, processors, devices)", r->o->output, (long long)r->step);
	return ranks_agree(r->ranks, result, NULL, e);
}

/* ---- the devices' own sums ---- */

/* How many ranks say yes; -1. */
static int count_ranks(struct ranks *k, bool yes, int *count, struct error *e)
{
	double n = yes;
	int result = comm_sum(&k->c, &n, 1, COMM_F64, e);
	*count = (int)n;
	return result;
}

/* Why sums go through the hosts whatever the devices can do, or NULL. */
static const char *needs_hosts(const struct train_run *r)
{
	return r->o->powersgd.rank ? "PowerSGD runs there" : r->p->storage.t_gradients ? "gradients are in 16 bits" : NULL;
}

static void tell_way(const struct train_run *r, bool others, const char *why)
{
	if (r->joined)
		note(1, "gradients are summed from GPU to GPU");
	else if (r->p->ops != cpu_ops())
		note(0, "gradients are summed through the hosts' memory: %s", others ? "another rank cannot join" : why);
}

/* The devices' own way to each other, where all ranks have one.  Without it sums go through the hosts. */
static int join_devices(struct train_run *r, struct error *e)
{
	struct comm *c = &r->ranks->c;
	const struct ops *ops = r->p->ops;
	char id[RANKS_ID] = "", why[300] = "";
	int able, have;
	const char *hosts = needs_hosts(r);
	if (hosts) {
		tell_way(r, false, hosts);
		return 0;
	}
	bool own = ops->ranks_id(c->rank == 0 ? id : NULL, why, sizeof why) == 0;
	if (count_ranks(r->ranks, own, &able, e) || comm_broadcast(c, id, sizeof id, e))
		return -1;
	bool in = able == c->size && ops->ranks_join(r->p->dev, id, c->rank, c->size, why, sizeof why) == 0;
	if (count_ranks(r->ranks, in, &have, e))
		return -1;
	r->joined = have == c->size;
	tell_way(r, own && (in || able < c->size), why);
	return 0;
}

int ranks_begin(struct train_run *r, int found, struct error *e)
{
	int of_0 = found;
	found = ranks_agree(r->ranks, found, NULL, e);
	if (found < 0 || r->ranks->c.size <= 1)
		return found;
	if (same_command(r, e) || comm_broadcast(&r->ranks->c, &of_0, sizeof of_0, e))
		return -1;
	int result = of_0 == found ? 0 : fail(e, STATUS_FAIL, "%s: is not the file that rank 0 finds there, expected a shared one",
	                                      r->o->output);
	if (ranks_agree(r->ranks, result, NULL, e) || join_devices(r, e) || (found == 0 && broadcast_weights(r, e)))
		return -1;
	result = found == 2 ? 0 : compare_state(r, e);
	if (result == 1)
		result = fail(e, STATUS_FAIL, "%s: step %lld: would go on from another state than rank 0, expected that all ranks"
		              " find the same file here", r->o->output, (long long)r->step);
	return ranks_agree(r->ranks, result, NULL, e) ? -1 : found;
}
