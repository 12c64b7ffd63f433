/* train-state.c - a run on disk: the lock beside the output, what identifies a run, checkpoints, resuming them
 * bit-exactly, and the finished file. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "train-run.h"

/* ---- one run for each output ---- */

static int lock_held(const struct train_run *r, int fd, struct error *e)
{
	char pid[24] = "";
	ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
	pid[n > 0 ? n : 0] = 0;
	pid[strcspn(pid, "\n")] = 0;
	return fail(e, STATUS_FAIL, "%s: another run%s%s is writing it (%s is locked)", r->o->output,
	            *pid ? ", process " : "", pid, r->lock_path);
}

/* 1: locked and still under its name; 0: it was removed by the run before us, try again; -1. */
static int try_lock(struct train_run *r, struct error *e)
{
	struct stat ours, named;
	int fd = open(r->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0)
		return fail_errno(e, "%s: no lock file can be made beside it", r->o->output);
	int got = 1;
	if (flock(fd, LOCK_EX | LOCK_NB))
		got = errno == EWOULDBLOCK ? lock_held(r, fd, e) : fail_errno(e, "%s", r->lock_path);
	else if (fstat(fd, &ours) || stat(r->lock_path, &named) || ours.st_ino != named.st_ino)
		got = 0;
	if (got != 1)
		close(fd);
	else
		r->lock = fd;
	return got;
}

/* What killed runs left half written: nobody else writes this output while we hold its lock. */
static void remove_leftovers(const struct train_run *r)
{
	struct buf pattern = {0};
	struct error ignored = {0};
	glob_t found;
	int bad = 0;
	for (const char *c = r->o->output; *c && !bad; c++)
		bad = (strchr("*?[\\", *c) && buf_add(&pattern, "\\", 1, &ignored)) || buf_add(&pattern, c, 1, &ignored);
	bad = bad || buf_printf(&pattern, &ignored, ".tmp-??????");
	if (!bad && glob((char *)pattern.p, GLOB_NOSORT, NULL, &found) == 0) {
		for (size_t i = 0; i < found.gl_pathc; i++)
			unlink(found.gl_pathv[i]);
		globfree(&found);
	}
	buf_free(&pattern);
}

int train_lock(struct train_run *r, struct error *e)
{
	struct buf b = {0};
	struct stat st;
	if (stat(r->o->output, &st) == 0 && !S_ISREG(st.st_mode))
		return fail(e, STATUS_FAIL, "%s: is no regular file, expected one: checkpoints are read back from it", r->o->output);
	int got = buf_printf(&b, e, "%s.lock", r->o->output);
	r->lock_path = (char *)b.p;
	while (got == 0)
		got = try_lock(r, e);
	if (got < 0)
		return -1;
	remove_leftovers(r);
	char pid[24];
	int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
	if (ftruncate(r->lock, 0) == 0)
		return write_full(r->lock, pid, (size_t)n, r->lock_path, e);
	return fail_errno(e, "%s", r->lock_path);
}

void train_unlock(struct train_run *r)
{
	if (r->lock >= 0) {
		unlink(r->lock_path); /* before the lock goes, so that nobody else's is removed */
		close(r->lock);
	}
	r->lock = -1;
	free(r->lock_path);
	r->lock_path = NULL;
}

/* ---- what a run is ---- */

static json_t *command_json(int argc, char **argv, struct error *e)
{
	struct buf b = {0};
	json_t *j = command_line(&b, argc, argv, e) == 0 ? json_stringn((char *)b.p, b.n) : NULL;
	buf_free(&b);
	return j;
}

static json_t *lineage_json(const struct header *h)
{
	json_t *list = json_array();
	for (size_t i = 0; i < h->program_count; i++) {
		const char *c = h->programs[i].command ? h->programs[i].command : h->programs[i].name;
		json_array_append_new(list, json_string(c ? c : ""));
	}
	return list;
}

/* The shortest decimal that is this float: 0.9, not 0.899999976. */
static double decimal(float x)
{
	char text[32];
	for (int digits = 1; digits <= 9; digits++) {
		snprintf(text, sizeof text, "%.*g", digits, (double)x);
		if (strtof(text, NULL) == x)
			break;
	}
	return strtod(text, NULL);
}

