/* test-latent.c - the discrete VAE's entries (Gumbel-softmax, KL, logit-Laplace, reconstruction) and
 * the choice of tokens (argmax, one-hot, draws): against loops in double, the recipe's numbers (K1,
 * K4), and the statistics of many draws; same bits for any thread count and batch. */
#include "opscheck.h"
#include "../kernels/philox.h"

/* ---- Gumbel-softmax ---- */

struct relax {
	size_t rows;
	int V;
	double tau, kl_scale;
	uint64_t seed, first_row;
	uint32_t step;
	double *z;        /* [rows,V] or NULL */
	double *kl;       /* [rows] or NULL */
	const double *dz; /* for the scalar: sum dz z + kl_scale sum kl */
};

static double noise(const struct relax *s, size_t element)
{
	uint32_t bits[4];
	uint64_t index = s->first_row * (uint64_t)s->V + element;
	philox(bits, s->seed, (uint32_t)index, (uint32_t)(index >> 32), s->step, RNG_GUMBEL);
	return -log(-log((double)philox_unit(bits[0])));
}

static void naive_relax(double *scalar, const double *x, const void *with)
{
	const struct relax *s = with;
	*scalar = 0;
	for (size_t r = 0; r < s->rows; r++) {
		const double *l = x + r * s->V;
		double relaxed = 0, plain = 0, kl = 0;
		for (int k = 0; k < s->V; k++) {
			relaxed += exp((l[k] + noise(s, r * s->V + k)) / s->tau);
			plain += exp(l[k]);
		}
		for (int k = 0; k < s->V; k++) {
			double z = exp((l[k] + noise(s, r * s->V + k)) / s->tau) / relaxed, q = exp(l[k]) / plain;
			kl += q * (log(q) + log(s->V));
			*scalar += s->dz ? s->dz[r * s->V + k] * z : 0;
			if (s->z)
				s->z[r * s->V + k] = z;
		}
		*scalar += s->kl_scale * kl;
		if (s->kl)
			s->kl[r] = kl;
	}
}

static void check_gumbel(size_t rows, int V, double tau)
{
	size_t n = rows * V;
	struct tensor x = tensor_random(DT_F32, n, -3, 3), z = tensor_output(DT_F32, n), kl = tensor_output(DT_F32, rows);
	struct tensor dz = tensor_random(DT_F32, n, -1, 1), dx = tensor_output(DT_F32, n);
	double *want = must(calloc(n, sizeof *want)), *want_kl = must(calloc(rows, sizeof *want_kl)), one = 1;
	/* The element numbers run over 2^32, so that both words of the counter are seen. */
	struct relax s = {rows, V, tau, 0.34375, 99, (1ull << 32) / V - 1, 7, want, want_kl, dz.v};
	naive_relax(&one, x.v, &s);
	ops->gumbel_fwd(dev, z.p, kl.p, x.p, rows, V, tau, s.seed, s.step, s.first_row);
	/* An error of 4e-7 in (logit + g) of about 20 is divided by tau before exp. */
	near(&z, want, 1e-5 / tau, "gumbel_fwd z");
	near(&kl, want_kl, V == 1 ? 1e30 : 5e-6, "gumbel_fwd kl");
	s.z = s.kl = NULL;
	one = 1;
	differences(want, naive_relax, x.v, n, &one, 1, &s);
	ops->gumbel_bwd(dev, dx.p, dz.p, z.p, x.p, rows, V, tau, 0.34375f);
	near(&dx, want, V == 1 ? 1e30 : 2e-5 / tau, "gumbel_bwd");
	ops->gumbel_bwd(dev, NULL, dz.p, z.p, x.p, rows, V, tau, 1);
	tensor_free(&x), tensor_free(&z), tensor_free(&kl), tensor_free(&dz), tensor_free(&dx);
	free(want), free(want_kl);
}

/* ---- usage of the codes ---- */

struct used {
	size_t rows;
	int V;
	double *sum; /* [V] or NULL: += */
	const double *c; /* for the scalar: sum c sum */
};

