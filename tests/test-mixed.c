/* test-mixed.c - training in 16 bits as a whole: runs of every storage that are stopped and killed go on to the same bytes,
 * updates that are not finite are left out, and a deep transformer whose activation gradients do not fit f16 at one
 * scale learns with a scale for each resblock (recipe D1, D5). */
#include "../libcommon/dalle-train.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libcommon/device.h"
#include "../libcommon/rng.h"
#include "check.h"

static const struct ops *ops;
static struct error err;
static char folder[64], data_path[96], model_path[96], log_path[96];

static void need(int r, const char *what)
{
	if (r == 0)
		return;
	printf("%s: %s\n", what, err.text);
	exit(1);
}

static struct dev *open_dev(enum dtype t)
{
	char text[200];
	struct dev *dev = ops->open(0, t, 1, text, sizeof text);
	need(dev ? 0 : fail(&err, STATUS_FAIL, "%s", text), "device");
	return dev;
}

/* ---- a small run of the real trainer ---- */

enum { STEPS = 26, RECORDS = 44, BATCH = 4 };

/* How a run computes and keeps its weights. */
struct format {
	const char *what;
	enum dtype type;
	int moments;
	bool no_master;
	enum grad_scale_kind scale;
	double average_decay;
	int patience; /* with evaluations on the training data */
};

/* The trainee with faults: a model that hands on to the one of dalle-train.c. */
struct faulty {
	struct trainee inner;
	struct params *p;
	int64_t stop_at, kill_at;
	uint32_t infinite; /* bit i: at update i the gradient of row 20 + i is */
};

static double faulty_lr(const void *model, const struct train_step *s)
{
	const struct faulty *f = model;
	return f->inner.lr(f->inner.model, s);
}

static void make_infinite(struct params *p, const struct param *r)
{
	float *x = calloc(r->n, sizeof *x);
	x[r->n / 2] = INFINITY;
	need(params_put(p, r, BLOCK_G, x, &err), "gradient");
	free(x);
}

static int faulty_step(void *model, const struct train_step *s, const struct record *const *batch, int n, struct metrics *m,
                       struct error *e)
{
	struct faulty *f = model;
	int result = f->inner.step(f->inner.model, s, batch, n, m, e);
	if (f->infinite >> s->step & 1)
		make_infinite(f->p, &f->p->rows[20 + s->step]);
	if (s->step == f->kill_at)
		raise(SIGKILL);
	if (s->step == f->stop_at)
		raise(SIGTERM);
	return result;
}

static int faulty_evaluate(void *model, const struct train_step *s, const struct record *const *batch, int n,
                           struct metrics *sums, struct error *e)
{
	struct faulty *f = model;
	return f->inner.evaluate(f->inner.model, s, batch, n, sums, e);
}

static struct train_options options_of(const struct format *f)
{
	struct train_options o = TRAIN_DEFAULTS;
	o.output = model_path;
	o.steps = STEPS;
	o.save_every = 3;
	o.moments = f->moments;
	o.no_master = f->no_master;
	o.patience = f->patience;
	o.eval = f->patience ? data_path : NULL;
	o.eval_every = 5;
	return o;
}

/* One run, or the rest of one; returns its exit status. */
static int run(const struct format *f, const struct train_options *o, int64_t stop_at, int64_t kill_at, uint32_t infinite)
{
	struct dalle d;
	struct dev *dev = open_dev(f->type);
	const struct dalle_preset *tiny = dalle_preset_find("tiny");
	struct dalle_config c = tiny->config;
	struct dalle_fit fit = {.d = &d, .file = "data", .recipe = tiny->recipe, .grad_scale = f->scale};
	char *files[] = {data_path}, *argv[] = {"mixed", NULL};
	err = (struct error){0};
	c.layers = 2;
	fit.recipe.batch = BATCH;
	fit.recipe.average_decay = f->average_decay;
	struct loader *data = loader_open(files, 1, (uint64_t)o->seed, 1 << 30, &err);
	need(!data || dalle_describe(&d, &c, 1, false, &err) || dalle_fit_start(&fit, &err), "model");
	struct faulty bad = {.p = &d.params, .stop_at = stop_at, .kill_at = kill_at, .infinite = infinite};
	json_t *config = dalle_config_json(&c);
	dalle_fit_trainee(&fit, &bad.inner, config, loader_header(data));
	struct trainee t = bad.inner;
	t.model = &bad, t.lr = faulty_lr, t.step = faulty_step, t.evaluate = faulty_evaluate;
	need(train_plan(&t, o, ops, dev, &err) || dalle_build(&d, ops, dev, true, &err) ||
		     dalle_plan(&d, BATCH, true, &err),
	     "plan");
	int status = train_run(&t, o, data, 1, argv, &err);
	stop_requested = 0;
	json_decref(config);
	loader_close(data);
	dalle_fit_free(&fit);
	dalle_free(&d);
	ops->close(dev);
	return status;
}

