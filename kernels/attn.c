/* attn.c - multi-head attention with the paper's masks (recipe C11-C18), forward, backward and
 * one step of decoding.  A task is one head of one sequence: its slices of q, k and v are
 * converted to f32 once, in an order in which the keys of every query are text followed by one short run
 * (column layers swap the axes of the grid for this, C16).  Tiles of TILE queries then meet only the
 * runs of keys that some query of the tile sees; scores of a whole tile are kept, so the softmax
 * is the plain two-pass one.  Nothing depends on the thread count or on the other sequences. */
#include "attn-tiles.h"
#include "cpu.h"

#include <math.h>

enum { TILE = 32 };

/* ---- the product of small tiles ---- */

static void multiply(float *c, size_t ldc, const float *a, size_t across, size_t along, const float *b, size_t ldb,
                     size_t panel, size_t m, size_t n, size_t k, int add)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f"))
		multiply_avx512(c, ldc, a, across, along, b, ldb, panel, m, n, k, add);
	else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		multiply_avx2(c, ldc, a, across, along, b, ldb, panel, m, n, k, add);
	else
#endif
		multiply_plain(c, ldc, a, across, along, b, ldb, panel, m, n, k, add);
}

/* ---- which keys a query sees, in task order ---- */

/* Positions of a task: text states, then image states, by columns for ATTN_COLUMN. */
struct layout {
	const struct attn_mask *mask;
	int S, text; /* text: positions whose keys are a prefix; all of them for FULL and CAUSAL */
	int D, Dp, Sp; /* Dp, Sp: padded with zeros */
	size_t ld;     /* row length of the score tiles */
	int reach;     /* ATTN_CONV: offsets below this are in `bias` */
	float *bias;   /* [reach + 2 VL]: bias[reach + key - query] is 0 where allowed, else -infinity */
	enum dtype type;
	int B, H;
};

static int state_at(const struct layout *l, int i)
{
	const struct attn_mask *m = l->mask;
	if (m->kind != ATTN_COLUMN || i < l->text)
		return i;
	int p = i - l->text;
	return l->text + p % m->grid_h * m->grid_w + p / m->grid_h;
}

/* Keys [*from, *to) of query i after those of the text. */
static void image_keys(const struct layout *l, int i, int *from, int *to)
{
	const struct attn_mask *m = l->mask;
	int p = i - l->text, first = 0;
	if (m->kind == ATTN_ROW)
		first = p - m->grid_w;
	else if (m->kind == ATTN_COLUMN)
		first = p / m->grid_h * m->grid_h;
	else
		first = p - l->reach + 1;
	*from = l->text + (first > 0 ? first : 0);
	*to = i + 1;
}

/* A run of keys and its place in the score tile; both ends are multiples of PANEL. */
struct run {
	int from, to, at;
	int image; /* keys before l->text or, if image, from there on */
};

/* The runs that queries [i0, i1) meet: all text or all image. */
static int tile_runs(struct run run[2], const struct layout *l, int i0, int i1)
{
	int full = l->mask->kind == ATTN_FULL;
	int end = full ? l->S : i0 < l->text ? i1 : l->text, n = 0, from, to;
	if (end > 0)
		run[n++] = (struct run){0, cpu_round_up(end, PANEL), 0, 0};
	if (i0 < l->text)
		return n;
	image_keys(l, i0, &from, &to);
	int at = n ? run[0].to : 0;
	from = from / PANEL * PANEL;
	run[n++] = (struct run){from, cpu_round_up(i1, PANEL), at, 1};
	return n;
}

/* Keys [*from, *to) of query i within the run. */
static void row_keys(const struct layout *l, const struct run *run, int i, int *from, int *to)
{
	*from = 0;
	if (run->image)
		image_keys(l, i, from, to);
	else if (l->mask->kind == ATTN_FULL)
		*to = l->S;
	else
		*to = i < l->text ? i + 1 : l->text;
}

/* First position after the tile that starts at i0: tiles do not mix text and image. */
static int tile_end(const struct layout *l, int i0)
{
	int limit = i0 < l->text ? l->text : l->S;
	return i0 + TILE < limit ? i0 + TILE : limit;
}

