/* dalle-train.h - what the shared training loop (train.h) needs to train a transformer: batches with BPE dropout
 * and caption dropout, step sizes, losses. */
#ifndef DALLE_TRAIN_H
#define DALLE_TRAIN_H

#include "bpe.h"
#include "dalle.h"
#include "train.h"

enum { DALLE_MAX_HALVINGS = 64 };

struct dalle_fit {
	struct dalle *d;
	struct dalle_recipe recipe;
	const char *file;         /* training data, for messages */
	double caption_dropout;   /* share of captions replaced by the empty one, so that guidance has its other half */
	double token_dropout;     /* share of image tokens hidden from the states after them, against overfitting of small data */
	struct bpe *bpe;          /* NULL: no BPE dropout */
	int64_t halve_at[DALLE_MAX_HALVINGS]; /* updates at which the step size is halved, ascending (C23, J12) */
	int halvings;
	bool constant;            /* the step size keeps its peak but for halvings; else it falls along a cosine */
	enum grad_scale_kind grad_scale; /* in f16 */
	/* set by dalle_fit_start */
	struct bpe_coder *coder;
	struct dalle_item *items; /* (batch) */
	struct tokens *texts;     /* (batch) captions encoded with dropout */
	uint8_t *hidden;          /* (batch, N_I) */
	struct cut_captions captions;
};

/* Take host memory for batches of recipe.batch; then fill a trainee for train_run.  Evaluation is without dropout:
 * metrics loss, text and image in nats per token, each the mean over records. */
int dalle_fit_start(struct dalle_fit *f, struct error *e);
void dalle_fit_trainee(struct dalle_fit *f, struct trainee *t, json_t *config, const struct header *h);
/* What the options decide of the result beside sizes: a new object for trainee.recipe, NULL without memory. */
json_t *dalle_fit_recipe(const struct dalle_fit *f);
void dalle_fit_free(struct dalle_fit *f);

/* "100K,150K": ascending update numbers. */
int dalle_parse_halvings(struct dalle_fit *f, const char *list, struct error *e);

#endif
