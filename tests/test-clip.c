/* test-clip.c - CLIP against an independent PyTorch implementation (tests/golden/make_clip.py): vectors, loss, every
 * gradient; and what the loss must not do. */
#include "golden.h"

#include "../libcommon/clip.h"
#include "../libcommon/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 5, SIZE = 8 };
enum { F32 = 1, BF16 = 2, F16 = 3 }; /* of auto|f32|bf16|f16 */
static const struct clip_config config = {.size = SIZE, .patch = 4, .image_width = 16, .image_layers = 2, .image_heads = 2,
                                          .context = 7, .vocabulary = 14, .text_width = 16, .text_layers = 2,
                                          .text_heads = 2, .embed = 12, .lr = 1e-3, .warmup = 1};
static struct weights *expected;
static const struct ops *ops;
static struct dev *dev;
static char golden_path[4096];

static float *golden_read(const char *prefix, const char *name, size_t n)
{
	struct error e = {0};
	char full[160];
	snprintf(full, sizeof full, "%s%s", prefix, name);
	const struct weights_tensor *t = weights_find(expected, full);
	float *v = mem_zero(n, sizeof *v, &e);
	if (!CHECK(t && v, "golden tensor %s", full) || !t || !v)
		exit(1);
	CHECK(weights_read(expected, t, v, &e) == 0, "read %s: %s", full, e.text);
	return v;
}

static void make_batch(struct record rec[BATCH], const struct record *batch[BATCH])
{
	static const uint32_t captions[BATCH][8] = {{1, 2, 3}, {4}, {1, 2, 3}, {5, 6, 7, 8, 9, 10, 11, 0}, {0}};
	static const size_t lengths[BATCH] = {3, 1, 3, 8, 0};
	struct error e = {0};
	float *rgb = golden_read("in.", "rgb", BATCH * SIZE * SIZE * 3);
	for (int i = 0; i < BATCH; i++) {
		batch[i] = &rec[i];
		pixels_resize(&rec[i].pixels, SIZE, SIZE, &e);
		for (int k = 0; k < SIZE * SIZE * 3; k++)
			rec[i].pixels.rgb[k] = (uint8_t)rgb[i * SIZE * SIZE * 3 + k];
		tokens_set(&rec[i].text, captions[i], lengths[i], &e);
	}
	free(rgb);
}

/* Every tensor within the bound; in bf16, and f16 with its scales, over all tensors also no worse than PyTorch's own
 * autocast is on the same batch (root mean square of the relative errors). */
static void check_gradients(struct clip *m, int precision, double bound)
{
	struct error e = {0};
	double ours = 0, autocast = 0;
	for (int i = 0; i < m->params.count; i++) {
		struct param *p = &m->params.rows[i];
		float *got = mem_alloc(p->n, sizeof *got, &e), *want = golden_read("grad.", p->name, p->n);
		float *rough = golden_read("auto.", p->name, 1);
		CHECK(params_get(&m->params, p, BLOCK_G, got, &e) == 0, "%s", e.text);
		bool norm = p->kind == PARAM_GAIN || p->kind == PARAM_SHIFT;
		for (size_t k = 0; k < p->n && !norm; k++)
			got[k] /= grad_scale_enter(&m->params.scales, p->unit);
		double err = relative(got, want, p->n);
		CHECK(err < bound, "%s: gradient of %s: relative error %.2g < %.2g", dtype_name(ops->type(dev)), p->name, err, bound);
		ours += err * err;
		autocast += (double)*rough * *rough;
		free(got);
		free(want);
		free(rough);
	}
	CHECK(ours <= autocast, "gradients: root mean square error %.3g, of PyTorch's bf16 autocast %.3g",
	      sqrt(ours / m->params.count), sqrt(autocast / m->params.count));
}

