/* dalle-train.c - see dalle-train.h. */
#include "dalle-train.h"

#include "hash.h"
#include "rng.h"

#include <stdlib.h>
#include <string.h>

int dalle_fit_start(struct dalle_fit *f, struct error *e)
{
	size_t B = (size_t)f->recipe.batch;
	f->items = mem_zero(B, sizeof *f->items, e);
	f->texts = mem_zero(B, sizeof *f->texts, e);
	f->hidden = mem_zero(B, (size_t)dalle_image_length(&f->d->c), e);
	if (!f->items || !f->texts || !f->hidden)
		return -1;
	if (f->bpe && !(f->coder = bpe_coder_new(f->bpe, e)))
		return -1;
	return 0;
}

void dalle_fit_free(struct dalle_fit *f)
{
	for (int i = 0; f->texts && i < f->recipe.batch; i++)
		free(f->texts[i].v);
	free(f->texts);
	free(f->items);
	free(f->hidden);
	bpe_coder_free(f->coder);
}

int dalle_parse_halvings(struct dalle_fit *f, const char *list, struct error *e)
{
	for (f->halvings = 0; list && *list; f->halvings++) {
		char number[32];
		size_t n = strcspn(list, ",");
		if (f->halvings == DALLE_MAX_HALVINGS || n >= sizeof number)
			return fail(e, STATUS_USAGE, "--halve-at: '%s' is too long, expected at most %d numbers", list,
			            DALLE_MAX_HALVINGS);
		memcpy(number, list, n);
		number[n] = 0;
		int64_t least = f->halvings ? f->halve_at[f->halvings - 1] + 1 : 1;
		struct error why = {0};
		if (parse_int(number, least, INT64_MAX, &f->halve_at[f->halvings], &why))
			return fail(e, STATUS_USAGE, "--halve-at: %s", why.text);
		list += n + (list[n] == ',');
	}
	return 0;
}

static double step_size(const void *model, const struct train_step *s)
{
	const struct dalle_fit *f = model;
	const struct dalle_recipe *r = &f->recipe;
	if (!f->constant)
		return r->lr * schedule_warmup_cosine(s->step, r->warmup, s->steps, r->lr_end);
	double lr = s->step < r->warmup ? r->lr * (double)(s->step + 1) / (double)r->warmup : r->lr;
	for (int i = 0; i < f->halvings && f->halve_at[i] <= s->step; i++)
		lr /= 2;
	return lr;
}

static void hide_tokens(struct dalle_fit *f, uint64_t seed, uint64_t place, int i)
{
	int N = dalle_image_length(&f->d->c);
	uint8_t *hidden = f->hidden + (size_t)i * (size_t)N;
	for (int p = 0; p < N; p++)
		hidden[p] = rng_unit(seed, RNG_DROPOUT, 0, place * (uint64_t)N + (uint64_t)p) < f->token_dropout;
	f->items[i].hidden = hidden;
}

/* One record as an item; tokens stay the record's or go into texts[i]. */
static int make_item(struct dalle_fit *f, const struct train_step *s, const struct record *r, int i, struct error *e)
{
	struct dalle_item *item = &f->items[i];
	if (dalle_check_record(f->d, r, f->file, true, e))
		return -1;
	*item = (struct dalle_item){.text = r->text.v, .text_n = r->text.n, .image = r->image.v};
	if (!s)
		return 0;
	uint64_t place = ((uint64_t)s->step * (uint64_t)s->parts + (uint64_t)s->part) * (uint64_t)f->recipe.batch + (uint64_t)i;
	if (f->token_dropout > 0)
		hide_tokens(f, s->seed, place, i);
	if (f->caption_dropout > 0 && rng_unit(s->seed, RNG_CAPTION, 0, place) < f->caption_dropout) {
		item->text_n = 0;
		return 0;
	}
	if (!f->coder || f->recipe.bpe_dropout == 0 || r->caption.n == 0)
		return 0;
	/* A record's merges differ from pass to pass: the update is part of the seed. */
	uint64_t seed = s->seed ^ ((uint64_t)s->step + 1) * 0x9E3779B97F4A7C15u;
	if (bpe_encode(f->coder, r->caption.p, r->caption.n, f->recipe.bpe_dropout, seed,
	               bpe_record_number(r->key.p, r->key.n), &f->texts[i], e))
		return -1;
	item->text = f->texts[i].v;
	item->text_n = f->texts[i].n;
	return 0;
}

