/* loss.c - cross-entropies, the choice of the largest, and the drawing of tokens.  Rows are
 * independent of each other and of the thread count; sums inside a row run in eight lanes. */
#include "cpu.h"
#include "philox.h"
#include "vec.h"

#include <math.h>

enum { BLOCK = 1024, SMALL = 4096, STRIP = 64 };

static VINLINE float row_max(const float *x, size_t n)
{
	vf m = v_set(-INFINITY);
	for (size_t i = 0; i < n; i += VL)
		m = v_max(v_row(x, i, n, -INFINITY), m);
	return v_greatest(m);
}

/* log of the sum of exp. */
CLONES static float row_lse(const float *x, size_t n)
{
	float top = row_max(x, n);
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL)
		s += v_exp(v_row(x, i, n, -INFINITY) - top);
	return top + logf(v_sum(s));
}

/* ---- token cross-entropy ---- */

CLONES static void softmax_block(void *g, enum dtype t, const float *x, float lse, float scale, size_t n)
{
	float v[BLOCK];
	for (size_t i = 0; i < n; i += VL)
		v_store(v + i, scale * v_exp(v_row(x, i, n, 0) - lse));
	row_from_f32(g, t, v, n);
}

static void xent_row(float *nll, void *g, enum dtype t, const float *x, int target, int V, float scale)
{
	float lse = row_lse(x, V), hit = x[target];
	if (nll)
		*nll = lse - hit;
	if (!g)
		return;
	for (int i = 0; i < V; i += BLOCK)
		softmax_block(at(g, t, i), t, x + i, lse, scale, V - i < BLOCK ? V - i : BLOCK);
	/* From the f32 value: the 16-bit softmax minus 1 would be rounded twice. */
	store_from_f32(g, t, target, scale * (expf(hit - lse) - 1.0f));
}

void cpu_xent(struct dev *d, float *nll, void *dlogits, const float *logits, const int32_t *target, size_t rows, int V,
              float scale, int flags)
{
	enum dtype t = call_type(d, flags);
	for (size_t r = 0; r < rows; r++)
		if (target[r] >= V) {
			cpu_fail(d, "xent", "target %d of row %zu, expected less than %d", target[r], r, V);
			return;
		}
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < rows; r++) {
		void *g = dlogits ? at(dlogits, t, r * V) : NULL;
		if (target[r] >= 0) {
			xent_row(nll ? nll + r : NULL, g, t, logits + r * V, target[r], V, scale);
		} else {
			if (nll)
				nll[r] = 0;
			if (g)
				memset(g, 0, V * dtype_bytes(t));
		}
	}
}

/* ---- contrastive cross-entropy ---- */

struct contrast {
	const float *sim;
	const int32_t *group;
	float *row_lse, *col_lse;
	double *row_ds; /* per row: sum of d loss / d logit * logit */
	float gain;     /* exp(s) */
	float scale;    /* of the gradients */
	int B;
};

/* Equal captions are no negatives of each other. */
static inline int counts(const struct contrast *c, int i, int j)
{
	return i == j || !c->group || c->group[i] != c->group[j];
}

static void contrast_row_lse(const struct contrast *c, int i)
{
	const float *x = c->sim + (size_t)i * c->B;
	float top = c->gain * x[i];
	double s = 0;
	for (int j = 0; j < c->B; j++)
		if (counts(c, i, j) && c->gain * x[j] > top)
			top = c->gain * x[j];
	for (int j = 0; j < c->B; j++)
		if (counts(c, i, j))
			s += expf(c->gain * x[j] - top);
	c->row_lse[i] = top + (float)log(s);
}

/* Columns j0.. of at most STRIP, read row by row. */
static void contrast_strip_lse(const struct contrast *c, int j0)
{
	float top[STRIP];
	double s[STRIP] = {0};
	int n = c->B - j0 < STRIP ? c->B - j0 : STRIP;
	for (int k = 0; k < n; k++)
		top[k] = -INFINITY;
	for (int pass = 0; pass < 2; pass++)
		for (int i = 0; i < c->B; i++)
			for (int k = 0; k < n; k++) {
				float l = c->gain * c->sim[(size_t)i * c->B + j0 + k];
				if (!counts(c, i, j0 + k))
					continue;
				if (pass == 1)
					s[k] += expf(l - top[k]);
				else if (l > top[k])
					top[k] = l;
			}
	for (int k = 0; k < n; k++)
		c->col_lse[j0 + k] = top[k] + (float)log(s[k]);
}

