/* dvae-batch.c - what surrounds the dVAE's updates: pictures of a batch with augmentation (recipe B22), the count of
 * codes in use (a codebook that collapses shows here first), and the preview sheet. */
#include "dvae-batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dvae-net.h"
#include "hash.h"
#include "image.h"
#include "rng.h"

/* ---- codes in use ---- */

int code_use_init(struct code_use *u, const struct dvae *d, int window, struct error *e)
{
	*u = (struct code_use){.K = (int)d->config.codes, .window = window};
	u->rows_max = (size_t)d->batch * (size_t)d->grid * (size_t)d->grid;
	u->count = mem_zero((size_t)u->K, sizeof *u->count, e);
	u->codes = mem_alloc(u->rows_max, sizeof *u->codes, e);
	if (!u->count || !u->codes)
		return -1;
	if (!window)
		return 0;
	u->recent = mem_alloc((size_t)window * u->rows_max, sizeof *u->recent, e);
	u->recent_rows = mem_zero((size_t)window, sizeof *u->recent_rows, e);
	return u->recent && u->recent_rows ? 0 : -1;
}

void code_use_free(struct code_use *u)
{
	free(u->count);
	free(u->codes);
	free(u->recent);
	free(u->recent_rows);
}

void code_use_clear(struct code_use *u)
{
	memset(u->count, 0, (size_t)u->K * sizeof *u->count);
	u->total = 0;
}

static void slide(struct code_use *u, size_t rows)
{
	int32_t *slot = u->recent + (size_t)u->next * u->rows_max;
	for (int i = 0; i < u->recent_rows[u->next]; i++)
		u->count[slot[i]]--;
	u->total -= (uint64_t)u->recent_rows[u->next];
	memcpy(slot, u->codes, rows * sizeof *slot);
	u->recent_rows[u->next] = (int)rows;
	u->next = (u->next + 1) % u->window;
}

int code_use_add(struct code_use *u, struct dvae *d, int n, struct error *e)
{
	size_t rows = (size_t)n * (size_t)d->grid * (size_t)d->grid;
	d->ops->argmax(d->dev, d->argmax, d->logits, rows, u->K);
	d->ops->get(d->dev, u->codes, d->argmax, rows * sizeof *u->codes);
	if (u->window)
		slide(u, rows);
	for (size_t i = 0; i < rows; i++)
		u->count[u->codes[i]]++;
	u->total += rows;
	return 0;
}

int code_use_sum(struct code_use *u, struct comm *c, struct error *e)
{
	size_t n = (size_t)u->K;
	double *x = mem_alloc(n + 1, sizeof *x, e);
	if (!x)
		return -1;
	for (size_t k = 0; k < n; k++)
		x[k] = u->count[k];
	x[n] = (double)u->total;
	int result = comm_sum(c, x, n + 1, COMM_F64, e);
	for (size_t k = 0; k < n; k++)
		u->count[k] = (uint32_t)x[k];
	u->total = (uint64_t)x[n];
	free(x);
	return result;
}

double code_use_count(const struct code_use *u)
{
	int used = 0;
	for (int k = 0; k < u->K; k++)
		used += u->count[k] > 0;
	return used;
}

double code_use_perplexity(const struct code_use *u)
{
	double entropy = 0;
	for (int k = 0; k < u->K; k++) {
		double share = u->total ? (double)u->count[k] / (double)u->total : 0;
		entropy -= share > 0 ? share * log(share) : 0;
	}
	return exp(entropy);
}

/* ---- pictures ---- */

static size_t picture_bytes(const struct dvae *d)
{
	return 3 * (size_t)d->config.size * (size_t)d->config.size;
}

static int has_size(const struct dvae_fit *f, const struct record *r, struct error *e)
{
	uint32_t S = (uint32_t)f->d->config.size;
	if (!r->pixels.width)
		return fail(e, STATUS_BAD, "%s: record %.*s holds no pixels, expected %ux%u: see img-pack", f->input,
		            (int)r->key.n, r->key.n ? (const char *)r->key.p : "", S, S);
	if (r->pixels.width < S || r->pixels.height < S)
		return fail(e, STATUS_BAD, "%s: record %.*s is %ux%u pixels, the dVAE's are %ux%u", f->input, (int)r->key.n,
		            r->key.n ? (const char *)r->key.p : "", r->pixels.width, r->pixels.height, S, S);
	return 0;
}

/* Crop chance is keyed by the update and the place in it, so that a resumed run draws the same. */
static int fill_one(struct dvae_fit *f, uint8_t *to, const struct record *r, enum crop_mode mode, bool flip,
                    uint64_t seed, uint32_t variant, uint64_t index, struct error *e)
{
	static const uint8_t white[3] = {255, 255, 255};
	uint32_t S = (uint32_t)f->d->config.size;
	struct crop c;
	if (has_size(f, r, e) || crop_plan(&c, mode, r->pixels.width, r->pixels.height, S, seed, variant, index, e))
		return -1;
	bool whole = mode == CROP_CENTER && r->pixels.width == S && r->pixels.height == S;
	if (whole && !flip) {
		memcpy(to, r->pixels.rgb, picture_bytes(f->d));
		return 0;
	}
	c.mirrored = c.mirrored != flip;
	if (crop_apply(&f->crop, &r->pixels, &c, S, white, mode == CROP_DVAE ? RESIZE_TF_AREA : RESIZE_AREA, e))
		return -1;
	memcpy(to, f->crop.rgb, picture_bytes(f->d));
	return 0;
}

