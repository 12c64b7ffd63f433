/* powersgd.c - see powersgd.h.  Three products, with G stored as it is (rows, cols), serve both orientations:
 * left = E right^T, right = left^T E, D = left right.  P is left and Q right; of a tall matrix it is the other way round. */
#include "powersgd.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/convert.h"
#include "device.h"
#include "hash.h"
#include "orthonormal.h"
#include "rng.h"

enum { CHUNK = 1 << 14 }; /* elements that a thread converts at a time */

/* ---- matrices and memory ---- */

static bool compressed(const struct param *r)
{
	return r->kind == PARAM_MATRIX && r->resblock >= 0;
}

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

static size_t most(size_t a, size_t b)
{
	return a > b ? a : b;
}

static struct powersgd_matrix describe(struct param *r, int part, int rank)
{
	size_t rows = (size_t)(r->shape[0] / r->parts), n = r->n / (size_t)r->parts, cols = n / rows;
	return (struct powersgd_matrix){.row = r, .rows = rows, .cols = cols, .rank = least((size_t)rank, least(rows, cols)),
	                                .n = n, .at = (size_t)part * n, .tall = rows > cols};
}

static size_t left_size(const struct powersgd_matrix *m)
{
	return m->rows * m->rank;
}

static size_t right_size(const struct powersgd_matrix *m)
{
	return m->rank * m->cols;
}

static size_t p_size(const struct powersgd_matrix *m)
{
	return m->tall ? right_size(m) : left_size(m);
}

static size_t q_size(const struct powersgd_matrix *m)
{
	return m->tall ? left_size(m) : right_size(m);
}

struct sizes {
	int count;          /* matrices */
	size_t error, p, q; /* elements of these of all matrices together; of all fixed as many as q */
	size_t rest;        /* of rows that are not compressed */
	size_t row, matrix, left, right, scratch; /* of the largest row, matrix, factors, and most scratch of orthonormal_rows */
};

static struct sizes measure(const struct params *p, int rank)
{
	struct sizes z = {0};
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		if (!compressed(r)) {
			z.rest += r->n;
			continue;
		}
		struct powersgd_matrix m = describe(r, 0, rank); /* the others are as large */
		size_t parts = (size_t)r->parts;
		z.count += r->parts;
		z.error += r->n, z.p += parts * p_size(&m), z.q += parts * q_size(&m);
		z.row = most(z.row, r->n);
		z.matrix = most(z.matrix, m.n);
		z.left = most(z.left, left_size(&m));
		z.right = most(z.right, right_size(&m));
		z.scratch = most(z.scratch, orthonormal_scratch(m.rank, least(m.rows, m.cols)));
	}
	return z;
}

uint64_t powersgd_bytes(const struct params *p, const struct powersgd_options *how)
{
	struct sizes z = measure(p, how->rank);
	uint64_t kept = z.error + z.p + 2 * z.q, scratch = z.row + z.matrix + z.left + z.right + z.scratch;
	return dtype_bytes(how->type) * kept + sizeof(float) * (z.rest + 2 * (uint64_t)z.count + scratch);
}

/* All errors, then all fixed, all p, all q, so that those of a resblock are one message. */
static void cut_block(struct powersgd *s, const struct sizes *z)
{
	char *error = s->block;
	size_t each = dtype_bytes(s->how.type);
	char *fixed = error + z->error * each, *p = fixed + z->q * each, *q = p + z->p * each;
	struct powersgd_matrix *m = s->m;
	for (int i = 0; i < s->params->count; i++) {
		struct param *r = &s->params->rows[i];
		if (!compressed(r))
			continue;
		s->errors.at[i] = error; /* of all parts, as the row's tensor */
		for (int k = 0; k < r->parts; k++, m++) {
			*m = describe(r, k, s->how.rank);
			m->error = error, m->fixed = fixed, m->p = p, m->q = q;
			error += m->n * each, fixed += q_size(m) * each, p += p_size(m) * each, q += q_size(m) * each;
		}
	}
}

