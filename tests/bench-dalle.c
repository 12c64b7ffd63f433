/* bench-dalle.c - rates of a whole training update and of sampling for one preset, beside the rates of large matrix
 * products and of reading memory in the same run: the share of these is what matters, not the seconds of a
 * shared machine.  With -j 1 the clock is the process's CPU time, so that other programs disturb less. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../libcommon/dalle.h"
#include "../libcommon/rng.h"
#include "../libcommon/sample.h"
#include "bench.h"

static struct run_options run = RUN_DEFAULTS(0);
static const char *preset = "small";
static int64_t updates = 4, layers, width, heads, most = 256, pictures;
static double budget = 1, peak;
static bool lean;

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes: " DALLE_PRESETS),
	OPT_INT(0, "layers", &layers, 0, 1024, "N", "layers, 0 for the preset's"),
	OPT_INT(0, "width", &width, 0, 1 << 17, "N", "width, 0 for the preset's"),
	OPT_INT(0, "heads", &heads, 0, 1 << 12, "N", "heads, 0 for the preset's"),
	OPT_INT('n', "updates", &updates, 0, 1000, "N", "updates to try, the fastest counts; 0 for sampling only"),
	OPT_INT(0, "most", &most, 0, 1 << 16, "N", "largest batch to sample, 0 for training only"),
	OPT_INT(0, "images", &pictures, 0, 1 << 16, "N", "sample so many whole pictures of one caption, too"),
	OPT_FLAG(0, "lean", &lean, "weights, gradients and moments in 16 bits, no averages, activations computed again"),
	OPT_REAL(0, "peak", &peak, 0, 1e6, "X", "TFLOP/s of the datasheet, to be compared with, 0 for none"),
	OPT_REAL('t', "time", &budget, 0, 1000, "S", "seconds of steps of each batch; the fastest counts"),
	OPT_STRING('d', "device", &run.device, "DEVICE", "where to compute"),
	OPT_INT('j', "threads", &run.threads, 0, 4096, "N", "CPU threads, 0 for all"),
	OPT_INT('b', "batch", &run.batch, 0, 1 << 16, "N", "records, 0 for the preset's"),
	OPT_CHOICE('p', "precision", &run.precision, "auto|f32|bf16|f16", "number format of the matrix products"),
	OPT_END,
};
static const struct tool tool = {"bench-dalle", "[OPTION]...", "Rates of the transformer", options};

static bool on_cpu(void)
{
	return strcmp(ops->name, "cpu") == 0;
}

/* Operations a second of one large product in the device's type. */
static double ceiling_once(void)
{
	int n = on_cpu() ? 1536 : 8192;
	return 2.0 * n * n * n / product_seconds(n);
}

/* Query-key pairs that the masks of all layers allow in one sequence. */
static double attention_pairs(const struct dalle_config *c)
{
	double pairs = 0;
	for (int i = 0; i < c->layers; i++) {
		struct attn_mask m = dalle_mask_of(c, i);
		pairs += (double)dalle_mask_pairs(&m);
	}
	return pairs;
}

/* Multiply-adds counted as two, forward and both gradients: three times the forward's. */
static double update_operations(const struct dalle_config *c, int batch, double text_tokens)
{
	double C = c->width, rows = (double)batch * dalle_length(c), images = (double)batch * dalle_image_length(c);
	double blocks = 12.0 * c->layers * C * C * rows + 2 * C * batch * attention_pairs(c);
	double outputs = C * (images * c->image_vocab + text_tokens * c->text_vocab);
	return 3 * 2 * (blocks + outputs);
}

static double update_once(struct dalle *d, const struct dalle_item *items, int n, int64_t step)
{
	double start = now();
	update_dalle(d, items, n, step);
	return now() - start;
}

