/* loader.c - see loader.h.  One pass at the start decides the way of shuffling, counts the records and takes
 * the identity of the data; then each way has a start of a pass and a next record. */
#include "loader.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hash.h"
#include "rng.h"

enum mode { IN_MEMORY, BY_FRAME, BUFFERED };

struct frame {
	int file;
	int64_t number; /* in its file */
	uint32_t records;
	uint64_t bytes; /* about, in memory */
};

struct loader {
	char *const *files;
	int file_count;
	char *name;
	uint64_t seed, limit;
	struct header header;
	struct reader *in;
	bool loaded; /* the first pass was made */
	enum mode mode;
	bool can_reopen; /* else a pipe: BUFFERED and one pass */
	char identity[ID_LENGTH + 1];
	uint64_t records; /* in a pass; 0: unknown */
	struct loader_state at;

	/* IN_MEMORY: all records; BY_FRAME: those of the current group; BUFFERED: the buffer. */
	struct record *kept;
	size_t kept_count, kept_cap;
	uint64_t kept_bytes;
	uint32_t *order; /* permutation of kept: IN_MEMORY, BY_FRAME */
	size_t order_cap;
	bool started; /* the pass of at.epoch is set up */

	struct frame *frames; /* BY_FRAME, in file order */
	size_t frame_count, frame_cap;
	uint32_t *frame_order;
	size_t group_end;   /* first place in frame_order after the group in memory */
	uint64_t group_first; /* position of the group's first record in the pass */

	bool drained; /* BUFFERED: nothing is left to read */

	struct record *out; /* handed out, where kept's places are used again */
	size_t out_cap;

	struct reader *ordered; /* loader_next_in_order, not IN_MEMORY */
	size_t ordered_at;
};

/* ---- keeping records ---- */

/* The next record of l->in behind the kept ones: 1, 0 at the end, -1. */
static int keep_next(struct loader *l, struct error *e)
{
	if (records_room(&l->kept, l->kept_count + 1, &l->kept_cap, e))
		return -1;
	struct record *r = &l->kept[l->kept_count];
	int got = reader_next(l->in, r, e);
	if (got == 1) {
		l->kept_bytes += record_bytes(r);
		l->kept_count++;
	}
	return got;
}

static void drop_kept(struct loader *l)
{
	records_free(l->kept, l->kept_cap);
	l->kept = NULL;
	l->kept_count = l->kept_cap = 0;
	l->kept_bytes = 0;
}

static void swap_records(struct record *a, struct record *b)
{
	struct record t = *a;
	*a = *b;
	*b = t;
}

/* ---- identity ---- */

static void hash_part(struct hash *h, const void *p, size_t n)
{
	uint64_t length = n;
	hash_add(h, &length, sizeof length);
	hash_add(h, p, n);
}

static void hash_record(struct hash *h, const struct record *r)
{
	hash_part(h, r->key.p, r->key.n);
	hash_part(h, r->caption.p, r->caption.n);
	hash_part(h, r->text.v, r->text.n * sizeof *r->text.v);
	hash_part(h, r->image.v, r->image.n * sizeof *r->image.v);
	hash_part(h, r->pixels.rgb, (size_t)3 * r->pixels.width * r->pixels.height);
}

static void finish_identity(struct loader *l, struct hash *h)
{
	/* With everything in memory the order does not depend on the limit. */
	uint64_t way[2] = {l->mode, l->mode == IN_MEMORY ? 0 : l->limit};
	hash_add(h, way, sizeof way);
	hash_finish(h, l->identity);
}

/* ---- the first pass ---- */

static bool all_regular(char *const *files, int n)
{
	struct stat st;
	for (int i = 0; i < n; i++)
		if (strcmp(files[i], "-") == 0 || stat(files[i], &st) || !S_ISREG(st.st_mode))
			return false;
	return n > 0;
}

/* Fill memory up to the limit: 0 at the end of the data, 1 when there is more, -1. */
static int fill(struct loader *l, struct error *e)
{
	int got = 1;
	while (l->kept_bytes < l->limit && (got = keep_next(l, e)) == 1)
		;
	return got;
}

/* Count and hash what follows the kept records. */
static int count_rest(struct loader *l, struct hash *h, struct error *e)
{
	struct record r = {0};
	int got;
	l->records = l->kept_count;
	while ((got = reader_next(l->in, &r, e)) == 1) {
		hash_record(h, &r);
		l->records++;
	}
	record_free(&r);
	return got;
}

