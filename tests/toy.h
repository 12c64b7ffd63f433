/* toy.h - a model small enough for tests of the training loop: a linear map of token values, with hooks that stop, kill
 * or damage it.  For test-train.c and test-train-rules.c. */
#ifndef TOY_H
#define TOY_H

#include "../libcommon/train.h"

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

enum { IN = 6, OUT = 3, BATCH = 8, RECORDS = 100, STEPS = 40, HISTORY = 200 };

static char folder[80], data_path[96], held_path[96], wide_path[96], model[96], log_path[96];

/* ---- the toy ---- */

struct toy {
	struct params p;
	struct param *w, *b; /* (OUT, IN), (OUT) */
	struct dev *dev;
	const struct ops *ops;
	struct trainee t;
	float x[BATCH * IN], y[BATCH * OUT], dy[BATCH * OUT];
	double peak;               /* step size */
	int64_t stop_at, kill_at, nan_at; /* step at which to ask for a stop, die, or produce a NaN; -1 never */
	double (*script)(int64_t step); /* the loss that is told; NULL: the true one */
	const char *damage;             /* file that is damaged at step 5 */
	int calls, evaluations, previews, rising_after; /* evaluations get worse after so many; 0 never */
	float history[HISTORY][OUT * IN]; /* w before update i */
	struct toy *rival;         /* is run on the same output at step 3 */
	const struct train_options *rival_options;
	int rival_status;
	struct error rival_error;
};

static inline int run(struct toy *m, const struct train_options *o, struct error *e);

static inline double toy_lr(const void *m, const struct train_step *s)
{
	return ((const struct toy *)m)->peak * schedule_warmup_cosine(s->step, 5, s->steps, 0.1);
}

/* Inputs in [-1, 1); the target is a fixed linear map plus noise that depends on the record. */
static inline double toy_target(const float *x, int o)
{
	double y = 0.1 * o;
	for (int i = 0; i < IN; i++)
		y += (0.3 * (o + 1) - 0.2 * i) * (double)x[i];
	return y;
}

static inline double toy_forward(struct toy *m, const struct record *const *batch, int n)
{
	double loss = 0;
	for (int r = 0; r < n; r++)
		for (int i = 0; i < IN; i++)
			m->x[r * IN + i] = (float)batch[r]->text.v[i] / 128 - 1;
	m->ops->linear_fwd(m->dev, m->y, m->x, m->w->t, m->b->w, (size_t)n, IN, OUT, OP_F32);
	for (int r = 0; r < n; r++)
		for (int o = 0; o < OUT; o++) {
			double d = (double)m->y[r * OUT + o] - toy_target(&m->x[r * IN], o);
			m->dy[r * OUT + o] = (float)(d / n);
			loss += d * d / 2;
		}
	return loss;
}

/* All frames but the first are overwritten in place, so that their sizes remain. */
static inline void damage(const char *path)
{
	struct stat st;
	int fd = open(path, O_WRONLY);
	if (fd < 0 || fstat(fd, &st))
		exit(1);
	for (off_t at = st.st_size / 3; at < st.st_size * 2 / 3; at += 97)
		if (pwrite(fd, "\xA5", 1, at) != 1)
			exit(1);
	close(fd);
}

static inline int toy_step(void *model_, const struct train_step *s, const struct record *const *batch, int n,
			   struct metrics *out, struct error *e)
{
	struct toy *m = model_;
	double loss = toy_forward(m, batch, n) / n;
	m->calls++;
	if (m->script)
		loss = m->script(s->step);
	if (m->damage && s->step == 5)
		damage(m->damage);
	if (s->part == 0 && s->step < HISTORY)
		memcpy(m->history[s->step], m->w->w, sizeof m->history[0]);
	for (int i = 0; i < n * OUT; i++)
		m->dy[i] /= (float)s->parts;
	m->ops->linear_bwd(m->dev, NULL, m->w->g, m->b->g, m->dy, m->x, m->w->t, (size_t)n, IN, OUT, OP_F32);
	if (s->step == m->nan_at)
		((float *)m->b->g)[1] = NAN;
	if (s->step == m->kill_at)
		raise(SIGKILL);
	if (s->step == m->stop_at && s->part == 0)
		raise(SIGTERM);
	if (s->step == 3 && m->rival)
		m->rival_status = run(m->rival, m->rival_options, &m->rival_error);
	metrics_set(out, "loss", loss);
	metrics_set(out, "part", s->part);
	return 0;
}

static inline int toy_evaluate(void *model_, const struct train_step *s, const struct record *const *batch, int n,
                        struct metrics *sums, struct error *e)
{
	struct toy *m = model_;
	m->evaluations++;
	double loss = toy_forward(m, batch, n);
	if (m->rising_after)
		loss = n * (1 + fabs(m->evaluations - m->rising_after - 0.0));
	metrics_set(sums, "loss", loss);
	metrics_set(sums, "records", n);
	return 0;
}

static inline int toy_preview(void *model_, const struct train_step *s, struct error *e)
{
	((struct toy *)model_)->previews++;
	return 0;
}

