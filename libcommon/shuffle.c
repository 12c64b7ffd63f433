/* shuffle.c - see shuffle.h.  A record's place is decided by a random 64-bit number, its
 * rank.  Records that fit in memory are sorted by rank; else they are dealt by the next six
 * bits of the rank into temporary streams, which are then handled one by one the same way. */
#include "shuffle.h"
#include "rng.h"
#include "wire.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BUCKET_BITS = 6, BUCKETS = 1 << BUCKET_BITS, MAX_DEPTH = 6, RANK_BYTES = 13 };

struct ranked {
	uint64_t rank;
	struct record record;
};

struct pile {
	struct ranked *v;
	size_t n, cap;
	uint64_t bytes;
};

struct job {
	struct writer *out;
	struct header header; /* of temporary streams */
	uint64_t seed, memory, next;
	const char *folder;
};

static uint64_t draw_rank(struct job *j)
{
	uint32_t r[4];
	philox(r, j->seed, (uint32_t)j->next, (uint32_t)(j->next >> 32), 0, RNG_SHUFFLE);
	j->next++;
	return (uint64_t)r[0] << 32 | r[1];
}

/* In temporary streams the rank travels as a last unknown field: number 2^29 - 1, 8 bytes. */
static int put_rank(struct record *r, uint64_t rank, struct error *e)
{
	uint8_t field[RANK_BYTES] = {0xF9, 0xFF, 0xFF, 0xFF, 0x0F};
	for (int i = 0; i < 8; i++)
		field[5 + i] = (uint8_t)(rank >> 8 * i);
	return buf_add(&r->unknown, field, sizeof field, e);
}

static int take_rank(struct record *r, uint64_t *rank, struct error *e)
{
	if (r->unknown.n < RANK_BYTES)
		return fail(e, STATUS_FAIL, "a temporary stream was changed");
	r->unknown.n -= RANK_BYTES;
	const uint8_t *p = r->unknown.p + r->unknown.n + 5;
	*rank = 0;
	for (int i = 0; i < 8; i++)
		*rank |= (uint64_t)p[i] << 8 * i;
	return 0;
}

/* ---- in memory ---- */

static int pile_add(struct pile *p, struct record *r, uint64_t rank, struct error *e)
{
	size_t had = p->cap;
	if (ARRAY_ROOM(p->v, p->n + 1, &p->cap, e))
		return -1;
	memset(p->v + had, 0, (p->cap - had) * sizeof *p->v);
	struct ranked *to = &p->v[p->n];
	if (record_copy(&to->record, r, e))
		return -1;
	to->rank = rank;
	p->n++;
	p->bytes += record_bytes(r);
	return 0;
}

static void pile_free(struct pile *p)
{
	for (size_t i = 0; i < p->cap; i++)
		record_free(&p->v[i].record);
	free(p->v);
	*p = (struct pile){0};
}

static int by_rank(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;
	return (x->rank > y->rank) - (x->rank < y->rank);
}

static int pile_write(struct pile *p, struct job *j, struct error *e)
{
	qsort(p->v, p->n, sizeof *p->v, by_rank);
	for (size_t i = 0; i < p->n; i++)
		if (writer_put(j->out, &p->v[i].record, e))
			return -1;
	return 0;
}

/* ---- through temporary streams ---- */

struct buckets {
	char folder[PATH_MAX];
	char name[BUCKETS][PATH_MAX];
	char *operand[BUCKETS];
	struct writer *w[BUCKETS];
	struct reader *r[BUCKETS];
	uint64_t held[BUCKETS], most; /* bytes in the writers' unfinished frames */
};

static struct buckets *buckets_open(struct job *j, struct error *e)
{
	struct buckets *b = mem_zero(1, sizeof *b, e);
	if (!b)
		return NULL;
	b->most = j->memory / (4 * BUCKETS);
	int n = snprintf(b->folder, sizeof b->folder, "%s/tok-shuf-XXXXXX", j->folder);
	if (n < 0 || n > PATH_MAX - 16 || !mkdtemp(b->folder)) {
		fail_errno(e, "%s: temporary folder", j->folder);
		free(b);
		return NULL;
	}
	for (int i = 0; i < BUCKETS && !e->status; i++) {
		memcpy(b->name[i], b->folder, (size_t)n);
		snprintf(b->name[i] + n, (size_t)(PATH_MAX - n), "/%02d", i);
		b->operand[i] = b->name[i];
		b->w[i] = writer_open(b->name[i], &j->header, 1, e);
	}
	return b;
}

