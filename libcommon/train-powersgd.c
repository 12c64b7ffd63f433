/* train-powersgd.c - --powersgd in the loop: gradients of ranks are summed by products of thin matrices (powersgd.h), and
 * checkpoints hold the sum of the error buffers as "train.e.".  Without the option these do nothing. */
#include "train-run.h"

static bool used(const struct train_run *r)
{
	return r->o->powersgd.rank > 0;
}

int train_powersgd_start(struct train_run *r, struct error *e)
{
	return used(r) ? powersgd_start(&r->powersgd, r->p, &r->o->powersgd, e) : 0;
}

bool train_powersgd_describe(struct train_run *r)
{
	const struct powersgd_options *how = &r->o->powersgd;
	return used(r) && (json_object_set_new(r->identity, "powersgd", json_integer(how->rank)) ||
	                   json_object_set_new(r->identity, "powersgd_format", json_string(how->type == DT_F32 ? "f32" : "16")) ||
	                   (how->keep_skipped && json_object_set_new(r->identity, "powersgd_keep", json_true())));
}

int train_powersgd_sum(struct train_run *r, struct metrics *m, struct error *e)
{
	int result = powersgd_sum(&r->powersgd, &r->ranks->c, e);
	if (r->o->powersgd.type != DT_F32)
		metrics_set(m, "saturated", (double)r->powersgd.saturated); /* a checkpoint's before it too */
	r->powersgd.saturated = 0;
	return result;
}

void train_powersgd_settle(struct train_run *r, bool left_out)
{
	if (used(r))
		powersgd_settle(&r->powersgd, ranks_size(r), left_out);
}

int train_powersgd_sum_errors(struct train_run *r, struct error *e)
{
	return used(r) ? powersgd_sum_errors(&r->powersgd, &r->ranks->c, e) : 0;
}

void train_powersgd_share_errors(struct train_run *r)
{
	if (used(r))
		powersgd_share_errors(&r->powersgd, ranks_size(r));
}

int train_powersgd_load(struct train_run *r, const struct weights *w, struct error *e)
{
	if (used(r) && params_load_kept(&r->powersgd.errors, r->p, w, "train.e.", e))
		return -1;
	train_powersgd_share_errors(r);
	return 0;
}
