/* block.c - the transformer stack (block.h): forward, backward with optional recomputation, and decoding with
 * caches, as straight lists of op calls.  The residual stream is f32 and every resblock adds to it; a resblock's
 * input is kept because its norm's backward needs it. */
#include "block.h"

#include <math.h>
#include <stdlib.h>

/* ---- weights ---- */

void stack_init_child(struct stack_config *c)
{
	float in = 0.125f / sqrtf((float)c->width), depth = sqrtf(2.0f * (float)c->layers);
	float hidden = (float)(c->hidden ? c->hidden : 4 * c->width);
	c->std_qkv = c->std_up = in;
	c->std_out = in / depth;
	c->std_down = 0.125f / sqrtf(hidden) / depth;
}

void stack_init_clip(struct stack_config *c)
{
	float in = 1 / sqrtf((float)c->width);
	c->std_qkv = in;
	c->std_out = c->std_down = in / sqrtf(2.0f * (float)c->layers);
	c->std_up = in / sqrtf(2);
}

static int check_config(const struct stack_config *c, struct error *e)
{
	if (c->layers < 1 || c->layers > STACK_MAX_LAYERS)
		return fail(e, STATUS_BAD, "%d layers: expected 1 to %d", c->layers, STACK_MAX_LAYERS);
	if (c->width < 1 || c->heads < 1 || c->width % c->heads)
		return fail(e, STATUS_BAD, "width %d is not a multiple of %d heads", c->width, c->heads);
	for (int i = 1; i < c->layers; i++)
		if (attn_length(&c->masks[i]) != attn_length(&c->masks[0]))
			return fail(e, STATUS_BAD, "attention masks of layers 0 and %d differ in length", i);
	return 0;
}

static int layer_rows(struct stack_layer *l, struct params *p, const char *prefix, int i, int block,
                      const struct stack_config *c, struct error *e)
{
	int64_t C = c->width, F = c->hidden;
#define ROW(slot, kind, std, half, rank, name, ...) \
	params_add(p, &l->slot, kind, std, block + half, rank, (int64_t[]){__VA_ARGS__}, e, "%s%d." name, prefix, i)
	if (ROW(norm1_w, PARAM_GAIN, 0, 0, 1, "norm1.weight", C) || ROW(norm1_b, PARAM_SHIFT, 0, 0, 1, "norm1.bias", C) ||
	    ROW(qkv_w, PARAM_MATRIX, c->std_qkv, 0, 2, "attn.qkv.weight", 3 * C, C))
		return -1;
	p->rows[p->count - 1].parts = 3;
	if (ROW(qkv_b, PARAM_BIAS, 0, 0, 1, "attn.qkv.bias", 3 * C) ||
	    ROW(out_w, PARAM_MATRIX, c->std_out, 0, 2, "attn.out.weight", C, C) ||
	    ROW(out_b, PARAM_BIAS, 0, 0, 1, "attn.out.bias", C) || ROW(norm2_w, PARAM_GAIN, 0, 1, 1, "norm2.weight", C) ||
	    ROW(norm2_b, PARAM_SHIFT, 0, 1, 1, "norm2.bias", C) ||
	    ROW(up_w, PARAM_MATRIX, c->std_up, 1, 2, "mlp.up.weight", F, C) ||
	    ROW(up_b, PARAM_BIAS, 0, 1, 1, "mlp.up.bias", F) ||
	    ROW(down_w, PARAM_MATRIX, c->std_down, 1, 2, "mlp.down.weight", C, F) ||
	    ROW(down_b, PARAM_BIAS, 0, 1, 1, "mlp.down.bias", C))
		return -1;
#undef ROW
	return 0;
}

int stack_rows(struct stack *s, struct params *p, const char *prefix, int first_resblock, const struct stack_config *c,
               struct error *e)
{
	*s = (struct stack){.c = *c, .params = p, .resblock = first_resblock};
	if (check_config(c, e))
		return -1;
	if (!s->c.hidden)
		s->c.hidden = 4 * c->width;
	s->layer = mem_zero((size_t)c->layers, sizeof *s->layer, e);
	if (!s->layer)
		return -1;
	for (int i = 0; i < c->layers; i++) {
		s->layer[i].mask = c->masks[i];
		if (layer_rows(&s->layer[i], p, prefix, i, first_resblock + 2 * i, &s->c, e))
			return -1;
	}
	s->c.masks = NULL;
	return 0;
}

