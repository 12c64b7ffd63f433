/* test-bpe.c - the encoder against a naive one written from the definition, dropout's
 * statistics, round trips, training against recounting from scratch, hostile vocabulary
 * files, and time that is linear in the length of a word. */
#include "../kernels/philox.h"
#include "../libcommon/bpe.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

/* A small generator of its own: tests must not depend on what they test. */
static uint64_t state = 1;
static uint32_t below(uint32_t n)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((state >> 33) % n);
}

/* ---- vocabularies made by chance ---- */

enum { MAX_MERGES = 400, LETTERS = 4 };
struct vocabulary {
	uint32_t left[MAX_MERGES], right[MAX_MERGES], merges;
	char text[256 + MAX_MERGES][257];
	struct buf file;
};

static bool has_pair(const struct vocabulary *v, uint32_t l, uint32_t r)
{
	for (uint32_t i = 0; i < v->merges; i++)
		if (v->left[i] == l && v->right[i] == r)
			return true;
	return false;
}

static uint32_t any_symbol(const struct vocabulary *v)
{
	uint32_t i = below(LETTERS + v->merges);
	return i < LETTERS ? 'a' + i : 256 + i - LETTERS;
}

static void add_merge(struct vocabulary *v, uint32_t l, uint32_t r)
{
	v->left[v->merges] = l;
	v->right[v->merges] = r;
	char text[257];
	snprintf(text, sizeof text, "%.128s%.128s", v->text[l], v->text[r]);
	memcpy(v->text[256 + v->merges++], text, sizeof text);
}

static void begin_vocabulary(struct vocabulary *v)
{
	buf_free(&v->file);
	memset(v, 0, sizeof *v);
	for (int c = 1; c < 256; c++)
		v->text[c][0] = (char)c;
}

static void random_vocabulary(struct vocabulary *v, uint32_t merges)
{
	begin_vocabulary(v);
	for (int tries = 0; v->merges < merges && tries < 20000; tries++) {
		uint32_t l = any_symbol(v), r = any_symbol(v);
		if (!has_pair(v, l, r) && strlen(v->text[l]) + strlen(v->text[r]) <= 12)
			add_merge(v, l, r);
	}
}

static struct bpe *build(struct vocabulary *v, const char *rule)
{
	struct error e = {0};
	v->file.n = 0;
	buf_printf(&v->file, &e, "dalle-bpe 1\nrule %s\nsize %u\n", rule, 256 + v->merges);
	for (uint32_t i = 0; i < v->merges; i++)
		buf_printf(&v->file, &e, "%u %u %s\n", v->left[i], v->right[i], v->text[256 + i]);
	struct bpe *b = bpe_parse(v->file.p, v->file.n, "test", &e);
	CHECK(b && !e.status, "a good vocabulary is read: %s", e.text);
	return b;
}

/* ---- the naive encoder: every step looks at every candidate ---- */

static uint32_t rank_of(const struct vocabulary *v, uint32_t l, uint32_t r)
{
	for (uint32_t i = 0; i < v->merges; i++)
		if (v->left[i] == l && v->right[i] == r)
			return i;
	return UINT32_MAX;
}

struct chance {
	double p;
	uint64_t seed;
	uint32_t record, word, used;
};

static bool skips(struct chance *c)
{
	uint32_t r[4];
	if (c->p <= 0)
		return false;
	philox(r, c->seed, c->used / 4, c->word, c->record, RNG_BPE);
	return r[c->used++ % 4] < c->p * 4294967296.0;
}

/* Candidates in the order (rank, position); the first that is not skipped, or n. */
static size_t choose(const uint32_t *rank, size_t n, struct chance *c)
{
	uint64_t after = 0;
	for (;;) {
		uint64_t best = UINT64_MAX;
		for (size_t i = 0; i < n; i++) {
			uint64_t key = ((uint64_t)rank[i] << 32 | i) + 1;
			if (rank[i] != UINT32_MAX && key > after && key < best)
				best = key;
		}
		if (best == UINT64_MAX)
			return n;
		if (!skips(c))
			return (size_t)((best - 1) & UINT32_MAX);
		after = best;
	}
}

