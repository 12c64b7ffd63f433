/* bpe-train.c - counting words and merging the most frequent pairs; see bpe.h.  Work is on
 * distinct words, not on the text: every pair knows its count and the words that hold it, so a
 * merge touches only those, and a heap of counts that are checked when met gives the next. */
#include "bpe-private.h"
#include "hash.h"

#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

struct word_count {
	uint64_t hash, count;
	size_t at; /* of the bytes */
	uint32_t length;
};

struct bpe_counts {
	enum bpe_rule rule;
	struct bpe *letters; /* a vocabulary without merges, for its tables */
	struct word_count *words;
	size_t count, cap;
	uint32_t *slots; /* hash table of index + 1, a power of two */
	size_t slot_count;
	struct buf bytes;
};

struct bpe_counts *bpe_counts_new(enum bpe_rule rule, struct error *e)
{
	struct bpe_counts *c = mem_zero(1, sizeof *c, e);
	if (!c)
		return NULL;
	c->rule = rule;
	c->slot_count = 1 << 12;
	if (!(c->letters = bpe_new(rule, 0, 256, 256, e)) || !(c->slots = mem_zero(c->slot_count, sizeof *c->slots, e))) {
		bpe_counts_free(c);
		return NULL;
	}
	return c;
}

void bpe_counts_free(struct bpe_counts *c)
{
	if (!c)
		return;
	bpe_close(c->letters);
	free(c->words);
	free(c->slots);
	buf_free(&c->bytes);
	free(c);
}

static int grow_slots(struct bpe_counts *c, struct error *e)
{
	size_t n = c->slot_count * 2;
	uint32_t *slots = mem_zero(n, sizeof *slots, e);
	if (!slots)
		return -1;
	for (size_t i = 0; i < c->count; i++) {
		size_t s = c->words[i].hash & (n - 1);
		while (slots[s])
			s = (s + 1) & (n - 1);
		slots[s] = (uint32_t)i + 1;
	}
	free(c->slots);
	c->slots = slots;
	c->slot_count = n;
	return 0;
}

static int add_word(struct bpe_counts *c, size_t slot, uint64_t hash, const uint8_t *p, uint32_t n, struct error *e)
{
	if (c->count == UINT32_MAX - 1)
		return fail(e, STATUS_LIMIT, "more than %zu different words", c->count);
	if (ARRAY_ROOM(c->words, c->count + 1, &c->cap, e))
		return -1;
	c->words[c->count] = (struct word_count){hash, 1, c->bytes.n, n};
	if (buf_add(&c->bytes, p, n, e))
		return -1;
	c->slots[slot] = (uint32_t)++c->count;
	return c->count * 2 > c->slot_count ? grow_slots(c, e) : 0;
}

static int count_word(struct bpe_counts *c, const uint8_t *p, uint32_t n, struct error *e)
{
	uint64_t hash = hash64(p, n);
	size_t mask = c->slot_count - 1, s = hash & mask;
	for (; c->slots[s]; s = (s + 1) & mask) {
		struct word_count *w = &c->words[c->slots[s] - 1];
		if (w->hash == hash && w->length == n && memcmp(c->bytes.p + w->at, p, n) == 0) {
			w->count++;
			return 0;
		}
	}
	return add_word(c, s, hash, p, n, e);
}

int bpe_count(struct bpe_counts *c, const void *text, size_t n, struct error *e)
{
	const uint8_t *p = text, *letter = c->letters->letter;
	uint8_t word[BPE_MAX_PIECE];
	for (size_t i = 0; i < n;) {
		uint32_t length = 0;
		while (i < n && length < BPE_MAX_PIECE && letter[p[i]])
			word[length++] = letter[p[i++]];
		if (length > 1 && count_word(c, word, length, e))
			return -1;
		if (length == 0)
			i++;
	}
	return 0;
}

/* ---- pairs ---- */

struct pair {
	uint64_t key; /* left << 32 | right: the order of ties */
	int64_t count;
	uint32_t *words; /* that hold or held it, each once for a row of additions */
	uint32_t word_count, word_cap;
	bool touched; /* is in trainer.touched */
};

struct candidate {
	int64_t count;
	uint64_t key;
	uint32_t pair;
};

struct trainer {
	const struct bpe_counts *c;
	uint32_t *symbols;  /* of all words, one after the other */
	size_t *at;         /* word -> its first symbol */
	uint32_t *length;   /* word -> symbols left */
	struct pair *pairs;
	size_t pair_count, pair_cap;
	uint32_t *slots; /* hash table of pair index + 1 */
	size_t slot_count;
	struct candidate *heap;
	size_t heap_count, heap_cap;
	uint32_t *touched; /* pairs whose count rose in this merge */
	size_t touched_count, touched_cap;
	struct bpe *b;
};