/* Random pairs: captions fill a third of their room, as real ones do. */
static struct dalle_item *make_items(const struct dalle_config *c, int n)
{
	size_t L = (size_t)(c->text_length / 3), N = (size_t)dalle_image_length(c);
	struct dalle_item *items = mem_zero((size_t)n, sizeof *items, &err);
	uint32_t *v = mem_alloc((size_t)n * (L + N), sizeof *v, &err);
	need(items && v ? 0 : -1);
	for (size_t i = 0; i < (size_t)n; i++, v += L + N) {
		for (size_t j = 0; j < L + N; j++)
			v[j] = rng_below(1, RNG_AUGMENT, (uint32_t)i, j, (uint32_t)(j < L ? c->text_vocab : c->image_vocab));
		items[i] = (struct dalle_item){.text = v, .text_n = L, .image = v + L};
	}
	return items;
}

static void bench_training(const struct dalle_preset *p, int batch)
{
	struct dalle d;
	need(dalle_describe(&d, &p->config, p->recipe.init, lean, &err));
	if (lean)
		d.params.storage = (struct storage){true, true, true, true};
	need(dalle_build(&d, ops, dev, true, &err) || dalle_plan(&d, batch, true, &err));
	fill_weights(&d.params);
	params_start(&d.params);
	struct dalle_item *items = make_items(&p->config, batch);
	double best = 1e30, ceiling = 0, rows = (double)batch * dalle_length(&p->config);
	for (int64_t i = 0; i < updates; i++) {
		double x = ceiling_once(), s = update_once(&d, items, batch, i + 1);
		ceiling = x > ceiling ? x : ceiling;
		best = s < best ? s : best;
	}
	double rate = update_operations(&p->config, batch, (double)batch * (double)items[0].text_n) / best;
	printf("training  %s %s: %.3f s for %d records, %.0f tokens/s, %.1f GFLOP/s = %.0f %% of %.1f in large products", p->name,
	       dtype_name(ops->type(dev)), best, batch, rows / best, rate * 1e-9, 100 * rate / ceiling, ceiling * 1e-9);
	if (peak > 0)
		printf(", %.0f %% of %.1f by the datasheet", rate * 1e-10 / peak, peak * 1e3);
	printf("\n");
	fflush(stdout);
	free((void *)(uintptr_t)items[0].text);
	free(items);
	dalle_free(&d);
}

/* ---- sampling ---- */

/* Bytes a second that a copy in the device's memory reads and writes. */
static double copy_rate(void)
{
	size_t bytes = (size_t)1 << 30;
	void *x = ops->alloc(dev, bytes), *y = ops->alloc(dev, bytes);
	need(x && y ? 0 : fail(&err, STATUS_LIMIT, "out of memory"));
	double best = 1e30;
	for (int i = 0; i < 5; i++) {
		need(device_check(ops, dev, &err));
		double start = now();
		ops->copy2d(dev, y, bytes, x, bytes, bytes, 1);
		need(device_check(ops, dev, &err));
		best = fmin(best, now() - start);
	}
	ops->release(dev, x), ops->release(dev, y);
	return 2.0 * (double)bytes / best;
}

/* Bytes a second that all threads together read, of `bytes` in all: as much as the weights, so that small models are
 * measured against the cache that holds them. */
static double read_rate(size_t bytes)
{
	enum { PIECE = 1 << 12 };
	size_t n = bytes / sizeof(uint64_t) / PIECE * PIECE;
	uint64_t *x = mem_zero(n, sizeof *x, &err), sum = 0;
	need(x ? 0 : -1);
	memset(x, 1, n * sizeof *x); /* zeros may be one page read many times */
	double best = 1e30, end = now() + budget;
	int threads = run.threads ? (int)run.threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
	do {
		double start = now();
#pragma omp parallel for reduction(+ : sum) num_threads(threads) schedule(static)
		for (size_t i = 0; i < n; i += PIECE)
			for (size_t k = 0; k < PIECE; k++)
				sum += x[i + k];
		double s = now() - start;
		best = s < best ? s : best;
	} while (now() < end);
	free(x);
	return sum ? (double)(n * sizeof *x) / best : 0;
}

/* Elements of the matrices that a step reads once, without and with their types' sizes. */
static double step_weights(const struct dalle *d, double *bytes)
{
	double C = d->c.width, blocks = 12.0 * d->c.layers * C * C, head = C * d->c.image_vocab;
	double t = (double)dtype_bytes(ops->type(dev));
	*bytes = blocks * t + head * (d->c.logits_f32 ? 4 : t);
	return blocks + head;
}

