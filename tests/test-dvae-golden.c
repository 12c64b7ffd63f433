/* test-dvae-golden.c - the discrete VAE against an independent PyTorch implementation (tests/golden/make_dvae.py):
 * relaxed codes, output, loss and every gradient, at stem 1 and 2, by the C reference's and the fast path's products. */
#include "../libcommon/device.h"
#include "../libcommon/dvae-fit.h"
#include "../libcommon/dvae-net.h"
#include "golden.h"

#include <math.h>
#include <stdlib.h>

/* f32 sums of some hundred terms against f64: 1e-4 leaves room for cancellation in the biases. */
#define TOLERANCE 1e-4

struct golden_case {
	const char *file;
	struct dvae_config config;
	int n;
	struct dvae_pass pass;
};
static const struct golden_case cases[] = {
	{"dvae-stem1", {8, 1, 8, 6, 2, 2, 11, 7, 1.0 / 16}, 2, {0.7f, 1, -INFINITY, 6.6, 0, 11, 0, 4}},
	{"dvae-stem2", {16, 2, 8, 5, 3, 1, 13, 3, 0.4}, 3, {0.5f, 1, -INFINITY, 3.3, 0, 12, 0, 5}},
};

static struct error e;

static void compare(struct dvae *d, const struct weights *w, const char *name, const float *device, size_t n, const char *ops)
{
	float *want = golden(w, name), *got = malloc(n * sizeof *got);
	d->ops->get(d->dev, got, device, n * sizeof *got);
	double off = relative(got, want, n);
	CHECK(off < TOLERANCE, "%s: %s is off by %g of its norm", ops, name, off);
	free(want);
	free(got);
}

static void compare_gradients(struct dvae *d, const struct weights *w, const char *ops)
{
	struct params *p = dvae_params(d);
	for (int i = 0; i < p->count; i++) {
		char name[120];
		snprintf(name, sizeof name, "g.%s", p->rows[i].name);
		compare(d, w, name, p->rows[i].g, p->rows[i].n, ops);
	}
}

static void test_case(const struct golden_case *c, const struct weights *w, const struct ops *ops, const char *what)
{
	char text[200];
	struct dev *dev = ops->open(0, DT_F32, 2, text, sizeof text);
	struct dvae *d = dvae_new(&c->config, DVAE_ENCODER | DVAE_DECODER | DVAE_TRAINING, ops, dev, c->n, &e);
	if (!CHECK(d && params_load(dvae_params(d), BLOCK_W, w, "w.", &e) == 0, "%s: %s", c->file, e.text))
		return;
	size_t S = (size_t)c->config.size, pixels = (size_t)c->n * S * S, G = (size_t)d->grid;
	float *loss = golden(w, "loss"), *values = golden(w, "rgb");
	uint8_t *rgb = malloc(3 * pixels);
	for (size_t i = 0; i < 3 * pixels; i++)
		rgb[i] = (uint8_t)values[i];
	params_refresh(dvae_params(d));
	params_zero_grad(dvae_params(d));
	struct dvae_loss l;
	CHECK(dvae_loss_and_gradients(d, rgb, c->n, &c->pass, &l, &e) == 0, "%s", e.text);
	float got[3] = {(float)l.loss, (float)l.distortion, (float)l.kl};
	for (int i = 0; i < 3; i++)
		CHECK(fabsf(got[i] - loss[i]) < 1e-5f * (1 + fabsf(loss[i])), "%s, %s: loss %d is %g, golden %g", c->file, what, i,
		      got[i], loss[i]);
	compare(d, w, "z", d->z, (size_t)c->n * G * G * (size_t)c->config.codes, what);
	compare(d, w, "out", d->out, 6 * pixels, what);
	compare_gradients(d, w, what);
	free(rgb);
	free(values);
	free(loss);
	dvae_free(d);
	ops->close(dev);
}

const struct ops *cpu_reference_ops(void);

int main(void)
{
	const char *root = getenv("SRC");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/tests/golden/%s.safetensors", root ? root : ".", cases[i].file);
		struct weights *w = weights_open(path, &e);
		if (!CHECK(w != NULL, "%s", e.text))
			continue;
		test_case(&cases[i], w, cpu_reference_ops(), "reference");
		test_case(&cases[i], w, cpu_ops(), "cpu");
		weights_close(w);
	}
	return check_done();
}