static int grow_pair_slots(struct trainer *t, struct error *e)
{
	size_t n = t->slot_count ? t->slot_count * 2 : 1 << 16;
	uint32_t *slots = mem_zero(n, sizeof *slots, e);
	if (!slots)
		return -1;
	for (size_t i = 0; i < t->pair_count; i++) {
		size_t s = hash64(&t->pairs[i].key, sizeof t->pairs[i].key) & (n - 1);
		while (slots[s])
			s = (s + 1) & (n - 1);
		slots[s] = (uint32_t)i + 1;
	}
	free(t->slots);
	t->slots = slots;
	t->slot_count = n;
	return 0;
}

/* The pair's entry, made when it is new; NULL without memory. */
static struct pair *find_pair(struct trainer *t, uint32_t left, uint32_t right, struct error *e)
{
	if (t->pair_count * 2 >= t->slot_count && grow_pair_slots(t, e))
		return NULL;
	uint64_t key = (uint64_t)left << 32 | right;
	size_t mask = t->slot_count - 1, s = hash64(&key, sizeof key) & mask;
	for (; t->slots[s]; s = (s + 1) & mask)
		if (t->pairs[t->slots[s] - 1].key == key)
			return &t->pairs[t->slots[s] - 1];
	if (ARRAY_ROOM(t->pairs, t->pair_count + 1, &t->pair_cap, e))
		return NULL;
	t->pairs[t->pair_count] = (struct pair){.key = key};
	t->slots[s] = (uint32_t)++t->pair_count;
	return &t->pairs[t->pair_count - 1];
}

static int pair_add_word(struct pair *p, uint32_t word, struct error *e)
{
	if (p->word_count && p->words[p->word_count - 1] == word)
		return 0;
	if (p->word_count == p->word_cap) {
		uint32_t cap = p->word_cap ? p->word_cap * 2 : 4;
		uint32_t *words = mem_grow(p->words, cap, sizeof *words, e);
		if (!words)
			return -1;
		p->words = words;
		p->word_cap = cap;
	}
	p->words[p->word_count++] = word;
	return 0;
}

/* ---- the heap: highest count first, then lowest key ---- */