static int scan_frame(struct loader *l, int file, int64_t number, struct record *r, struct hash *h, struct error *e)
{
	struct frame f = {.file = file, .number = number};
	int got;
	if (reader_seek(l->in, file, number, e))
		return -1;
	while ((got = reader_next(l->in, r, e)) == 1) {
		hash_record(h, r);
		f.records++;
		f.bytes += record_bytes(r);
	}
	if (got < 0 || f.records == 0)
		return got;
	if (ARRAY_ROOM(l->frames, l->frame_count + 1, &l->frame_cap, e))
		return -1;
	l->frames[l->frame_count++] = f;
	l->records += f.records;
	return 0;
}

/* 1: every file has a seek table and the frames are listed; 0: not so; -1 failure. */
static int scan_frames(struct loader *l, struct hash *h, struct error *e)
{
	struct record r = {0};
	int result = 1;
	for (int i = 0; i < l->file_count; i++) {
		struct error ignored = {0};
		if (reader_frames(l->in, i, &ignored) < 0)
			return 0;
	}
	l->records = 0;
	for (int i = 0; i < l->file_count && result == 1; i++) {
		int64_t n = reader_frames(l->in, i, e);
		for (int64_t k = 0; k < n && result == 1; k++)
			if (scan_frame(l, i, k, &r, h, e))
				result = -1;
	}
	record_free(&r);
	if (result == 1 && l->frame_count > UINT32_MAX)
		result = fail(e, STATUS_LIMIT, "%s: too many frames", l->name);
	return result;
}

/* The data is larger than memory. */
static int choose_large(struct loader *l, struct hash **h, struct error *e)
{
	l->can_reopen = all_regular(l->files, l->file_count);
	l->mode = BUFFERED;
	if (!l->can_reopen)
		return 0;
	struct hash *of_frames = hash_new(e);
	int r = of_frames ? scan_frames(l, of_frames, e) : -1;
	if (r == 1) {
		l->mode = BY_FRAME;
		struct hash *t = *h; /* the kept records are part of the frames' hash too */
		*h = of_frames;
		of_frames = t;
		drop_kept(l);
	}
	if (of_frames) {
		char ignored[ID_LENGTH + 1];
		hash_finish(of_frames, ignored);
	}
	if (r == 0) {
		r = count_rest(l, *h, e);
		drop_kept(l);
	}
	return r < 0 ? -1 : 0;
}

static int first_pass(struct loader *l, struct error *e)
{
	struct hash *h = hash_new(e);
	int more = h ? fill(l, e) : -1;
	for (size_t i = 0; more >= 0 && i < l->kept_count; i++)
		hash_record(h, &l->kept[i]);
	if (more == 1)
		more = choose_large(l, &h, e);
	else if (more == 0) {
		l->mode = IN_MEMORY;
		l->can_reopen = true;
		l->records = l->kept_count;
	}
	if (h)
		finish_identity(l, h);
	if (more == 0 && l->can_reopen && l->records == 0)
		return fail(e, STATUS_BAD, "%s: holds no records, expected some to train on", l->name);
	if (more == 0 && l->mode == IN_MEMORY && l->records > UINT32_MAX)
		return fail(e, STATUS_LIMIT, "%s: more than %u records in memory", l->name, UINT32_MAX);
	return more;
}

static int set_name(struct loader *l, struct error *e)
{
	struct buf b = {0};
	const char *first = l->file_count ? l->files[0] : "-";
	int r = buf_printf(&b, e, "%s", strcmp(first, "-") ? first : "stdin");
	if (r == 0 && l->file_count > 1)
		r = buf_printf(&b, e, " and %d more", l->file_count - 1);
	l->name = (char *)b.p;
	return r;
}

struct loader *loader_begin(char *const *files, int n, uint64_t seed, uint64_t memory_limit, struct error *e)
{
	struct loader *l = mem_zero(1, sizeof *l, e);
	if (!l)
		return NULL;
	l->files = files;
	l->file_count = n;
	l->seed = seed;
	l->limit = memory_limit ? memory_limit : 1;
	if (set_name(l, e) || !(l->in = reader_open(files, n, e)) ||
	    header_copy(&l->header, reader_header(l->in), e)) {
		loader_close(l);
		return NULL;
	}
	return l;
}

int loader_load(struct loader *l, struct error *e)
{
	if (l->loaded)
		return 0;
	l->loaded = true;
	return first_pass(l, e);
}

struct loader *loader_open(char *const *files, int n, uint64_t seed, uint64_t memory_limit, struct error *e)
{
	struct loader *l = loader_begin(files, n, seed, memory_limit, e);
	if (l && loader_load(l, e)) {
		loader_close(l);
		return NULL;
	}
	return l;
}

