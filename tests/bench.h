/* bench.h - what the benchmarks of whole updates share.  Each of them gives `run` its defaults. */
#ifndef BENCH_H
#define BENCH_H

#include <stdlib.h>
#include <time.h>

#include "../libcommon/dalle.h"
#include "../libcommon/device.h"
#include "../libcommon/rng.h"

static struct run_options run;
static const struct ops *ops;
static struct dev *dev;
static struct error err;

/* Seconds; of one thread its process's CPU time, so that other programs disturb less. */
static double now(void)
{
	struct timespec t;
	clock_gettime(run.threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* End with the message when a call has failed. */
static void need(int r)
{
	if (r)
		exit(report(&err));
}

/* Seconds of one product of two n x n matrices in the device's type, after one that does not count. */
__attribute__((unused)) static double product_seconds(int n)
{
	size_t bytes = (size_t)n * (size_t)n * 4;
	void *x = ops->alloc(dev, bytes), *w = ops->alloc(dev, bytes), *y = ops->alloc(dev, bytes);
	need(x && w && y ? 0 : fail(&err, STATUS_LIMIT, "out of memory"));
	ops->linear_fwd(dev, y, x, w, NULL, (size_t)n, n, n, 0);
	need(device_check(ops, dev, &err));
	double start = now();
	ops->linear_fwd(dev, y, x, w, NULL, (size_t)n, n, n, 0);
	need(device_check(ops, dev, &err));
	double seconds = now() - start;
	ops->release(dev, x), ops->release(dev, w), ops->release(dev, y);
	return seconds;
}

/* Weights of the size that training starts from, a run of draws repeated: billions would take minutes. */
__attribute__((unused)) static void fill_weights(struct params *p)
{
	enum { DRAWS = 1 << 20 };
	float *draws = mem_alloc(DRAWS, 2 * sizeof *draws, &err), *x = draws + DRAWS;
	need(draws ? 0 : -1);
	rng_normal(draws, DRAWS, 1, 1, RNG_INIT, 1);
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		struct param first = *r;
		first.n = r->n < DRAWS ? r->n : DRAWS;
		for (size_t k = 0; k < first.n; k++)
			x[k] = r->kind == PARAM_GAIN ? 1 : r->init * draws[k];
		need(params_put(p, &first, BLOCK_W, x, &err));
		struct place at = params_place(p, r, BLOCK_W);
		size_t size = dtype_bytes(at.type);
		for (size_t have = first.n; have < r->n; have *= 2) {
			size_t more = (have < r->n - have ? have : r->n - have) * size;
			ops->copy2d(dev, (char *)at.p + have * size, more, at.p, more, more, 1);
		}
	}
	params_refresh(p);
	free(draws);
}

/* One update of the transformer, with all that a trainer does on the device. */
__attribute__((unused)) static void update_dalle(struct dalle *d, const struct dalle_item *items, int n, int64_t step)
{
	struct adamw a = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-8f, .decay = 0.045f, .v_max = 5,
			  .g_scale = 1, .step = step};
	struct dalle_loss l;
	double norm;
	params_zero_grad(&d->params);
	need(dalle_likelihood(d, items, n, true, 1, &l, &err) || params_grad_norm(&d->params, &norm, &err));
	params_update(&d->params, &a);
	params_average(&d->params, 0.99f);
	need(device_check(ops, dev, &err));
}

#endif
