/* bpe-encode - captions, as lines or in records, to records with text tokens. */
#include "../libcommon/bpe.h"
#include "../libcommon/filter.h"
#include "../libcommon/lines.h"
#include "../libcommon/opt.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *model, *output;
static double dropout;
static int64_t seed, length = 256, level = 3;
static bool strict, tab, zero;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model, "VOCAB", "vocabulary of bpe-train, or folder of a CLIP model"),
	OPT_INT('l', "length", &length, 2, STREAM_MAX_TOKENS, "N", "most tokens of a caption, what is over is cut"),
	OPT_REAL(0, "dropout", &dropout, 0, 1, "P", "BPE dropout: skip each merge with this probability"),
	OPT_INT('s', "seed", &seed, 0, INT64_MAX / 1024, "N", "seed of the dropout"),
	OPT_FLAG(0, "strict", &strict, "fail instead of cutting captions or mending their UTF-8"),
	OPT_FLAG('t', "tab", &tab, "lines are NAME<TAB>CAPTION, as in a list of pictures"),
	OPT_FLAG('0', "zero", &zero, "lines end with NUL, not newline"),
	OPT_INT(0, "level", &level, -1, 22, "N", "compression level, 0 for none (bare), -1 for the smallest file"),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"bpe-encode", "-m VOCAB [OPTION]... [FILE]...",
	"Add text tokens to captions", options};

struct job {
	struct bpe *bpe;
	struct bpe_coder *coder;
	struct buf key; /* of the present line, as it came */
	uint64_t records, captions, cut, mended;
};

/* Tokens of r's caption; `where` names the input for messages. */
static int encode_record(struct job *j, struct record *r, const char *where, struct error *e)
{
	j->records++;
	j->captions += r->caption.n > 0;
	uint32_t number = r->key.n ? bpe_record_number(r->key.p, r->key.n) : (uint32_t)j->records;
	if (bpe_encode(j->coder, r->caption.p, r->caption.n, dropout, (uint64_t)seed, number, &r->text, e))
		return -1;
	size_t n = r->text.n;
	if (!bpe_cut(j->bpe, &r->text, (size_t)length))
		return 0;
	j->cut++;
	if (strict)
		return fail(e, STATUS_BAD, "%s: caption %llu has %zu tokens, expected at most %lld (--length)", where,
			(unsigned long long)j->records, n, (long long)length);
	return 0;
}

static void set_codec(struct header *h, const struct bpe *b)
{
	snprintf(h->text.id, sizeof h->text.id, "%s", bpe_id(b));
	h->text.size = bpe_size(b);
	h->text.length = (uint32_t)length;
}

/* ---- lines ---- */

/* Key and caption from a line: the key is that of a list's line, or the line's number.  1, 0 nothing in it, -1. */
static int line_record(struct job *j, struct lines *l, const uint8_t *p, size_t n, struct record *r, struct error *e)
{
	unsigned long long number = lines_number(l);
	struct list_line line;
	record_clear(r);
	int given = lines_caption(l, tab, p, n, &line, e);
	if (given <= 0)
		return given;
	if (tab ? list_key(&j->key, &line, e) : buf_printf(&r->key, e, "%llu", number))
		return -1;
	int key = tab ? text_repair(j->key.p, j->key.n, &r->key, e) : 0,
	    caption = text_repair(line.caption, line.caption_n, &r->caption, e);
	if (key < 0 || caption < 0)
		return -1;
	j->mended += key || caption;
	if (strict && (key || caption))
		return fail(e, STATUS_BAD, "%s: line %llu is not UTF-8", lines_name(l), number);
	return 1;
}

static int encode_lines(struct job *j, struct lines *l, struct writer *out, struct error *e)
{
	struct record record = {0};
	struct progress progress;
	const uint8_t *p;
	size_t n;
	int r;
	bool typed = isatty(STDIN_FILENO); /* a caption that was typed goes on at once */
	progress_start(&progress, "bytes", 0);
	while ((r = lines_next(l, &p, &n, e)) > 0) {
		uint64_t done;
		lines_progress(l, &done, &progress.total);
		progress_update(&progress, done, NULL);
		if ((r = line_record(j, l, p, n, &record, e)) < 0)
			break;
		if (r && ((r = encode_record(j, &record, lines_name(l), e)) || (r = writer_put(out, &record, e)) ||
		          (r = typed ? writer_flush(out, e) : 0)))
			break;
	}
	progress_end(&progress);
	record_free(&record);
	return r;
}

static int from_lines(struct job *j, int argc, char **argv, int first, struct error *e)
{
	struct header header = {0};
	struct writer *out = NULL;
	struct lines *l = lines_open(argv + first, argc - first, zero ? 0 : '\n', e);
	set_codec(&header, j->bpe);
	if (l && header_add_program(&header, argc, argv, e) == 0 && (out = writer_open(output, &header, (int)level, e)))
		encode_lines(j, l, out, e);
	if (e->status)
		writer_abort(out);
	else
		writer_close(out, e);
	lines_close(l);
	header_free(&header);
	return e->status ? report(e) : STATUS_OK;
}

/* ---- records ---- */

static int from_records(struct job *j, int argc, char **argv, int first, struct error *e)
{
	struct filter f;
	int n = -1;
	if (filter_open(&f, argc, argv, first, e) == 0) {
		set_codec(&f.header, j->bpe);
		n = filter_start(&f, output, (int)level, e);
	}
	while (n >= 0 && (n = filter_batch(&f, 64, e)) > 0) {
		for (int i = 0; i < n; i++)
			if (encode_record(j, &f.batch[i], reader_name(f.in), e))
				return filter_close(&f, e);
		if (filter_put_batch(&f, n, e))
			break;
	}
	return filter_close(&f, e);
}

/* ---- main ---- */

static void summarise(const struct job *j)
{
	if (j->cut)
		note(0, "%llu of %llu caption%s cut to %lld tokens", (unsigned long long)j->cut,
			(unsigned long long)j->records, plural(j->records), (long long)length);
	if (j->mended)
		note(0, "%llu of %llu caption%s not UTF-8: bad bytes became U+FFFD", (unsigned long long)j->mended,
			(unsigned long long)j->records, plural(j->records));
	if (j->records && !j->captions)
		note(0, "%llu record%s without a caption", (unsigned long long)j->records, plural(j->records));
}

static int run(struct job *j, int argc, char **argv, int first)
{
	struct error e = {0};
	int is_stream = -1, status;
	if ((j->bpe = bpe_open(model, &e)) && (j->coder = bpe_coder_new(j->bpe, &e)))
		is_stream = stream_detect(first < argc ? argv[first] : "-", &e);
	if (is_stream < 0)
		return report(&e);
	if (is_stream && (tab || zero))
		return opt_misuse("-t and -0 are for lines, this input is a token stream");
	status = is_stream ? from_records(j, argc, argv, first, &e) : from_lines(j, argc, argv, first, &e);
	if (status == STATUS_OK)
		summarise(j);
	return status;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!model)
		return finish(opt_misuse("-m VOCAB is needed"));
	struct job j = {0};
	status = run(&j, argc, argv, first);
	buf_free(&j.key);
	bpe_coder_free(j.coder);
	bpe_close(j.bpe);
	return finish(status);
}
