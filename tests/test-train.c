/* test-train.c - the training loop with a toy model (a linear map of token values): averages against a
 * double-precision reference, exact resume after stops and kills, evaluation and patience, failures, log, lock. */
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

static char folder[64], data_path[96], held_path[96], wide_path[96], model[96], log_path[96];

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

static int run(struct toy *m, const struct train_options *o, struct error *e);

static double toy_lr(const void *m, const struct train_step *s)
{
	return ((const struct toy *)m)->peak * schedule_warmup_cosine(s->step, 5, s->steps, 0.1);
}

/* Inputs in [-1, 1); the target is a fixed linear map plus noise that depends on the record. */
static double toy_target(const float *x, int o)
{
	double y = 0.1 * o;
	for (int i = 0; i < IN; i++)
		y += (0.3 * (o + 1) - 0.2 * i) * (double)x[i];
	return y;
}

static double toy_forward(struct toy *m, const struct record *const *batch, int n)
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
static void damage(const char *path)
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

static int toy_step(void *model_, const struct train_step *s, const struct record *const *batch, int n, struct metrics *out,
                    struct error *e)
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
		m->b->g[1] = NAN;
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

static int toy_evaluate(void *model_, const struct train_step *s, const struct record *const *batch, int n,
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

static int toy_preview(void *model_, const struct train_step *s, struct error *e)
{
	((struct toy *)model_)->previews++;
	return 0;
}

static struct toy *toy_new(void)
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

static void toy_free(struct toy *m)
{
	json_decref(m->t.config);
	params_free(&m->p);
	m->ops->close(m->dev);
	free(m);
}

static struct train_options usual(void)
{
	struct train_options o = TRAIN_DEFAULTS;
	o.output = model;
	o.steps = STEPS;
	o.save_every = 0;
	return o;
}

static int run_on(struct toy *m, const struct train_options *o, char *path, uint64_t limit, struct error *e)
{
	char *files[] = {path}, *argv[] = {"toy-train", "-o", "it's here", NULL};
	*e = (struct error){0};
	struct loader *data = loader_open(files, 1, (uint64_t)o->seed, limit, e);
	int status = data ? train_run(&m->t, o, data, 3, argv, e) : e->status;
	loader_close(data);
	stop_requested = 0;
	return status;
}

static int run(struct toy *m, const struct train_options *o, struct error *e)
{
	return run_on(m, o, data_path, 1 << 30, e);
}

/* A fresh toy, one run. */
static int run_fresh(const struct train_options *o, struct error *e)
{
	struct toy *m = toy_new();
	int status = run(m, o, e);
	toy_free(m);
	return status;
}

static void write_data(const char *path, int n, uint64_t seed, int level)
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

static struct buf file_bytes(const char *path)
{
	struct buf b = {0};
	struct error e = {0};
	if (read_file(path, 1 << 26, &b, &e))
		b.n = 0;
	return b;
}

static bool same_bytes(const struct buf *a, const struct buf *b)
{
	return a->n && a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
}

static bool exists(const char *path)
{
	struct stat st;
	return stat(path, &st) == 0;
}

/* A metadata string of the model file, or "". */
static const char *meta(const char *key)
{
	static char text[2000];
	struct error e = {0};
	struct weights *w = weights_open(model, &e);
	const char *s = w ? weights_meta(w, key) : NULL;
	snprintf(text, sizeof text, "%s", s ? s : "");
	weights_close(w);
	return text;
}

/* ---- whole runs ---- */

/* The file's average is that of the weights after updates 3, 6, ..., and the last. */
static void check_average(void)
{
	struct toy *m = toy_new();
	struct train_options o = usual();
	struct error e;
	CHECK(run(m, &o, &e) == STATUS_OK, "run: %s", e.text);
	double worst = 0;
	for (int i = 0; i < OUT * IN; i++) {
		double avg = m->history[0][i];
		int k = 0;
		for (int done = 1; done <= STEPS; done++) {
			if (done % 3 && done != STEPS)
				continue;
			double w = done < STEPS ? (double)m->history[done][i] : (double)m->w->w[i];
			double decay = fmin(0.9, (1.0 + k) / (10.0 + k));
			avg = decay * avg + (1 - decay) * w;
			k++;
		}
		worst = fmax(worst, fabs(avg - (double)m->w->avg[i]));
	}
	CHECK(worst < 1e-6, "average: off by %g", worst); /* 14 roundings of values near 1 */
	struct weights *f = weights_open(model, &e);
	float *host = calloc(m->p.total, sizeof *host);
	CHECK(f && params_load_host(host, &m->p, f, "", &e) == 0 && memcmp(host, m->w->avg, sizeof(float) * OUT * IN) == 0,
	      "the file holds the average: %s", e.text);
	free(host);
	weights_close(f);
	CHECK(m->previews == 4, "a preview each of 3 passes and at the end: %d", m->previews);
	CHECK(strcmp(meta("dalle.step"), "40") == 0 && !*meta("dalle.state"), "finished");
	CHECK(strcmp(meta("dalle.command"), "[\"test-train -o 'it'\\\\''s here'\"]") == 0, "command: %s", meta("dalle.command"));
	toy_free(m);
	struct stat before, after;
	stat(model, &before);
	CHECK(run_fresh(&o, &e) == STATUS_OK && stat(model, &after) == 0 && before.st_ino == after.st_ino, "again: already complete");
	unlink(model);
}

/* What an uninterrupted run writes. */
static struct buf reference(const struct train_options *o, char *path, uint64_t limit)
{
	struct error e;
	unlink(model);
	struct toy *m = toy_new();
	CHECK(run_on(m, o, path, limit, &e) == STATUS_OK, "uninterrupted: %s", e.text);
	toy_free(m);
	struct buf b = file_bytes(model);
	unlink(model);
	return b;
}

static void stop_case(const char *what, const struct train_options *o, char *path, uint64_t limit, int64_t k, const struct buf *expected)
{
	struct error e;
	struct toy *m = toy_new();
	m->stop_at = k;
	int status = run_on(m, o, path, limit, &e);
	CHECK(status == STATUS_AGAIN && *meta("dalle.state"), "%s: stopped at %lld with %d: %s", what, (long long)k, status, e.text);
	toy_free(m);
	m = toy_new();
	status = run_on(m, o, path, limit, &e);
	struct buf b = file_bytes(model);
	CHECK(status == STATUS_OK && same_bytes(&b, expected), "%s: stopped at %lld and continued, the same file: %s", what, (long long)k,
	      e.text);
	CHECK(m->calls == (int)((STEPS - k - 1) * o->accumulate), "%s: only the rest was computed (%d calls)", what, m->calls);
	buf_free(&b);
	toy_free(m);
	unlink(model);
}

/* Passes end within updates: 100 records, batches of 8 (and 24 with accumulation). */
static void check_resume(void)
{
	static const int64_t at[] = {0, 1, 7, 11, 12, 25, STEPS - 2};
	struct train_options plain = usual(), parts = usual(), held = usual();
	parts.accumulate = 3;
	held.eval = held_path;
	held.eval_every = 4;
	held.patience = 50;
	struct {
		const char *what;
		struct train_options *o;
		char *path;
		uint64_t limit;
	} cases[] = {
		{"in memory", &plain, data_path, 1 << 30}, {"accumulating", &parts, data_path, 1 << 30},
		{"with evaluation", &held, data_path, 1 << 30}, {"by frame", &plain, wide_path, 60000},
	};
	for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
		struct buf expected = reference(cases[c].o, cases[c].path, cases[c].limit);
		for (size_t i = 0; i < ARRAY_LEN(at); i++)
			stop_case(cases[c].what, cases[c].o, cases[c].path, cases[c].limit, at[i], &expected);
		buf_free(&expected);
	}
}

