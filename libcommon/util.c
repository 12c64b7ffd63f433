/* util.c - see util.h. */
#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const char *program_name = "dalle-tools";
int verbosity;
bool line_shown;
volatile sig_atomic_t stop_requested;

/* Temporary files to unlink from the signal handler.  tok-shuf has the most, 65. */
static char *volatile unfinished[128];

/* ---- errors and messages ---- */

static int errno_status(int err)
{
	return err == ENOSPC || err == EDQUOT || err == EFBIG || err == ENOMEM ? STATUS_LIMIT : STATUS_FAIL;
}

int fail(struct error *e, int status, const char *fmt, ...)
{
	if (e->status)
		return -1;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof e->text, fmt, ap);
	va_end(ap);
	e->status = status;
	return -1;
}

int fail_errno(struct error *e, const char *fmt, ...)
{
	int err = errno;
	if (e->status)
		return -1;
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof e->text)
		snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s", strerror(err));
	e->status = errno_status(err);
	return -1;
}

void put_escaped(const char *s, FILE *f)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		if (c < 32 || c == 127)
			fprintf(f, "\\x%02x", c);
		else
			fputc(c, f);
	}
}

static void message(const char *fmt, va_list ap)
{
	char text[1024];
	vsnprintf(text, sizeof text, fmt, ap);
	fflush(stdout);
	fprintf(stderr, "%s%s: ", line_shown ? "\r\033[K" : "", program_name);
	line_shown = false;
	put_escaped(text, stderr);
	fputc('\n', stderr);
}

void warn(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	message(fmt, ap);
	va_end(ap);
}

void note(int level, const char *fmt, ...)
{
	if (verbosity < level)
		return;
	va_list ap;
	va_start(ap, fmt);
	message(fmt, ap);
	va_end(ap);
}

int report(const struct error *e)
{
	warn("%s", e->text);
	return e->status;
}

int finish(int status)
{
	bool had_error = ferror(stdout) != 0;
	errno = 0;
	/* EBADF from a stdout that was closed before exec matters only if something was
	 * written, which fflush reports; fclose reports what close(2) says. */
	bool flushed = fflush(stdout) == 0;
	int err = errno;
	bool closed = fclose(stdout) == 0;
	if (!closed && flushed && !had_error && errno == EBADF)
		closed = true;
	if (!had_error && flushed && closed)
		return status;
	struct error e = {0};
	errno = err ? err : errno;
	fail_errno(&e, "stdout");
	warn("%s", e.text);
	return status ? status : e.status;
}

/* ---- memory ---- */

void *mem_grow(void *old, size_t count, size_t size, struct error *e)
{
	size_t bytes;
	if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX) {
		fail(e, STATUS_LIMIT, "out of memory: %zu items of %zu bytes asked for", count, size);
		return NULL;
	}
	void *p = realloc(old, bytes ? bytes : 1);
	if (!p)
		fail(e, STATUS_LIMIT, "out of memory: %zu bytes asked for", bytes);
	return p;
}

void *mem_alloc(size_t count, size_t size, struct error *e)
{
	return mem_grow(NULL, count, size, e);
}

void *mem_zero(size_t count, size_t size, struct error *e)
{
	void *p = mem_alloc(count, size, e);
	if (p)
		memset(p, 0, count * size);
	return p;
}

char *mem_string(const char *s, struct error *e)
{
	size_t n = strlen(s) + 1;
	char *p = mem_alloc(n, 1, e);
	return p ? memcpy(p, s, n) : NULL;
}

int array_room(void *array, size_t need, size_t *cap, size_t size, struct error *e)
{
	void *p;
	if (need <= *cap)
		return 0;
	size_t wanted = *cap < 8 ? 16 : *cap > SIZE_MAX / 2 ? SIZE_MAX : 2 * *cap;
	wanted = wanted < need ? need : wanted;
	memcpy(&p, array, sizeof p); /* a pointer to any type */
	p = mem_grow(p, wanted, size, e);
	if (!p)
		return -1;
	memcpy(array, &p, sizeof p);
	*cap = wanted;
	return 0;
}

