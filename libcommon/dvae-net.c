/* dvae-net.c - the discrete VAE's layers: table of parameters, memory, forward and backward as straight lists of op
 * calls (recipe B2 to B9).  The residual stream is f32; inside the blocks it is T; the encoder's last and the
 * decoder's first convolution are f32 (B9), for the codes and the relaxation hang on small differences of logits. */
#include "dvae-net.h"

#include <math.h>

/* ---- the table ---- */

static int add_conv(struct dvae *d, struct dvae_conv *c, int in, int out, int kernel, enum param_kind kind, int block,
                    const char *name, struct error *e)
{
	const int64_t shape[4] = {out, in, kernel, kernel}, bias[1] = {out};
	/* No ReLU gain (B2). */
	float std = (float)(1 / sqrt((double)in * kernel * kernel));
	*c = (struct dvae_conv){NULL, NULL, in, out, kernel};
	if (params_add(&d->params, &c->w, kind, std, block, 4, shape, e, "%s.w", name))
		return -1;
	return params_add(&d->params, &c->b, PARAM_BIAS, 0, block, 1, bias, e, "%s.b", name);
}

static int add_block(struct dvae *d, struct dvae_block *b, bool decoder, int in, int out, int number, const char *name,
                     struct error *e)
{
	char path[sizeof ((struct param *)0)->name];
	b->in = in, b->out = out, b->hidden = out / 4;
	if (in != out) {
		snprintf(path, sizeof path, "%s.id_path", name);
		if (add_conv(d, &b->id, in, out, 1, PARAM_MATRIX, number, path, e))
			return -1;
	}
	for (int i = 0; i < 4; i++) {
		/* The small kernel is next to the codes: last in the encoder, first in the decoder. */
		int kernel = i == (decoder ? 0 : 3) ? 1 : 3;
		snprintf(path, sizeof path, "%s.res_path.conv_%d", name, i + 1);
		if (add_conv(d, &b->conv[i], i ? b->hidden : in, i < 3 ? b->hidden : out, kernel, PARAM_MATRIX, number,
		             path, e))
			return -1;
	}
	return 0;
}

static int add_blocks(struct dvae *d, bool decoder, struct error *e)
{
	const struct dvae_config *c = &d->config;
	int channels = (int)(decoder ? c->initial : c->hidden);
	for (int i = 0; i < d->count; i++) {
		struct dvae_block *b = decoder ? &d->dec[i] : &d->enc[i];
		int group = i / (int)c->blocks, level = decoder ? (int)c->groups - 1 - group : group;
		char name[64];
		snprintf(name, sizeof name, "%s.blocks.group_%d.block_%d", decoder ? "decoder" : "encoder", group + 1,
		         i % (int)c->blocks + 1);
		b->side = d->side >> level;
		if (add_block(d, b, decoder, channels, (int)c->hidden << level, i + (decoder ? d->count : 0), name, e))
			return -1;
		channels = b->out;
	}
	return 0;
}

int dvae_table(struct dvae *d, struct error *e)
{
	const struct dvae_config *c = &d->config;
	int values = (int)(c->stem * c->stem), top = (int)c->hidden << (c->groups - 1);
	if (d->parts & DVAE_ENCODER) {
		if (add_conv(d, &d->enc_in, 3 * values, (int)c->hidden, (int)c->kernel, PARAM_MATRIX, -1,
		             "encoder.blocks.input", e) ||
		    add_blocks(d, false, e) ||
		    add_conv(d, &d->enc_out, top, (int)c->codes, 1, PARAM_MATRIX_F32, -1, "encoder.blocks.output.conv", e))
			return -1;
	}
	if (d->parts & DVAE_DECODER) {
		if (add_conv(d, &d->dec_in, (int)c->codes, (int)c->initial, 1, PARAM_MATRIX_F32, -1,
		             "decoder.blocks.input", e) ||
		    add_blocks(d, true, e) ||
		    add_conv(d, &d->dec_out, (int)c->hidden, 6 * values, 1, PARAM_MATRIX, -1,
		             "decoder.blocks.output.conv", e))
			return -1;
	}
	return 0;
}