void loader_close(struct loader *l)
{
	if (!l)
		return;
	reader_close(l->in);
	reader_close(l->ordered);
	records_free(l->kept, l->kept_cap);
	records_free(l->out, l->out_cap);
	header_free(&l->header);
	free(l->order);
	free(l->frames);
	free(l->frame_order);
	free(l->name);
	free(l);
}

const struct header *loader_header(const struct loader *l)
{
	return &l->header;
}

const char *loader_identity(const struct loader *l)
{
	return l->identity;
}

const char *loader_name(const struct loader *l)
{
	return l->name;
}

uint64_t loader_records(const struct loader *l)
{
	return l->records;
}

/* ---- order ---- */

/* The random stream of draw set `what` of a pass: 0 for the pass as a whole, then one per group. */
static uint32_t stream_of(const struct loader *l, uint64_t what)
{
	uint64_t key[2] = {l->at.epoch, what};
	return (uint32_t)hash64(key, sizeof key);
}

static int permute_kept(struct loader *l, uint64_t what, struct error *e)
{
	if (l->kept_count > l->order_cap) {
		uint32_t *p = mem_grow(l->order, l->kept_count, sizeof *p, e);
		if (!p)
			return -1;
		l->order = p;
		l->order_cap = l->kept_count;
	}
	rng_permute(l->order, (uint32_t)l->kept_count, l->seed, RNG_SHUFFLE, stream_of(l, what));
	return 0;
}

/* ---- by frame ---- */

/* Where the group that begins at place `first` of frame_order ends, and its records. */
static size_t group_extent(const struct loader *l, size_t first, uint64_t *records)
{
	uint64_t bytes = 0;
	size_t i = first;
	*records = 0;
	for (; i < l->frame_count; i++) {
		const struct frame *f = &l->frames[l->frame_order[i]];
		if (i > first && bytes + f->bytes > l->limit)
			break;
		bytes += f->bytes;
		*records += f->records;
	}
	return i;
}

static int read_frame(struct loader *l, const struct frame *f, struct error *e)
{
	if (reader_seek(l->in, f->file, f->number, e))
		return -1;
	int got;
	size_t before = l->kept_count;
	while ((got = keep_next(l, e)) == 1)
		;
	if (got == 0 && l->kept_count - before != f->records)
		return fail(e, STATUS_BAD, "%s: changed while it was read", l->name);
	return got;
}

static int load_group(struct loader *l, size_t first, struct error *e)
{
	uint64_t records;
	l->group_end = group_extent(l, first, &records);
	l->kept_count = 0; /* places keep their memory */
	l->kept_bytes = 0;
	for (size_t i = first; i < l->group_end; i++)
		if (read_frame(l, &l->frames[l->frame_order[i]], e))
			return -1;
	return permute_kept(l, 1 + first, e);
}

/* Set up the pass of at.epoch so that at.position is in memory. */
static int start_by_frame(struct loader *l, struct error *e)
{
	if (!l->frame_order && !(l->frame_order = mem_alloc(l->frame_count, sizeof *l->frame_order, e)))
		return -1;
	rng_permute(l->frame_order, (uint32_t)l->frame_count, l->seed, RNG_SHUFFLE, stream_of(l, 0));
	size_t first = 0, end;
	uint64_t records;
	l->group_first = 0;
	while ((end = group_extent(l, first, &records)) < l->frame_count && l->group_first + records <= l->at.position) {
		l->group_first += records;
		first = end;
	}
	return load_group(l, first, e);
}

static int next_by_frame(struct loader *l, struct record *out, struct error *e)
{
	if (l->at.position - l->group_first >= l->kept_count) {
		l->group_first += l->kept_count;
		if (load_group(l, l->group_end, e))
			return -1;
	}
	swap_records(out, &l->kept[l->order[l->at.position - l->group_first]]);
	return 1;
}

/* ---- buffered ---- */

static int refill(struct loader *l, struct error *e)
{
	if (l->drained)
		return 0;
	int got = fill(l, e);
	l->drained = got == 0;
	return got < 0 ? -1 : 0;
}

static int next_buffered(struct loader *l, struct record *out, struct error *e)
{
	if (refill(l, e))
		return -1;
	if (!l->kept_count)
		return 0;
	uint32_t i = rng_below(l->seed, RNG_SHUFFLE, stream_of(l, 1), l->at.position, (uint32_t)l->kept_count);
	swap_records(out, &l->kept[i]);
	swap_records(&l->kept[i], &l->kept[--l->kept_count]);
	l->kept_bytes -= record_bytes(out);
	return 1;
}

