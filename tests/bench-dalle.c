/* bench-dalle.c - rates of a whole training update and of sampling for one preset, beside the rate of large matrix
 * products in the same run: the share of it that the update reaches is what matters, not the seconds of a
 * shared machine.  With -j 1 the clock is the process's CPU time, so that other programs disturb less. */
#include <stdlib.h>
#include <time.h>

#include "../libcommon/dalle.h"
#include "../libcommon/device.h"
#include "../libcommon/rng.h"
#include "../libcommon/sample.h"

static struct run_options run = RUN_DEFAULTS(0);
static const char *preset = "small";
static int64_t updates = 4;

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes: " DALLE_PRESETS),
	OPT_INT('n', "updates", &updates, 1, 1000, "N", "updates to try; the fastest counts"),
	OPT_STRING('d', "device", &run.device, "DEVICE", "where to compute"),
	OPT_INT('j', "threads", &run.threads, 0, 4096, "N", "CPU threads, 0 for all"),
	OPT_INT('b', "batch", &run.batch, 0, 1 << 16, "N", "records, 0 for the preset's"),
	OPT_CHOICE('p', "precision", &run.precision, "auto|f32|bf16|f16", "number format of the matrix products"),
	OPT_END,
};
static const struct tool tool = {"bench-dalle", "[OPTION]...", "Rates of the transformer", options};

static const struct ops *ops;
static struct dev *dev;
static struct error err;

static double now(void)
{
	struct timespec t;
	clock_gettime(run.threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void need(int r)
{
	if (r)
		exit(report(&err));
}

/* Operations a second of one large product in the device's type. */
static double ceiling_once(void)
{
	enum { N = 1536 };
	size_t bytes = (size_t)N * N * 4;
	void *x = ops->alloc(dev, bytes), *w = ops->alloc(dev, bytes), *y = ops->alloc(dev, bytes);
	need(x && w && y ? 0 : fail(&err, STATUS_LIMIT, "out of memory"));
	ops->linear_fwd(dev, y, x, w, NULL, N, N, N, 0);
	need(device_check(ops, dev, &err));
	double start = now();
	ops->linear_fwd(dev, y, x, w, NULL, N, N, N, 0);
	need(device_check(ops, dev, &err));
	double rate = 2.0 * N * N * N / (now() - start);
	ops->release(dev, x), ops->release(dev, w), ops->release(dev, y);
	return rate;
}

/* Query-key pairs that the masks of all layers allow in one sequence. */
static double attention_pairs(const struct dalle_config *c)
{
	double pairs = 0;
	for (int i = 0; i < c->layers; i++) {
		struct attn_mask m = dalle_mask_of(c, i);
		for (int q = 0; q < dalle_length(c); q++)
			for (int k = 0; k <= q; k++)
				pairs += attn_allowed(&m, q, k);
	}
	return pairs;
}

/* Multiply-adds counted as two, forward and both gradients: three times the forward's. */
static double update_operations(const struct dalle_config *c, int batch, double text_tokens)
{
	double C = c->width, rows = (double)batch * dalle_length(c), images = (double)batch * dalle_image_length(c);
	double blocks = 12.0 * c->layers * C * C * rows + 2 * C * batch * attention_pairs(c);
	double heads = C * (images * c->image_vocab + text_tokens * c->text_vocab);
	return 3 * 2 * (blocks + heads);
}

static double update_once(struct dalle *d, const struct dalle_item *items, int n, int64_t step)
{
	struct adamw a = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-8f, .decay = 0.045f, .v_max = 5, .g_scale = 1, .step = step};
	struct dalle_loss l;
	double norm, start = now();
	params_zero_grad(&d->params);
	need(dalle_likelihood(d, items, n, true, 1, &l, &err) || params_grad_norm(&d->params, &norm, &err));
	params_update(&d->params, &a);
	params_average(&d->params, 0.99f);
	need(device_check(ops, dev, &err));
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
	need(dalle_describe(&d, &p->config, p->recipe.init, false, &err) || dalle_build(&d, ops, dev, true, &err) ||
	     params_init(&d.params, 1, &err) || dalle_plan(&d, batch, true, &err));
	struct dalle_item *items = make_items(&p->config, batch);
	double best = 1e30, ceiling = 0, rows = (double)batch * dalle_length(&p->config);
	for (int64_t i = 0; i < updates; i++) {
		double x = ceiling_once(), s = update_once(&d, items, batch, i + 1);
		ceiling = x > ceiling ? x : ceiling;
		best = s < best ? s : best;
	}
	double rate = update_operations(&p->config, batch, (double)batch * (double)items[0].text_n) / best;
	printf("training  %s %s: %.3f s for %d records, %.0f tokens/s, %.1f GFLOP/s = %.0f %% of %.1f in large products\n", p->name,
	       dtype_name(ops->type(dev)), best, batch, rows / best, rate * 1e-9, 100 * rate / ceiling, ceiling * 1e-9);
	free((void *)(uintptr_t)items[0].text);
	free(items);
	dalle_free(&d);
}

static void bench_sampling(const struct dalle_preset *p, int batch)
{
	struct dalle d;
	struct record record = {0};
	struct sample_options o = {.temperature = 1, .top_p = 1, .guidance = 1};
	size_t N = (size_t)dalle_image_length(&p->config);
	need(dalle_describe(&d, &p->config, p->recipe.init, false, &err) || dalle_build(&d, ops, dev, false, &err) ||
	     params_init(&d.params, 1, &err) || tokens_set(&record.text, (uint32_t[]){1, 2, 3}, 3, &err));
	struct sampler *s = sampler_new(&d, batch, &o, &err);
	struct sample_job *jobs = mem_alloc((size_t)batch, sizeof *jobs, &err);
	uint32_t *tokens = mem_alloc((size_t)batch, N * sizeof *tokens, &err);
	need(s && jobs && tokens ? 0 : -1);
	for (int i = 0; i < batch; i++)
		jobs[i] = (struct sample_job){&record, (uint32_t)i, tokens + (size_t)i * N};
	double start = now();
	need(sampler_run(s, jobs, batch, NULL, NULL, &err));
	double seconds = now() - start;
	printf("sampling  %s %s: %d at once, %.0f image tokens/s, %.1f pictures/s\n", p->name, dtype_name(ops->type(dev)), batch,
	       (double)batch * (double)N / seconds, batch / seconds);
	sampler_free(s);
	free(jobs);
	free(tokens);
	record_free(&record);
	dalle_free(&d);
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	const struct dalle_preset *p = dalle_preset_find(preset);
	if (!p)
		return finish(opt_misuse("preset '%s' is unknown, expected " DALLE_PRESETS, preset));
	need(device_open(&run, &ops, &dev, &err));
	int batch = run.batch ? (int)run.batch : p->recipe.batch;
	bench_training(p, batch);
	bench_sampling(p, batch);
	device_close(ops, dev);
	return finish(STATUS_OK);
}
