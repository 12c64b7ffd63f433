/* test-powersgd.c - PowerSGD (recipe E.2): full rank gives the sum (K11), nothing is lost at any rank (K12), numbers that
 * are not finite, both number formats, checkpoints, another implementation's values (tests/golden/make_powersgd.py), and
 * that error feedback is what makes it converge.  Ranks are threads. */
#include "golden.h"

#include <pthread.h>
#include <string.h>

#include "../kernels/convert.h"
#include "../libcommon/dalle.h"
#include "../libcommon/device.h"
#include "../libcommon/plan.h"
#include "../libcommon/powersgd.h"
#include "../libcommon/rng.h"

enum { MOST = 5, SEED = 17 };

/* ---- ranks as threads ---- */

struct rank {
	struct comm comm;
	struct params p;
	struct powersgd s;
	struct error e;
	int result;
};

static struct rank ranks[MOST];
static int size;
static pthread_barrier_t barrier;
static void *posted[MOST];
static uint64_t messages[3]; /* by type, of rank 0 */
static enum dtype gradients = DT_F32;
static bool loss_lost; /* the update is left out for its loss, as it were */

/* Every rank adds in the order of the ranks: the same bits everywhere. */
static int thread_sum(struct comm *c, void *x, size_t n, enum comm_type type, struct error *e)
{
	float *sum = calloc(n ? n : 1, sizeof *sum);
	posted[c->rank] = x;
	if (c->rank == 0) /* the counter belongs to this thread alone */
		messages[type]++;
	pthread_barrier_wait(&barrier);
	for (int r = 0; r < c->size; r++)
		for (size_t i = 0; i < n; i++)
			sum[i] += type == COMM_F32 ? ((float *)posted[r])[i] : f32_from_1_6_9(((uint16_t *)posted[r])[i]);
	pthread_barrier_wait(&barrier);
	for (size_t i = 0; i < n; i++)
		store_from_f32(x, type == COMM_F32 ? DT_F32 : DT_1_6_9, i, sum[i]);
	free(sum);
	return 0;
}

static const struct comm_backend threads = {.sum = thread_sum};

/* As a training does. */
static void *run_sum(void *r_)
{
	struct rank *r = r_;
	double norm = 0;
	r->result = powersgd_sum(&r->s, &r->comm, &r->e) || params_grad_norm(&r->p, &norm, &r->e) ? -1 : 0;
	powersgd_settle(&r->s, size, loss_lost || !isfinite(norm));
	return NULL;
}

static void *run_sum_errors(void *r_)
{
	struct rank *r = r_;
	r->result = powersgd_sum_errors(&r->s, &r->comm, &r->e);
	return NULL;
}

static void on_all(void *(*call)(void *))
{
	pthread_t id[MOST];
	bool ok = true;
	for (int r = 0; r < size; r++)
		if (pthread_create(&id[r], NULL, call, &ranks[r]))
			abort();
	for (int r = 0; r < size; r++)
		pthread_join(id[r], NULL);
	for (int r = 0; r < size; r++)
		ok = ok && ranks[r].result == 0;
	if (!ok)
		CHECK(false, "%s", ranks[0].e.text);
}

/* ---- a model ---- */

/* Wide, tall, square, a convolution, thin ones; what is not compressed between them. */
static const struct {
	const char *name;
	enum param_kind kind;
	int resblock, rank;
	int64_t shape[4];
} model[] = {
	{"embed", PARAM_EMBED, -1, 2, {7, 5}},     {"gain", PARAM_GAIN, 0, 1, {17}},        {"wide", PARAM_MATRIX, 0, 2, {13, 33}},
	{"bias", PARAM_BIAS, 0, 1, {17}},          {"tall", PARAM_MATRIX, 0, 2, {40, 12}},  {"square", PARAM_MATRIX, 1, 2, {5, 5}},
	{"conv", PARAM_MATRIX, 1, 4, {50, 4, 3, 3}}, {"row", PARAM_MATRIX, 1, 2, {1, 9}}, {"column", PARAM_MATRIX, 1, 2, {6, 1}},
	{"head", PARAM_MATRIX, -1, 2, {11, 5}},    {"fused", PARAM_MATRIX, 2, 2, {27, 11}},
};
enum { WIDE = 0, TALL = 1, FUSED = 6, MATRICES = 9 };

