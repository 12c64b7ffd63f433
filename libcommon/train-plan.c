/* train-plan.c - before and beside the loop: the memory plan, schedules of step sizes, metrics by name. */
#include <math.h>
#include <string.h>

#include "device.h"
#include "train-run.h"

/* ---- schedules ---- */

double schedule_cosine(double v0, double v1, double t, double T)
{
	if (t >= T)
		return v1;
	if (t <= 0)
		return v0;
	return v1 + (v0 - v1) * 0.5 * (1 + cos(M_PI * t / T));
}

double schedule_warmup_cosine(int64_t step, int64_t warmup, int64_t steps, double end)
{
	if (step < warmup)
		return (double)(step + 1) / (double)warmup;
	return schedule_cosine(1, end, (double)(step - warmup), (double)(steps - warmup));
}

/* ---- metrics ---- */

static double *metric_slot(struct metrics *m, const char *name)
{
	for (int i = 0; i < m->n; i++)
		if (strcmp(m->at[i].name, name) == 0)
			return &m->at[i].value;
	if (m->n == METRICS_MAX)
		return NULL;
	m->at[m->n].name = name;
	m->at[m->n].value = 0;
	return &m->at[m->n++].value;
}

void metrics_set(struct metrics *m, const char *name, double value)
{
	double *slot = metric_slot(m, name);
	if (slot)
		*slot = value;
}

double metrics_get(const struct metrics *m, const char *name)
{
	for (int i = 0; i < m->n; i++)
		if (strcmp(m->at[i].name, name) == 0)
			return m->at[i].value;
	return NAN;
}

void metrics_add(struct metrics *sum, const struct metrics *m, double weight)
{
	for (int i = 0; i < m->n; i++) {
		double *slot = metric_slot(sum, m->at[i].name);
		if (slot)
			*slot += weight * m->at[i].value;
	}
}

/* ---- memory plan ---- */

struct memory_plan {
	struct block_use use[BLOCKS];
	uint64_t activations, total, best, powersgd; /* the last two on the host */
};

static void choose_storage(const struct trainee *t, const struct train_options *o)
{
	t->params->storage = (struct storage){
		.no_master = o->no_master,
		.t_gradients = o->no_master && t->t_gradients,
		.moments_16 = o->moments == 1,
		.no_averages = t->average_every <= 0 || t->average_decay <= 0,
	};
}

static void make_plan(struct memory_plan *m, const struct trainee *t, const struct train_options *o, enum dtype type)
{
	*m = (struct memory_plan){.activations = t->activation_bytes, .total = t->activation_bytes};
	for (enum params_block b = 0; b < BLOCKS; b++) {
		m->use[b] = params_block_use(t->params, b, type, true);
		m->total += m->use[b].matrices + m->use[b].others;
	}
	m->best = o->patience > 0 ? (uint64_t)t->params->total * sizeof(float) : 0;
	m->powersgd = o->powersgd.rank ? powersgd_bytes(t->params, &o->powersgd) : 0;
}

static void plan_line(const char *what, uint64_t bytes, const char *about)
{
	char text[24];
	format_bytes(text, sizeof text, bytes);
	printf("%-22s %12s%s%s\n", what, text, *about ? "  " : "", about);
}

/* A block with the types in it: "matrices f16, others f32". */
static void plan_block(const char *what, const struct block_use *u)
{
	char about[60];
	bool same = u->matrices && u->others && u->type == DT_F32;
	snprintf(about, sizeof about, "%s%s%s%s", u->matrices && !same ? "matrices " : "", u->matrices ? dtype_name(u->type) : "",
	         u->matrices && u->others && !same ? ", " : "", u->others && !same ? "others f32" : "");
	if (u->matrices || u->others)
		plan_line(what, u->matrices + u->others, about);
}

/* What one parameter takes, with averages counted apart. */
static void plan_each(const struct memory_plan *m)
{
	size_t bytes[2][2] = {{0}}; /* all else and averages; matrices and others */
	for (enum params_block b = 0; b < BLOCKS; b++) {
		bool average = b == BLOCK_AVG || b == BLOCK_AVG_T;
		bytes[average][0] += m->use[b].matrices ? dtype_bytes(m->use[b].type) : 0;
		bytes[average][1] += m->use[b].others ? sizeof(float) : 0;
	}
	printf("%-22s %12zu  of matrices, %zu of others; for averages %zu and %zu more\n", "bytes per parameter", bytes[0][0],
	       bytes[0][1], bytes[1][0], bytes[1][1]);
}

