/* stream.c - tokenstream(5) readers and writers: the order of headers, records and end
 * records over source.h and frame.h, their counts, and random access by frame.
 *
 * Stream is one protobuf message, so a reader sees a row of fields: tag, length, body.
 * A field at the top that is none of the three is refused, not skipped: it belongs to no
 * record, so a filter could not pass it on, and losing it silently is worse. */
#include "frame.h"
#include "record.h"
#include "seek.h"
#include "source.h"
#include "stream.h"

#include <stdlib.h>
#include <string.h>

/* A frame ends behind the record that reaches one of these.  Token frames of files are
 * larger: zstd finds little to share in 256 records, see tokenstream(5). */
enum { FRAME_CONTENT = 1 << 20, FRAME_RECORDS = 256, FILE_FRAME_CONTENT = 1 << 22, FILE_FRAME_RECORDS = 1 << 14 };
enum { MAX_HEADER = 1 << 26, MAX_END = 1 << 10 };

struct reader {
	char *const *files;
	int n, index; /* operand being read */
	struct source *source;
	char name[256], where[320]; /* for messages */
	struct header header, scratch;
	bool open;            /* inside a part: header seen, end record not */
	bool have_header;     /* of any part */
	bool started;         /* a header was seen in this operand */
	bool by_frame;        /* after reader_seek */
	struct buf content;   /* content.p[at .. content.n) is to be parsed */
	size_t at;
	uint64_t records;     /* of the part being read */
	uint64_t before, total; /* bytes of the operands before this one, of all */
	struct seek_table *tables; /* one per operand once asked for; n = 0 before */
};

static char *const stdin_operand[] = {"-"};

/* ---- opening operands ---- */

static int open_operand(struct reader *r, int index, struct error *e)
{
	if (r->source)
		r->before += source_position(r->source);
	source_close(r->source);
	r->content.n = r->at = 0;
	r->index = index;
	r->open = r->started = false;
	r->source = source_open(r->files[index], e);
	if (!r->source)
		return -1;
	snprintf(r->name, sizeof r->name, "%s", source_name(r->source));
	return 0;
}

/* ---- fields of Stream ---- */

static int truncated(const struct reader *r, struct error *e)
{
	unsigned long long n = r->records;
	if (!r->started)
		return fail(e, STATUS_BAD, "%s: truncated: it ends before the header does", r->name);
	if (!r->open)
		return fail(e, STATUS_BAD, "%s: truncated after the end record", r->name);
	return fail(e, STATUS_BAD, "%s: truncated: %llu record%s and no end record", r->name, n, n == 1 ? "" : "s");
}

/* More content behind what is there; 0 at the end of the operand.  What was parsed is
 * dropped first, so a large record is moved once at most. */
static int more(struct reader *r, struct error *e)
{
	if (r->at) {
		memmove(r->content.p, r->content.p + r->at, r->content.n - r->at);
		r->content.n -= r->at;
		r->at = 0;
	}
	return source_fill(r->source, &r->content, e);
}

static uint64_t most_bytes(uint32_t number)
{
	return number == STREAM_HEADER ? MAX_HEADER : number == STREAM_RECORD ? STREAM_MAX_RECORD : MAX_END;
}

/* Number and length of the field that begins at r->at: 1, 0 when its beginning has not all
 * arrived, -1. */
static int parse_tag(const struct reader *r, struct field *f, size_t *head, struct error *e)
{
	struct cursor c = cursor_over(r->content.p + r->at, r->content.n - r->at);
	if (!cursor_tag(&c, f) && c.p == c.end)
		return 0;
	if (c.bad)
		return fail(e, STATUS_BAD, "%s: corrupt: broken field after record %llu", r->name,
		            (unsigned long long)r->records);
	if (f->type != WIRE_BYTES || f->number < STREAM_HEADER || f->number > STREAM_END)
		return fail(e, STATUS_BAD,
		            "%s: unknown field %u after record %llu: corrupt, or written by a newer version", r->name,
		            f->number, (unsigned long long)r->records);
	if (f->value > most_bytes(f->number))
		return fail(e, STATUS_LIMIT, "%s: a field of %llu bytes after record %llu, the limit is %llu", r->name,
		            (unsigned long long)f->value, (unsigned long long)r->records,
		            (unsigned long long)most_bytes(f->number));
	*head = (size_t)(c.p - (r->content.p + r->at));
	return 1;
}

/* The next field with its whole body: 1, 0 at the end of the operand, -1.  Memory grows
 * with what arrives, not with what a length claims. */
static int next_field(struct reader *r, struct field *f, struct error *e)
{
	for (;;) {
		size_t head = 0;
		int have = r->content.n > r->at ? parse_tag(r, f, &head, e) : 0;
		if (have < 0)
			return -1;
		if (have && r->content.n - r->at - head >= f->value) {
			f->p = r->content.p + r->at + head;
			f->n = (size_t)f->value;
			r->at += head + f->n;
			return 1;
		}
		int k = more(r, e);
		if (k < 0)
			return -1;
		if (k == 0 && (r->content.n > r->at || source_truncated(r->source)))
			return truncated(r, e);
		if (k == 0)
			return 0;
	}
}

