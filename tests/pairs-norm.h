/* pairs-norm.h - checks of the norm entries for test-cuda.c: forward and backward on both sides, what norm_bwd makes for the
 * product before, and the bits of the device alone. */
#ifndef PAIRS_NORM_H
#define PAIRS_NORM_H

#include "pairs.h"

static void check_norm(size_t rows, int C, int flags, float scale)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * C;
	struct pair x = pair_of(DT_F32, n, 4, 6), w = pair_of(DT_F32, C, -1, 1), b = pair_of(DT_F32, C, -1, 1), y = pair_output(t, n);
	struct pair mean = pair_output(DT_F32, rows), rstd = pair_output(DT_F32, rows), dy = pair_of(t, n, -1, 1);
	struct pair dx = flags & OP_ADD ? pair_of(DT_F32, n, -1, 1) : pair_output(DT_F32, n);
	struct pair dw = pair_of(DT_F32, C, -1, 1), db = pair_of(DT_F32, C, -1, 1);
	EACH_SIDE(o->norm_fwd(d, y.p[s], mean.p[s], rstd.p[s], x.p[s], w.p[s], b.p[s], rows, C, flags & OP_F32));
	same(&y, t == DT_F32 ? 10 : 1, "norm_fwd");
	same(&mean, 1, "norm_fwd mean");
	same(&rstd, 10, "norm_fwd rstd");
	EACH_SIDE(o->norm_bwd(d, dx.p[s], dw.p[s], db.p[s], dy.p[s], x.p[s], w.p[s], mean.p[s], rstd.p[s], rows, C, scale, flags, NULL));
	same(&dx, 10, "norm_bwd dx");
	same(&dw, 10, "norm_bwd dw");
	same(&db, 10, "norm_bwd db");
	FREE(&x, &w, &b, &y, &mean, &rstd, &dy, &dx, &dw, &db);
}

/* Which outputs of norm_bwd are wanted. */
enum { DX = 1, DW = 2, DB = 4, NEXT = 8, NEXT_DB = 16, IN_PLACE = 32 };

/* Infinities in the residual stream's gradient and in dy, large values in both.  Both sides begin with the same dx; what
 * follows from it may be rounded to a neighbour. */
static void check_norm_next(size_t rows, int C, int flags, int wanted)
{
	enum dtype t = flags & OP_F32 ? DT_F32 : T;
	size_t n = rows * C;
	struct pair x = pair_of(DT_F32, n, 4, 6), w = pair_of(DT_F32, C, -1, 1), y = pair_output(t, n);
	struct pair mean = pair_output(DT_F32, rows), rstd = pair_output(DT_F32, rows), dy = pair_of(t, n, -1, 1);
	struct pair dx = flags & OP_ADD ? pair_of(DT_F32, n, -1, 1) : pair_output(DT_F32, n), z = pair_output(t, n);
	struct pair dw = pair_of(DT_F32, C, -1, 1), db = pair_of(DT_F32, C, -1, 1), sums = pair_of(DT_F32, C, -1, 1);
	EACH_SIDE(o->norm_fwd(d, y.p[s], mean.p[s], rstd.p[s], x.p[s], w.p[s], w.p[s], rows, C, flags & OP_F32));
	const float far[2] = {INFINITY, -INFINITY};
	if (flags & OP_ADD)
		EACH_SIDE(o->put(d, (float *)dx.p[s] + n / 2, far, 4); o->put(d, (float *)dx.p[s] + n - 1, far + 1, 4));
	uint16_t infinite = T == DT_BF16 ? 0x7f80 : 0x7c00;
	if (flags & OP_FILTER && t != DT_F32) /* the row of element n / 3 adds nothing to dx */
		EACH_SIDE(o->put(d, (uint16_t *)dy.p[s] + n / 3, &infinite, 2));
	EACH_SIDE(struct norm_next next = {wanted & IN_PLACE ? dy.p[s] : wanted & NEXT ? z.p[s] : NULL, wanted & NEXT_DB ? sums.p[s] : NULL, 0.75f};
	          o->norm_bwd(d, wanted & DX ? dx.p[s] : NULL, wanted & DW ? dw.p[s] : NULL, wanted & DB ? db.p[s] : NULL, dy.p[s], x.p[s],
	                      w.p[s], mean.p[s], rstd.p[s], rows, C, 0.5f, flags, &next));
	same(&dx, 10, "norm_bwd dx"), same(&dw, 10, "norm_bwd dw"), same(&db, 10, "norm_bwd db");
	same(&z, t == DT_F32 ? 10 : 2, "norm_bwd next"), same(&dy, t == DT_F32 ? 10 : 2, "norm_bwd next in place");
	same(&sums, t == DT_F32 ? 10 : 4 * unit(t) / unit(DT_F32), "norm_bwd next's sums");
	FREE(&x, &w, &y, &mean, &rstd, &dy, &dx, &z, &dw, &db, &sums);
}

