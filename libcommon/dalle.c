/* dalle.c - see dalle.h.  Embeddings are looked up by indices that the host computes (-1: none), so that all of C9
 * is in dalle_indices.  Only states that have a target go through the final norm and the heads: they are gathered,
 * text first, and each head works on its own rows in chunks that bound the memory of the logits. */
#include "dalle.h"

#include "device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
	GATHER_STEP = 128,      /* text rows are rounded up to this: few different shapes for the device */
	LOGITS_CHUNK = 1 << 22, /* most logits computed at once; but at least one GATHER_STEP of rows */
};

/* ---- weights ---- */

static int describe_tables(struct dalle *d, double init, struct error *e)
{
	const struct dalle_config *c = &d->c;
	float std = (float)(init / sqrt(c->width)), half = (float)(init / sqrt(2.0 * c->width));
	const struct {
		const char *name;
		int rows;
		float std;
	} rows[DALLE_TABLES] = {
		[TABLE_TEXT] = {"text.embed.weight", c->text_vocab + 1, std},
		[TABLE_POSITION] = {"text.position.weight", c->text_length, std},
		[TABLE_PAD] = {"text.pad.weight", c->text_length, std},
		[TABLE_IMAGE] = {"image.embed.weight", c->image_vocab + 1, std},
		[TABLE_ROW] = {"image.row.weight", c->grid_h, half}, /* two position tables are summed (C29) */
		[TABLE_COLUMN] = {"image.column.weight", c->grid_w, half},
	};
	for (int i = 0; i < DALLE_TABLES; i++)
		if (params_add(&d->params, &d->table[i], PARAM_EMBED, rows[i].std, -1, 2,
		               (int64_t[]){rows[i].rows, c->width}, e, "%s", rows[i].name))
			return -1;
	return 0;
}

static int describe_head(struct dalle *d, struct dalle_head *h, const char *name, int V, struct error *e)
{
	enum param_kind kind = d->c.logits_f32 ? PARAM_MATRIX_F32 : PARAM_MATRIX;
	h->V = V;
	if (params_add(&d->params, &h->w, kind, 0, -1, 2, (int64_t[]){V, d->c.width}, e, "%s.head.weight", name) ||
	    params_add(&d->params, &h->b, PARAM_BIAS, 0, -1, 1, (int64_t[]){V}, e, "%s.head.bias", name))
		return -1;
	return 0;
}

static int describe_stack(struct dalle *d, double init, bool recompute, struct error *e)
{
	const struct dalle_config *c = &d->c;
	struct attn_mask *masks = mem_alloc((size_t)c->layers, sizeof *masks, e);
	if (!masks)
		return -1;
	for (int i = 0; i < c->layers; i++)
		masks[i] = dalle_mask_of(c, i);
	struct stack_config s = {.layers = c->layers, .width = c->width, .heads = c->heads, .recompute = recompute, .masks = masks};
	stack_init_child(&s);
	float scale = (float)(init / 0.125);
	s.std_qkv *= scale, s.std_out *= scale, s.std_up *= scale, s.std_down *= scale;
	int r = stack_rows(&d->stack, &d->params, "blocks.", 0, &s, e);
	free(masks);
	return r;
}

int dalle_describe(struct dalle *d, const struct dalle_config *c, double init, bool recompute, struct error *e)
{
	*d = (struct dalle){.c = *c, .head_unit = c->logits_f32 ? -1 : 2 * c->layers};
	int64_t C = c->width;
	if (dalle_config_check(c, e) || describe_tables(d, init, e) || describe_stack(d, init, recompute, e) ||
	    params_add(&d->params, &d->norm_w, PARAM_GAIN, 0, -1, 1, (int64_t[]){C}, e, "norm.weight") ||
	    params_add(&d->params, &d->norm_b, PARAM_SHIFT, 0, -1, 1, (int64_t[]){C}, e, "norm.bias") ||
	    describe_head(d, &d->text_head, "text", c->text_vocab, e) ||
	    describe_head(d, &d->image_head, "image", c->image_vocab, e))
		return -1;
	return 0;
}

int dalle_build(struct dalle *d, const struct ops *ops, struct dev *dev, bool training, struct error *e)
{
	if (params_build(&d->params, ops, dev, training, e))
		return -1;
	/* Heads in T take part in the gradient scales as if they were one more resblock after those of the stack. */
	struct param *rows[] = {d->norm_w, d->norm_b, d->text_head.w, d->text_head.b, d->image_head.w, d->image_head.b};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		rows[i]->unit = d->head_unit;
	return 0;
}