static void write_data(void)
{
	struct header h = {.text = {.id = "0123456789abcdef0123456789abcdef", .size = 256, .length = 6},
	                   .image = {.id = "fedcba9876543210fedcba9876543210", .size = 64, .grid_width = 4, .grid_height = 4}};
	struct record r = {0};
	struct writer *w = writer_open(data_path, &h, STREAM_LEVEL, &err);
	for (int i = 0; w && i < RECORDS; i++) {
		uint32_t text[6], image[16];
		for (uint32_t k = 0; k < 6; k++)
			text[k] = rng_u32(1, RNG_AUGMENT, (uint32_t)i, k) % 256;
		for (uint32_t k = 0; k < 16; k++)
			image[k] = (text[k % 6] + k) % 64;
		need(tokens_set(&r.text, text, (size_t)(i % 6), &err) || tokens_set(&r.image, image, 16, &err) ||
			     writer_put(w, &r, &err),
		     "data");
	}
	need(w ? writer_close(w, &err) : -1, "data");
	record_free(&r);
}

static struct buf file_bytes(void)
{
	struct buf b = {0};
	err = (struct error){0};
	need(read_file(model_path, 1 << 30, &b, &err), "model file");
	return b;
}

static bool same_bytes(const struct buf *a, const struct buf *b)
{
	return a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
}

/* ---- exact continuation ---- */

static const char *type_in_file(const struct weights *w, const char *name)
{
	const struct weights_tensor *t = weights_find(w, name);
	return t ? t->type : "none";
}

/* What an unfinished file holds of a matrix and of a gain. */
static void check_file(const struct format *f)
{
	static const char *const names[] = {"F32", "BF16", "F16"};
	err = (struct error){0};
	struct weights *w = weights_open(model_path, &err);
	need(w ? 0 : -1, "unfinished file");
	const char *type = type_in_file(w, "train.w.blocks.1.mlp.up.weight"),
		   *m = type_in_file(w, "train.m.blocks.1.mlp.up.weight");
	CHECK(strcmp(type, names[f->no_master ? f->type : DT_F32]) == 0, "%s: matrices are saved as %s", f->what, type);
	CHECK(strcmp(m, f->moments ? "U16" : "F32") == 0 && strcmp(m, type_in_file(w, "train.v.blocks.1.mlp.up.weight")) == 0,
	      "%s: moments of matrices are saved as %s", f->what, m);
	CHECK(strcmp(type_in_file(w, "train.w.norm.weight"), "F32") == 0 &&
		      strcmp(type_in_file(w, "train.m.norm.weight"), "F32") == 0 &&
		      strcmp(type_in_file(w, "train.v.image.embed.weight"), "F32") == 0,
	      "%s: gains and embeddings stay f32", f->what);
	CHECK((strstr(weights_meta(w, "dalle.state"), "grad_scale") != NULL) == (f->type == DT_F16),
	      "%s: scales are in the state", f->what);
	weights_close(w);
}