static json_t *optimizer_json(const struct trainee *t)
{
	return json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:i}", "beta1", decimal(t->beta1), "beta2", decimal(t->beta2), "eps",
	                 decimal(t->eps), "decay", decimal(t->decay), "v_max", decimal(t->v_max), "clip", decimal(t->clip),
	                 "average_decay", decimal(t->average_decay), "average_every", t->average_every);
}

/* The step sizes of a few updates stand for the schedule, which only the model knows. */
static json_t *schedule_json(const struct train_run *r)
{
	const int64_t at[] = {0, r->steps / 100, r->steps / 10, r->steps / 2, r->steps - 1};
	json_t *list = json_array();
	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		struct train_step s = {at[i], r->steps, (uint64_t)r->o->seed, 0, (int)r->o->accumulate};
		json_array_append_new(list, json_real(r->t->lr(r->t->model, &s)));
	}
	return list;
}

int train_describe(struct train_run *r, int argc, char **argv, struct error *e)
{
	r->identity = json_pack("{s:I,s:I,s:i,s:I,s:s,s:I,s:s,s:s,s:o,s:o}", "steps", (json_int_t)r->steps, "seed",
	                        (json_int_t)r->o->seed, "batch", r->t->batch, "accumulate", (json_int_t)r->o->accumulate,
	                        "data", loader_identity(r->data), "records", (json_int_t)loader_records(r->data),
	                        "text_id", r->t->text_id ? r->t->text_id : "", "image_id",
	                        r->t->image_id ? r->t->image_id : "", "step_sizes", schedule_json(r), "optimizer",
	                        optimizer_json(r->t));
	/* Of these only what differs from the usual. */
	const struct storage *s = &r->p->storage;
	bool failed = (r->t->recipe && json_object_update(r->identity, r->t->recipe)) ||
	              (s->moments_16 && json_object_set_new(r->identity, "moments", json_string("16"))) ||
	              (s->no_master && json_object_set_new(r->identity, "no_master", json_true())) ||
	              (r->t->plateau.most && json_object_set_new(r->identity, "halve_on_plateau", train_plateau_rule_json(r))) ||
	              (r->init.file && json_object_set_new(r->identity, "init", json_string(r->init.id))) ||
	              train_powersgd_describe(r);
	r->lineage = lineage_json(loader_header(r->data));
	r->commands = json_is_array(r->init.commands) ? json_copy(r->init.commands) : json_array();
	json_t *command = command_json(argc, argv, e);
	if (failed || !r->identity || !r->lineage || !r->commands || !command || json_array_append_new(r->commands, command))
		return fail(e, STATUS_LIMIT, "out of memory");
	return 0;
}

/* ---- writing ---- */

static int set_text(json_t *meta, const char *key, const char *text)
{
	return json_object_set_new(meta, key, json_string(text ? text : ""));
}

static int set_json(json_t *meta, const char *key, json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
	int r = text ? set_text(meta, key, text) : -1;
	free(text);
	return r;
}

static json_t *metadata(const struct train_run *r, int64_t step)
{
	char number[24];
	json_t *m = json_object();
	snprintf(number, sizeof number, "%lld", (long long)step);
	if (set_text(m, "format", "pt") || set_text(m, "dalle.kind", r->t->kind) ||
	    set_json(m, "dalle.config", r->t->config) || set_text(m, "dalle.text_id", r->t->text_id) ||
	    set_text(m, "dalle.image_id", r->t->image_id) || set_text(m, "dalle.step", number) ||
	    set_text(m, "dalle.version", DALLE_VERSION) || set_json(m, "dalle.command", r->commands) ||
	    set_json(m, "dalle.data", r->lineage) || set_json(m, "dalle.run", r->identity)) {
		json_decref(m);
		return NULL;
	}
	return m;
}

