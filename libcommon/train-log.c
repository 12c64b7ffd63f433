/* train-log.c - what a run tells: lines of JSON in the log file, one line on a terminal or else a line now and then (more
 * often with -v), and warnings of loss spikes.  A log that cannot be written does not end a long run: it is told once. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "device.h"
#include "train-run.h"

/* A spike is told when each of the last SPIKE_RUN losses lies above all of the SPIKE_WINDOW before them, and their least
 * by SPIKE times the spread of those (the distance from their middle to their highest) above that highest, and by a
 * twentieth of the middle: no single odd batch does it, nor the noise of small ones, however it is distributed. */
#define SPIKE 1.0
enum { SPIKE_QUIET = 200, TELL_SECONDS = 10, TELL_MOST = 600 };

/* ---- the file ---- */

/* A line cut off by a kill must not join the next one. */
static void end_cut_line(FILE *f)
{
	if (fseek(f, -1, SEEK_END) == 0 && fgetc(f) != '\n') {
		fseek(f, 0, SEEK_END);
		fputc('\n', f);
	}
}

int train_log_open(struct train_run *r, struct error *e)
{
	r->log.path = r->o->log;
	if (!r->o->log)
		return 0;
	r->log.file = fopen(r->o->log, "a+e");
	if (!r->log.file)
		return fail_errno(e, "%s", r->o->log);
	end_cut_line(r->log.file);
	return 0;
}

static void log_failed(struct train_log *l)
{
	if (!l->failed)
		warn("%s: %s; training goes on without this log", l->path, strerror(errno));
	l->failed = true;
}

/* Write and free one object. */
static void put_line(struct train_log *l, json_t *j)
{
	char *text = l->file && !l->failed && j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
	if (text && (fprintf(l->file, "%s\n", text) < 0 || fflush(l->file)))
		log_failed(l);
	free(text);
	json_decref(j);
}

/* JSON knows no NaN: null instead. */
static void set_real(json_t *j, const char *prefix, const char *name, double x)
{
	char key[64];
	snprintf(key, sizeof key, "%s%s", prefix, name);
	json_object_set_new(j, key, isfinite(x) ? json_real(x) : json_null());
}

static void set_metrics(json_t *j, const char *prefix, const struct metrics *m, double scale)
{
	for (int i = 0; i < m->n; i++)
		set_real(j, prefix, m->at[i].name, m->at[i].value * scale);
}

static double trained_seconds(const struct train_run *r)
{
	return r->seconds_before + seconds_now() - r->began;
}

static double epochs_done(const struct train_run *r)
{
	struct loader_state s = loader_state(r->data);
	uint64_t n = loader_records(r->data);
	return n ? (double)s.epoch + (double)s.position / (double)n : 0;
}

/* ---- events ---- */

void train_log_start(struct train_run *r)
{
	struct train_log *l = &r->log;
	json_t *j = json_object();
	size_t n = json_array_size(r->commands);
	json_object_set_new(j, "begin", json_string(r->t->kind));
	json_object_set_new(j, "step", json_integer(r->step));
	json_object_set(j, "command", json_array_get(r->commands, n ? n - 1 : 0));
	json_object_set(j, "config", r->t->config);
	json_object_set(j, "run", r->identity);
	json_object_set_new(j, "parameters", json_integer((json_int_t)params_count(r->p)));
	char ranks[24] = "";
	if (ranks_size(r) > 1) {
		json_object_set_new(j, "ranks", json_integer(ranks_size(r)));
		snprintf(ranks, sizeof ranks, ", %d ranks", ranks_size(r));
	}
	put_line(l, j);
	uint64_t parameters = params_count(r->p), records = loader_records(r->data), updates = (uint64_t)(r->steps - r->step);
	note(0, "%s: %llu parameter%s, %llu record%s%s, %llu update%s of %lld%s", r->o->output, (unsigned long long)parameters,
	     plural(parameters), (unsigned long long)records, plural(records), records ? "" : " (a pipe of unknown length)",
	     (unsigned long long)updates, plural(updates), (long long)r->t->batch * (long long)r->o->accumulate, ranks);
	progress_start(&l->progress, "steps", (uint64_t)(r->steps - r->step));
	l->line_began = l->told = seconds_now();
}

