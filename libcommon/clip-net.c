/* clip-net.c - see clip-net.h.  Rows are picked out of sequences (the class state, the end-of-text state) with the
 * embedding op, whose adjoint puts the gradient back. */
#include "clip-net.h"

#include "device.h"

#include <math.h>
#include <stdlib.h>

static int64_t patches(const struct clip_config *c)
{
	return c->size / c->patch * (c->size / c->patch);
}

/* ---- weights ---- */

int clip_patch_unit(const struct clip_config *c)
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

int clip_rows(struct clip *m, struct error *e)
{
	return image_rows(m, e) || text_rows(m, e) ? -1 : 0;
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

void clip_layout(struct clip *m, struct arena *a)
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
int clip_put_indices(struct clip *m, struct error *e)
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

void clip_forward_image(struct clip *m, const uint8_t *rgb, int n)
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

int clip_forward_text(struct clip *m, const struct tokens *const *text, int n, struct error *e)
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

/* ---- backward ---- */

static void head_backward(struct clip *m, struct clip_head *h, float *dstream, size_t stream_rows, const int32_t *idx,
                          const struct param *gain, const struct param *bias, const struct param *proj, int n)
{
	const struct ops *o = m->ops;
	size_t B = (size_t)n;
	int W = (int)proj->shape[1], E = (int)proj->shape[0];
	o->l2_bwd(m->dev, h->dproj, h->dunit, h->unit, h->rnorm, B, E);
	o->linear_bwd(m->dev, h->dnorm, proj->g, NULL, h->dproj, h->norm, proj->w, B, W, E, OP_F32);
	o->norm_bwd(m->dev, h->drow, gain->g, bias->g, h->dnorm, h->row, gain->w, h->mean, h->rstd, B, W, 1, OP_F32, NULL);
	o->zero(m->dev, dstream, stream_rows * (size_t)W * 4);
	o->embed_bwd(m->dev, dstream, h->drow, idx, B, W);
}

void clip_backward_image(struct clip *m, int n)
{
	const struct clip_config *c = &m->config;
	const struct ops *o = m->ops;
	struct clip_buffers *b = m->buf;
	int W = (int)c->image_width, in = (int)(3 * c->patch * c->patch);
	size_t G = (size_t)patches(c), rows = (size_t)n * (G + 1), values = (size_t)n * G * (size_t)W;
	head_backward(m, &b->image, b->dimage, rows, b->first_idx, m->post_w, m->post_b, m->image_proj, n);
	stack_backward(&m->image_stack, b->dimage, n);
	o->norm_bwd(m->dev, b->dpre, m->pre_w->g, m->pre_b->g, b->dimage, b->pre, m->pre_w->w, b->pre_mean, b->pre_rstd, rows,
	            W, 1, OP_F32, NULL);
	o->embed_bwd(m->dev, m->class_embed->g, b->dpre, b->class_idx, rows, W);
	o->embed_bwd(m->dev, m->image_pos->g, b->dpre, b->pos_idx, rows, W);
	o->zero(m->dev, b->dembedded, values * 4);
	o->embed_bwd(m->dev, b->dembedded, b->dpre, b->patch_idx, rows, W);
	o->cast(m->dev, b->dembedded_t, b->dembedded, values, grad_scale_enter(&m->params.scales, clip_patch_unit(c)), OP_FILTER);
	o->linear_bwd(m->dev, NULL, m->patch_w->g, NULL, b->dembedded_t, b->patches_t, m->patch_w->t, (size_t)n * G, in, W,
	              params_dw(&m->params, m->patch_w));
}

void clip_backward_text(struct clip *m, int n)
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
