/* steps.h - attn_step on both sides, for test-cuda.c: batches of 1 to 40 rows taken from the same problem in several orders.
 * Its rows are of captions in any mixture, at places of their own, some idle; places of rings that a row may not read hold NaN,
 * and so does all that idle rows have.  A row must have the same bits in all batches that go the same way. */
#ifndef STEPS_H
#define STEPS_H

#include "pairs.h"

enum { STEP_ROWS = 40 };

/* How the rows' captions are mixed. */
enum mixture { ONE_CAPTION, RUNS, IN_TURN, AT_RANDOM, ALL_DIFFERENT, TILE_IDLE, MIXTURES };

struct steps {
	struct attn_mask m;
	int H, D, window;
	int32_t context[STEP_ROWS], slot[STEP_ROWS], pos[STEP_ROWS];
	size_t row, state;     /* bytes of one row of y, of one state of a cache */
	char *qkv, *text, *ring; /* [STEP_ROWS] rows, captions, rings */
};

static void *random_values(size_t n)
{
	void *h = must(calloc(n + 1, 4));
	for (size_t i = 0; i < n; i++)
		store_from_f32(h, T, i, (float)uniform(-2, 2));
	return h;
}

static int32_t caption_of(enum mixture how, int r)
{
	switch (how) {
	case ONE_CAPTION: return 2;
	case RUNS: return r / 7;
	case IN_TURN: return 2 - r % 3;
	case AT_RANDOM: return (int32_t)uniform(0, 4.99);
	case ALL_DIFFERENT: return STEP_ROWS - 1 - r;
	default: return r / 20;
	}
}

static int idle(enum mixture how, int r)
{
	return how == TILE_IDLE ? (r >= 16 && r < 32) || r == 39 : how != ONE_CAPTION && r % 6 == 0;
}

/* Of the ring of a row only what it sees is numbers, and of them not its own state, which comes from qkv. */
static void poison(struct steps *x, int r)
{
	struct attn_mask image = x->m;
	size_t ring = (size_t)x->window * x->state;
	char *copy = must(malloc(ring)), *at = x->ring + (size_t)r * ring;
	memcpy(copy, at, ring);
	memset(at, 0xFF, ring);
	image.n_text = 0;
	for (int p = x->pos[r] - x->window + 1; p < x->pos[r]; p++)
		if (p >= 0 && attn_allowed(&image, x->pos[r], p))
			memcpy(at + (size_t)(p % x->window) * x->state, copy + (size_t)(p % x->window) * x->state, x->state);
	free(copy);
}

static void steps_make(struct steps *x, int H, int D, const struct attn_mask *m, int window, enum mixture how)
{
	size_t part = (size_t)H * D;
	int last = m->grid_w * m->grid_h - 1;
	*x = (struct steps){.m = *m, .H = H, .D = D, .window = window, .row = part * dtype_bytes(T), .state = 2 * part * dtype_bytes(T)};
	x->qkv = random_values(STEP_ROWS * 3 * part);
	x->text = random_values(STEP_ROWS * m->n_text * 2 * part);
	x->ring = random_values((size_t)STEP_ROWS * window * 2 * part);
	for (int r = 0; r < STEP_ROWS; r++) {
		x->context[r] = caption_of(how, r);
		x->slot[r] = (7 * r + 3) % STEP_ROWS;
		x->pos[r] = r % 4 == 1 ? last : r % 9 == 2 ? 0 : (int32_t)uniform(0, last + 0.99);
	}
	for (int r = 0; r < STEP_ROWS; r++) /* rings lie by slot */
		if (!idle(how, r))
			poison(&(struct steps){.m = *m, .window = window, .state = x->state, .pos = {x->pos[r]},
			                       .ring = x->ring + (size_t)x->slot[r] * window * x->state}, 0);
	for (int r = 0; r < STEP_ROWS; r++)
		if (idle(how, r)) {
			memset(x->qkv + (size_t)r * 3 * x->row, 0xFF, 3 * x->row);
			memset(x->ring + (size_t)x->slot[r] * window * x->state, 0xFF, (size_t)window * x->state);
			x->context[r] = x->slot[r] = INT32_MAX;
			x->pos[r] = -1 - r;
		}
}

static void steps_free(struct steps *x)
{
	free(x->qkv), free(x->text), free(x->ring);
}