/* Written and read from now on through open files that have no names any more, so that
 * nothing stays behind however the program ends. */
static int buckets_turn(struct buckets *b, struct error *e)
{
	for (int i = 0; i < BUCKETS; i++) {
		struct writer *w = b->w[i];
		b->w[i] = NULL;
		if (writer_close(w, e))
			return -1;
		b->r[i] = reader_open(&b->operand[i], 1, e);
		unlink(b->name[i]);
		if (!b->r[i])
			return -1;
	}
	return 0;
}

static void buckets_close(struct buckets *b)
{
	for (int i = 0; i < BUCKETS; i++) {
		writer_abort(b->w[i]);
		reader_close(b->r[i]);
	}
	rmdir(b->folder);
	free(b);
}

static int deal(struct buckets *b, struct record *r, uint64_t rank, int depth, struct error *e)
{
	unsigned i = (unsigned)(rank >> (64 - BUCKET_BITS * (depth + 1))) % BUCKETS;
	if (put_rank(r, rank, e) || writer_put(b->w[i], r, e))
		return -1;
	b->held[i] += record_bytes(r);
	if (b->held[i] < b->most)
		return 0;
	b->held[i] = 0;
	return writer_flush(b->w[i], e);
}

static int shuffle_part(struct job *j, struct reader *in, int depth, struct error *e);

static int spill(struct job *j, struct reader *in, struct pile *p, int depth, struct error *e)
{
	struct buckets *b = buckets_open(j, e);
	struct record r = {0};
	uint64_t rank = 0;
	int k = b && !e->status ? 0 : -1;
	for (size_t i = 0; i < p->n && k == 0; i++)
		k = deal(b, &p->v[i].record, p->v[i].rank, depth, e);
	pile_free(p);
	while (k == 0 && (k = reader_next(in, &r, e)) > 0) {
		k = depth ? take_rank(&r, &rank, e) : 0;
		if (k == 0)
			k = deal(b, &r, depth ? rank : draw_rank(j), depth, e);
	}
	if (k == 0)
		k = buckets_turn(b, e);
	for (int i = 0; i < BUCKETS && k == 0; i++)
		k = shuffle_part(j, b->r[i], depth + 1, e);
	if (b)
		buckets_close(b);
	record_free(&r);
	return k;
}

/* The records of `in`, all within one range of ranks, to the output in order. */
static int shuffle_part(struct job *j, struct reader *in, int depth, struct error *e)
{
	struct pile p = {0};
	struct record r = {0};
	uint64_t rank = 0;
	int k = 0;
	/* At MAX_DEPTH 2^36 buckets did not divide them: no real stream comes here. */
	while (k == 0 && (p.bytes <= j->memory || depth == MAX_DEPTH) && (k = reader_next(in, &r, e)) > 0) {
		k = depth ? take_rank(&r, &rank, e) : 0;
		if (k == 0)
			k = pile_add(&p, &r, depth ? rank : draw_rank(j), e);
	}
	record_free(&r);
	if (k == 0 && !e->status)
		k = p.bytes > j->memory && depth < MAX_DEPTH ? spill(j, in, &p, depth, e) : pile_write(&p, j, e);
	pile_free(&p);
	return k;
}

int shuffle_stream(struct writer *out, struct reader *in, uint64_t seed, uint64_t memory, const char *folder,
                   struct error *e)
{
	struct job j = {.out = out, .seed = seed, .memory = memory, .folder = folder};
	int k = header_copy(&j.header, reader_header(in), e);
	if (k == 0)
		k = shuffle_part(&j, in, 0, e);
	header_free(&j.header);
	return k;
}
