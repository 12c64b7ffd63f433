/* test-cuda-few.c - linear layers of a few rows on the CUDA backend, in 16-bit types, which have kernels of their own that
 * start early: against the CPU's, as test-cuda.c does it. */
#include "emulated.h"
#include "pairs.h"

/* What came out for all rows together and for each alone. */
static void same_alone(const struct pair *all, const struct pair *alone, const char *what)
{
	size_t bytes = all->n * dtype_bytes(all->t);
	unsigned char *h[2] = {must(malloc(bytes)), must(malloc(bytes))};
	side[1].o->get(side[1].d, h[0], all->p[1], bytes);
	side[1].o->get(side[1].d, h[1], alone->p[1], bytes);
	CHECK(!memcmp(h[0], h[1], bytes), "%s (%s device): a row does not depend on the others", what, type_names[T]);
	free(h[0]), free(h[1]);
}

/* linear_fwd, or linear_add_fwd onto y itself: OP_ADD. */
static void product(const struct ops *o, struct dev *d, void *y, const void *x, const void *w, const float *b, size_t rows,
                    int in, int out, int flags)
{
	if (flags & OP_ADD)
		o->linear_add_fwd(d, y, y, x, w, b, rows, in, out);
	else
		o->linear_fwd(d, y, x, w, b, rows, in, out, flags);
}

static void check_few(size_t rows, int in, int out, int flags, bool bias)
{
	enum dtype ty = flags & (OP_OUT_F32 | OP_ADD) ? DT_F32 : T;
	size_t n = rows * out, line = out * dtype_bytes(ty), x_line = in * dtype_bytes(T);
	char what[96];
	struct pair x = pair_of(T, rows * in, -1, 1), w = pair_of(T, (size_t)in * out, -1, 1), b = pair_of(DT_F32, out, -1, 1);
	struct pair y = pair_of(ty, n, -1, 1), alone = pair_output(ty, n), u = pair_output(T, n), g = pair_output(T, n);
	snprintf(what, sizeof what, "%zu rows, %d -> %d, flags %d", rows, in, out, flags);
	EACH_SIDE(const float *bs = bias ? b.p[s] : NULL; char *one = alone.p[s], *xs = x.p[s];
	          o->copy2d(d, one, line, y.p[s], line, line, rows);
	          product(o, d, y.p[s], xs, w.p[s], bs, rows, in, out, flags);
	          for (size_t r = 0; r < rows; r++) product(o, d, one + r * line, xs + r * x_line, w.p[s], bs, 1, in, out, flags));
	same(&y, 2, what);
	same_alone(&y, &alone, what);
	for (int exact = 0; exact < 2; exact++) {
		EACH_SIDE(o->linear_gelu_fwd(d, g.p[s], u.p[s], x.p[s], w.p[s], bias ? b.p[s] : NULL, rows, in, out, exact));
		same(&u, 1, what), same(&g, 2, what); /* u may be rounded to a neighbour */
	}
	FREE(&x, &w, &b, &y, &alone, &u, &g);
}

/* Kernels that start before the work in front of them has ended, as it is queued and as it is recorded: weights that were
 * written just before, by other work or as the result of such a kernel, and weights that stay. */
static void check_early(void)
{
	enum { C = 72, ROWS = 8, N = ROWS * C };
	struct pair f = pair_of(DT_F32, C * C, -1, 1), w = pair_output(T, C * C), w2 = pair_of(T, C * C, -1, 1);
	struct pair x = pair_of(T, N, -1, 1), y = pair_output(T, N), z = pair_output(T, N), u = pair_output(T, N);
	struct pair by_y = pair_output(T, ROWS * ROWS), by_u = pair_output(T, ROWS * ROWS), by_z = pair_output(T, ROWS * ROWS);
	EACH_SIDE(for (int i = 0; i < 3; i++) {
		if (o->replay(d, 9))
			continue;
		o->record_begin(d, 9);
		o->cast(d, w.p[s], f.p[s], C * C, 0.25f, 0);
		o->linear_fwd(d, y.p[s], x.p[s], w.p[s], NULL, ROWS, C, C, 0);
		o->linear_gelu_fwd(d, z.p[s], u.p[s], y.p[s], w2.p[s], NULL, ROWS, C, C, 0);
		o->linear_fwd(d, by_u.p[s], x.p[s], u.p[s], NULL, ROWS, C, ROWS, 0);
		o->linear_gelu_fwd(d, z.p[s], u.p[s], y.p[s], w2.p[s], NULL, ROWS, C, C, 0);
		o->linear_fwd(d, by_z.p[s], x.p[s], z.p[s], NULL, ROWS, C, ROWS, 0);
		o->linear_fwd(d, by_y.p[s], z.p[s], y.p[s], NULL, ROWS, C, ROWS, 0);
		o->record_end(d, 9);
	});
	same(&y, 1, "early: y"), same(&u, 3, "early: u"), same(&z, 3, "early: z");
	same(&by_u, 3, "early: by u"), same(&by_z, 3, "early: by z"), same(&by_y, 3, "early: by y");
	FREE(&f, &w, &w2, &x, &y, &z, &u, &by_y, &by_u, &by_z);
}

static void check_all(enum dtype t)
{
	open_both(t);
	static const int flags[] = {0, OP_OUT_F32, OP_ADD}, rows[] = {1, 2, 3, 5, 8};
	for (int i = 0; i < 15; i++)
		check_few(rows[i / 3], (int[]){8, 72, 520, 264, 1032}[i % 5], (int[]){1, 17, 70, 33}[i % 4], flags[i % 3], i % 2);
	check_few(8, 512, 150, OP_ADD, true), check_few(6, 1032, 33, 0, false);
	check_early();
	many = true;
	for (int i = 0; i < 3 && getenv("CUDA_LARGE"); i++)
		check_few(1 + 3 * i, 2048, 6144, flags[i], true), check_few(2 + 3 * i, 8192, 2048, flags[i], false);
	many = false;
	close_both();
}

int main(int argc, char **argv)
{
	choose_plugin(argv[0]);
	for (enum dtype t = DT_BF16; t <= DT_F16; t++)
		check_all(t);
	/* Several blocks with several columns each, and less in flight. */
	setenv("EMU_SMS", "3", 1), setenv("EMU_SHARED", "99", 1);
	check_all(DT_BF16);
	return check_done();
}
