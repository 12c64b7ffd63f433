/* test-gemm.c - products and convolutions of both CPU tables (references; with oneDNN) against plain loops
 * in double precision: odd sizes, every flag and type, accumulation, absent outputs, guards around outputs.
 * The loops' own gradients are checked by finite differences.  Also conversions, scratch memory, backend lookup, and
 * the promise that a row's or picture's bits do not depend on its batch. */
#include <math.h>
#include <stdlib.h>

#include "../kernels/cpu.h"
#include "check.h"

enum { GUARD = 64 };

static const char *const type_name[] = { "f32", "bf16", "f16" };

/* ---- data ---- */

static double uniform(void) /* -1..1 */
{
	static uint64_t state = 20211;
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (double)(state >> 33) / (double)(1u << 30) - 1;
}

/* A tensor with guards on both sides, and its values in double. */
struct tensor {
	char *block;
	void *p;
	enum dtype type;
	size_t n;
	double *v;
};

static struct tensor tensor_new(enum dtype t, size_t n)
{
	struct tensor x = { .type = t, .n = n };
	x.block = malloc(n * dtype_bytes(t) + 2 * GUARD);
	x.v = malloc((n + 1) * sizeof *x.v);
	if (!x.block || !x.v)
		abort();
	memset(x.block, 0x5a, n * dtype_bytes(t) + 2 * GUARD);
	x.p = x.block + GUARD;
	for (size_t i = 0; i < n; i++) {
		store_from_f32(x.p, t, i, (float)uniform());
		x.v[i] = load_as_f32(x.p, t, i);
	}
	return x;
}

static void tensor_free(struct tensor *x)
{
	free(x->block);
	free(x->v);
}

static bool guards_whole(const struct tensor *x)
{
	const char *after = x->block + GUARD + x->n * dtype_bytes(x->type);
	for (int i = 0; i < GUARD; i++)
		if (x->block[i] != 0x5a || after[i] != 0x5a)
			return false;
	return true;
}

/* Largest error of x against `want`, in units of what rounding allows: an f32 sum of `terms` products whose
 * absolute values add up to mass[i] (errors grow like a random walk; 4 + sqrt(terms) half-ulps covers it),
 * plus one rounding to the output's type and, for f16, half its subnormal step. */
static double worst(const struct tensor *x, const double *want, const double *mass, double terms)
{
	static const double ulp[] = { 0x1p-23, 0x1p-8, 0x1p-11 };
	double most = 0;
	for (size_t i = 0; i < x->n; i++) {
		double allowed = (4 + sqrt(terms)) * 0x1p-24 * mass[i] + ulp[x->type] * fabs(want[i]) + 0x1p-25;
		double e = fabs(load_as_f32(x->p, x->type, i) - want[i]) / allowed;
		most = isnan(most) || e <= most ? most : e; /* NaN wins and stays */
	}
	return most;
}

/* ---- the definition, in double; linear is the convolution of a 1 x 1 picture ---- */

struct shape {
	int N, H, W, in, out, k;
};

/* Element c of `channels` at place (n, y, x) of a picture of s. */
static size_t element(const struct shape *s, int n, int y, int x, int channels, int c)
{
	return ((size_t)(n * s->H + y) * (size_t)s->W + (size_t)x) * (size_t)channels + (size_t)c;
}

/* Weight of output o for input i at (p, q) of the kernel. */
static size_t weight(const struct shape *s, int o, int i, int p, int q)
{
	return ((size_t)(o * s->in + i) * (size_t)s->k + (size_t)p) * (size_t)s->k + (size_t)q;
}

