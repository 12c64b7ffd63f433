/* bpe-file.c - the vocabulary file (FILES of bpe-train(1)): lines that a person can read and grep.
 *
 *	dalle-bpe 1
 *	rule paper
 *	size 16384
 *	# any comments
 *	116 104 th            merge 0: tokens 116 and 104 make token 256, which reads "th"
 *	256 101 the           merge 1 makes token 257, and so on
 *
 * The third column says nothing new; it is there for people and as a check. */
#include "bpe-private.h"

#include <string.h>
#include <sys/stat.h>

static const char *const rule_names[] = {"paper", "wide"};

/* ---- reading ---- */

struct text_lines {
	const char *name;
	const uint8_t *p, *end;
	size_t number; /* of the line read last */
};

/* The next line without its newline; false at the end or when the last one has none. */
static bool next_line(struct text_lines *l, const uint8_t **line, size_t *n)
{
	const uint8_t *newline = l->p < l->end ? memchr(l->p, '\n', (size_t)(l->end - l->p)) : NULL;
	if (!newline)
		return false;
	*line = l->p;
	*n = (size_t)(newline - l->p);
	l->p = newline + 1;
	l->number++;
	return true;
}

static int bad_line(const struct text_lines *l, struct error *e, const char *expected)
{
	return fail(e, STATUS_BAD, "%s: line %zu: expected %s", l->name, l->number, expected);
}

static bool take_word(const uint8_t **p, size_t *n, const char *word)
{
	size_t length = strlen(word);
	if (*n < length || memcmp(*p, word, length) != 0)
		return false;
	*p += length;
	*n -= length;
	return true;
}

/* A decimal number as we write it: no sign, no leading zero, at most seven digits. */
static bool take_number(const uint8_t **p, size_t *n, uint32_t *v)
{
	size_t i = 0;
	for (*v = 0; i < *n && i < 7 && (*p)[i] >= '0' && (*p)[i] <= '9'; i++)
		*v = *v * 10 + (uint32_t)((*p)[i] - '0');
	bool good = i > 0 && ((*p)[0] != '0' || i == 1);
	*p += i;
	*n -= i;
	return good;
}

static bool is_comment(const uint8_t *p, size_t n)
{
	return n > 0 && p[0] == '#';
}

static int parse_head(struct text_lines *l, enum bpe_rule *rule, uint32_t *size, struct error *e)
{
	const uint8_t *p;
	size_t n;
	if (!next_line(l, &p, &n) || !take_word(&p, &n, "dalle-bpe ") || n == 0)
		return fail(e, STATUS_BAD, "%s: not a BPE vocabulary: expected 'dalle-bpe 1' as the first line", l->name);
	if (n != 1 || *p != '1')
		return bad_line(l, e, "version 1, this is another");
	if (!next_line(l, &p, &n) || !take_word(&p, &n, "rule "))
		return bad_line(l, e, "'rule paper' or 'rule wide' as the second line");
	*rule = n == 5 && memcmp(p, "paper", 5) == 0 ? BPE_PAPER : BPE_WIDE;
	if (*rule == BPE_WIDE && (n != 4 || memcmp(p, "wide", 4) != 0))
		return bad_line(l, e, "rule paper or wide");
	if (!next_line(l, &p, &n) || !take_word(&p, &n, "size ") || !take_number(&p, &n, size) || n != 0 ||
		*size < 256 || *size > BPE_MAX_SIZE)
		return bad_line(l, e, "'size N' as the third line, N from 256 to 1048576");
	return 0;
}

static int escape_text(struct buf *out, const uint8_t *p, size_t n, struct error *e)
{
	for (size_t i = 0; i < n; i++) {
		bool plain = p[i] > 32 && p[i] < 127 && p[i] != '\\';
		if (plain ? buf_add(out, p + i, 1, e) : buf_printf(out, e, "\\x%02x", p[i]))
			return -1;
	}
	return 0;
}

/* Make the token of two others; -1 when it is too long or holds what the rule never merges. */
static int join_tokens(struct bpe *b, uint32_t left, uint32_t right)
{
	uint8_t text[2 * BPE_MAX_TOKEN];
	size_t n, m;
	const uint8_t *p = bpe_token(b, left, &n), *q = bpe_token(b, right, &m);
	if (n + m > BPE_MAX_TOKEN)
		return -1;
	memcpy(text, p, n);
	memcpy(text + n, q, m);
	for (size_t i = 0; i < n + m; i++)
		if (!b->letter[text[i]] || b->fold[text[i]] != text[i])
			return -1;
	bpe_add_token(b, text, n + m);
	return 0;
}