static double records_rate(const struct train_run *r, int64_t updates, double seconds)
{
	double records = (double)updates * (double)r->t->batch * (double)r->o->accumulate;
	return seconds > 0 ? records / seconds : 0;
}

static void log_scales(json_t *j, const struct grad_scale *g)
{
	double least, greatest;
	if (!g->units)
		return;
	grad_scale_range(g, &least, &greatest);
	json_object_set_new(j, "skipped", json_integer(g->skipped));
	set_real(j, "", "scale_min", least);
	set_real(j, "", "scale_max", greatest);
}

static void log_means(struct train_run *r, double lr, double norm)
{
	struct train_log *l = &r->log;
	double now = seconds_now(), n = (double)l->updates;
	json_t *j = json_object();
	json_object_set_new(j, "step", json_integer(r->step));
	set_real(j, "", "epoch", epochs_done(r));
	set_metrics(j, "", &l->sums, 1 / n);
	set_real(j, "", "lr", lr);
	set_real(j, "", "grad_norm", norm);
	log_scales(j, &r->p->scales);
	set_real(j, "", "seconds", trained_seconds(r));
	set_real(j, "", "records_per_second", records_rate(r, l->updates, now - l->line_began - l->aside));
	put_line(l, j);
	l->sums.n = 0;
	l->updates = 0;
	l->line_began = now;
	l->aside = 0;
}

