/* shuffle.h - records in random order, of streams of any size in bounded memory. */
#ifndef SHUFFLE_H
#define SHUFFLE_H

#include "stream.h"

/* Every record of `in` to `out`, ordered by a random number that (seed, place in the input)
 * gives: the order is the same for any `memory`, the bytes of records held at a time.  What
 * does not fit goes through temporary streams in `folder`. */
int shuffle_stream(struct writer *out, struct reader *in, uint64_t seed, uint64_t memory, const char *folder,
                   struct error *e);

#endif
