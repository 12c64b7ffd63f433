/* test-dvae-golden.c - the discrete VAE against an independent PyTorch implementation (tests/golden/make_dvae.py):
 * relaxed codes, output, loss and every gradient, at stem 1 and 2, by the C reference's and the fast path's products. */
#include "../libcommon/device.h"
#include "../libcommon/dvae-fit.h"
#include "../libcommon/dvae-net.h"
#include "golden.h"

#include <math.h>
#include <stdlib.h>

struct golden_case {
	const char *file;
	struct dvae_config config;
	int n;
	struct dvae_pass pass;
	bool smooth; /* no ReLU, maximum or absolute value is near its kink: bf16 moves none to its other side */
};
static const struct golden_case cases[] = {
	{"dvae-stem1", {8, 1, 8, 6, 2, 2, 11, 7, 1.0 / 16}, 2, {0.7f, 1, -INFINITY, 6.6, 0, 11, 0, 4}, false},
	{"dvae-stem2", {16, 2, 8, 5, 3, 1, 13, 3, 0.4}, 3, {0.5f, 1, -INFINITY, 3.3, 0, 12, 0, 5}, false},
	{"dvae-smooth1", {8, 1, 8, 6, 2, 2, 11, 7, 0.25}, 2, {0.7f, 1, -INFINITY, 6.6, 0, 47, 0, 4}, true},
	{"dvae-smooth2", {8, 2, 8, 5, 2, 1, 13, 3, 0.4}, 2, {0.7f, 1, -INFINITY, 6.6, 0, 91, 0, 4}, true},
};

/* f32 sums of some hundred terms against f64: 1e-4 leaves room for cancellation in the biases. */
struct variant {
	const char *name;
	const struct ops *ops;
	enum dtype type;
	double bound;
};

static struct error e;

static double norm(const float *x, size_t n)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += (double)x[i] * x[i];
	return sqrt(sum);
}

static void compare(struct dvae *d, const struct weights *w, const char *name, const float *device, size_t n,
                    const struct variant *v)
{
	float *want = golden(w, name), *got = malloc(n * sizeof *got);
	d->ops->get(d->dev, got, device, n * sizeof *got);
	double off = relative(got, want, n);
	CHECK(off < v->bound, "%s: %s is off by %g of its norm", v->name, name, off);
	free(want);
	free(got);
}

/* f32, and bf16 where the point is smooth: each within the bound.  bf16 elsewhere: all as one vector within it, and over the
 * tensors (root mean square of the relative errors) as near as PyTorch's own autocast comes: both are ruled by a few ReLUs
 * that fall on the other side. */
static void compare_gradients(struct dvae *d, const struct weights *w, const struct variant *v, bool smooth)
{
	struct params *p = dvae_params(d);
	double far = 0, all = 0, ours = 0, autocast = 0;
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		char name[120];
		snprintf(name, sizeof name, "g.%s", r->name);
		float *want = golden(w, name), *got = malloc(r->n * sizeof *got);
		snprintf(name, sizeof name, "auto.%s", r->name);
		float *rough = golden(w, name);
		d->ops->get(d->dev, got, r->g, r->n * sizeof *got);
		double off = relative(got, want, r->n), size = norm(want, r->n);
		CHECK((v->type != DT_F32 && !smooth) || off < v->bound, "%s: gradient of %s is off by %g of its norm", v->name, r->name, off);
		far += off * off * size * size, all += size * size;
		ours += off * off, autocast += (double)*rough * *rough;
		free(want), free(got), free(rough);
	}
	CHECK(sqrt(far / all) < v->bound, "%s: the gradient is off by %g of its norm", v->name, sqrt(far / all));
	CHECK(ours <= 1.2 * 1.2 * autocast, "%s: gradients are off by %.3g of their norms, those of PyTorch's bf16 autocast by %.3g",
	      v->name, sqrt(ours / p->count), sqrt(autocast / p->count));
}

static void test_case(const struct golden_case *c, const struct weights *w, const struct variant *v)
{
	char text[200];
	struct dev *dev = v->ops->open(0, v->type, 2, text, sizeof text);
	struct dvae *d = dvae_new(&c->config, DVAE_ENCODER | DVAE_DECODER | DVAE_TRAINING, v->ops, dev, c->n, &e);
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
		CHECK(fabsf(got[i] - loss[i]) < v->bound / 10 * (1 + fabsf(loss[i])), "%s, %s: loss %d is %g, golden %g", c->file,
		      v->name, i, got[i], loss[i]);
	compare(d, w, "z", d->z, (size_t)c->n * G * G * (size_t)c->config.codes, v);
	compare(d, w, "out", d->out, 6 * pixels, v);
	compare_gradients(d, w, v, c->smooth);
	free(rgb);
	free(values);
	free(loss);
	dvae_free(d);
	v->ops->close(dev);
}

const struct ops *cpu_reference_ops(void);

int main(void)
{
	const char *root = getenv("SRC");
	const struct variant variants[] = {{"reference", cpu_reference_ops(), DT_F32, 1e-4}, {"cpu", cpu_ops(), DT_F32, 1e-4},
	                                   {"cpu, bf16", cpu_ops(), DT_BF16, 2e-2}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/tests/golden/%s.safetensors", root ? root : ".", cases[i].file);
		struct weights *w = weights_open(path, &e);
		if (!CHECK(w != NULL, "%s", e.text))
			continue;
		for (size_t v = 0; v < ARRAY_LEN(variants); v++)
			test_case(&cases[i], w, &variants[v]);
		weights_close(w);
	}
	return check_done();
}