int buf_reserve(struct buf *b, size_t extra, struct error *e)
{
	size_t need;
	if (__builtin_add_overflow(b->n, extra, &need) || need >= PTRDIFF_MAX)
		return fail(e, STATUS_LIMIT, "out of memory: %zu bytes asked for", extra);
	if (need + 1 <= b->cap)
		return 0;
	size_t cap = b->cap ? b->cap : 64;
	while (cap < need + 1)
		cap += cap / 2;
	uint8_t *p = mem_grow(b->p, cap, 1, e);
	if (!p)
		return -1;
	b->p = p;
	b->cap = cap;
	return 0;
}

int buf_add(struct buf *b, const void *p, size_t n, struct error *e)
{
	if (buf_reserve(b, n, e))
		return -1;
	if (n)
		memcpy(b->p + b->n, p, n);
	b->n += n;
	b->p[b->n] = 0;
	return 0;
}

int buf_set(struct buf *b, const void *p, size_t n, struct error *e)
{
	b->n = 0;
	return buf_add(b, p, n, e);
}

int buf_printf(struct buf *b, struct error *e, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0 || buf_reserve(b, (size_t)n, e))
		return fail(e, STATUS_FAIL, "cannot format text");
	va_start(ap, fmt);
	vsnprintf((char *)b->p + b->n, (size_t)n + 1, fmt, ap);
	va_end(ap);
	b->n += (size_t)n;
	return 0;
}

void buf_free(struct buf *b)
{
	free(b->p);
	*b = (struct buf){0};
}

/* ---- numbers ---- */

static int64_t suffix_factor(const char *s)
{
	int64_t base = s[0] && s[1] == 'i' && !s[2] ? 1024 : s[0] && !s[1] ? 1000 : 0;
	switch (s[0]) {
	case 'K': case 'k': return base;
	case 'M': return base * base;
	case 'G': return base * base * base;
	default: return 0;
	}
}

int parse_int(const char *s, int64_t min, int64_t max, int64_t *out, struct error *e)
{
	char *end;
	errno = 0;
	long long v = strtoll(s, &end, 10);
	int64_t factor = *end ? suffix_factor(end) : 1, r;
	if (end == s || factor == 0 || isspace((unsigned char)*s))
		return fail(e, STATUS_USAGE, "'%s' is not a whole number", s);
	if (errno || __builtin_mul_overflow((int64_t)v, factor, &r) || r < min || r > max)
		return fail(e, STATUS_USAGE, "%s is out of range, expected %lld to %lld", s, (long long)min, (long long)max);
	*out = r;
	return 0;
}

int parse_real(const char *s, double min, double max, double *out, struct error *e)
{
	char *end;
	errno = 0;
	double v = strtod(s, &end);
	if (end == s || *end || isspace((unsigned char)*s) || isnan(v))
		return fail(e, STATUS_USAGE, "'%s' is not a number", s);
	if ((errno && v != 0) || v < min || v > max)
		return fail(e, STATUS_USAGE, "%s is out of range, expected %g to %g", s, min, max);
	*out = v;
	return 0;
}

const char *choice_name(const char *list, int i, size_t *n)
{
	for (; i > 0 && list; i--) {
		list = strchr(list, '|');
		list = list ? list + 1 : NULL;
	}
	*n = list ? strcspn(list, "|") : 0;
	return list;
}

int choice_number(const char *list, const char *name)
{
	size_t n;
	const char *s;
	for (int i = 0; (s = choice_name(list, i, &n)); i++)
		if (n == strlen(name) && strncmp(s, name, n) == 0)
			return i;
	return -1;
}

/* ---- files ---- */