static void check_resume(const struct format *f)
{
	static const int64_t stops[] = {0, 7, 20}, kills[] = {5, 11, 24};
	struct train_options o = options_of(f);
	uint32_t infinite = f->type == DT_F16 ? 1u << 2 | 1u << 6 | 1u << 12 : 0;
	unlink(model_path);
	CHECK(run(f, &o, -1, -1, infinite) == STATUS_OK, "%s: %s", f->what, err.text);
	struct buf whole = file_bytes();
	for (size_t i = 0; i < ARRAY_LEN(stops); i++) {
		unlink(model_path);
		CHECK(run(f, &o, stops[i], -1, infinite) == STATUS_AGAIN, "%s: stopped at %lld: %s", f->what,
		      (long long)stops[i], err.text);
		check_file(f);
		CHECK(run(f, &o, -1, -1, infinite) == STATUS_OK, "%s: continued: %s", f->what, err.text);
		struct buf b = file_bytes();
		CHECK(same_bytes(&whole, &b), "%s: stopped at %lld and continued, the same file", f->what, (long long)stops[i]);
		buf_free(&b);
	}
	for (size_t i = 0; i < ARRAY_LEN(kills); i++) {
		int status;
		unlink(model_path);
		pid_t child = fork();
		if (child == 0)
			_exit(run(f, &o, -1, kills[i], infinite));
		CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "%s: killed at %lld", f->what, (long long)kills[i]);
		CHECK(run(f, &o, -1, -1, infinite) == STATUS_OK, "%s: continued: %s", f->what, err.text);
		struct buf b = file_bytes();
		CHECK(same_bytes(&whole, &b), "%s: killed at %lld and continued, the same file", f->what, (long long)kills[i]);
		buf_free(&b);
	}
	/* Another storage is another run. */
	struct train_options other = o;
	other.moments = !o.moments;
	int status = run(f, &other, -1, -1, infinite);
	CHECK(status == STATUS_BAD && strstr(err.text, "--restart"), "%s: other moments are refused: %s", f->what, err.text);
	buf_free(&whole);
	unlink(model_path);
}

/* Resumed with the other kind of scale, a run would not be the same. */
static void check_other_scale(void)
{
	struct format f = {"f16", DT_F16, 0, false, GRAD_SCALE_RESBLOCK, 0.9, 0}, g = f;
	struct train_options o = options_of(&f);
	g.scale = GRAD_SCALE_GLOBAL;
	CHECK(run(&f, &o, 4, -1, 0) == STATUS_AGAIN, "stopped: %s", err.text);
	int status = run(&g, &o, -1, -1, 0);
	CHECK(status == STATUS_BAD && strstr(err.text, "is resblock, not global"), "another kind of scale: %s", err.text);
	unlink(model_path);
}

/* ---- updates that are not finite ---- */

static double last_number(const char *name)
{
	FILE *f = fopen(log_path, "r");
	char line[4000];
	double x = NAN;
	while (f && fgets(line, sizeof line, f)) {
		json_t *j = json_loads(line, 0, NULL), *v = json_object_get(j, name);
		if (json_is_number(v))
			x = json_number_value(v);
		json_decref(j);
	}
	if (f)
		fclose(f);
	return x;
}

static void check_skipping(void)
{
	struct format f = {"f16", DT_F16, 0, false, GRAD_SCALE_RESBLOCK, 0.9, 0}, g = f;
	struct train_options o = options_of(&f);
	/* Rows 22, 26 and 32: two of the last layer's MLP, within a window, and the heads' norm. */
	uint32_t infinite = 1u << 2 | 1u << 6 | 1u << 12;
	o.log = log_path;
	CHECK(run(&f, &o, -1, -1, infinite) == STATUS_OK, "f16 goes on: %s", err.text);
	CHECK(last_number("skipped") == 3, "three updates were left out, the log says %g", last_number("skipped"));
	double low = last_number("scale_min"), high = last_number("scale_max");
	CHECK(fabs(high / 8192 - exp2((STEPS - 0) / 1000.0)) < 1e-6, "the resblocks that stayed finite grew: 2^%.3f", log2(high));
	CHECK(low < 8192 / 1.3 && low > 8192 / 1.5, "the others were divided once: 2^%.3f", log2(low));
	unlink(model_path), unlink(log_path);
	o.log = NULL;
	g.type = DT_BF16;
	CHECK(run(&g, &o, -1, -1, infinite) == STATUS_FAIL && strstr(err.text, "step 2") && strstr(err.text, "gradient of "),
	      "bf16 ends and names the tensor: %s", err.text);
	unlink(model_path);
}

/* ---- a deep transformer whose gradients do not fit one scale ---- */

enum { LAYERS = 14, PAIRS = 16, UPDATES = 200 };

struct deep {
	struct dalle d;
	uint32_t text[PAIRS][3], image[PAIRS][4];
	struct dalle_item items[PAIRS];
};

static void scale_row(struct params *p, const struct param *r, double k)
{
	float *x = calloc(r->n, sizeof *x);
	need(params_get(p, r, BLOCK_W, x, &err), r->name);
	for (size_t i = 0; i < r->n; i++)
		x[i] *= (float)k;
	need(params_put(p, r, BLOCK_W, x, &err), r->name);
	free(x);
}

