/* test-grad-scale.c - the rule of gradient scales (recipe D5, K10), its clamps, and exact checkpoints. */
#include "check.h"

#include "../libcommon/grad-scale.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct grad_scale started(enum grad_scale_kind kind, int units, int replicas)
{
	struct grad_scale s;
	struct error e = {0};
	CHECK(grad_scale_start(&s, kind, units, replicas, &e) == 0, "start: %s", e.text);
	return s;
}

/* n updates, unit 0 finite or not, the others finite. */
static void steps(struct grad_scale *s, int n, bool finite)
{
	for (int k = 0; k < n; k++) {
		for (int i = 0; i < s->units; i++)
			s->finite[i] = i || finite;
		grad_scale_step(s, !finite);
	}
}

static void check_rule(void)
{
	struct grad_scale s = started(GRAD_SCALE_RESBLOCK, 2, 1);
	CHECK(s.scale[0] == 8192 && grad_scale_enter(&s, 1) == 8192 && grad_scale_enter(&s, -1) == 1 &&
		      grad_scale_loss(&s) == 1,
	      "starts at 2^13");
	steps(&s, 1000, true);
	CHECK(fabs(s.scale[0] / 16384 - 1) < 1e-12, "K10: 1000 finite updates double it: %.17g", s.scale[0]);
	double before = s.scale[0], other = s.scale[1];
	steps(&s, 1, false);
	CHECK(fabs(s.scale[0] / before * sqrt(2) - 1) < 1e-15, "not finite: divided by sqrt 2");
	steps(&s, 9, true);
	double between = s.scale[0];
	steps(&s, 1, false);
	CHECK(s.scale[0] == between, "K10: ten updates later it is not divided again");
	CHECK(fabs(s.scale[1] / other - exp2(11.0 / 1000)) < 1e-12, "the other unit grew at each of the eleven updates");
	CHECK(s.skipped == 2, "two updates were left out");
	grad_scale_free(&s);
}

/* Divided at update u, it can be again at u + 125. */
static void check_window(void)
{
	for (int gap = 124; gap <= 125; gap++) {
		struct grad_scale s = started(GRAD_SCALE_GLOBAL, 7, 1);
		CHECK(s.units == 1 && grad_scale_unit(&s, 5) == 0 && grad_scale_unit(&s, -1) == 0 &&
			      grad_scale_enter(&s, 0) == 1,
		      "one unit for all");
		steps(&s, 1, false);
		steps(&s, gap - 1, true);
		double before = s.scale[0];
		steps(&s, 1, false);
		CHECK((s.scale[0] < before) == (gap == 125), "two events %d updates apart", gap);
		grad_scale_free(&s);
	}
	struct grad_scale s = started(GRAD_SCALE_GLOBAL, 1, 1);
	steps(&s, 1000, false);
	CHECK(fabs(log2(s.scale[0]) - 9) < 1e-12, "1000 events in a row divide eight times: 2^%.3f", log2(s.scale[0]));
	grad_scale_free(&s);
}

static void check_clamp(void)
{
	struct grad_scale s = started(GRAD_SCALE_RESBLOCK, 2, 4);
	double least, greatest;
	CHECK(s.scale[0] == 4 * 8192, "four replicas start at 4 * 2^13");
	steps(&s, 13 * 125, false);
	CHECK(s.scale[0] == 4 * 0x1p7 && !grad_scale_stuck(&(struct grad_scale){.units = 0}), "never below 4 * 2^7");
	CHECK(grad_scale_stuck(&s), "stuck at the least for a window");
	steps(&s, 1, true);
	CHECK(!grad_scale_stuck(&s), "no longer");
	steps(&s, 30000, true);
	grad_scale_range(&s, &least, &greatest);
	CHECK(least == 4 * 0x1p24 && greatest == 4 * 0x1p24, "never above 4 * 2^24");
	steps(&s, 200, false);
	CHECK(!grad_scale_stuck(&s), "not stuck while it can be lowered");
	s.outside = true;
	CHECK(grad_scale_stuck(&s), "what no scale is on cannot be helped");
	grad_scale_free(&s);
}