/* ---- memory ---- */

static void *take(struct dvae *d, size_t per_picture, size_t size)
{
	return arena_take_n(&d->arena, (size_t)d->batch, per_picture * size);
}

static bool training(const struct dvae *d)
{
	return d->parts & DVAE_TRAINING;
}

static size_t area(int side, int channels)
{
	return (size_t)side * side * channels;
}

struct extent {
	size_t stream, hidden; /* largest, elements of one picture */
};

static void widen(size_t *most, size_t n)
{
	if (n > *most)
		*most = n;
}

static struct extent extent_of(const struct dvae *d)
{
	struct extent x = {area(d->side, (int)d->config.hidden), 0};
	for (int i = 0; i < 2 * d->count; i++) {
		const struct dvae_block *b = i < d->count ? &d->enc[i] : &d->dec[i - d->count];
		int last = i % (int)d->config.blocks == d->config.blocks - 1 && i != 2 * d->count - 1;
		widen(&x.stream, area(b->side, b->in));
		widen(&x.stream, area(i >= d->count && last ? 2 * b->side : b->side, b->out));
		widen(&x.hidden, area(b->side, b->hidden));
	}
	return x;
}

/* The next place of the residual stream: kept when training, one of two otherwise. */
static float *take_stream(struct dvae *d, size_t elements)
{
	if (training(d))
		return take(d, elements, sizeof(float));
	d->turn ^= 1;
	return d->stream[d->turn];
}

static void layout_block(struct dvae *d, struct dvae_block *b, float *x, bool decoder, bool resize)
{
	size_t t = dtype_bytes(d->type), mark;
	b->x = x;
	b->y = take_stream(d, area(b->side, b->out));
	mark = arena_mark(&d->arena);
	b->xt = !b->id.out ? NULL : d->type == DT_F32 ? x : take(d, area(b->side, b->in), t);
	for (int i = 0; i < 4; i++)
		b->r[i] = take(d, area(b->side, i ? b->hidden : b->in), t);
	if (!training(d))
		arena_back(&d->arena, mark); /* the next block may have it */
	b->which = NULL, b->resized = NULL;
	if (!resize)
		return;
	int side = decoder ? 2 * b->side : b->side / 2;
	if (!decoder)
		b->which = take(d, area(side, b->out), 1);
	b->resized = take_stream(d, area(side, b->out));
}

static float *layout_blocks(struct dvae *d, float *x, bool decoder)
{
	for (int i = 0; i < d->count; i++) {
		struct dvae_block *b = decoder ? &d->dec[i] : &d->enc[i];
		bool resize = (i + 1) % d->config.blocks == 0 && i + 1 < d->count;
		layout_block(d, b, x, decoder, resize);
		x = resize ? b->resized : b->y;
	}
	return x;
}

static void layout_gradients(struct dvae *d, struct extent x)
{
	size_t t = dtype_bytes(d->type), f = sizeof(float), values = (size_t)(6 * d->config.stem * d->config.stem);
	d->dout = take(d, 6 * area((int)d->config.size, 1), f);
	d->dout_patches = d->config.stem == 1 ? d->dout : take(d, values * area(d->side, 1), f);
	d->dz = take(d, area(d->grid, (int)d->config.codes), f);
	d->dlogits = take(d, area(d->grid, (int)d->config.codes), f);
	for (int i = 0; i < 2; i++) {
		d->dstream[i] = take(d, x.stream, f);
		d->dhidden[i] = take(d, x.hidden, t);
	}
	d->dt = take(d, x.stream > values * area(d->side, 1) ? x.stream : values * area(d->side, 1), t);
	d->sums = arena_take(&d->arena, 2 * sizeof *d->sums);
	d->usage = arena_take_n(&d->arena, (size_t)d->config.codes, f);
}

