/* ops.h - everything the models may ask of a device: one struct of functions, filled by the
 * CPU (reference loops, then oneDNN overrides) and by the CUDA plugin.  Beside it libcommon sees
 * three small headers: philox.h (random numbers) and convert.h (16-bit floats), arithmetic which
 * both sides must do to the same bit, so that it is written once, below; and plugin.h, since the
 * ranks' plugin is found as this one is.
 *
 * Conventions
 *   - Tensors are plain device pointers, dense, row-major; sizes are counts, not bytes.
 *     Pictures are NHWC.  Shape letters: N pictures, H W their sides, C channels; B sequences,
 *     S positions, H heads, D head width; rows x in -> rows x out for matrix products;
 *     V vocabulary or codebook.
 *   - `void *` marked T is the activation type chosen at open (f32, bf16 or f16); `float *` is
 *     always f32: residual streams, norms, statistics, logits, losses, gradients of gains and biases.
 *     What the optimizer keeps of a matrix has a type of its own: struct adamw_tensor.
 *     The flag OP_F32 turns the T operands of that call into f32; a device of a 16-bit type may then form each
 *     product of a linear layer to 2^-16 of itself and add up in f32.
 *   - Outputs come first.  Gradients of activations are written, gradients of parameters are
 *     accumulated (+=); exceptions say so.  Any gradient output may be NULL: not wanted.
 *   - Every op is deterministic for a given device and thread count, and each row or picture gives
 *     the same bits whatever the batch around it, on a device of type f32; linear on the CPU also in bf16 up to 512 rows.
 *   - Compute entries only queue work; the first failure is kept with the op's name and reported
 *     by sync().  Pointers given to put/get are host memory; all else is device memory.
 */
#ifndef OPS_H
#define OPS_H

#include <stddef.h>
#include <stdint.h>

#define OPS_ABI 4
enum { RANKS_ID = 128 };

/* The last two hold Adam's moments only (recipe D10): sign, exponent and significand of 1, 6 and 9 bits, and of 0, 6
 * and 10; convert.h has their values. */
enum dtype { DT_F32, DT_BF16, DT_F16, DT_1_6_9, DT_0_6_10 };
static inline size_t dtype_bytes(enum dtype t) { return t == DT_F32 ? 4 : 2; }

/* Flags of linear_*, conv_*, norm_*, relu_*, cast. */
enum {
	OP_F32 = 1,     /* every T operand of this call is f32 */
	OP_OUT_F32 = 2, /* linear_fwd: y alone is f32 (logits) */
	OP_ADD = 4,     /* norm_bwd: dx += (residual stream) */
	OP_RELU = 8,    /* conv_fwd: y = max(0, .) */
	OP_FILTER = 16, /* cast, norm_bwd: every NaN and infinity becomes 0 before it is stored or added (D4) */
	OP_DW_T = 32,   /* linear_bwd: dw is T, dw = round(dw + dy^T x), to nearest even */
};

/* Which keys a query sees (recipe C12, C13).  States 0..n_text-1 are text, then
 * grid_h * grid_w image states in raster order; S = n_text + grid_w * grid_h.  Text sees earlier
 * text and itself; image sees all text and, with o = query - key >= 0, W = grid_w:
 *   ROW    o <= W
 *   COLUMN o % W == 0
 *   CONV   k odd, h = (k-1)/2: o < (h+1) * W and (o % W <= h or o % W >= W - h);
 *          with conv_centred also not the taps right of the query's row start: o <= h * W + h (61 taps
 *          for k = 11) */
