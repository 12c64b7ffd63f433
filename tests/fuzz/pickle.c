/* pickle.c - pickles of torch.save in containers that are made here around them, checksums, directory and all.  The first
 * byte chooses: 0 a zip archive, 1 one with 64-bit sizes, 2 the old container (then bits 2 and 3 say how many storages it
 * lists).  Storages "0" to "3" have 16 elements of 4, 2, 8 and 1 bytes. */
#include "fuzz.h"

#include <zlib.h>

enum { ELEMENTS = 16, STORAGES = 4 };
static const uint8_t numbers[8 * ELEMENTS] = {1, 2, 3};
static const size_t widths[STORAGES] = {4, 2, 8, 1};

struct member {
	char name[24];
	const uint8_t *p;
	size_t n, at;
};

static void put(struct buf *b, int bytes, uint64_t v)
{
	struct error e = {0};
	MUST(buf_add(b, &v, (size_t)bytes, &e) == 0);
}

static void put_bytes(struct buf *b, const void *p, size_t n)
{
	struct error e = {0};
	MUST(buf_add(b, p, n, &e) == 0);
}

/* What local headers and the directory share: version, flags, method, time, date, CRC, sizes, length of the name, extra. */
static void put_common(struct buf *b, const struct member *m, bool wide, size_t extra)
{
	put(b, 8, 0);
	put(b, 2, 0);
	put(b, 4, crc32(crc32(0, NULL, 0), m->p, (uInt)m->n));
	put(b, 4, wide ? UINT32_MAX : m->n);
	put(b, 4, wide ? UINT32_MAX : m->n);
	put(b, 2, strlen(m->name));
	put(b, 2, extra);
}

static void put_entry(struct buf *b, const struct member *m, bool wide)
{
	put(b, 4, 0x02014b50);
	put(b, 2, 0);
	put_common(b, m, wide, wide ? 28 : 0);
	put(b, 8, 0);
	put(b, 2, 0);
	put(b, 4, wide ? UINT32_MAX : m->at);
	put_bytes(b, m->name, strlen(m->name));
	if (!wide)
		return;
	put(b, 2, 1);
	put(b, 2, 24);
	put(b, 8, m->n);
	put(b, 8, m->n);
	put(b, 8, m->at);
}

/* The end record of 64-bit archives and its locator. */
static void put_end64(struct buf *b, size_t count, size_t size, size_t directory)
{
	size_t at = b->n;
	put(b, 4, 0x06064b50);
	put(b, 8, 44);
	put(b, 8, 0);
	put(b, 4, 0);
	put(b, 8, count);
	put(b, 8, count);
	put(b, 8, size);
	put(b, 8, directory);
	put(b, 4, 0x07064b50);
	put(b, 4, 0);
	put(b, 8, at);
	put(b, 4, 1);
}

static void make_zip(struct buf *b, struct member *members, size_t count, bool wide)
{
	for (size_t i = 0; i < count; i++) {
		struct member *m = &members[i];
		m->at = b->n;
		put(b, 4, 0x04034b50);
		put_common(b, m, false, 0);
		put_bytes(b, m->name, strlen(m->name));
		put_bytes(b, m->p, m->n);
	}
	size_t directory = b->n;
	for (size_t i = 0; i < count; i++)
		put_entry(b, &members[i], wide);
	size_t size = b->n - directory;
	if (wide)
		put_end64(b, count, size, directory);
	put(b, 4, 0x06054b50);
	put(b, 4, 0);
	put(b, 2, count);
	put(b, 2, count);
	put(b, 4, wide ? UINT32_MAX : size);
	put(b, 4, wide ? UINT32_MAX : directory);
	put(b, 2, 0);
}

/* Magic, version, machine, the pickle, the keys, the storages. */
static void make_old(struct buf *b, const uint8_t *p, size_t n, size_t storages)
{
	static const char head[] = "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\2M\xe9\3."
	                           "\x80\2}X\x0d\0\0\0little_endian\x88s.";
	put_bytes(b, head, sizeof head - 1);
	put_bytes(b, p, n);
	put_bytes(b, "\x80\2](", 4);
	for (size_t i = 0; i < storages; i++) {
		put_bytes(b, "X\1\0\0\0", 5);
		put(b, 1, '0' + i);
	}
	put_bytes(b, "e.", 2);
	for (size_t i = 0; i < storages; i++) {
		put(b, 8, ELEMENTS);
		put_bytes(b, numbers, ELEMENTS * widths[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct buf file = {0};
	struct member members[3 + STORAGES] = {{"m/data.pkl", p + 1, n - 1, 0}, {"m/byteorder", (const uint8_t *)"little", 6, 0},
	                                       {"m/version", (const uint8_t *)"3\n", 2, 0}};
	if (n == 0)
		return 0;
	for (size_t i = 0; i < STORAGES; i++) {
		struct member *m = &members[3 + i];
		*m = (struct member){.p = numbers, .n = ELEMENTS * widths[i]};
		snprintf(m->name, sizeof m->name, "m/data/%zu", i);
	}
	if (*p & 2)
		make_old(&file, p + 1, n - 1, (*p >> 2 & 3) + 1);
	else
		make_zip(&file, members, ARRAY_LEN(members), *p & 1);
	fuzz_model(fuzz_file(file.p, file.n));
	buf_free(&file);
	return 0;
}