static struct layout layout_make(const struct dev *d, int B, int H, int D, const struct attn_mask *m)
{
	int S = attn_length(m), dense = m->kind == ATTN_FULL || m->kind == ATTN_CAUSAL;
	struct layout l = {.mask = m, .S = S, .text = dense ? S : m->n_text, .D = D, .type = d->type, .B = B, .H = H};
	l.Dp = cpu_round_up(D, PANEL);
	l.Sp = cpu_round_up(S, PANEL) + TILE;
	l.ld = l.Sp + 2 * PANEL;
	l.reach = m->kind == ATTN_CONV ? (m->conv_k + 1) / 2 * m->grid_w : 0;
	return l;
}

/* The convolution mask by offset.  0, or -1 with the sticky error set. */
static int layout_bias(struct dev *d, const char *op, struct layout *l)
{
	if (!l->reach)
		return 0;
	struct attn_mask one = *l->mask;
	one.n_text = 0;
	float *table = cpu_scratch(d, op, (l->reach + 2 * VL) * sizeof(float));
	if (!table)
		return -1;
	for (int i = 0; i < l->reach + 2 * VL; i++) {
		int o = l->reach + VL - i;
		table[i] = o >= 0 && attn_allowed(&one, o, 0) ? 0 : -INFINITY;
	}
	l->bias = table + VL; /* a row's first vector may begin before its first key */
	return 0;
}

/* ---- slices of one head ---- */

/* rows[Sp, Dp] = gain * the slice at x, whose states are `stride` elements apart; padding is zeroed. */
CLONES static void load_slice(float *rows, const struct layout *l, const void *x, size_t stride, float gain)
{
	enum { LINE = 64, AHEAD = 12 };
	size_t row = l->D * dtype_bytes(l->type);
	for (int i = 0; i < l->S; i++) {
		float *y = rows + (size_t)i * l->Dp;
		const void *from = at_const(x, l->type, state_at(l, i) * stride);
		for (size_t c = 0; c < row; c += LINE) /* states lie pages apart: no hardware prefetch */
			__builtin_prefetch((const char *)at_const(x, l->type, state_at(l, i + AHEAD) * stride) + c);
		if (l->type != DT_F32) {
			row_to_f32(y, from, l->type, l->D);
			from = y;
		}
		for (int c = 0; c < l->D; c++)
			y[c] = gain * ((const float *)from)[c];
		for (int c = l->D; c < l->Dp; c++)
			y[c] = 0;
	}
	memset(rows + (size_t)l->S * l->Dp, 0, (size_t)(l->Sp - l->S) * l->Dp * sizeof(float));
}

/* panels[Sp / PANEL][Dp][PANEL]: the transpose, for products over D. */
CLONES static void transpose_slice(float *panels, const struct layout *l, const float *rows)
{
	for (int i = 0; i < l->Sp; i += PANEL)
		for (int c = 0; c < l->Dp; c++, panels += PANEL)
			for (int k = 0; k < PANEL; k++)
				panels[k] = rows[(size_t)(i + k) * l->Dp + c];
}

/* Positions i0 .. i0+n-1 of a slice like x in load_slice = gain * y, which is overwritten. */
CLONES static void store_slice(void *x, const struct layout *l, size_t stride, float *y, int i0, int n, float gain)
{
	for (int i = 0; i < n; i++, y += l->Dp) {
		void *to = at(x, l->type, state_at(l, i0 + i) * stride);
		float *out = l->type == DT_F32 ? to : y;
		for (int c = 0; c < l->D; c++)
			out[c] = gain * y[c];
		if (l->type != DT_F32)
			row_from_f32(to, l->type, y, l->D);
	}
}

/* scores[n, runs] = rows i0.. of a times the transpose of what the panels hold. */
static void tile_products(float *scores, const struct layout *l, const struct run *run, int runs, const float *a,
                          const float *panels, int n)
{
	for (int r = 0; r < runs; r++)
		multiply(scores + run[r].at, l->ld, a, l->Dp, 1, panels + (size_t)run[r].from * l->Dp, PANEL,
		         (size_t)l->Dp * PANEL, n, run[r].to - run[r].from, l->Dp, 0);
}