static inline struct toy *toy_new(void)
{
	struct toy *m = calloc(1, sizeof *m);
	struct error e = {0};
	char text[200];
	m->ops = cpu_ops();
	m->dev = m->ops->open(0, DT_F32, 1, text, sizeof text);
	if (params_add(&m->p, &m->w, PARAM_MATRIX, 0.5f, 0, 2, (int64_t[]){OUT, IN}, &e, "map.weight") ||
	    params_add(&m->p, &m->b, PARAM_BIAS, 0, 0, 1, (int64_t[]){OUT}, &e, "map.bias") ||
	    params_build(&m->p, m->ops, m->dev, true, &e)) {
		printf("toy: %s\n", e.text);
		exit(1);
	}
	m->peak = 0.05;
	m->stop_at = m->kill_at = m->nan_at = -1;
	m->t = (struct trainee){
		.kind = "toy", .model = m, .params = &m->p, .config = json_pack("{s:i,s:i}", "in", IN, "out", OUT),
		.text_id = "", .image_id = "", .batch = BATCH, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-8f, .decay = 0.01f,
		.clip = 1, .average_decay = 0.9f, .average_every = 3, .lr = toy_lr, .step = toy_step, .evaluate = toy_evaluate,
		.preview = toy_preview,
	};
	return m;
}

static inline void toy_free(struct toy *m)
{
	json_decref(m->t.config);
	json_decref(m->t.recipe);
	params_free(&m->p);
	m->ops->close(m->dev);
	free(m);
}

static inline struct train_options usual(void)
{
	static struct train_options any;
	static struct run_options where;
	static const struct opt table[] = {OPT_TRAIN(&any), OPT_RUN(&where), OPT_END};
	struct train_options o = TRAIN_DEFAULTS;
	o.table = table;
	o.output = model;
	o.steps = STEPS;
	o.save_every = 0;
	return o;
}

static inline int run_on(struct toy *m, const struct train_options *o, char *path, uint64_t limit, struct error *e)
{
	char *files[] = {path}, *argv[] = {"toy-train", "-o", "it's here", NULL};
	*e = (struct error){0};
	struct loader *data = loader_open(files, 1, (uint64_t)o->seed, limit, e);
	int status = data ? train_run(&m->t, o, data, 3, argv, e) : e->status;
	loader_close(data);
	stop_requested = 0;
	return status;
}

static inline int run(struct toy *m, const struct train_options *o, struct error *e)
{
	return run_on(m, o, data_path, 1 << 30, e);
}

/* A fresh toy, one run. */
static inline int run_fresh(const struct train_options *o, struct error *e)
{
	struct toy *m = toy_new();
	int status = run(m, o, e);
	toy_free(m);
	return status;
}

static inline void write_data(const char *path, int n, uint64_t seed, int level)
{
	struct header h = {.text = {.id = "0123456789abcdef0123456789abcdef", .size = 256, .length = IN}};
	struct record r = {0};
	struct error e = {0};
	struct writer *w = writer_open(path, &h, level, &e);
	for (int i = 0; w && i < n; i++) {
		uint32_t v[IN];
		for (int k = 0; k < IN; k++)
			v[k] = rng_u32(seed, RNG_INIT, 0, (uint64_t)(i * IN + k)) % 256;
		if (tokens_set(&r.text, v, IN, &e) || writer_put(w, &r, &e))
			break;
	}
	record_free(&r);
	if (!w || writer_close(w, &e)) {
		printf("%s: %s\n", path, e.text);
		exit(1);
	}
}

static inline struct buf file_bytes(const char *path)
{
	struct buf b = {0};
	struct error e = {0};
	if (read_file(path, 1 << 26, &b, &e))
		b.n = 0;
	return b;
}

static inline bool same_bytes(const struct buf *a, const struct buf *b)
{
	return a->n && a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
}

static inline bool exists(const char *path)
{
	struct stat st;
	return stat(path, &st) == 0;
}

/* A metadata string of the model file, or "". */
static inline const char *meta(const char *key)
{
	static char text[2000];
	struct error e = {0};
	struct weights *w = weights_open(model, &e);
	const char *s = w ? weights_meta(w, key) : NULL;
	snprintf(text, sizeof text, "%s", s ? s : "");
	weights_close(w);
	return text;
}

/* A scratch folder with its data files, and its end. */
static inline void toy_start(const char *name)
{
	program_name = name;
	verbosity = -1;
	snprintf(folder, sizeof folder, "/tmp/%s-XXXXXX", name);
	if (!mkdtemp(folder))
		exit(1);
	snprintf(data_path, sizeof data_path, "%s/data", folder);
	snprintf(held_path, sizeof held_path, "%s/held", folder);
	snprintf(wide_path, sizeof wide_path, "%s/wide", folder);
	snprintf(model, sizeof model, "%s/model", folder);
	snprintf(log_path, sizeof log_path, "%s/log", folder);
	write_data(data_path, RECORDS, 1, STREAM_LEVEL);
	write_data(held_path, 20, 2, STREAM_LEVEL);
	write_data(wide_path, 700, 3, STREAM_LEVEL);
}

static inline int toy_end(void)
{
	unlink(data_path);
	unlink(held_path);
	unlink(wide_path);
	CHECK(rmdir(folder) == 0, "no other file was left in the folder");
	return check_done();
}

#endif