static void check_all_norms_next(int C)
{
	check_norm_next(37, C, OP_ADD | OP_FILTER, DX | DW | DB | NEXT | NEXT_DB);
	check_norm_next(70, C, OP_ADD | OP_FILTER, DX | DW | DB | IN_PLACE | NEXT_DB);
	check_norm_next(3, C, OP_ADD, DX | DW | NEXT), check_norm_next(9, C, 0, DX | NEXT), check_norm_next(9, C, OP_F32, DX | NEXT_DB);
	check_norm_next(5, C, 0, DB), check_norm_next(1, C, OP_F32 | OP_ADD, DX | DW | DB | IN_PLACE | NEXT_DB), check_norm_next(2, C, 0, 0);
}

/* The device alone: sums of next as it is stored; twice to the same bits; and the last row of many has the bits that it has alone. */
static void check_norm_bits(size_t rows, int C)
{
	size_t n = rows * C, last = n - C;
	const struct ops *o = side[1].o;
	struct dev *d = side[1].d;
	struct pair x = pair_of(DT_F32, n, -6, 6), w = pair_of(DT_F32, C, -1, 1), y = pair_output(T, n), one = pair_output(T, C);
	struct pair mean = pair_output(DT_F32, rows), rstd = pair_output(DT_F32, rows), dy = pair_of(T, n, -1, 1);
	struct pair dx[3], sums[3], next[3];
	o->norm_fwd(d, one.p[1], mean.p[1], rstd.p[1], (float *)x.p[1] + last, w.p[1], w.p[1], 1, C, 0);
	o->norm_fwd(d, y.p[1], mean.p[1], rstd.p[1], x.p[1], w.p[1], w.p[1], rows, C, 0);
	for (int i = 0; i < 3; i++) {
		size_t from = i < 2 ? 0 : last, r = i < 2 ? 0 : rows - 1;
		dx[i] = pair_output(DT_F32, n), next[i] = pair_output(T, n), sums[i] = pair_of(DT_F32, 3 * C, 0, 0);
		float *s = sums[i].p[1];
		struct norm_next to = {next[i].p[1], s + 2 * C, 1};
		o->norm_bwd(d, (float *)dx[i].p[1] + from, s, s + C, (char *)dy.p[1] + from * dtype_bytes(T), (float *)x.p[1] + from, w.p[1],
		            (float *)mean.p[1] + r, (float *)rstd.p[1] + r, rows - r, C, 1, 0, &to);
	}
	double *g[3], *v[3], *z[3], *all = pair_get(&y, 1, "norm_fwd"), *alone = pair_get(&one, 1, "norm_fwd of one row");
	for (int i = 0; i < 3; i++)
		g[i] = pair_get(&dx[i], 1, "dx"), v[i] = pair_get(&sums[i], 1, "sums"), z[i] = pair_get(&next[i], 1, "next");
	CHECK(!memcmp(g[0], g[1], n * sizeof *g[0]) && !memcmp(v[0], v[1], 3 * (size_t)C * sizeof *v[0]) && !memcmp(z[0], z[1], n * sizeof *z[0]),
	      "norm_bwd %zu x %d (%s device): the same bits twice", rows, C, type_names[T]);
	CHECK(!memcmp(g[0] + last, g[2] + last, C * sizeof *g[0]) && !memcmp(z[0] + last, z[2], C * sizeof *z[0]),
	      "norm_bwd %zu x %d (%s device): a row of dx does not depend on the others", rows, C, type_names[T]);
	int right = 0;
	for (int c = 0; c < C; c++) {
		double sum = 0, mass = 0;
		for (size_t r = 0; r < rows; r++)
			sum += z[0][r * C + c], mass += fabs(z[0][r * C + c]);
		right += fabs(v[0][2 * C + c] - sum) <= 1e-6 * mass;
	}
	CHECK(right == C, "norm_bwd %zu x %d (%s device): %d columns of next are summed as rounded", rows, C, type_names[T], right);
	CHECK(!memcmp(all + last, alone, C * sizeof *all), "norm_fwd %zu x %d (%s device): nor of y", rows, C, type_names[T]);
	for (int i = 0; i < 3; i++) {
		free(g[i]), free(v[i]), free(z[i]);
		FREE(&dx[i], &sums[i], &next[i]);
	}
	free(all), free(alone);
	FREE(&x, &w, &y, &one, &mean, &rstd, &dy);
}

#endif
