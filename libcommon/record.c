/* record.c - the Record message of tokenstream(5), and the memory of records. */
#include "record.h"

#include "hash.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

void record_clear(struct record *r)
{
	r->key.n = r->caption.n = r->model.n = r->unknown.n = 0;
	r->text.n = r->image.n = 0;
	r->text.present = r->image.present = false;
	r->pixels.width = r->pixels.height = 0;
	r->has = 0;
	r->score = r->nll_text = r->nll_image = 0;
	r->seed = 0;
	r->sample = 0;
}

void record_free(struct record *r)
{
	buf_free(&r->key);
	buf_free(&r->caption);
	buf_free(&r->model);
	buf_free(&r->unknown);
	free(r->text.v);
	free(r->image.v);
	free(r->pixels.rgb);
	*r = (struct record){0};
}

int tokens_reserve(struct tokens *t, size_t n, struct error *e)
{
	if (n <= t->cap)
		return 0;
	uint32_t *v = mem_grow(t->v, n, sizeof *v, e);
	if (!v)
		return -1;
	t->v = v;
	t->cap = n;
	return 0;
}

int tokens_set(struct tokens *t, const uint32_t *v, size_t n, struct error *e)
{
	if (tokens_reserve(t, n, e))
		return -1;
	if (n)
		memcpy(t->v, v, n * sizeof *v);
	t->n = n;
	t->present = true;
	return 0;
}

static size_t pixels_size(uint32_t width, uint32_t height)
{
	return (size_t)3 * width * height;
}

int pixels_resize(struct pixels *p, uint32_t width, uint32_t height, struct error *e)
{
	if (width > STREAM_MAX_SIDE || height > STREAM_MAX_SIDE)
		return fail(e, STATUS_LIMIT, "a picture of %u x %u, the limit is %d", width, height, STREAM_MAX_SIDE);
	size_t need = pixels_size(width, height);
	if (need > p->cap) {
		uint8_t *rgb = mem_grow(p->rgb, need, 1, e);
		if (!rgb)
			return -1;
		p->rgb = rgb;
		p->cap = need;
	}
	p->width = width;
	p->height = height;
	return 0;
}

static int tokens_copy(struct tokens *to, const struct tokens *from, struct error *e)
{
	to->n = 0;
	to->present = false;
	return from->present ? tokens_set(to, from->v, from->n, e) : 0;
}

static int pixels_copy(struct pixels *to, const struct pixels *from, struct error *e)
{
	if (pixels_resize(to, from->width, from->height, e))
		return -1;
	if (from->width && from->height)
		memcpy(to->rgb, from->rgb, pixels_size(from->width, from->height));
	return 0;
}

int record_copy(struct record *to, const struct record *from, struct error *e)
{
	to->has = from->has;
	to->score = from->score;
	to->nll_text = from->nll_text;
	to->nll_image = from->nll_image;
	to->seed = from->seed;
	to->sample = from->sample;
	return buf_set(&to->key, from->key.p, from->key.n, e) ||
	       buf_set(&to->caption, from->caption.p, from->caption.n, e) ||
	       buf_set(&to->model, from->model.p, from->model.n, e) ||
	       buf_set(&to->unknown, from->unknown.p, from->unknown.n, e) ||
	       tokens_copy(&to->text, &from->text, e) || tokens_copy(&to->image, &from->image, e) ||
	       pixels_copy(&to->pixels, &from->pixels, e) ? -1 : 0;
}

uint64_t caption_hash(const struct record *r, bool by_text)
{
	bool text = r->caption.n && (by_text || !r->text.present);
	return text ? hash64(r->caption.p, r->caption.n) : hash64(r->text.v, r->text.n * sizeof *r->text.v);
}

int records_room(struct record **v, size_t need, size_t *cap, struct error *e)
{
	size_t had = *cap;
	if (ARRAY_ROOM(*v, need, cap, e))
		return -1;
	if (*cap > had)
		memset(*v + had, 0, (*cap - had) * sizeof **v);
	return 0;
}

void records_free(struct record *v, size_t cap)
{
	for (size_t i = 0; i < cap; i++)
		record_free(&v[i]);
	free(v);
}

size_t record_bytes(const struct record *r)
{
	return sizeof *r + r->key.n + r->caption.n + r->model.n + r->unknown.n +
	       (r->text.n + r->image.n) * sizeof *r->text.v + pixels_size(r->pixels.width, r->pixels.height);
}

/* ---- tokens ---- */

static unsigned bits_for(uint32_t most)
{
	unsigned bits = 1;
	while (bits < 32 && most >> bits)
		bits++;
	return bits;
}

