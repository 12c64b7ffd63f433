/* test-optim.c - mixed precision in struct ops: the moments' formats (recipe K7), random rounding, AdamW over every
 * combination of storage, sums and averages of 16-bit tensors, and the filters and scales of figure 4. */
#include "opscheck.h"

#include "../kernels/philox.h"

/* ---- 1-6-9 and 0-6-10 ---- */

static double value_of(uint16_t h, enum dtype t)
{
	int bits = t == DT_1_6_9 ? 9 : 10, e = h >> bits & 63, m = h & ((1 << bits) - 1);
	double x = ldexp(1 + (double)m / (1 << bits), e - 60);
	return h == 0 ? 0 : t == DT_1_6_9 && h & 0x8000 ? -x : x;
}

static uint16_t encode(double x, enum dtype t)
{
	uint16_t h[2];
	store_from_f32(h, t, 0, (float)x);
	return h[0];
}

static void check_formats(void)
{
	const struct {
		enum dtype t;
		uint16_t word[2];
		double x;
	} k7[] = {
		{DT_1_6_9, {0x7FFF}, 15.984375},
		{DT_1_6_9, {0x7800}, 1},
		{DT_1_6_9, {0xF800}, -1},
		{DT_1_6_9, {0x0001}, 0x1p-60 * (1 + 1.0 / 512)},
		{DT_0_6_10, {0xF000}, 1},
		{DT_0_6_10, {0xFFFF}, 15.9921875},
		{DT_0_6_10, {0x0001}, 0x1p-60 * (1 + 1.0 / 1024)},
	};
	for (size_t i = 0; i < sizeof k7 / sizeof *k7; i++)
		CHECK(load_as_f32(k7[i].word, k7[i].t, 0) == k7[i].x && encode(k7[i].x, k7[i].t) == k7[i].word[0],
		      "K7: %s word %04x is %.9g", type_names[k7[i].t], k7[i].word[0], k7[i].x);
	for (enum dtype t = DT_1_6_9; t <= DT_0_6_10; t++) {
		double top = t == DT_1_6_9 ? 15.984375 : 15.9921875,
		       least = t == DT_1_6_9 ? 0x1p-60 * (1 + 1.0 / 512) : 0x1p-60 * (1 + 1.0 / 1024);
		int values = 0, back = 0, up = 0, below = 0;
		for (int w = 0; w < 65536; w++) {
			const uint16_t word[2] = {(uint16_t)w}, h = word[0];
			double x = value_of(h, t), next = value_of((uint16_t)(w + 1), t), middle = (x + next) / 2;
			values += load_as_f32(word, t, 0) == x;
			back += encode(x, t) == h;
			bool last = (w & (t == DT_1_6_9 ? 0x7fff : 0xffff)) == (t == DT_1_6_9 ? 0x7fff : 0xffff);
			up += last || encode(middle, t) == w + 1;
			below += last || encode((double)nextafterf((float)middle, 0), t) == h;
		}
		/* Word 8000 of 1-6-9 stands for -2^-60, which the encoder gives as 0; words around 0 have nothing half-way. */
		CHECK(values == 65536, "%s: %d of 65536 words have their value", type_names[t], values);
		CHECK(back == 65536 - (t == DT_1_6_9), "%s: %d of 65536 values come back", type_names[t], back);
		CHECK(up >= 65534 && below >= 65534, "%s: half-way goes up (%d) and less goes down (%d)", type_names[t], up, below);
		CHECK(encode(20, t) == encode(top, t) && encode(INFINITY, t) == encode(top, t), "%s: saturates", type_names[t]);
		CHECK(encode(1e-20, t) == 0 && encode(0, t) == 0 && encode(-0.0, t) == 0 && encode(-1e-20, t) == 0,
		      "%s: small is 0", type_names[t]);
		CHECK(encode((double)nextafterf((float)least, 0), t) == 0 && encode(least, t) == 1,
		      "%s: less than word 1 is 0", type_names[t]);
	}
	CHECK(encode(-20, DT_1_6_9) == 0xFFFF && encode(-1, DT_0_6_10) == 0 && encode(-INFINITY, DT_0_6_10) == 0, "signs");
}

