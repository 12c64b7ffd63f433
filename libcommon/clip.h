/* clip.h - CLIP (recipe H): a picture tower and a text tower whose outputs, projected to a shared space and
 * normalised, agree for pairs that belong together.  Used to rank samples and to filter data.
 *
 * Letters: B pairs, G = (size/patch)^2 patches, S text positions, E width of the shared space.
 * Tensor names are those of the public code's state dict (visual.conv1.weight, transformer..., ln_final...), except
 * that the blocks' names are block.h's. */
#ifndef CLIP_H
#define CLIP_H

#include "arena.h"
#include "block.h"
#include "bpe.h"
#include "opt.h"
#include "train.h"

enum clip_augment {
	CLIP_SHIFT, /* pictures of the model's size, moved by a few pixels */
	CLIP_CROP,  /* of any size: a random square, resized to the model's size (H6) */
	CLIP_PLAIN, /* of the model's size, as they are */
};
#define CLIP_AUGMENTS "shift|crop|none"

struct clip_config {
	int64_t size, patch;                              /* pixels; patch divides size */
	int64_t image_width, image_layers, image_heads;
	int64_t context, vocabulary;                      /* text positions incl. start and end; tokens incl. both */
	int64_t text_width, text_layers, text_heads;
	int64_t embed;                                    /* E */
	int64_t exact_gelu;                               /* 0: x * sigmoid(1.702 x) */
	int64_t closed;                                   /* captions come with start and end; 0: these are put around them */
	double lr, decay;                                 /* AdamW defaults of the preset */
	int64_t warmup;
	double average_decay;                             /* of averages at every update; 0: none, as in the paper */
	int augment;                                      /* enum clip_augment */
	int64_t image_hidden, text_hidden;                /* MLP widths of published models; 0: 4 * width */
};

struct clip {
	struct clip_config config;
	char id[ID_LENGTH + 1];      /* of a loaded model */
	char text_id[ID_LENGTH + 1]; /* vocabulary it reads */
	const struct ops *ops;
	struct dev *dev;
	int batch; /* most pairs per call */
	bool training;
	struct params params;
	struct arena arena;
	struct stack image_stack, text_stack;

	/* image tower */
	struct param *patch_w;        /* (image_width, 3, patch, patch) */
	struct param *class_embed;    /* (1, image_width) */
	struct param *image_pos;      /* (G + 1, image_width) */
	struct param *pre_w, *pre_b, *post_w, *post_b; /* layer norms (image_width) */
	struct param *image_proj;     /* (E, image_width) */
	/* text tower */
	struct param *token_embed;    /* (vocabulary, text_width) */
	struct param *text_pos;       /* (context, text_width) */
	struct param *final_w, *final_b;
	struct param *text_proj;      /* (E, text_width) */
	struct param *scale;          /* (1): s, logits = exp(s) * cosine */

	/* How pictures and captions become input.  A published model brings its vocabulary, whose captions have their
	 * ends; ours has none (NULL), and the ends are added. */
	float mean[3], deviation[3];  /* of pixels in 0..1 (H7) */
	struct bpe *bpe;
	int64_t resize;               /* with bpe: the shorter side before the centre crop to config.size */
	int64_t end_token;            /* with bpe: its first state stands for the caption; -1: that of the largest token */

	struct clip_buffers *buf; /* activations, clip-net.h */
};

/* Rows of the preset table: "tiny", "small", "vit-b-32".  STATUS_USAGE for another name. */
int clip_preset(const char *name, struct clip_config *c, struct error *e);
/* A new model for training on pairs of up to `batch` at a time, in two steps: clip_plan describes the weights and counts
 * the activations (arena_bytes) without taking device memory, clip_build takes it.  The weights are then params_init's
 * (H5) or params_load's. */
int clip_plan(struct clip *m, const struct clip_config *c, const struct ops *ops, struct dev *dev, int batch,
              bool training, struct error *e);
int clip_build(struct clip *m, struct error *e);
/* Our model file for inference. */
int clip_load(struct clip *m, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e);
/* The same, or a folder as Hugging Face publishes CLIP (clip-hf.c): config.json, model.safetensors (f32, f16 or bf16),
 * vocab.json, merges.txt and, where it is there, preprocessor_config.json. */
int clip_open(struct clip *m, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e);
void clip_free(struct clip *m);
json_t *clip_config_json(const struct clip_config *c);
/* Sizes of a model file into c, whose recipe stays; `file` is for messages. */
int clip_config_from_json(struct clip_config *c, const json_t *j, const char *file, struct error *e);

/* n <= batch pictures (n, size, size, 3) RGB8 and captions as text tokens to unit vectors on the host,
 * image_out and text_out (n, E); either side may be NULL with its output. */
int clip_embed(struct clip *m, const uint8_t *rgb, const struct tokens *const *text, int n, float *image_out,
               float *text_out, struct error *e);

/* The pictures' vectors before they are normalised, (n, E): what Frechet distances are measured on. */
int clip_features(struct clip *m, const uint8_t *rgb, int n, float *out, struct error *e);

/* What the trainer needs; CLIP_SHIFT moves pictures by up to max_shift pixels and fills with their border.  Held-out
 * pictures are not moved, and cut in the middle. */
struct clip_trainer {
	struct clip *model;
	uint64_t seed;
	int max_shift;
	struct pixels crop; /* scratch of CLIP_CROP */
	double lr;
	int64_t warmup;
	uint8_t *rgb;   /* (batch, size, size, 3) host */
	uint64_t *caption; /* (batch) caption_hash */
	int32_t *group; /* (batch) host: the first record with an equal caption */
	struct cut_captions captions;
};
int clip_trainer_init(struct clip_trainer *t, struct clip *m, struct error *e);
void clip_trainer_free(struct clip_trainer *t);
/* Fills step, evaluate, lr and the constants of H6. */
void clip_trainee(struct clip_trainer *t, struct trainee *out);
/* What the options decide of the result beside sizes: a new object for trainee.recipe, NULL without memory. */
json_t *clip_recipe(const struct clip_trainer *t);

#endif
