/* train.h - the loop all trainers share: batches, learning rate, clipping, AdamW, weight average, evaluation, early
 * stop, log, checkpoints, exact resume, signals.  A model brings a struct trainee.
 *
 * In f16 gradients are scaled (grad-scale.h) and an update with one that is not finite is left out; in other formats such a
 * gradient ends the run.
 *
 * One file is checkpoint and model: while unfinished it holds the averaged weights under their own names (so that it
 * can be used already) and, under "train.w.", "train.m.", "train.v.", the raw weights and moments, with "dalle.state"; the
 * finished file drops these.  The same command run again continues an unfinished file bit-exactly, and says "already
 * complete" (status 0) for a finished one.  A command that would compute something else (other config, data, seed,
 * batch, number of updates, recipe) is refused, naming the options that differ and --restart.  With keep_state the finished
 * file keeps the state, and the same command with more updates goes on from it.
 *
 * A trainer's main:
 *
 *	ranks_open(&ranks, &options, &run, files, n, &e)
 *	device_open(&run, &ops, &dev, &e)
 *	... params_add for every tensor; arena plan of the activations; fill struct trainee ...
 *	train_plan(&t, &options, ops, dev, &e)         1: --dry-run printed the plan, done; -1: does not fit
 *	params_build(&params, ops, dev, true, &e)
 *	arena_alloc(&arena, ...)
 *	status = train_run(&t, &options, data, argc, argv, &e);  draws the initial weights, or loads them to resume
 *	return finish(ranks_close(&ranks, status, &e));
 *
 * Several ranks (comm.h) share out the batches of an update; see ranks_open.
 *
 * Averages: avg = d avg + (1 - d) w with d = min(average_decay, k / (9 + k)) at averaging k = 0, 1, ..., so that the
 * random start is never part of it and a short run is not dominated by its first weights.  Until averaging 0 is due the
 * average follows the weights, and the last update is always averaged.  An evaluation in between shows, and a checkpoint
 * holds, the average as it was at the averaging before; the line of progress and the log then say so. */
#ifndef TRAIN_H
#define TRAIN_H

#include <jansson.h>

#include "comm.h"
#include "loader.h"
#include "opt.h"
#include "powersgd.h"
#include "weights.h"

#define METRICS_MAX 16
struct metrics {
	struct {
		const char *name; /* static: "loss", "kl", "codes" */
		double value;
	} at[METRICS_MAX];
	int n;
};
void metrics_set(struct metrics *m, const char *name, double value);
double metrics_get(const struct metrics *m, const char *name); /* NaN when absent */

/* The ranks of a training, and what they know of each other. */
struct ranks {
	struct comm c; /* size 1: this process alone */
	bool met;      /* all have met in ranks_agree, within train_run or after it */
	bool ends;     /* this one ends without train_run: it failed, or only planned */
	bool stop;     /* one was asked to stop, and all know */
	bool told;     /* all know of a failure, and the one that has it tells */
};

