/* test-train.c - the training loop with a toy model (toy.h): averages against a double-precision reference, exact resume
 * after stops and kills, evaluation and patience, failures, log, lock.  Rules and other files are in test-train-rules.c. */
#include "toy.h"

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
			double decay = fmin(0.9, k / (9.0 + k));
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

/* Before the first averaging is due a checkpoint holds the weights, not the random start. */
static void check_first_average(void)
{
	struct toy *m = toy_new();
	struct train_options o = usual();
	struct error e;
	m->t.average_every = STEPS;
	m->stop_at = 7;
	CHECK(run(m, &o, &e) == STATUS_AGAIN && strcmp(meta("dalle.step"), "8") == 0, "stopped: %s", e.text);
	struct weights *f = weights_open(model, &e);
	float *host = calloc(m->p.total, sizeof *host);
	CHECK(f && params_load_host(host, &m->p, f, "", &e) == 0 && memcmp(host, m->w->w, sizeof(float) * OUT * IN) == 0 &&
	      memcmp(host, m->history[0], sizeof(float) * OUT * IN) != 0, "the average follows the weights: %s", e.text);
	free(host);
	weights_close(f);
	toy_free(m);
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

/* Kills at any moment, mostly within a checkpoint since every update makes one.  How many hit a run is the machine's
 * affair. */
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
	CHECK(run_fresh(&o, &e) == STATUS_OK && bad == 0, "%d kills in %d rounds: %d failures, %s", kills, rounds, bad, e.text);
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
		expect_refusal("seed", toy_new(), &x, data_path, "with --seed 1 (now 2); --restart");
		x = o, x.steps = 41;
		expect_refusal("length", toy_new(), &x, data_path, finished ? "cannot go on to step 41" : "--steps 40 (now 41)");
		x = o, x.steps = 39;
		expect_refusal("length", toy_new(), &x, data_path, "--steps 40 (now 39)");
		x = o, x.seed = 2, x.accumulate = 3, x.steps = 39;
		expect_refusal("seed, length and accumulation", toy_new(), &x, data_path,
		               "with --steps 40 (now 39), --seed 1 (now 2), --accumulate 1 (now 3); --restart");
		m = toy_new();
		m->t.recipe = json_pack("{s:f,s:s}", "lr", 3e-4, "why", "a reason");
		expect_refusal("recipe", m, &o, data_path, "with no --lr (now 0.0003), no why (now a reason); --restart");
		m = toy_new();
		m->t.plateau = (struct plateau_rule){1, 0, 4, 1, 0.1};
		expect_refusal("rule of halving", m, &o, data_path, "no halve_on_plateau (now given)");
		x = o, x.accumulate = 2;
		expect_refusal("accumulation", toy_new(), &x, data_path, "--accumulate 1 (now 2)");
		expect_refusal("data", toy_new(), &o, held_path, "run with data ");
		m = toy_new();
		m->peak = 0.06;
		expect_refusal("step size", m, &o, data_path, "step_sizes");
		m = toy_new();
		json_object_set_new(m->t.config, "in", json_integer(7));
		expect_refusal("config", m, &o, data_path, "run with in 6 (now 7)");
		m = toy_new();
		m->t.beta2 = 0.95f;
		expect_refusal("optimizer", m, &o, data_path, "run with beta2 0.96 (now 0.95)");
		m = toy_new();
		m->t.batch = 4;
		expect_refusal("batch", m, &o, data_path, "run with --batch 8 (now 4)");
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
	double last = NAN, first = NAN, averaged = 0;
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
		averaged += json_number_value(json_object_get(j, "averaged_step"));
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
	CHECK(averaged == 18, "the evaluation of step 20 tells of which average it is, that of the last step need not: %g", averaged);
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
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == -1 && e.status == STATUS_LIMIT && strstr(e.text, "1.0 PiB") &&
	      strstr(e.text, "less with a smaller --batch or --moments 16 or a smaller model"), "too large: %s", e.text);
	e = (struct error){0};
	o.moments = 1;
	m->t.batch = 1;
	m->t.can_recompute = true;
	CHECK(train_plan(&m->t, &o, m->ops, m->dev, &e) == -1 && strstr(e.text, "less with --recompute or a smaller model"), "%s", e.text);
	o.moments = 0;
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
	toy_start("test-train");
	check_average();
	check_first_average();
	check_resume();
	check_kill();
	check_random_kills();
	check_patience();
	check_nan();
	check_refusals();
	check_lock();
	check_log();
	check_plan();
	check_epochs();
	check_pipe();
	check_bad_places();
	return toy_end();
}
