/* test-cuda.c - every entry of the CUDA backend against the CPU's references: odd sizes, all types, outputs that begin
 * as NaN and end in sentinels. */
#include "emulated.h"
#include "pairs.h"
#include "pairs-norm.h"
#include "steps.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- elementwise ---- */

static void check_elementwise(size_t n)
{
	struct pair x = pair_of(DT_F32, n, -3, 3), u = pair_of(T, n, -9, 9), dy = pair_of(T, n, -1, 1), y = pair_output(T, n);
	struct pair f = pair_output(DT_F32, n), acc = pair_of(DT_F32, n, -1, 1), f32 = pair_of(DT_F32, n, -1, 1);
	for (int flags = 0; flags <= OP_FILTER; flags += OP_FILTER) {
		EACH_SIDE(o->cast(d, y.p[s], x.p[s], n, 0.75f, flags));
		same_bytes(&y, dtype_bytes(T), "cast");
	}
	EACH_SIDE(o->uncast(d, f.p[s], u.p[s], n, -0.5f));
	same_bytes(&f, 4, "uncast");
	EACH_SIDE(o->add(d, f.p[s], x.p[s], u.p[s], 0.3f, n));
	same(&f, 1, "add");
	EACH_SIDE(o->relu_fwd(d, y.p[s], x.p[s], n, 0));
	same_bytes(&y, dtype_bytes(T), "relu_fwd");
	EACH_SIDE(o->relu_fwd(d, f.p[s], x.p[s], n, OP_F32));
	same_bytes(&f, 4, "relu_fwd in f32");
	EACH_SIDE(o->relu_bwd(d, y.p[s], dy.p[s], u.p[s], n));
	same_bytes(&y, dtype_bytes(T), "relu_bwd");
	EACH_SIDE(o->relu_bwd_add(d, acc.p[s], dy.p[s], x.p[s], n, 0));
	same(&acc, 1, "relu_bwd_add");
	EACH_SIDE(o->relu_bwd_add(d, acc.p[s], f32.p[s], x.p[s], n, OP_F32));
	same(&acc, 1, "relu_bwd_add in f32");
	for (int exact = 0; exact < 2; exact++) {
		EACH_SIDE(o->gelu_fwd(d, y.p[s], u.p[s], n, exact));
		same(&y, 1, "gelu_fwd");
		EACH_SIDE(o->gelu_bwd(d, y.p[s], NULL, dy.p[s], u.p[s], 1, (int)n, exact));
		same(&y, 1, "gelu_bwd");
	}
	FREE(&x, &u, &dy, &y, &f, &acc, &f32);
}

/* With sums of the columns: du has the bits that it has without them, and the device alone gives the same sums twice. */
static void check_gelu_sums(size_t rows, int C, int exact)
{
	size_t n = rows * C;
	struct pair u = pair_of(T, n, -9, 9), dy = pair_of(T, n, -1, 1), du = pair_output(T, n), plain = pair_output(T, n);
	struct pair db = pair_of(DT_F32, C, -1, 1), alone[2] = {pair_of(DT_F32, C, 0, 0), pair_of(DT_F32, C, 0, 0)};
	EACH_SIDE(o->gelu_bwd(d, plain.p[s], NULL, dy.p[s], u.p[s], rows, C, exact);
	          o->gelu_bwd(d, du.p[s], db.p[s], dy.p[s], u.p[s], rows, C, exact);
	          for (int i = 0; i < 2; i++) o->gelu_bwd(d, NULL, alone[i].p[s], dy.p[s], u.p[s], rows, C, exact));
	same(&du, 2, "gelu_bwd with sums"), same(&db, T == DT_F32 ? 4 : unit(T) / unit(DT_F32), "gelu_bwd's sums");
	double *v[4] = {pair_get(&plain, 1, "gelu_bwd"), pair_get(&du, 1, "gelu_bwd"), pair_get(&alone[0], 1, "gelu_bwd"), pair_get(&alone[1], 1, "gelu_bwd")};
	CHECK(!memcmp(v[0], v[1], n * sizeof *v[0]), "gelu_bwd %zu x %d (%s device): du with sums and without", rows, C, type_names[T]);
	CHECK(!memcmp(v[2], v[3], C * sizeof *v[2]), "gelu_bwd %zu x %d (%s device): the same sums twice", rows, C, type_names[T]);
	int right = 0;
	for (int c = 0; c < C; c++) {
		double sum = 0, mass = 1e-6;
		for (size_t r = 0; r < rows; r++)
			sum += v[1][r * C + c], mass += fabs(v[1][r * C + c]);
		right += fabs(v[2][c] - sum) <= 1e-6 * mass;
	}
	CHECK(right == C, "gelu_bwd %zu x %d (%s device): %d columns are summed as rounded", rows, C, type_names[T], right);
	for (int i = 0; i < 4; i++)
		free(v[i]);
	FREE(&u, &dy, &du, &plain, &db, &alone[0], &alone[1]);
}

/* NaN, infinities and what overflows T alone. */
static void check_filter(void)
{
	static const float v[6] = {NAN, INFINITY, -INFINITY, 1e30f, 70000, -2};
	struct pair x = pair_bytes(DT_F32, 6, 4, v), y = pair_output(T, 6);
	for (int flags = 0; flags <= OP_FILTER; flags += OP_FILTER) {
		EACH_SIDE(o->cast(d, y.p[s], x.p[s], 6, 1, flags));
		same(&y, 1, "cast of what is not finite");
	}
	EACH_SIDE(o->relu_fwd(d, y.p[s], x.p[s], 6, 0));
	same(&y, 1, "relu_fwd of what is not finite");
	FREE(&x, &y);
}