/* Calls one(y index, x index, w index) for every product of the convolution. */
#define EACH_PRODUCT(s, yi, xi, wi, statement)                                                     \
	for (int n_ = 0; n_ < (s)->N; n_++)                                                        \
		for (int y_ = 0; y_ < (s)->H; y_++)                                                \
			for (int x_ = 0; x_ < (s)->W; x_++)                                        \
				for (int p_ = 0; p_ < (s)->k; p_++)                                \
					for (int q_ = 0; q_ < (s)->k; q_++) {                      \
						int a_ = y_ + p_ - (s)->k / 2, b_ = x_ + q_ - (s)->k / 2; \
						if (a_ < 0 || b_ < 0 || a_ >= (s)->H || b_ >= (s)->W) \
							continue;                                  \
						for (int o_ = 0; o_ < (s)->out; o_++)              \
							for (int i_ = 0; i_ < (s)->in; i_++) {     \
								size_t yi = element(s, n_, y_, x_, (s)->out, o_); \
								size_t xi = element(s, n_, a_, b_, (s)->in, i_); \
								size_t wi = weight(s, o_, i_, p_, q_); \
								statement;                         \
							}                                          \
					}

static size_t pixels(const struct shape *s)
{
	return (size_t)s->N * (size_t)s->H * (size_t)s->W;
}

/* y and mass start as given (zero, or what is added to). */
static void naive_fwd(double *y, double *mass, const double *x, const double *w, const double *b, const struct shape *s)
{
	size_t n = pixels(s) * (size_t)s->out;
	for (size_t i = 0; i < n; i++) {
		y[i] += b ? b[i % (size_t)s->out] : 0;
		mass[i] = fabs(y[i]) + (b ? fabs(b[i % (size_t)s->out]) : 0);
	}
	EACH_PRODUCT(s, yi, xi, wi, y[yi] += x[xi] * w[wi]; mass[yi] += fabs(x[xi] * w[wi]))
}

static void naive_bwd(double *dx, double *mx, double *dw, double *mw, double *db, double *mb, const double *dy,
		      const double *x, const double *w, const struct shape *s)
{
	for (size_t i = 0; i < pixels(s) * (size_t)s->out; i++) {
		db[i % (size_t)s->out] += dy[i];
		mb[i % (size_t)s->out] += fabs(dy[i]);
	}
	EACH_PRODUCT(s, yi, xi, wi, double a = dy[yi] * w[wi]; double b = dy[yi] * x[xi]; dx[xi] += a; mx[xi] += fabs(a);
		     dw[wi] += b; mw[wi] += fabs(b))
}

static double *zeros(size_t n)
{
	double *p = calloc(n + 1, sizeof *p);
	if (!p)
		abort();
	return p;
}

/* The loops' gradients against differences of sum(dy y): y is linear in x, w and b, so that the
 * difference quotient is exact but for rounding. */
static void test_definition(void)
{
	struct shape s = { 2, 4, 3, 3, 2, 3 };
	size_t nx = pixels(&s) * 3, ny = pixels(&s) * 2, nw = 2 * 3 * 9, nb = 2;
	struct tensor x = tensor_new(DT_F32, nx), w = tensor_new(DT_F32, nw), b = tensor_new(DT_F32, nb),
		      dy = tensor_new(DT_F32, ny);
	double *dx = zeros(nx), *dw = zeros(nw), *db = zeros(nb), *m = zeros(nx + nw + nb);
	naive_bwd(dx, m, dw, m + nx, db, m + nx + nw, dy.v, x.v, w.v, &s);
	double most = 0, *of[] = { x.v, w.v, b.v }, *grad[] = { dx, dw, db };
	size_t count[] = { nx, nw, nb };
	for (int q = 0; q < 3; q++)
		for (size_t i = 0; i < count[q]; i++) {
			double side[2], keep = of[q][i];
			for (int up = 0; up < 2; up++) {
				double *y = zeros(ny), *mass = zeros(ny);
				of[q][i] = keep + (up ? 0.5 : -0.5);
				naive_fwd(y, mass, x.v, w.v, b.v, &s);
				side[up] = 0;
				for (size_t j = 0; j < ny; j++)
					side[up] += y[j] * dy.v[j];
				free(y);
				free(mass);
			}
			of[q][i] = keep;
			most = fmax(most, fabs(side[1] - side[0] - grad[q][i]));
		}
	CHECK(most < 1e-12, "gradients of the definition equal differences (off by %g)", most);
	tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&dy);
	free(dx), free(dw), free(db), free(m);
}

