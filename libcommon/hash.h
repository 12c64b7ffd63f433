/* hash.h - content identities: XXH3-128 as 32 hex digits (libxxhash). */
#ifndef HASH_H
#define HASH_H

#include "stream.h"

struct hash; /* running state */
struct hash *hash_new(struct error *e);
void hash_add(struct hash *h, const void *p, size_t n);
void hash_finish(struct hash *h, char id[ID_LENGTH + 1]); /* frees h */
uint64_t hash64(const void *p, size_t n); /* XXH3-64, for tables, checksums, and record keys in the RNG */

#endif
