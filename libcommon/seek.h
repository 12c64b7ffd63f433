/* seek.h - the seek table of a token stream, in the zstd seekable format: one skippable
 * frame at the end that lists the sizes of the frames before it.  Files joined by cat hold
 * one table behind each part; loading walks back over all of them. */
#ifndef SEEK_H
#define SEEK_H

#include "util.h"

struct seek_entry {
	uint64_t offset; /* of the frame in the file */
	uint32_t compressed, content; /* bytes */
};

struct seek_table {
	struct seek_entry *v;
	size_t n, cap;
	uint64_t end; /* bytes covered so far; the next frame's offset */
};

int seek_add(struct seek_table *t, uint64_t compressed, uint64_t content, struct error *e);
/* The skippable frame that describes t, appended to out. */
int seek_encode(const struct seek_table *t, struct buf *out, struct error *e);
/* The frames of a whole file.  -1: not a regular file, or its tables do not cover every
 * byte of it.  t is zero-initialised; free with seek_free in any case. */
int seek_load(struct seek_table *t, int fd, const char *name, struct error *e);
void seek_free(struct seek_table *t);

#endif
