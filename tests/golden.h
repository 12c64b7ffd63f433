/* golden.h - values of another implementation (tests/golden/) and how far ours are from them. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <math.h>
#include <stdlib.h>

#include "../libcommon/weights.h"
#include "check.h"

/* The tensor as f32, to be freed; without it the test program ends. */
__attribute__((unused)) static float *golden(const struct weights *w, const char *name)
{
	struct error e = {0};
	const struct weights_tensor *t = weights_find(w, name);
	float *v = t ? malloc((size_t)t->bytes) : NULL;
	if (!CHECK(v && weights_read(w, t, v, &e) == 0, "golden tensor %s", name))
		exit(check_done());
	return v;
}

/* |a - b| / |b| */
static double relative(const float *a, const float *b, size_t n)
{
	double far = 0, all = 0;
	for (size_t i = 0; i < n; i++) {
		far += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
		all += (double)b[i] * b[i];
	}
	return sqrt(far / (all > 0 ? all : 1));
}

#endif
