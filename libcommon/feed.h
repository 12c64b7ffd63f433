/* feed.h - where img-pack gets pictures and captions from: lists of paths, webdataset
 * archives, concatenated PNM, single pictures; one operand after the other, each recognised
 * by its content.  Pictures stay encoded here, so that they can be decoded in parallel. */
#ifndef FEED_H
#define FEED_H

#include "image.h"
#include "tar.h"

enum { FEED_MAX_TEXT = 1 << 20, FEED_MAX_JSON = 16 << 20 };

/* Owned by whoever declares it; zero-initialise, reuse, free with feed_item_free. */
struct feed_item {
	struct buf key, caption; /* UTF-8 */
	struct buf path;         /* file to read, or only a name for messages when `file` is set */
	struct buf file;         /* encoded picture, when n > 0 */
	struct pixels pixels;    /* decoded already (PNM), when width > 0 */
	struct error bad;        /* this one item is unusable and why */
};
void feed_item_free(struct feed_item *item);

struct feed {
	char *const *files;
	int count, next;
	const char *caption; /* of pictures that have none of their own */
	const char *folder;  /* what paths of lists are relative to; NULL: the list's own folder */
	struct image_options options;
	/* private */
	int kind; /* of the open operand */
	struct input in;
	struct tar tar;
	bool pending; /* the tar's current member belongs to the next sample */
	struct buf line, member;
	uint64_t number; /* of the picture or line in the operand */
};
/* n = 0: stdin.  The array must outlive the feed. */
void feed_open(struct feed *f, char *const *files, int n);
/* The next item, in order: 1, 0 at the end, -1 when an operand cannot be read on (STATUS_BAD: a
 * damaged archive or PNM stream, or no text list). */
int feed_next(struct feed *f, struct feed_item *item, struct error *e);
void feed_close(struct feed *f);

/* Valid UTF-8 without overlong forms, surrogates or NUL. */
bool feed_is_text(const struct buf *b);

#endif
