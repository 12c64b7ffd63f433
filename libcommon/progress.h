/* progress.h - one line on stderr with done/total, rate and time left; only on a
 * terminal and not with -q; at most four updates a second. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include "util.h"

struct progress {
	const char *unit; /* "records", "steps" */
	double started, shown;
	uint64_t total; /* 0: unknown */
	bool active;
};
void progress_start(struct progress *p, const char *unit, uint64_t total);
/* `detail` is appended ("loss 1.23"), may be NULL. */
void progress_update(struct progress *p, uint64_t done, const char *detail);
void progress_end(struct progress *p); /* clears the line */
/* "1h02m", "3m20s", "12s" */
void format_duration(char *out, size_t n, double seconds);

#endif