static unsigned choose_bits(const struct tokens *t, uint32_t size, enum layout layout)
{
	uint32_t most = size ? size - 1 : 0;
	for (size_t i = 0; size == 0 && i < t->n; i++)
		most = t->v[i] > most ? t->v[i] : most;
	unsigned bits = bits_for(most);
	if (layout == LAYOUT_BYTES)
		bits = bits <= 8 ? 8 : bits <= 16 ? 16 : 32;
	return bits;
}

static void pack(uint8_t *out, const struct tokens *t, unsigned bits)
{
	uint64_t acc = 0;
	unsigned held = 0;
	for (size_t i = 0; i < t->n; i++) {
		acc |= (uint64_t)t->v[i] << held;
		for (held += bits; held >= 8; held -= 8, acc >>= 8)
			*out++ = (uint8_t)acc;
	}
	if (held)
		*out = (uint8_t)acc;
}

static void unpack(uint32_t *v, size_t n, const uint8_t *p, unsigned bits)
{
	const uint64_t mask = (1ULL << bits) - 1;
	uint64_t acc = 0;
	unsigned held = 0;
	for (size_t i = 0; i < n; i++) {
		for (; held < bits; held += 8)
			acc |= (uint64_t)*p++ << held;
		v[i] = (uint32_t)(acc & mask);
		acc >>= bits;
		held -= bits;
	}
}

static size_t packed_size(uint64_t count, uint64_t bits)
{
	return (size_t)((count * bits + 7) / 8);
}

/* What a kind of tokens must keep to: 0 means no bound was declared. */
struct token_rule {
	const char *kind;
	uint32_t size;
	uint64_t most;
};

static struct token_rule text_rule(const struct header *h)
{
	return (struct token_rule){"text", h->text.size, h->text.length};
}

static struct token_rule image_rule(const struct header *h)
{
	return (struct token_rule){"image", h->image.size, (uint64_t)h->image.grid_width * h->image.grid_height};
}

static int check_tokens(const struct tokens *t, const struct token_rule *rule, const char *where, struct error *e)
{
	if (t->n > STREAM_MAX_TOKENS)
		return fail(e, STATUS_LIMIT, "%s: %zu %s tokens, the limit is %d", where, t->n, rule->kind,
		            STREAM_MAX_TOKENS);
	if (rule->most && t->n > rule->most)
		return fail(e, STATUS_BAD, "%s: %zu %s token%s, the header declares at most %llu", where, t->n, rule->kind,
		            plural(t->n), (unsigned long long)rule->most);
	for (size_t i = 0; rule->size && i < t->n; i++)
		if (t->v[i] >= rule->size)
			return fail(e, STATUS_BAD, "%s: %s token %u, the header declares %u code%s", where, rule->kind,
			            t->v[i], rule->size, plural(rule->size));
	return 0;
}

/* ---- encoding ---- */

static int put_tokens(struct buf *b, uint32_t number, const struct tokens *t, struct token_rule rule,
                      enum layout layout, const char *where, struct error *e)
{
	size_t mark;
	if (!t->present)
		return 0;
	if (check_tokens(t, &rule, where, e) || wire_begin(b, number, &mark, e))
		return -1;
	if (t->n) {
		unsigned bits = choose_bits(t, rule.size, layout);
		size_t bytes = packed_size(t->n, bits);
		if (wire_uint(b, 1, t->n, e) || wire_uint(b, 2, bits, e) || wire_bytes_open(b, 3, bytes, e) ||
		    buf_reserve(b, bytes, e))
			return -1;
		pack(b->p + b->n, t, bits);
		b->n += bytes;
	}
	return wire_end(b, mark, e);
}

static int put_pixels(struct buf *b, const struct pixels *p, const struct header *h, const char *where,
                      struct error *e)
{
	size_t mark, bytes = pixels_size(p->width, p->height);
	if (bytes == 0)
		return 0;
	if (p->width > STREAM_MAX_SIDE || p->height > STREAM_MAX_SIDE)
		return fail(e, STATUS_LIMIT, "%s: a picture of %u x %u, the limit is %d", where, p->width, p->height,
		            STREAM_MAX_SIDE);
	if ((h->width && p->width != h->width) || (h->height && p->height != h->height))
		return fail(e, STATUS_BAD, "%s: a picture of %u x %u, the header declares %u x %u", where, p->width,
		            p->height, h->width, h->height);
	return wire_begin(b, 5, &mark, e) || wire_uint(b, 1, p->width, e) || wire_uint(b, 2, p->height, e) ||
	       wire_bytes(b, 3, p->rgb, bytes, e) || wire_end(b, mark, e) ? -1 : 0;
}

