/* zip.c - see zip.h.  A library such as libarchive would unpack streams; what is needed here is the opposite, the place
 * of each stored file, and that is a table of fixed records. */
#include "zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
	END_BYTES = 22, END64_BYTES = 56, LOCATOR_BYTES = 20, CENTRAL_BYTES = 46, LOCAL_BYTES = 30,
	COMMENT_MAX = 65535,        /* bytes after the end record */
	DIRECTORY_MAX = 1 << 26,    /* bytes */
	ENTRIES_MAX = 1 << 18,
};

static int bad(const struct zip *z, const char *what, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: damaged or truncated zip archive: %s", z->bytes->name, what);
}

bool zip_looks_like(const uint8_t *p, size_t n)
{
	return n >= 4 && memcmp(p, "PK\3\4", 4) == 0;
}

/* ---- the directory ---- */

struct directory {
	uint64_t at, size, count;
};

/* The end record of archives with large numbers, named by a locator right before the ordinary one at `end`. */
static int read_end64(const struct zip *z, uint64_t end, struct directory *d, struct error *e)
{
	uint8_t locator[LOCATOR_BYTES], p[END64_BYTES];
	if (end < LOCATOR_BYTES || bytes_get(z->bytes, locator, sizeof locator, end - LOCATOR_BYTES, e))
		return bad(z, "no room for its zip64 locator", e);
	if (memcmp(locator, "PK\6\7", 4))
		return 0; /* an ordinary archive after all */
	if (bytes_get(z->bytes, p, sizeof p, get_le(locator + 8, 8), e))
		return -1;
	if (memcmp(p, "PK\6\6", 4))
		return bad(z, "no zip64 end record where its locator points", e);
	*d = (struct directory){.at = get_le(p + 48, 8), .size = get_le(p + 40, 8), .count = get_le(p + 32, 8)};
	return 0;
}

static int find_end(const struct zip *z, struct directory *d, struct error *e)
{
	size_t n = END_BYTES + COMMENT_MAX < z->bytes->size ? END_BYTES + COMMENT_MAX : (size_t)z->bytes->size;
	uint64_t from = z->bytes->size - n;
	uint8_t *tail = mem_alloc(n + 1, 1, e);
	if (!tail)
		return -1;
	int r = bytes_get(z->bytes, tail, n, from, e);
	size_t i = n < END_BYTES ? 0 : n - END_BYTES + 1;
	while (r == 0 && i > 0 && memcmp(tail + i - 1, "PK\5\6", 4))
		i--;
	if (r == 0 && i == 0)
		r = bad(z, "no end record", e);
	if (r == 0) {
		const uint8_t *p = tail + i - 1;
		*d = (struct directory){.at = get_le(p + 16, 4), .size = get_le(p + 12, 4), .count = get_le(p + 10, 2)};
		if (d->at == 0xffffffff || d->size == 0xffffffff || d->count == 0xffff)
			r = read_end64(z, from + i - 1, d, e);
	}
	free(tail);
	return r;
}

/* Sizes beyond 32 bits stand in the extra field with tag 1, in this order, and only those whose short form is full. */
static int read_extra(const struct zip *z, struct zip_entry *entry, uint64_t *packed, const uint8_t *p, size_t n,
                      struct error *e)
{
	uint64_t *wide[] = {&entry->size, packed, &entry->header};
	while (n >= 4) {
		size_t tag = (size_t)get_le(p, 2), length = (size_t)get_le(p + 2, 2);
		if (length > n - 4)
			return bad(z, "an extra field is longer than its place", e);
		size_t at = 0;
		for (size_t i = 0; tag == 1 && i < ARRAY_LEN(wide); i++) {
			if (*wide[i] != 0xffffffff)
				continue;
			if (at + 8 > length)
				return bad(z, "a zip64 field is too short", e);
			*wide[i] = get_le(p + 4 + at, 8);
			at += 8;
		}
		p += 4 + length;
		n -= 4 + length;
	}
	return 0;
}

