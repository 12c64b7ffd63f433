/* fuzz-bpe.h - a text under a vocabulary, with and without dropout; for the targets bpe and bpe-clip. */
#ifndef FUZZ_BPE_H
#define FUZZ_BPE_H

#include "../../libcommon/bpe.h"
#include "fuzz.h"

static inline void fuzz_text(const struct bpe *b, const uint8_t *text, size_t n)
{
	static const double dropout[] = {0, 0.3, 1};
	struct error e = {0};
	struct tokens t = {0};
	struct buf back = {0}, first = {0};
	struct bpe_coder *c = bpe_coder_new(b, &e);
	MUST(c);
	for (int i = 0; i < 3; i++) {
		MUST(bpe_encode(c, text, n, dropout[i], 3, 5, &t, &e) == 0);
		for (size_t k = 0; k < t.n; k++)
			MUST(t.v[k] < bpe_size(b));
		MUST(bpe_decode(b, t.v, t.n, &back, &e) == 0);
		if (i == 0)
			MUST(buf_set(&first, back.p, back.n, &e) == 0);
		/* Dropout changes the tokens and never the text. */
		MUST(bpe_rule(b) == BPE_CLIP || (back.n == n && first.n == n && memcmp(first.p, back.p, n) == 0));
	}
	bpe_cut(b, &t, 4);
	bpe_coder_free(c);
	buf_free(&back);
	buf_free(&first);
	free(t.v);
}

#endif
