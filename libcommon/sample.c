/* sample.c - see sample.h.  Captions and samples are two queues in rings: samples start in order and take the same
 * number of steps, so that both are left in order too.  The place of a caption in its ring is its context in
 * the caches, that of a sample its slot.  With guidance a sample is two sequences: row i of a step with its
 * caption, row m + i with the empty one.  Rows of a step are sorted by age, not by slot. */
#include "sample.h"

#include "device.h"
#include "hash.h"

#include <stdlib.h>
#include <string.h>

enum {
	PREFILL_ROWS = 512, /* at most so many states are prefilled at once, or those of one caption */
	EXACT_ROWS = 8,     /* steps of more samples are rounded up to multiples: few shapes for the device */
};

struct caption {
	struct record record;
	int64_t samples, started;
	bool ready; /* prefilled */
};

struct job {
	struct caption *caption;
	uint32_t number;
	uint64_t key;
	uint32_t *tokens; /* (N_I), p of them drawn or given */
	int p;
	bool fresh;       /* its slot does not hold the prefix yet */
};

/* What is to be prefilled: items and where their states go. */
struct prefill {
	int n;
	struct dalle_item *item;  /* (2 captions + 1) */
	int32_t *context, *slot;  /* (2 captions + 1) */
};

struct sampler {
	struct dalle *d;
	struct sample_options o;
	int batch, sequences; /* most samples, most rows of a step */
	int captions;
	int kept;             /* image tokens of the prefix */
	int group;            /* sequences prefilled at once */
	struct arena arena;
	/* device */
	int32_t *prefill_indices; /* (DALLE_TABLES, group, states) */
	int32_t *step;            /* blocks of (sequences): DALLE_TABLES of indices, then context, slot, pos */
	float *mean, *rstd;       /* (sequences) */
	void *nx;                 /* (sequences, C) T, or f32 when the heads are */
	float *without, *x;       /* (batch, C) guidance: share of the empty caption, combined state */
	void *xt;                 /* (batch, C) T */
	float *logits;            /* (batch, V_I) */
	int32_t *token;           /* (batch) */
	uint64_t *key;            /* (batch) */
	/* host */
	int32_t *host_prefill, *host_step, *host_token;
	uint64_t *host_key;
	bool *recorded;           /* (batch + 1) steps of that many samples */
	uint32_t *tokens;         /* (batch, N_I) */
	struct prefill prefill;
	bool empty_ready;         /* the empty caption's context is prefilled */
	/* queues */
	struct caption *caption;  /* (captions) ring: held of them from first_caption on */
	int first_caption, held;
	struct job *job;          /* (batch) ring: running of them from first_job on */
	int first_job, running;
	int64_t waiting;          /* samples not started */
	int cursor;               /* of sampler_next: jobs looked at */
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

/* Whether prefixes are computed: a whole picture as prefix leaves nothing to draw. */
static bool prefixed(const struct sampler *s)
{
	return s->kept > 0 && s->kept < dalle_image_length(&s->d->c);
}

static int prefix_states(const struct sampler *s)
{
	return s->d->c.text_length + (prefixed(s) ? s->kept : 0);
}

/* The slot that keeps the prefix of a caption for samples to come, and that of the same prefix without caption. */
static int prefix_slot(const struct sampler *s, int context, bool empty)
{
	return s->sequences + (empty ? s->captions : 0) + context;
}

static struct stack_decode decode_sizes(const struct sampler *s)
{
	int prefixes = prefixed(s) ? s->captions * (guided(s) ? 2 : 1) : 0;
	return (struct stack_decode){.contexts = s->captions + guided(s), .slots = s->sequences + prefixes,
	                             .rows = s->sequences, .prefill_rows = (size_t)s->group * (size_t)prefix_states(s)};
}

static void layout(struct sampler *s)
{
	struct arena *a = &s->arena;
	struct stack_decode n = decode_sizes(s);
	size_t B = (size_t)s->batch, G = (size_t)s->sequences, C = (size_t)s->d->c.width;
	stack_layout_decode(&s->d->stack, a, &n);
	s->prefill_indices = arena_take_n(a, n.prefill_rows, DALLE_TABLES * sizeof(int32_t));
	s->step = arena_take_n(a, G, (DALLE_TABLES + 3) * sizeof(int32_t));
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
	size_t B = (size_t)s->batch, G = (size_t)s->sequences, K = (size_t)s->captions, N = (size_t)dalle_image_length(&s->d->c);
	s->host_prefill = mem_alloc(decode_sizes(s).prefill_rows, DALLE_TABLES * sizeof(int32_t), e);
	s->host_step = mem_zero(G, (DALLE_TABLES + 3) * sizeof(int32_t), e);
	s->host_token = mem_alloc(B, sizeof *s->host_token, e);
	s->host_key = mem_zero(B, sizeof *s->host_key, e);
	s->recorded = mem_zero(B + 1, sizeof *s->recorded, e);
	s->tokens = mem_alloc(B, N * sizeof *s->tokens, e);
	s->prefill.item = mem_alloc(2 * K + 1, sizeof *s->prefill.item, e);
	s->prefill.context = mem_alloc(2 * K + 1, sizeof *s->prefill.context, e);
	s->prefill.slot = mem_alloc(2 * K + 1, sizeof *s->prefill.slot, e);
	s->caption = mem_zero(K, sizeof *s->caption, e);
	s->job = mem_zero(B, sizeof *s->job, e);
	if (e->status)
		return -1;
	for (size_t i = 0; i < B; i++)
		s->job[i].tokens = s->tokens + i * N;
	return 0;
}

static void tell_memory(const struct sampler *s)
{
	struct stack_decode n = decode_sizes(s);
	uint64_t text, image;
	char a[24], b[24], c[24];
	stack_cache_bytes(&s->d->stack, &n, &text, &image);
	format_bytes(a, sizeof a, text);
	format_bytes(b, sizeof b, image);
	format_bytes(c, sizeof c, arena_bytes(&s->arena) - text - image);
	note(1, "caches: %s for the text of %d caption%s, %s for %d image sequence%s; %s to compute with", a, n.contexts,
	     plural((uint64_t)n.contexts), b, n.slots, plural((uint64_t)n.slots), c);
}

struct sampler *sampler_new(struct dalle *d, int batch, int captions, const struct sample_options *o, struct error *e)
{
	if (o->prefix_rows > d->c.grid_h) {
		fail(e, STATUS_USAGE, "prefix of %d rows, but the grid has %d", o->prefix_rows, d->c.grid_h);
		return NULL;
	}
	struct sampler *s = mem_zero(1, sizeof *s, e);
	if (!s)
		return NULL;
	*s = (struct sampler){.d = d, .o = *o, .batch = batch, .captions = captions, .kept = d->c.grid_w * o->prefix_rows};
	s->sequences = guided(s) ? 2 * batch : batch;
	s->group = prefix_states(s) < PREFILL_ROWS ? PREFILL_ROWS / prefix_states(s) : 1;
	if (s->group > 2 * captions)
		s->group = 2 * captions;
	arena_plan(&s->arena);
	layout(s);
	if (arena_alloc(&s->arena, d->params.ops, d->params.dev, "sampling caches", e) || take_host(s, e)) {
		sampler_free(s);
		return NULL;
	}
	layout(s);
	tell_memory(s);
	return s;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	arena_free(&s->arena);
	for (int i = 0; s->caption && i < s->captions; i++)
		record_free(&s->caption[i].record);
	free(s->host_prefill);
	free(s->host_step);
	free(s->host_token);
	free(s->host_key);
	free(s->recorded);
	free(s->tokens);
	free(s->prefill.item);
	free(s->prefill.context);
	free(s->prefill.slot);
	free(s->caption);
	free(s->job);
	free(s);
}

/* ---- queues ---- */

static struct caption *caption_at(const struct sampler *s, int i)
{
	return &s->caption[(s->first_caption + i) % s->captions];
}

static struct job *job_at(const struct sampler *s, int i)
{
	return &s->job[(s->first_job + i) % s->batch];
}

static int context_of(const struct sampler *s, const struct job *j)
{
	return (int)(j->caption - s->caption);
}

static int slot_of(const struct sampler *s, const struct job *j)
{
	return (int)(j - s->job);
}

bool sampler_wants(const struct sampler *s)
{
	return s->held < s->captions && s->waiting < s->batch - s->running;
}

bool sampler_idle(const struct sampler *s)
{
	return s->waiting == 0 && s->running == 0;
}

int sampler_submit(struct sampler *s, const struct record *r, int64_t n, struct error *e)
{
	struct caption *c = caption_at(s, s->held);
	if (record_copy(&c->record, r, e))
		return -1;
	c->samples = n;
	c->started = 0;
	c->ready = false;
	s->held++;
	s->waiting += n;
	return 0;
}

/* The next waiting sample takes a free slot. */
static void start_job(struct sampler *s, struct caption *c)
{
	struct job *j = job_at(s, s->running++);
	j->caption = c;
	j->number = (uint32_t)c->started++;
	j->key = sample_key(&c->record, j->number);
	j->p = s->kept;
	j->fresh = true;
	if (s->kept)
		memcpy(j->tokens, c->record.image.v, (size_t)s->kept * sizeof *j->tokens);
	s->waiting--;
}

/* Finished samples go, and captions whose last sample has gone. */
static void drop_finished(struct sampler *s)
{
	while (s->running && job_at(s, 0)->p == dalle_image_length(&s->d->c)) {
		const struct job *j = job_at(s, 0);
		if ((int64_t)j->number + 1 == j->caption->samples) {
			s->first_caption = (s->first_caption + 1) % s->captions;
			s->held--;
		}
		s->first_job = (s->first_job + 1) % s->batch;
		s->running--;
	}
	s->cursor = s->running;
}

/* ---- prefill ---- */

static void add_prefill(struct prefill *f, struct dalle_item item, int context, int slot)
{
	f->item[f->n] = item;
	f->context[f->n] = context;
	f->slot[f->n++] = slot;
}

/* A caption that starts, its prefix without caption, and before all others the empty caption. */
static void add_caption(struct sampler *s, struct caption *c)
{
	int context = (int)(c - s->caption);
	const struct record *r = &c->record;
	struct dalle_item with = {.text = r->text.v, .text_n = r->text.n, .image = r->image.v}, empty = with;
	empty.text_n = 0;
	add_prefill(&s->prefill, with, context, prefix_slot(s, context, false));
	if (guided(s) && (prefixed(s) || !s->empty_ready)) {
		add_prefill(&s->prefill, empty, s->captions, prefix_slot(s, context, true));
		s->empty_ready = true;
	}
	c->ready = true;
}

static void run_prefill(struct sampler *s)
{
	const struct dalle *d = s->d;
	struct prefill *f = &s->prefill;
	int states = prefix_states(s);
	for (int at = 0, k; at < f->n; at += k) {
		k = f->n - at < s->group ? f->n - at : s->group;
		size_t stride = (size_t)k * (size_t)states;
		for (int i = 0; i < k; i++)
			dalle_indices(d, &f->item[at + i], 0, states, s->host_prefill, stride, (size_t)i * (size_t)states);
		d->params.ops->put(d->params.dev, s->prefill_indices, s->host_prefill, stride * DALLE_TABLES * sizeof(int32_t));
		dalle_embed(d, stack_input(&s->d->stack), s->prefill_indices, stride, stride); /* (k, states, C) */
		stack_prefill(&s->d->stack, k, prefixed(s) ? s->o.prefix_rows : 0, f->context + at, f->slot + at);
	}
	f->n = 0;
}

/* Fresh samples get the states of their caption's prefix. */
static void copy_prefixes(struct sampler *s)
{
	for (int i = 0; i < s->running; i++) {
		struct job *j = job_at(s, i);
		if (j->fresh && prefixed(s)) {
			stack_copy_slot(&s->d->stack, slot_of(s, j), prefix_slot(s, context_of(s, j), false));
			if (guided(s))
				stack_copy_slot(&s->d->stack, s->batch + slot_of(s, j), prefix_slot(s, context_of(s, j), true));
		}
		j->fresh = false;
	}
}

static void start_waiting(struct sampler *s)
{
	bool draws = s->kept < dalle_image_length(&s->d->c);
	for (int i = 0; i < s->held; i++) {
		struct caption *c = caption_at(s, i);
		while (c->started < c->samples && s->running < s->batch) {
			if (!c->ready && draws)
				add_caption(s, c);
			start_job(s, c);
		}
	}
	run_prefill(s);
	copy_prefixes(s);
}

/* ---- one token ---- */

/* Row `row` of the step: the next state of a sample, or nothing. */
static void set_row(struct sampler *s, const struct job *j, bool empty, int row)
{
	const struct dalle *d = s->d;
	size_t G = (size_t)s->sequences, r = (size_t)row;
	int32_t *context = s->host_step + DALLE_TABLES * G, *slot = context + G, *pos = slot + G;
	context[r] = slot[r] = 0;
	pos[r] = -1;
	for (size_t i = 0; i < DALLE_TABLES; i++)
		s->host_step[i * G + r] = -1;
	if (!j)
		return;
	struct dalle_item item = {.image = j->tokens};
	int state = d->c.text_length + j->p;
	dalle_indices(d, &item, state, state + 1, s->host_step, G, r);
	context[r] = empty ? s->captions : context_of(s, j);
	slot[r] = (empty ? s->batch : 0) + slot_of(s, j);
	pos[r] = j->p;
}

/* The samples under way as rows 0 .. m-1, and without captions as m .. 2m-1. */
static void put_step(struct sampler *s, int m)
{
	const struct ops *ops = s->d->params.ops;
	for (int i = 0; i < m; i++) {
		const struct job *j = i < s->running ? job_at(s, i) : NULL;
		set_row(s, j, false, i);
		if (guided(s))
			set_row(s, j, true, m + i);
		s->host_key[i] = j ? j->key : 0;
	}
	ops->put(s->d->params.dev, s->step, s->host_step, (size_t)s->sequences * (DALLE_TABLES + 3) * sizeof(int32_t));
	ops->put(s->d->params.dev, s->key, s->host_key, (size_t)m * sizeof *s->host_key);
}

/* Normalised states of m samples from the last residual stream (rows, C), ready for the image head.
 * The head is linear, so mixing its inputs is mixing the logits: without + guidance (with - without). */
static const void *head_input(struct sampler *s, const float *h, int m)
{
	const struct ops *ops = s->d->params.ops;
	struct dev *dev = s->d->params.dev;
	const struct dalle *d = s->d;
	int C = d->c.width, rows = guided(s) ? 2 * m : m;
	size_t count = (size_t)m * (size_t)C;
	enum dtype t = ops->type(dev);
	ops->norm_fwd(dev, s->nx, s->mean, s->rstd, h, d->norm_w->w, d->norm_b->w, (size_t)rows, C,
	              guided(s) ? 0 : dalle_head_flags(d)); /* (rows, C) */
	if (!guided(s))
		return s->nx;
	float g = (float)s->o.guidance;
	const char *empty = (const char *)s->nx + count * dtype_bytes(t);
	ops->uncast(dev, s->without, empty, count, 1 - g);        /* (m, C) */
	ops->add(dev, s->x, s->without, s->nx, g, count);         /* (m, C) */
	if (t == DT_F32 || d->c.logits_f32)
		return s->x;
	ops->cast(dev, s->xt, s->x, count, 1, 0);
	return s->xt;
}

/* Everything between the rows' places and their tokens: it depends on device memory only. */
static void compute_step(struct sampler *s, int m)
{
	const struct dalle *d = s->d;
	const struct ops *ops = d->params.ops;
	struct dev *dev = d->params.dev;
	int rows = guided(s) ? 2 * m : m, flags = dalle_head_flags(d);
	size_t G = (size_t)s->sequences;
	const int32_t *context = s->step + DALLE_TABLES * G, *slot = context + G, *pos = slot + G;
	dalle_embed(d, stack_input(&s->d->stack), s->step, G, (size_t)rows);       /* (rows, C) */
	const float *h = stack_step(&s->d->stack, rows, context, slot, pos);       /* (rows, C) */
	const void *x = head_input(s, h, m);                                       /* (m, C) */
	ops->linear_fwd(dev, s->logits, x, d->image_head.w->t, d->image_head.b->w, (size_t)m, d->c.width, d->c.image_vocab,
	                flags ? flags : OP_OUT_F32);                               /* (m, V_I) */
	struct draw how = {.temperature = (float)s->o.temperature, .top_k = s->o.top_k, .top_p = (float)s->o.top_p,
	                   .seed = s->o.seed};
	ops->draw(dev, s->token, s->logits, s->key, pos, (size_t)m, d->c.image_vocab, &how);
}

static int rows_of_step(const struct sampler *s)
{
	int m = s->running <= EXACT_ROWS ? s->running : (int)round_up((size_t)s->running, EXACT_ROWS);
	return m < s->batch ? m : s->batch;
}

static int draw_tokens(struct sampler *s, struct error *e)
{
	const struct ops *ops = s->d->params.ops;
	struct dev *dev = s->d->params.dev;
	int m = rows_of_step(s);
	put_step(s, m);
	if (!s->recorded[m] || !ops->replay(dev, m)) {
		ops->record_begin(dev, m);
		compute_step(s, m);
		ops->record_end(dev, m);
		s->recorded[m] = true;
	}
	ops->get(dev, s->host_token, s->token, (size_t)m * sizeof *s->host_token);
	if (device_check(ops, dev, e))
		return -1;
	for (int i = 0; i < s->running; i++) {
		struct job *j = job_at(s, i);
		j->tokens[j->p++] = (uint32_t)s->host_token[i];
	}
	return 0;
}

int sampler_step(struct sampler *s, struct error *e)
{
	drop_finished(s);
	start_waiting(s);
	if (s->running == 0)
		return 0;
	s->cursor = 0;
	return s->kept < dalle_image_length(&s->d->c) && draw_tokens(s, e) ? -1 : 1;
}

bool sampler_next(struct sampler *s, struct sample *out)
{
	int W = s->d->c.grid_w;
	while (s->cursor < s->running) {
		const struct job *j = job_at(s, s->cursor++);
		if (j->p % W)
			continue;
		*out = (struct sample){&j->caption->record, j->number, j->tokens, j->p / W};
		return true;
	}
	drop_finished(s);
	return false;
}
