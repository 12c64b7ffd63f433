/* test-attn.c - the attention entries against loops in double over attn_allowed: all masks, odd
 * sizes, all types; gradients by central differences; decoding against the whole; the paper's
 * masks by count and by picture (recipe K5, K6). */
#include "opscheck.h"

struct shape {
	int B, H, D;
	struct attn_mask m;
};

/* y[B,S,H,D] and, where not NULL, lse[B,H,S]. */
static void naive_attn(double *y, double *lse, const double *qkv, const struct shape *s)
{
	int S = attn_length(&s->m), H = s->H, D = s->D;
	double *p = must(calloc((size_t)S, sizeof *p));
	for (int b = 0; b < s->B; b++)
		for (int h = 0; h < H; h++)
			for (int i = 0; i < S; i++) {
				const double *q = qkv + (((size_t)(b * S + i) * 3 + 0) * H + h) * D;
				double *out = y + ((size_t)(b * S + i) * H + h) * D, sum = 0;
				memset(out, 0, (size_t)D * sizeof *out);
				for (int j = 0; j < S; j++) {
					const double *k = qkv + (((size_t)(b * S + j) * 3 + 1) * H + h) * D;
					double dot = 0;
					if (!attn_allowed(&s->m, i, j))
						continue;
					for (int c = 0; c < D; c++)
						dot += q[c] * k[c];
					sum += p[j] = exp(dot / sqrt(D));
				}
				for (int j = 0; j < S; j++)
					for (int c = 0; c < D && attn_allowed(&s->m, i, j); c++)
						out[c] += p[j] / sum * qkv[(((size_t)(b * S + j) * 3 + 2) * H + h) * D + c];
				if (lse)
					lse[((size_t)b * H + h) * S + i] = log(sum);
			}
	free(p);
}

static void naive_for_differences(double *y, const double *x, const void *with)
{
	naive_attn(y, NULL, x, with);
}

/* The analytic backward in double, for sizes at which differences take too long. */
static void naive_attn_bwd(double *g, const double *dy, const double *qkv, const struct shape *s)
{
	int S = attn_length(&s->m), H = s->H, D = s->D;
	double *p = must(calloc((size_t)S, sizeof *p)), *dp = must(calloc((size_t)S, sizeof *dp));
	memset(g, 0, (size_t)s->B * S * 3 * H * D * sizeof *g);
#define AT(t, j, which) ((t) + (((size_t)(b * S + (j)) * 3 + (which)) * H + h) * D)
	for (int b = 0; b < s->B; b++)
		for (int h = 0; h < H; h++)
			for (int i = 0; i < S; i++) {
				const double *d = dy + ((size_t)(b * S + i) * H + h) * D;
				double sum = 0, mean = 0;
				for (int j = 0; j < S; j++) {
					double dot = 0;
					p[j] = dp[j] = 0;
					for (int c = 0; c < D; c++) {
						dot += AT(qkv, i, 0)[c] * AT(qkv, j, 1)[c];
						dp[j] += d[c] * AT(qkv, j, 2)[c];
					}
					p[j] = attn_allowed(&s->m, i, j) ? exp(dot / sqrt(D)) : 0;
					sum += p[j];
				}
				for (int j = 0; j < S; j++)
					mean += (p[j] /= sum) * dp[j];
				for (int j = 0; j < S; j++)
					for (int c = 0; c < D && p[j] > 0; c++) {
						double ds = p[j] * (dp[j] - mean) / sqrt(D);
						AT(g, i, 0)[c] += ds * AT(qkv, j, 1)[c];
						AT(g, j, 1)[c] += ds * AT(qkv, i, 0)[c];
						AT(g, j, 2)[c] += p[j] * d[c];
					}
			}
#undef AT
	free(p);
	free(dp);
}

static const char *mask_name(const struct shape *s, char *out, size_t n)
{
	static const char *const kinds[] = {"full", "causal", "row", "column", "conv"};
	snprintf(out, n, "%s %d+%dx%d k%d%s B%d H%d D%d", kinds[s->m.kind], s->m.n_text, s->m.grid_w, s->m.grid_h,
	         s->m.conv_k, s->m.conv_centred ? "c" : "", s->B, s->H, s->D);
	return out;
}

