/* dalle-sample - records with text tokens -> several records each with drawn image tokens (recipe G1-G4). */
#include "../libcommon/device.h"
#include "../libcommon/filter.h"
#include "../libcommon/sample.h"

#include <stdlib.h>
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
	OPT_INT(0, "progressive", &progressive, 0, 4096, "R", "also write the unfinished samples after every R rows"),
	OPT_INT('s', "seed", &seed, 0, INT64_MAX, "N", "seed of the draws"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"dalle-sample", "-m MODEL [OPTION]... [FILE]...",
                                 "Draw image tokens for captions", options};

struct work {
	struct dalle d;
	struct sampler *sampler;
	struct filter f;
	struct sample_job *jobs; /* (batch) */
	uint32_t *tokens;        /* (batch, N_I) */
	int n;                   /* jobs in use */
	uint64_t cut;
};

/* What came with the record and describes another picture, or none, does not stay. */
static int prepare_record(struct work *w, struct record *r, struct error *e)
{
	if (dalle_check_record(&w->d, r, reader_name(w->f.in), prefix_rows > 0, e))
		return -1;
	w->cut += r->text.n >= (size_t)w->d.c.text_length;
	r->pixels.width = r->pixels.height = 0;
	r->has = HAS_SEED | HAS_SAMPLE;
	r->seed = (uint64_t)seed;
	return buf_set(&r->model, w->d.id, strlen(w->d.id), e);
}

/* Write every job's first `count` tokens.  The record is borrowed for it and gets its own image tokens back, which
 * later samples of it need as their prefix. */
static int put_jobs(struct work *w, size_t count, struct error *e)
{
	for (int i = 0; i < w->n; i++) {
		struct record out = *w->jobs[i].record;
		out.sample = w->jobs[i].number;
		out.image = (struct tokens){.v = w->jobs[i].tokens, .n = count, .cap = count, .present = true};
		if (writer_put(w->f.out, &out, e))
			return -1;
	}
	return 0;
}

static int row_done(void *context, int rows, struct error *e)
{
	struct work *w = context;
	if (!progressive || rows % progressive || rows == w->d.c.grid_h)
		return 0;
	return put_jobs(w, (size_t)rows * (size_t)w->d.c.grid_w, e) || writer_flush(w->f.out, e) ? -1 : 0;
}

static int draw_jobs(struct work *w, struct error *e)
{
	if (sampler_run(w->sampler, w->jobs, w->n, row_done, w, e) || put_jobs(w, (size_t)dalle_image_length(&w->d.c), e))
		return -1;
	w->n = 0;
	return 0;
}

/* All samples of the n records of the filter's batch, in order, as many at once as fit. */
static int draw_records(struct work *w, int n, struct error *e)
{
	for (int i = 0; i < n; i++) {
		if (prepare_record(w, &w->f.batch[i], e))
			return -1;
		for (int64_t k = 0; k < samples; k++) {
			size_t at = (size_t)w->n * (size_t)dalle_image_length(&w->d.c);
			w->jobs[w->n++] = (struct sample_job){&w->f.batch[i], (uint32_t)k, w->tokens + at};
			if (w->n == run.batch && draw_jobs(w, e))
				return -1;
		}
	}
	return w->n ? draw_jobs(w, e) : 0;
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
	if (dalle_open(&w->d, model, ops, dev, e) || filter_open(&w->f, argc, argv, first, e) ||
	    need_text(&w->f.header, reader_name(w->f.in), e) ||
	    dalle_check_stream(&w->d, model, &w->f.header, reader_name(w->f.in), prefix_rows > 0, e))
		return -1;
	w->sampler = sampler_new(&w->d, (int)run.batch, &o, e);
	w->jobs = mem_alloc((size_t)run.batch, sizeof *w->jobs, e);
	w->tokens = mem_alloc((size_t)run.batch, (size_t)dalle_image_length(&w->d.c) * sizeof *w->tokens, e);
	if (!w->sampler || !w->jobs || !w->tokens)
		return -1;
	set_header(&w->f.header, &w->d);
	return filter_start(&w->f, output, STREAM_LEVEL, e);
}

int main(int argc, char **argv)
{
	struct error e = {0};
	struct work w = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	int first, n = -1, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!model)
		return finish(opt_misuse("-m MODEL is needed"));
	if (device_open(&run, &ops, &dev, &e) == 0)
		n = start(&w, ops, dev, argc, argv, first, &e);
	/* As many records at once as fill a batch. */
	int64_t records = (run.batch + samples - 1) / samples;
	while (n >= 0 && (n = filter_batch(&w.f, (int)records, &e)) > 0)
		n = draw_records(&w, n, &e) ? -1 : n;
	if (w.cut)
		note(0, "%llu captions were longer than %d tokens and were cut", (unsigned long long)w.cut, w.d.c.text_length - 1);
	status = filter_close(&w.f, &e);
	sampler_free(w.sampler);
	dalle_free(&w.d);
	device_close(ops, dev);
	free(w.jobs);
	free(w.tokens);
	return finish(status);
}
