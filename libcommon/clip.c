/* clip.c - both towers of CLIP over ops (recipe H3, H4): weights, forward, backward.  Rows are picked out of
 * sequences (the class state, the end-of-text state) with the embedding op, whose adjoint puts the gradient back. */
#include "clip.h"

#include "device.h"
#include "image.h"
#include "rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Activations.  P = G + 1 image states, S = context. */
struct clip_buffers {
	uint8_t *rgb;      /* (B, size, size, 3) */
	float *x;          /* (B, size, size, 3) normalised pixels */
	float *patches;    /* (B, G, 3 * patch^2) */
	void *patches_t;   /* the same as T */
	float *embedded;   /* (B * G, image_width) patch embeddings */
	float *pre;        /* (B, P, image_width) sum of embeddings, input of the first norm */
	float *pre_mean, *pre_rstd;
	int32_t *class_idx, *pos_idx, *patch_idx; /* (B * P) rows of class_embed, image_pos, embedded; -1: none */
	int32_t *first_idx;                       /* (B) the class state of each picture */
	int32_t *token_idx, *text_pos_idx;        /* (B * S) */
	int32_t *end_idx;                         /* (B) state of each caption's end token */
	struct clip_head {
		float *row;          /* (B, width) the state that stands for the whole */
		float *norm, *mean, *rstd;
		float *proj;         /* (B, E) */
		float *unit, *rnorm; /* (B, E) (B) */
		float *dunit, *dproj, *dnorm, *drow;
	} image, text;
	float *sim, *dsim;   /* (B, B) cosines */
	float *loss, *ds;    /* (1) */
	int32_t *group;      /* (B) */
	float *dimage, *dtext; /* gradients of the residual streams (B, P, image_width), (B, S, text_width) */
	float *dpre;           /* (B, P, image_width) */
	float *dembedded;      /* (B * G, image_width) */
	void *dembedded_t;
};

/* ---- configuration ---- */

static const struct {
	const char *name;
	struct clip_config c;
} presets[] = {
	/* size patch, image: width layers heads, context vocabulary, text: width layers heads, embed, gelu closed,
	 * lr decay warm-up average augment, hidden widths */
	{"tiny",     {16, 8, 32, 2, 2, 24, 0, 32, 2, 2, 32, 0, 0, 1e-3, 0.1, 10, 0.999, CLIP_SHIFT, 0, 0}},
	{"small",    {64, 8, 128, 3, 4, 32, 0, 128, 2, 4, 128, 0, 0, 1e-3, 0.1, 50, 0.999, CLIP_SHIFT, 0, 0}},
	{"vit-b-32", {224, 32, 768, 12, 12, 77, 49408, 512, 12, 8, 512, 0, 0, 5e-4, 0.2, 2000, 0, CLIP_CROP, 0, 0}},
};

int clip_preset(const char *name, struct clip_config *c, struct error *e)
{
	for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
		if (strcmp(presets[i].name, name) == 0) {
			*c = presets[i].c;
			return 0;
		}
	}
	return fail(e, STATUS_USAGE, "preset '%s' is unknown, expected tiny, small or vit-b-32", name);
}

/* Names and places of the integer fields: one list for writing and reading. */
#define FIELDS(X) \
	X(size) X(patch) X(image_width) X(image_layers) X(image_heads) X(context) X(vocabulary) X(text_width) \
	X(text_layers) X(text_heads) X(embed) X(exact_gelu)

json_t *clip_config_json(const struct clip_config *c)
{
	json_t *j = json_object();
#define PUT(f) json_object_set_new(j, #f, json_integer(c->f));
	FIELDS(PUT)
#undef PUT
	if (c->closed)
		json_object_set_new(j, "closed", json_true());
	return j;
}

static int64_t patches(const struct clip_config *c)
{
	return c->size / c->patch * (c->size / c->patch);
}

enum { MAX_SIZE = 1 << 16 }; /* of widths and of the context */

static int check_tower(const char *which, int64_t width, int64_t layers, int64_t heads, struct error *e)
{
	if (width < 1 || width > MAX_SIZE)
		return fail(e, STATUS_BAD, "%s width %lld is out of range, expected 1 to %d", which, (long long)width, MAX_SIZE);
	if (layers < 1 || layers > STACK_MAX_LAYERS)
		return fail(e, STATUS_BAD, "%lld %s layers, expected 1 to %d", (long long)layers, which, STACK_MAX_LAYERS);
	if (heads < 1 || width % heads)
		return fail(e, STATUS_BAD, "%s width %lld is not a multiple of %lld heads", which, (long long)width,
		            (long long)heads);
	return 0;
}

