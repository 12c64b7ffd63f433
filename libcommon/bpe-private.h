/* bpe-private.h - what the files of the BPE organ share: bpe.c (merging, encoding, decoding),
 * bpe-file.c (the vocabulary file), bpe-clip.c (published CLIP vocabularies and their words),
 * bpe-train.c (training).  Nobody else includes it. */
#ifndef BPE_PRIVATE_H
#define BPE_PRIVATE_H

#include "bpe.h"

#define BPE_NONE UINT32_MAX /* no rank, no token */

struct bpe {
	enum bpe_rule rule;
	uint32_t size, merges;
	uint32_t *left, *right, *made; /* (merges): rank -> the pair and its token */
	uint64_t *pairs;               /* hash table of (left, right) -> rank, see bpe_rank */
	int pair_shift;
	uint32_t *start;               /* (size + 1): token -> its bytes text[start[id] .. start[id + 1]) */
	uint8_t *text;
	uint32_t inner[256], last[256]; /* byte -> symbol within a word, at its end (they differ in CLIP) */
	uint8_t fold[256];              /* byte -> lower case */
	uint8_t letter[256];            /* the same for bytes that may be merged, else 0 */
	uint32_t opening, closing;      /* tokens at both ends of every text, or BPE_NONE */
	char id[ID_LENGTH + 1];
};

/* Rank of the merge of two neighbours, or BPE_NONE.  One 64-bit word holds left (20 bits),
 * right (20) and rank (24): 16 k merges are 256 KiB, which stays in the second cache. */
static inline uint64_t bpe_pair_key(uint32_t left, uint32_t right)
{
	return (uint64_t)left << 20 | right;
}

static inline uint64_t bpe_pair_slot(uint64_t key, int shift)
{
	return (key ^ key >> 19) * 0x9E3779B97F4A7C15u >> shift;
}

static inline uint32_t bpe_rank(const struct bpe *b, uint32_t left, uint32_t right)
{
	uint64_t key = bpe_pair_key(left, right), mask = (1ull << (64 - b->pair_shift)) - 1;
	for (uint64_t slot = bpe_pair_slot(key, b->pair_shift);; slot = (slot + 1) & mask) {
		uint64_t entry = b->pairs[slot];
		if (entry >> 24 == key)
			return entry & 0xFFFFFF;
		if (entry == UINT64_MAX)
			return BPE_NONE;
	}
}

/* An empty vocabulary with room for `merges` merges, `size` tokens and `bytes` of token text. */
struct bpe *bpe_new(enum bpe_rule rule, uint32_t merges, uint32_t size, size_t bytes, struct error *e);
/* Fill tables, symbols and token texts of the bytes: for a vocabulary of rule paper or wide. */
void bpe_set_bytes(struct bpe *b);
/* The next merge: appends the pair, makes token 256 + rank with its text.  -1 when the pair is
 * there already (nothing is recorded in that case). */
int bpe_add_merge(struct bpe *b, uint32_t left, uint32_t right, uint32_t made);
/* Append the text of token b->size, growing size. */
void bpe_add_token(struct bpe *b, const void *text, size_t n);
/* Compute the identity once all merges are in. */
int bpe_seal(struct bpe *b, struct error *e);

/* CLIP (bpe-clip.c). */
struct bpe *bpe_open_clip(const char *folder, struct error *e);
/* Caption -> lower-cased text with single spaces, in *out. */
int clip_normalise(const void *text, size_t n, struct buf *out, struct error *e);
/* Length of the word at the start of normalised text (n > 0), after *skip bytes of space. */
size_t clip_word(const uint8_t *text, size_t n, size_t *skip);

#endif
