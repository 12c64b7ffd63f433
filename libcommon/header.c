/* header.c - the Header message of tokenstream(5): ids and sizes of the codecs, lineage. */
#include "record.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROGRAMS = 4096, FORMAT_VERSION = 1 };

/* ---- memory ---- */

static void program_free(struct program *p)
{
	free(p->name);
	free(p->version);
	free(p->command);
}

void header_free(struct header *h)
{
	for (size_t i = 0; i < h->program_count; i++)
		program_free(&h->programs[i]);
	free(h->programs);
	buf_free(&h->unknown);
	*h = (struct header){0};
}

static char *copy_bytes(const uint8_t *p, size_t n, struct error *e)
{
	char *s = mem_alloc(n + 1, 1, e);
	if (!s)
		return NULL;
	if (n)
		memcpy(s, p, n);
	s[n] = 0;
	return s;
}

/* Takes over p's strings, also on failure. */
static int push_program(struct header *h, struct program p, struct error *e)
{
	struct program *v = NULL;
	if (h->program_count == MAX_PROGRAMS)
		fail(e, STATUS_LIMIT, "the header lists %d programs already, which is the limit", MAX_PROGRAMS);
	else if (p.name && p.version && p.command)
		v = mem_grow(h->programs, h->program_count + 1, sizeof *v, e);
	if (!v) {
		program_free(&p);
		return fail(e, STATUS_LIMIT, "out of memory");
	}
	h->programs = v;
	h->programs[h->program_count++] = p;
	return 0;
}

int header_copy(struct header *to, const struct header *from, struct error *e)
{
	struct header h = *from;
	h.programs = NULL;
	h.program_count = 0;
	h.unknown = (struct buf){0};
	int r = buf_set(&h.unknown, from->unknown.p, from->unknown.n, e);
	for (size_t i = 0; i < from->program_count && r == 0; i++) {
		const struct program *p = &from->programs[i];
		r = push_program(&h, (struct program){mem_string(p->name, e), mem_string(p->version, e),
		                                      mem_string(p->command, e)}, e);
	}
	if (r) {
		header_free(&h);
		return -1;
	}
	header_free(to);
	*to = h;
	return 0;
}

/* ---- lineage ---- */

static bool is_plain(const char *word)
{
	static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_^";
	return *word && word[strspn(word, safe)] == 0;
}

/* One word as a shell would take it; what is not UTF-8 shows as '?'. */
static int add_word(struct buf *b, const char *word, struct error *e)
{
	bool utf8 = utf8_valid((const uint8_t *)word, strlen(word));
	if (is_plain(word))
		return buf_add(b, word, strlen(word), e);
	int r = buf_add(b, "'", 1, e);
	for (const char *s = word; *s && r == 0; s++) {
		if (*s == '\'')
			r = buf_add(b, "'\\''", 4, e);
		else
			r = buf_add(b, !utf8 && (*s & 0x80) ? "?" : s, 1, e);
	}
	return r ? r : buf_add(b, "'", 1, e);
}

int command_line(struct buf *out, int argc, char **argv, struct error *e)
{
	int r = buf_set(out, program_name, strlen(program_name), e);
	for (int i = 1; i < argc && r == 0; i++)
		r = buf_add(out, " ", 1, e) || add_word(out, argv[i], e) ? -1 : 0;
	return r;
}

int header_add_program(struct header *h, int argc, char **argv, struct error *e)
{
	struct buf command = {0};
	int r = command_line(&command, argc, argv, e);
	if (command.n > STREAM_MAX_TEXT) /* thousands of operands: the record of them is cut, not the run */
		command.p[command.n = STREAM_MAX_TEXT - 4] = 0;
	while (command.n && !utf8_valid(command.p, command.n))
		command.p[--command.n] = 0;
	if (r == 0)
		r = push_program(h, (struct program){mem_string(program_name, e), mem_string(DALLE_VERSION, e),
		                                     copy_bytes(command.p, command.n, e)}, e);
	buf_free(&command);
	return r;
}

/* ---- encoding ---- */

static int put_uint(struct buf *b, uint32_t number, uint64_t v, struct error *e)
{
	return v ? wire_uint(b, number, v, e) : 0;
}

static int put_string(struct buf *b, uint32_t number, const char *s, struct error *e)
{
	return *s ? wire_bytes(b, number, s, strlen(s), e) : 0;
}

static int put_text_codec(struct buf *b, const struct text_codec *t, struct error *e)
{
	size_t mark;
	if (!t->id[0] && !t->size && !t->length)
		return 0;
	return wire_begin(b, 2, &mark, e) || put_string(b, 1, t->id, e) || put_uint(b, 2, t->size, e) ||
	       put_uint(b, 3, t->length, e) || wire_end(b, mark, e) ? -1 : 0;
}

