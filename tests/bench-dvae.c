/* bench-dvae.c - seconds of a whole update of the discrete VAE's `small` preset at 64 x 64 pixels, beside the rate of
 * large matrix products in the same run.  With -j 1 the clock is the process's CPU time, so that other programs
 * disturb less. */
#include <math.h>
#include <stdlib.h>

#include "../libcommon/dvae-fit.h"
#include "../libcommon/dvae-net.h"
#include "../libcommon/rng.h"
#include "bench.h"

enum { SIDE = 64 };

static struct run_options run = RUN_DEFAULTS(0);
static int64_t updates = 4;

static const struct opt options[] = {
	OPT_INT('n', "updates", &updates, 1, 1000, "N", "updates to try; the fastest counts"),
	OPT_STRING('d', "device", &run.device, "DEVICE", "where to compute"),
	OPT_INT('j', "threads", &run.threads, 0, 4096, "N", "CPU threads, 0 for all"),
	OPT_INT('b', "batch", &run.batch, 0, 1 << 16, "N", "pictures, 0 for the preset's"),
	OPT_CHOICE('p', "precision", &run.precision, "auto|f32|bf16|f16", "number format of the matrix products"),
	OPT_END,
};
static const struct tool tool = {"bench-dvae", "[OPTION]...", "Rates of the discrete VAE's training", options};

static double update_once(struct dvae *d, const uint8_t *rgb, int n, int64_t step)
{
	struct adamw a = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .decay = 1e-4f, .g_scale = 1, .step = step};
	struct dvae_pass p = {.tau = 0.5f, .scale = 1, .floor = -2.3f, .beta = 1, .bonus = 0.1, .seed = 1, .step = (uint32_t)step};
	struct dvae_loss l;
	double norm, start = now();
	params_zero_grad(&d->params);
	need(dvae_loss_and_gradients(d, rgb, n, &p, &l, &err) || params_grad_norm(&d->params, &norm, &err));
	params_update(&d->params, &a);
	params_average(&d->params, 0.99f);
	need(device_check(ops, dev, &err));
	return now() - start;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	const struct dvae_preset *p = dvae_preset("small");
	struct dvae_config c = p->config;
	c.size = SIDE;
	need(device_open(&run, &ops, &dev, &err));
	int batch = run.batch ? (int)run.batch : p->batch;
	struct dvae *d = dvae_new(&c, DVAE_ENCODER | DVAE_DECODER | DVAE_TRAINING, ops, dev, batch, &err);
	need(d ? params_init(&d->params, 1, &err) : -1);
	size_t bytes = 3 * (size_t)batch * SIDE * SIDE;
	uint8_t *rgb = mem_alloc(bytes, 1, &err);
	need(rgb ? 0 : -1);
	for (size_t i = 0; i < bytes; i++)
		rgb[i] = (uint8_t)rng_below(1, RNG_AUGMENT, 0, i, 256);
	double best = INFINITY, product = INFINITY;
	for (int64_t i = 0; i < updates; i++) {
		product = fmin(product, product_seconds(1024));
		best = fmin(best, update_once(d, rgb, batch, i + 1));
	}
	printf("training  dVAE small %s: %.4f s for %d pictures of %dx%d, %.1f products of two 1024 x 1024 matrices\n",
	       dtype_name(ops->type(dev)), best, batch, SIDE, SIDE, best / product);
	free(rgb);
	dvae_free(d);
	device_close(ops, dev);
	return finish(STATUS_OK);
}