/* ---- forward and backward of one shape; k = 0: linear ---- */

struct run {
	const struct ops *o;
	struct dev *d;
	const char *table;
	enum dtype type;
};

static bool clean(const struct run *r)
{
	char err[256] = "";
	int rc = r->o->sync(r->d, err, sizeof err);
	if (rc)
		printf("%s\n", err);
	return rc == 0;
}

static void test_fwd(const struct run *r, struct shape s, int flags, bool bias)
{
	bool linear = s.k == 0;
	s.k = linear ? 1 : s.k;
	enum dtype t = flags & OP_F32 ? DT_F32 : r->type;
	size_t ny = pixels(&s) * (size_t)s.out;
	struct tensor x = tensor_new(t, pixels(&s) * (size_t)s.in), b = tensor_new(DT_F32, (size_t)s.out);
	struct tensor w = tensor_new(t, (size_t)(s.in * s.out * s.k * s.k));
	struct tensor y = tensor_new(flags & OP_OUT_F32 ? DT_F32 : t, ny);
	double *want = zeros(ny), *mass = zeros(ny);
	naive_fwd(want, mass, x.v, w.v, bias ? b.v : NULL, &s);
	for (size_t i = 0; flags & OP_RELU && i < ny; i++)
		want[i] = want[i] > 0 ? want[i] : 0;
	if (linear)
		r->o->linear_fwd(r->d, y.p, x.p, w.p, bias ? b.p : NULL, pixels(&s), s.in, s.out, flags);
	else
		r->o->conv_fwd(r->d, y.p, x.p, w.p, bias ? b.p : NULL, s.N, s.H, s.W, s.in, s.out, s.k, flags);
	double e = worst(&y, want, mass, s.in * s.k * s.k);
	CHECK(clean(r) && e < 1 && guards_whole(&y), "%s %s %s fwd %dx%dx%d %d->%d k %d flags %d bias %d (error %.2f of 1)",
	      r->table, type_name[r->type], linear ? "linear" : "conv", s.N, s.H, s.W, s.in, s.out, s.k, flags, bias, e);
	tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&y);
	free(want), free(mass);
}

/* The residual stream: into another place, which begins as something else, and in place, to the same bits. */
static void test_add(const struct run *r, size_t rows, int in, int out, bool bias)
{
	struct shape s = { (int)rows, 1, 1, in, out, 1 };
	size_t n = rows * (size_t)out;
	struct tensor x = tensor_new(r->type, rows * (size_t)in), w = tensor_new(r->type, (size_t)(in * out));
	struct tensor b = tensor_new(DT_F32, (size_t)out), h = tensor_new(DT_F32, n), y = tensor_new(DT_F32, n);
	double *want = zeros(n), *mass = zeros(n);
	memcpy(want, h.v, n * sizeof *want);
	naive_fwd(want, mass, x.v, w.v, bias ? b.v : NULL, &s);
	r->o->linear_add_fwd(r->d, y.p, h.p, x.p, w.p, bias ? b.p : NULL, rows, in, out);
	double apart = worst(&y, want, mass, in), kept = worst(&h, h.v, mass, 0);
	r->o->linear_add_fwd(r->d, h.p, h.p, x.p, w.p, bias ? b.p : NULL, rows, in, out);
	double inside = worst(&h, want, mass, in);
	CHECK(clean(r) && apart < 1 && inside < 1 && kept < 1 && guards_whole(&y) && guards_whole(&h),
	      "%s %s linear_add_fwd %zu x %d -> %d bias %d (errors %.2f, %.2f in place, %.2f of what is added)", r->table,
	      type_name[r->type], rows, in, out, bias, apart, inside, kept);
	CHECK(!memcmp(y.p, h.p, n * 4), "linear_add_fwd %zu x %d -> %d: the same bits in place", rows, in, out);
	tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&h), tensor_free(&y);
	free(want), free(mass);
}