static void check_pixels(size_t n)
{
	static const float scale[3] = {0.5f, 0.25f, 2}, shift[3] = {-1, 0, 3};
	unsigned char rgb[3000];
	for (size_t i = 0; i < sizeof rgb; i++)
		rgb[i] = (unsigned char)(i * 37 + i / 256);
	struct pair b = pair_bytes(DT_F32, 3 * n, 1, rgb), x = pair_output(DT_F32, 3 * n);
	EACH_SIDE(o->pixels(d, x.p[s], b.p[s], n, scale, shift));
	same(&x, 1, "pixels");
	FREE(&b, &x);
}

static void check_embed(size_t rows, int C, int V)
{
	struct pair table = pair_of(DT_F32, (size_t)V * C, -1, 1), h = pair_output(DT_F32, rows * C), idx = pair_range(rows, -1, V - 1);
	struct pair dh = pair_of(DT_F32, rows * C, -1, 1);
	for (int add = 0; add < 2; add++) {
		EACH_SIDE(o->embed_fwd(d, h.p[s], table.p[s], idx.p[s], rows, C, add));
		same(&h, 1, "embed_fwd");
	}
	EACH_SIDE(o->embed_bwd(d, table.p[s], dh.p[s], idx.p[s], rows, C));
	same(&table, 2, "embed_bwd");
	FREE(&table, &h, &idx, &dh);
}

/* ---- norms ---- */

static void check_l2(size_t rows, int C)
{
	size_t n = rows * C;
	struct pair x = pair_of(DT_F32, n, -1, 1), y = pair_output(DT_F32, n), r = pair_output(DT_F32, rows);
	struct pair dy = pair_of(DT_F32, n, -1, 1), dx = pair_output(DT_F32, n);
	EACH_SIDE(o->l2_fwd(d, y.p[s], r.p[s], x.p[s], rows, C));
	same(&y, 1, "l2_fwd"), same(&r, 1, "l2_fwd rnorm");
	EACH_SIDE(o->l2_bwd(d, dx.p[s], dy.p[s], y.p[s], r.p[s], rows, C));
	same(&dx, 3, "l2_bwd");
	FREE(&x, &y, &r, &dy, &dx);
}

/* ---- products ---- */

static void check_linear(size_t rows, int in, int out, int flags, bool bias)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T, ty = flags & OP_OUT_F32 ? DT_F32 : t;
	enum dtype tw = flags & OP_DW_T ? t : DT_F32;
	/* Units are 1e-6; of bf16 parts each product is right to 2^-16 (ops.h), of which 8 units are half. */
	bool parts = T != DT_F32 && flags & OP_F32 && in % 8 == 0 && out % 8 == 0 && !getenv("DALLE_CUDA_LT");
	char what[96];
	struct pair x = pair_of(t, rows * in, -1, 1), w = pair_of(t, (size_t)in * out, -1, 1), b = pair_rounded(t, out, -1, 1);
	struct pair y = pair_output(ty, rows * out), u = pair_output(T, rows * out);
	struct pair dy = pair_of(t, rows * out, -1, 1), dx = pair_output(t, rows * in), g = pair_output(T, rows * out);
	struct pair dw = pair_of(tw, (size_t)in * out, -1, 1), db = pair_of(DT_F32, out, -1, 1);
	snprintf(what, sizeof what, "linear %zu x %d -> %d flags %d", rows, in, out, flags);
	EACH_SIDE(o->linear_fwd(d, y.p[s], x.p[s], w.p[s], bias ? b.p[s] : NULL, rows, in, out, flags));
	same(&y, parts && rows > 8 ? 8 : 2, what);
	EACH_SIDE(o->linear_bwd(d, dx.p[s], dw.p[s], db.p[s], dy.p[s], x.p[s], w.p[s], rows, in, out, flags & (OP_F32 | OP_DW_T)));
	same(&dx, parts ? 8 : 2, what), same(&dw, parts ? 8 : 2, what), same(&db, 2, what);
	if (!(flags & OP_F32)) {
		EACH_SIDE(o->linear_gelu_fwd(d, g.p[s], u.p[s], x.p[s], w.p[s], b.p[s], rows, in, out, 0));
		same(&u, 1, what), same(&g, 2, what); /* u may be rounded to a neighbour */
	}
	FREE(&x, &w, &b, &y, &u, &dy, &dx, &g, &dw, &db);
}

/* The residual stream, to another place and in place. */
static void check_linear_add(size_t rows, int in, int out, bool bias)
{
	char what[96];
	struct pair x = pair_of(T, rows * in, -1, 1), w = pair_of(T, (size_t)in * out, -1, 1), b = pair_of(DT_F32, out, -1, 1);
	struct pair h = pair_of(DT_F32, rows * out, -1, 1), y = pair_output(DT_F32, rows * out);
	snprintf(what, sizeof what, "linear_add_fwd %zu x %d -> %d", rows, in, out);
	EACH_SIDE(o->linear_add_fwd(d, y.p[s], h.p[s], x.p[s], w.p[s], bias ? b.p[s] : NULL, rows, in, out));
	same(&y, 2, what);
	EACH_SIDE(o->linear_add_fwd(d, h.p[s], h.p[s], x.p[s], w.p[s], bias ? b.p[s] : NULL, rows, in, out));
	same(&h, 2, what);
	FREE(&x, &w, &b, &h, &y);
}

