/* test-dvae.c - the discrete VAE: the recipe's test vectors K1 to K4 and K9, gradients of the whole model by central
 * differences, precision, encode and decode.  The comparison with an independent implementation is test-dvae-golden.c. */
#include "../libcommon/device.h"
#include "../libcommon/dvae-batch.h"
#include "../libcommon/dvae-net.h"
#include "../libcommon/rng.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BOTH (DVAE_ENCODER | DVAE_DECODER)

static struct error e;
static const struct ops *ops;
static struct dev *f32;

static const struct dvae_config small_1 = {.size = 8, .stem = 1, .hidden = 8, .initial = 6, .groups = 2, .blocks = 2,
                                           .codes = 7, .kernel = 3, .post_gain = 0.5};
static const struct dvae_config small_2 = {.size = 12, .stem = 2, .hidden = 4, .initial = 5, .groups = 2, .blocks = 1,
                                           .codes = 9, .kernel = 5, .post_gain = 0};

/* The preset takes its size from the data. */
static const struct dvae_config *tiny(void)
{
	static struct dvae_config c;
	c = dvae_preset("tiny")->config;
	c.size = 16;
	return &c;
}

static struct dvae *make(const struct dvae_config *c, int parts, struct dev *dev, int batch)
{
	struct dvae *d = dvae_new(c, parts, ops, dev, batch, &e);
	if (CHECK(d != NULL, "model: %s", e.text))
		params_init(dvae_params(d), 7, &e);
	return d;
}

static uint8_t *pictures(int n, int size)
{
	size_t bytes = (size_t)n * (size_t)size * (size_t)size * 3;
	uint8_t *rgb = malloc(bytes);
	for (size_t i = 0; rgb && i < bytes; i++)
		rgb[i] = (uint8_t)rng_below(3, RNG_SHUFFLE, 0, i, 256);
	return rgb;
}

/* ---- K1: logit-Laplace; K2: phi ---- */

static float density(float x, float mu, float b)
{
	/* Three channels of one pixel: the value, and two that are subtracted again. */
	float out[6] = {mu, 0, 0, logf(b), 0, 0}, v[3] = {x, 0.5f, 0.5f}, nll;
	float *o = ops->alloc(f32, sizeof out), *p = ops->alloc(f32, sizeof v), *r = ops->alloc(f32, sizeof nll);
	ops->put(f32, o, out, sizeof out);
	ops->put(f32, p, v, sizeof v);
	ops->logit_laplace(f32, r, NULL, o, p, 1, -INFINITY, 0);
	ops->get(f32, &nll, r, sizeof nll);
	ops->release(f32, o);
	ops->release(f32, p);
	ops->release(f32, r);
	return -nll - 2 * 0.693147f;
}

static void test_likelihood(void)
{
	CHECK(fabsf(density(0.5f, 0, 1) - 0.693147f) < 2e-6f, "K1: ln f(0.5; 0, 1) = %f", density(0.5f, 0, 1));
	CHECK(fabsf(density(0.9f, 0, 1) + 0.482426f) < 2e-6f, "K1: ln f(0.9; 0, 1) = %f", density(0.9f, 0, 1));
	CHECK(fabsf(density(0.1f, 1, 0.5f) + 3.986504f) < 4e-6f, "K1: ln f(0.1; 1, 0.5) = %f", density(0.1f, 1, 0.5f));
	double sum = 0;
	for (int i = 0; i < 2000; i++)
		sum += exp(density(((float)i + 0.5f) / 2000, 0.3f, 0.8f)) / 2000;
	/* The midpoint rule misses most where the density is steep, at the ends. */
	CHECK(fabs(sum - 1) < 5e-3, "K1: the density integrates to %f", sum);
}