static float *take(struct powersgd *s, size_t n, const char *what, struct error *e)
{
	return device_alloc(cpu_ops(), s->dev, sizeof(float) * (uint64_t)(n ? n : 1), what, e);
}

static int take_memory(struct powersgd *s, struct error *e)
{
	struct sizes z = measure(s->params, s->how.rank);
	s->count = z.count;
	s->rest = z.rest;
	s->m = mem_zero((size_t)z.count + 1, sizeof *s->m, e);
	s->errors.type = s->how.type;
	s->errors.at = mem_zero((size_t)s->params->count + 1, sizeof *s->errors.at, e);
	s->block = device_alloc(cpu_ops(), s->dev, dtype_bytes(s->how.type) * (uint64_t)(z.error + z.p + 2 * z.q + 1),
	                        "PowerSGD's error buffers", e);
	s->message = take(s, z.rest + 2 * (size_t)z.count, "PowerSGD's message", e);
	s->x = take(s, z.row, "PowerSGD's gradient", e);
	s->y = take(s, z.matrix, "PowerSGD's matrix", e);
	s->left = take(s, z.left, "PowerSGD's factors", e);
	s->right = take(s, z.right, "PowerSGD's factors", e);
	s->scratch = take(s, z.scratch, "PowerSGD's reflections", e);
	if (!s->m || !s->errors.at || !s->block || !s->message || !s->x || !s->y || !s->left || !s->right || !s->scratch)
		return -1;
	cut_block(s, &z);
	return 0;
}

/* ---- number formats ---- */

static bool narrow(const struct powersgd *s)
{
	return s->how.type != DT_F32;
}

/* Returns how many are beyond the largest. */
static unsigned encode_chunk(uint16_t *h, const float *x, float times, size_t n)
{
	const float largest = f32_from_1_6_9(0x7fff);
	unsigned over = 0;
	for (size_t i = 0; i < n; i++) {
		float v = times * x[i];
		over += fabsf(v) > largest;
		h[i] = f32_to_1_6_9(v);
	}
	return over;
}

static void decode_chunk(float *x, const uint16_t *h, float times, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] = times * f32_from_1_6_9(h[i]);
}

/* to (n) = times x, in the format that is kept.  In f32 there is no factor. */
static void encode(struct powersgd *s, void *to, const float *x, float times, size_t n)
{
	uint16_t *h = to;
	uint64_t over = 0;
	if (!narrow(s)) {
		memcpy(to, x, n * sizeof *x);
		return;
	}
#pragma omp parallel for num_threads(s->how.threads) reduction(+ : over) if (n > CHUNK)
	for (size_t i = 0; i < n; i += CHUNK)
		over += encode_chunk(h + i, x + i, times, least(CHUNK, n - i));
	s->saturated += over;
}

/* x (n) = from / times. */
static void decode(const struct powersgd *s, float *x, const void *from, float times, size_t n)
{
	const uint16_t *h = from;
	if (!narrow(s)) {
		memcpy(x, from, n * sizeof *x);
		return;
	}
#pragma omp parallel for num_threads(s->how.threads) if (n > CHUNK)
	for (size_t i = 0; i < n; i += CHUNK)
		decode_chunk(x + i, h + i, 1 / times, least(CHUNK, n - i));
}

static bool all_finite(const struct powersgd *s, const float *x, size_t n)
{
	double squares = 0; /* of finite floats they cannot overflow it */
	cpu_ops()->sumsq(s->dev, &squares, x, DT_F32, n);
	return isfinite(squares);
}

/* E as floats: itself, or y. */
static float *error_of(struct powersgd *s, const struct powersgd_matrix *m)
{
	if (!narrow(s))
		return m->error;
	decode(s, s->y, m->error, 1, m->n);
	return s->y;
}

static void keep_error(struct powersgd *s, struct powersgd_matrix *m, const float *x)
{
	if (x != m->error)
		encode(s, m->error, x, 1, m->n);
}

