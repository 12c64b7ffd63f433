/* train-run.h - one training run in progress, shared by the files of the loop: train.c (updates), train-state.c
 * (checkpoints, resume, lock), train-log.c (log, progress, warnings), train-plan.c (memory plan, schedules), train-plateau.c
 * (halvings), train-init.c (weights of another model), train-ranks.c (several processes), train-powersgd.c, train-differences.c
 * (what another command would change). */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "progress.h"
#include "train.h"

enum { SPIKE_WINDOW = 100, SPIKE_RUN = 3 };

/* Log file, terminal line and the watch for loss spikes. */
struct train_log {
	FILE *file; /* NULL: none */
	const char *path;
	bool failed;          /* a write failed and was told once */
	struct progress progress;
	struct metrics sums;  /* since the last line of the log */
	int64_t updates;      /* in sums */
	double line_began;    /* seconds_now */
	double aside;         /* seconds since then spent on evaluations and checkpoints */
	double told;          /* when the last line of progress was printed where there is no terminal */
	double recent[SPIKE_WINDOW + SPIKE_RUN]; /* losses, a ring, for spikes */
	int64_t watched, spike_told; /* losses seen; step of the last warning */
};

/* Best evaluation so far; only with --patience. */
struct train_best {
	bool known;
	double loss;
	int64_t step;
	int64_t without_gain; /* evaluations since */
	float *host;          /* its averaged weights, laid out as a block */
};

/* What plateau_rule goes by, see train-plateau.c. */
struct plateau {
	int64_t count;  /* losses in sum: of the present window */
	double sum;
	bool known;
	double least;   /* mean of a window so far */
	int64_t without_gain; /* windows since */
	int halvings;
	int64_t at[PLATEAU_MOST]; /* updates done at each */
};

/* The model that weights come from, with --init. */
struct train_init {
	struct weights *file; /* NULL: none */
	bool other_text, other_image; /* it is of another vocabulary, dVAE */
	char id[ID_LENGTH + 1];
	json_t *commands;     /* that made it; NULL when unknown */
};

struct train_run {
	struct trainee *t;
	const struct train_options *o;
	struct params *p;
	struct loader *data, *eval; /* eval NULL: none */
	const struct record **batch;
	int64_t steps, step;   /* updates in all, done */
	int64_t eval_every;    /* 0: only at the end */
	bool evaluates;        /* there is something to do at evaluations */
	bool eval_due;         /* the evaluation of this step is still to do */
	int64_t first_step;    /* where this process began */
	int64_t saved_step;    /* on disk; -1: no checkpoint */
	double began, seconds_before; /* training time of earlier processes */
	struct train_best best;
	struct plateau plateau;
	struct train_init init;
	struct train_log log;
	struct ranks *ranks;
	float *host;           /* (the largest message) gradients on their way to and from other ranks; NULL: there are none */
	bool joined;           /* the ranks' devices sum by themselves */
	struct powersgd powersgd; /* zero without --powersgd */
	json_t *identity;      /* what decides the result: "dalle.run" */
	json_t *commands, *lineage; /* arrays of command lines: of this model, of its data */
	char *lock_path;
	int lock;              /* -1: not held */
};

/* train-state.c.  All: 0 or -1. */
int train_lock(struct train_run *r, struct error *e);
void train_unlock(struct train_run *r);
/* Fill identity, commands and lineage. */
int train_describe(struct train_run *r, int argc, char **argv, struct error *e);
/* Look at the output file: 0 start anew, 1 the state of an unfinished run was loaded, 2 already complete, -1. */
int train_resume(struct train_run *r, struct error *e);
int train_checkpoint(struct train_run *r, struct error *e);
/* The finished file, from block avg, or w when the trainee does not average; `step` is what it holds. */
int train_finish(struct train_run *r, int64_t step, struct error *e);

/* train-differences.c.  "--seed 1 (now 7), --lr 0.003 (now 0.001)": all members in which two descriptions of runs differ, as the
 * options of the table (NULL: none) that set them; `word` is for the second one, as "now".  Empty when there are none. */
