/* tar.c - see tar.h. */
#include "tar.h"

#include <stdlib.h>
#include <string.h>

/* ---- header fields ---- */

/* Octal text, or GNU's base 256 for what does not fit; UINT64_MAX when neither. */
static uint64_t number(const uint8_t *p, size_t n)
{
	uint64_t v = 0;
	size_t i = 0;
	if (p[0] & 0x80) {
		v = p[0] & 0x7f;
		for (i = 1; i < n; i++) {
			if (v >> 48)
				return UINT64_MAX;
			v = v << 8 | p[i];
		}
		return v;
	}
	while (i < n && p[i] == ' ')
		i++;
	for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
		v = v * 8 + (uint64_t)(p[i] - '0');
	return i < n && p[i] != 0 && p[i] != ' ' ? UINT64_MAX : v;
}

static uint64_t checksum(const uint8_t *block)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += i >= 148 && i < 156 ? ' ' : block[i];
	return sum;
}

static bool is_zero(const uint8_t *block)
{
	for (size_t i = 0; i < TAR_BLOCK; i++)
		if (block[i])
			return false;
	return true;
}

bool tar_looks_like(const uint8_t *block, size_t n)
{
	return n >= TAR_BLOCK && !is_zero(block) && number(block + 148, 8) == checksum(block);
}

static int damaged(const struct tar *t, const char *what, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: damaged tar archive: %s", t->in->name, what);
}

/* ---- reading ---- */

void tar_open(struct tar *t, struct input *in)
{
	*t = (struct tar){.in = in};
}

void tar_free(struct tar *t)
{
	buf_free(&t->name);
}

static int skip_rest(struct tar *t, struct error *e)
{
	uint64_t n = t->left + t->padding;
	int64_t got = input_skip(t->in, n, e);
	t->left = t->padding = 0;
	if (got < 0)
		return -1;
	return (uint64_t)got < n ? damaged(t, "ends inside a member", e) : 0;
}

/* The next header that is not zero: 1, 0 at the end, -1. */
static int next_block(struct tar *t, uint8_t block[TAR_BLOCK], struct error *e)
{
	for (;;) {
		int64_t got = input_read(t->in, block, TAR_BLOCK, e);
		if (got < 0)
			return -1;
		if (got == 0 && t->closed)
			return 0;
		if (got < TAR_BLOCK)
			return damaged(t, "ends before its end blocks: truncated", e);
		if (!is_zero(block))
			break;
		t->closed = true;
	}
	t->closed = false;
	return tar_looks_like(block, TAR_BLOCK) ? 1 : damaged(t, "a header's checksum is wrong", e);
}

static int field_name(struct buf *name, const uint8_t *block, struct error *e)
{
	bool ustar = memcmp(block + 257, "ustar", 6) == 0; /* GNU's "ustar  " has no prefix field */
	size_t prefix = ustar ? strnlen((const char *)block + 345, 155) : 0;
	name->n = 0;
	if (prefix && (buf_add(name, block + 345, prefix, e) || buf_add(name, "/", 1, e)))
		return -1;
	return buf_add(name, block, strnlen((const char *)block, 100), e);
}

/* "LENGTH KEY=VALUE\n" records; of them path and size matter. */
static int parse_pax(struct tar *t, const struct buf *pax, struct buf *path, uint64_t *size, struct error *e)
{
	size_t at = 0;
	while (at < pax->n) {
		char *end;
		const char *line = (const char *)pax->p + at;
		unsigned long length = strtoul(line, &end, 10);
		if (*end != ' ' || length > pax->n - at || length < (size_t)(end - line) + 2 || line[length - 1] != '\n')
			return damaged(t, "a pax header is malformed", e);
		const char *word = end + 1, *stop = line + length - 1;
		if (stop - word > 5 && memcmp(word, "path=", 5) == 0) {
			if (buf_set(path, word + 5, (size_t)(stop - word - 5), e))
				return -1;
		} else if (stop - word > 5 && memcmp(word, "size=", 5) == 0) {
			*size = strtoull(word + 5, NULL, 10);
		}
		at += length;
	}
	return 0;
}

