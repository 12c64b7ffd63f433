/* dvae-fit.c - the discrete VAE's loss, gradients and measures, and the trainee that train.h runs.  See dvae-fit.h
 * for the loss.  What a batch is made of (sizes, crops, flips) and previews are in dvae-batch.c. */
#include "dvae-fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "dvae-batch.h"
#include "dvae-net.h"

static size_t tokens_of(const struct dvae *d, int n)
{
	return (size_t)n * (size_t)d->grid * (size_t)d->grid;
}

static size_t pixels_of(const struct dvae *d, int n)
{
	return (size_t)n * (size_t)d->config.size * (size_t)d->config.size;
}

/* ---- loss and gradients ---- */

/* Sums of nll and kl, from the device. */
static int get_sums(struct dvae *d, int n, double sums[2], struct error *e)
{
	d->ops->zero(d->dev, d->sums, 2 * sizeof *sums);
	d->ops->sum(d->dev, &d->sums[0], d->nll, pixels_of(d, n));
	d->ops->sum(d->dev, &d->sums[1], d->kl, tokens_of(d, n));
	d->ops->get(d->dev, sums, d->sums, 2 * sizeof *sums);
	return device_check(d->ops, d->dev, e);
}

/* Mean code distribution of the batch, from the device.  Entropy in nats. */
static double mean_usage(struct dvae *d, float *usage, size_t rows)
{
	const struct ops *o = d->ops;
	int K = (int)d->config.codes;
	double entropy = 0;
	o->zero(d->dev, d->usage, (size_t)K * sizeof *usage);
	o->usage_fwd(d->dev, d->usage, d->logits, rows, K);
	o->get(d->dev, usage, d->usage, (size_t)K * sizeof *usage);
	for (int k = 0; k < K; k++) {
		usage[k] /= (float)rows;
		entropy -= usage[k] > 0 ? usage[k] * log(usage[k]) : 0;
	}
	return entropy;
}

/* dlogits += d/dlogits of -weight * H(mean q).  dH/dq = -(ln m + 1) / rows, and the constant falls out of the
 * softmax's backward pass. */
static int add_usage_gradient(struct dvae *d, int n, double weight, double *entropy, struct error *e)
{
	size_t rows = tokens_of(d, n);
	int K = (int)d->config.codes;
	float *usage = mem_alloc((size_t)K, sizeof *usage, e);
	if (!usage)
		return -1;
	*entropy = mean_usage(d, usage, rows);
	for (int k = 0; k < K; k++)
		usage[k] = (float)(weight / (double)rows * log(fmax(usage[k], 1e-20)));
	d->ops->put(d->dev, d->usage, usage, (size_t)K * sizeof *usage);
	d->ops->usage_bwd(d->dev, d->dlogits, d->usage, d->logits, rows, K);
	free(usage);
	return 0;
}

int dvae_loss_and_gradients(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p, struct dvae_loss *l,
                            struct error *e)
{
	const struct ops *o = d->ops;
	size_t rows = tokens_of(d, n), pixels = pixels_of(d, n);
	int K = (int)d->config.codes;
	double values = 3 * (double)pixels, sums[2], scale = (double)p->scale * (double)grad_scale_loss(&d->params.scales);
	o->put(d->dev, d->rgb, rgb, 3 * pixels);
	dvae_forward_encoder(d, n);
	o->gumbel_fwd(d->dev, d->z, d->kl, d->logits, rows, K, p->tau, p->seed, p->step, p->first_row);
	dvae_forward_decoder(d, n);
	o->logit_laplace(d->dev, d->nll, d->dout, d->out, d->pixels, pixels, p->floor,
	                 (float)(scale / values));
	if (get_sums(d, n, sums, e))
		return -1;
	dvae_backward_decoder(d, n);
	o->gumbel_bwd(d->dev, d->dlogits, d->dz, d->z, d->logits, rows, K, p->tau, (float)(p->beta / values * scale));
	*l = (struct dvae_loss){.distortion = sums[0] / values, .kl = sums[1] / (double)rows};
	if (p->bonus > 0 && add_usage_gradient(d, n, p->bonus * scale, &l->usage, e))
		return -1;
	dvae_backward_encoder(d, n);
	l->loss = l->distortion + p->beta * (double)rows / values * l->kl - p->bonus * l->usage;
	return device_check(d->ops, d->dev, e);
}