/* ---- start ---- */

static void draw_fixed(struct powersgd *s)
{
	for (int i = 0; i < s->count; i++) {
		struct powersgd_matrix *m = &s->m[i];
		float *x = m->tall ? s->left : s->right;
		uint32_t name = (uint32_t)hash64(m->row->name, strlen(m->row->name)), part = (uint32_t)(m->at / m->n);
		rng_normal(x, q_size(m), 1, s->how.seed, RNG_POWERSGD, name + part);
		encode(s, m->fixed, x, 1, q_size(m));
	}
}

static int check(const struct params *p, const struct powersgd_options *how, struct error *e)
{
	if (how->rank < 1)
		return fail(e, STATUS_USAGE, "PowerSGD: rank %d, expected 1 or more", how->rank);
	for (int i = 0; i < p->count; i++)
		if (compressed(&p->rows[i]) && p->rows[i].n / (size_t)p->rows[i].shape[0] > INT_MAX)
			return fail(e, STATUS_LIMIT, "tensor %s: is too wide for PowerSGD", p->rows[i].name);
	return 0;
}

int powersgd_start(struct powersgd *s, struct params *p, const struct powersgd_options *how, struct error *e)
{
	char text[200];
	*s = (struct powersgd){.how = *how, .params = p};
	s->how.threads = how->threads ? how->threads : cpu_usable_threads();
	if (check(p, how, e))
		return -1;
	s->dev = cpu_ops()->open(0, DT_F32, how->threads, text, sizeof text);
	if (!s->dev)
		return fail(e, STATUS_FAIL, "PowerSGD: %s", text);
	if (take_memory(s, e)) {
		powersgd_free(s);
		return -1;
	}
	draw_fixed(s);
	return 0;
}

void powersgd_free(struct powersgd *s)
{
	void *const taken[] = {s->block, s->message, s->x, s->y, s->left, s->right, s->scratch};
	for (size_t i = 0; i < ARRAY_LEN(taken); i++)
		if (taken[i])
			cpu_ops()->release(s->dev, taken[i]);
	device_close(cpu_ops(), s->dev);
	free(s->m);
	free(s->errors.at);
	*s = (struct powersgd){0};
}

/* ---- factors ---- */

/* left (rows, rank) = E right^T */
static void make_left(struct powersgd *s, const struct powersgd_matrix *m, const float *error)
{
	cpu_ops()->linear_fwd(s->dev, s->left, error, s->right, NULL, m->rows, (int)m->cols, (int)m->rank, 0);
}

/* right (rank, cols) = left^T E */
static void make_right(struct powersgd *s, const struct powersgd_matrix *m, const float *error)
{
	memset(s->right, 0, right_size(m) * sizeof *s->right);
	cpu_ops()->linear_bwd(s->dev, NULL, s->right, NULL, s->left, error, NULL, m->rows, (int)m->cols, (int)m->rank, 0);
}

/* From one factor, which becomes what is kept at `from`, the other. */
static float *other_factor(struct powersgd *s, const struct powersgd_matrix *m, const void *from, bool left, size_t n,
                           const float *error)
{
	decode(s, left ? s->left : s->right, from, 1, n);
	if (left)
		make_right(s, m, error);
	else
		make_left(s, m, error);
	return left ? s->right : s->left;
}

/* What is not finite is told, not sent. */
static void prepare(struct powersgd *s, void *message, float *x, float times, size_t n, float *flag)
{
	if (!all_finite(s, x, n)) {
		*flag = 1;
		memset(x, 0, n * sizeof *x);
	}
	encode(s, message, x, times, n);
}

static void transpose(float *to, const float *from, size_t rows, size_t cols)
{
	for (size_t i = 0; i < rows; i++)
		for (size_t j = 0; j < cols; j++)
			to[j * rows + i] = from[i * cols + j];
}

