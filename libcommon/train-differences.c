/* train-differences.c - what another command would change of a run, told as the options that change it: members of a run's
 * description are named as the options that set them, with _ for -. */
#include <stdlib.h>
#include <string.h>

#include "opt.h"
#include "train-run.h"

enum { ENOUGH = 250 }; /* characters, for one line; what comes after is counted */

struct telling {
	struct buf *out;
	const struct opt *table;
	const char *word; /* for the second description: "now" */
	bool arrays;      /* tell of arrays, too: they follow from other members */
	int left_out;
};

/* Members that have another name than their option, or none. */
static const char *name_of(const char *member)
{
	static const char *const others[][2] = {{"post_gain", "gain"}, {"text_id", "vocabulary"}, {"image_id", "dVAE"}};
	for (size_t i = 0; i < ARRAY_LEN(others); i++)
		if (strcmp(member, others[i][0]) == 0)
			return others[i][1];
	return member;
}

static bool is_given(const struct opt *o, const json_t *v)
{
	bool flag = o && o->kind == OPT_K_FLAG;
	return v && !json_is_false(v) && !(flag && json_is_integer(v) && json_integer_value(v) == 0);
}

/* The shortest decimal that is this number. */
static void real_text(char *out, size_t n, double x)
{
	for (int digits = 1; digits <= 17; digits++) {
		snprintf(out, n, "%.*g", digits, x);
		if (strtod(out, NULL) == x)
			return;
	}
}

/* As it is typed; nothing for what is given or not. */
static void value_text(char *out, size_t n, const struct opt *o, const json_t *v)
{
	*out = 0;
	if (json_is_string(v)) {
		snprintf(out, n, "%s", json_string_value(v));
	} else if (json_is_real(v)) {
		real_text(out, n, json_real_value(v));
	} else if (json_is_integer(v) && !(o && o->kind == OPT_K_FLAG)) {
		snprintf(out, n, "%lld", (long long)json_integer_value(v));
	} else if (json_is_array(v)) {
		char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(6));
		snprintf(out, n, "%s", text ? text : "");
		free(text);
	}
}

/* "--seed 1 (now 7)", "no --no-master (now given)", "records 40 (now 41)". */
static int tell(struct telling *t, const char *member, const json_t *was, const json_t *is, struct error *e)
{
	const char *name = name_of(member);
	const struct opt *o = opt_find(t->table, name);
	char old[100], now[100];
	bool had = is_given(o, was), has = is_given(o, is);
	value_text(old, sizeof old, o, was);
	value_text(now, sizeof now, o, is);
	if (t->out->n > ENOUGH) {
		t->left_out++;
		return 0;
	}
	return buf_printf(t->out, e, "%s%s%s%s%s%s (%s %s)", t->out->n ? ", " : "", had ? "" : "no ", o ? "--" : "",
	                  o ? o->name : name, had && *old ? " " : "", had ? old : "", t->word,
	                  !has ? "not given" : *now ? now : "given");
}

static int walk(struct telling *t, json_t *was, json_t *is, struct error *e)
{
	const char *key;
	json_t *value, *all = json_copy(is);
	int result = all && json_object_update_missing(all, was) == 0 ? 0 : fail(e, STATUS_LIMIT, "out of memory");
	json_object_foreach(all, key, value) {
		json_t *a = json_object_get(was, key), *b = json_object_get(is, key);
		if (result || (a && b && json_equal(a, b)) || json_is_array(value) != t->arrays)
			continue;
		result = json_is_object(a) && json_is_object(b) ? walk(t, a, b, e) : tell(t, key, a, b, e);
	}
	json_decref(all);
	return result;
}

int train_differences(struct buf *out, const struct opt *table, const char *word, json_t *was, json_t *is, struct error *e)
{
	struct telling t = {.out = out, .table = table, .word = word};
	if (buf_set(out, "", 0, e) || walk(&t, was, is, e))
		return -1;
	t.arrays = true;
	if (!out->n && walk(&t, was, is, e))
		return -1;
	return t.left_out ? buf_printf(out, e, " and %d more", t.left_out) : 0;
}