int dvae_measure(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p, double *distortion, double *kl,
                 uint8_t *rgb_out, struct error *e)
{
	const struct ops *o = d->ops;
	size_t tokens = tokens_of(d, 1), pixels = pixels_of(d, 1);
	o->put(d->dev, d->rgb, rgb, 3 * pixels * (size_t)n);
	dvae_forward_encoder(d, n);
	o->gumbel_fwd(d->dev, d->z, d->kl, d->logits, tokens * (size_t)n, (int)d->config.codes, p->tau, p->seed, p->step,
	              p->first_row);
	dvae_forward_decoder(d, n);
	o->logit_laplace(d->dev, d->nll, NULL, d->out, d->pixels, pixels * (size_t)n, p->floor, 0);
	for (int i = 0; i < n; i++) {
		double sums[2];
		o->zero(d->dev, d->sums, sizeof sums);
		o->sum(d->dev, &d->sums[0], d->nll + pixels * (size_t)i, pixels);
		o->sum(d->dev, &d->sums[1], d->kl + tokens * (size_t)i, tokens);
		o->get(d->dev, sums, d->sums, sizeof sums);
		if (distortion)
			distortion[i] = sums[0] / (3 * (double)pixels);
		if (kl)
			kl[i] = sums[1] / (double)tokens;
	}
	if (rgb_out) {
		o->reconstruct(d->dev, d->picture, d->out, pixels * (size_t)n, DVAE_SPAN, DVAE_EPSILON);
		o->get(d->dev, rgb_out, d->picture, 3 * pixels * (size_t)n);
	}
	return device_check(d->ops, d->dev, e);
}

/* ---- schedules ---- */

double dvae_schedule_at(double start, double end, double span, const struct train_step *s)
{
	return schedule_cosine(start, end, (double)s->step, span > 1 ? span : span * (double)s->steps);
}

static double step_size(const void *model, const struct train_step *s)
{
	const struct dvae_schedule *h = &((const struct dvae_fit *)model)->o.schedule;
	double warm = s->step < h->warmup ? (double)(s->step + 1) / (double)h->warmup : 1;
	return warm * dvae_schedule_at(h->lr, h->lr_end, h->lr_span, s);
}

/* ---- the trainee ---- */

static float floor_of(const struct dvae_fit *f)
{
	return f->o.least_b > 0 ? (float)log(f->o.least_b) : -INFINITY;
}

/* Pictures to calibrate with, at most: as many as have this many tokens. */
static size_t calibration_pictures(const struct dvae *d)
{
	enum { CALIBRATE_TOKENS = 1 << 18 };
	return CALIBRATE_TOKENS / tokens_of(d, 1) + 1;
}

/* With some of the shuffled data, which afterwards starts from its beginning again. */
static int calibrate(struct dvae_fit *f, uint64_t seed, struct error *e)
{
	size_t bytes = 3 * pixels_of(f->d, 1), n = 0, want = loader_records(f->o.data);
	size_t most = calibration_pictures(f->d);
	want = want < most ? want : most;
	uint8_t *rgb = mem_alloc(want, bytes, e);
	const struct record *r;
	int status = rgb ? 0 : -1;
	for (; !status && n < want; n++) {
		status = loader_next(f->o.data, &r, 1, e) != 1 || dvae_fill_plain(f, &r, 1, e);
		if (!status)
			memcpy(rgb + n * bytes, f->rgb, bytes);
	}
	if (!status)
		status = loader_restore(f->o.data, (struct loader_state){0, 0}, e) ||
		         dvae_calibrate(f->d, rgb, n, f->o.calibrate, seed, e);
	free(rgb);
	return status ? -1 : 0;
}