/* ---- random rounding ---- */

/* Over all evenly distributed bits the mean is x, and only the two neighbours of x occur. */
static void random_case(enum dtype t, float x)
{
	double sum = 0, low = INFINITY, high = -INFINITY;
	bool subnormal = t == DT_F16 && fabsf(x) < 0x1p-14f;
	for (uint32_t k = 0; k < 65536; k++) {
		uint16_t h[2];
		uint32_t bits = subnormal ? k << 16 : k;
		row_from_f32_random(h, t, &x, &bits, 1);
		double y = load_as_f32(h, t, 0);
		sum += y, low = fmin(low, y), high = fmax(high, y);
	}
	double step = high - low, widest = t == DT_BF16 ? fabs((double)x) * 0x1p-7 : fmax(fabs((double)x) * 0x1p-10, 0x1p-24);
	CHECK(fabs(sum / 65536 - x) <= step * 0x1p-16, "%s: the mean of %.9g rounded is %.9g", type_names[t], (double)x,
	      sum / 65536);
	CHECK(low <= x && x <= high && step <= widest, "%s: %.9g becomes %.9g or %.9g", type_names[t], (double)x, low, high);
	uint16_t exact[2];
	store_from_f32(exact, t, 0, x);
	CHECK((step == 0) == (load_as_f32(exact, t, 0) == x), "%s: what is representable stays", type_names[t]);
}

static void check_random(void)
{
	static const float x[] = {1,     1.001f,         -1.001f, 0.3333333f, 3e-5f,     -6.1e-5f,  1.5e-7f,
				  2e-8f, 6.1035156e-05f, 0,       100.7f,     -0x1p-24f, 0x1.8p-25f};
	for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
		random_case(DT_F16, x[i]);
		random_case(DT_BF16, x[i]);
	}
	for (enum dtype t = DT_BF16; t <= DT_F16; t++) {
		float odd[] = {NAN, INFINITY, -INFINITY, 3.4e38f};
		uint32_t bits[] = {~0u, ~0u, ~0u, ~0u};
		uint16_t h[4];
		row_from_f32_random(h, t, odd, bits, 4);
		CHECK(isnan(load_as_f32(h, t, 0)) && load_as_f32(h, t, 1) == INFINITY && load_as_f32(h, t, 2) == -INFINITY &&
		      load_as_f32(h, t, 3) == INFINITY, "%s: NaN, infinity and overflow stay visible", type_names[t]);
	}
}

/* ---- AdamW ---- */

struct state {
	struct tensor w, wt, m, v, g;
};

static struct adamw_tensor tensors_of(const struct state *s)
{
	return (struct adamw_tensor){.w = s->w.p, .wt = s->w.type == DT_F32 ? s->wt.p : NULL, .m = s->m.p, .v = s->v.p, .g = s->g.p,
	                             .w_type = s->w.type, .m_type = s->m.type, .v_type = s->v.type, .g_type = s->g.type};
}

/* One update in double from the stored values; then what is stored must be that, rounded. */
static void check_step(struct state *s, const struct adamw *a, const char *what)
{
	size_t n = s->w.n;
	double *w = must(calloc(3 * n, sizeof *w)), *m = w + n, *v = m + n;
	double b1 = a->beta1, b2 = a->beta2, lr = a->lr, rate = lr * sqrt(1 - pow(b2, a->step)) / (1 - pow(b1, a->step));
	for (size_t i = 0; i < n; i++) {
		double x = a->g_scale * s->g.v[i];
		m[i] = b1 * s->m.v[i] + (1 - b1) * x;
		v[i] = fmin(b2 * s->v.v[i] + (1 - b2) * x * x, a->v_max);
		w[i] = (1 - lr * a->decay) * s->w.v[i] - rate * m[i] / (sqrt(v[i]) + a->eps);
	}
	struct adamw_tensor x = tensors_of(s);
	ops->adamw(dev, &x, n, a);
	/* Random rounding may go a whole step in either direction. */
	near(&s->w, w, s->w.type == DT_F32 ? 1e-6 : 2 * bound(s->w.type), what);
	near(&s->m, m, s->m.type == DT_F32 ? 1e-6 : bound(s->m.type), what);
	near(&s->v, v, s->v.type == DT_F32 ? 1e-6 : bound(s->v.type), what);
	if (s->w.type == DT_F32)
		near(&s->wt, w, bound(T), what);
	free(w);
}

