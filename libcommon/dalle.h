/* dalle.h - the transformer over one sequence of text and image tokens (recipe C): embedding layout C9, the
 * stack of block.h, two untied output heads, and the loss C19/C20.  Training glue is in dalle-train.h, sampling
 * in sample.h.
 *
 * Sequence of S = N_T + N_I states, each predicting the next item:
 *
 *	state 0             E_sot + P[0]                            predicts t_0
 *	state j, 1..L       E_text[t_{j-1}] + P[j]                  predicts t_j while j < L
 *	state j, L+1..N_T-1 PAD[j]                                  no target
 *	state N_T           E_soi + ROW[0] + COLUMN[0]              predicts z_0
 *	state N_T + p       E_image[z_{p-1}] + ROW[p/W] + COLUMN[p%W]  predicts z_p
 *
 * Letters as in block.h, and V_T, V_I the vocabularies.  Row V_T of the text table is E_sot, row V_I of the
 * image table E_soi. */
#ifndef DALLE_H
#define DALLE_H

#include "arena.h"
#include "block.h"
#include "dalle-config.h"
#include "weights.h"

/* One sequence: borrowed tokens.  A caption longer than N_T - 1 is cut (and counted in dalle.cut). */
struct dalle_item {
	const uint32_t *text, *image;
	size_t text_n;
	const uint8_t *hidden; /* (N_I) nonzero: this image token is not shown to the states after it; NULL: all are */
};

struct dalle_loss {
	double text, image;       /* nats, summed over the tokens below */
	double *text_of, *image_of; /* (B) the same of each item, borrowed until the next call */
	int *text_n;              /* (B) text tokens of each item */
	int64_t text_count, image_count;
};

enum dalle_table { TABLE_TEXT, TABLE_POSITION, TABLE_PAD, TABLE_IMAGE, TABLE_ROW, TABLE_COLUMN, DALLE_TABLES };

struct dalle_head {
	struct param *w, *b; /* (V, C) (V) */
	int V;
};

struct dalle {
	struct dalle_config c;
	struct params params;
	struct stack stack;
	struct param *table[DALLE_TABLES];
	struct param *norm_w, *norm_b;
	struct dalle_head text_head, image_head;
	int head_unit; /* of gradient scale, when the heads compute in T; -1 in f32 */
	char id[ID_LENGTH + 1];                             /* of the file, "" for new models */
	char text_id[ID_LENGTH + 1], image_id[ID_LENGTH + 1]; /* what it was trained on */

	/* for batches of at most `batch` items; see dalle_plan */
	struct arena arena;
	int batch;
	bool backward;      /* planned with room for gradients */
	size_t gather_cap;  /* most rows that have a target, rounded up */
	size_t chunk;       /* rows of logits computed at once */
	int32_t *indices;   /* device: DALLE_TABLES x rows, then gather_cap rows, then gather_cap targets */
	float *hx, *mean, *rstd; /* (gather_cap, C) states with a target, their norm's statistics */
	void *nx;           /* (gather_cap, C) normalised; f32 with logits_f32, else T */
	float *logits;      /* (chunk, V) */
	void *dlogits;      /* (chunk, V) */
	float *nll;         /* (gather_cap) */
	void *dnx;          /* (gather_cap, C) */
	float *dhx, *dh;    /* (gather_cap, C) (rows, C) */
	int32_t *host_indices;
	float *host_nll;
	double *item_loss;  /* (2 batch) */
	int *item_text;     /* (batch) */
	uint64_t cut;       /* captions that were longer than N_T - 1, so far */
};

/* Describe the weights of config c; init is the numerator of C29 (0.125).  No memory is taken on a device. */
int dalle_describe(struct dalle *d, const struct dalle_config *c, double init, bool recompute, struct error *e);
/* Take the weights' memory on dev (after dalle_describe). */
int dalle_build(struct dalle *d, const struct ops *ops, struct dev *dev, bool training, struct error *e);
/* Config, identities and averaged weights from a model file: describe, build and load. */
int dalle_open(struct dalle *d, const char *path, const struct ops *ops, struct dev *dev, struct error *e);
/* Take activations for batches of at most `batch` items. */
int dalle_plan(struct dalle *d, int batch, bool backward, struct error *e);
/* What dalle_plan would take on the device. */
uint64_t dalle_plan_bytes(struct dalle *d, int batch, bool backward, const struct ops *ops, struct dev *dev);
void dalle_free(struct dalle *d);

/* STATUS_BAD unless the stream's text (and, with image, image) codec is the one the model was trained on:
 * "FILE: text tokens of vocabulary X, but MODEL was trained on Y". */
int dalle_check_stream(const struct dalle *d, const char *model, const struct header *h, const char *file, bool image,
                       struct error *e);
/* STATUS_BAD unless rec has text tokens, and N_I image tokens where image is set, all inside their vocabularies. */
int dalle_check_record(const struct dalle *d, const struct record *rec, const char *file, bool image, struct error *e);

/* Negative log-likelihood of n <= batch items.  With backward, also the gradients of
 *	scale * (1/8 text / text_count + 7/8 image / image_count)
 * accumulated into the parameters (C19: counts of this batch), multiplied by params.scales.  Waits for the device. */
int dalle_likelihood(struct dalle *d, const struct dalle_item *items, int n, bool backward, double scale,
                     struct dalle_loss *out, struct error *e);
#define DALLE_TEXT_SHARE (1.0 / 8)
#define DALLE_IMAGE_SHARE (7.0 / 8)

/* ---- pieces that sampling shares ---- */

/* Table rows of one item's states into idx[table * stride + at + state], states from .. to - 1; image tokens are only
 * read below state N_T + (tokens given). */
void dalle_indices(const struct dalle *d, const struct dalle_item *item, int from, int to, int32_t *idx, size_t stride,
                   size_t at);
/* h (rows, C) = sum of the table rows at idx (device: DALLE_TABLES blocks of `stride`). */
void dalle_embed(const struct dalle *d, float *h, const int32_t *idx, size_t stride, size_t rows);
/* Flags of the output heads' ops: OP_F32 when they are computed in f32. */
int dalle_head_flags(const struct dalle *d);

#endif
