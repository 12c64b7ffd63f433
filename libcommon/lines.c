/* lines.c - see lines.h. */
#include "lines.h"
#include "source.h"
#include "stream.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { BLOCK = 1 << 18 };

struct lines {
	char *const *files;
	int n, index; /* operand being read; -1 before the first */
	int fd;       /* -1: none open */
	char end;
	bool eof, seen; /* of the open operand: its end, its first block */
	struct buf in; /* in.p[at .. in.n) is read and not yet given out */
	size_t at, searched; /* no line end in in.p[at .. searched) */
	uint64_t number, done, total;
};

/* ---- lists ---- */

/* The length of p up to its first tab; *next is what follows it, NULL when there is none. */
static size_t column(const uint8_t *p, const uint8_t *end, const uint8_t **next)
{
	const uint8_t *tab = p < end ? memchr(p, '\t', (size_t)(end - p)) : NULL;
	*next = tab ? tab + 1 : NULL;
	return (size_t)((tab ? tab : end) - p);
}

bool list_split(struct list_line *out, const uint8_t *p, size_t n)
{
	const uint8_t *end = p + n, *rest;
	*out = (struct list_line){.name = p};
	out->name_n = column(p, end, &out->caption);
	if (!out->caption)
		return false;
	out->caption_n = column(out->caption, end, &out->key);
	out->key_n = out->key ? column(out->key, end, &rest) : 0;
	return true;
}

/* The bytes before the extension of a picture with its dot, of which a base name is left; n when there is none. */
static size_t before_extension(const uint8_t *p, size_t n)
{
	static const char *const known[] = {"png", "jpg", "jpeg", "jpe", "jfif", "ppm", "pgm", "pbm", "pnm", "pam", "webp", "gif",
	                                    "bmp", "tif", "tiff"};
	size_t dot = n;
	while (dot && p[dot - 1] != '.' && p[dot - 1] != '/')
		dot--;
	if (dot < 2 || p[dot - 1] != '.' || p[dot - 2] == '/')
		return n;
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (strlen(known[i]) == n - dot && strncasecmp(known[i], (const char *)p + dot, n - dot) == 0)
			return dot - 1;
	return n;
}

bool list_names_picture(const uint8_t *name, size_t n)
{
	return before_extension(name, n) < n;
}

int list_key(struct buf *key, const struct list_line *l, struct error *e)
{
	if (l->key_n)
		return buf_set(key, l->key, l->key_n, e);
	size_t n = before_extension(l->name, l->name_n), from = n;
	while (n < l->name_n && from && l->name[from - 1] != '/')
		from--;
	return n == l->name_n ? buf_set(key, l->name, n, e) : buf_set(key, l->name + from, n - from, e);
}

/* ---- lines ---- */

static char *const stdin_operand[] = {"-"};

static const char *operand_name(const struct lines *l, int index)
{
	return strcmp(l->files[index], "-") == 0 ? "stdin" : l->files[index];
}

struct lines *lines_open(char *const *files, int n, char end, struct error *e)
{
	struct lines *l = mem_zero(1, sizeof *l, e);
	if (!l)
		return NULL;
	l->files = n ? files : stdin_operand;
	l->n = n ? n : 1;
	l->index = l->fd = -1;
	l->end = end;
	l->eof = true;
	if (source_total(l->files, l->n, &l->total, e) || buf_reserve(&l->in, BLOCK, e)) {
		lines_close(l);
		return NULL;
	}
	return l;
}

static int close_operand(struct lines *l, struct error *e)
{
	int fd = l->fd;
	l->fd = -1;
	return fd > STDERR_FILENO && close(fd) ? fail_errno(e, "%s", lines_name(l)) : 0;
}

static int open_operand(struct lines *l, struct error *e)
{
	const char *path = l->files[++l->index];
	int is_stream = stream_detect(path, e);
	if (is_stream < 0)
		return -1;
	if (is_stream)
		return fail(e, STATUS_BAD, "%s: is a token stream, expected lines of text as in the files before it", lines_name(l));
	l->fd = source_input(path, l->in.p, &l->in.n, e);
	if (l->fd < 0)
		return -1;
	l->at = l->searched = 0;
	l->eof = l->seen = false;
	return 0;
}

/* No text: a NUL byte that ends no line, or more control bytes than any text has.  Looked for in the first block of
 * each file, so that a model or a picture is not taken for captions. */