static size_t naive_word(const struct vocabulary *v, uint32_t *t, size_t n, struct chance *c)
{
	static uint32_t rank[1 << 16];
	for (size_t i = 0; i + 1 < n; i++)
		rank[i] = rank_of(v, t[i], t[i + 1]);
	while (n > 1) {
		size_t at = choose(rank, n - 1, c);
		if (at == n - 1)
			break;
		t[at] = 256 + rank[at];
		memmove(t + at + 1, t + at + 2, (n - at - 2) * sizeof *t);
		n--;
		for (size_t i = 0; i + 1 < n; i++)
			rank[i] = i + 1 == at || i == at ? rank_of(v, t[i], t[i + 1]) : rank[i + (i > at)];
	}
	return n;
}

static uint8_t lower(uint8_t c)
{
	return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

static size_t naive_encode(const struct vocabulary *v, uint32_t *out, const uint8_t *p, size_t n, bool wide,
	struct chance c)
{
	size_t count = 0;
	for (size_t i = 0; i < n;) {
		size_t j = i;
		while (j < n && ((lower(p[j]) >= 'a' && lower(p[j]) <= 'z') || (wide && p[j] >= 128))) {
			out[count + j - i] = lower(p[j]);
			j++;
		}
		if (j == i) {
			out[count++] = p[i++];
			continue;
		}
		c.word = (uint32_t)i;
		c.used = 0;
		count += naive_word(v, out + count, j - i, &c);
		i = j;
	}
	return count;
}

/* ---- encoding ---- */

static size_t random_text(uint8_t *p, size_t most)
{
	size_t n = below((uint32_t)most + 1);
	uint32_t kind = below(4);
	for (size_t i = 0; i < n; i++) {
		uint32_t letter = 'a' + below(LETTERS);
		if (below(8) == 0)
			letter -= 32;
		/* Bytes of all kinds, captions of short words, and words longer than any cache. */
		if (kind == 0)
			p[i] = (uint8_t)below(256);
		else
			p[i] = kind < 3 && below(6) == 0 ? (uint8_t)" ,.7\xC3\xA9\0\n"[below(8)] : (uint8_t)letter;
	}
	return n;
}

static bool same(const struct tokens *t, const uint32_t *want, size_t n)
{
	return t->n == n && t->present && (n == 0 || memcmp(t->v, want, n * sizeof *want) == 0);
}

static void check_against_naive(const char *rule, double dropout, int vocabularies, size_t most)
{
	static struct vocabulary v;
	static uint32_t want[4096];
	static uint8_t text[4096];
	struct tokens got = {0};
	struct buf back = {0};
	struct error e = {0};
	int wrong = 0, wrong_back = 0;
	for (int k = 0; k < vocabularies; k++) {
		random_vocabulary(&v, below(MAX_MERGES));
		struct bpe *b = build(&v, rule);
		struct bpe_coder *c = bpe_coder_new(b, &e);
		for (uint32_t i = 0; i < 200; i++) {
			size_t n = random_text(text, most);
			struct chance chance = {dropout, (uint64_t)k << 40 | 7, i, 0, 0};
			size_t m = naive_encode(&v, want, text, n, rule[0] == 'w', chance);
			bpe_encode(c, text, n, dropout, chance.seed, i, &got, &e);
			wrong += !same(&got, want, m);
			bpe_decode(b, got.v, got.n, &back, &e);
			for (size_t j = 0; j < n; j++)
				text[j] = lower(text[j]);
			wrong_back += back.n != n || memcmp(back.p, text, n) != 0;
		}
		bpe_coder_free(c);
		bpe_close(b);
	}
	CHECK(wrong == 0 && !e.status, "rule %s, dropout %g, up to %zu bytes: %d texts unlike the naive encoder", rule, dropout,
		most, wrong);
	CHECK(wrong_back == 0, "rule %s, dropout %g: %d texts do not come back", rule, dropout, wrong_back);
	free(got.v);
	buf_free(&back);
	buf_free(&v.file);
}

static void test_empty_and_bytes(void)
{
	static struct vocabulary v;
	struct error e = {0};
	struct tokens t = {0};
	begin_vocabulary(&v);
	struct bpe *b = build(&v, "paper");
	struct bpe_coder *c = bpe_coder_new(b, &e);
	CHECK(bpe_encode(c, "", 0, 0, 0, 0, &t, &e) == 0 && t.n == 0 && t.present, "an empty text has no tokens, but is present");
	CHECK(bpe_encode(c, NULL, 0, 0.5, 0, 0, &t, &e) == 0 && t.n == 0, "no bytes at NULL");
	CHECK(bpe_encode(c, "Ab\xFF", 3, 0, 0, 0, &t, &e) == 0 && same(&t, (uint32_t[]){'a', 'b', 255}, 3), "bytes are tokens");
	uint32_t outside = 256;
	struct buf text = {0};
	CHECK(bpe_decode(b, &outside, 1, &text, &e) < 0 && e.status == STATUS_BAD, "a token outside is refused");
	buf_free(&text);
	free(t.v);
	bpe_coder_free(c);
	bpe_close(b);
	buf_free(&v.file);
}

/* ---- dropout ---- */

/* Merges ab, abc: the word abc is one token with (1-p)^2, "ab c" with (1-p)p, bytes with p. */
static void test_dropout_rates(void)
{
	static struct vocabulary v;
	struct error e = {0};
	struct tokens t = {0};
	enum { N = 40000 };
	const double p = 0.1;
	begin_vocabulary(&v);
	add_merge(&v, 'a', 'b');
	add_merge(&v, 256, 'c');
	struct bpe *b = build(&v, "paper");
	struct bpe_coder *c = bpe_coder_new(b, &e);
	double count[4] = {0}, both = 0;
	for (uint32_t i = 0; i < N; i++) {
		bpe_encode(c, "abc abc", 7, p, 5, i, &t, &e);
		size_t first = 0;
		while (t.v[first] != ' ')
			first++;
		count[first]++;
		both += first == 1 && t.n == 3;
	}
	const double want[4] = {0, (1 - p) * (1 - p), (1 - p) * p, p};
	for (int k = 1; k < 4; k++) {
		/* Five standard deviations: fails by chance once in a million runs of other seeds. */
		double allowed = 5 * __builtin_sqrt(want[k] * (1 - want[k]) / N);
		CHECK(__builtin_fabs(count[k] / N - want[k]) < allowed, "%d tokens: %.4f of the words, expected %.4f", k,
			count[k] / N, want[k]);
	}
	double pair = want[1] * want[1];
	CHECK(__builtin_fabs(both / N - pair) < 5 * __builtin_sqrt(pair * (1 - pair) / N),
		"two words of a text are independent: both whole %.4f, expected %.4f", both / N, pair);
	bpe_encode(c, "abcabc", 6, 1, 5, 1, &t, &e);
	CHECK(t.n == 6, "dropout 1 gives bytes, got %zu tokens", t.n);
	free(t.v);
	bpe_coder_free(c);
	bpe_close(b);
	buf_free(&v.file);
}

static void test_dropout_determinism(void)
{
	static struct vocabulary v;
	struct error e = {0};
	struct tokens s = {0}, t = {0};
	const char *text = "abcd dcba abab cdcd aabb ccdd abcdabcdabcd";
	random_vocabulary(&v, 200);
	struct bpe *b = build(&v, "paper");
	struct bpe_coder *c = bpe_coder_new(b, &e), *d = bpe_coder_new(b, &e);
	int differs = 0, other_seed = 0, other_record = 0;
	for (uint32_t i = 0; i < 200; i++) {
		bpe_encode(c, text, strlen(text), 0.3, 9, i, &s, &e);
		bpe_encode(d, "warm", 4, 0, 0, 0, &t, &e);
		bpe_encode(d, text, strlen(text), 0.3, 9, i, &t, &e);
		differs += !same(&t, s.v, s.n);
		bpe_encode(d, text, strlen(text), 0.3, 10, i, &t, &e);
		other_seed += !same(&t, s.v, s.n);
		bpe_encode(d, text, strlen(text), 0.3, 9, i + 1000, &t, &e);
		other_record += !same(&t, s.v, s.n);
	}
	CHECK(differs == 0, "the same seed and record give the same tokens: %d differ", differs);
	CHECK(other_seed > 150 && other_record > 150, "another seed (%d of 200) or record (%d) gives others", other_seed,
		other_record);
	free(s.v);
	free(t.v);
	bpe_coder_free(c);
	bpe_coder_free(d);
	bpe_close(b);
	buf_free(&v.file);
}

/* ---- training ---- */

/* From the definition: recount all pairs of all words for every merge. */
static uint32_t naive_train(uint32_t (*merge)[2], char words[][24], size_t n, uint32_t most, uint64_t min_count)
{
	static uint32_t s[400][24];
	static uint64_t count[700][700];
	size_t length[400];
	for (size_t w = 0; w < n; w++) {
		length[w] = strlen(words[w]);
		for (size_t i = 0; i < length[w]; i++)
			s[w][i] = (uint8_t)words[w][i];
	}
	for (uint32_t k = 0; k < most; k++) {
		memset(count, 0, sizeof count);
		for (size_t w = 0; w < n; w++)
			for (size_t i = 0; i + 1 < length[w]; i++)
				count[s[w][i]][s[w][i + 1]]++;
		uint64_t best = 0;
		for (uint32_t l = 0; l < 256 + k; l++)
			for (uint32_t r = 0; r < 256 + k; r++)
				if (count[l][r] > best) {
					best = count[l][r];
					merge[k][0] = l;
					merge[k][1] = r;
				}
		if (best < min_count || best == 0)
			return k;
		for (size_t w = 0; w < n; w++) {
			size_t to = 0;
			for (size_t i = 0; i < length[w]; to++) {
				bool hit = i + 1 < length[w] && s[w][i] == merge[k][0] && s[w][i + 1] == merge[k][1];
				s[w][to] = hit ? 256 + k : s[w][i];
				i += hit ? 2 : 1;
			}
			length[w] = to;
		}
	}
	return most;
}

static void check_training(uint32_t letters, size_t n, uint64_t min_count)
{
	static char words[400][24];
	static uint32_t merge[300][2];
	struct error e = {0};
	struct buf got = {0}, want = {0};
	struct bpe_counts *forward = bpe_counts_new(BPE_PAPER, &e), *backward = bpe_counts_new(BPE_PAPER, &e);
	for (size_t w = 0; w < n; w++) {
		size_t length = below(23);
		for (size_t i = 0; i < length; i++)
			words[w][i] = (char)('a' + below(letters));
		words[w][length] = 0;
		bpe_count(forward, words[w], length, &e);
	}
	for (size_t w = n; w-- > 0;) {
		char line[64];
		int m = snprintf(line, sizeof line, "1%s,", words[w]);
		bpe_count(backward, line, (size_t)m, &e);
	}
	uint32_t merges = naive_train(merge, words, n, 300, min_count);
	struct bpe *b = bpe_train(forward, 256 + 300, min_count, NULL, NULL, &e);
	struct bpe *c = bpe_train(backward, 256 + 300, min_count, NULL, NULL, &e);
	bpe_format(b, &got, &e);
	uint32_t wrong = 0, lines = 0;
	for (char *p = strtok((char *)got.p, "\n"); p; p = strtok(NULL, "\n")) {
		unsigned l, r;
		if (*p < '0' || *p > '9')
			continue;
		wrong += sscanf(p, "%u %u", &l, &r) != 2 || lines >= merges || merge[lines][0] != l || merge[lines][1] != r;
		lines++;
	}
	CHECK(wrong == 0 && lines == merges, "%u letters, %zu words: %u of %u merges unlike recounting (%u made)", letters, n,
		wrong, merges, lines);
	CHECK(strcmp(bpe_id(b), bpe_id(c)) == 0, "the order of captions does not matter");
	bpe_close(b);
	bpe_close(c);
	bpe_counts_free(forward);
	bpe_counts_free(backward);
	buf_free(&got);
	buf_free(&want);
}

static void test_format(void)
{
	struct error e = {0};
	struct bpe_counts *c = bpe_counts_new(BPE_WIDE, &e);
	struct buf file = {0};
	const char *text = "Grüße grüße grün \xFF\xFE\xFF\xFE \\ zwölf Zwölf";
	for (int i = 0; i < 3; i++)
		bpe_count(c, text, strlen(text), &e);
	struct bpe *b = bpe_train(c, 300, 2, NULL, NULL, &e), *d = NULL;
	if (CHECK(b && bpe_format(b, &file, &e) == 0, "a vocabulary is written"))
		d = bpe_parse(file.p, file.n, "again", &e);
	CHECK(d && strcmp(bpe_id(b), bpe_id(d)) == 0 && bpe_size(b) == bpe_size(d), "and read again as the same: %s", e.text);
	CHECK(bpe_size(b) > 260 && bpe_size(b) < 300, "merges run out: %u tokens", bpe_size(b));
	bpe_close(b);
	bpe_close(d);
	bpe_counts_free(c);
	buf_free(&file);
}

/* A run of one letter, longer than a piece, must neither overflow a token nor take long. */
static void test_train_runs(void)
{
	struct error e = {0};
	size_t n = 1000000;
	char *a = malloc(n);
	struct bpe_counts *c = bpe_counts_new(BPE_PAPER, &e);
	if (!a)
		abort();
	memset(a, 'a', n);
	bpe_count(c, a, n, &e);
	struct bpe *b = bpe_train(c, 1000, 1, NULL, NULL, &e);
	size_t most = 0;
	for (uint32_t i = 0; b && i < bpe_size(b); i++) {
		size_t length;
		bpe_token(b, i, &length);
		most = length > most ? length : most;
	}
	CHECK(b && most <= BPE_MAX_TOKEN && bpe_size(b) > 256 + 7, "a million a's: longest token %zu of at most %d", most,
		BPE_MAX_TOKEN);
	bpe_close(b);
	bpe_counts_free(c);
	free(a);
}

/* ---- hostile vocabulary files ---- */

static void check_refused(const char *what, const void *text, size_t n)
{
	struct error e = {0};
	struct bpe *b = bpe_parse(text, n, "v", &e);
	CHECK(!b && e.status == STATUS_BAD && strncmp(e.text, "v: ", 3) == 0 && strlen(e.text) > 10, "refused: %s (%s)", what,
		e.text);
	bpe_close(b);
}

#define HEAD "dalle-bpe 1\nrule paper\n"

static void test_bad_files(void)
{
	static const struct {
		const char *what, *text;
	} bad[] = {
		{"empty", ""},
		{"something else", "\x89PNG\r\n"},
		{"another version", "dalle-bpe 2\nrule paper\nsize 256\n"},
		{"version 1x", "dalle-bpe 1x\nrule paper\nsize 256\n"},
		{"unknown rule", "dalle-bpe 1\nrule clip\nsize 256\n"},
		{"no size", HEAD},
		{"size too small", HEAD "size 255\n"},
		{"size too large", HEAD "size 1048577\n"},
		{"size of many digits", HEAD "size 99999999999999999999\n"},
		{"negative size", HEAD "size -1\n"},
		{"huge size, no merges", HEAD "size 1048576\n"},
		{"fewer merges than the size", HEAD "size 258\n97 98 ab\n"},
		{"more merges than the size", HEAD "size 257\n97 98 ab\n98 97 ba\n"},
		{"duplicate merge", HEAD "size 258\n97 98 ab\n97 98 ab\n"},
		{"merge of a token not yet made", HEAD "size 257\n97 256 ab\n"},
		{"merge of itself", HEAD "size 257\n256 256 ab\n"},
		{"number with a sign", HEAD "size 257\n+97 98 ab\n"},
		{"number with a zero before", HEAD "size 257\n097 98 ab\n"},
		{"two spaces", HEAD "size 257\n97  98 ab\n"},
		{"wrong text", HEAD "size 257\n97 98 ac\n"},
		{"no text", HEAD "size 257\n97 98\n"},
		{"rubbish after the text", HEAD "size 257\n97 98 ab \n"},
		{"merge of a digit", HEAD "size 257\n48 98 0b\n"},
		{"merge of an upper-case letter", HEAD "size 257\n65 98 Ab\n"},
		{"merge of a byte the rule leaves alone", HEAD "size 257\n195 169 \\xc3\\xa9\n"},
		{"last line without newline", HEAD "size 257\n97 98 ab"},
		{"carriage returns", "dalle-bpe 1\r\nrule paper\r\nsize 256\r\n"},
		{"empty line", HEAD "size 257\n\n97 98 ab\n"},
	};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		check_refused(bad[i].what, bad[i].text, strlen(bad[i].text));
	check_refused("NUL bytes", "dalle-bpe 1\nrule paper\nsize 257\n97 98 a\0\n", 43);
}

/* Tokens that double: 2^k bytes after k merges; 256 are allowed. */
static void test_doubling(void)
{
	char text[513];
	memset(text, 'a', sizeof text);
	for (int merges = 8; merges <= 9; merges++) {
		struct error e = {0};
		struct buf f = {0};
		buf_printf(&f, &e, HEAD "size %d\n", 256 + merges);
		for (int k = 0; k < merges; k++)
			buf_printf(&f, &e, "%d %d %.*s\n", k ? 255 + k : 'a', k ? 255 + k : 'a', 2 << k, text);
		struct bpe *b = bpe_parse(f.p, f.n, "v", &e);
		CHECK((b != NULL) == (merges == 8), "tokens of %d bytes: %s", 1 << merges, b ? "taken" : e.text);
		bpe_close(b);
		buf_free(&f);
	}
}

static void test_damage(void)
{
	static struct vocabulary v;
	random_vocabulary(&v, 60);
	bpe_close(build(&v, "wide"));
	struct error e = {0};
	int read = 0, silent = 0;
	for (size_t n = 0; n < v.file.n; n++) {
		struct bpe *b = bpe_parse(v.file.p, n, "cut", &e);
		read += b != NULL;
		silent += !e.status;
		bpe_close(b);
		e.status = 0;
	}
	CHECK(read == 0 && silent == 0, "a file cut at any byte is refused: %d were read, %d without a word", read, silent);
	int same_id = 0;
	struct bpe *whole = bpe_parse(v.file.p, v.file.n, "whole", &e);
	for (size_t i = 0; i < v.file.n * 8; i++) {
		v.file.p[i / 8] ^= (uint8_t)(1 << i % 8);
		struct bpe *b = bpe_parse(v.file.p, v.file.n, "flip", &e);
		same_id += b && strcmp(bpe_id(b), bpe_id(whole)) == 0;
		bpe_close(b);
		e.status = 0;
		v.file.p[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	CHECK(same_id == 0, "a flipped bit is refused or makes another identity: %d passed as the same", same_id);
	bpe_close(whole);
	buf_free(&v.file);
}

/* ---- CLIP ---- */

/* Texts and tokens of golden/clip-bpe, line by line. */
static void compare_clip(struct bpe *b, char *texts, char *tokens)
{
	struct error e = {0};
	struct tokens t = {0};
	struct bpe_coder *c = bpe_coder_new(b, &e);
	int lines = 0;
	for (char *text = texts, *next = tokens; *text; lines++) {
		char *end = strchr(text, '\n');
		size_t wrong = 0;
		/* Twice: the second time the words come from the cache. */
		for (int k = 0; k < 2; k++) {
			bpe_encode(c, text, (size_t)(end - text), 0, 0, 0, &t, &e);
			char *p = next;
			for (size_t i = 0; i < t.n; i++)
				wrong += strtoul(p, &p, 10) != t.v[i];
			wrong += *p != '\n';
		}
		CHECK(wrong == 0, "CLIP: tokens of '%.*s'", (int)(end - text), text);
		text = end + 1;
		next = strchr(next, '\n') + 1;
	}
	CHECK(lines > 50 && !e.status, "CLIP: %d texts", lines);
	CHECK(bpe_encode(c, "two faces", 9, 0, 0, 0, &t, &e) == 0 && bpe_cut(b, &t, 2) && t.n == 2 &&
		t.v[0] == bpe_size(b) - 2 && t.v[1] == bpe_size(b) - 1, "a cut text keeps both ends");
	bpe_coder_free(c);
	free(t.v);
}

static void test_clip(void)
{
	const char *source = getenv("SRC");
	char path[3][512];
	struct error e = {0};
	struct buf texts = {0}, tokens = {0}, back = {0};
	const char *const names[] = {"", "/texts", "/tokens"};
	for (int i = 0; i < 3; i++)
		snprintf(path[i], sizeof path[i], "%s/tests/golden/clip-bpe%s", source ? source : ".", names[i]);
	struct bpe *b = bpe_open(path[0], &e);
	if (CHECK(b && read_file(path[1], 1 << 20, &texts, &e) == 0 && read_file(path[2], 1 << 20, &tokens, &e) == 0,
		    "a CLIP vocabulary is read: %s", e.text)) {
		compare_clip(b, (char *)texts.p, (char *)tokens.p);
		struct tokens t = {0};
		struct bpe_coder *c = bpe_coder_new(b, &e);
		bpe_encode(c, " Red  Heart\xFF! ", 14, 0, 0, 0, &t, &e);
		bpe_decode(b, t.v, t.n, &back, &e);
		CHECK(strcmp((char *)back.p, "red heart \xFF!") == 0, "CLIP: back to '%s'", (char *)back.p);
		bpe_coder_free(c);
		free(t.v);
	}
	bpe_close(b);
	buf_free(&texts);
	buf_free(&tokens);
	buf_free(&back);
}

/* ---- time ---- */

/* A hostile word of two million letters takes part of a second.  Quadratic work would take hours, which no clock need
 * tell: the test would not end within its time. */
static void test_linear(void)
{
	static struct vocabulary v;
	struct error e = {0};
	static uint8_t text[1 << 21];
	struct tokens t = {0};
	random_vocabulary(&v, 300);
	struct bpe *b = build(&v, "paper");
	struct bpe_coder *c = bpe_coder_new(b, &e);
	for (int kind = 0; kind < 4; kind++) {
		for (size_t i = 0; i < sizeof text; i++)
			text[i] = (uint8_t)('a' + (kind == 0 ? 0 : kind == 1 ? i % 2 : below(LETTERS)));
		struct buf back = {0};
		CHECK(bpe_encode(c, text, sizeof text, kind == 3 ? 0.1 : 0, 1, 1, &t, &e) == 0 &&
		      bpe_decode(b, t.v, t.n, &back, &e) == 0 && back.n == sizeof text && memcmp(back.p, text, back.n) == 0,
		      "hostile word %d: %s", kind, e.text);
		buf_free(&back);
	}
	free(t.v);
	bpe_coder_free(c);
	bpe_close(b);
	buf_free(&v.file);
}

int main(void)
{
	test_empty_and_bytes();
	for (int i = 0; i < 5; i++) {
		const double dropout[] = {0, 0.1, 0.5, 0.95, 1};
		check_against_naive("paper", dropout[i], 12, 40);
		check_against_naive("paper", dropout[i], 4, 400);
		check_against_naive("wide", dropout[i], 4, 200);
	}
	test_dropout_rates();
	test_dropout_determinism();
	check_training(3, 60, 1);
	check_training(3, 400, 2);
	check_training(26, 400, 1);
	check_training(1, 20, 1);
	check_training(2, 0, 1);
	test_format();
	test_train_runs();
	test_bad_files();
	test_doubling();
	test_damage();
	test_clip();
	test_linear();
	return check_done();
}