/* The same values, an element further on. */
static struct pair further(const struct pair *x)
{
	struct pair y = pair_output(x->t, x->n + 1);
	size_t size = dtype_bytes(x->t), bytes = x->n * size;
	EACH_SIDE(o->copy2d(d, (char *)y.p[s] + size, bytes, x->p[s], bytes, bytes, 1));
	return y;
}

/* The device's values are the same bits; b's begin at its second element where `shifted`. */
static void same_bits(const struct pair *a, const struct pair *b, bool shifted, const char *what)
{
	double *x = pair_get(a, 1, what), *y = pair_get(b, 1, what);
	CHECK(!memcmp(x, y + shifted, a->n * sizeof *x), "%s (%s device): the same bits at any address", what, type_names[T]);
	free(x), free(y);
}

/* Results are stored two columns at once where that can be done: bit 0 of `shift` moves y, bit 1 h, bit 2 b by an element. */
static void check_pairs(size_t rows, int in, int out)
{
	size_t n = rows * out;
	struct pair x = pair_of(T, rows * in, -1, 1), w = pair_of(T, (size_t)in * out, -1, 1);
	struct pair b0 = pair_of(DT_F32, out, -1, 1), b1 = further(&b0), h0 = pair_of(DT_F32, n, -1, 1), h1 = further(&h0);
	struct pair first[3] = {pair_output(T, n), pair_output(DT_F32, n), pair_output(DT_F32, n)};
	for (int shift = 0; shift < 8; shift++) {
		bool sy = shift & 1;
		struct pair y[3] = {pair_output(T, n + sy), pair_output(DT_F32, n + sy), pair_output(DT_F32, n + sy)}, *to = shift ? y : first;
		EACH_SIDE(char *z[3]; const float *b = shift & 4 ? (float *)b1.p[s] + 1 : b0.p[s], *h = shift & 2 ? (float *)h1.p[s] + 1 : h0.p[s];
		          for (int i = 0; i < 3; i++) z[i] = (char *)to[i].p[s] + sy * dtype_bytes(to[i].t);
		          o->linear_fwd(d, z[0], x.p[s], w.p[s], b, rows, in, out, 0);
		          o->linear_fwd(d, z[1], x.p[s], w.p[s], b, rows, in, out, OP_OUT_F32);
		          o->linear_add_fwd(d, (float *)z[2], h, x.p[s], w.p[s], b, rows, in, out));
		for (int i = 0; i < 3; i++)
			same(&to[i], 2, "pairs"), same_bits(&first[i], &to[i], sy, "pairs");
		FREE(&y[0], &y[1], &y[2]);
	}
	FREE(&x, &w, &b0, &b1, &h0, &h1, &first[0], &first[1], &first[2]);
}

static void check_conv(int N, int H, int W, int in, int out, int k, int flags)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t p = (size_t)N * H * W, n = (size_t)in * out * k * k;
	char what[96];
	struct pair x = pair_of(t, p * in, -1, 1), w = pair_of(t, n, -1, 1), b = pair_of(DT_F32, out, -1, 1), y = pair_output(t, p * out);
	struct pair dy = pair_of(t, p * out, -1, 1), dx = pair_output(t, p * in), dw = pair_of(DT_F32, n, -1, 1), db = pair_of(DT_F32, out, -1, 1);
	snprintf(what, sizeof what, "conv %d x %d x %d x %d -> %d, k %d, flags %d", N, H, W, in, out, k, flags);
	EACH_SIDE(o->conv_fwd(d, y.p[s], x.p[s], w.p[s], b.p[s], N, H, W, in, out, k, flags));
	same(&y, 2, what);
	EACH_SIDE(o->conv_bwd(d, dx.p[s], dw.p[s], db.p[s], dy.p[s], x.p[s], w.p[s], N, H, W, in, out, k, flags & OP_F32));
	same(&dx, 2, what), same(&dw, 2, what), same(&db, 2, what);
	FREE(&x, &w, &b, &y, &dy, &dx, &dw, &db);
}

/* In f32 a row has the same bits whatever rows are beside it. */
static void check_alone(void)
{
	enum { ROWS = 131, IN = 37, OUT = 70 };
	struct pair x = pair_of(DT_F32, ROWS * IN, -1, 1), w = pair_of(DT_F32, IN * OUT, -1, 1), y = pair_output(DT_F32, ROWS * OUT);
	struct pair one = pair_output(DT_F32, OUT);
	EACH_SIDE(o->linear_fwd(d, y.p[s], x.p[s], w.p[s], NULL, ROWS, IN, OUT, OP_F32);
	          o->linear_fwd(d, one.p[s], (float *)x.p[s] + 130 * IN, w.p[s], NULL, 1, IN, OUT, OP_F32));
	double *all = pair_get(&y, 1, "linear of one row"), *alone = pair_get(&one, 1, "linear of one row");
	CHECK(!memcmp(all + 130 * OUT, alone, OUT * sizeof *all), "a row of an f32 product does not depend on the others");
	free(all), free(alone);
	FREE(&x, &w, &y, &one);
}

/* ---- pictures ---- */