static int check_config(const struct clip_config *c, struct error *e)
{
	if (c->size < 1 || c->size > 4096 || c->patch < 1 || c->size % c->patch)
		return fail(e, STATUS_BAD, "picture size %lld is not a multiple of the patch %lld", (long long)c->size,
		            (long long)c->patch);
	if (c->context < 2 || c->context > MAX_SIZE || c->vocabulary < 3 || c->vocabulary > 1 << 24)
		return fail(e, STATUS_BAD, "context %lld or vocabulary %lld is out of range", (long long)c->context,
		            (long long)c->vocabulary);
	if (c->embed < 1 || c->embed > MAX_SIZE)
		return fail(e, STATUS_BAD, "shared width %lld is out of range, expected 1 to %d", (long long)c->embed,
		            MAX_SIZE);
	if (check_tower("image", c->image_width, c->image_layers, c->image_heads, e))
		return -1;
	if (c->image_hidden < 0 || c->image_hidden > MAX_SIZE || c->text_hidden < 0 || c->text_hidden > MAX_SIZE)
		return fail(e, STATUS_BAD, "MLP width %lld or %lld is out of range, expected 1 to %d", (long long)c->image_hidden,
		            (long long)c->text_hidden, MAX_SIZE);
	return check_tower("text", c->text_width, c->text_layers, c->text_heads, e);
}