int train_differences(struct buf *out, const struct opt *table, const char *word, json_t *was, json_t *is, struct error *e);

/* train-plateau.c */
double train_plateau_factor(const struct train_run *r); /* of the step size */
/* After update r->step with this mean loss and step size. */
void train_plateau_update(struct train_run *r, double loss, double lr);
json_t *train_plateau_json(const struct train_run *r); /* for the checkpoint */
int train_plateau_load(struct train_run *r, const json_t *j); /* -1 when it is corrupt */
json_t *train_plateau_rule_json(const struct train_run *r); /* for the run's identity */

/* train-init.c */
/* Before any memory is taken: kind, vocabulary, dVAE, names and shapes of the tensors; of a pipe nothing. */
int train_init_check(const struct trainee *t, const struct train_options *o, struct error *e);
int train_init_open(struct train_run *r, struct error *e); /* checks kind, vocabulary and dVAE */
int train_init_load(struct train_run *r, struct error *e); /* over the initial weights */
void train_init_close(struct train_run *r);

/* train-ranks.c.  With one rank they do nothing and return what they were given, or 0. */
/* Where all ranks meet: metrics (m may be NULL) become sums over ranks, a stop that was asked of one rank is one of all, and
 * so is a failure of one (result -1, with e): then -1 on all, with a text in e only where it is to be told. */
int ranks_agree(struct ranks *k, int result, struct metrics *m, struct error *e);
bool ranks_stop(const struct ranks *k); /* as of the last meeting; alone: now */
int ranks_prepare(struct train_run *r, struct error *e); /* memory */
size_t ranks_message(const struct params *p); /* floats of it */
/* `found` as train_resume says, or -1: met, all have found the same file, the same data, the same weights: of a new run
 * those of rank 0.  Returns found or -1. */
int ranks_begin(struct train_run *r, int found, struct error *e);
/* The gradients of this rank's batches become those of all ranks'. */
int ranks_sum_gradients(struct train_run *r, struct error *e);
int ranks_same(struct train_run *r, struct error *e); /* all have weights and state with the same bits */

static inline int ranks_size(const struct train_run *r)
{
	return r->ranks->c.size;
}

static inline bool ranks_first(const struct train_run *r) /* who writes */
{
	return r->ranks->c.rank == 0;
}

/* train-powersgd.c.  Without --powersgd these do nothing. */
int train_powersgd_start(struct train_run *r, struct error *e); /* memory; error buffers are 0 */
bool train_powersgd_describe(struct train_run *r); /* into the run's identity; true: no memory */
/* This rank's gradients become those of all ranks; metrics get what is to be told of it. */
int train_powersgd_sum(struct train_run *r, struct metrics *m, struct error *e);
/* After each update, which was applied or left out. */
void train_powersgd_settle(struct train_run *r, bool left_out);
/* Around the writing of a checkpoint, on all ranks: the sum of the error buffers, then each rank's share of it. */
int train_powersgd_sum_errors(struct train_run *r, struct error *e);
void train_powersgd_share_errors(struct train_run *r);
int train_powersgd_load(struct train_run *r, const struct weights *w, struct error *e);

/* train-log.c */
int train_log_open(struct train_run *r, struct error *e);
void train_log_start(struct train_run *r);
/* After update r->step: metrics, step size, gradient norm. */
void train_log_update(struct train_run *r, const struct metrics *m, double lr, double norm);
void train_log_halving(struct train_run *r, double mean, double least, double lr);
void train_log_evaluation(struct train_run *r, const struct metrics *m);
int train_log_captions(struct train_run *r, struct error *e); /* those that were cut, of all ranks; 0 or -1 */
void train_log_end(struct train_run *r, const char *what);
void train_log_close(struct train_run *r);
/* sum += weight * m, by name. */
void metrics_add(struct metrics *sum, const struct metrics *m, double weight);

static inline bool train_averages(const struct trainee *t)
{
	return !t->params->storage.no_averages;
}

#endif