static void test_phi(void)
{
	struct dvae *d = make(&small_1, BOTH, f32, 1);
	uint8_t rgb[8 * 8 * 3] = {0, 255, 128};
	float x[3];
	ops->put(f32, d->rgb, rgb, sizeof rgb);
	dvae_forward_encoder(d, 1);
	ops->get(f32, x, d->pixels, sizeof x);
	CHECK(fabsf(x[0] - 0.1f) < 1e-6f && fabsf(x[1] - 0.9f) < 1e-6f && fabsf(x[2] - 0.501569f) < 1e-6f,
	      "K2: phi gives %f %f %f", x[0], x[1], x[2]);
	dvae_free(d);
}

/* ---- K3: schedules; K4: KL and its weight; K9: parameters ---- */

static void test_schedules(void)
{
	const struct dvae_schedule *h = &dvae_preset("paper")->schedule;
	struct train_step s = {.steps = 3000000};
	s.step = 2500;
	double beta = dvae_schedule_at(0, h->beta, h->beta_span, &s);
	CHECK(fabs(beta - 3.3) < 1e-9, "K3: beta(2500) = %f", beta);
	s.step = 75000;
	double tau = dvae_schedule_at(h->tau_start, h->tau_end, h->tau_span, &s);
	CHECK(fabs(tau - 0.53125) < 1e-9, "K3: tau(75000) = %f", tau);
	s.step = 37500;
	tau = dvae_schedule_at(h->tau_start, h->tau_end, h->tau_span, &s);
	CHECK(fabs(tau - 0.862706) < 1e-6, "K3: tau(37500) = %f", tau);
	s.step = 600000;
	double lr = dvae_schedule_at(h->lr, h->lr_end, h->lr_span, &s);
	CHECK(fabs(lr - 5.0625e-5) < 1e-12, "K3: step size(600000) = %g", lr);
	s = (struct train_step){.step = 50, .steps = 100};
	CHECK(fabs(dvae_schedule_at(1, 0, 1, &s) - 0.5) < 1e-12, "a span of 1 is the whole run");
	CHECK(dvae_schedule_at(1, 0.25, 0.5, &s) == 0.25, "a span below 1 is a share of it");
}

static void test_kl(void)
{
	enum { K = 8192 };
	float *logits = ops->alloc(f32, 2 * K * sizeof(float)), *kl = ops->alloc(f32, 2 * sizeof(float)), got[2], big = 1e4f;
	ops->put(f32, logits + K + 17, &big, sizeof big);
	ops->gumbel_fwd(f32, NULL, kl, logits, 2, K, 1, 0, 0, 0);
	ops->get(f32, got, kl, sizeof got);
	CHECK(fabsf(got[0]) < 1e-4f && fabsf(got[1] - 9.010913f) < 1e-4f, "K4: KL %f of uniform, %f of one-hot", got[0],
	      got[1]);
	ops->release(f32, logits);
	ops->release(f32, kl);
	const struct dvae_config *c = &dvae_preset("paper")->config;
	double weight = 6.6 * (double)(dvae_grid(c) * dvae_grid(c)) / (double)(3 * c->size * c->size);
	CHECK(fabs(weight - 0.034375) < 1e-12, "K4: loss weight %f at beta 6.6", weight);
}

static uint64_t count(int parts)
{
	struct dvae *d = dvae_plan(&dvae_preset("paper")->config, parts, DT_F32, 1, &e);
	uint64_t n = d ? params_count(dvae_params(d)) : 0;
	CHECK(d && (d->config.post_gain == 1.0 / 64 || !d), "K9: post_gain is 1/64");
	if (d && parts == DVAE_ENCODER) {
		CHECK(params_find(dvae_params(d), "encoder.blocks.group_4.block_1.id_path.w") &&
		      params_find(dvae_params(d), "encoder.blocks.group_1.block_1.res_path.conv_1.w") &&
		      params_find(dvae_params(d), "encoder.blocks.output.conv.b"), "published names of tensors");
		CHECK(dvae_params(d)->count == 74, "74 tensors in the encoder, %d here", dvae_params(d)->count);
	}
	dvae_free(d);
	return n;
}

static void test_counts(void)
{
	uint64_t encoder = count(DVAE_ENCODER), decoder = count(DVAE_DECODER);
	CHECK(encoder == 53786240, "K9: encoder has %llu parameters", (unsigned long long)encoder);
	CHECK(decoder == 43829766, "K9: decoder has %llu parameters", (unsigned long long)decoder);
}