/* wanted: bits 1 dx, 2 dw, 4 db. */
static void test_bwd(const struct run *r, struct shape s, int flags, int wanted)
{
	bool linear = s.k == 0;
	s.k = linear ? 1 : s.k;
	enum dtype t = flags & OP_F32 ? DT_F32 : r->type;
	size_t nx = pixels(&s) * (size_t)s.in, nw = (size_t)(s.in * s.out * s.k * s.k), nb = (size_t)s.out;
	struct tensor x = tensor_new(t, nx), w = tensor_new(t, nw), dy = tensor_new(t, pixels(&s) * nb);
	struct tensor dx = tensor_new(t, nx), dw = tensor_new(flags & OP_DW_T ? t : DT_F32, nw), db = tensor_new(DT_F32, nb);
	double *wx = zeros(nx), *ww = zeros(nw), *wb = zeros(nb), *mx = zeros(nx), *mw = zeros(nw), *mb = zeros(nb);
	memcpy(ww, dw.v, nw * sizeof *ww); /* dw and db accumulate */
	memcpy(wb, db.v, nb * sizeof *wb);
	naive_bwd(wx, mx, ww, mw, wb, mb, dy.v, x.v, w.v, &s);
	void *px = wanted & 1 ? dx.p : NULL, *pw = wanted & 2 ? dw.p : NULL, *pb = wanted & 4 ? db.p : NULL;
	if (linear)
		r->o->linear_bwd(r->d, px, pw, pb, dy.p, x.p, w.p, pixels(&s), s.in, s.out, flags);
	else
		r->o->conv_bwd(r->d, px, pw, pb, dy.p, x.p, w.p, s.N, s.H, s.W, s.in, s.out, s.k, flags);
	double ex = wanted & 1 ? worst(&dx, wx, mx, s.out * s.k * s.k) : worst(&dx, dx.v, mx, 0);
	double ew = wanted & 2 ? worst(&dw, ww, mw, (double)pixels(&s)) : worst(&dw, dw.v, mw, 0);
	double eb = wanted & 4 ? worst(&db, wb, mb, (double)pixels(&s)) : worst(&db, db.v, mb, 0);
	CHECK(clean(r) && ex < 1 && ew < 1 && eb < 1 && guards_whole(&dx) && guards_whole(&dw) && guards_whole(&db),
	      "%s %s %s bwd %dx%dx%d %d->%d k %d flags %d wanted %d (errors dx %.2f dw %.2f db %.2f of 1)", r->table,
	      type_name[r->type], linear ? "linear" : "conv", s.N, s.H, s.W, s.in, s.out, s.k, flags, wanted, ex, ew, eb);
	tensor_free(&x), tensor_free(&w), tensor_free(&dy), tensor_free(&dx), tensor_free(&dw), tensor_free(&db);
	free(wx), free(ww), free(wb), free(mx), free(mw), free(mb);
}

static void test_linear(const struct run *r)
{
	static const int rows[] = { 1, 17, 255 }, widths[][2] = { { 1, 1 }, { 3, 5 }, { 33, 17 }, { 64, 96 } };
	static const int flags[] = { 0, OP_F32, OP_OUT_F32, OP_F32 | OP_OUT_F32 };
	for (size_t i = 0; i < 3; i++)
		for (size_t j = 0; j < 4; j++) {
			struct shape s = { rows[i], 1, 1, widths[j][0], widths[j][1], 0 };
			for (size_t f = 0; f < 4; f++)
				test_fwd(r, s, flags[f], f % 2 == j % 2);
			test_add(r, (size_t)rows[i], widths[j][0], widths[j][1], j % 2 == 0);
			test_bwd(r, s, 0, 7);
			test_bwd(r, s, OP_F32, 7);
			test_bwd(r, s, OP_DW_T, 7);
			test_bwd(r, s, OP_DW_T | OP_F32, 7);
		}
	struct shape small = { 19, 1, 1, 7, 9, 0 };
	for (int wanted = 0; wanted < 8; wanted++)
		test_bwd(r, small, 0, wanted);
	/* Larger than one cache block in each direction. */
	struct shape large = { 101, 1, 1, 531, 203, 0 };
	test_fwd(r, large, 0, true);
	test_add(r, 101, 531, 203, true);
	test_bwd(r, large, 0, 7);
	test_bwd(r, large, OP_DW_T, 7);
	struct shape tall = { 1031, 1, 1, 40, 30, 0 };
	test_fwd(r, tall, 0, true);
	test_bwd(r, tall, 0, 7);
	test_bwd(r, tall, OP_DW_T, 7);
}

