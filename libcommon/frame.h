/* frame.h - the output side of a stream: content goes out as independent zstd frames with
 * checksums, or bare, then the seek table.  Knows nothing of records. */
#ifndef FRAME_H
#define FRAME_H

#include "util.h"

/* path and level as writer_open has them. */
struct frames *frames_open(const char *path, int level, struct error *e);
const char *frames_name(const struct frames *f);
/* One frame.  a and b hold the same records laid out in two ways (b may be NULL): the one
 * that compresses better goes out.  `bulky`: pictures, worth little effort by default. */
int frames_put(struct frames *f, const struct buf *a, const struct buf *b, bool bulky, struct error *e);
bool frames_bare(const struct frames *f);
/* The output is a file, which is kept, and not a pipe, where the next program waits. */
bool frames_kept(const struct frames *f);
/* Seek table, close, rename; frees f in every case. */
int frames_close(struct frames *f, struct error *e);
void frames_abort(struct frames *f);

#endif