/* ---- gradients ---- */

static double loss_at(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p)
{
	struct dvae_loss l;
	return CHECK(dvae_loss_and_gradients(d, rgb, n, p, &l, &e) == 0, "%s", e.text) ? l.loss : 0;
}

static double slope(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p, float *w, float h)
{
	float at, moved;
	double side[2];
	ops->get(f32, &at, w, sizeof at);
	for (int i = 0; i < 2; i++) {
		moved = i ? at - h : at + h;
		ops->put(f32, w, &moved, sizeof moved);
		side[i] = loss_at(d, rgb, n, p);
	}
	ops->put(f32, w, &at, sizeof at);
	return (side[0] - side[1]) / (2 * h);
}

/* Biases off 0: where all inputs of a convolution are 0 a ReLU after it would stand exactly on its corner. */
static void move_biases(struct params *t)
{
	for (int i = 0; i < t->count; i++) {
		struct param *r = &t->rows[i];
		float v[64];
		if (r->kind != PARAM_BIAS || r->n > ARRAY_LEN(v))
			continue;
		rng_normal(v, r->n, 0.2f, 9, RNG_INIT, (uint32_t)i);
		ops->put(f32, r->w, v, r->n * sizeof *v);
	}
}

/* Three elements of every tensor.  ReLU, max-pool and |.| have corners, and f32 sums have noise: the norm over all
 * tested elements is held tight, and each single one loosely. */
static void test_gradients(const struct dvae_config *c, double bonus, const char *what)
{
	enum { N = 2 };
	struct dvae *d = make(c, BOTH | DVAE_TRAINING, f32, N);
	struct dvae_pass p = {.tau = 0.7f, .scale = 1, .floor = -INFINITY, .beta = 6.6, .bonus = bonus, .seed = 5, .step = 3};
	uint8_t *rgb = pictures(N, (int)c->size);
	struct params *t = dvae_params(d);
	double far = 0, all = 0;
	move_biases(t);
	params_zero_grad(t);
	loss_at(d, rgb, N, &p);
	float *g = malloc(t->total * sizeof *g);
	ops->get(f32, g, t->g, t->total * sizeof *g);
	for (int i = 0; i < t->count; i++) {
		struct param *r = &t->rows[i];
		for (uint32_t k = 0; k < 3; k++) {
			size_t at = rng_below(1, RNG_SHUFFLE, (uint32_t)i, k, (uint32_t)r->n);
			double want = slope(d, rgb, N, &p, r->w + at, 5e-4f), got = g[r->at + at];
			CHECK(fabs(got - want) < 2e-3 + 0.05 * fabs(want), "%s: gradient of %s[%zu] is %g, differences give %g",
			      what, r->name, at, got, want);
			far += (got - want) * (got - want);
			all += want * want;
		}
	}
	CHECK(sqrt(far / all) < 0.01, "%s: gradients differ by %g of their norm", what, sqrt(far / all));
	free(g);
	free(rgb);
	dvae_free(d);
}

/* Two halves of a batch with scale 1/2 give the gradients of the whole. */
static void test_accumulation(void)
{
	enum { N = 4 };
	struct dvae *d = make(&small_2, BOTH | DVAE_TRAINING, f32, N);
	struct params *t = dvae_params(d);
	struct dvae_pass p = {.tau = 0.7f, .scale = 1, .floor = -INFINITY, .beta = 6.6, .seed = 5, .step = 3};
	uint8_t *rgb = pictures(N, (int)small_2.size);
	float *g[2];
	double far = 0, all = 0;
	for (int parts = 1; parts <= 2; parts++) {
		params_zero_grad(t);
		p.scale = 1.0f / (float)parts;
		for (int i = 0; i < parts; i++) {
			int n = N / parts;
			p.first_row = (uint64_t)(i * n * d->grid * d->grid);
			loss_at(d, rgb + (size_t)(i * n) * 12 * 12 * 3, n, &p);
		}
		g[parts - 1] = malloc(t->total * sizeof(float));
		ops->get(f32, g[parts - 1], t->g, t->total * sizeof(float));
	}
	for (size_t i = 0; i < t->total; i++) {
		far += (g[0][i] - g[1][i]) * (g[0][i] - g[1][i]);
		all += g[0][i] * g[0][i];
	}
	CHECK(sqrt(far / all) < 1e-5, "accumulated gradients differ by %g", sqrt(far / all));
	free(g[0]);
	free(g[1]);
	free(rgb);
	dvae_free(d);
}