static void copy_id(char id[ID_LENGTH + 1], const char *s)
{
	snprintf(id, ID_LENGTH + 1, "%s", s ? s : "");
}

static int open_from(struct dalle *d, const struct weights *w, const struct ops *ops, struct dev *dev, struct error *e)
{
	struct dalle_config c;
	if (weights_need_kind(w, "dalle", e) || dalle_config_parse(&c, weights_config(w), weights_path(w), e) ||
	    dalle_describe(d, &c, 0, false, e) || params_fit(&d->params, w, "", e) || dalle_build(d, ops, dev, false, e) ||
	    params_load(&d->params, BLOCK_W, w, "", e))
		return -1;
	params_refresh(&d->params);
	copy_id(d->id, weights_meta(w, "dalle.id"));
	copy_id(d->text_id, weights_meta(w, "dalle.text_id"));
	copy_id(d->image_id, weights_meta(w, "dalle.image_id"));
	return 0;
}

int dalle_open(struct dalle *d, const char *path, const struct ops *ops, struct dev *dev, struct error *e)
{
	*d = (struct dalle){0};
	struct weights *w = weights_open(path, e);
	if (!w)
		return -1;
	int r = open_from(d, w, ops, dev, e);
	weights_close(w);
	return r;
}

void dalle_free(struct dalle *d)
{
	if (d->params.dev)
		arena_free(&d->arena);
	stack_free(&d->stack);
	params_free(&d->params);
	free(d->host_indices);
	free(d->host_nll);
	free(d->item_loss);
	free(d->item_text);
	*d = (struct dalle){0};
}

/* ---- activation memory ---- */

int dalle_head_flags(const struct dalle *d)
{
	return d->c.logits_f32 ? OP_F32 : 0;
}

static size_t head_bytes(const struct dalle *d)
{
	return d->c.logits_f32 ? 4 : dtype_bytes(d->params.ops->type(d->params.dev));
}

static void set_capacity(struct dalle *d, int batch, bool backward)
{
	size_t B = (size_t)batch, V = (size_t)(d->c.text_vocab > d->c.image_vocab ? d->c.text_vocab : d->c.image_vocab);
	d->batch = batch;
	d->backward = backward;
	d->gather_cap = round_up(B * (size_t)d->c.text_length, GATHER_STEP) + B * (size_t)dalle_image_length(&d->c);
	d->chunk = round_up(LOGITS_CHUNK / V + 1, GATHER_STEP);
	if (d->chunk > d->gather_cap)
		d->chunk = d->gather_cap;
}

static void layout(struct dalle *d, struct arena *a)
{
	size_t C = (size_t)d->c.width, n = d->gather_cap, t = head_bytes(d);
	size_t rows = (size_t)d->batch * (size_t)dalle_length(&d->c);
	size_t V = (size_t)(d->c.text_vocab > d->c.image_vocab ? d->c.text_vocab : d->c.image_vocab);
	stack_layout(&d->stack, a, d->backward ? STACK_TRAIN : STACK_INFER, d->batch, dalle_length(&d->c));
	d->indices = arena_take_n(a, DALLE_TABLES * rows + 2 * n, 4);
	d->hx = arena_take_n(a, n, C * 4);
	d->mean = arena_take_n(a, n, 4);
	d->rstd = arena_take_n(a, n, 4);
	d->nx = arena_take_n(a, n, C * t);
	d->logits = arena_take_n(a, d->chunk, V * 4);
	d->nll = arena_take_n(a, n, 4);
	if (!d->backward)
		return;
	d->dlogits = arena_take_n(a, d->chunk, V * t);
	d->dnx = arena_take_n(a, n, C * t);
	d->dhx = arena_take_n(a, n, C * 4);
	d->dh = arena_take_n(a, rows, C * 4);
}

uint64_t dalle_plan_bytes(struct dalle *d, int batch, bool backward, const struct ops *ops, struct dev *dev)
{
	d->params.ops = ops;
	d->params.dev = dev;
	set_capacity(d, batch, backward);
	arena_plan(&d->arena);
	layout(d, &d->arena);
	return arena_bytes(&d->arena);
}

