/* chart.c - see chart.h.  Lines are drawn by distance: a pixel is covered by as much as it lies
 * within the line's width, and the coverage of a whole series is mixed in once, so that joints
 * and dense data do not darken. */
#include "chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TICKS = 64 };

static const uint8_t white[3] = {255, 255, 255}, ink[3] = {50, 50, 50},
                     pale[3] = {228, 228, 228}, frame[3] = {140, 140, 140};
static const uint8_t colours[][3] = {{31, 105, 180}, {214, 80, 20}, {30, 140, 90}, {180, 60, 140},
				     {120, 90, 40},  {0, 150, 180}, {90, 80, 200}, {120, 120, 120}};

struct axis {
	double low, high; /* of the data, or their logarithms */
	bool logarithmic;
	double ticks[MAX_TICKS];
	int count;
};

struct plot {
	const struct chart *chart;
	struct pixels *out;
	uint8_t *cover; /* of the series being drawn, one byte a pixel */
	struct axis x, y;
	uint32_t text;                          /* scale of the font */
	double left, top, right, bottom;        /* of the area for data */
};

/* ---- series ---- */

int chart_add_point(struct chart_series *s, double x, double y, struct error *e)
{
	size_t cap = s->cap; /* of both */
	if (ARRAY_ROOM(s->x, s->n + 1, &cap, e) || ARRAY_ROOM(s->y, s->n + 1, &s->cap, e))
		return -1;
	s->x[s->n] = x;
	s->y[s->n++] = y;
	return 0;
}

void chart_series_free(struct chart_series *s)
{
	free(s->x);
	free(s->y);
	buf_free(&s->label);
}

/* ---- axes ---- */

static double on_scale(const struct axis *a, double v)
{
	return a->logarithmic ? log10(v) : v;
}

static bool drawable(const struct axis *a, double v)
{
	return !a->logarithmic || v > 0;
}

static void find_ranges(struct plot *p)
{
	p->x.low = p->y.low = INFINITY;
	p->x.high = p->y.high = -INFINITY;
	for (size_t i = 0; i < p->chart->n; i++) {
		const struct chart_series *s = &p->chart->series[i];
		for (size_t k = 0; k < s->n; k++) {
			if (!drawable(&p->x, s->x[k]) || !drawable(&p->y, s->y[k]))
				continue;
			p->x.low = fmin(p->x.low, on_scale(&p->x, s->x[k]));
			p->x.high = fmax(p->x.high, on_scale(&p->x, s->x[k]));
			p->y.low = fmin(p->y.low, on_scale(&p->y, s->y[k]));
			p->y.high = fmax(p->y.high, on_scale(&p->y, s->y[k]));
		}
	}
	if (isfinite(p->chart->y_min) && drawable(&p->y, p->chart->y_min))
		p->y.low = on_scale(&p->y, p->chart->y_min);
	if (isfinite(p->chart->y_max) && drawable(&p->y, p->chart->y_max))
		p->y.high = on_scale(&p->y, p->chart->y_max);
}

/* Some room around the data; a single value gets a range of its own. */
static void widen(struct axis *a, double share, bool fixed_low, bool fixed_high)
{
	double span = a->high - a->low;
	if (!(span > 0)) {
		span = a->low ? fabs(a->low) * 0.2 : 1;
		a->low -= span / 2;
		a->high += span / 2;
		return;
	}
	a->low -= fixed_low ? 0 : share * span;
	a->high += fixed_high ? 0 : share * span;
}

/* 1, 2 or 5 times a power of ten, for about `wanted` steps. */
static double round_step(double span, int wanted)
{
	double raw = span / wanted, power = pow(10, floor(log10(raw))), factor = raw / power;
	return power * (factor <= 1.0001 ? 1 : factor <= 2.0001 ? 2 : factor <= 5.0001 ? 5 : 10);
}

static void add_tick(struct axis *a, double at)
{
	double slack = (a->high - a->low) * 1e-9;
	if (a->count < MAX_TICKS && at >= a->low - slack && at <= a->high + slack)
		a->ticks[a->count++] = at;
}

