/* record.h - records and headers to and from protobuf messages: the inside of stream.c.
 * Tools use stream.h. */
#ifndef RECORD_H
#define RECORD_H

#include "stream.h"
#include "wire.h"

/* Fields of Stream. */
enum { STREAM_HEADER = 1, STREAM_RECORD = 2, STREAM_END = 3 };

/* How the tokens of a record are laid out: the fewest bits that hold every code of the
 * codec, or whole bytes (8, 16 or 32 bits), where zstd finds repeats that the first hides. */
enum layout { LAYOUT_PACKED, LAYOUT_BYTES };

/* Append a field of Stream.  Fails with STATUS_BAD when r does not fit h or the limits.
 * `where` opens the message ("FILE: record 12"). */
int record_encode(struct buf *out, const struct record *r, const struct header *h, enum layout layout,
                  const char *where, struct error *e);
int header_encode(struct buf *out, const struct header *h, struct error *e);
int end_encode(struct buf *out, uint64_t records, struct error *e);

/* From the body of the field; r and h are cleared first.  STATUS_BAD with "WHERE: ..." */
int record_decode(struct record *r, const uint8_t *p, size_t n, const struct header *h, const char *where,
                  struct error *e);
int header_decode(struct header *h, const uint8_t *p, size_t n, const char *where, struct error *e);
int end_decode(uint64_t *records, const uint8_t *p, size_t n, const char *where, struct error *e);
/* STATUS_BAD naming what differs between the first header and that of a later part. */
int header_agree(const struct header *first, const struct header *later, const char *where, struct error *e);

#endif
