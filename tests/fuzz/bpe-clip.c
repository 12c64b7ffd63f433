/* bpe-clip.c - vocabularies of published CLIP models.  The input: a line of text, which is encoded, then lines that replace
 * the merges, then after a zero byte JSON members that are added to a vocabulary of all bytes (or, when that begins with
 * "{", the whole vocab.json). */
#include "fuzz-bpe.h"
#include "fuzz.h"

static struct buf golden;

/* The published vocabulary with these members more. */
static void put_vocabulary(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf all = {0};
	size_t end = golden.n;
	if (n && *p == '{') {
		fuzz_put("vocab.json", p, n);
		return;
	}
	while (end && golden.p[end - 1] != '}')
		end--;
	MUST(end && buf_add(&all, golden.p, end - 1, &e) == 0 && buf_add(&all, p, n, &e) == 0 && buf_add(&all, "}", 1, &e) == 0);
	fuzz_put("vocab.json", all.p, all.n);
	buf_free(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	const uint8_t *rest, *merges, *json;
	size_t rest_n, merges_n, json_n;
	if (!golden.n)
		golden = fuzz_load("tests/golden/clip-bpe/vocab.json");
	size_t text_n = fuzz_cut(p, n, '\n', &rest, &rest_n);
	merges = rest;
	merges_n = fuzz_cut(rest, rest_n, 0, &json, &json_n);
	fuzz_put("merges.txt", merges, merges_n);
	put_vocabulary(json, json_n);
	struct bpe *b = bpe_open(fuzz_folder(), &e);
	MUST(b || e.status);
	if (b)
		fuzz_text(b, p, text_n);
	bpe_close(b);
	return 0;
}
