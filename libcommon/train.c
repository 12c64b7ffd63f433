/* train.c - the loop: see train.h.  Each turn finishes what is due at the step reached (evaluation, checkpoint, stop),
 * then makes one update, so that a resumed run takes up exactly where the file was written. */
#include "train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "train-run.h"

/* ---- one update ---- */

static int not_finite(struct train_run *r, const char *what, double value, struct error *e)
{
	char kept[64] = "no checkpoint was saved yet";
	const char *name = params_find_nonfinite(r->p, false), *block = "weights";
	if (!name) {
		name = params_find_nonfinite(r->p, true);
		block = "gradient";
	}
	if (r->saved_step >= 0)
		snprintf(kept, sizeof kept, "the file holds step %lld", (long long)r->saved_step);
	return fail(e, STATUS_FAIL, "%s: step %lld: the %s is %g (not finite: %s%s%s); %s", r->o->output,
	            (long long)r->step, what, value, name ? block : "the loss alone", name ? " of " : "", name ? name : "",
	            kept);
}

/* Gradients of this rank's parts of one update; *m gets its share of the means.  The records of other parts are only
 * passed over. */
static int accumulate(struct train_run *r, struct train_step *s, struct metrics *m, struct error *e)
{
	struct trainee *t = r->t;
	params_zero_grad(r->p);
	for (s->part = 0; s->part < s->parts; s->part++) {
		struct metrics part = {0};
		bool ours = s->part % ranks_size(r) == r->ranks->c.rank;
		int n = loader_next(r->data, r->batch, t->batch, e);
		if (n < 0)
			return -1;
		if (n < t->batch)
			return fail(e, STATUS_FAIL, "%s: the pipe ended at step %lld of %lld, after %llu record%s; lower --steps",
			            loader_name(r->data), (long long)r->step, (long long)r->steps,
			            (unsigned long long)loader_state(r->data).position, plural(loader_state(r->data).position));
		if (ours && t->step(t->model, s, r->batch, n, &part, e))
			return -1;
		metrics_add(m, &part, 1.0 / s->parts);
	}
	return 0;
}

static int sum_gradients(struct train_run *r, struct metrics *m, struct error *e)
{
	return r->o->powersgd.rank ? train_powersgd_sum(r, m, e) : ranks_sum_gradients(r, e);
}

/* Gradients, metrics and the gradient's norm of the whole update, on all ranks the same. */
static int compute(struct train_run *r, struct train_step *s, struct metrics *m, double *norm, struct error *e)
{
	struct comm *c = &r->ranks->c;
	if (ranks_agree(r->ranks, accumulate(r, s, m, e), m, e) || sum_gradients(r, m, e) || params_grad_norm(r->p, norm, e))
		return -1;
	return comm_broadcast(c, norm, sizeof *norm, e); /* no news on like devices; on others ranks still clip alike */
}

static void average(struct train_run *r)
{
	int64_t every = r->t->average_every, done = r->step + 1;
	if (!train_averages(r->t) || (done > every && done % every && done != r->steps))
		return;
	double k = (double)((done - 1) / every); /* 0 through the first averaging: the average is the weights */
	params_average(r->p, (float)fmin(r->t->average_decay, k / (9 + k)));
}

/* The scales go on.  Without them, or when they cannot help, the run ends. */
static int leave_out(struct train_run *r, double loss, double norm, struct error *e)
{
	struct grad_scale *g = &r->p->scales;
	g->outside = g->outside || !isfinite(loss);
	if (g->units)
		grad_scale_step(g, true);
	if (g->units && !grad_scale_stuck(g))
		return 0;
	return isfinite(loss) ? not_finite(r, "gradient's norm", norm, e) : not_finite(r, "loss", loss, e);
}

static void apply(struct train_run *r, double lr, double norm)
{
	const struct trainee *t = r->t;
	struct adamw a = {
		.lr = (float)lr, .beta1 = t->beta1, .beta2 = t->beta2, .eps = t->eps, .decay = t->decay,
		.v_max = t->v_max, .g_scale = t->clip > 0 && norm > t->clip ? (float)(t->clip / norm) : 1,
		.step = r->step + 1 - r->p->scales.skipped, .seed = (uint64_t)r->o->seed,
	};
	params_update(r->p, &a);
	grad_scale_step(&r->p->scales, false);
}

