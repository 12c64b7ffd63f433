/* hash.c - see hash.h. */
#include "hash.h"

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
