/* params.c - see params.h. */
#include "params.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "hash.h"
#include "rng.h"

enum { STEP = 64 }; /* bytes between the starts of tensors are multiples of this */
#define MAX_ELEMENTS ((int64_t)1 << 44)

static size_t padded(const struct param *r)
{
	return round_up(r->n, STEP / sizeof(float));
}

static bool has_copy(const struct param *r, enum dtype type)
{
	return r->kind == PARAM_MATRIX && type != DT_F32;
}

static bool decays(const struct param *r)
{
	return r->kind == PARAM_MATRIX || r->kind == PARAM_MATRIX_F32 || r->kind == PARAM_EMBED;
}

/* ---- rows ---- */

static int grow(struct params *p, struct error *e)
{
	if (p->count < p->cap)
		return 0;
	int cap = p->cap ? 2 * p->cap : 64;
	struct param *rows = mem_grow(p->rows, (size_t)cap, sizeof *rows, e);
	if (!rows)
		return -1;
	p->rows = rows;
	struct param ***slots = mem_grow(p->slots, (size_t)cap, sizeof *slots, e);
	if (!slots)
		return -1;
	p->slots = slots;
	p->cap = cap;
	return 0;
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
	struct param row = {.kind = kind, .init = init, .resblock = resblock};
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

static size_t copy_bytes(const struct params *p, enum dtype type)
{
	size_t bytes = 0;
	for (int i = 0; i < p->count; i++)
		if (has_copy(&p->rows[i], type))
			bytes += round_up(p->rows[i].n * dtype_bytes(type), STEP);
	return bytes;
}

uint64_t params_bytes(const struct params *p, enum dtype type, bool training)
{
	return (uint64_t)p->total * sizeof(float) * (training ? 5 : 1) + copy_bytes(p, type) + sizeof(double);
}

static int take_blocks(struct params *p, struct error *e)
{
	float **blocks[] = {&p->w, &p->g, &p->m, &p->v, &p->avg};
	static const char *const names[] = {"weights", "gradients", "first moments", "second moments", "averaged weights"};
	size_t wanted = p->training ? ARRAY_LEN(blocks) : 1;
	for (size_t i = 0; i < wanted; i++) {
		*blocks[i] = device_alloc(p->ops, p->dev, (uint64_t)p->total * sizeof(float), names[i], e);
		if (!*blocks[i])
			return -1;
	}
	p->t_bytes = copy_bytes(p, p->ops->type(p->dev));
	if (p->t_bytes && !(p->t = device_alloc(p->ops, p->dev, p->t_bytes, "weights for products", e)))
		return -1;
	p->sum = device_alloc(p->ops, p->dev, sizeof *p->sum, "norms", e);
	return p->sum ? 0 : -1;
}

static void set_pointers(struct params *p)
{
	enum dtype type = p->ops->type(p->dev);
	size_t at = 0, t_at = 0;
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		r->w = p->w + at;
		if (p->training)
			r->g = p->g + at, r->m = p->m + at, r->v = p->v + at, r->avg = p->avg + at;
		r->t = r->w;
		if (has_copy(r, type)) {
			r->t = (char *)p->t + t_at;
			t_at += round_up(r->n * dtype_bytes(type), STEP);
		}
		at += padded(r);
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
	void *blocks[] = {p->w, p->g, p->m, p->v, p->avg, p->t, p->sum};
	for (size_t i = 0; i < ARRAY_LEN(blocks); i++)
		if (blocks[i])
			p->ops->release(p->dev, blocks[i]);
	free(p->rows);
	free(p->slots);
	*p = (struct params){0};
}

/* ---- values ---- */

static void draw_row(float *out, const struct param *r, uint64_t seed)
{
	float value = r->kind == PARAM_GAIN ? 1 : r->kind == PARAM_SCALAR ? r->init : 0;
	bool normal = r->kind != PARAM_GAIN && r->kind != PARAM_SCALAR && r->kind != PARAM_BIAS && r->init != 0;
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
	for (int i = 0; i < p->count; i++) {
		draw_row(host, &p->rows[i], seed);
		p->ops->put(p->dev, p->rows[i].w, host, p->rows[i].n * sizeof *host);
	}
	int r = device_check(p->ops, p->dev, e); /* before the host copy goes: put only queues */
	free(host);
	params_refresh(p);
	return r;
}

void params_refresh(struct params *p)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		if (r->t != r->w)
			p->ops->cast(p->dev, r->t, r->w, r->n, 1);
	}
}

void params_zero_grad(struct params *p)
{
	p->ops->zero(p->dev, p->g, p->total * sizeof *p->g);
}

static double root_of_squares(struct params *p, const float *x, size_t n)
{
	double sum = NAN;
	p->ops->zero(p->dev, p->sum, sizeof *p->sum);
	p->ops->sumsq(p->dev, p->sum, x, n);
	p->ops->get(p->dev, &sum, p->sum, sizeof sum);
	return sqrt(sum);
}

int params_grad_norm(struct params *p, double *norm, struct error *e)
{
	/* The gaps between tensors are zero from the start and stay so. */
	*norm = root_of_squares(p, p->g, p->total);
	return device_check(p->ops, p->dev, e);
}

void params_update(struct params *p, const struct adamw *a)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		struct adamw how = *a;
		if (!decays(r))
			how.decay = 0;
		p->ops->adamw(p->dev, r->w, r->t, r->m, r->v, r->g, r->n, &how);
	}
}

void params_average(struct params *p, float decay)
{
	p->ops->average(p->dev, p->avg, p->w, p->total, decay);
}

void params_swap_average(struct params *p)
{
	float *block = p->w;
	p->w = p->avg;
	p->avg = block;
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		float *w = r->w;
		if (r->t == w)
			r->t = r->avg;
		r->w = r->avg;
		r->avg = w;
	}
	params_refresh(p);
}

const char *params_find_nonfinite(struct params *p, bool gradients)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		/* The sum is in double: squares of finite floats cannot overflow it. */
		if (!isfinite(root_of_squares(p, gradients ? r->g : r->w, r->n)))
			return r->name;
	}
	return NULL;
}
