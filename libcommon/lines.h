/* lines.h - text input one line at a time, for the tools that take captions as lines. */
#ifndef LINES_H
#define LINES_H

#include "util.h"

struct lines;

/* Reads the operands one after the other; n = 0 or "-" is stdin.  Lines end with `end` ('\n',
 * and a CR before it is dropped; or 0); the last one may lack it. */
struct lines *lines_open(char *const *files, int n, char end, struct error *e);
/* The next line: 1 with *p valid until the next call, 0 at the end, -1.  A line of more than
 * STREAM_MAX_TEXT bytes is STATUS_LIMIT; a file that is a token stream or no text STATUS_BAD. */
int lines_next(struct lines *l, const uint8_t **p, size_t *n, struct error *e);
/* Where the caption of that line begins: after KEY<TAB> with `tab`, else at 0.  -1: no tab where one must be (STATUS_BAD),
 * or one in the first line where there should be none (STATUS_USAGE). */
int lines_caption(const struct lines *l, bool tab, const uint8_t *p, size_t n, size_t *at, struct error *e);
uint64_t lines_number(const struct lines *l); /* of the line read last, from 1, over all files */
const char *lines_name(const struct lines *l); /* file being read, for messages */
/* Bytes consumed of bytes in all (0 when unknown), for progress. */
void lines_progress(const struct lines *l, uint64_t *done, uint64_t *total);
void lines_close(struct lines *l);

/* Text into *out with every byte that is not part of valid UTF-8 replaced by U+FFFD; 1 when
 * something was replaced, 0, -1. */
int text_repair(const uint8_t *p, size_t n, struct buf *out, struct error *e);

#endif
