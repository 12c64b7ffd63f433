/* dvae-fit.h - training of the discrete VAE: the paper's loss and schedules (recipe B15 to B21) as a trainee of
 * train.h, augmentation, previews.
 *
 * Loss of a batch of N pictures (B17), P = S * S * 3 values and T = G * G tokens a picture:
 *
 *	- mean of ln f over values + beta * T / P * mean over tokens of KL(q, uniform) - bonus * H(mean q)
 *
 * which for the paper's sizes is distortion + beta / 192 * KL.  H is the entropy in nats of the batch's mean code
 * distribution; the paper has no such term (bonus 0). */
#ifndef DVAE_FIT_H
#define DVAE_FIT_H

#include "dvae.h"
#include "train.h"

enum dvae_augment { DVAE_AUGMENT_NONE, DVAE_AUGMENT_FLIP, DVAE_AUGMENT_PAPER };
#define DVAE_AUGMENTS "none|flip|paper"

struct dvae_fit_options {
	struct dvae_schedule schedule;
	enum dvae_augment augment;
	double usage_bonus;
	double least_b;      /* b of the logit-Laplace below this counts as this; 0, the paper: no limit */
	double calibrate;    /* entropy of the first posteriors in nats, see dvae_calibrate; 0: leave them to chance */
	struct loader *data; /* where dvae_calibrate's pictures are from, borrowed; NULL, or a pipe of one pass: no calibration */
	const char *preview; /* PNG file of originals over reconstructions, rewritten after each evaluation; NULL: none */
};

struct dvae_fit;
/* Borrows d, which must have been made with DVAE_TRAINING.  `input` names the data in messages. */
struct dvae_fit *dvae_fit_new(struct dvae *d, const struct dvae_fit_options *o, const char *input, struct error *e);
void dvae_fit_free(struct dvae_fit *f);
/* Fill a trainee: functions, optimizer numbers (B21), batch.  config, ids and options remain the caller's. */
void dvae_fit_trainee(struct dvae_fit *f, struct trainee *t);

/* What the options decide of the result beside sizes: a new object for trainee.recipe, NULL without memory. */
json_t *dvae_fit_recipe(const struct dvae_fit_options *o);

/* The part of it that a memory plan needs, of a model that is planned only. */
void dvae_fit_plan(struct dvae *d, const struct dvae_fit_options *o, struct trainee *t);

/* Value of a schedule of dvae_schedule at an update. */
double dvae_schedule_at(double start, double end, double span, const struct train_step *s);

/* One batch: loss, gradients added into the parameters.  tau and beta are explicit; noise is keyed by
 * (seed, step, first_row).  scale multiplies the gradients (1 / parts), beside the
 * parameters' gradient scale. */
struct dvae_loss {
	double loss, distortion, kl, usage; /* nats: in all, per value, per token, of the mean distribution (0: no bonus) */
};
struct dvae_pass {
	float tau, scale;
	float floor; /* of ln b, see ops.logit_laplace; -INFINITY: none */
	double beta, bonus;
	uint64_t seed, first_row;
	uint32_t step;
};
int dvae_loss_and_gradients(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p, struct dvae_loss *l,
                            struct error *e);
/* The distortion of each of n pictures, nats per value, from relaxed codes of temperature tau; tau 0: hard codes.
 * kl: nats per token.  Either array may be NULL.  Leaves hard reconstructions in rgb_out (n,S,S,3) when not NULL. */
int dvae_measure(struct dvae *d, const uint8_t *rgb, int n, const struct dvae_pass *p, double *distortion, double *kl,
                 uint8_t *rgb_out, struct error *e);
/* Start from data instead of chance, in dvae-start.c.  The K codes become the means of clusters of the encoder's
 * output vectors over these pictures (pictures,S,S,3): the encoder's last convolution gives minus the squared distance to
 * them, scaled so that the posterior has this entropy in nats, and the decoder's first a projection of them.  With one
 * group and kernel 1 the clusters are those of the pixel blocks.  The decoder's last convolution is then fitted to the
 * pictures by least squares.  Residual paths start silent.  Weights in `w` and `t` are rewritten; d must have been made
 * with DVAE_TRAINING. */
int dvae_calibrate(struct dvae *d, const uint8_t *rgb, size_t pictures, double entropy, uint64_t seed, struct error *e);
/* The host memory that it takes for a time, about; of a planned model, too. */
uint64_t dvae_calibrate_bytes(struct dvae *d, size_t pictures);

#endif