/* m->p, the sum of all ranks' P, becomes orthonormal.  Its columns are rows of `right`, as those of a tall matrix are. */
static void orthonormal_p(struct powersgd *s, struct powersgd_matrix *m, float *flag)
{
	size_t n = p_size(m), length = n / m->rank;
	float *x = m->tall ? s->right : s->left;
	decode(s, x, m->p, POWERSGD_P_SCALE, n);
	if (!all_finite(s, x, n)) {
		*flag = 1;
		memset(x, 0, n * sizeof *x);
	}
	if (!m->tall)
		transpose(s->right, s->left, length, m->rank);
	for (size_t i = 0; i < m->rank; i++)
		s->right[i * length + i] += POWERSGD_EPS;
	orthonormal_rows(cpu_ops(), s->dev, s->right, m->rank, length, s->scratch);
	if (!m->tall)
		transpose(s->left, s->right, m->rank, length);
	encode(s, m->p, x, 1, n);
}

/* ---- an update ---- */

/* The two flags of matrix m, which all ranks' are added to. */
static float *flags_of(const struct powersgd *s, const struct powersgd_matrix *m)
{
	return s->message + s->rest + 2 * (m - s->m);
}

/* E += G where G is finite.  The first part takes the row's gradient for all. */
static int absorb(struct powersgd *s, struct powersgd_matrix *m, struct error *e)
{
	float *flags = flags_of(s, m), *error = error_of(s, m), *g = s->x + m->at;
	flags[0] = flags[1] = 0;
	if (m->at == 0 && params_get(s->params, m->row, BLOCK_G, s->x, e))
		return -1;
	if (!all_finite(s, g, m->n)) {
		flags[0] = 1;
		return 0;
	}
	cpu_ops()->add(s->dev, error, error, g, 1 / params_gradient_scale(s->params, m->row), m->n);
	keep_error(s, m, error);
	return 0;
}

/* m->p = E Q, or m->q = E^T P, as it is sent. */
static void make_p(struct powersgd *s, struct powersgd_matrix *m)
{
	float *x = other_factor(s, m, m->fixed, m->tall, q_size(m), error_of(s, m));
	prepare(s, m->p, x, POWERSGD_P_SCALE, p_size(m), flags_of(s, m) + 1);
}

static void make_q(struct powersgd *s, struct powersgd_matrix *m)
{
	float *x = other_factor(s, m, m->p, !m->tall, p_size(m), error_of(s, m));
	prepare(s, m->q, x, POWERSGD_Q_SCALE, q_size(m), flags_of(s, m) + 1);
}

/* P and Q of the matrices from..to-1, of one resblock, summed. */
static int sum_group(struct powersgd *s, struct comm *c, struct powersgd_matrix *from, struct powersgd_matrix *to,
                     struct error *e)
{
	enum comm_type type = narrow(s) ? COMM_1_6_9 : COMM_F32;
	size_t p = 0, q = 0;
	for (struct powersgd_matrix *m = from; m < to; m++) {
		if (absorb(s, m, e))
			return -1;
		make_p(s, m);
		p += p_size(m), q += q_size(m);
	}
	if (comm_sum(c, from->p, p, type, e))
		return -1;
	for (struct powersgd_matrix *m = from; m < to; m++) {
		orthonormal_p(s, m, flags_of(s, m) + 1);
		make_q(s, m);
	}
	return comm_sum(c, from->q, q, type, e);
}

/* The other gradients, one after the other, between their device and the message. */
static int copy_rest(struct powersgd *s, bool get, struct error *e)
{
	struct params *p = s->params;
	float *x = s->message;
	for (int i = 0; i < p->count; i++) {
		const struct param *row = &p->rows[i];
		if (compressed(row))
			continue;
		if (get ? params_get(p, row, BLOCK_G, x, e) : params_put(p, row, BLOCK_G, x, e))
			return -1;
		x += row->n;
	}
	return 0;
}

