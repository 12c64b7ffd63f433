/* dvae.c - the discrete VAE from outside: presets, configuration, model files, encoding and decoding.  The layers
 * are in dvae-net.c, training in dvae-fit.c. */
#include "dvae.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "device.h"
#include "dvae-net.h"
#include "hash.h"

/* `paper` is recipe B6, B7, B18, B21.  The others give its schedules as fractions of the run, and depart from it where
 * short runs on drawings need it: the code starts from data, a bonus keeps it in use, and b has a floor.  In `small` a
 * token is one place from end to end (stem 8, one group): the 1x1 at the end gives each of its pixels an output of its
 * own, where nearest upsampling leaves that to later 3x3 convolutions. */
static const struct dvae_preset presets[] = {
	{"tiny", {0, 2, 16, 16, 2, 1, 32, 3, 0}, {4e-3, 4e-4, 1, 10, 1, 0.05, 1, 1.0 / 16, 0.8, 0.9}, 8, 0.1, 2, 0},
	{"small", {0, 8, 256, 128, 1, 2, 2048, 1, 1}, {1e-3, 5e-5, 1, 30, 0, 0.05, 0.5, 1.0 / 16, 0.8, 0.99}, 16, 0.1, 0.5, 1},
	{"paper", {256, 1, 256, 128, 4, 2, 8192, 7, 0}, {1e-4, 1.25e-6, 1200000, 0, 6.6, 5000, 1, 1.0 / 16, 150000, 0.999},
	 8, 0, 0, 0},
};

const struct dvae_preset *dvae_preset(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(presets); i++)
		if (!strcmp(presets[i].name, name))
			return &presets[i];
	return NULL;
}

/* ---- configuration ---- */

static const struct config_field fields[] = {
#define FIELD(name, min, max) CONFIG_FIELD(struct dvae_config, name, min, max)
	FIELD(size, 1, STREAM_MAX_SIDE), FIELD(stem, 1, 64), FIELD(hidden, 4, 1 << 16), FIELD(initial, 1, 1 << 16),
	FIELD(groups, 1, 8), FIELD(blocks, 1, 64), FIELD(codes, 2, 1 << 20), FIELD(kernel, 1, 63),
#undef FIELD
};

int dvae_check(const struct dvae_config *c, struct error *e)
{
	if (config_check(c, fields, ARRAY_LEN(fields), STATUS_USAGE, e))
		return -1;
	if (c->hidden % 4)
		return fail(e, STATUS_USAGE, "dVAE hidden %lld is no multiple of 4", (long long)c->hidden);
	if (c->hidden << (c->groups - 1) > 1 << 20)
		return fail(e, STATUS_USAGE, "dVAE hidden %lld doubles beyond 2^20 in %lld groups", (long long)c->hidden,
		            (long long)c->groups);
	if (c->kernel % 2 == 0)
		return fail(e, STATUS_USAGE, "dVAE kernel %lld is even, expected an odd number", (long long)c->kernel);
	if (c->size % dvae_factor(c))
		return fail(e, STATUS_USAGE, "pictures of %lldx%lld pixels do not divide by %lld, the pixels a token",
		            (long long)c->size, (long long)c->size, (long long)dvae_factor(c));
	if (!(c->post_gain > 0 && c->post_gain <= 1000))
		return fail(e, STATUS_USAGE, "dVAE post_gain %g is out of range", c->post_gain);
	return 0;
}

json_t *dvae_config_to_json(const struct dvae_config *c)
{
	json_t *j = config_json(c, fields, ARRAY_LEN(fields));
	if (j && json_object_set_new(j, "post_gain", json_real(c->post_gain)) == 0)
		return j;
	json_decref(j);
	return NULL;
}

int dvae_config_from_json(struct dvae_config *c, const json_t *j, const char *path, struct error *e)
{
	memset(c, 0, sizeof *c);
	if (config_parse(c, fields, ARRAY_LEN(fields), j, path, e))
		return -1;
	const json_t *gain = json_object_get(j, "post_gain");
	if (!json_is_number(gain))
		return fail(e, STATUS_BAD, "%s: dalle.config has no number \"post_gain\"", path);
	c->post_gain = json_number_value(gain);
	struct error inner = {0};
	if (dvae_check(c, &inner))
		return fail(e, STATUS_BAD, "%s: %s", path, inner.text);
	return 0;
}

static const struct weights_tensor *find_block(const struct weights *w, const char *half, int group, int block)
{
	char name[96];
	snprintf(name, sizeof name, "%s.blocks.group_%d.block_%d.res_path.conv_1.w", half, group, block);
	return weights_find(w, name);
}

