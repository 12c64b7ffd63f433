/* params.c - see params.h. */
#include "params.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/convert.h"
#include "device.h"
#include "hash.h"
#include "rng.h"

enum { STEP = 64 }; /* bytes between the starts of tensors are multiples of this */
#define MAX_ELEMENTS ((int64_t)1 << 44)

static size_t padded(const struct param *r)
{
	return round_up(r->n, STEP / sizeof(float));
}

/* The type of row r in block b on a device of type t; false: it is not there. */
static bool stored(const struct params *p, const struct param *r, enum params_block b, enum dtype t, bool training,
                   enum dtype *type)
{
	const struct storage *s = &p->storage;
	bool matrix = r->kind == PARAM_MATRIX, narrow = matrix && t != DT_F32, masterless = narrow && training && s->no_master;
	enum dtype wide = DT_F32;
	const struct {
		bool there;
		enum dtype type;
	} blocks[BLOCKS] = {
		[BLOCK_W] = {!masterless, wide},
		[BLOCK_T] = {narrow, t},
		[BLOCK_G] = {training, narrow && s->t_gradients ? t : wide},
		[BLOCK_M] = {training, matrix && s->moments_16 ? DT_1_6_9 : wide},
		[BLOCK_V] = {training, matrix && s->moments_16 ? DT_0_6_10 : wide},
		[BLOCK_AVG] = {training && !s->no_averages, wide},
		[BLOCK_AVG_T] = {masterless && !s->no_averages, t},
	};
	*type = blocks[b].type;
	return blocks[b].there;
}

static bool decays(const struct param *r)
{
	return r->kind == PARAM_MATRIX || r->kind == PARAM_MATRIX_F32 || r->kind == PARAM_EMBED;
}

/* ---- rows ---- */

static int grow(struct params *p, struct error *e)
{
	size_t need = (size_t)p->count + 1, cap = p->cap; /* of both */
	return ARRAY_ROOM(p->rows, need, &cap, e) || ARRAY_ROOM(p->slots, need, &p->cap, e) ? -1 : 0;
}

static int set_shape(struct param *r, int rank, const int64_t *shape, struct error *e)
{
	int64_t n = 1;
	if (rank < 1 || rank > 4)
		return fail(e, STATUS_USAGE, "tensor %s: rank %d, expected 1 to 4", r->name, rank);
	r->rank = rank;
	for (int i = 0; i < rank; i++) {
		r->shape[i] = shape[i];
		if (shape[i] < 1 || __builtin_mul_overflow(n, shape[i], &n) || n > MAX_ELEMENTS)
			return fail(e, STATUS_USAGE, "tensor %s: side %d of %lld elements is out of range", r->name, i,
			            (long long)shape[i]);
	}
	r->n = (size_t)n;
	return 0;
}

int params_add(struct params *p, struct param **slot, enum param_kind kind, float init, int resblock, int rank,
               const int64_t *shape, struct error *e, const char *name_fmt, ...)
{
	struct param row = {.kind = kind, .init = init, .resblock = resblock, .parts = 1, .unit = resblock, .at = p->total};
	va_list ap;
	va_start(ap, name_fmt);
	int n = vsnprintf(row.name, sizeof row.name, name_fmt, ap);
	va_end(ap);
	if (n < 1 || (size_t)n >= sizeof row.name)
		return fail(e, STATUS_USAGE, "tensor %s...: the name is too long", row.name);
	if (params_find(p, row.name))
		return fail(e, STATUS_USAGE, "tensor %s: described twice", row.name);
	if (set_shape(&row, rank, shape, e) || grow(p, e))
		return -1;
	if (p->total + padded(&row) > (size_t)MAX_ELEMENTS)
		return fail(e, STATUS_LIMIT, "tensor %s: the model is too large", row.name);
	p->rows[p->count] = row;
	p->slots[p->count++] = slot;
	p->total += padded(&row);
	return 0;
}

struct param *params_find(struct params *p, const char *name)
{
	for (int i = 0; i < p->count; i++)
		if (strcmp(p->rows[i].name, name) == 0)
			return &p->rows[i];
	return NULL;
}

uint64_t params_count(const struct params *p)
{
	uint64_t n = 0;
	for (int i = 0; i < p->count; i++)
		n += p->rows[i].n;
	return n;
}

/* ---- memory ---- */

struct block_use params_block_use(const struct params *p, enum params_block b, enum dtype type, bool training)
{
	struct block_use u = {0};
	enum dtype own;
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		if (!stored(p, r, b, type, training, &own))
			continue;
		uint64_t bytes = round_up(r->n * dtype_bytes(own), STEP);
		if (r->kind == PARAM_MATRIX)
			u.matrices += bytes, u.type = own;
		else
			u.others += bytes;
	}
	return u;
}

