/* dalle-score - what a transformer makes of given pairs: nats per text token and per image token. */
#include "../libcommon/dalle.h"
#include "../libcommon/model-main.h"

#include <stdlib.h>

static struct run_options run = RUN_DEFAULTS(32);
static const char *model, *output;
static bool rotate, summary;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model, "MODEL", "transformer of dalle-train"),
	OPT_FLAG(0, "rotate-captions", &rotate, "score each picture with the caption of the next record"),
	OPT_FLAG(0, "summary", &summary, "write means over all records as one line of JSON, and no records"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"dalle-score", "-m MODEL [OPTION]... [FILE]...",
                                 "Add negative log-likelihoods to text and image tokens", options};

struct work {
	struct dalle d;
	struct filter *f;
	struct dalle_item *items;   /* (batch) */
	struct record **records;    /* (batch) what the items are of */
	int n;
	struct record carry, first; /* rotation: waits for the next caption; its caption closes the circle */
	bool carried;
	double text, image;         /* nats */
	int64_t text_count, image_count;
};

/* Score the items gathered so far and pass their records on. */
static int flush(struct work *w, struct error *e)
{
	struct dalle_loss l;
	if (w->n == 0)
		return 0;
	if (dalle_likelihood(&w->d, w->items, w->n, false, 1, &l, e))
		return -1;
	w->text += l.text, w->text_count += l.text_count;
	w->image += l.image, w->image_count += l.image_count;
	for (int i = 0; i < w->n && !summary; i++) {
		struct record *r = w->records[i];
		r->nll_text = l.text_n[i] ? (float)(l.text_of[i] / l.text_n[i]) : 0;
		r->nll_image = (float)(l.image_of[i] / dalle_image_length(&w->d.c));
		r->has |= HAS_NLL_TEXT | HAS_NLL_IMAGE;
		if (writer_put(w->f->out, r, e))
			return -1;
	}
	w->n = 0;
	return 0;
}

static void add(struct work *w, struct record *r, const struct record *caption)
{
	w->items[w->n] = (struct dalle_item){.text = caption->text.v, .text_n = caption->text.n, .image = r->image.v};
	w->records[w->n++] = r;
}

/* Record i of the batch is scored once the caption after it is known: the batch's last one is carried over. */
static int score_rotated(struct work *w, int n, struct error *e)
{
	struct record *b = w->f->batch;
	if (w->carried)
		add(w, &w->carry, &b[0]);
	else if (record_copy(&w->first, &b[0], e))
		return -1;
	for (int i = 0; i + 1 < n; i++) {
		if (w->n == run.batch && flush(w, e))
			return -1;
		add(w, &b[i], &b[i + 1]);
	}
	if (flush(w, e) || record_copy(&w->carry, &b[n - 1], e))
		return -1;
	w->carried = true;
	return 0;
}

static int score(struct work *w, int n, struct error *e)
{
	for (int i = 0; i < n; i++)
		if (dalle_check_record(&w->d, &w->f->batch[i], reader_name(w->f->in), true, e))
			return -1;
	if (rotate)
		return score_rotated(w, n, e);
	for (int i = 0; i < n; i++)
		add(w, &w->f->batch[i], &w->f->batch[i]);
	return flush(w, e);
}

static int end(struct work *w, struct error *e)
{
	if (w->carried) {
		add(w, &w->carry, &w->first);
		if (flush(w, e))
			return -1;
	}
	if (w->d.cut)
		note(0, "%llu caption%s cut to %d token%s", (unsigned long long)w->d.cut, plural(w->d.cut), w->d.c.text_length - 1,
		     plural((uint64_t)w->d.c.text_length - 1));
	return 0;
}

static int put_summary(const struct work *w, struct error *e)
{
	struct buf line = {0};
	int r = buf_printf(&line, e, "{\"records\": %llu, \"text_tokens\": %lld, \"image_tokens\": %lld, \"nll_text\": %.6f, "
	                   "\"nll_image\": %.6f, \"captions\": \"%s\"}\n", (unsigned long long)w->f->records,
	                   (long long)w->text_count, (long long)w->image_count,
	                   w->text_count ? w->text / (double)w->text_count : 0,
	                   w->image_count ? w->image / (double)w->image_count : 0, rotate ? "rotated" : "own");
	if (r == 0)
		r = write_file(output, line.p, line.n, false, e);
	buf_free(&line);
	return r;
}

static int start(struct work *w, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	if (dalle_open(&w->d, model, ops, dev, e) || filter_open(w->f, argc, argv, first, e) ||
	    need_text(&w->f->header, reader_name(w->f->in), e) || need_image(&w->f->header, reader_name(w->f->in), e) ||
	    dalle_check_stream(&w->d, model, &w->f->header, reader_name(w->f->in), true, e) ||
	    dalle_plan(&w->d, (int)run.batch, false, e))
		return -1;
	w->items = mem_alloc((size_t)run.batch, sizeof *w->items, e);
	w->records = mem_alloc((size_t)run.batch, sizeof *w->records, e);
	if (!w->items || !w->records)
		return -1;
	return summary ? 0 : filter_start(w->f, output, STREAM_LEVEL, e);
}

static int work(struct filter *f, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	struct work w = {.f = f};
	int n = start(&w, ops, dev, argc, argv, first, e);
	while (n >= 0 && (n = filter_batch(f, (int)run.batch, e)) > 0)
		n = score(&w, n, e) ? -1 : n;
	if (n == 0)
		n = end(&w, e);
	if (n == 0 && summary)
		n = put_summary(&w, e);
	record_free(&w.carry);
	record_free(&w.first);
	dalle_free(&w.d);
	free(w.items);
	free(w.records);
	return n;
}

int main(int argc, char **argv)
{
	return model_main(&tool, &model, &run, argc, argv, work);
}