static const char *part_name(struct reader *r)
{
	snprintf(r->where, sizeof r->where, "%s", r->name);
	return r->where;
}

static const char *record_name(struct reader *r, uint64_t number)
{
	snprintf(r->where, sizeof r->where, "%s: record %llu", r->name, (unsigned long long)number);
	return r->where;
}

static int take_header(struct reader *r, const struct field *f, struct error *e)
{
	if (r->open && !r->by_frame)
		return fail(e, STATUS_BAD, "%s: truncated part: a header after %llu record%s and no end record", r->name,
		            (unsigned long long)r->records, plural(r->records));
	r->open = true;
	r->records = 0;
	struct header *h = r->have_header ? &r->scratch : &r->header;
	if (header_decode(h, f->p, f->n, part_name(r), e))
		return -1;
	if (r->have_header && header_agree(&r->header, h, part_name(r), e))
		return -1;
	r->have_header = r->started = true;
	return 0;
}

/* Behind an end record the next part may be written the other way: bare behind frames is
 * seen by the source, frames behind bare content only here. */
static int take_end(struct reader *r, const struct field *f, struct error *e)
{
	uint64_t records;
	if (end_decode(&records, f->p, f->n, part_name(r), e))
		return -1;
	if (r->by_frame)
		return 0;
	if (!r->open)
		return fail(e, STATUS_BAD, "%s: corrupt: an end record without a header", r->name);
	if (records != r->records)
		return fail(e, STATUS_BAD, "%s: %llu record%s, the end record counts %llu", r->name,
		            (unsigned long long)r->records, plural(r->records), (unsigned long long)records);
	r->open = false;
	while (source_bare(r->source) && r->content.n - r->at < 4) {
		int k = more(r, e);
		if (k < 0)
			return -1;
		if (k == 0)
			return 0;
	}
	if (!source_bare(r->source) || !source_starts_frame(r->content.p + r->at, r->content.n - r->at))
		return 0;
	int k = source_unread(r->source, r->content.p + r->at, r->content.n - r->at, e);
	r->content.n = r->at = 0;
	return k;
}

/* The end of one operand: 1 when another one was opened, 0 after the last. */
static int next_operand(struct reader *r, struct error *e)
{
	if (r->by_frame)
		return 0;
	if (!r->started)
		return fail(e, STATUS_BAD, "%s: empty, expected a token stream", r->name);
	if (r->open)
		return truncated(r, e);
	if (r->index + 1 >= r->n)
		return 0;
	return open_operand(r, r->index + 1, e) ? -1 : 1;
}

static int take_record(struct reader *r, struct record *rec, const struct field *f, struct error *e)
{
	if (!r->open && !r->by_frame)
		return fail(e, STATUS_BAD, "%s: corrupt: a record before any header", r->name);
	r->records++;
	return record_decode(rec, f->p, f->n, &r->header, record_name(r, r->records), e) ? -1 : 1;
}

/* rec NULL: stop behind the first header. */
static int advance(struct reader *r, struct record *rec, struct error *e)
{
	struct field f;
	for (;;) {
		int k = next_field(r, &f, e);
		if (k < 0)
			return -1;
		if (k == 0) {
			k = next_operand(r, e);
			if (k <= 0)
				return k;
			continue;
		}
		if (f.number == STREAM_RECORD && rec)
			return take_record(r, rec, &f, e);
		if (f.number == STREAM_RECORD)
			return fail(e, STATUS_BAD, "%s: corrupt: a record before any header", r->name);
		if (f.number == STREAM_HEADER ? take_header(r, &f, e) : take_end(r, &f, e))
			return -1;
		if (!rec)
			return 1;
	}
}

/* ---- the reader's calls ---- */

struct reader *reader_open(char *const *files, int n, struct error *e)
{
	struct reader *r = mem_zero(1, sizeof *r, e);
	if (!r)
		return NULL;
	r->files = n > 0 ? files : stdin_operand;
	r->n = n > 0 ? n : 1;
	if (source_total(r->files, r->n, &r->total, e) || open_operand(r, 0, e) || advance(r, NULL, e) < 0) {
		reader_close(r);
		return NULL;
	}
	return r;
}

const struct header *reader_header(const struct reader *r)
{
	return &r->header;
}

int reader_next(struct reader *r, struct record *rec, struct error *e)
{
	record_clear(rec);
	int k = advance(r, rec, e);
	if (k <= 0)
		record_clear(rec);
	return k;
}

const char *reader_name(const struct reader *r)
{
	return r->name;
}

void reader_progress(const struct reader *r, uint64_t *done, uint64_t *total)
{
	*done = r->before + (r->source ? source_position(r->source) : 0);
	*total = r->total;
}

