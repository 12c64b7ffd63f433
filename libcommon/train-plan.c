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

struct plan {
	uint64_t weights, copies, gradients, moments, averages, activations, total, host;
};

static void make_plan(struct plan *m, const struct trainee *t, enum dtype type, bool keeps_best)
{
	uint64_t block = (uint64_t)t->params->total * sizeof(float);
	*m = (struct plan){.weights = block, .gradients = block, .moments = 2 * block, .averages = block};
	m->copies = params_bytes(t->params, type, true) - 5 * block - sizeof(double);
	m->activations = t->activation_bytes;
	m->total = m->weights + m->copies + m->gradients + m->moments + m->averages + m->activations;
	m->host = keeps_best ? block : 0;
}

static void plan_line(const char *what, uint64_t bytes, const char *about)
{
	char text[24];
	format_bytes(text, sizeof text, bytes);
	printf("%-22s %12s%s%s\n", what, text, *about ? "  " : "", about);
}

static void print_plan(const struct plan *m, const struct trainee *t, const struct ops *ops, struct dev *dev)
{
	char about[200];
	printf("%-22s %12llu\n", "parameters", (unsigned long long)params_count(t->params));
	plan_line("weights", m->weights, "f32");
	snprintf(about, sizeof about, "matrices in %s for products", dtype_name(ops->type(dev)));
	plan_line("weight copies", m->copies, ops->type(dev) == DT_F32 ? "" : about);
	plan_line("gradients", m->gradients, "f32");
	plan_line("moments", m->moments, "f32, two");
	plan_line("averaged weights", m->averages, "f32");
	snprintf(about, sizeof about, "%d records at once", t->batch);
	plan_line("activations", m->activations, about);
	plan_line("total on device", m->total, "");
	ops->describe(dev, about, sizeof about);
	plan_line("free on device", ops->memory(dev), about);
	if (m->host)
		plan_line("best weights on host", m->host, "for --patience");
}

static int check_options(const struct trainee *t, const struct train_options *o, struct error *e)
{
	if (!o->output && !o->dry_run)
		return fail(e, STATUS_USAGE, "no model file to write: give -o FILE");
	if (o->steps == 0 && o->epochs <= 0)
		return fail(e, STATUS_USAGE, "nothing to do: give --steps or --epochs");
	if (o->patience && !o->eval)
		return fail(e, STATUS_USAGE, "--patience needs --eval");
	if (o->patience && o->keep_state)
		return fail(e, STATUS_USAGE, "--patience writes the best weights, --keep-state the state of the last update: give one of them");
	if (o->new_vocabulary && !o->init)
		return fail(e, STATUS_USAGE, "--new-vocabulary needs --init");
	if (o->eval && !t->evaluate)
		return fail(e, STATUS_USAGE, "--eval: this model has no evaluation");
	return 0;
}

int train_plan(const struct trainee *t, const struct train_options *o, const struct ops *ops, struct dev *dev,
               struct error *e)
{
	struct plan m;
	if (check_options(t, o, e))
		return -1;
	make_plan(&m, t, ops->type(dev), o->patience > 0);
	if (o->dry_run)
		print_plan(&m, t, ops, dev);
	uint64_t room = ops->memory(dev);
	if (m.total <= room)
		return o->dry_run;
	char need[24], have[24];
	format_bytes(need, sizeof need, m.total);
	format_bytes(have, sizeof have, room);
	return fail(e, STATUS_LIMIT, "training needs %s of memory, %s has %s free: lower --batch or take a smaller model",
	            need, ops->name, have);
}