static void start_rank(struct rank *r, const struct powersgd_options *how)
{
	char text[200];
	struct dev *dev = cpu_ops()->open(0, gradients, 1, text, sizeof text);
	r->p.storage.t_gradients = true;
	for (size_t i = 0; i < ARRAY_LEN(model); i++)
		if (params_add(&r->p, NULL, model[i].kind, 1, model[i].resblock, model[i].rank, model[i].shape, &r->e, "%s",
		               model[i].name))
			abort();
	params_find(&r->p, "fused")->parts = 3;
	if (!dev || params_build(&r->p, cpu_ops(), dev, true, &r->e) || powersgd_start(&r->s, &r->p, how, &r->e)) {
		CHECK(false, "start: %s", r->e.text);
		exit(check_done());
	}
}

static void start(int n, const struct powersgd_options *how)
{
	size = n;
	pthread_barrier_init(&barrier, NULL, (unsigned)n);
	memset(messages, 0, sizeof messages);
	for (int r = 0; r < n; r++) {
		ranks[r] = (struct rank){.comm = {.rank = r, .size = n, .backend = &threads}};
		start_rank(&ranks[r], how);
	}
}

static void stop(void)
{
	for (int r = 0; r < size; r++) {
		struct dev *dev = ranks[r].p.dev;
		powersgd_free(&ranks[r].s);
		params_free(&ranks[r].p);
		device_close(cpu_ops(), dev);
	}
	pthread_barrier_destroy(&barrier);
}

static struct powersgd_options options(int rank, enum dtype type)
{
	return (struct powersgd_options){.rank = rank, .type = type, .seed = SEED, .threads = 1};
}

/* Gradients of all ranks, of an update, of some magnitude. */
static void draw_gradients(int update, float magnitude)
{
	for (int r = 0; r < size; r++)
		for (int i = 0; i < ranks[r].p.count; i++)
			rng_normal(ranks[r].p.rows[i].g, ranks[r].p.rows[i].n, magnitude, (uint64_t)update, RNG_INIT, (uint32_t)(100 * r + i));
}

/* The gradient of matrix k of rank r. */
static float *gradient(int r, int k)
{
	const struct powersgd_matrix *m = &ranks[r].s.m[k];
	return (float *)m->row->g + m->at;
}

static float error_at(const struct powersgd *s, int k, size_t i)
{
	return load_as_f32(s->m[k].error, s->how.type, i);
}

/* Before an update: for each element of each matrix the sums that must come out. */
struct sums {
	double gradient[MATRICES][1800], error[MATRICES][1800]; /* of G; of E with G in it, as it is stored */
};

static void expect(struct sums *x)
{
	memset(x, 0, sizeof *x);
	for (int r = 0; r < size; r++)
		for (int k = 0; k < MATRICES; k++) {
			struct powersgd *s = &ranks[r].s;
			const struct param *row = s->m[k].row;
			float by = 1 / params_gradient_scale(s->params, row), kept[1];
			for (size_t i = 0; i < s->m[k].n; i++) {
				float g = by * gradient(r, k)[i];
				store_from_f32(kept, s->how.type, 0, error_at(s, k, i) + g);
				x->gradient[k][i] += g;
				x->error[k][i] += load_as_f32(kept, s->how.type, 0);
			}
		}
}

static bool same_on_all(void)
{
	bool same = true;
	for (int r = 1; r < size; r++)
		for (int i = 0; i < ranks[0].p.count; i++)
			same = same && memcmp(ranks[r].p.rows[i].g, ranks[0].p.rows[i].g, 4 * ranks[0].p.rows[i].n) == 0;
	return same;
}

/* ---- K11, K12 ---- */

/* Greatest |E before - D - E after| of matrix k, sums over ranks, in units of what rounding explains: of E after to its
 * format, half a step or 2^-10 of it in 16 bits, and of f32 sums. */