static void contrast_row_bwd(const struct contrast *c, float *dsim, int i)
{
	const float *x = c->sim + (size_t)i * c->B;
	double ds = 0;
	for (int j = 0; j < c->B; j++) {
		float l = c->gain * x[j], g = 0;
		if (counts(c, i, j))
			g = (expf(l - c->row_lse[i]) + expf(l - c->col_lse[j]) - (i == j ? 2.0f : 0.0f)) / (2.0f * c->B) * c->scale;
		ds += (double)g * l;
		if (dsim)
			dsim[(size_t)i * c->B + j] = g * c->gain;
	}
	c->row_ds[i] = ds;
}

static void contrast_run(struct dev *d, const struct contrast *c, float *loss, float *dsim, float *ds)
{
	int B = c->B;
#pragma omp parallel for num_threads(d->threads) if ((size_t)B * B > SMALL)
	for (int i = 0; i < B; i++)
		contrast_row_lse(c, i);
#pragma omp parallel for num_threads(d->threads) if ((size_t)B * B > SMALL)
	for (int j = 0; j < B; j += STRIP)
		contrast_strip_lse(c, j);
	double sum = 0;
	for (int i = 0; i < B; i++)
		sum += (double)c->row_lse[i] + c->col_lse[i] - 2.0 * (c->gain * c->sim[(size_t)i * B + i]);
	if (loss)
		*loss = (float)(sum / (2.0 * B));
	if (!dsim && !ds)
		return;
#pragma omp parallel for num_threads(d->threads) if ((size_t)B * B > SMALL)
	for (int i = 0; i < B; i++)
		contrast_row_bwd(c, dsim, i);
	double total = 0;
	for (int i = 0; i < B; i++)
		total += c->row_ds[i];
	if (ds)
		*ds = (float)total;
}

void cpu_clip_xent(struct dev *d, float *loss, float *dsim, float *ds, const float *sim, const float *s,
                   const int32_t *group, int B, float scale)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	struct contrast c = {.sim = sim, .group = group, .gain = expf(*s), .scale = scale, .B = B};
	c.row_lse = cpu_scratch(d, "clip_xent", B * sizeof(float));
	c.col_lse = cpu_scratch(d, "clip_xent", B * sizeof(float));
	c.row_ds = cpu_scratch(d, "clip_xent", B * sizeof(double));
	if (c.row_lse && c.col_lse && c.row_ds)
		contrast_run(d, &c, loss, dsim, ds);
	cpu_scratch_end(d, mark);
}

/* ---- largest ---- */

CLONES static int argmax_row(const float *x, size_t n)
{
	float top = row_max(x, n);
	for (size_t i = 0; i < n; i++)
		if (x[i] == top)
			return (int)i;
	return 0; /* nothing but NaN */
}

void cpu_argmax(struct dev *d, int32_t *idx, const float *x, size_t rows, int V)
{
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < rows; r++)
		idx[r] = argmax_row(x + r * V, V);
}

void cpu_onehot(struct dev *d, float *z, const int32_t *idx, size_t rows, int V)
{
#pragma omp parallel for num_threads(d->threads) if (rows * V > SMALL)
	for (size_t r = 0; r < rows; r++) {
		memset(z + r * V, 0, V * sizeof(float));
		if (idx[r] >= 0 && idx[r] < V)
			z[r * V + idx[r]] = 1;
	}
}

/* ---- draws ---- */

/* e = exp((x - top) / temperature): positive floats order as their bits do.  Returns whether all is finite. */
CLONES static int draw_weights(float *e, const float *x, size_t n, float temperature)
{
	float top = row_max(x, n);
	vf s = v_set(0);
	for (size_t i = 0; i < n; i += VL) {
		vf p = v_exp((v_row(x, i, n, -INFINITY) - top) / temperature);
		v_row_store(e, i, n, p);
		s += p;
	}
	return isfinite(v_sum(s));
}