static void test_golden(int precision, double bound, double gradient_bound)
{
	struct error e = {0};
	struct run_options run = {"cpu", 1, BATCH, precision, 0};
	struct clip m = {0};
	struct clip_trainer t = {0};
	struct trainee trainee;
	struct record rec[BATCH];
	const struct record *batch[BATCH];
	struct metrics metrics = {0};
	const struct train_step step = {.step = 0, .steps = 1, .seed = 1, .part = 0, .parts = 1};
	CHECK(device_open(&run, &ops, &dev, &e) == 0, "device: %s", e.text);
	CHECK(clip_plan(&m, &config, ops, dev, BATCH, true, &e) == 0 && clip_build(&m, &e) == 0 && clip_trainer_init(&t, &m, &e) == 0, "model: %s", e.text);
	CHECK(params_load(&m.params, BLOCK_W, expected, "", &e) == 0, "weights: %s", e.text);
	params_refresh(&m.params);
	memset(rec, 0, sizeof rec);
	make_batch(rec, batch);
	clip_trainee(&t, &trainee);
	if (precision == F16) {
		struct grad_scale *s = &m.params.scales;
		int units = 2 * (int)(config.image_layers + config.text_layers) + 1; /* and the patch embedding */
		CHECK(grad_scale_start(s, trainee.grad_scale, units, 1, &e) == 0, "scales: %s", e.text);
		for (int i = 0; i < units; i++)
			s->scale[i] = 1000 * (1 + i % 5);
	}
	params_zero_grad(&m.params);
	CHECK(trainee.step(trainee.model, &step, batch, BATCH, &metrics, &e) == 0, "step: %s", e.text);
	float *loss = golden_read("out.", "loss", 1);
	CHECK(fabs(metrics_get(&metrics, "loss") - *loss) < bound * fabsf(*loss), "loss %.6f, expected %.6f",
	      metrics_get(&metrics, "loss"), *loss);
	check_gradients(&m, precision, gradient_bound);
	const struct tokens *text[BATCH];
	float image[BATCH * 12], words[BATCH * 12], *want;
	for (int i = 0; i < BATCH; i++)
		text[i] = &rec[i].text;
	CHECK(clip_embed(&m, t.rgb, text, BATCH, image, words, &e) == 0, "embed: %s", e.text);
	want = golden_read("out.", "image", BATCH * 12);
	CHECK(relative(image, want, BATCH * 12) < bound, "picture vectors");
	free(want);
	want = golden_read("out.", "text", BATCH * 12);
	CHECK(relative(words, want, BATCH * 12) < bound, "caption vectors");
	free(want);
	free(loss);
	for (int i = 0; i < BATCH; i++)
		record_free(&rec[i]);
	clip_trainer_free(&t);
	clip_free(&m);
	device_close(ops, dev);
}

/* A batch as both halves of an update gives the gradients that it gives alone. */
static void check_parts(struct clip_trainer *t, const struct trainee *trainee, const struct record *const *batch)
{
	struct error e = {0};
	struct params *p = trainee->params;
	struct metrics metrics = {0};
	struct train_step step = {.steps = 1, .seed = 1, .parts = 1};
	float *sums[2] = {mem_zero(p->total, sizeof(float), &e), mem_zero(p->total, sizeof(float), &e)};
	t->max_shift = 0;
	for (step.parts = 1; step.parts <= 2 && sums[0] && sums[1]; step.parts++) {
		params_zero_grad(p);
		for (step.part = 0; step.part < step.parts; step.part++)
			CHECK(trainee->step(trainee->model, &step, batch, BATCH, &metrics, &e) == 0, "step: %s", e.text);
		CHECK(params_to_host(sums[step.parts - 1], p, BLOCK_G, &e) == 0, "%s", e.text);
	}
	double far = 0, all = 0;
	for (int i = 0; i < p->count; i++) {
		double off = 0, size = 0;
		for (size_t k = p->rows[i].at; k < p->rows[i].at + p->rows[i].n; k++) {
			off += pow((double)sums[1][k] - (double)sums[0][k], 2);
			size += pow((double)sums[0][k], 2);
		}
		CHECK(sqrt(off) <= 1e-5 * sqrt(size), "%s: two halves differ by %g of %g", p->rows[i].name, sqrt(off), sqrt(size));
		far += off, all += size;
	}
	CHECK(all > 0 && sqrt(far / all) < 1e-6, "two halves differ by %g", sqrt(far / all));
	free(sums[0]), free(sums[1]);
}

