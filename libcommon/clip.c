/* clip.c - CLIP from outside: presets, configuration, model files, embedding and training.  The towers are in
 * clip-net.c. */
#include "clip-net.h"

#include "config.h"
#include "device.h"
#include "image.h"
#include "rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

enum { MAX_SIZE = 1 << 16 }; /* of widths and of the context */

static const struct config_field fields[] = {
#define FIELD(name, min, max) CONFIG_FIELD(struct clip_config, name, min, max)
	FIELD(size, 1, 4096), FIELD(patch, 1, 4096), FIELD(image_width, 1, MAX_SIZE), FIELD(image_layers, 1, STACK_MAX_LAYERS),
	FIELD(image_heads, 1, MAX_SIZE), FIELD(context, 2, MAX_SIZE), FIELD(vocabulary, 3, 1 << 24), FIELD(text_width, 1, MAX_SIZE),
	FIELD(text_layers, 1, STACK_MAX_LAYERS), FIELD(text_heads, 1, MAX_SIZE), FIELD(embed, 1, MAX_SIZE), FIELD(exact_gelu, 0, 1),
#undef FIELD
};

json_t *clip_config_json(const struct clip_config *c)
{
	json_t *j = config_json(c, fields, ARRAY_LEN(fields));
	if (j && c->closed)
		json_object_set_new(j, "closed", json_true());
	return j;
}

static int check_heads(const char *which, int64_t width, int64_t heads, struct error *e)
{
	return width % heads == 0 ? 0 : fail(e, STATUS_BAD, "%s width %lld is not a multiple of %lld heads", which,
	                                     (long long)width, (long long)heads);
}

static int check_config(const struct clip_config *c, struct error *e)
{
	if (config_check(c, fields, ARRAY_LEN(fields), STATUS_BAD, e))
		return -1;
	if (c->size % c->patch)
		return fail(e, STATUS_BAD, "picture size %lld is not a multiple of the patch %lld", (long long)c->size,
		            (long long)c->patch);
	if (c->image_hidden < 0 || c->image_hidden > MAX_SIZE || c->text_hidden < 0 || c->text_hidden > MAX_SIZE)
		return fail(e, STATUS_BAD, "MLP width %lld or %lld is out of range, expected 1 to %d", (long long)c->image_hidden,
		            (long long)c->text_hidden, MAX_SIZE);
	if (check_heads("image", c->image_width, c->image_heads, e))
		return -1;
	return check_heads("text", c->text_width, c->text_heads, e);
}

int clip_config_from_json(struct clip_config *c, const json_t *j, const char *file, struct error *e)
{
	struct error inner = {0};
	c->closed = json_is_true(json_object_get(j, "closed"));
	c->image_hidden = c->text_hidden = 0;
	if (config_parse(c, fields, ARRAY_LEN(fields), j, file, e))
		return -1;
	return check_config(c, &inner) ? fail(e, STATUS_BAD, "%s: %s", file, inner.text) : 0;
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
	if (!m->buf || clip_rows(m, e))
		return -1;
	arena_plan(&m->arena);
	clip_layout(m, &m->arena);
	return 0;
}

int clip_build(struct clip *m, struct error *e)
{
	if (params_build(&m->params, m->ops, m->dev, m->training, e) ||
	    arena_alloc(&m->arena, m->ops, m->dev, "CLIP activations", e))
		return -1;
	m->patch_w->unit = clip_patch_unit(&m->config);
	clip_layout(m, &m->arena);
	return clip_put_indices(m, e);
}

int clip_load(struct clip *m, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	struct clip_config c = {0};
	*m = (struct clip){0};
	struct weights *w = weights_open(path, e);
	if (!w)
		return -1;
	int r = weights_need_kind(w, "clip", e) || clip_config_from_json(&c, weights_config(w), path, e) ||
	        clip_plan(m, &c, ops, dev, batch, false, e) || params_fit(&m->params, w, "", e) || clip_build(m, e) ||
	        params_load(&m->params, BLOCK_W, w, "", e);
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

int clip_embed(struct clip *m, const uint8_t *rgb, const struct tokens *const *text, int n, float *image_out,
               float *text_out, struct error *e)
{
	size_t bytes = (size_t)n * (size_t)m->config.embed * 4;
	if (rgb && image_out) {
		clip_forward_image(m, rgb, n);
		m->ops->get(m->dev, image_out, m->buf->image.unit, bytes);
	}
	if (text && text_out) {
		if (clip_forward_text(m, text, n, e))
			return -1;
		m->ops->get(m->dev, text_out, m->buf->text.unit, bytes);
	}
	return device_check(m->ops, m->dev, e);
}

int clip_features(struct clip *m, const uint8_t *rgb, int n, float *out, struct error *e)
{
	clip_forward_image(m, rgb, n);
	m->ops->get(m->dev, out, m->buf->image.proj, (size_t)n * (size_t)m->config.embed * 4);
	return device_check(m->ops, m->dev, e);
}

/* ---- training ---- */

int clip_trainer_init(struct clip_trainer *t, struct clip *m, struct error *e)
{
	*t = (struct clip_trainer){.model = m, .lr = m->config.lr, .warmup = m->config.warmup};
	t->rgb = mem_alloc((size_t)m->batch, (size_t)(m->config.size * m->config.size) * 3, e);
	t->group = mem_alloc((size_t)m->batch, sizeof *t->group, e);
	t->caption = mem_alloc((size_t)m->batch, sizeof *t->caption, e);
	return t->rgb && t->group && t->caption ? 0 : -1;
}

void clip_trainer_free(struct clip_trainer *t)
{
	free(t->rgb);
	free(t->group);
	free(t->caption);
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
			captions_count(&t->captions, r, r->text.n);
		text[i] = &r->text;
		t->caption[i] = caption_hash(r, false);
		t->group[i] = 0;
		while (t->caption[t->group[i]] != t->caption[i])
			t->group[i]++;
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
		clip_forward_image(m, t->rgb, n);
		r = clip_forward_text(m, text, n, e);
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
	clip_backward_image(m, n);
	clip_backward_text(m, n);
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

json_t *clip_recipe(const struct clip_trainer *t)
{
	size_t n;
	int augment = t->model->config.augment;
	const char *name = choice_name(CLIP_AUGMENTS, augment, &n);
	json_t *j = json_pack("{s:f,s:I,s:o}", "lr", t->lr, "warmup", (json_int_t)t->warmup, "augment", json_stringn(name, n));
	if (j && (augment != CLIP_SHIFT || json_object_set_new(j, "shift", json_integer(t->max_shift)) == 0))
		return j;
	json_decref(j);
	return NULL;
}

void clip_trainee(struct clip_trainer *t, struct trainee *out)
{
	struct clip *m = t->model;
	t->captions = (struct cut_captions){.most = (size_t)m->config.context - (m->config.closed ? 0 : 2), .option = "--context"};
	*out = (struct trainee){
		.kind = "clip", .model = t, .params = &m->params, .text_id = m->text_id, .image_id = "",
		.batch = m->batch, .beta1 = 0.9f, .beta2 = 0.98f, .eps = 1e-6f, .decay = (float)m->config.decay,
		.average_decay = (float)m->config.average_decay, .average_every = 1, .text_rows = "token_embedding.weight",
		.activation_bytes = arena_bytes(&m->arena), .grad_scale = GRAD_SCALE_RESBLOCK, .t_gradients = true,
		.captions = &t->captions, .lr = step_size, .step = train_step, .evaluate = evaluate,
	};
}
