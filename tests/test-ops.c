/* test-ops.c - the elementwise, norm, embedding, loss and optimizer entries of struct ops against
 * loops in double; gradients by central differences; odd sizes, all types.  The attention is
 * in test-attn.c, the discrete VAE's entries and the draws in test-latent.c. */
#include "opscheck.h"

static const size_t lengths[] = {1, 17, 255, 20001 /* more than one thread's share */};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* ---- elementwise ---- */

static void check_casts(size_t n)
{
	struct tensor x = tensor_random(DT_F32, n, -3, 3), y = tensor_output(T, n), r = tensor_random(T, n, -3, 3);
	struct tensor back = tensor_output(DT_F32, n), s = tensor_output(DT_F32, n);
	double *want = must(calloc(n, sizeof *want));
	for (size_t i = 0; i < n; i++)
		want[i] = 0.75 * x.v[i];
	ops->cast(dev, y.p, x.p, n, 0.75f, 0);
	near(&y, want, bound(T), "cast");
	int exact = 1;
	for (size_t i = 0; i < n; i++) {
		float rounded;
		char h[4];
		store_from_f32(h, T, 0, 0.75f * (float)x.v[i]);
		rounded = load_as_f32(h, T, 0);
		exact &= y.v[i] == rounded;
		want[i] = -0.5 * r.v[i];
	}
	CHECK(exact, "cast rounds to nearest even");
	ops->uncast(dev, back.p, r.p, n, -0.5f);
	near(&back, want, 1e-7, "uncast");
	for (size_t i = 0; i < n; i++)
		want[i] = x.v[i] + 0.015625 * r.v[i];
	ops->add(dev, s.p, x.p, r.p, 0.015625f, n);
	near(&s, want, 2e-7, "add");
	ops->add(dev, x.p, x.p, r.p, 0.015625f, n);
	near(&x, want, 2e-7, "add in place");
	tensor_free(&x), tensor_free(&y), tensor_free(&r), tensor_free(&back), tensor_free(&s);
	free(want);
}

static void check_relu(size_t n, int flags)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	struct tensor x = tensor_random(DT_F32, n, -3, 3), y = tensor_output(t, n), dy = tensor_random(t, n, -1, 1);
	struct tensor dx = tensor_random(DT_F32, n, -1, 1);
	double *want = must(calloc(n, sizeof *want));
	for (size_t i = 0; i < n; i++)
		want[i] = x.v[i] > 0 ? x.v[i] : 0;
	ops->relu_fwd(dev, y.p, x.p, n, flags);
	near(&y, want, bound(t), "relu_fwd");
	for (size_t i = 0; i < n; i++)
		want[i] = dx.v[i] + (x.v[i] > 0 ? dy.v[i] : 0);
	ops->relu_bwd_add(dev, dx.p, dy.p, x.p, n, flags);
	near(&dx, want, 2e-7, "relu_bwd_add");
	if (t == T) {
		struct tensor g = tensor_output(T, n);
		for (size_t i = 0; i < n; i++)
			want[i] = y.v[i] > 0 ? dy.v[i] : 0;
		ops->relu_bwd(dev, g.p, dy.p, y.p, n);
		near(&g, want, 1e-9, "relu_bwd");
		ops->relu_bwd(dev, dy.p, dy.p, y.p, n);
		near(&dy, want, 1e-9, "relu_bwd in place");
		tensor_free(&g);
	}
	ops->relu_bwd(dev, NULL, dy.p, y.p, n);
	tensor_free(&x), tensor_free(&y), tensor_free(&dy), tensor_free(&dx);
	free(want);
}

static void naive_gelu(double *y, const double *u, const void *with)
{
	int exact = *(const int *)with;
	*y = exact ? 0.5 * *u * (1 + erf(*u / sqrt(2))) : *u / (1 + exp(-1.702 * *u));
}