static void check_shape(const struct shape *s, int by_differences)
{
	size_t S = attn_length(&s->m), rows = s->B * S, width = (size_t)s->H * s->D;
	char name[128], what[192];
	mask_name(s, name, sizeof name);
	double tol = T == DT_F32 ? 4e-6 : bound(T);
	struct tensor qkv = tensor_random(T, rows * 3 * width, -2, 2), dy = tensor_random(T, rows * width, -1, 1);
	struct tensor y = tensor_output(T, rows * width), lse = tensor_output(DT_F32, s->B * s->H * S);
	struct tensor dqkv = tensor_output(T, rows * 3 * width);
	double *want = must(calloc(rows * 3 * width, sizeof *want)), *want_lse = must(calloc(lse.n, sizeof *want_lse));
	naive_attn(want, want_lse, qkv.v, s);
	ops->attn_fwd(dev, y.p, lse.p, qkv.p, s->B, s->H, s->D, &s->m);
	snprintf(what, sizeof what, "attn_fwd %s", name);
	near(&y, want, tol, what);
	near(&lse, want_lse, 4e-6, what);
	if (by_differences)
		differences(want, naive_for_differences, qkv.v, qkv.n, dy.v, dy.n, s);
	else
		naive_attn_bwd(want, dy.v, qkv.v, s);
	ops->attn_bwd(dev, dqkv.p, dy.p, qkv.p, y.p, lse.p, s->B, s->H, s->D, &s->m);
	snprintf(what, sizeof what, "attn_bwd %s", name);
	/* y was rounded to T before delta = dy . y: one more rounding. */
	near(&dqkv, want, 2 * tol, what);
	ops->attn_bwd(dev, NULL, dy.p, qkv.p, y.p, lse.p, s->B, s->H, s->D, &s->m);
	tensor_free(&qkv), tensor_free(&dy), tensor_free(&y), tensor_free(&lse), tensor_free(&dqkv);
	free(want);
	free(want_lse);
}

/* A window that holds no less than what a later state needs, and no more. */
static void check_window(const struct attn_mask *m, const char *what)
{
	int all = m->grid_w * m->grid_h, reach = 0;
	struct attn_mask image = *m;
	image.n_text = 0;
	for (int o = 0; o < all; o++)
		if (attn_allowed(&image, all - 1, all - 1 - o))
			reach = o + 1;
	int w = attn_window(m);
	CHECK(w >= reach && w <= all && (m->kind != ATTN_ROW || w == reach), "%s: window %d of reach %d", what, w, reach);
}

/* Sequences of two captions, each at its own place and in a slot out of order: step by step as the naive whole.  Most
 * calls have an idle row in place of one sequence. */