/* B rows, first, first + by, ..: both sides agree; the device's y into y[B]. */
static void steps_batch(const struct steps *x, int B, int first, int by, char *y, const char *what)
{
	int32_t context[STEP_ROWS], slot[STEP_ROWS], pos[STEP_ROWS];
	char *qkv = must(malloc((size_t)B * 3 * x->row)), name[128];
	size_t part = (size_t)x->H * x->D;
	for (int i = 0; i < B; i++) {
		int r = (first + i * by) % STEP_ROWS;
		context[i] = x->context[r], slot[i] = x->slot[r], pos[i] = x->pos[r];
		memcpy(qkv + (size_t)i * 3 * x->row, x->qkv + (size_t)r * 3 * x->row, 3 * x->row);
	}
	snprintf(name, sizeof name, "%s, %d rows", what, B);
	struct pair c = pair_ints(B, context), l = pair_ints(B, slot), p = pair_ints(B, pos), out = pair_output(T, B * part);
	struct pair q = pair_bytes(T, B * 3 * part, dtype_bytes(T), qkv);
	struct pair text = pair_bytes(T, STEP_ROWS * x->m.n_text * 2 * part, dtype_bytes(T), x->text);
	struct pair ring = pair_bytes(T, (size_t)STEP_ROWS * x->window * 2 * part, dtype_bytes(T), x->ring);
	EACH_SIDE(struct attn_cache cache = {text.p[s], ring.p[s], x->window};
	          o->attn_step(d, out.p[s], &cache, q.p[s], c.p[s], l.p[s], p.p[s], B, x->H, x->D, &x->m));
	/* Sums differ in their order only, so that few values are rounded to the neighbour, which is two units away. */
	same(&out, T == DT_F32 ? 3 : 2, name);
	if (T != DT_F32 && out.n >= 1000)
		mostly_equal(&out, name);
	same_bytes(&ring, dtype_bytes(T), name);
	side[1].o->get(side[1].d, y, out.p[1], B * x->row);
	FREE(&c, &l, &p, &out, &q, &text, &ring);
	free(qkv);
}

/* f32 has one way; the 16-bit types may have another from 16 rows on (with one head a single block, which may have more
 * warps than several). */
static void check_steps(int H, int D, const struct attn_mask *m, int window, enum mixture how)
{
	static const struct {
		int B, first, by;
	} batches[] = {{40, 0, 1}, {40, 39, 39}, {40, 0, 1}, {16, 3, 7}, {16, 16, 1}, {17, 1, 11}, {15, 0, 1}, {15, 15, 1},
	               {10, 30, 1}, {15, 2, 13}, {2, 5, 9}, {1, 8, 1}, {1, 39, 1}, {3, 4, 13}};
	struct steps x;
	char what[96];
	steps_make(&x, H, D, m, window, how);
	snprintf(what, sizeof what, "attn_step kind %d, %d + %d x %d, D %d, mixture %d", m->kind, m->n_text, m->grid_w, m->grid_h, D, how);
	char *y = must(malloc(STEP_ROWS * x.row)), *known[2] = {must(calloc(STEP_ROWS, x.row)), must(calloc(STEP_ROWS, x.row))};
	int seen[2][STEP_ROWS] = {0};
	for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
		int way = T != DT_F32 && batches[b].B >= 16, differ = 0;
		steps_batch(&x, batches[b].B, batches[b].first, batches[b].by, y, what);
		for (int i = 0; i < batches[b].B; i++) {
			int r = (batches[b].first + i * batches[b].by) % STEP_ROWS;
			if (seen[way][r]++)
				differ += memcmp(known[way] + r * x.row, y + i * x.row, x.row) != 0;
			else
				memcpy(known[way] + r * x.row, y + i * x.row, x.row);
		}
		CHECK(!differ, "%s (%s): %d of %d rows have other bits than in another batch", what, type_names[T], differ, batches[b].B);
	}
	free(y), free(known[0]), free(known[1]);
	steps_free(&x);
}

/* All masks; texts of no key, of less than a product takes and of several turns of all warps; taps that are the whole row of
 * the grid; rings larger than they need be. */
static void check_decoding(void)
{
	static const struct {
		struct attn_mask m;
		int D, more;
		enum mixture how;
	} cases[] = {
		{{ATTN_ROW, 300, 8, 7, 0, 0}, 64, 0, ONE_CAPTION},     {{ATTN_COLUMN, 37, 7, 9, 0, 0}, 64, 0, RUNS},
		{{ATTN_CONV, 33, 16, 9, 11, 0}, 40, 0, IN_TURN},       {{ATTN_CAUSAL, 19, 9, 6, 0, 0}, 128, 0, AT_RANDOM},
		{{ATTN_ROW, 16, 5, 9, 0, 0}, 24, 3, ALL_DIFFERENT},    {{ATTN_CONV, 21, 9, 9, 5, 1}, 64, 2, AT_RANDOM},
		{{ATTN_ROW, 150, 6, 5, 0, 0}, 20, 0, RUNS},            {{ATTN_CONV, 5, 4, 9, 5, 1}, 72, 0, RUNS},
		{{ATTN_COLUMN, 0, 5, 13, 0, 0}, 64, 0, ALL_DIFFERENT}, {{ATTN_ROW, 129, 16, 3, 0, 0}, 128, 1, TILE_IDLE},
		{{ATTN_CONV, 3, 4, 9, 1, 0}, 8, 0, IN_TURN},           {{ATTN_CAUSAL, 9, 4, 4, 0, 0}, 144, 0, IN_TURN},
		{{ATTN_COLUMN, 17, 4, 5, 0, 0}, 17, 0, TILE_IDLE},     {{ATTN_ROW, 9, 3, 5, 0, 0}, 256, 0, IN_TURN},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		check_steps(1 + (int)(i % 2), cases[i].D, &cases[i].m, attn_window(&cases[i].m) + cases[i].more, cases[i].how);
}

#endif