/* What gradients on their way to other ranks take. */
static uint64_t message_bytes(const struct trainee *t, const struct train_options *o)
{
	return o->ranks && o->ranks->c.size > 1 ? ranks_message(t->params) * sizeof(float) : 0;
}

/* On the device; a CPU's memory is the host's, too. */
static uint64_t needed(const struct memory_plan *m, const struct trainee *t, const struct train_options *o, const struct ops *ops)
{
	return m->total + (ops == cpu_ops() ? m->best + m->powersgd + message_bytes(t, o) : 0);
}

static void print_plan(const struct memory_plan *m, const struct trainee *t, const struct train_options *o,
                       uint64_t room, const struct ops *ops, struct dev *dev)
{
	static const char *const names[BLOCKS] = {"weights", "weights for products", "gradients", "first moments", "second moments",
	                                          "averaged weights", "averages for products"};
	char about[200];
	printf("%-22s %12llu\n", "parameters", (unsigned long long)params_count(t->params));
	for (enum params_block b = 0; b < BLOCKS; b++)
		plan_block(names[b], &m->use[b]);
	plan_each(m);
	snprintf(about, sizeof about, "%d record%s at once", t->batch, plural((uint64_t)t->batch));
	plan_line("activations", m->activations, about);
	if (t->init_bytes)
		plan_line("start on host", t->init_bytes, "for a time, at most");
	if (m->best)
		plan_line("best weights on host", m->best, "for --patience");
	if (m->powersgd)
		plan_line("PowerSGD on host", m->powersgd, "error buffers and factors");
	if (message_bytes(t, o))
		plan_line("messages on host", message_bytes(t, o), "of each rank");
	plan_line("total on device", needed(m, t, o, ops), "");
	ops->describe(dev, about, sizeof about);
	plan_line("free on device", room, about);
}

static int check_options(const struct trainee *t, const struct train_options *o, enum dtype type, struct error *e)
{
	if (!o->output && !o->dry_run)
		return fail(e, STATUS_USAGE, "no model file to write: give -o FILE");
	if (o->steps == 0 && o->epochs <= 0)
		return fail(e, STATUS_USAGE, "nothing to do: give --steps or --epochs");
	if (o->patience && !o->eval)
		return fail(e, STATUS_USAGE, "--patience needs --eval");
	if (o->patience && o->keep_state)
		return fail(e, STATUS_USAGE,
		            "--patience writes the best weights, --keep-state the state of the last update: give one of them");
	if (o->new_vocabulary && !o->init)
		return fail(e, STATUS_USAGE, "--new-vocabulary needs --init");
	if (o->no_master && type == DT_F32)
		return fail(e, STATUS_USAGE, "--no-master needs -p bf16 or -p f16, not f32");
	if (o->eval && !t->evaluate)
		return fail(e, STATUS_USAGE, "--eval: this model has no evaluation");
	return 0;
}

/* Ranks of one machine that compute on its processors divide its memory. */
static uint64_t memory_of_rank(const struct train_options *o, const struct ops *ops, struct dev *dev)
{
	int sharing = o->ranks && ops == cpu_ops() && o->ranks->c.local_size > 1 ? o->ranks->c.local_size : 1;
	return ops->memory(dev) / (uint64_t)sharing;
}

static int refuse_memory(const struct trainee *t, const struct train_options *o, const struct ops *ops, enum dtype type,
                         uint64_t bytes, uint64_t room, struct error *e)
{
	char need[24], have[24];
	format_bytes(need, sizeof need, bytes);
	format_bytes(have, sizeof have, room);
	return fail(e, STATUS_LIMIT, "training needs %s of memory, %s has %s free; it needs less with %s%s%s%sa smaller model",
	            need, ops->name, have, t->batch > 1 ? "a smaller --batch or " : "", t->can_recompute ? "--recompute or " : "",
	            o->moments == 0 ? "--moments 16 or " : "", !o->no_master && type != DT_F32 ? "--no-master or " : "");
}

int train_plan(const struct trainee *t, const struct train_options *o, const struct ops *ops, struct dev *dev,
               struct error *e)
{
	struct memory_plan m;
	if (check_options(t, o, ops->type(dev), e) || (!o->dry_run && train_init_check(t, o, e)))
		return -1;
	choose_storage(t, o);
	make_plan(&m, t, o, ops->type(dev));
	uint64_t room = memory_of_rank(o, ops, dev);
	if (o->dry_run && !(o->ranks && o->ranks->c.rank))
		print_plan(&m, t, o, room, ops, dev);
	uint64_t bytes = needed(&m, t, o, ops);
	if (bytes <= room)
		return o->dry_run;
	return refuse_memory(t, o, ops, ops->type(dev), bytes, room, e);
}