int dalle_plan(struct dalle *d, int batch, bool backward, struct error *e)
{
	dalle_plan_bytes(d, batch, backward, d->params.ops, d->params.dev);
	if (arena_alloc(&d->arena, d->params.ops, d->params.dev, "transformer activations", e))
		return -1;
	layout(d, &d->arena);
	size_t rows = (size_t)batch * (size_t)dalle_length(&d->c);
	d->host_indices = mem_alloc(DALLE_TABLES * rows + 2 * d->gather_cap, 4, e);
	d->host_nll = mem_alloc(d->gather_cap, sizeof *d->host_nll, e);
	d->item_loss = mem_alloc((size_t)batch, 2 * sizeof *d->item_loss, e);
	d->item_text = mem_alloc((size_t)batch, sizeof *d->item_text, e);
	return d->host_indices && d->host_nll && d->item_loss && d->item_text ? 0 : -1;
}

/* ---- what fits ---- */

static int check_codec(const char *what, const char *have, const char *want, const char *file, const char *model,
                       struct error *e)
{
	if (strcmp(have, want) == 0)
		return 0;
	return fail(e, STATUS_BAD, "%s: %s tokens of %s, but %s was trained on %s", file, what, *have ? have : "no codec", model,
	            *want ? want : "none");
}

int dalle_check_stream(const struct dalle *d, const char *model, const struct header *h, const char *file, bool image,
                       struct error *e)
{
	const struct dalle_config *c = &d->c;
	if (check_codec("text", h->text.id, d->text_id, file, model, e))
		return -1;
	if (h->text.size != (uint32_t)c->text_vocab)
		return fail(e, STATUS_BAD, "%s: vocabulary of %u token%s, but %s has %d", file, h->text.size, plural(h->text.size), model,
		            c->text_vocab);
	if (!image)
		return 0;
	if (check_codec("image", h->image.id, d->image_id, file, model, e))
		return -1;
	if (h->image.size != (uint32_t)c->image_vocab || h->image.grid_width != (uint32_t)c->grid_w ||
	    h->image.grid_height != (uint32_t)c->grid_h)
		return fail(e, STATUS_BAD, "%s: grid of %ux%u codes of %u, but %s has %dx%d of %d", file, h->image.grid_width,
		            h->image.grid_height, h->image.size, model, c->grid_w, c->grid_h, c->image_vocab);
	return 0;
}

static int check_tokens(const struct tokens *t, int vocab, const char *what, const struct record *rec, const char *file,
                        struct error *e)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i] >= (uint32_t)vocab)
			return fail(e, STATUS_BAD, "%s: record '%.64s': %s token %u, expected less than %d", file,
			            rec->key.n ? (const char *)rec->key.p : "", what, t->v[i], vocab);
	return 0;
}

int dalle_check_record(const struct dalle *d, const struct record *rec, const char *file, bool image, struct error *e)
{
	const char *key = rec->key.n ? (const char *)rec->key.p : "";
	size_t n = (size_t)dalle_image_length(&d->c);
	if (!rec->text.present)
		return fail(e, STATUS_BAD, "%s: record '%.64s' has no text tokens (bpe-encode adds them)", file, key);
	if (image && (!rec->image.present || rec->image.n != n))
		return fail(e, STATUS_BAD, "%s: record '%.64s' has %zu image token%s, expected %zu (dvae-encode adds them)", file, key,
		            rec->image.n, plural(rec->image.n), n);
	if (check_tokens(&rec->text, d->c.text_vocab, "text", rec, file, e) ||
	    (image && check_tokens(&rec->image, d->c.image_vocab, "image", rec, file, e)))
		return -1;
	return 0;
}

/* ---- embeddings (C9) ---- */

static int caption_length(const struct dalle *d, const struct dalle_item *item)
{
	size_t most = (size_t)d->c.text_length - 1;
	return (int)(item->text_n < most ? item->text_n : most);
}

