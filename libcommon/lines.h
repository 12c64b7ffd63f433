/* lines.h - text input one line at a time, for the tools that take captions as lines. */
#ifndef LINES_H
#define LINES_H

#include "util.h"

/* A line of a list, NAME<TAB>CAPTION[<TAB>KEY[<TAB>...]], as img-pack and the BPE tools read it.  Borrowed. */
struct list_line {
	const uint8_t *name, *caption, *key;
	size_t name_n, caption_n, key_n; /* key_n 0: no third column, or an empty one */
};
/* false: no tab, all of it is the name. */
bool list_split(struct list_line *out, const uint8_t *p, size_t n);
/* The record's key: the third column, or the name, of which a path with the extension of a picture leaves the base name
 * without it ("a/b.c.png": "b.c"; "v1.2" stays, "00/0017" stays).  The same for both kinds of tools, so that their records
 * meet. */
int list_key(struct buf *key, const struct list_line *l, struct error *e);

/* The name has the extension of a picture. */
bool list_names_picture(const uint8_t *name, size_t n);

struct lines;

/* Reads the operands one after the other; n = 0 or "-" is stdin.  Lines end with `end` ('\n',
 * and a CR before it is dropped; or 0); the last one may lack it. */
struct lines *lines_open(char *const *files, int n, char end, struct error *e);
/* The next line: 1 with *p valid until the next call, 0 at the end, -1.  A line of more than
 * STREAM_MAX_TEXT bytes is STATUS_LIMIT; a file that is a token stream or no text STATUS_BAD. */
int lines_next(struct lines *l, const uint8_t **p, size_t *n, struct error *e);
/* What that line holds: a line of a list with `tab`, where one without a tab has no caption, else a caption alone.  1; 0: an
 * empty line of a list, to be passed over; -1: the first line has no tab and is no name of a picture either (STATUS_BAD), or
 * has one where there should be none (STATUS_USAGE). */
int lines_caption(const struct lines *l, bool tab, const uint8_t *p, size_t n, struct list_line *out, struct error *e);
uint64_t lines_number(const struct lines *l); /* of the line read last, from 1, over all files */
const char *lines_name(const struct lines *l); /* file being read, for messages */
/* Bytes consumed of bytes in all (0 when unknown), for progress. */
void lines_progress(const struct lines *l, uint64_t *done, uint64_t *total);
void lines_close(struct lines *l);

/* Text into *out with every byte that is not part of valid UTF-8 replaced by U+FFFD; 1 when
 * something was replaced, 0, -1. */
int text_repair(const uint8_t *p, size_t n, struct buf *out, struct error *e);

#endif
