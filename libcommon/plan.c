/* plan.c - see plan.h. */
#include "plan.h"

#include <math.h>
#include <string.h>

#include "dalle.h"
#include "powersgd.h"

/* ---- parameters ---- */

/* Of a resblock: what PowerSGD compresses. */
static bool is_inner(const struct param *r)
{
	return r->kind == PARAM_MATRIX && r->resblock >= 0;
}

static void count_parameters(const struct params *p, struct plan_parameters *n)
{
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		if (is_inner(r))
			*(r->resblock % 2 ? &n->mlp : &n->attention) += r->n; /* two resblocks a layer, attention first */
		else if (r->resblock >= 0)
			n->gains += r->n;
		else if (r->kind == PARAM_EMBED)
			n->embeddings += r->n;
		else
			n->heads += r->n;
	}
	n->total = params_count(p);
}

/* ---- memory ---- */

/* Bytes of an element: of matrices in resblocks, of other matrices that are used through copies, of all else. */
struct widths {
	size_t inner, outer, others;
};

/* Each row padded as in params.h. */
static uint64_t block_bytes(const struct params *p, struct widths w)
{
	uint64_t bytes = 0;
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		bytes += round_up(r->n * (is_inner(r) ? w.inner : r->kind == PARAM_MATRIX ? w.outer : w.others), 64);
	}
	return bytes;
}

static uint64_t share(uint64_t bytes, int m)
{
	return (bytes + (uint64_t)m - 1) / (uint64_t)m;
}

/* Two resblocks whole and one's gradient, or the largest other tensor and its gradient. */
static uint64_t gathered_bytes(const struct params *p, size_t t)
{
	uint64_t block = 0, largest = 0, other = 0;
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		if (r->resblock < 0) {
			other = r->n > other ? r->n : other;
			continue;
		}
		block = (i && p->rows[i - 1].resblock == r->resblock ? block : 0) + r->n * (r->kind == PARAM_MATRIX ? t : 4);
		largest = block > largest ? block : largest;
	}
	return 3 * largest > 8 * other ? 3 * largest : 8 * other;
}

static void plan_blocks(const struct plan_input *in, const struct params *p, int m, struct plan_memory *out)
{
	size_t t = dtype_bytes(in->type), copy = in->type == DT_F32 ? 0 : t, master = in->no_master ? 0 : 4;
	size_t gradient = in->no_master ? t : 4, moment = in->moments_16 ? 2 : 4;
	uint64_t averages = block_bytes(p, (struct widths){4, 4, 4});
	if (in->no_master && !in->averages_on_host)
		averages += block_bytes(p, (struct widths){t, t, 0});
	out->weights = share(block_bytes(p, (struct widths){master, master, 4}), m);
	out->copies = share(block_bytes(p, (struct widths){copy, copy, 0}), m);
	out->gradients = share(block_bytes(p, (struct widths){gradient, gradient, 4}), m);
	out->moments = 2 * share(block_bytes(p, (struct widths){moment, moment, 4}), m);
	*(in->averages_on_host ? &out->host : &out->averages) = share(averages, m);
	out->gathered = m > 1 ? gathered_bytes(p, t) : 0;
}

/* Elements of one GPU's P and Q in all layers (E7). */
static double elements_p(const struct plan_input *in, double m)
{
	return in->config.layers * ((double)in->config.width * in->rank * (5 * m + 4)) / (m * m);
}

static double elements_q(const struct plan_input *in, double m)
{
	return in->config.layers * ((double)in->config.width * in->rank * (m + 8)) / (m * m);
}

/* What dalle-train takes for whole matrices, less what GPUs of a machine share out. */
static uint64_t powersgd_memory(const struct plan_input *in, const struct params *p, double M, int m)
{
	struct powersgd_options how = {.rank = in->rank, .type = in->powersgd_type};
	double whole = M + elements_p(in, 1) + 2 * elements_q(in, 1), kept = M / m + elements_p(in, m) + 2 * elements_q(in, m);
	return in->rank ? powersgd_bytes(p, &how) - (uint64_t)(whole - kept) * dtype_bytes(in->powersgd_type) : 0;
}

/* The planner's own number, cut into the two parts that can be told and the rest. */
static int plan_activations(const struct plan_input *in, struct dalle *d, struct dev *dev, struct plan_memory *out,
                            struct error *e)
{
	const struct dalle_config *c = &in->config;
	uint64_t all = dalle_plan_bytes(d, in->batch, true, cpu_ops(), dev);
	if (all >> 60)
		return fail(e, STATUS_LIMIT, "%d sequences of %d states need more memory than can be counted", in->batch,
		            dalle_length(c));
	uint64_t row = (uint64_t)in->batch * (uint64_t)dalle_length(c) * (uint64_t)c->width * 4;
	uint64_t V = (uint64_t)(c->text_vocab > c->image_vocab ? c->text_vocab : c->image_vocab);
	out->stream = (2 * (uint64_t)c->layers + 1) * row;
	out->logits = d->chunk * V * (4 + (c->logits_f32 ? 4 : dtype_bytes(in->type)));
	out->inside = all - out->stream - out->logits;
	return 0;
}