static void naive_used(double *scalar, const double *x, const void *with)
{
	const struct used *s = with;
	*scalar = 0;
	for (size_t r = 0; r < s->rows; r++) {
		double all = 0;
		for (int k = 0; k < s->V; k++)
			all += exp(x[r * s->V + k]);
		for (int k = 0; k < s->V; k++) {
			double q = exp(x[r * s->V + k]) / all;
			*scalar += s->c[k] * q;
			if (s->sum)
				s->sum[k] += q;
		}
	}
}

/* Both add to what is there. */
static void check_usage(size_t rows, int V)
{
	size_t n = rows * V;
	struct tensor x = tensor_random(DT_F32, n, -3, 3), sum = tensor_random(DT_F32, V, 0, 1),
		      c = tensor_random(DT_F32, V, -1, 1);
	struct tensor dx = tensor_random(DT_F32, n, -1, 1);
	double *want = must(calloc(n, sizeof *want)), *want_sum = must(calloc(V, sizeof *want_sum)), one = 1;
	memcpy(want_sum, sum.v, V * sizeof *want_sum);
	struct used s = {rows, V, want_sum, c.v};
	naive_used(&one, x.v, &s);
	s.sum = NULL;
	one = 1;
	differences(want, naive_used, x.v, n, &one, 1, &s);
	for (size_t i = 0; i < n; i++)
		want[i] += dx.v[i];
	ops->usage_fwd(dev, sum.p, x.p, rows, V);
	near(&sum, want_sum, 2e-6, "usage_fwd");
	ops->usage_bwd(dev, dx.p, c.p, x.p, rows, V);
	near(&dx, want, 2e-6, "usage_bwd");
	ops->usage_bwd(dev, NULL, c.p, x.p, rows, V);
	tensor_free(&x), tensor_free(&sum), tensor_free(&c), tensor_free(&dx);
	free(want), free(want_sum);
}

/* Rows of one step in parts give the bits of the whole; tau = 0 gives the one-hot of the largest. */
static void check_gumbel_parts(void)
{
	enum { ROWS = 5, V = 37 };
	struct tensor x = tensor_random(DT_F32, ROWS * V, -3, 3), z = tensor_output(DT_F32, ROWS * V);
	struct tensor part = tensor_output(DT_F32, ROWS * V);
	ops->gumbel_fwd(dev, z.p, NULL, x.p, ROWS, V, 0.5f, 3, 4, 10);
	ops->gumbel_fwd(dev, part.p, NULL, x.p, 2, V, 0.5f, 3, 4, 10);
	ops->gumbel_fwd(dev, (float *)part.p + 2 * V, NULL, (float *)x.p + 2 * V, ROWS - 2, V, 0.5f, 3, 4, 12);
	tensor_get(&z, "gumbel parts"), tensor_get(&part, "gumbel parts");
	CHECK(!memcmp(z.v, part.v, ROWS * V * sizeof *z.v), "gumbel_fwd: rows in parts");
	ops->gumbel_fwd(dev, z.p, NULL, x.p, ROWS, V, 0, 3, 4, 10);
	tensor_get(&z, "tau 0");
	int right = 1;
	for (int r = 0; r < ROWS; r++) {
		int best = 0;
		for (int k = 1; k < V; k++)
			best = x.v[r * V + k] > x.v[r * V + best] ? k : best;
		for (int k = 0; k < V; k++)
			right &= z.v[r * V + k] == (k == best);
	}
	CHECK(right, "gumbel_fwd: tau 0 is the one-hot argmax");
	tensor_free(&x), tensor_free(&z), tensor_free(&part);
}

/* K4: 0 for uniform logits, ln 8192 for a certain code, also with logits that are -infinity. */
static void check_kl_ends(void)
{
	enum { V = 8192 };
	struct tensor x = tensor_fill(DT_F32, 3 * V, 1.5), kl = tensor_output(DT_F32, 3), z = tensor_output(DT_F32, 3 * V);
	x.v[V + 77] = 500;
	for (int k = 0; k < V; k++)
		x.v[2 * V + k] = k == 9 ? 0 : -INFINITY;
	tensor_put(&x);
	ops->gumbel_fwd(dev, z.p, kl.p, x.p, 3, V, 1, 1, 1, 0);
	tensor_get(&kl, "kl"), tensor_get(&z, "kl");
	CHECK(fabs(kl.v[0]) < 5e-6 && fabs(kl.v[1] - 9.010913) < 1e-5 && fabs(kl.v[2] - 9.010913) < 1e-5,
	      "KL of uniform and certain codes: %g %g %g", kl.v[0], kl.v[1], kl.v[2]);
	CHECK(z.v[2 * V + 9] == 1, "the relaxation of a certain code");
	tensor_free(&x), tensor_free(&kl), tensor_free(&z);
}

