/* tok-cat.c - join token streams; take a slice, choose fields, change the compression. */
#include "../libcommon/fields.h"
#include "../libcommon/filter.h"
#include "../libcommon/opt.h"

static const char *output, *fields, *drop;
static int64_t skip, head = -1, level = STREAM_LEVEL;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_INT(0, "skip", &skip, 0, INT64_MAX, "N", "leave out the first N records"),
	OPT_INT('n', "head", &head, -1, INT64_MAX, "N", "write at most N records and stop; -1 for all"),
	OPT_STRING(0, "fields", &fields, "LIST", "keep only these fields, as key,image"),
	OPT_STRING(0, "drop", &drop, "LIST", "leave out these fields"),
	OPT_INT('l', "level", &level, -1, 22, "N", "compression level, 0 for none (bare), -1 to fit the content"),
	OPT_END
};
static const struct tool tool = {"tok-cat", "[OPTION]... [FILE]...",
                                 "Join token streams, take a slice, choose fields, change the compression", options};

static int choose_fields(unsigned *keep, struct error *e)
{
	unsigned dropped = 0;
	*keep = FIELD_ALL;
	if ((fields && fields_parse("--fields", fields, keep, e)) || (drop && fields_parse("--drop", drop, &dropped, e)))
		return -1;
	*keep &= ~dropped;
	return 0;
}

/* Stops reading as soon as enough is written: the rest of the input is then not checked. */
static int copy(struct filter *f, unsigned keep, struct error *e)
{
	int64_t written = 0, last = head < 0 ? INT64_MAX : head;
	while (written < last) {
		int n = filter_batch(f, 1, e);
		if (n <= 0)
			return n;
		if (f->records <= (uint64_t)skip)
			continue;
		record_project(&f->batch[0], keep);
		if (filter_put_batch(f, 1, e))
			return -1;
		written++;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct filter f;
	unsigned keep;
	if (choose_fields(&keep, &e))
		return finish(opt_misuse("%s", e.text));
	if (filter_open(&f, argc, argv, first, &e) == 0) {
		header_project(&f.header, keep);
		if (filter_start(&f, output, (int)level, &e) == 0)
			copy(&f, keep, &e);
	}
	return finish(filter_close(&f, &e));
}