enum attn_kind { ATTN_FULL, ATTN_CAUSAL, ATTN_ROW, ATTN_COLUMN, ATTN_CONV };
struct attn_mask {
	enum attn_kind kind; /* FULL: n_text is S and the grid is 0 x 0 */
	int n_text, grid_w, grid_h;
	int conv_k;       /* odd */
	int conv_centred; /* 0: the paper's 66 taps for k = 11, 1: 61 */
};
static inline int attn_length(const struct attn_mask *m) { return m->n_text + m->grid_w * m->grid_h; }
/* The definition; every backend is tested against it.  q and k are states, untransposed. */
static inline int attn_allowed(const struct attn_mask *m, int q, int k)
{
	if (m->kind == ATTN_FULL)
		return 1;
	if (k > q)
		return 0;
	if (k < m->n_text || m->kind == ATTN_CAUSAL)
		return 1;
	int w = m->grid_w, o = q - k, h = (m->conv_k - 1) / 2;
	switch (m->kind) {
	case ATTN_ROW: return o <= w;
	case ATTN_COLUMN: return o % w == 0;
	case ATTN_CONV: return o < (h + 1) * w && (o % w <= h || o % w >= w - h) && (!m->conv_centred || o <= h * w + h);
	default: return 1;
	}
}

/* Keys and values kept while decoding.  Text states are stored once for all samples of a caption, image states in a
 * ring of `window` per sequence: image state p lies at p % window. */
struct attn_cache {
	void *text;  /* T [contexts, n_text, 2, H, D] */
	void *image; /* T [slots, window, 2, H, D] */
	int window;  /* attn_window() or more */
};
/* How many image states, its own included, a later query can still reach; never more than the grid has. */
static inline int attn_window(const struct attn_mask *m)
{
	int all = m->grid_w * m->grid_h, n = all;
	if (m->kind == ATTN_ROW)
		n = m->grid_w + 1;
	else if (m->kind == ATTN_CONV)
		n = (m->conv_k + 1) / 2 * m->grid_w;
	return n < all ? n : all;
}

struct adamw {
	float lr, beta1, beta2, eps, decay; /* decay: w -= lr * decay * w, decoupled */
	float v_max;   /* running variance is clipped to this before use and storing; 0: no clip (C24) */
	float g_scale; /* gradients are multiplied by this first (clipping, unscaling) */
	int64_t step;  /* 1 for the first update: bias corrections 1 - beta^step */
	/* Random bits of element i, for a w that is rounded: philox(seed, (first + i) lo, hi, step, RNG_ROUND)[0]. */
	uint64_t seed, first;
};

/* What AdamW works on, (n) each.  All arithmetic is f32; what is stored otherwise is converted. */
struct adamw_tensor {
	void *w;       /* f32: the master copy.  T: there is none, w is rounded to T at random, up with a probability of how
	                * far it is on the way up, so that the mean of many small steps is kept (D12) */
	void *wt;      /* with an f32 w: its T copy, rewritten unless it is w itself or NULL */
	void *m, *v;   /* the moments: f32, or 1-6-9 and 0-6-10 */
	const void *g; /* f32 or T */
	enum dtype w_type, m_type, v_type, g_type;
};

/* How a token is drawn from a row of logits: softmax(logits / temperature), the top_k likeliest of
 * it (ties: lower index first), of these the fewest likeliest whose share reaches top_p (at least
 * one), and from what is left the first token, in index order, whose running share exceeds (u + 1/2) / 2^32.
 * A row with NaN or +infinity is an error. */
struct draw {
	float temperature; /* 0: greedy (the largest logit, lowest index on ties) */
	int top_k;         /* 0: all */
	float top_p;       /* 1: all */
	uint64_t seed;     /* u = philox(seed, key lo, key hi, position, RNG_SAMPLE)[0] */
};

/* What the product takes that ends the resblock before a norm, of the residual stream's gradient dx that norm_bwd has
 * brought up to date: dy = scale * dx, filtered, and the sums over its rows for that product's bias. */
struct norm_next {
	void *dy;    /* T [rows,C], NULL: not wanted; may be norm_bwd's dy */
	float *db;   /* [C], +=, of dy as rounded to T; NULL: not wanted */
	float scale; /* FILTER acts on that f32 product, as in cast */
};

struct dev; /* an opened device with its scratch memory and sticky error */

struct ops {
	uint32_t abi, size; /* OPS_ABI, sizeof(struct ops) */
	const char *name;   /* "cpu", "cuda" */

