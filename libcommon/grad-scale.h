/* grad-scale.h - factors that keep the activation gradients of a training in f16 within its range (recipe D3 to D8, B21).
 *
 * With GRAD_SCALE_RESBLOCK each resblock r of a transformer has its own, S_r (figure 4): the gradient of the residual
 * stream is multiplied by S_r where it enters the block's 16-bit backward pass and divided by it where it comes out.  The
 * gradients of the weights inside come out multiplied by S_r, those of the layer norm before it do not.  With
 * GRAD_SCALE_GLOBAL the loss is multiplied by one factor and all gradients come out with it.
 *
 * After each update, of every unit for itself (D5, D6): finite gradients: S *= 2^(1/1000); not finite: S /=
 * sqrt 2, but not again within 125 updates; then S is clamped to [M 2^7, M 2^24].  It starts at M 2^13.  An update with
 * anything that is not finite is left out as a whole.
 *
 * M is the number of batches whose gradients are summed into an update and whose losses are divided by it (D8): the paper's
 * replicas, each with one batch.  It makes up for that division. */
#ifndef GRAD_SCALE_H
#define GRAD_SCALE_H

#include <jansson.h>

#include "util.h"

enum grad_scale_kind {
	GRAD_SCALE_NONE, /* every factor is 1: f32, bf16 */
	GRAD_SCALE_GLOBAL,
	GRAD_SCALE_RESBLOCK,
};

enum { GRAD_SCALE_WINDOW = 125, GRAD_SCALE_MAX_UNITS = 1 << 16 };

struct grad_scale {
	enum grad_scale_kind kind;
	int units;        /* 0, 1, or the number of resblocks */
	double replicas;  /* M: --accumulate, by however many ranks */
	double *scale;    /* (units) */
	int *wait;        /* (units) updates until it may be divided again */
	bool *finite;     /* (units) whether the present update's gradients are */
	bool outside;     /* something that belongs to no unit is not finite */
	int64_t skipped;  /* updates that were left out so far */
	int64_t in_a_row; /* of them up to now */
};

/* Of the kind's name in dalle.state, and of the choice --grad-scale. */
const char *grad_scale_name(enum grad_scale_kind kind);

/* Start s, which is zero or was freed, with `units` resblocks (GLOBAL: any number, there is one unit). */
int grad_scale_start(struct grad_scale *s, enum grad_scale_kind kind, int units, int replicas, struct error *e);
void grad_scale_free(struct grad_scale *s); /* back to zero */

/* The unit that resblock r (-1: outside of all) belongs to; -1: none. */
static inline int grad_scale_unit(const struct grad_scale *s, int r)
{
	return s->kind == GRAD_SCALE_GLOBAL ? 0 : s->kind == GRAD_SCALE_RESBLOCK ? r : -1;
}

/* What the loss is multiplied by. */
static inline float grad_scale_loss(const struct grad_scale *s)
{
	return s->kind == GRAD_SCALE_GLOBAL ? (float)s->scale[0] : 1;
}

/* What the gradient is multiplied by that enters resblock r, -1 for none. */
static inline float grad_scale_enter(const struct grad_scale *s, int r)
{
	return s->kind == GRAD_SCALE_RESBLOCK && r >= 0 ? (float)s->scale[r] : 1;
}

/* After each update: apply the rule to every unit by s->finite; `skipped`: the update was left out. */
void grad_scale_step(struct grad_scale *s, bool skipped);
/* Updates have been left out for a whole window and smaller factors cannot help: some gradient is not finite whose unit has
 * the least one already, or that has none. */
bool grad_scale_stuck(const struct grad_scale *s);
/* Least and greatest factor. */
void grad_scale_range(const struct grad_scale *s, double *least, double *greatest);

/* For checkpoints: all of it but `finite`; NULL without memory. */
json_t *grad_scale_json(const struct grad_scale *s);
/* Into s, which was started with the kind and units of this run.  STATUS_BAD, naming what differs or is corrupt; factors
 * outside the bounds of s, as files of versions that had M = 1 may hold, become the nearest within; `file` for messages. */
int grad_scale_parse(struct grad_scale *s, const json_t *j, const char *file, struct error *e);

#endif
