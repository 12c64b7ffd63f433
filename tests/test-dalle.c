/* test-dalle.c - the transformer: layer kinds and masks (recipe K5, K6), parameter counts of the presets, an
 * independent implementation's losses and gradients (tests/golden/make_dalle.py), finite differences, recomputation,
 * cached sampling against whole sequences, and overfitting eight pairs. */
#include "check.h"

#include "../libcommon/dalle.h"
#include "../libcommon/device.h"
#include "../libcommon/hash.h"
#include "../libcommon/rng.h"
#include "../libcommon/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct ops *ops;
static struct error err;

static struct dev *open_dev(enum dtype t)
{
	char text[200];
	struct dev *dev = ops->open(0, t, 1, text, sizeof text);
	if (!dev)
		printf("cannot open the device: %s\n", text), exit(1);
	return dev;
}

static void need(int r, const char *what)
{
	if (r == 0)
		return;
	printf("%s: %s\n", what, err.text);
	exit(1);
}

/* ---- K5, K6, C3 ---- */

static void check_schedule(void)
{
	struct dalle_config c = dalle_preset_find("12b")->config;
	int count[5] = {0};
	for (int i = 0; i < c.layers; i++)
		count[dalle_mask_of(&c, i).kind]++;
	CHECK(count[ATTN_ROW] == 47 && count[ATTN_COLUMN] == 16 && count[ATTN_CONV] == 1, "64 layers: %d row, %d column, %d conv",
	      count[ATTN_ROW], count[ATTN_COLUMN], count[ATTN_CONV]);
	enum attn_kind first[] = {ATTN_ROW, ATTN_COLUMN, ATTN_ROW, ATTN_ROW, ATTN_ROW, ATTN_COLUMN};
	for (int i = 0; i < 6; i++)
		CHECK(dalle_mask_of(&c, i).kind == first[i], "kind of layer %d", i + 1);
	CHECK(dalle_mask_of(&c, 61).kind == ATTN_COLUMN && dalle_mask_of(&c, 63).kind == ATTN_CONV, "layers 62 and 64");
	c.mask = DALLE_MASK_DENSE;
	CHECK(dalle_mask_of(&c, 5).kind == ATTN_CAUSAL &&
		      attn_length(&(struct attn_mask[]){dalle_mask_of(&c, 5)}[0]) == 1280,
	      "dense");
	struct dalle_config one = dalle_preset_find("tiny")->config;
	one.layers = 1;
	CHECK(dalle_mask_of(&one, 0).kind == ATTN_CONV, "a single layer is conv");
}

/* Offsets of image keys that the last image state of a W x W grid sees, as a bit string from 0. */
static int taps(const struct attn_mask *m, int *offsets)
{
	int S = attn_length(m), n = 0;
	for (int o = 0; o < S - m->n_text; o++)
		if (attn_allowed(m, S - 1, S - 1 - o))
			offsets[n++] = o;
	return n;
}

static void check_masks(void)
{
	struct dalle_config c = {.text_length = 6, .grid_w = 4, .grid_h = 4, .layers = 3, .conv_k = 3};
	const int want[3][6] = {{0, 1, 2, 3, 4}, {0, 4, 8, 12}, {0, 1, 3, 4, 5, 7}}, number[3] = {5, 4, 6};
	int o[2048];
	for (int i = 0; i < 3; i++) {
		struct attn_mask m = dalle_mask_of(&c, i);
		CHECK(taps(&m, o) == number[i] && memcmp(o, want[i], (size_t)number[i] * sizeof *o) == 0, "K5: taps of layer %d", i + 1);
		bool text = true;
		for (int q = 6; q < 22; q++)
			for (int k = 0; k < 6; k++)
				text = text && attn_allowed(&m, q, k) && !attn_allowed(&m, k, q);
		CHECK(text, "K5: every image state sees all text, text sees no image (layer %d)", i + 1);
	}
	c = dalle_preset_find("12b")->config;
	struct attn_mask row = dalle_mask_of(&c, 0), conv = dalle_mask_of(&c, 63);
	CHECK(taps(&row, o) == 33, "K6: row sees 33");
	int n = taps(&conv, o);
	CHECK(n == 66 && o[n - 1] == 191 && o[n - 5] == 187, "K6: conv sees 66, the last 187..191");
}