/* With equal logits and a small tau, each code wins alike: chi-squared over 16 codes. */
static void check_gumbel_wins(void)
{
	enum { ROWS = 32768, V = 16 };
	struct tensor x = tensor_fill(DT_F32, ROWS * V, 0), z = tensor_output(DT_F32, ROWS * V);
	for (size_t i = 0; i < x.n; i++)
		x.v[i] = log(1.0 + i % V);
	tensor_put(&x);
	ops->gumbel_fwd(dev, z.p, NULL, x.p, ROWS, V, 0.01f, 2021, 0, 0);
	tensor_get(&z, "gumbel wins");
	double wins[V] = {0}, chi2 = 0;
	for (size_t i = 0; i < z.n; i++)
		wins[i % V] += z.v[i] > 0.5;
	for (int k = 0; k < V; k++) {
		double expected = ROWS * (1.0 + k) / (V * (V + 1) / 2);
		/* Rows whose two best are within 0.01 of each other have no winner. */
		chi2 += pow(wins[k] - expected, 2) / expected;
	}
	CHECK(chi2 < 60, "Gumbel noise draws in proportion: chi-squared %.1f on 15 degrees", chi2);
	tensor_free(&x), tensor_free(&z);
}

/* ---- logit-Laplace ---- */

static double ln_density(double x, double mu, double lb)
{
	return -log(2) - lb - log(x) - log(1 - x) - fabs(log(x / (1 - x)) - mu) / exp(lb);
}

/* The pixel values follow the maps. */
static void naive_laplace(double *nll, const double *out, const void *with)
{
	const double *x = with;
	*nll = 0;
	for (int c = 0; c < 3; c++)
		*nll -= ln_density(x[c], out[c], out[3 + c]);
}

static void check_laplace(size_t n)
{
	struct tensor out = tensor_random(DT_F32, 6 * n, -2, 2), x = tensor_random(DT_F32, 3 * n, 0.1, 0.9);
	struct tensor nll = tensor_output(DT_F32, n), dout = tensor_output(DT_F32, 6 * n);
	double *want = must(calloc(6 * n, sizeof *want)), half = 0.5;
	for (size_t p = 0; p < n; p++)
		naive_laplace(want + p, out.v + 6 * p, x.v + 3 * p);
	ops->logit_laplace(dev, nll.p, dout.p, out.p, x.p, n, -INFINITY, 0.5f);
	near(&nll, want, 2e-6, "logit_laplace nll");
	for (size_t p = 0; p < n; p++)
		differences(want + 6 * p, naive_laplace, out.v + 6 * p, 6, &half, 1, x.v + 3 * p);
	near(&dout, want, 2e-6, "logit_laplace dout");
	ops->logit_laplace(dev, nll.p, NULL, out.p, x.p, n, -INFINITY, 0.5f);
	tensor_free(&out), tensor_free(&x), tensor_free(&nll), tensor_free(&dout);
	free(want);
}

/* ln b below the floor: the density of the floor, and only a gradient that raises ln b. */
static void check_laplace_floor(void)
{
	struct tensor out = tensor_new(DT_F32, 6), x = tensor_new(DT_F32, 3);
	struct tensor nll = tensor_output(DT_F32, 1), dout = tensor_output(DT_F32, 6);
	double want = 0;
	for (int c = 0; c < 3; c++) {
		x.v[c] = 0.5, out.v[c] = c, out.v[3 + c] = -3;
		want -= ln_density(0.5, c, -0.5);
	}
	tensor_put(&out), tensor_put(&x);
	ops->logit_laplace(dev, nll.p, dout.p, out.p, x.p, 1, -0.5f, 1);
	tensor_get(&nll, "floor"), tensor_get(&dout, "floor");
	CHECK(fabs(nll.v[0] - want) < 1e-5, "nll at the floor is %f, expected %f", nll.v[0], want);
	CHECK(dout.v[3] == 0 && fabs(dout.v[4] - (1 - exp(0.5))) < 1e-5 && fabs(dout.v[1] - exp(0.5)) < 1e-5,
	      "gradients at the floor: %f %f %f", dout.v[3], dout.v[4], dout.v[1]);
	tensor_free(&out), tensor_free(&x), tensor_free(&nll), tensor_free(&dout);
}