static int begin_member(struct tar *t, uint64_t size, struct error *e)
{
	if (size > (uint64_t)1 << 50)
		return damaged(t, "a member's size is out of range", e);
	t->size = t->left = size;
	t->padding = (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
	return 0;
}

/* One header; what it announces for the next one goes to path and size.  1: a regular file,
 * 2: go on, 0: the end. */
static int next_header(struct tar *t, struct buf *path, uint64_t *size, struct error *e)
{
	uint8_t block[TAR_BLOCK];
	if (skip_rest(t, e))
		return -1;
	int r = next_block(t, block, e);
	if (r != 1)
		return r;
	char type = (char)block[156];
	bool extended = type == 'L' || type == 'x';
	uint64_t own = number(block + 124, 12);
	if (begin_member(t, !extended && *size != UINT64_MAX ? *size : own, e))
		return -1;
	if (extended) {
		struct buf content = {0};
		r = tar_read(t, &content, TAR_MAX_NAME, e);
		if (r == 0 && type == 'x')
			r = parse_pax(t, &content, path, size, e);
		else if (r == 0)
			r = buf_set(path, content.p, strnlen((const char *)content.p, content.n), e);
		buf_free(&content);
		return r ? -1 : 2;
	}
	if (type == 'g') /* for the whole archive: nothing in it matters here */
		return 2;
	if (path->n ? buf_set(&t->name, path->p, path->n, e) : field_name(&t->name, block, e))
		return -1;
	bool regular = type == '0' || type == 0 || type == '7';
	if (!regular)
		path->n = 0, *size = UINT64_MAX;
	return regular && (!t->name.n || t->name.p[t->name.n - 1] != '/') ? 1 : 2;
}

int tar_next(struct tar *t, struct error *e)
{
	struct buf path = {0};
	uint64_t size = UINT64_MAX;
	int r;
	do {
		r = next_header(t, &path, &size, e);
	} while (r == 2);
	buf_free(&path);
	return r;
}

int tar_read(struct tar *t, struct buf *out, size_t limit, struct error *e)
{
	uint64_t n = t->left;
	out->n = 0;
	if (n > limit)
		return fail(e, STATUS_LIMIT, "%s: %.200s: a member of %llu bytes, expected at most %zu", t->in->name,
			    t->name.p ? (char *)t->name.p : "", (unsigned long long)n, limit);
	/* Memory grows with what arrives: a small file may claim a large member. */
	while (out->n < n) {
		size_t step = n - out->n < 1 << 20 ? (size_t)(n - out->n) : 1 << 20;
		if (buf_reserve(out, step, e))
			return -1;
		int64_t got = input_read(t->in, out->p + out->n, step, e);
		if (got < (int64_t)step)
			return got < 0 ? -1 : damaged(t, "ends inside a member", e);
		out->n += step;
		t->left -= step;
	}
	return buf_add(out, "", 0, e);
}

/* ---- writing ---- */

static int add_padded(struct buf *out, const void *p, size_t n, struct error *e)
{
	static const uint8_t zeros[TAR_BLOCK];
	return buf_add(out, p, n, e) || buf_add(out, zeros, (TAR_BLOCK - n % TAR_BLOCK) % TAR_BLOCK, e) ? -1 : 0;
}

static int add_header(struct buf *out, const char *name, char type, size_t size, struct error *e)
{
	char block[TAR_BLOCK] = {0};
	if (size >= (uint64_t)1 << 33)
		return fail(e, STATUS_LIMIT, "%s: too large for a tar archive", name);
	memcpy(block, name, strnlen(name, 100));
	snprintf(block + 100, 8, "%07o", 0644u);
	snprintf(block + 108, 8, "%07o", 0u);
	snprintf(block + 116, 8, "%07o", 0u);
	snprintf(block + 124, 12, "%011llo", (unsigned long long)size);
	snprintf(block + 136, 12, "%011o", 0u);
	block[156] = type;
	memcpy(block + 257, "ustar\00000", 8);
	snprintf(block + 148, 8, "%06o", (unsigned)checksum((const uint8_t *)block));
	block[155] = ' ';
	return buf_add(out, block, TAR_BLOCK, e);
}

static bool needs_pax(const char *name)
{
	if (strlen(name) > 100)
		return true;
	for (; *name; name++)
		if ((unsigned char)*name >= 128)
			return true;
	return false;
}

/* The length that opens a pax record counts its own digits. */
static int add_pax(struct buf *out, const char *name, struct error *e)
{
	struct buf record = {0};
	size_t rest = strlen(" path=\n") + strlen(name), length = rest + 1;
	for (int i = 0; i < 3; i++)
		length = rest + (size_t)snprintf(NULL, 0, "%zu", length);
	int r = buf_printf(&record, e, "%zu path=%s\n", length, name) || add_header(out, "pax", 'x', record.n, e) ||
			add_padded(out, record.p, record.n, e)
		    ? -1
		    : 0;
	buf_free(&record);
	return r;
}

int tar_add(struct buf *out, const char *name, const void *p, size_t n, struct error *e)
{
	if (needs_pax(name) && add_pax(out, name, e))
		return -1;
	return add_header(out, name, '0', n, e) ? -1 : add_padded(out, p, n, e);
}

int tar_end(struct buf *out, struct error *e)
{
	static const uint8_t zeros[2 * TAR_BLOCK];
	return buf_add(out, zeros, sizeof zeros, e);
}