static void linear_ticks(struct axis *a, int wanted)
{
	double step = round_step(a->high - a->low, wanted);
	for (double k = ceil(a->low / step - 1e-9); k * step <= a->high * (1 + 1e-12) + step * 1e-9 && a->count < MAX_TICKS; k++)
		add_tick(a, k * step);
}

/* Decades; between them 2 and 5 when there are few; every step-th decade when there are many. */
static void log_ticks(struct axis *a, int wanted)
{
	double span = a->high - a->low, every = fmax(1, ceil(span / wanted));
	if (span < 0.7) { /* less than a factor of five: round values on the linear scale */
		struct axis linear = {.low = pow(10, a->low), .high = pow(10, a->high)};
		linear_ticks(&linear, wanted);
		for (int i = 0; i < linear.count; i++)
			if (linear.ticks[i] > 0)
				add_tick(a, log10(linear.ticks[i]));
		return;
	}
	for (double k = floor(a->low / every) * every; k <= a->high && a->count < MAX_TICKS; k += every) {
		add_tick(a, k);
		if (span < 3.5) {
			add_tick(a, k + log10(2));
			add_tick(a, k + log10(5));
		}
	}
}

static void set_ticks(struct axis *a, int wanted)
{
	if (a->logarithmic)
		log_ticks(a, wanted);
	else
		linear_ticks(a, wanted);
}

static void tick_text(const struct axis *a, int i, char *out, size_t n)
{
	double v = a->logarithmic ? pow(10, a->ticks[i]) : a->ticks[i];
	if (fabs(v) < (a->high - a->low) * 1e-9 && !a->logarithmic)
		v = 0;
	/* K and M keep step counts short: 20000 is 20K */
	if (!a->logarithmic && fabs(v) >= 1e6 && fabs(v) < 1e9)
		snprintf(out, n, "%.6gM", v / 1e6);
	else if (!a->logarithmic && fabs(v) >= 1e4 && fabs(v) < 1e9)
		snprintf(out, n, "%.6gK", v / 1e3);
	else
		snprintf(out, n, "%.5g", v);
}

static double place_x(const struct plot *p, double scaled)
{
	return p->left + (scaled - p->x.low) / (p->x.high - p->x.low) * (p->right - p->left);
}

static double place_y(const struct plot *p, double scaled)
{
	return p->bottom - (scaled - p->y.low) / (p->y.high - p->y.low) * (p->bottom - p->top);
}

/* ---- drawing ---- */

static void fill(struct pixels *out, double x0, double y0, double x1, double y1, const uint8_t rgb[3])
{
	for (int64_t y = (int64_t)y0; y < (int64_t)y1; y++)
		for (int64_t x = (int64_t)x0; x < (int64_t)x1; x++)
			if (x >= 0 && y >= 0 && x < out->width && y < out->height)
				memcpy(out->rgb + 3 * ((size_t)y * out->width + (size_t)x), rgb, 3);
}

/* From the point p to the segment from a to b. */
static double segment_distance(double px, double py, double ax, double ay, double bx, double by)
{
	double dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
	double t = length > 0 ? ((px - ax) * dx + (py - ay) * dy) / length : 0;
	t = t < 0 ? 0 : t > 1 ? 1 : t;
	return hypot(px - ax - t * dx, py - ay - t * dy);
}

/* A segment into the coverage, cut to the area for data. */
static void cover_segment(struct plot *p, double ax, double ay, double bx, double by, double half)
{
	int64_t x0 = (int64_t)floor(fmax(fmin(ax, bx) - half - 1, p->left)),
	        x1 = (int64_t)ceil(fmin(fmax(ax, bx) + half + 1, p->right));
	int64_t y0 = (int64_t)floor(fmax(fmin(ay, by) - half - 1, p->top)),
	        y1 = (int64_t)ceil(fmin(fmax(ay, by) + half + 1, p->bottom));
	for (int64_t y = y0; y < y1; y++) {
		for (int64_t x = x0; x < x1; x++) {
			double inside = half + 0.5 - segment_distance((double)x + 0.5, (double)y + 0.5, ax, ay, bx, by);
			uint8_t *c = &p->cover[(size_t)y * p->out->width + (size_t)x];
			double v = 255 * fmin(fmax(inside, 0), 1);
			*c = v > *c ? (uint8_t)v : *c;
		}
	}
}