static int update(struct train_run *r, struct error *e)
{
	struct trainee *t = r->t;
	struct train_step s = {r->step, r->steps, (uint64_t)r->o->seed, 0, (int)r->o->accumulate};
	struct metrics m = {0};
	double norm;
	if (compute(r, &s, &m, &norm, e))
		return -1;
	double loss = metrics_get(&m, "loss"), lr = t->lr(t->model, &s) * train_plateau_factor(r);
	bool applied = isfinite(loss) && isfinite(norm);
	if (applied)
		apply(r, lr, norm);
	else if (leave_out(r, loss, norm, e))
		return ranks_agree(r->ranks, -1, NULL, e); /* as on all ranks */
	train_powersgd_settle(r, !applied);
	average(r);
	r->step++;
	r->eval_due = r->evaluates && (r->step == r->steps || (r->eval_every && r->step % r->eval_every == 0));
	train_log_update(r, &m, lr, norm);
	train_plateau_update(r, loss, lr);
	return 0;
}

/* ---- evaluation ---- */

/* A held-out batch for each rank, its measures added to sums.  Returns the last one's records, 0 at the end; -1. */
static int evaluate_round(struct train_run *r, struct train_step *s, struct metrics *sums, uint64_t *records, struct error *e)
{
	int n = 1;
	for (int i = 0; i < ranks_size(r) && n > 0; i++, s->part++) {
		struct metrics part = {0};
		n = loader_next_in_order(r->eval, r->batch, r->t->batch, e);
		if (n > 0 && i == r->ranks->c.rank && r->t->evaluate(r->t->model, s, r->batch, n, &part, e))
			return -1;
		metrics_add(sums, &part, 1);
		*records += n > 0 ? (uint64_t)n : 0;
	}
	return n;
}

/* 0 done, 1 a stop was asked for meanwhile, -1.  A rank that had no batch knows the loss alone of the means. */
static int sum_over_eval(struct train_run *r, struct metrics *mean, struct error *e)
{
	struct train_step s = {r->step, r->steps, (uint64_t)r->o->seed, 0, 1};
	struct comm *c = &r->ranks->c;
	struct metrics sums = {0};
	uint64_t records = 0;
	int n = loader_rewind(r->eval, e) ? -1 : 1;
	while (n > 0) {
		n = ranks_agree(r->ranks, evaluate_round(r, &s, &sums, &records, e), NULL, e);
		if (n > 0 && ranks_stop(r->ranks))
			return 1;
	}
	if (n < 0 || ranks_agree(r->ranks, 0, &sums, e))
		return -1;
	metrics_add(mean, &sums, 1.0 / (double)records);
	double loss = metrics_get(mean, "loss"); /* of rank 0, which had the first batch */
	if (comm_broadcast(c, &loss, sizeof loss, e) || (r->t->evaluated && r->t->evaluated(r->t->model, c, mean, e)))
		return -1;
	metrics_set(mean, "loss", loss);
	return 0;
}

static int keep_best(struct train_run *r, double loss, struct error *e)
{
	struct train_best *b = &r->best;
	if (!b->host)
		return 0;
	if (b->known && !(loss < b->loss)) {
		b->without_gain++;
		return 0;
	}
	*b = (struct train_best){true, loss, r->step, 0, b->host};
	return params_to_host(b->host, r->p, train_averages(r->t) ? BLOCK_AVG : BLOCK_W, e);
}

static int preview(struct train_run *r, struct error *e)
{
	struct train_step s = {r->step, r->steps, (uint64_t)r->o->seed, 0, 1};
	return r->t->preview && ranks_first(r) ? r->t->preview(r->t->model, &s, e) : 0;
}

/* Evaluate and preview with the averaged weights: 0, 1 when interrupted, -1. */
static int evaluate(struct train_run *r, struct error *e)
{
	struct metrics m = {0};
	double began = seconds_now();
	bool swap = train_averages(r->t);
	if (swap)
		params_swap_average(r->p);
	int result = r->eval ? sum_over_eval(r, &m, e) : 0;
	if (result == 0)
		result = ranks_agree(r->ranks, preview(r, e), NULL, e);
	if (swap)
		params_swap_average(r->p);
	r->log.aside += seconds_now() - began;
	if (result)
		return result;
	r->eval_due = false;
	if (!r->eval)
		return 0;
	train_log_evaluation(r, &m);
	return keep_best(r, metrics_get(&m, "loss"), e);
}