static int fit_init(void *model, uint64_t seed, struct error *e)
{
	struct dvae_fit *f = model;
	if (params_init(&f->d->params, seed, e))
		return -1;
	if (f->o.calibrate > 0 && f->o.data && loader_records(f->o.data))
		return calibrate(f, seed, e);
	return 0;
}

static int fit_step(void *model, const struct train_step *s, const struct record *const *batch, int n, struct metrics *m,
                    struct error *e)
{
	struct dvae_fit *f = model;
	const struct dvae_schedule *h = &f->o.schedule;
	struct dvae_loss l;
	double tau = dvae_schedule_at(h->tau_start, h->tau_end, h->tau_span, s);
	struct dvae_pass p = {
		.tau = (float)tau, .beta = dvae_schedule_at(0, h->beta, h->beta_span, s), .scale = 1.0f / (float)s->parts,
		.floor = floor_of(f),
		.bonus = f->o.usage_bonus * (1 - (double)s->step / (double)s->steps), .seed = s->seed,
		.step = (uint32_t)s->step, .first_row = (uint64_t)s->part * tokens_of(f->d, f->d->batch),
	};
	if (dvae_fill_batch(f, s, batch, n, e))
		return -1;
	if (dvae_loss_and_gradients(f->d, f->rgb, n, &p, &l, e) || code_use_add(&f->trained, f->d, n, e))
		return -1;
	metrics_set(m, "loss", l.loss);
	metrics_set(m, "distortion", l.distortion);
	metrics_set(m, "kl", l.kl);
	metrics_set(m, "rate", l.kl * (double)tokens_of(f->d, 1));
	metrics_set(m, "codes", code_use_count(&f->trained));
	metrics_set(m, "perplexity", code_use_perplexity(&f->trained));
	metrics_set(m, "tau", tau);
	metrics_set(m, "beta", p.beta);
	return 0;
}

static double decibels(const uint8_t *a, const uint8_t *b, size_t n)
{
	double squares = 0;
	for (size_t i = 0; i < n; i++)
		squares += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
	/* An exact copy counts as one value in the picture that is off by one. */
	return 10 * log10(255.0 * 255.0 * (double)n / fmax(squares, 1));
}

/* The names of one bound's measures: nats per value with the run's beta and with 1, nats per picture likewise. */
struct bound_names {
	const char *loss, *loss_1, *elb_beta, *elb;
};
static const struct bound_names names_true = {"loss", "loss_1", "elb_beta", "elb"};
static const struct bound_names names_relaxed = {"relaxed_loss", "relaxed_loss_1", "relaxed_elb_beta", "relaxed_elb"};

/* From sums over records of the distortion per value and the KL per token. */
static void set_bound(struct metrics *sums, const struct bound_names *names, const struct dvae_fit *f,
                      double distortion, double kl)
{
	double values = 3 * (double)pixels_of(f->d, 1), tokens = (double)tokens_of(f->d, 1);
	double loss = distortion + f->o.schedule.beta * tokens / values * kl, loss_1 = distortion + tokens / values * kl;
	metrics_set(sums, names->loss, loss);
	metrics_set(sums, names->loss_1, loss_1);
	metrics_set(sums, names->elb_beta, -values * loss);
	metrics_set(sums, names->elb, -values * loss_1);
}