static void check_gelu(size_t n, int exact)
{
	struct tensor u = tensor_random(T, n, -9, 9), y = tensor_output(T, n), dy = tensor_random(T, n, -1, 1);
	struct tensor du = tensor_output(T, n);
	double *want = must(calloc(n, sizeof *want));
	for (size_t i = 0; i < n; i++)
		naive_gelu(want + i, u.v + i, &exact);
	ops->gelu_fwd(dev, y.p, u.p, n, exact);
	near(&y, want, bound(T), "gelu_fwd");
	for (size_t i = 0; i < n; i++)
		differences(want + i, naive_gelu, u.v + i, 1, dy.v + i, 1, &exact);
	ops->gelu_bwd(dev, du.p, NULL, dy.p, u.p, 1, (int)n, exact);
	near(&du, want, bound(T), "gelu_bwd");
	ops->gelu_bwd(dev, NULL, NULL, dy.p, u.p, 1, (int)n, exact);
	tensor_free(&u), tensor_free(&y), tensor_free(&dy), tensor_free(&du);
	free(want);
}

/* The sums are those of du as it is stored, whether it is stored or not. */
static void check_gelu_sums(size_t rows, int C)
{
	size_t n = rows * C;
	struct tensor u = tensor_random(T, n, -9, 9), dy = tensor_random(T, n, -1, 1), du = tensor_output(T, n), plain = tensor_output(T, n);
	struct tensor db[] = {tensor_fill(DT_F32, C, 2), tensor_fill(DT_F32, C, 2)};
	double *want = must(calloc(C, sizeof *want));
	ops->gelu_bwd(dev, plain.p, NULL, dy.p, u.p, rows, C, 0);
	ops->gelu_bwd(dev, du.p, db[0].p, dy.p, u.p, rows, C, 0);
	ops->gelu_bwd(dev, NULL, db[1].p, dy.p, u.p, rows, C, 0);
	tensor_get(&du, "gelu_bwd"), tensor_get(&plain, "gelu_bwd");
	for (int c = 0; c < C; c++) {
		want[c] = 2;
		for (size_t r = 0; r < rows; r++)
			want[c] += du.v[r * C + c];
	}
	CHECK(!memcmp(du.v, plain.v, n * sizeof *du.v), "gelu_bwd %zu x %d: du is the same with sums and without", rows, C);
	near(&db[0], want, 1e-6, "gelu_bwd's sums add"), near(&db[1], want, 1e-6, "gelu_bwd's sums alone");
	tensor_free(&u), tensor_free(&dy), tensor_free(&du), tensor_free(&plain), tensor_free(&db[0]), tensor_free(&db[1]);
	free(want);
}

/* Far arguments: no overflow may turn into NaN, and a NaN must not vanish. */
static void check_gelu_ends(void)
{
	for (int exact = 0; exact < 2; exact++) {
		struct tensor u = tensor_new(T, 4), y = tensor_output(T, 4), dy = tensor_fill(T, 4, 1);
		u.v[0] = -1000, u.v[1] = 1000, u.v[2] = -60, u.v[3] = NAN;
		tensor_put(&u);
		ops->gelu_fwd(dev, y.p, u.p, 4, exact);
		tensor_get(&y, "gelu ends");
		CHECK(y.v[0] == 0 && y.v[1] == u.v[1] && fabs(y.v[2]) < 1e-30 && isnan(y.v[3]), "gelu of far arguments");
		ops->gelu_bwd(dev, y.p, NULL, dy.p, u.p, 1, 4, exact);
		tensor_get(&y, "gelu ends");
		CHECK(y.v[0] == 0 && y.v[1] == 1 && fabs(y.v[2]) < 1e-30 && isnan(y.v[3]), "gelu' of far arguments");
		tensor_free(&u), tensor_free(&y), tensor_free(&dy);
	}
}