/* Keys that query i does not see get -infinity.  Returns the greatest score. */
static VINLINE float mask_row(float *s, const struct layout *l, const struct run *run, int runs, int i)
{
	const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
	const vf never = v_set(-INFINITY);
	vf top = never;
	for (int r = 0; r < runs; r++) {
		int from, to;
		row_keys(l, run + r, i, &from, &to);
		for (int j = run[r].from; j < run[r].to; j += VL) {
			float *p = s + run[r].at + j - run[r].from;
			vi key = lane + j;
			vf x = v_select((key >= from) & (key < to), v_load(p), never);
			/* Vectors all out of the row's range may lie outside of the bias. */
			if (run[r].image && l->bias && j + VL > from && j < to)
				x += v_load(l->bias + l->reach + j - i);
			v_store(p, x);
			top = v_max(x, top);
		}
	}
	return v_greatest(top);
}

/* ---- forward ---- */

/* Scores of query i become exp(score - the greatest), whose sum is returned; *lse as in ops.h. */
CLONES static float softmax_row(float *s, float *lse, const struct layout *l, const struct run *run, int runs, int i)
{
	float top = mask_row(s, l, run, runs, i);
	int n = run[runs - 1].at + run[runs - 1].to - run[runs - 1].from;
	vf sum = v_set(0);
	for (int j = 0; j < n; j += VL) {
		vf e = v_exp(v_load(s + j) - top);
		v_store(s + j, e);
		sum += e;
	}
	float total = v_sum(sum);
	*lse = top + logf(total);
	return total;
}

CLONES static void scale_row(float *y, int n, float gain)
{
	for (int i = 0; i < n; i++)
		y[i] *= gain;
}

struct fwd_scratch {
	float *q, *k, *kt, *v, *score, *y;
};

static size_t fwd_floats(const struct layout *l)
{
	return 4 * (size_t)l->Sp * l->Dp + TILE * (l->ld + l->Dp);
}

static struct fwd_scratch fwd_split(const struct layout *l, float *p)
{
	size_t slice = (size_t)l->Sp * l->Dp;
	return (struct fwd_scratch){p, p + slice, p + 2 * slice, p + 3 * slice, p + 4 * slice, p + 4 * slice + TILE * l->ld};
}

/* One tile: y[n, Dp] and lse of the positions i0 ... */
static void fwd_tile(const struct fwd_scratch *t, float *lse, const struct layout *l, int i0, int n)
{
	struct run run[2];
	int runs = tile_runs(run, l, i0, i0 + n);
	tile_products(t->score, l, run, runs, t->q + (size_t)i0 * l->Dp, t->kt, n);
	float sum[TILE];
	for (int i = 0; i < n; i++)
		sum[i] = softmax_row(t->score + i * l->ld, lse + state_at(l, i0 + i), l, run, runs, i0 + i);
	for (int r = 0; r < runs; r++)
		multiply(t->y, l->Dp, t->score + run[r].at, l->ld, 1, t->v + (size_t)run[r].from * l->Dp, l->Dp, PANEL,
		         n, l->Dp, run[r].to - run[r].from, r);
	for (int i = 0; i < n; i++)
		scale_row(t->y + (size_t)i * l->Dp, l->D, 1.0f / sum[i]);
}

static void fwd_head(const struct fwd_scratch *t, void *y, float *lse, const void *qkv, const struct layout *l)
{
	size_t part = (size_t)l->H * l->D, stride = 3 * part;
	load_slice(t->q, l, qkv, stride, 1.0f / sqrtf(l->D));
	load_slice(t->k, l, at_const(qkv, l->type, part), stride, 1);
	load_slice(t->v, l, at_const(qkv, l->type, 2 * part), stride, 1);
	transpose_slice(t->kt, l, t->k);
	for (int i = 0, end; i < l->S; i = end) {
		end = tile_end(l, i);
		fwd_tile(t, lse, l, i, end - i);
		store_slice(y, l, part, t->y, i, end - i, 1);
	}
}

