/* dalle-sample - records with text tokens -> several records each with drawn image tokens (recipe G1-G4). */
#include "../libcommon/ahead.h"
#include "../libcommon/model-main.h"
#include "../libcommon/sample.h"

#include <string.h>

static struct run_options run = RUN_DEFAULTS(64);
static const char *model, *output;
static int64_t samples = 1, top_k, prefix_rows, progressive, seed = 1;
static double temperature = 1, top_p = 1, guidance = 1;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model, "MODEL", "transformer of dalle-train"),
	OPT_INT('n', "samples", &samples, 1, 1 << 30, "N", "samples of each caption"),
	OPT_REAL('t', "temperature", &temperature, 0, 100, "X", "divides the logits; 0 always takes the most probable token"),
	OPT_INT(0, "top-k", &top_k, 0, 1 << 24, "N", "draw among the N most probable tokens only, 0 for all"),
	OPT_REAL(0, "top-p", &top_p, 1e-6, 1, "P", "draw among the fewest tokens that hold this probability"),
	OPT_REAL(0, "guidance", &guidance, 0, 100, "X", "strengthen the caption against the empty one, 1 for off"),
	OPT_INT(0, "prefix-rows", &prefix_rows, 0, 4096, "R", "keep the first R rows of the records' image tokens"),
	OPT_INT(0, "progressive", &progressive, 0, 4096, "R", "also write the unfinished samples after every R rows, 0 for none"),
	OPT_INT('s', "seed", &seed, 0, (double)INT64_MAX, "N", "seed of the draws"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"dalle-sample", "-m MODEL [OPTION]... [FILE]...",
                                 "Draw image tokens for captions", options};

struct work {
	struct dalle d;
	struct sampler *sampler;
	struct filter *f;
	struct ahead *in;     /* f's reader */
	struct record record; /* just read */
	bool ended;           /* the input */
	uint64_t read, drawn; /* records */
	uint64_t cut;         /* captions */
};

/* What came with the record and describes another picture, or none, does not stay. */
static int prepare_record(struct work *w, struct record *r, struct error *e)
{
	if (dalle_check_record(&w->d, r, ahead_name(w->in), prefix_rows > 0, e))
		return -1;
	w->cut += r->text.n >= (size_t)w->d.c.text_length;
	r->pixels.width = r->pixels.height = 0;
	r->has = HAS_SEED | HAS_SAMPLE;
	r->seed = (uint64_t)seed;
	return buf_set(&r->model, w->d.id, strlen(w->d.id), e);
}

/* Records for the samples that could start now.  A pipe is waited for only when there is nothing to draw; a file always,
 * so that the same command forms the same batches. */
static int feed(struct work *w, struct error *e)
{
	uint64_t done, total;
	ahead_progress(w->in, &done, &total);
	while (!w->ended && sampler_wants(w->sampler)) {
		int r = ahead_next(w->in, &w->record, total > 0 || sampler_idle(w->sampler), e);
		if (r < 0 || (r == AHEAD_RECORD && (prepare_record(w, &w->record, e) ||
		                                    sampler_submit(w->sampler, &w->record, samples, e))))
			return -1;
		if (r == AHEAD_LATER)
			return 0;
		w->ended = r == AHEAD_END;
		w->read += r == AHEAD_RECORD;
	}
	return 0;
}

/* The record is borrowed for the sample's tokens. */
static int put_sample(struct work *w, const struct sample *x, struct error *e)
{
	size_t n = (size_t)x->rows * (size_t)w->d.c.grid_w;
	struct record out = *x->record;
	out.sample = x->number;
	out.image = (struct tokens){.v = (uint32_t *)(uintptr_t)x->tokens, .n = n, .cap = n, .present = true};
	return writer_put(w->f->out, &out, e);
}

/* What the last step completed; who reads a pipe gets it at once. */
static int put_samples(struct work *w, struct error *e)
{
	struct sample x;
	bool any = false;
	while (sampler_next(w->sampler, &x)) {
		bool whole = x.rows == w->d.c.grid_h;
		if (!whole && (!progressive || x.rows % progressive))
			continue;
		if (put_sample(w, &x, e))
			return -1;
		w->drawn += whole;
		any = true;
	}
	w->f->progress.total = w->ended ? w->read * (uint64_t)samples : 0;
	progress_update(&w->f->progress, w->drawn, NULL);
	return any && !writer_kept(w->f->out) ? writer_flush(w->f->out, e) : 0;
}

static int draw_all(struct work *w, struct error *e)
{
	int r;
	do {
		if (feed(w, e))
			return -1;
		r = sampler_step(w->sampler, e);
		if (r < 0 || put_samples(w, e))
			return -1;
	} while (r > 0 || !w->ended);
	return 0;
}

static void set_header(struct header *h, const struct dalle *d)
{
	snprintf(h->image.id, sizeof h->image.id, "%s", d->image_id);
	h->image.size = (uint32_t)d->c.image_vocab;
	h->image.grid_width = (uint32_t)d->c.grid_w;
	h->image.grid_height = (uint32_t)d->c.grid_h;
	h->width = h->height = 0;
}

static int start(struct work *w, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	struct sample_options o = {temperature, (int)top_k, top_p, guidance, (int)prefix_rows, (uint64_t)seed};
	if (dalle_open(&w->d, model, ops, dev, e) || filter_open(w->f, argc, argv, first, e) ||
	    need_text(&w->f->header, reader_name(w->f->in), e) ||
	    dalle_check_stream(&w->d, model, &w->f->header, reader_name(w->f->in), prefix_rows > 0, e))
		return -1;
	/* Of so many captions are the samples of a batch. */
	int64_t captions = (run.batch + samples - 2) / samples + 1;
	w->sampler = sampler_new(&w->d, (int)run.batch, (int)captions, &o, e);
	if (!w->sampler)
		return -1;
	set_header(&w->f->header, &w->d);
	if (filter_start(w->f, output, STREAM_LEVEL, e))
		return -1;
	w->in = ahead_start(w->f->in, e);
	w->f->in = NULL;
	return w->in ? 0 : -1;
}

static int work(struct filter *f, const struct ops *ops, struct dev *dev, int argc, char **argv, int first, struct error *e)
{
	struct work w = {.f = f};
	int r = start(&w, ops, dev, argc, argv, first, e) || draw_all(&w, e) ? -1 : 0;
	if (w.cut)
		note(0, "%llu caption%s cut to %d token%s", (unsigned long long)w.cut, plural(w.cut), w.d.c.text_length - 1,
		     plural((uint64_t)w.d.c.text_length - 1));
	ahead_close(w.in);
	record_free(&w.record);
	sampler_free(w.sampler);
	dalle_free(&w.d);
	return r;
}

int main(int argc, char **argv)
{
	return model_main(&tool, &model, &run, argc, argv, work);
}
