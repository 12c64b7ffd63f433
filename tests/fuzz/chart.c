/* chart.c - charts of any numbers that a log can hold: a byte of options, the ends of the vertical axis, then points. */
#include "fuzz.h"

#include <math.h>

#include "../../libcommon/chart.h"

/* The next number, finite; 1 at the end. */
static double number(const uint8_t **p, size_t *n)
{
	double v = 1;
	if (*n < sizeof v)
		return v;
	memcpy(&v, *p, sizeof v);
	*p += sizeof v, *n -= sizeof v;
	return isfinite(v) ? v : 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct pixels out = {0};
	struct chart_series series[2] = {{.faint = true}, {.n = 0}};
	struct chart c = {.width = 160, .height = 120, .title = "title", .x_label = "x", .y_label = "y", .series = series, .n = 2};
	if (n == 0)
		return 0;
	int flags = *p++;
	n--;
	c.log_x = flags & 1, c.log_y = flags & 2;
	double low = number(&p, &n), high = number(&p, &n);
	c.y_min = flags & 4 && fabs(low) <= 1e300 ? low : NAN;
	c.y_max = flags & 8 && fabs(high) <= 1e300 ? high : NAN;
	MUST(buf_set(&series[1].label, "label", 5, &e) == 0);
	for (int i = 0; n >= 16 && i < 50; i++) {
		double x = number(&p, &n), y = number(&p, &n);
		MUST(chart_add_point(&series[i % 2], x, y, &e) == 0);
	}
	MUST(chart_draw(&out, &c, &e) == 0 || e.status);
	chart_series_free(&series[0]);
	chart_series_free(&series[1]);
	image_free(&out);
	return 0;
}
