/* seek.c - see seek.h.  Layout: u32 0x184D2A5E, u32 size of the rest, for each frame u32
 * compressed size, u32 content size (and u32 checksum when the descriptor's bit 7 is set;
 * ours is clear, every frame has its own), u32 frames, u8 descriptor, u32 0x8F92EAB1. */
#include "seek.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { HEAD = 8, FOOT = 9 };
#define SKIPPABLE_MAGIC 0x184D2A5Eu
#define SEEKABLE_MAGIC 0x8F92EAB1u

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		*p++ = (uint8_t)(v >> 8 * i);
	return p;
}

int seek_add(struct seek_table *t, uint64_t compressed, uint64_t content, struct error *e)
{
	if (compressed > UINT32_MAX || content > UINT32_MAX)
		return fail(e, STATUS_LIMIT, "a frame of %llu bytes is over the seek table's 4 GiB",
		            (unsigned long long)content);
	if (ARRAY_ROOM(t->v, t->n + 1, &t->cap, e))
		return -1;
	t->v[t->n++] = (struct seek_entry){t->end, (uint32_t)compressed, (uint32_t)content};
	t->end += compressed;
	return 0;
}

int seek_encode(const struct seek_table *t, struct buf *out, struct error *e)
{
	size_t size = 8 * t->n + FOOT;
	if (size > UINT32_MAX)
		return fail(e, STATUS_LIMIT, "%zu frames are too many for a seek table", t->n);
	if (buf_reserve(out, HEAD + size, e))
		return -1;
	uint8_t *p = out->p + out->n;
	p = put32(p, SKIPPABLE_MAGIC);
	p = put32(p, (uint32_t)size);
	for (size_t i = 0; i < t->n; i++) {
		p = put32(p, t->v[i].compressed);
		p = put32(p, t->v[i].content);
	}
	p = put32(p, (uint32_t)t->n);
	*p++ = 0;
	put32(p, SEEKABLE_MAGIC);
	out->n += HEAD + size;
	out->p[out->n] = 0;
	return 0;
}

static int no_table(const char *name, uint64_t end, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: no seek table before byte %llu", name, (unsigned long long)end);
}

/* Entries of the table that ends at `end`, appended to t with their offsets; *begin: where
 * the first frame that it covers starts. */
static int load_one(struct seek_table *t, int fd, uint64_t end, uint64_t *begin, const char *name, struct error *e)
{
	uint8_t foot[FOOT];
	if (end < HEAD + FOOT)
		return no_table(name, end, e);
	if (read_at(fd, foot, FOOT, end - FOOT, name, e))
		return -1;
	uint64_t n = get32(foot), width = foot[4] & 0x80 ? 12 : 8, size = n * width + FOOT;
	if (get32(foot + 5) != SEEKABLE_MAGIC || foot[4] & 0x7C || size > end - HEAD || size > UINT32_MAX)
		return no_table(name, end, e);
	uint64_t start = end - HEAD - size, sum = 0;
	uint8_t *p = mem_alloc((size_t)(HEAD + size), 1, e);
	if (!p)
		return -1;
	int r = read_at(fd, p, (size_t)(HEAD + size), start, name, e);
	if (r == 0 && (get32(p) != SKIPPABLE_MAGIC || get32(p + 4) != size))
		r = no_table(name, end, e);
	for (uint64_t i = 0; r == 0 && i < n; i++)
		sum += get32(p + HEAD + i * width);
	if (r == 0 && sum > start)
		r = fail(e, STATUS_BAD, "%s: the seek table lists more bytes than there are", name);
	*begin = t->end = start - sum;
	for (uint64_t i = 0; r == 0 && i < n; i++)
		r = seek_add(t, get32(p + HEAD + i * width), get32(p + HEAD + i * width + 4), e);
	free(p);
	return r;
}

static int by_offset(const void *a, const void *b)
{
	const struct seek_entry *x = a, *y = b;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int seek_load(struct seek_table *t, int fd, const char *name, struct error *e)
{
	struct stat st;
	if (fstat(fd, &st))
		return fail_errno(e, "%s", name);
	if (!S_ISREG(st.st_mode))
		return fail(e, STATUS_FAIL, "%s: not a regular file, which random access needs", name);
	uint64_t end = (uint64_t)st.st_size;
	do {
		if (load_one(t, fd, end, &end, name, e))
			return -1;
	} while (end > 0);
	qsort(t->v, t->n, sizeof *t->v, by_offset);
	return 0;
}

void seek_free(struct seek_table *t)
{
	free(t->v);
	*t = (struct seek_table){0};
}
