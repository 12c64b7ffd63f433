/* powersgd.h - sums of gradients over ranks by products of two thin matrices (recipe E.2; Vogels et al. 2019).
 *
 * Of every matrix G of a resblock (E5; convolutions as (out, in k k); of a row with parts each by itself: E7) a rank keeps the error buffer E, which the gradient
 * is added to, and one fixed Gaussian Q, the same on all ranks, drawn from the seed once (I5).  An update (E10), with sums
 * over ranks:
 *
 *	E += G                 when all of G is finite
 *	P = sum of E Q         (a, r), orthonormal columns by Householder reflections of P + eps
 *	Q' = sum of E^T P      (b, r)
 *	D = P Q'^T             comes in G's place: about the sum of all E, of rank r
 *	E -= D / ranks           whether the update is then applied or not (E12), or with keep_skipped only if it is
 *
 * so that the sum of E before is D and the sum of E after (K12): what is not sent now is sent later.  r is the smaller of
 * the rank asked for and G's shorter side; a matrix that is taller than wide is factored transposed, so that what is made
 * orthonormal is as short as can be (E8).  One message for all P of a resblock, one for all Q', then one in f32 for all
 * rows that are not compressed, with the flags of what was not finite.
 *
 * Not finite (E10 10 to 12).  A rank whose E or product is not finite sends zeros and raises a flag.  Where one was raised
 * on any rank, or a rank's G was not finite, all of D is infinite, so that params_grad_norm finds it and the update is left
 * out on all ranks.  Where it was raised, E keeps what it has unless it is not finite itself: then it becomes 0.
 *
 * DT_1_6_9: E, Q and the messages are in that format (D10), P and Q' multiplied by POWERSGD_P_SCALE and POWERSGD_Q_SCALE, P
 * once orthonormal as it is.  Values beyond the format's largest become it and are counted.
 *
 * All of this is on the host: memory, and products by a CPU device of its own; gradients may be on any device.  Where they
 * are kept in 16 bits, D is rounded to them, and E does not know of it. */
#ifndef POWERSGD_H
#define POWERSGD_H

#include "comm.h"
#include "weights.h"

#define POWERSGD_EPS 1e-6f
/* Not stated by the paper (J9).  P's elements are about sqrt(b) times those of E and Q's at most the gradient's norm: both
 * are kept far from 15.98, with more than 15 digits left below. */
#define POWERSGD_P_SCALE 0x1p-8f
#define POWERSGD_Q_SCALE 0x1p-4f

struct powersgd_options {
	int rank;          /* at least 1 */
	enum dtype type;   /* DT_F32 or DT_1_6_9 */
	bool keep_skipped; /* E keeps what was sent when the update is left out, to send it again; false: as in the paper (E12) */
	uint64_t seed;
	int threads;       /* 0: all */
};

/* Left (rows, rank) times right (rank, cols): P times Q^T, or of a tall matrix Q times P^T. */
struct powersgd_matrix {
	struct param *row;
	size_t rows, cols, rank, n; /* n = rows cols */
	size_t at;     /* its first element in the row; its last is the row's last where it is the last part */
	bool tall;     /* rows > cols */
	void *error;   /* (rows, cols) */
	void *fixed;   /* Q, shaped as q */
	void *p, *q;   /* of the present update, one is left, the other right */
};

struct powersgd {
	struct powersgd_options how;
	struct params *params;
	struct dev *dev;               /* a CPU, f32 */
	struct powersgd_matrix *m;     /* (count), those of one resblock side by side, their p and q too */
	int count;
	struct kept_rows errors;       /* every E, for model files */
	void *block;                   /* every matrix's error, fixed, p, q */
	size_t rest;                   /* elements of rows that are not compressed */
	float *message;                /* (rest + 2 count): they, then the flags: G, P or Q' not finite */
	float *x;                      /* of the largest row: G, then D, of all of its parts */
	float *y;                      /* of the largest matrix */
	float *left, *right, *scratch; /* of the largest factors */
	uint64_t saturated;            /* values that this rank clamped since the caller last made it 0 */
};

/* Host memory that powersgd_start takes for the rows of p (added, not necessarily built). */
uint64_t powersgd_bytes(const struct params *p, const struct powersgd_options *how);
/* p is built for training, and stays where it is.  E is 0. */
int powersgd_start(struct powersgd *s, struct params *p, const struct powersgd_options *how, struct error *e);
void powersgd_free(struct powersgd *s); /* back to zero */

/* The gradients in p, of this rank, become those of all ranks: D, and sums.  Scales of gradients are taken off what E and
 * the factors get and put on D again.  0 or -1. */
int powersgd_sum(struct powersgd *s, struct comm *c, struct error *e);
/* To be called after each sum by all ranks alike, once it is known whether the update is left out: the norm, or the loss,
 * is not finite.  With keep_skipped it is only here that E loses what was sent, and only if the update was applied. */
void powersgd_settle(struct powersgd *s, int ranks, bool left_out);

/* Checkpoints hold the sum of E over ranks alone (E14).  Every rank calls powersgd_sum_errors, one writes `errors`, then every
 * rank calls powersgd_share_errors with the number of ranks, as it does after reading them back: each E is then the sum divided
 * by it, whether a run goes on or is resumed, maybe by another number of ranks.  In 1-6-9 a sum is clamped as all else, and counted. */
int powersgd_sum_errors(struct powersgd *s, struct comm *c, struct error *e);
void powersgd_share_errors(struct powersgd *s, int ranks);

#endif
