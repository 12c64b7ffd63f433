/* names.c - see names.h. */
#include "names.h"

#include <string.h>

enum { MAX_KEY = 200 };

/* 1: new and noted, 0: taken, -1. */
static int claim(struct names *names, const struct buf *name, struct error *e)
{
	size_t *taken = hash_table_find(&names->seen, hash64(name->p, name->n), e);
	if (!taken)
		return -1;
	return *taken ? 0 : (int)(*taken = 1);
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
	hash_table_free(&names->seen);
}