void cpu_attn_fwd(struct dev *d, void *y, float *lse, const void *qkv, int B, int H, int D, const struct attn_mask *m)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	struct layout l = layout_make(d, B, H, D, m);
	size_t each = cpu_round_up(fwd_floats(&l), 16), part = (size_t)H * D;
	float *scratch = cpu_scratch(d, "attn_fwd", d->threads * each * sizeof(float));
	int tasks = scratch && !layout_bias(d, "attn_fwd", &l) ? B * H : 0;
#pragma omp parallel for num_threads(d->threads) if (tasks > 1)
	for (int task = 0; task < tasks; task++) {
		size_t b = task / H, h = task % H;
		struct fwd_scratch t = fwd_split(&l, scratch + cpu_thread() * each);
		fwd_head(&t, at(y, l.type, b * l.S * part + h * D), lse + (b * H + h) * l.S,
		         at_const(qkv, l.type, b * l.S * 3 * part + h * D), &l);
	}
	cpu_scratch_end(d, mark);
}

/* ---- backward ---- */

struct bwd_scratch {
	float *q, *k, *v, *dy, *kt, *vt, *dk, *dv; /* slices */
	float *p, *ds, *dq;                        /* tiles */
	float *delta;                              /* [Sp] */
};

static size_t bwd_floats(const struct layout *l)
{
	return 8 * (size_t)l->Sp * l->Dp + TILE * (2 * l->ld + l->Dp) + l->Sp;
}

static struct bwd_scratch bwd_split(const struct layout *l, float *p)
{
	size_t slice = (size_t)l->Sp * l->Dp;
	struct bwd_scratch t = {.q = p, .k = p + slice, .v = p + 2 * slice, .dy = p + 3 * slice, .kt = p + 4 * slice,
		.vt = p + 5 * slice, .dk = p + 6 * slice, .dv = p + 7 * slice, .p = p + 8 * slice};
	t.ds = t.p + TILE * l->ld;
	t.dq = t.ds + TILE * l->ld;
	t.delta = t.dq + TILE * l->Dp;
	return t;
}

/* p becomes the probabilities, ds (holding dy . v) the gradient of the scores: p (ds - delta). */
CLONES static void softmax_row_bwd(float *p, float *ds, const struct layout *l, const struct run *run, int runs, int i,
                                   float lse, float delta)
{
	mask_row(p, l, run, runs, i);
	int n = run[runs - 1].at + run[runs - 1].to - run[runs - 1].from;
	for (int j = 0; j < n; j += VL) {
		vf e = v_exp(v_load(p + j) - lse);
		v_store(p + j, e);
		v_store(ds + j, e * (v_load(ds + j) - delta));
	}
}

/* dk and dv of the tile's runs gather the tile's part; dq of the tile is whole. */
static void bwd_tile(const struct bwd_scratch *t, const float *lse, const struct layout *l, int i0, int n)
{
	struct run run[2];
	int runs = tile_runs(run, l, i0, i0 + n);
	const float *q = t->q + (size_t)i0 * l->Dp, *dy = t->dy + (size_t)i0 * l->Dp;
	tile_products(t->p, l, run, runs, q, t->kt, n);
	tile_products(t->ds, l, run, runs, dy, t->vt, n);
	for (int i = 0; i < n; i++)
		softmax_row_bwd(t->p + i * l->ld, t->ds + i * l->ld, l, run, runs, i0 + i, lse[state_at(l, i0 + i)],
		                t->delta[i0 + i]);
	for (int r = 0; r < runs; r++) {
		size_t from = (size_t)run[r].from * l->Dp, keys = run[r].to - run[r].from;
		multiply(t->dv + from, l->Dp, t->p + run[r].at, 1, l->ld, dy, l->Dp, PANEL, keys, l->Dp, n, 1);
		multiply(t->dk + from, l->Dp, t->ds + run[r].at, 1, l->ld, q, l->Dp, PANEL, keys, l->Dp, n, 1);
		multiply(t->dq, l->Dp, t->ds + run[r].at, l->ld, 1, t->k + from, l->Dp, PANEL, n, l->Dp, keys, r);
	}
}

