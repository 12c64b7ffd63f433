/* bpe.c - merging, encoding and decoding; see bpe.h.  A text is cut into words; most words
 * are answered by a cache, short ones are merged by scanning for the lowest rank, long ones
 * by lists of positions for each rank, so that no input takes more than linear time.
 * Both ways visit candidates in the same order (rank, then position) and draw the same
 * numbers, so they give the same tokens with dropout too. */
#include "bpe-private.h"
#include "hash.h"
#include "rng.h"

#include <stdlib.h>
#include <string.h>

enum {
	SHORT_WORD = 48, /* symbols merged by scanning; at most 64, the bits of a mask */
	CACHE_BITS = 14,
	CACHED_BYTES = 16,
	CACHED_TOKENS = 11, /* makes an entry a cache line */
	MAX_TEXT = INT32_MAX,
};
#define ENDED (UINT32_MAX - 1)    /* end of a list of positions */
#define UNLISTED UINT32_MAX       /* position in no list */

/* ---- vocabulary ---- */

static void fill_pairs(struct bpe *b)
{
	memset(b->pairs, 0xFF, sizeof *b->pairs << (64 - b->pair_shift));
}

static void set_letters(struct bpe *b)
{
	for (int c = 0; c < 256; c++) {
		b->fold[c] = (uint8_t)(c >= 'A' && c <= 'Z' ? c + 32 : c);
		bool is_letter = (b->fold[c] >= 'a' && b->fold[c] <= 'z') || (b->rule == BPE_WIDE && c >= 0x80);
		b->letter[c] = is_letter ? b->fold[c] : 0;
	}
}

struct bpe *bpe_new(enum bpe_rule rule, uint32_t merges, uint32_t size, size_t bytes, struct error *e)
{
	struct bpe *b = mem_zero(1, sizeof *b, e);
	if (!b)
		return NULL;
	b->rule = rule;
	b->opening = b->closing = BPE_NONE;
	b->pair_shift = 58;
	while (b->pair_shift > 0 && 1ull << (64 - b->pair_shift) < 2ull * merges)
		b->pair_shift--;
	if (!(b->left = mem_alloc(merges, sizeof *b->left, e)) || !(b->right = mem_alloc(merges, sizeof *b->right, e)) ||
		!(b->made = mem_alloc(merges, sizeof *b->made, e)) ||
		!(b->pairs = mem_alloc((size_t)1 << (64 - b->pair_shift), sizeof *b->pairs, e)) ||
		!(b->start = mem_zero((size_t)size + 1, sizeof *b->start, e)) || !(b->text = mem_alloc(bytes, 1, e))) {
		bpe_close(b);
		return NULL;
	}
	fill_pairs(b);
	set_letters(b);
	return b;
}

void bpe_close(struct bpe *b)
{
	if (!b)
		return;
	free(b->left);
	free(b->right);
	free(b->made);
	free(b->pairs);
	free(b->start);
	free(b->text);
	free(b);
}

void bpe_add_token(struct bpe *b, const void *text, size_t n)
{
	if (n)
		memcpy(b->text + b->start[b->size], text, n);
	b->start[b->size + 1] = b->start[b->size] + (uint32_t)n;
	b->size++;
}

void bpe_set_bytes(struct bpe *b)
{
	for (int c = 0; c < 256; c++) {
		uint8_t byte = (uint8_t)c;
		bpe_add_token(b, &byte, 1);
		b->inner[c] = b->last[c] = b->fold[c];
	}
}

int bpe_add_merge(struct bpe *b, uint32_t left, uint32_t right, uint32_t made)
{
	if (bpe_rank(b, left, right) != BPE_NONE)
		return -1;
	uint64_t key = bpe_pair_key(left, right), mask = (1ull << (64 - b->pair_shift)) - 1;
	uint64_t slot = bpe_pair_slot(key, b->pair_shift);
	while (b->pairs[slot] != UINT64_MAX)
		slot = (slot + 1) & mask;
	b->pairs[slot] = key << 24 | b->merges;
	b->left[b->merges] = left;
	b->right[b->merges] = right;
	b->made[b->merges++] = made;
	return 0;
}

