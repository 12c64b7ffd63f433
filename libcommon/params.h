/* params.h - one table per model: each trained tensor is described once, and the rows drive
 * allocation, initialisation, model files, the optimizer and (later) sharding.
 *
 * Memory, all taken by params_build, one device block per line, tensors at 64-byte steps:
 *
 *	w     f32 master weights                     always
 *	t     T copies of the matrices for products   only when the device's type is not f32
 *	g     f32 gradients                          training
 *	m v   f32 Adam moments                       training
 *	avg   f32 averaged weights                   training
 *
 * Models reach tensors through their rows at every call (row->w, row->t): params_swap_average exchanges these pointers.
 */
#ifndef PARAMS_H
#define PARAMS_H

#include "../kernels/ops.h"
#include "util.h"

enum param_kind {
	PARAM_MATRIX,     /* used through `t` in products: linear and convolution weights */
	PARAM_MATRIX_F32, /* a product kept in f32 (B9): t == w always */
	PARAM_EMBED,      /* f32 lookup tables */
	PARAM_GAIN,       /* f32, initialised to 1, no weight decay */
	PARAM_BIAS,       /* f32, initialised to 0, no weight decay */
	PARAM_SCALAR,     /* f32, initialised to init, no weight decay (CLIP's temperature) */
};

struct param {
	char name[96];    /* state-dict style: "blocks.3.attn.qkv.weight" */
	int64_t shape[4]; /* first `rank` are used; PyTorch's order (out, in[, k, k]) */
	int rank;
	enum param_kind kind;
	float init;   /* standard deviation of the normal draw; 0: zeros; SCALAR: the value */
	int resblock; /* unit of gradient scale, sharding, recomputation; -1: none */
	size_t n;     /* elements */
	/* device pointers, valid after params_build */
	float *w, *g, *m, *v, *avg; /* (shape) */
	void *t;                    /* (shape) T; == w when the type is f32 or the row is not a MATRIX */
};

struct params {
	const struct ops *ops;
	struct dev *dev;
	struct param *rows;
	int count;
	size_t total; /* elements, with padding between tensors */
	bool training;
	float *w, *g, *m, *v, *avg; /* the blocks */
	void *t;
	size_t t_bytes; /* of block t; 0: none */
	double *sum; /* [1] device scratch for norms */
	struct param ***slots; /* where the models keep their row pointers; filled by params_build */
	int cap;
};

/* Add a row to the zero-initialised p.  *slot (slot may be NULL) points to the finished row after params_build.  Shapes
 * are checked for positive sizes and overflow. */
int params_add(struct params *p, struct param **slot, enum param_kind kind, float init, int resblock, int rank,
               const int64_t *shape, struct error *e, const char *name_fmt, ...) __attribute__((format(printf, 9, 10)));
/* Bytes of device memory that params_build would take. */
uint64_t params_bytes(const struct params *p, enum dtype type, bool training);
/* Allocate on dev and set every pointer and slot. */
int params_build(struct params *p, const struct ops *ops, struct dev *dev, bool training, struct error *e);
/* Draw initial weights: each tensor from rng.h keyed by (seed, RNG_INIT, hash of its name), so that a tensor's start
 * does not depend on the others; then params_refresh. */
int params_init(struct params *p, uint64_t seed, struct error *e);
/* Rewrite the T copies from w. */
void params_refresh(struct params *p);
void params_zero_grad(struct params *p);
/* Global gradient norm (sqrt of the sum of squares of all g); waits. NaN or Inf when any is. */
int params_grad_norm(struct params *p, double *norm, struct error *e);
/* One AdamW update of every row; decay only where the kind says so. */
void params_update(struct params *p, const struct adamw *a);
void params_average(struct params *p, float decay); /* avg = decay*avg + (1-decay)*w */
/* Exchange w and avg (evaluation with averaged weights) in every row, and refresh.  Call again to go back. */
void params_swap_average(struct params *p);
/* Elements without padding: the model's parameter count. */
uint64_t params_count(const struct params *p);
struct param *params_find(struct params *p, const char *name);
void params_free(struct params *p);

/* The name of the first tensor (of block g, or w) holding a NaN or Inf, or NULL: for messages. */
const char *params_find_nonfinite(struct params *p, bool gradients);

#endif
