/* progress.c - see progress.h. */
#include "progress.h"

#include <unistd.h>

void progress_start(struct progress *p, const char *unit, uint64_t total)
{
	*p = (struct progress){.unit = unit, .started = seconds_now(), .total = total};
	p->shown = p->started;
	p->active = verbosity >= 0 && isatty(STDERR_FILENO);
}

void format_duration(char *out, size_t n, double seconds)
{
	double most = 359999999; /* keeps the conversion below in range */
	unsigned long long s = seconds > 0 ? (unsigned long long)(seconds < most ? seconds : most) : 0;
	if (s >= 3600)
		snprintf(out, n, "%lluh%02llum", s / 3600, s / 60 % 60);
	else if (s >= 60)
		snprintf(out, n, "%llum%02llus", s / 60, s % 60);
	else
		snprintf(out, n, "%llus", s);
}

static void draw(const struct progress *p, uint64_t done, double elapsed, const char *detail)
{
	double rate = elapsed > 0 ? (double)done / elapsed : 0;
	unsigned long long d = done, t = p->total;
	char left[32] = "";
	if (p->total > done && rate > 0) {
		char time[24];
		format_duration(time, sizeof time, (double)(p->total - done) / rate);
		snprintf(left, sizeof left, ", %s left", time);
	}
	/* \033[K clears what a longer line left behind. */
	fprintf(stderr, "\r%s: %llu", program_name, d);
	if (p->total)
		fprintf(stderr, "/%llu", t);
	fprintf(stderr, " %s, %.*f/s%s%s%s\033[K", p->unit, rate < 10 ? 2 : 0, rate, left, detail ? ", " : "",
	        detail ? detail : "");
	fflush(stderr);
	line_shown = true;
}

void progress_update(struct progress *p, uint64_t done, const char *detail)
{
	if (!p->active)
		return;
	double now = seconds_now();
	if (now - p->shown < 0.25)
		return;
	p->shown = now;
	draw(p, done, now - p->started, detail);
}

void progress_end(struct progress *p)
{
	if (p->active && line_shown) {
		fputs("\r\033[K", stderr);
		fflush(stderr);
		line_shown = false;
	}
	p->active = false;
}
