/* bpe-train - captions, as lines or in records, to a BPE vocabulary. */
#include "../libcommon/bpe.h"
#include "../libcommon/lines.h"
#include "../libcommon/opt.h"
#include "../libcommon/progress.h"

#include <stdlib.h>
#include <string.h>

static int64_t size = 16384, min_count = 2;
static int rule;
static bool tab, zero;
static const char *output;

static const struct opt options[] = {
	OPT_INT('k', "size", &size, 256, BPE_MAX_SIZE, "SIZE", "tokens in the vocabulary, the 256 bytes included"),
	OPT_INT('f', "min-count", &min_count, 1, 1e15, "N", "merge only pairs that come at least N times"),
	OPT_CHOICE(0, "rule", &rule, BPE_RULES, "what may be merged: letters a-z, or non-ASCII bytes too"),
	OPT_FLAG('t', "tab", &tab, "lines are NAME<TAB>CAPTION, as in a list of pictures"),
	OPT_FLAG('0', "zero", &zero, "lines end with NUL, not newline"),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"bpe-train", "[OPTION]... [FILE]...",
	"Make a BPE vocabulary from captions", options};

static int count_lines(struct bpe_counts *c, char **files, int n, uint64_t *captions, struct error *e)
{
	struct lines *l = lines_open(files, n, zero ? 0 : '\n', e);
	const uint8_t *p;
	size_t length;
	int r = -1;
	struct progress progress;
	progress_start(&progress, "bytes", 0);
	while (l && (r = lines_next(l, &p, &length, e)) > 0) {
		struct list_line line;
		if ((r = lines_caption(l, tab, p, length, &line, e)) < 0)
			break;
		if (!line.caption)
			continue;
		if ((r = bpe_count(c, line.caption, line.caption_n, e)))
			break;
		uint64_t done;
		if (++*captions % 4096 == 0) {
			lines_progress(l, &done, &progress.total);
			progress_update(&progress, done, NULL);
		}
	}
	progress_end(&progress);
	lines_close(l);
	return r;
}

static int count_records(struct bpe_counts *c, char **files, int n, uint64_t *captions, struct error *e)
{
	struct reader *in = reader_open(files, n, e);
	struct record record = {0};
	struct progress progress;
	int r = -1;
	progress_start(&progress, "records", 0);
	while (in && (r = reader_next(in, &record, e)) > 0) {
		if ((r = bpe_count(c, record.caption.p, record.caption.n, e)))
			break;
		progress_update(&progress, ++*captions, NULL);
	}
	progress_end(&progress);
	record_free(&record);
	reader_close(in);
	return r;
}

static void show_size(void *context, uint32_t reached)
{
	progress_update(context, reached, NULL);
}

static struct bpe *train(const struct bpe_counts *c, struct error *e)
{
	struct progress progress;
	progress_start(&progress, "tokens", (uint64_t)size);
	struct bpe *b = bpe_train(c, (uint32_t)size, (uint64_t)min_count, show_size, &progress, e);
	progress_end(&progress);
	if (b && bpe_size(b) < size)
		note(0, "%u tokens instead of %lld: no other pair comes %lld time%s", bpe_size(b), (long long)size,
			(long long)min_count, plural((uint64_t)min_count));
	return b;
}

static int write_vocabulary(const struct bpe *b, struct error *e)
{
	struct buf text = {0};
	int r = bpe_format(b, &text, e) || write_file(output, text.p, text.n, false, e) ? -1 : 0;
	buf_free(&text);
	return r;
}

static int run(int argc, char **argv, int first, struct error *e)
{
	uint64_t captions = 0;
	struct bpe *b = NULL;
	struct bpe_counts *c = bpe_counts_new((enum bpe_rule)rule, e);
	int is_stream = c ? stream_detect(first < argc ? argv[first] : "-", e) : -1, r = -1;
	if (is_stream > 0)
		r = count_records(c, argv + first, argc - first, &captions, e);
	else if (is_stream == 0)
		r = count_lines(c, argv + first, argc - first, &captions, e);
	if (r == 0 && !captions)
		r = fail(e, STATUS_BAD, "no captions in the input");
	if (r == 0 && (b = train(c, e)))
		r = write_vocabulary(b, e);
	if (r == 0 && b)
		note(1, "%u tokens from %llu caption%s, id %s", bpe_size(b), (unsigned long long)captions, plural(captions),
		     bpe_id(b));
	bpe_counts_free(c);
	bpe_close(b);
	return e->status;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	return finish(run(argc, argv, first, &e) ? report(&e) : STATUS_OK);
}