static int put_text(struct buf *b, uint32_t number, const struct buf *text, const char *what, const char *where,
                    struct error *e)
{
	if (text->n == 0)
		return 0;
	if (text->n > STREAM_MAX_TEXT)
		return fail(e, STATUS_LIMIT, "%s: a %s of %zu bytes, the limit is %d", where, what, text->n,
		            STREAM_MAX_TEXT);
	if (!utf8_valid(text->p, text->n))
		return fail(e, STATUS_BAD, "%s: the %s is not UTF-8", where, what);
	return wire_bytes(b, number, text->p, text->n, e);
}

static int put_scalars(struct buf *b, const struct record *r, struct error *e)
{
	if ((r->has & HAS_SCORE && wire_float(b, 6, r->score, e)) ||
	    (r->has & HAS_NLL_TEXT && wire_float(b, 7, r->nll_text, e)) ||
	    (r->has & HAS_NLL_IMAGE && wire_float(b, 8, r->nll_image, e)) ||
	    (r->has & HAS_SEED && wire_uint(b, 9, r->seed, e)) ||
	    (r->has & HAS_SAMPLE && wire_uint(b, 10, r->sample, e)))
		return -1;
	return 0;
}

int record_encode(struct buf *out, const struct record *r, const struct header *h, enum layout layout,
                  const char *where, struct error *e)
{
	size_t mark, before = out->n;
	if (wire_begin(out, STREAM_RECORD, &mark, e) || put_text(out, 1, &r->key, "key", where, e) ||
	    put_text(out, 2, &r->caption, "caption", where, e) ||
	    put_tokens(out, 3, &r->text, text_rule(h), layout, where, e) ||
	    put_tokens(out, 4, &r->image, image_rule(h), layout, where, e) ||
	    put_pixels(out, &r->pixels, h, where, e) || put_scalars(out, r, e) ||
	    put_text(out, 11, &r->model, "model id", where, e) || buf_add(out, r->unknown.p, r->unknown.n, e) ||
	    wire_end(out, mark, e)) {
		out->n = before;
		return -1;
	}
	if (out->n - before > STREAM_MAX_RECORD) {
		out->n = before;
		return fail(e, STATUS_LIMIT, "%s: larger than the limit of %d bytes", where, STREAM_MAX_RECORD);
	}
	return 0;
}

/* ---- decoding ---- */

static int bad_field(const char *where, const char *message, uint32_t number, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: corrupt: %s in field %u", where, message, (unsigned)number);
}

static int get_text(struct buf *to, const struct field *f, const char *where, struct error *e)
{
	if (f->type != WIRE_BYTES)
		return bad_field(where, "no text", f->number, e);
	if (f->n > STREAM_MAX_TEXT)
		return fail(e, STATUS_LIMIT, "%s: a text of %zu bytes, the limit is %d", where, f->n, STREAM_MAX_TEXT);
	if (!utf8_valid(f->p, f->n))
		return bad_field(where, "text that is not UTF-8", f->number, e);
	return buf_set(to, f->p, f->n, e);
}

static int get_tokens(struct tokens *t, const struct field *body, struct token_rule rule, const char *where,
                      struct error *e)
{
	struct cursor c = cursor_over(body->p, body->n);
	struct field f, packed = {0};
	uint64_t count = 0, bits = 0;
	if (body->type != WIRE_BYTES)
		return bad_field(where, "no tokens", body->number, e);
	while (cursor_field(&c, &f)) {
		if (f.number == 1 && f.type == WIRE_VARINT)
			count = f.value;
		else if (f.number == 2 && f.type == WIRE_VARINT)
			bits = f.value;
		else if (f.number == 3 && f.type == WIRE_BYTES)
			packed = f;
		else
			return bad_field(where, "unknown field of tokens", body->number, e);
	}
	if (c.bad)
		return bad_field(where, "broken tokens", body->number, e);
	if (count > STREAM_MAX_TOKENS)
		return fail(e, STATUS_LIMIT, "%s: %llu %s tokens, the limit is %d", where, (unsigned long long)count,
		            rule.kind, STREAM_MAX_TOKENS);
	if (bits > 32 || (count && bits == 0) || packed.n != packed_size(count, bits))
		return fail(e, STATUS_BAD, "%s: corrupt: %llu %s token%s of %llu bit%s in %zu byte%s", where,
		            (unsigned long long)count, rule.kind, plural(count), (unsigned long long)bits, plural(bits), packed.n,
		            plural(packed.n));
	if (tokens_reserve(t, (size_t)count, e))
		return -1;
	unpack(t->v, (size_t)count, packed.p, (unsigned)bits);
	t->n = (size_t)count;
	t->present = true;
	return check_tokens(t, &rule, where, e);
}

