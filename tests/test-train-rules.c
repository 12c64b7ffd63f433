/* test-train-rules.c - what the training loop decides and says, with the toy of toy.h: halving on a plateau, runs prolonged,
 * runs that start from other models, data damaged under way, messages. */
#include "toy.h"

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

/* A file whose program wrote no id has the one that ours would have written. */
static void check_id(const char *path)
{
	struct error e = {0};
	char told[ID_LENGTH + 1] = "told", found[ID_LENGTH + 1] = "found", *at;
	struct weights *w = weights_open(path, &e);
	CHECK(w && weights_id(w, told, &e) == 0 && strstr(meta("dalle.run"), told), "the id of --init is in the run: %s", e.text);
	weights_close(w);
	struct buf b = file_bytes(path);
	FILE *f = b.n && (at = memmem(b.p, b.n, "dalle.id", 8)) ? fopen(path, "r+b") : NULL;
	CHECK(f && fseek(f, at - (char *)b.p, SEEK_SET) == 0 && fputs("other.id", f) >= 0 && fclose(f) == 0, "a file without id");
	buf_free(&b);
	w = weights_open(path, &e);
	CHECK(w && !weights_meta(w, "dalle.id") && weights_id(w, found, &e) == 0 && strcmp(found, told) == 0, "%s, not %s: %s", found, told, e.text);
	weights_close(w);
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
	check_id(source);
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
	CHECK(run(wide, &o, &e) == STATUS_BAD && strstr(e.text, "map.weight is 3 x 6, expected 3 x 7") && strstr(e.text, "in 6 (here 7)"), "%s",
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
	      count(&b, "step 40: held-out loss") == 1 && count(&b, "complete at step 40") == 1 && count(&b, "\n") == 4 + count(&b, " left\n"),
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

int main(void)
{
	toy_start("test-train-rules");
	check_plateau();
	check_prolonging();
	check_init();
	check_damage();
	check_messages();
	return toy_end();
}