static void test_conv(const struct run *r)
{
	static const struct shape shapes[] = {
		{ 1, 1, 1, 3, 5, 3 },   { 2, 5, 7, 3, 5, 3 },   { 3, 4, 4, 33, 5, 1 },  { 1, 9, 3, 5, 33, 5 },
		{ 2, 8, 8, 32, 48, 3 }, { 1, 16, 16, 3, 16, 7 }, { 5, 3, 2, 16, 3, 3 }, { 2, 16, 16, 24, 24, 3 },
	};
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
		test_fwd(r, shapes[i], 0, true);
		test_fwd(r, shapes[i], OP_RELU, true);
		test_fwd(r, shapes[i], OP_F32, false);
		test_fwd(r, shapes[i], OP_F32 | OP_RELU, true);
		test_bwd(r, shapes[i], 0, 7);
		test_bwd(r, shapes[i], OP_F32, 7);
	}
	for (int wanted = 0; wanted < 8; wanted++) {
		test_bwd(r, shapes[1], 0, wanted);
		test_bwd(r, shapes[4], 0, wanted);
	}
}

/* y = gelu(u) of u as stored; u as linear_fwd gives it. */
static void test_linear_gelu(const struct run *r, int exact)
{
	size_t rows = 37, in = 29, out = 50, n = rows * out;
	struct tensor x = tensor_new(r->type, rows * in), w = tensor_new(r->type, out * in), b = tensor_new(DT_F32, out);
	struct tensor y = tensor_new(r->type, n), u = tensor_new(r->type, n), u2 = tensor_new(r->type, n);
	r->o->linear_gelu_fwd(r->d, y.p, u.p, x.p, w.p, b.p, rows, (int)in, (int)out, exact);
	r->o->linear_fwd(r->d, u2.p, x.p, w.p, b.p, rows, (int)in, (int)out, 0);
	double *want = zeros(n), *mass = zeros(n);
	for (size_t i = 0; i < n; i++) {
		double v = load_as_f32(u.p, r->type, i);
		want[i] = exact ? v * 0.5 * (1 + erf(v / sqrt(2))) : v / (1 + exp(-1.702 * v));
		mass[i] = 8 * fabs(v); /* the exponential's own error */
	}
	double e = worst(&y, want, mass, 1);
	CHECK(clean(r) && e < 1 && !memcmp(u.p, u2.p, n * dtype_bytes(r->type)) && guards_whole(&y) && guards_whole(&u),
	      "%s %s linear_gelu exact %d (error %.2f of 1)", r->table, type_name[r->type], exact, e);
	tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&y), tensor_free(&u), tensor_free(&u2);
	free(want), free(mass);
}

/* ---- bits ---- */