static int make_items(struct dalle_fit *f, const struct train_step *s, const struct record *const *batch, int n,
                      struct error *e)
{
	for (int i = 0; i < n; i++) {
		if (make_item(f, s, batch[i], i, e))
			return -1;
		if (s)
			captions_count(&f->captions, batch[i], f->items[i].text_n);
	}
	return 0;
}

static int fit_step(void *model, const struct train_step *s, const struct record *const *batch, int n, struct metrics *m,
                    struct error *e)
{
	struct dalle_fit *f = model;
	struct dalle_loss l;
	if (make_items(f, s, batch, n, e) || dalle_likelihood(f->d, f->items, n, true, 1.0 / s->parts, &l, e))
		return -1;
	double text = l.text_count ? l.text / (double)l.text_count : 0, image = l.image / (double)l.image_count;
	metrics_set(m, "loss", DALLE_TEXT_SHARE * text + DALLE_IMAGE_SHARE * image);
	metrics_set(m, "text", text);
	metrics_set(m, "image", image);
	return 0;
}

static int fit_evaluate(void *model, const struct train_step *s, const struct record *const *batch, int n,
                        struct metrics *sums, struct error *e)
{
	struct dalle_fit *f = model;
	struct dalle_loss l;
	if (make_items(f, NULL, batch, n, e) || dalle_likelihood(f->d, f->items, n, false, 1, &l, e))
		return -1;
	double text = 0, image = 0;
	for (int i = 0; i < n; i++) {
		text += l.text_n[i] ? l.text_of[i] / l.text_n[i] : 0;
		image += l.image_of[i] / dalle_image_length(&f->d->c);
	}
	metrics_set(sums, "loss", DALLE_TEXT_SHARE * text + DALLE_IMAGE_SHARE * image);
	metrics_set(sums, "text", text);
	metrics_set(sums, "image", image);
	return 0;
}

/* "5,9" of the halvings. */
static json_t *halvings_json(const struct dalle_fit *f)
{
	char text[DALLE_MAX_HALVINGS * 21 + 1] = "";
	for (int i = 0, at = 0; i < f->halvings; i++)
		at += snprintf(text + at, sizeof text - (size_t)at, "%s%lld", i ? "," : "", (long long)f->halve_at[i]);
	return json_string(text);
}

json_t *dalle_fit_recipe(const struct dalle_fit *f)
{
	const struct dalle_recipe *r = &f->recipe;
	json_t *j = json_pack("{s:f,s:I,s:f,s:f,s:f}", "lr", r->lr, "warmup", (json_int_t)r->warmup, "init_scale", r->init,
	                      "caption_dropout", f->caption_dropout, "token_dropout", f->token_dropout);
	bool failed = !j || (!f->constant && json_object_set_new(j, "lr_end", json_real(r->lr_end))) ||
	              (f->halvings && json_object_set_new(j, "halve_at", halvings_json(f))) ||
	              (f->bpe && json_object_set_new(j, "bpe_dropout", json_real(r->bpe_dropout)));
	if (!failed)
		return j;
	json_decref(j);
	return NULL;
}

void dalle_fit_trainee(struct dalle_fit *f, struct trainee *t, json_t *config, const struct header *h)
{
	const struct dalle_recipe *r = &f->recipe;
	f->captions = (struct cut_captions){.most = (size_t)f->d->c.text_length - 1, .option = "--text-length"};
	*t = (struct trainee){
		.kind = "dalle", .model = f, .params = &f->d->params, .config = config,
		.text_id = h->text.id, .image_id = h->image.id, .batch = r->batch,
		.beta1 = (float)r->beta1, .beta2 = (float)r->beta2, .eps = (float)r->eps, .decay = (float)r->decay,
		.v_max = (float)r->v_max, .clip = (float)r->clip,
		.average_decay = (float)r->average_decay, .average_every = r->average_every,
		.activation_bytes = arena_bytes(&f->d->arena),
		.text_rows = "text.embed.weight text.head.weight text.head.bias",
		.image_rows = "image.embed.weight image.head.weight image.head.bias",
		.grad_scale = f->grad_scale, .t_gradients = true,
		.captions = &f->captions, .lr = step_size, .step = fit_step, .evaluate = fit_evaluate,
	};
}