static void check_pictures(int N, int H, int W, int C)
{
	size_t n = (size_t)N * H * W * C;
	struct pair x = pair_of(DT_F32, n, -1, 1), y = pair_output(DT_F32, n / 4), back = pair_output(DT_F32, n), up = pair_output(DT_F32, 4 * n);
	struct pair which = pair_noise(n / 4), deep = pair_output(DT_F32, n);
	EACH_SIDE(o->maxpool_fwd(d, y.p[s], which.p[s], x.p[s], N, H, W, C));
	same_bytes(&y, 4, "maxpool_fwd"), same_bytes(&which, 1, "maxpool_fwd places");
	EACH_SIDE(o->maxpool_bwd(d, back.p[s], y.p[s], which.p[s], N, H, W, C));
	same_bytes(&back, 4, "maxpool_bwd");
	EACH_SIDE(o->upsample_fwd(d, up.p[s], x.p[s], N, H, W, C));
	same_bytes(&up, 4, "upsample_fwd");
	EACH_SIDE(o->upsample_bwd(d, back.p[s], up.p[s], N, H, W, C));
	same(&back, 1, "upsample_bwd");
	EACH_SIDE(o->space_to_depth(d, deep.p[s], x.p[s], N, H, W, C, 2));
	same_bytes(&deep, 4, "space_to_depth");
	EACH_SIDE(o->depth_to_space(d, back.p[s], deep.p[s], N, H, W, C, 2));
	same_bytes(&back, 4, "depth_to_space");
	FREE(&x, &y, &back, &up, &which, &deep);
}

/* ---- attention ---- */

static void check_attention(int B, int H, int D, const struct attn_mask *m)
{
	size_t S = attn_length(m), n = B * S * H * D;
	char what[96];
	struct pair qkv = pair_of(T, 3 * n, -2, 2), y = pair_output(T, n), lse = pair_output(DT_F32, B * H * S);
	struct pair dy = pair_of(T, n, -1, 1), dqkv = pair_output(T, 3 * n);
	snprintf(what, sizeof what, "attention kind %d, %d + %d x %d, D %d", m->kind, m->n_text, m->grid_w, m->grid_h, D);
	EACH_SIDE(o->attn_fwd(d, y.p[s], lse.p[s], qkv.p[s], B, H, D, m));
	/* On tensor cores the probabilities are rounded to T, and both sides round y. */
	same(&y, T == DT_F32 ? 3 : 2, what);
	same(&lse, 4, what);
	/* Both sides from the same y and lse. */
	EACH_SIDE(void *h = must(malloc(n * 4)); side[0].o->get(side[0].d, h, y.p[0], n * dtype_bytes(T));
	          o->put(d, y.p[s], h, n * dtype_bytes(T)); char e[64]; o->sync(d, e, sizeof e); free(h);
	          o->attn_bwd(d, dqkv.p[s], dy.p[s], qkv.p[s], y.p[s], lse.p[s], B, H, D, m));
	same(&dqkv, T == DT_F32 ? 5 : 2, what);
	FREE(&qkv, &y, &lse, &dy, &dqkv);
}

static void check_all_attention(void)
{
	static const struct attn_mask masks[] = {
		{ATTN_FULL, 1, 0, 0, 0, 0}, {ATTN_FULL, 77, 0, 0, 0, 0}, {ATTN_CAUSAL, 65, 0, 0, 0, 0}, {ATTN_CAUSAL, 19, 12, 9, 0, 0},
		{ATTN_ROW, 17, 5, 3, 0, 0}, {ATTN_ROW, 70, 16, 9, 0, 0}, {ATTN_COLUMN, 33, 16, 12, 0, 0}, {ATTN_COLUMN, 0, 5, 13, 0, 0},
		{ATTN_CONV, 64, 16, 9, 11, 0}, {ATTN_CONV, 31, 8, 8, 5, 1}, {ATTN_CONV, 3, 4, 9, 1, 0},
		/* Several tiles of keys and of queries in text and image, of 32 to 128 places. */
		{ATTN_FULL, 197, 0, 0, 0, 0}, {ATTN_CAUSAL, 300, 0, 0, 0, 0}, {ATTN_ROW, 150, 16, 11, 0, 0},
		{ATTN_COLUMN, 130, 12, 23, 0, 0}, {ATTN_CONV, 200, 16, 10, 3, 0}, {ATTN_ROW, 77, 32, 6, 0, 0},
	};
	static const int widths[] = {64, 8, 40, 17, 128, 72, 5, 64, 64, 128, 16, 64, 64, 64, 64, 64, 128};
	for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
		check_attention(1 + i % 2, 2, widths[i], &masks[i]);
}

/* ---- losses and draws ---- */

static void check_xent(size_t rows, int V, int flags)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	struct pair x = pair_of(DT_F32, rows * V, -5, 5), target = pair_range(rows, -1, V - 1), nll = pair_output(DT_F32, rows);
	struct pair g = pair_output(t, rows * V);
	EACH_SIDE(o->xent(d, nll.p[s], g.p[s], x.p[s], target.p[s], rows, V, 0.25f, flags));
	same(&nll, 2, "xent nll"), same(&g, 1, "xent dlogits");
	EACH_SIDE(o->xent(d, nll.p[s], NULL, x.p[s], target.p[s], rows, V, 1, flags));
	same(&nll, 2, "xent without gradient");
	FREE(&x, &target, &nll, &g);
}

/* A target beyond the vocabulary is told by sync. */
static void check_target(void)
{
	static const int32_t wrong[2] = {1, 7};
	struct pair x = pair_of(DT_F32, 14, -1, 1), target = pair_ints(2, wrong), nll = pair_output(DT_F32, 2);
	EACH_SIDE(char err[256] = ""; o->xent(d, nll.p[s], NULL, x.p[s], target.p[s], 2, 7, 1, 0);
	          CHECK(o->sync(d, err, sizeof err) == -1 && !strncmp(err, "xent: ", 6), "%s: a bad target is an error: %s", o->name, err);
	          CHECK(o->sync(d, err, sizeof err) == 0, "%s: sync clears the error", o->name));
	FREE(&x, &target, &nll);
}

