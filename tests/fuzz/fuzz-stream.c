/* fuzz-stream.c - see fuzz-stream.h. */
#include "fuzz-stream.h"
#include "fuzz.h"

#include <math.h>

#include "../../libcommon/fields.h"
#include "../../libcommon/names.h"
#include "../../libcommon/record.h"
#include "../../libcommon/sheet.h"

/* The body of the one field of Stream in b. */
static const uint8_t *body(const struct buf *b, size_t *n)
{
	struct cursor c = cursor_over(b->p, b->n);
	struct field f;
	MUST(cursor_field(&c, &f) && f.type == WIRE_BYTES && c.p == c.end);
	*n = f.n;
	return f.p;
}

/* What was read can be written, in both layouts, and is the same when it is read again. */
static void write_again(const struct record *r, const struct header *h)
{
	struct error e = {0};
	struct record again = {0};
	struct buf packed = {0}, second = {0};
	for (enum layout layout = LAYOUT_PACKED; layout <= LAYOUT_BYTES; layout++) {
		struct buf *out = layout == LAYOUT_PACKED ? &packed : &second;
		size_t n;
		MUST(record_encode(out, r, h, layout, "fuzz", &e) == 0);
		const uint8_t *p = body(out, &n);
		MUST(record_decode(&again, p, n, h, "fuzz", &e) == 0);
	}
	second.n = 0;
	MUST(record_encode(&second, &again, h, LAYOUT_PACKED, "fuzz", &e) == 0);
	MUST(second.n == packed.n && memcmp(second.p, packed.p, packed.n) == 0);
	record_free(&again);
	buf_free(&packed);
	buf_free(&second);
}

/* Through JSON text, as tok-dump and tok-load do it. */
static void through_json(const struct record *r, const struct header *h)
{
	struct error e = {0};
	struct record again = {0};
	struct buf before = {0}, after = {0};
	json_t *o = record_to_json(r, FIELD_ALL, &e);
	MUST(o);
	char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
	json_t *parsed = text ? json_loads(text, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL) : NULL;
	MUST(parsed && record_from_json(&again, parsed, &e) == 0);
	MUST(record_encode(&before, r, h, LAYOUT_PACKED, "fuzz", &e) == 0);
	MUST(record_encode(&after, &again, h, LAYOUT_PACKED, "fuzz", &e) == 0);
	/* All NaN are one in JSON. */
	bool same = before.n == after.n && memcmp(before.p, after.p, after.n) == 0;
	MUST(same || isnan(r->score) || isnan(r->nll_text) || isnan(r->nll_image));
	json_decref(o);
	json_decref(parsed);
	free(text);
	record_free(&again);
	buf_free(&before);
	buf_free(&after);
}

static void header_again(const struct header *h)
{
	struct error e = {0};
	struct header again = {0};
	struct buf out = {0};
	size_t n;
	MUST(header_encode(&out, h, &e) == 0);
	const uint8_t *p = body(&out, &n);
	MUST(header_decode(&again, p, n, "fuzz", &e) == 0 && header_agree(h, &again, "fuzz", &e) == 0);
	MUST(again.program_count == h->program_count && again.unknown.n == h->unknown.n);
	header_free(&again);
	buf_free(&out);
}

/* A writer that forgets, bare or with frames. */
static struct writer *forgetting_writer(const struct header *h, int level)
{
	struct error e = {0};
	struct writer *w = writer_open("/dev/null", h, level, &e);
	MUST(w);
	return w;
}

/* Small pictures, with captions and scores, one beside the other. */
static void to_sheet(struct sheet *s, const struct record *r)
{
	struct error e = {0};
	if (s->n < 8 && r->pixels.width && (uint64_t)r->pixels.width * r->pixels.height <= 1 << 12)
		MUST(sheet_add(s, r, &e) == 0);
}

static void draw_sheet(struct sheet *s)
{
	struct error e = {0};
	struct pixels out = {0};
	MUST(s->n == 0 || sheet_render(s, &out, &e) == 0 || e.status);
	image_free(&out);
	sheet_free(s);
}

static void in_order(struct reader *in, struct record *r)
{
	struct error e = {0};
	struct writer *writer = forgetting_writer(reader_header(in), reader_header(in)->width % 2);
	struct names names = {0};
	struct sheet sheet = {.options = {.scale = 1, .gap = 2, .labels = true, .group = reader_header(in)->height % 2}};
	struct buf name = {0};
	uint64_t number = 0, done, total;
	int k;
	while ((k = reader_next(in, r, &e)) > 0) {
		write_again(r, reader_header(in));
		through_json(r, reader_header(in));
		to_sheet(&sheet, r);
		MUST(writer_put(writer, r, &e) == 0);
		MUST(names_make(&names, &name, r, number++, &e) == 0 && name.n && !memchr(name.p, '/', name.n));
	}
	MUST(k == 0 || e.status);
	e = (struct error){0};
	MUST(writer_close(writer, &e) == 0);
	draw_sheet(&sheet);
	reader_progress(in, &done, &total);
	names_free(&names);
	buf_free(&name);
}

/* Every frame of the seek table, the last one first. */
static void by_frames(struct reader *in, struct record *r)
{
	struct error e = {0};
	int64_t n = reader_frames(in, 0, &e);
	MUST(n >= 0 || e.status);
	for (int64_t i = n - 1; i >= 0 && i > n - 40; i--) {
		e = (struct error){0};
		if (reader_seek(in, 0, i, &e))
			continue;
		while (reader_next(in, r, &e) > 0)
			write_again(r, reader_header(in));
	}
}

void fuzz_stream(const char *path)
{
	struct error e = {0};
	char *files[] = {(char *)(uintptr_t)path};
	struct record r = {0};
	bool looks = stream_detect(path, &e) == 1;
	struct reader *in = reader_open(files, 1, &e);
	MUST(in || e.status);
	if (in) {
		MUST(looks);
		header_again(reader_header(in));
		in_order(in, &r);
		by_frames(in, &r);
	}
	reader_close(in);
	record_free(&r);
}
