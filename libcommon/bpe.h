/* bpe.h - byte-pair encoding of captions: training a vocabulary, encoding with and without
 * BPE dropout, decoding.  Paper 2 and B.2: captions are lower-cased, cut into words, and each
 * word is a row of bytes whose neighbours are merged, lowest rank first, leftmost first.
 *
 *	struct bpe *b = bpe_open("words.bpe", &e);           read-only, shared by all threads
 *	struct bpe_coder *c = bpe_coder_new(b, &e);          one for each thread
 *	bpe_encode(c, text, n, 0.1, seed, record, &tokens, &e);
 *	bpe_decode(b, tokens.v, tokens.n, &text, &e);
 *	bpe_coder_free(c); bpe_close(b);
 *
 * Tokens 0..255 are the bytes, so any text, valid UTF-8 or not, has an encoding, and decoding
 * gives the lower-cased text back, byte for byte.  Token 256 + i is what merge i makes.
 * There are no padding, start or end tokens: pads belong to the transformer.  (Vocabularies
 * of published CLIP models number their tokens as their files say, and have both ends.) */
#ifndef BPE_H
#define BPE_H

#include "stream.h"

enum {
	BPE_MAX_SIZE = 1 << 20,  /* tokens in a vocabulary */
	BPE_MAX_TOKEN = 256,     /* bytes of a token */
	BPE_MAX_FILE = 1 << 28,  /* bytes of a vocabulary file */
	BPE_MAX_PIECE = 256,     /* bytes of a word while training: longer runs count in pieces */
};

/* The pre-tokenisation rule: which bytes may be merged with each other.  Everything else is a
 * token by itself.  Lower-casing is of A-Z only. */
enum bpe_rule {
	BPE_PAPER, /* runs of a-z (DALL-E's own rule); digits, punctuation, spaces, non-ASCII are single bytes */
	BPE_WIDE,  /* runs of a-z and bytes >= 0x80: for captions in other scripts */
	BPE_CLIP,  /* CLIP's expression, with marks at the end of words; only read, never trained */
};
#define BPE_RULES "paper|wide" /* that can be trained, in the order of the enum */

struct bpe;

/* Read a vocabulary: a file as bpe-train(1) describes it, or a folder that holds `vocab.json` and
 * `merges.txt` of a published CLIP model.  NULL with e: STATUS_BAD names file, line and fault. */
struct bpe *bpe_open(const char *path, struct error *e);
/* The same from n bytes of a vocabulary file; `name` for messages. */
struct bpe *bpe_parse(const void *text, size_t n, const char *name, struct error *e);
void bpe_close(struct bpe *b);

/* Identity: 32 hex digits over rule and merges (not over comments of the file); owned by b. */
const char *bpe_id(const struct bpe *b);
uint32_t bpe_size(const struct bpe *b);
enum bpe_rule bpe_rule(const struct bpe *b);
/* Bytes that token `id` < bpe_size stands for; owned by b. */
const uint8_t *bpe_token(const struct bpe *b, uint32_t id, size_t *n);
/* The vocabulary as bytes of a vocabulary file, appended to *out. */
int bpe_format(const struct bpe *b, struct buf *out, struct error *e);

/* ---- encoding and decoding ---- */

/* A thread's workspace and word cache, over a vocabulary that must outlive it. */
struct bpe_coder;
struct bpe_coder *bpe_coder_new(const struct bpe *b, struct error *e);
void bpe_coder_free(struct bpe_coder *c);

/* Tokens of n bytes of text into *out (replaced; out->present is set; memory is out's own and
 * reused).  Time is linear in n, for hostile text too.
 *
 * dropout P in [0, 1] (paper footnote 5, Provilkov et al. 2020): at each merge step of a word
 * each candidate merge is skipped with probability P; a word is done when all of them are.
 * P = 1 gives bytes.  The draws are a function of (seed, record, offset of the word in the text,
 * step): the same caption gives the same tokens whatever was encoded before.  `record` is any
 * number that tells records apart (bpe_record_number); change `seed` from epoch to epoch.
 * Time grows as 1 / (1 - P). */
int bpe_encode(struct bpe_coder *c, const void *text, size_t n, double dropout, uint64_t seed, uint32_t record,
	struct tokens *out, struct error *e);
/* Shorten to `most` >= 2 tokens (the closing token of CLIP stays); true when something was cut. */
bool bpe_cut(const struct bpe *b, struct tokens *t, size_t most);
/* The number of a record for dropout, from its key: the same in whatever part it is found. */
uint32_t bpe_record_number(const void *key, size_t n);

/* Text of n tokens into *out (replaced).  STATUS_BAD for a token >= bpe_size. */
int bpe_decode(const struct bpe *b, const uint32_t *tokens, size_t n, struct buf *out, struct error *e);

/* ---- training ---- */

struct bpe_counts; /* words and how often each came */
struct bpe_counts *bpe_counts_new(enum bpe_rule rule, struct error *e);
/* Count the words of one caption; words do not reach over the ends of a call. */
int bpe_count(struct bpe_counts *c, const void *text, size_t n, struct error *e);
void bpe_counts_free(struct bpe_counts *c);
/* Merge the most frequent neighbours, one pair after the other, until the vocabulary has `size`
 * tokens or no pair comes min_count times; equal counts: the lowest (left, right) first.  The
 * result depends on the counts only, not on the order of captions.  `progress` (may be NULL) is
 * called now and then with the size reached. */
struct bpe *bpe_train(const struct bpe_counts *c, uint32_t size, uint64_t min_count,
	void (*progress)(void *context, uint32_t size), void *context, struct error *e);

#endif