static void check_contrast(int B, bool grouped)
{
	struct pair sim = pair_of(DT_F32, (size_t)B * B, -1, 1), scale = pair_of(DT_F32, 1, 1, 2), group = pair_range(B, 0, B / 2);
	struct pair loss = pair_output(DT_F32, 1), dsim = pair_output(DT_F32, (size_t)B * B), ds = pair_output(DT_F32, 1);
	EACH_SIDE(o->clip_xent(d, loss.p[s], dsim.p[s], ds.p[s], sim.p[s], scale.p[s], grouped ? group.p[s] : NULL, B, 0.25f));
	same(&loss, 2, "clip_xent"), same(&dsim, 3, "clip_xent dsim"), same(&ds, 5, "clip_xent ds");
	FREE(&sim, &scale, &group, &loss, &dsim, &ds);
}

static void check_argmax(size_t rows, int V)
{
	/* Few values: ties. */
	float *v = must(calloc(rows * V, sizeof *v));
	for (size_t i = 0; i < rows * V; i++)
		v[i] = floorf((float)uniform(0, 5));
	v[0] = NAN;
	struct pair x = pair_bytes(DT_F32, rows * V, 4, v), best = pair_range(rows, 0, 0), z = pair_output(DT_F32, rows * V);
	EACH_SIDE(o->argmax(d, best.p[s], x.p[s], rows, V));
	same_bytes(&best, 4, "argmax");
	EACH_SIDE(o->onehot(d, z.p[s], best.p[s], rows, V));
	same_bytes(&z, 4, "onehot");
	free(v);
	FREE(&x, &best, &z);
}

static void check_draw(int V, float temperature, int top_k, float top_p)
{
	enum { ROWS = 24 };
	uint64_t key[ROWS];
	int32_t position[ROWS];
	for (int r = 0; r < ROWS; r++) {
		key[r] = (uint64_t)r * 0x100000001u;
		position[r] = r % 10 == 9 ? -1 : 17 * r;
	}
	struct draw how = {.temperature = temperature, .top_k = top_k, .top_p = top_p, .seed = 0x123456789abcdefu};
	struct pair x = pair_of(DT_F32, (size_t)ROWS * V, -3, 3), k = pair_bytes(DT_F32, ROWS, 8, key), p = pair_ints(ROWS, position);
	struct pair token = pair_range(ROWS, 0, 0);
	int32_t got[2][ROWS];
	EACH_SIDE(o->draw(d, token.p[s], x.p[s], k.p[s], p.p[s], ROWS, V, &how); o->get(d, got[s], token.p[s], sizeof got[s]));
	int differ = 0;
	for (int r = 0; r < ROWS; r++)
		differ += got[0][r] != got[1][r];
	/* The weights differ in their last bits: of 300 weights a draw may fall between two once in 10^5, of more so much
	 * more often. */
	CHECK(differ <= (V > 1000 ? 1 + V / 50000 : 0), "draw V %d t %g k %d p %g: %d of %d differ", V, temperature, top_k, top_p, differ, ROWS);
	FREE(&x, &k, &p, &token);
}

static void check_draw_ends(void)
{
	static const float row[3] = {1, NAN, 2};
	static const int32_t one = 1;
	static const uint64_t key = 5;
	struct draw how = {.temperature = 1, .top_p = 1};
	struct pair x = pair_bytes(DT_F32, 3, 4, row), k = pair_bytes(DT_F32, 1, 8, &key), p = pair_ints(1, &one), token = pair_ints(1, &one);
	EACH_SIDE(char err[256] = ""; o->draw(d, token.p[s], x.p[s], k.p[s], p.p[s], 1, 3, &how);
	          CHECK(o->sync(d, err, sizeof err) == -1 && !strncmp(err, "draw: ", 6), "%s: NaN logits are an error: %s", o->name, err));
	FREE(&x, &k, &p, &token);
}

/* ---- the discrete VAE's own ---- */

static void check_gumbel(size_t rows, int V, float tau)
{
	struct pair x = pair_of(DT_F32, rows * V, -4, 4), z = pair_output(DT_F32, rows * V), kl = pair_output(DT_F32, rows);
	struct pair dz = pair_of(DT_F32, rows * V, -1, 1), g = pair_output(DT_F32, rows * V);
	EACH_SIDE(o->gumbel_fwd(d, z.p[s], kl.p[s], x.p[s], rows, V, tau, 77, 3, 1ull << 33));
	same(&z, 20, "gumbel_fwd"), same(&kl, 5, "gumbel_fwd kl");
	EACH_SIDE(o->gumbel_bwd(d, g.p[s], dz.p[s], z.p[s], x.p[s], rows, V, tau, 0.1f));
	same(&g, 20, "gumbel_bwd");
	FREE(&x, &z, &kl, &dz, &g);
}

static void check_usage(size_t rows, int V)
{
	struct pair x = pair_of(DT_F32, rows * V, -4, 4), sum = pair_of(DT_F32, V, -1, 1), c = pair_of(DT_F32, V, -1, 1);
	struct pair g = pair_of(DT_F32, rows * V, -1, 1);
	EACH_SIDE(o->usage_fwd(d, sum.p[s], x.p[s], rows, V); o->usage_bwd(d, g.p[s], c.p[s], x.p[s], rows, V));
	same(&sum, 3, "usage_fwd"), same(&g, 3, "usage_bwd");
	FREE(&x, &sum, &c, &g);
}