static int plan_memory(const struct plan_input *in, struct dalle *d, int m, struct plan_memory *out, struct error *e)
{
	char text[200];
	struct dev *dev = cpu_ops()->open(0, in->type, 1, text, sizeof text);
	if (!dev)
		return fail(e, STATUS_FAIL, "%s", text);
	int r = plan_activations(in, d, dev, out, e);
	d->params.dev = NULL; /* nothing was taken there */
	cpu_ops()->close(dev);
	if (r)
		return -1;
	plan_blocks(in, &d->params, m, out);
	out->total = out->weights + out->copies + out->gradients + out->moments + out->averages + out->gathered + out->stream +
	             out->inside + out->logits;
	return 0;
}

/* ---- operations ---- */

static void plan_flops(const struct plan_input *in, const struct plan_parameters *n, struct plan_flops *out)
{
	const struct dalle_config *c = &in->config;
	double rows = (double)in->batch * dalle_length(c), attention = 0, C = c->width;
	for (int i = 0; i < c->layers; i++) {
		struct attn_mask mask = dalle_mask_of(c, i);
		if (!out->layers[mask.kind]++)
			out->pairs[mask.kind] = dalle_mask_pairs(&mask);
	}
	for (int k = 0; k < PLAN_KINDS; k++) {
		double forward = 4 * C * in->batch * (double)out->pairs[k] * out->layers[k];
		out->attention[k] = 3 * forward;
		attention += forward;
	}
	double forward = 2 * (double)(n->attention + n->mlp) * rows;
	double logits = (double)c->text_vocab * c->text_length + (double)c->image_vocab * dalle_image_length(c);
	out->products = 3 * forward;
	out->heads = 3 * 2 * C * in->batch * logits;
	out->recomputed = in->recompute ? forward + attention : 0;
	out->total = out->products + out->heads + 3 * attention + out->recomputed;
}

/* ---- the wire ---- */

static void plan_wire(const struct plan_input *in, const struct params *p, const struct plan *plan, struct plan_wire *out)
{
	double M = (double)(plan->parameters.attention + plan->parameters.mlp), O = (double)params_count(p) - M;
	double t = (double)dtype_bytes(in->type), m = plan->node, n = plan->nodes;
	double gains = (double)plan->parameters.gains, each = (double)dtype_bytes(in->powersgd_type);
	out->gather = (m - 1) / m * (2 * t * M + 4 * O + 4 * gains); /* forward; resblocks again backward */
	out->scatter = (m - 1) / m * (t * M + 4 * O);
	if (n < 2)
		return;
	out->plain = 2 * M / m;
	out->others = 4 * O / m;
	if (in->rank) {
		out->p = each * elements_p(in, m);
		out->q = each * elements_q(in, m);
		out->compression = 1 - (out->p + out->q) / out->plain;
	}
	out->payload = out->others + (in->rank ? out->p + out->q : out->plain);
	out->ring = 2 * (n - 1) / n * out->payload;
}

/* ---- time ---- */

static double seconds_of(double amount, double rate)
{
	return rate > 0 ? amount / rate : 0;
}

static void plan_time(const struct plan_input *in, const struct plan *plan, struct plan_time *out)
{
	out->compute = seconds_of(plan->flops.total, in->flops);
	out->node = seconds_of(plan->wire.gather + plan->wire.scatter, in->node_bandwidth);
	out->network = seconds_of(plan->wire.ring, in->network);
	out->total = in->overlap ? fmax(out->compute, fmax(out->node, out->network)) : out->compute + out->node + out->network;
	out->images = out->compute > 0 ? 3600 / out->total * in->batch * in->gpus : 0;
}

/* ---- all ---- */

static int check(const struct plan_input *in, struct plan *out, struct error *e)
{
	out->node = in->gpus < in->node ? in->gpus : in->node;
	out->nodes = in->gpus / out->node;
	if (in->gpus % out->node)
		return fail(e, STATUS_USAGE, "%d GPUs do not fill machines of %d", in->gpus, out->node);
	if (in->rank && out->node > 1 && out->nodes < 2)
		return fail(e, STATUS_USAGE, "--powersgd is between machines, and %d GPUs are in one", in->gpus);
	if (in->rank % out->node)
		return fail(e, STATUS_USAGE, "--powersgd %d is no multiple of the %d GPUs of a machine", in->rank, out->node);
	if (in->rank > in->config.width)
		return fail(e, STATUS_USAGE, "--powersgd %d is more than the width %d", in->rank, in->config.width);
	if (in->no_master && in->type == DT_F32)
		return fail(e, STATUS_USAGE, "matrices without a master copy need 16-bit products, not f32");
	return 0;
}

int plan_make(const struct plan_input *in, struct plan *out, struct error *e)
{
	struct dalle d = {0};
	*out = (struct plan){0};
	int r = check(in, out, e) || dalle_describe(&d, &in->config, 0, in->recompute, e);
	if (r == 0) {
		count_parameters(&d.params, &out->parameters);
		r = plan_memory(in, &d, out->node, &out->memory, e);
	}
	if (r == 0) {
		double M = (double)(out->parameters.attention + out->parameters.mlp);
		out->memory.powersgd = powersgd_memory(in, &d.params, M, out->node);
		plan_flops(in, &out->parameters, &out->flops);
		plan_wire(in, &d.params, out, &out->wire);
		plan_time(in, out, &out->time);
	}
	dalle_free(&d);
	return r ? -1 : 0;
}