/* They and the flags, in one sum. */
static int sum_rest(struct powersgd *s, struct comm *c, struct error *e)
{
	size_t n = s->rest + 2 * (size_t)s->count;
	return copy_rest(s, true, e) || comm_sum(c, s->message, n, COMM_F32, e) || copy_rest(s, false, e) ? -1 : 0;
}

/* Its part of x = D */
static void multiply(struct powersgd *s, const struct powersgd_matrix *m)
{
	decode(s, s->left, m->tall ? m->q : m->p, m->tall ? POWERSGD_Q_SCALE : 1, left_size(m));
	decode(s, s->right, m->tall ? m->p : m->q, m->tall ? 1 : POWERSGD_Q_SCALE, right_size(m));
	cpu_ops()->linear_bwd(s->dev, s->x + m->at, NULL, NULL, s->left, NULL, s->right, m->rows, (int)m->cols, (int)m->rank, 0);
}

/* E -= D / ranks, D in x */
static void take_sent(struct powersgd *s, struct powersgd_matrix *m, int ranks)
{
	float *error = error_of(s, m);
	cpu_ops()->add(s->dev, error, error, s->x + m->at, -1 / (float)ranks, m->n);
	keep_error(s, m, error);
}

/* Nothing of this matrix could be sent: E stays, if it is finite. */
static void clean_error(struct powersgd *s, struct powersgd_matrix *m)
{
	float *error = error_of(s, m);
	if (!all_finite(s, error, m->n))
		memset(m->error, 0, m->n * dtype_bytes(s->how.type));
}

/* D in place of G; the last part gives the row's. */
static int give(struct powersgd *s, struct powersgd_matrix *m, int ranks, struct error *e)
{
	const float *flags = flags_of(s, m);
	float *d = s->x + m->at, scale = params_gradient_scale(s->params, m->row);
	multiply(s, m);
	bool sent = flags[1] == 0 && all_finite(s, d, m->n);
	if (!sent)
		clean_error(s, m);
	else if (!s->how.keep_skipped)
		take_sent(s, m, ranks);
	for (size_t i = 0; i < m->n; i++)
		d[i] = sent && flags[0] == 0 ? scale * d[i] : INFINITY;
	return m->at + m->n < m->row->n ? 0 : params_put(s->params, m->row, BLOCK_G, s->x, e);
}

int powersgd_sum(struct powersgd *s, struct comm *c, struct error *e)
{
	for (int i = 0, end; i < s->count; i = end) {
		for (end = i + 1; end < s->count && s->m[end].row->resblock == s->m[i].row->resblock; end++)
			;
		if (sum_group(s, c, s->m + i, s->m + end, e))
			return -1;
	}
	if (sum_rest(s, c, e))
		return -1;
	for (int i = 0; i < s->count; i++)
		if (give(s, &s->m[i], c->size, e))
			return -1;
	return device_check(cpu_ops(), s->dev, e);
}

/* D is multiplied again, P and Q being there still: to keep it would take the memory of all gradients, and without the option
 * E is settled while D is at hand. */
void powersgd_settle(struct powersgd *s, int ranks, bool left_out)
{
	for (int i = 0; i < s->count && s->how.keep_skipped && !left_out; i++) {
		multiply(s, &s->m[i]);
		take_sent(s, &s->m[i], ranks);
	}
}

/* ---- checkpoints ---- */

int powersgd_sum_errors(struct powersgd *s, struct comm *c, struct error *e)
{
	for (int i = 0; i < s->count; i++) {
		float *error = error_of(s, &s->m[i]);
		if (comm_sum(c, error, s->m[i].n, COMM_F32, e))
			return -1;
		keep_error(s, &s->m[i], error);
	}
	return 0;
}

void powersgd_share_errors(struct powersgd *s, int ranks)
{
	for (int i = 0; i < s->count; i++) {
		float *error = error_of(s, &s->m[i]);
		size_t n = s->m[i].n;
		cpu_ops()->cast(s->dev, s->x, error, n, 1 / (float)ranks, 0);
		encode(s, s->m[i].error, s->x, 1, n);
	}
}