/* ---- precision ---- */

static void run_in(enum dtype type, float **out, size_t *n)
{
	char text[200];
	struct dev *dev = ops->open(0, type, 2, text, sizeof text);
	struct dvae *d = make(tiny(), BOTH | DVAE_TRAINING, dev, 4);
	struct dvae_pass p = {.tau = 0.7f, .scale = 1, .floor = -INFINITY, .beta = 6.6, .seed = 5, .step = 3};
	struct dvae_loss l;
	uint8_t *rgb = pictures(4, 16);
	struct grad_scale *s = &dvae_params(d)->scales;
	params_refresh(dvae_params(d));
	CHECK(grad_scale_start(s, type == DT_F16 ? GRAD_SCALE_GLOBAL : GRAD_SCALE_NONE, 0, 1, &e) == 0, "%s", e.text);
	CHECK(dvae_loss_and_gradients(d, rgb, 4, &p, &l, &e) == 0, "%s", e.text);
	*n = dvae_params(d)->total;
	*out = malloc((*n + 1) * sizeof **out);
	ops->get(dev, *out, dvae_params(d)->g, *n * sizeof **out);
	for (size_t i = 0; i < *n; i++)
		(*out)[i] /= grad_scale_loss(s);
	(*out)[*n] = (float)l.loss;
	free(rgb);
	dvae_free(d);
	ops->close(dev);
}

/* bf16 has 8 bits: a few roundings of 2^-9 through a dozen layers; f16 three more, with its loss scaled.  Gradients are
 * bounded by the corner of |.|: a value that passes it changes the sign of its gradient in any format. */
static void test_precision(enum dtype type, float loss_bound)
{
	float *a, *b;
	size_t n;
	double far = 0, all = 0;
	run_in(DT_F32, &a, &n);
	run_in(type, &b, &n);
	for (size_t i = 0; i < n; i++) {
		far += (a[i] - b[i]) * (a[i] - b[i]);
		all += a[i] * a[i];
	}
	CHECK(fabsf(a[n] - b[n]) < loss_bound * fabsf(a[n]), "loss %f in f32, %f in %s", a[n], b[n], dtype_name(type));
	CHECK(sqrt(far / all) < 0.05, "%s gradients differ by %g of their norm", dtype_name(type), sqrt(far / all));
	free(a);
	free(b);
}

/* ---- encode, decode ---- */

static void copy_weights(struct dvae *to, struct dvae *from)
{
	struct params *a = dvae_params(to), *b = dvae_params(from);
	ops->copy2d(f32, a->w, 0, b->w, 0, a->total * sizeof(float), 1);
}

