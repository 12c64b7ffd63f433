/* chart.h - line charts as pictures: axes with round tick labels, a legend, smooth lines. */
#ifndef CHART_H
#define CHART_H

#include "font.h"

struct chart_series {
	struct buf label; /* for the legend */
	double *x, *y;    /* n points, in the order of drawing; those that are not finite or above 1e300 are left out */
	size_t n, cap;
	bool faint; /* drawn thin and pale, without a legend entry, in the colour of the next one */
};

struct chart {
	uint32_t width, height;
	const char *title, *x_label, *y_label; /* "" or NULL: none */
	bool log_x, log_y;                     /* logarithmic: points below 1e-300 are left out */
	double y_min, y_max;                   /* NAN: by the data */
	struct chart_series *series;
	size_t n;
};

int chart_add_point(struct chart_series *s, double x, double y, struct error *e);
void chart_series_free(struct chart_series *s);
/* STATUS_BAD when there is not one point to draw. */
int chart_draw(struct pixels *out, const struct chart *c, struct error *e);

#endif