int64_t read_full(int fd, void *p, size_t n, const char *name, struct error *e)
{
	size_t done = 0;
	while (done < n) {
		ssize_t k = read(fd, (char *)p + done, n - done);
		if (k == 0)
			break;
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return fail_errno(e, "%s", name);
		done += (size_t)k;
	}
	return (int64_t)done;
}

int read_at(int fd, void *p, size_t n, uint64_t offset, const char *name, struct error *e)
{
	for (size_t done = 0; done < n;) {
		ssize_t k = pread(fd, (char *)p + done, n - done, (off_t)(offset + done));
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return fail_errno(e, "%s", name);
		if (k == 0)
			return fail(e, STATUS_BAD, "%s: became shorter while it was read", name);
		done += (size_t)k;
	}
	return 0;
}

int write_full(int fd, const void *p, size_t n, const char *name, struct error *e)
{
	size_t done = 0;
	while (done < n) {
		ssize_t k = write(fd, (const char *)p + done, n - done);
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return fail_errno(e, "%s", name);
		done += (size_t)k;
	}
	return 0;
}

static int read_all(int fd, size_t limit, struct buf *out, const char *name, struct error *e)
{
	const size_t step = 1 << 16;
	for (;;) {
		if (buf_reserve(out, step, e))
			return -1;
		int64_t k = read_full(fd, out->p + out->n, step, name, e);
		if (k < 0)
			return -1;
		out->n += (size_t)k;
		out->p[out->n] = 0;
		if (out->n > limit)
			return fail(e, STATUS_LIMIT, "%s: larger than the limit of %zu bytes", name, limit);
		if ((size_t)k < step)
			return 0;
	}
}

int read_file(const char *path, size_t limit, struct buf *out, struct error *e)
{
	bool is_stdin = strcmp(path, "-") == 0;
	const char *name = is_stdin ? "stdin" : path;
	int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(e, "%s", name);
	out->n = 0;
	int r = read_all(fd, limit, out, name, e);
	if (!is_stdin && close(fd) && r == 0)
		return fail_errno(e, "%s", name);
	return r;
}

/* ---- output files ---- */

static void remember(char *path)
{
	for (size_t i = 0; i < ARRAY_LEN(unfinished); i++) {
		if (!unfinished[i]) {
			unfinished[i] = path;
			return;
		}
	}
}

static void forget(const char *path)
{
	for (size_t i = 0; i < ARRAY_LEN(unfinished); i++)
		if (unfinished[i] == path)
			unfinished[i] = NULL;
}

static int open_temporary(struct outfile *f, struct error *e)
{
	size_t n = strlen(f->path) + 16;
	f->temporary = mem_alloc(n, 1, e);
	if (!f->temporary)
		return -1;
	snprintf(f->temporary, n, "%s.tmp-XXXXXX", f->path);
	f->fd = mkstemp(f->temporary);
	if (f->fd < 0)
		return fail_errno(e, "%s", f->path);
	remember(f->temporary);
	mode_t mask = umask(0);
	umask(mask);
	if (fchmod(f->fd, 0666 & ~mask))
		return fail_errno(e, "%s", f->path);
	f->regular = true;
	return 0;
}

int outfile_open(struct outfile *f, const char *path, struct error *e)
{
	struct stat st;
	*f = (struct outfile){.fd = -1};
	bool is_stdout = !path || strcmp(path, "-") == 0;
	f->path = mem_string(is_stdout ? "stdout" : path, e);
	if (!f->path)
		return -1;
	if (is_stdout) {
		f->fd = STDOUT_FILENO;
		f->regular = fstat(f->fd, &st) == 0 && S_ISREG(st.st_mode);
		return 0;
	}
	int r;
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		r = fail(e, STATUS_FAIL, "%s: is a directory", path);
	else if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		r = (f->fd = open(path, O_WRONLY | O_CLOEXEC)) < 0 ? fail_errno(e, "%s", path) : 0;
	else
		r = open_temporary(f, e);
	if (r)
		outfile_abort(f);
	return r;
}