/* The residual stream grows from 2^-8 to 2^28 over the layers, by the gains of their norms as far as f16 holds that, and
 * by the MLPs' last matrices; the gradients shrink by as much.  All of the network takes part: each layer outweighs those
 * before it.  The first MLP computes the same by a small first and a large second matrix, and has large gradients inside. */
static void stretch(struct deep *m)
{
	struct params *p = &m->d.params;
	double depth = sqrt(2.0 * LAYERS);
	for (int i = 0; i < LAYERS; i++) {
		const struct stack_layer *l = &m->d.stack.layer[i];
		double stream = exp2(-8 + 36.0 * i / (LAYERS - 1)), gain = fmin(fmax(stream, 1), 4096);
		scale_row(p, l->norm2_w, gain);
		scale_row(p, l->down_w, stream / gain * depth);
		scale_row(p, l->out_w, fmin(stream, 256) * depth);
	}
	scale_row(p, m->d.stack.layer[0].up_w, 0x1p-13);
	scale_row(p, m->d.stack.layer[0].down_w, 1.5 * 0x1p13);
	for (int i = 0; i < DALLE_TABLES; i++)
		scale_row(p, m->d.table[i], exp2(-8) * 4);
}

static struct deep *deep_new(struct dev *dev)
{
	struct deep *m = calloc(1, sizeof *m);
	struct dalle_config c = {.text_length = 4, .text_vocab = 16, .grid_w = 2, .grid_h = 2, .image_vocab = 16, .layers = LAYERS,
	                         .width = 16, .heads = 2, .conv_k = 3, .mask = DALLE_MASK_DENSE, .logits_f32 = true};
	need(dalle_describe(&m->d, &c, 1, false, &err) || dalle_build(&m->d, ops, dev, true, &err) ||
	     params_init(&m->d.params, 1, &err) || dalle_plan(&m->d, PAIRS, true, &err), "deep model");
	for (int i = 0; i < PAIRS; i++) {
		for (uint32_t k = 0; k < 3; k++)
			m->text[i][k] = rng_below((uint64_t)i, RNG_AUGMENT, 1, k, 16);
		for (uint32_t k = 0; k < 4; k++)
			m->image[i][k] = rng_below((uint64_t)i + 100, RNG_AUGMENT, 1, k, 16);
		m->items[i] = (struct dalle_item){m->text[i], m->image[i], 3, NULL};
	}
	struct param *heads[] = {m->d.text_head.w, m->d.image_head.w}; /* zeros would hide all behind them */
	for (uint32_t i = 0; i < 2; i++) {
		float *w = calloc(heads[i]->n, sizeof *w);
		rng_normal(w, heads[i]->n, 0.3f, 5, RNG_INIT, i);
		need(params_put(&m->d.params, heads[i], BLOCK_W, w, &err), "heads");
		free(w);
	}
	stretch(m);
	params_start(&m->d.params);
	return m;
}

/* Gradients of the loss times `loss_scale`; returns the nats per image token. */
static double gradients(struct deep *m, double loss_scale, double *norm)
{
	struct dalle_loss l;
	params_zero_grad(&m->d.params);
	need(dalle_likelihood(&m->d, m->items, PAIRS, true, loss_scale, &l, &err) ||
		     params_grad_norm(&m->d.params, norm, &err),
	     "step");
	return l.image / (double)l.image_count;
}

/* What the rule comes to in the long run at these weights: each gradient stands for 1000 updates when it is finite,
 * else for a window.  The loss is taken 256 times: as much is left for the gradients to grow in the few updates that
 * follow, which overflows would else hold up for a window each time. */
static void settle(struct deep *m)
{
	double norm;
	for (int i = 0; i < 60; i++) {
		gradients(m, 256, &norm);
		for (int k = 0; k < (isfinite(norm) ? 1000 : GRAD_SCALE_WINDOW); k++)
			grad_scale_step(&m->d.params.scales, !isfinite(norm));
	}
	m->d.params.scales.skipped = 0;
}

