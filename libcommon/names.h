/* names.h - file names made of record keys: safe, short and all different. */
#ifndef NAMES_H
#define NAMES_H

#include "hash.h"

/* The names given so far.  Zero-initialise. */
struct names {
	struct hash_table seen; /* 1 for each */
};

/* A name without extension for the record into *out: its key with everything but letters,
 * digits and _ ~ + = @ - made '_' (also '.', where webdataset splits names), at most 200 bytes;
 * `number` when it has no key; "-SAMPLE" when it is a sample; "-2", "-3" ... when taken. */
int names_make(struct names *names, struct buf *out, const struct record *r, uint64_t number, struct error *e);
void names_free(struct names *names);

#endif
