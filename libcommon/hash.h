/* hash.h - content identities: XXH3-128 as 32 hex digits (libxxhash). */
#ifndef HASH_H
#define HASH_H

#include "stream.h"

struct hash; /* running state */
struct hash *hash_new(struct error *e);
void hash_add(struct hash *h, const void *p, size_t n);
void hash_finish(struct hash *h, char id[ID_LENGTH + 1]); /* frees h */
uint64_t hash64(const void *p, size_t n); /* XXH3-64, for tables, checksums, and record keys in the RNG */

/* Numbers by hash, which stands for what was hashed.  Zero-initialise. */
struct hash_table {
	struct hash_entry {
		uint64_t hash;
		size_t value; /* 0: free */
	} *at;
	size_t n, cap; /* cap is a power of two */
};
/* Where the number of `hash` is, until the next call: 0 when it is new, to be set to another one.  NULL with e. */
size_t *hash_table_find(struct hash_table *t, uint64_t hash, struct error *e);
void hash_table_free(struct hash_table *t);

#endif