static void check_laplace(size_t n)
{
	struct pair out = pair_of(DT_F32, 6 * n, -2, 1), x = pair_of(DT_F32, 3 * n, 0.1, 0.9), nll = pair_output(DT_F32, n);
	struct pair g = pair_output(DT_F32, 6 * n), rgb = pair_noise(3 * n);
	static const float floors[2] = {-INFINITY, -1};
	for (int i = 0; i < 2; i++) {
		EACH_SIDE(o->logit_laplace(d, nll.p[s], g.p[s], out.p[s], x.p[s], n, floors[i], 0.5f));
		same(&nll, 5, "logit_laplace"), same(&g, 5, "logit_laplace gradient");
	}
	EACH_SIDE(o->reconstruct(d, rgb.p[s], out.p[s], n, 0.8f, 0.1f));
	same_bytes(&rgb, 1, "reconstruct");
	FREE(&out, &x, &nll, &g, &rgb);
}

/* ---- optimizer ---- */

static void check_adamw(size_t n, enum dtype tw, enum dtype tm, enum dtype tv, enum dtype tg)
{
	struct pair w = pair_of(tw, n, -1, 1), wt = pair_output(T, n), m = pair_of(tm, n, -0.1, 0.1), v = pair_of(tv, n, 0, 0.01);
	struct pair g = pair_of(tg, n, -1, 1);
	struct adamw a = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-6f, .decay = 0.05f, .v_max = 0.02f, .g_scale = 0.5f,
	                  .step = 3, .seed = 99, .first = (1ull << 32) - 5};
	bool copy = tw == DT_F32;
	EACH_SIDE(struct adamw_tensor x = {w.p[s], copy ? wt.p[s] : NULL, m.p[s], v.p[s], g.p[s], tw, tm, tv, tg};
	          o->adamw(d, &x, n, &a));
	/* The same bits decide the roundings: neighbours only where the last bit of the sum differs. */
	same(&w, 2, "adamw w"), same(&m, 2, "adamw m"), same(&v, 2, "adamw v");
	if (tw != DT_F32)
		mostly_equal(&w, "adamw w");
	if (copy)
		same(&wt, 1, "adamw copy");
	FREE(&w, &wt, &m, &v, &g);
}

static void check_sums(size_t n, enum dtype t)
{
	static const double start = 3;
	struct pair x = pair_of(t, n, -1, 1), total = pair_bytes(DT_F32, 1, 8, &start), avg = pair_of(DT_F32, n, -1, 1);
	double got[2];
	EACH_SIDE(o->sumsq(d, total.p[s], x.p[s], t, n); if (t == DT_F32) o->sum(d, total.p[s], x.p[s], n);
	          o->get(d, &got[s], total.p[s], sizeof *got));
	CHECK(fabs(got[0] - got[1]) <= 1e-12 * got[0], "sums of %zu (%s): %.17g and %.17g", n, type_names[t], got[0], got[1]);
	EACH_SIDE(o->average(d, avg.p[s], x.p[s], t, n, 0.9f));
	same(&avg, 1, "average");
	FREE(&x, &total, &avg);
}

static void check_optimizer(void)
{
	for (size_t n = 1; n < 1000; n = n * 31 + 2) {
		check_adamw(n, DT_F32, DT_F32, DT_F32, DT_F32);
		check_adamw(n, DT_F32, DT_1_6_9, DT_0_6_10, T);
		check_adamw(n, T, DT_1_6_9, DT_0_6_10, T);
		check_adamw(n, T, DT_F32, DT_F32, DT_F32);
		check_sums(n, DT_F32);
		check_sums(n, T);
	}
	check_sums(70001, DT_F32);
}

/* ---- memory and recorded work ---- */

static void check_memory(void)
{
	const struct ops *o = side[1].o;
	struct dev *d = side[1].d;
	enum { W = 24, ROWS = 3 };
	unsigned char in[W * ROWS], out[W * ROWS];
	for (size_t i = 0; i < sizeof in; i++)
		in[i] = (unsigned char)i;
	unsigned char *a = must(o->alloc(d, sizeof in)), *b = must(o->alloc(d, sizeof in));
	o->get(d, out, a, sizeof out);
	int zero = 1;
	for (size_t i = 0; i < sizeof out; i++)
		zero &= out[i] == 0;
	o->put(d, a, in, sizeof in);
	o->copy2d(d, b, W, a + 8, W, 16, ROWS);
	o->zero(d, b + W, 4);
	o->get(d, out, b, sizeof out);
	CHECK(zero && (uintptr_t)a % 64 == 0, "memory is zeroed and aligned");
	CHECK(out[0] == 8 && out[15] == 23 && out[16] == 0 && out[W] == 0 && out[W + 4] == W + 12, "copies and zeros");
	CHECK(!o->alloc(d, (size_t)1 << 60), "too much memory is refused");
	CHECK(o->memory(d) > 0 && o->type(d) == T, "memory and type");
	char text[256] = "";
	o->describe(d, text, sizeof text);
	CHECK(text[0], "describes itself");
	o->release(d, a), o->release(d, b);
}

static void check_replay(void)
{
	const struct ops *o = side[1].o;
	struct dev *d = side[1].d;
	float x[3] = {1, 2, 3}, y[3] = {0};
	float *a = must(o->alloc(d, sizeof x)), *b = must(o->alloc(d, sizeof x));
	o->put(d, a, x, sizeof x);
	CHECK(!o->replay(d, 4), "nothing is recorded at first");
	for (int i = 0; i < 2; i++) { /* the second time it is kept */
		x[2] = 3 + i;
		o->put(d, a, x, sizeof x);
		o->record_begin(d, 4);
		o->pixels(d, b, (uint8_t *)a, 1, x, x);
		o->copy2d(d, b, sizeof x, a, sizeof x, sizeof x, 1);
		o->record_end(d, 4);
		o->get(d, y, b, sizeof y);
		CHECK(y[2] == x[2], "recorded work runs once");
	}
	x[2] = 9;
	o->put(d, a, x, sizeof x);
	int kept = o->replay(d, 4);
	o->get(d, y, b, sizeof y);
	CHECK(!kept || y[2] == 9, "replayed work reads what is there now");
	CHECK(kept == 1 || getenv("DALLE_CUDA_SYNC"), "recorded work is kept");
	o->release(d, a), o->release(d, b);
}