/* delta[i] = dy . y, which is also the sum over the keys of p times (dy . v). */
CLONES static void delta_rows(float *delta, const struct layout *l, const float *dy, const float *y)
{
	for (int i = 0; i < l->Sp; i++) {
		vf s = v_set(0);
		for (int c = 0; c < l->Dp; c += VL)
			s += v_load(dy + (size_t)i * l->Dp + c) * v_load(y + (size_t)i * l->Dp + c);
		delta[i] = v_sum(s);
	}
}

static void bwd_head(const struct bwd_scratch *t, void *dqkv, const void *dy, const void *qkv, const void *y,
                     const float *lse, const struct layout *l)
{
	size_t part = (size_t)l->H * l->D, stride = 3 * part, slice = (size_t)l->Sp * l->Dp * sizeof(float);
	float scale = 1.0f / sqrtf(l->D);
	load_slice(t->dy, l, dy, part, 1);
	load_slice(t->q, l, y, part, 1);
	delta_rows(t->delta, l, t->dy, t->q);
	load_slice(t->q, l, qkv, stride, scale);
	load_slice(t->k, l, at_const(qkv, l->type, part), stride, 1);
	load_slice(t->v, l, at_const(qkv, l->type, 2 * part), stride, 1);
	transpose_slice(t->kt, l, t->k);
	transpose_slice(t->vt, l, t->v);
	memset(t->dk, 0, slice);
	memset(t->dv, 0, slice);
	for (int i = 0, end; i < l->S; i = end) {
		end = tile_end(l, i);
		bwd_tile(t, lse, l, i, end - i);
		store_slice(dqkv, l, stride, t->dq, i, end - i, scale);
	}
	store_slice(at(dqkv, l->type, part), l, stride, t->dk, 0, l->S, 1);
	store_slice(at(dqkv, l->type, 2 * part), l, stride, t->dv, 0, l->S, 1);
}

void cpu_attn_bwd(struct dev *d, void *dqkv, const void *dy, const void *qkv, const void *y, const float *lse, int B,
                  int H, int D, const struct attn_mask *m)
{
	if (!dqkv)
		return;
	struct scratch_mark mark = cpu_scratch_begin(d);
	struct layout l = layout_make(d, B, H, D, m);
	size_t each = cpu_round_up(bwd_floats(&l), 16), part = (size_t)H * D;
	float *scratch = cpu_scratch(d, "attn_bwd", d->threads * each * sizeof(float));
	int tasks = scratch && !layout_bias(d, "attn_bwd", &l) ? B * H : 0;
#pragma omp parallel for num_threads(d->threads) if (tasks > 1)
	for (int task = 0; task < tasks; task++) {
		size_t b = task / H, h = task % H, in = b * l.S * 3 * part + h * D, out = b * l.S * part + h * D;
		struct bwd_scratch t = bwd_split(&l, scratch + cpu_thread() * each);
		bwd_head(&t, at(dqkv, l.type, in), at_const(dy, l.type, out), at_const(qkv, l.type, in),
		         at_const(y, l.type, out), lse + (b * H + h) * l.S, &l);
	}
	cpu_scratch_end(d, mark);
}

/* ---- one step of decoding ---- */

/* A task is one head of up to GROUP samples of one caption that follow each other in the batch: each text key and
 * value is loaded once for all of them.  Every score, sum and output is the same chain of additions in any group. */
enum { GROUP = 4, KEYS = 4 };

struct step {
	enum dtype type;
	int D, Dp, text, window;
	int taps;           /* offsets of the image keys that a query sees, where its sequence is that long */
	const int32_t *tap; /* [taps], ascending */
	size_t stride;      /* elements between states of a cache */
	size_t ld;          /* row length of the scores */
};

/* One thread's scratch. */
struct step_scratch {
	float *q, *y;    /* [GROUP, Dp] */
	float *score;    /* [GROUP, ld] text, then image */
	int32_t *place;  /* [GROUP, taps] ring places of the image keys */
};

static size_t step_floats(const struct step *s)
{
	return GROUP * (2 * (size_t)s->Dp + s->ld + s->taps);
}