void stack_free(struct stack *s)
{
	free(s->layer);
	*s = (struct stack){0};
}

/* ---- activation memory ---- */

static size_t wide(const struct stack *s)
{
	size_t F = (size_t)s->c.hidden, q = 3 * (size_t)s->c.width;
	return F > q ? F : q;
}

/* What the inside of one layer's two resblocks keeps for the backward. */
static void take_inner(struct stack_layer *l, const struct stack *s, struct arena *a, size_t rows)
{
	size_t C = (size_t)s->c.width, F = (size_t)s->c.hidden, H = (size_t)s->c.heads;
	size_t t = dtype_bytes(s->params->ops->type(s->params->dev));
	l->n1 = arena_take_n(a, rows, C * t);
	l->mean1 = arena_take_n(a, rows, 4);
	l->rstd1 = arena_take_n(a, rows, 4);
	l->qkv = arena_take_n(a, rows, 3 * C * t);
	l->lse = arena_take_n(a, rows, H * 4);
	l->att = arena_take_n(a, rows, C * t);
	l->n2 = arena_take_n(a, rows, C * t);
	l->mean2 = arena_take_n(a, rows, 4);
	l->rstd2 = arena_take_n(a, rows, 4);
	l->u = arena_take_n(a, rows, F * t);
	l->a = arena_take_n(a, rows, F * t);
}

static void share_inner(struct stack_layer *l, const struct stack_layer *from)
{
	l->n1 = from->n1, l->mean1 = from->mean1, l->rstd1 = from->rstd1;
	l->qkv = from->qkv, l->lse = from->lse, l->att = from->att;
	l->n2 = from->n2, l->mean2 = from->mean2, l->rstd2 = from->rstd2;
	l->u = from->u, l->a = from->a;
}

static void layout_shared(struct stack *s, struct arena *a, size_t rows)
{
	s->h = arena_take_n(a, rows, (size_t)s->c.width * 4);
	take_inner(&s->layer[0], s, a, rows);
	for (int i = 0; i < s->c.layers; i++) {
		share_inner(&s->layer[i], &s->layer[0]);
		s->layer[i].x1 = s->layer[i].x2 = s->h; /* nothing is kept: the stream is updated in place */
	}
}

static void layout_train(struct stack *s, struct arena *a, size_t rows)
{
	size_t C = (size_t)s->c.width, t = dtype_bytes(s->params->ops->type(s->params->dev));
	for (int i = 0; i < s->c.layers; i++) {
		struct stack_layer *l = &s->layer[i];
		l->x1 = arena_take_n(a, rows, C * 4);
		l->x2 = arena_take_n(a, rows, C * 4);
		if (i == 0 || !s->c.recompute)
			take_inner(l, s, a, rows);
		else
			share_inner(l, &s->layer[0]);
	}
	s->h = arena_take_n(a, rows, C * 4);
	s->g1 = arena_take_n(a, rows, wide(s) * t);
	s->g2 = arena_take_n(a, rows, wide(s) * t);
	s->g3 = arena_take_n(a, rows, C * t);
}

void stack_layout(struct stack *s, struct arena *a, enum stack_use use, int B, int S)
{
	size_t rows = (size_t)B * (size_t)S;
	s->S = S;
	if (use == STACK_TRAIN)
		layout_train(s, a, rows);
	else
		layout_shared(s, a, rows);
}

static size_t cache_state_bytes(const struct stack *s)
{
	return 2 * (size_t)s->c.width * dtype_bytes(s->params->ops->type(s->params->dev));
}