static double lost(const struct sums *x, int k)
{
	double most = 0;
	const struct param *row = ranks[0].s.m[k].row;
	double step = ranks[0].s.how.type == DT_F32 ? 0 : 0x1p-10, scale = params_gradient_scale(&ranks[0].p, row);
	for (size_t i = 0; i < ranks[0].s.m[k].n; i++) {
		double d = gradient(0, k)[i] / scale, after = 0, room = 0x1p-22 * (fabs(x->error[k][i]) + fabs(d));
		for (int r = 0; r < size; r++) {
			after += error_at(&ranks[r].s, k, i);
			room += (step + 0x1p-22) * fabs(error_at(&ranks[r].s, k, i)) + 1e-18;
		}
		most = fmax(most, fabs(x->error[k][i] - d - after) / room);
	}
	return most;
}

/* |D - sum of G| and |sum of E after|, in units of |sum of G|. */
static void full_rank(const struct sums *x, int k, double *far, double *left)
{
	double a = 0, b = 0, all = 0;
	for (size_t i = 0; i < ranks[0].s.m[k].n; i++) {
		double after = 0;
		for (int r = 0; r < size; r++)
			after += error_at(&ranks[r].s, k, i);
		a += pow(gradient(0, k)[i] - x->gradient[k][i], 2);
		b += after * after;
		all += pow(x->gradient[k][i], 2);
	}
	*far = sqrt(a / all), *left = sqrt(b / all);
}

/* Greatest distance of P^T P from 1. */
static double not_orthonormal(int k)
{
	const struct powersgd_matrix *m = &ranks[0].s.m[k];
	size_t length = m->tall ? m->cols : m->rows;
	double most = 0;
	for (size_t a = 0; a < m->rank; a++)
		for (size_t b = 0; b < m->rank; b++) {
			double dot = 0;
			for (size_t i = 0; i < length; i++)
				dot += (double)load_as_f32(m->p, ranks[0].s.how.type, m->tall ? a * length + i : i * m->rank + a) *
				       load_as_f32(m->p, ranks[0].s.how.type, m->tall ? b * length + i : i * m->rank + b);
			most = fmax(most, fabs(dot - (a == b)));
		}
	return most;
}

static size_t least_side(const struct powersgd_matrix *m)
{
	return m->rows < m->cols ? m->rows : m->cols;
}

static void check_sums(int n, int rank, enum dtype type)
{
	static struct sums x;
	struct powersgd_options how = options(rank, type);
	double exact = type == DT_F32 ? 1e-6 : 0x1p-9;
	start(n, &how);
	for (int update = 0; update < 4; update++) {
		draw_gradients(update, 0.01f);
		expect(&x);
		float rest = 0;
		for (int r = 0; r < n; r++)
			rest += ((float *)ranks[r].p.rows[0].g)[3];
		on_all(run_sum);
		CHECK(same_on_all(), "%d ranks, rank %d, %s: the same bits on all", n, rank, dtype_name(type));
		CHECK(((float *)ranks[0].p.rows[0].g)[3] == rest, "what is not compressed is the sum");
		for (int k = 0; k < MATRICES; k++) {
			const struct powersgd_matrix *m = &ranks[0].s.m[k];
			double far, left, off = not_orthonormal(k), gone = lost(&x, k);
			CHECK(gone <= 1, "K12: %d ranks, rank %d, %s, %s: lost %.3g", n, rank, dtype_name(type), m->row->name, gone);
			CHECK(off < (type == DT_F32 ? 1e-6 : 0x1p-9), "%s, rank %d, %s: P^T P is off by %.3g", m->row->name, rank,
			      dtype_name(type), off);
			if (update || m->rank < least_side(m))
				continue;
			full_rank(&x, k, &far, &left);
			CHECK(far < exact && left < exact, "K11: %d ranks, %s, %s: D is off by %.3g, E is %.3g", n, dtype_name(type),
			      m->row->name, far, left);
		}
	}
	stop();
}

/* Two messages for each of three resblocks, one for the rest. */
static void check_messages(void)
{
	for (enum dtype type = DT_F32; type <= DT_1_6_9; type += DT_1_6_9 - DT_F32) {
		struct powersgd_options how = options(3, type);
		start(2, &how);
		on_all(run_sum);
		CHECK(messages[COMM_F32] == (type == DT_F32 ? 7 : 1) && messages[COMM_1_6_9] == (type == DT_F32 ? 0 : 6),
		      "%s: %d messages in f32, %d in 1-6-9", dtype_name(type), (int)messages[COMM_F32], (int)messages[COMM_1_6_9]);
		stop();
	}
}