/* SIGKILL in the middle of an update, a checkpoint every 4: the next run goes on from the last one. */
static void check_kill(void)
{
	static const int64_t at[] = {3, 4, 5, 18, 39};
	struct train_options o = usual();
	o.save_every = 4;
	struct buf expected = reference(&o, data_path, 1 << 30);
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		struct error e;
		int status;
		pid_t child = fork();
		if (child == 0) {
			struct toy *m = toy_new();
			m->kill_at = at[i];
			run(m, &o, &e);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "killed at %lld", (long long)at[i]);
		struct toy *m = toy_new();
		status = run(m, &o, &e);
		int rest = STEPS - (int)(at[i] / 4 * 4);
		struct buf b = file_bytes(model);
		CHECK(status == STATUS_OK && m->calls == rest && same_bytes(&b, &expected), "killed at %lld and continued (%d updates): %s",
		      (long long)at[i], m->calls, e.text);
		buf_free(&b);
		toy_free(m);
		unlink(model);
	}
	buf_free(&expected);
}

/* Kills at any moment, mostly within a checkpoint since every update makes one. */
static void check_random_kills(void)
{
	struct train_options o = usual();
	o.save_every = 1;
	struct buf expected = reference(&o, data_path, 1 << 30);
	int kills = 0, bad = 0, rounds = 0;
	for (; rounds < 200 && kills < 60; rounds++) {
		struct error e;
		int status;
		pid_t child = fork();
		if (child == 0)
			_exit(run_fresh(&o, &e));
		usleep((useconds_t)(rng_u32(1, RNG_ROUND, 0, (uint64_t)rounds) % 8000));
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
		kills += WIFSIGNALED(status);
		bad += WIFEXITED(status) && WEXITSTATUS(status) != STATUS_OK;
		if (WIFSIGNALED(status))
			continue;
		struct buf b = file_bytes(model);
		bad += !same_bytes(&b, &expected);
		buf_free(&b);
		unlink(model);
	}
	struct error e;
	CHECK(run_fresh(&o, &e) == STATUS_OK && bad == 0 && kills > 5, "%d kills in %d rounds: %d failures, %s", kills, rounds, bad, e.text);
	struct buf b = file_bytes(model);
	CHECK(same_bytes(&b, &expected), "after %d kills the same file", kills);
	buf_free(&b);
	buf_free(&expected);
	unlink(model);
}

