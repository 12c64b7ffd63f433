/* sample.c - see sample.h.  With guidance every job is two sequences: 0 .. n-1 with their captions, n .. 2n-1 with the
 * empty one. */
#include "sample.h"

#include "device.h"
#include "hash.h"

#include <stdlib.h>
#include <string.h>

enum { PREFILL_ROWS = 4096 }; /* about how many states are prefilled at once */

struct sampler {
	struct dalle *d;
	struct sample_options o;
	int batch, sequences; /* most jobs, most sequences */
	int contexts;         /* captions prefilled at once */
	struct arena arena;
	/* device */
	int32_t *indices;    /* DALLE_TABLES blocks */
	float *mean, *rstd;  /* (sequences) */
	void *nx;            /* (sequences, C) T, or f32 when the heads are */
	float *without, *x;  /* (batch, C) guidance: share of the empty caption, combined state */
	void *xt;            /* (batch, C) T */
	float *logits;       /* (batch, V_I) */
	int32_t *token;      /* (batch) */
	uint64_t *key;       /* (batch) */
	/* host */
	int32_t *host_indices, *host_token;
	uint64_t *host_key;
	struct dalle_item *context; /* (2 batch) */
	int *first;                 /* (2 batch + 1) cache of each context's first sequence */
};

uint64_t sample_key(const struct record *r, uint32_t number)
{
	uint64_t h;
	if (r->key.n)
		h = hash64(r->key.p, r->key.n);
	else if (r->caption.n)
		h = hash64(r->caption.p, r->caption.n);
	else
		h = hash64(r->text.v, r->text.n * sizeof *r->text.v);
	/* A finaliser spreads neighbouring sample numbers over all bits (Steele et al. 2014, SplitMix). */
	h += ((uint64_t)number + 1) * 0x9E3779B97F4A7C15u;
	h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
	h = (h ^ h >> 27) * 0x94D049BB133111EBu;
	return h ^ h >> 31;
}

/* ---- memory ---- */

static bool guided(const struct sampler *s)
{
	return s->o.guidance != 1;
}

static int prefix_states(const struct sampler *s)
{
	return s->d->c.text_length + s->d->c.grid_w * s->o.prefix_rows;
}

static size_t index_stride(const struct sampler *s)
{
	size_t prefill = (size_t)s->contexts * (size_t)prefix_states(s), steps = (size_t)s->sequences;
	return prefill > steps ? prefill : steps;
}

static void layout(struct sampler *s)
{
	struct arena *a = &s->arena;
	size_t B = (size_t)s->batch, G = (size_t)s->sequences, C = (size_t)s->d->c.width;
	size_t prefill = (size_t)s->contexts * (size_t)prefix_states(s);
	stack_layout_decode(&s->d->stack, a, s->sequences, dalle_length(&s->d->c), prefill);
	s->indices = arena_take_n(a, index_stride(s), DALLE_TABLES * sizeof(int32_t));
	s->mean = arena_take_n(a, G, 4);
	s->rstd = arena_take_n(a, G, 4);
	s->nx = arena_take_n(a, G, C * 4);
	s->without = arena_take_n(a, B, C * 4);
	s->x = arena_take_n(a, B, C * 4);
	s->xt = arena_take_n(a, B, C * 4);
	s->logits = arena_take_n(a, B, (size_t)s->d->c.image_vocab * 4);
	s->token = arena_take_n(a, B, sizeof(int32_t));
	s->key = arena_take_n(a, B, sizeof(uint64_t));
}

static int take_host(struct sampler *s, struct error *e)
{
	size_t B = (size_t)s->batch;
	s->host_indices = mem_alloc(index_stride(s), DALLE_TABLES * sizeof(int32_t), e);
	s->host_token = mem_alloc(B, sizeof *s->host_token, e);
	s->host_key = mem_alloc(B, sizeof *s->host_key, e);
	s->context = mem_alloc(B, 2 * sizeof *s->context, e);
	s->first = mem_alloc(2 * B + 1, sizeof *s->first, e);
	return s->host_indices && s->host_token && s->host_key && s->context && s->first ? 0 : -1;
}

struct sampler *sampler_new(struct dalle *d, int batch, const struct sample_options *o, struct error *e)
{
	if (o->prefix_rows > d->c.grid_h) {
		fail(e, STATUS_USAGE, "prefix of %d rows, but the grid has %d", o->prefix_rows, d->c.grid_h);
		return NULL;
	}
	struct sampler *s = mem_zero(1, sizeof *s, e);
	if (!s)
		return NULL;
	s->d = d;
	s->o = *o;
	s->batch = batch;
	s->sequences = guided(s) ? 2 * batch : batch;
	s->contexts = PREFILL_ROWS / prefix_states(s) + 1;
	if (s->contexts > s->sequences)
		s->contexts = s->sequences;
	arena_plan(&s->arena);
	layout(s);
	if (arena_alloc(&s->arena, d->params.ops, d->params.dev, "sampling caches", e) || take_host(s, e)) {
		sampler_free(s);
		return NULL;
	}
	layout(s);
	return s;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	arena_free(&s->arena);
	free(s->host_indices);
	free(s->host_token);
	free(s->host_key);
	free(s->context);
	free(s->first);
	free(s);
}

/* ---- prefill ---- */

static struct dalle_item item_of(const struct sample_job *job, bool caption)
{
	const struct record *r = job->record;
	return (struct dalle_item){.text = r->text.v, .text_n = caption ? r->text.n : 0, .image = job->tokens};
}