/* Options of every trainer, see OPT_TRAIN. */
struct train_options {
	const char *output, *log, *eval;
	int64_t steps;     /* 0: from epochs */
	double epochs;     /* used when steps is 0 */
	double lr;         /* peak step size; this and warmup are the preset's unless given, and heeded by the trainee's lr() alone */
	int64_t warmup;    /* updates */
	int64_t save_every, eval_every, patience; /* 0: never / off */
	int64_t seed;
	int64_t accumulate; /* batches per update */
	int64_t log_every;  /* updates between lines of the log, which hold the means since the line before */
	bool restart;      /* ignore an unfinished file */
	bool dry_run;
	const char *init;    /* model whose weights a new run starts from; NULL: the trainee's own */
	bool new_vocabulary; /* init may be of another vocabulary or dVAE */
	bool keep_state;     /* the finished file can be prolonged */
	int moments;         /* of matrices; 0: f32, 1: 16 bits (D10) */
	bool no_master;      /* matrices in the 16-bit type alone, rounded at random (D12) */
	const struct opt *table; /* the tool's options, for messages; may be NULL */
	struct powersgd_options powersgd; /* how gradients of ranks are summed; of rank 0: plainly */
	int comm;            /* enum comm_choice */
	struct ranks *ranks; /* set by ranks_open; NULL: this process alone */
};
#define TRAIN_DEFAULTS {.epochs = 10, .save_every = 1000, .seed = 1, .accumulate = 1, .log_every = 10}
#define OPT_TRAIN(t) \
	OPT_STRING('o', "output", &(t)->output, "FILE", "model file to write, and to resume from"), \
	OPT_INT('n', "steps", &(t)->steps, 0, 1e12, "N", "updates in all, 0 to use --epochs"), \
	OPT_REAL(0, "epochs", &(t)->epochs, 0, 1e9, "X", "passes over the data when --steps is 0"), \
	OPT_REAL(0, "lr", &(t)->lr, 0, 10, "X", "peak step size"), \
	OPT_INT(0, "warmup", &(t)->warmup, 0, 1e12, "N", "updates over which it rises linearly"), \
	OPT_STRING(0, "log", &(t)->log, "FILE", "append one JSON object per line to FILE"), \
	OPT_INT(0, "log-every", &(t)->log_every, 1, 1e12, "N", "updates between lines of the log"), \
	OPT_STRING(0, "eval", &(t)->eval, "FILE", "held-out stream to evaluate on"), \
	OPT_INT(0, "eval-every", &(t)->eval_every, 0, 1e12, "N", "updates between evaluations, 0 for once a pass"), \
	OPT_INT(0, "patience", &(t)->patience, 0, 1e9, "N", "stop after N evaluations without gain, keep the best; 0 for never"), \
	OPT_INT(0, "save-every", &(t)->save_every, 0, 1e12, "N", "updates between checkpoints, 0 for the end only"), \
	OPT_INT(0, "accumulate", &(t)->accumulate, 1, 1 << 20, "N", "batches summed into one update"), \
	OPT_INT('s', "seed", &(t)->seed, 0, (double)INT64_MAX, "N", "seed of weights, order and noise"), \
	OPT_CHOICE(0, "moments", &(t)->moments, "f32|16", "number format of Adam's moments of matrices; 16: 1-6-9 and 0-6-10"), \
	OPT_FLAG(0, "no-master", &(t)->no_master, "keep matrices in 16 bits only, rounded at random; with -p bf16 or f16"), \
	OPT_CHOICE(0, "comm", &(t)->comm, COMM_CHOICES, "how ranks that train together reach each other, see dalle-ranks(7)"), \
	OPT_FLAG(0, "restart", &(t)->restart, "start anew even if the file is an unfinished run"), \
	OPT_STRING(0, "init", &(t)->init, "MODEL", \
	           "start from this model's weights, and sizes without --preset, not from chance"), \
	OPT_FLAG(0, "keep-state", &(t)->keep_state, \
	         "keep the optimizer's state in the finished file, so that a larger --steps goes on"), \
	OPT_FLAG(0, "dry-run", &(t)->dry_run, "print the memory plan and exit")

/* When the step size is halved because the training loss no longer falls (C23, J12).  After `from` updates the mean loss of
 * each `window` updates is compared with the least such mean before.  After `patience` windows in a row that are not lower
 * than it by `gain` times its absolute value the step size is halved, from then on, at most `most` times. */
enum { PLATEAU_MOST = 64 };
struct plateau_rule {
	int most;       /* 0: no such rule */
	int64_t from;   /* the warm-up */
	int64_t window; /* updates; 0: a fiftieth of those after the warm-up */
	int64_t patience;
	double gain;
};

/* Captions that have more tokens than the model reads. */
struct cut_captions {
	size_t most;         /* tokens that are read */
	const char *option;  /* that decides it, for messages */
	const char *file;    /* train_run's data */
	uint64_t drawn, cut; /* captions so far, a record's counted at each pass; longer than most */
};
/* Count the caption of r, which has `tokens`; the first that is cut is told, all are when the run ends. */
void captions_count(struct cut_captions *c, const struct record *r, size_t tokens);

struct train_step {
	int64_t step;  /* of this update, from 0 */
	int64_t steps; /* in all */
	uint64_t seed;
	int part, parts; /* which of the accumulated batches this is; in an evaluation part counts its batches */
};

