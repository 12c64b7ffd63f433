/* fields.c - see fields.h. */
#include "fields.h"
#include "base64.h"
#include "wire.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[FIELD_COUNT] = {"key", "caption", "text", "image", "pixels", "score", "nll_text",
                                               "nll_image", "seed", "sample", "model", "unknown"};

const char *field_name(int i)
{
	return names[i];
}

/* Bit of the field called s[0..n), 0 when there is none. */
static unsigned field_bit(const char *s, size_t n)
{
	for (int i = 0; i < FIELD_COUNT; i++)
		if (strlen(names[i]) == n && memcmp(names[i], s, n) == 0)
			return 1u << i;
	return 0;
}

int fields_parse(const char *option, const char *list, unsigned *bits, struct error *e)
{
	*bits = 0;
	for (const char *s = list;; s++) {
		size_t n = strcspn(s, ",");
		unsigned bit = field_bit(s, n);
		if (!bit)
			return fail(e, STATUS_USAGE, "%s: '%.*s' is no field, expected some of %s", option, (int)(n < 100 ? n : 100), s,
			            FIELD_NAMES);
		*bits |= bit;
		s += n;
		if (!*s)
			return 0;
	}
}

unsigned record_fields(const struct record *r)
{
	unsigned bits = 0;
	bits |= r->key.n ? FIELD_KEY : 0;
	bits |= r->caption.n ? FIELD_CAPTION : 0;
	bits |= r->text.present ? FIELD_TEXT : 0;
	bits |= r->image.present ? FIELD_IMAGE : 0;
	bits |= r->pixels.width && r->pixels.height ? FIELD_PIXELS : 0;
	bits |= r->has & HAS_SCORE ? FIELD_SCORE : 0;
	bits |= r->has & HAS_NLL_TEXT ? FIELD_NLL_TEXT : 0;
	bits |= r->has & HAS_NLL_IMAGE ? FIELD_NLL_IMAGE : 0;
	bits |= r->has & HAS_SEED ? FIELD_SEED : 0;
	bits |= r->has & HAS_SAMPLE ? FIELD_SAMPLE : 0;
	bits |= r->model.n ? FIELD_MODEL : 0;
	bits |= r->unknown.n ? FIELD_UNKNOWN : 0;
	return bits;
}

void record_project(struct record *r, unsigned keep)
{
	if (!(keep & FIELD_KEY))
		r->key.n = 0;
	if (!(keep & FIELD_CAPTION))
		r->caption.n = 0;
	if (!(keep & FIELD_TEXT))
		r->text.present = false, r->text.n = 0;
	if (!(keep & FIELD_IMAGE))
		r->image.present = false, r->image.n = 0;
	if (!(keep & FIELD_PIXELS))
		r->pixels.width = r->pixels.height = 0;
	if (!(keep & FIELD_MODEL))
		r->model.n = 0;
	if (!(keep & FIELD_UNKNOWN))
		r->unknown.n = 0;
	/* The scalars' HAS_* bits lie in the order of their fields. */
	r->has &= keep / FIELD_SCORE;
}

void header_project(struct header *h, unsigned keep)
{
	if (!(keep & FIELD_TEXT))
		h->text = (struct text_codec){0};
	if (!(keep & FIELD_IMAGE))
		h->image = (struct image_codec){0};
	if (!(keep & FIELD_PIXELS))
		h->width = h->height = 0;
}

/* ---- to JSON ---- */

static json_t *json_base64(const uint8_t *p, size_t n, struct error *e)
{
	struct buf text = {0};
	json_t *s = base64_add(&text, p, n, e) == 0 ? json_stringn_nocheck((const char *)text.p, text.n) : NULL;
	buf_free(&text);
	return s;
}

static json_t *json_text(const struct buf *b)
{
	return json_stringn_nocheck((const char *)b->p, b->n);
}

static json_t *json_tokens(const struct tokens *t)
{
	json_t *a = json_array();
	for (size_t i = 0; a && i < t->n; i++)
		if (json_array_append_new(a, json_integer(t->v[i]))) {
			json_decref(a);
			a = NULL;
		}
	return a;
}