static void check_step(const struct shape *s)
{
	enum { SEQUENCES = 6, CONTEXTS = 3 };
	static const int32_t context[SEQUENCES] = {0, 2, 2, 2, 2, 0}, slot[SEQUENCES] = {3, 0, 4, 1, 2, 5},
			     lead[SEQUENCES] = {0, 2, 1, 0, 3, 4};
	size_t width = (size_t)s->H * s->D, S = attn_length(&s->m), text = s->m.n_text, images = S - text,
	       window = attn_window(&s->m);
	struct shape whole = *s;
	whole.B = SEQUENCES;
	char name[128], what[192];
	snprintf(what, sizeof what, "attn_step %s", mask_name(s, name, sizeof name));
	check_window(&s->m, what);
	struct tensor qkv = tensor_random(T, SEQUENCES * S * 3 * width, -2, 2), keys = tensor_new(T, CONTEXTS * text * 2 * width);
	struct tensor ring = tensor_output(T, SEQUENCES * window * 2 * width);
	struct tensor one = tensor_new(T, SEQUENCES * 3 * width), y = tensor_output(T, SEQUENCES * width);
	double *want = must(calloc(SEQUENCES * S * width, sizeof *want)), *got = must(calloc(SEQUENCES * S * width, sizeof *got));
	/* Sequences of one caption share its text. */
	for (size_t b = 0; b < SEQUENCES; b++) {
		memcpy(qkv.v + b * S * 3 * width, qkv.v + (context[b] ? 1 : 0) * S * 3 * width, text * 3 * width * sizeof *want);
		for (size_t i = 0; i < text; i++)
			memcpy(keys.v + (context[b] * text + i) * 2 * width, qkv.v + (b * S + i) * 3 * width + width, 2 * width * sizeof *want);
	}
	tensor_put(&qkv), tensor_put(&keys);
	naive_attn(want, NULL, qkv.v, &whole);
	int32_t pos[SEQUENCES] = {0};
	int32_t *d_context = ints_put(context, SEQUENCES), *d_slot = ints_put(slot, SEQUENCES), *d_pos = ints_put(pos, SEQUENCES);
	struct attn_cache cache = {keys.p, ring.p, (int)window};
	int idle_bad = 0, done[SEQUENCES] = {0};
	for (size_t round = 0, left = 1; left; round++) {
		left = 0;
		for (size_t b = 0; b < SEQUENCES; b++) {
			int idle = round < (size_t)lead[b] || done[b] == (int)images || round % 5 == b;
			pos[b] = idle ? -1 : done[b];
			left |= done[b] < (int)images;
			for (size_t c = 0; c < 3 * width; c++)
				one.v[b * 3 * width + c] = idle ? NAN : qkv.v[(b * S + text + pos[b]) * 3 * width + c];
		}
		tensor_put(&one);
		ops->put(dev, d_pos, pos, sizeof pos);
		ops->attn_step(dev, y.p, &cache, one.p, d_context, d_slot, d_pos, SEQUENCES, s->H, s->D, &s->m);
		tensor_get(&y, what);
		for (size_t b = 0; b < SEQUENCES; b++) {
			for (size_t c = 0; c < width && pos[b] < 0; c++)
				idle_bad += y.v[b * width + c] != 0;
			if (pos[b] >= 0)
				memcpy(got + (b * S + text + done[b]++) * width, y.v + b * width, width * sizeof *want);
		}
	}
	double e = 0;
	for (size_t b = 0; b < SEQUENCES; b++)
		e = fmax(e, distance(got + (b * S + text) * width, want + (b * S + text) * width, images * width, T));
	CHECK(e <= bound(T), "%s (%s): off by %.3g", what, type_names[T], e);
	CHECK(idle_bad == 0, "%s: idle rows are zero", what);
	tensor_get(&ring, what);
	int same = 1;
	for (size_t b = 0; b < SEQUENCES; b++)
		for (size_t p = images > window ? images - window : 0; p < images; p++)
			same &= !memcmp(ring.v + (slot[b] * window + p % window) * 2 * width,
			                qkv.v + (b * S + text + p) * 3 * width + width, 2 * width * sizeof *want);
	CHECK(same, "%s: the rings hold the last keys and values", what);
	ops->release(dev, d_context), ops->release(dev, d_slot), ops->release(dev, d_pos);
	tensor_free(&qkv), tensor_free(&keys), tensor_free(&ring), tensor_free(&one), tensor_free(&y);
	free(want);
	free(got);
}

static const struct attn_mask masks[] = {
	{ATTN_FULL, 1, 0, 0, 0, 0}, {ATTN_FULL, 17, 0, 0, 0, 0}, {ATTN_CAUSAL, 1, 0, 0, 0, 0},
	{ATTN_CAUSAL, 37, 0, 0, 0, 0}, {ATTN_CAUSAL, 6, 4, 4, 0, 0}, {ATTN_ROW, 6, 4, 4, 0, 0},
	{ATTN_COLUMN, 6, 4, 4, 0, 0}, {ATTN_CONV, 6, 4, 4, 3, 0}, {ATTN_CONV, 6, 4, 4, 3, 1},
	{ATTN_ROW, 17, 5, 3, 0, 0}, {ATTN_COLUMN, 17, 5, 3, 0, 0}, {ATTN_CONV, 1, 7, 5, 5, 0},
	{ATTN_CONV, 3, 4, 9, 1, 0}, {ATTN_ROW, 0, 6, 6, 0, 0}, {ATTN_COLUMN, 0, 1, 9, 0, 0},
};
/* Sizes with many tiles, analytic backward. */
static const struct attn_mask large_masks[] = {
	{ATTN_FULL, 77, 0, 0, 0, 0}, {ATTN_CAUSAL, 255, 0, 0, 0, 0}, {ATTN_CAUSAL, 19, 12, 9, 0, 0}, {ATTN_ROW, 40, 16, 17, 0, 0},
	{ATTN_COLUMN, 33, 16, 12, 0, 0}, {ATTN_CONV, 64, 32, 9, 11, 0}, {ATTN_CONV, 31, 16, 16, 7, 1},
};