static uint64_t count_of(const char *preset, int *matrices)
{
	struct dalle d;
	const struct dalle_preset *p = dalle_preset_find(preset);
	need(dalle_describe(&d, &p->config, 0.125, false, &err), preset);
	uint64_t n = params_count(&d.params), C = (uint64_t)p->config.width, L = (uint64_t)p->config.layers;
	uint64_t inner = L * (12 * C * C + 13 * C), V = 16384 + 8192;
	uint64_t outer = (V + 2) * C + (256 + 256 + 32 + 32) * C + 2 * C + V * C + V;
	*matrices = n == inner + outer;
	dalle_free(&d);
	return L * 12 * C * C;
}

static void check_counts(void)
{
	const struct {
		const char *name;
		double billions; /* of matrix parameters (C3; 1.2b: 24 * 12 * 2048^2) */
	} rows[] = {{"1.2b", 1.208}, {"2.8b", 2.831}, {"5.6b", 5.549}, {"12b", 12.092}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		int exact;
		double n = (double)count_of(rows[i].name, &exact) / 1e9;
		CHECK(exact, "%s: every parameter counted", rows[i].name);
		CHECK(fabs(n - rows[i].billions) < 1e-3, "%s: %.3f billion, expected %.3f", rows[i].name, n, rows[i].billions);
	}
}

/* ---- golden ---- */

static struct weights *golden;

static float *golden_read(const char *name, size_t *n)
{
	const struct weights_tensor *t = weights_find(golden, name);
	*n = t ? t->bytes / 4 : 0;
	float *x = calloc(*n + 1, sizeof *x);
	if (t)
		need(weights_read(golden, t, x, &err), name);
	return x;
}

static uint32_t *golden_tokens(const char *name, size_t *n)
{
	float *x = golden_read(name, n);
	uint32_t *v = calloc(*n + 1, sizeof *v);
	for (size_t i = 0; i < *n; i++)
		v[i] = (uint32_t)x[i];
	free(x);
	return v;
}

/* |a - b| / |b| over a whole tensor. */
static double distance(const float *a, const float *b, size_t n)
{
	double d = 0, s = 0;
	for (size_t i = 0; i < n; i++) {
		d += (double)(a[i] - b[i]) * (a[i] - b[i]);
		s += (double)b[i] * b[i];
	}
	return sqrt(d / (s > 0 ? s : 1));
}

/* Scales of all sizes, so that one that is forgotten or taken twice shows. */
static void start_scales(struct dalle *d)
{
	need(grad_scale_start(&d->params.scales, GRAD_SCALE_RESBLOCK, 2 * d->c.layers + 1, 1, &err), "scales");
	for (int i = 0; i < d->params.scales.units; i++)
		d->params.scales.scale[i] = 1000 * (1 + i % 5);
}

/* The gradient of p without its scale: those of layer norms come without. */
static float *unscaled_gradient(struct dalle *d, const struct param *p)
{
	float *g = calloc(p->n, sizeof *g), scale = grad_scale_enter(&d->params.scales, p->unit);
	need(params_get(&d->params, p, BLOCK_G, g, &err), p->name);
	for (size_t i = 0; i < p->n && !strstr(p->name, "norm"); i++)
		g[i] /= scale;
	return g;
}

/* The worst tensor, and all of them as one vector into *total. */
static double worst_gradient(struct dalle *d, const char **name, double *total)
{
	double worst = 0, gap = 0, size = 0;
	for (int i = 0; i < d->params.count; i++) {
		struct param *p = &d->params.rows[i];
		char grad[128];
		size_t n;
		snprintf(grad, sizeof grad, "grad.%s", p->name);
		float *want = golden_read(grad, &n), *have = unscaled_gradient(d, p);
		CHECK(n == p->n, "golden file holds %s", grad);
		/* The keys' bias has no gradient but rounding; we set it to 0 (J3). */
		size_t skip = strstr(p->name, "qkv.bias") ? p->n / 3 : 0;
		double x = skip ? fmax(distance(have, want, skip), distance(have + 2 * skip, want + 2 * skip, skip))
				: distance(have, want, n);
		if (x > worst)
			worst = x, *name = p->name;
		for (size_t k = 0; k < p->n; k++)
			if (k < skip || k >= 2 * skip) {
				gap += (double)(have[k] - want[k]) * (have[k] - want[k]);
				size += (double)want[k] * want[k];
			}
		free(want);
		free(have);
	}
	*total = sqrt(gap / size);
	return worst;
}