/* Share of the gradients of the resblocks' matrices that are exactly zero. */
static double zero_share(struct deep *m)
{
	size_t zeros = 0, all = 0;
	for (int i = 0; i < m->d.params.count; i++) {
		const struct param *r = &m->d.params.rows[i];
		if (r->kind != PARAM_MATRIX)
			continue;
		float *g = calloc(r->n, sizeof *g);
		need(params_get(&m->d.params, r, BLOCK_G, g, &err), r->name);
		for (size_t k = 0; k < r->n; k++)
			zeros += g[k] == 0;
		all += r->n;
		free(g);
	}
	return (double)zeros / (double)all;
}

/* The loss after UPDATES updates by the rule; *zeros of the first gradients. */
static double deep_run(enum dtype type, enum grad_scale_kind kind, double *zeros)
{
	struct dev *dev = open_dev(type);
	struct deep *m = deep_new(dev);
	struct grad_scale *s = &m->d.params.scales;
	double norm, loss = 0;
	need(grad_scale_start(s, kind, 2 * LAYERS, 1, &err), "scales");
	if (kind != GRAD_SCALE_NONE)
		settle(m);
	for (int i = 0; i < UPDATES; i++) {
		loss = gradients(m, 1, &norm);
		if (i == 0)
			*zeros = zero_share(m);
		struct adamw a = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-8f, .g_scale = norm > 4 ? (float)(4 / norm) : 1,
		                  .step = i + 1 - s->skipped};
		if (isfinite(norm))
			params_update(&m->d.params, &a);
		grad_scale_step(s, !isfinite(norm));
	}
	dalle_free(&m->d);
	free(m);
	ops->close(dev);
	return loss;
}

static void check_deep(void)
{
	double zeros = 0, f32 = deep_run(DT_F32, GRAD_SCALE_NONE, &zeros);
	/* Image tokens are of 16 kinds: 2.77 nats by chance. */
	CHECK(f32 < 1.6 && zeros < 0.3, "f32 learns: %.3f nats, %.0f %% of the gradients are 0 (dead activations)", f32,
	      100 * zeros);
	double resblock = deep_run(DT_F16, GRAD_SCALE_RESBLOCK, &zeros);
	CHECK(resblock < 1.6 && zeros < 0.3,
	      "f16, a scale per resblock learns: %.3f nats, %.0f %% of the gradients are 0", resblock, 100 * zeros);
	double plain = deep_run(DT_F16, GRAD_SCALE_NONE, &zeros);
	CHECK(plain > 2.3 && zeros == 1, "plain f16 does not: %.3f nats, %.0f %% of the gradients are 0", plain, 100 * zeros);
	double global = deep_run(DT_F16, GRAD_SCALE_GLOBAL, &zeros);
	CHECK(global > 2.3 && zeros == 1, "f16, one scale does not: %.3f nats, %.0f %% of the gradients are 0", global,
	      100 * zeros);
}

int main(void)
{
	static const struct format formats[] = {
		{"f32, 16-bit moments", DT_F32, 1, false, GRAD_SCALE_RESBLOCK, 0.9, 0},
		{"bf16, 16-bit moments, no master", DT_BF16, 1, true, GRAD_SCALE_RESBLOCK, 0.9, 0},
		{"bf16, no master, patience", DT_BF16, 0, true, GRAD_SCALE_RESBLOCK, 0.9, 9},
		{"f16, resblocks", DT_F16, 0, false, GRAD_SCALE_RESBLOCK, 0.9, 0},
		{"f16, global", DT_F16, 0, false, GRAD_SCALE_GLOBAL, 0.9, 0},
		{"f16, 16-bit moments, no master", DT_F16, 1, true, GRAD_SCALE_RESBLOCK, 0.9, 0},
		{"f16, 16-bit moments, no master, no averages, patience", DT_F16, 1, true, GRAD_SCALE_RESBLOCK, 0, 9},
	};
	program_name = "test-mixed";
	verbosity = -1;
	ops = cpu_ops();
	snprintf(folder, sizeof folder, "/tmp/test-mixed-XXXXXX");
	if (!mkdtemp(folder))
		return 1;
	snprintf(data_path, sizeof data_path, "%s/data", folder);
	snprintf(model_path, sizeof model_path, "%s/model", folder);
	snprintf(log_path, sizeof log_path, "%s/log", folder);
	write_data();
	for (size_t i = 0; i < ARRAY_LEN(formats); i++)
		check_resume(&formats[i]);
	check_other_scale();
	check_skipping();
	unlink(data_path);
	CHECK(rmdir(folder) == 0, "no other file was left in the folder");
	check_deep();
	return check_done();
}