int dvae_fill_batch(struct dvae_fit *f, const struct train_step *s, const struct record *const *batch, int n,
                    struct error *e)
{
	enum crop_mode mode = f->o.augment == DVAE_AUGMENT_PAPER ? CROP_DVAE : CROP_CENTER;
	for (int i = 0; i < n; i++) {
		uint64_t index = ((uint64_t)s->step * (uint64_t)s->parts + (uint64_t)s->part) * (uint64_t)f->d->batch +
		                 (uint64_t)i;
		bool flip = f->o.augment == DVAE_AUGMENT_FLIP && rng_below(s->seed, RNG_AUGMENT, UINT32_MAX, index, 2);
		if (fill_one(f, f->rgb + picture_bytes(f->d) * (size_t)i, batch[i], mode, flip, s->seed, 0, index, e))
			return -1;
	}
	if (!f->shown_held_out)
		dvae_show_batch(f, n);
	return 0;
}

int dvae_fill_plain(struct dvae_fit *f, const struct record *const *batch, int n, struct error *e)
{
	for (int i = 0; i < n; i++)
		if (fill_one(f, f->rgb + picture_bytes(f->d) * (size_t)i, batch[i], CROP_CENTER, false, 0, 0, 0, e))
			return -1;
	return 0;
}

void dvae_show_batch(struct dvae_fit *f, int n)
{
	f->shown_count = n < PREVIEW_PICTURES ? n : PREVIEW_PICTURES;
	memcpy(f->shown, f->rgb, picture_bytes(f->d) * (size_t)f->shown_count);
}

/* ---- preview ---- */

static void put_picture(struct pixels *sheet, const struct dvae *d, int column, int row, const uint8_t *rgb)
{
	size_t S = (size_t)d->config.size, line = 3 * (size_t)sheet->width;
	for (size_t y = 0; y < S; y++)
		memcpy(sheet->rgb + ((size_t)row * S + y) * line + (size_t)column * 3 * S, rgb + 3 * S * y, 3 * S);
}

static int reconstruct(struct dvae_fit *f, uint8_t *out, const uint8_t *in, struct error *e)
{
	struct dvae *d = f->d;
	struct dvae_pass hard = {.floor = -INFINITY};
	return dvae_measure(d, in, 1, &hard, NULL, NULL, out, e);
}

static int draw_preview(struct dvae_fit *f, struct pixels *sheet, struct error *e)
{
	static const uint8_t white[3] = {255, 255, 255};
	uint32_t S = (uint32_t)f->d->config.size;
	int rows = (f->shown_count + PREVIEW_COLUMNS - 1) / PREVIEW_COLUMNS;
	if (pixels_resize(sheet, S * PREVIEW_COLUMNS, S * 2 * (uint32_t)rows, e))
		return -1;
	image_fill(sheet, white);
	for (int i = 0; i < f->shown_count; i++) {
		const uint8_t *original = f->shown + picture_bytes(f->d) * (size_t)i;
		if (reconstruct(f, f->out, original, e))
			return -1;
		put_picture(sheet, f->d, i % PREVIEW_COLUMNS, i / PREVIEW_COLUMNS * 2, original);
		put_picture(sheet, f->d, i % PREVIEW_COLUMNS, i / PREVIEW_COLUMNS * 2 + 1, f->out);
	}
	return 0;
}

int dvae_write_preview(struct dvae_fit *f, struct error *e)
{
	struct pixels sheet = {0};
	struct buf png = {0};
	if (!f->o.preview || !f->shown_count)
		return 0;
	int status = draw_preview(f, &sheet, e);
	if (!status)
		status = image_write_png(&png, &sheet, NULL, 0, e);
	if (!status)
		status = write_file(f->o.preview, png.p, png.n, false, e);
	image_free(&sheet);
	buf_free(&png);
	return status;
}

/* ---- life ---- */

struct dvae_fit *dvae_fit_new(struct dvae *d, const struct dvae_fit_options *o, const char *input, struct error *e)
{
	size_t bytes = picture_bytes(d), batch = (size_t)d->batch;
	struct dvae_fit *f = mem_zero(1, sizeof *f, e);
	if (!f)
		return NULL;
	f->d = d, f->o = *o, f->input = input;
	f->rgb = mem_alloc(batch, bytes, e);
	f->out = mem_alloc(batch, bytes, e);
	f->shown = mem_alloc(PREVIEW_PICTURES, bytes, e);
	f->distortion = mem_alloc(batch, sizeof *f->distortion, e);
	f->kl = mem_alloc(batch, sizeof *f->kl, e);
	if (!f->rgb || !f->out || !f->shown || !f->distortion || !f->kl ||
	    code_use_init(&f->trained, d, CODE_USE_WINDOW, e) || code_use_init(&f->evaluated, d, 0, e)) {
		dvae_fit_free(f);
		return NULL;
	}
	return f;
}

void dvae_fit_free(struct dvae_fit *f)
{
	if (!f)
		return;
	code_use_free(&f->trained);
	code_use_free(&f->evaluated);
	image_free(&f->crop);
	free(f->rgb);
	free(f->out);
	free(f->shown);
	free(f->distortion);
	free(f->kl);
	free(f);
}