	/* ---- device and memory ---- */

	int (*count)(void);                      /* usable devices; 0: none */
	enum dtype (*preferred)(int index);      /* what `-p auto` means there */
	/* Open device `index` with activation type t; threads 0 = all (CPU).  NULL with err filled. */
	struct dev *(*open)(int index, enum dtype t, int threads, char *err, size_t n);
	void (*close)(struct dev *d);
	enum dtype (*type)(const struct dev *d);
	/* One line: model, cores or memory, instruction sets, libraries. */
	void (*describe)(const struct dev *d, char *out, size_t n);
	uint64_t (*memory)(const struct dev *d); /* bytes free for alloc */
	void *(*alloc)(struct dev *d, size_t bytes); /* 64-byte aligned, zeroed; NULL on failure */
	void (*release)(struct dev *d, void *p);
	void (*put)(struct dev *d, void *dst, const void *host, size_t bytes);
	void (*get)(struct dev *d, void *host, const void *src, size_t bytes); /* waits */
	/* `rows` runs of `bytes`, each pair of runs `dst_stride` and `src_stride` bytes apart. */
	void (*copy2d)(struct dev *d, void *dst, size_t dst_stride, const void *src, size_t src_stride,
	               size_t bytes, size_t rows);
	void (*zero)(struct dev *d, void *p, size_t bytes);
	int (*sync)(struct dev *d, char *err, size_t n); /* 0, or -1 with "op: reason"; clears the error */
	/* Recorded work, for devices where queueing costs more than computing: what is queued between record_begin and
	 * record_end runs once and is kept under `id` (in place of what was there).  replay queues it again, with the
	 * same pointers and sizes, so that inputs change only through device memory, and returns 1: the caller
	 * skips its calls.  0: nothing is kept under id: the CPU keeps nothing, CUDA what it meets for the second time. */
	int (*replay)(struct dev *d, int id);
	void (*record_begin)(struct dev *d, int id);
	void (*record_end)(struct dev *d, int id);

	/* ---- elementwise; n elements ---- */

	/* y = scale * x.  FILTER acts on that f32 product, so that what overflows in T alone stays visible. */
	void (*cast)(struct dev *d, void *y /*T*/, const float *x, size_t n, float scale, int flags);
	void (*uncast)(struct dev *d, float *y, const void *x /*T*/, size_t n, float scale); /* y = scale * x */
	/* y = x + gain r; y may be x. */
	void (*add)(struct dev *d, float *y, const float *x, const void *r /*T*/, float gain, size_t n);
	void (*relu_fwd)(struct dev *d, void *y /*T*/, const float *x, size_t n, int flags); /* y = max(0, x) */
	/* All T: dx = y > 0 ? dy : 0; in place allowed.  And dx += x > 0 ? dy : 0. */
	void (*relu_bwd)(struct dev *d, void *dx, const void *dy, const void *y, size_t n);
	void (*relu_bwd_add)(struct dev *d, float *dx, const void *dy /*T*/, const float *x, size_t n, int flags);
	/* y = u * sigmoid(1.702 u) (C5, H5), all T; exact 1: erf GELU instead (some published CLIPs). */
	void (*gelu_fwd)(struct dev *d, void *y, const void *u, size_t n, int exact);
	/* du[rows,C] = dy gelu'(u); db[C] += its column sums, as rounded to T: the gradient of the bias that u has in it. */
	void (*gelu_bwd)(struct dev *d, void *du, float *db, const void *dy, const void *u, size_t rows, int C, int exact);
	/* Bytes to floats: x = rgb * scale[c] + shift[c], c the channel, 3 channels. */
	void (*pixels)(struct dev *d, float *x, const uint8_t *rgb, size_t n_pixels, const float scale[3], const float shift[3]);

	/* ---- matrix products ---- */