static void mix_cover(struct plot *p, const uint8_t rgb[3], double strength)
{
	size_t n = (size_t)p->out->width * p->out->height;
	for (size_t i = 0; i < n; i++) {
		double a = p->cover[i] * strength / 255;
		for (int c = 0; p->cover[i] && c < 3; c++)
			p->out->rgb[3 * i + (size_t)c] = (uint8_t)lrint(p->out->rgb[3 * i + (size_t)c] * (1 - a) + rgb[c] * a);
	}
	memset(p->cover, 0, n);
}

static void draw_series(struct plot *p, const struct chart_series *s, const uint8_t rgb[3])
{
	double half = (s->faint ? 0.5 : 0.8) * p->text, px = 0, py = 0;
	bool connected = false;
	for (size_t i = 0; i < s->n; i++) {
		if (!drawable(&p->x, s->x[i]) || !drawable(&p->y, s->y[i])) {
			connected = false;
			continue;
		}
		double x = place_x(p, on_scale(&p->x, s->x[i])), y = place_y(p, on_scale(&p->y, s->y[i]));
		if (connected)
			cover_segment(p, px, py, x, y, half);
		else
			cover_segment(p, x, y, x, y, s->n == 1 ? 3.0 * p->text : half);
		px = x, py = y, connected = true;
	}
	mix_cover(p, rgb, s->faint ? 0.3 : 1);
}

static void draw_axes(struct plot *p)
{
	char text[32];
	double thin = p->text > 1 ? 2 : 1;
	for (int i = 0; i < p->y.count; i++) {
		double y = floor(place_y(p, p->y.ticks[i]));
		fill(p->out, p->left, y, p->right, y + 1, pale);
		tick_text(&p->y, i, text, sizeof text);
		font_draw(p->out, (int64_t)p->left - 5 * p->text - font_width(text, strlen(text), p->text), (int64_t)y - 3 * p->text, text,
			  strlen(text), p->text, ink);
	}
	for (int i = 0; i < p->x.count; i++) {
		double x = floor(place_x(p, p->x.ticks[i]));
		fill(p->out, x, p->top, x + 1, p->bottom, pale);
		tick_text(&p->x, i, text, sizeof text);
		font_draw(p->out, (int64_t)x - font_width(text, strlen(text), p->text) / 2, (int64_t)p->bottom + 5 * p->text, text,
			  strlen(text), p->text, ink);
	}
	fill(p->out, p->left - thin, p->top, p->left, p->bottom + thin, frame);
	fill(p->out, p->left - thin, p->bottom, p->right, p->bottom + thin, frame);
}

static void draw_titles(struct plot *p)
{
	const struct chart *c = p->chart;
	const char *title = c->title ? c->title : "", *xl = c->x_label ? c->x_label : "", *yl = c->y_label ? c->y_label : "";
	double middle = (p->left + p->right) / 2;
	font_draw(p->out, (int64_t)middle - font_width(title, strlen(title), p->text) / 2, 6 * p->text,
	          title, strlen(title), p->text, ink);
	font_draw(p->out, (int64_t)p->right - font_width(xl, strlen(xl), p->text), (int64_t)p->bottom + 17 * p->text,
	          xl, strlen(xl), p->text, ink);
	font_draw(p->out, 5 * p->text, (int64_t)p->top - 14 * p->text, yl, strlen(yl), p->text, ink);
}

/* Pixels of a rectangle that are neither ground nor grid. */
static size_t drawn_in(const struct pixels *out, double left, double top, double width, double height)
{
	size_t n = 0;
	for (size_t y = (size_t)top; y < (size_t)(top + height) && y < out->height; y++) {
		for (size_t x = (size_t)left; x < (size_t)(left + width) && x < out->width; x++) {
			const uint8_t *rgb = out->rgb + 3 * (y * out->width + x);
			n += memcmp(rgb, white, 3) != 0 && memcmp(rgb, pale, 3) != 0;
		}
	}
	return n;
}