static void test_batches(void)
{
	enum { N = 5, S = 12, G = 3 };
	struct dvae *one = make(&small_2, BOTH, f32, 1), *many = make(&small_2, BOTH, f32, N);
	struct dvae *trained = make(&small_2, BOTH | DVAE_TRAINING, f32, N);
	uint8_t *rgb = pictures(N, S), whole[N * S * S * 3], single[S * S * 3], kept[N * S * S * 3];
	int32_t codes[N * G * G], code[G * G], again[N * G * G];
	move_biases(dvae_params(one));
	move_biases(dvae_params(many));
	move_biases(dvae_params(trained));
	CHECK(dvae_calibrate(trained, rgb, N, 0.5, 3, &e) == 0, "calibrate: %s", e.text);
	copy_weights(one, trained);
	copy_weights(many, trained);
	CHECK(dvae_encode(many, codes, rgb, N, &e) == 0, "encode: %s", e.text);
	CHECK(dvae_decode(many, whole, codes, N, &e) == 0, "decode: %s", e.text);
	CHECK(dvae_encode(trained, again, rgb, N, &e) == 0 && !memcmp(codes, again, sizeof codes),
	      "codes are those of a model that keeps its activations");
	CHECK(dvae_decode(trained, kept, codes, N, &e) == 0 && !memcmp(whole, kept, sizeof whole), "pictures, too");
	for (int i = 0; i < N; i++) {
		dvae_encode(one, code, rgb + i * S * S * 3, 1, &e);
		CHECK(!memcmp(code, codes + i * G * G, sizeof code), "codes of picture %d depend on the batch", i);
		dvae_decode(one, single, code, 1, &e);
		CHECK(!memcmp(single, whole + i * S * S * 3, sizeof single), "picture %d depends on the batch", i);
	}
	int differ = 0;
	for (int i = 0; i < N * G * G; i++)
		differ += codes[i] != codes[0];
	CHECK(differ > 0, "all codes are %d", codes[0]);
	CHECK(dvae_encode(one, code, rgb, 2, &e) < 0, "more pictures than memory must be refused");
	e = (struct error){0};
	dvae_free(one);
	dvae_free(many);
	dvae_free(trained);
	free(rgb);
}

static void test_missing(void)
{
	enum { S = 12, G = 3, F = 4 };
	struct dvae *d = make(&small_2, DVAE_DECODER, f32, 1);
	int32_t codes[G * G] = {1, 2, 3, 4, 5, 6, 7, -1, -1}, bad[G * G] = {9};
	uint8_t rgb[S * S * 3];
	CHECK(dvae_decode(d, rgb, codes, 1, &e) == 0, "decode: %s", e.text);
	bool grey = true;
	for (int y = 8; y < S; y++)
		for (int x = F; x < S; x++)
			grey &= rgb[(y * S + x) * 3] == 128;
	CHECK(grey, "missing tokens are grey");
	CHECK(dvae_decode(d, rgb, bad, 1, &e) < 0 && e.status == STATUS_BAD, "a code beyond the codebook must be refused");
	e = (struct error){0};
	dvae_free(d);
}

/* Codes that start from data: all of them in use, and posteriors as sharp as asked for. */
static void test_calibration(void)
{
	enum { N = 8, ROWS = N * 16, K = 32 };
	struct dvae *d = make(tiny(), BOTH | DVAE_TRAINING, f32, N);
	uint8_t *rgb = pictures(N, 16);
	struct dvae_pass hard = {.floor = -INFINITY};
	struct code_use u = {0};
	double kl[N], mean = 0;
	CHECK(dvae_calibrate(d, rgb, N, 1.5, 1, &e) == 0, "%s", e.text);
	CHECK(dvae_measure(d, rgb, N, &hard, NULL, kl, NULL, &e) == 0, "%s", e.text);
	CHECK(code_use_init(&u, d, 0, &e) == 0 && code_use_add(&u, d, N, &e) == 0, "%s", e.text);
	for (int i = 0; i < N; i++)
		mean += (log(K) - kl[i]) / N;
	CHECK(fabs(mean - 1.5) < 1e-3, "posteriors have %g nats, 1.5 were asked for", mean);
	CHECK(code_use_count(&u) == K, "%g of %d codes in use at the start", code_use_count(&u), K);
	code_use_free(&u);
	free(rgb);
	dvae_free(d);
}

/* -ln f of a picture from hard codes plus its KL, in nats, in double from the logits and the decoder's maps (B10 to B13,
 * B16): the negative ELB with the weight of the KL left to the caller. */
