/* ahead.c - see ahead.h.  The thread and its user both hold the struct; whoever leaves last frees it, so that the user
 * never waits for a read that may not end. */
#include "ahead.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { HELD = 16, MOMENT_MS = 20 };

struct arrival {
	struct record record;
	char name[256];
};

struct ahead {
	struct reader *in; /* the thread's alone */
	struct arrival read, given; /* the thread's and the user's */
	bool quiet;                 /* the user's: a moment has passed since the last record */
	pthread_mutex_t lock; /* of all below */
	pthread_cond_t changed;
	struct arrival ring[HELD];
	int first, n;
	int end; /* what follows the ring: AHEAD_LATER while reading, AHEAD_END, or -1 and e */
	struct error e;
	uint64_t done, total;
	int holders;
};

static void free_all(struct ahead *a)
{
	reader_close(a->in);
	for (int i = 0; i < HELD; i++)
		record_free(&a->ring[i].record);
	record_free(&a->read.record);
	record_free(&a->given.record);
	pthread_mutex_destroy(&a->lock);
	pthread_cond_destroy(&a->changed);
	free(a);
}

static void leave(struct ahead *a)
{
	pthread_mutex_lock(&a->lock);
	bool last = --a->holders == 0;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	if (last)
		free_all(a);
}

/* Both keep their memory: it serves later records. */
static void exchange(struct arrival *x, struct arrival *y)
{
	struct arrival t = *x;
	*x = *y;
	*y = t;
}

/* Waits for room; false when the user has left. */
static bool put_arrival(struct ahead *a, int end, const struct error *e)
{
	pthread_mutex_lock(&a->lock);
	while (a->n == HELD && a->holders == 2)
		pthread_cond_wait(&a->changed, &a->lock);
	if (end == AHEAD_LATER && a->n < HELD)
		exchange(&a->ring[(a->first + a->n++) % HELD], &a->read);
	a->end = end;
	a->e = *e;
	reader_progress(a->in, &a->done, &a->total);
	bool on = a->holders == 2;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	return on;
}

static void *read_all(void *context)
{
	struct ahead *a = context;
	struct error e = {0};
	int r;
	do {
		r = reader_next(a->in, &a->read.record, &e);
		snprintf(a->read.name, sizeof a->read.name, "%s", reader_name(a->in));
	} while (put_arrival(a, r > 0 ? AHEAD_LATER : r < 0 ? -1 : AHEAD_END, &e) && r > 0);
	leave(a);
	return NULL;
}

static int start_thread(struct ahead *a, struct error *e)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, read_all, a))
		return fail(e, STATUS_LIMIT, "cannot start a thread");
	pthread_detach(thread);
	return 0;
}

struct ahead *ahead_start(struct reader *in, struct error *e)
{
	struct ahead *a = mem_zero(1, sizeof *a, e);
	if (!a) {
		reader_close(in);
		return NULL;
	}
	*a = (struct ahead){.in = in, .end = AHEAD_LATER, .holders = 2};
	snprintf(a->given.name, sizeof a->given.name, "%s", reader_name(in));
	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_t clock;
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &clock);
	pthread_condattr_destroy(&clock);
	if (start_thread(a, e) == 0)
		return a;
	free_all(a);
	return NULL;
}

static void wait_arrival(struct ahead *a, bool wait)
{
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += MOMENT_MS * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	while (a->n == 0 && a->end == AHEAD_LATER && (wait || !a->quiet)) {
		if (wait)
			pthread_cond_wait(&a->changed, &a->lock);
		else
			a->quiet = pthread_cond_timedwait(&a->changed, &a->lock, &end) == ETIMEDOUT;
	}
}

int ahead_next(struct ahead *a, struct record *rec, bool wait, struct error *e)
{
	pthread_mutex_lock(&a->lock);
	wait_arrival(a, wait);
	int r = a->n ? AHEAD_RECORD : a->end;
	if (r == AHEAD_RECORD) {
		exchange(&a->ring[a->first], &a->given);
		a->first = (a->first + 1) % HELD;
		a->n--;
	} else if (r < 0) {
		fail(e, a->e.status, "%s", a->e.text);
	}
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	a->quiet = r != AHEAD_RECORD;
	if (r == AHEAD_RECORD) {
		struct record t = *rec;
		*rec = a->given.record;
		a->given.record = t;
	}
	return r;
}

const char *ahead_name(const struct ahead *a)
{
	return a->given.name;
}

void ahead_progress(struct ahead *a, uint64_t *done, uint64_t *total)
{
	pthread_mutex_lock(&a->lock);
	*done = a->done;
	*total = a->total;
	pthread_mutex_unlock(&a->lock);
}

void ahead_close(struct ahead *a)
{
	if (a)
		leave(a);
}
