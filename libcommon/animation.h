/* animation.h - samples in the making (dalle-sample --progressive): their frames sorted out of a stream, and APNG, the
 * PNG that moves. */
#ifndef ANIMATION_H
#define ANIMATION_H

#include "hash.h"

/* The records of one key and sample number, in the order in which they came. */
struct film {
	struct record *frames; /* copies, without tokens */
	size_t n, cap;
};
/* In the order of their first frames.  Zero-initialise; free with films_free. */
struct films {
	struct film *at;
	size_t n, cap;
	struct hash_table places; /* by key and sample number, counted from 1 */
};
int films_add(struct films *f, const struct record *r, struct error *e);
void films_free(struct films *f);

/* Appends to `out` an APNG of n > 0 frames, each a PNG file from image_write_png.  The last is also the still, with its
 * text chunks, that programs show which do not know APNG.  A frame stays for `delay` milliseconds, the last for `hold`
 * (both at most 65535); then it begins again.  STATUS_BAD when the frames' sizes differ. */
int apng_write(struct buf *out, const struct buf *png, size_t n, uint32_t delay, uint32_t hold, struct error *e);

#endif