/* Rows and pictures computed alone, in odd groups and by another number of threads. */
static void test_batch_bits(const struct run *r, int in, int out)
{
	static const size_t parts[] = { 1, 2, 7, 17, 64, 100 };
	size_t rows = 300, I = (size_t)in, O = (size_t)out;
	struct tensor x = tensor_new(DT_F32, rows * I), w = tensor_new(DT_F32, O * I), y = tensor_new(DT_F32, rows * O),
		      z = tensor_new(DT_F32, rows * O);
	char err[100];
	struct dev *one = r->o->open(0, r->type, 1, err, sizeof err);
	r->o->linear_fwd(r->d, y.p, x.p, w.p, NULL, rows, in, out, OP_F32);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		memset(z.p, 0, rows * O * 4);
		for (size_t at = 0; at < rows; at += parts[i])
			r->o->linear_fwd(i % 2 ? one : r->d, (float *)z.p + at * O, (float *)x.p + at * I, w.p, NULL,
					 at + parts[i] < rows ? parts[i] : rows - at, in, out, OP_F32);
		CHECK(!memcmp(y.p, z.p, rows * O * 4), "%s: %d->%d rows in parts of %zu have the same bits", r->table, in, out,
		      parts[i]);
	}
	r->o->close(one);
	tensor_free(&x), tensor_free(&w), tensor_free(&y), tensor_free(&z);
}

static void test_picture_bits(const struct run *r, int side, int in, int out, int k)
{
	enum { N = 9 };
	size_t I = (size_t)(side * side * in), O = (size_t)(side * side * out);
	struct tensor x = tensor_new(DT_F32, N * I), w = tensor_new(DT_F32, (size_t)(in * out * k * k));
	struct tensor y = tensor_new(DT_F32, N * O), z = tensor_new(DT_F32, N * O);
	r->o->conv_fwd(r->d, y.p, x.p, w.p, NULL, N, side, side, in, out, k, OP_F32);
	for (size_t part = 1; part < 6; part += 3) {
		memset(z.p, 0, N * O * 4);
		for (size_t n = 0; n < N; n += part)
			r->o->conv_fwd(r->d, (float *)z.p + n * O, (float *)x.p + n * I, w.p, NULL,
				       (int)(n + part < N ? part : N - n), side, side, in, out, k, OP_F32);
		CHECK(!memcmp(y.p, z.p, N * O * 4), "%s: conv %d->%d k %d at %d: pictures in parts of %zu have the same bits",
		      r->table, in, out, k, side, part);
	}
	tensor_free(&x), tensor_free(&w), tensor_free(&y), tensor_free(&z);
}

/* The same call twice. */
static void test_repeat_bits(const struct run *r)
{
	size_t rows = 515, I = 70, O = 90;
	struct tensor x = tensor_new(r->type, rows * I), w = tensor_new(r->type, O * I), dy = tensor_new(r->type, rows * O);
	float *dw[2] = { calloc(O * I, 4), calloc(O * I, 4) }, *db[2] = { calloc(O, 4), calloc(O, 4) };
	for (int i = 0; i < 2; i++)
		r->o->linear_bwd(r->d, NULL, dw[i], db[i], dy.p, x.p, w.p, rows, (int)I, (int)O, 0);
	CHECK(!memcmp(dw[0], dw[1], O * I * 4) && !memcmp(db[0], db[1], O * 4), "%s %s: gradients have the same bits again",
	      r->table, type_name[r->type]);
	for (int i = 0; i < 2; i++)
		free(dw[i]), free(db[i]);
	tensor_free(&x), tensor_free(&w), tensor_free(&dy);
}

/* ---- pixels ---- */