static void adamw_case(size_t n, int mask)
{
	enum dtype w = mask & 1 ? T : DT_F32, m = mask & 2 ? DT_1_6_9 : DT_F32, v = mask & 4 ? DT_0_6_10 : DT_F32,
		   g = mask & 8 ? T : DT_F32;
	struct adamw a = {4.5e-3f, 0.9f, 0.96f, 1e-8f, 4.5e-2f, 5, 0.5f, 0, 77, 12345678901u};
	struct state s = {tensor_random(w, n, -1, 1), tensor_output(T, n), tensor_fill(m, n, 0), tensor_fill(v, n, 0),
			  tensor_random(g, n, -30, 30)};
	char what[80];
	snprintf(what, sizeof what, "adamw of %zu: w %s, m %s, v %s, g %s", n, type_names[w], type_names[m],
		 type_names[v], type_names[g]);
	for (a.step = 1; a.step <= 3; a.step++)
		check_step(&s, &a, what);
	tensor_free(&s.w), tensor_free(&s.wt), tensor_free(&s.m), tensor_free(&s.v), tensor_free(&s.g);
}

static void check_adamw(void)
{
	static const size_t lengths[] = {1, 17, 1023, 20001};
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
		for (int mask = 0; mask < 16; mask++)
			if (T != DT_F32 || !(mask & 9))
				adamw_case(lengths[i], mask);
}

/* Steps of a tenth of the weights' resolution: rounded to nearest nothing would ever move. */
static void check_unbiased(void)
{
	enum { N = 20001, STEPS = 50 };
	double ulp = T == DT_BF16 ? 0x1p-7 : 0x1p-10, mean = 0;
	struct adamw a = {(float)(0.1 * ulp), 0.9f, 0.96f, 0, 0, 0, 1, 0, 5, 0};
	struct state s = {tensor_fill(T, N, 1.5),
			  {0},
			  tensor_fill(DT_F32, N, 0),
			  tensor_fill(DT_F32, N, 0),
			  tensor_fill(DT_F32, N, 1)};
	struct adamw_tensor x = tensors_of(&s);
	for (a.step = 1; a.step <= STEPS; a.step++)
		ops->adamw(dev, &x, N, &a);
	tensor_get(&s.w, "unbiased");
	for (size_t i = 0; i < N; i++)
		mean += (1.5 - s.w.v[i]) / ulp / N;
	/* The sum of 50 draws of 0 or 1 step deviates by 2.1 steps, the mean of 20001 such sums by 0.015. */
	CHECK(fabs(mean - 0.1 * STEPS) < 0.075, "%s: 50 steps of a tenth of the resolution moved %.3f of it", type_names[T], mean);
	tensor_free(&s.w), tensor_free(&s.m), tensor_free(&s.v), tensor_free(&s.g);
}

enum { MANY = 40001 };

/* The weights after two updates, in one call or as two parts of their own. */
static void random_weights(enum dtype t, int threads, size_t part, uint64_t seed, uint16_t *out)
{
	device_open(t, threads);
	struct adamw a = {1e-3f, 0.9f, 0.96f, 1e-8f, 0.1f, 0, 1, 0, seed, (uint64_t)1 << 33};
	struct state s = {tensor_fill(t, MANY, 0.7),
			  {0},
			  tensor_fill(DT_1_6_9, MANY, 0),
			  tensor_fill(DT_0_6_10, MANY, 0),
			  tensor_fill(t, MANY, 0.3)};
	for (a.step = 1; a.step <= 2; a.step++)
		for (size_t at = 0; at < MANY; at += part) {
			struct adamw_tensor x = tensors_of(&s);
			struct adamw how = a;
			x.w = (char *)x.w + 2 * at, x.m = (char *)x.m + 2 * at;
			x.v = (char *)x.v + 2 * at, x.g = (const char *)x.g + 2 * at;
			how.first = a.first + at;
			ops->adamw(dev, &x, at + part < MANY ? part : MANY - at, &how);
		}
	ops->get(dev, out, s.w.p, MANY * sizeof *out);
	tensor_free(&s.w), tensor_free(&s.m), tensor_free(&s.v), tensor_free(&s.g);
	device_close();
}

