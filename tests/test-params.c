/* test-params.c - below the training loop: AdamW against its formula in double, decay by kind of tensor, storage of
 * matrices, exchange of averages, norms, schedules, arenas. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../libcommon/arena.h"
#include "../libcommon/rng.h"
#include "../libcommon/train.h"
#include "check.h"

enum { IN = 6, OUT = 3 };

struct toy {
	struct params p;
	struct param *w, *b; /* (OUT, IN), (OUT) */
	struct dev *dev;
};

static struct toy *toy_new(void)
{
	struct toy *m = calloc(1, sizeof *m);
	struct error e = {0};
	char text[200];
	m->dev = cpu_ops()->open(0, DT_F32, 1, text, sizeof text);
	if (params_add(&m->p, &m->w, PARAM_MATRIX, 0.5f, 0, 2, (int64_t[]){OUT, IN}, &e, "map.weight") ||
	    params_add(&m->p, &m->b, PARAM_BIAS, 0, 0, 1, (int64_t[]){OUT}, &e, "map.bias") ||
	    params_build(&m->p, cpu_ops(), m->dev, true, &e)) {
		printf("toy: %s\n", e.text);
		exit(1);
	}
	return m;
}

static void toy_free(struct toy *m)
{
	params_free(&m->p);
	cpu_ops()->close(m->dev);
	free(m);
}

static void check_schedules(void)
{
	CHECK(schedule_cosine(1, 0.1, 0, 100) == 1 && schedule_cosine(1, 0.1, 100, 100) == 0.1 &&
		      schedule_cosine(1, 0.1, 500, 100) == 0.1,
	      "cosine: ends");
	CHECK(fabs(schedule_cosine(1, 0.0625, 50, 100) - 0.53125) < 1e-15, "cosine: middle");
	CHECK(schedule_cosine(0, 6.6, 0, 0) == 6.6, "cosine: no length");
	CHECK(schedule_warmup_cosine(0, 4, 100, 0) == 0.25 && schedule_warmup_cosine(3, 4, 100, 0) == 1, "warm-up");
	CHECK(schedule_warmup_cosine(0, 0, 100, 0) == 1 && schedule_warmup_cosine(100, 4, 100, 0.2) == 0.2, "without, and the end");
}

/* Fifty updates against the formula (recipe D11: eps beside the uncorrected variance) in double.  Each f32 operation
 * errs by 2^-24 of its value: 1e-5 of the largest weight covers fifty updates of about ten operations. */
static void adamw_case(const char *what, struct adamw a)
{
	struct toy *m = toy_new();
	struct error e = {0};
	double w[OUT * IN], mm[OUT * IN] = {0}, v[OUT * IN] = {0}, worst = 0;
	CHECK(params_init(&m->p, 3, &e) == 0, "%s", e.text);
	for (int i = 0; i < OUT * IN; i++)
		w[i] = m->w->w[i];
	for (int step = 1; step <= 50; step++) {
		a.step = step;
		for (int i = 0; i < OUT * IN; i++) {
			float g = ((float *)m->w->g)[i] =
				(float)((rng_unit(1, RNG_ROUND, (uint32_t)step, (uint64_t)i) - 0.4) *
					(i % 3 ? 1 : 1e-3));
			double s = (double)g * (double)a.g_scale;
			mm[i] = (double)a.beta1 * mm[i] + (1 - (double)a.beta1) * s;
			v[i] = (double)a.beta2 * v[i] + (1 - (double)a.beta2) * s * s;
			if (a.v_max > 0 && v[i] > (double)a.v_max)
				v[i] = (double)a.v_max;
			double rate = (double)a.lr * sqrt(1 - pow((double)a.beta2, step)) / (1 - pow((double)a.beta1, step));
			w[i] -= (double)a.lr * (double)a.decay * w[i] + rate * mm[i] / (sqrt(v[i]) + (double)a.eps);
		}
		params_update(&m->p, &a);
	}
	for (int i = 0; i < OUT * IN; i++)
		worst = fmax(worst, fabs(w[i] - (double)m->w->w[i]));
	CHECK(worst < 1e-5, "AdamW, %s: off by %g", what, worst);
	toy_free(m);
}