/* The identity covers what decides the tokens: rule, texts and merges, as 32-bit little-endian
 * numbers whatever the machine's order. */
int bpe_seal(struct bpe *b, struct error *e)
{
	struct hash *h = hash_new(e);
	if (!h)
		return -1;
	const uint32_t head[3] = {(uint32_t)b->rule, b->size, b->merges};
	for (size_t i = 0; i < 3 + 3 * (size_t)b->merges; i++) {
		const uint32_t *column[3] = {b->left, b->right, b->made};
		uint32_t v = i < 3 ? head[i] : column[i % 3][i / 3 - 1];
		uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
		hash_add(h, bytes, sizeof bytes);
	}
	for (uint32_t id = 0; id < b->size; id++) {
		hash_add(h, b->text + b->start[id], b->start[id + 1] - b->start[id]);
		hash_add(h, "", 1);
	}
	hash_finish(h, b->id);
	return 0;
}

const char *bpe_id(const struct bpe *b)
{
	return b->id;
}

uint32_t bpe_size(const struct bpe *b)
{
	return b->size;
}

enum bpe_rule bpe_rule(const struct bpe *b)
{
	return b->rule;
}

const uint8_t *bpe_token(const struct bpe *b, uint32_t id, size_t *n)
{
	*n = b->start[id + 1] - b->start[id];
	return b->text + b->start[id];
}

/* ---- dropout ---- */

struct draws {
	uint64_t seed, threshold; /* of 2^32; 0: no dropout */
	uint32_t record, word;    /* offset of the word in the text */
	uint32_t used;
	uint32_t block[4];
};

static void draws_begin_word(struct draws *d, size_t offset)
{
	d->word = (uint32_t)offset;
	d->used = 0;
}

static bool skip_merge(struct draws *d)
{
	if (!d->threshold)
		return false;
	if (d->used % 4 == 0)
		philox(d->block, d->seed, d->used / 4, d->word, d->record, RNG_BPE);
	return d->block[d->used++ % 4] < d->threshold;
}

uint32_t bpe_record_number(const void *key, size_t n)
{
	return (uint32_t)hash64(key, n);
}

/* ---- coder ---- */

struct cached_word {
	uint64_t low, high; /* the word's bytes, zero padded; no word holds a zero byte */
	uint32_t count;
	uint32_t tokens[CACHED_TOKENS];
};

struct bpe_coder {
	const struct bpe *b;
	struct cached_word *cache;
	struct buf normal; /* normalised text (CLIP) */
	/* Long words: position = index of a symbol's first byte. */
	size_t capacity;
	uint32_t *next, *prev;    /* living neighbours */
	uint32_t *rank;           /* of the pair that starts here, BPE_NONE when it has none */
	uint32_t *after, *before; /* list of the positions of one rank, in rising order */
	/* Per rank: the list's ends; a bit says that it holds something. */
	uint32_t *head, *tail;
	uint64_t *occupied;
	size_t lowest;            /* no word of `occupied` before this one has a bit */
	/* Candidates that came out of order (after a skip, or from merges that no trainer would
	 * write): a binary heap of rank << 32 | position; stale ones are dropped when met. */
	uint64_t *heap, *skipped;
	size_t heap_count, heap_cap, skipped_count, skipped_cap;
};

struct bpe_coder *bpe_coder_new(const struct bpe *b, struct error *e)
{
	struct bpe_coder *c = mem_zero(1, sizeof *c, e);
	if (!c)
		return NULL;
	c->b = b;
	if (!(c->cache = mem_zero((size_t)1 << CACHE_BITS, sizeof *c->cache, e)) ||
		!(c->head = mem_alloc(b->merges, sizeof *c->head, e)) ||
		!(c->tail = mem_alloc(b->merges, sizeof *c->tail, e)) ||
		!(c->occupied = mem_zero((size_t)b->merges / 64 + 1, sizeof *c->occupied, e))) {
		bpe_coder_free(c);
		return NULL;
	}
	return c;
}