static struct step_scratch step_split(const struct step *s, float *p)
{
	float *y = p + GROUP * s->Dp, *score = y + GROUP * s->Dp;
	return (struct step_scratch){.q = p, .y = y, .score = score, .place = (int32_t *)(score + GROUP * s->ld)};
}

/* VL values from element c on in f32; what is not before D is 0 and not read.  t is a constant where this is inlined. */
static VINLINE vf step_load(const void *x, enum dtype t, size_t c, size_t D)
{
	typedef uint16_t vh __attribute__((vector_size(16)));
	float v[VL] = {0};
	if (t == DT_F32)
		return v_row(x, c, D, 0);
	if (t == DT_BF16 && c + VL <= D) {
		vh h;
		memcpy(&h, (const uint16_t *)x + c, sizeof h);
		return (vf)(__builtin_convertvector(h, vi) << 16);
	}
	for (size_t i = 0; i < VL && c + i < D; i++)
		v[i] = load_as_f32(x, t, c + i);
	return v_load(v);
}

typedef float v4 __attribute__((vector_size(16)));

/* v_sum of four vectors. */
static VINLINE void step_sums(float *out, const vf s[KEYS])
{
	v4 h[KEYS];
#pragma GCC unroll 4
	for (int i = 0; i < KEYS; i++)
		h[i] = __builtin_shufflevector(s[i], s[i], 0, 1, 2, 3) + __builtin_shufflevector(s[i], s[i], 4, 5, 6, 7);
	v4 p = __builtin_shufflevector(h[0], h[1], 0, 1, 4, 5) + __builtin_shufflevector(h[0], h[1], 2, 3, 6, 7);
	v4 q = __builtin_shufflevector(h[2], h[3], 0, 1, 4, 5) + __builtin_shufflevector(h[2], h[3], 2, 3, 6, 7);
	v4 sum = __builtin_shufflevector(p, q, 0, 2, 4, 6) + __builtin_shufflevector(p, q, 1, 3, 5, 7);
	memcpy(out, &sum, sizeof sum);
}

/* Where state j of a cache begins; place NULL: in order. */
static VINLINE const void *step_state(const void *x, enum dtype t, const int32_t *place, int j, const struct step *s)
{
	return at_const(x, t, (size_t)(place ? place[j] : j) * s->stride);
}

/* score[rows, n] = q k; the row's end up to the next multiple of KEYS is overwritten. */
static VINLINE void score_rows(int rows, enum dtype t, float *score, const float *q, const void *k, const int32_t *place,
                               int n, const struct step *s)
{
	for (int j = 0; j < n; j += KEYS) {
		const void *x[KEYS];
		vf sum[GROUP][KEYS];
		for (int i = 0; i < KEYS; i++)
			x[i] = step_state(k, t, place, j + i < n ? j + i : n - 1, s);
#pragma GCC unroll 4
		for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
			for (int i = 0; i < KEYS; i++)
				sum[r][i] = v_set(0);
		for (int c = 0; c < s->D; c += VL)
#pragma GCC unroll 4
			for (int i = 0; i < KEYS; i++) {
				vf v = step_load(x[i], t, c, s->D);
#pragma GCC unroll 4
				for (int r = 0; r < rows; r++)
					sum[r][i] += v_load(q + r * s->Dp + c) * v;
			}
#pragma GCC unroll 4
		for (int r = 0; r < rows; r++)
			step_sums(score + r * s->ld + j, sum[r]);
	}
}

