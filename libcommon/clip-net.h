/* clip-net.h - inside CLIP: both towers over ops (recipe H3, H4), their weights, activations, forward and backward.
 * For clip.c and clip-net.c. */
#ifndef CLIP_NET_H
#define CLIP_NET_H

#include "clip.h"

/* Activations.  P = G + 1 image states, S = context. */
struct clip_buffers {
	uint8_t *rgb;      /* (B, size, size, 3) */
	float *x;          /* (B, size, size, 3) normalised pixels */
	float *patches;    /* (B, G, 3 * patch^2) */
	void *patches_t;   /* the same as T */
	float *embedded;   /* (B * G, image_width) patch embeddings */
	float *pre;        /* (B, P, image_width) sum of embeddings, input of the first norm */
	float *pre_mean, *pre_rstd;
	int32_t *class_idx, *pos_idx, *patch_idx; /* (B * P) rows of class_embed, image_pos, embedded; -1: none */
	int32_t *first_idx;                       /* (B) the class state of each picture */
	int32_t *token_idx, *text_pos_idx;        /* (B * S) */
	int32_t *end_idx;                         /* (B) state of each caption's end token */
	struct clip_head {
		float *row;          /* (B, width) the state that stands for the whole */
		float *norm, *mean, *rstd;
		float *proj;         /* (B, E) */
		float *unit, *rnorm; /* (B, E) (B) */
		float *dunit, *dproj, *dnorm, *drow;
	} image, text;
	float *sim, *dsim;   /* (B, B) cosines */
	float *loss, *ds;    /* (1) */
	int32_t *group;      /* (B) */
	float *dimage, *dtext; /* gradients of the residual streams (B, P, image_width), (B, S, text_width) */
	float *dpre;           /* (B, P, image_width) */
	float *dembedded;      /* (B * G, image_width) */
	void *dembedded_t;
};

/* Describe the weights of both towers in m->params. */
int clip_rows(struct clip *m, struct error *e);
/* The patch embedding computes in T as well: a unit of gradient scale after the resblocks of both towers. */
int clip_patch_unit(const struct clip_config *c);
/* Take the activations from the arena: twice, to count them and, with memory, to place them. */
void clip_layout(struct clip *m, struct arena *a);
/* Index tables that do not depend on the data, once the memory is there. */
int clip_put_indices(struct clip *m, struct error *e);

/* n <= batch pictures (n, size, size, 3) and captions to m->buf->image and text: unit (n, E) and what leads there.
 * STATUS_BAD for tokens outside of the model's vocabulary. */
void clip_forward_image(struct clip *m, const uint8_t *rgb, int n);
int clip_forward_text(struct clip *m, const struct tokens *const *text, int n, struct error *e);
/* From image.dunit and text.dunit of the last forward: gradients are added to those of the weights. */
void clip_backward_image(struct clip *m, int n);
void clip_backward_text(struct clip *m, int n);

#endif
