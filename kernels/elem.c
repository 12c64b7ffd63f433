/* elem.c - elementwise entries: casts, residual sum, ReLU, GELU, pixels, and the embedding
 * tables.  Every loop works on blocks of BLOCK elements held in f32 on the stack, so that the
 * 16-bit types cost one conversion.  No reduction here except embed_bwd, whose order of sums is
 * that of the rows: all results are the same for any thread count. */
#include "gemm.h"
#include "vec.h"

enum { BLOCK = 1024, SMALL = 16384 /* fewer elements: one thread */ };

static size_t blocks_of(size_t n)
{
	return (n + BLOCK - 1) / BLOCK;
}

static size_t block_length(size_t n, size_t i)
{
	return n - i * BLOCK < BLOCK ? n - i * BLOCK : BLOCK;
}

/* ---- casts and the residual sum ---- */

CLONES static void cast_block(void *y, enum dtype t, const float *x, size_t n, float scale, int filter)
{
	float v[BLOCK];
	for (size_t i = 0; i < n; i++)
		v[i] = scale * x[i];
	if (filter)
		for (size_t i = 0; i < n; i++)
			v[i] = finite_or_zero(v[i]);
	row_from_f32(y, t, v, n);
}

void cpu_cast(struct dev *d, void *y, const float *x, size_t n, float scale, int flags)
{
	enum dtype t = call_type(d, flags);
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++)
		cast_block(at(y, t, b * BLOCK), t, x + b * BLOCK, block_length(n, b), scale, flags & OP_FILTER);
}

CLONES static void uncast_block(float *y, const void *x, enum dtype t, size_t n, float scale)
{
	float v[BLOCK];
	row_to_f32(v, x, t, n);
	for (size_t i = 0; i < n; i++)
		y[i] = scale * v[i];
}

void cpu_uncast(struct dev *d, float *y, const void *x, size_t n, float scale)
{
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++)
		uncast_block(y + b * BLOCK, at_const(x, d->type, b * BLOCK), d->type, block_length(n, b), scale);
}

CLONES static void add_block(float *y, const float *x, const void *r, enum dtype t, float gain, size_t n)
{
	float v[BLOCK];
	row_to_f32(v, r, t, n);
	for (size_t i = 0; i < n; i++)
		y[i] = x[i] + gain * v[i];
}

void cpu_add(struct dev *d, float *y, const float *x, const void *r, float gain, size_t n)
{
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++) {
		size_t o = b * BLOCK;
		add_block(y + o, x + o, at_const(r, d->type, o), d->type, gain, block_length(n, b));
	}
}

/* ---- ReLU ---- */

CLONES static void relu_block(void *y, enum dtype t, const float *x, size_t n)
{
	float v[BLOCK];
	/* Written so that a NaN stays one: divergence must not hide here. */
	for (size_t i = 0; i < n; i++)
		v[i] = x[i] < 0 ? 0 : x[i];
	row_from_f32(y, t, v, n);
}

void cpu_relu_fwd(struct dev *d, void *y, const float *x, size_t n, int flags)
{
	enum dtype t = call_type(d, flags);
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++)
		relu_block(at(y, t, b * BLOCK), t, x + b * BLOCK, block_length(n, b));
}

/* The sign and zero of a 16-bit float are those of the same bits as a signed integer. */
CLONES static void relu_bwd_block(void *dx, const void *dy, const void *y, enum dtype t, size_t n)
{
	if (t == DT_F32) {
		float *o = dx;
		const float *g = dy, *v = y;
		for (size_t i = 0; i < n; i++)
			o[i] = v[i] > 0 ? g[i] : 0;
	} else {
		uint16_t *o = dx;
		const uint16_t *g = dy;
		const int16_t *v = y;
		/* Masks: a branch on random signs costs twenty times as much. */
		for (size_t i = 0; i < n; i++)
			o[i] = g[i] & (uint16_t)-(v[i] > 0);
	}
}

void cpu_relu_bwd(struct dev *d, void *dx, const void *dy, const void *y, size_t n)
{
	enum dtype t = d->type;
	if (!dx)
		return;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++) {
		size_t o = b * BLOCK;
		relu_bwd_block(at(dx, t, o), at_const(dy, t, o), at_const(y, t, o), t, block_length(n, b));
	}
}

CLONES static void relu_bwd_add_block(float *dx, const void *dy, enum dtype t, const float *x, size_t n)
{
	float g[BLOCK];
	row_to_f32(g, dy, t, n);
	for (size_t i = 0; i < n; i++)
		dx[i] += x[i] > 0 ? g[i] : 0;
}

void cpu_relu_bwd_add(struct dev *d, float *dx, const void *dy, const float *x, size_t n, int flags)
{
	enum dtype t = call_type(d, flags);
	if (!dx)
		return;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++) {
		size_t o = b * BLOCK;
		relu_bwd_add_block(dx + o, at_const(dy, t, o), t, x + o, block_length(n, b));
	}
}

/* ---- GELU ---- */

