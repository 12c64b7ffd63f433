/* clip-embed.h - from records to CLIP's vectors, with a model of either kind: what clip-rank and img-fid share.
 *
 *	struct embedder x;
 *	embedder_open(&x, "clip.safetensors" or a published folder, ops, dev, batch, &e);
 *	embedder_check(&x, &header, file, &e);                    once per stream, where captions are embedded
 *	embed_captions(&x, records, n, file, &e);                 x.text, (n, E) unit vectors
 *	embed_pictures(&x, pictures, n, EMBED_UNIT, file, &e);    x.image, (n, E)
 *	embedder_close(&x);
 *
 * Our models take the records' text tokens, of the vocabulary that they were trained with, and pictures of their own
 * size.  A published model encodes the captions itself and takes pictures of any size: the shorter side is resampled
 * and the middle cut out, as its users' pipelines do (recipe H7). */
#ifndef CLIP_EMBED_H
#define CLIP_EMBED_H

#include "clip.h"

struct embedder {
	struct clip model;
	const char *path;
	int batch;
	float *image, *text;      /* (batch, E) host: the last results */
	uint64_t cut;             /* captions that were longer than the model's context */
	/* workspace */
	uint8_t *rgb;             /* (batch, size, size, 3) */
	struct bpe_coder *coder;  /* of a published model */
	struct tokens *encoded;   /* (batch) its captions */
	const struct tokens **tokens; /* (batch) */
	int *row;                 /* (batch) which of the distinct captions a record has */
};

int embedder_open(struct embedder *x, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e);
void embedder_close(struct embedder *x); /* also after a failure, and of a zeroed struct */

/* STATUS_BAD unless the stream has the text tokens that one of our models reads. */
int embedder_check(const struct embedder *x, const struct header *h, const char *file, struct error *e);

enum embed_form {
	EMBED_UNIT,     /* of length 1: dot products are cosines */
	EMBED_FEATURES, /* as projected */
};
/* n <= batch pictures or records; `file` for messages.  Successive records with equal captions are embedded once. */
int embed_pictures(struct embedder *x, const struct pixels *const *pictures, int n, enum embed_form form, const char *file,
                   struct error *e);
int embed_captions(struct embedder *x, const struct record *r, int n, const char *file, struct error *e);

/* caption_hash of what the model reads; of a zeroed struct, too. */
uint64_t embedder_caption(const struct embedder *x, const struct record *r);

#endif