static int get_pixels(struct pixels *p, const struct field *body, const struct header *h, const char *where,
                      struct error *e)
{
	struct cursor c = cursor_over(body->p, body->n);
	struct field f, rgb = {0};
	uint64_t width = 0, height = 0;
	if (body->type != WIRE_BYTES)
		return bad_field(where, "no picture", body->number, e);
	while (cursor_field(&c, &f)) {
		if (f.number == 1 && f.type == WIRE_VARINT)
			width = f.value;
		else if (f.number == 2 && f.type == WIRE_VARINT)
			height = f.value;
		else if (f.number == 3 && f.type == WIRE_BYTES)
			rgb = f;
		else
			return bad_field(where, "unknown field of a picture", body->number, e);
	}
	if (c.bad)
		return bad_field(where, "a broken picture", body->number, e);
	if (width > STREAM_MAX_SIDE || height > STREAM_MAX_SIDE)
		return fail(e, STATUS_LIMIT, "%s: a picture of %llu x %llu, the limit is %d", where,
		            (unsigned long long)width, (unsigned long long)height, STREAM_MAX_SIDE);
	if ((h->width && width != h->width) || (h->height && height != h->height))
		return fail(e, STATUS_BAD, "%s: a picture of %llu x %llu, the header declares %u x %u", where,
		            (unsigned long long)width, (unsigned long long)height, h->width, h->height);
	if (rgb.n != pixels_size((uint32_t)width, (uint32_t)height) || rgb.n == 0)
		return fail(e, STATUS_BAD, "%s: corrupt: a picture of %llu x %llu in %zu bytes", where,
		            (unsigned long long)width, (unsigned long long)height, rgb.n);
	if (pixels_resize(p, (uint32_t)width, (uint32_t)height, e))
		return -1;
	memcpy(p->rgb, rgb.p, rgb.n);
	return 0;
}

static int get_float(float *out, struct record *r, unsigned has, const struct field *f, const char *where,
                     struct error *e)
{
	if (f->type != WIRE_I32)
		return bad_field(where, "no float", f->number, e);
	*out = field_float(f);
	r->has |= has;
	return 0;
}

static int get_integer(uint64_t *out, struct record *r, unsigned has, uint64_t most, const struct field *f,
                       const char *where, struct error *e)
{
	if (f->type != WIRE_VARINT || f->value > most)
		return bad_field(where, "no number of the right size", f->number, e);
	*out = f->value;
	r->has |= has;
	return 0;
}

static int record_field(struct record *r, const struct field *f, const uint8_t *after, const struct header *h,
                        const char *where, struct error *e)
{
	uint64_t v = 0;
	switch (f->number) {
	case 1: return get_text(&r->key, f, where, e);
	case 2: return get_text(&r->caption, f, where, e);
	case 3: return get_tokens(&r->text, f, text_rule(h), where, e);
	case 4: return get_tokens(&r->image, f, image_rule(h), where, e);
	case 5: return get_pixels(&r->pixels, f, h, where, e);
	case 6: return get_float(&r->score, r, HAS_SCORE, f, where, e);
	case 7: return get_float(&r->nll_text, r, HAS_NLL_TEXT, f, where, e);
	case 8: return get_float(&r->nll_image, r, HAS_NLL_IMAGE, f, where, e);
	case 9: return get_integer(&r->seed, r, HAS_SEED, UINT64_MAX, f, where, e);
	case 10:
		if (get_integer(&v, r, HAS_SAMPLE, UINT32_MAX, f, where, e))
			return -1;
		r->sample = (uint32_t)v;
		return 0;
	case 11: return get_text(&r->model, f, where, e);
	default: return buf_add(&r->unknown, f->start, (size_t)(after - f->start), e);
	}
}

int record_decode(struct record *r, const uint8_t *p, size_t n, const struct header *h, const char *where,
                  struct error *e)
{
	struct cursor c = cursor_over(p, n);
	struct field f;
	record_clear(r);
	while (cursor_field(&c, &f))
		if (record_field(r, &f, c.p, h, where, e))
			return -1;
	return c.bad ? fail(e, STATUS_BAD, "%s: corrupt record", where) : 0;
}
