/* bpe-clip.c - vocabularies of published CLIP models (`vocab.json` and `merges.txt`) and the
 * words that they are made for: text is composed (NFC), white space is one space, letters are lower case, words are
 *
 *	's 't 're 've 'm 'll 'd | letters | one number | a run of anything else but spaces
 *
 * each symbol of a word is a byte, the last one carries a mark ("</w>").  Bytes are spelled
 * as printable characters in the files.  This is what Hugging Face's fast tokenizer does, but that names of the end
 * tokens inside a text are text, so that a caption cannot forge them. */
#include "bpe-private.h"
#include "json-file.h"
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

struct code_range {
	uint32_t first, last;
};
struct lower_row {
	uint32_t first, last, step;
	int32_t difference;
};
#include "unicode-tables.h"

enum { MAX_FILE = 1 << 26 };
#define MARK "</w>"
#define OPENING "<|startoftext|>"
#define CLOSING "<|endoftext|>"

/* ---- Unicode ---- */

static uint32_t lower_case(uint32_t c)
{
	const struct lower_row *r = CODE_ROW(lower_rows, c);
	return !r || (c - r->first) % r->step ? c : (uint32_t)((int64_t)c + r->difference);
}

static bool is_space(uint32_t c)
{
	return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
	       (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

enum kind { SPACE, LETTER, NUMBER, OTHER };

static enum kind kind_of(uint32_t c)
{
	if (is_space(c))
		return SPACE;
	if (c < 0x80) {
		bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
		return letter ? LETTER : c >= '0' && c <= '9' ? NUMBER : OTHER;
	}
	return CODE_ROW(letter_ranges, c) ? LETTER : CODE_ROW(number_ranges, c) ? NUMBER : OTHER;
}

/* ---- words ---- */

int clip_normalise(const void *text, size_t n, struct buf *out, struct error *e)
{
	struct buf composed = {0};
	bool space = false;
	/* No lower-case letter takes more than one byte more than its capital, which has two. */
	if (unicode_compose(text, n, &composed, e) || buf_set(out, "", 0, e) ||
	    buf_reserve(out, composed.n + composed.n / 2 + 8, e)) {
		buf_free(&composed);
		return -1;
	}
	const uint8_t *p = composed.p;
	n = composed.n;
	for (size_t i = 0, length; i < n; i += length) {
		uint32_t c = utf8_decode(p + i, n - i, &length);
		if (is_space(c)) {
			space = true;
			continue;
		}
		if (space)
			out->p[out->n++] = ' ';
		space = false;
		if (c == NOT_UTF8) {
			out->p[out->n++] = p[i];
		} else if (c == 0x130) { /* the one capital whose lower case is two: i and a dot above */
			memcpy(out->p + out->n, "i\xCC\x87", 3);
			out->n += 3;
		} else {
			out->n += utf8_encode(out->p + out->n, lower_case(c));
		}
	}
	out->p[out->n] = 0;
	buf_free(&composed);
	return 0;
}

static size_t contraction(const uint8_t *p, size_t n)
{
	static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
	for (size_t i = 0; i < ARRAY_LEN(endings); i++) {
		size_t length = strlen(endings[i]);
		if (length <= n && memcmp(p, endings[i], length) == 0)
			return length;
	}
	return 0;
}

size_t clip_word(const uint8_t *text, size_t n, size_t *skip)
{
	size_t i = 0, length;
	while (i < n && text[i] == ' ')
		i++;
	*skip = i;
	if (i == n)
		return 0;
	size_t short_word = contraction(text + i, n - i), start = i;
	if (short_word)
		return short_word;
	enum kind kind = kind_of(utf8_decode(text + i, n - i, &length));
	i += length;
	while (kind != NUMBER && i < n && kind_of(utf8_decode(text + i, n - i, &length)) == kind)
		i += length;
	return i - start;
}

/* ---- files ---- */

/* Bytes that print stand for themselves as code points, the others for 256, 257, ... */
static bool prints(int c)
{
	return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || c >= 174;
}

struct clip_files {
	char names[2][4096];
	json_t *vocabulary;  /* text -> id */
	const char **tokens; /* (size): id -> text, owned by vocabulary */
	uint32_t size;
	struct buf merges;
	uint32_t spelling[256]; /* byte -> code point */
	int16_t byte[512];      /* code point -> byte, -1 */
};

static void spell_bytes(struct clip_files *f)
{
	uint32_t next = 256;
	memset(f->byte, 0xFF, sizeof f->byte);
	for (int c = 0; c < 256; c++) {
		f->spelling[c] = prints(c) ? (uint32_t)c : next++;
		f->byte[f->spelling[c]] = (int16_t)c;
	}
}

static uint32_t find_token(const struct clip_files *f, const char *text)
{
	json_t *id = json_object_get(f->vocabulary, text);
	return id ? (uint32_t)json_integer_value(id) : BPE_NONE;
}

/* Every number from 0 to size - 1 once. */
static int index_tokens(struct clip_files *f, struct error *e)
{
	const char *name = f->names[0], *text;
	json_t *id;
	size_t n = json_object_size(f->vocabulary);
	if (n == 0 || n > BPE_MAX_SIZE)
		return fail(e, STATUS_BAD, "%s: expected an object with 1 to %d tokens", name, BPE_MAX_SIZE);
	f->size = (uint32_t)n;
	if (!(f->tokens = mem_zero(n, sizeof *f->tokens, e)))
		return -1;
	json_object_foreach(f->vocabulary, text, id) {
		json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
		if (v < 0 || (size_t)v >= n || f->tokens[v])
			return fail(e, STATUS_BAD, "%s: the id of '%.64s' is not a number of its own below %zu", name, text, n);
		f->tokens[v] = text;
	}
	return 0;
}

/* The bytes of a token into out (room for strlen(text) + 1), its mark as a space; -1 when it
 * is no spelling. */
static int64_t token_bytes(const struct clip_files *f, const char *text, uint8_t *out)
{
	size_t n = strlen(text), mark = strlen(MARK), count = 0, length;
	if (strcmp(text, OPENING) == 0 || strcmp(text, CLOSING) == 0)
		return 0;
	bool marked = n > mark && strcmp(text + n - mark, MARK) == 0;
	n -= marked ? mark : 0;
	for (size_t i = 0; i < n; i += length) {
		uint32_t c = utf8_decode((const uint8_t *)text + i, n - i, &length);
		if (c >= ARRAY_LEN(f->byte) || f->byte[c] < 0)
			return -1;
		out[count++] = (uint8_t)f->byte[c];
	}
	if (marked)
		out[count++] = ' ';
	return (int64_t)count;
}

static int add_tokens(struct clip_files *f, struct bpe *b, struct error *e)
{
	for (uint32_t id = 0; id < f->size; id++) {
		struct buf text = {0};
		if (buf_reserve(&text, strlen(f->tokens[id]) + 1, e))
			return -1;
		int64_t n = token_bytes(f, f->tokens[id], text.p);
		if (n >= 0)
			bpe_add_token(b, text.p, (size_t)n);
		buf_free(&text);
		if (n < 0)
			return fail(e, STATUS_BAD, "%s: token %u, '%.64s', does not spell bytes", f->names[0], id, f->tokens[id]);
	}
	b->opening = find_token(f, OPENING);
	b->closing = find_token(f, CLOSING);
	if (b->opening == BPE_NONE || b->closing == BPE_NONE)
		return fail(e, STATUS_BAD, "%s: expected the tokens " OPENING " and " CLOSING, f->names[0]);
	for (int c = 0; c < 256; c++) {
		char symbol[16] = {0};
		size_t n = utf8_encode((uint8_t *)symbol, f->spelling[c]);
		b->inner[c] = find_token(f, symbol);
		memcpy(symbol + n, MARK, sizeof MARK);
		b->last[c] = find_token(f, symbol);
		if (b->inner[c] == BPE_NONE || b->last[c] == BPE_NONE)
			return fail(e, STATUS_BAD, "%s: expected a token for byte %d, and one with " MARK, f->names[0], c);
		b->fold[c] = (uint8_t)c; /* clip_normalise has folded already */
	}
	return 0;
}

/* One line "LEFT RIGHT", NUL-terminated. */
static int add_merge(const struct clip_files *f, struct bpe *b, char *line, size_t number, struct error *e)
{
	char *space = strchr(line, ' ');
	uint32_t left, right, made;
	if (!space || space == line || !space[1] || strchr(space + 1, ' '))
		return fail(e, STATUS_BAD, "%s: line %zu: expected two tokens", f->names[1], number);
	right = find_token(f, space + 1);
	*space = 0;
	left = find_token(f, line);
	memmove(space, space + 1, strlen(space + 1) + 1);
	made = find_token(f, line);
	if (left == BPE_NONE || right == BPE_NONE || made == BPE_NONE)
		return fail(e, STATUS_BAD, "%s: line %zu: a token that %s does not have", f->names[1], number, f->names[0]);
	if (bpe_add_merge(b, left, right, made))
		return fail(e, STATUS_BAD, "%s: line %zu: merged before", f->names[1], number);
	return 0;
}

static int add_merges(struct clip_files *f, struct bpe *b, struct error *e)
{
	char *p = (char *)f->merges.p;
	if (strlen(p) != f->merges.n)
		return fail(e, STATUS_BAD, "%s: holds NUL bytes, expected text", f->names[1]);
	for (size_t number = 1; *p; number++) {
		char *end = strchrnul(p, '\n'), *next = *end ? end + 1 : end;
		*end = 0;
		if (end > p && end[-1] == '\r')
			end[-1] = 0;
		if (*p && strncmp(p, "#version", 8) != 0 && add_merge(f, b, p, number, e))
			return -1;
		p = next;
	}
	return 0;
}

static int read_files(struct clip_files *f, const char *folder, struct error *e)
{
	static const char *const names[] = {"vocab.json", "merges.txt"};
	for (int i = 0; i < 2; i++)
		if ((size_t)snprintf(f->names[i], sizeof f->names[i], "%s/%s", folder, names[i]) >= sizeof f->names[i])
			return fail(e, STATUS_FAIL, "%s: the name is too long", folder);
	f->vocabulary = json_file_read(f->names[0], MAX_FILE, e);
	return f->vocabulary && !read_file(f->names[1], MAX_FILE, &f->merges, e) && !buf_add(&f->merges, "", 0, e) ? 0 : -1;
}

static size_t count_lines(const struct buf *b)
{
	size_t n = 1;
	for (size_t i = 0; i < b->n; i++)
		n += b->p[i] == '\n';
	return n;
}

static struct bpe *load(struct clip_files *f, const char *folder, struct error *e)
{
	spell_bytes(f);
	if (read_files(f, folder, e) || index_tokens(f, e))
		return NULL;
	size_t bytes = 0;
	for (uint32_t id = 0; id < f->size; id++)
		bytes += strlen(f->tokens[id]);
	size_t lines = count_lines(&f->merges);
	if (lines > BPE_MAX_SIZE) {
		fail(e, STATUS_BAD, "%s: %zu lines, expected at most %d", f->names[1], lines, BPE_MAX_SIZE);
		return NULL;
	}
	struct bpe *b = bpe_new(BPE_CLIP, (uint32_t)lines, f->size, bytes + 1, e);
	if (b && (add_tokens(f, b, e) || add_merges(f, b, e) || bpe_seal(b, e))) {
		bpe_close(b);
		return NULL;
	}
	return b;
}

struct bpe *bpe_open_clip(const char *folder, struct error *e)
{
	struct clip_files *f = mem_zero(1, sizeof *f, e);
	if (!f)
		return NULL;
	struct bpe *b = load(f, folder, e);
	json_decref(f->vocabulary);
	free(f->tokens);
	buf_free(&f->merges);
	free(f);
	return b;
}