/* ---- gradients of low rank ---- */

/* All gradients 0, or of rank 1 and the same on every rank. */
static void check_deficient(void)
{
	static struct sums x;
	struct powersgd_options how = options(4, DT_F32);
	start(3, &how);
	on_all(run_sum);
	for (int k = 0; k < MATRICES; k++) {
		const struct param *row = ranks[0].s.m[k].row;
		bool zero = true;
		for (size_t i = 0; i < ranks[0].s.m[k].n; i++)
			zero = zero && gradient(0, k)[i] == 0 && error_at(&ranks[0].s, k, i) == 0;
		CHECK(zero && not_orthonormal(k) < 1e-6, "%s: of zeros come zeros, P is orthonormal", row->name);
	}
	for (int r = 0; r < size; r++)
		for (int k = 0; k < MATRICES; k++)
			for (size_t i = 0; i < ranks[r].s.m[k].n; i++)
				gradient(r, k)[i] = (float)(i / ranks[r].s.m[k].cols + 1) * (float)(i % ranks[r].s.m[k].cols + 1);
	expect(&x);
	on_all(run_sum);
	for (int k = 0; k < MATRICES; k++) {
		double far, left;
		full_rank(&x, k, &far, &left);
		CHECK(far < 1e-6 && left < 1e-6, "%s: rank 1 comes through whole: off by %.3g", ranks[0].s.m[k].row->name, far);
	}
	stop();
}

/* ---- not finite ---- */

static bool infinite(const struct param *row)
{
	bool all = true;
	for (size_t i = 0; i < row->n; i++)
		all = all && isinf(((float *)row->g)[i]);
	return all;
}

static float *copy_error(int r, int k)
{
	struct powersgd *s = &ranks[r].s;
	float *x = calloc(s->m[k].n, sizeof *x);
	for (size_t i = 0; x && i < s->m[k].n; i++)
		x[i] = error_at(s, k, i);
	return x;
}

static bool same_error(int r, int k, const float *x)
{
	bool same = true;
	for (size_t i = 0; i < ranks[r].s.m[k].n; i++)
		same = same && error_at(&ranks[r].s, k, i) == x[i];
	return same;
}

/* A NaN in one rank's gradient: its E goes without it, D is infinite everywhere, and what was sent is subtracted or, with
 * keep_skipped, not. */
static void check_bad_gradient(enum dtype type, bool keep)
{
	struct powersgd_options how = options(2, type);
	how.keep_skipped = keep;
	start(3, &how);
	draw_gradients(0, 0.1f);
	on_all(run_sum);
	float *own = copy_error(1, WIDE), *other = copy_error(1, TALL);
	draw_gradients(1, 0.1f);
	gradient(1, WIDE)[40] = NAN;
	static struct sums x;
	for (int r = 0; r < size; r++) /* of the bad gradient nothing may come */
		if (r == 1)
			memset(ranks[r].s.m[WIDE].row->g, 0, 4 * ranks[r].s.m[WIDE].row->n);
	expect(&x);
	draw_gradients(1, 0.1f);
	gradient(1, WIDE)[40] = NAN;
	on_all(run_sum);
	CHECK(infinite(ranks[0].s.m[WIDE].row) && same_on_all(), "%s: a NaN on one rank: D is infinite on all", dtype_name(type));
	CHECK(isfinite(gradient(0, TALL)[0]), "other matrices are as ever");
	CHECK(same_error(1, WIDE, own) == keep, "%s: E of the bad gradient %s", dtype_name(type), keep ? "is kept" : "goes on");
	double worst = 0;
	for (size_t i = 0; i < ranks[0].s.m[TALL].row->n && keep; i++) {
		double after = 0;
		for (int r = 0; r < size; r++)
			after += error_at(&ranks[r].s, TALL, i);
		worst = fmax(worst, fabs(after - x.error[TALL][i]));
	}
	CHECK(worst == 0, "keep_skipped: nothing is subtracted from any matrix");
	CHECK(!same_error(1, TALL, other) && (keep || lost(&x, TALL) <= 1), "K12 for the others");
	double norm;
	CHECK(params_grad_norm(&ranks[2].p, &norm, &ranks[2].e) == 0 && isinf(norm), "the norm is infinite: %g", norm);
	free(own), free(other);
	stop();
}

