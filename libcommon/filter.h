/* filter.h - the loop that every filter of the suite shares: read records in batches,
 * pass headers on with a lineage entry, write, close, report.  On top of stream.h.
 *
 *	struct filter f;
 *	if (filter_open(&f, argc, argv, first, &e)) ...        f.header is a copy to edit
 *	... check f.header, set what the tool adds ...
 *	if (filter_start(&f, output, STREAM_LEVEL, &e)) ...
 *	while ((n = filter_batch(&f, 32, &e)) > 0) {           f.batch[0..n-1]
 *		... compute ...
 *		if (filter_put_batch(&f, n, &e)) ...
 *	}
 *	status = filter_close(&f, &e);                          reports and gives the status
 */
#ifndef FILTER_H
#define FILTER_H

#include "progress.h"
#include "stream.h"

struct filter {
	struct reader *in;
	struct writer *out;
	struct header header;
	struct record *batch; /* batch_cap records, reused */
	size_t batch_cap;
	uint64_t records; /* read so far */
	struct progress progress;
};

/* Open operands argv[first..] for reading; header = the input's plus this program's entry. */
int filter_open(struct filter *f, int argc, char **argv, int first, struct error *e);
int filter_start(struct filter *f, const char *output, int level, struct error *e);
/* Up to max records into f->batch; the number, 0 at the end, -1.  Draws progress with rate
 * and ETA on stderr when that is a terminal. */
int filter_batch(struct filter *f, int max, struct error *e);
int filter_put_batch(struct filter *f, int n, struct error *e);
/* Finish (or abort when e holds a failure), free all, print the failure if any and return
 * the exit status.  Also after a call that failed, and of a zeroed struct. */
int filter_close(struct filter *f, struct error *e);

/* STATUS_BAD with one line saying what is missing and which tool adds it.  `file` is the
 * input's name. */
int need_text(const struct header *h, const char *file, struct error *e);
int need_image(const struct header *h, const char *file, struct error *e);
int need_pixels(const struct record *r, const char *file, struct error *e);

#endif