/* ---- the whole run ---- */

static bool complete(const struct train_run *r)
{
	bool early = r->o->patience && r->best.known && r->best.without_gain >= r->o->patience;
	return !r->eval_due && (r->step == r->steps || early);
}

/* STATUS_OK when all updates are done, STATUS_AGAIN after a stop was saved, -1. */
static int loop(struct train_run *r, struct error *e)
{
	while (!complete(r)) {
		int interrupted = r->eval_due && !ranks_stop(r->ranks) ? evaluate(r, e) : 0;
		if (interrupted < 0)
			return -1;
		if (complete(r))
			break;
		bool stop = ranks_stop(r->ranks);
		bool save = stop || (r->o->save_every && r->step % r->o->save_every == 0 && r->step > r->first_step);
		if (save && (stop || r->step != r->saved_step) && train_checkpoint(r, e))
			return -1;
		if (stop)
			return STATUS_AGAIN;
		if (update(r, e))
			return -1;
	}
	return STATUS_OK;
}

/* The best weights, when kept, become the averaged ones; a last preview shows what is written. */
static int finish_run(struct train_run *r, struct error *e)
{
	struct params *p = r->p;
	int64_t step = r->step;
	bool averages = train_averages(r->t);
	if (r->best.known && r->best.step != r->step) {
		for (int i = 0; i < p->count; i++)
			if (params_put(p, &p->rows[i], averages ? BLOCK_AVG : BLOCK_W, r->best.host + p->rows[i].at, e))
				return -1;
		params_refresh(p);
		step = r->best.step;
		if (averages)
			params_swap_average(p);
		int shown = preview(r, e);
		if (averages)
			params_swap_average(p);
		if (shown || device_check(p->ops, p->dev, e))
			return -1;
	}
	if (ranks_same(r, e) || train_powersgd_sum_errors(r, e) ||
	    ranks_agree(r->ranks, ranks_first(r) ? train_finish(r, step, e) : 0, NULL, e))
		return -1;
	if (r->best.known && r->step < r->steps)
		note(0, "%s: stopped early at step %lld of %lld: held-out loss is best at step %lld (%.6g)", r->o->output,
		     (long long)r->step, (long long)r->steps, (long long)r->best.step, r->best.loss);
	return 0;
}

/* Number of updates, from --epochs when --steps is 0, and how often to evaluate. */
static int set_steps(struct train_run *r, struct error *e)
{
	uint64_t records = loader_records(r->data), each = (uint64_t)r->t->batch * (uint64_t)r->o->accumulate;
	r->steps = r->o->steps;
	if (!r->steps && !records)
		return fail(e, STATUS_USAGE, "%s: is a pipe larger than memory, of unknown length: give --steps",
		            loader_name(r->data));
	if (!r->steps)
		r->steps = (int64_t)fmin(1e15, fmax(1, ceil(r->o->epochs * (double)records / (double)each)));
	r->eval_every = r->o->eval_every;
	if (!r->eval_every && records)
		r->eval_every = (int64_t)(records / each ? records / each : 1);
	r->evaluates = r->eval || r->t->preview;
	return 0;
}

static int check_eval(const struct train_run *r, struct error *e)
{
	const struct header *a = loader_header(r->data), *b = loader_header(r->eval);
	const char *what = strcmp(a->text.id, b->text.id) ? "text vocabulary" : strcmp(a->image.id, b->image.id) ? "dVAE" :
	                   a->width != b->width || a->height != b->height ? "picture size" : NULL;
	if (what)
		return fail(e, STATUS_BAD, "%s: is of another %s than %s", loader_name(r->eval), what, loader_name(r->data));
	return 0;
}

static int open_eval(struct train_run *r, struct error *e)
{
	char *files[] = {(char *)(uintptr_t)r->o->eval};
	const uint64_t limit = (uint64_t)1 << 30;
	if (!r->o->eval)
		return 0;
	r->eval = loader_open(files, 1, 0, limit, e);
	return r->eval ? check_eval(r, e) : -1;
}