/* K1: three values, and the integral over (0,1). */
static void check_laplace_numbers(void)
{
	enum { N = 4096 };
	static const double table[3][4] = {{0.5, 0, 1, 0.693147}, {0.9, 0, 1, -0.482426}, {0.1, 1, 0.5, -3.986504}};
	struct tensor out = tensor_new(DT_F32, 6), x = tensor_new(DT_F32, 3), nll = tensor_output(DT_F32, 1);
	for (int c = 0; c < 3; c++) {
		for (int k = 0; k < 3; k++)
			x.v[k] = table[c][0], out.v[k] = table[c][1], out.v[3 + k] = log(table[c][2]);
		tensor_put(&out), tensor_put(&x);
		ops->logit_laplace(dev, nll.p, NULL, out.p, x.p, 1, -INFINITY, 1);
		tensor_get(&nll, "logit_laplace");
		CHECK(fabs(nll.v[0] / -3 - table[c][3]) < 2e-6, "ln f = %f, got %f", table[c][3], nll.v[0] / -3);
	}
	struct tensor maps = tensor_new(DT_F32, 6 * N), grid = tensor_new(DT_F32, 3 * N), all = tensor_output(DT_F32, N);
	for (int i = 0; i < N; i++)
		for (int c = 0; c < 3; c++)
			maps.v[6 * i + c] = 0.3, maps.v[6 * i + 3 + c] = log(0.8), grid.v[3 * i + c] = (i + 0.5) / N;
	tensor_put(&maps), tensor_put(&grid);
	ops->logit_laplace(dev, all.p, NULL, maps.p, grid.p, N, -INFINITY, 1);
	tensor_get(&all, "integral");
	double area = 0;
	for (int i = 0; i < N; i++)
		area += exp(-all.v[i] / 3) / N;
	CHECK(fabs(area - 1) < 1e-3, "the density integrates to 1: %f", area);
	tensor_free(&out), tensor_free(&x), tensor_free(&nll), tensor_free(&maps), tensor_free(&grid), tensor_free(&all);
}

static void check_reconstruct(size_t n)
{
	struct tensor out = tensor_random(DT_F32, 6 * n, -4, 4);
	uint8_t *device = must(ops->alloc(dev, 3 * n + GUARD)), *rgb = must(calloc(3 * n + GUARD, 1));
	memset(rgb, 0xA5, 3 * n + GUARD);
	ops->put(dev, device, rgb, 3 * n + GUARD);
	ops->reconstruct(dev, device, out.p, n, 0.8f, 0.1f);
	ops->get(dev, rgb, device, 3 * n + GUARD);
	int bad = 0;
	for (size_t p = 0; p < n; p++)
		for (int c = 0; c < 3; c++) {
			double v = 255 * fmin(fmax((1 / (1 + exp(-out.v[6 * p + c])) - 0.1) / 0.8, 0), 1);
			/* At a half either neighbour will do. */
			bad += fabs(rgb[3 * p + c] - v) > 0.5 + 1e-4;
		}
	for (int i = 0; i < GUARD; i++)
		bad += rgb[3 * n + i] != 0xA5;
	CHECK(bad == 0, "reconstruct %zu pixels: %d wrong", n, bad);
	ops->release(dev, device);
	tensor_free(&out);
	free(rgb);
}

/* ---- argmax and one-hot ---- */