/* The best evaluation is written, also after a stop in between. */
static void check_patience(void)
{
	struct train_options o = usual();
	struct error e;
	o.eval = held_path;
	o.eval_every = 2;
	o.patience = 3;
	struct toy *m = toy_new();
	/* 20 held-out records are three batches: evaluation k makes calls 3k-2..3k, so the loss is least at the fourth. */
	m->rising_after = 11;
	CHECK(run(m, &o, &e) == STATUS_OK, "patience: %s", e.text);
	CHECK(m->calls == 14, "stopped three evaluations after the best: %d updates", m->calls);
	CHECK(strcmp(meta("dalle.step"), "8") == 0, "holds step 8, got %s", meta("dalle.step"));
	struct buf early = file_bytes(model);
	unlink(model);
	toy_free(m);
	m = toy_new();
	m->rising_after = 11;
	m->stop_at = 10;
	CHECK(run(m, &o, &e) == STATUS_AGAIN, "stopped between: %s", e.text);
	struct weights *w = weights_open(model, &e);
	CHECK(w && weights_find(w, "train.best.map.weight"), "the unfinished file keeps the best");
	weights_close(w);
	m->stop_at = -1;
	int seen = m->evaluations;
	struct toy *n = toy_new();
	n->rising_after = 11;
	n->evaluations = seen;
	CHECK(run(n, &o, &e) == STATUS_OK, "continued: %s", e.text);
	struct buf b = file_bytes(model);
	CHECK(same_bytes(&b, &early), "the same file");
	buf_free(&b);
	buf_free(&early);
	toy_free(m);
	toy_free(n);
	unlink(model);
	o.eval = NULL;
	struct toy *x = toy_new();
	CHECK(train_plan(&x->t, &o, x->ops, x->dev, &e) == -1 && e.status == STATUS_USAGE && strstr(e.text, "--eval"), "patience alone: %s",
	      e.text);
	toy_free(x);
}

/* ---- halving on a plateau ---- */

/* Falls by 0.5 an update, then stays. */
static double falling_then_flat(int64_t step)
{
	return step < 17 ? 10 - 0.5 * (double)step : 1.5;
}

/* The number `key` of the log's line of this step that has it; NaN when there is none. */
static double logged(int64_t step, const char *key)
{
	char line[4000];
	double found = NAN;
	FILE *f = fopen(log_path, "r");
	while (f && fgets(line, sizeof line, f)) {
		json_t *j = json_loads(line, 0, NULL), *value = json_object_get(j, key);
		if (json_is_number(value) && json_integer_value(json_object_get(j, "step")) == step)
			found = json_number_value(value);
		json_decref(j);
	}
	if (f)
		fclose(f);
	return found;
}

static const struct plateau_rule rule = {5, 5, 4, 2, 0.01};

static double constant_lr(const void *m, const struct train_step *s)
{
	return ((const struct toy *)m)->peak;
}