void reader_close(struct reader *r)
{
	if (!r)
		return;
	for (int i = 0; r->tables && i < r->n; i++)
		seek_free(&r->tables[i]);
	free(r->tables);
	source_close(r->source);
	header_free(&r->header);
	header_free(&r->scratch);
	buf_free(&r->content);
	free(r);
}

static int load_table(struct reader *r, int index, struct error *e)
{
	if (index < 0 || index >= r->n)
		return fail(e, STATUS_FAIL, "no operand %d", index);
	if (!r->tables)
		r->tables = mem_zero((size_t)r->n, sizeof *r->tables, e);
	if (!r->tables)
		return -1;
	if (index != r->index && open_operand(r, index, e))
		return -1;
	if (r->tables[index].n)
		return 0;
	if (seek_load(&r->tables[index], source_fd(r->source), r->name, e)) {
		seek_free(&r->tables[index]);
		return -1;
	}
	return 0;
}

int64_t reader_frames(struct reader *r, int index, struct error *e)
{
	return load_table(r, index, e) ? -1 : (int64_t)r->tables[index].n;
}

int reader_seek(struct reader *r, int index, int64_t frame, struct error *e)
{
	if (load_table(r, index, e))
		return -1;
	if (frame < 0 || (uint64_t)frame >= r->tables[index].n)
		return fail(e, STATUS_FAIL, "%s: no frame %lld", r->name, (long long)frame);
	const struct seek_entry *s = &r->tables[index].v[frame];
	r->by_frame = r->open = true;
	r->content.n = r->at = 0;
	r->records = 0;
	return source_seek(r->source, s->offset, s->compressed, s->content, e);
}

/* ---- writing ---- */

struct writer {
	struct frames *frames;
	struct header header;
	struct buf content, wide; /* the frame being filled, in both layouts */
	bool bulky;               /* the frame holds pictures; `wide` is not kept */
	int in_frame;
	uint64_t records;
	char where[320];
};

static void writer_free(struct writer *w)
{
	header_free(&w->header);
	buf_free(&w->content);
	buf_free(&w->wide);
	free(w);
}

/* The header goes out at once, in a frame of its own: the next program of a pipeline can
 * refuse a mismatch, or load its model, before the first record is made. */
struct writer *writer_open(const char *path, const struct header *h, int level, struct error *e)
{
	struct writer *w = mem_zero(1, sizeof *w, e);
	if (!w)
		return NULL;
	w->frames = frames_open(path, level, e);
	if (!w->frames || header_copy(&w->header, h, e) || header_encode(&w->content, h, e) ||
	    frames_put(w->frames, &w->content, NULL, false, e)) {
		writer_abort(w);
		return NULL;
	}
	w->content.n = 0;
	return w;
}

int writer_flush(struct writer *w, struct error *e)
{
	/* One record may have made the frame bulky after others were laid out twice. */
	const struct buf *wide = w->bulky || w->wide.n == 0 ? NULL : &w->wide;
	int r = frames_put(w->frames, &w->content, wide, w->bulky, e);
	w->content.n = w->wide.n = 0;
	w->in_frame = 0;
	w->bulky = false;
	return r;
}

static bool frame_full(const struct writer *w)
{
	if (w->bulky || !frames_kept(w->frames))
		return w->in_frame >= FRAME_RECORDS || w->content.n >= FRAME_CONTENT;
	return w->in_frame >= FILE_FRAME_RECORDS || w->wide.n >= FILE_FRAME_CONTENT ||
	       w->content.n >= FILE_FRAME_CONTENT;
}

int writer_put(struct writer *w, const struct record *rec, struct error *e)
{
	bool bulky = rec->pixels.width && rec->pixels.height;
	snprintf(w->where, sizeof w->where, "%s: record %llu", frames_name(w->frames),
	         (unsigned long long)w->records + 1);
	if (record_encode(&w->content, rec, &w->header, LAYOUT_PACKED, w->where, e))
		return -1;
	w->bulky = w->bulky || bulky;
	if (!w->bulky && !frames_bare(w->frames) &&
	    record_encode(&w->wide, rec, &w->header, LAYOUT_BYTES, w->where, e))
		return -1;
	w->records++;
	w->in_frame++;
	return frame_full(w) ? writer_flush(w, e) : 0;
}

bool writer_kept(const struct writer *w)
{
	return frames_kept(w->frames);
}

/* The end record joins the last frame. */
static int writer_finish(struct writer *w, struct error *e)
{
	return end_encode(&w->content, w->records, e) || (w->wide.n && end_encode(&w->wide, w->records, e)) ||
	       writer_flush(w, e) ? -1 : 0;
}

int writer_close(struct writer *w, struct error *e)
{
	if (writer_finish(w, e)) {
		writer_abort(w);
		return -1;
	}
	int r = frames_close(w->frames, e);
	writer_free(w);
	return r;
}

void writer_abort(struct writer *w)
{
	if (!w)
		return;
	frames_abort(w->frames);
	writer_free(w);
}
