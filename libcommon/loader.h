/* loader.h - training records in shuffled order, the same order for the same seed, resumable at any batch.
 * Every pass gives every record exactly once.  Four ways, chosen at open:
 *
 *	data that fits memory_limit    kept in memory; each pass is a random permutation
 *	larger files, seek tables      the frames in random order, as many at a time as fit, shuffled among themselves
 *	larger files without tables    read in order through a buffer from which records are drawn at random
 *	a larger pipe                  the same, and one pass only
 *
 * The order depends on seed and pass, in the last three also on memory_limit. */
#ifndef LOADER_H
#define LOADER_H

#include "stream.h"

struct loader;
struct loader_state {
	uint64_t epoch;    /* passes completed */
	uint64_t position; /* records given in this pass */
};
/* files as reader_open; all parts must agree.  In two steps: loader_begin reads the header only, so that a trainer can plan
 * its memory first; loader_load, after which the rest works, reads everything once.  loader_open does both. */
struct loader *loader_begin(char *const *files, int n, uint64_t seed, uint64_t memory_limit, struct error *e);
int loader_load(struct loader *l, struct error *e); /* once is enough */
struct loader *loader_open(char *const *files, int n, uint64_t seed, uint64_t memory_limit, struct error *e);
const struct header *loader_header(const struct loader *l);
/* 32 hex digits over the content of all records (of a larger pipe: of those buffered at open) and the way of
 * shuffling: equal when loader_next gives the same sequence. */
const char *loader_identity(const struct loader *l);
const char *loader_name(const struct loader *l);   /* for messages */
uint64_t loader_records(const struct loader *l); /* in one pass; 0 when unknown (a pipe of one pass) */
/* The next n records of the endless shuffled sequence into batch[0..n-1] (borrowed until the next call).
 * Returns n, fewer only at the end of a one-pass pipe (0 then), -1 on failure. */
int loader_next(struct loader *l, const struct record **batch, int n, struct error *e);
struct loader_state loader_state(const struct loader *l);
int loader_restore(struct loader *l, struct loader_state s, struct error *e);
/* In file order, once, for evaluation: restart and read (0 at the end).  Not for a pipe larger than memory_limit. */
int loader_rewind(struct loader *l, struct error *e);
int loader_next_in_order(struct loader *l, const struct record **batch, int n, struct error *e);
void loader_close(struct loader *l);

#endif