/* An E that overflowed becomes 0; others keep theirs, with the gradient. */
static void check_contaminated(void)
{
	struct powersgd_options how = options(2, DT_F32);
	start(3, &how);
	draw_gradients(0, 0.1f);
	on_all(run_sum);
	((float *)ranks[1].s.m[TALL].error)[7] = 3e38f;
	draw_gradients(1, 0.1f);
	gradient(1, TALL)[7] = 3e38f;
	float *mine = copy_error(0, TALL), *g = ranks[0].s.m[TALL].row->g;
	for (size_t i = 0; i < ranks[0].s.m[TALL].row->n; i++)
		mine[i] += g[i];
	on_all(run_sum);
	bool zero = true;
	for (size_t i = 0; i < ranks[1].s.m[TALL].row->n; i++)
		zero = zero && error_at(&ranks[1].s, TALL, i) == 0;
	CHECK(zero, "a contaminated E becomes 0");
	CHECK(same_error(0, TALL, mine), "the others keep theirs");
	CHECK(infinite(ranks[0].s.m[TALL].row) && infinite(ranks[1].s.m[TALL].row) && same_on_all(), "D is infinite on all");
	draw_gradients(2, 0.1f);
	on_all(run_sum);
	CHECK(isfinite(gradient(1, TALL)[0]), "the next update is as ever");
	free(mine);
	stop();
}

/* Every element of the matrices' gradients on all ranks, in f16 with a scale of 8192; all others are 0. */
static void same_gradients(float value)
{
	static float x[1800];
	for (int i = 0; i < 1800; i++)
		x[i] = value;
	for (int r = 0; r < size; r++) {
		params_zero_grad(&ranks[r].p);
		for (int k = 0; k < MATRICES; k++)
			if (params_put(&ranks[r].p, ranks[r].s.m[k].row, BLOCK_G, x, &ranks[r].e))
				abort();
	}
}

/* Updates that are left out for what shows only after D: it does not fit f16, or the loss is not finite.  E has lost D, or,
 * with keep_skipped, has all of it; of an applied update it has lost D. */
static void check_left_out(enum dtype type, bool keep)
{
	static const struct {
		float gradient; /* 40000 + 40000 is more than 65504 */
		bool loss, out;
	} cases[] = {{16384, false, false}, {40000, false, true}, {16384, true, true}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct powersgd_options how = options(2, type);
		how.keep_skipped = keep;
		gradients = DT_F16;
		start(2, &how);
		for (int r = 0; r < size; r++)
			if (grad_scale_start(&ranks[r].p.scales, GRAD_SCALE_RESBLOCK, 3, 1, &ranks[r].e))
				abort();
		same_gradients(cases[i].gradient);
		loss_lost = cases[i].loss;
		on_all(run_sum);
		gradients = DT_F32, loss_lost = false;
		float whole = cases[i].gradient / 8192, want = keep && cases[i].out ? whole : 0;
		double far = 0;
		for (int k = 0; k < MATRICES; k++)
			for (size_t j = 0; j < ranks[1].s.m[k].n; j++)
				far = fmax(far, fabs(error_at(&ranks[1].s, k, j) - want));
		CHECK(far <= (want != 0 ? 0 : type == DT_F32 ? 1e-5 : 0x1p-6) * whole, "%s, %s, case %zu: E is off %g by %.3g",
		      dtype_name(type), keep ? "kept" : "lost", i, want, far);
		stop();
	}
}