static void true_bound(struct dvae *d, const uint8_t *rgb, double *distortion, double *kl)
{
	int T = (int)(d->grid * d->grid), K = (int)d->config.codes, pixels = (int)(d->config.size * d->config.size);
	float *logits = malloc(sizeof *logits * (size_t)(T * K)), *out = malloc(sizeof *out * (size_t)(pixels * 6));
	ops->put(f32, d->rgb, rgb, 3 * (size_t)pixels);
	dvae_forward_encoder(d, 1);
	ops->get(f32, logits, d->logits, sizeof *logits * (size_t)(T * K));
	ops->argmax(f32, d->argmax, d->logits, (size_t)T, K);
	ops->onehot(f32, d->z, d->argmax, (size_t)T, K);
	dvae_forward_decoder(d, 1);
	ops->get(f32, out, d->out, sizeof *out * (size_t)(pixels * 6));
	*kl = *distortion = 0;
	for (int t = 0; t < T; t++) {
		double sum = 0;
		for (int k = 0; k < K; k++)
			sum += exp((double)logits[t * K + k]);
		for (int k = 0; k < K; k++) {
			double q = exp((double)logits[t * K + k]) / sum;
			*kl += q * log(q * K);
		}
	}
	for (int i = 0; i < pixels * 3; i++) {
		double x = 0.8 / 255 * rgb[i] + 0.1, mu = (double)out[i / 3 * 6 + i % 3], ln_b = (double)out[i / 3 * 6 + 3 + i % 3];
		*distortion += log(2) + ln_b + log(x * (1 - x)) + fabs(log(x / (1 - x)) - mu) / exp(ln_b);
	}
	free(logits);
	free(out);
}

static bool near(double a, double b)
{
	return fabs(a - b) < 1e-4 * (1 + fabs(b));
}

/* What a held-out evaluation reports: nats per picture and per value, with the run's beta and with 1. */
static void test_bounds(void)
{
	enum { N = 3, VALUES = 16 * 16 * 3, TOKENS = 16 };
	struct dvae *d = make(tiny(), BOTH | DVAE_TRAINING, f32, N);
	struct dvae_fit_options o = {.schedule = dvae_preset("paper")->schedule};
	struct dvae_fit *f = dvae_fit_new(d, &o, "test", &e);
	struct trainee t = {0};
	dvae_fit_trainee(f, &t);
	uint8_t *rgb = pictures(N, 16);
	struct record r[N] = {{.has = 0}};
	const struct record *batch[N];
	struct metrics m = {0};
	struct train_step s = {.step = 75001, .steps = 200000};
	double distortion = 0, kl = 0, relaxed[N], sum = 0;
	for (int i = 0; i < N; i++) {
		double one, one_kl;
		CHECK(pixels_resize(&r[i].pixels, 16, 16, &e) == 0, "%s", e.text);
		memcpy(r[i].pixels.rgb, rgb + i * VALUES, VALUES);
		batch[i] = &r[i];
		true_bound(d, rgb + i * VALUES, &one, &one_kl);
		distortion += one;
		kl += one_kl;
	}
	CHECK(t.evaluate(t.model, &s, batch, N, &m, &e) == 0, "%s", e.text);
	CHECK(near(metrics_get(&m, "elb"), -distortion - kl) && near(metrics_get(&m, "elb_beta"), -distortion - 6.6 * kl),
	      "per picture: %g and %g, expected %g and %g", metrics_get(&m, "elb"), metrics_get(&m, "elb_beta"), -distortion - kl,
	      -distortion - 6.6 * kl);
	CHECK(near(metrics_get(&m, "loss_1"), (distortion + kl) / VALUES) &&
		      near(metrics_get(&m, "loss"), (distortion + 6.6 * kl) / VALUES),
	      "per value: %g and %g", metrics_get(&m, "loss_1"), metrics_get(&m, "loss"));
	CHECK(near(metrics_get(&m, "distortion"), distortion / VALUES) && near(metrics_get(&m, "kl"), kl / TOKENS) &&
	      near(metrics_get(&m, "rate"), kl), "distortion, kl and rate");
	/* Relaxed codes at the temperature of the update before: half of the way down the paper's cosine (K3). */
	struct dvae_pass p = {.tau = 0.53125f, .floor = -INFINITY, .seed = 1};
	CHECK(dvae_measure(d, rgb, N, &p, relaxed, NULL, NULL, &e) == 0, "%s", e.text);
	for (int i = 0; i < N; i++)
		sum += relaxed[i];
	CHECK(near(metrics_get(&m, "relaxed_loss_1"), sum + kl / VALUES) &&
		      near(metrics_get(&m, "relaxed_elb"), -VALUES * sum - kl) &&
		      near(metrics_get(&m, "relaxed_loss"), sum + 6.6 * kl / VALUES) &&
		      near(metrics_get(&m, "relaxed_elb_beta"), -VALUES * sum - 6.6 * kl),
	      "the relaxed bound");
	CHECK(!near(metrics_get(&m, "relaxed_elb"), metrics_get(&m, "elb")), "is another one");
	for (int i = 0; i < N; i++)
		record_free(&r[i]);
	free(rgb);
	dvae_fit_free(f);
	dvae_free(d);
}