static int put_image_codec(struct buf *b, const struct image_codec *c, struct error *e)
{
	size_t mark;
	if (!c->id[0] && !c->size && !c->grid_width && !c->grid_height)
		return 0;
	return wire_begin(b, 3, &mark, e) || put_string(b, 1, c->id, e) || put_uint(b, 2, c->size, e) ||
	       put_uint(b, 3, c->grid_width, e) || put_uint(b, 4, c->grid_height, e) || wire_end(b, mark, e) ? -1 : 0;
}

static int put_program(struct buf *b, const struct program *p, struct error *e)
{
	size_t mark;
	return wire_begin(b, 6, &mark, e) || put_string(b, 1, p->name, e) || put_string(b, 2, p->version, e) ||
	       put_string(b, 3, p->command, e) || wire_end(b, mark, e) ? -1 : 0;
}

int header_encode(struct buf *out, const struct header *h, struct error *e)
{
	size_t mark;
	int r = wire_begin(out, STREAM_HEADER, &mark, e) || wire_uint(out, 1, FORMAT_VERSION, e) ||
	        put_text_codec(out, &h->text, e) || put_image_codec(out, &h->image, e) ||
	        put_uint(out, 4, h->width, e) || put_uint(out, 5, h->height, e);
	for (size_t i = 0; i < h->program_count && !r; i++)
		r = put_program(out, &h->programs[i], e);
	return r || buf_add(out, h->unknown.p, h->unknown.n, e) || wire_end(out, mark, e) ? -1 : 0;
}

int end_encode(struct buf *out, uint64_t records, struct error *e)
{
	size_t mark;
	return wire_begin(out, STREAM_END, &mark, e) || put_uint(out, 1, records, e) || wire_end(out, mark, e) ? -1 : 0;
}

/* ---- decoding ---- */

static int bad(const char *where, const char *message, uint32_t field, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: corrupt: %s %u", where, message, (unsigned)field);
}

static int get_uint32(uint32_t *out, const struct field *f, const char *where, struct error *e)
{
	if (f->type != WIRE_VARINT || f->value > UINT32_MAX)
		return bad(where, "header: no 32-bit number in field", f->number, e);
	*out = (uint32_t)f->value;
	return 0;
}

static int get_id(char id[ID_LENGTH + 1], const struct field *f, const char *where, struct error *e)
{
	if (f->type != WIRE_BYTES || (f->n != ID_LENGTH && f->n != 0))
		return fail(e, STATUS_BAD, "%s: corrupt: header: a codec id that is not %d hex digits", where, ID_LENGTH);
	for (size_t i = 0; i < f->n; i++)
		if (!memchr("0123456789abcdef", f->p[i], 16))
			return fail(e, STATUS_BAD, "%s: corrupt: header: a codec id that is not %d hex digits", where,
			            ID_LENGTH);
	memcpy(id, f->p, f->n);
	id[f->n] = 0;
	return 0;
}

static int get_string(char **out, const struct field *f, const char *where, struct error *e)
{
	if (f->type != WIRE_BYTES || f->n > STREAM_MAX_TEXT || memchr(f->n ? f->p : (const uint8_t *)"x", 0, f->n) ||
	    !utf8_valid(f->p, f->n))
		return bad(where, "header: no text in field", f->number, e);
	free(*out);
	*out = copy_bytes(f->p, f->n, e);
	return *out ? 0 : -1;
}

static int get_text_codec(struct text_codec *t, const struct field *body, const char *where, struct error *e)
{
	struct cursor c = cursor_over(body->p, body->n);
	struct field f;
	*t = (struct text_codec){0};
	while (cursor_field(&c, &f)) {
		int r;
		switch (f.number) {
		case 1: r = get_id(t->id, &f, where, e); break;
		case 2: r = get_uint32(&t->size, &f, where, e); break;
		case 3: r = get_uint32(&t->length, &f, where, e); break;
		default: r = bad(where, "header: TextCodec: unknown field", f.number, e);
		}
		if (r)
			return -1;
	}
	return c.bad ? fail(e, STATUS_BAD, "%s: corrupt: header: TextCodec", where) : 0;
}

static int get_image_codec(struct image_codec *m, const struct field *body, const char *where, struct error *e)
{
	struct cursor c = cursor_over(body->p, body->n);
	struct field f;
	*m = (struct image_codec){0};
	while (cursor_field(&c, &f)) {
		int r;
		switch (f.number) {
		case 1: r = get_id(m->id, &f, where, e); break;
		case 2: r = get_uint32(&m->size, &f, where, e); break;
		case 3: r = get_uint32(&m->grid_width, &f, where, e); break;
		case 4: r = get_uint32(&m->grid_height, &f, where, e); break;
		default: r = bad(where, "header: ImageCodec: unknown field", f.number, e);
		}
		if (r)
			return -1;
	}
	if ((uint64_t)m->grid_width * m->grid_height > STREAM_MAX_TOKENS)
		return fail(e, STATUS_LIMIT, "%s: header: a grid of %u x %u is over the limit of %d tokens", where,
		            m->grid_width, m->grid_height, STREAM_MAX_TOKENS);
	return c.bad ? fail(e, STATUS_BAD, "%s: corrupt: header: ImageCodec", where) : 0;
}