static int parse_merge(struct bpe *b, struct text_lines *l, const uint8_t *p, size_t n, struct buf *scratch, struct error *e)
{
	uint32_t left, right;
	if (!take_number(&p, &n, &left) || !take_word(&p, &n, " ") || !take_number(&p, &n, &right) ||
		!take_word(&p, &n, " "))
		return bad_line(l, e, "a merge: 'LEFT RIGHT TEXT'");
	if (left >= b->size || right >= b->size)
		return fail(e, STATUS_BAD, "%s: line %zu: merge of tokens %u and %u, but only %u are made so far", l->name,
			l->number, left, right, b->size);
	uint32_t made = b->size;
	if (bpe_add_merge(b, left, right, made))
		return fail(e, STATUS_BAD, "%s: line %zu: tokens %u and %u are merged twice", l->name, l->number, left, right);
	if (join_tokens(b, left, right))
		return bad_line(l, e, "a token of at most 256 bytes, all of them letters of the rule");
	size_t length;
	const uint8_t *text = bpe_token(b, made, &length);
	scratch->n = 0;
	if (escape_text(scratch, text, length, e))
		return -1;
	if (n != scratch->n || memcmp(p, scratch->p, n) != 0)
		return fail(e, STATUS_BAD, "%s: line %zu: the text is not that of tokens %u and %u, expected '%s'", l->name,
			l->number, left, right, (const char *)scratch->p);
	return 0;
}

static int parse_merges(struct bpe *b, uint32_t size, struct text_lines *l, struct error *e)
{
	struct buf scratch = {0};
	const uint8_t *p;
	size_t n;
	int r = 0;
	while (r == 0 && next_line(l, &p, &n)) {
		if (is_comment(p, n))
			continue;
		if (b->size == size)
			r = fail(e, STATUS_BAD, "%s: line %zu: more merges than the size of %u says", l->name, l->number, size);
		else
			r = parse_merge(b, l, p, n, &scratch, e);
	}
	buf_free(&scratch);
	if (r == 0 && (b->size < size || l->p < l->end))
		r = fail(e, STATUS_BAD, "%s: truncated: %u tokens, expected %u", l->name, b->size, size);
	return r;
}

struct bpe *bpe_parse(const void *text, size_t n, const char *name, struct error *e)
{
	struct text_lines l = {name, text, (const uint8_t *)text + n, 0};
	enum bpe_rule rule = BPE_PAPER;
	uint32_t size = 256;
	if (parse_head(&l, &rule, &size, e))
		return NULL;
	/* "0 0 aa\n" is the shortest merge: a file that cannot hold its merges gets no memory. */
	if ((size - 256) > n / 7) {
		fail(e, STATUS_BAD, "%s: truncated: %zu bytes cannot hold %u merges", name, n, size - 256);
		return NULL;
	}
	/* Every token's text is in the file, so n bounds the texts. */
	struct bpe *b = bpe_new(rule, size - 256, size, n + 256, e);
	if (!b)
		return NULL;
	bpe_set_bytes(b);
	if (parse_merges(b, size, &l, e) || bpe_seal(b, e)) {
		bpe_close(b);
		return NULL;
	}
	return b;
}

struct bpe *bpe_open(const char *path, struct error *e)
{
	struct stat st;
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return bpe_open_clip(path, e);
	struct buf file = {0};
	struct bpe *b = NULL;
	if (read_file(path, BPE_MAX_FILE, &file, e) == 0)
		b = bpe_parse(file.p, file.n, path, e);
	buf_free(&file);
	return b;
}

/* ---- writing ---- */

int bpe_format(const struct bpe *b, struct buf *out, struct error *e)
{
	if (b->rule == BPE_CLIP)
		return fail(e, STATUS_FAIL, "a CLIP vocabulary stays in the files of its model");
	if (buf_printf(out, e, "dalle-bpe 1\nrule %s\nsize %u\n", rule_names[b->rule], b->size) ||
		buf_printf(out, e, "# LEFT RIGHT TEXT; tokens 0 to 255 are bytes, each line makes the next token from 256 on\n"))
		return -1;
	for (uint32_t i = 0; i < b->merges; i++) {
		size_t n;
		const uint8_t *text = bpe_token(b, b->made[i], &n);
		if (buf_printf(out, e, "%u %u ", b->left[i], b->right[i]) || escape_text(out, text, n, e) ||
			buf_add(out, "\n", 1, e))
			return -1;
	}
	return 0;
}