/* narrow: no master copy and gradients of matrices in 16 bits. */
static void check_golden(enum dtype type, bool recompute, bool narrow, double bound, double tensor_bound)
{
	struct dalle d;
	struct dev *dev = open_dev(type);
	struct dalle_config c = {.text_length = 6, .text_vocab = 11, .grid_w = 4, .grid_h = 3, .image_vocab = 13, .layers = 3,
	                         .width = 12, .heads = 3, .conv_k = 3, .logits_f32 = type == DT_F32};
	need(dalle_describe(&d, &c, 0.125, recompute, &err), "golden model");
	d.params.storage = (struct storage){.no_master = narrow, .t_gradients = narrow};
	need(dalle_build(&d, ops, dev, true, &err) || params_load(&d.params, BLOCK_W, golden, "", &err) ||
	     dalle_plan(&d, 4, true, &err), "golden model");
	if (type == DT_F16)
		start_scales(&d);
	params_refresh(&d.params);
	params_zero_grad(&d.params);
	size_t n0, n2, ni;
	uint32_t *t0 = golden_tokens("in.text0", &n0), *t2 = golden_tokens("in.text2", &n2), *z = golden_tokens("in.image", &ni);
	struct dalle_item items[3] = {{t0, z, n0, NULL}, {t0, z + 12, 0, NULL}, {t2, z + 24, n2, NULL}};
	struct dalle_loss l;
	need(dalle_likelihood(&d, items, 3, true, 1, &l, &err), "golden step");
	size_t n;
	float *text = golden_read("out.text", &n), *image = golden_read("out.image", &n), *loss = golden_read("out.loss", &n);
	double have = l.text / (double)l.text_count / 8 + l.image / (double)l.image_count * 7 / 8,
	       gap = fabs(have - loss[0]) / loss[0];
	for (int i = 0; i < 3; i++)
		gap = fmax(gap, fmax(fabs(l.text_of[i] - text[i]) / (text[i] + 1), fabs(l.image_of[i] - image[i]) / image[i]));
	CHECK(gap < bound, "%s: losses differ from PyTorch's by %.2g", dtype_name(type), gap);
	const char *name = "";
	double total, worst = worst_gradient(&d, &name, &total);
	CHECK(worst < tensor_bound && total < bound, "%s%s%s: gradients differ from PyTorch's by %.2g, that of %s by %.2g",
	      dtype_name(type), recompute ? ", recomputed" : "", narrow ? ", no master copy" : "", total, name, worst);
	free(t0), free(t2), free(z), free(text), free(image), free(loss);
	dalle_free(&d);
	ops->close(dev);
}

/* ---- a small model of our own ---- */

static void fill_tokens(uint32_t *v, size_t n, uint32_t vocab, uint64_t seed)
{
	for (size_t i = 0; i < n; i++)
		v[i] = rng_below(seed, RNG_AUGMENT, 1, i, vocab);
}

/* Zero heads would hide everything behind them: give them weights. */
static void random_heads(struct dalle *d)
{
	struct param *heads[] = {d->text_head.w, d->image_head.w};
	for (int i = 0; i < 2; i++) {
		float *w = calloc(heads[i]->n, sizeof *w);
		rng_normal(w, heads[i]->n, 0.3f, 5, RNG_INIT, (uint32_t)i);
		ops->put(d->params.dev, heads[i]->w, w, heads[i]->n * 4);
		free(w);
	}
	params_refresh(&d->params);
}

static void new_model(struct dalle *d, struct dev *dev, const struct dalle_config *c, bool training, bool recompute)
{
	need(dalle_describe(d, c, 1, recompute, &err) || dalle_build(d, ops, dev, training, &err) ||
	     params_init(&d->params, 3, &err), "model");
	random_heads(d);
}