/* ---- addresses that are multiples of an element only ---- */

static void *second(const struct pair *x, int s)
{
	return (char *)x->p[s] + dtype_bytes(x->t);
}

static void check_shifted(void)
{
	enum { ROWS = 9, C = 64, N = ROWS * C, OUT = 24 };
	struct attn_mask m = {ATTN_CAUSAL, 3, 0, 0, 0, 0};
	struct pair x = pair_of(DT_F32, N + 1, -1, 1), u = pair_of(T, N + 1, -1, 1), y = pair_output(T, N + 1), f = pair_output(DT_F32, N + 1);
	struct pair w = pair_of(T, C * OUT + 1, -1, 1), z = pair_output(T, ROWS * OUT + 1), dw = pair_of(DT_F32, C * OUT + 1, -1, 1);
	struct pair a = pair_output(T, N / 3 + 1), lse = pair_output(DT_F32, ROWS / 3 + 1), moment = pair_of(DT_F32, N + 1, 0, 0.1);
	EACH_SIDE(o->cast(d, second(&y, s), second(&x, s), N, 0.5f, 0); o->gelu_fwd(d, second(&y, s), second(&u, s), N, 0);
	          o->add(d, second(&f, s), second(&x, s), second(&u, s), 0.5f, N));
	same(&y, 1, "gelu_fwd, shifted"), same(&f, 1, "add, shifted");
	EACH_SIDE(o->norm_fwd(d, second(&y, s), f.p[s], second(&lse, s), second(&x, s), x.p[s], x.p[s], 1, C, 0));
	same(&y, T == DT_F32 ? 10 : 1, "norm_fwd, shifted");
	EACH_SIDE(o->linear_fwd(d, second(&z, s), second(&u, s), second(&w, s), NULL, ROWS, C, OUT, 0);
	          o->linear_bwd(d, second(&y, s), second(&dw, s), NULL, second(&z, s), second(&u, s), second(&w, s), ROWS, C, OUT, 0));
	same(&z, 2, "linear, shifted"), same(&y, 3, "linear dx, shifted"), same(&dw, 3, "linear dw, shifted");
	EACH_SIDE(o->attn_fwd(d, second(&a, s), second(&lse, s), second(&u, s), 1, 1, C, &m));
	same(&a, 2, "attention, shifted");
	EACH_SIDE(struct adamw k = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-6f, .g_scale = 1, .step = 3};
	          struct adamw_tensor t = {second(&x, s), second(&y, s), second(&f, s), second(&moment, s), second(&u, s), DT_F32, DT_F32, DT_F32, T};
	          o->adamw(d, &t, N, &k));
	same(&x, 3, "adamw, shifted");
	FREE(&x, &u, &y, &f, &w, &z, &dw, &a, &lse, &moment);
}

/* ---- groups of checks, each a process of its own: one that the device does not recover from ends alone ---- */

static void elementwise(void)
{
	static const size_t lengths[] = {17, 255, 5001};
	for (int i = 0; i < 3; i++)
		check_elementwise(lengths[i]);
	check_gelu_sums(1, 1, 0), check_gelu_sums(130, 37, 1), check_gelu_sums(77, 2056, 0);
	check_filter();
	check_pixels(1), check_pixels(85);
	check_embed(1, 1, 1), check_embed(300, 65, 7), check_embed(37, 130, 500), check_embed(50, 136, 6), check_embed(9, 2312, 4);
}

static void norms(void)
{
	check_norm(1, 5, 0, 1), check_norm(37, 65, OP_ADD, 0.5f), check_norm(67, 64, OP_ADD | OP_FILTER, 2), check_norm(3, 260, OP_F32, 1);
	check_norm(5, 2048, OP_ADD, 1), check_norm(2, 3968, 0, 1), check_norm(2, 6148, 0, 1);
	static const int widths[] = {5, 64, 65, 260, 2048, 6148};
	for (int i = 0; i < 6; i++)
		check_all_norms_next(widths[i]), check_norm_bits(59, widths[i]);
	check_l2(5, 3), check_l2(7, 65);
}

static void products(void)
{
	check_linear(1, 1, 1, 0, true), check_linear(17, 33, 70, 0, true), check_linear(130, 64, 136, OP_OUT_F32, false);
	check_linear_add(64, 40, 24, true), check_linear_add(131, 33, 70, false), check_linear(33, 16, 8, OP_DW_T, false), check_linear(200, 24, 72, OP_F32, true);
	check_linear(1000, 8, 8, OP_F32, true), check_linear(150, 16, 200, OP_F32 | OP_OUT_F32, false);
	check_linear(5, 24, 40, OP_F32, true), check_linear(8, 260, 33, OP_F32, false), check_linear(20, 12, 30, OP_F32, true);
	check_linear(3, 6, 9, OP_F32, true), check_linear(301, 64, 48, OP_F32, true);
}

/* All of them by our own kernels. */
static void products_declined(void)
{
	products();
	check_pairs(37, 24, 40), check_pairs(35, 16, 33), check_pairs(150, 40, 134), check_pairs(9, 7, 6);
}

