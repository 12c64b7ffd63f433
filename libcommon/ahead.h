/* ahead.h - the records of a reader, read by a thread of its own: a program that has work at hand asks for what has
 * arrived and need not wait for a slow pipe. */
#ifndef AHEAD_H
#define AHEAD_H

#include "stream.h"

struct ahead;
enum { AHEAD_END, AHEAD_RECORD, AHEAD_LATER };

/* Begin to read; at most a few records are held.  Takes the reader over, also on failure (NULL). */
struct ahead *ahead_start(struct reader *in, struct error *e);
/* The next record into *rec: AHEAD_RECORD, AHEAD_END after the last one, -1 when reading failed.  AHEAD_LATER, only
 * without `wait`: none has arrived, nor within a moment after the one before, so that records that were written
 * together come together. */
int ahead_next(struct ahead *a, struct record *rec, bool wait, struct error *e);
/* The file that the last record is of, for messages. */
const char *ahead_name(const struct ahead *a);
/* As reader_progress. */
void ahead_progress(struct ahead *a, uint64_t *done, uint64_t *total);
/* At any time; a read that waits for a pipe is left to end by itself.  a may be NULL. */
void ahead_close(struct ahead *a);

#endif
