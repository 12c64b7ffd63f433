/* input.c - see input.h. */
#include "input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BUFFER = 1 << 16 };

int input_open(struct input *s, const char *path, struct error *e)
{
	bool is_stdin = strcmp(path, "-") == 0;
	*s = (struct input){.fd = STDIN_FILENO, .name = is_stdin ? "stdin" : path};
	if (!is_stdin && (s->fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return fail_errno(e, "%s", path);
	s->buffer = mem_alloc(BUFFER, 1, e);
	if (!s->buffer) {
		input_close(s);
		return -1;
	}
	s->data = s->buffer;
	return 0;
}

void input_memory(struct input *s, const void *p, size_t n, const char *name)
{
	*s = (struct input){.fd = -1, .name = name, .data = p, .end = n, .finished = true};
}

void input_close(struct input *s)
{
	if (s->fd > STDIN_FILENO)
		close(s->fd);
	free(s->buffer);
	*s = (struct input){.fd = -1};
}

/* At least n bytes in the buffer, or all there are. */
static int fill(struct input *s, size_t n, struct error *e)
{
	if (s->end - s->at >= n || s->finished)
		return 0;
	memmove(s->buffer, s->buffer + s->at, s->end - s->at);
	s->end -= s->at;
	s->at = 0;
	while (s->end < n) {
		/* One read, not a full buffer: a pipe may deliver line by line. */
		ssize_t k = read(s->fd, s->buffer + s->end, BUFFER - s->end);
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return fail_errno(e, "%s", s->name);
		s->end += (size_t)k;
		if (k == 0) {
			s->finished = true;
			break;
		}
	}
	return 0;
}

const uint8_t *input_peek(struct input *s, size_t n, size_t *got, struct error *e)
{
	if (fill(s, n, e))
		return NULL;
	*got = s->end - s->at < n ? s->end - s->at : n;
	return s->data + s->at;
}

int64_t input_read(struct input *s, void *p, size_t n, struct error *e)
{
	size_t held = s->end - s->at < n ? s->end - s->at : n;
	if (held)
		memcpy(p, s->data + s->at, held);
	s->at += held;
	if (held == n || s->finished)
		return (int64_t)held;
	int64_t more = read_full(s->fd, (uint8_t *)p + held, n - held, s->name, e);
	return more < 0 ? -1 : (int64_t)held + more;
}

int64_t input_skip(struct input *s, uint64_t n, struct error *e)
{
	uint64_t done = 0;
	while (done < n) {
		size_t got, want = n - done < INPUT_AHEAD ? (size_t)(n - done) : INPUT_AHEAD;
		if (!input_peek(s, want, &got, e))
			return -1;
		if (got == 0)
			break;
		s->at += got;
		done += got;
	}
	return (int64_t)done;
}

int input_byte(struct input *s, struct error *e)
{
	if (s->at == s->end && fill(s, 1, e))
		return -2;
	return s->at < s->end ? s->data[s->at++] : -1;
}

int input_line(struct input *s, struct buf *line, size_t limit, struct error *e)
{
	line->n = 0;
	for (;;) {
		if (s->at == s->end && fill(s, 1, e))
			return -1;
		size_t held = s->end - s->at;
		if (held == 0 && line->n == 0)
			return 0;
		const uint8_t *from = s->data + s->at, *newline = held ? memchr(from, '\n', held) : NULL;
		size_t take = newline ? (size_t)(newline - from) : held;
		if (line->n + take > limit)
			return fail(e, STATUS_BAD, "%s: a line is longer than %zu bytes, expected text", s->name, limit);
		if (buf_add(line, from, take, e))
			return -1;
		s->at += take + (newline != NULL);
		if (newline || held == 0)
			break;
	}
	if (line->n && line->p[line->n - 1] == '\r')
		line->p[--line->n] = 0;
	return 1;
}