/* Large gradients saturate in 16 bits: that is counted, and no evidence of anything that is not finite. */
static void check_saturation(void)
{
	struct powersgd_options how = options(2, DT_1_6_9);
	start(2, &how);
	draw_gradients(0, 1);
	on_all(run_sum);
	CHECK(ranks[0].s.saturated == 0, "gradients of 1 do not saturate");
	draw_gradients(1, 12);
	on_all(run_sum);
	CHECK(ranks[0].s.saturated > 0 && isfinite(gradient(0, TALL)[0]),
	      "gradients of 12: %d values are clamped", (int)ranks[0].s.saturated);
	for (int r = 0; r < size; r++)
		store_from_f32(ranks[r].s.m[TALL].error, DT_1_6_9, 0, 12);
	uint64_t before = ranks[0].s.saturated;
	on_all(run_sum_errors);
	CHECK(ranks[0].s.saturated > before && error_at(&ranks[0].s, TALL, 0) < 16, "a sum of 24 is clamped and counted");
	stop();
}

/* ---- gradient scales, checkpoints, memory ---- */

static void check_scales(void)
{
	static float plain[1800];
	for (int scaled = 0; scaled < 2; scaled++) {
		struct powersgd_options how = options(3, DT_1_6_9);
		start(2, &how);
		draw_gradients(0, 0.1f);
		for (int r = 0; r < 2 && scaled; r++) {
			if (grad_scale_start(&ranks[r].p.scales, GRAD_SCALE_RESBLOCK, 3, 1, &ranks[r].e))
				abort();
			for (int k = 0; k < MATRICES; k++)
				for (size_t i = 0; i < ranks[r].s.m[k].n; i++)
					gradient(r, k)[i] *= 8192;
		}
		on_all(run_sum);
		const float *g = ranks[0].s.m[TALL].row->g;
		bool same = true;
		for (size_t i = 0; i < ranks[0].s.m[TALL].row->n; i++) {
			same = same && (!scaled || g[i] == 8192 * plain[i]);
			plain[i] = g[i];
		}
		CHECK(same, "a gradient scale is on G and D, not on E");
		stop();
	}
}

static void check_checkpoint(enum dtype type)
{
	struct powersgd_options how = options(2, type);
	start(3, &how);
	draw_gradients(0, 0.1f);
	on_all(run_sum);
	double far = 0, step = type == DT_F32 ? 0x1p-22 : 0x1p-8;
	float *was[3] = {copy_error(0, TALL), copy_error(1, TALL), copy_error(2, TALL)};
	on_all(run_sum_errors);
	float *sum = copy_error(1, TALL);
	for (int r = 0; r < 3; r++) {
		CHECK(same_error(r, TALL, sum), "%s: every rank has the sum", dtype_name(type));
		powersgd_share_errors(&ranks[r].s, 3);
	}
	for (size_t i = 0; i < ranks[0].s.m[TALL].row->n; i++) {
		double one = error_at(&ranks[2].s, TALL, i), all = (double)was[0][i] + was[1][i] + was[2][i];
		far = fmax(far, fabs(3 * one - all) / (fabs((double)was[0][i]) + fabs((double)was[1][i]) + fabs((double)was[2][i])));
	}
	CHECK(far < step, "%s: a third each: off by %.3g", dtype_name(type), far);
	free(was[0]), free(was[1]), free(was[2]), free(sum);
	stop();
}

static void check_start(void)
{
	struct powersgd_options how = options(2, DT_1_6_9), none = options(0, DT_F32);
	struct powersgd s;
	struct error e = {0};
	start(2, &how);
	CHECK(memcmp(ranks[0].s.m[TALL].fixed, ranks[1].s.m[TALL].fixed, 2 * 40 * 2) == 0, "Q is the same on all ranks");
	CHECK(memcmp(ranks[0].s.m[TALL].fixed, ranks[0].s.m[WIDE].fixed, 2 * 33 * 2) != 0, "and another for each matrix");
	CHECK(memcmp(ranks[0].s.m[FUSED].fixed, ranks[0].s.m[FUSED + 1].fixed, 2 * 11 * 2) != 0, "and for each part");
	/* By hand: E 13 33 + 40 12 + 25 + 50 36 + 9 + 6 + 27 11; P 2 (13 + 12 + 5 + 36 + 3 9) + 1 + 1, Q 2 (33 + 40 + 5 + 50 +
	 * 3 11) + 9 + 6; rest 35 + 17 + 17 + 55 and the flags; scratch: two of 50 36, left 50 2, right 36 2, reflections 2 36 + 32 32 + 32 2. */
	uint64_t bytes = 2 * (3046 + 188 + 2 * 337) + 4 * (124 + 18 + 2 * 1800 + 100 + 72 + 72 + 1024 + 64);
	CHECK(powersgd_bytes(&ranks[0].p, &how) == bytes, "memory: %d, expected %d", (int)powersgd_bytes(&ranks[0].p, &how),
	      (int)bytes);
	CHECK(powersgd_start(&s, &ranks[0].p, &none, &e) == -1 && e.status == STATUS_USAGE, "%s", e.text);
	stop();
}