	/* y[rows,out] = x[rows,in] w[out,in]^T + b[out]; b may be NULL, and may be rounded to T where y is T.  Flags F32,
	 * OUT_F32. */
	void (*linear_fwd)(struct dev *d, void *y /*T*/, const void *x /*T*/, const void *w /*T*/, const float *b,
	                   size_t rows, int in, int out, int flags);
	/* y[rows,out] = h + x w^T + b, the residual stream after a resblock; y may be h. */
	void (*linear_add_fwd)(struct dev *d, float *y, const float *h, const void *x /*T*/, const void *w /*T*/,
	                       const float *b, size_t rows, int in, int out);
	/* dx[rows,in] = dy w (T, written); dw[out,in] += dy^T x (f32, or T with DW_T); db[out] += column sums of dy.
	 * Flags F32, DW_T. */
	void (*linear_bwd)(struct dev *d, void *dx, void *dw, float *db, const void *dy, const void *x, const void *w,
	                   size_t rows, int in, int out, int flags);
	/* u = x w^T + b, y = gelu(u): the MLP's first half, fused where the device can. */
	void (*linear_gelu_fwd)(struct dev *d, void *y /*T*/, void *u /*T*/, const void *x, const void *w, const float *b,
	                        size_t rows, int in, int out, int exact);

	/* Convolution, kernel k odd, stride 1, zero padding (k-1)/2: y[N,H,W,out] from x[N,H,W,in],
	 * w[out,in,k,k] (OIHW, as in state dicts), b[out].  Flags F32, RELU. */
	void (*conv_fwd)(struct dev *d, void *y /*T*/, const void *x, const void *w, const float *b,
	                 int N, int H, int W, int in, int out, int k, int flags);
	/* dy is the gradient of the sum before RELU (apply relu_bwd first).  Flag F32. */
	void (*conv_bwd)(struct dev *d, void *dx, float *dw, float *db, const void *dy, const void *x, const void *w,
	                 int N, int H, int W, int in, int out, int k, int flags);

	/* ---- pictures ---- */

	/* 2x2 max, stride 2: y[N,H/2,W/2,C] from x[N,H,W,C]; which[...] = 0..3, the place of the first largest. */
	void (*maxpool_fwd)(struct dev *d, float *y, uint8_t *which, const float *x, int N, int H, int W, int C);
	void (*maxpool_bwd)(struct dev *d, float *dx, const float *dy, const uint8_t *which, int N, int H, int W, int C);
	/* Nearest: y[N,2H,2W,C] from x[N,H,W,C]; the adjoint sums. */
	void (*upsample_fwd)(struct dev *d, float *y, const float *x, int N, int H, int W, int C);
	void (*upsample_bwd)(struct dev *d, float *dx, const float *dy, int N, int H, int W, int C);
	/* Blocks of s x s pixels to channels: y[N,H/s,W/s,C*s*s] from x[N,H,W,C], channel index
	 * (c*s + dy)*s + dx, so that a stride-s s x s convolution is this and a linear on OIHW weights. */
	void (*space_to_depth)(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s);
	/* Its inverse (and adjoint): y[N,H,W,C] from x[N,H/s,W/s,C*s*s]; H, W, C describe y. */
	void (*depth_to_space)(struct dev *d, float *y, const float *x, int N, int H, int W, int C, int s);

	/* ---- sequences ---- */

