/* attn-step.c - one step of decoding with the masks of attn.c: one query a sample against the cached keys and values of
 * its caption and the ring of its image states (attn_step of ops.h).
 *
 * A task is one head of up to GROUP samples of one caption that follow each other in the batch: each text key and
 * value is loaded once for all of them.  Every score, sum and output is the same chain of additions in any group. */
#include "cpu.h"
#include "vec.h"

#include <math.h>

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

/* out[D] = gain y, which is overwritten. */
CLONES static void step_output(void *out, float *y, float gain, const struct step *s)
{
	for (int c = 0; c < s->D; c++)
		y[c] *= gain;
	row_from_f32(out, s->type, y, s->D);
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
static void step_begin(const struct step_call *x, const struct step *s, const struct step_scratch *t, size_t b, size_t h,
                       int r)
{
	size_t part = s->stride / 2, bytes = s->D * dtype_bytes(s->type);
	const void *q = at_const(x->qkv, s->type, b * 3 * part + h * s->D);
	void *own = at(step_ring(x, s, b, h), s->type, (size_t)(x->pos[b] % s->window) * s->stride);
	memcpy(own, at_const(q, s->type, part), bytes);
	memcpy(at(own, s->type, part), at_const(q, s->type, 2 * part), bytes);
	step_query(t->q + r * s->Dp, q, 1.0f / sqrtf(s->D), s);
}

/* Head h of rows b .. b + rows - 1, which are of one caption. */
static void step_task(const struct step_call *x, const struct step *s, const struct step_scratch *t, size_t b, size_t h,
                      int rows)
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
		step_output(at(x->y, s->type, (b + r) * part + h * s->D), y, 1.0f / sum[r], s);
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