static void check_pixels(size_t n)
{
	static const float scale[3] = {0.5f, 0.25f, 2}, shift[3] = {-1, 0, 3};
	uint8_t *rgb = must(calloc(n, 3));
	double *want = must(calloc(3 * n, sizeof *want));
	struct tensor x = tensor_output(DT_F32, 3 * n);
	uint8_t *device = must(ops->alloc(dev, 3 * n));
	for (size_t i = 0; i < 3 * n; i++) {
		rgb[i] = (uint8_t)(i * 37 + i / 256);
		want[i] = rgb[i] * scale[i % 3] + shift[i % 3];
	}
	ops->put(dev, device, rgb, 3 * n);
	ops->pixels(dev, x.p, device, n, scale, shift);
	near(&x, want, 1e-7, "pixels");
	/* recipe K2 */
	static const float phi[3] = {0.8f / 255, 0.8f / 255, 0.8f / 255}, eps[3] = {0.1f, 0.1f, 0.1f};
	uint8_t three[3] = {0, 255, 128};
	struct tensor v = tensor_output(DT_F32, 3);
	ops->put(dev, device, three, 3);
	ops->pixels(dev, v.p, device, 1, phi, eps);
	tensor_get(&v, "pixels");
	CHECK(fabs(v.v[0] - 0.1) < 1e-6 && fabs(v.v[1] - 0.9) < 1e-6 && fabs(v.v[2] - 0.501569) < 1e-6, "phi of 0, 255, 128");
	ops->release(dev, device);
	tensor_free(&x), tensor_free(&v);
	free(rgb);
	free(want);
}

/* ---- embeddings ---- */

static void check_embed(size_t rows, int C)
{
	enum { V = 5 };
	struct tensor table = tensor_random(DT_F32, V * C, -1, 1), h = tensor_output(DT_F32, rows * C);
	struct tensor more = tensor_random(DT_F32, rows * C, -1, 1), g = tensor_random(DT_F32, V * C, -1, 1);
	int32_t *idx = must(calloc(rows, sizeof *idx));
	double *want = must(calloc(rows * C, sizeof *want)), *added = must(calloc(rows * C, sizeof *added));
	double *want_g = must(calloc(g.n, sizeof *want_g));
	memcpy(want_g, g.v, g.n * sizeof *want_g);
	for (size_t r = 0; r < rows; r++) {
		idx[r] = (int)(r * 7 % (V + 1)) - 1;
		for (int c = 0; c < C; c++) {
			double e = idx[r] < 0 ? 0 : table.v[idx[r] * C + c];
			want[r * C + c] = e;
			added[r * C + c] = e + more.v[r * C + c];
			if (idx[r] >= 0)
				want_g[idx[r] * C + c] += more.v[r * C + c];
		}
	}
	int32_t *device = ints_put(idx, rows);
	ops->embed_bwd(dev, g.p, more.p, device, rows, C);
	near(&g, want_g, 4e-6, "embed_bwd adds");
	ops->embed_bwd(dev, NULL, more.p, device, rows, C);
	ops->embed_fwd(dev, h.p, table.p, device, rows, C, 0);
	near(&h, want, 0, "embed_fwd");
	ops->embed_fwd(dev, more.p, table.p, device, rows, C, 1);
	near(&more, added, 1e-7, "embed_fwd added");
	ops->release(dev, device);
	tensor_free(&table), tensor_free(&h), tensor_free(&more), tensor_free(&g);
	free(idx), free(want), free(added), free(want_g);
}

/* ---- norms ---- */

struct rows {
	size_t rows;
	int C;
};

/* x = values, then gains, then biases. */
static void naive_norm(double *y, const double *x, const void *with)
{
	const struct rows *s = with;
	const double *w = x + s->rows * s->C, *b = w + s->C;
	for (size_t r = 0; r < s->rows; r++) {
		double mean = 0, var = 0;
		for (int c = 0; c < s->C; c++)
			mean += x[r * s->C + c] / s->C;
		for (int c = 0; c < s->C; c++)
			var += (x[r * s->C + c] - mean) * (x[r * s->C + c] - mean) / s->C;
		for (int c = 0; c < s->C; c++)
			y[r * s->C + c] = (x[r * s->C + c] - mean) / sqrt(var + 1e-5) * w[c] + b[c];
	}
}