void stack_layout_decode(struct stack *s, struct arena *a, const struct stack_decode *n)
{
	size_t state = cache_state_bytes(s);
	s->S = attn_length(&s->layer[0].mask);
	layout_shared(s, a, n->prefill_rows > (size_t)n->rows ? n->prefill_rows : (size_t)n->rows);
	for (int i = 0; i < s->c.layers; i++) {
		const struct attn_mask *m = &s->layer[i].mask;
		struct attn_cache *cache = &s->layer[i].cache;
		cache->window = attn_window(m);
		cache->text = arena_take_n(a, (size_t)n->contexts * (size_t)m->n_text, state);
		cache->image = arena_take_n(a, (size_t)n->slots * (size_t)cache->window, state);
	}
}

void stack_cache_bytes(const struct stack *s, const struct stack_decode *n, uint64_t *text, uint64_t *image)
{
	uint64_t state = cache_state_bytes(s);
	*text = *image = 0;
	for (int i = 0; i < s->c.layers; i++) {
		*text += state * (uint64_t)n->contexts * (uint64_t)s->layer[i].mask.n_text;
		*image += state * (uint64_t)n->slots * (uint64_t)attn_window(&s->layer[i].mask);
	}
}

/* ---- forward ---- */

/* Where the rows of a decoding step are: device arrays (B). */
struct places {
	const int32_t *context, *slot, *pos;
};

/* Everything of the attention resblock but its last product; `at` NULL for whole sequences. */
static void attention_inner(const struct stack *s, const struct stack_layer *l, int B, int S, const struct attn_mask *m,
                            const struct places *at)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	int C = s->c.width, H = s->c.heads;
	size_t rows = (size_t)B * (size_t)S;
	ops->norm_fwd(d, l->n1, l->mean1, l->rstd1, l->x1, l->norm1_w->w, l->norm1_b->w, rows, C, 0); /* (rows, C) */
	ops->linear_fwd(d, l->qkv, l->n1, l->qkv_w->t, l->qkv_b->w, rows, C, 3 * C, 0);               /* (rows, 3C) */
	if (at)
		ops->attn_step(d, l->att, &l->cache, l->qkv, at->context, at->slot, at->pos, B, H, C / H, m); /* (B, C) */
	else
		ops->attn_fwd(d, l->att, l->lse, l->qkv, B, H, C / H, m);                              /* (rows, C) */
}

static void mlp_inner(const struct stack *s, const struct stack_layer *l, size_t rows)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	int C = s->c.width, F = s->c.hidden;
	ops->norm_fwd(d, l->n2, l->mean2, l->rstd2, l->x2, l->norm2_w->w, l->norm2_b->w, rows, C, 0);    /* (rows, C) */
	ops->linear_gelu_fwd(d, l->a, l->u, l->n2, l->up_w->t, l->up_b->w, rows, C, F, s->c.exact_gelu); /* (rows, F) */
}

/* y = x + a w^T + b on the residual stream; y may be x. */
static void add_product(const struct stack *s, float *y, const float *x, const void *a, const struct param *w,
                        const struct param *b, size_t rows, int in)
{
	s->params->ops->linear_add_fwd(s->params->dev, y, x, a, w->t, b->w, rows, in, s->c.width);
}

static void layer_forward(const struct stack *s, int i, int B, int S, const struct attn_mask *m, const struct places *at)
{
	const struct stack_layer *l = &s->layer[i];
	float *next = i + 1 < s->c.layers ? s->layer[i + 1].x1 : s->h;
	size_t rows = (size_t)B * (size_t)S;
	attention_inner(s, l, B, S, m, at);
	add_product(s, l->x2, l->x1, l->att, l->out_w, l->out_b, rows, s->c.width); /* (rows, C) */
	mlp_inner(s, l, rows);
	add_product(s, next, l->x2, l->a, l->down_w, l->down_b, rows, s->c.hidden); /* (rows, C) */
}

float *stack_input(const struct stack *s)
{
	return s->layer[0].x1;
}

const float *stack_forward(struct stack *s, int B)
{
	for (int i = 0; i < s->c.layers; i++)
		layer_forward(s, i, B, s->S, &s->layer[i].mask, NULL);
	return s->h;
}

/* ---- backward ----
 *
 * Figure 4: dh is multiplied by the resblock's gradient scale where it becomes T, and what the norm's backward gives is
 * divided by it; both are filtered, so that a value that is not finite stays in its resblock, whose weights show it.
 *
 * The norm at the beginning of a resblock has dh at hand when it is complete, and so makes of it, in the same pass, what the
 * resblock before begins with: scale * dh as T, and its sums for the bias of that resblock's last product. */