static void state_indices(const struct dalle *d, const struct dalle_item *item, int state, int32_t row[DALLE_TABLES])
{
	int p = state - d->c.text_length, L = caption_length(d, item);
	for (int i = 0; i < DALLE_TABLES; i++)
		row[i] = -1;
	if (p >= 0) {
		bool hidden = p && item->hidden && item->hidden[p - 1];
		row[TABLE_IMAGE] = hidden ? -1 : p ? (int32_t)item->image[p - 1] : d->c.image_vocab;
		row[TABLE_ROW] = p / d->c.grid_w;
		row[TABLE_COLUMN] = p % d->c.grid_w;
	} else if (state <= L) {
		row[TABLE_TEXT] = state ? (int32_t)item->text[state - 1] : d->c.text_vocab;
		row[TABLE_POSITION] = state;
	} else {
		row[TABLE_PAD] = state;
	}
}

void dalle_indices(const struct dalle *d, const struct dalle_item *item, int from, int to, int32_t *idx, size_t stride,
                   size_t at)
{
	for (int s = from; s < to; s++) {
		int32_t row[DALLE_TABLES];
		state_indices(d, item, s, row);
		for (size_t i = 0; i < DALLE_TABLES; i++)
			idx[i * stride + at + (size_t)(s - from)] = row[i];
	}
}

void dalle_embed(const struct dalle *d, float *h, const int32_t *idx, size_t stride, size_t rows)
{
	for (int i = 0; i < DALLE_TABLES; i++)
		d->params.ops->embed_fwd(d->params.dev, h, d->table[i]->w, idx + (size_t)i * stride, rows, d->c.width, i > 0);
}

/* ---- likelihood ---- */

/* How one batch lies in the gathered rows: text (padded to text_rows), then image. */
struct batch {
	int n;
	size_t rows;                  /* n * S */
	size_t text_rows, image_rows; /* text_rows is a multiple of GATHER_STEP */
	int32_t *gather, *target;     /* host, text_rows + image_rows each */
	const int32_t *d_gather, *d_target;
};

static void batch_text(struct dalle *d, const struct dalle_item *items, struct batch *b)
{
	size_t k = 0;
	for (int i = 0; i < b->n; i++) {
		d->item_text[i] = caption_length(d, &items[i]);
		d->cut += (size_t)d->item_text[i] < items[i].text_n;
		for (int j = 0; j < d->item_text[i]; j++, k++) {
			b->gather[k] = i * dalle_length(&d->c) + j;
			b->target[k] = (int32_t)items[i].text[j];
		}
	}
	for (b->text_rows = round_up(k, GATHER_STEP); k < b->text_rows; k++)
		b->gather[k] = b->target[k] = -1;
}

static void batch_image(const struct dalle *d, const struct dalle_item *items, struct batch *b)
{
	size_t k = b->text_rows;
	for (int i = 0; i < b->n; i++)
		for (int p = 0; p < dalle_image_length(&d->c); p++, k++) {
			b->gather[k] = i * dalle_length(&d->c) + d->c.text_length + p;
			b->target[k] = (int32_t)items[i].image[p];
		}
	b->image_rows = k - b->text_rows;
}

/* Indices of the whole batch on the device: the tables' blocks, then what is gathered, then its targets. */
static struct batch batch_prepare(struct dalle *d, const struct dalle_item *items, int n)
{
	size_t rows = (size_t)n * (size_t)dalle_length(&d->c), at = DALLE_TABLES * rows;
	struct batch b = {.n = n, .rows = rows, .gather = d->host_indices + at, .d_gather = d->indices + at};
	b.target = b.gather + d->gather_cap;
	b.d_target = b.d_gather + d->gather_cap;
	for (int i = 0; i < n; i++)
		dalle_indices(d, &items[i], 0, dalle_length(&d->c), d->host_indices, rows, (size_t)i * (size_t)dalle_length(&d->c));
	batch_text(d, items, &b);
	batch_image(d, items, &b);
	size_t count = at + d->gather_cap + b.text_rows + b.image_rows;
	d->params.ops->put(d->params.dev, d->indices, d->host_indices, count * 4);
	return b;
}