	/* h[rows,C] = table[idx[r]] (zero when idx < 0); with add != 0, h +=. */
	void (*embed_fwd)(struct dev *d, float *h, const float *table, const int32_t *idx, size_t rows, int C, int add);
	void (*embed_bwd)(struct dev *d, float *dtable, const float *dh, const int32_t *idx, size_t rows, int C);
	/* Layer norm, eps 1e-5: y[rows,C] (T, or f32 with F32), mean[rows], rstd[rows] from x[rows,C]. */
	void (*norm_fwd)(struct dev *d, void *y /*T*/, float *mean, float *rstd, const float *x, const float *w, const float *b,
	                 size_t rows, int C, int flags);
	/* dx written, or added with ADD (the residual stream's gradient); dy is T, or f32 with F32.  Everything that it gives is
	 * multiplied by `scale`, and with FILTER what goes into dx is filtered after that.  next: see struct norm_next; NULL
	 * where it, or dx, is not wanted. */
	void (*norm_bwd)(struct dev *d, float *dx, float *dw, float *db, const void *dy, const float *x, const float *w,
	                 const float *mean, const float *rstd, size_t rows, int C, float scale, int flags,
	                 const struct norm_next *next);
	/* y[B,S,H,D] = softmax(q k^T / sqrt(D)) v over the keys of the mask; qkv[B,S,3,H,D];
	 * lse[B,H,S] = log of the sum of exp(scores), kept for the backward. */
	void (*attn_fwd)(struct dev *d, void *y /*T*/, float *lse, const void *qkv /*T*/, int B, int H, int D,
	                 const struct attn_mask *m);
	void (*attn_bwd)(struct dev *d, void *dqkv /*T*/, const void *dy, const void *qkv, const void *y, const float *lse,
	                 int B, int H, int D, const struct attn_mask *m);
	/* One image state for each of B sequences, each at its own place: qkv[B,3,H,D] of sequence b is image state pos[b]
	 * (0 .. grid_w * grid_h - 1) of caption context[b], its ring is slot[b].  Its key and value are stored first, then
	 * y[B,H,D] attends to all text states and to the image states that the mask allows.  context, slot and
	 * pos [B] are device memory, no slot comes twice.  pos[b] < 0: row b is idle, y[b] is 0, nothing is stored. */
	void (*attn_step)(struct dev *d, void *y /*T*/, const struct attn_cache *c, const void *qkv /*T*/,
	                  const int32_t *context, const int32_t *slot, const int32_t *pos, int B, int H, int D,
	                  const struct attn_mask *m);

	/* ---- losses and draws ---- */

	/* nll[rows] = logsumexp(logits) - logits[target], and dlogits = scale * (softmax - onehot) (T, or f32
	 * with F32; may be NULL); a target < 0 gives 0 for both.  logits[rows,V] f32. */
	void (*xent)(struct dev *d, float *nll, void *dlogits, const float *logits, const int32_t *target, size_t rows, int V,
	             float scale, int flags);
	/* Symmetric contrastive loss (H1) on sim[B,B] = image . text^T (cosines), logits = exp(s) sim:
	 * loss[0] = mean over rows and columns of cross-entropy with the diagonal as target.  Pairs i != j with
	 * group[i] == group[j] (equal captions) are left out of both softmaxes.  dsim[B,B], ds[1] = scale * the loss's
	 * gradient, written. */
	void (*clip_xent)(struct dev *d, float *loss, float *dsim, float *ds, const float *sim, const float *s /*[1]*/,
	                  const int32_t *group, int B, float scale);
	/* y = x / |x| per row, rnorm[rows] = 1/|x|; dx written. */
	void (*l2_fwd)(struct dev *d, float *y, float *rnorm, const float *x, size_t rows, int C);
	void (*l2_bwd)(struct dev *d, float *dx, const float *dy, const float *y, const float *rnorm, size_t rows, int C);
	/* Gumbel-softmax (B15) and KL to uniform (B16) of logits[rows,V]:
	 * z = softmax((logits + g) / tau), g from philox(seed, element index, index hi, step, RNG_GUMBEL);
	 * kl[rows] = sum_k q_k (ln q_k + ln V), q = softmax(logits).  tau = 0: z is the one-hot
	 * argmax of the logits, without noise.
	 * first_row numbers row 0 of this call for the noise (rows of one step may come in parts). */
	void (*gumbel_fwd)(struct dev *d, float *z, float *kl, const float *logits, size_t rows, int V, float tau,
	                   uint64_t seed, uint32_t step, uint64_t first_row);
	/* dlogits = z (dz - sum dz z) / tau + kl_scale * q_k (ln q_k - sum q ln q); the first term is 0 for tau = 0.
	 * dlogits may be dz. */
	void (*gumbel_bwd)(struct dev *d, float *dlogits, const float *dz, const float *z, const float *logits, size_t rows,
	                   int V, float tau, float kl_scale);
	/* How much each code is used: sum[V] += sum over rows of q = softmax(logits[rows,V]).  Backward from c[V], the
	 * gradient of the sums, which is added: dlogits[rows,V] += q_k (c_k - sum q c). */
	void (*usage_fwd)(struct dev *d, float *sum, const float *logits, size_t rows, int V);
	void (*usage_bwd)(struct dev *d, float *dlogits, const float *c, const float *logits, size_t rows, int V);
	void (*argmax)(struct dev *d, int32_t *idx, const float *x, size_t rows, int V); /* lowest index on ties */
	void (*onehot)(struct dev *d, float *z, const int32_t *idx, size_t rows, int V);
	/* Logit-Laplace (B10, B11): out[n_pixels,6] holds mu RGB, ln b RGB; x[n_pixels,3] in (0,1).
	 * nll[n_pixels] = sum over RGB of -ln f; dout = scale * d nll/d out, NULL when not wanted.  ln b below `floor` counts as
	 * floor, and its gradient is 0 unless it points up; -INFINITY is the paper's density. */
	void (*logit_laplace)(struct dev *d, float *nll, float *dout, const float *out, const float *x, size_t n_pixels,
	                      float floor, float scale);
	/* rgb[n_pixels,3] = round(255 clamp((sigmoid(mu) - shift) / scale)) from out[n_pixels,6] (B13). */
	void (*reconstruct)(struct dev *d, uint8_t *rgb, const float *out, size_t n_pixels, float scale, float shift);
	/* token[r] drawn from logits[r,:]; key[r] identifies the sample, position[r] the draw.  See struct draw.  A position
	 * < 0 gives token -1 and its row is not looked at. */
	void (*draw)(struct dev *d, int32_t *token, const float *logits, const uint64_t *key, const int32_t *position,
	             size_t rows, int V, const struct draw *how);