static void test_pixels(const struct run *r)
{
	enum { N = 3, H = 6, W = 4, C = 5, n = N * H * W * C };
	struct tensor x = tensor_new(DT_F32, n), up = tensor_new(DT_F32, 4 * n), y = tensor_new(DT_F32, n / 4),
		      back = tensor_new(DT_F32, n), deep = tensor_new(DT_F32, n);
	float *xp = x.p, *yp = y.p, *upp = up.p, *bp = back.p, *dp = deep.p;
	uint8_t which[n / 4];
	xp[C] = xp[0]; /* a tie: the first wins */
	r->o->maxpool_fwd(r->d, y.p, which, x.p, N, H, W, C);
	r->o->maxpool_bwd(r->d, back.p, y.p, which, N, H, W, C);
	r->o->upsample_fwd(r->d, up.p, x.p, N, H, W, C);
	bool pool = true, routed = true, near = true, sum = true, shuffled = true;
	for (int i = 0; i < n; i++) {
		int c = i % C, px = i / C % W, py = i / C / W % H, p = i / C / W / H;
		int cell = ((p * H / 2 + py / 2) * (W / 2) + px / 2) * C + c, place = py % 2 * 2 + px % 2;
		pool &= yp[cell] >= xp[i] && (which[cell] != place || yp[cell] == xp[i]);
		for (int q = 0; q < which[cell]; q++) /* earlier places are smaller */
			pool &= xp[((p * H + py / 2 * 2 + q / 2) * W + px / 2 * 2 + q % 2) * C + c] < yp[cell];
		routed &= bp[i] == (which[cell] == place ? yp[cell] : 0);
		for (int q = 0; q < 4; q++)
			near &= upp[((p * 2 * H + 2 * py + q / 2) * 2 * W + 2 * px + q % 2) * C + c] == xp[i];
	}
	CHECK(pool && routed, "%s maxpool and its gradient", r->table);
	r->o->upsample_bwd(r->d, back.p, up.p, N, H, W, C);
	for (int i = 0; i < n; i++)
		sum &= bp[i] == 4 * xp[i];
	CHECK(near && sum, "%s upsample and its adjoint", r->table);
	r->o->space_to_depth(r->d, deep.p, x.p, N, H, W, C, 2);
	r->o->depth_to_space(r->d, back.p, deep.p, N, H, W, C, 2);
	for (int i = 0; i < n; i++) {
		int c = i % C, px = i / C % W, py = i / C / W % H, p = i / C / W / H;
		shuffled &= dp[((p * H / 2 + py / 2) * (W / 2) + px / 2) * C * 4 + (c * 2 + py % 2) * 2 + px % 2] == xp[i];
	}
	CHECK(shuffled && !memcmp(back.p, x.p, n * 4), "%s space to depth and back", r->table);
	CHECK(guards_whole(&y) && guards_whole(&up) && guards_whole(&back) && guards_whole(&deep), "%s pixels: guards", r->table);
	tensor_free(&x), tensor_free(&up), tensor_free(&y), tensor_free(&back), tensor_free(&deep);
}

/* ---- conversions, scratch, lookup ---- */

/* Every value of a 16-bit type, and the midpoints between neighbours, which go to the even one. */
static void test_conversions(enum dtype t)
{
	uint32_t infinity = t == DT_BF16 ? 0x7f80 : 0x7c00;
	bool same = true, even = true, down = true, up = true, nan = true;
	for (uint32_t h = 0; h <= infinity; h++) {
		uint16_t now = (uint16_t)h, next = (uint16_t)(h + 1), got;
		float x = load_as_f32(&now, t, 0);
		store_from_f32(&got, t, 0, -x);
		same &= got == (h | 0x8000);
		if (h >= infinity)
			continue;
		float y = load_as_f32(&next, t, 0);
		/* Above the largest finite value the spacing continues to where infinity stands. */
		float middle = h + 1 < infinity ? x + (y - x) / 2 : t == DT_F16 ? 65520 : bits_float(0x7f7f8000);
		store_from_f32(&got, t, 0, middle);
		even &= got == (h % 2 ? next : now);
		store_from_f32(&got, t, 0, nextafterf(middle, 0));
		down &= got == now;
		store_from_f32(&got, t, 0, nextafterf(middle, INFINITY));
		up &= got == next;
	}
	for (uint32_t low = 1; low; low <<= 1) {
		uint16_t got;
		store_from_f32(&got, t, 0, bits_float(0x7f800000 | low));
		nan &= (low & 0x7fffff) == 0 || isnan(load_as_f32(&got, t, 0));
	}
	CHECK(same && even && down && up && nan, "%s conversions: values %d, ties %d, below %d, above %d, NaN %d",
	      type_name[t], same, even, down, up, nan);
}

