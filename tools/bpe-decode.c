/* bpe-decode - text tokens of records to lines. */
#include "../libcommon/bpe.h"
#include "../libcommon/filter.h"
#include "../libcommon/opt.h"

#include <stdlib.h>
#include <string.h>

static const char *model, *output, *separator = "";
static bool tab, zero;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model, "VOCAB", "vocabulary that made the tokens"),
	OPT_STRING(0, "separator", &separator, "TEXT", "write TEXT between tokens, to see where words are cut"),
	OPT_FLAG('t', "tab", &tab, "write KEY<TAB>CAPTION"),
	OPT_FLAG('0', "zero", &zero, "end lines with NUL and leave newlines in captions"),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"bpe-decode", "-m VOCAB [OPTION]... [FILE]...",
	"Write text tokens as lines", options};

static int check_header(const struct header *h, const struct bpe *b, const char *file, struct error *e)
{
	if (need_text(h, file, e))
		return -1;
	if (strcmp(h->text.id, bpe_id(b)) != 0)
		return fail(e, STATUS_BAD, "%s: tokens of vocabulary %s, but %s is %s", file, h->text.id, model, bpe_id(b));
	return 0;
}

/* Captions may hold what would end a line or a column. */
static void one_line(uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] == '\n' || p[i] == '\r' || (tab && p[i] == '\t'))
			p[i] = ' ';
}

static int add_text(const struct bpe *b, const struct tokens *t, struct buf *line, struct error *e)
{
	struct buf piece = {0};
	int r = 0;
	size_t at = line->n;
	if (!*separator) {
		r = bpe_decode(b, t->v, t->n, &piece, e) || buf_add(line, piece.p, piece.n, e);
	} else {
		for (size_t i = 0; i < t->n && r == 0; i++)
			r = bpe_decode(b, t->v + i, 1, &piece, e) || (i && buf_add(line, separator, strlen(separator), e)) ||
				buf_add(line, piece.p, piece.n, e);
	}
	buf_free(&piece);
	if (r == 0 && !zero)
		one_line(line->p + at, line->n - at);
	return r ? -1 : 0;
}

static int add_line(const struct bpe *b, const struct record *r, struct buf *out, struct error *e)
{
	size_t at = out->n;
	if (tab) {
		if (buf_add(out, r->key.p, r->key.n, e))
			return -1;
		one_line(out->p + at, out->n - at);
		if (buf_add(out, "\t", 1, e))
			return -1;
	}
	return add_text(b, &r->text, out, e) || buf_add(out, zero ? "" : "\n", 1, e) ? -1 : 0;
}

static int decode_all(const struct bpe *b, struct reader *in, struct outfile *out, struct error *e)
{
	struct record record = {0};
	struct buf text = {0};
	int r;
	while ((r = reader_next(in, &record, e)) > 0) {
		if ((r = add_line(b, &record, &text, e)))
			break;
		if (text.n < 1 << 16)
			continue;
		if ((r = write_full(out->fd, text.p, text.n, out->path, e)))
			break;
		text.n = 0;
	}
	if (r == 0)
		r = write_full(out->fd, text.p, text.n, out->path, e);
	buf_free(&text);
	record_free(&record);
	return r;
}

static int run(int argc, char **argv, int first, struct error *e)
{
	struct bpe *b = bpe_open(model, e);
	struct reader *in = b ? reader_open(argv + first, argc - first, e) : NULL;
	struct outfile out = {0};
	if (in && check_header(reader_header(in), b, reader_name(in), e) == 0 && outfile_open(&out, output, e) == 0 &&
	    decode_all(b, in, &out, e) == 0)
		outfile_commit(&out, e);
	outfile_abort(&out);
	reader_close(in);
	bpe_close(b);
	return e->status;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!model)
		return finish(opt_misuse("-m VOCAB is needed"));
	return finish(run(argc, argv, first, &e) ? report(&e) : STATUS_OK);
}