static void check_reproducible(enum dtype t)
{
	uint16_t *a = must(malloc(2 * MANY)), *b = must(malloc(2 * MANY));
	random_weights(t, 1, MANY, 9, a);
	random_weights(t, 3, MANY, 9, b);
	CHECK(memcmp(a, b, 2 * MANY) == 0, "%s: random rounding has the same bits with 1 and 3 threads", type_names[t]);
	random_weights(t, 2, 7777, 9, b);
	CHECK(memcmp(a, b, 2 * MANY) == 0, "%s: and in parts", type_names[t]);
	random_weights(t, 2, MANY, 10, b);
	CHECK(memcmp(a, b, 2 * MANY) != 0, "%s: another seed, other bits", type_names[t]);
	free(a), free(b);
}

/* The random bits are philox's: an element on its way is rounded as convert.h says. */
static void check_philox(void)
{
	struct adamw a = {0x1p-12f, 0, 0, 0, 0, 0, 1, 3, 42, 0xfffffffffu};
	struct state s = {tensor_fill(T, 3000, 1),
			  {0},
			  tensor_fill(DT_F32, 3000, 0),
			  tensor_fill(DT_F32, 3000, 0),
			  tensor_fill(DT_F32, 3000, -1)};
	struct adamw_tensor x = tensors_of(&s);
	int same = 0;
	ops->adamw(dev, &x, 3000, &a);
	tensor_get(&s.w, "philox");
	for (size_t i = 0; i < 3000; i++) {
		uint32_t r[4];
		uint16_t h[2];
		float w = 1 + 0x1p-12f; /* exact: beta 0 makes the step lr */
		philox(r, a.seed, (uint32_t)(a.first + i), (uint32_t)((a.first + i) >> 32), (uint32_t)a.step, RNG_ROUND);
		row_from_f32_random(h, T, &w, r, 1);
		same += load_as_f32(h, T, 0) == s.w.v[i];
	}
	CHECK(same == 3000, "%s: %d of 3000 elements are rounded by philox's bits", type_names[T], same);
	tensor_free(&s.w), tensor_free(&s.m), tensor_free(&s.v), tensor_free(&s.g);
}

/* ---- sums and averages ---- */

static void check_sums(size_t n)
{
	struct tensor x = tensor_random(T, n, -1, 2), avg = tensor_random(DT_F32, n, -1, 1);
	double *want = must(calloc(n, sizeof *want)), squares = 0.25, got = 0.25;
	for (size_t i = 0; i < n; i++) {
		squares += x.v[i] * x.v[i];
		want[i] = 0.99 * avg.v[i] + 0.01 * x.v[i];
	}
	double *device = must(ops->alloc(dev, sizeof got));
	ops->put(dev, device, &got, sizeof got);
	ops->sumsq(dev, device, x.p, T, n);
	ops->get(dev, &got, device, sizeof got);
	CHECK(fabs(got - squares) <= 1e-12 * n, "sumsq of %zu %s", n, type_names[T]);
	ops->average(dev, avg.p, x.p, T, n, 0.99f);
	near(&avg, want, 1e-6, "average of T");
	x.v[n - 1] = INFINITY;
	tensor_put(&x);
	ops->sumsq(dev, device, x.p, T, n);
	ops->get(dev, &got, device, sizeof got);
	CHECK(isinf(got), "sumsq shows an infinity");
	ops->release(dev, device);
	tensor_free(&x), tensor_free(&avg);
	free(want);
}

/* ---- filters and scales ---- */