static int draw_weights(struct train_run *r, struct error *e)
{
	struct params *p = r->p;
	uint64_t seed = (uint64_t)r->o->seed;
	int result = r->t->init && !r->o->init ? r->t->init(r->t->model, seed, e) : params_init(p, seed, e);
	if (result || (r->o->init && train_init_load(r, e)))
		return -1;
	return device_check(p->ops, p->dev, e);
}

static int start_scales(struct train_run *r, struct error *e)
{
	struct params *p = r->p;
	enum grad_scale_kind kind = p->ops->type(p->dev) == DT_F16 ? r->t->grad_scale : GRAD_SCALE_NONE;
	int units = 0;
	for (int i = 0; i < p->count; i++)
		units = p->rows[i].unit >= units ? p->rows[i].unit + 1 : units;
	return grad_scale_start(&p->scales, kind, units, (int)r->o->accumulate, e);
}

/* What train_resume says; a new run has its weights. */
static int look(struct train_run *r, int argc, char **argv, struct error *e)
{
	if (!r->o->output)
		return fail(e, STATUS_USAGE, "no model file to write: give -o FILE");
	r->batch = mem_alloc((size_t)r->t->batch, sizeof *r->batch, e);
	if (!r->batch || (ranks_first(r) && train_lock(r, e)) || loader_load(r->data, e) || open_eval(r, e) ||
	    set_steps(r, e) || train_init_open(r, e) || train_describe(r, argc, argv, e))
		return -1;
	if (r->o->patience && !(r->best.host = mem_zero(r->p->total, sizeof *r->best.host, e)))
		return -1;
	int found = start_scales(r, e) || ranks_prepare(r, e) || train_powersgd_start(r, e) ? -1 : train_resume(r, e);
	if (found == 0 && ranks_first(r) && draw_weights(r, e))
		return -1;
	return found;
}

static int prepare(struct train_run *r, int argc, char **argv, struct error *e)
{
	int found = ranks_begin(r, look(r, argc, argv, e), e);
	if (found == 0)
		params_start(r->p);
	if (found < 0 || device_check(r->p->ops, r->p->dev, e))
		return -1;
	r->first_step = r->step;
	if (found == 1)
		note(0, "%s: continues at step %lld of %lld", r->o->output, (long long)r->step, (long long)r->steps);
	if (found == 2)
		note(0, "%s: already complete", r->o->output);
	return found;
}

static int run(struct train_run *r, struct error *e)
{
	if (ranks_agree(r->ranks, ranks_first(r) ? train_log_open(r, e) : 0, NULL, e))
		return -1;
	r->began = seconds_now();
	train_log_start(r);
	int status = loop(r, e);
	if (status == STATUS_OK && finish_run(r, e))
		status = -1;
	train_log_end(r, status == STATUS_OK ? "complete" : status == STATUS_AGAIN ? "stopped" : "failed");
	return status >= 0 && train_log_captions(r, e) ? -1 : status;
}

static void release(struct train_run *r)
{
	train_log_close(r);
	train_unlock(r);
	train_init_close(r);
	loader_close(r->eval);
	json_decref(r->identity);
	json_decref(r->commands);
	json_decref(r->lineage);
	free(r->batch);
	free(r->best.host);
	free(r->host);
	powersgd_free(&r->powersgd);
}

int train_run(struct trainee *t, const struct train_options *o, struct loader *data, int argc, char **argv, struct error *e)
{
	struct ranks alone = {.c = {.size = 1}};
	struct train_run r = {.t = t, .o = o, .p = t->params, .data = data, .lock = -1, .saved_step = -1,
	                      .ranks = o->ranks ? o->ranks : &alone};
	if (o->dry_run) /* a trainer that did not plan before */
		return train_plan(t, o, t->params->ops, t->params->dev, e) < 0 ? e->status : STATUS_OK;
	if (t->captions)
		t->captions->file = loader_name(data);
	signals_defer();
	int found = prepare(&r, argc, argv, e);
	int status = found < 0 ? -1 : found == 2 ? STATUS_OK : run(&r, e);
	release(&r);
	return status < 0 ? e->status : status;
}
