/* bytes.c - see bytes.h. */
#include "bytes.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIPE_LIMIT ((size_t)1 << 36)

static int open_named(struct file_bytes *f, const char *path, const char *expected, struct error *e)
{
	struct stat st;
	bool is_stdin = strcmp(path, "-") == 0;
	if (!is_stdin && stat(path, &st))
		return fail_errno(e, "%s", f->name);
	if (!is_stdin && S_ISDIR(st.st_mode))
		return fail(e, STATUS_BAD, "%s: is a directory, expected %s", f->name, expected);
	/* Some devices have no end: reading them whole would take all memory. */
	if (!is_stdin && (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)))
		return fail(e, STATUS_BAD, "%s: is a device, expected %s", f->name, expected);
	if (is_stdin || !S_ISREG(st.st_mode)) {
		if (read_file(path, PIPE_LIMIT, &f->whole, e))
			return -1;
		f->size = f->whole.n;
		return 0;
	}
	f->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (f->fd < 0 || fstat(f->fd, &st))
		return fail_errno(e, "%s", f->name);
	f->size = (uint64_t)st.st_size;
	return 0;
}

int bytes_open(struct file_bytes *f, const char *path, const char *expected, struct error *e)
{
	*f = (struct file_bytes){.fd = -1};
	f->name = mem_string(strcmp(path, "-") == 0 ? "stdin" : path, e);
	return f->name ? open_named(f, path, expected, e) : -1;
}

int bytes_get(const struct file_bytes *f, void *out, size_t n, uint64_t at, struct error *e)
{
	if (at > f->size || n > f->size - at)
		return fail(e, STATUS_BAD, "%s: is truncated: %llu byte%s, expected %llu", f->name, (unsigned long long)f->size,
		            plural(f->size), (unsigned long long)(at + n));
	if (f->fd >= 0)
		return read_at(f->fd, out, n, at, f->name, e);
	memcpy(out, f->whole.p + at, n);
	return 0;
}

void bytes_close(struct file_bytes *f)
{
	if (f->fd >= 0)
		close(f->fd);
	buf_free(&f->whole);
	free(f->name);
	*f = (struct file_bytes){.fd = -1};
}
