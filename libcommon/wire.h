/* wire.h - the protobuf wire format, both ways: a bounded cursor over bytes that came
 * from outside, and calls that append fields to a buffer.  Only what stream.proto needs:
 * varints, 4-byte and 8-byte values and length-delimited bytes; groups are refused. */
#ifndef WIRE_H
#define WIRE_H

#include "util.h"

enum wire_type { WIRE_VARINT = 0, WIRE_I64 = 1, WIRE_BYTES = 2, WIRE_I32 = 5 };

/* Reads p..end and never past it.  `bad` is sticky: set by the first malformed value. */
struct cursor {
	const uint8_t *p, *end;
	bool bad;
};

/* One field: a number for the scalar types, the bytes p[0..n) for WIRE_BYTES.  start..p
 * of the cursor afterwards is the whole field, for passing unknown ones through. */
struct field {
	uint32_t number;
	enum wire_type type;
	uint64_t value; /* scalar types; the length for WIRE_BYTES */
	const uint8_t *start, *p;
	size_t n;
};

struct cursor cursor_over(const void *p, size_t n);
uint64_t cursor_varint(struct cursor *c);
/* Field number, type and, for WIRE_BYTES, length only; the body is not looked at.  For
 * streams whose body has not arrived yet.  false at the end or when bad. */
bool cursor_tag(struct cursor *c, struct field *f);
/* A whole field; false at the end or when bad. */
bool cursor_field(struct cursor *c, struct field *f);
float field_float(const struct field *f);

/* Append; -1 with e when memory is out. */
int wire_varint(struct buf *b, uint64_t v, struct error *e);
int wire_uint(struct buf *b, uint32_t number, uint64_t v, struct error *e);
int wire_float(struct buf *b, uint32_t number, float v, struct error *e);
int wire_bytes(struct buf *b, uint32_t number, const void *p, size_t n, struct error *e);
/* Tag and length of n bytes that the caller appends next. */
int wire_bytes_open(struct buf *b, uint32_t number, size_t n, struct error *e);
/* A message whose length is not known yet: begin, append its fields, end with the number
 * that begin stored in *mark. */
int wire_begin(struct buf *b, uint32_t number, size_t *mark, struct error *e);
int wire_end(struct buf *b, size_t mark, struct error *e);

bool utf8_valid(const uint8_t *p, size_t n);

#endif