/* The rename is durable only once the folder that holds the name is on disk too. */
static int sync_folder(const char *path, struct error *e)
{
	char *copy = mem_string(path, e);
	if (!copy)
		return -1;
	int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(copy);
	if (fd < 0)
		return fail_errno(e, "%s: folder", path);
	int r = fsync(fd) && errno != EINVAL ? fail_errno(e, "%s: folder", path) : 0;
	close(fd);
	return r;
}

static int close_checked(struct outfile *f, struct error *e)
{
	int fd = f->fd;
	f->fd = -1;
	return close(fd) ? fail_errno(e, "%s", f->path) : 0;
}

int outfile_commit(struct outfile *f, struct error *e)
{
	int r = 0;
	if (f->fd == STDOUT_FILENO && !f->temporary) {
		/* Closed and checked here, because a deferred write error of NFS or a quota
		 * shows only now; /dev/null keeps the number taken for stdio's own close. */
		if (close(STDOUT_FILENO))
			r = fail_errno(e, "stdout");
		(void)!open("/dev/null", O_WRONLY);
		f->fd = -1;
	} else if (!f->temporary) {
		r = close_checked(f, e);
	} else if (!f->relaxed && fsync(f->fd)) {
		r = fail_errno(e, "%s", f->path);
	} else if (close_checked(f, e)) {
		r = -1;
	} else if (rename(f->temporary, f->path)) {
		r = fail_errno(e, "%s", f->path);
	} else {
		forget(f->temporary);
		free(f->temporary);
		f->temporary = NULL;
		r = f->relaxed ? 0 : sync_folder(f->path, e);
	}
	outfile_abort(f);
	return r;
}

void outfile_abort(struct outfile *f)
{
	if (f->temporary) {
		unlink(f->temporary);
		forget(f->temporary);
		free(f->temporary);
	}
	if (f->fd > STDERR_FILENO)
		close(f->fd);
	free(f->path);
	*f = (struct outfile){.fd = -1};
}

int write_file(const char *path, const void *p, size_t n, bool relaxed, struct error *e)
{
	struct outfile f;
	if (outfile_open(&f, path, e))
		return -1;
	f.relaxed = relaxed;
	if (write_full(f.fd, p, n, f.path, e) == 0)
		return outfile_commit(&f, e);
	outfile_abort(&f);
	return -1;
}

/* ---- signals and time ---- */

static void on_fatal_signal(int sig)
{
	for (size_t i = 0; i < ARRAY_LEN(unfinished); i++)
		if (unfinished[i])
			unlink(unfinished[i]);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* A second signal ends the program at once, but not one right after the first: timeout(1) sends two. */
static void on_stop_signal(int sig)
{
	static double asked;
	if (stop_requested && seconds_now() - asked > 1)
		on_fatal_signal(sig);
	if (!stop_requested)
		asked = seconds_now();
	stop_requested = sig;
}

static void install(int sig, void (*handler)(int))
{
	struct sigaction sa, old;
	if (sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_IGN)
		return; /* nohup and the like stay in force */
	memset(&sa, 0, sizeof sa);
	sa.sa_handler = handler;
	sa.sa_flags = SA_RESTART; /* a line of the log that a slow pipe holds up is not lost to a stop */
	sigemptyset(&sa.sa_mask);
	sigaction(sig, &sa, NULL);
}

void signals_install(void)
{
	static const int fatal[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ, SIGXCPU};
	for (size_t i = 0; i < ARRAY_LEN(fatal); i++)
		install(fatal[i], on_fatal_signal);
	signal(SIGXFSZ, SIG_IGN); /* the write fails with EFBIG instead, and says so */
}

void signals_defer(void)
{
	install(SIGINT, on_stop_signal);
	install(SIGTERM, on_stop_signal);
	install(SIGUSR1, on_stop_signal);
}

double seconds_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
