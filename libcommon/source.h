/* source.h - the content bytes of one input: zstd frames are decompressed, skippable ones
 * skipped, bare content passed as it is.  Knows nothing of records. */
#ifndef SOURCE_H
#define SOURCE_H

#include "util.h"

/* Frames whose window is larger are refused; also about what is buffered at a time. */
enum { SOURCE_WINDOW_LOG = 23 };

/* path "-": stdin.  Refuses a terminal. */
struct source *source_open(const char *path, struct error *e);
void source_close(struct source *s);
const char *source_name(const struct source *s);
int source_fd(const struct source *s);
uint64_t source_position(const struct source *s); /* bytes of the input consumed */

/* Append the next content to b: a whole frame, once its checksum held, when that is at most
 * 8 MiB, else as much.  1; 0 at the end (source_truncated: inside a frame); -1. */
int source_fill(struct source *s, struct buf *b, struct error *e);
bool source_truncated(const struct source *s);
bool source_bare(const struct source *s); /* the last content was bare */
/* Give back bare content that turned out to belong to frames: the next source_fill looks
 * at it afresh.  Used where one part of a file ends. */
int source_unread(struct source *s, const uint8_t *p, size_t n, struct error *e);
/* Bytes of all n operands together, 0 when one is no regular file.  A missing one is reported here, before any work
 * is done. */
int source_total(char *const *files, int n, uint64_t *total, struct error *e);
/* Open an input ("-": stdin); with it the *n bytes that stream_detect has taken from it, if
 * any.  The descriptor, which is the caller's, or -1. */
enum { SOURCE_PEEK = 16 };
int source_input(const char *path, uint8_t p[SOURCE_PEEK], size_t *n, struct error *e);
bool source_starts_frame(const uint8_t *p, size_t n);
/* Go to one frame of a seek table: then source_fill gives its content, then 0.  The sizes
 * are checked against the frame. */
int source_seek(struct source *s, uint64_t offset, uint64_t compressed, uint64_t content, struct error *e);

#endif
