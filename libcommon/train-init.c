/* train-init.c - a new run that starts from the weights of another model (--init): what must agree, what may differ
 * and is told, and which tensors are drawn anew for another vocabulary. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "device.h"
#include "train-run.h"

static bool in_list(const char *list, const char *name)
{
	size_t n = strlen(name);
	for (const char *s = list; s && (s = strstr(s, name)); s += n)
		if ((s == list || s[-1] == ' ') && (s[n] == ' ' || s[n] == 0))
			return true;
	return false;
}

static bool differs(const char *a, const char *b)
{
	return a && *a && b && *b && strcmp(a, b) != 0;
}

/* Which of the two kinds of tokens are of another codec than the model's. */
static void compare_codecs(struct train_run *r, const struct weights *w)
{
	const struct trainee *t = r->t;
	r->init.other_text = t->text_rows && differs(weights_meta(w, "dalle.text_id"), t->text_id);
	r->init.other_image = t->image_rows && differs(weights_meta(w, "dalle.image_id"), t->image_id);
}

static int refuse_codec(const struct train_run *r, const struct weights *w, struct error *e)
{
	bool text = r->init.other_text;
	const char *key = text ? "dalle.text_id" : "dalle.image_id";
	return fail(e, STATUS_BAD, "%s: is of %s %s, the data of %s; --new-vocabulary draws those tensors anew", r->o->init,
	            text ? "vocabulary" : "dVAE", weights_meta(w, key), text ? r->t->text_id : r->t->image_id);
}

/* "layers is 4, here 6; mask ..." of all members of the configuration that differ. */
static int describe_differences(const struct train_run *r, const struct weights *w, struct buf *out, struct error *e)
{
	const char *key;
	json_t *value, *theirs = weights_config(w);
	if (buf_set(out, "", 0, e))
		return -1;
	json_object_foreach(r->t->config, key, value) {
		json_t *old = json_object_get(theirs, key);
		if (!old || (json_is_number(old) ? json_number_value(old) == json_number_value(value) : json_equal(old, value)))
			continue;
		const size_t how = JSON_ENCODE_ANY | JSON_REAL_PRECISION(6);
		char *a = json_dumps(old, how), *b = json_dumps(value, how);
		int bad = a && b ? buf_printf(out, e, "%s%s is %.40s, here %.40s", out->n ? "; " : "", key, a, b) : 0;
		free(a);
		free(b);
		if (bad)
			return -1;
	}
	return 0;
}

/* The rows that come from the file. */
static int load_rows(struct train_run *r, const struct weights *w, struct error *e)
{
	struct params some = *r->p; /* a view of the table */
	some.rows = mem_alloc((size_t)r->p->count, sizeof *some.rows, e);
	some.count = 0;
	if (!some.rows)
		return -1;
	for (int i = 0; i < r->p->count; i++) {
		const struct param *row = &r->p->rows[i];
		bool anew = (r->init.other_text && in_list(r->t->text_rows, row->name)) ||
		            (r->init.other_image && in_list(r->t->image_rows, row->name));
		if (!anew)
			some.rows[some.count++] = *row;
	}
	int result = params_load(&some, BLOCK_W, w, "", e);
	r->init.anew = r->p->count - some.count;
	free(some.rows);
	return result;
}

static int load(struct train_run *r, const struct weights *w, struct error *e)
{
	struct buf what = {0};
	struct error why = {0};
	int result = describe_differences(r, w, &what, e);
	if (result == 0 && load_rows(r, w, &why))
		result = fail(e, why.status, "%.250s%s%.200s", why.text, what.n ? "; " : "", what.n ? (char *)what.p : "");
	const char *step = weights_meta(w, "dalle.step");
	if (result == 0)
		note(0, "%s: starts from %s, step %s%s%s", r->o->output, r->o->init, step ? step : "unknown", what.n ? "; " : "",
		     what.n ? (char *)what.p : "");
	if (result == 0 && r->init.anew)
		note(0, "%s: %d tensors of another vocabulary start from chance", r->o->output, r->init.anew);
	buf_free(&what);
	return result;
}

static json_t *parsed(const struct weights *w, const char *key)
{
	const char *text = weights_meta(w, key);
	return text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
}

int train_init_open(struct train_run *r, struct error *e)
{
	if (!r->o->init)
		return 0;
	r->init.file = weights_open(r->o->init, e);
	if (!r->init.file || weights_need_kind(r->init.file, r->t->kind, e))
		return -1;
	compare_codecs(r, r->init.file);
	if ((r->init.other_text || r->init.other_image) && !r->o->new_vocabulary)
		return refuse_codec(r, r->init.file, e);
	r->init.commands = parsed(r->init.file, "dalle.command");
	return weights_id(r->init.file, r->init.id, e);
}

int train_init_load(struct train_run *r, struct error *e)
{
	return load(r, r->init.file, e);
}

int train_init_sizes(const struct tool *tool, int argc, char **argv, const char *kind, struct weights **w, struct error *e)
{
	struct stat st;
	const char *path = opt_early(tool, argc, argv, "init", NULL);
	*w = NULL;
	if (!path || opt_early(tool, argc, argv, "preset", NULL) || (stat(path, &st) == 0 && !S_ISREG(st.st_mode)))
		return 0;
	*w = weights_open(path, e);
	return *w ? weights_need_kind(*w, kind, e) : -1;
}

void train_init_close(struct train_run *r)
{
	weights_close(r->init.file);
	json_decref(r->init.commands);
}