static struct toy *plateau_toy(void)
{
	struct toy *m = toy_new();
	m->script = falling_then_flat;
	m->t.plateau = rule;
	m->t.lr = constant_lr;
	return m;
}

/* Windows of 4 after update 5: 6-9, 10-13, 14-17, 18-21 (1.5 at last), then two without gain each: 29, 37. */
static void check_plateau(void)
{
	struct train_options o = usual();
	struct error e;
	o.log = log_path;
	o.log_every = 1;
	struct toy *m = plateau_toy();
	CHECK(run(m, &o, &e) == STATUS_OK, "plateau: %s", e.text);
	struct buf expected = file_bytes(model);
	bool right = true;
	for (int64_t step = 1; step <= STEPS; step++) {
		double want = 0.05 / (step > 37 ? 4 : step > 29 ? 2 : 1), got = logged(step, "halving");
		right = right && fabs(logged(step, "loss") - falling_then_flat(step - 1)) < 1e-6;
		right = right && (step == 29 ? got == 1 : step == 37 ? got == 2 : isnan(got));
		/* the line of a halving itself holds the new step size */
		right = right && (fabs(logged(step, "lr") - want) < 1e-6 || step == 29 || step == 37);
	}
	CHECK(right && fabs(logged(29, "window_loss") - 1.5) < 1e-6, "halved after updates 29 and 37");
	toy_free(m);
	unlink(model);
	static const int64_t at[] = {0, 6, 23, 27, 28, 29, 35, 36, 37};
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		m = plateau_toy();
		m->stop_at = at[i];
		CHECK(run(m, &o, &e) == STATUS_AGAIN, "stopped at %lld: %s", (long long)at[i], e.text);
		toy_free(m);
		m = plateau_toy();
		int status = run(m, &o, &e);
		struct buf b = file_bytes(model);
		CHECK(status == STATUS_OK && same_bytes(&b, &expected), "stopped at %lld, continued, the same file: %s", (long long)at[i], e.text);
		buf_free(&b);
		toy_free(m);
		unlink(model);
	}
	m = plateau_toy();
	m->t.plateau.most = 1;
	unlink(log_path);
	CHECK(run(m, &o, &e) == STATUS_OK && logged(29, "halving") == 1 && isnan(logged(37, "halving")), "at most one: %s", e.text);
	toy_free(m);
	buf_free(&expected);
	unlink(model);
	unlink(log_path);
}

/* ---- going on from other files ---- */

/* A run made longer gives what the longer one gives at once: the last update is always averaged, so 39, which is due. */
static void check_prolonging(void)
{
	struct train_options o = usual();
	struct error e;
	struct toy *m = toy_new(), *whole = toy_new();
	m->t.lr = whole->t.lr = constant_lr;
	o.keep_state = true;
	CHECK(run(whole, &o, &e) == STATUS_OK, "whole: %s", e.text);
	unlink(model);
	o.steps = 39;
	CHECK(run(m, &o, &e) == STATUS_OK, "short: %s", e.text);
	CHECK(strstr(meta("dalle.state"), "\"complete\":true") && strcmp(meta("dalle.step"), "39") == 0, "keeps its state");
	toy_free(m);
	m = toy_new();
	m->t.lr = constant_lr;
	CHECK(run(m, &o, &e) == STATUS_OK && m->calls == 0, "the same again is complete: %s", e.text);
	o.steps = STEPS;
	CHECK(run(m, &o, &e) == STATUS_OK && m->calls == 1, "prolonged by one (%d): %s", m->calls, e.text);
	CHECK(memcmp(m->p.w, whole->p.w, m->p.total * sizeof(float)) == 0 && memcmp(m->p.avg, whole->p.avg, m->p.total * sizeof(float)) == 0 &&
	      memcmp(m->p.v, whole->p.v, m->p.total * sizeof(float)) == 0, "prolonged: the same weights, averages and moments");
	o.steps = STEPS + 5, m->peak = 0.06;
	CHECK(run(m, &o, &e) == STATUS_BAD && strstr(e.text, "step"), "prolonged with another step size: %s", e.text);
	toy_free(m);
	toy_free(whole);
	unlink(model);
	o.patience = 2, o.eval = held_path;
	m = toy_new();
	e = (struct error){0};
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == -1 && e.status == STATUS_USAGE && strstr(e.text, "--keep-state"), "%s", e.text);
	toy_free(m);
}