int clip_config_from_json(struct clip_config *c, const json_t *j, const char *file, struct error *e)
{
	struct clip_config r = *c;
#define GET(f) \
	if (!json_is_integer(json_object_get(j, #f))) \
		return fail(e, STATUS_BAD, "%s: config has no whole number '%s'", file, #f); \
	r.f = json_integer_value(json_object_get(j, #f));
	FIELDS(GET)
#undef GET
	r.closed = json_is_true(json_object_get(j, "closed"));
	r.image_hidden = r.text_hidden = 0;
	*c = r;
	struct error inner = {0};
	if (check_config(c, &inner))
		return fail(e, STATUS_BAD, "%s: %s", file, inner.text);
	return 0;
}

/* ---- weights ---- */

/* The patch embedding computes in T as well: a unit of gradient scale after the resblocks of both towers. */
static int patch_unit(const struct clip_config *c)
{
	return 2 * (int)(c->image_layers + c->text_layers);
}

static int image_rows(struct clip *m, struct error *e)
{
	const struct clip_config *c = &m->config;
	struct params *p = &m->params;
	int64_t W = c->image_width, k = c->patch;
	float std = 1 / sqrtf((float)W);
	struct attn_mask *masks = mem_zero((size_t)c->image_layers, sizeof *masks, e);
	if (!masks)
		return -1;
	for (int64_t i = 0; i < c->image_layers; i++)
		masks[i] = (struct attn_mask){.kind = ATTN_FULL, .n_text = (int)patches(c) + 1};
	struct stack_config s = {.layers = (int)c->image_layers, .width = (int)W, .heads = (int)c->image_heads,
	                         .hidden = (int)c->image_hidden, .exact_gelu = c->exact_gelu, .key_bias = true, .masks = masks};
	stack_init_clip(&s);
	/* The public code leaves the patch convolution at the framework's default, U(+-1/sqrt(fan in)). */
	int r = params_add(p, &m->patch_w, PARAM_MATRIX, 1 / sqrtf(9.0f * (float)(k * k)), -1, 4, (int64_t[]){W, 3, k, k}, e,
	                   "visual.conv1.weight") ||
	        params_add(p, &m->class_embed, PARAM_EMBED, std, -1, 2, (int64_t[]){1, W}, e, "visual.class_embedding") ||
	        params_add(p, &m->image_pos, PARAM_EMBED, std, -1, 2, (int64_t[]){patches(c) + 1, W}, e,
	                   "visual.positional_embedding") ||
	        params_add(p, &m->pre_w, PARAM_GAIN, 0, -1, 1, &W, e, "visual.ln_pre.weight") ||
	        params_add(p, &m->pre_b, PARAM_SHIFT, 0, -1, 1, &W, e, "visual.ln_pre.bias") ||
	        stack_rows(&m->image_stack, p, "visual.blocks.", 0, &s, e) ||
	        params_add(p, &m->post_w, PARAM_GAIN, 0, -1, 1, &W, e, "visual.ln_post.weight") ||
	        params_add(p, &m->post_b, PARAM_SHIFT, 0, -1, 1, &W, e, "visual.ln_post.bias") ||
	        params_add(p, &m->image_proj, PARAM_MATRIX_F32, std, -1, 2, (int64_t[]){c->embed, W}, e, "visual.proj.weight");
	free(masks);
	return r ? -1 : 0;
}

static int text_rows(struct clip *m, struct error *e)
{
	const struct clip_config *c = &m->config;
	struct params *p = &m->params;
	int64_t W = c->text_width;
	struct attn_mask *masks = mem_zero((size_t)c->text_layers, sizeof *masks, e);
	if (!masks)
		return -1;
	for (int64_t i = 0; i < c->text_layers; i++)
		masks[i] = (struct attn_mask){.kind = ATTN_CAUSAL, .n_text = (int)c->context};
	struct stack_config s = {.layers = (int)c->text_layers, .width = (int)W, .heads = (int)c->text_heads,
	                         .hidden = (int)c->text_hidden, .exact_gelu = c->exact_gelu, .key_bias = true, .masks = masks};
	stack_init_clip(&s);
	int r = params_add(p, &m->token_embed, PARAM_EMBED, 0.02f, -1, 2, (int64_t[]){c->vocabulary, W}, e,
	                   "token_embedding.weight") ||
	        params_add(p, &m->text_pos, PARAM_EMBED, 0.01f, -1, 2, (int64_t[]){c->context, W}, e, "positional_embedding") ||
	        stack_rows(&m->text_stack, p, "text.blocks.", 2 * (int)c->image_layers, &s, e) ||
	        params_add(p, &m->final_w, PARAM_GAIN, 0, -1, 1, &W, e, "ln_final.weight") ||
	        params_add(p, &m->final_b, PARAM_SHIFT, 0, -1, 1, &W, e, "ln_final.bias") ||
	        params_add(p, &m->text_proj, PARAM_MATRIX_F32, 1 / sqrtf((float)W), -1, 2, (int64_t[]){c->embed, W}, e,
	                   "text_projection.weight") ||
	        params_add(p, &m->scale, PARAM_SCALAR, logf(1 / 0.07f), -1, 1, (int64_t[]){1}, e, "logit_scale");
	free(masks);
	return r ? -1 : 0;
}

/* ---- activation memory ---- */

static void take_head(struct clip_head *h, struct arena *a, size_t B, size_t width, size_t E, bool training)
{
	h->row = arena_take_n(a, B, width * 4);
	h->norm = arena_take_n(a, B, width * 4);
	h->mean = arena_take_n(a, B, 4);
	h->rstd = arena_take_n(a, B, 4);
	h->proj = arena_take_n(a, B, E * 4);
	h->unit = arena_take_n(a, B, E * 4);
	h->rnorm = arena_take_n(a, B, 4);
	if (!training)
		return;
	h->dunit = arena_take_n(a, B, E * 4);
	h->dproj = arena_take_n(a, B, E * 4);
	h->dnorm = arena_take_n(a, B, width * 4);
	h->drow = arena_take_n(a, B, width * 4);
}

static void take_gradients(struct clip *m, struct arena *a, size_t B, size_t t)
{
	const struct clip_config *c = &m->config;
	struct clip_buffers *b = m->buf;
	size_t G = (size_t)patches(c), W = (size_t)c->image_width;
	b->sim = arena_take_n(a, B * B, 4);
	b->dsim = arena_take_n(a, B * B, 4);
	b->loss = arena_take(a, 4);
	b->ds = arena_take(a, 4);
	b->group = arena_take_n(a, B, 4);
	b->dimage = arena_take_n(a, B * (G + 1), W * 4);
	b->dpre = arena_take_n(a, B * (G + 1), W * 4);
	b->dembedded = arena_take_n(a, B * G, W * 4);
	b->dembedded_t = arena_take_n(a, B * G, W * t);
	b->dtext = arena_take_n(a, B * (size_t)c->context, (size_t)c->text_width * 4);
}

static void layout(struct clip *m, struct arena *a)
{
	const struct clip_config *c = &m->config;
	struct clip_buffers *b = m->buf;
	size_t B = (size_t)m->batch, t = dtype_bytes(m->ops->type(m->dev)), E = (size_t)c->embed;
	size_t pixels = (size_t)(c->size * c->size) * 3, G = (size_t)patches(c), P = G + 1, S = (size_t)c->context;
	size_t W = (size_t)c->image_width, in = (size_t)(3 * c->patch * c->patch);
	enum stack_use use = m->training ? STACK_TRAIN : STACK_INFER;
	b->rgb = arena_take_n(a, B, pixels);
	b->x = arena_take_n(a, B, pixels * 4);
	b->patches = arena_take_n(a, B * G, in * 4);
	b->patches_t = arena_take_n(a, B * G, in * t);
	b->embedded = arena_take_n(a, B * G, W * 4);
	b->pre = arena_take_n(a, B * P, W * 4);
	b->pre_mean = arena_take_n(a, B * P, 4);
	b->pre_rstd = arena_take_n(a, B * P, 4);
	b->class_idx = arena_take_n(a, B * P, 4);
	b->pos_idx = arena_take_n(a, B * P, 4);
	b->patch_idx = arena_take_n(a, B * P, 4);
	b->first_idx = arena_take_n(a, B, 4);
	b->token_idx = arena_take_n(a, B * S, 4);
	b->text_pos_idx = arena_take_n(a, B * S, 4);
	b->end_idx = arena_take_n(a, B, 4);
	take_head(&b->image, a, B, W, E, m->training);
	take_head(&b->text, a, B, (size_t)c->text_width, E, m->training);
	stack_layout(&m->image_stack, a, use, m->batch, (int)P);
	stack_layout(&m->text_stack, a, use, m->batch, (int)S);
	if (m->training)
		take_gradients(m, a, B, t);
}

/* Index tables that do not depend on the data. */
static int put_indices(struct clip *m, struct error *e)
{
	size_t B = (size_t)m->batch, G = (size_t)patches(&m->config), P = G + 1, S = (size_t)m->config.context;
	size_t most = B * (P > S ? P : S);
	int32_t *v = mem_alloc(most, 4, e);
	if (!v)
		return -1;
	for (size_t i = 0; i < B * P; i++)
		v[i] = i % P ? -1 : 0;
	m->ops->put(m->dev, m->buf->class_idx, v, B * P * 4);
	for (size_t i = 0; i < B * P; i++)
		v[i] = (int32_t)(i % P);
	m->ops->put(m->dev, m->buf->pos_idx, v, B * P * 4);
	for (size_t i = 0; i < B * P; i++)
		v[i] = i % P ? (int32_t)(i / P * G + i % P - 1) : -1;
	m->ops->put(m->dev, m->buf->patch_idx, v, B * P * 4);
	for (size_t i = 0; i < B; i++)
		v[i] = (int32_t)(i * P);
	m->ops->put(m->dev, m->buf->first_idx, v, B * 4);
	for (size_t i = 0; i < B * S; i++)
		v[i] = (int32_t)(i % S);
	m->ops->put(m->dev, m->buf->text_pos_idx, v, B * S * 4);
	int r = device_check(m->ops, m->dev, e);
	free(v);
	return r;
}

int clip_plan(struct clip *m, const struct clip_config *c, const struct ops *ops, struct dev *dev, int batch,
              bool training, struct error *e)
{
	*m = (struct clip){.config = *c, .ops = ops, .dev = dev, .batch = batch, .training = training,
	                   .mean = {0.48145466f, 0.4578275f, 0.40821073f}, .deviation = {0.26862954f, 0.26130258f, 0.27577711f}};
	m->params.ops = ops; /* the stacks' layouts ask it for the device's type */
	m->params.dev = dev;
	if (check_config(c, e))
		return -1;
	m->buf = mem_zero(1, sizeof *m->buf, e);
	if (!m->buf || image_rows(m, e) || text_rows(m, e))
		return -1;
	arena_plan(&m->arena);
	layout(m, &m->arena);
	return 0;
}

int clip_build(struct clip *m, struct error *e)
{
	if (params_build(&m->params, m->ops, m->dev, m->training, e) ||
	    arena_alloc(&m->arena, m->ops, m->dev, "CLIP activations", e))
		return -1;
	m->patch_w->unit = patch_unit(&m->config);
	layout(m, &m->arena);
	return put_indices(m, e);
}

int clip_load(struct clip *m, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	struct clip_config c = {0};
	*m = (struct clip){0};
	struct weights *w = weights_open(path, e);
	if (!w)
		return -1;
	int r = weights_need_kind(w, "clip", e) || clip_config_from_json(&c, weights_config(w), path, e) ||
	        clip_plan(m, &c, ops, dev, batch, false, e) || clip_build(m, e) || params_load(&m->params, BLOCK_W, w, "", e);
	if (!r) {
		const char *id = weights_meta(w, "dalle.id"), *text = weights_meta(w, "dalle.text_id");
		snprintf(m->id, sizeof m->id, "%s", id ? id : "");
		snprintf(m->text_id, sizeof m->text_id, "%s", text ? text : "");
		params_refresh(&m->params);
	}
	weights_close(w);
	return r ? -1 : 0;
}

void clip_free(struct clip *m)
{
	stack_free(&m->image_stack);
	stack_free(&m->text_stack);
	arena_free(&m->arena);
	params_free(&m->params);
	bpe_close(m->bpe);
	free(m->buf);
	*m = (struct clip){0};
}

/* ---- forward ---- */

/* The end of each tower: pick a state per sequence, norm, project, normalise. */
static void head_forward(struct clip *m, struct clip_head *h, const float *stream, const int32_t *idx,
                         const struct param *gain, const struct param *bias, const struct param *proj, int n)
{
	const struct ops *o = m->ops;
	size_t B = (size_t)n;
	int W = (int)proj->shape[1], E = (int)proj->shape[0];
	o->embed_fwd(m->dev, h->row, stream, idx, B, W, 0);                                          /* (n, W) */
	o->norm_fwd(m->dev, h->norm, h->mean, h->rstd, h->row, gain->w, bias->w, B, W, OP_F32);      /* (n, W) */
	o->linear_fwd(m->dev, h->proj, h->norm, proj->w, NULL, B, W, E, OP_F32);                     /* (n, E) */
	o->l2_fwd(m->dev, h->unit, h->rnorm, h->proj, B, E);                                         /* (n, E) */
}

static void image_forward(struct clip *m, const uint8_t *rgb, int n)
{
	const struct clip_config *c = &m->config;
	const struct ops *o = m->ops;
	struct clip_buffers *b = m->buf;
	int side = (int)c->size, k = (int)c->patch, W = (int)c->image_width, in = 3 * k * k;
	size_t pixels = (size_t)n * (size_t)side * (size_t)side, G = (size_t)patches(c), rows = (size_t)n * (G + 1);
	float scale[3], shift[3], *h = stack_input(&m->image_stack);
	for (int i = 0; i < 3; i++) {
		scale[i] = 1 / (255 * m->deviation[i]);
		shift[i] = -m->mean[i] / m->deviation[i];
	}
	o->put(m->dev, b->rgb, rgb, pixels * 3);
	o->pixels(m->dev, b->x, b->rgb, pixels, scale, shift);                                       /* (n, side, side, 3) */
	o->space_to_depth(m->dev, b->patches, b->x, n, side, side, 3, k);                            /* (n, G, 3kk) */
	o->cast(m->dev, b->patches_t, b->patches, (size_t)n * G * (size_t)in, 1, 0);
	o->linear_fwd(m->dev, b->embedded, b->patches_t, m->patch_w->t, NULL, (size_t)n * G, in, W, OP_OUT_F32);
	o->embed_fwd(m->dev, b->pre, m->class_embed->w, b->class_idx, rows, W, 0);                   /* (n, P, W) */
	o->embed_fwd(m->dev, b->pre, b->embedded, b->patch_idx, rows, W, 1);
	o->embed_fwd(m->dev, b->pre, m->image_pos->w, b->pos_idx, rows, W, 1);
	o->norm_fwd(m->dev, h, b->pre_mean, b->pre_rstd, b->pre, m->pre_w->w, m->pre_b->w, rows, W, OP_F32);
	head_forward(m, &b->image, stack_forward(&m->image_stack, n), b->first_idx, m->post_w, m->post_b, m->image_proj, n);
}

/* start, tokens, end, then zeros (H4); captions too long are cut so that the end token stays.  Returns the end's place. */
static int64_t lay_caption(const struct clip_config *c, const struct tokens *caption, int32_t *out)
{
	/* What comes with its ends loses them, to be cut like the others. */
	struct tokens inner = {.v = caption->v + c->closed, .n = caption->n - (c->closed ? 2 : 0)};
	const struct tokens *text = &inner;
	int64_t n = (int64_t)text->n, room = c->context - 2;
	n = n < room ? n : room;
	out[0] = (int32_t)(c->vocabulary - 2);
	for (int64_t i = 0; i < n; i++)
		out[i + 1] = (int32_t)text->v[i];
	out[n + 1] = (int32_t)(c->vocabulary - 1);
	return n + 1;
}

/* A caption of a published model, which has both its ends.  Returns the place of the state that stands for it. */
static int64_t lay_closed_caption(const struct clip *m, const struct tokens *text, int32_t *out)
{
	int64_t n = (int64_t)text->n < m->config.context ? (int64_t)text->n : m->config.context, at = 0;
	for (int64_t i = 0; i < n; i++)
		out[i] = (int32_t)text->v[i];
	for (int64_t i = 1; i < n; i++) {
		if (m->end_token < 0 ? out[i] > out[at] : out[i] == m->end_token && out[at] != m->end_token)
			at = i;
	}
	return at;
}

static int check_caption(const struct clip *m, const struct tokens *t, struct error *e)
{
	const struct clip_config *c = &m->config;
	int64_t size = c->vocabulary - (c->closed || m->bpe ? 0 : 2);
	for (size_t k = 0; k < t->n; k++)
		if ((int64_t)t->v[k] >= size)
			return fail(e, STATUS_BAD, "text token %u is outside the model's vocabulary of %lld", t->v[k], (long long)size);
	if (c->closed && (t->n < 2 || t->v[0] != (uint32_t)size - 2))
		return fail(e, STATUS_BAD, "a caption does not begin with the start token %lld, expected CLIP's vocabulary",
		            (long long)size - 2);
	return 0;
}

static int put_captions(struct clip *m, const struct tokens *const *text, int n, struct error *e)
{
	const struct clip_config *c = &m->config;
	size_t S = (size_t)c->context;
	int32_t *idx = mem_zero((size_t)n * (S + 1), 4, e);
	int r = 0;
	if (!idx)
		return -1;
	int32_t *end = idx + (size_t)n * S;
	for (int i = 0; r == 0 && i < n; i++) {
		int32_t *row = idx + (size_t)i * S;
		r = check_caption(m, text[i], e);
		int64_t at = r ? 0 : m->bpe ? lay_closed_caption(m, text[i], row) : lay_caption(c, text[i], row);
		end[i] = (int32_t)((int64_t)((size_t)i * S) + at);
	}
	if (r == 0) {
		m->ops->put(m->dev, m->buf->token_idx, idx, (size_t)n * S * 4);
		m->ops->put(m->dev, m->buf->end_idx, end, (size_t)n * 4);
	}
	free(idx);
	return r;
}

static int text_forward(struct clip *m, const struct tokens *const *text, int n, struct error *e)
{
	const struct ops *o = m->ops;
	struct clip_buffers *b = m->buf;
	int W = (int)m->config.text_width;
	size_t rows = (size_t)n * (size_t)m->config.context;
	if (put_captions(m, text, n, e))
		return -1;
	float *h = stack_input(&m->text_stack);
	o->embed_fwd(m->dev, h, m->token_embed->w, b->token_idx, rows, W, 0); /* (n, S, W) */
	o->embed_fwd(m->dev, h, m->text_pos->w, b->text_pos_idx, rows, W, 1);
	head_forward(m, &b->text, stack_forward(&m->text_stack, n), b->end_idx, m->final_w, m->final_b, m->text_proj, n);
	return 0;
}

int clip_embed(struct clip *m, const uint8_t *rgb, const struct tokens *const *text, int n, float *image_out,
               float *text_out, struct error *e)
{
	size_t bytes = (size_t)n * (size_t)m->config.embed * 4;
	if (rgb && image_out) {
		image_forward(m, rgb, n);
		m->ops->get(m->dev, image_out, m->buf->image.unit, bytes);
	}
	if (text && text_out) {
		if (text_forward(m, text, n, e))
			return -1;
		m->ops->get(m->dev, text_out, m->buf->text.unit, bytes);
	}
	return device_check(m->ops, m->dev, e);
}

int clip_features(struct clip *m, const uint8_t *rgb, int n, float *out, struct error *e)
{
	image_forward(m, rgb, n);
	m->ops->get(m->dev, out, m->buf->image.proj, (size_t)n * (size_t)m->config.embed * 4);
	return device_check(m->ops, m->dev, e);
}

/* ---- backward ---- */

static void head_backward(struct clip *m, struct clip_head *h, float *dstream, size_t stream_rows, const int32_t *idx,
                          const struct param *gain, const struct param *bias, const struct param *proj, int n)
{
	const struct ops *o = m->ops;
	size_t B = (size_t)n;
	int W = (int)proj->shape[1], E = (int)proj->shape[0];
	o->l2_bwd(m->dev, h->dproj, h->dunit, h->unit, h->rnorm, B, E);
	o->linear_bwd(m->dev, h->dnorm, proj->g, NULL, h->dproj, h->norm, proj->w, B, W, E, OP_F32);
	o->norm_bwd(m->dev, h->drow, gain->g, bias->g, h->dnorm, h->row, gain->w, h->mean, h->rstd, B, W, 1, OP_F32);
	o->zero(m->dev, dstream, stream_rows * (size_t)W * 4);
	o->embed_bwd(m->dev, dstream, h->drow, idx, B, W);
}

static void image_backward(struct clip *m, int n)
{
	const struct clip_config *c = &m->config;
	const struct ops *o = m->ops;
	struct clip_buffers *b = m->buf;
	int W = (int)c->image_width, in = (int)(3 * c->patch * c->patch);
	size_t G = (size_t)patches(c), rows = (size_t)n * (G + 1), values = (size_t)n * G * (size_t)W;
	head_backward(m, &b->image, b->dimage, rows, b->first_idx, m->post_w, m->post_b, m->image_proj, n);
	stack_backward(&m->image_stack, b->dimage, n);
	o->norm_bwd(m->dev, b->dpre, m->pre_w->g, m->pre_b->g, b->dimage, b->pre, m->pre_w->w, b->pre_mean, b->pre_rstd, rows,
	            W, 1, OP_F32);
	o->embed_bwd(m->dev, m->class_embed->g, b->dpre, b->class_idx, rows, W);
	o->embed_bwd(m->dev, m->image_pos->g, b->dpre, b->pos_idx, rows, W);
	o->zero(m->dev, b->dembedded, values * 4);
	o->embed_bwd(m->dev, b->dembedded, b->dpre, b->patch_idx, rows, W);
	o->cast(m->dev, b->dembedded_t, b->dembedded, values, grad_scale_enter(&m->params.scales, patch_unit(c)), OP_FILTER);
	o->linear_bwd(m->dev, NULL, m->patch_w->g, NULL, b->dembedded_t, b->patches_t, m->patch_w->t, (size_t)n * G, in, W,
	              params_dw(&m->params, m->patch_w));
}

static void text_backward(struct clip *m, int n)
{
	const struct ops *o = m->ops;
	struct clip_buffers *b = m->buf;
	int W = (int)m->config.text_width;
	size_t rows = (size_t)n * (size_t)m->config.context;
	head_backward(m, &b->text, b->dtext, rows, b->end_idx, m->final_w, m->final_b, m->text_proj, n);
	stack_backward(&m->text_stack, b->dtext, n);
	o->embed_bwd(m->dev, m->token_embed->g, b->dtext, b->token_idx, rows, W);
	o->embed_bwd(m->dev, m->text_pos->g, b->dtext, b->text_pos_idx, rows, W);
}

/* ---- training ---- */

int clip_trainer_init(struct clip_trainer *t, struct clip *m, struct error *e)
{
	*t = (struct clip_trainer){.model = m, .lr = m->config.lr, .warmup = m->config.warmup};
	t->rgb = mem_alloc((size_t)m->batch, (size_t)(m->config.size * m->config.size) * 3, e);
	t->group = mem_alloc((size_t)m->batch, sizeof *t->group, e);
	return t->rgb && t->group ? 0 : -1;
}

void clip_trainer_free(struct clip_trainer *t)
{
	free(t->rgb);
	free(t->group);
	image_free(&t->crop);
}

static int clampi(int v, int high)
{
	return v < 0 ? 0 : v > high ? high : v;
}

/* The picture moved by (dx, dy), its border repeated. */
static void shifted(uint8_t *out, const uint8_t *in, int side, int dx, int dy)
{
	for (int y = 0; y < side; y++)
		for (int x = 0; x < side; x++)
			memcpy(out + ((size_t)y * (size_t)side + (size_t)x) * 3,
			       in + ((size_t)clampi(y - dy, side - 1) * (size_t)side + (size_t)clampi(x - dx, side - 1)) * 3, 3);
}

static int check_size(const struct record *r, int side, struct error *e)
{
	if (r->pixels.width == (uint32_t)side && r->pixels.height == (uint32_t)side)
		return 0;
	return fail(e, STATUS_BAD, "a picture is %ux%u, expected %dx%d (img-pack -s %d)", r->pixels.width, r->pixels.height, side,
	            side, side);
}

/* The picture into out (side, side, 3), augmented when training; `index` numbers it for the draws. */
static int place_picture(struct clip_trainer *t, uint8_t *out, const struct record *r, uint64_t index, bool training,
                         struct error *e)
{
	static const uint8_t white[3] = {255, 255, 255};
	int side = (int)t->model->config.size, augment = t->model->config.augment;
	uint32_t most = training && augment == CLIP_SHIFT ? (uint32_t)t->max_shift : 0;
	if (augment != CLIP_CROP) {
		int dx = (int)rng_below(t->seed, RNG_AUGMENT, 0, index * 2, 2 * most + 1) - (int)most;
		int dy = (int)rng_below(t->seed, RNG_AUGMENT, 0, index * 2 + 1, 2 * most + 1) - (int)most;
		if (check_size(r, side, e))
			return -1;
		shifted(out, r->pixels.rgb, side, dx, dy);
		return 0;
	}
	struct crop c;
	if (!r->pixels.width)
		return fail(e, STATUS_BAD, "a record has no pixels, expected a stream from img-pack");
	if (crop_plan(&c, training ? CROP_RANDOM : CROP_CENTER, r->pixels.width, r->pixels.height,
	              (uint32_t)side, t->seed, 0, index, e) ||
	    crop_apply(&t->crop, &r->pixels, &c, (uint32_t)side, white, RESIZE_AUTO, e))
		return -1;
	memcpy(out, t->crop.rgb, (size_t)side * (size_t)side * 3);
	return 0;
}

/* A caption that does not fit is told when the first one is seen; the rest are counted. */
static void count_cut(struct clip_trainer *t, const struct record *r)
{
	const struct clip_config *c = &t->model->config;
	size_t most = (size_t)c->context - (c->closed ? 0 : 2);
	t->drawn++;
	if (r->text.n > most && t->cut++ == 0)
		note(0, "the caption of record '%.*s' has %zu tokens and is cut to %zu (--context), as all longer ones are",
		     (int)(r->key.n < 200 ? r->key.n : 200), r->key.n ? (const char *)r->key.p : "", r->text.n, most);
}

/* Pictures, groups of equal captions and token lists of a batch; index numbers its first record for the draws. */
static int gather(struct clip_trainer *t, const struct record *const *batch, int n, const struct tokens **text,
                  uint64_t index, bool training, struct error *e)
{
	size_t side = (size_t)t->model->config.size;
	for (int i = 0; i < n; i++) {
		const struct record *r = batch[i];
		if (!r->text.present)
			return fail(e, STATUS_BAD, "a record has no text tokens, expected a stream from bpe-encode");
		if (place_picture(t, t->rgb + (size_t)i * side * side * 3, r, index + (uint64_t)i, training, e))
			return -1;
		if (training)
			count_cut(t, r);
		text[i] = &r->text;
		t->group[i] = i;
		for (int j = 0; j < i; j++) {
			if (text[j]->n == r->text.n && memcmp(text[j]->v, r->text.v, r->text.n * sizeof *r->text.v) == 0) {
				t->group[i] = t->group[j];
				break;
			}
		}
	}
	return 0;
}

/* Forward of both towers and the loss; dsim and ds, divided by `parts`, are ready for the backward. */
static int contrast(struct clip_trainer *t, const struct record *const *batch, int n, uint64_t index, bool training,
                    int parts, float *loss, struct error *e)
{
	struct clip *m = t->model;
	struct clip_buffers *b = m->buf;
	const struct tokens **text = mem_alloc((size_t)n, sizeof *text, e);
	int r = !text || gather(t, batch, n, text, index, training, e);
	if (!r) {
		image_forward(m, t->rgb, n);
		r = text_forward(m, text, n, e);
	}
	free(text);
	if (r)
		return -1;
	m->ops->put(m->dev, b->group, t->group, (size_t)n * 4);
	m->ops->linear_fwd(m->dev, b->sim, b->image.unit, b->text.unit, NULL, (size_t)n, (int)m->config.embed, n, OP_F32);
	m->ops->clip_xent(m->dev, b->loss, b->dsim, b->ds, b->sim, m->scale->w, b->group, n, 1.0f / (float)parts);
	m->ops->get(m->dev, loss, b->loss, 4);
	return device_check(m->ops, m->dev, e);
}

/* exp(s) <= 100 (H2).  Clamped before each use rather than after each update: the same thing. */
static float clamp_scale(struct clip *m)
{
	const float most = logf(100);
	float s;
	m->ops->get(m->dev, &s, m->scale->w, sizeof s);
	if (s > most) {
		s = most;
		m->ops->put(m->dev, m->scale->w, &s, sizeof s);
	}
	return s;
}

static int train_step(void *self, const struct train_step *s, const struct record *const *batch, int n, struct metrics *out,
                      struct error *e)
{
	struct clip_trainer *t = self;
	struct clip *m = t->model;
	struct clip_buffers *b = m->buf;
	int E = (int)m->config.embed;
	float loss, ds, sum, scale = clamp_scale(m);
	uint64_t place = ((uint64_t)s->step * (uint64_t)s->parts + (uint64_t)s->part) * (uint64_t)m->batch;
	if (contrast(t, batch, n, place, true, s->parts, &loss, e))
		return -1;
	/* sim = I T^t: the text matrix stands where a linear has its weights. */
	m->ops->zero(m->dev, b->text.dunit, (size_t)n * (size_t)E * 4);
	m->ops->linear_bwd(m->dev, b->image.dunit, b->text.dunit, NULL, b->dsim, b->image.unit, b->text.unit, (size_t)n, E, n,
	                   OP_F32);
	image_backward(m, n);
	text_backward(m, n);
	m->ops->get(m->dev, &ds, b->ds, sizeof ds);
	m->ops->get(m->dev, &sum, m->scale->g, sizeof sum);
	sum += ds;
	m->ops->put(m->dev, m->scale->g, &sum, sizeof sum);
	metrics_set(out, "loss", loss);
	metrics_set(out, "temperature", exp(-scale));
	return device_check(m->ops, m->dev, e);
}

/* The loss depends on what else is in the batch, so it is the batch mean counted once per record. */
static int evaluate(void *self, const struct train_step *s, const struct record *const *batch, int n, struct metrics *sums,
                    struct error *e)
{
	float loss;
	if (contrast(self, batch, n, 0, false, 1, &loss, e))
		return -1;
	metrics_set(sums, "loss", (double)loss * n);
	return 0;
}

static double step_size(const void *self, const struct train_step *s)
{
	const struct clip_trainer *t = self;
	return t->lr * schedule_warmup_cosine(s->step, t->warmup, s->steps, 0);
}

void clip_trainee(struct clip_trainer *t, struct trainee *out)
{
	struct clip *m = t->model;
	*out = (struct trainee){
		.kind = "clip", .model = t, .params = &m->params, .text_id = m->text_id, .image_id = "",
		.batch = m->batch, .beta1 = 0.9f, .beta2 = 0.98f, .eps = 1e-6f, .decay = (float)m->config.decay,
		.average_decay = (float)m->config.average_decay, .average_every = 1, .text_rows = "token_embedding.weight",
		.activation_bytes = arena_bytes(&m->arena), .grad_scale = GRAD_SCALE_RESBLOCK, .t_gradients = true,
		.lr = step_size, .step = train_step, .evaluate = evaluate,
	};
}