/* A bias is not decayed: with zero gradients it stays. */
static void check_decay_kinds(void)
{
	struct toy *m = toy_new();
	struct adamw a = {0.1f, 0.9f, 0.99f, 1e-8f, 0.5f, 0, 1, 1, 0, 0};
	m->w->w[0] = m->b->w[0] = 1;
	params_update(&m->p, &a);
	CHECK(m->b->w[0] == 1 && fabsf(m->w->w[0] - 0.95f) < 1e-6f, "decay: matrix %g, bias %g", (double)m->w->w[0],
	      (double)m->b->w[0]);
	toy_free(m);
}

static void check_swap(void)
{
	struct toy *m = toy_new();
	struct error e = {0};
	CHECK(params_init(&m->p, 3, &e) == 0, "%s", e.text);
	float *w = m->w->w, *avg = m->w->avg;
	params_swap_average(&m->p);
	CHECK(m->w->w == avg && m->w->avg == w && m->w->t == (void *)avg, "swapped");
	params_swap_average(&m->p);
	CHECK(m->w->w == w && m->w->avg == avg && m->w->t == (void *)w, "and back");
	double norm;
	((float *)m->w->g)[0] = 3, ((float *)m->b->g)[2] = 4;
	CHECK(params_grad_norm(&m->p, &norm, &e) == 0 && norm == 5, "norm %g", norm);
	toy_free(m);
}

/* With 16-bit products: the copy is the rounded weight, after an update as after a refresh, or a run resumed from
 * f32 weights would go on differently. */
static void check_copies(enum dtype type)
{
	struct params p = {0};
	struct param *w;
	struct error e = {0};
	char text[200];
	uint16_t kept[OUT * IN];
	struct dev *dev = cpu_ops()->open(0, type, 1, text, sizeof text);
	struct adamw a = {0.01f, 0.9f, 0.99f, 1e-8f, 0.1f, 0, 1, 1, 0, 0};
	CHECK(params_add(&p, &w, PARAM_MATRIX, 0.5f, 0, 2, (int64_t[]){OUT, IN}, &e, "w") == 0 &&
	      params_build(&p, cpu_ops(), dev, true, &e) == 0 && params_init(&p, 3, &e) == 0, "%s", e.text);
	for (int i = 0; i < OUT * IN; i++)
		((float *)w->g)[i] = (float)(rng_unit(1, RNG_ROUND, 0, (uint64_t)i) - 0.5);
	params_update(&p, &a);
	CHECK(w->t != (void *)w->w, "a copy of its own");
	memcpy(kept, w->t, sizeof kept);
	params_refresh(&p);
	CHECK(memcmp(kept, w->t, sizeof kept) == 0, "the copy after an update is that of a refresh");
	params_swap_average(&p);
	CHECK(memcmp(kept, w->t, sizeof kept) != 0, "the average's copy is another");
	params_swap_average(&p);
	CHECK(memcmp(kept, w->t, sizeof kept) == 0, "and back");
	params_free(&p);
	cpu_ops()->close(dev);
}

