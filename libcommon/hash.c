/* hash.c - see hash.h. */
#include "hash.h"

#include <stdlib.h>
#include <xxhash.h>

/* struct hash is libxxhash's state under our name: its allocation is aligned as XXH3 needs. */

/* XXH128 as hex, most significant digit first, as `xxhsum -H2` prints it. */
static void to_hex(XXH128_hash_t h, char id[ID_LENGTH + 1])
{
	snprintf(id, ID_LENGTH + 1, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

struct hash *hash_new(struct error *e)
{
	XXH3_state_t *state = XXH3_createState();
	if (!state || XXH3_128bits_reset(state) != XXH_OK) {
		XXH3_freeState(state);
		fail(e, STATUS_LIMIT, "out of memory");
		return NULL;
	}
	return (struct hash *)state;
}

void hash_add(struct hash *h, const void *p, size_t n)
{
	if (n)
		XXH3_128bits_update((XXH3_state_t *)h, p, n);
}

void hash_finish(struct hash *h, char id[ID_LENGTH + 1])
{
	to_hex(XXH3_128bits_digest((XXH3_state_t *)h), id);
	XXH3_freeState((XXH3_state_t *)h);
}

uint64_t hash64(const void *p, size_t n)
{
	return XXH3_64bits(p, n);
}

static struct hash_entry *place_of(const struct hash_table *t, uint64_t hash)
{
	size_t i = hash & (t->cap - 1);
	while (t->at[i].value && t->at[i].hash != hash)
		i = (i + 1) & (t->cap - 1);
	return &t->at[i];
}

static int grow(struct hash_table *t, struct error *e)
{
	struct hash_table old = *t;
	size_t cap = old.cap ? 2 * old.cap : 64;
	struct hash_entry *at = mem_zero(cap, sizeof *at, e);
	if (!at)
		return -1;
	t->at = at;
	t->cap = cap;
	for (size_t i = 0; i < old.cap; i++)
		if (old.at[i].value)
			*place_of(t, old.at[i].hash) = old.at[i];
	free(old.at);
	return 0;
}

size_t *hash_table_find(struct hash_table *t, uint64_t hash, struct error *e)
{
	if (2 * t->n >= t->cap && grow(t, e))
		return NULL;
	struct hash_entry *x = place_of(t, hash);
	t->n += x->value == 0;
	x->hash = hash;
	return &x->value;
}

void hash_table_free(struct hash_table *t)
{
	free(t->at);
	*t = (struct hash_table){0};
}
