/* test-orthonormal.c - orthonormal rows from any rows, some of them 0 or sums of others; the first k span what the first k
 * spanned. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../libcommon/device.h"
#include "../libcommon/orthonormal.h"
#include "../libcommon/rng.h"

/* r vectors of n: random, but every third 0 and, after the first ten, every fifth the sum of two others. */
static void check_orthonormal(size_t r, size_t n, float magnitude)
{
	char text[200];
	struct dev *dev = cpu_ops()->open(0, DT_F32, 2, text, sizeof text);
	float *x = calloc(r * n, sizeof *x), *before = calloc(r * n, sizeof *x);
	float *scratch = calloc(orthonormal_scratch(r, n), sizeof *scratch);
	double off = 0, outside = 0, all = 0;
	rng_normal(x, r * n, magnitude, 3, RNG_INIT, (uint32_t)(r + n));
	for (size_t k = 0; k < r; k++)
		for (size_t i = 0; i < n; i++)
			x[k * n + i] = k % 3 == 2 ? 0 : k > 10 && k % 5 == 0 ? x[i] + x[n + i] : x[k * n + i];
	memcpy(before, x, r * n * sizeof *x);
	orthonormal_rows(cpu_ops(), dev, x, r, n, scratch);
	for (size_t a = 0; a < r; a++)
		for (size_t b = 0; b < r; b++) {
			double dot = 0, part = 0;
			for (size_t i = 0; i < n; i++)
				dot += (double)x[a * n + i] * x[b * n + i], part += (double)before[a * n + i] * x[b * n + i];
			off = fmax(off, fabs(dot - (a == b)));
			outside += b > a ? part * part : 0; /* vector a lies in the span of the first a */
			all += part * part;
		}
	CHECK(off < 2e-6, "%zu vectors of %zu: off by %.3g", r, n, off);
	CHECK(sqrt(outside) <= 2e-6 * sqrt(all), "%zu vectors of %zu: %.3g of them outside", r, n, sqrt(outside / (all + 1e-300)));
	free(x), free(before), free(scratch);
	device_close(cpu_ops(), dev);
}

int main(void)
{
	static const size_t sides[][2] = {{1, 1}, {1, 50}, {2, 2}, {31, 33}, {32, 32}, {33, 200}, {64, 64}, {100, 101}, {130, 257}};
	for (size_t i = 0; i < ARRAY_LEN(sides); i++) {
		check_orthonormal(sides[i][0], sides[i][1], 1);
		check_orthonormal(sides[i][0], sides[i][1], 1e-12f);
	}
	return check_done();
}