static void check_init(void)
{
	struct train_options o = usual();
	struct error e;
	char source[120];
	snprintf(source, sizeof source, "%s-source", model);
	CHECK(run_fresh(&o, &e) == STATUS_OK && rename(model, source) == 0, "%s", e.text);
	o.init = source;
	o.seed = 9;
	struct toy *m = toy_new();
	m->t.text_rows = "map.bias other";
	m->t.text_id = "11111111111111111111111111111111";
	CHECK(run(m, &o, &e) == STATUS_OK, "no vocabulary before, one now: %s", e.text);
	struct weights *w = weights_open(source, &e);
	float *host = calloc(m->p.total, sizeof *host);
	CHECK(w && params_load_host(host, &m->p, w, "", &e) == 0 && memcmp(host, m->history[0], sizeof m->history[0]) == 0,
	      "starts from the file's weights: %s", e.text);
	weights_close(w);
	free(host);
	CHECK(strstr(meta("dalle.run"), "\"init\":"), "the run's identity tells: %s", meta("dalle.run"));
	toy_free(m);
	CHECK(rename(model, source) == 0, "rename");
	m = toy_new();
	m->t.text_rows = "map.bias other";
	m->t.text_id = "22222222222222222222222222222222";
	CHECK(run(m, &o, &e) == STATUS_BAD && strstr(e.text, "1111") && strstr(e.text, "2222") && strstr(e.text, "--new-vocabulary"), "%s", e.text);
	o.new_vocabulary = true;
	CHECK(run(m, &o, &e) == STATUS_OK, "another vocabulary: %s", e.text);
	w = weights_open(source, &e);
	host = calloc(m->p.total, sizeof *host);
	CHECK(w && params_load_host(host, &m->p, w, "", &e) == 0 && memcmp(host, m->history[0], sizeof m->history[0]) == 0, "map.weight is taken");
	weights_close(w);
	free(host);
	toy_free(m);
	unlink(model);
	struct toy *wide = toy_new();
	json_object_set_new(wide->t.config, "in", json_integer(IN + 1));
	wide->p.rows[0].shape[1]++; /* only looked at */
	CHECK(run(wide, &o, &e) == STATUS_BAD && strstr(e.text, "map.weight is 3 x 6, expected 3 x 7") && strstr(e.text, "in is 6, here 7"), "%s",
	      e.text);
	wide->p.rows[0].shape[1]--;
	wide->t.kind = "clip";
	CHECK(run(wide, &o, &e) == STATUS_BAD && strstr(e.text, "is a toy model, expected a clip model"), "%s", e.text);
	toy_free(wide);
	CHECK(!exists(model), "nothing was written");
	unlink(source);
}

/* A file larger than memory that is damaged while it is read: named with the place, the last checkpoint stays. */
static void check_damage(void)
{
	struct train_options o = usual();
	struct error e;
	char copy[120];
	snprintf(copy, sizeof copy, "%s-copy", wide_path);
	struct buf good = file_bytes(wide_path);
	FILE *f = fopen(copy, "wb");
	CHECK(f && fwrite(good.p, 1, good.n, f) == good.n && fclose(f) == 0, "copy");
	o.save_every = 4;
	o.steps = 200;
	struct toy *m = toy_new();
	m->damage = copy;
	int status = run_on(m, &o, copy, 60000, &e);
	CHECK(status == STATUS_BAD && strstr(e.text, copy) && strstr(e.text, "byte") && m->calls > 5 && m->calls < 200, "damaged after update %d: %s", m->calls, e.text);
	CHECK(*meta("dalle.state"), "a checkpoint is there");
	int64_t saved = 0;
	struct error ignored = {0};
	CHECK(parse_int(meta("dalle.step"), 1, 200, &saved, &ignored) == 0 && saved % 4 == 0 && saved > m->calls - 5, "of step %lld", (long long)saved);
	toy_free(m);
	f = fopen(copy, "wb");
	CHECK(f && fwrite(good.p, 1, good.n, f) == good.n && fclose(f) == 0, "mended");
	m = toy_new();
	CHECK(run_on(m, &o, copy, 60000, &e) == STATUS_OK && m->calls == 200 - saved, "goes on with the good file: %s", e.text);
	toy_free(m);
	buf_free(&good);
	unlink(copy);
	unlink(model);
}

/* ---- what is said ---- */