static void pictures(void)
{
	check_conv(1, 1, 1, 1, 1, 1, 0), check_conv(2, 5, 3, 3, 8, 7, 0), check_conv(1, 9, 8, 16, 72, 3, OP_RELU);
	check_conv(2, 6, 6, 24, 8, 1, OP_RELU), check_conv(1, 7, 5, 5, 3, 3, OP_F32), check_conv(1, 12, 12, 8, 136, 3, 0);
	check_conv(3, 9, 7, 16, 134, 1, OP_RELU), check_conv(1, 6, 5, 64, 40, 3, OP_RELU), check_conv(2, 5, 7, 32, 64, 3, 0), check_conv(1, 4, 6, 3, 33, 5, 0);
	check_pictures(1, 2, 2, 1), check_pictures(2, 4, 6, 5);
}

static void losses(void)
{
	check_xent(3, 1, 0), check_xent(20, 300, 0), check_xent(9, 257, OP_F32);
	check_target();
	check_contrast(1, false), check_contrast(33, true), check_contrast(20, false);
	check_argmax(5, 17), check_argmax(2, 600);
}

static void memory(void)
{
	check_memory();
	check_replay();
}

static void draws(void)
{
	check_draw(1, 1, 0, 1), check_draw(300, 0, 0, 1), check_draw(300, 0.7f, 0, 1), check_draw(300, 1, 40, 1);
	check_draw(300, 1.3f, 0, 0.8f), check_draw(257, 1, 100, 0.9f);
	check_draw_ends();
}

static void latents(void)
{
	check_gumbel(3, 17, 1), check_gumbel(2, 300, 0.1f), check_gumbel(2, 33, 0);
	check_usage(1, 17), check_usage(300, 65), check_usage(3, 300);
	check_laplace(1), check_laplace(85);
}

/* Nearer to the paper's sizes, for a real device: minutes on the emulated one. */
static void large(void)
{
	many = true;
	for (enum attn_kind k = ATTN_CAUSAL; k <= ATTN_CONV; k++) {
		struct attn_mask m = {k, 256, 32, 32, 11, 0};
		check_attention(1, 2, 64, &m);
		check_steps(2, 64, &m, attn_window(&m), k % 2 ? RUNS : ONE_CAPTION);
	}
	check_steps(62, 64, &(struct attn_mask){ATTN_ROW, 20, 8, 8, 0, 0}, 9, RUNS); /* more blocks than processors */
	check_linear(1280, 1024, 768, 0, true), check_linear_add(1280, 1024, 768, true), check_linear(1280, 512, 1024, OP_F32, true);
	check_linear(1279, 1024, 520, OP_OUT_F32, true), check_linear(1, 1024, 1024, 0, true);
	check_conv(2, 64, 64, 64, 128, 3, OP_RELU), check_conv(1, 64, 64, 3, 256, 7, 0), check_conv(1, 32, 32, 1024, 256, 1, 0);
	check_norm(2561, 2048, OP_ADD, 0.5f), check_embed(2560, 1024, 8192), check_xent(300, 16384, 0), check_argmax(64, 8192);
	check_elementwise(3000001);
	check_adamw(3000001, DT_F32, DT_1_6_9, DT_0_6_10, T), check_sums(3000001, T);
	check_draw(8192, 1, 100, 0.9f), check_draw(70000, 1, 0, 0.9f);
	check_gumbel(64, 8192, 1), check_usage(300, 8192);
}

struct group {
	const char *name;
	void (*checks)(void);
};
static const struct group typed[] = {
	{"elementwise", elementwise}, {"shifted", check_shifted}, {"norms", norms}, {"products", products}, {"pictures", pictures},
	{"attention", check_all_attention}, {"decoding", check_decoding}, {"losses", losses}, {"optimizer", check_optimizer}, {"memory", memory},
};
static const struct group larger = {"large sizes", large};
static const struct group declined = {"products without cuBLASLt", products_declined};
/* Entries without T. */
static const struct group untyped[] = {{"one row", check_alone}, {"draws", draws}, {"latents", latents}};

static void run(const struct group *g, enum dtype t)
{
	static struct counts {
		int passed, failed;
	} *counts;
	if (!counts && (counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) == MAP_FAILED)
		exit(1);
	int status = 0;
	*counts = (struct counts){0, 0};
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		check_passed = check_failed = 0;
		open_both(t);
		g->checks();
		close_both();
		*counts = (struct counts){check_passed, check_failed};
		fflush(stdout);
		_exit(0);
	}
	bool ended = child > 0 && waitpid(child, &status, 0) == child && status == 0;
	check_passed += counts->passed, check_failed += counts->failed;
	CHECK(ended, "%s (%s device): ended with status %#x", g->name, type_names[t], (unsigned)status);
}

#define RUN_ALL(groups, t)                                                                         \
	for (size_t i_ = 0; i_ < sizeof(groups) / sizeof *(groups); i_++)                          \
		run(&(groups)[i_], t)

int main(int argc, char **argv)
{
	choose_plugin(argv[0]);
	for (enum dtype t = DT_F32; t <= DT_F16; t++)
		RUN_ALL(typed, t);
	for (enum dtype t = DT_F32; t <= DT_F16 && getenv("CUDA_LARGE"); t++)
		run(&larger, t);
	RUN_ALL(untyped, DT_F32);
	setenv("DALLE_CUDA_LT", "0", 1);
	for (enum dtype t = DT_BF16; t <= DT_F16; t++)
		run(&declined, t);
	return check_done();
}