static double loss_at(struct dalle *d, const struct dalle_item *items, int n)
{
	struct dalle_loss l;
	need(dalle_likelihood(d, items, n, false, 1, &l, &err), "likelihood");
	return l.text / (double)l.text_count / 8 + l.image / (double)l.image_count * 7 / 8;
}

/* The loss along a random direction of all parameters against the gradient: rounding of f32 losses bounds
 * the agreement to about 1e-3. */
static void check_differences(struct dev *dev, int mask, int layers, int k, bool centred)
{
	struct dalle d;
	struct dalle_config c = {.text_length = 5, .text_vocab = 9, .grid_w = 5, .grid_h = 3, .image_vocab = 7, .layers = layers,
	                         .width = 16, .heads = 2, .conv_k = k, .conv_centred = centred, .mask = mask};
	new_model(&d, dev, &c, true, false);
	need(dalle_plan(&d, 3, true, &err), "plan");
	uint32_t text[12], image[45];
	fill_tokens(text, 12, 9, 1);
	fill_tokens(image, 45, 7, 2);
	struct dalle_item items[3] = {{text, image, 2, NULL}, {text + 4, image + 15, 4, NULL}, {text + 8, image + 30, 3, NULL}};
	struct dalle_loss l;
	params_zero_grad(&d.params);
	need(dalle_likelihood(&d, items, 3, true, 1, &l, &err), "step");
	size_t n = d.params.total;
	float *w = malloc(n * 4), *g = malloc(n * 4), *dir = malloc(n * 4), *x = malloc(n * 4);
	ops->get(dev, w, d.params.w, n * 4);
	ops->get(dev, g, d.params.g, n * 4);
	double norm = 0, step = 2e-3, loss[2];
	for (size_t i = 0; i < n; i++)
		norm += (double)g[i] * g[i];
	rng_normal(dir, n, (float)(1 / sqrt((double)n)), 11, RNG_AUGMENT, 0);
	/* Along the gradient plus as much noise: every parameter takes part and the slope is well away from 0. */
	double slope = 0;
	for (size_t i = 0; i < n; i++) {
		dir[i] += (float)(g[i] / sqrt(norm));
		slope += (double)dir[i] * g[i];
	}
	for (int s = 0; s < 2; s++) {
		for (size_t i = 0; i < n; i++)
			x[i] = (float)(w[i] + (s ? step : -step) * dir[i]);
		ops->put(dev, d.params.w, x, n * 4);
		loss[s] = loss_at(&d, items, 3);
	}
	double measured = (loss[1] - loss[0]) / (2 * step);
	CHECK(fabs(measured - slope) < 2e-3 * fabs(slope), "%s mask, %d layers, k %d: slope %.6g, differences %.6g",
	      mask ? "dense" : "paper", layers, k, slope, measured);
	free(w), free(g), free(dir), free(x);
	dalle_free(&d);
}

/* A hidden token is one that the loss after it cannot depend on, and is predicted as before. */
static void check_hidden(struct dev *dev)
{
	struct dalle d;
	struct dalle_config c = dalle_preset_find("tiny")->config;
	uint32_t text[3] = {1, 2, 3}, image[3][16];
	uint8_t hidden[16] = {0};
	hidden[4] = 1;
	fill_tokens(image[0], 16, 64, 2);
	memcpy(image[1], image[0], sizeof image[0]);
	image[1][4] ^= 1;
	struct dalle_item items[4] = {{text, image[0], 3, hidden},
				      {text, image[1], 3, hidden},
				      {text, image[0], 3, NULL},
				      {text, image[1], 3, NULL}};
	struct dalle_loss l;
	new_model(&d, dev, &c, false, false);
	need(dalle_plan(&d, 4, false, &err) || dalle_likelihood(&d, items, 4, false, 1, &l, &err), "likelihood");
	const float *a = d.host_nll + 128; /* the text rows are padded to 128 */
	CHECK(memcmp(a, a + 16, 16) == 0 && a[4] != a[16 + 4] && memcmp(a + 5, a + 16 + 5, 44) == 0,
	      "a hidden token changes its own loss only");
	CHECK(memcmp(a + 32 + 5, a + 48 + 5, 44) != 0 && memcmp(a, a + 32, 20) == 0, "a shown token changes what follows it");
	dalle_free(&d);
}

