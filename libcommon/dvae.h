/* dvae.h - the discrete VAE (paper 2.1, A.1 to A.3; recipe B): pictures to image tokens and back.
 *
 * Letters: N pictures of one call, S the picture's side in pixels, s the stem, f = s * 2^(groups-1) pixels a
 * token, G = S / f tokens a side, K codes.  Pictures are RGB8, rows from the top; tokens are in raster order.
 *
 *	encoder  pixels (N,S,S,3) -> phi -> space to depth s -> conv kernel x kernel -> groups of residual blocks with
 *	         2x2 max-pool between groups -> relu -> 1x1 -> logits (N,G,G,K)
 *	decoder  one-hot or relaxed codes (N,G,G,K) -> 1x1 -> groups of residual blocks with nearest 2x upsampling
 *	         between them -> relu -> 1x1 -> depth to space s -> mu and ln b (N,S,S,6)
 *
 * With stem 1 this is the published model.  A stem above 1 starts at 1/s of the resolution, which is what small
 * machines and small pictures want: the full-resolution groups are most of the paper's work. */
#ifndef DVAE_H
#define DVAE_H

#include "params.h"
#include "weights.h"

struct dvae_config {
	int64_t size;   /* S, pixels a side */
	int64_t stem;   /* s; 1: the paper */
	int64_t hidden; /* channels of the first encoder group; group g has hidden * 2^(g-1) */
	int64_t initial; /* channels of the decoder's first convolution: the width of the codebook's vectors */
	int64_t groups, blocks; /* blocks in each group */
	int64_t codes;  /* K */
	int64_t kernel; /* of the encoder's first convolution, odd */
	double post_gain; /* of every residual path; 0: 1 / (groups * blocks)^2 (B5) */
};

/* How a preset is trained (B18, B21).  Schedules are cosines from start to end over `*_span` updates when above 1,
 * over that fraction of all updates otherwise; then constant. */
struct dvae_schedule {
	double lr, lr_end, lr_span;
	int64_t warmup; /* updates of linear warm-up; the paper mentions none */
	double beta, beta_span;           /* from 0 */
	double tau_start, tau_end, tau_span;
	double average_decay;
};

struct dvae_preset {
	const char *name;
	struct dvae_config config;
	struct dvae_schedule schedule;
	int64_t batch;
	double usage_bonus, calibrate, least_b; /* see dvae-fit.h; 0 in the paper */
};
/* By name; NULL when there is none. */
const struct dvae_preset *dvae_preset(const char *name);
#define DVAE_PRESETS "tiny|small|paper"

/* STATUS_USAGE naming the field that is out of range or does not fit the others. */
int dvae_check(const struct dvae_config *c, struct error *e);
static inline int64_t dvae_factor(const struct dvae_config *c) { return c->stem << (c->groups - 1); }
static inline int64_t dvae_grid(const struct dvae_config *c) { return c->size / dvae_factor(c); }
/* What dalle.config holds; a new reference, NULL when out of memory. */
json_t *dvae_config_to_json(const struct dvae_config *c);
int dvae_config_from_json(struct dvae_config *c, const json_t *j, const char *path, struct error *e);
/* From the shapes of tensors that have the published names but no dalle.config (OpenAI's weights).  parts: the halves that
 * are needed, DVAE_ENCODER, DVAE_DECODER or both; the file may lack the other one. */
int dvae_config_from_tensors(struct dvae_config *c, int parts, const struct weights *w, struct error *e);
/* Floating-point operations of encoding and decoding one picture (multiply and add are two). */
void dvae_flops(const struct dvae_config *c, double *encode, double *decode);

enum { DVAE_ENCODER = 1, DVAE_DECODER = 2, DVAE_TRAINING = 4 };

struct dvae;
/* A model with zero weights and memory for up to `batch` pictures at a time.  parts: DVAE_ENCODER, DVAE_DECODER or
 * both; DVAE_TRAINING (with both) also takes gradients, moments, averages and kept activations. */
struct dvae *dvae_new(const struct dvae_config *c, int parts, const struct ops *ops, struct dev *dev, int batch,
                      struct error *e);
/* The two halves of dvae_new, for trainers that look at the memory plan first: the table of parameters and the plan
 * of activations; then the memory.  After a failure of dvae_build only dvae_free is allowed. */
struct dvae *dvae_plan(const struct dvae_config *c, int parts, enum dtype type, int batch, struct error *e);
int dvae_build(struct dvae *d, const struct ops *ops, struct dev *dev, struct error *e);
/* The same from a model file: one of dvae-train (its averaged weights, J14), or any safetensors or PyTorch file with the
 * published tensor names.  STATUS_BAD when the file is another kind of model or lacks a tensor. */
struct dvae *dvae_load(const char *path, int parts, const struct ops *ops, struct dev *dev, int batch, struct error *e);
void dvae_free(struct dvae *d);

const struct dvae_config *dvae_configuration(const struct dvae *d);
struct params *dvae_params(struct dvae *d);
/* The identity that token streams carry: of the file, or a hash of names and values of a foreign file's encoder;
 * "" for a model that was not loaded, and for a foreign decoder alone. */
const char *dvae_id(const struct dvae *d);
/* codes (n,G,G) of pictures rgb (n,S,S,3), n <= batch: the argmax of the logits (A7). */
int dvae_encode(struct dvae *d, int32_t *codes, const uint8_t *rgb, int n, struct error *e);
/* Pictures rgb (n,S,S,3) from codes (n,G,G), n <= batch (B13).  A code below 0 is missing: it gives the decoder an
 * all-zero vector and its f x f pixels are grey.  Codes above K-1 are refused, STATUS_BAD. */
int dvae_decode(struct dvae *d, uint8_t *rgb, const int32_t *codes, int n, struct error *e);

#endif
