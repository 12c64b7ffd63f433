/* tok-load.c - JSON lines, as tok-dump writes them, to a token stream. */
#include "../libcommon/fields.h"
#include "../libcommon/opt.h"
#include "../libcommon/stream.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *output, *like;
static int64_t level = STREAM_LEVEL;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_STRING(0, "like", &like, "FILE", "take vocabulary, image codec and sizes from this stream's header"),
	OPT_INT('l', "level", &level, -1, 22, "N", "compression level, 0 for none (bare), -1 to fit the content"),
	OPT_END
};
static const struct tool tool = {"tok-load", "[OPTION]... [FILE]...", "Make a token stream of JSON lines", options};

static int take_header(struct header *h, struct error *e)
{
	struct reader *in = like ? reader_open((char *const *)&like, 1, e) : NULL;
	int r = !like ? 0 : in ? header_copy(h, reader_header(in), e) : -1;
	reader_close(in);
	return r;
}

/* One line without its end into b: 1, 0 at the end of the file, -1. */
static int read_line(FILE *f, const char *name, struct buf *b, struct error *e)
{
	int c = 0;
	b->n = 0;
	while ((c = getc_unlocked(f)) != EOF && c != '\n') {
		uint8_t byte = (uint8_t)c;
		if (b->n > STREAM_MAX_RECORD)
			return fail(e, STATUS_LIMIT, "%s: a line over the limit of %d bytes", name, STREAM_MAX_RECORD);
		if (b->n + 2 > b->cap ? buf_add(b, &byte, 1, e) : (b->p[b->n++] = byte, 0))
			return -1;
	}
	if (ferror(f))
		return fail_errno(e, "%s", name);
	return c != EOF || b->n > 0;
}

static bool is_blank(const struct buf *b)
{
	for (size_t i = 0; i < b->n; i++)
		if (!strchr(" \t\r", b->p[i]))
			return false;
	return true;
}

static int take_line(struct writer *w, struct record *r, const struct buf *line, const char *where, struct error *e)
{
	json_error_t why;
	json_t *o = json_loadb((const char *)line->p, line->n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
	if (!o)
		return fail(e, STATUS_BAD, "%s: not JSON: %s", where, why.text);
	struct error inner = {0};
	int k = record_from_json(r, o, &inner);
	json_decref(o);
	if (k)
		return fail(e, inner.status, "%s: %s", where, inner.text);
	if (writer_put(w, r, &inner))
		return fail(e, inner.status, "%s: %s", where, inner.text);
	return 0;
}

static int load(struct writer *w, const char *path, struct error *e)
{
	bool is_stdin = strcmp(path, "-") == 0;
	const char *name = is_stdin ? "stdin" : path;
	FILE *f = is_stdin ? stdin : fopen(path, "rb");
	struct buf line = {0};
	struct record r = {0};
	char where[300];
	int k = 0;
	if (!f)
		return fail_errno(e, "%s", name);
	if (isatty(fileno(f)))
		k = fail(e, STATUS_USAGE, "%s: is a terminal, expected JSON lines from a file or a pipe", name);
	for (uint64_t number = 1; k == 0 && (k = read_line(f, name, &line, e)) > 0; number++) {
		snprintf(where, sizeof where, "%s: line %llu", name, (unsigned long long)number);
		k = is_blank(&line) ? 0 : take_line(w, &r, &line, where, e);
	}
	if (!is_stdin)
		fclose(f);
	buf_free(&line);
	record_free(&r);
	return k;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct header h = {0};
	struct writer *w = NULL;
	if (take_header(&h, &e) == 0 && header_add_program(&h, argc, argv, &e) == 0)
		w = writer_open(output, &h, (int)level, &e);
	if (w && first == argc)
		load(w, "-", &e);
	for (int i = first; w && i < argc && !e.status; i++)
		load(w, argv[i], &e);
	if (e.status)
		writer_abort(w);
	else
		writer_close(w, &e);
	header_free(&h);
	return finish(e.status ? report(&e) : STATUS_OK);
}