static void check_recompute(enum dtype type)
{
	struct dev *dev = open_dev(type);
	struct dalle_config c = dalle_preset_find("tiny")->config;
	uint32_t text[20], image[48];
	fill_tokens(text, 20, 256, 1);
	fill_tokens(image, 48, 64, 2);
	struct dalle_item items[3] = {{text, image, 12, NULL}, {text + 3, image + 16, 1, NULL}, {text + 5, image + 32, 15, NULL}};
	float *g[2];
	size_t n = 0;
	for (int r = 0; r < 2; r++) {
		struct dalle d;
		struct dalle_loss l;
		new_model(&d, dev, &c, true, r);
		need(dalle_plan(&d, 4, true, &err), "plan");
		if (type == DT_F16)
			start_scales(&d);
		params_zero_grad(&d.params);
		need(dalle_likelihood(&d, items, 3, true, 1, &l, &err), "step");
		n = d.params.total;
		g[r] = malloc(n * 4);
		ops->get(dev, g[r], d.params.g, n * 4);
		dalle_free(&d);
	}
	CHECK(memcmp(g[0], g[1], n * 4) == 0, "%s: recomputation gives the same bits", dtype_name(type));
	free(g[0]), free(g[1]);
	ops->close(dev);
}

/* Figure 4's filter: what overflows inside one resblock is seen in its own gradients, and nowhere else. */
static void check_filter(void)
{
	struct dev *dev = open_dev(DT_F16);
	struct dalle_config c = dalle_preset_find("tiny")->config;
	uint32_t text[5], image[16];
	fill_tokens(text, 5, 256, 1);
	fill_tokens(image, 16, 64, 2);
	struct dalle_item item = {text, image, 5, NULL};
	for (int r = 0; r <= 2 * c.layers; r++) { /* the last are the heads */
		struct dalle d;
		struct dalle_loss l;
		double norm;
		int others = 0;
		new_model(&d, dev, &c, true, false);
		need(dalle_plan(&d, 1, true, &err), "plan");
		start_scales(&d);
		struct grad_scale *s = &d.params.scales;
		s->scale[r] = 1e15;
		params_zero_grad(&d.params);
		need(dalle_likelihood(&d, &item, 1, true, 1, &l, &err) || params_grad_norm(&d.params, &norm, &err), "step");
		for (int i = 0; i < s->units; i++)
			others += i != r && !s->finite[i];
		if (r < 2 * c.layers) /* nothing filters between the heads and the embeddings */
			CHECK(!s->finite[r] && others == 0 && !s->outside, "resblock %d overflows, and %d others", r, others);
		else
			CHECK(!s->finite[r] && others == 0 && s->outside, "the heads overflow, and %d resblocks", others);
		CHECK(!isfinite(norm), "and the update is left out");
		dalle_free(&d);
	}
	ops->close(dev);
}

/* ---- sampling ---- */

enum { GRID = 24, RECORDS = 4, ALL = 13 };

/* Samples of record i: few and many, so that captions begin and end at different times. */
static int samples_of(int i)
{
	return (int[RECORDS]){2, 6, 1, 4}[i];
}

static void set_record(struct record *r, const char *key, const uint32_t *text, size_t n, const uint32_t *image)
{
	need(buf_set(&r->key, key, strlen(key), &err) || tokens_set(&r->text, text, n, &err) ||
	     tokens_set(&r->image, image, GRID, &err), "record");
}