/* The corner of the area for data where a legend of this size hides least; the upper right one when others are no better. */
static void find_corner(const struct plot *p, double width, double height, double *left, double *top)
{
	double gap = 4.0 * p->text, xs[] = {p->right - width - gap, p->left + gap}, ys[] = {p->top + gap, p->bottom - height - gap};
	size_t least = SIZE_MAX;
	for (int i = 0; i < 4; i++) {
		double x = fmax(xs[i / 2], 0), y = fmax(ys[i % 2], 0);
		size_t n = drawn_in(p->out, x, y, width, height);
		if (n < least) {
			least = n;
			*left = x;
			*top = y;
		}
	}
}

/* On a pale ground so that lines under it do not disturb. */
static void draw_legend(struct plot *p)
{
	uint32_t widest = 0, rows = 0, step = 14 * p->text;
	for (size_t i = 0; i < p->chart->n; i++) {
		const struct chart_series *s = &p->chart->series[i];
		uint32_t w = s->faint ? 0 : font_width((const char *)s->label.p, s->label.n, p->text);
		widest = w > widest ? w : widest;
		rows += !s->faint && s->label.n > 0;
	}
	if (!rows)
		return;
	double width = widest + 34.0 * p->text, height = rows * step + 6.0 * p->text, left = 0, top = 0;
	find_corner(p, width, height, &left, &top);
	double y = top + 4 * p->text;
	fill(p->out, left - 1, top - 1, left + width + 1, top + height + 1, pale);
	fill(p->out, left, top, left + width, top + height, white);
	for (size_t i = 0, shown = 0; i < p->chart->n; i++) {
		const struct chart_series *s = &p->chart->series[i];
		if (s->faint || !s->label.n)
			continue;
		const uint8_t *rgb = colours[shown++ % ARRAY_LEN(colours)];
		fill(p->out, left + 6 * p->text, y + 3 * p->text, left + 22 * p->text, y + 5 * p->text, rgb);
		font_draw(p->out, (int64_t)left + 28 * p->text, (int64_t)y, (const char *)s->label.p, s->label.n, p->text, ink);
		y += step;
	}
}

/* Room for the widest label of the y axis decides the left margin. */
static void set_margins(struct plot *p)
{
	uint32_t widest = 0;
	char text[32];
	for (int i = 0; i < p->y.count; i++) {
		tick_text(&p->y, i, text, sizeof text);
		uint32_t w = font_width(text, strlen(text), p->text);
		widest = w > widest ? w : widest;
	}
	p->left = widest + 12 * p->text;
	p->right = p->out->width - 14.0 * p->text;
	p->top = (p->chart->title && *p->chart->title ? 32 : 22) * p->text;
	p->bottom = p->out->height - 30.0 * p->text;
}

static int prepare(struct plot *p, struct error *e)
{
	p->x.logarithmic = p->chart->log_x;
	p->y.logarithmic = p->chart->log_y;
	p->text = p->out->width >= 900 ? 2 : 1;
	find_ranges(p);
	if (!(p->x.low <= p->x.high) || !(p->y.low <= p->y.high))
		return fail(e, STATUS_BAD, "no points to draw");
	widen(&p->x, 0, true, true);
	widen(&p->y, 0.04, isfinite(p->chart->y_min), isfinite(p->chart->y_max));
	set_ticks(&p->y, p->y.logarithmic ? 8 : 7);
	set_ticks(&p->x, (int)p->out->width / (60 * (int)p->text) + 1);
	set_margins(p);
	return 0;
}

int chart_draw(struct pixels *out, const struct chart *c, struct error *e)
{
	struct plot p = {.chart = c, .out = out};
	if (pixels_resize(out, c->width, c->height, e) || prepare(&p, e))
		return -1;
	p.cover = mem_zero((size_t)c->width * c->height, 1, e);
	if (!p.cover)
		return -1;
	image_fill(out, white);
	draw_axes(&p);
	size_t shown = 0;
	for (size_t i = 0; i < c->n; i++) {
		draw_series(&p, &c->series[i], colours[shown % ARRAY_LEN(colours)]);
		shown += !c->series[i].faint;
	}
	draw_titles(&p);
	draw_legend(&p);
	free(p.cover);
	return 0;
}
