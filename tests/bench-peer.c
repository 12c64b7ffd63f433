/* bench-peer - training steps or batches of samples of a transformer of any size, one line of "name value" pairs for
 * tests/bench/peer-dalle-pytorch.sh: median and least seconds, the peak of resident memory in MiB, parameters.
 * The data are made up; every caption fills its room and is another one, so that no work is saved that a model which
 * treats padding like words would have to do.  With -j 1 the clock is the process's CPU time, as in bench-dalle. */
#include <stdlib.h>
#include <sys/resource.h>

#include "../libcommon/dalle.h"
#include "../libcommon/rng.h"
#include "../libcommon/sample.h"
#include "bench.h"

enum { TRAIN, SAMPLE };

static struct run_options run = RUN_DEFAULTS(4);
static int64_t layers = 8, width = 512, heads = 8, text_length = 256, grid = 32, text_vocab = 16384, image_vocab = 8192,
	       updates = 3;
static int what = TRAIN, mask = DALLE_MASK_PAPER;

static const struct opt options[] = {
	OPT_CHOICE('w', "what", &what, "train|sample", "steps of training, or batches of pictures"),
	OPT_INT(0, "layers", &layers, 1, 1024, "N", "layers, each attention and MLP"),
	OPT_INT(0, "width", &width, 1, 1 << 17, "N", "width of the residual stream, a multiple of --heads"),
	OPT_INT(0, "heads", &heads, 1, 4096, "N", "attention heads"),
	OPT_INT(0, "text-length", &text_length, 2, 1 << 16, "N", "text states"),
	OPT_INT(0, "grid", &grid, 1, 4096, "N", "side of the grid of image tokens"),
	OPT_INT(0, "text-vocab", &text_vocab, 1, 1 << 24, "N", "text tokens"),
	OPT_INT(0, "image-vocab", &image_vocab, 1, 1 << 24, "N", "image tokens"),
	OPT_CHOICE(0, "mask", &mask, DALLE_MASKS, "attention: the paper's row, column and conv layers, or all earlier states"),
	OPT_INT('n', "updates", &updates, 1, 1000, "N", "steps or batches; one more before them does not count"),
	OPT_RUN(&run),
	OPT_END,
};
static const struct tool tool = {"bench-peer", "[OPTION]...", "Seconds and memory of the transformer", options};

static double *seconds; /* (updates + 1) */

static void *need_memory(size_t n, size_t each)
{
	void *p = mem_zero(n, each, &err);
	need(p ? 0 : -1);
	return p;
}

static struct dalle_config config(void)
{
	struct dalle_config c = {.text_length = (int)text_length,
				 .text_vocab = (int)text_vocab,
				 .grid_w = (int)grid,
				 .grid_h = (int)grid,
				 .image_vocab = (int)image_vocab,
				 .layers = (int)layers,
				 .width = (int)width,
				 .heads = (int)heads,
				 .conv_k = 11,
				 .mask = mask};
	return c;
}

/* tokens[n, each]: row i is another one for each i and stream. */
static uint32_t *made_up(size_t n, size_t each, uint32_t stream, uint32_t vocab)
{
	uint32_t *v = need_memory(n * each, sizeof *v);
	for (size_t i = 0; i < n * each; i++)
		v[i] = rng_below(1, RNG_AUGMENT, (uint32_t)(i / each), stream << 20 | (uint32_t)(i % each), vocab);
	return v;
}

static void train(struct dalle *d)
{
	size_t B = (size_t)run.batch, L = (size_t)text_length - 1, N = (size_t)(grid * grid);
	uint32_t *text = made_up(B, L, 0, (uint32_t)text_vocab), *image = made_up(B, N, 1, (uint32_t)image_vocab);
	struct dalle_item *items = need_memory(B, sizeof *items);
	for (size_t i = 0; i < B; i++)
		items[i] = (struct dalle_item){.text = text + i * L, .text_n = L, .image = image + i * N};
	for (int64_t i = 0; i <= updates; i++) {
		double start = now();
		update_dalle(d, items, (int)run.batch, i + 1);
		seconds[i] = now() - start;
	}
	free(items);
	free(image);
	free(text);
}

/* One sample of each of B captions. */
static void sample_all(struct sampler *s, const struct record *records, size_t B)
{
	struct sample x;
	int r;
	for (size_t i = 0; i < B; i++)
		need(sampler_submit(s, &records[i], 1, &err));
	while ((r = sampler_step(s, &err)) > 0)
		while (sampler_next(s, &x))
			;
	need(r);
}

static void sample(struct dalle *d)
{
	size_t B = (size_t)run.batch, L = (size_t)text_length - 1;
	struct sample_options o = {.temperature = 1, .top_p = 1, .guidance = 1};
	struct sampler *s = sampler_new(d, (int)B, (int)B, &o, &err);
	struct record *records = need_memory(B, sizeof *records);
	uint32_t *text = made_up(B, L, 0, (uint32_t)text_vocab);
	need(s ? 0 : -1);
	for (size_t i = 0; i < B; i++)
		need(tokens_set(&records[i].text, text + i * L, L, &err));
	for (int64_t i = 0; i <= updates; i++) {
		double start = now();
		sample_all(s, records, B);
		seconds[i] = now() - start;
	}
	for (size_t i = 0; i < B; i++)
		record_free(&records[i]);
	sampler_free(s);
	free(text);
	free(records);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Without the first, which warms up. */
static void print_figures(const struct dalle *d)
{
	struct rusage use;
	size_t n = (size_t)updates;
	double *s = seconds + 1;
	getrusage(RUSAGE_SELF, &use);
	qsort(s, n, sizeof *s, by_size);
	printf("median %.4f least %.4f mib %ld parameters %llu\n", (s[(n - 1) / 2] + s[n / 2]) / 2, s[0], use.ru_maxrss / 1024,
	       (unsigned long long)params_count(&d->params));
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct dalle d = {0};
	struct dalle_config c = config();
	need(dalle_config_check(&c, &err) || device_open(&run, &ops, &dev, &err));
	need(dalle_describe(&d, &c, 1, false, &err) || dalle_build(&d, ops, dev, what == TRAIN, &err) ||
	     params_init(&d.params, 1, &err));
	seconds = need_memory((size_t)updates + 1, sizeof *seconds);
	if (what == TRAIN) {
		need(dalle_plan(&d, (int)run.batch, true, &err));
		train(&d);
	} else {
		sample(&d);
	}
	print_figures(&d);
	free(seconds);
	dalle_free(&d);
	device_close(ops, dev);
	return finish(STATUS_OK);
}