static void check_argmax(size_t rows, int V)
{
	struct tensor x = tensor_new(DT_F32, rows * V), z = tensor_output(DT_F32, rows * V);
	int32_t *idx = must(calloc(rows + 1, sizeof *idx)), *device = must(ops->alloc(dev, (rows + 1) * sizeof *idx));
	/* Few distinct values: many ties. */
	for (size_t i = 0; i < x.n; i++)
		x.v[i] = floor(uniform(-4, 4));
	tensor_put(&x);
	idx[rows] = 12345;
	ops->put(dev, device, idx, (rows + 1) * sizeof *idx);
	ops->argmax(dev, device, x.p, rows, V);
	ops->onehot(dev, z.p, device, rows, V);
	ops->get(dev, idx, device, (rows + 1) * sizeof *idx);
	tensor_get(&z, "onehot");
	int bad = idx[rows] != 12345;
	for (size_t r = 0; r < rows; r++) {
		int best = 0;
		for (int k = 1; k < V; k++)
			best = x.v[r * V + k] > x.v[r * V + best] ? k : best;
		bad += idx[r] != best;
		for (int k = 0; k < V; k++)
			bad += z.v[r * V + k] != (k == best);
	}
	CHECK(bad == 0, "argmax and onehot %zu x %d: %d wrong", rows, V, bad);
	ops->release(dev, device);
	tensor_free(&x), tensor_free(&z);
	free(idx);
}

/* ---- draws ---- */

/* Descending by weight, ties by index, as the definition reads. */
static const double *sort_weight;
static int by_weight(const void *a, const void *b)
{
	int i = *(const int *)a, j = *(const int *)b;
	double d = sort_weight[j] - sort_weight[i];
	return d > 0 ? 1 : d < 0 ? -1 : i - j;
}

/* Probabilities after temperature, top-k, then top-p. */
static void naive_kept(double *p, const double *x, int V, const struct draw *how)
{
	int *order = must(calloc(V, sizeof *order)), keep = how->top_k > 0 && how->top_k < V ? how->top_k : V;
	double total = 0, mass = 0, sum = 0, top = -INFINITY;
	for (int k = 0; k < V; k++)
		top = fmax(top, x[k]);
	for (int k = 0; k < V; k++)
		order[k] = k, p[k] = exp((x[k] - top) / how->temperature);
	sort_weight = p;
	qsort(order, V, sizeof *order, by_weight);
	for (int i = 0; i < keep; i++)
		total += p[order[i]];
	for (int i = 0; i < V; i++) {
		int in = i < keep && (i == 0 || how->top_p >= 1 || mass < how->top_p * total);
		mass += p[order[i]];
		if (!in)
			p[order[i]] = 0;
	}
	for (int k = 0; k < V; k++)
		sum += p[k];
	for (int k = 0; k < V; k++)
		p[k] /= sum;
	free(order);
}

static int naive_draw(const double *p, int V, uint64_t key, int32_t position, const struct draw *how, double *margin)
{
	uint32_t bits[4];
	philox(bits, how->seed, (uint32_t)key, (uint32_t)(key >> 32), (uint32_t)position, RNG_SAMPLE);
	double u = (bits[0] + 0.5) / 4294967296.0, sum = 0;
	int token = -1;
	*margin = 1;
	for (int k = 0; k < V; k++) {
		sum += p[k];
		*margin = fmin(*margin, fabs(sum - u));
		if (token < 0 && sum > u)
			token = k;
	}
	return token;
}

static void run_draw(int32_t *token, const struct tensor *x, const uint64_t *key, const int32_t *position, size_t rows,
		     int V, const struct draw *how)
{
	uint64_t *device_key = must(ops->alloc(dev, rows * sizeof *key));
	int32_t *device = must(ops->alloc(dev, rows * sizeof *token));
	ops->put(dev, device_key, key, rows * sizeof *key);
	int32_t *device_position = ints_put(position, rows);
	ops->draw(dev, device, x->p, device_key, device_position, rows, V, how);
	ops->get(dev, token, device, rows * sizeof *token);
	ops->release(dev, device);
	ops->release(dev, device_key);
	ops->release(dev, device_position);
}

/* Token by token equal to the definition, except within 1e-5 of a boundary of the distribution; every tenth row is
 * idle and holds rubbish. */