static json_t *state_json(const struct train_run *r, bool complete)
{
	struct loader_state at = loader_state(r->data);
	json_t *j = json_pack("{s:I,s:I,s:I,s:f,s:b,s:s}", "step", (json_int_t)r->step, "epoch", (json_int_t)at.epoch,
	                      "position", (json_int_t)at.position, "seconds", r->seconds_before + seconds_now() - r->began,
	                      "eval_due", r->eval_due, "type", dtype_name(r->p->ops->type(r->p->dev)));
	json_object_set_new(j, "device", json_string(r->p->ops->name));
	if (complete)
		json_object_set_new(j, "complete", json_true());
	if (r->t->plateau.most)
		json_object_set_new(j, "plateau", train_plateau_json(r));
	if (r->p->scales.units)
		json_object_set_new(j, "grad_scale", grad_scale_json(&r->p->scales));
	if (r->best.known)
		json_object_set_new(j, "best", json_pack("{s:f,s:I,s:I}", "loss", r->best.loss, "step",
		                                         (json_int_t)r->best.step, "without_gain",
		                                         (json_int_t)r->best.without_gain));
	return j;
}

static int save(const struct train_run *r, json_t *meta, const struct weights_part *parts, size_t n, struct error *e)
{
	const char *name = params_find_nonfinite(r->p, false);
	int result;
	if (name)
		result = fail(e, STATUS_FAIL, "step %lld: weights of %s are not finite, %s was left as it was",
		              (long long)r->step, name, r->o->output);
	else if (!meta)
		result = fail(e, STATUS_LIMIT, "out of memory");
	else
		result = weights_save(r->o->output, meta, parts, n, NULL, e);
	json_decref(meta);
	return result;
}

/* Weights, and all that an exact continuation needs. */
static int save_state(struct train_run *r, bool complete, struct error *e)
{
	struct params *p = r->p;
	struct weights_part parts[6] = {
		{.p = p, .which = train_averages(r->t) ? BLOCK_AVG : BLOCK_W, .prefix = ""},
		{.p = p, .which = BLOCK_W, .prefix = "train.w."},
		{.p = p, .which = BLOCK_M, .prefix = "train.m."},
		{.p = p, .which = BLOCK_V, .prefix = "train.v."},
	};
	size_t n = 4;
	if (r->best.known)
		parts[n++] = (struct weights_part){.p = p, .prefix = "train.best.", .host = r->best.host};
	if (r->o->powersgd.rank)
		parts[n++] = (struct weights_part){.p = p, .prefix = "train.e.", .kept = &r->powersgd.errors};
	json_t *meta = metadata(r, r->step), *state = state_json(r, complete);
	if (meta && set_json(meta, "dalle.state", state)) {
		json_decref(meta);
		meta = NULL;
	}
	json_decref(state);
	return save(r, meta, parts, n, e);
}

int train_checkpoint(struct train_run *r, struct error *e)
{
	double began = seconds_now();
	if (ranks_same(r, e) || train_powersgd_sum_errors(r, e) ||
	    ranks_agree(r->ranks, ranks_first(r) ? save_state(r, false, e) : 0, NULL, e))
		return -1;
	train_powersgd_share_errors(r);
	r->saved_step = r->step;
	r->log.aside += seconds_now() - began;
	note(2, "%s: saved step %lld in %.1f s", r->o->output, (long long)r->step, seconds_now() - began);
	return 0;
}

int train_finish(struct train_run *r, int64_t step, struct error *e)
{
	struct weights_part part = {.p = r->p, .which = train_averages(r->t) ? BLOCK_AVG : BLOCK_W, .prefix = ""};
	if (r->o->keep_state)
		return save_state(r, true, e);
	return save(r, metadata(r, step), &part, 1, e);
}

/* ---- resuming ---- */

static json_t *meta_json(const struct weights *w, const char *key, struct error *e)
{
	const char *text = weights_meta(w, key);
	json_error_t at;
	json_t *j = text ? json_loads(text, JSON_REJECT_DUPLICATES, &at) : NULL;
	if (!j)
		fail(e, STATUS_BAD, "%s: has no %s, expected a model of this program; --restart replaces it", weights_path(w),
		     key);
	return j;
}

