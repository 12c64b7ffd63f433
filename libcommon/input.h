/* input.h - bytes from a file, a pipe or memory, with a look ahead: what img-pack reads its
 * lists, archives and concatenated pictures with. */
#ifndef INPUT_H
#define INPUT_H

#include "util.h"

enum { INPUT_AHEAD = 4096 }; /* most bytes input_peek can show */

struct input {
	int fd; /* -1: memory */
	const char *name;
	uint8_t *buffer;     /* owned, NULL for memory */
	const uint8_t *data; /* buffer, or the caller's memory */
	size_t at, end;
	bool finished; /* fd is at its end */
};

/* path "-" is stdin.  `path` must outlive the source. */
int input_open(struct input *s, const char *path, struct error *e);
void input_memory(struct input *s, const void *p, size_t n, const char *name);
void input_close(struct input *s);

/* Shows up to n <= INPUT_AHEAD bytes without taking them; *got says how many there are
 * (fewer only at the end).  NULL with e on a read error. */
const uint8_t *input_peek(struct input *s, size_t n, size_t *got, struct error *e);
/* Takes n bytes; fewer only at the end.  -1 on a read error. */
int64_t input_read(struct input *s, void *p, size_t n, struct error *e);
/* Takes n bytes and forgets them; the number taken or -1. */
int64_t input_skip(struct input *s, uint64_t n, struct error *e);
/* The next byte, -1 at the end, -2 on a read error. */
int input_byte(struct input *s, struct error *e);
/* The next line without its newline (and carriage return) into *line: 1, 0 at the end, -1.
 * A line longer than `limit` bytes is STATUS_BAD. */
int input_line(struct input *s, struct buf *line, size_t limit, struct error *e);

#endif