static size_t block_bytes(const struct params *p, enum params_block b)
{
	struct block_use u = params_block_use(p, b, p->ops->type(p->dev), p->training);
	return u.matrices + u.others;
}

static int take_blocks(struct params *p, struct error *e)
{
	static const char *const names[BLOCKS] = {"weights", "weights for products", "gradients", "first moments", "second moments",
	                                          "averaged weights", "averaged weights for products"};
	for (enum params_block b = 0; b < BLOCKS; b++) {
		size_t bytes = block_bytes(p, b);
		if (bytes && !(p->block[b] = device_alloc(p->ops, p->dev, bytes, names[b], e)))
			return -1;
	}
	p->sum = device_alloc(p->ops, p->dev, (uint64_t)p->count * sizeof *p->sum, "norms", e);
	p->host_sum = mem_alloc((size_t)p->count, sizeof *p->host_sum, e);
	return p->sum && p->host_sum ? 0 : -1;
}

static void set_pointers(struct params *p)
{
	enum dtype own, type = p->ops->type(p->dev);
	size_t at[BLOCKS] = {0};
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		for (enum params_block b = 0; b < BLOCKS; b++) {
			if (!stored(p, r, b, type, p->training, &own))
				continue;
			r->in[b] = (char *)p->block[b] + at[b];
			at[b] += round_up(r->n * dtype_bytes(own), STEP);
		}
		if (!r->t)
			r->t = r->w;
		if (p->slots[i])
			*p->slots[i] = r;
	}
}

int params_build(struct params *p, const struct ops *ops, struct dev *dev, bool training, struct error *e)
{
	p->ops = ops;
	p->dev = dev;
	p->training = training;
	if (!p->count)
		return fail(e, STATUS_USAGE, "the model has no parameters");
	if (take_blocks(p, e)) {
		params_free(p);
		return -1;
	}
	set_pointers(p);
	return 0;
}

void params_free(struct params *p)
{
	for (enum params_block b = 0; b < BLOCKS; b++)
		if (p->block[b])
			p->ops->release(p->dev, p->block[b]);
	if (p->sum)
		p->ops->release(p->dev, p->sum);
	grad_scale_free(&p->scales);
	free(p->host_sum);
	free(p->rows);
	free(p->slots);
	*p = (struct params){0};
}

/* ---- values ---- */

struct place params_place(const struct params *p, const struct param *r, enum params_block b)
{
	struct place at = {r->in[b], DT_F32};
	if (b == BLOCK_W && !r->w)
		at.p = r->in[b = BLOCK_T];
	stored(p, r, b, p->ops->type(p->dev), p->training, &at.type);
	return at;
}

int params_put(struct params *p, const struct param *r, enum params_block b, const float *x, struct error *e)
{
	struct place at = params_place(p, r, b);
	size_t bytes = r->n * dtype_bytes(at.type);
	void *own = at.type == DT_F32 ? NULL : mem_alloc(bytes, 1, e);
	if (at.type != DT_F32 && !own)
		return -1;
	if (own)
		row_from_f32(own, at.type, x, r->n);
	p->ops->put(p->dev, at.p, own ? own : x, bytes);
	int result = device_check(p->ops, p->dev, e); /* before the host copy goes: put only queues */
	free(own);
	return result;
}

int params_get(struct params *p, const struct param *r, enum params_block b, float *x, struct error *e)
{
	struct place at = params_place(p, r, b);
	size_t bytes = r->n * dtype_bytes(at.type);
	void *own = at.type == DT_F32 ? NULL : mem_alloc(bytes, 1, e);
	if (at.type != DT_F32 && !own)
		return -1;
	p->ops->get(p->dev, own ? own : x, at.p, bytes);
	if (own)
		row_to_f32(x, own, at.type, r->n);
	free(own);
	return device_check(p->ops, p->dev, e);
}

int params_dw(const struct params *p, const struct param *r)
{
	return params_place(p, r, BLOCK_G).type == DT_F32 ? 0 : OP_DW_T;
}

static void draw_row(float *out, const struct param *r, uint64_t seed)
{
	float value = r->kind == PARAM_GAIN ? 1 : r->kind == PARAM_SCALAR ? r->init : 0;
	bool normal = decays(r) && r->init != 0;
	if (normal)
		rng_normal(out, r->n, r->init, seed, RNG_INIT, (uint32_t)hash64(r->name, strlen(r->name)));
	else
		for (size_t i = 0; i < r->n; i++)
			out[i] = value;
}

