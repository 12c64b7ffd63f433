/* config.c - see config.h. */
#include "config.h"

static int64_t get(const void *config, const struct config_field *f)
{
	const void *p = (const char *)config + f->at;
	return f->size == sizeof(int) ? *(const int *)p : *(const int64_t *)p;
}

static void set(void *config, const struct config_field *f, int64_t v)
{
	void *p = (char *)config + f->at;
	if (f->size == sizeof(int))
		*(int *)p = (int)v;
	else
		*(int64_t *)p = v;
}

static int check(const struct config_field *f, int64_t v, int status, struct error *e)
{
	if (v >= f->min && v <= f->max)
		return 0;
	return fail(e, status, "%s is %lld, expected %lld to %lld", f->name, (long long)v, (long long)f->min,
	            (long long)f->max);
}

int config_check(const void *config, const struct config_field *f, size_t n, int status, struct error *e)
{
	for (size_t i = 0; i < n; i++)
		if (check(&f[i], get(config, &f[i]), status, e))
			return -1;
	return 0;
}

static json_t *value_json(const struct config_field *f, int64_t v)
{
	size_t n;
	const char *name = choice_name(f->names, (int)v, &n);
	return name ? json_stringn(name, n) : json_integer(v);
}

/* 0 with *v, or -1. */
static int value_parse(const struct config_field *f, const json_t *j, int64_t *v)
{
	*v = f->names && json_is_string(j) ? choice_number(f->names, json_string_value(j)) : json_integer_value(j);
	return json_is_integer(j) || (f->names && json_is_string(j) && *v >= 0) ? 0 : -1;
}

json_t *config_json(const void *config, const struct config_field *f, size_t n)
{
	json_t *j = json_object();
	bool ok = j != NULL;
	for (size_t i = 0; ok && i < n; i++)
		ok = json_object_set_new(j, f[i].name, value_json(&f[i], get(config, &f[i]))) == 0;
	if (ok)
		return j;
	json_decref(j);
	return NULL;
}

int config_parse(void *config, const struct config_field *f, size_t n, const json_t *j, const char *file, struct error *e)
{
	struct error why = {0};
	for (size_t i = 0; i < n; i++) {
		int64_t v;
		if (value_parse(&f[i], json_object_get(j, f[i].name), &v))
			return fail(e, STATUS_BAD, "%s: dalle.config has no %s \"%s\"", file, f[i].names ? f[i].names : "whole number",
			            f[i].name);
		if (check(&f[i], v, STATUS_BAD, &why))
			return fail(e, STATUS_BAD, "%s: dalle.config: %s", file, why.text);
		set(config, &f[i], v);
	}
	return 0;
}
