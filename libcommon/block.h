/* block.h - the pre-norm transformer shared by DALL-E (recipe C4) and both towers of CLIP (H5): a stack of
 * layers, each an attention resblock and an MLP resblock,
 *
 *	h += out(attention(qkv(norm1(h))))
 *	h += down(gelu(up(norm2(h))))
 *
 * with an attention mask per layer.  h is the f32 residual stream (D3); everything inside a resblock is of
 * the device's type T.  Embeddings before and heads after the stack are the model's own.
 *
 * Shape letters: B sequences, S positions, C width, H heads, D = C / H, F = MLP width, rows = B * S.
 *
 *	stack_rows(&s, &params, "blocks.", 0, &config, &e)         describe the weights; params_build fills them
 *	stack_layout(&s, &arena, STACK_TRAIN, B, S)                once to plan, once to take
 *	h = stack_input(&s);        ... the model writes (B, S, C) embeddings there ...
 *	h = stack_forward(&s, B);   ... heads, loss, gradient dh of h ...
 *	stack_backward(&s, dh, B);  ... dh is now the gradient of the embeddings ...
 */
#ifndef BLOCK_H
#define BLOCK_H

#include "arena.h"
#include "params.h"

enum { STACK_MAX_LAYERS = 1024 };

struct stack_config {
	int layers, width, heads; /* width is a multiple of heads */
	int hidden;               /* MLP width, 0 for 4 * width */
	bool exact_gelu;          /* erf GELU instead of x sigmoid(1.702 x) (C5, H5) */
	bool key_bias;            /* false: the keys' bias stays 0 (J3; it cannot change a softmax) */
	bool recompute;           /* keep resblock inputs only and recompute the rest in the backward (C27) */
	const struct attn_mask *masks; /* [layers], copied; all of one length */
	float std_qkv, std_out, std_up, std_down; /* of the initial weights; see stack_init_* */
};
/* Child et al. (C29): 0.125 / sqrt(fan in); both output matrices also / sqrt(2 layers). */
void stack_init_child(struct stack_config *c);
/* CLIP (H5): width^-0.5, out and down also (2 layers)^-0.5, up (2 width)^-0.5. */
void stack_init_clip(struct stack_config *c);

/* One layer's weights and what its forward keeps. */
struct stack_layer {
	struct attn_mask mask;
	struct param *norm1_w, *norm1_b; /* (C) */
	struct param *qkv_w, *qkv_b;     /* (3C, C) (3C): queries, keys, values, each (H, D) */
	struct param *out_w, *out_b;     /* (C, C) (C) */
	struct param *norm2_w, *norm2_b; /* (C) */
	struct param *up_w, *up_b;       /* (F, C) (F) */
	struct param *down_w, *down_b;   /* (C, F) (C) */
	float *x1, *x2;        /* (rows, C) resblock inputs, f32 */
	void *n1, *n2;         /* (rows, C) T normalised */
	float *mean1, *rstd1, *mean2, *rstd2; /* (rows) */
	void *qkv;             /* (B, S, 3, H, D) T */
	void *att;             /* (B, S, H, D) T attention's result */
	float *lse;            /* (B, H, S) */
	void *u, *a;           /* (rows, F) T before and after the activation */
	struct attn_cache cache; /* decoding only: (contexts, N_T, 2, H, D) and (slots, window, 2, H, D) T */
};

struct stack {
	struct stack_config c; /* masks is NULL here: each layer holds its own */
	struct params *params;
	struct stack_layer *layer; /* [layers] */
	int resblock;              /* number of the first */
	int S;                     /* positions as planned */
	float *h;                  /* (rows, C) the last residual stream */
	void *g1, *g2, *g3;        /* T scratch of the backward: (rows, F') (rows, F') (rows, C), F' = max(F, 3C) */
};

/* Add the rows "PREFIXn.norm1.weight", ... to p; resblocks are numbered from first_resblock, two a layer.
 * STATUS_BAD for a config that makes no sense.  The stack keeps p; free with stack_free. */
int stack_rows(struct stack *s, struct params *p, const char *prefix, int first_resblock, const struct stack_config *c,
               struct error *e);
void stack_free(struct stack *s);

enum stack_use {
	STACK_TRAIN, /* everything the backward needs */
	STACK_INFER, /* one shared set of activations */
};
/* Take activations for at most B sequences of S positions (arena.h: call it twice). */
void stack_layout(struct stack *s, struct arena *a, enum stack_use use, int B, int S);

/* Where the embeddings go: (B, S, C) f32. */
float *stack_input(const struct stack *s);
/* Run the stack over B sequences; returns the last residual stream (B, S, C), valid until the next call. */
const float *stack_forward(struct stack *s, int B);
/* dh (B, S, C) f32: gradient of stack_forward's result in, of stack_input's out; parameters' gradients are
 * accumulated.  Only after stack_forward with the same B under STACK_TRAIN. */
void stack_backward(struct stack *s, float *dh, int B);

/* ---- decoding with key/value caches ---- */

/* A stack whose masks have text and a grid decodes many image sequences at once.  The text of a caption is a context, kept
 * once for all sequences of it; every sequence has a slot, in which each layer keeps the image states that its
 * mask still reaches (G3). */
struct stack_decode {
	int contexts, slots;
	int rows;            /* most sequences in one step */
	size_t prefill_rows; /* most states in one stack_prefill */
};
/* Take caches, and activations for steps and prefills. */
void stack_layout_decode(struct stack *s, struct arena *a, const struct stack_decode *n);
/* What the caches take of it, in bytes. */
void stack_cache_bytes(const struct stack *s, const struct stack_decode *n, uint64_t *text, uint64_t *image);
/* The first n = N_T + grid_w * image_rows states of B sequences at once, from stack_input (B, n, C).  Sequence b's text
 * goes into context[b], its image states into slot[b]; both are host arrays. */
void stack_prefill(struct stack *s, int B, int image_rows, const int32_t *context, const int32_t *slot);
/* Slot `to` becomes a copy of slot `from`. */
void stack_copy_slot(const struct stack *s, int to, int from);
/* One image state of each of B sequences: stack_input (B, C) to the returned (B, C).  Sequence b is at image state
 * pos[b] of context[b] and has slot[b]: device arrays, see attn_step of ops.h. */
const float *stack_step(struct stack *s, int B, const int32_t *context, const int32_t *slot, const int32_t *pos);

#endif