/* y[rows, Dp] = or += p[rows, n] v. */
static VINLINE void value_rows(int rows, enum dtype t, float *y, const float *p, const void *v, const int32_t *place, int n,
                               int add, const struct step *s)
{
	for (int c = 0; c < s->D; c += 2 * VL) {
		int two = c + VL < s->D;
		vf sum[GROUP][2];
#pragma GCC unroll 4
		for (int r = 0; r < rows; r++) {
			sum[r][0] = add ? v_load(y + r * s->Dp + c) : v_set(0);
			sum[r][1] = add && two ? v_load(y + r * s->Dp + c + VL) : v_set(0);
		}
		for (int j = 0; j < n; j++) {
			const void *x = step_state(v, t, place, j, s);
			vf v0 = step_load(x, t, c, s->D), v1 = two ? step_load(x, t, c + VL, s->D) : v_set(0);
#pragma GCC unroll 4
			for (int r = 0; r < rows; r++) {
				sum[r][0] += p[r * s->ld + j] * v0;
				sum[r][1] += p[r * s->ld + j] * v1;
			}
		}
#pragma GCC unroll 4
		for (int r = 0; r < rows; r++) {
			v_store(y + r * s->Dp + c, sum[r][0]);
			if (two)
				v_store(y + r * s->Dp + c + VL, sum[r][1]);
		}
	}
}

/* The number of rows, GROUP or 1, and the type become constants here. */
#define STEP_TYPES(rows, function, ...)                                                            \
	(s->type == DT_F32  ? function(rows, DT_F32, __VA_ARGS__) :                                \
	 s->type == DT_BF16 ? function(rows, DT_BF16, __VA_ARGS__) :                               \
			      function(rows, DT_F16, __VA_ARGS__))

CLONES static void step_scores(int rows, float *score, const float *q, const void *k, const int32_t *place, int n,
                               const struct step *s)
{
	if (rows == GROUP)
		STEP_TYPES(GROUP, score_rows, score, q, k, place, n, s);
	else
		STEP_TYPES(1, score_rows, score, q, k, place, n, s);
}

CLONES static void step_values(int rows, float *y, const float *p, const void *v, const int32_t *place, int n, int add,
                               const struct step *s)
{
	if (rows == GROUP)
		STEP_TYPES(GROUP, value_rows, y, p, v, place, n, add, s);
	else
		STEP_TYPES(1, value_rows, y, p, v, place, n, add, s);
}

/* score[n] becomes exp(score - the greatest), to the end of its last vector; returns the sum. */
CLONES static float step_softmax(float *score, size_t n)
{
	float top = -INFINITY;
	vf sum = v_set(0);
	for (size_t j = 0; j < n; j++)
		top = score[j] > top ? score[j] : top;
	for (size_t j = n; j % VL; j++)
		score[j] = -INFINITY;
	for (size_t j = 0; j < n; j += VL) {
		vf e = v_exp(v_load(score + j) - top);
		v_store(score + j, e);
		sum += e;
	}
	return v_sum(sum);
}

/* q[Dp] = gain x, zeros behind D. */
CLONES static void step_query(float *q, const void *x, float gain, const struct step *s)
{
	row_to_f32(q, x, s->type, s->D);
	for (int c = 0; c < s->D; c++)
		q[c] *= gain;
	for (int c = s->D; c < s->Dp; c++)
		q[c] = 0;
}

/* Offsets of the image keys that the mask allows; the number of them. */
static int step_taps(int32_t *tap, const struct attn_mask *m, int window)
{
	struct attn_mask one = *m;
	int n = 0;
	one.n_text = 0;
	for (int o = 0; o < window; o++)
		if (attn_allowed(&one, o, 0))
			tap[n++] = o;
	return n;
}

/* Ring places of the keys of image state pos; the number of them. */
static int step_places(int32_t *place, const struct step *s, int pos)
{
	int n = 0;
	while (n < s->taps && s->tap[n] <= pos) {
		place[n] = (pos - s->tap[n]) % s->window;
		n++;
	}
	return n;
}

struct step_call {
	void *y;
	const struct attn_cache *cache;
	const void *qkv;
	const int32_t *context, *slot, *pos;
};

/* The ring of row b from head h on. */
static void *step_ring(const struct step_call *x, const struct step *s, size_t b, size_t h)
{
	return at(x->cache->image, s->type, (size_t)x->slot[b] * s->window * s->stride + h * s->D);
}