/* Heavy tails: one batch in fifty has a loss up to a thousand times the others'. */
static double noisy(int64_t step)
{
	double u = rng_unit(5, RNG_GUMBEL, 0, (uint64_t)step);
	return 1 + 0.05 * u + (u > 0.98 ? 1 / (1.0001 - u) / 10 : 0);
}

static double jumping(int64_t step)
{
	return noisy(step) * 0.01 + (step < 250 ? 1 : 3);
}

static void said(struct toy *m, const struct train_options *o, struct buf *out)
{
	char path[120];
	struct error e = {0};
	snprintf(path, sizeof path, "%s-said", model);
	int kept = dup(2), fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
	if (kept < 0 || fd < 0 || dup2(fd, 2) < 0)
		exit(1);
	verbosity = 0;
	int status = run(m, o, &e);
	verbosity = -1;
	dup2(kept, 2);
	close(kept);
	close(fd);
	CHECK(status == STATUS_OK && read_file(path, 1 << 20, out, &e) == 0, "%s", e.text);
	unlink(path);
	unlink(model);
	toy_free(m);
}

static int count(const struct buf *b, const char *what)
{
	int n = 0;
	for (const char *s = b->p ? (char *)b->p : ""; (s = strstr(s, what)); s++)
		n++;
	return n;
}

static void check_messages(void)
{
	struct train_options o = usual();
	struct buf b = {0};
	o.eval = held_path;
	o.eval_every = 20;
	said(toy_new(), &o, &b);
	CHECK(count(&b, " parameters, 100 records, 40 updates of 8") == 1 && count(&b, "step 20: held-out loss") == 1 &&
	      count(&b, "step 40: held-out loss") == 1 && count(&b, "complete at step 40") == 1 && count(&b, "\n") == 4,
	      "start, evaluations and end without a terminal: %s", b.p ? (char *)b.p : "");
	o.eval = NULL;
	o.steps = 600;
	struct toy *m = toy_new();
	m->script = noisy;
	buf_free(&b);
	said(m, &o, &b);
	CHECK(count(&b, "jumped") == 0, "noise is no spike: %s", b.p ? (char *)b.p : "");
	m = toy_new();
	m->script = jumping;
	buf_free(&b);
	said(m, &o, &b);
	CHECK(count(&b, "jumped") == 1 && count(&b, "step 253: the loss jumped to 3.01") == 1, "one warning of a jump: %s", b.p ? (char *)b.p : "");
	buf_free(&b);
}

static void check_nan(void)
{
	struct train_options o = usual();
	struct error e;
	o.save_every = 10;
	struct toy *m = toy_new();
	m->nan_at = 13;
	CHECK(run(m, &o, &e) == STATUS_FAIL, "a NaN ends the run");
	CHECK(strstr(e.text, "step 13") && strstr(e.text, "map.bias") && strstr(e.text, "holds step 10"), "%s", e.text);
	CHECK(strcmp(meta("dalle.step"), "10") == 0 && *meta("dalle.state"), "the checkpoint of step 10 stays");
	toy_free(m);
	m = toy_new();
	CHECK(run(m, &o, &e) == STATUS_OK && m->calls == 30, "and can be continued: %s", e.text);
	toy_free(m);
	unlink(model);
}

static void expect_refusal(const char *what, struct toy *m, const struct train_options *o, char *path, const char *expected)
{
	struct error e;
	struct buf before = file_bytes(model);
	int status = run_on(m, o, path, 1 << 30, &e);
	struct buf after = file_bytes(model);
	CHECK(status == STATUS_BAD && strstr(e.text, expected) && strstr(e.text, "--restart"), "another %s: %s", what, e.text);
	CHECK(same_bytes(&before, &after) && m->calls == 0, "another %s: nothing was touched", what);
	buf_free(&before);
	buf_free(&after);
	toy_free(m);
}