/* The file's run is this one but for its number of updates, which is smaller, and what follows from that. */
static bool is_shorter(const struct train_run *r, const json_t *old)
{
	json_t *a = json_copy((json_t *)(uintptr_t)old), *b = json_copy(r->identity);
	const char *const depends[] = {"steps", "step_sizes"};
	bool shorter = json_integer_value(json_object_get(old, "steps")) < r->steps &&
	               json_equal(json_array_get(json_object_get(a, "step_sizes"), 0),
	                          json_array_get(json_object_get(b, "step_sizes"), 0));
	for (size_t i = 0; i < ARRAY_LEN(depends); i++) {
		json_object_del(a, depends[i]);
		json_object_del(b, depends[i]);
	}
	shorter = shorter && json_equal(a, b);
	json_decref(a);
	json_decref(b);
	return shorter;
}

/* Config and description in one object, or NULL. */
static json_t *joined(json_t *config, json_t *identity)
{
	json_t *all = json_is_object(config) ? json_copy(config) : json_object();
	if (all && json_object_update(all, identity) == 0)
		return all;
	json_decref(all);
	return NULL;
}

/* A run whose description is another one. */
static int refuse_run(const struct train_run *r, json_t *old, json_t *now, bool finished, struct error *e)
{
	struct buf what = {0};
	if (train_differences(&what, r->o->table, "now", old, now, e) == 0)
		fail(e, STATUS_BAD, "%.150s: is a%s run %s%s; --restart replaces it", r->o->output, finished ? " complete" : "n unfinished",
		     what.n ? "with " : "of another version", what.n ? (char *)what.p : "");
	buf_free(&what);
	return -1;
}

/* Whether the file is of this run; *longer: it is complete and the present command only asks for more updates. */
static int same_run(const struct train_run *r, const struct weights *w, bool finished, bool *longer, struct error *e)
{
	if (weights_need_kind(w, r->t->kind, e))
		return -1;
	json_t *config = weights_config(w), *run = meta_json(w, "dalle.run", e);
	if (!run)
		return -1;
	/* Through text and back, so that a model may give numbers as it likes (1.0 or 1). */
	char *text = json_dumps(r->t->config, JSON_COMPACT | JSON_SORT_KEYS);
	json_t *own = text ? json_loads(text, 0, NULL) : NULL, *old = joined(config, run), *now = joined(own, r->identity);
	free(text);
	*longer = finished && json_equal(config, own) && is_shorter(r, run);
	int result = 0;
	if (!old || !now)
		result = fail(e, STATUS_LIMIT, "out of memory");
	else if (!*longer && !json_equal(old, now))
		result = refuse_run(r, old, now, finished, e);
	json_decref(own);
	json_decref(run);
	json_decref(old);
	json_decref(now);
	return result;
}

static int bad_state(const struct weights *w, struct error *e)
{
	return fail(e, STATUS_BAD, "%s: dalle.state is corrupt; --restart replaces it", weights_path(w));
}

static int load_counters(struct train_run *r, const struct weights *w, const json_t *j, struct error *e)
{
	const json_t *best = json_object_get(j, "best");
	json_int_t step = json_integer_value(json_object_get(j, "step"));
	json_int_t epoch = json_integer_value(json_object_get(j, "epoch"));
	json_int_t position = json_integer_value(json_object_get(j, "position"));
	if (step < 0 || step > r->steps || epoch < 0 || position < 0)
		return bad_state(w, e);
	r->step = r->saved_step = step;
	if (r->t->plateau.most && train_plateau_load(r, json_object_get(j, "plateau")))
		return bad_state(w, e);
	r->eval_due = json_is_true(json_object_get(j, "eval_due"));
	r->seconds_before = json_number_value(json_object_get(j, "seconds"));
	if (best && r->best.host) {
		r->best.known = true;
		r->best.loss = json_number_value(json_object_get(best, "loss"));
		r->best.step = json_integer_value(json_object_get(best, "step"));
		r->best.without_gain = json_integer_value(json_object_get(best, "without_gain"));
	}
	const json_t *scales = json_object_get(j, "grad_scale");
	if (scales && r->p->scales.units && grad_scale_parse(&r->p->scales, scales, r->o->output, e))
		return -1;
	return loader_restore(r->data, (struct loader_state){(uint64_t)epoch, (uint64_t)position}, e);
}