/* The bias of the last product of resblock r, counted from 0 within the stack. */
static const struct param *last_bias(const struct stack *s, int r)
{
	return r % 2 ? s->layer[r / 2].down_b : s->layer[r / 2].out_b;
}

static float resblock_scale(const struct stack *s, int r)
{
	return grad_scale_enter(&s->params->scales, s->resblock + r);
}

/* What resblock r begins with, dh by its scale as T: dh itself when T is f32 (it is read before it is next written). */
static const void *entering(const struct stack *s, const float *dh)
{
	return s->params->ops->type(s->params->dev) == DT_F32 ? (const void *)dh : s->g3;
}

/* Of the last resblock, which no norm comes after. */
static void enter_last(const struct stack *s, const float *dh, size_t rows, int r)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	int C = s->c.width;
	if (ops->type(d) != DT_F32)
		ops->cast(d, s->g3, dh, rows * (size_t)C, resblock_scale(s, r), OP_FILTER);
	ops->linear_bwd(d, NULL, NULL, last_bias(s, r)->g, entering(s, dh), NULL, NULL, rows, s->c.hidden, C, 0);
}

/* Gradients of y = x w^T + b into the rows, dx written; b NULL: its gradient is summed elsewhere. */
static void product_backward(const struct stack *s, void *dx, const struct param *w, const struct param *b, const void *dy,
                             const void *x, size_t rows, int in, int out)
{
	s->params->ops->linear_bwd(s->params->dev, dx, w->g, b ? b->g : NULL, dy, x, w->t, rows, in, out, params_dw(s->params, w));
}

/* In f32 the product takes dh as it is, and only what goes into the bias is filtered: what is not finite shows in the weights.
 *
 * dh += the gradient dn, in g3, of the norm that resblock r begins with; in place of dn what resblock r - 1 begins with. */
static void norm_backward(const struct stack *s, float *dh, const struct param *w, const struct param *b, const float *x,
                          const float *mean, const float *rstd, size_t rows, int r)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	struct norm_next next = {0};
	if (r > 0)
		next = (struct norm_next){ops->type(d) == DT_F32 ? NULL : s->g3, last_bias(s, r - 1)->g, resblock_scale(s, r - 1)};
	ops->norm_bwd(d, dh, w->g, b->g, s->g3, x, w->w, mean, rstd, rows, s->c.width, 1 / resblock_scale(s, r),
	              OP_ADD | OP_FILTER, r > 0 ? &next : NULL);
}

static void mlp_backward(const struct stack *s, const struct stack_layer *l, float *dh, size_t rows, int r)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	int C = s->c.width, F = s->c.hidden;
	product_backward(s, s->g1, l->down_w, NULL, entering(s, dh), l->a, rows, F, C);         /* da (rows, F) */
	ops->gelu_bwd(d, s->g2, l->up_b->g, s->g1, l->u, rows, F, s->c.exact_gelu);             /* du (rows, F) */
	product_backward(s, s->g3, l->up_w, NULL, s->g2, l->n2, rows, C, F);                    /* dn (rows, C) */
	norm_backward(s, dh, l->norm2_w, l->norm2_b, l->x2, l->mean2, l->rstd2, rows, r);       /* (rows, C) */
}

static void attention_backward(const struct stack *s, const struct stack_layer *l, float *dh, int B, int r)
{
	const struct ops *ops = s->params->ops;
	struct dev *d = s->params->dev;
	int C = s->c.width, H = s->c.heads;
	size_t rows = (size_t)B * (size_t)s->S;
	product_backward(s, s->g1, l->out_w, NULL, entering(s, dh), l->att, rows, C, C);        /* datt (rows, C) */
	ops->attn_bwd(d, s->g2, s->g1, l->qkv, l->att, l->lse, B, H, C / H, &l->mask);          /* dqkv (rows, 3C) */
	product_backward(s, s->g3, l->qkv_w, l->qkv_b, s->g2, l->n1, rows, C, 3 * C);           /* dn (rows, C) */
	norm_backward(s, dh, l->norm1_w, l->norm1_b, l->x1, l->mean1, l->rstd1, rows, r);       /* (rows, C) */
	/* Its gradient is zero but for rounding, which Adam would blow up to full steps. */
	if (!s->c.key_bias)
		ops->zero(d, (float *)l->qkv_b->g + C, (size_t)C * 4);
}