static bool goes_before(const struct candidate *a, const struct candidate *b)
{
	return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static int push_candidate(struct trainer *t, uint32_t pair, struct error *e)
{
	if (ARRAY_ROOM(t->heap, t->heap_count + 1, &t->heap_cap, e))
		return -1;
	struct candidate new = {t->pairs[pair].count, t->pairs[pair].key, pair};
	size_t i = t->heap_count++;
	for (; i > 0 && goes_before(&new, &t->heap[(i - 1) / 2]); i = (i - 1) / 2)
		t->heap[i] = t->heap[(i - 1) / 2];
	t->heap[i] = new;
	return 0;
}

static struct candidate pop_candidate(struct trainer *t)
{
	struct candidate top = t->heap[0], moved = t->heap[--t->heap_count];
	size_t i = 0, n = t->heap_count;
	for (size_t child = 1; child < n; child = 2 * i + 1) {
		if (child + 1 < n && goes_before(&t->heap[child + 1], &t->heap[child]))
			child++;
		if (!goes_before(&t->heap[child], &moved))
			break;
		t->heap[i] = t->heap[child];
		i = child;
	}
	if (n)
		t->heap[i] = moved;
	return top;
}

/* The most frequent pair; NULL when none comes min_count times.  Counts in the heap may be out
 * of date: too high after other merges took occurrences away (corrected here), never too low
 * (a rise pushes again). */
static struct pair *best_pair(struct trainer *t, uint64_t min_count, struct error *e)
{
	while (t->heap_count) {
		struct candidate top = pop_candidate(t);
		struct pair *p = &t->pairs[top.pair];
		if (p->count != top.count) {
			if (p->count > 0 && p->count < top.count && push_candidate(t, top.pair, e))
				return NULL;
			continue;
		}
		return p->count > 0 && (uint64_t)p->count >= min_count ? p : NULL;
	}
	return NULL;
}

/* ---- merging ---- */

static int change_pair(struct trainer *t, uint32_t left, uint32_t right, uint32_t word, int sign, struct error *e)
{
	struct pair *p = find_pair(t, left, right, e);
	if (!p)
		return -1;
	p->count += sign * (int64_t)t->c->words[word].count;
	if (sign < 0)
		return 0;
	if (p->touched)
		return pair_add_word(p, word, e);
	if (ARRAY_ROOM(t->touched, t->touched_count + 1, &t->touched_cap, e))
		return -1;
	t->touched[t->touched_count++] = (uint32_t)(p - t->pairs);
	p->touched = true;
	return pair_add_word(p, word, e);
}

/* Replace the pair in one word, from left to right, and count what its neighbours become. */
static int merge_in_word(struct trainer *t, uint32_t word, uint32_t left, uint32_t right, uint32_t made, struct error *e)
{
	uint32_t *s = t->symbols + t->at[word], n = t->length[word], to = 0;
	for (uint32_t i = 0; i < n; to++) {
		if (i + 1 == n || s[i] != left || s[i + 1] != right) {
			s[to] = s[i++];
			continue;
		}
		/* s[to - 1] is the left neighbour as it is now, merged or not. */
		if (to > 0 && (change_pair(t, s[to - 1], left, word, -1, e) || change_pair(t, s[to - 1], made, word, 1, e)))
			return -1;
		if (i + 2 < n && (change_pair(t, right, s[i + 2], word, -1, e) || change_pair(t, made, s[i + 2], word, 1, e)))
			return -1;
		s[to] = made;
		i += 2;
	}
	t->length[word] = to;
	return 0;
}

static int push_touched(struct trainer *t, struct error *e)
{
	for (size_t i = 0; i < t->touched_count; i++) {
		struct pair *p = &t->pairs[t->touched[i]];
		p->touched = false;
		if (p->count > 0 && push_candidate(t, t->touched[i], e))
			return -1;
	}
	t->touched_count = 0;
	return 0;
}

static int merge_pair(struct trainer *t, struct pair *p, struct error *e)
{
	uint32_t left = (uint32_t)(p->key >> 32), right = (uint32_t)p->key, made = t->b->size;
	uint8_t text[2 * BPE_MAX_PIECE];
	size_t n, m;
	const uint8_t *a = bpe_token(t->b, left, &n);
	memcpy(text, a, n);
	a = bpe_token(t->b, right, &m);
	memcpy(text + n, a, m);
	bpe_add_merge(t->b, left, right, made); /* a pair is merged once: its count is then 0 for good */
	bpe_add_token(t->b, text, n + m);
	/* Taken over, because the table of pairs moves when it grows. */
	uint32_t *words = p->words, count = p->word_count;
	p->words = NULL;
	p->count = p->word_count = p->word_cap = 0;
	int r = 0;
	for (uint32_t i = 0; i < count && r == 0; i++)
		r = merge_in_word(t, words[i], left, right, made, e);
	free(words);
	return r ? r : push_touched(t, e);
}

static int load_words(struct trainer *t, struct error *e)
{
	size_t n = t->c->count, total = t->c->bytes.n, used = 0;
	if (!(t->symbols = mem_alloc(total, sizeof *t->symbols, e)) || !(t->at = mem_alloc(n, sizeof *t->at, e)) ||
		!(t->length = mem_alloc(n, sizeof *t->length, e)))
		return -1;
	for (size_t w = 0; w < n; w++) {
		const struct word_count *word = &t->c->words[w];
		t->at[w] = used;
		t->length[w] = word->length;
		for (uint32_t i = 0; i < word->length; i++)
			t->symbols[used++] = t->c->bytes.p[word->at + i];
		for (uint32_t i = 0; i + 1 < word->length; i++)
			if (change_pair(t, t->symbols[t->at[w] + i], t->symbols[t->at[w] + i + 1], (uint32_t)w, 1, e))
				return -1;
	}
	return push_touched(t, e); /* every pair */
}

static void trainer_free(struct trainer *t)
{
	for (size_t i = 0; i < t->pair_count; i++)
		free(t->pairs[i].words);
	free(t->pairs);
	free(t->symbols);
	free(t->at);
	free(t->length);
	free(t->slots);
	free(t->heap);
	free(t->touched);
}

static int run(struct trainer *t, uint32_t size, uint64_t min_count, void (*progress)(void *, uint32_t), void *context,
	struct error *e)
{
	struct pair *p;
	if (load_words(t, e))
		return -1;
	while (t->b->size < size && (p = best_pair(t, min_count, e))) {
		if (merge_pair(t, p, e))
			return -1;
		if (progress && t->b->size % 64 == 0)
			progress(context, t->b->size);
	}
	return e->status ? -1 : bpe_seal(t->b, e);
}

struct bpe *bpe_train(const struct bpe_counts *c, uint32_t size, uint64_t min_count,
	void (*progress)(void *context, uint32_t size), void *context, struct error *e)
{
	if (size < 256 || size > BPE_MAX_SIZE) {
		fail(e, STATUS_USAGE, "a vocabulary of %u tokens, expected 256 to %d", size, BPE_MAX_SIZE);
		return NULL;
	}
	struct trainer t = {.c = c};
	/* No token is longer than a piece; merges of a few letters are the rule. */
	t.b = bpe_new(c->rule, size - 256, size, 256 + (size_t)(size - 256) * BPE_MAX_TOKEN, e);
	if (t.b) {
		bpe_set_bytes(t.b);
		if (run(&t, size, min_count, progress, context, e)) {
			bpe_close(t.b);
			t.b = NULL;
		}
	}
	trainer_free(&t);
	return t.b;
}