void dvae_layout(struct dvae *d)
{
	const struct dvae_config *c = &d->config;
	size_t f = sizeof(float), t = dtype_bytes(d->type), s2 = (size_t)(c->stem * c->stem);
	size_t picture = area((int)c->size, 1), first = area(d->side, 1), tokens = area(d->grid, 1);
	struct extent x = extent_of(d);
	int top = (int)c->hidden << (c->groups - 1);
	for (int i = 0; i < 2 && !training(d); i++)
		d->stream[i] = take(d, x.stream, f);
	d->turn = 0;
	d->tmp = take(d, x.stream, t);
	d->z = take(d, tokens * (size_t)c->codes, f);
	d->argmax = take(d, tokens, sizeof(int32_t));
	if (d->parts & DVAE_ENCODER) {
		d->rgb = take(d, 3 * picture, 1);
		d->pixels = take(d, 3 * picture, f);
		d->patches = c->stem == 1 ? d->pixels : take(d, 3 * s2 * first, f);
		d->patches_t = d->type == DT_F32 ? (void *)d->patches : take(d, 3 * s2 * first, t);
		d->enc_first = take_stream(d, (size_t)c->hidden * first);
		layout_blocks(d, d->enc_first, false);
		d->enc_last = take(d, (size_t)top * tokens, f);
		/* Without the noise nothing needs both. */
		d->logits = training(d) ? take(d, tokens * (size_t)c->codes, f) : d->z;
		d->kl = take(d, tokens, f);
	}
	if (d->parts & DVAE_DECODER) {
		d->dec_first = take_stream(d, (size_t)c->initial * tokens);
		layout_blocks(d, d->dec_first, true);
		d->dec_last = take(d, (size_t)c->hidden * first, t);
		d->out_patches = take(d, 6 * s2 * first, f);
		d->out = c->stem == 1 ? d->out_patches : take(d, 6 * picture, f);
		d->nll = take(d, picture, f);
		d->picture = take(d, 3 * picture, 1);
	}
	if (training(d))
		layout_gradients(d, x);
}

/* ---- forward ---- */

static void conv_forward(struct dvae *d, const struct dvae_conv *c, void *y, const void *x, int n, int side, int flags)
{
	/* linear_fwd has no ReLU. */
	if (c->kernel > 1 || flags & OP_RELU) {
		d->ops->conv_fwd(d->dev, y, x, c->w->t, c->b->w, n, side, side, c->in, c->out, c->kernel, flags);
		return;
	}
	size_t rows = (size_t)n * side * side;
	d->ops->linear_fwd(d->dev, y, x, flags & OP_F32 ? c->w->w : c->w->t, c->b->w, rows, c->in, c->out, flags);
}

static void block_forward(struct dvae *d, const struct dvae_block *b, int n)
{
	const struct ops *o = d->ops;
	size_t rows = (size_t)n * b->side * b->side;
	o->relu_fwd(d->dev, b->r[0], b->x, rows * b->in, 0);
	for (int i = 0; i < 4; i++) {
		const struct dvae_conv *c = &b->conv[i];
		void *y = i < 3 ? b->r[i + 1] : d->tmp;
		conv_forward(d, c, y, b->r[i], n, b->side, i < 3 ? OP_RELU : 0);
	}
	const float *x = b->x;
	if (b->id.out) {
		/* The identity path has no ReLU before it. */
		if (d->type != DT_F32)
			o->cast(d->dev, b->xt, b->x, rows * b->in, 1, 0);
		conv_forward(d, &b->id, b->y, b->xt, n, b->side, OP_OUT_F32);
		x = b->y;
	}
	o->add(d->dev, b->y, x, d->tmp, (float)d->config.post_gain, rows * b->out);
}

