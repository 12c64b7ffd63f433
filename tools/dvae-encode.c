/* dvae-encode - pixels -> image tokens: the argmax of the dVAE encoder's logits (paper 2.2; recipe A7). */
#include "../libcommon/dvae.h"
#include "../libcommon/model-main.h"

#include <stdlib.h>
#include <string.h>

static struct run_options run = RUN_DEFAULTS(16);
static const char *model_path, *output;
static bool keep_pixels;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model_path, "MODEL", "dVAE model file"),
	OPT_FLAG(0, "keep-pixels", &keep_pixels, "leave the pixels in the records beside their tokens"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"dvae-encode", "-m MODEL [OPTION]... [FILE]...",
                                 "Turn the pixels of records into image tokens", options};

struct encoder {
	struct dvae *dvae;
	uint8_t *rgb;   /* (batch, S, S, 3) */
	int32_t *codes; /* (batch, G, G) */
};

static int encoder_open(struct encoder *c, const struct ops *ops, struct dev *dev, struct error *e)
{
	c->dvae = dvae_load(model_path, DVAE_ENCODER, ops, dev, (int)run.batch, e);
	if (!c->dvae)
		return -1;
	const struct dvae_config *k = dvae_configuration(c->dvae);
	c->rgb = mem_alloc((size_t)run.batch, (size_t)(k->size * k->size * 3), e);
	c->codes = mem_alloc((size_t)run.batch, (size_t)(dvae_grid(k) * dvae_grid(k)) * sizeof *c->codes, e);
	return c->rgb && c->codes ? 0 : -1;
}

static void encoder_close(struct encoder *c)
{
	dvae_free(c->dvae);
	free(c->rgb);
	free(c->codes);
}

static int wrong_size(const char *what, uint32_t width, uint32_t height, int64_t size, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: pictures are %ux%u pixels, expected %lldx%lld, the size of %s", what, width, height,
	            (long long)size, (long long)size, model_path);
}

/* What the tokens are made with; pixels go unless they are wanted. */
static int edit_header(struct header *h, const struct encoder *c, const char *file, struct error *e)
{
	const struct dvae_config *k = dvae_configuration(c->dvae);
	if (h->width && (h->width != k->size || h->height != k->size))
		return wrong_size(file, h->width, h->height, k->size, e);
	h->image = (struct image_codec){.size = (uint32_t)k->codes, .grid_width = (uint32_t)dvae_grid(k),
	                                .grid_height = (uint32_t)dvae_grid(k)};
	memcpy(h->image.id, dvae_id(c->dvae), sizeof h->image.id);
	h->width = h->height = keep_pixels ? (uint32_t)k->size : 0;
	return 0;
}

static int encode_batch(struct encoder *c, struct record *r, int n, const char *file, struct error *e)
{
	const struct dvae_config *k = dvae_configuration(c->dvae);
	size_t picture = (size_t)(k->size * k->size * 3), tokens = (size_t)(dvae_grid(k) * dvae_grid(k));
	for (int i = 0; i < n; i++) {
		const struct pixels *p = &r[i].pixels;
		if (need_pixels(&r[i], file, e))
			return -1;
		if (p->width != k->size || p->height != k->size)
			return wrong_size(file, p->width, p->height, k->size, e);
		memcpy(c->rgb + (size_t)i * picture, p->rgb, picture);
	}
	if (dvae_encode(c->dvae, c->codes, c->rgb, n, e))
		return -1;
	for (int i = 0; i < n; i++) {
		/* Codes are never negative: as unsigned they are the same bits. */
		if (tokens_set(&r[i].image, (const uint32_t *)c->codes + (size_t)i * tokens, tokens, e))
			return -1;
		if (!keep_pixels)
			r[i].pixels.width = r[i].pixels.height = 0;
	}
	return 0;
}

static int work(struct filter *f, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	struct encoder c = {0};
	int n = -1;
	if (filter_open(f, argc, argv, first, e) == 0 && encoder_open(&c, ops, dev, e) == 0 &&
	    edit_header(&f->header, &c, reader_name(f->in), e) == 0)
		n = filter_start(f, output, STREAM_LEVEL, e);
	while (n >= 0 && (n = filter_batch(f, (int)run.batch, e)) > 0)
		if (encode_batch(&c, f->batch, n, reader_name(f->in), e) || filter_put_batch(f, n, e))
			n = -1;
	encoder_close(&c);
	return n;
}

int main(int argc, char **argv)
{
	return model_main(&tool, &model_path, &run, argc, argv, work);
}