void stack_backward(struct stack *s, float *dh, int B)
{
	size_t rows = (size_t)B * (size_t)s->S;
	enter_last(s, dh, rows, 2 * s->c.layers - 1);
	for (int i = s->c.layers - 1; i >= 0; i--) {
		const struct stack_layer *l = &s->layer[i];
		if (s->c.recompute)
			mlp_inner(s, l, rows);
		mlp_backward(s, l, dh, rows, 2 * i + 1);
		if (s->c.recompute)
			attention_inner(s, l, B, s->S, &l->mask, NULL);
		attention_backward(s, l, dh, B, 2 * i);
	}
}

/* ---- decoding ---- */

/* The layer's mask for sequences that end after `image_rows` rows of the picture: raster order makes it the same
 * mask with a lower grid.  Text alone is plain causal (C12). */
static struct attn_mask shortened(const struct attn_mask *m, int image_rows)
{
	struct attn_mask r = *m;
	if (image_rows == 0)
		return (struct attn_mask){.kind = ATTN_CAUSAL, .n_text = m->n_text};
	r.grid_h = image_rows;
	return r;
}

/* Keys and values (the last 2C of each state's 3C) of n states, from row `from` of qkv on, to `to`. */
static void keep_states(const struct stack *s, const struct stack_layer *l, void *to, size_t from, size_t n)
{
	const struct ops *ops = s->params->ops;
	size_t two = cache_state_bytes(s), c = two / 2;
	const char *src = (const char *)l->qkv + from * 3 * c + c;
	ops->copy2d(s->params->dev, to, two, src, 3 * c, two, n);
}

/* The last image states of `images`, as many as the ring holds, each to its place; `from` is the row of image state 0. */
static void keep_images(const struct stack *s, const struct stack_layer *l, int slot, size_t from, int images)
{
	int window = l->cache.window, first = images > window ? images - window : 0;
	for (int p = first, n; p < images; p += n) {
		int place = p % window;
		n = images - p < window - place ? images - p : window - place;
		char *to = (char *)l->cache.image + ((size_t)slot * (size_t)window + (size_t)place) * cache_state_bytes(s);
		keep_states(s, l, to, from + (size_t)p, (size_t)n);
	}
}

void stack_prefill(struct stack *s, int B, int image_rows, const int32_t *context, const int32_t *slot)
{
	for (int i = 0; i < s->c.layers; i++) {
		const struct stack_layer *l = &s->layer[i];
		struct attn_mask m = shortened(&l->mask, image_rows);
		size_t n = (size_t)attn_length(&m), text = (size_t)l->mask.n_text;
		layer_forward(s, i, B, (int)n, &m, NULL);
		for (int b = 0; b < B; b++) {
			char *to = (char *)l->cache.text + (size_t)context[b] * text * cache_state_bytes(s);
			keep_states(s, l, to, (size_t)b * n, text);
			keep_images(s, l, slot[b], (size_t)b * n + text, (int)(n - text));
		}
	}
}

void stack_copy_slot(const struct stack *s, int to, int from)
{
	for (int i = 0; i < s->c.layers; i++) {
		const struct attn_cache *c = &s->layer[i].cache;
		size_t bytes = (size_t)c->window * cache_state_bytes(s);
		char *p = c->image;
		s->params->ops->copy2d(s->params->dev, p + (size_t)to * bytes, bytes, p + (size_t)from * bytes, bytes, bytes, 1);
	}
}

const float *stack_step(struct stack *s, int B, const int32_t *context, const int32_t *slot, const int32_t *pos)
{
	const struct places at = {context, slot, pos};
	for (int i = 0; i < s->c.layers; i++)
		layer_forward(s, i, B, 1, &s->layer[i].mask, &at);
	return s->h;
}