static int64_t count_blocks(const struct weights *w, const char *half, bool groups)
{
	int n = 0;
	while (n < 64 && find_block(w, half, groups ? n + 1 : 1, groups ? 1 : n + 1))
		n++;
	return n;
}

/* The weight `name` of a convolution; NULL when it is not there or is none. */
static const struct weights_tensor *find_conv(const struct weights *w, const char *name)
{
	const struct weights_tensor *t = weights_find(w, name);
	return t && t->rank == 4 ? t : NULL;
}

/* s of n = s * s * channels values. */
static int64_t stem_of(int64_t n, int64_t channels)
{
	return n >= channels && n <= 4096 * channels ? (int64_t)lround(sqrt((double)(n / channels))) : 0;
}

/* A half that is not needed may be absent: what only it knows gets the least value that is allowed. */
static void shapes_of_encoder(struct dvae_config *c, const struct weights *w, const struct weights_tensor *in,
                              const struct weights_tensor *out)
{
	*c = (struct dvae_config){.stem = stem_of(in->shape[1], 3), .hidden = in->shape[0], .kernel = in->shape[2],
	                          .codes = out->shape[0], .initial = 1, .groups = count_blocks(w, "encoder", true),
	                          .blocks = count_blocks(w, "encoder", false)};
}

static void shapes_of_decoder(struct dvae_config *c, const struct weights *w, const struct weights_tensor *in,
                              const struct weights_tensor *out)
{
	*c = (struct dvae_config){.stem = stem_of(out->shape[0], 6), .hidden = out->shape[1], .kernel = 1,
	                          .codes = in->shape[1], .initial = in->shape[0], .groups = count_blocks(w, "decoder", true),
	                          .blocks = count_blocks(w, "decoder", false)};
}

int dvae_config_from_tensors(struct dvae_config *c, int parts, const struct weights *w, struct error *e)
{
	const struct weights_tensor *enc_in = find_conv(w, "encoder.blocks.input.w");
	const struct weights_tensor *enc_out = find_conv(w, "encoder.blocks.output.conv.w");
	const struct weights_tensor *dec_in = find_conv(w, "decoder.blocks.input.w");
	const struct weights_tensor *dec_out = find_conv(w, "decoder.blocks.output.conv.w");
	bool encoder = enc_in && enc_out, decoder = dec_in && dec_out;
	if (!encoder && !decoder)
		return fail(e, STATUS_BAD, "%s: holds no dVAE: no dalle.config and no tensors with the published names",
		            weights_path(w));
	if ((parts & DVAE_ENCODER && !encoder) || (parts & DVAE_DECODER && !decoder))
		return fail(e, STATUS_BAD, "%s: holds the %s of a dVAE, expected the %s", weights_path(w),
		            encoder ? "encoder" : "decoder", encoder ? "decoder" : "encoder");
	if (decoder)
		shapes_of_decoder(c, w, dec_in, dec_out);
	int64_t initial = c->initial;
	if (encoder)
		shapes_of_encoder(c, w, enc_in, enc_out);
	if (encoder && decoder)
		c->initial = initial;
	c->size = 256; /* what the published weights are for */
	if (c->groups > 0 && c->blocks > 0)
		c->post_gain = 1.0 / (double)(c->groups * c->blocks * c->groups * c->blocks);
	struct error inner = {0};
	if (dvae_check(c, &inner))
		return fail(e, STATUS_BAD, "%s: %s", weights_path(w), inner.text);
	return 0;
}

static double weights_of(const struct dvae_conv *c)
{
	return (double)c->in * c->out * c->kernel * c->kernel;
}

static double half_flops(const struct dvae_block *b, int count)
{
	double sum = 0;
	for (int i = 0; i < count; i++) {
		double area = (double)b[i].side * b[i].side;
		sum += 2 * area * weights_of(&b[i].id);
		for (int k = 0; k < 4; k++)
			sum += 2 * area * weights_of(&b[i].conv[k]);
	}
	return sum;
}

/* ---- life ---- */

static void set_sides(struct dvae *d)
{
	d->grid = (int)dvae_grid(&d->config);
	d->side = (int)(d->config.size / d->config.stem);
	d->count = (int)(d->config.groups * d->config.blocks);
}