static void check_cast_filter(void)
{
	static const float odd[] = {1, NAN, INFINITY, -INFINITY, 1e30f, 2, -3e38f};
	enum { N = 7 };
	struct tensor x = tensor_new(DT_F32, N), y = tensor_output(T, N);
	for (int i = 0; i < N; i++)
		x.v[i] = odd[i];
	tensor_put(&x);
	ops->cast(dev, y.p, x.p, N, 4, OP_FILTER);
	tensor_get(&y, "cast filtered");
	CHECK(y.v[0] == 4 && y.v[1] == 0 && y.v[2] == 0 && y.v[3] == 0 && y.v[5] == 8, "cast: NaN and infinity become 0");
	CHECK(y.v[6] == 0, "cast: what the scale makes infinite becomes 0");
	CHECK(T == DT_F16 ? isinf(y.v[4]) : fabs(y.v[4] / 4e30 - 1) < 0x1p-8,
	      "cast: what overflows in %s alone stays visible", type_names[T]);
	ops->cast(dev, y.p, x.p, N, 4, 0);
	tensor_get(&y, "cast");
	CHECK(isnan(y.v[1]) && isinf(y.v[2]) && isinf(y.v[6]), "cast: unfiltered they stay");
	tensor_free(&x), tensor_free(&y);
}

/* Scale 1/8 is exact: an eighth of everything; a row with a NaN adds nothing to dx and is seen in dw. */
static void check_norm_scale(size_t rows, int C, int flags)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * C;
	struct tensor x = tensor_random(DT_F32, n, -1, 5), w = tensor_random(DT_F32, C, 0.5, 2), dy = tensor_random(t, n, -1, 1);
	struct tensor mean = tensor_output(DT_F32, rows), rstd = tensor_output(DT_F32, rows), y = tensor_output(t, n);
	struct tensor dx[3], dw[3], db[3];
	ops->norm_fwd(dev, y.p, mean.p, rstd.p, x.p, w.p, w.p, rows, C, flags);
	for (int i = 0; i < 3; i++) {
		dx[i] = tensor_fill(DT_F32, n, 0), dw[i] = tensor_fill(DT_F32, C, 0), db[i] = tensor_fill(DT_F32, C, 0);
		if (i == 2) {
			dy.v[n / 2] = NAN;
			tensor_put(&dy);
		}
		ops->norm_bwd(dev, dx[i].p, dw[i].p, db[i].p, dy.p, x.p, w.p, mean.p, rstd.p, rows, C, i ? 0.125f : 1,
		              flags | OP_ADD | (i ? OP_FILTER : 0), NULL);
		tensor_get(&dx[i], "norm_bwd scaled"), tensor_get(&dw[i], "norm_bwd scaled"), tensor_get(&db[i], "norm_bwd scaled");
	}
	int scaled = 1, filtered = 1;
	for (size_t i = 0; i < n; i++) {
		scaled &= dx[1].v[i] == dx[0].v[i] / 8;
		filtered &= dx[2].v[i] == (i / C == n / 2 / C ? 0 : dx[1].v[i]);
	}
	for (int c = 0; c < C; c++)
		scaled &= dw[1].v[c] == dw[0].v[c] / 8 && db[1].v[c] == db[0].v[c] / 8;
	CHECK(scaled, "norm_bwd %zu x %d: all is multiplied by the scale", rows, C);
	CHECK(filtered && isnan(dw[2].v[n / 2 % C]) && isnan(db[2].v[n / 2 % C]),
	      "norm_bwd %zu x %d: dx is filtered, dw and db are not", rows, C);
	for (int i = 0; i < 3; i++)
		tensor_free(&dx[i]), tensor_free(&dw[i]), tensor_free(&db[i]);
	tensor_free(&x), tensor_free(&w), tensor_free(&dy), tensor_free(&mean), tensor_free(&rstd), tensor_free(&y);
}

/* What norm_bwd makes of dx for the product before: to the bit cast of the dx that it leaves, and its column sums, in place of
 * dy or apart from it, one without the other.  dx holds an infinity already, and something that overflows in f16. */