/* Draws of whole sequences without caches: logits of position p from the model as training runs it. */
static void draw_uncached(struct dalle *d, const struct record *r, uint32_t number, const struct sample_options *o,
			  uint32_t *z)
{
	const struct dalle_config *c = &d->c;
	int C = c->width, V = c->image_vocab, S = dalle_length(c);
	struct dev *dev = d->params.dev;
	float *with = ops->alloc(dev, (size_t)V * 4), *x = ops->alloc(dev, (size_t)C * 4), *stat = ops->alloc(dev, 64);
	float *logits[2] = {malloc((size_t)V * 4), malloc((size_t)V * 4)};
	int32_t *token = ops->alloc(dev, 64), *idx = ops->alloc(dev, (size_t)S * DALLE_TABLES * 4);
	uint64_t *key = ops->alloc(dev, 64), k = sample_key(r, number);
	int32_t *host = malloc((size_t)S * DALLE_TABLES * 4);
	ops->put(dev, key, &k, sizeof k);
	for (int p = 0; p < GRID; p++)
		z[p] = p < o->prefix_rows * c->grid_w ? r->image.v[p] : 0;
	for (int p = o->prefix_rows * c->grid_w; p < GRID; p++) {
		for (int half = 0; half <= (o->guidance != 1); half++) {
			struct dalle_item item = {.text = r->text.v, .text_n = half ? 0 : r->text.n, .image = z};
			dalle_indices(d, &item, 0, S, host, (size_t)S, 0);
			ops->put(dev, idx, host, (size_t)S * DALLE_TABLES * 4);
			dalle_embed(d, stack_input(&d->stack), idx, (size_t)S, (size_t)S);
			const float *h = stack_forward(&d->stack, 1) + (size_t)(c->text_length + p) * (size_t)C;
			ops->norm_fwd(dev, x, stat, stat + 1, h, d->norm_w->w, d->norm_b->w, 1, C, 0);
			ops->linear_fwd(dev, with, x, d->image_head.w->w, d->image_head.b->w, 1, C, V, 0);
			ops->get(dev, logits[half], with, (size_t)V * 4);
		}
		for (int v = 0; v < V && o->guidance != 1; v++)
			logits[0][v] = logits[1][v] + (float)o->guidance * (logits[0][v] - logits[1][v]);
		ops->put(dev, with, logits[0], (size_t)V * 4);
		struct draw how = {(float)o->temperature, o->top_k, (float)o->top_p, o->seed};
		int32_t position = p;
		ops->put(dev, idx, &position, sizeof position);
		ops->draw(dev, token, with, key, idx, 1, V, &how);
		int32_t t;
		ops->get(dev, &t, token, sizeof t);
		z[p] = (uint32_t)t;
	}
	ops->release(dev, with), ops->release(dev, x), ops->release(dev, stat), ops->release(dev, token);
	ops->release(dev, idx), ops->release(dev, key);
	free(logits[0]), free(logits[1]), free(host);
}

/* How samples are drawn in one test run. */
static const struct batching {
	int batch, captions, threads;
	int late; /* record i comes after so many steps times i at the earliest */
} batchings[] = {{ALL, RECORDS, 1, 0}, {1, 1, 1, 0}, {3, 2, 2, 0}, {5, 4, 2, 7}};

/* Samples of RECORDS records, record i with samples_of(i), in their order; returns whether that was so. */
static bool sample_all(struct dalle *d, struct record *records, const struct batching *how, const struct sample_options *o,
                       uint32_t out[ALL][GRID])
{
	struct sampler *s = sampler_new(d, how->batch, how->captions, o, &err);
	struct sample x;
	int record = 0, at = 0, partial[ALL] = {0}, in = 0;
	bool ordered = true;
	need(s ? 0 : -1, "sampler");
	for (int step = 0, r = 1; r || record < RECORDS; step++) {
		for (; record < RECORDS && sampler_wants(s) && step >= record * how->late; record++)
			need(sampler_submit(s, &records[record], samples_of(record), &err), "submission");
		r = sampler_step(s, &err);
		need(r < 0 ? -1 : 0, "step");
		for (int last = -1; sampler_next(s, &x);) {
			int whole = x.rows == d->c.grid_h, i = 0;
			while (x.record->key.p[0] != records[in].key.p[0] || (int)x.number >= samples_of(in))
				in = (in + 1) % RECORDS;
			for (int k = 0; k < in; k++)
				i += samples_of(k);
			i += (int)x.number;
			/* Within a step by age, whole ones each after the other, and every row of a sample once. */
			ordered = ordered && i > last && (!whole || i == at) && i < ALL && (x.rows == ++partial[i] + o->prefix_rows || whole);
			last = i;
			at += whole;
			memcpy(out[i], x.tokens, (size_t)(x.rows * d->c.grid_w) * sizeof **out);
		}
	}
	sampler_free(s);
	return ordered && at == ALL;
}