struct dvae *dvae_plan(const struct dvae_config *c, int parts, enum dtype type, int batch, struct error *e)
{
	struct dvae *d = mem_zero(1, sizeof *d, e);
	if (!d)
		return NULL;
	d->config = *c;
	if (d->config.post_gain == 0)
		d->config.post_gain = 1.0 / (double)(c->groups * c->blocks * c->groups * c->blocks);
	d->parts = parts;
	d->batch = batch;
	d->type = type;
	if (dvae_check(&d->config, e)) {
		free(d);
		return NULL;
	}
	set_sides(d);
	d->enc = mem_zero((size_t)d->count, sizeof *d->enc, e);
	d->dec = mem_zero((size_t)d->count, sizeof *d->dec, e);
	if (!d->enc || !d->dec || dvae_table(d, e)) {
		dvae_free(d);
		return NULL;
	}
	arena_plan(&d->arena);
	dvae_layout(d);
	return d;
}

int dvae_build(struct dvae *d, const struct ops *ops, struct dev *dev, struct error *e)
{
	d->ops = ops, d->dev = dev;
	if (params_build(&d->params, ops, dev, d->parts & DVAE_TRAINING, e) ||
	    arena_alloc(&d->arena, ops, dev, "dVAE activations", e))
		return -1;
	dvae_layout(d);
	d->codes = mem_alloc((size_t)d->batch * (size_t)d->grid * (size_t)d->grid, sizeof *d->codes, e);
	return d->codes ? 0 : -1;
}

struct dvae *dvae_new(const struct dvae_config *c, int parts, const struct ops *ops, struct dev *dev, int batch,
                      struct error *e)
{
	struct dvae *d = dvae_plan(c, parts, ops->type(dev), batch, e);
	if (d && dvae_build(d, ops, dev, e)) {
		dvae_free(d);
		d = NULL;
	}
	return d;
}

void dvae_free(struct dvae *d)
{
	if (!d)
		return;
	arena_free(&d->arena);
	params_free(&d->params);
	free(d->codes);
	free(d->enc);
	free(d->dec);
	free(d);
}

void dvae_flops(const struct dvae_config *c, double *encode, double *decode)
{
	struct error e = {0};
	struct dvae *d = dvae_plan(c, DVAE_ENCODER | DVAE_DECODER, DT_F32, 1, &e);
	*encode = *decode = 0;
	if (!d)
		return;
	double first = 2.0 * d->side * d->side, tokens = 2.0 * d->grid * d->grid;
	*encode = half_flops(d->enc, d->count) + first * weights_of(&d->enc_in) + tokens * weights_of(&d->enc_out);
	*decode = half_flops(d->dec, d->count) + first * weights_of(&d->dec_out) + tokens * weights_of(&d->dec_in);
	dvae_free(d);
}

const struct dvae_config *dvae_configuration(const struct dvae *d) { return &d->config; }
struct params *dvae_params(struct dvae *d) { return &d->params; }
const char *dvae_id(const struct dvae *d) { return d->id; }

/* ---- model files ---- */

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct weights_tensor *const *)a)->name, (*(const struct weights_tensor *const *)b)->name);
}

static int hash_tensor(struct hash *h, const struct weights *w, const struct weights_tensor *t, struct error *e)
{
	size_t n = 1;
	for (int k = 0; k < t->rank; k++)
		n *= (size_t)t->shape[k];
	float *values = mem_alloc(n, sizeof *values, e);
	int r = values ? weights_read(w, t, values, e) : -1;
	if (r == 0) {
		hash_add(h, t->name, strlen(t->name) + 1);
		hash_add(h, values, n * sizeof *values);
	}
	free(values);
	return r;
}

/* What the codes of a foreign dVAE mean is decided by its encoder alone, so that the published encoder, in whatever file
 * it comes, and both halves merged into one agree on the identity.  A decoder alone has none. */
static int hash_encoder(struct dvae *d, const struct weights *w, struct error *e)
{
	size_t n = 0;
	const struct weights_tensor **order = mem_alloc(weights_count(w) + 1, sizeof *order, e);
	struct hash *h = order ? hash_new(e) : NULL;
	int r = h ? 0 : -1;
	for (size_t i = 0; r == 0 && i < weights_count(w); i++)
		if (strncmp(weights_at(w, i)->name, "encoder.", 8) == 0)
			order[n++] = weights_at(w, i);
	if (r == 0)
		qsort(order, n, sizeof *order, by_name);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = hash_tensor(h, w, order[i], e);
	if (h)
		hash_finish(h, d->id);
	if (n == 0)
		d->id[0] = 0;
	free(order);
	return r;
}

