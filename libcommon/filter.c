/* filter.c - see filter.h. */
#include "filter.h"

#include <stdlib.h>

int filter_open(struct filter *f, int argc, char **argv, int first, struct error *e)
{
	*f = (struct filter){0};
	f->in = reader_open(argv + first, argc - first, e);
	if (!f->in || header_copy(&f->header, reader_header(f->in), e))
		return -1;
	return header_add_program(&f->header, argc, argv, e);
}

int filter_start(struct filter *f, const char *output, int level, struct error *e)
{
	f->out = writer_open(output, &f->header, level, e);
	if (!f->out)
		return -1;
	progress_start(&f->progress, "records", 0);
	return 0;
}

/* The number of records is not known before the end; the share of bytes read tells it
 * well enough for a time left.  The batch of n was read and is still to be computed. */
static void show_progress(struct filter *f, int n)
{
	uint64_t done, total;
	double seen = (double)f->records + n;
	reader_progress(f->in, &done, &total);
	f->progress.total = total && done && done <= total ? (uint64_t)(seen * ((double)total / (double)done)) : 0;
	progress_update(&f->progress, f->records, NULL);
}

int filter_batch(struct filter *f, int max, struct error *e)
{
	int n = 0;
	if (records_room(&f->batch, (size_t)max, &f->batch_cap, e))
		return -1;
	while (n < max) {
		int r = reader_next(f->in, &f->batch[n], e);
		if (r < 0)
			return -1;
		if (r == 0)
			break;
		n++;
	}
	show_progress(f, n);
	f->records += (uint64_t)n;
	return n;
}

int filter_put_batch(struct filter *f, int n, struct error *e)
{
	for (int i = 0; i < n; i++)
		if (writer_put(f->out, &f->batch[i], e))
			return -1;
	return 0;
}

int filter_close(struct filter *f, struct error *e)
{
	progress_end(&f->progress);
	if (e->status)
		writer_abort(f->out);
	else if (f->out)
		writer_close(f->out, e);
	reader_close(f->in);
	header_free(&f->header);
	records_free(f->batch, f->batch_cap);
	*f = (struct filter){0};
	return e->status ? report(e) : STATUS_OK;
}

static int lacks(const char *file, const char *what, const char *tool, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: holds no %s, expected them from %s", file, what, tool);
}

int need_text(const struct header *h, const char *file, struct error *e)
{
	return h->text.id[0] ? 0 : lacks(file, "text tokens", "bpe-encode", e);
}

int need_image(const struct header *h, const char *file, struct error *e)
{
	return h->image.id[0] ? 0 : lacks(file, "image tokens", "dvae-encode or dalle-sample", e);
}

int need_pixels(const struct record *r, const char *file, struct error *e)
{
	return r->pixels.width && r->pixels.height ? 0 : lacks(file, "pictures", "img-pack or dvae-decode", e);
}