/* Key and value of row b into its ring, its query into scratch. */
static void step_begin(const struct step_call *x, const struct step *s, const struct step_scratch *t, size_t b, size_t h, int r)
{
	size_t part = s->stride / 2, bytes = s->D * dtype_bytes(s->type);
	const void *q = at_const(x->qkv, s->type, b * 3 * part + h * s->D);
	void *own = at(step_ring(x, s, b, h), s->type, (size_t)(x->pos[b] % s->window) * s->stride);
	memcpy(own, at_const(q, s->type, part), bytes);
	memcpy(at(own, s->type, part), at_const(q, s->type, 2 * part), bytes);
	step_query(t->q + r * s->Dp, q, 1.0f / sqrtf(s->D), s);
}

/* Head h of rows b .. b + rows - 1, which are of one caption. */
static void step_task(const struct step_call *x, const struct step *s, const struct step_scratch *t, size_t b, size_t h, int rows)
{
	size_t part = s->stride / 2;
	const void *text = at_const(x->cache->text, s->type, (size_t)x->context[b] * s->text * s->stride + h * s->D);
	float sum[GROUP];
	int keys[GROUP];
	for (int r = 0; r < rows; r++)
		step_begin(x, s, t, b + r, h, r);
	step_scores(rows, t->score, t->q, text, NULL, s->text, s);
	for (int r = 0; r < rows; r++) {
		float *score = t->score + r * s->ld;
		int32_t *place = t->place + r * s->taps;
		keys[r] = step_places(place, s, x->pos[b + r]);
		step_scores(1, score + s->text, t->q + r * s->Dp, step_ring(x, s, b + r, h), place, keys[r], s);
		sum[r] = step_softmax(score, s->text + keys[r]);
	}
	step_values(rows, t->y, t->score, at_const(text, s->type, part), NULL, s->text, 0, s);
	for (int r = 0; r < rows; r++) {
		float *y = t->y + r * s->Dp;
		step_values(1, y, t->score + r * s->ld + s->text, at_const(step_ring(x, s, b + r, h), s->type, part),
		            t->place + r * s->taps, keys[r], 1, s);
		scale_row(y, s->D, 1.0f / sum[r]);
		row_from_f32(at(x->y, s->type, (b + r) * part + h * s->D), s->type, y, s->D);
	}
}

/* Rows from b on that make a task. */
static int step_group(const struct step_call *x, int b, int B)
{
	if (b + GROUP > B)
		return 1;
	for (int r = 0; r < GROUP; r++)
		if (x->pos[b + r] < 0 || x->context[b + r] != x->context[b])
			return 1;
	return GROUP;
}

static void step_all(struct dev *d, const struct step_call *x, const struct step *s, float *scratch, int B, int H)
{
	size_t part = s->stride / 2, each = cpu_round_up(step_floats(s), 16);
	/* Heads outside: tasks of one caption that follow each other find its keys in the cache. */
#pragma omp parallel for num_threads(d->threads) if (part * B * (s->text + s->taps) > 65536)
	for (int h = 0; h < H; h++) {
		struct step_scratch t = step_split(s, scratch + cpu_thread() * each);
		for (int b = 0, n; b < B; b += n) {
			n = step_group(x, b, B);
			if (x->pos[b] < 0)
				memset(at(x->y, s->type, b * part + h * s->D), 0, s->D * dtype_bytes(s->type));
			else
				step_task(x, s, &t, b, h, n);
		}
	}
}

void cpu_attn_step(struct dev *d, void *y, const struct attn_cache *c, const void *qkv, const int32_t *context,
                   const int32_t *slot, const int32_t *pos, int B, int H, int D, const struct attn_mask *m)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	struct step s = {.type = d->type, .D = D, .Dp = cpu_round_up(D, VL), .text = m->n_text, .window = c->window,
	                 .stride = 2 * (size_t)H * D};
	int32_t *tap = cpu_scratch(d, "attn_step", c->window * sizeof(int32_t));
	s.tap = tap;
	s.taps = tap ? step_taps(tap, m, c->window) : 0;
	s.ld = cpu_round_up(s.text + s.taps, VL) + VL;
	float *scratch = cpu_scratch(d, "attn_step", d->threads * cpu_round_up(step_floats(&s), 16) * sizeof(float));
	if (tap && scratch)
		step_all(d, &(struct step_call){y, c, qkv, context, slot, pos}, &s, scratch, B, H);
	cpu_scratch_end(d, mark);
}
