/* bpe.c - vocabulary files, and texts under them: a file up to a zero byte, the text behind it. */
#include "fuzz-bpe.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf written = {0}, twice = {0};
	const uint8_t *text;
	size_t text_n, file_n = fuzz_cut(p, n, 0, &text, &text_n);
	struct bpe *b = bpe_parse(p, file_n, "fuzz", &e);
	MUST(b || e.status);
	if (!b)
		return 0;
	MUST(bpe_format(b, &written, &e) == 0);
	struct bpe *again = bpe_parse(written.p, written.n, "again", &e);
	MUST(again && strcmp(bpe_id(b), bpe_id(again)) == 0 && bpe_format(again, &twice, &e) == 0);
	MUST(written.n == twice.n && memcmp(written.p, twice.p, twice.n) == 0);
	fuzz_text(b, text, text_n);
	bpe_close(again);
	bpe_close(b);
	buf_free(&written);
	buf_free(&twice);
	return 0;
}