static void check_sampling(const struct dalle_config *c, const struct sample_options *o, const char *what)
{
	static uint32_t batched[ARRAY_LEN(batchings)][ALL][GRID];
	uint32_t text[RECORDS][5], image[RECORDS][GRID], whole[GRID];
	struct record records[RECORDS] = {0};
	bool ordered = true;
	for (int i = 0; i < RECORDS; i++) {
		fill_tokens(text[i], 5, (uint32_t)c->text_vocab, (uint64_t)i + 20);
		fill_tokens(image[i], GRID, (uint32_t)c->image_vocab, (uint64_t)i + 30);
		set_record(&records[i], (char[]){(char)('a' + i), 0}, text[i], (size_t)(5 - i), image[i]);
	}
	for (size_t b = 0; b < ARRAY_LEN(batchings); b++) {
		struct dalle d;
		char text_err[200];
		struct dev *dev = ops->open(0, DT_F32, batchings[b].threads, text_err, sizeof text_err);
		new_model(&d, dev, c, false, false);
		ordered = sample_all(&d, records, &batchings[b], o, batched[b]) && ordered;
		dalle_free(&d);
		ops->close(dev);
	}
	CHECK(ordered, "%s: samples leave in order", what);
	for (size_t b = 1; b < ARRAY_LEN(batchings); b++)
		CHECK(memcmp(batched[0], batched[b], sizeof batched[0]) == 0, "%s: the same samples in batches of %d and %d", what,
		      batchings[0].batch, batchings[b].batch);
	struct dalle d;
	struct dev *dev = open_dev(DT_F32);
	new_model(&d, dev, c, false, false);
	need(dalle_plan(&d, 1, false, &err), "plan");
	int same = 0, i = 0;
	for (int r = 0; r < RECORDS; r++)
		for (int k = 0; k < samples_of(r); k++, i++) {
			draw_uncached(&d, &records[r], (uint32_t)k, o, whole);
			same += memcmp(whole, batched[0][i], sizeof whole) == 0;
		}
	CHECK(same == ALL, "%s: %d of %d samples are those of whole sequences", what, same, ALL);
	bool differ = memcmp(batched[0][0], batched[0][1], sizeof whole) != 0;
	CHECK(differ == (o->temperature > 0 && o->prefix_rows < c->grid_h), "%s: samples of one caption differ", what);
	dalle_free(&d);
	ops->close(dev);
	for (int r = 0; r < RECORDS; r++)
		record_free(&records[r]);
}

static void check_options(const struct dalle_config *c, const char *what)
{
	char name[100];
	const struct sample_options plain = {.temperature = 1, .top_p = 1, .guidance = 1, .seed = 4};
	struct sample_options cases[6] = {plain, plain, plain, plain, plain, plain};
	static const char *const names[] = {"plain", "greedy", "guidance", "prefix", "prefix and guidance", "top-k and top-p"};
	cases[1].temperature = 0;
	cases[2].guidance = 2.5;
	cases[3].prefix_rows = 2;
	cases[4].prefix_rows = 3, cases[4].guidance = 1.5;
	cases[5].temperature = 0.7, cases[5].top_k = 6, cases[5].top_p = 0.8;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		snprintf(name, sizeof name, "%s, %s", what, names[i]);
		check_sampling(c, &cases[i], name);
	}
}

static void check_sampler(void)
{
	struct dalle_config c = {.text_length = 6, .text_vocab = 9, .grid_w = 4, .grid_h = 6, .image_vocab = 17, .layers = 3,
	                         .width = 24, .heads = 3, .conv_k = 3};
	check_options(&c, "row, column and conv");
	c.layers = 1;
	check_options(&c, "conv");
	c.conv_centred = 1;
	check_sampling(&c, &(struct sample_options){.temperature = 1, .top_p = 1, .guidance = 1, .seed = 4}, "centred conv");
	check_sampling(&c, &(struct sample_options){.temperature = 1, .top_p = 1, .guidance = 1, .prefix_rows = c.grid_h},
	               "a whole picture as prefix");
	c.mask = DALLE_MASK_DENSE, c.layers = 2;
	check_options(&c, "dense");
}

