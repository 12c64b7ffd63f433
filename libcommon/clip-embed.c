/* clip-embed.c - see clip-embed.h. */
#include "clip-embed.h"

#include "filter.h"
#include "image.h"

#include <stdlib.h>
#include <string.h>

int embedder_open(struct embedder *x, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	*x = (struct embedder){.path = path, .batch = batch};
	if (clip_open(&x->model, path, ops, dev, batch, e))
		return -1;
	size_t B = (size_t)batch, side = (size_t)x->model.config.size, E = (size_t)x->model.config.embed;
	x->image = mem_alloc(B * E, sizeof *x->image, e);
	x->text = mem_alloc(B * E, sizeof *x->text, e);
	x->rgb = mem_alloc(B, side * side * 3, e);
	x->encoded = mem_zero(B, sizeof *x->encoded, e);
	x->tokens = mem_alloc(B, sizeof *x->tokens, e);
	x->row = mem_alloc(B, sizeof *x->row, e);
	if (!x->image || !x->text || !x->rgb || !x->encoded || !x->tokens || !x->row)
		return -1;
	if (x->model.bpe)
		x->coder = bpe_coder_new(x->model.bpe, e);
	return x->model.bpe && !x->coder ? -1 : 0;
}

void embedder_close(struct embedder *x)
{
	for (int i = 0; x->encoded && i < x->batch; i++)
		free(x->encoded[i].v);
	free(x->encoded);
	free(x->tokens);
	free(x->row);
	free(x->image);
	free(x->text);
	free(x->rgb);
	bpe_coder_free(x->coder);
	clip_free(&x->model);
	*x = (struct embedder){0};
}

int embedder_check(const struct embedder *x, const struct header *h, const char *file, struct error *e)
{
	if (x->model.bpe)
		return 0;
	if (need_text(h, file, e))
		return -1;
	if (strcmp(h->text.id, x->model.text_id) != 0)
		return fail(e, STATUS_BAD, "%s: text tokens of vocabulary %s, expected %s, which %s was trained with", file, h->text.id,
		            x->model.text_id, x->path);
	return 0;
}

/* ---- pictures ---- */

static int check_picture(const struct embedder *x, const struct pixels *p, const char *file, struct error *e)
{
	uint32_t side = (uint32_t)x->model.config.size;
	if (!p->width || !p->height)
		return fail(e, STATUS_BAD, "%s: holds no pictures, expected them from img-pack or dvae-decode", file);
	if (!x->model.bpe && (p->width != side || p->height != side))
		return fail(e, STATUS_BAD, "%s: a picture is %ux%u, expected %ux%u, the size of %s", file, p->width, p->height, side,
		            side, x->path);
	return 0;
}

/* The shorter side resampled, the longer one in proportion (rounded down), the middle of both. */
static int fit_picture(const struct clip *m, struct pixels *out, const struct pixels *in, struct error *e)
{
	uint32_t size = (uint32_t)m->config.size, w = in->width, h = in->height, shorter = w < h ? w : h;
	uint32_t resize = (uint32_t)m->resize; /* at most STREAM_MAX_SIDE, as both sides: products are below 2^28 */
	uint32_t width = resize * w / shorter, height = resize * h / shorter;
	struct rect middle = {(width - size) / 2, (height - size) / 2, size, size};
	return image_bicubic(out, in, width, height, middle, e);
}

int embed_pictures(struct embedder *x, const struct pixels *const *pictures, int n, enum embed_form form, const char *file,
                   struct error *e)
{
	struct clip *m = &x->model;
	struct pixels fitted = {0};
	size_t bytes = (size_t)(m->config.size * m->config.size) * 3;
	int r = 0;
	for (int i = 0; i < n && r == 0; i++) {
		const struct pixels *p = pictures[i];
		r = check_picture(x, p, file, e) || (m->bpe && fit_picture(m, &fitted, p, e)) ? -1 : 0;
		if (r == 0)
			memcpy(x->rgb + (size_t)i * bytes, m->bpe ? fitted.rgb : p->rgb, bytes);
	}
	image_free(&fitted);
	if (r)
		return -1;
	return form == EMBED_FEATURES ? clip_features(m, x->rgb, n, x->image, e)
	                              : clip_embed(m, x->rgb, NULL, n, x->image, NULL, e);
}

/* ---- captions ---- */

uint64_t embedder_caption(const struct embedder *x, const struct record *r)
{
	return caption_hash(r, x->coder != NULL);
}

/* The record's tokens: those it has, or those of the published vocabulary into *to. */
static const struct tokens *caption_tokens(struct embedder *x, const struct record *r, struct tokens *to, const char *file,
                                           struct error *e)
{
	if (!x->coder)
		return &r->text;
	if (!r->caption.n) {
		fail(e, STATUS_BAD, "%s: a record has no caption", file);
		return NULL;
	}
	if (bpe_encode(x->coder, r->caption.p, r->caption.n, 0, 0, 0, to, e))
		return NULL;
	x->cut += bpe_cut(x->model.bpe, to, (size_t)x->model.config.context);
	return to;
}

int embed_captions(struct embedder *x, const struct record *r, int n, const char *file, struct error *e)
{
	size_t E = (size_t)x->model.config.embed;
	uint64_t before = 0;
	int distinct = 0;
	for (int i = 0; i < n; i++) {
		uint64_t caption = embedder_caption(x, &r[i]);
		if (i == 0 || caption != before) {
			x->tokens[distinct] = caption_tokens(x, &r[i], &x->encoded[distinct], file, e);
			if (!x->tokens[distinct++])
				return -1;
		}
		x->row[i] = distinct - 1;
		before = caption;
	}
	if (clip_embed(&x->model, NULL, x->tokens, distinct, NULL, x->text, e))
		return -1;
	for (int i = n - 1; i >= 0; i--) /* from the end: row[i] <= i */
		memmove(x->text + (size_t)i * E, x->text + (size_t)x->row[i] * E, E * sizeof *x->text);
	return 0;
}