static void tell(struct train_run *r, double loss)
{
	struct train_log *l = &r->log;
	double now = seconds_now(), passed = now - r->began;
	int64_t done = r->step - r->first_step;
	double rate = records_rate(r, done, passed);
	char detail[100], left[24];
	snprintf(detail, sizeof detail, "loss %.4g, %.4g records/s", loss, rate);
	progress_update(&l->progress, (uint64_t)done, detail);
	/* Without -v less and less often: the lines of a long run still fit a screen or two. */
	double wait = verbosity >= 1 ? TELL_SECONDS : fmin(fmax(TELL_SECONDS, passed / 4), TELL_MOST);
	if (l->progress.active || now - l->told < wait)
		return;
	l->told = now;
	format_duration(left, sizeof left, passed / (double)done * (double)(r->steps - r->step));
	note(0, "step %lld of %lld, %s, %s left", (long long)r->step, (long long)r->steps, detail, left);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Only a warning, so its memory is not part of a checkpoint. */
static void watch_loss(struct train_run *r, double loss)
{
	struct train_log *l = &r->log;
	double before[SPIKE_WINDOW], least = loss;
	l->recent[l->watched++ % ARRAY_LEN(l->recent)] = loss;
	if (l->watched < (int64_t)ARRAY_LEN(l->recent) || (l->spike_told && r->step - l->spike_told < SPIKE_QUIET))
		return;
	for (int i = 0; i < SPIKE_WINDOW; i++)
		before[i] = l->recent[(l->watched + i) % (int64_t)ARRAY_LEN(l->recent)];
	for (int i = 1; i <= SPIKE_RUN; i++)
		least = fmin(least, l->recent[(l->watched - i) % (int64_t)ARRAY_LEN(l->recent)]);
	qsort(before, SPIKE_WINDOW, sizeof *before, by_value);
	double middle = before[SPIKE_WINDOW / 2], highest = before[SPIKE_WINDOW - 1];
	if (least <= highest + fmax(SPIKE * (highest - middle), fabs(middle) / 20))
		return;
	warn("step %lld: the loss jumped to %.4g; the %d updates before had %.4g in the middle, %.4g at most", (long long)r->step,
	     loss, SPIKE_WINDOW, middle, highest);
	l->spike_told = r->step;
}

void train_log_update(struct train_run *r, const struct metrics *m, double lr, double norm)
{
	struct train_log *l = &r->log;
	double loss = metrics_get(m, "loss");
	if (!ranks_first(r))
		return;
	metrics_add(&l->sums, m, 1);
	l->updates++;
	if (r->step % r->o->log_every == 0 || r->step == r->steps)
		log_means(r, lr, norm);
	if (isfinite(loss)) /* else the update was left out */
		watch_loss(r, loss);
	tell(r, loss);
}

void train_log_halving(struct train_run *r, double mean, double least, double lr)
{
	json_t *j = json_object();
	json_object_set_new(j, "step", json_integer(r->step));
	json_object_set_new(j, "halving", json_integer(r->plateau.halvings));
	set_real(j, "", "lr", lr);
	set_real(j, "", "window_loss", mean);
	set_real(j, "", "least_window_loss", least);
	put_line(&r->log, j);
	note(0, "step %lld: the mean loss is %.6g after %.6g: step size halved to %.4g (%d of %d)", (long long)r->step, mean, least,
	     lr, r->plateau.halvings, r->t->plateau.most);
}

/* The update whose averaging an evaluation shows. */
static int64_t averaged_at(const struct train_run *r)
{
	int64_t every = r->t->average_every;
	return !train_averages(r->t) || r->step <= every || r->step == r->steps ? r->step : r->step / every * every;
}

void train_log_evaluation(struct train_run *r, const struct metrics *m)
{
	char of[60] = "";
	int64_t averaged = averaged_at(r);
	json_t *j = json_object();
	json_object_set_new(j, "step", json_integer(r->step));
	set_real(j, "", "epoch", epochs_done(r));
	set_metrics(j, "eval_", m, 1);
	set_real(j, "", "seconds", trained_seconds(r));
	if (averaged != r->step) {
		json_object_set_new(j, "averaged_step", json_integer(averaged));
		snprintf(of, sizeof of, " of the average of step %lld", (long long)averaged);
	}
	put_line(&r->log, j);
	note(0, "step %lld: held-out loss %.6g%s", (long long)r->step, metrics_get(m, "loss"), of);
}

void train_log_end(struct train_run *r, const char *what)
{
	struct rusage use;
	char time[24], memory[24];
	progress_end(&r->log.progress);
	json_t *j = json_object();
	json_object_set_new(j, "end", json_string(what));
	json_object_set_new(j, "step", json_integer(r->step));
	set_real(j, "", "seconds", trained_seconds(r));
	put_line(&r->log, j);
	getrusage(RUSAGE_SELF, &use);
	format_duration(time, sizeof time, seconds_now() - r->began);
	format_bytes(memory, sizeof memory, (uint64_t)use.ru_maxrss * 1024);
	bool stopped = strcmp(what, "stopped") == 0;
	note(0, "%s: %s at step %lld of %lld, %s, peak memory %s%s", r->o->output, stopped ? "stopped and saved" : what,
	     (long long)r->step, (long long)r->steps, time, memory, stopped ? "; the same command continues" : "");
}

void captions_count(struct cut_captions *c, const struct record *r, size_t tokens)
{
	c->drawn++;
	if (tokens > c->most && c->cut++ == 0)
		note(0, "%s: the caption of record '%.*s' has %zu token%s and is cut to %zu (%s), as all longer ones are", c->file,
		     (int)(r->key.n < 200 ? r->key.n : 200), r->key.n ? (const char *)r->key.p : "", tokens, plural(tokens), c->most, c->option);
}

int train_log_captions(struct train_run *r, struct error *e)
{
	const struct cut_captions *c = r->t->captions;
	if (!c)
		return 0;
	double x[] = {(double)c->cut, (double)c->drawn};
	if (comm_sum(&r->ranks->c, x, ARRAY_LEN(x), COMM_F64, e))
		return -1;
	if (x[0] > 0)
		note(0, "%.0f of %.0f caption%s drawn, a record's at each pass, cut to %zu token%s", x[0], x[1], plural((uint64_t)x[1]), c->most,
		     plural(c->most));
	return 0;
}

void train_log_close(struct train_run *r)
{
	progress_end(&r->log.progress);
	if (r->log.file && fclose(r->log.file))
		log_failed(&r->log);
	r->log.file = NULL;
}