static bool is_text(const struct lines *l)
{
	size_t controls = 0;
	for (size_t i = 0; i < l->in.n; i++) {
		uint8_t c = l->in.p[i];
		bool space = (c >= '\t' && c <= '\r') || c == '\033';
		if (c == 0 && l->end != 0)
			return false;
		controls += c < ' ' && c != (uint8_t)l->end && !space;
	}
	return controls <= l->in.n / 20;
}

static int read_more(struct lines *l, struct error *e)
{
	memmove(l->in.p, l->in.p + l->at, l->in.n - l->at);
	l->in.n -= l->at;
	l->searched -= l->at;
	l->at = 0;
	if (buf_reserve(&l->in, BLOCK, e))
		return -1;
	ssize_t k;
	do
		k = read(l->fd, l->in.p + l->in.n, BLOCK); /* what a pipe or a person has ready */
	while (k < 0 && errno == EINTR);
	if (k < 0)
		return fail_errno(e, "%s", lines_name(l));
	l->in.n += (size_t)k;
	l->eof = k == 0;
	if (!l->seen && !is_text(l))
		return fail(e, STATUS_BAD, "%s: is not text, expected one caption a line", lines_name(l));
	l->seen = true;
	return 0;
}

static int give_line(struct lines *l, size_t end, size_t next, const uint8_t **p, size_t *n, struct error *e)
{
	l->number++;
	*p = l->in.p + l->at;
	*n = end - l->at;
	l->done += next - l->at;
	l->at = l->searched = next;
	if (l->end == '\n' && *n && (*p)[*n - 1] == '\r')
		--*n;
	if (*n > STREAM_MAX_TEXT)
		return fail(e, STATUS_LIMIT, "%s: line %llu is longer than %d bytes", lines_name(l),
			(unsigned long long)l->number, STREAM_MAX_TEXT);
	return 1;
}

int lines_next(struct lines *l, const uint8_t **p, size_t *n, struct error *e)
{
	for (;;) {
		const uint8_t *found = l->searched < l->in.n
			? memchr(l->in.p + l->searched, l->end, l->in.n - l->searched) : NULL;
		size_t end = found ? (size_t)(found - l->in.p) : l->in.n;
		if (found)
			return give_line(l, end, end + 1, p, n, e);
		l->searched = l->in.n;
		/* Longer than the limit and no end in sight: no need to read it all. */
		if (l->eof ? l->at < l->in.n : l->in.n - l->at > STREAM_MAX_TEXT + 1)
			return give_line(l, end, end, p, n, e);
		if (!l->eof) {
			if (read_more(l, e))
				return -1;
			continue;
		}
		if (close_operand(l, e))
			return -1;
		if (l->index + 1 == l->n)
			return 0;
		if (open_operand(l, e))
			return -1;
	}
}

int lines_caption(const struct lines *l, bool tab, const uint8_t *p, size_t n, struct list_line *out, struct error *e)
{
	bool has_tab = list_split(out, p, n);
	bool first = lines_number(l) == 1;
	if (tab && first && n && !has_tab && !list_names_picture(p, n))
		return fail(e, STATUS_BAD, "%s: is no list of captions: line 1 has no tab and names no picture, expected NAME<TAB>CAPTION",
		            lines_name(l));
	if (!tab && first && has_tab)
		return fail(e, STATUS_USAGE, "%s: line 1 has a tab, expected a caption alone; give -t for lines of NAME<TAB>CAPTION",
		            lines_name(l));
	if (!tab)
		*out = (struct list_line){.caption = p, .caption_n = n};
	return !tab || n;
}

uint64_t lines_number(const struct lines *l)
{
	return l->number;
}

const char *lines_name(const struct lines *l)
{
	return operand_name(l, l->index < 0 ? 0 : l->index);
}

void lines_progress(const struct lines *l, uint64_t *done, uint64_t *total)
{
	*done = l->done;
	*total = l->total;
}

void lines_close(struct lines *l)
{
	if (!l)
		return;
	if (l->fd > STDERR_FILENO)
		close(l->fd);
	buf_free(&l->in);
	free(l);
}

int text_repair(const uint8_t *p, size_t n, struct buf *out, struct error *e)
{
	if (buf_set(out, "", 0, e))
		return -1;
	if (utf8_valid(p, n))
		return buf_add(out, p, n, e);
	for (size_t i = 0; i < n;) {
		size_t k = 1;
		while (k <= 4 && (k > n - i || !utf8_valid(p + i, k)))
			k++;
		if (k <= 4 ? buf_add(out, p + i, k, e) : buf_add(out, "\xEF\xBF\xBD", 3, e))
			return -1;
		i += k <= 4 ? k : 1;
	}
	return 1;
}