static void check_norm_next(size_t rows, int C, int flags, float scale)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * C;
	struct tensor x = tensor_random(DT_F32, n, -1, 5), w = tensor_random(DT_F32, C, 0.5, 2), dy = tensor_random(t, n, -1, 1);
	struct tensor mean = tensor_output(DT_F32, rows), rstd = tensor_output(DT_F32, rows), y = tensor_output(t, n);
	struct tensor want = tensor_output(t, n), dx[3], dw[3], sums[3], next = tensor_output(t, n), from = tensor_random(DT_F32, n, -1, 1);
	ops->norm_fwd(dev, y.p, mean.p, rstd.p, x.p, w.p, w.p, rows, C, flags);
	for (int i = 0; i < 3; i++) {
		dx[i] = tensor_new(DT_F32, n), dw[i] = tensor_fill(DT_F32, C, 0), sums[i] = tensor_fill(DT_F32, C, 3);
		memcpy(dx[i].v, from.v, n * sizeof *from.v);
		dx[i].v[n / 2] = INFINITY, dx[i].v[n - 1] = 1e5;
		tensor_put(&dx[i]);
		struct norm_next to = {i == 0 ? NULL : i == 1 ? next.p : dy.p, sums[i].p, scale};
		ops->norm_bwd(dev, dx[i].p, dw[i].p, NULL, dy.p, x.p, w.p, mean.p, rstd.p, rows, C, 1, flags | OP_ADD, &to);
		tensor_get(&dx[i], "norm_bwd next"), tensor_get(&dw[i], "norm_bwd next"), tensor_get(&sums[i], "norm_bwd next");
	}
	ops->cast(dev, want.p, dx[0].p, n, scale, OP_FILTER | flags);
	tensor_get(&want, "cast"), tensor_get(&next, "norm_bwd next"), tensor_get(&dy, "norm_bwd next in place");
	CHECK(!memcmp(next.v, want.v, n * sizeof *want.v) && !memcmp(dy.v, want.v, n * sizeof *want.v) && want.v[n / 2] == 0,
	      "norm_bwd %zu x %d: next is dx, scaled, filtered, rounded; in place, too", rows, C);
	bool equal = true, right = true;
	for (int c = 0; c < C; c++) {
		double sum = 3, mass = 3;
		for (size_t r = 0; r < rows; r++)
			sum += want.v[r * C + c], mass += fabs(want.v[r * C + c]);
		right &= isinf(sum) ? sums[0].v[c] == sum : fabs(sums[0].v[c] - sum) <= 1e-6 * mass;
		for (int i = 1; i < 3; i++)
			equal &= sums[i].v[c] == sums[0].v[c] && dw[i].v[c] == dw[0].v[c];
	}
	CHECK(right && (T != DT_F16 || flags & OP_F32 || scale < 1 || isinf(sums[0].v[C - 1])),
	      "norm_bwd %zu x %d: column sums of next, of what overflows in T, too", rows, C);
	CHECK(equal && !memcmp(dx[1].v, dx[0].v, n * sizeof *dx[0].v) && !memcmp(dx[2].v, dx[0].v, n * sizeof *dx[0].v),
	      "norm_bwd %zu x %d: the same bits with next in place of dy, apart from it and without it", rows, C);
	for (int i = 0; i < 3; i++)
		tensor_free(&dx[i]), tensor_free(&dw[i]), tensor_free(&sums[i]);
	tensor_free(&x), tensor_free(&w), tensor_free(&dy), tensor_free(&mean), tensor_free(&rstd), tensor_free(&y);
	tensor_free(&want), tensor_free(&next), tensor_free(&from);
}

int main(void)
{
	check_formats();
	check_random();
	for (int i = 0; i < 3; i++) {
		device_open(all_types[i], 0);
		check_adamw();
		check_sums(1), check_sums(17), check_sums(20001);
		check_cast_filter();
		for (int flags = 0; flags <= OP_F32; flags += OP_F32) {
			check_norm_scale(1, 17, flags);
			check_norm_scale(129, 67, flags);
			check_norm_next(1, 17, flags, 1);
			check_norm_next(129, 67, flags, 0.125f);
			check_norm_next(67, 132, flags, 4);
		}
		if (T != DT_F32) {
			check_unbiased();
			check_philox();
		}
		device_close();
	}
	check_reproducible(DT_BF16);
	check_reproducible(DT_F16);
	return check_done();
}