/* The true ELB and the picture quality, with hard codes; beside it the relaxed ELB at the last update's temperature. */
static int fit_evaluate(void *model, const struct train_step *s, const struct record *const *batch, int n,
                        struct metrics *sums, struct error *e)
{
	struct dvae_fit *f = model;
	struct dvae *d = f->d;
	const struct dvae_schedule *h = &f->o.schedule;
	size_t bytes = 3 * pixels_of(d, 1);
	double hard = 0, relaxed = 0, kl = 0, psnr = 0;
	struct train_step last = *s;
	last.step = s->step ? s->step - 1 : 0;
	struct dvae_pass p = {.tau = (float)dvae_schedule_at(h->tau_start, h->tau_end, h->tau_span, &last), .floor = floor_of(f),
	                      .first_row = (uint64_t)s->part * tokens_of(d, d->batch), .seed = 1};
	if (dvae_fill_plain(f, batch, n, e))
		return -1;
	if (s->part == 0) { /* the first held-out pictures, the same at every evaluation */
		dvae_show_batch(f, n);
		f->shown_held_out = true;
	}
	if (dvae_measure(d, f->rgb, n, &p, f->distortion, NULL, NULL, e))
		return -1;
	for (int i = 0; i < n; i++)
		relaxed += f->distortion[i];
	p.tau = 0;
	if (dvae_measure(d, f->rgb, n, &p, f->distortion, f->kl, f->out, e))
		return -1;
	for (int i = 0; i < n; i++) {
		hard += f->distortion[i];
		kl += f->kl[i];
		psnr += decibels(f->rgb + bytes * (size_t)i, f->out + bytes * (size_t)i, bytes);
	}
	set_bound(sums, &names_true, f, hard, kl);
	set_bound(sums, &names_relaxed, f, relaxed, kl);
	metrics_set(sums, "distortion", hard);
	metrics_set(sums, "kl", kl);
	metrics_set(sums, "rate", kl * (double)tokens_of(d, 1));
	metrics_set(sums, "psnr", psnr);
	return code_use_add(&f->evaluated, d, n, e);
}

/* Codes and perplexity belong to the held-out set as a whole. */
static int fit_evaluated(void *model, struct comm *c, struct metrics *mean, struct error *e)
{
	struct code_use *u = &((struct dvae_fit *)model)->evaluated;
	if (code_use_sum(u, c, e))
		return -1;
	metrics_set(mean, "codes", code_use_count(u));
	metrics_set(mean, "perplexity", code_use_perplexity(u));
	code_use_clear(u);
	return 0;
}

static int fit_preview(void *model, const struct train_step *s, struct error *e)
{
	return dvae_write_preview(model, e);
}

json_t *dvae_fit_recipe(const struct dvae_fit_options *o)
{
	const struct dvae_schedule *s = &o->schedule;
	size_t n;
	const char *augment = choice_name(DVAE_AUGMENTS, (int)o->augment, &n);
	return json_pack("{s:f,s:f,s:f,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:o}", "lr", s->lr, "lr_end", s->lr_end, "lr_steps",
	                 s->lr_span, "warmup", (json_int_t)s->warmup, "beta", s->beta, "beta_steps", s->beta_span, "tau",
	                 s->tau_start, "tau_end", s->tau_end, "tau_steps", s->tau_span, "usage_bonus", o->usage_bonus,
	                 "calibrate", o->calibrate, "least_b", o->least_b, "augment", json_stringn(augment, n));
}

void dvae_fit_plan(struct dvae *d, const struct dvae_fit_options *o, struct trainee *t)
{
	t->params = &d->params;
	t->kind = "dvae";
	t->batch = d->batch;
	t->activation_bytes = arena_bytes(&d->arena);
	size_t pictures = calibration_pictures(d);
	t->init_bytes = o->calibrate > 0 ? pictures * 3 * pixels_of(d, 1) + dvae_calibrate_bytes(d, pictures) : 0;
	t->average_decay = (float)o->schedule.average_decay;
	t->average_every = 1;
	t->grad_scale = GRAD_SCALE_GLOBAL; /* B21 */
	t->evaluate = fit_evaluate;
	t->evaluated = fit_evaluated;
}

void dvae_fit_trainee(struct dvae_fit *f, struct trainee *t)
{
	dvae_fit_plan(f->d, &f->o, t);
	t->model = f;
	t->beta1 = 0.9f, t->beta2 = 0.999f, t->eps = 1e-8f, t->decay = 1e-4f;
	t->init = fit_init;
	t->lr = step_size;
	t->step = fit_step;
	t->preview = fit_preview;
}