/* Pictures of N x N different one-colour blocks out of K - 1: a code that starts as clusters of the blocks shows them all
 * at once, before any training. */
static void test_start_from_blocks(void)
{
	enum { N = 6, S = 32, STEM = 8, K = 16, KINDS = K - 1 };
	struct dvae_config c = {.size = S,
				.stem = STEM,
				.hidden = 64,
				.initial = 32,
				.groups = 1,
				.blocks = 2,
				.codes = K,
				.kernel = 1,
				.post_gain = 1};
	struct dvae *d = make(&c, BOTH | DVAE_TRAINING, f32, N);
	struct dvae_pass hard = {.floor = -INFINITY};
	uint8_t rgb[N * S * S * 3], out[sizeof rgb];
	double squares = 0;
	for (size_t i = 0; i < sizeof rgb; i++) {
		size_t x = i / 3 % S, y = i / 3 / S, block = y / STEM * (S / STEM) + x / STEM, kind = block * 7 % KINDS;
		/* Half of each block has one colour, half another. */
		rgb[i] = (uint8_t)(20 + (kind * 53 + i % 3 * 89 + (x % STEM < 4) * 77) % 200);
	}
	CHECK(dvae_calibrate(d, rgb, N, 0.01, 1, &e) == 0, "%s", e.text);
	CHECK(dvae_measure(d, rgb, N, &hard, NULL, NULL, out, &e) == 0, "%s", e.text);
	for (size_t i = 0; i < sizeof rgb; i++)
		squares += ((double)rgb[i] - out[i]) * ((double)rgb[i] - out[i]) / sizeof rgb;
	CHECK(squares < 4, "mean squared error %g of 255^2 from blocks that all have a code", squares);
	dvae_free(d);
}

static void test_code_use(void)
{
	struct code_use u = {0};
	struct dvae *d = make(&small_2, BOTH, f32, 1);
	CHECK(code_use_init(&u, d, 2, &e) == 0, "%s", e.text);
	CHECK(code_use_perplexity(&u) == 1 && code_use_count(&u) == 0, "nothing counted yet");
	uint8_t *rgb = pictures(1, 12);
	for (int i = 0; i < 5; i++) {
		ops->put(f32, d->rgb, rgb, 12 * 12 * 3);
		dvae_forward_encoder(d, 1);
		code_use_add(&u, d, 1, &e);
	}
	CHECK(u.total == 18, "the window holds 2 batches of 9 tokens, %llu here", (unsigned long long)u.total);
	for (int k = 0; k < u.K; k++)
		u.count[k] = 2;
	CHECK(fabs(code_use_perplexity(&u) - u.K) < 1e-9 && code_use_count(&u) == u.K, "equal use has perplexity K");
	code_use_free(&u);
	free(rgb);
	dvae_free(d);
}