static void check_refusals(void)
{
	struct train_options o = usual(), x;
	struct error e;
	struct toy *m = toy_new();
	m->stop_at = 5;
	CHECK(run(m, &o, &e) == STATUS_AGAIN, "%s", e.text);
	toy_free(m);
	for (int finished = 0; finished < 2; finished++) {
		x = o, x.seed = 2;
		expect_refusal("seed", toy_new(), &x, data_path, "seed is 1, not 2");
		x = o, x.steps = 41;
		expect_refusal("length", toy_new(), &x, data_path, finished ? "cannot go on to step 41" : "steps is 40, not 41");
		x = o, x.steps = 39;
		expect_refusal("length", toy_new(), &x, data_path, "steps is 40, not 39");
		m = toy_new();
		m->t.plateau = (struct plateau_rule){1, 0, 4, 1, 0.1};
		expect_refusal("rule of halving", m, &o, data_path, "plateau is none, not {");
		x = o, x.accumulate = 2;
		expect_refusal("accumulation", toy_new(), &x, data_path, "accumulate is 1, not 2");
		expect_refusal("data", toy_new(), &o, held_path, "data is");
		m = toy_new();
		m->peak = 0.06;
		expect_refusal("step size", m, &o, data_path, "step_sizes");
		m = toy_new();
		json_object_set_new(m->t.config, "in", json_integer(7));
		expect_refusal("config", m, &o, data_path, "config in is 6, not 7");
		m = toy_new();
		m->t.beta2 = 0.95f;
		expect_refusal("optimizer", m, &o, data_path, "optimizer");
		m = toy_new();
		m->t.batch = 4;
		expect_refusal("batch", m, &o, data_path, "batch is 8, not 4");
		CHECK(run_fresh(&o, &e) == STATUS_OK, "the same command goes on: %s", e.text);
	}
	m = toy_new();
	m->t.kind = "dvae";
	struct error bad;
	CHECK(run(m, &o, &bad) == STATUS_BAD && strstr(bad.text, "is a toy model, expected a dvae model"), "%s", bad.text);
	toy_free(m);
	x = o, x.seed = 2, x.restart = true;
	CHECK(run_fresh(&x, &e) == STATUS_OK && strstr(meta("dalle.run"), "\"seed\":2"), "--restart replaces: %s", e.text);
	FILE *f = fopen(model, "w");
	CHECK(f && fputs("precious notes", f) >= 0 && fclose(f) == 0, "a text file");
	expect_refusal("file", toy_new(), &o, data_path, "not a model file");
	unlink(model);
}

/* A second run while the first is within an update. */
static void check_lock(void)
{
	struct train_options o = usual();
	struct error e;
	char lock[120];
	snprintf(lock, sizeof lock, "%s.lock", model);
	struct toy *m = toy_new(), *second = toy_new();
	m->rival = second;
	m->rival_options = &o;
	CHECK(run(m, &o, &e) == STATUS_OK, "the first run ends well: %s", e.text);
	CHECK(m->rival_status == STATUS_FAIL && strstr(m->rival_error.text, "another run") && second->calls == 0, "the second at once: %s",
	      m->rival_error.text);
	CHECK(!exists(lock), "the lock file is removed");
	toy_free(m);
	toy_free(second);
	unlink(model);
	FILE *f = fopen(lock, "w"); /* what a killed run leaves */
	CHECK(f && fclose(f) == 0, "lock");
	CHECK(run_fresh(&o, &e) == STATUS_OK && !exists(lock), "a lock that nobody holds is no obstacle: %s", e.text);
	unlink(model);
}

static void check_log(void)
{
	struct train_options o = usual();
	struct error e;
	char line[4000];
	int begins = 0, steps = 0, evaluations = 0, ends = 0, bad = 0;
	double last = NAN, first = NAN;
	o.log = log_path;
	o.log_every = 4;
	o.eval = held_path;
	o.eval_every = 20;
	FILE *f = fopen(log_path, "w");
	CHECK(f && fputs("{\"cut off\":", f) >= 0 && fclose(f) == 0, "a log cut off by a kill");
	CHECK(run_fresh(&o, &e) == STATUS_OK, "%s", e.text);
	f = fopen(log_path, "r");
	while (f && fgets(line, sizeof line, f)) {
		json_t *j = json_loads(line, 0, NULL);
		bad += !j;
		begins += json_is_string(json_object_get(j, "begin")) && json_is_object(json_object_get(j, "config"));
		ends += json_is_string(json_object_get(j, "end"));
		evaluations += json_is_real(json_object_get(j, "eval_loss")) && json_number_value(json_object_get(j, "eval_records")) == 1;
		if (json_is_real(json_object_get(j, "loss"))) {
			steps += json_is_real(json_object_get(j, "lr")) && json_is_real(json_object_get(j, "grad_norm")) &&
			         json_is_real(json_object_get(j, "records_per_second")) && json_is_real(json_object_get(j, "epoch"));
			last = json_real_value(json_object_get(j, "loss"));
			first = isnan(first) ? last : first;
		}
		json_decref(j);
	}
	if (f)
		fclose(f);
	CHECK(bad == 1 && begins == 1 && steps == 10 && evaluations == 2 && ends == 1, "log: %d bad, %d begin, %d steps, %d evaluations, %d end",
	      bad, begins, steps, evaluations, ends);
	CHECK(last < first / 4, "the loss fell from %g to %g", first, last);
	unlink(model);
	unlink(log_path);
	o.log = "/dev/full";
	CHECK(run_fresh(&o, &e) == STATUS_OK, "a full log disk does not end the run: %s", e.text);
	unlink(model);
}