static const float *blocks_forward(struct dvae *d, bool decoder, int n)
{
	const float *x = NULL;
	for (int i = 0; i < d->count; i++) {
		const struct dvae_block *b = decoder ? &d->dec[i] : &d->enc[i];
		block_forward(d, b, n);
		x = b->y;
		if (!b->resized)
			continue;
		if (decoder)
			d->ops->upsample_fwd(d->dev, b->resized, b->y, n, b->side, b->side, b->out);
		else
			d->ops->maxpool_fwd(d->dev, b->resized, b->which, b->y, n, b->side, b->side, b->out);
		x = b->resized;
	}
	return x;
}

void dvae_forward_patches(struct dvae *d, int n)
{
	const struct ops *o = d->ops;
	static const float scale[3] = {DVAE_SPAN / 255, DVAE_SPAN / 255, DVAE_SPAN / 255};
	static const float shift[3] = {DVAE_EPSILON, DVAE_EPSILON, DVAE_EPSILON};
	int S = (int)d->config.size, s = (int)d->config.stem;
	o->pixels(d->dev, d->pixels, d->rgb, (size_t)n * S * S, scale, shift);
	if (s > 1)
		o->space_to_depth(d->dev, d->patches, d->pixels, n, S, S, 3, s);
}

void dvae_forward_vectors(struct dvae *d, int n)
{
	const struct ops *o = d->ops;
	const struct dvae_config *c = &d->config;
	dvae_forward_patches(d, n);
	if (d->type != DT_F32)
		o->cast(d->dev, d->patches_t, d->patches, (size_t)n * c->size * c->size * 3, 1, 0);
	void *y = d->type == DT_F32 ? d->enc_first : d->tmp;
	conv_forward(d, &d->enc_in, y, d->patches_t, n, d->side, 0);
	if (d->type != DT_F32)
		o->uncast(d->dev, d->enc_first, d->tmp, (size_t)n * d->side * d->side * c->hidden, 1);
	const float *x = blocks_forward(d, false, n);
	o->relu_fwd(d->dev, d->enc_last, x, (size_t)n * d->grid * d->grid * d->enc_out.in, OP_F32);
}

void dvae_forward_encoder(struct dvae *d, int n)
{
	dvae_forward_vectors(d, n);
	conv_forward(d, &d->enc_out, d->logits, d->enc_last, n, d->grid, OP_F32);
}

void dvae_forward_decoder(struct dvae *d, int n)
{
	const struct ops *o = d->ops;
	int S = (int)d->config.size, s = (int)d->config.stem;
	conv_forward(d, &d->dec_in, d->dec_first, d->z, n, d->grid, OP_F32);
	const float *x = blocks_forward(d, true, n);
	o->relu_fwd(d->dev, d->dec_last, x, (size_t)n * d->side * d->side * d->dec_out.in, 0);
	conv_forward(d, &d->dec_out, d->out_patches, d->dec_last, n, d->side, OP_OUT_F32);
	if (s > 1)
		o->depth_to_space(d->dev, d->out, d->out_patches, n, S, S, 6, s);
}

/* ---- backward ---- */

static void conv_backward(struct dvae *d, const struct dvae_conv *c, void *dx, const void *dy, const void *x, int n,
                          int side, int flags)
{
	if (c->kernel > 1) {
		d->ops->conv_bwd(d->dev, dx, c->w->g, c->b->g, dy, x, c->w->t, n, side, side, c->in, c->out, c->kernel,
		                 flags);
		return;
	}
	d->ops->linear_bwd(d->dev, dx, c->w->g, c->b->g, dy, x, flags & OP_F32 ? c->w->w : c->w->t,
	                   (size_t)n * side * side, c->in, c->out, flags);
}

/* From dy to dx, the gradients of the stream after and before the block; they may be one buffer when the identity
 * path has no convolution. */