/* Logits, losses and (with backward) the gradients of one head for gathered rows from .. from + rows - 1. */
static void head_pass(const struct dalle *d, const struct dalle_head *h, const struct batch *b, size_t from, size_t rows,
                      bool backward, double scale)
{
	const struct ops *ops = d->params.ops;
	struct dev *dev = d->params.dev;
	int C = d->c.width, flags = dalle_head_flags(d);
	size_t t = head_bytes(d) * (size_t)C;
	for (size_t at = from, n; at < from + rows; at += n) {
		n = from + rows - at < d->chunk ? from + rows - at : d->chunk;
		const void *x = (const char *)d->nx + at * t; /* (n, C) */
		ops->linear_fwd(dev, d->logits, x, h->w->t, h->b->w, n, C, h->V, flags ? flags : OP_OUT_F32); /* (n, V) */
		ops->xent(dev, d->nll + at, backward ? d->dlogits : NULL, d->logits, b->d_target + at, n, h->V, (float)scale, flags);
		if (backward)
			ops->linear_bwd(dev, (char *)d->dnx + at * t, h->w->g, h->b->g, d->dlogits, x, h->w->t, n, C, h->V,
			                flags | params_dw(&d->params, h->w));
	}
}

static void backward_pass(struct dalle *d, const struct batch *b)
{
	const struct ops *ops = d->params.ops;
	struct dev *dev = d->params.dev;
	int C = d->c.width;
	size_t n = b->text_rows + b->image_rows;
	ops->norm_bwd(dev, d->dhx, d->norm_w->g, d->norm_b->g, d->dnx, d->hx, d->norm_w->w, d->mean, d->rstd, n, C,
	              1 / grad_scale_enter(&d->params.scales, d->head_unit), dalle_head_flags(d), NULL); /* (n, C) */
	ops->zero(dev, d->dh, b->rows * (size_t)C * 4);
	ops->embed_bwd(dev, d->dh, d->dhx, b->d_gather, n, C); /* the gather's adjoint: (B, S, C) */
	stack_backward(&d->stack, d->dh, b->n);
	for (size_t i = 0; i < DALLE_TABLES; i++)
		ops->embed_bwd(dev, d->table[i]->g, d->dh, d->indices + i * b->rows, b->rows, C);
}

static void sum_losses(struct dalle *d, const struct batch *b, struct dalle_loss *out)
{
	const float *nll = d->host_nll;
	*out = (struct dalle_loss){.text_of = d->item_loss, .image_of = d->item_loss + d->batch, .text_n = d->item_text};
	for (int i = 0; i < b->n; i++) {
		out->text_of[i] = out->image_of[i] = 0;
		for (int j = 0; j < d->item_text[i]; j++)
			out->text_of[i] += *nll++;
		out->text += out->text_of[i];
		out->text_count += d->item_text[i];
	}
	nll = d->host_nll + b->text_rows;
	for (int i = 0; i < b->n; i++) {
		for (int p = 0; p < dalle_image_length(&d->c); p++)
			out->image_of[i] += *nll++;
		out->image += out->image_of[i];
	}
	out->image_count = (int64_t)b->image_rows;
}

int dalle_likelihood(struct dalle *d, const struct dalle_item *items, int n, bool backward, double scale,
                     struct dalle_loss *out, struct error *e)
{
	const struct ops *ops = d->params.ops;
	struct dev *dev = d->params.dev;
	struct batch b = batch_prepare(d, items, n);
	int64_t text_count = 0;
	for (int i = 0; i < n; i++)
		text_count += d->item_text[i];
	size_t gathered = b.text_rows + b.image_rows;
	dalle_embed(d, stack_input(&d->stack), d->indices, b.rows, b.rows);              /* (B, S, C) */
	const float *h = stack_forward(&d->stack, n);                                    /* (B, S, C) */
	ops->embed_fwd(dev, d->hx, h, b.d_gather, gathered, d->c.width, 0);              /* (gathered, C) */
	ops->norm_fwd(dev, d->nx, d->mean, d->rstd, d->hx, d->norm_w->w, d->norm_b->w, gathered, d->c.width,
	              dalle_head_flags(d));                                              /* (gathered, C) */
	scale *= (double)grad_scale_loss(&d->params.scales) * (double)grad_scale_enter(&d->params.scales, d->head_unit);
	double text = text_count ? scale * DALLE_TEXT_SHARE / (double)text_count : 0;
	head_pass(d, &d->text_head, &b, 0, b.text_rows, backward, text);
	head_pass(d, &d->image_head, &b, b.text_rows, b.image_rows, backward, scale * DALLE_IMAGE_SHARE / (double)b.image_rows);
	if (backward)
		backward_pass(d, &b);
	ops->get(dev, d->host_nll, d->nll, gathered * sizeof *d->host_nll);
	if (device_check(ops, dev, e))
		return -1;
	sum_losses(d, &b, out);
	return 0;
}