/* The fastest step with `batch` samples under way. */
static double step_seconds(struct dalle *d, int batch)
{
	struct record record = {0};
	struct sample_options o = {.temperature = 1, .top_p = 1, .guidance = 1};
	struct sample x;
	need(tokens_set(&record.text, (uint32_t[]){1, 2, 3}, 3, &err));
	struct sampler *s = sampler_new(d, batch, 1, &o, &err);
	need(s ? sampler_submit(s, &record, INT32_MAX, &err) || sampler_step(s, &err) < 0 : -1);
	double best = 1e30, end = now() + budget;
	do {
		while (sampler_next(s, &x))
			;
		double start = now();
		need(sampler_step(s, &err) < 0);
		double t = now() - start;
		best = t < best ? t : best;
	} while (now() < end);
	sampler_free(s);
	record_free(&record);
	return best;
}

/* Whole pictures of one caption, all under way at once. */
static void bench_images(struct dalle *d, const char *name)
{
	struct record record = {0};
	struct sample_options o = {.temperature = 1, .top_p = 1, .guidance = 1};
	struct sample x;
	need(tokens_set(&record.text, (uint32_t[]){1, 2, 3}, 3, &err));
	struct sampler *s = sampler_new(d, (int)pictures, 1, &o, &err);
	need(s ? sampler_submit(s, &record, (int)pictures, &err) : -1);
	double start = now();
	for (int64_t done = 0; done < pictures;) {
		need(sampler_step(s, &err) < 0);
		while (sampler_next(s, &x))
			done += x.rows == d->c.grid_h;
	}
	double t = now() - start;
	printf("pictures  %s: %.2f s for %lld samples of one caption\n", name, t, (long long)pictures);
	fflush(stdout);
	sampler_free(s);
	record_free(&record);
}

static void bench_sampling(const struct dalle_preset *p)
{
	struct dalle d;
	double bytes, N = dalle_image_length(&p->config), ceiling = 0;
	need(dalle_describe(&d, &p->config, p->recipe.init, false, &err) || dalle_build(&d, ops, dev, false, &err));
	fill_weights(&d.params);
	double weights = step_weights(&d, &bytes), rate = on_cpu() ? read_rate((size_t)bytes) : copy_rate();
	for (int i = 0; i < 3; i++)
		ceiling = fmax(ceiling, ceiling_once());
	printf("sampling  %s %s, %d layers of %d: weights of %.1f MB read at %.1f GB/s, large products at %.1f GFLOP/s\n", p->name,
	       dtype_name(ops->type(dev)), p->config.layers, p->config.width, bytes * 1e-6, rate * 1e-9, ceiling * 1e-9);
	printf("          %5s %10s %10s %10s %12s %12s\n", "batch", "ms/step", "tokens/s", "images/min", "% bandwidth",
	       "% products");
	for (int batch = 1; batch <= most; batch *= 4) {
		double t = step_seconds(&d, batch);
		printf("          %5d %10.3f %10.0f %10.2f %11.0f%% %11.0f%%\n", batch, 1e3 * t, batch / t, 60 * batch / t / N,
		       100 * bytes / rate / t, 100 * 2 * weights * batch / t / ceiling);
		fflush(stdout);
	}
	if (pictures)
		bench_images(&d, p->name);
	dalle_free(&d);
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	const struct dalle_preset *named = dalle_preset_find(preset);
	if (!named)
		return finish(opt_misuse("preset '%s' is unknown, expected " DALLE_PRESETS, preset));
	struct dalle_preset p = *named;
	p.config.layers = layers ? (int)layers : p.config.layers;
	p.config.width = width ? (int)width : p.config.width;
	p.config.heads = heads ? (int)heads : p.config.heads;
	need(device_open(&run, &ops, &dev, &err));
	if (updates)
		bench_training(&p, run.batch ? (int)run.batch : p.recipe.batch);
	if (most || pictures)
		bench_sampling(&p);
	device_close(ops, dev);
	return finish(STATUS_OK);
}