static void check_none(void)
{
	struct grad_scale s = started(GRAD_SCALE_NONE, 12, 1);
	CHECK(s.units == 0 && grad_scale_loss(&s) == 1 && grad_scale_enter(&s, 3) == 1 && grad_scale_unit(&s, 3) == -1,
	      "without scales all is 1");
	grad_scale_step(&s, false);
	grad_scale_free(&s);
	struct error e = {0};
	CHECK(grad_scale_start(&s, GRAD_SCALE_RESBLOCK, 0, 1, &e) == -1 && e.status == STATUS_USAGE, "no resblocks: %s", e.text);
}

/* Through text and back, then the same future. */
static void check_json(void)
{
	struct grad_scale a = started(GRAD_SCALE_RESBLOCK, 3, 1), b = started(GRAD_SCALE_RESBLOCK, 3, 1);
	struct error e = {0};
	steps(&a, 77, true), steps(&a, 3, false);
	json_t *j = grad_scale_json(&a);
	char *text = json_dumps(j, JSON_COMPACT);
	json_t *again = json_loads(text, 0, NULL);
	CHECK(grad_scale_parse(&b, again, "file", &e) == 0, "parse: %s", e.text);
	for (int i = 0; i < 2; i++) {
		CHECK(memcmp(a.scale, b.scale, 3 * sizeof *a.scale) == 0 && memcmp(a.wait, b.wait, 3 * sizeof *a.wait) == 0 &&
		      a.skipped == b.skipped && a.in_a_row == b.in_a_row, "the same state, to the bit");
		steps(&a, 150, false), steps(&b, 150, false);
	}
	struct grad_scale c = started(GRAD_SCALE_RESBLOCK, 2, 1), d = started(GRAD_SCALE_GLOBAL, 3, 1);
	CHECK(grad_scale_parse(&c, again, "file", &e) == -1 && e.status == STATUS_BAD && strstr(e.text, "expected 2"),
	      "%s", e.text);
	e = (struct error){0};
	CHECK(grad_scale_parse(&d, again, "file", &e) == -1 && e.status == STATUS_BAD &&
		      strstr(e.text, "is resblock, not global"),
	      "%s", e.text);
	e = (struct error){0};
	const double corrupt[] = {0, -8192};
	for (int i = 0; i < 2; i++) {
		json_array_set_new(json_object_get(again, "scale"), 1, json_real(corrupt[i]));
		CHECK(grad_scale_parse(&b, again, "file", &e) == -1 && e.status == STATUS_BAD && strstr(e.text, "corrupt"), "%s", e.text);
		e = (struct error){0};
	}
	json_array_set_new(json_object_get(again, "scale"), 1, json_string("x"));
	CHECK(grad_scale_parse(&b, again, "file", &e) == -1 && e.status == STATUS_BAD, "%s", e.text);
	grad_scale_free(&a), grad_scale_free(&b), grad_scale_free(&c), grad_scale_free(&d);
	json_decref(j), json_decref(again);
	free(text);
}

/* Files of a time when every run had the bounds of one replica. */
static void check_other_bounds(void)
{
	struct grad_scale a = started(GRAD_SCALE_RESBLOCK, 3, 1), b = started(GRAD_SCALE_RESBLOCK, 3, 64);
	struct error e = {0};
	a.scale[0] = 0x1p7, a.scale[1] = 0x1p20;
	json_t *j = grad_scale_json(&a);
	json_array_set_new(json_object_get(j, "scale"), 2, json_real(0x1p40));
	CHECK(grad_scale_parse(&b, j, "file", &e) == 0, "%s", e.text);
	CHECK(b.scale[0] == 64 * 0x1p7 && b.scale[1] == 0x1p20 && b.scale[2] == 64 * 0x1p24, "%g %g %g, expected the nearest within",
	      b.scale[0], b.scale[1], b.scale[2]);
	grad_scale_free(&a), grad_scale_free(&b);
	json_decref(j);
}

int main(void)
{
	check_rule();
	check_window();
	check_clamp();
	check_none();
	check_json();
	check_other_bounds();
	return check_done();
}
