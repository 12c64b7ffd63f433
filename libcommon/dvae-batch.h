/* dvae-batch.h - inside dVAE training: batches of pictures with augmentation, the count of codes in use, previews.
 * For dvae-fit.c and dvae-batch.c. */
#ifndef DVAE_BATCH_H
#define DVAE_BATCH_H

#include "dvae-fit.h"

enum { CODE_USE_WINDOW = 16, PREVIEW_PICTURES = 16, PREVIEW_COLUMNS = 8 };

/* How often each code was the argmax: over the last batches (window > 0) or all of them. */
struct code_use {
	int K, window;
	uint32_t *count;  /* [K] */
	uint64_t total;
	int32_t *recent;  /* [window][rows of a batch], the codes to take out again */
	int *recent_rows; /* [window] */
	int next;
	size_t rows_max;
	int32_t *codes;   /* [rows of a batch] */
};
int code_use_init(struct code_use *u, const struct dvae *d, int window, struct error *e);
void code_use_free(struct code_use *u);
void code_use_clear(struct code_use *u);
/* Count the argmax of d's logits of the last n pictures. */
int code_use_add(struct code_use *u, struct dvae *d, int n, struct error *e);
int code_use_sum(struct code_use *u, struct comm *c, struct error *e); /* over ranks; without a window */
double code_use_count(const struct code_use *u);      /* codes used at least once */
double code_use_perplexity(const struct code_use *u); /* exp of the entropy; 1 when nothing was counted */

struct dvae_fit {
	struct dvae *d;
	struct dvae_fit_options o;
	const char *input;
	uint8_t *rgb, *out;       /* [batch] pictures: input, reconstruction */
	double *distortion, *kl;  /* [batch] */
	struct code_use trained, evaluated;
	uint8_t *shown;           /* the pictures of the preview */
	int shown_count;
	bool shown_held_out;
	struct pixels crop;        /* of augmentation */
};

/* rgb of the batch, augmented; STATUS_BAD for a record without pixels or with pixels of another size. */
int dvae_fill_batch(struct dvae_fit *f, const struct train_step *s, const struct record *const *batch, int n,
                    struct error *e);
/* The same without augmentation, for held-out pictures: those that are larger give their centre. */
int dvae_fill_plain(struct dvae_fit *f, const struct record *const *batch, int n, struct error *e);
/* The first of these n pictures become those of the preview. */
void dvae_show_batch(struct dvae_fit *f, int n);
/* Originals over reconstructions, PREVIEW_COLUMNS a row, when a preview file is wanted. */
int dvae_write_preview(struct dvae_fit *f, struct error *e);

#endif
