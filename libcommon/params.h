/* params.h - one table per model: each trained tensor is described once, and the rows drive
 * allocation, initialisation, model files, the optimizer and (later) sharding.
 *
 * Memory, all taken by params_build, one device block per line, tensors at 64-byte steps.  A row is in a block or not, and
 * only MATRIX rows are ever kept in 16 bits (D2); struct storage chooses:
 *
 *	w      f32 weights                            always, but for matrices without a master copy
 *	t      T matrices for products                only when the device's type is not f32
 *	g      f32 gradients, or T                    training
 *	m v    f32 Adam moments, or 1-6-9 and 0-6-10  training
 *	avg    f32 averaged weights                   training, unless there are none
 *	avg_t  T matrices of the averages             averages of matrices without a master copy
 *
 * Models reach tensors through their rows at every call (row->w, row->t): params_swap_average exchanges these pointers.
 */
#ifndef PARAMS_H
#define PARAMS_H

#include "../kernels/ops.h"
#include "grad-scale.h"
#include "util.h"

enum param_kind {
	PARAM_MATRIX,     /* used through `t` in products: linear and convolution weights */
	PARAM_MATRIX_F32, /* a product kept in f32 (B9): t == w always */
	PARAM_EMBED,      /* f32 lookup tables */
	PARAM_GAIN,       /* f32, initialised to 1, no weight decay */
	PARAM_BIAS,       /* f32, initialised to 0, no weight decay */
	PARAM_SHIFT,      /* the same, of a layer norm: as of its GAIN, no gradient scale of a resblock is on its gradient */
	PARAM_SCALAR,     /* f32, initialised to init, no weight decay (CLIP's temperature) */
};

enum params_block { BLOCK_W, BLOCK_T, BLOCK_G, BLOCK_M, BLOCK_V, BLOCK_AVG, BLOCK_AVG_T, BLOCKS };

/* How matrices are kept while training; zero: all in f32 beside the copies for products, with averages. */
struct storage {
	bool no_master;    /* in T alone, rounded at random at each update (D12) */
	bool t_gradients;  /* their gradients in T; the model gives linear_bwd what params_dw says */
	bool moments_16;   /* (D10) */
	bool no_averages;  /* of all rows */
};

struct param {
	char name[96];    /* state-dict style: "blocks.3.attn.qkv.weight" */
	int64_t shape[4]; /* first `rank` are used; PyTorch's order (out, in[, k, k]) */
	int rank;
	enum param_kind kind;
	float init;   /* standard deviation of the normal draw; 0: zeros; SCALAR: the value */
	int resblock; /* unit of sharding and recomputation; -1: none */
	int parts;    /* blocks of rows that are matrices by themselves, of one shape: 3 of queries, keys and values; else 1 */
	int unit;     /* of gradient scale: the resblock, unless the model sets another after params_build */
	size_t n;     /* elements */
	size_t at;    /* where they begin in a host array of `total` floats, and their number for random rounding */
	/* Device pointers to (shape), valid after params_build; NULL where the row is not in the block, but for
	 * t == w when the type is f32 or the row is no MATRIX. */
	union {
		struct {
			float *w;
			void *t, *g, *m, *v;
			float *avg;
			void *avg_t;
		};
		void *in[BLOCKS];
	};
};

struct params {
	const struct ops *ops;
	struct dev *dev;
	struct param *rows;
	int count;
	size_t total; /* elements, with padding between tensors */
	bool training, swapped;   /* swapped: by params_swap_average */
	struct storage storage;   /* set before params_build */
	struct grad_scale scales; /* of the gradients that the models compute now; started by whoever trains */
	union {
		struct {
			float *w; /* the blocks */
			void *t, *g, *m, *v;
			float *avg;
			void *avg_t;
		};
		void *block[BLOCKS];
	};
	double *sum, *host_sum; /* (count) scratch for norms, on the device and on the host */
	struct param ***slots; /* where the models keep their row pointers; filled by params_build */
	size_t cap;
};

/* Add a row to the zero-initialised p.  *slot (slot may be NULL) points to the finished row after params_build.  Shapes
 * are checked for positive sizes and overflow. */
int params_add(struct params *p, struct param **slot, enum param_kind kind, float init, int resblock, int rank,
               const int64_t *shape, struct error *e, const char *name_fmt, ...) __attribute__((format(printf, 9, 10)));
/* Bytes of device memory that params_build takes for a block on a device of this type: for MATRIX rows, and of what
 * type they are there, and for all others, which are f32. */
struct block_use {
	uint64_t matrices, others;
	enum dtype type;
};
struct block_use params_block_use(const struct params *p, enum params_block b, enum dtype type, bool training);
/* Allocate on dev and set every pointer and slot. */
int params_build(struct params *p, const struct ops *ops, struct dev *dev, bool training, struct error *e);
/* Draw initial weights: each tensor from rng.h keyed by (seed, RNG_INIT, hash of its name), so that a tensor's start
 * does not depend on the others; then params_refresh. */
int params_init(struct params *p, uint64_t seed, struct error *e);
/* Rewrite the T copies from w. */
void params_refresh(struct params *p);
/* Ready for the first update: moments are 0, averages the weights, copies fresh. */
void params_start(struct params *p);

/* Where row r is in a block and of which type.  Block w of a matrix without a master copy is its place in block t. */
struct place {
	void *p;
	enum dtype type;
};
struct place params_place(const struct params *p, const struct param *r, enum params_block b);
/* Values between the host's floats (n) and that place, converted; both wait. */
int params_put(struct params *p, const struct param *r, enum params_block b, const float *x, struct error *e);
int params_get(struct params *p, const struct param *r, enum params_block b, float *x, struct error *e);

/* Flag for the linear_bwd that adds to r->g: OP_DW_T or 0. */
int params_dw(const struct params *p, const struct param *r);
void params_zero_grad(struct params *p);
/* What the gradient of row r comes multiplied by. */
float params_gradient_scale(const struct params *p, const struct param *r);
/* Global gradient norm (sqrt of the sum of squares of all g), without the gradient scales; waits.  NaN or Inf when any
 * is; then scales.finite and scales.outside say where. */
int params_grad_norm(struct params *p, double *norm, struct error *e);
/* One AdamW update of every row, gradient scales taken off; decay only where the kind says so. */
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
