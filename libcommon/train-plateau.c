/* train-plateau.c - halving the step size when the training loss stops falling (recipe C23, J12); the rule is in train.h.
 * Everything it knows is in the checkpoint, so that a resumed run halves at the same updates. */
#include <math.h>

#include "train-run.h"

/* Updates of a window: a fiftieth of those after the warm-up unless the rule says otherwise. */
static int64_t window_of(const struct train_run *r)
{
	const struct plateau_rule *rule = &r->t->plateau;
	int64_t share = (r->steps - rule->from) / 50;
	return rule->window ? rule->window : share > 1 ? share : 1;
}

double train_plateau_factor(const struct train_run *r)
{
	return ldexp(1, -r->plateau.halvings);
}

static void halve(struct train_run *r, double mean, double lr)
{
	struct plateau *p = &r->plateau;
	p->at[p->halvings++] = r->step;
	p->without_gain = 0;
	train_log_halving(r, mean, p->least, lr / 2);
}

void train_plateau_update(struct train_run *r, double loss, double lr)
{
	const struct plateau_rule *rule = &r->t->plateau;
	struct plateau *p = &r->plateau;
	if (p->halvings >= rule->most || r->step <= rule->from || !isfinite(loss))
		return;
	p->sum += loss;
	if (++p->count < window_of(r))
		return;
	double mean = p->sum / (double)p->count;
	p->sum = 0;
	p->count = 0;
	bool gained = !p->known || mean <= p->least - rule->gain * fabs(p->least);
	p->without_gain = gained ? 0 : p->without_gain + 1;
	if (p->without_gain >= rule->patience)
		halve(r, mean, lr);
	if (!p->known || mean < p->least)
		p->least = mean;
	p->known = true;
}

json_t *train_plateau_json(const struct train_run *r)
{
	const struct plateau *p = &r->plateau;
	json_t *at = json_array();
	for (int i = 0; i < p->halvings; i++)
		json_array_append_new(at, json_integer(p->at[i]));
	return json_pack("{s:I,s:f,s:b,s:f,s:I,s:o}", "count", (json_int_t)p->count, "sum", p->sum, "known", p->known, "least",
	                 p->least, "without_gain", (json_int_t)p->without_gain, "halved_at", at);
}

int train_plateau_load(struct train_run *r, const json_t *j)
{
	struct plateau *p = &r->plateau;
	const json_t *at = json_object_get(j, "halved_at");
	size_t n = json_array_size(at);
	if (!json_is_object(j) || !json_is_array(at) || n > PLATEAU_MOST)
		return -1;
	*p = (struct plateau){
		.count = json_integer_value(json_object_get(j, "count")), .sum = json_number_value(json_object_get(j, "sum")),
		.known = json_is_true(json_object_get(j, "known")), .least = json_number_value(json_object_get(j, "least")),
		.without_gain = json_integer_value(json_object_get(j, "without_gain")), .halvings = (int)n,
	};
	for (size_t i = 0; i < n; i++)
		p->at[i] = json_integer_value(json_array_get(at, i));
	return p->count < 0 ? -1 : 0;
}

json_t *train_plateau_rule_json(const struct train_run *r)
{
	const struct plateau_rule *rule = &r->t->plateau;
	return json_pack("{s:i,s:I,s:I,s:f}", "halvings", rule->most, "plateau_window", (json_int_t)rule->window,
	                 "plateau_patience", (json_int_t)rule->patience, "plateau_gain", rule->gain);
}