static void test_scratch(void)
{
	char err[100];
	struct dev *d = cpu_reference_ops()->open(0, DT_F32, 1, err, sizeof err);
	struct scratch_mark m = cpu_scratch_begin(d);
	char *p[40];
	bool good = true;
	for (int i = 0; i < 20; i++) {
		size_t n = (size_t)1 << i;
		p[i] = cpu_scratch(d, "test", n);
		memset(p[i], i, n);
		good &= (uintptr_t)p[i] % 64 == 0;
	}
	for (int i = 0; i < 20; i++)
		good &= p[i][0] == i && p[i][((size_t)1 << i) - 1] == i;
	cpu_scratch_end(d, m);
	CHECK(good && cpu_scratch(d, "test", 1) == p[0], "scratch pieces are apart, aligned and used again");
	CHECK(!cpu_scratch(d, "test", SIZE_MAX) && cpu_sync(d, err, sizeof err) == -1 && !strncmp(err, "test: ", 6) &&
		      cpu_sync(d, err, sizeof err) == 0,
	      "no scratch: a sticky error with the op's name, cleared by sync");
	cpu_close(d);
}

static void test_lookup(void)
{
	static const char *const bad[] = { "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:99999999999", "cpu:0", "" };
	char err[512];
	int index = 7;
	CHECK(ops_find("cpu", &index, err, sizeof err) == cpu_ops() && index == 0, "cpu is found");
	CHECK(ops_find("auto", &index, err, sizeof err) != NULL, "auto finds something");
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(!ops_find(bad[i], &index, err, sizeof err) && err[0], "device '%s' is refused: %s", bad[i], err);
	setenv("DALLE_PLUGINS", "/nonexistent", 1);
	CHECK(!ops_find("cuda", &index, err, sizeof err) && strstr(err, "no CUDA backend"), "cuda without plugin: %s", err);
	CHECK(ops_find("auto", &index, err, sizeof err) == cpu_ops() && index == 0, "auto without plugin is the CPU");
	struct dev *d = cpu_ops()->open(0, DT_F32, 0, err, sizeof err);
	cpu_ops()->describe(d, err, sizeof err);
	CHECK(d && d->threads >= 1 && cpu_ops()->memory(d) > 1 << 20 && strstr(err, "thread"), "describe: %s", err);
	CHECK(!cpu_ops()->open(1, DT_F32, 0, err, sizeof err), "device 1 is refused");
	cpu_ops()->close(d);
}

static void test_table(const struct ops *o, const char *name, enum dtype t)
{
	char err[100];
	struct run r = { o, o->open(0, t, 2, err, sizeof err), name, t };
	test_linear(&r);
	test_conv(&r);
	test_linear_gelu(&r, 0);
	test_linear_gelu(&r, 1);
	test_repeat_bits(&r);
	o->close(r.d);
}

static void test_promises(const struct ops *o, const char *name)
{
	char err[100];
	struct run r = { o, o->open(0, DT_F32, 2, err, sizeof err), name, DT_F32 };
	test_batch_bits(&r, 256, 768);
	test_batch_bits(&r, 700, 96);
	test_picture_bits(&r, 8, 32, 48, 3);
	test_picture_bits(&r, 16, 3, 16, 3);
	test_picture_bits(&r, 8, 3, 32, 7);
	test_picture_bits(&r, 4, 64, 256, 1);
	test_pixels(&r);
	o->close(r.d);
}

int main(void)
{
	test_definition();
	test_conversions(DT_BF16);
	test_conversions(DT_F16);
	test_scratch();
	test_lookup();
	for (int t = 0; t < 3; t++)
		test_table(cpu_reference_ops(), "reference", (enum dtype)t);
	test_promises(cpu_reference_ops(), "reference");
#if HAVE_ONEDNN
	/* f32 linear through oneDNN too: the path that 16-bit types take where the CPU multiplies them. */
	struct ops all = *cpu_ops();
	dnnl_override_all(&all);
	test_table(&all, "oneDNN", DT_F32);
	for (int t = 1; t < 3; t++)
		test_table(cpu_ops(), "cpu", (enum dtype)t);
	test_promises(cpu_ops(), "cpu");
#endif
	return check_done();
}
