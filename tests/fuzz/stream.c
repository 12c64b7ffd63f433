/* stream.c - the content of token streams: the first byte says how it is laid out in the file, bare or in how many frames,
 * with a seek table behind them. */
#include "fuzz-stream.h"
#include "fuzz.h"

#include <zstd.h>

#include "../../libcommon/seek.h"

static void add_frame(struct buf *file, struct seek_table *table, const uint8_t *p, size_t n, struct error *e)
{
	size_t bound = ZSTD_compressBound(n);
	MUST(buf_reserve(file, bound, e) == 0);
	size_t k = ZSTD_compress(file->p + file->n, bound, p, n, 1);
	MUST(!ZSTD_isError(k) && seek_add(table, k, n, e) == 0);
	file->n += k;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf file = {0};
	struct seek_table table = {0};
	if (n == 0)
		return 0;
	size_t frames = *p & 7;
	p++, n--;
	for (size_t i = 0; i < frames; i++)
		add_frame(&file, &table, p + n * i / frames, n * (i + 1) / frames - n * i / frames, &e);
	if (frames ? seek_encode(&table, &file, &e) : buf_add(&file, p, n, &e))
		abort();
	fuzz_stream(fuzz_file(file.p, file.n));
	buf_free(&file);
	seek_free(&table);
	return 0;
}