void bpe_coder_free(struct bpe_coder *c)
{
	if (!c)
		return;
	uint32_t *const arrays[] = {c->next, c->prev, c->rank, c->after, c->before, c->head, c->tail};
	for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
		free(arrays[i]);
	free(c->cache);
	free(c->occupied);
	free(c->heap);
	free(c->skipped);
	buf_free(&c->normal);
	free(c);
}

/* ---- short words ---- */

/* The leftmost of the lowest ranks, or n when none is left. */
static size_t lowest_rank(const uint32_t *rank, size_t n, uint64_t skipped)
{
	size_t at = n;
	uint32_t best = BPE_NONE;
	for (size_t i = 0; i < n; i++) {
		if (rank[i] < best && !(skipped >> i & 1)) {
			best = rank[i];
			at = i;
		}
	}
	return at;
}

static size_t next_merge(const uint32_t *rank, size_t n, struct draws *d)
{
	uint64_t skipped = 0;
	for (;;) {
		size_t at = lowest_rank(rank, n, skipped);
		if (at == n || !skip_merge(d))
			return at;
		skipped |= 1ull << at;
	}
}

/* Merge token (n) in place; the number that is left. */
static size_t merge_short(const struct bpe *b, uint32_t *token, size_t n, struct draws *d)
{
	uint32_t rank[SHORT_WORD]; /* of the pair (i, i + 1) */
	for (size_t i = 0; i + 1 < n; i++)
		rank[i] = bpe_rank(b, token[i], token[i + 1]);
	while (n > 1) {
		size_t at = next_merge(rank, n - 1, d);
		if (at == n - 1)
			break;
		token[at] = b->made[rank[at]];
		n--;
		for (size_t i = at + 1; i < n; i++) {
			token[i] = token[i + 1];
			rank[i - 1] = rank[i];
		}
		if (at + 1 < n)
			rank[at] = bpe_rank(b, token[at], token[at + 1]);
		if (at > 0)
			rank[at - 1] = bpe_rank(b, token[at - 1], token[at]);
	}
	return n;
}

/* ---- long words ---- */

static int grow_arrays(struct bpe_coder *c, size_t n, struct error *e)
{
	if (n <= c->capacity)
		return 0;
	uint32_t **arrays[] = {&c->next, &c->prev, &c->rank, &c->after, &c->before};
	for (size_t i = 0; i < ARRAY_LEN(arrays); i++) {
		uint32_t *p = mem_grow(*arrays[i], n, sizeof *p, e);
		if (!p)
			return -1;
		*arrays[i] = p;
	}
	c->capacity = n;
	return 0;
}