CLONES static size_t count_from(const float *e, size_t n, float least)
{
	uint32_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += e[i] >= least;
	return count;
}

/* f32 lanes over a block, then double: the rounding is far below that of the weights. */
CLONES static double mass_from(const float *e, size_t n, float least)
{
	double sum = 0;
	for (size_t b = 0; b < n; b += BLOCK) {
		size_t m = n - b < BLOCK ? n - b : BLOCK;
		vf s = v_set(0);
		for (size_t i = 0; i < m; i += VL) {
			vf x = v_row(e + b, i, m, 0);
			s += (vf)((vi)x & (x >= least));
		}
		sum += v_sum(s);
	}
	return sum;
}

/* The greatest weight w such that the weights >= w number at least k (k > 0) or have at least this
 * mass: bisection over the bits, at most 31 passes and no sort. */
static float draw_threshold(const float *e, size_t n, size_t k, double mass)
{
	uint32_t low = 0, high = float_bits(1.0f) + 1; /* the greatest weight is 1 */
	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;
		int enough = k ? count_from(e, n, bits_float(mid)) >= k : mass_from(e, n, bits_float(mid)) >= mass;
		if (enough)
			low = mid;
		else
			high = mid;
	}
	return bits_float(low);
}

/* Zero the weights below the threshold, and of those equal to it all but the first ones needed. */
static void draw_cut(float *e, size_t n, float least, size_t k, double mass)
{
	float above = bits_float(float_bits(least) + 1);
	size_t count = count_from(e, n, above);
	double kept = mass_from(e, n, above);
	for (size_t i = 0; i < n; i++) {
		if (e[i] < least || (e[i] == least && (k ? count >= k : kept >= mass)))
			e[i] = 0;
		else if (e[i] == least)
			count++, kept += e[i];
	}
}

/* Index at the fraction u of the weights, in token order; weights of 0 are never taken. */
static int draw_inverse(const float *e, size_t n, double u)
{
	double total = 0, sum = 0;
	int last = 0;
	for (size_t i = 0; i < n; i++)
		total += e[i];
	for (size_t i = 0; i < n && sum <= u * total; i++)
		if (e[i] > 0) {
			sum += e[i];
			last = (int)i;
		}
	return last;
}

/* -1: the row holds NaN or +infinity, or nothing finite. */
static int draw_row(float *e, const float *x, uint64_t key, uint32_t position, size_t V, const struct draw *how)
{
	if (!draw_weights(e, x, V, how->temperature > 0 ? how->temperature : 1.0f))
		return -1;
	if (!(how->temperature > 0))
		return argmax_row(x, V);
	if (how->top_k > 0 && (size_t)how->top_k < V)
		draw_cut(e, V, draw_threshold(e, V, how->top_k, 0), how->top_k, 0);
	if (how->top_p < 1.0f) {
		/* Of what top_k left; the smallest set of the likeliest that holds the mass, at least one token. */
		double mass = fmax(how->top_p * mass_from(e, V, 0), 1e-30);
		draw_cut(e, V, draw_threshold(e, V, 0, mass), 0, mass);
	}
	uint32_t bits[4];
	philox(bits, how->seed, (uint32_t)key, (uint32_t)(key >> 32), position, RNG_SAMPLE);
	return draw_inverse(e, V, (bits[0] + 0.5) * 0x1p-32);
}

void cpu_draw(struct dev *d, int32_t *token, const float *logits, const uint64_t *key, const int32_t *position,
              size_t rows, int V, const struct draw *how)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *e = cpu_scratch(d, "draw", (size_t)d->threads * V * sizeof(float));
	if (!e)
		rows = 0;
	int bad = 0;
#pragma omp parallel for num_threads(d->threads) if (rows > 1) reduction(| : bad)
	for (size_t r = 0; r < rows; r++) {
		token[r] = -1;
		if (position[r] < 0)
			continue;
		int k = draw_row(e + (size_t)cpu_thread() * V, logits + r * V, key[r], (uint32_t)position[r], V, how);
		token[r] = k < 0 ? 0 : k;
		bad |= k < 0;
	}
	if (bad)
		cpu_fail(d, "draw", "logits that are not finite");
	cpu_scratch_end(d, mark);
}