/* The result of norm_bwd in double, checked against central differences where those are cheap. */
static void naive_norm_bwd(double *g, const double *dy, const double *all, const struct rows *s)
{
	size_t n = s->rows * s->C;
	const double *w = all + n;
	double *dw = g + n, *db = dw + s->C;
	memset(g, 0, (n + 2 * s->C) * sizeof *g);
	for (size_t r = 0; r < s->rows; r++) {
		const double *x = all + r * s->C, *d = dy + r * s->C;
		double mean = 0, var = 0, mg = 0, mx = 0;
		for (int c = 0; c < s->C; c++)
			mean += x[c] / s->C;
		for (int c = 0; c < s->C; c++)
			var += (x[c] - mean) * (x[c] - mean) / s->C;
		double rstd = 1 / sqrt(var + 1e-5);
		for (int c = 0; c < s->C; c++) {
			mg += w[c] * d[c] / s->C;
			mx += w[c] * d[c] * (x[c] - mean) * rstd / s->C;
			dw[c] += d[c] * (x[c] - mean) * rstd;
			db[c] += d[c];
		}
		for (int c = 0; c < s->C; c++)
			g[r * s->C + c] = rstd * (w[c] * d[c] - mg - (x[c] - mean) * rstd * mx);
	}
}

static void check_norm(size_t rows, int C, int flags)
{
	struct rows s = {rows, C};
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * C;
	struct tensor x = tensor_random(DT_F32, n, -1, 5), w = tensor_random(DT_F32, C, 0.5, 2);
	struct tensor b = tensor_random(DT_F32, C, -1, 1);
	struct tensor y = tensor_output(t, n), mean = tensor_output(DT_F32, rows), rstd = tensor_output(DT_F32, rows);
	struct tensor dy = tensor_random(t, n, -1, 1), dx = tensor_output(DT_F32, n), dxa = tensor_fill(DT_F32, n, 3);
	struct tensor dw = tensor_fill(DT_F32, C, 2), db = tensor_fill(DT_F32, C, -2);
	double *all = must(calloc((n + 2 * C), sizeof *all)), *want = must(calloc((n + 2 * C), sizeof *want));
	double *g = must(calloc((n + 2 * C), sizeof *g));
	memcpy(all, x.v, n * sizeof *all);
	memcpy(all + n, w.v, C * sizeof *all);
	memcpy(all + n + C, b.v, C * sizeof *all);
	naive_norm(want, all, &s);
	ops->norm_fwd(dev, y.p, mean.p, rstd.p, x.p, w.p, b.p, rows, C, flags & OP_F32);
	near(&y, want, bound(t), "norm_fwd");
	naive_norm_bwd(g, dy.v, all, &s);
	if (n < 600) {
		differences(want, naive_norm, all, n + 2 * C, dy.v, n, &s);
		double e = distance(g, want, n + 2 * C, DT_F32);
		CHECK(e < 1e-6 || C == 1, "norm backward formula against differences: %.3g", e);
	}
	ops->norm_bwd(dev, dx.p, dw.p, db.p, dy.p, x.p, w.p, mean.p, rstd.p, rows, C, 1, flags & OP_F32, NULL);
	ops->norm_bwd(dev, dxa.p, NULL, NULL, dy.p, x.p, w.p, mean.p, rstd.p, rows, C, 1, (flags & OP_F32) | OP_ADD, NULL);
	ops->norm_bwd(dev, NULL, NULL, NULL, dy.p, x.p, w.p, mean.p, rstd.p, rows, C, 1, flags & OP_F32, NULL);
	/* The statistics are f32 values: their rounding is felt in every element.  C = 1: the gradient is 0 and
	 * 1 / sqrt(eps) = 316 magnifies what rounding leaves. */
	if (C > 1)
		near(&dx, g, 1e-5, "norm_bwd dx");
	for (size_t i = 0; i < n; i++)
		want[i] = 3 + g[i];
	near(&dxa, want, C > 1 ? 1e-5 : 1e-4, "norm_bwd dx added");
	for (int c = 0; c < C; c++)
		g[n + c] += 2, g[n + C + c] -= 2;
	near(&dw, g + n, 1e-5, "norm_bwd dw adds");
	near(&db, g + n + C, 1e-5, "norm_bwd db adds");
	tensor_free(&x), tensor_free(&w), tensor_free(&b), tensor_free(&y), tensor_free(&mean), tensor_free(&rstd);
	tensor_free(&dy), tensor_free(&dx), tensor_free(&dxa), tensor_free(&dw), tensor_free(&db);
	free(all), free(want), free(g);
}