static void check_draw(int V, float temperature, int top_k, float top_p)
{
	enum { ROWS = 200 };
	struct draw how = {temperature, top_k, top_p, 0x123456789abcdefull};
	struct tensor x = tensor_random(DT_F32, (size_t)ROWS * V, -3, 3);
	uint64_t key[ROWS];
	int32_t token[ROWS], position[ROWS];
	double *p = must(calloc(V, sizeof *p)), margin;
	int bad = 0, alone = 0, doubtful = 0;
	for (int r = 0; r < ROWS; r++) {
		key[r] = r * 0x100000001ull;
		position[r] = r % 10 == 9 ? -1 : 17 * r;
		x.v[(size_t)r * V] = position[r] < 0 ? NAN : x.v[(size_t)r * V];
	}
	tensor_put(&x);
	run_draw(token, &x, key, position, ROWS, V, &how);
	for (int r = 0; r < ROWS; r++) {
		if (position[r] < 0) {
			bad += token[r] != -1;
			continue;
		}
		naive_kept(p, x.v + (size_t)r * V, V, &how);
		int want = naive_draw(p, V, key[r], position[r], &how, &margin);
		bad += want != token[r] && margin > 1e-5;
		doubtful += margin <= 1e-5;
		if (r % 50 == 0) {
			struct tensor one = x;
			int32_t single;
			one.p = (float *)x.p + (size_t)r * V;
			run_draw(&single, &one, key + r, position + r, 1, V, &how);
			alone += single != token[r];
		}
	}
	CHECK(bad == 0 && alone == 0, "draw V %d t %g k %d p %g: %d differ, %d alone", V, temperature, top_k, top_p, bad,
	      alone);
	CHECK(doubtful < ROWS / 4, "draw V %d: %d of %d too close to tell", V, doubtful, ROWS);
	tensor_free(&x);
	free(p);
}

static void check_draw_ends(void)
{
	struct tensor x = tensor_new(DT_F32, 6);
	static const double row[6] = {1, 4, 4, -INFINITY, 4, 2};
	memcpy(x.v, row, sizeof row);
	tensor_put(&x);
	int counts[6] = {0};
	uint64_t key = 0;
	int32_t token, position = 1;
	struct draw how = {0, 0, 1, 1};
	run_draw(&token, &x, &key, &position, 1, 6, &how);
	CHECK(token == 1, "greedy: lowest index on ties");
	how = (struct draw){1, 2, 1, 5};
	for (key = 0; key < 400; key++)
		run_draw(&token, &x, &key, &position, 1, 6, &how), counts[token]++;
	CHECK(counts[1] + counts[2] == 400 && counts[1] > 140 && counts[2] > 140, "top-k 2 of three equal: the first two");
	how = (struct draw){1, 0, 1e-6f, 5};
	for (key = 0; key < 20; key++) {
		run_draw(&token, &x, &key, &position, 1, 6, &how);
		CHECK(token == 1, "top-p near 0 is greedy");
	}
	how = (struct draw){1, 0, 1, 5};
	for (key = 0, counts[3] = 0; key < 400; key++)
		run_draw(&token, &x, &key, &position, 1, 6, &how), counts[3] += token == 3;
	CHECK(counts[3] == 0, "a logit of -infinity is never drawn");
	x.v[2] = NAN;
	tensor_put(&x);
	key = 0;
	run_draw(&token, &x, &key, &position, 1, 6, &how);
	char err[256] = "";
	CHECK(ops->sync(dev, err, sizeof err) == -1 && strstr(err, "draw"), "NaN among the logits is an error: %s", err);
	tensor_free(&x);
}

/* Frequencies over many keys: chi-squared against the probabilities. */
static void check_draw_frequencies(void)
{
	enum { ROWS = 40000, V = 12 };
	struct tensor x = tensor_new(DT_F32, (size_t)ROWS * V);
	uint64_t *key = must(calloc(ROWS, sizeof *key));
	int32_t *token = must(calloc(ROWS, sizeof *token)), *position = must(calloc(ROWS, sizeof *position));
	double p[V], count[V] = {0}, chi2 = 0;
	for (size_t i = 0; i < x.n; i++)
		x.v[i] = sin(1.0 + i % V) * 2;
	for (int r = 0; r < ROWS; r++)
		key[r] = r;
	tensor_put(&x);
	struct draw how = {0.8f, 9, 0.95f, 31};
	naive_kept(p, x.v, V, &how);
	run_draw(token, &x, key, position, ROWS, V, &how);
	int outside = 0;
	for (int r = 0; r < ROWS; r++)
		outside += p[token[r]] == 0, count[token[r]]++;
	for (int k = 0; k < V; k++)
		chi2 += p[k] > 0 ? pow(count[k] - ROWS * p[k], 2) / (ROWS * p[k]) : 0;
	CHECK(outside == 0 && chi2 < 40, "draws follow the kept probabilities: chi-squared %.1f, %d outside", chi2, outside);
	tensor_free(&x);
	free(key), free(token), free(position);
}