	/* ---- optimizer ---- */

	/* One AdamW update of n weights (C24, D11: eps is added to the root of the uncorrected v): decayed w, moments
	 * m and v, as struct adamw_tensor stores them. */
	void (*adamw)(struct dev *d, const struct adamw_tensor *x, size_t n, const struct adamw *a);
	/* *sum += sum of x^2; x is f32 or T */
	void (*sumsq)(struct dev *d, double *sum /*device*/, const void *x, enum dtype type, size_t n);
	/* avg = decay*avg + (1-decay)*w; w is f32 or T */
	void (*average)(struct dev *d, float *avg, const void *w, enum dtype type, size_t n, float decay);
	void (*sum)(struct dev *d, double *sum /*device*/, const float *x, size_t n);   /* *sum += sum of x */

	/* ---- ranks: devices of several processes that train one model (libcommon/comm.h) ---- */

	/* What all ranks join by, RANKS_ID bytes: made by one, told to the others; with NULL only whether that could be.  0, or
	 * -1 with err: the device has no way of its own to the others. */
	int (*ranks_id)(void *id, char *err, size_t n);
	/* By every rank at once: waits for the others.  0, or -1 with err, as when two have one device. */
	int (*ranks_join)(struct dev *d, const void *id, int rank, int size, char *err, size_t n);
	/* x[n] = its sum over the ranks, which have joined and make the same calls; the same bits on all. */
	void (*ranks_sum)(struct dev *d, float *x, size_t n);
};

/* The backend for "auto", "cpu", "cuda" or "cuda:N": its table, and N into *index.  NULL with
 * err: unknown name, or CUDA asked for and not usable.  "auto" takes CUDA when there is one. */
const struct ops *ops_find(const char *name, int *index, char *err, size_t n);
const struct ops *cpu_ops(void);
/* Threads that this process may use, by its processors, its cgroup's quota and OMP_NUM_THREADS. */
int cpu_usable_threads(void);

#endif