static void block_backward(struct dvae *d, const struct dvae_block *b, float *dx, const float *dy, int n)
{
	const struct ops *o = d->ops;
	size_t rows = (size_t)n * b->side * b->side;
	if (b->id.out) {
		o->cast(d->dev, d->dt, dy, rows * b->out, 1, 0);
		conv_backward(d, &b->id, d->tmp, d->dt, b->xt, n, b->side, 0);
		o->uncast(d->dev, dx, d->tmp, rows * b->in, 1);
	}
	o->cast(d->dev, d->dt, dy, rows * b->out, (float)d->config.post_gain, 0);
	const void *g = d->dt;
	for (int i = 3; i >= 0; i--) {
		void *to = i ? d->dhidden[i & 1] : d->tmp;
		conv_backward(d, &b->conv[i], to, g, b->r[i], n, b->side, 0);
		if (i)
			o->relu_bwd(d->dev, to, to, b->r[i], rows * b->hidden);
		g = to;
	}
	o->relu_bwd_add(d->dev, dx, d->tmp, b->x, rows * b->in, 0);
}

/* The gradient of the stream's start; begins in dstream[0]. */
static float *blocks_backward(struct dvae *d, bool decoder, int n)
{
	float *g = d->dstream[0], *other = d->dstream[1], *swap;
	for (int i = d->count - 1; i >= 0; i--) {
		const struct dvae_block *b = decoder ? &d->dec[i] : &d->enc[i];
		if (b->resized) {
			if (decoder)
				d->ops->upsample_bwd(d->dev, other, g, n, b->side, b->side, b->out);
			else
				d->ops->maxpool_bwd(d->dev, other, g, b->which, n, b->side, b->side, b->out);
			swap = g, g = other, other = swap;
		}
		if (!b->id.out) {
			block_backward(d, b, g, g, n);
			continue;
		}
		block_backward(d, b, other, g, n);
		swap = g, g = other, other = swap;
	}
	return g;
}

static const float *blocks_end(const struct dvae_block *b, int count)
{
	return b[count - 1].y;
}

void dvae_backward_decoder(struct dvae *d, int n)
{
	const struct ops *o = d->ops;
	int S = (int)d->config.size, s = (int)d->config.stem;
	size_t pixels = (size_t)n * d->side * d->side;
	if (s > 1)
		o->space_to_depth(d->dev, d->dout_patches, d->dout, n, S, S, 6, s);
	o->cast(d->dev, d->dt, d->dout_patches, pixels * d->dec_out.out, 1, 0);
	conv_backward(d, &d->dec_out, d->tmp, d->dt, d->dec_last, n, d->side, 0);
	o->zero(d->dev, d->dstream[0], pixels * d->dec_out.in * sizeof(float));
	o->relu_bwd_add(d->dev, d->dstream[0], d->tmp, blocks_end(d->dec, d->count), pixels * d->dec_out.in, 0);
	const float *g = blocks_backward(d, true, n);
	conv_backward(d, &d->dec_in, d->dz, g, d->z, n, d->grid, OP_F32);
}

void dvae_backward_encoder(struct dvae *d, int n)
{
	const struct ops *o = d->ops;
	size_t rows = (size_t)n * d->grid * d->grid;
	/* enc_last is a ReLU's output: it is its mask, too. */
	float *dlast = d->dstream[1];
	conv_backward(d, &d->enc_out, dlast, d->dlogits, d->enc_last, n, d->grid, OP_F32);
	o->zero(d->dev, d->dstream[0], rows * d->enc_out.in * sizeof(float));
	o->relu_bwd_add(d->dev, d->dstream[0], dlast, d->enc_last, rows * d->enc_out.in, OP_F32);
	const float *g = blocks_backward(d, false, n);
	o->cast(d->dev, d->dt, g, (size_t)n * d->side * d->side * d->enc_in.out, 1, 0);
	conv_backward(d, &d->enc_in, NULL, d->dt, d->patches_t, n, d->side, 0);
}