static void check_all_masks(void)
{
	for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
		struct shape s = {.B = 2, .H = 2, .D = 3, .m = masks[i]};
		check_shape(&s, 1);
		if (masks[i].grid_w)
			check_step(&s);
	}
	for (size_t i = 0; i < sizeof large_masks / sizeof *large_masks; i++) {
		struct shape s = {.B = 1, .H = 2, .D = i % 2 ? 64 : 17, .m = large_masks[i]};
		check_shape(&s, 0);
		if (large_masks[i].grid_w)
			check_step(&s);
	}
}

/* Scores of +-300 would overflow exp without the greatest being taken off, also by a hidden key. */
static void check_large_scores(void)
{
	struct shape s = {.B = 1, .H = 1, .D = 4, .m = {ATTN_ROW, 3, 4, 4, 0, 0}};
	size_t S = attn_length(&s.m);
	struct tensor qkv = tensor_new(T, S * 12), y = tensor_output(T, S * 4), lse = tensor_output(DT_F32, S);
	for (size_t i = 0; i < qkv.n; i++)
		qkv.v[i] = i % 12 < 8 ? uniform(-1, 1) * (i / 12 % 5 == 4 ? 16 : 1) : uniform(-1, 1);
	tensor_put(&qkv);
	double *want = must(calloc(y.n, sizeof *want));
	naive_attn(want, NULL, qkv.v, &s);
	ops->attn_fwd(dev, y.p, lse.p, qkv.p, 1, 1, 4, &s.m);
	near(&y, want, 10 * bound(T), "attn_fwd with large scores");
	free(want);
	tensor_free(&qkv), tensor_free(&y), tensor_free(&lse);
}

/* ---- bits: one or two threads, alone or in a batch ---- */

static void run_bits(double *out, double *grad, const double *qkv, const double *dy, int B, int first, int threads)
{
	struct shape s = {.B = B, .H = 2, .D = 17, .m = {ATTN_CONV, 9, 8, 8, 5, 0}};
	size_t S = attn_length(&s.m), width = S * s.H * s.D;
	device_open(DT_F32, threads);
	struct tensor x = tensor_new(DT_F32, B * 3 * width), g = tensor_new(DT_F32, B * width);
	struct tensor y = tensor_output(DT_F32, B * width), lse = tensor_output(DT_F32, B * s.H * S),
		      dx = tensor_output(DT_F32, B * 3 * width);
	memcpy(x.v, qkv + first * 3 * width, x.n * sizeof *qkv);
	memcpy(g.v, dy + first * width, g.n * sizeof *dy);
	tensor_put(&x), tensor_put(&g);
	ops->attn_fwd(dev, y.p, lse.p, x.p, B, s.H, s.D, &s.m);
	ops->attn_bwd(dev, dx.p, g.p, x.p, y.p, lse.p, B, s.H, s.D, &s.m);
	tensor_get(&y, "bits"), tensor_get(&dx, "bits");
	memcpy(out, y.v, y.n * sizeof *out);
	memcpy(grad, dx.v, dx.n * sizeof *grad);
	tensor_free(&x), tensor_free(&g), tensor_free(&y), tensor_free(&lse), tensor_free(&dx);
	device_close();
}