static void naive_l2(double *y, const double *x, const void *with)
{
	const struct rows *s = with;
	for (size_t r = 0; r < s->rows; r++) {
		double sum = 0;
		for (int c = 0; c < s->C; c++)
			sum += x[r * s->C + c] * x[r * s->C + c];
		for (int c = 0; c < s->C; c++)
			y[r * s->C + c] = x[r * s->C + c] / sqrt(sum);
	}
}

static void check_l2(size_t rows, int C)
{
	struct rows s = {rows, C};
	size_t n = rows * C;
	struct tensor x = tensor_random(DT_F32, n, 0.5, 2), y = tensor_output(DT_F32, n), rnorm = tensor_output(DT_F32, rows);
	struct tensor dy = tensor_random(DT_F32, n, -1, 1), dx = tensor_output(DT_F32, n);
	double *want = must(calloc(n, sizeof *want));
	naive_l2(want, x.v, &s);
	ops->l2_fwd(dev, y.p, rnorm.p, x.p, rows, C);
	near(&y, want, 1e-6, "l2_fwd");
	differences(want, naive_l2, x.v, n, dy.v, n, &s);
	ops->l2_bwd(dev, dx.p, dy.p, y.p, rnorm.p, rows, C);
	if (C > 1)
		near(&dx, want, 2e-6, "l2_bwd");
	ops->l2_bwd(dev, NULL, dy.p, y.p, rnorm.p, rows, C);
	struct tensor zero = tensor_fill(DT_F32, C, 0);
	ops->l2_fwd(dev, y.p, rnorm.p, zero.p, 1, C);
	tensor_get(&y, "l2_fwd");
	CHECK(y.v[0] == 0, "l2_fwd of zeros is zeros");
	tensor_free(&x), tensor_free(&y), tensor_free(&rnorm), tensor_free(&dy), tensor_free(&dx), tensor_free(&zero);
	free(want);
}

/* ---- cross-entropy ---- */

struct xent {
	size_t rows;
	int V;
	const int32_t *target;
};

static void naive_xent(double *nll, const double *x, const void *with)
{
	const struct xent *s = with;
	for (size_t r = 0; r < s->rows; r++) {
		double sum = 0;
		for (int k = 0; k < s->V; k++)
			sum += exp(x[r * s->V + k]);
		nll[r] = s->target[r] < 0 ? 0 : log(sum) - x[r * s->V + s->target[r]];
	}
}

static void check_xent(size_t rows, int V, int flags)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * V;
	struct tensor x = tensor_random(DT_F32, n, -8, 8), nll = tensor_output(DT_F32, rows), g = tensor_output(t, n);
	double *want = must(calloc(n, sizeof *want)), *want_nll = must(calloc(rows, sizeof *want_nll));
	double *ones = must(calloc(rows, sizeof *ones));
	int32_t *target = must(calloc(rows, sizeof *target));
	for (size_t r = 0; r < rows; r++)
		target[r] = r % 5 == 3 ? -1 : (int)(r * 131 % V), ones[r] = 0.25;
	struct xent s = {rows, V, target};
	int32_t *device = ints_put(target, rows);
	naive_xent(want_nll, x.v, &s);
	ops->xent(dev, nll.p, g.p, x.p, device, rows, V, 0.25f, flags);
	near(&nll, want_nll, V == 1 ? 1 : 1e-6, "xent nll");
	differences(want, naive_xent, x.v, n, ones, rows, &s);
	/* Central differences of an nll of about 16 leave 1e-10. */
	near(&g, want, V == 1 ? 1e30 : bound(t), "xent dlogits");
	int zero = 1;
	for (size_t i = 0; i < n; i++)
		zero &= target[i / V] >= 0 || g.v[i] == 0;
	CHECK(zero, "no gradient where there is no target");
	ops->xent(dev, nll.p, NULL, x.p, device, rows, V, 0.25f, flags);
	ops->release(dev, device);
	tensor_free(&x), tensor_free(&nll), tensor_free(&g);
	free(want), free(want_nll), free(ones), free(target);
}