/* The different beginnings among the jobs: one for each run of one record, and the same without caption when
 * guided (a single one when there is no prefix).  Context c fills the caches first[c] .. first[c + 1] - 1. */
static int list_contexts(struct sampler *s, const struct sample_job *jobs, int n)
{
	int count = 0;
	for (int half = 0; half <= guided(s); half++)
		for (int i = 0; i < n; i++) {
			bool same = i > 0 && (jobs[i].record == jobs[i - 1].record || (half && s->o.prefix_rows == 0));
			if (same)
				continue;
			s->context[count] = item_of(&jobs[i], !half);
			s->first[count++] = half * n + i;
		}
	s->first[count] = guided(s) ? 2 * n : n;
	return count;
}

static void put_indices(struct sampler *s, size_t stride)
{
	s->d->params.ops->put(s->d->params.dev, s->indices, s->host_indices, stride * DALLE_TABLES * sizeof(int32_t));
	dalle_embed(s->d, stack_input(&s->d->stack), s->indices, stride, stride);
}

static void prefill(struct sampler *s, int count)
{
	const struct dalle *d = s->d;
	int states = prefix_states(s);
	for (int at = 0, k; at < count; at += k) {
		k = count - at < s->contexts ? count - at : s->contexts;
		size_t stride = (size_t)k * (size_t)states;
		for (int i = 0; i < k; i++)
			dalle_indices(d, &s->context[at + i], 0, states, s->host_indices, stride, (size_t)i * (size_t)states);
		put_indices(s, stride); /* (k, states, C) */
		stack_prefill(&s->d->stack, k, d->c.text_length, d->c.grid_w, s->o.prefix_rows, s->first + at);
	}
}

/* ---- one token ---- */

/* Normalised states of n jobs from the last residual stream (sequences, C), ready for the image head.
 * The head is linear, so mixing its inputs is mixing the logits: without + guidance (with - without). */
static const void *head_input(struct sampler *s, const float *h, int n)
{
	const struct ops *ops = s->d->params.ops;
	struct dev *dev = s->d->params.dev;
	const struct dalle *d = s->d;
	int C = d->c.width, rows = guided(s) ? 2 * n : n;
	size_t count = (size_t)n * (size_t)C;
	enum dtype t = ops->type(dev);
	ops->norm_fwd(dev, s->nx, s->mean, s->rstd, h, d->norm_w->w, d->norm_b->w, (size_t)rows, C,
	              guided(s) ? 0 : dalle_head_flags(d)); /* (rows, C) */
	if (!guided(s))
		return s->nx;
	float g = (float)s->o.guidance;
	const char *empty = (const char *)s->nx + count * dtype_bytes(t);
	ops->uncast(dev, s->without, empty, count, 1 - g);        /* (n, C) */
	ops->add(dev, s->x, s->without, s->nx, g, count);         /* (n, C) */
	if (t == DT_F32 || d->c.logits_f32)
		return s->x;
	ops->cast(dev, s->xt, s->x, count, 1, 0);
	return s->xt;
}

static int draw_position(struct sampler *s, const struct sample_job *jobs, int n, int p, struct error *e)
{
	const struct dalle *d = s->d;
	const struct ops *ops = d->params.ops;
	struct dev *dev = d->params.dev;
	int sequences = guided(s) ? 2 * n : n, state = d->c.text_length + p, flags = dalle_head_flags(d);
	for (int i = 0; i < sequences; i++) {
		struct dalle_item item = item_of(&jobs[i % n], i < n);
		dalle_indices(d, &item, state, state + 1, s->host_indices, (size_t)sequences, (size_t)i);
	}
	put_indices(s, (size_t)sequences); /* (sequences, C) */
	const void *x = head_input(s, stack_step(&s->d->stack, sequences, state), n);
	ops->linear_fwd(dev, s->logits, x, d->image_head.w->t, d->image_head.b->w, (size_t)n, d->c.width, d->c.image_vocab,
	                flags ? flags : OP_OUT_F32); /* (n, V_I) */
	struct draw how = {.temperature = (float)s->o.temperature, .top_k = s->o.top_k, .top_p = (float)s->o.top_p,
	                   .seed = s->o.seed, .position = (uint32_t)p};
	ops->draw(dev, s->token, s->logits, s->key, (size_t)n, d->c.image_vocab, &how);
	ops->get(dev, s->host_token, s->token, (size_t)n * sizeof *s->host_token);
	if (device_check(ops, dev, e))
		return -1;
	for (int i = 0; i < n; i++)
		jobs[i].tokens[p] = (uint32_t)s->host_token[i];
	return 0;
}

int sampler_run(struct sampler *s, const struct sample_job *jobs, int n, sample_row_fn *row, void *context, struct error *e)
{
	const struct dalle *d = s->d;
	int W = d->c.grid_w, kept = W * s->o.prefix_rows;
	for (int i = 0; i < n; i++) {
		s->host_key[i] = sample_key(jobs[i].record, jobs[i].number);
		if (kept)
			memcpy(jobs[i].tokens, jobs[i].record->image.v, (size_t)kept * sizeof *jobs[i].tokens);
	}
	d->params.ops->put(d->params.dev, s->key, s->host_key, (size_t)n * sizeof *s->host_key);
	prefill(s, list_contexts(s, jobs, n));
	for (int p = kept; p < dalle_image_length(&d->c); p++) {
		if (draw_position(s, jobs, n, p, e))
			return -1;
		if (row && (p + 1) % W == 0 && row(context, (p + 1) / W, e))
			return -1;
	}
	return device_check(d->params.ops, d->params.dev, e);
}