struct trainee {
	const char *kind; /* "dvae", "dalle", "clip" */
	void *model;
	struct params *params;
	json_t *config;                      /* owned by the caller */
	json_t *recipe;                      /* what else decides the result: options by name, _ for -; the caller's, may be NULL */
	const char *text_id, *image_id;      /* "" when none; written into the file */
	int batch;                           /* records per step() call */
	float beta1, beta2, eps, decay, v_max; /* AdamW */
	float clip;                          /* global norm; 0: none */
	float average_decay;                 /* of one averaging; 0: no averages */
	int average_every;                   /* updates */
	enum grad_scale_kind grad_scale;     /* in f16 */
	bool t_gradients;                    /* step() heeds params_dw: without a master copy, gradients are T as well */
	uint64_t activation_bytes;           /* for the memory plan */
	uint64_t init_bytes;                 /* of the host's memory, which init takes for a time, at most */
	bool can_recompute;                  /* --recompute is there and not given: named when memory does not suffice */
	struct plateau_rule plateau;
	struct cut_captions *captions;       /* counted by step(); NULL: none */
	/* Names, separated by spaces, of the tensors with a row for each text or image token: what another vocabulary
	 * changes.  NULL: none. */
	const char *text_rows, *image_rows;
	/* Initial weights of block w; NULL: params_init.  May load other weights over them (fine-tuning). */
	int (*init)(void *model, uint64_t seed, struct error *e);
	/* Step size of this update, from the step number alone; halvings on a plateau come on top. */
	double (*lr)(const void *model, const struct train_step *s);
	/* Gradients of the mean loss over n records, divided by s->parts, added into params; metrics set, with "loss": means
	 * over these n records, not divided by parts (the trainer averages them). */
	int (*step)(void *model, const struct train_step *s, const struct record *const *batch, int n, struct metrics *m,
	            struct error *e);
	/* Sums of per-record metrics over n records: the trainer divides by the number of records at the end. NULL: no
	 * evaluation.  "loss" decides early stop.  s->step updates are done. */
	int (*evaluate)(void *model, const struct train_step *s, const struct record *const *batch, int n, struct metrics *sums,
	                struct error *e);
	/* After the last held-out batch: into the means, what is measured of the whole set, of which each rank saw a share.
	 * May be NULL. */
	int (*evaluated)(void *model, struct comm *c, struct metrics *mean, struct error *e);
	/* Called with averaged weights after each evaluation, or where one would be, and at the end, on rank 0 alone; may be
	 * NULL (previews). */
	int (*preview)(void *model, const struct train_step *s, struct error *e);
};

/* Check the options and the tensors of --init, choose params->storage by them, and check that parameters (rows added, not yet built), gradients,
 * moments, averages and activations fit the device.  Returns 0: go on; 1: --dry-run printed the memory plan on stdout; -1:
 * STATUS_LIMIT when it does not fit (also after printing), STATUS_USAGE, STATUS_BAD. */
int train_plan(const struct trainee *t, const struct train_options *o, const struct ops *ops, struct dev *dev,
               struct error *e);

/* The model that --init names, before the options are parsed, so that its sizes can take the place of a preset's: *w is
 * NULL when there is none, when --preset names other defaults, or when the file can be read only once (a pipe). */
int train_init_sizes(const struct tool *tool, int argc, char **argv, const char *kind, struct weights **w, struct error *e);

/* The whole run; params are built for training, data is loaded here.  Returns an exit status: STATUS_OK, STATUS_AGAIN after
 * a stop signal (saved), or e->status. */
int train_run(struct trainee *t, const struct train_options *o, struct loader *data, int argc, char **argv, struct error *e);

/* The first thing after the options were read.  Opens k by --comm and, when others train along, makes this process its part
 * of them: run gets its share of the machine's processors and its GPU, all but rank 0 fall silent.  o->ranks is then k.
 * files (n) are the data, which each rank reads, as the files of o.  0; -1 with STATUS_FAIL without MPI, STATUS_USAGE for a
 * command that ranks cannot share. */
int ranks_open(struct ranks *k, struct train_options *o, struct run_options *run, char *const *files, int n, struct error *e);
/* Another file that each rank reads: -1 with STATUS_USAGE when it is a pipe and there are several ranks. */
int ranks_need_file(const struct ranks *k, const char *file, struct error *e);
/* The last thing: tells e, once where ranks fail alike; a rank that failed alone ends the others.  Returns the exit status. */
int ranks_close(struct ranks *k, int status, struct error *e);

/* Schedules.  Cosine of recipe B18: from v0 at 0 to v1 at T, then constant. */
double schedule_cosine(double v0, double v1, double t, double T);
/* Linear warm-up over `warmup` updates to 1, then cosine to `end` at `steps`. */
double schedule_warmup_cosine(int64_t step, int64_t warmup, int64_t steps, double end);

#endif