/* x = sim[B,B], then s. */
static void naive_clip(double *loss, const double *x, const void *with)
{
	const struct xent *c = with; /* target: groups; V: B */
	int B = c->V;
	*loss = 0;
	for (int way = 0; way < 2; way++)
		for (int i = 0; i < B; i++) {
			double sum = 0, gain = exp(x[B * B]);
			for (int j = 0; j < B; j++)
				if (i == j || !c->target || c->target[i] != c->target[j])
					sum += exp(gain * (way ? x[j * B + i] : x[i * B + j]));
			*loss += (log(sum) - gain * x[i * B + i]) / (2 * B);
		}
}

static void check_clip(int B, int grouped)
{
	struct tensor sim = tensor_random(DT_F32, B * B, -1, 1), s = tensor_fill(DT_F32, 1, 2.6593);
	struct tensor loss = tensor_output(DT_F32, 1), dsim = tensor_output(DT_F32, B * B), ds = tensor_output(DT_F32, 1);
	int32_t *group = must(calloc(B, sizeof *group));
	for (int i = 0; i < B; i++)
		group[i] = i * i % 7;
	struct xent c = {1, B, grouped ? group : NULL};
	int32_t *device = grouped ? ints_put(group, B) : NULL;
	double *x = must(calloc((B * B + 1), sizeof *x)), *want = must(calloc((B * B + 1), sizeof *want)), quarter = 0.25, value;
	memcpy(x, sim.v, B * B * sizeof *x);
	x[B * B] = s.v[0];
	naive_clip(&value, x, &c);
	ops->clip_xent(dev, loss.p, dsim.p, ds.p, sim.p, s.p, device, B, 0.25f);
	near(&loss, &value, B == 1 ? 1 : 2e-6, "clip_xent loss");
	differences(want, naive_clip, x, B * B + 1, &quarter, 1, &c);
	if (B > 1) {
		near(&dsim, want, 5e-6, "clip_xent dsim");
		near(&ds, want + B * B, 1e-5, "clip_xent ds");
	}
	ops->clip_xent(dev, loss.p, NULL, NULL, sim.p, s.p, device, B, 1);
	if (device)
		ops->release(dev, device);
	tensor_free(&sim), tensor_free(&s), tensor_free(&loss), tensor_free(&dsim), tensor_free(&ds);
	free(group), free(x), free(want);
}

/* ---- optimizer ---- */