/* JSON has no NaN and no infinity. */
static json_t *json_float(float v)
{
	return isfinite(v) ? json_real((double)v) : json_string(isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
}

/* Readers that keep numbers as doubles would round a larger seed. */
static json_t *json_seed(uint64_t v)
{
	char text[24];
	snprintf(text, sizeof text, "%llu", (unsigned long long)v);
	return v <= 1ULL << 53 ? json_integer((json_int_t)v) : json_string(text);
}

static json_t *json_pixels(const struct pixels *p, struct error *e)
{
	return json_pack("{s:i, s:i, s:o}", "width", (int)p->width, "height", (int)p->height, "rgb",
	                 json_base64(p->rgb, (size_t)3 * p->width * p->height, e));
}

static json_t *field_to_json(const struct record *r, unsigned bit, struct error *e)
{
	switch (bit) {
	case FIELD_KEY: return json_text(&r->key);
	case FIELD_CAPTION: return json_text(&r->caption);
	case FIELD_TEXT: return json_tokens(&r->text);
	case FIELD_IMAGE: return json_tokens(&r->image);
	case FIELD_PIXELS: return json_pixels(&r->pixels, e);
	case FIELD_SCORE: return json_float(r->score);
	case FIELD_NLL_TEXT: return json_float(r->nll_text);
	case FIELD_NLL_IMAGE: return json_float(r->nll_image);
	case FIELD_SEED: return json_seed(r->seed);
	case FIELD_SAMPLE: return json_integer(r->sample);
	case FIELD_MODEL: return json_text(&r->model);
	default: return json_base64(r->unknown.p, r->unknown.n, e);
	}
}

json_t *record_to_json(const struct record *r, unsigned fields, struct error *e)
{
	json_t *o = json_object();
	fields &= record_fields(r);
	for (int i = 0; o && i < FIELD_COUNT; i++) {
		if (!(fields & 1u << i))
			continue;
		if (json_object_set_new_nocheck(o, names[i], field_to_json(r, 1u << i, e))) {
			json_decref(o);
			o = NULL;
		}
	}
	if (!o)
		fail(e, STATUS_LIMIT, "out of memory");
	return o;
}

/* ---- from JSON ---- */

static int wrong(const char *name, const char *expected, struct error *e)
{
	return fail(e, STATUS_BAD, "member '%.60s': expected %s", name, expected);
}

static int text_from_json(struct buf *b, const char *name, const json_t *v, struct error *e)
{
	if (!json_is_string(v))
		return wrong(name, "a string", e);
	return buf_set(b, json_string_value(v), json_string_length(v), e);
}

static int tokens_from_json(struct tokens *t, const char *name, const json_t *v, struct error *e)
{
	size_t n = json_array_size(v);
	if (!json_is_array(v))
		return wrong(name, "an array of token numbers", e);
	uint32_t *ids = mem_alloc(n, sizeof *ids, e);
	int r = ids ? 0 : -1;
	for (size_t i = 0; i < n && r == 0; i++) {
		const json_t *x = json_array_get(v, i);
		json_int_t id = json_integer_value(x);
		if (!json_is_integer(x) || id < 0 || id > UINT32_MAX)
			r = wrong(name, "whole numbers from 0 to 4294967295", e);
		else
			ids[i] = (uint32_t)id;
	}
	if (r == 0)
		r = tokens_set(t, ids, n, e);
	free(ids);
	return r;
}

static int float_from_json(float *out, const char *name, const json_t *v, struct error *e)
{
	const char *s = json_is_string(v) ? json_string_value(v) : "";
	if (json_is_number(v))
		*out = (float)json_number_value(v);
	else if (strcmp(s, "nan") == 0)
		*out = NAN;
	else if (strcmp(s, "inf") == 0 || strcmp(s, "-inf") == 0)
		*out = *s == '-' ? -INFINITY : INFINITY;
	else
		return wrong(name, "a number, \"nan\", \"inf\" or \"-inf\"", e);
	return 0;
}

static int integer_from_json(uint64_t *out, uint64_t most, const char *name, const json_t *v, struct error *e)
{
	const char *s = json_is_string(v) ? json_string_value(v) : NULL;
	if (json_is_integer(v) && json_integer_value(v) >= 0) {
		*out = (uint64_t)json_integer_value(v);
	} else if (s && *s >= '0' && *s <= '9') {
		char *end;
		errno = 0;
		*out = strtoull(s, &end, 10);
		if (*end || errno)
			return wrong(name, "a whole number", e);
	} else {
		return wrong(name, "a whole number from 0", e);
	}
	return *out <= most ? 0 : wrong(name, "a smaller number", e);
}

static int pixels_from_json(struct pixels *p, const char *name, const json_t *v, struct error *e)
{
	static const char form[] = "an object of width, height and rgb (base64 of 3 * width * height bytes)";
	const json_t *w = json_object_get(v, "width"), *h = json_object_get(v, "height"), *rgb = json_object_get(v, "rgb");
	json_int_t width = json_integer_value(w), height = json_integer_value(h);
	if (json_object_size(v) != 3 || !json_is_string(rgb) || width < 1 || width > STREAM_MAX_SIDE || height < 1 ||
	    height > STREAM_MAX_SIDE)
		return wrong(name, form, e);
	size_t n = (size_t)(3 * width * height), text = json_string_length(rgb);
	if (text != (n + 2) / 3 * 4)
		return wrong(name, form, e);
	uint8_t *bytes = mem_alloc(text / 4, 3, e);
	int r = bytes ? 0 : -1;
	if (r == 0 && base64_decode(bytes, json_string_value(rgb), text) != (int64_t)n)
		r = wrong(name, form, e);
	if (r == 0)
		r = pixels_resize(p, (uint32_t)width, (uint32_t)height, e);
	if (r == 0)
		memcpy(p->rgb, bytes, n);
	free(bytes);
	return r;
}

/* Bytes that will be written into records must be fields with numbers that are not ours. */
static bool all_unknown(const struct buf *b)
{
	struct cursor c = cursor_over(b->p, b->n);
	struct field f;
	while (cursor_field(&c, &f))
		if (f.number < FIELD_COUNT)
			return false;
	return !c.bad;
}

static int unknown_from_json(struct buf *b, const char *name, const json_t *v, struct error *e)
{
	size_t n = json_is_string(v) ? json_string_length(v) : 1;
	b->n = 0;
	if (n % 4 || buf_reserve(b, n / 4 * 3, e))
		return wrong(name, "base64", e);
	int64_t k = base64_decode(b->p, json_string_value(v), n);
	b->n = k > 0 ? (size_t)k : 0;
	return k >= 0 && all_unknown(b) ? 0 : wrong(name, "base64 of protobuf fields", e);
}

static int member_from_json(struct record *r, const char *name, const json_t *v, struct error *e)
{
	uint64_t sample;
	switch (field_bit(name, strlen(name))) {
	case FIELD_KEY: return text_from_json(&r->key, name, v, e);
	case FIELD_CAPTION: return text_from_json(&r->caption, name, v, e);
	case FIELD_TEXT: return tokens_from_json(&r->text, name, v, e);
	case FIELD_IMAGE: return tokens_from_json(&r->image, name, v, e);
	case FIELD_PIXELS: return pixels_from_json(&r->pixels, name, v, e);
	case FIELD_SCORE: r->has |= HAS_SCORE; return float_from_json(&r->score, name, v, e);
	case FIELD_NLL_TEXT: r->has |= HAS_NLL_TEXT; return float_from_json(&r->nll_text, name, v, e);
	case FIELD_NLL_IMAGE: r->has |= HAS_NLL_IMAGE; return float_from_json(&r->nll_image, name, v, e);
	case FIELD_SEED: r->has |= HAS_SEED; return integer_from_json(&r->seed, UINT64_MAX, name, v, e);
	case FIELD_SAMPLE:
		if (integer_from_json(&sample, UINT32_MAX, name, v, e))
			return -1;
		r->has |= HAS_SAMPLE;
		r->sample = (uint32_t)sample;
		return 0;
	case FIELD_MODEL: return text_from_json(&r->model, name, v, e);
	case FIELD_UNKNOWN: return unknown_from_json(&r->unknown, name, v, e);
	default: return fail(e, STATUS_BAD, "unknown member '%.60s', expected some of %s", name, FIELD_NAMES);
	}
}

int record_from_json(struct record *r, const json_t *object, struct error *e)
{
	const char *name;
	json_t *v;
	record_clear(r);
	if (!json_is_object(object))
		return fail(e, STATUS_BAD, "expected a JSON object");
	json_object_foreach((json_t *)object, name, v)
		if (member_from_json(r, name, v, e))
			return -1;
	return 0;
}