/* ---- bits over threads ---- */

static void run_bits(double *z, double *g, double *kl, const double *logits, size_t rows, int V, int threads)
{
	device_open(DT_F32, threads);
	struct tensor x = tensor_new(DT_F32, rows * V), out = tensor_output(DT_F32, rows * V);
	struct tensor dx = tensor_output(DT_F32, rows * V), k = tensor_output(DT_F32, rows);
	memcpy(x.v, logits, x.n * sizeof *logits);
	tensor_put(&x);
	ops->gumbel_fwd(dev, out.p, k.p, x.p, rows, V, 0.3f, 1, 2, 3);
	ops->gumbel_bwd(dev, dx.p, x.p, out.p, x.p, rows, V, 0.3f, 0.1f);
	ops->usage_fwd(dev, out.p, x.p, rows, V); /* added to the first row */
	ops->usage_bwd(dev, dx.p, out.p, x.p, rows, V);
	tensor_get(&out, "bits"), tensor_get(&dx, "bits"), tensor_get(&k, "bits");
	memcpy(z, out.v, x.n * sizeof *z);
	memcpy(g, dx.v, x.n * sizeof *g);
	memcpy(kl, k.v, rows * sizeof *kl);
	tensor_free(&x), tensor_free(&out), tensor_free(&dx), tensor_free(&k);
	device_close();
}

static void check_bits(void)
{
	enum { ROWS = 133, V = 257, N = ROWS * V };
	double *x = must(calloc(N, sizeof *x)), *z[2], *g[2], kl[2][ROWS];
	for (int i = 0; i < N; i++)
		x[i] = (float)uniform(-2, 2);
	for (int i = 0; i < 2; i++) {
		z[i] = must(calloc(N, sizeof *z[i])), g[i] = must(calloc(N, sizeof *g[i]));
		run_bits(z[i], g[i], kl[i], x, ROWS, V, i + 1);
	}
	CHECK(!memcmp(z[0], z[1], N * sizeof *x) && !memcmp(g[0], g[1], N * sizeof *x) && !memcmp(kl[0], kl[1], sizeof kl[0]),
	      "gumbel, usage: same bits with 1 and 2 threads");
	for (int i = 0; i < 2; i++)
		free(z[i]), free(g[i]);
	free(x);
}

int main(void)
{
	device_open(DT_F32, 0);
	for (int V = 1; V < 256; V = V * 16 + 1)
		for (double tau = 1; tau > 0.05; tau /= 4)
			check_gumbel(5, V, tau);
	for (int V = 1; V < 256; V = V * 16 + 1)
		check_usage(5, V);
	check_usage(131, 9); /* several partial sums */
	check_gumbel_parts();
	check_kl_ends();
	check_gumbel_wins();
	for (size_t n = 1; n < 9000; n = n * 17) {
		check_laplace(n);
		check_reconstruct(n);
		check_argmax(n, 17);
	}
	check_argmax(17, 255);
	check_argmax(3, 1);
	check_laplace_numbers();
	check_laplace_floor();
	for (int V = 17; V < 5000; V *= 15) {
		check_draw(V, 1, 0, 1);
		check_draw(V, 0.7f, V / 3, 1);
		check_draw(V, 1.3f, 0, 0.8f);
		check_draw(V, 1, V / 2, 0.9f);
	}
	check_draw(1, 1, 5, 0.5f);
	check_draw_ends();
	check_draw_frequencies();
	device_close();
	check_bits();
	return check_done();
}