static void check_adamw(size_t n, float v_max)
{
	struct adamw a = {4.5e-3f, 0.9f, 0.96f, 1e-8f, 4.5e-2f, v_max, 0.5f, 0, 0, 0};
	struct tensor w = tensor_random(DT_F32, n, -1, 1), m = tensor_fill(DT_F32, n, 0), v = tensor_fill(DT_F32, n, 0);
	struct tensor g = tensor_random(DT_F32, n, -30, 30), wt = tensor_output(T, n);
	double *want = must(calloc(3 * n, sizeof *want)), *wm = want + n, *wv = wm + n;
	memcpy(want, w.v, n * sizeof *want);
	memset(wm, 0, 2 * n * sizeof *wm);
	for (a.step = 1; a.step <= 3; a.step++) {
		double b1 = a.beta1, b2 = a.beta2, lr = a.lr;
		for (size_t i = 0; i < n; i++) {
			double x = 0.5 * g.v[i];
			wv[i] = b2 * wv[i] + (1 - b2) * x * x;
			if (v_max > 0 && wv[i] > v_max)
				wv[i] = v_max;
			wm[i] = b1 * wm[i] + (1 - b1) * x;
			double rate = lr * sqrt(1 - pow(b2, a.step)) / (1 - pow(b1, a.step));
			want[i] -= lr * a.decay * want[i] + rate * wm[i] / (sqrt(wv[i]) + a.eps);
		}
		ops->adamw(dev, &(struct adamw_tensor){.w = w.p, .wt = wt.p, .m = m.p, .v = v.p, .g = g.p}, n, &a);
	}
	near(&wt, want, bound(T), "adamw T copy");
	near(&w, want, 1e-6, "adamw weights");
	near(&m, wm, 1e-6, "adamw mean");
	near(&v, wv, 1e-6, "adamw variance");
	ops->adamw(dev, &(struct adamw_tensor){.w = w.p, .wt = T == DT_F32 ? w.p : NULL, .m = m.p, .v = v.p, .g = g.p}, n, &a);
	tensor_get(&w, "adamw without a copy");
	tensor_free(&w), tensor_free(&m), tensor_free(&v), tensor_free(&g), tensor_free(&wt);
	free(want);
}

static void check_sums(size_t n)
{
	struct tensor x = tensor_random(DT_F32, n, -1, 2), avg = tensor_random(DT_F32, n, -1, 1);
	double *want = must(calloc(n, sizeof *want)), sum = 0.5, squares = 0.25, got[2] = {0.5, 0.25};
	for (size_t i = 0; i < n; i++) {
		sum += x.v[i];
		squares += x.v[i] * x.v[i];
		want[i] = 0.99 * avg.v[i] + 0.01 * x.v[i];
	}
	double *device = must(ops->alloc(dev, sizeof got));
	ops->put(dev, device, got, sizeof got);
	ops->sum(dev, device, x.p, n);
	ops->sumsq(dev, device + 1, x.p, DT_F32, n);
	ops->get(dev, got, device, sizeof got);
	CHECK(fabs(got[0] - sum) <= 1e-12 * n && fabs(got[1] - squares) <= 1e-12 * n, "sum and sumsq of %zu", n);
	ops->average(dev, avg.p, x.p, DT_F32, n, 0.99f);
	near(&avg, want, 1e-6, "average");
	ops->release(dev, device);
	tensor_free(&x), tensor_free(&avg);
	free(want);
}

/* ---- bits ---- */

enum { BIT_ROWS = 130, BIT_C = 200, BIT_N = BIT_ROWS * BIT_C };