/* Eight captions and pictures learned by heart, then drawn greedily from the captions. */
static void check_overfit(struct dev *dev)
{
	struct dalle d;
	struct dalle_config c = dalle_preset_find("tiny")->config;
	need(dalle_describe(&d, &c, 0.5, false, &err) || dalle_build(&d, ops, dev, true, &err) ||
	     params_init(&d.params, 1, &err) || dalle_plan(&d, 8, true, &err), "model");
	uint32_t text[8][4], image[8][16], drawn[8][16];
	struct dalle_item items[8];
	struct record records[8] = {0};
	for (int i = 0; i < 8; i++) {
		fill_tokens(text[i], 4, 256, (uint64_t)i + 1);
		fill_tokens(image[i], 16, 64, (uint64_t)i + 100);
		items[i] = (struct dalle_item){text[i], image[i], 4, NULL};
		need(tokens_set(&records[i].text, text[i], 4, &err), "record");
	}
	struct dalle_loss l = {0};
	for (int step = 1; step <= 200; step++) {
		struct adamw a = {.lr = 5e-3f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-8f, .g_scale = 1, .step = step};
		params_zero_grad(&d.params);
		need(dalle_likelihood(&d, items, 8, true, 1, &l, &err), "step");
		params_update(&d.params, &a);
	}
	CHECK(l.image / (double)l.image_count < 0.05, "eight pairs learned: %.3f nats per image token",
	      l.image / (double)l.image_count);
	struct sampler *s = sampler_new(&d, 8, 8, &(struct sample_options){.top_p = 1, .guidance = 1}, &err);
	struct sample x;
	for (int i = 0, r = s ? 1 : -1; r; r = sampler_step(s, &err)) {
		need(r < 0 ? -1 : 0, "sampling");
		for (; i < 8 && sampler_wants(s); i++)
			need(sampler_submit(s, &records[i], 1, &err), "sampling");
		for (int k = 0; sampler_next(s, &x); k++)
			memcpy(drawn[k], x.tokens, (size_t)(x.rows * c.grid_w) * sizeof **drawn);
	}
	CHECK(memcmp(drawn, image, sizeof image) == 0, "eight pictures drawn back from their captions");
	sampler_free(s);
	for (int i = 0; i < 8; i++)
		record_free(&records[i]);
	dalle_free(&d);
}

int main(void)
{
	char path[4096];
	const char *src = getenv("SRC");
	ops = cpu_ops();
	check_schedule();
	check_masks();
	check_counts();
	snprintf(path, sizeof path, "%s/tests/golden/dalle.safetensors", src ? src : ".");
	golden = weights_open(path, &err);
	need(golden ? 0 : -1, "golden file");
	/* f32 rounding over a chain of some 40 operations; bf16 keeps 8 bits; the gradients of biases are sums that cancel. */
	check_golden(DT_F32, false, false, 1e-5, 1e-4);
	check_golden(DT_F32, true, false, 1e-5, 1e-4);
	check_golden(DT_BF16, false, false, 2e-2, 2e-2);
	check_golden(DT_BF16, false, true, 2e-2, 2e-2);
	/* f16 has three bits more of what is not small. */
	check_golden(DT_F16, false, false, 2e-2 / 8, 2e-2 / 4);
	check_golden(DT_F16, true, true, 2e-2 / 8, 2e-2 / 4);
	weights_close(golden);
	struct dev *dev = open_dev(DT_F32);
	check_differences(dev, DALLE_MASK_PAPER, 4, 3, false);
	check_differences(dev, DALLE_MASK_PAPER, 2, 5, true);
	check_differences(dev, DALLE_MASK_DENSE, 2, 3, false);
	check_hidden(dev);
	check_recompute(DT_F32);
	check_recompute(DT_BF16);
	check_recompute(DT_F16);
	check_filter();
	check_sampler();
	check_overfit(dev);
	ops->close(dev);
	return check_done();
}