static void test_configuration(void)
{
	struct dvae_config c;
	const struct dvae_config *paper = &dvae_preset("paper")->config;
	struct dvae_config full = *paper;
	full.post_gain = 1.0 / 64;
	json_t *j = dvae_config_to_json(&full);
	CHECK(j && dvae_config_from_json(&c, j, "x", &e) == 0 && !memcmp(&c, &full, sizeof c), "JSON and back");
	json_object_set_new(j, "codes", json_string("many"));
	CHECK(dvae_config_from_json(&c, j, "x", &e) < 0 && e.status == STATUS_BAD, "wrong type of a field must be refused");
	e = (struct error){0};
	json_object_set_new(j, "codes", json_integer((1LL << 32) + 8192));
	CHECK(dvae_config_from_json(&c, j, "x", &e) < 0 && strstr(e.text, "codes is 4294975488, expected 2 to 1048576"), "%s",
	      e.text);
	e = (struct error){0};
	json_object_del(j, "codes");
	CHECK(dvae_config_from_json(&c, j, "x", &e) < 0 && strstr(e.text, "no whole number \"codes\""), "%s", e.text);
	e = (struct error){0};
	json_decref(j);
	full.size = 250;
	CHECK(dvae_check(&full, &e) < 0, "a size that does not divide must be refused");
	e = (struct error){0};
	double encode, decode;
	dvae_flops(paper, &encode, &decode);
	CHECK(encode > 1e11 && encode < 1e12 && decode > encode, "operations: %g and %g", encode, decode);
}

/* A file of tensors with the published names and no metadata of ours, as OpenAI's weights are when converted. */
static void test_foreign(void)
{
	struct dvae_config c = {.size = 256, .stem = 32, .hidden = 8, .initial = 6, .groups = 2, .blocks = 2, .codes = 9,
	                        .kernel = 3, .post_gain = 0};
	char path[] = "test-dvae-XXXXXX";
	int fd = mkstemp(path);
	struct dvae *d = make(&c, BOTH, f32, 1);
	struct weights_part part = {.p = dvae_params(d), .which = BLOCK_W, .prefix = ""};
	json_t *meta = json_object();
	CHECK(fd >= 0 && close(fd) == 0 && weights_save(path, meta, &part, 1, NULL, &e) == 0, "saving: %s", e.text);
	json_decref(meta);
	struct dvae *encoder = dvae_load(path, DVAE_ENCODER, ops, f32, 1, &e);
	struct dvae *decoder = dvae_load(path, DVAE_DECODER, ops, f32, 1, &e);
	if (CHECK(encoder && decoder, "loading: %s", e.text)) {
		const struct dvae_config *k = dvae_configuration(encoder);
		CHECK(k->size == 256 && k->stem == 32 && k->groups == 2 && k->blocks == 2 && k->codes == 9 &&
		      k->post_gain == 1.0 / 16, "configuration from shapes");
		CHECK(strlen(dvae_id(encoder)) == ID_LENGTH && !strcmp(dvae_id(encoder), dvae_id(decoder)),
		      "both halves have the file's identity");
		uint8_t *rgb = pictures(1, 256);
		int32_t a[16], b[16];
		CHECK(dvae_encode(d, a, rgb, 1, &e) == 0 && dvae_encode(encoder, b, rgb, 1, &e) == 0 &&
		      !memcmp(a, b, sizeof a), "the same codes");
		free(rgb);
	}
	unlink(path);
	dvae_free(d);
	dvae_free(encoder);
	dvae_free(decoder);
}

int main(void)
{
	char text[200];
	ops = cpu_ops();
	f32 = ops->open(0, DT_F32, 2, text, sizeof text);
	if (!CHECK(f32 != NULL, "device: %s", text))
		return check_done();
	test_likelihood();
	test_phi();
	test_schedules();
	test_kl();
	test_counts();
	test_gradients(&small_1, 0, "stem 1");
	test_gradients(&small_2, 0, "stem 2");
	test_gradients(&small_2, 0.3, "usage bonus");
	test_accumulation();
	test_precision(DT_BF16, 0.01f);
	test_precision(DT_F16, 0.01f / 8);
	test_batches();
	test_missing();
	test_calibration();
	test_bounds();
	test_start_from_blocks();
	test_code_use();
	test_configuration();
	test_foreign();
	ops->close(f32);
	return check_done();
}