static int heap_push(struct bpe_coder *c, uint64_t key, struct error *e)
{
	if (ARRAY_ROOM(c->heap, c->heap_count + 1, &c->heap_cap, e))
		return -1;
	size_t i = c->heap_count++;
	for (; i > 0 && c->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
		c->heap[i] = c->heap[(i - 1) / 2];
	c->heap[i] = key;
	return 0;
}

static void heap_pop(struct bpe_coder *c)
{
	uint64_t key = c->heap[--c->heap_count];
	size_t i = 0, n = c->heap_count;
	for (size_t child = 1; child < n; child = 2 * i + 1) {
		if (child + 1 < n && c->heap[child + 1] < c->heap[child])
			child++;
		if (c->heap[child] >= key)
			break;
		c->heap[i] = c->heap[child];
		i = child;
	}
	c->heap[i] = key;
}

static void unlist(struct bpe_coder *c, uint32_t at)
{
	uint32_t r = c->rank[at], before = c->before[at], after = c->after[at];
	if (after == UNLISTED)
		return;
	if (before == ENDED)
		c->head[r] = after;
	else
		c->after[before] = after;
	if (after == ENDED)
		c->tail[r] = before;
	else
		c->before[after] = before;
	if (c->head[r] == ENDED)
		c->occupied[r / 64] &= ~(1ull << r % 64);
	c->after[at] = UNLISTED;
}

/* Positions of one rank arrive from left to right, with merges in trained order and without
 * skips: a pair appears when the later of its two tokens is made, in one sweep.  So lists stay
 * sorted by appending alone; what comes out of order goes to the heap. */
static int list(struct bpe_coder *c, uint32_t at, struct error *e)
{
	uint32_t r = c->rank[at];
	bool empty = !(c->occupied[r / 64] >> r % 64 & 1);
	c->after[at] = UNLISTED;
	if (!empty && c->tail[r] > at)
		return heap_push(c, (uint64_t)r << 32 | at, e);
	c->before[at] = empty ? ENDED : c->tail[r];
	c->after[at] = ENDED;
	if (empty)
		c->head[r] = at;
	else
		c->after[c->tail[r]] = at;
	c->tail[r] = at;
	c->occupied[r / 64] |= 1ull << r % 64;
	if (r / 64 < c->lowest)
		c->lowest = r / 64;
	return 0;
}

/* The pair that starts at `at` has changed; its right end is the symbol at next[at]. */
static int renew(struct bpe_coder *c, const uint32_t *token, uint32_t at, uint32_t n, struct error *e)
{
	if (c->rank[at] != BPE_NONE)
		unlist(c, at);
	c->rank[at] = c->next[at] < n ? bpe_rank(c->b, token[at], token[c->next[at]]) : BPE_NONE;
	return c->rank[at] == BPE_NONE ? 0 : list(c, at, e);
}

/* Take the candidate of the lowest (rank, position) out of list or heap; false when none. */
static bool take_candidate(struct bpe_coder *c, uint64_t *key)
{
	size_t words = (size_t)c->b->merges / 64 + 1;
	while (c->lowest < words && !c->occupied[c->lowest])
		c->lowest++;
	uint64_t listed = UINT64_MAX;
	if (c->lowest < words) {
		uint32_t r = (uint32_t)(c->lowest * 64) + (uint32_t)__builtin_ctzll(c->occupied[c->lowest]);
		listed = (uint64_t)r << 32 | c->head[r];
	}
	while (c->heap_count) {
		uint64_t top = c->heap[0];
		uint32_t at = (uint32_t)top;
		bool stale = c->rank[at] != top >> 32 || c->after[at] != UNLISTED;
		if (!stale && top > listed)
			break;
		heap_pop(c);
		if (!stale) {
			*key = top;
			return true;
		}
	}
	if (listed == UINT64_MAX)
		return false;
	unlist(c, (uint32_t)listed);
	*key = listed;
	return true;
}

/* One merge step: the first candidate that is not skipped, in *at.  1, 0 when there is none, -1. */
static int step_candidate(struct bpe_coder *c, struct draws *d, uint32_t *at, struct error *e)
{
	uint64_t key = 0;
	bool found;
	c->skipped_count = 0;
	while ((found = take_candidate(c, &key)) && skip_merge(d)) {
		if (ARRAY_ROOM(c->skipped, c->skipped_count + 1, &c->skipped_cap, e))
			return -1;
		c->skipped[c->skipped_count++] = key;
	}
	for (size_t i = 0; i < c->skipped_count; i++)
		if (heap_push(c, c->skipped[i], e))
			return -1;
	*at = (uint32_t)key;
	return found;
}

static int merge_at(struct bpe_coder *c, uint32_t *token, uint32_t at, uint32_t n, struct error *e)
{
	uint32_t gone = c->next[at];
	token[at] = c->b->made[c->rank[at]];
	c->rank[at] = BPE_NONE; /* already in no list */
	if (c->rank[gone] != BPE_NONE)
		unlist(c, gone);
	c->rank[gone] = BPE_NONE;
	c->next[at] = c->next[gone];
	if (c->next[at] < n)
		c->prev[c->next[at]] = at;
	if (renew(c, token, at, n, e))
		return -1;
	return at > 0 ? renew(c, token, c->prev[at], n, e) : 0;
}

static int64_t merge_long(struct bpe_coder *c, uint32_t *token, uint32_t n, struct draws *d, struct error *e)
{
	if (grow_arrays(c, n, e))
		return -1;
	memset(c->occupied, 0, ((size_t)c->b->merges / 64 + 1) * sizeof *c->occupied);
	c->lowest = c->heap_count = 0;
	for (uint32_t i = 0; i < n; i++) {
		c->next[i] = i + 1;
		c->prev[i] = i - 1;
		c->rank[i] = BPE_NONE;
		c->after[i] = UNLISTED;
	}
	for (uint32_t i = 0; i + 1 < n; i++)
		if (renew(c, token, i, n, e))
			return -1;
	uint32_t at;
	int r;
	while ((r = step_candidate(c, d, &at, e)) > 0)
		if (merge_at(c, token, at, n, e))
			return -1;
	if (r < 0)
		return -1;
	uint32_t count = 0;
	for (uint32_t i = 0; i < n; i = c->next[i])
		token[count++] = token[i];
	return count;
}

/* ---- encoding ---- */

/* Merge the n bytes of a word into token (room for n); the number of tokens, or -1. */
static int64_t encode_word(struct bpe_coder *c, uint32_t *token, const uint8_t *p, size_t n, struct draws *d,
	struct error *e)
{
	const struct bpe *b = c->b;
	for (size_t i = 0; i + 1 < n; i++)
		token[i] = b->inner[p[i]];
	token[n - 1] = b->last[p[n - 1]];
	if (n <= SHORT_WORD)
		return (int64_t)merge_short(b, token, n, d);
	return merge_long(c, token, (uint32_t)n, d, e);
}

/* The same through the cache, for a word of 1..CACHED_BYTES bytes without zeros, given as two
 * little-endian numbers.  Writes up to CACHED_TOKENS tokens even where fewer count. */
static int64_t encode_cached(struct bpe_coder *c, uint32_t *token, const uint8_t *p, size_t n, uint64_t low,
	uint64_t high, struct draws *d, struct error *e)
{
	uint64_t hash = (low ^ high * 0xC2B2AE3D27D4EB4Fu) * 0x9E3779B97F4A7C15u;
	struct cached_word *w = &c->cache[(hash ^ hash >> 29) * 0xBF58476D1CE4E5B9u >> (64 - CACHE_BITS)];
	if (w->low == low && w->high == high) {
		memcpy(token, w->tokens, sizeof w->tokens);
		return w->count;
	}
	int64_t count = encode_word(c, token, p, n, d, e);
	if (count > 0 && count <= CACHED_TOKENS) {
		*w = (struct cached_word){.low = low, .high = high, .count = (uint32_t)count};
		memcpy(w->tokens, token, (size_t)count * sizeof *token);
	}
	return count;
}

/* A run of letters from p: its length, and its folded bytes when they fit into the cache's key. */
static size_t scan_word(const struct bpe *b, const uint8_t *p, size_t n, uint64_t key[2])
{
	size_t i = 0, most = n < CACHED_BYTES ? n : CACHED_BYTES;
	uint8_t c;
	key[0] = key[1] = 0;
	for (; i < most && (c = b->letter[p[i]]); i++)
		key[i / 8] |= (uint64_t)c << i % 8 * 8;
	while (i < n && b->letter[p[i]])
		i++;
	return i;
}

/* Rules paper and wide: runs of letters are words, all else is bytes. */
static int64_t encode_letters(struct bpe_coder *c, uint32_t *token, const uint8_t *p, size_t n, struct draws *d,
	struct error *e)
{
	const struct bpe *b = c->b;
	size_t count = 0;
	for (size_t i = 0; i < n;) {
		if (!b->letter[p[i]]) {
			token[count++] = b->inner[p[i++]];
			continue;
		}
		uint64_t key[2];
		size_t length = scan_word(b, p + i, n - i, key);
		draws_begin_word(d, i);
		int64_t k = length > CACHED_BYTES || d->threshold
			? encode_word(c, token + count, p + i, length, d, e)
			: encode_cached(c, token + count, p + i, length, key[0], key[1], d, e);
		if (k < 0)
			return -1;
		count += (size_t)k;
		i += length;
	}
	return (int64_t)count;
}

static int64_t encode_clip(struct bpe_coder *c, uint32_t *token, const uint8_t *p, size_t n, struct draws *d,
	struct error *e)
{
	size_t count = 0, skip, length;
	for (size_t i = 0; i < n; i += length) {
		length = clip_word(p + i, n - i, &skip);
		i += skip;
		if (!length)
			break;
		uint64_t key[2] = {0, 0};
		bool cached = length <= CACHED_BYTES && !d->threshold && !memchr(p + i, 0, length);
		for (size_t j = 0; cached && j < length; j++)
			key[j / 8] |= (uint64_t)p[i + j] << j % 8 * 8;
		draws_begin_word(d, i);
		int64_t k = cached ? encode_cached(c, token + count, p + i, length, key[0], key[1], d, e)
				   : encode_word(c, token + count, p + i, length, d, e);
		if (k < 0)
			return -1;
		count += (size_t)k;
	}
	return (int64_t)count;
}

int bpe_encode(struct bpe_coder *c, const void *text, size_t n, double dropout, uint64_t seed, uint32_t record,
	struct tokens *out, struct error *e)
{
	const struct bpe *b = c->b;
	struct draws d = {.seed = seed, .record = record, .threshold = (uint64_t)(dropout * 4294967296.0)};
	if (n > MAX_TEXT)
		return fail(e, STATUS_LIMIT, "text of %zu bytes, at most %d can be encoded", n, MAX_TEXT);
	if (b->rule == BPE_CLIP && clip_normalise(text, n, &c->normal, e))
		return -1;
	const uint8_t *p = b->rule == BPE_CLIP ? c->normal.p : text;
	size_t bytes = b->rule == BPE_CLIP ? c->normal.n : n, ends = b->opening != BPE_NONE;
	/* A token has at least one byte; both ends, and what a cache line writes too much. */
	if (tokens_reserve(out, bytes + 2 + CACHED_TOKENS, e))
		return -1;
	uint32_t *token = out->v + ends;
	int64_t count = b->rule == BPE_CLIP ? encode_clip(c, token, p, bytes, &d, e) : encode_letters(c, token, p, bytes, &d, e);
	if (count < 0)
		return -1;
	if (ends) {
		out->v[0] = b->opening;
		token[count] = b->closing;
	}
	out->n = (size_t)count + 2 * ends;
	out->present = true;
	return 0;
}

bool bpe_cut(const struct bpe *b, struct tokens *t, size_t most)
{
	if (t->n <= most)
		return false;
	if (b->closing != BPE_NONE)
		t->v[most - 1] = b->closing;
	t->n = most;
	return true;
}

/* ---- decoding ---- */

int bpe_decode(const struct bpe *b, const uint32_t *tokens, size_t n, struct buf *out, struct error *e)
{
	if (buf_set(out, "", 0, e))
		return -1;
	for (size_t i = 0; i < n; i++) {
		if (tokens[i] >= b->size)
			return fail(e, STATUS_BAD, "token %u at %zu, but the vocabulary has %u", tokens[i], i, b->size);
		size_t length;
		const uint8_t *text = bpe_token(b, tokens[i], &length);
		if (buf_add(out, text, length, e))
			return -1;
	}
	/* CLIP's mark at the end of a word reads as a space; the last one is not in the caption. */
	if (b->rule == BPE_CLIP && out->n && out->p[out->n - 1] == ' ')
		out->p[--out->n] = 0;
	return 0;
}
