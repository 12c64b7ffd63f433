/* dalle-config.h - sizes and training recipe of the transformer (recipe C1-C29): presets, the paper's layer
 * schedule, and the JSON that model files carry. */
#ifndef DALLE_CONFIG_H
#define DALLE_CONFIG_H

#include <jansson.h>

#include "../kernels/ops.h"
#include "stream.h"

enum dalle_mask {
	DALLE_MASK_PAPER, /* row, column and conv layers (C15) */
	DALLE_MASK_DENSE, /* every layer sees all earlier states */
};
#define DALLE_MASKS "paper|dense"

/* What the model is: all of it goes into the model file. */
struct dalle_config {
	int text_length;    /* N_T: text states; captions have at most N_T - 1 tokens (C9) */
	int text_vocab;     /* V_T */
	int grid_w, grid_h; /* of image tokens; N_I = grid_w * grid_h */
	int image_vocab;    /* V_I */
	int layers, width, heads;
	int conv_k, conv_centred; /* C13 */
	int mask;           /* enum dalle_mask */
	bool logits_f32;    /* output heads computed in f32 (D2); else from T operands to f32 logits */
};

/* How it is trained. */
struct dalle_recipe {
	int batch;
	double lr, lr_end;   /* peak, and where the cosine ends as a share of the peak */
	int64_t warmup;      /* updates */
	bool halving;        /* constant after the warm-up but for halvings, on a plateau unless the user names them (C23) */
	double beta1, beta2, eps, decay, v_max, clip;
	double average_decay;
	int average_every;
	double bpe_dropout;  /* J, applied when a vocabulary is given */
	double init;         /* numerator of the initial standard deviations (C29) */
};

struct dalle_preset {
	const char *name;
	struct dalle_config config;
	struct dalle_recipe recipe;
};
#define DALLE_PRESETS "tiny|small|1.2b|2.8b|5.6b|12b"
/* NULL when there is none of that name. */
const struct dalle_preset *dalle_preset_find(const char *name);

/* Mask of layer i = 0 .. layers - 1: the last is conv, else column where (i - 1) % 4 == 0 (the paper counts from 1),
 * else row; all of them causal for DALLE_MASK_DENSE. */
struct attn_mask dalle_mask_of(const struct dalle_config *c, int i);
/* Pairs of a state and one that it sees in a sequence, of a causal mask with a grid. */
uint64_t dalle_mask_pairs(const struct attn_mask *m);

static inline int dalle_image_length(const struct dalle_config *c) { return c->grid_w * c->grid_h; }
static inline int dalle_length(const struct dalle_config *c) { return c->text_length + dalle_image_length(c); }

/* STATUS_BAD unless every size is positive and bounded. */
int dalle_config_check(const struct dalle_config *c, struct error *e);
json_t *dalle_config_json(const struct dalle_config *c); /* new reference, NULL without memory */
/* `name` is the model file, for messages. */
int dalle_config_parse(struct dalle_config *c, const json_t *j, const char *name, struct error *e);

/* Vocabulary size, codes and grid of a stream that has both kinds of tokens. */
void dalle_config_from_header(struct dalle_config *c, const struct header *h);

#endif
