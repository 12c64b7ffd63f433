/* pickle.c - pickles of torch.save: the input is data.pkl of a zip container, whose checksums and directory are made here,
 * beside storages "0" to "3" of 16 elements of 4, 2, 8 and 1 bytes. */
#include "fuzz.h"

#include <zlib.h>

struct member {
	char name[24];
	const uint8_t *p;
	size_t n;
	uint32_t at;
};

static void put(struct buf *b, int bytes, uint64_t v)
{
	struct error e = {0};
	MUST(buf_add(b, &v, (size_t)bytes, &e) == 0);
}

/* What local headers and the directory share: version, flags, method, time, date, CRC, sizes, length of the name, extra. */
static void put_common(struct buf *b, const struct member *m)
{
	put(b, 8, 0);
	put(b, 2, 0);
	put(b, 4, crc32(crc32(0, NULL, 0), m->p, (uInt)m->n));
	put(b, 4, m->n);
	put(b, 4, m->n);
	put(b, 2, strlen(m->name));
	put(b, 2, 0);
}

static void make_zip(struct buf *b, struct member *members, size_t count)
{
	struct error e = {0};
	for (size_t i = 0; i < count; i++) {
		struct member *m = &members[i];
		m->at = (uint32_t)b->n;
		put(b, 4, 0x04034b50);
		put_common(b, m);
		MUST(buf_add(b, m->name, strlen(m->name), &e) == 0 && buf_add(b, m->p, m->n, &e) == 0);
	}
	size_t directory = b->n;
	for (size_t i = 0; i < count; i++) {
		put(b, 4, 0x02014b50);
		put(b, 2, 0);
		put_common(b, &members[i]);
		put(b, 8, 0);
		put(b, 2, 0);
		put(b, 4, members[i].at);
		MUST(buf_add(b, members[i].name, strlen(members[i].name), &e) == 0);
	}
	size_t size = b->n - directory;
	put(b, 4, 0x06054b50);
	put(b, 4, 0);
	put(b, 2, count);
	put(b, 2, count);
	put(b, 4, size);
	put(b, 4, directory);
	put(b, 2, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const uint8_t data[128] = {1, 2, 3};
	struct buf file = {0};
	struct member members[] = {
		{"m/data.pkl", p, n, 0}, {"m/byteorder", (const uint8_t *)"little", 6, 0}, {"m/version", (const uint8_t *)"3\n", 2, 0},
		{"m/data/0", data, 64, 0}, {"m/data/1", data, 32, 0}, {"m/data/2", data, 128, 0}, {"m/data/3", data, 16, 0},
	};
	make_zip(&file, members, ARRAY_LEN(members));
	fuzz_model(fuzz_file(file.p, file.n));
	buf_free(&file);
	return 0;
}