/* Without a master copy: 8 bytes in all for a matrix beside averages, which are exchanged without losing the weights. */
static void check_storage(enum dtype type)
{
	struct params p = {.storage = {.no_master = true, .t_gradients = true, .moments_16 = true}};
	struct param *w, *b, *f;
	struct error e = {0};
	char text[200];
	uint16_t kept[OUT * IN], shown[OUT * IN];
	float x[OUT * IN], back[OUT * IN];
	struct dev *dev = cpu_ops()->open(0, type, 1, text, sizeof text);
	CHECK(params_add(&p, &w, PARAM_MATRIX, 0.5f, 0, 2, (int64_t[]){OUT, IN}, &e, "w") == 0 &&
	      params_add(&p, &b, PARAM_BIAS, 0, 0, 1, (int64_t[]){OUT}, &e, "b") == 0 &&
	      params_add(&p, &f, PARAM_MATRIX_F32, 0.5f, 0, 2, (int64_t[]){OUT, IN}, &e, "f") == 0 &&
	      params_build(&p, cpu_ops(), dev, true, &e) == 0 && params_init(&p, 3, &e) == 0, "%s", e.text);
	CHECK(!w->w && b->w && f->w && f->t == (void *)f->w && params_dw(&p, w) == OP_DW_T && params_dw(&p, f) == 0,
	      "only the matrix is narrow");
	size_t matrix = 0, others = 0;
	for (enum params_block k = 0; k < BLOCKS; k++) {
		struct block_use u = params_block_use(&p, k, type, true);
		bool average = k == BLOCK_AVG || k == BLOCK_AVG_T;
		matrix += u.matrices && !average ? dtype_bytes(u.type) : 0;
		others += u.others && !average ? 4 : 0;
	}
	CHECK(matrix == 8 && others == 16, "%zu bytes a parameter of matrices, %zu of others", matrix, others);
	params_start(&p);
	memcpy(kept, w->t, sizeof kept);
	for (int i = 0; i < OUT * IN; i++)
		x[i] = (float)i / 7;
	CHECK(params_put(&p, w, BLOCK_AVG, x, &e) == 0, "%s", e.text);
	for (int round = 0; round < 2; round++) {
		params_swap_average(&p);
		CHECK(params_get(&p, w, BLOCK_W, back, &e) == 0, "%s", e.text);
		memcpy(shown, w->t, sizeof shown);
		bool rounded = true;
		for (int i = 0; i < OUT * IN; i++)
			rounded = rounded && fabsf(back[i] - x[i]) <= x[i] * 0x1p-8f;
		CHECK(rounded && memcmp(shown, kept, sizeof kept), "products see the average");
		params_swap_average(&p);
		CHECK(memcmp(kept, w->t, sizeof kept) == 0, "and then the weights again, to the bit");
	}
	params_free(&p);
	cpu_ops()->close(dev);
}

static void check_arena(void)
{
	const struct ops *ops = cpu_ops();
	struct error e = {0};
	struct arena a = {0};
	char text[100], *p[4] = {0};
	struct dev *dev = ops->open(0, DT_F32, 1, text, sizeof text);
	arena_plan(&a);
	for (int round = 0; round < 2; round++) {
		p[0] = arena_take(&a, 100);
		size_t mark = arena_mark(&a);
		p[1] = arena_take_n(&a, 10, 100);
		arena_back(&a, mark);
		p[2] = arena_take(&a, 64);
		p[3] = arena_take(&a, 1);
		if (round == 0)
			CHECK(!p[0] && arena_bytes(&a) == 128 + 1024 && arena_alloc(&a, ops, dev, "toy", &e) == 0, "plan: %s", e.text);
	}
	CHECK(p[1] == p[0] + 128 && p[2] == p[1] && p[3] == p[2] + 64 && (uintptr_t)p[0] % 64 == 0, "pieces");
	CHECK(!arena_take(&a, 10000), "more than was planned");
	arena_free(&a);
	arena_plan(&a);
	arena_take_n(&a, SIZE_MAX / 2, 3);
	CHECK(arena_alloc(&a, ops, dev, "toy", &e) == -1 && e.status == STATUS_LIMIT, "an impossible plan: %s", e.text);
	arena_free(&a);
	ops->close(dev);
}

int main(void)
{
	check_arena();
	check_schedules();
	adamw_case("plain", (struct adamw){0.01f, 0.9f, 0.999f, 1e-8f, 0, 0, 1, 1, 0, 0});
	adamw_case("paper", (struct adamw){0.01f, 0.9f, 0.96f, 1e-8f, 0.045f, 5, 1, 1, 0, 0});
	adamw_case("clipped", (struct adamw){0.01f, 0.9f, 0.96f, 1e-6f, 0.1f, 0.05f, 0.3f, 1, 0, 0});
	check_decay_kinds();
	check_swap();
	check_copies(DT_BF16);
	check_copies(DT_F16);
	check_storage(DT_BF16);
	check_storage(DT_F16);
	return check_done();
}
