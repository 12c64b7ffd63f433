/* bytes.h - a whole file by position: read where it lies when it is a regular file, or held in memory when it came
 * through a pipe.  Never mapped: a file that shrinks meanwhile is an error, not a SIGBUS. */
#ifndef BYTES_H
#define BYTES_H

#include "util.h"

struct file_bytes {
	char *name;       /* for messages */
	int fd;           /* -1: all of it is in `whole` */
	struct buf whole;
	uint64_t size;
};

/* The little-endian number in `bytes` <= 8 bytes. */
static inline uint64_t get_le(const uint8_t *p, int bytes)
{
	uint64_t v = 0;
	for (int i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

/* "-" is standard input.  Folders and devices are refused, STATUS_BAD: "is a device, expected EXPECTED". */
int bytes_open(struct file_bytes *f, const char *path, const char *expected, struct error *e);
/* All n bytes at `at`, or STATUS_BAD: somebody had promised them. */
int bytes_get(const struct file_bytes *f, void *out, size_t n, uint64_t at, struct error *e);
void bytes_close(struct file_bytes *f);

#endif