/* The entries that sum over rows or whole tensors, and one that sums in rows; outputs end to end. */
static size_t run_bits(double *out, const double *values, int threads)
{
	int32_t idx[BIT_ROWS];
	double sums[2] = {0, 0};
	size_t at = 0;
	device_open(DT_BF16, threads);
	for (int r = 0; r < BIT_ROWS; r++)
		idx[r] = r * r % 11;
	int32_t *device = ints_put(idx, BIT_ROWS);
	double *device_sums = must(ops->alloc(dev, sizeof sums));
	struct tensor x = tensor_new(DT_F32, BIT_N), w = tensor_fill(DT_F32, BIT_C, 1.5), dy = tensor_new(T, BIT_N);
	struct tensor o[] = {tensor_fill(DT_F32, BIT_N, 0), tensor_fill(DT_F32, BIT_C, 0), tensor_fill(DT_F32, BIT_C, 0),
		tensor_fill(DT_F32, 11 * BIT_C, 0), tensor_fill(DT_F32, BIT_ROWS, 0), tensor_fill(T, BIT_N, 0),
		tensor_fill(DT_F32, BIT_ROWS, 0), tensor_fill(DT_F32, BIT_ROWS, 0), tensor_fill(T, BIT_N, 0),
		tensor_fill(T, BIT_N, 0), tensor_fill(DT_F32, BIT_C, 0)};
	memcpy(x.v, values, BIT_N * sizeof *values);
	memcpy(dy.v, values, BIT_N * sizeof *values);
	tensor_put(&x), tensor_put(&dy);
	ops->norm_fwd(dev, o[8].p, o[6].p, o[7].p, x.p, w.p, w.p, BIT_ROWS, BIT_C, 0);
	ops->norm_bwd(dev, o[0].p, o[1].p, o[2].p, dy.p, x.p, w.p, o[6].p, o[7].p, BIT_ROWS, BIT_C, 1, 0,
	              &(struct norm_next){o[9].p, o[10].p, 0.75f});
	ops->embed_bwd(dev, o[3].p, x.p, device, BIT_ROWS, BIT_C);
	ops->xent(dev, o[4].p, o[5].p, x.p, device, BIT_ROWS, BIT_C, 1, 0);
	ops->sum(dev, device_sums, x.p, BIT_N);
	ops->sumsq(dev, device_sums + 1, x.p, DT_F32, BIT_N);
	ops->get(dev, sums, device_sums, sizeof sums);
	for (size_t i = 0; i < sizeof o / sizeof *o; i++) {
		tensor_get(o + i, "bits");
		memcpy(out + at, o[i].v, o[i].n * sizeof *out);
		at += o[i].n;
		tensor_free(o + i);
	}
	memcpy(out + at, sums, sizeof sums);
	ops->release(dev, device), ops->release(dev, device_sums);
	tensor_free(&x), tensor_free(&w), tensor_free(&dy);
	device_close();
	return at + 2;
}

static void check_bits(void)
{
	double *values = must(calloc(BIT_N, sizeof *values)), *out[2];
	size_t n = 0;
	for (int i = 0; i < BIT_N; i++)
		values[i] = (float)uniform(-2, 2);
	for (int i = 0; i < 2; i++) {
		out[i] = must(calloc(5 * BIT_N, sizeof *out[i]));
		n = run_bits(out[i], values, i + 1);
	}
	CHECK(!memcmp(out[0], out[1], n * sizeof *values), "norm, embed, xent, sums: same bits with 1 and 2 threads");
	free(values), free(out[0]), free(out[1]);
}

/* ---- all of one type ---- */

static void check_type(void)
{
	for (int i = 0; i < LENGTHS; i++) {
		check_casts(lengths[i]);
		check_relu(lengths[i], 0);
		check_relu(lengths[i], OP_F32);
		check_gelu(lengths[i], 0);
		check_gelu(lengths[i], 1);
		check_pixels(lengths[i]);
		check_adamw(lengths[i], 0);
		check_adamw(lengths[i], 5);
		check_sums(lengths[i]);
	}
	check_gelu_ends();
	for (int rows = 1; rows <= 255; rows += 127)
		for (int i = 0; i < 3; i++) {
			check_embed(rows, lengths[i]);
			check_norm(rows, lengths[i], 0);
			check_norm(rows, lengths[i], OP_F32);
		}
	for (int i = 0; i < 3; i++) {
		check_l2(17, lengths[i] > 99 ? 99 : lengths[i]);
		check_xent(7, lengths[i] > 99 ? 99 : lengths[i], 0);
		check_xent(7, lengths[i] > 99 ? 99 : lengths[i], OP_F32);
	}
	check_xent(3, 1055, 0);
	for (int grouped = 0; grouped < 2; grouped++)
		for (int B = 1; B < 20; B += 8)
			check_clip(B, grouped);
	check_clip(65, 1);
}

int main(void)
{
	for (int i = 0; i < 3; i++) {
		device_open(all_types[i], 0);
		check_type();
		device_close();
	}
	for (int i = 0; i < 3; i++) {
		device_open(all_types[i], 0);
		check_gelu_sums(1, 1), check_gelu_sums(300, 33), check_gelu_sums(5, 3000);
		device_close();
	}
	check_bits();
	return check_done();
}
