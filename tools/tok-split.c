/* tok-split.c - one stream to two, by a hash of the record's key or by a list of keys. */
#include "../libcommon/hash.h"
#include "../libcommon/opt.h"
#include "../libcommon/progress.h"
#include "../libcommon/stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *output, *rest, *held_out, *match;
static int64_t seed, level = STREAM_LEVEL;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_STRING('r', "rest", &rest, "FILE", "write the held-out, or unlisted, records to FILE; without, drop them"),
	OPT_STRING(0, "held-out", &held_out, "P%", "share of keys to hold out, as 5% or 0.05"),
	OPT_STRING(0, "match", &match, "FILE", "keep the records whose key is a line of FILE"),
	OPT_INT(0, "seed", &seed, 0, INT64_MAX, "N", "choose another held-out part"),
	OPT_INT('l', "level", &level, -1, 22, "N", "compression level, 0 for none (bare), -1 to fit the content"),
	OPT_END
};
static const struct tool tool = {"tok-split", "[OPTION]... [FILE]...",
                                 "Split a token stream into training and held-out records", options};

enum { MAX_LIST = 1 << 30 };

struct key {
	const uint8_t *p;
	size_t n;
	bool seen;
};

struct chooser {
	double share;
	struct buf text; /* of the list */
	struct key *keys; /* sorted */
	size_t n;
};

/* ---- the list ---- */

static int by_bytes(const void *a, const void *b)
{
	const struct key *x = a, *y = b;
	int c = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);
	return c ? c : (x->n > y->n) - (x->n < y->n);
}

static int index_lines(struct chooser *c, struct error *e)
{
	const uint8_t *p = c->text.p, *end = p + c->text.n;
	size_t lines = 1;
	for (const uint8_t *q = p; q < end; q++)
		lines += *q == '\n';
	c->keys = mem_alloc(lines, sizeof *c->keys, e);
	if (!c->keys)
		return -1;
	while (p < end) {
		const uint8_t *stop = memchr(p, '\n', (size_t)(end - p));
		size_t n = (size_t)((stop ? stop : end) - p);
		if (n && p[n - 1] == '\r')
			n--;
		if (n)
			c->keys[c->n++] = (struct key){.p = p, .n = n};
		p = stop ? stop + 1 : end;
	}
	qsort(c->keys, c->n, sizeof *c->keys, by_bytes);
	return 0;
}

static void warn_unseen(const struct chooser *c)
{
	size_t missing = 0, distinct = 0;
	for (size_t i = 0; i < c->n; i++) {
		bool doubled = i + 1 < c->n && by_bytes(&c->keys[i], &c->keys[i + 1]) == 0;
		distinct += !doubled;
		missing += !doubled && !c->keys[i].seen;
	}
	if (missing)
		note(0, "%s: no record has %zu of the %zu key%s", match, missing, distinct, plural(distinct));
}

/* Doubled lines are one key: the last of them is marked. */
static bool is_listed(struct chooser *c, const struct buf *key)
{
	struct key want = {.p = key->p, .n = key->n};
	struct key *k = bsearch(&want, c->keys, c->n, sizeof *c->keys, by_bytes);
	if (!k)
		return false;
	while (k + 1 < c->keys + c->n && by_bytes(k, k + 1) == 0)
		k++;
	k->seen = true;
	return true;
}

/* ---- the hash ---- */

/* The same key falls on the same side in any stream; the seed turns the circle. */
static bool is_held_out(const struct chooser *c, const struct buf *key)
{
	uint64_t turn = (uint64_t)seed * 0x9E3779B97F4A7C15u;
	return (double)((hash64(key->p, key->n) + turn) >> 11) * 0x1p-53 < c->share;
}

static int parse_share(const char *s, double *share, struct error *e)
{
	size_t n = strlen(s);
	bool percent = n > 1 && s[n - 1] == '%';
	char number[32];
	if (n >= sizeof number)
		return fail(e, STATUS_USAGE, "'%.20s...' is not a number", s);
	memcpy(number, s, n + 1);
	if (percent)
		number[n - 1] = 0;
	if (parse_real(number, 0, percent ? 100 : 1, share, e))
		return -1;
	if (percent)
		*share /= 100;
	return 0;
}

/* ---- splitting ---- */

static int split(struct chooser *c, struct reader *in, struct writer *kept, struct writer *other, struct error *e)
{
	struct record r = {0};
	struct progress p;
	uint64_t done, total, number = 0;
	int k;
	reader_progress(in, &done, &total);
	progress_start(&p, "bytes", total);
	while ((k = reader_next(in, &r, e)) > 0) {
		number++;
		if (r.key.n == 0) {
			k = fail(e, STATUS_BAD, "%s: record %llu of the input has no key to split by", reader_name(in),
			         (unsigned long long)number);
			break;
		}
		struct writer *w = (c->keys ? is_listed(c, &r.key) : !is_held_out(c, &r.key)) ? kept : other;
		if (w && writer_put(w, &r, e))
			break;
		reader_progress(in, &done, &total);
		progress_update(&p, done, NULL);
	}
	progress_end(&p);
	record_free(&r);
	return e->status ? -1 : k;
}

static int close_both(struct writer *a, struct writer *b, struct error *e)
{
	if (!e->status && a)
		writer_close(a, e);
	else
		writer_abort(a);
	if (!e->status && b)
		writer_close(b, e);
	else
		writer_abort(b);
	return e->status ? -1 : 0;
}

static bool is_stdout(const char *name)
{
	return !name || strcmp(name, "-") == 0;
}

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;
	return strcmp(a, b) == 0 || (stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

/* Two streams into one place would be none, and an input that becomes a part of itself is easily lost. */
static int check_options(struct chooser *c, char *const *files, int n, struct error *e)
{
	if (!held_out == !match)
		return fail(e, STATUS_USAGE, "one of --held-out and --match is needed");
	if (rest && (is_stdout(rest) ? is_stdout(output) : !is_stdout(output) && same_file(output, rest)))
		return fail(e, STATUS_USAGE, "--output and --rest are the same file");
	for (int i = 0; rest && i < n; i++)
		if (same_file(files[i], rest))
			return fail(e, STATUS_USAGE, "--rest is %s, which is an input", rest);
	return held_out ? parse_share(held_out, &c->share, e) : 0;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct chooser c = {0};
	struct header h = {0};
	struct writer *kept = NULL, *other = NULL;
	if (check_options(&c, argv + first, argc - first, &e))
		return finish(opt_misuse("%s", e.text));
	struct reader *in = NULL;
	if (!match || (read_file(match, MAX_LIST, &c.text, &e) == 0 && index_lines(&c, &e) == 0))
		in = reader_open(argv + first, argc - first, &e);
	if (in && header_copy(&h, reader_header(in), &e) == 0 && header_add_program(&h, argc, argv, &e) == 0)
		kept = writer_open(output, &h, (int)level, &e);
	if (kept && rest)
		other = writer_open(rest, &h, (int)level, &e);
	if (kept && (other || !rest))
		split(&c, in, kept, other, &e);
	if (close_both(kept, other, &e) == 0 && match)
		warn_unseen(&c);
	reader_close(in);
	header_free(&h);
	buf_free(&c.text);
	free(c.keys);
	return finish(e.status ? report(&e) : STATUS_OK);
}
