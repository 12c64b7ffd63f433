/* tok-dump.c - a token stream as JSON lines, one object a record. */
#include "../libcommon/fields.h"
#include "../libcommon/opt.h"
#include "../libcommon/stream.h"

#include <stdlib.h>
#include <string.h>

static const char *output, *fields;
static bool pixels;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_STRING(0, "fields", &fields, "LIST", "only these fields, as key,image"),
	OPT_FLAG(0, "pixels", &pixels, "pictures too, as base64"),
	OPT_END
};
static const struct tool tool = {"tok-dump", "[OPTION]... [FILE]...", "Write token streams as JSON lines", options};

struct sink {
	struct outfile out;
	struct buf text;
};

static int sink_flush(struct sink *s, struct error *e)
{
	size_t n = s->text.n;
	s->text.n = 0;
	return n ? write_full(s->out.fd, s->text.p, n, s->out.path, e) : 0;
}

static int put_line(struct sink *s, const struct record *r, unsigned keep, struct error *e)
{
	json_t *o = record_to_json(r, keep, e);
	char *line = o ? json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9)) : NULL;
	json_decref(o);
	if (!line)
		return fail(e, STATUS_LIMIT, "out of memory");
	int k = buf_add(&s->text, line, strlen(line), e) || buf_add(&s->text, "\n", 1, e) ? -1 : 0;
	free(line);
	return k == 0 && s->text.n > 1 << 16 ? sink_flush(s, e) : k;
}

static int dump(struct reader *in, struct sink *s, unsigned keep, struct error *e)
{
	struct record r = {0};
	int k;
	while ((k = reader_next(in, &r, e)) > 0)
		if (put_line(s, &r, keep, e))
			break;
	record_free(&r);
	return e->status || sink_flush(s, e) ? -1 : k;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct sink s = {.out = {.fd = -1}};
	unsigned keep = FIELD_ALL & ~(unsigned)FIELD_PIXELS;
	if (fields && fields_parse("--fields", fields, &keep, &e))
		return finish(opt_misuse("%s", e.text));
	if (pixels)
		keep |= FIELD_PIXELS;
	struct reader *in = reader_open(argv + first, argc - first, &e);
	if (in && outfile_open(&s.out, output, &e) == 0 && dump(in, &s, keep, &e) == 0)
		outfile_commit(&s.out, &e);
	outfile_abort(&s.out);
	reader_close(in);
	buf_free(&s.text);
	return finish(e.status ? report(&e) : STATUS_OK);
}
