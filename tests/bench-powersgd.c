/* bench-powersgd.c - seconds that PowerSGD takes for the gradient of one matrix on one rank, of them the reflections alone,
 * beside the time of its three products at the rate of large ones in the same run.  With -j 1 the clock is the process's
 * CPU time, so that other programs disturb less. */
#include <math.h>
#include <stdlib.h>

#include "../libcommon/orthonormal.h"
#include "../libcommon/powersgd.h"
#include "../libcommon/rng.h"
#include "bench.h"

enum { PRODUCT = 1024 };

static struct run_options run = RUN_DEFAULTS(0);
static int64_t rows = 2048, cols = 8192, rank = 128, updates = 3;

static const struct opt options[] = {
	OPT_INT(0, "rows", &rows, 1, 1 << 20, "N", "of the matrix"),
	OPT_INT(0, "cols", &cols, 1, 1 << 20, "N", "of the matrix"),
	OPT_INT('r', "rank", &rank, 1, 1 << 20, "N", "of the factors"),
	OPT_INT('n', "updates", &updates, 1, 1000, "N", "updates to try; the fastest counts"),
	OPT_INT('j', "threads", &run.threads, 0, 4096, "N", "CPU threads, 0 for all"),
	OPT_END,
};
static const struct tool tool = {"bench-powersgd", "[OPTION]...", "Time of PowerSGD", options};

static double sum_seconds(struct params *p, const struct powersgd_options *how)
{
	struct comm alone = {.size = 1};
	struct powersgd s;
	double best = INFINITY;
	need(powersgd_start(&s, p, how, &err));
	for (int64_t i = 0; i < updates; i++) {
		rng_normal(p->rows[0].g, p->rows[0].n, 0.01f, (uint64_t)i, RNG_INIT, 0);
		double start = now();
		need(powersgd_sum(&s, &alone, &err));
		best = fmin(best, now() - start);
	}
	powersgd_free(&s);
	return best;
}

static double reflection_seconds(size_t r, size_t n)
{
	double best = INFINITY;
	float *x = mem_alloc(r * n, sizeof *x, &err), *scratch = mem_alloc(orthonormal_scratch(r, n), sizeof *scratch, &err);
	need(x && scratch ? 0 : -1);
	for (int64_t i = 0; i < updates; i++) {
		rng_normal(x, r * n, 1, (uint64_t)i, RNG_INIT, 0);
		double start = now();
		orthonormal_rows(ops, dev, x, r, n, scratch);
		best = fmin(best, now() - start);
	}
	free(x), free(scratch);
	return best;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	struct params p = {0};
	if (status >= 0)
		return finish(status);
	run.device = "cpu", run.precision = 1; /* f32 */
	need(device_open(&run, &ops, &dev, &err));
	need(params_add(&p, NULL, PARAM_MATRIX, 1, 0, 2, (int64_t[]){rows, cols}, &err, "w") ||
	     params_build(&p, ops, dev, true, &err));
	size_t a = (size_t)(rows < cols ? rows : cols), r = (size_t)rank < a ? (size_t)rank : a;
	double rate = 2 * pow(PRODUCT, 3) / product_seconds(PRODUCT);
	double products = 3 * 2 * (double)rows * (double)cols * (double)r / rate;
	printf("%lld x %lld, rank %zu: three products at %.0f GFLOP/s %.3f s, reflections %.3f s\n", (long long)rows,
	       (long long)cols, r, rate * 1e-9, products, reflection_seconds(r, a));
	for (enum dtype t = DT_F32; t <= DT_1_6_9; t += DT_1_6_9 - DT_F32) {
		struct powersgd_options how = {.rank = (int)rank, .type = t, .seed = 1, .threads = (int)run.threads};
		printf("%-6s %.3f s in all\n", dtype_name(t), sum_seconds(&p, &how));
	}
	params_free(&p);
	device_close(ops, dev);
	return finish(STATUS_OK);
}
