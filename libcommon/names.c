/* names.c - see names.h. */
#include "names.h"
#include "hash.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_KEY = 200 };

static int grow(struct names *names, struct error *e)
{
	size_t cap = names->cap ? 2 * names->cap : 1024;
	uint64_t *seen = mem_zero(cap, sizeof *seen, e);
	if (!seen)
		return -1;
	for (size_t i = 0; i < names->cap; i++) {
		size_t at = names->seen[i] & (cap - 1);
		while (names->seen[i] && seen[at])
			at = (at + 1) & (cap - 1);
		if (names->seen[i])
			seen[at] = names->seen[i];
	}
	free(names->seen);
	names->seen = seen;
	names->cap = cap;
	return 0;
}

/* 1: new and noted, 0: taken, -1. */
static int claim(struct names *names, const struct buf *name, struct error *e)
{
	if (2 * names->n >= names->cap && grow(names, e))
		return -1;
	uint64_t h = hash64(name->p, name->n) | 1;
	size_t at = h & (names->cap - 1);
	for (; names->seen[at]; at = (at + 1) & (names->cap - 1))
		if (names->seen[at] == h)
			return 0;
	names->seen[at] = h;
	names->n++;
	return 1;
}

static bool is_safe(uint8_t c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c >= 0x80 ||
	       (c && strchr("_~+=@-", c));
}

static int safe_key(struct buf *out, const struct record *r, uint64_t number, struct error *e)
{
	size_t n = r->key.n < MAX_KEY ? r->key.n : MAX_KEY;
	while (n && n < r->key.n && (r->key.p[n] & 0xc0) == 0x80)
		n--; /* not in the middle of a character */
	out->n = 0;
	if (n == 0 ? buf_printf(out, e, "%06llu", (unsigned long long)number) : buf_add(out, r->key.p, n, e))
		return -1;
	for (size_t i = 0; i < out->n; i++)
		if (!is_safe(out->p[i]) || (i == 0 && out->p[i] == '-'))
			out->p[i] = '_';
	return r->has & HAS_SAMPLE ? buf_printf(out, e, "-%03u", r->sample) : 0;
}

int names_make(struct names *names, struct buf *out, const struct record *r, uint64_t number, struct error *e)
{
	if (safe_key(out, r, number, e))
		return -1;
	size_t n = out->n;
	int fresh = claim(names, out, e);
	for (unsigned copy = 2; fresh == 0; copy++) {
		out->n = n;
		if (buf_printf(out, e, "-%u", copy))
			return -1;
		fresh = claim(names, out, e);
	}
	return fresh < 0 ? -1 : 0;
}

void names_free(struct names *names)
{
	free(names->seen);
	*names = (struct names){0};
}