static int start_buffered(struct loader *l, struct error *e)
{
	uint64_t to = l->at.position;
	if (l->can_reopen) {
		reader_close(l->in);
		l->in = reader_open(l->files, l->file_count, e);
		if (!l->in)
			return -1;
		l->drained = false;
		l->kept_count = 0;
		l->kept_bytes = 0;
	} else if (l->at.epoch) {
		return fail(e, STATUS_FAIL, "%s: is a pipe larger than memory and cannot be read again", l->name);
	}
	struct record skipped = {0};
	int got = 1;
	for (l->at.position = 0; got == 1 && l->at.position < to; l->at.position++)
		got = next_buffered(l, &skipped, e);
	record_free(&skipped);
	if (got == 0)
		return fail(e, STATUS_BAD, "%s: holds fewer records than were read before", l->name);
	return got < 0 ? -1 : 0;
}

/* ---- the sequence ---- */

static int start_pass(struct loader *l, struct error *e)
{
	l->started = true;
	switch (l->mode) {
	case IN_MEMORY: return permute_kept(l, 0, e);
	case BY_FRAME: return start_by_frame(l, e);
	default: return start_buffered(l, e);
	}
}

/* Pointer to the next record, NULL with *end true at the end of a pipe. */
static const struct record *next_record(struct loader *l, size_t place, bool *end, struct error *e)
{
	if (l->records && l->at.position == l->records) {
		l->at = (struct loader_state){l->at.epoch + 1, 0};
		l->started = false;
	}
	if (!l->started && start_pass(l, e))
		return NULL;
	if (l->mode == IN_MEMORY)
		return &l->kept[l->order[l->at.position++]];
	struct record *out = &l->out[place];
	int got = l->mode == BY_FRAME ? next_by_frame(l, out, e) : next_buffered(l, out, e);
	*end = got == 0;
	if (got == 0 && l->records)
		fail(e, STATUS_BAD, "%s: changed while it was read", l->name);
	l->at.position += got == 1;
	return got == 1 ? out : NULL;
}

int loader_next(struct loader *l, const struct record **batch, int n, struct error *e)
{
	if (l->mode != IN_MEMORY && records_room(&l->out, (size_t)n, &l->out_cap, e))
		return -1;
	for (int i = 0; i < n; i++) {
		bool end = false;
		batch[i] = next_record(l, (size_t)i, &end, e);
		if (!batch[i])
			return end && !e->status ? i : -1;
	}
	return n;
}

struct loader_state loader_state(const struct loader *l)
{
	if (l->records && l->at.position == l->records)
		return (struct loader_state){l->at.epoch + 1, 0};
	return l->at;
}

int loader_restore(struct loader *l, struct loader_state s, struct error *e)
{
	bool fresh = !l->started;
	if (l->records && s.position >= l->records)
		return fail(e, STATUS_BAD, "%s: holds %llu record%s, expected more than %llu", l->name,
		            (unsigned long long)l->records, plural(l->records), (unsigned long long)s.position);
	if (!l->can_reopen && !fresh)
		return fail(e, STATUS_FAIL, "%s: is a pipe larger than memory and cannot be read again", l->name);
	l->at = s;
	return start_pass(l, e);
}

/* ---- in file order ---- */

int loader_rewind(struct loader *l, struct error *e)
{
	l->ordered_at = 0;
	if (l->mode == IN_MEMORY)
		return 0;
	if (!l->can_reopen)
		return fail(e, STATUS_LIMIT, "%s: is a pipe larger than memory, expected a file to evaluate on", l->name);
	reader_close(l->ordered);
	l->ordered = reader_open(l->files, l->file_count, e);
	return l->ordered ? 0 : -1;
}

int loader_next_in_order(struct loader *l, const struct record **batch, int n, struct error *e)
{
	if (l->mode != IN_MEMORY && records_room(&l->out, (size_t)n, &l->out_cap, e))
		return -1;
	for (int i = 0; i < n; i++) {
		if (l->mode == IN_MEMORY) {
			if (l->ordered_at == l->kept_count)
				return i;
			batch[i] = &l->kept[l->ordered_at++];
			continue;
		}
		int got = reader_next(l->ordered, &l->out[i], e);
		if (got != 1)
			return got < 0 ? -1 : i;
		batch[i] = &l->out[i];
	}
	return n;
}