static int read_config(struct dvae_config *c, int parts, const struct weights *w, struct error *e)
{
	const json_t *j = weights_config(w);
	if (!j)
		return dvae_config_from_tensors(c, parts, w, e);
	if (weights_need_kind(w, "dvae", e))
		return -1;
	return dvae_config_from_json(c, j, weights_path(w), e);
}

static int fill(struct dvae *d, const struct weights *w, struct error *e)
{
	if (params_load(&d->params, BLOCK_W, w, "", e))
		return -1;
	params_refresh(&d->params);
	const char *id = weights_meta(w, "dalle.id");
	if (!id)
		return hash_encoder(d, w, e);
	if (strlen(id) != ID_LENGTH)
		return fail(e, STATUS_BAD, "%s: dalle.id has %zu character%s, expected %d", weights_path(w), strlen(id),
		            plural(strlen(id)), ID_LENGTH);
	memcpy(d->id, id, ID_LENGTH + 1);
	return 0;
}

struct dvae *dvae_load(const char *path, int parts, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	struct dvae_config c;
	struct dvae *d = NULL;
	struct weights *w = weights_open(path, e);
	if (!w)
		return NULL;
	if (!read_config(&c, parts, w, e))
		d = dvae_plan(&c, parts, ops->type(dev), batch, e);
	if (d && (params_fit(&d->params, w, "", e) || dvae_build(d, ops, dev, e) || fill(d, w, e))) {
		dvae_free(d);
		d = NULL;
	}
	weights_close(w);
	return d;
}

/* ---- use ---- */

static int too_many(const struct dvae *d, int n, struct error *e)
{
	if (n < 0 || n > d->batch)
		return fail(e, STATUS_FAIL, "dVAE: %d pictures at once, memory was taken for %d", n, d->batch);
	return 0;
}

int dvae_encode(struct dvae *d, int32_t *codes, const uint8_t *rgb, int n, struct error *e)
{
	size_t pixels = (size_t)n * (size_t)(d->config.size * d->config.size), rows = (size_t)n * d->grid * d->grid;
	if (too_many(d, n, e))
		return -1;
	d->ops->put(d->dev, d->rgb, rgb, 3 * pixels);
	dvae_forward_encoder(d, n);
	d->ops->argmax(d->dev, d->argmax, d->logits, rows, (int)d->config.codes);
	d->ops->get(d->dev, codes, d->argmax, rows * sizeof *codes);
	return device_check(d->ops, d->dev, e);
}

/* One-hot rows; those of missing codes all zero. */
static int spread(struct dvae *d, const int32_t *codes, size_t rows, struct error *e)
{
	int K = (int)d->config.codes;
	for (size_t i = 0; i < rows; i++)
		if (codes[i] >= K)
			return fail(e, STATUS_BAD, "image token %d is outside of the codebook of %d codes", codes[i], K);
	for (size_t i = 0; i < rows; i++)
		d->codes[i] = codes[i] < 0 ? 0 : codes[i];
	d->ops->put(d->dev, d->argmax, d->codes, rows * sizeof *codes);
	d->ops->onehot(d->dev, d->z, d->argmax, rows, K);
	for (size_t i = 0; i < rows; i++)
		if (codes[i] < 0)
			d->ops->zero(d->dev, d->z + i * (size_t)K, (size_t)K * sizeof *d->z);
	return 0;
}

static void grey_missing(const struct dvae *d, uint8_t *rgb, const int32_t *codes, int n)
{
	size_t f = (size_t)dvae_factor(&d->config), line = 3 * (size_t)d->config.size, G = (size_t)d->grid;
	for (size_t i = 0; i < (size_t)n * G * G; i++) {
		if (codes[i] >= 0)
			continue;
		/* Row of tokens i / G over all pictures is f rows of pixels. */
		uint8_t *corner = rgb + i / G * f * line + i % G * f * 3;
		for (size_t y = 0; y < f; y++)
			memset(corner + y * line, 128, 3 * f);
	}
}

int dvae_decode(struct dvae *d, uint8_t *rgb, const int32_t *codes, int n, struct error *e)
{
	size_t pixels = (size_t)n * (size_t)(d->config.size * d->config.size), rows = (size_t)n * d->grid * d->grid;
	if (too_many(d, n, e) || spread(d, codes, rows, e))
		return -1;
	dvae_forward_decoder(d, n);
	d->ops->reconstruct(d->dev, d->picture, d->out, pixels, DVAE_SPAN, DVAE_EPSILON);
	d->ops->get(d->dev, rgb, d->picture, 3 * pixels);
	grey_missing(d, rgb, codes, n);
	return device_check(d->ops, d->dev, e);
}