/* Normal distribution function through erf, Abramowitz and Stegun 7.1.26: absolute error below 2e-7. */
static VINLINE vf normal_cdf(vf u, vf bell /* exp(-u^2 / 2) */)
{
	vf a = v_abs(u) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * a);
	vf p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
	vf tail = 0.5f * p * bell;
	return v_select(u < 0, tail, 1.0f - tail);
}

/* v holds n values of u and receives gelu(u); its length is rounded up to whole vectors. */
static VINLINE void gelu_values(float *v, size_t n, int exact)
{
	for (size_t i = 0; i < n; i += VL) {
		vf u = v_load(v + i);
		if (exact)
			u *= normal_cdf(u, v_exp(-0.5f * u * u));
		else
			u /= 1.0f + v_exp(-1.702f * u);
		v_store(v + i, u);
	}
}

/* The derivative: s + u s' with s the gate. */
static VINLINE void gelu_slopes(float *v, size_t n, int exact)
{
	for (size_t i = 0; i < n; i += VL) {
		vf u = v_load(v + i), g;
		if (exact) {
			vf bell = v_exp(-0.5f * u * u);
			g = normal_cdf(u, bell) + 0.39894228f * u * bell;
		} else {
			vf s = 1.0f / (1.0f + v_exp(-1.702f * u));
			g = s + 1.702f * u * (s * (1.0f - s));
		}
		v_store(v + i, g);
	}
}

CLONES static void gelu_block(void *y, const void *u, enum dtype t, size_t n, int exact)
{
	float v[BLOCK];
	row_to_f32(v, u, t, n);
	v_pad(v, n);
	gelu_values(v, n, exact);
	row_from_f32(y, t, v, n);
}

void cpu_gelu_fwd(struct dev *d, void *y, const void *u, size_t n, int exact)
{
	enum dtype t = d->type;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks_of(n); b++)
		gelu_block(at(y, t, b * BLOCK), at_const(u, t, b * BLOCK), t, block_length(n, b), exact);
}

CLONES static void gelu_bwd_block(void *du, const void *dy, const void *u, enum dtype t, size_t n, int exact)
{
	float v[BLOCK], g[BLOCK];
	row_to_f32(v, u, t, n);
	row_to_f32(g, dy, t, n);
	v_pad(v, n);
	gelu_slopes(v, n, exact);
	for (size_t i = 0; i < n; i++)
		g[i] *= v[i];
	row_from_f32(du, t, g, n);
}

void cpu_gelu_bwd(struct dev *d, void *du, float *db, const void *dy, const void *u, size_t rows, int C, int exact)
{
	enum dtype t = d->type;
	size_t n = rows * (size_t)C;
	struct scratch_mark mark = cpu_scratch_begin(d);
	void *out = du || !db ? du : cpu_scratch(d, "gelu_bwd", n * dtype_bytes(t));
	size_t blocks = out ? blocks_of(n) : 0;
#pragma omp parallel for num_threads(d->threads) if (n > SMALL)
	for (size_t b = 0; b < blocks; b++) {
		size_t o = b * BLOCK;
		gelu_bwd_block(at(out, t, o), at_const(dy, t, o), at_const(u, t, o), t, block_length(n, b), exact);
	}
	if (out && db)
		cpu_column_sums(d, "gelu_bwd", db, out, t, rows, (size_t)C);
	cpu_scratch_end(d, mark);
}

/* ---- pixels ---- */

void cpu_pixels(struct dev *d, float *x, const uint8_t *rgb, size_t n_pixels, const float scale[3], const float shift[3])
{
#pragma omp parallel for num_threads(d->threads) if (n_pixels > SMALL)
	for (size_t i = 0; i < n_pixels; i++)
		for (int c = 0; c < 3; c++)
			x[3 * i + c] = rgb[3 * i + c] * scale[c] + shift[c];
}

/* ---- embeddings ---- */

CLONES static void add_row(float *y, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] += x[i];
}

void cpu_embed_fwd(struct dev *d, float *h, const float *table, const int32_t *idx, size_t rows, int C, int add)
{
#pragma omp parallel for num_threads(d->threads) if (rows * C > SMALL)
	for (size_t r = 0; r < rows; r++) {
		float *y = h + r * C;
		if (idx[r] >= 0 && add)
			add_row(y, table + (size_t)idx[r] * C, C);
		else if (idx[r] >= 0)
			memcpy(y, table + (size_t)idx[r] * C, C * sizeof(float));
		else if (!add)
			memset(y, 0, C * sizeof(float));
	}
}

/* Threads share out the columns, not the rows: two rows of one token never race, and every sum runs in
 * row order. */
void cpu_embed_bwd(struct dev *d, float *dtable, const float *dh, const int32_t *idx, size_t rows, int C)
{
	enum { COLUMNS = 64 };
	if (!dtable)
		return;
#pragma omp parallel for num_threads(d->threads) if (rows * C > SMALL)
	for (int c = 0; c < C; c += COLUMNS)
		for (size_t r = 0; r < rows; r++)
			if (idx[r] >= 0)
				add_row(dtable + (size_t)idx[r] * C + c, dh + r * C + c,
				        C - c < COLUMNS ? C - c : COLUMNS);
}
