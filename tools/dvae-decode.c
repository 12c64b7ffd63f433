/* dvae-decode - image tokens -> pixels: the dVAE decoder's mean picture (recipe B13). */
#include "../libcommon/dvae.h"
#include "../libcommon/model-main.h"

#include <stdlib.h>
#include <string.h>

static struct run_options run = RUN_DEFAULTS(16);
static const char *model_path, *output;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model_path, "MODEL", "dVAE model file"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"dvae-decode", "-m MODEL [OPTION]... [FILE]...",
                                 "Turn the image tokens of records into pixels", options};

struct decoder {
	struct dvae *dvae;
	uint8_t *rgb;   /* (batch, S, S, 3) */
	int32_t *codes; /* (batch, G, G) */
};

static int decoder_open(struct decoder *c, const struct ops *ops, struct dev *dev, struct error *e)
{
	c->dvae = dvae_load(model_path, DVAE_DECODER, ops, dev, (int)run.batch, e);
	if (!c->dvae)
		return -1;
	const struct dvae_config *k = dvae_configuration(c->dvae);
	c->rgb = mem_alloc((size_t)run.batch, (size_t)(k->size * k->size * 3), e);
	c->codes = mem_alloc((size_t)run.batch, (size_t)(dvae_grid(k) * dvae_grid(k)) * sizeof *c->codes, e);
	return c->rgb && c->codes ? 0 : -1;
}

static void decoder_close(struct decoder *c)
{
	dvae_free(c->dvae);
	free(c->rgb);
	free(c->codes);
}

/* Tokens of another dVAE mean other pictures: refused, never decoded.  A published decoder alone cannot be asked. */
static int edit_header(struct header *h, const struct decoder *c, const char *file, struct error *e)
{
	const struct dvae_config *k = dvae_configuration(c->dvae);
	bool known = dvae_id(c->dvae)[0];
	if (need_image(h, file, e))
		return -1;
	if (!known)
		note(0, "%s: holds no encoder, so whether it fits the tokens of dVAE %s is not known", model_path, h->image.id);
	if (known && strcmp(h->image.id, dvae_id(c->dvae)))
		return fail(e, STATUS_BAD, "%s: image tokens are of dVAE %s, expected %s, which is %s", file, h->image.id,
		            dvae_id(c->dvae), model_path);
	if (h->image.grid_width != dvae_grid(k) || h->image.grid_height != dvae_grid(k) || h->image.size != k->codes)
		return fail(e, STATUS_BAD, "%s: image tokens are a grid of %ux%u of %u codes, expected %lldx%lld of %lld", file,
		            h->image.grid_width, h->image.grid_height, h->image.size, (long long)dvae_grid(k),
		            (long long)dvae_grid(k), (long long)k->codes);
	h->width = h->height = (uint32_t)k->size;
	return 0;
}

/* Fewer tokens than the grid has: the rest is missing, see dvae_decode. */
static int take_tokens(int32_t *codes, const struct record *r, size_t tokens, uint32_t K, const char *file,
                       struct error *e)
{
	if (!r->image.present || r->image.n > tokens)
		return fail(e, STATUS_BAD, "%s: record %.*s has %zu image token%s, expected up to %zu", file, (int)r->key.n,
		            r->key.n ? (const char *)r->key.p : "", r->image.n, plural(r->image.n), tokens);
	for (size_t t = 0; t < tokens; t++) {
		uint32_t code = t < r->image.n ? r->image.v[t] : 0;
		if (code >= K)
			return fail(e, STATUS_BAD, "%s: image token %u is outside of the codebook of %u codes", file, code, K);
		codes[t] = t < r->image.n ? (int32_t)code : -1;
	}
	return 0;
}

static int decode_batch(struct decoder *c, struct record *r, int n, const char *file, struct error *e)
{
	const struct dvae_config *k = dvae_configuration(c->dvae);
	size_t picture = (size_t)(k->size * k->size * 3), tokens = (size_t)(dvae_grid(k) * dvae_grid(k));
	for (int i = 0; i < n; i++)
		if (take_tokens(c->codes + (size_t)i * tokens, &r[i], tokens, (uint32_t)k->codes, file, e))
			return -1;
	if (dvae_decode(c->dvae, c->rgb, c->codes, n, e))
		return -1;
	for (int i = 0; i < n; i++) {
		if (pixels_resize(&r[i].pixels, (uint32_t)k->size, (uint32_t)k->size, e))
			return -1;
		memcpy(r[i].pixels.rgb, c->rgb + (size_t)i * picture, picture);
	}
	return 0;
}

static int work(struct filter *f, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	struct decoder c = {0};
	int n = -1;
	if (filter_open(f, argc, argv, first, e) == 0 && decoder_open(&c, ops, dev, e) == 0 &&
	    edit_header(&f->header, &c, reader_name(f->in), e) == 0)
		n = filter_start(f, output, STREAM_LEVEL, e);
	while (n >= 0 && (n = filter_batch(f, (int)run.batch, e)) > 0)
		if (decode_batch(&c, f->batch, n, reader_name(f->in), e) || filter_put_batch(f, n, e))
			n = -1;
	decoder_close(&c);
	return n;
}

int main(int argc, char **argv)
{
	return model_main(&tool, &model_path, &run, argc, argv, work);
}