/* H2 and H6: the temperature's start and bound, the optimizer, the schedule. */
static void test_recipe(void)
{
	struct error e = {0};
	struct run_options run = {"cpu", 1, BATCH, F32, 0};
	struct clip m;
	struct clip_config c = config, vit;
	struct clip_trainer t;
	struct trainee trainee;
	struct record rec[BATCH];
	const struct record *batch[BATCH];
	struct metrics metrics = {0};
	struct train_step step = {.steps = 32000, .seed = 1, .parts = 1};
	float s;
	CHECK(clip_preset("vit-b-32", &vit, &e) == 0 && vit.augment == CLIP_CROP && vit.average_decay == 0, "preset");
	c.lr = vit.lr, c.decay = vit.decay, c.warmup = vit.warmup;
	if (!CHECK(device_open(&run, &ops, &dev, &e) == 0 && clip_plan(&m, &c, ops, dev, BATCH, true, &e) == 0 &&
	           clip_trainer_init(&t, &m, &e) == 0 && clip_build(&m, &e) == 0 && params_init(&m.params, 1, &e) == 0, "%s", e.text))
		return;
	clip_trainee(&t, &trainee);
	CHECK(trainee.beta1 == 0.9f && trainee.beta2 == 0.98f && trainee.eps == 1e-6f && trainee.decay == 0.2f && trainee.clip == 0,
	      "AdamW 0.9, 0.98, 1e-6, 0.2");
	ops->get(dev, &s, m.scale->w, sizeof s);
	CHECK(fabsf(s - 2.6593f) < 1e-4f, "the temperature starts at 0.07: %g", (double)s);
	memset(rec, 0, sizeof rec);
	make_batch(rec, batch);
	s = 6;
	ops->put(dev, m.scale->w, &s, sizeof s);
	params_zero_grad(&m.params);
	CHECK(trainee.step(trainee.model, &step, batch, BATCH, &metrics, &e) == 0, "step: %s", e.text);
	ops->get(dev, &s, m.scale->w, sizeof s);
	CHECK(fabsf(s - 4.6052f) < 1e-4f && fabs(metrics_get(&metrics, "temperature") - 0.01) < 1e-6, "logits are scaled by 100 at most: %g",
	      exp((double)s));
	s = 2.6593f;
	ops->put(dev, m.scale->w, &s, sizeof s);
	check_parts(&t, &trainee, batch);
	step.step = 999;
	CHECK(fabs(trainee.lr(&t, &step) - 2.5e-4) < 1e-9, "half of the warm-up: %g", trainee.lr(&t, &step));
	step.step = 2000;
	CHECK(fabs(trainee.lr(&t, &step) - 5e-4) < 1e-9, "the peak: %g", trainee.lr(&t, &step));
	step.step = 17000;
	CHECK(fabs(trainee.lr(&t, &step) - 2.5e-4) < 1e-9, "half of the cosine: %g", trainee.lr(&t, &step));
	step.step = 31999;
	CHECK(trainee.lr(&t, &step) < 1e-10, "down to 0: %g", trainee.lr(&t, &step));
	for (int i = 0; i < BATCH; i++)
		record_free(&rec[i]);
	clip_trainer_free(&t);
	clip_free(&m);
	device_close(ops, dev);
}

/* H3, H4: as many parameters as the published model has. */
static void test_count(void)
{
	struct error e = {0};
	struct clip_config c;
	struct clip m;
	struct run_options run = {"cpu", 1, 1, F32, 0};
	CHECK(device_open(&run, &ops, &dev, &e) == 0 && clip_preset("vit-b-32", &c, &e) == 0, "%s", e.text);
	CHECK(clip_plan(&m, &c, ops, dev, 1, true, &e) == 0, "%s", e.text);
	CHECK(params_count(&m.params) == 151277313, "vit-b-32 has %llu parameters", (unsigned long long)params_count(&m.params));
	clip_free(&m);
	device_close(ops, dev);
}

static void test_refusals(void)
{
	struct error e = {0};
	struct clip_config c;
	CHECK(clip_preset("nonsense", &c, &e) && e.status == STATUS_USAGE, "unknown preset is misuse");
	struct run_options run = {"cpu", 1, 2, 1, 0};
	struct clip m;
	e = (struct error){0};
	device_open(&run, &ops, &dev, &e);
	c = config;
	c.patch = 3;
	CHECK(clip_plan(&m, &c, ops, dev, 2, true, &e) && e.status == STATUS_BAD, "a patch that does not divide the side is refused");
	clip_free(&m);
	e = (struct error){0};
	c = config;
	c.image_layers = ((int64_t)1 << 33) + 1;
	CHECK(clip_plan(&m, &c, ops, dev, 2, true, &e) && e.status == STATUS_BAD, "2^33 layers are refused before memory is taken");
	clip_free(&m);
	e = (struct error){0};
	c = config;
	c.text_heads = 0;
	CHECK(clip_plan(&m, &c, ops, dev, 2, true, &e) && e.status == STATUS_BAD, "no heads are refused");
	clip_free(&m);
	e = (struct error){0};
	CHECK(clip_load(&m, golden_path, ops, dev, 2, &e) && e.status == STATUS_BAD,
	      "a file that is no CLIP model is refused");
	clip_free(&m);
	device_close(ops, dev);
}

int main(void)
{
	struct error e = {0};
	const char *root = getenv("SRC");
	snprintf(golden_path, sizeof golden_path, "%s/tests/golden/clip.safetensors", root ? root : ".");
	expected = weights_open(golden_path, &e);
	if (!CHECK(expected, "golden file: %s", e.text))
		return check_done();
	test_golden(F32, 1e-4, 1e-4);
	test_golden(BF16, 2e-2, 2e-2);
	test_golden(F16, 2e-2 / 8, 2e-2 / 4);
	test_recipe();
	test_count();
	test_refusals();
	weights_close(expected);
	return check_done();
}