static void check_plan(void)
{
	struct train_options o = usual();
	struct error e = {0};
	struct toy *m = toy_new();
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == 0, "fits: %s", e.text);
	o.dry_run = true;
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == 1, "dry run: %s", e.text);
	m->t.activation_bytes = 1ull << 50;
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == -1 && e.status == STATUS_LIMIT && strstr(e.text, "1.0 PiB"), "too large: %s", e.text);
	e = (struct error){0};
	o.dry_run = false;
	o.output = NULL;
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == -1 && e.status == STATUS_USAGE, "no output: %s", e.text);
	toy_free(m);
}

static void check_epochs(void)
{
	struct train_options o = usual();
	struct error e;
	o.steps = 0;
	o.epochs = 1.5; /* 150 records in batches of 8 */
	struct toy *m = toy_new();
	CHECK(run(m, &o, &e) == STATUS_OK && m->calls == 19, "1.5 passes are %d updates: %s", m->calls, e.text);
	toy_free(m);
	unlink(model);
}

/* A pipe larger than memory: --steps is needed, and its end before them is a failure that names both. */
static void check_pipe(void)
{
	struct train_options o = usual();
	struct buf b = file_bytes(data_path);
	for (int round = 0; round < 2; round++) {
		struct error e;
		int ends[2];
		char name[32];
		o.steps = round ? STEPS : 0;
		/* The data is smaller than a pipe's buffer. */
		bool fed = pipe(ends) == 0 && write(ends[1], b.p, b.n) == (ssize_t)b.n && close(ends[1]) == 0;
		snprintf(name, sizeof name, "/dev/fd/%d", ends[0]);
		struct toy *m = toy_new();
		int status = run_on(m, &o, name, 4000, &e);
		CHECK(fed && status == (round ? STATUS_FAIL : STATUS_USAGE) && strstr(e.text, "--steps"), "pipe: %s", e.text);
		CHECK(m->calls == (round ? RECORDS / BATCH : 0), "pipe: %d updates", m->calls);
		close(ends[0]);
		toy_free(m);
	}
	buf_free(&b);
	unlink(model);
}

static void check_bad_places(void)
{
	struct train_options o = usual();
	struct error e;
	o.output = "/nonexistent/model";
	CHECK(run_fresh(&o, &e) == STATUS_FAIL, "no folder: %s", e.text);
	o = usual();
	o.eval = "/nonexistent/held";
	CHECK(run_fresh(&o, &e) == STATUS_FAIL && !exists(model), "no held-out file: %s", e.text);
}

int main(void)
{
	program_name = "test-train";
	verbosity = -1;
	snprintf(folder, sizeof folder, "/tmp/test-train-XXXXXX");
	if (!mkdtemp(folder))
		return 1;
	snprintf(data_path, sizeof data_path, "%s/data", folder);
	snprintf(held_path, sizeof held_path, "%s/held", folder);
	snprintf(wide_path, sizeof wide_path, "%s/wide", folder);
	snprintf(model, sizeof model, "%s/model", folder);
	snprintf(log_path, sizeof log_path, "%s/log", folder);
	write_data(data_path, RECORDS, 1, STREAM_LEVEL);
	write_data(held_path, 20, 2, STREAM_LEVEL);
	write_data(wide_path, 700, 3, STREAM_LEVEL);
	check_average();
	check_resume();
	check_kill();
	check_random_kills();
	check_patience();
	check_plateau();
	check_prolonging();
	check_init();
	check_damage();
	check_messages();
	check_nan();
	check_refusals();
	check_lock();
	check_log();
	check_plan();
	check_epochs();
	check_pipe();
	check_bad_places();
	unlink(data_path);
	unlink(held_path);
	unlink(wide_path);
	CHECK(rmdir(folder) == 0, "no other file was left in the folder");
	return check_done();
}