/* A layer sends what dalle-plan counts, 18 C r: queries, keys and values are a matrix each (E7). */
static void check_plan(void)
{
	struct plan_input in = {.type = DT_F16, .batch = 1, .gpus = 2, .node = 1, .rank = 4,
	                        .powersgd_type = DT_1_6_9};
	struct powersgd_options how = options(4, DT_1_6_9);
	struct powersgd s;
	struct dalle d = {0};
	struct plan plan;
	struct error e = {0};
	char text[200];
	double sent = 0;
	struct dev *dev = cpu_ops()->open(0, DT_F32, 1, text, sizeof text);
	in.config = dalle_preset_find("tiny")->config;
	if (!CHECK(plan_make(&in, &plan, &e) == 0 && dalle_describe(&d, &in.config, 0, false, &e) == 0 &&
	           params_build(&d.params, cpu_ops(), dev, true, &e) == 0 && powersgd_start(&s, &d.params, &how, &e) == 0, "%s", e.text))
		return;
	for (int k = 0; k < s.count; k++)
		sent += 2.0 * (double)(s.m[k].rank * (s.m[k].rows + s.m[k].cols));
	CHECK(sent > 0 && sent == plan.wire.p + plan.wire.q, "%g bytes are sent, planned %g", sent, plan.wire.p + plan.wire.q);
	powersgd_free(&s);
	dalle_free(&d);
	device_close(cpu_ops(), dev);
}

/* ---- another implementation ---- */

static void load_golden(const struct weights *w, int update, int r, int k, const char *what, float *to)
{
	char name[60];
	snprintf(name, sizeof name, "%d.%d.%d.%s", update, r, k, what);
	float *from = golden(w, name);
	memcpy(to, from, sizeof *to * ranks[r].s.m[k].n);
	free(from);
}

/* Its Q, which no other program can draw, its gradients; then D and every E of each update. */
static void check_golden(void)
{
	char path[600];
	static float want[1800];
	static const int which[] = {WIDE, TALL, FUSED, FUSED + 1, FUSED + 2};
	struct error e = {0};
	snprintf(path, sizeof path, "%s/tests/golden/powersgd.safetensors", getenv("SRC") ? getenv("SRC") : ".");
	struct weights *w = weights_open(path, &e);
	struct powersgd_options how = options(3, DT_F32);
	if (!CHECK(w, "%s", e.text))
		return;
	start(3, &how);
	for (size_t j = 0; j < ARRAY_LEN(which); j++)
		for (int r = 0; r < size; r++) {
			const struct powersgd_matrix *m = &ranks[r].s.m[which[j]];
			char name[20];
			snprintf(name, sizeof name, "%d.q", which[j]);
			float *q = golden(w, name);
			memcpy(m->fixed, q, sizeof *q * m->rank * (m->tall ? m->rows : m->cols));
			free(q);
		}
	for (int update = 0; update < 2; update++) {
		for (int r = 0; r < size; r++)
			for (size_t j = 0; j < ARRAY_LEN(which); j++)
				load_golden(w, update, r, which[j], "g", gradient(r, which[j]));
		on_all(run_sum);
		for (int r = 0; r < size; r++)
			for (size_t j = 0; j < ARRAY_LEN(which); j++) {
				int k = which[j];
				size_t n = ranks[r].s.m[k].n;
				load_golden(w, update, 0, k, "d", want);
				double d = relative(gradient(r, k), want, n);
				load_golden(w, update, r, k, "e", want);
				double left = relative(ranks[r].s.m[k].error, want, n);
				CHECK(d < 2e-6 && left < 2e-6, "golden update %d, rank %d, %s: D is off by %.3g, E by %.3g", update, r,
				      ranks[r].s.m[k].row->name, d, left);
			}
	}
	stop();
	weights_close(w);
}