/* The entry at p of `left` bytes; *used gets its length. */
static int read_entry(struct zip *z, const uint8_t *p, size_t left, size_t *used, struct error *e)
{
	if (left < CENTRAL_BYTES || memcmp(p, "PK\1\2", 4))
		return bad(z, "its directory is cut", e);
	size_t name = (size_t)get_le(p + 28, 2), extra = (size_t)get_le(p + 30, 2), comment = (size_t)get_le(p + 32, 2);
	*used = CENTRAL_BYTES + name + extra + comment;
	if (*used > left)
		return bad(z, "its directory is cut", e);
	struct zip_entry *entry = &z->entries[z->count++];
	uint64_t packed = get_le(p + 20, 4);
	*entry = (struct zip_entry){.size = get_le(p + 24, 4), .header = get_le(p + 42, 4), .crc = (uint32_t)get_le(p + 16, 4)};
	if (memchr(p + CENTRAL_BYTES, 0, name))
		return bad(z, "a name with a zero byte", e);
	/* `names` was reserved whole, so that this pointer stays. */
	entry->name = (const char *)z->names.p + z->names.n;
	if (buf_add(&z->names, p + CENTRAL_BYTES, name, e) || buf_add(&z->names, "", 1, e) ||
	    read_extra(z, entry, &packed, p + CENTRAL_BYTES + name, extra, e))
		return -1;
	entry->plain = get_le(p + 10, 2) == 0 && !(p[8] & 1) && packed == entry->size;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct zip_entry *)a)->name, ((const struct zip_entry *)b)->name);
}

static int read_directory(struct zip *z, const struct directory *d, const uint8_t *p, struct error *e)
{
	size_t at = 0, used = 0;
	for (uint64_t i = 0; i < d->count; i++, at += used)
		if (read_entry(z, p + at, (size_t)d->size - at, &used, e))
			return -1;
	qsort(z->entries, z->count, sizeof *z->entries, by_name);
	for (size_t i = 1; i < z->count; i++)
		if (strcmp(z->entries[i - 1].name, z->entries[i].name) == 0)
			return bad(z, "a name stands twice", e);
	return 0;
}

int zip_open(struct zip *z, const struct file_bytes *bytes, struct error *e)
{
	struct directory d = {0};
	*z = (struct zip){.bytes = bytes};
	if (find_end(z, &d, e))
		return -1;
	if (d.size > DIRECTORY_MAX || d.count > ENTRIES_MAX)
		return fail(e, STATUS_LIMIT, "%s: a zip directory of %llu files in %llu bytes is too large", bytes->name,
		            (unsigned long long)d.count, (unsigned long long)d.size);
	if (d.size / CENTRAL_BYTES < d.count)
		return bad(z, "more files than its directory has room for", e);
	uint8_t *p = mem_alloc((size_t)d.size + 1, 1, e);
	z->entries = mem_zero((size_t)d.count + 1, sizeof *z->entries, e);
	int r = p && z->entries && !buf_reserve(&z->names, (size_t)(d.size + d.count) + 1, e) ? 0 : -1;
	if (r == 0)
		r = bytes_get(bytes, p, (size_t)d.size, d.at, e);
	if (r == 0)
		r = read_directory(z, &d, p, e);
	free(p);
	return r;
}

void zip_free(struct zip *z)
{
	free(z->entries);
	buf_free(&z->names);
	*z = (struct zip){0};
}

/* ---- entries ---- */

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
	struct zip_entry key = {.name = name};
	return z->count ? bsearch(&key, z->entries, z->count, sizeof key, by_name) : NULL;
}

int zip_locate(const struct zip *z, const struct zip_entry *entry, uint64_t *at, struct error *e)
{
	uint8_t p[LOCAL_BYTES];
	if (!entry->plain)
		return fail(e, STATUS_BAD, "%s: %.100s in it is compressed or encrypted, expected it plain", z->bytes->name,
		            entry->name);
	if (bytes_get(z->bytes, p, sizeof p, entry->header, e))
		return -1;
	if (!zip_looks_like(p, sizeof p))
		return bad(z, "no file where its directory points", e);
	*at = entry->header + LOCAL_BYTES + get_le(p + 26, 2) + get_le(p + 28, 2);
	if (*at > z->bytes->size || entry->size > z->bytes->size - *at)
		return bad(z, "a file ends after the end of the archive", e);
	return 0;
}

int zip_check(const struct file_bytes *bytes, uint64_t at, uint64_t n, uint32_t crc, const char *what, struct error *e)
{
	enum { CHUNK = 1 << 18 };
	uint8_t *p = mem_alloc(CHUNK, 1, e);
	uLong sum = crc32(0, NULL, 0);
	int r = p ? 0 : -1;
	for (uint64_t done = 0; r == 0 && done < n; done += CHUNK) {
		size_t part = n - done < CHUNK ? (size_t)(n - done) : CHUNK;
		r = bytes_get(bytes, p, part, at + done, e);
		if (r == 0)
			sum = crc32(sum, p, (uInt)part);
	}
	free(p);
	if (r == 0 && sum != crc)
		r = fail(e, STATUS_BAD, "%s: %.100s: is corrupt (CRC-32 %08lx, expected %08lx)", bytes->name, what, sum,
		         (unsigned long)crc);
	return r;
}
