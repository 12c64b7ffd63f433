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

json_t *config_json(const void *config, const struct config_field *f, size_t n)
{
	json_t *j = json_object();
	bool ok = j != NULL;
	for (size_t i = 0; ok && i < n; i++)
		ok = json_object_set_new(j, f[i].name, json_integer(get(config, &f[i]))) == 0;
	if (ok)
		return j;
	json_decref(j);
	return NULL;
}

int config_parse(void *config, const struct config_field *f, size_t n, const json_t *j, const char *file, struct error *e)
{
	struct error why = {0};
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_object_get(j, f[i].name);
		if (!json_is_integer(v))
			return fail(e, STATUS_BAD, "%s: dalle.config has no whole number \"%s\"", file, f[i].name);
		if (check(&f[i], json_integer_value(v), STATUS_BAD, &why))
			return fail(e, STATUS_BAD, "%s: dalle.config: %s", file, why.text);
		set(config, &f[i], json_integer_value(v));
	}
	return 0;
}
