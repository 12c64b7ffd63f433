/* util.h - errors, memory, numbers, files and signals; everything below the
 * organs and above libc.
 *
 * Library code never exits and never prints: it fills a struct error and
 * returns -1 (or NULL).  Tools turn that into one line and an exit status. */
#ifndef UTIL_H
#define UTIL_H

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define DALLE_VERSION "0.1.0"

/* Exit statuses, the same for every tool (man pages, EXIT STATUS). */
enum status {
	STATUS_OK = 0,
	STATUS_FAIL = 1,   /* I/O or run-time failure */
	STATUS_USAGE = 2,  /* bad option or operand */
	STATUS_BAD = 3,    /* corrupt, truncated or mismatched input */
	STATUS_LIMIT = 4,  /* memory, declared size, disk full */
	STATUS_AGAIN = 75, /* stopped on request after saving: run me again */
};

struct error {
	int status;     /* enum status; 0 while nothing has failed */
	char text[480]; /* "FILE: what is wrong, what was expected" */
};

/* Record a failure and return -1, so that callers can `return fail(...)`.
 * The first failure wins: a later one does not overwrite it. */
int fail(struct error *e, int status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same with ": strerror(errno)" appended.  ENOSPC, EDQUOT, EFBIG and ENOMEM
 * give STATUS_LIMIT, all else STATUS_FAIL. */
int fail_errno(struct error *e, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Text from files and file names may hold anything: control bytes come out as \xNN, so that what is printed keeps
 * to its line and harms no terminal. */
void put_escaped(const char *s, FILE *f);

/* Messages of tools.  program_name is set first thing in main. */
extern const char *program_name;
extern int verbosity; /* -1 quiet (-q), 0 normal, 1.. verbose (-v) */
extern bool line_shown; /* progress.c: an unfinished line stands on stderr; messages clear it */
/* "NAME: text" on stderr; control bytes of file names are escaped. */
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same, only when verbosity >= level. */
void note(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Print e->text as one line and return e->status: `return report(&e);` ends a main. */
int report(const struct error *e);
/* Flush and close stdout, checking both; returns status, or STATUS_FAIL/LIMIT after
 * a message when a write had failed.  The last call of every main. */
int finish(int status);

/* Memory.  NULL with e filled (STATUS_LIMIT) when there is none; sizes are checked
 * for overflow.  mem_zero's memory is filled with zeros; alignment is malloc's. */
void *mem_alloc(size_t count, size_t size, struct error *e);
void *mem_zero(size_t count, size_t size, struct error *e);
void *mem_grow(void *old, size_t count, size_t size, struct error *e); /* old stays valid on failure */
char *mem_string(const char *s, struct error *e);
/* Room for `need` items in an array that grows: nothing to do where cap says that there is, else twice what there was
 * or more.  What is new is not initialised; the array stays valid on failure.  *array is moved, *cap counts items. */
#define ARRAY_ROOM(array, need, cap, e) array_room(&(array), need, cap, sizeof *(array), e)
int array_room(void *array, size_t need, size_t *cap, size_t size, struct error *e); /* array: address of the pointer */

/* A growing byte buffer; zero-initialise, free with buf_free.  One NUL always follows
 * the n bytes once anything was added, so that text can be used as a C string. */
struct buf {
	uint8_t *p;
	size_t n, cap;
};
int buf_reserve(struct buf *b, size_t extra, struct error *e);
int buf_add(struct buf *b, const void *p, size_t n, struct error *e);
int buf_set(struct buf *b, const void *p, size_t n, struct error *e);
int buf_printf(struct buf *b, struct error *e, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void buf_free(struct buf *b);

/* Numbers: the whole string or an error; no rubbish after it, no overflow, no NaN.
 * parse_int takes K, M, G (powers of 1000) and Ki, Mi, Gi (powers of 1024). */
int parse_int(const char *s, int64_t min, int64_t max, int64_t *out, struct error *e);
int parse_real(const char *s, double min, double max, double *out, struct error *e);

/* Lists of names, "a|b|c".  Name i and its length; NULL when there are fewer, or no list.  The number of a name; -1: none. */
const char *choice_name(const char *list, int i, size_t *n);
int choice_number(const char *list, const char *name);

/* The ending of a noun of which there are n: "%llu record%s". */
static inline const char *plural(uint64_t n) { return n == 1 ? "" : "s"; }

/* Files.  read_full and write_full hide EINTR and short transfers.
 * read_full returns the bytes read (less than n only at end of file) or -1. */
int64_t read_full(int fd, void *p, size_t n, const char *name, struct error *e);
int write_full(int fd, const void *p, size_t n, const char *name, struct error *e);
/* Exactly n bytes at `offset` of a regular file: STATUS_BAD when it has become shorter. */
int read_at(int fd, void *p, size_t n, uint64_t offset, const char *name, struct error *e);
/* A whole file (or stdin for "-") into memory, at most limit bytes. */
int read_file(const char *path, size_t limit, struct buf *out, struct error *e);

/* An output that appears whole or not at all: path NULL or "-" is stdout; otherwise a
 * temporary file in the same folder, renamed into place by outfile_commit (which also
 * fsyncs file and folder).  A path that exists and is not a regular file (/dev/full, a
 * FIFO) is written directly.  Unfinished temporary files are also removed when a signal
 * ends the program. */
struct outfile {
	int fd;
	bool regular;    /* writes a new regular file */
	bool relaxed;    /* set after opening: no fsync, for many small files that can be made again */
	char *path;      /* final name; "stdout" for messages when there is none */
	char *temporary; /* NULL when writing directly */
};
int outfile_open(struct outfile *f, const char *path, struct error *e);
int outfile_commit(struct outfile *f, struct error *e);
void outfile_abort(struct outfile *f);
/* All of it at once. */
int write_file(const char *path, const void *p, size_t n, bool relaxed, struct error *e);

/* Signals.  signals_install: SIGINT/SIGTERM/SIGHUP remove temporary files and die.
 * signals_defer: for trainers, SIGTERM, SIGUSR1 and the first SIGINT only set stop_requested. */
extern volatile sig_atomic_t stop_requested;
void signals_install(void);
void signals_defer(void);

double seconds_now(void); /* monotonic */

/* The least multiple of step that is not below n. */
static inline size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

static inline float squared_distance(const float *a, const float *b, size_t n)
{
	float sum = 0;
#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
