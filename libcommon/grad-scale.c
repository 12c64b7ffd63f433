/* grad-scale.c - see grad-scale.h. */
#include "grad-scale.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define START 0x1p13
#define LEAST 0x1p7
#define GREATEST 0x1p24

const char *grad_scale_name(enum grad_scale_kind kind)
{
	static const char *const names[] = {"none", "global", "resblock"};
	return names[kind];
}

int grad_scale_start(struct grad_scale *s, enum grad_scale_kind kind, int units, int replicas, struct error *e)
{
	*s = (struct grad_scale){.kind = kind, .replicas = replicas};
	if (kind == GRAD_SCALE_NONE)
		return 0;
	s->units = kind == GRAD_SCALE_GLOBAL ? 1 : units;
	if (s->units < 1 || s->units > GRAD_SCALE_MAX_UNITS)
		return fail(e, STATUS_USAGE, "%d resblocks, expected 1 to %d for gradient scales", s->units, GRAD_SCALE_MAX_UNITS);
	s->scale = mem_alloc((size_t)s->units, sizeof *s->scale, e);
	s->wait = mem_zero((size_t)s->units, sizeof *s->wait, e);
	s->finite = mem_zero((size_t)s->units, sizeof *s->finite, e);
	if (!s->scale || !s->wait || !s->finite) {
		grad_scale_free(s);
		return -1;
	}
	for (int i = 0; i < s->units; i++)
		s->scale[i] = s->replicas * START;
	return 0;
}

void grad_scale_free(struct grad_scale *s)
{
	free(s->scale);
	free(s->wait);
	free(s->finite);
	*s = (struct grad_scale){0};
}

/* ---- the rule ---- */

static double clamped(const struct grad_scale *s, double x)
{
	return fmin(fmax(x, s->replicas * LEAST), s->replicas * GREATEST);
}

static void step_unit(struct grad_scale *s, int i)
{
	s->wait[i] -= s->wait[i] > 0;
	if (s->finite[i]) {
		s->scale[i] *= exp2(1.0 / 1000);
	} else if (s->wait[i] == 0) {
		s->scale[i] *= M_SQRT1_2;
		s->wait[i] = GRAD_SCALE_WINDOW;
	}
	s->scale[i] = clamped(s, s->scale[i]);
}

void grad_scale_step(struct grad_scale *s, bool skipped)
{
	for (int i = 0; i < s->units; i++)
		step_unit(s, i);
	s->skipped += skipped;
	s->in_a_row = skipped ? s->in_a_row + 1 : 0;
}

bool grad_scale_stuck(const struct grad_scale *s)
{
	bool lowest = s->outside;
	for (int i = 0; i < s->units; i++)
		lowest = lowest || (!s->finite[i] && s->scale[i] <= s->replicas * LEAST);
	return lowest && s->in_a_row >= GRAD_SCALE_WINDOW;
}

void grad_scale_range(const struct grad_scale *s, double *least, double *greatest)
{
	*least = INFINITY, *greatest = 0;
	for (int i = 0; i < s->units; i++) {
		*least = fmin(*least, s->scale[i]);
		*greatest = fmax(*greatest, s->scale[i]);
	}
}

/* ---- checkpoints ---- */

json_t *grad_scale_json(const struct grad_scale *s)
{
	json_t *scales = json_array(), *waits = json_array();
	for (int i = 0; i < s->units; i++) { /* jansson writes the 17 digits that make a double exact */
		json_array_append_new(scales, json_real(s->scale[i]));
		json_array_append_new(waits, json_integer(s->wait[i]));
	}
	return json_pack("{s:s,s:I,s:I,s:o,s:o}", "kind", grad_scale_name(s->kind), "skipped", (json_int_t)s->skipped,
	                 "in_a_row", (json_int_t)s->in_a_row, "scale", scales, "wait", waits);
}

static bool parse_unit(struct grad_scale *s, int i, const json_t *scale, const json_t *wait)
{
	double x = json_number_value(scale);
	json_int_t w = json_integer_value(wait);
	if (!(x > 0 && isfinite(x)) || w < 0 || w > GRAD_SCALE_WINDOW)
		return false;
	s->scale[i] = clamped(s, x);
	s->wait[i] = (int)w;
	return true;
}

int grad_scale_parse(struct grad_scale *s, const json_t *j, const char *file, struct error *e)
{
	const json_t *scales = json_object_get(j, "scale"), *waits = json_object_get(j, "wait");
	const char *kind = json_string_value(json_object_get(j, "kind"));
	json_int_t skipped = json_integer_value(json_object_get(j, "skipped"));
	json_int_t in_a_row = json_integer_value(json_object_get(j, "in_a_row"));
	if (kind && strcmp(kind, grad_scale_name(s->kind)))
		return fail(e, STATUS_BAD, "%s: is an unfinished run whose gradient scale is %.20s, not %s; --restart replaces it",
		            file, kind, grad_scale_name(s->kind));
	bool ok = kind && json_array_size(scales) == (size_t)s->units && json_array_size(waits) == (size_t)s->units &&
	          skipped >= 0 && in_a_row >= 0;
	for (int i = 0; ok && i < s->units; i++)
		ok = parse_unit(s, i, json_array_get(scales, (size_t)i), json_array_get(waits, (size_t)i));
	if (!ok)
		return fail(e, STATUS_BAD, "%s: gradient scales of dalle.state are corrupt, expected %d; --restart replaces it", file,
		            s->units);
	s->skipped = skipped;
	s->in_a_row = in_a_row;
	return 0;
}