int params_init(struct params *p, uint64_t seed, struct error *e)
{
	size_t most = 0;
	for (int i = 0; i < p->count; i++)
		most = p->rows[i].n > most ? p->rows[i].n : most;
	float *host = mem_alloc(most, sizeof *host, e);
	if (!host)
		return -1;
	int r = 0;
	for (int i = 0; i < p->count && r == 0; i++) {
		draw_row(host, &p->rows[i], seed);
		r = params_put(p, &p->rows[i], BLOCK_W, host, e);
	}
	free(host);
	params_refresh(p);
	return r;
}

void params_refresh(struct params *p)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		if (r->w && r->t != r->w)
			p->ops->cast(p->dev, r->t, r->w, r->n, 1, 0);
	}
}

static void zero_block(struct params *p, enum params_block b)
{
	p->ops->zero(p->dev, p->block[b], block_bytes(p, b));
}

void params_start(struct params *p)
{
	zero_block(p, BLOCK_M);
	zero_block(p, BLOCK_V);
	params_average(p, 0);
	params_refresh(p);
}

void params_zero_grad(struct params *p)
{
	zero_block(p, BLOCK_G);
}

/* ---- gradients and updates ---- */

float params_gradient_scale(const struct params *p, const struct param *r)
{
	bool norm = r->kind == PARAM_GAIN || r->kind == PARAM_SHIFT;
	return p->scales.kind == GRAD_SCALE_GLOBAL ? grad_scale_loss(&p->scales) :
	       norm ? 1 : grad_scale_enter(&p->scales, r->unit);
}

/* host_sum[i] = sum of squares of row i in block b. */
static void sum_squares(struct params *p, enum params_block b)
{
	size_t bytes = (size_t)p->count * sizeof *p->sum;
	p->ops->zero(p->dev, p->sum, bytes);
	for (int i = 0; i < p->count; i++) {
		struct place at = params_place(p, &p->rows[i], b);
		p->ops->sumsq(p->dev, p->sum + i, at.p, at.type, p->rows[i].n);
	}
	p->ops->get(p->dev, p->host_sum, p->sum, bytes);
}

int params_grad_norm(struct params *p, double *norm, struct error *e)
{
	struct grad_scale *s = &p->scales;
	double squares = 0;
	for (int i = 0; i < s->units; i++)
		s->finite[i] = true;
	s->outside = false;
	sum_squares(p, BLOCK_G);
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		double k = params_gradient_scale(p, r);
		int unit = grad_scale_unit(s, r->unit);
		squares += p->host_sum[i] / (k * k);
		/* The sum is in double: squares of finite floats cannot overflow it. */
		if (isfinite(p->host_sum[i]))
			continue;
		if (unit < 0)
			s->outside = true;
		else
			s->finite[unit] = false;
	}
	*norm = sqrt(squares);
	return device_check(p->ops, p->dev, e);
}

void params_update(struct params *p, const struct adamw *a)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		struct place w = params_place(p, r, BLOCK_W), g = params_place(p, r, BLOCK_G);
		struct place m = params_place(p, r, BLOCK_M), v = params_place(p, r, BLOCK_V);
		struct adamw_tensor x = {.w = w.p, .wt = r->t, .m = m.p, .v = v.p, .g = g.p,
		                         .w_type = w.type, .m_type = m.type, .v_type = v.type, .g_type = g.type};
		struct adamw how = *a;
		if (!decays(r))
			how.decay = 0;
		how.g_scale /= params_gradient_scale(p, r);
		how.first = r->at;
		p->ops->adamw(p->dev, &x, r->n, &how);
	}
}

void params_average(struct params *p, float decay)
{
	for (int i = 0; i < p->count; i++) {
		const struct param *r = &p->rows[i];
		struct place w = params_place(p, r, BLOCK_W);
		if (r->avg)
			p->ops->average(p->dev, r->avg, w.p, w.type, r->n, decay);
	}
}

static void swap(void **a, void **b)
{
	void *kept = *a;
	*a = *b;
	*b = kept;
}

void params_swap_average(struct params *p)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		bool copy = r->t != r->w;
		if (!r->w && !p->swapped)
			p->ops->cast(p->dev, r->avg_t, r->avg, r->n, 1, 0);
		if (!r->w) {
			swap(&r->in[BLOCK_T], &r->in[BLOCK_AVG_T]);
			continue;
		}
		swap(&r->in[BLOCK_W], &r->in[BLOCK_AVG]);
		if (!copy)
			r->t = r->w;
	}
	p->swapped = !p->swapped;
	params_refresh(p);
}

const char *params_find_nonfinite(struct params *p, bool gradients)
{
	sum_squares(p, gradients ? BLOCK_G : BLOCK_W);
	for (int i = 0; i < p->count; i++)
		if (!isfinite(p->host_sum[i]))
			return p->rows[i].name;
	return NULL;
}