static void check_bits(void)
{
	enum { B = 3, WIDTH = 73 * 2 * 17 };
	double *qkv = must(calloc(B * 3 * WIDTH, sizeof *qkv)), *dy = must(calloc(B * WIDTH, sizeof *dy));
	double *y[2], *g[2];
	for (int i = 0; i < 2; i++)
		y[i] = must(calloc(B * WIDTH, sizeof **y)), g[i] = must(calloc(B * 3 * WIDTH, sizeof **g));
	for (size_t i = 0; i < B * 3 * WIDTH; i++)
		qkv[i] = (float)uniform(-2, 2);
	for (size_t i = 0; i < B * WIDTH; i++)
		dy[i] = (float)uniform(-1, 1);
	run_bits(y[0], g[0], qkv, dy, B, 0, 1);
	run_bits(y[1], g[1], qkv, dy, B, 0, 2);
	CHECK(!memcmp(y[0], y[1], B * WIDTH * sizeof **y) && !memcmp(g[0], g[1], 3 * B * WIDTH * sizeof **g),
	      "attention: same bits with 1 and 2 threads");
	run_bits(y[1], g[1], qkv, dy, 1, 2, 1);
	CHECK(!memcmp(y[0] + 2 * WIDTH, y[1], WIDTH * sizeof **y) && !memcmp(g[0] + 6 * WIDTH, g[1], 3 * WIDTH * sizeof **g),
	      "attention: same bits alone and in a batch");
	for (int i = 0; i < 2; i++)
		free(y[i]), free(g[i]);
	free(qkv);
	free(dy);
}

/* ---- the paper's masks ---- */

static void check_toy_masks(void)
{
	static const struct {
		enum attn_kind kind;
		int offsets[8], n;
	} toy[] = {{ATTN_ROW, {0, 1, 2, 3, 4}, 5}, {ATTN_COLUMN, {0, 4, 8, 12}, 4}, {ATTN_CONV, {0, 1, 3, 4, 5, 7}, 6}};
	for (int t = 0; t < 3; t++) {
		struct attn_mask m = {toy[t].kind, 6, 4, 4, 3, 0};
		int bad = 0;
		for (int q = 0; q < 22; q++)
			for (int k = 0; k < 22; k++) {
				int want = k <= q && k < 6;
				for (int i = 0; k >= 6 && q >= 6 && i < toy[t].n; i++)
					want |= q - k == toy[t].offsets[i];
				bad += want != attn_allowed(&m, q, k);
			}
		CHECK(bad == 0, "the 22 x 22 picture of mask %d: %d cells differ", toy[t].kind, bad);
	}
}

static int image_taps(const struct attn_mask *m, int q)
{
	int n = 0;
	for (int k = m->n_text; k <= q; k++)
		n += attn_allowed(m, q, k);
	return n;
}

static void check_paper_masks(void)
{
	struct attn_mask row = {ATTN_ROW, 256, 32, 32, 0, 0}, column = {ATTN_COLUMN, 256, 32, 32, 0, 0};
	struct attn_mask conv = {ATTN_CONV, 256, 32, 32, 11, 0}, centred = {ATTN_CONV, 256, 32, 32, 11, 1};
	CHECK(attn_window(&row) == 33 && attn_window(&column) == 1024 && attn_window(&conv) == 192, "windows");
	CHECK(image_taps(&row, 1279) == 33, "row: 33 taps");
	CHECK(image_taps(&column, 1279) == 32, "column: 32 taps");
	CHECK(image_taps(&conv, 1279) == 66 && image_taps(&centred, 1279) == 61, "conv: 66 taps, centred 61");
	int last = attn_allowed(&conv, 1279, 1279 - 186) == 0 && attn_allowed(&conv, 1279, 1279 - 192) == 0;
	for (int o = 187; o < 192; o++)
		last &= attn_allowed(&conv, 1279, 1279 - o) && !attn_allowed(&centred, 1279, 1279 - o);
	CHECK(last, "conv: the last taps are 187..191");
}

int main(void)
{
	check_toy_masks();
	check_paper_masks();
	for (int i = 0; i < 3; i++) {
		device_open(all_types[i], 0);
		check_all_masks();
		check_large_scores();
		device_close();
	}
	check_bits();
	return check_done();
}