static int get_program(struct header *h, const struct field *body, const char *where, struct error *e)
{
	struct cursor c = cursor_over(body->p, body->n);
	struct field f;
	struct program p = {mem_string("", e), mem_string("", e), mem_string("", e)};
	int r = p.name && p.version && p.command ? 0 : -1;
	while (r == 0 && cursor_field(&c, &f)) {
		switch (f.number) {
		case 1: r = get_string(&p.name, &f, where, e); break;
		case 2: r = get_string(&p.version, &f, where, e); break;
		case 3: r = get_string(&p.command, &f, where, e); break;
		default: r = bad(where, "header: Program: unknown field", f.number, e);
		}
	}
	if (r == 0 && c.bad)
		r = fail(e, STATUS_BAD, "%s: corrupt: header: Program", where);
	if (r) {
		program_free(&p);
		return -1;
	}
	return push_program(h, p, e);
}

static int header_field(struct header *h, const struct field *f, uint32_t *version, const uint8_t *after,
                        const char *where, struct error *e)
{
	bool nested = f->number == 2 || f->number == 3 || f->number == 6;
	if (nested && f->type != WIRE_BYTES)
		return bad(where, "header: wrong type of field", f->number, e);
	switch (f->number) {
	case 1: return get_uint32(version, f, where, e);
	case 2: return get_text_codec(&h->text, f, where, e);
	case 3: return get_image_codec(&h->image, f, where, e);
	case 4: return get_uint32(&h->width, f, where, e);
	case 5: return get_uint32(&h->height, f, where, e);
	case 6: return get_program(h, f, where, e);
	default: return buf_add(&h->unknown, f->start, (size_t)(after - f->start), e);
	}
}

int header_decode(struct header *h, const uint8_t *p, size_t n, const char *where, struct error *e)
{
	struct cursor c = cursor_over(p, n);
	struct field f;
	uint32_t version = 0;
	header_free(h);
	while (cursor_field(&c, &f))
		if (header_field(h, &f, &version, c.p, where, e))
			return -1;
	if (c.bad)
		return fail(e, STATUS_BAD, "%s: corrupt: header", where);
	if (version != FORMAT_VERSION)
		return fail(e, STATUS_BAD, "%s: version %u of the format, this program knows version %d", where,
		            (unsigned)version, FORMAT_VERSION);
	if (h->width > STREAM_MAX_SIDE || h->height > STREAM_MAX_SIDE)
		return fail(e, STATUS_LIMIT, "%s: header: pictures of %u x %u, the limit is %d", where, h->width, h->height,
		            STREAM_MAX_SIDE);
	return 0;
}

/* ---- agreement of parts ---- */

static const char *shown(const char *id)
{
	return *id ? id : "none";
}

int header_agree(const struct header *a, const struct header *b, const char *where, struct error *e)
{
	if (strcmp(a->text.id, b->text.id) || a->text.size != b->text.size || a->text.length != b->text.length)
		return fail(e, STATUS_BAD,
		            "%s: other vocabulary than the part before: %s (%u tokens, %u a record) and %s (%u, %u)", where,
		            shown(b->text.id), b->text.size, b->text.length, shown(a->text.id), a->text.size,
		            a->text.length);
	if (strcmp(a->image.id, b->image.id) || a->image.size != b->image.size ||
	    a->image.grid_width != b->image.grid_width || a->image.grid_height != b->image.grid_height)
		return fail(e, STATUS_BAD,
		            "%s: other image codec than the part before: %s (%u codes, %ux%u) and %s (%u, %ux%u)", where,
		            shown(b->image.id), b->image.size, b->image.grid_width, b->image.grid_height,
		            shown(a->image.id), a->image.size, a->image.grid_width, a->image.grid_height);
	if (a->width != b->width || a->height != b->height)
		return fail(e, STATUS_BAD, "%s: pictures of %ux%u, those of the part before are %ux%u", where, b->width,
		            b->height, a->width, a->height);
	return 0;
}

int end_decode(uint64_t *records, const uint8_t *p, size_t n, const char *where, struct error *e)
{
	struct cursor c = cursor_over(p, n);
	struct field f;
	*records = 0;
	while (cursor_field(&c, &f)) {
		if (f.number != 1 || f.type != WIRE_VARINT)
			return bad(where, "end record: unknown field", f.number, e);
		*records = f.value;
	}
	return c.bad ? fail(e, STATUS_BAD, "%s: corrupt: end record", where) : 0;
}
