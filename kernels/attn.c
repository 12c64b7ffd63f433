/* attn.c - multi-head attention with the paper's masks (recipe C11-C18), forward and backward; one step of decoding is
 * in attn-step.c.  A task is one head of one sequence: its slices of q, k and v are converted to f32 once, in an order
 * in which the keys of every query are text followed by one short run (column layers swap the axes of the grid for this,
 * C16).  Tiles of TILE queries then meet only the runs of keys that some query of the tile sees; scores of a whole tile
 * are kept, so the softmax is the plain two-pass one.  Nothing depends on the thread count or on the other sequences. */
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
