/* tar.h - tar archives as streams: reading (ustar, GNU long names, pax, old v7) and writing
 * (ustar, pax where a name needs it).  Names are data here: nothing is ever extracted to
 * them.  Links, devices and folders are passed over. */
#ifndef TAR_H
#define TAR_H

#include "input.h"

enum { TAR_BLOCK = 512, TAR_MAX_NAME = 1 << 16 };

struct tar {
	struct input *in;
	struct buf name; /* of the current member */
	uint64_t size;   /* of the current member */
	uint64_t left;   /* of its bytes, and of the padding after them */
	uint64_t padding;
	bool closed;     /* an end block was seen */
};

/* True when a block of TAR_BLOCK bytes has the checksum of a tar header. */
bool tar_looks_like(const uint8_t *block, size_t n);
/* Reads from `in`, which must outlive it.  Free with tar_free. */
void tar_open(struct tar *t, struct input *in);
/* The next regular file: 1 with t->name and t->size, 0 at the end, -1.  STATUS_BAD when the
 * archive is damaged or stops before its end blocks.  Archives may follow one another. */
int tar_next(struct tar *t, struct error *e);
/* The member's content, whole; STATUS_LIMIT when it is larger than `limit`. */
int tar_read(struct tar *t, struct buf *out, size_t limit, struct error *e);
void tar_free(struct tar *t);

/* Appends a member or the end of an archive to `out`; owner 0, time 0, mode 644, so that the
 * same input gives the same bytes. */
int tar_add(struct buf *out, const char *name, const void *p, size_t n, struct error *e);
int tar_end(struct buf *out, struct error *e);

#endif