/* ---- what error feedback is for ---- */

enum { PARTS = 8, UPDATES = 1200, SMALLER = 64 };

/* |W - optimum| / |optimum| of a (12, 20) matrix after updates of rank 2 by two ranks.  Each update pulls towards another of
 * PARTS matrices; their mean is the optimum, where no update's gradient is 0.  Gradients are SMALLER times smaller than
 * distances, because E becomes 140 times as large as they are, too large for 1-6-9; and its rounding there is a seventh of
 * a gradient, so that less can be asked of it. */
static double descend(bool feedback, enum dtype type)
{
	struct powersgd_options how = options(2, type);
	static float w[240], at[PARTS][2][240];
	double mean[240] = {0}, far = 0, all = 0;
	memset(w, 0, sizeof w);
	for (int k = 0; k < PARTS; k++)
		for (int r = 0; r < 2; r++) {
			rng_normal(at[k][r], 240, 1, 5, RNG_INIT, (uint32_t)(2 * k + r));
			for (int i = 0; i < 240; i++)
				mean[i] += (at[k][r][i] += 0.5f) / (2 * PARTS);
		}
	size = 2;
	pthread_barrier_init(&barrier, NULL, 2);
	for (int r = 0; r < 2; r++) {
		char text[200];
		struct dev *dev = cpu_ops()->open(0, DT_F32, 1, text, sizeof text);
		ranks[r] = (struct rank){.comm = {.rank = r, .size = 2, .backend = &threads}};
		if (!dev || params_add(&ranks[r].p, NULL, PARAM_MATRIX, 1, 0, 2, (int64_t[]){12, 20}, &ranks[r].e, "w") ||
		    params_build(&ranks[r].p, cpu_ops(), dev, true, &ranks[r].e) ||
		    powersgd_start(&ranks[r].s, &ranks[r].p, &how, &ranks[r].e))
			abort();
	}
	for (int t = 0; t < UPDATES; t++) {
		for (int r = 0; r < 2; r++)
			for (int i = 0; i < 240; i++)
				((float *)ranks[r].p.rows[0].g)[i] = (w[i] - at[t % PARTS][r][i]) / (2 * SMALLER);
		on_all(run_sum);
		float lr = 0.05f * SMALLER * (1 - (float)t / UPDATES);
		for (int i = 0; i < 240; i++)
			w[i] -= lr * ((float *)ranks[0].p.rows[0].g)[i];
		for (int r = 0; r < 2 && !feedback; r++)
			memset(ranks[r].s.m[0].error, 0, 240 * dtype_bytes(type));
	}
	for (int i = 0; i < 240; i++)
		far += pow(w[i] - mean[i], 2), all += mean[i] * mean[i];
	stop();
	return sqrt(far / all);
}

static void check_convergence(void)
{
	for (enum dtype type = DT_F32; type <= DT_1_6_9; type += DT_1_6_9 - DT_F32) {
		double with = descend(true, type), without = descend(false, type);
		CHECK(with < (type == DT_F32 ? 0.001 : 0.1) && without > 1, "%s: distance %.3g with error feedback, %.3g without",
		      dtype_name(type), with, without);
	}
}

int main(void)
{
	static const int counts[] = {1, 2, 3, 5}, tried[] = {1, 2, 4, 33, 1000};
	for (size_t i = 0; i < ARRAY_LEN(counts); i++)
		for (size_t k = 0; k < ARRAY_LEN(tried); k++) {
			check_sums(counts[i], tried[k], DT_F32);
			check_sums(counts[i], tried[k], DT_1_6_9);
		}
	check_messages();
	check_deficient();
	for (int keep = 0; keep < 2; keep++) {
		check_bad_gradient(DT_F32, keep);
		check_bad_gradient(DT_1_6_9, keep);
		check_left_out(DT_F32, keep);
		check_left_out(DT_1_6_9, keep);
	}
	check_contaminated();
	check_saturation();
	check_scales();
	check_checkpoint(DT_F32);
	check_checkpoint(DT_1_6_9);
	check_start();
	check_plan();
	check_golden();
	check_convergence();
	return check_done();
}