static int load_blocks(struct train_run *r, const struct weights *w, struct error *e)
{
	if ((train_averages(r->t) && params_load(r->p, BLOCK_AVG, w, "", e)) || params_load(r->p, BLOCK_W, w, "train.w.", e) ||
	    params_load(r->p, BLOCK_M, w, "train.m.", e) || params_load(r->p, BLOCK_V, w, "train.v.", e))
		return -1;
	if ((r->best.known && params_load_host(r->best.host, r->p, w, "train.best.", e)) || train_powersgd_load(r, w, e))
		return -1;
	params_refresh(r->p);
	return device_check(r->p->ops, r->p->dev, e);
}

/* Another device or number format goes on from the same weights, but not to the same bits. */
static void tell_device(const struct train_run *r, const json_t *state)
{
	const char *device = json_string_value(json_object_get(state, "device"));
	const char *type = json_string_value(json_object_get(state, "type"));
	const char *now = dtype_name(r->p->ops->type(r->p->dev));
	if (ranks_first(r) && device && type && (strcmp(device, r->p->ops->name) || strcmp(type, now)))
		warn("%s: was computed in %s on %s, goes on in %s on %s: results will differ slightly", r->o->output, type,
		     device, now, r->p->ops->name);
}

static int add_old_commands(struct train_run *r, const struct weights *w, struct error *e)
{
	json_t *old = meta_json(w, "dalle.command", e);
	size_t n = json_array_size(old);
	json_t *now = json_array_get(r->commands, json_array_size(r->commands) - 1);
	if (n && !json_equal(json_array_get(old, n - 1), now))
		json_array_append(old, now);
	if (n) {
		json_decref(r->commands);
		r->commands = json_incref(old);
	}
	json_decref(old);
	return e->status ? -1 : 0;
}

static int load_unfinished(struct train_run *r, const struct weights *w, struct error *e)
{
	json_t *state = meta_json(w, "dalle.state", e);
	int result = state ? 0 : -1;
	if (result == 0)
		result = add_old_commands(r, w, e);
	if (result == 0)
		result = load_counters(r, w, state, e);
	if (result == 0)
		result = load_blocks(r, w, e);
	if (result == 0)
		tell_device(r, state);
	json_decref(state);
	return result < 0 ? -1 : 1;
}

static bool is_complete(const struct weights *w)
{
	const char *text = weights_meta(w, "dalle.state");
	json_t *state = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
	bool complete = !text || json_is_true(json_object_get(state, "complete"));
	json_decref(state);
	return complete;
}

static int no_state(const struct train_run *r, const struct weights *w, struct error *e)
{
	const char *step = weights_meta(w, "dalle.step");
	return fail(e, STATUS_BAD, "%s: is complete at step %s and was written without --keep-state, so that it cannot go on to step"
	            " %lld; -o OTHER --init %s trains on from its weights, --restart replaces it", r->o->output,
	            step ? step : "unknown", (long long)r->steps, r->o->output);
}

int train_resume(struct train_run *r, struct error *e)
{
	struct stat st;
	r->saved_step = -1;
	if (r->o->restart || (stat(r->o->output, &st) && errno == ENOENT))
		return 0;
	struct weights *w = weights_open(r->o->output, e);
	if (!w) {
		struct error first = *e;
		*e = (struct error){0};
		return fail(e, first.status, "%.400s; --restart replaces it", first.text);
	}
	bool finished = is_complete(w), longer;
	int result = same_run(r, w, finished, &longer, e);
	if (result == 0 && finished && !longer)
		result = 2;
	else if (result == 0)
		result = longer && !weights_meta(w, "dalle.state") ? no_state(r, w, e) : load_unfinished(r, w, e);
	weights_close(w);
	return result;
}
