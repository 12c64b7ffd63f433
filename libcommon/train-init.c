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

/* Which of the two kinds of tokens are of another codec than the model's: refused without --new-vocabulary. */
static int compare_codecs(struct train_init *in, const struct trainee *t, const struct train_options *o, struct error *e)
{
	const char *text = weights_meta(in->file, "dalle.text_id"), *image = weights_meta(in->file, "dalle.image_id");
	in->other_text = t->text_rows && differs(text, t->text_id);
	in->other_image = t->image_rows && differs(image, t->image_id);
	if (o->new_vocabulary || (!in->other_text && !in->other_image))
		return 0;
	return fail(e, STATUS_BAD, "%s: is of %s %s, the data of %s; --new-vocabulary draws those tensors anew", o->init,
	            in->other_text ? "vocabulary" : "dVAE", in->other_text ? text : image, in->other_text ? t->text_id : t->image_id);
}

/* A view of the table: the rows that come from the file.  some->rows is the caller's. */
static int rows_of_file(struct params *some, const struct train_init *in, const struct trainee *t, struct error *e)
{
	*some = *t->params;
	some->rows = mem_alloc((size_t)t->params->count, sizeof *some->rows, e);
	some->count = 0;
	for (int i = 0; some->rows && i < t->params->count; i++) {
		const struct param *row = &t->params->rows[i];
		bool anew = (in->other_text && in_list(t->text_rows, row->name)) ||
		            (in->other_image && in_list(t->image_rows, row->name));
		if (!anew)
			some->rows[some->count++] = *row;
	}
	return some->rows ? 0 : -1;
}

/* "--layers 4 (here 6)": how the file's sizes differ; empty when they do not, or it has none. */
static int describe(struct buf *out, const struct train_init *in, const struct trainee *t, const struct train_options *o,
                    struct error *e)
{
	json_t *theirs = weights_config(in->file);
	return theirs && t->config ? train_differences(out, o->table, "here", theirs, t->config, e) : buf_set(out, "", 0, e);
}

/* Whether the file has all these tensors in their shapes. */
static int fits(const struct params *some, const struct train_init *in, const struct trainee *t, const struct train_options *o,
                struct error *e)
{
	struct error why = {0};
	struct buf what = {0};
	int result = params_fit(some, in->file, "", &why);
	if (result && describe(&what, in, t, o, e) == 0)
		fail(e, why.status, "%.250s%s%.200s", why.text, what.n ? "; " : "", what.n ? (char *)what.p : "");
	buf_free(&what);
	return result;
}

static int open_file(struct train_init *in, const struct trainee *t, const struct train_options *o, struct error *e)
{
	in->file = weights_open(o->init, e);
	return in->file && weights_need_kind(in->file, t->kind, e) == 0 ? compare_codecs(in, t, o, e) : -1;
}

int train_init_check(const struct trainee *t, const struct train_options *o, struct error *e)
{
	struct train_init in = {0};
	struct params some = {0};
	struct stat st;
	if (!o->init || strcmp(o->init, "-") == 0 || (stat(o->init, &st) == 0 && !S_ISREG(st.st_mode)))
		return 0;
	int result = open_file(&in, t, o, e) || rows_of_file(&some, &in, t, e) || fits(&some, &in, t, o, e) ? -1 : 0;
	free(some.rows);
	weights_close(in.file);
	return result;
}

int train_init_load(struct train_run *r, struct error *e)
{
	struct train_init *in = &r->init;
	struct params some = {0};
	struct buf what = {0};
	const char *step = weights_meta(in->file, "dalle.step");
	int result = rows_of_file(&some, in, r->t, e) || fits(&some, in, r->t, r->o, e) ||
	             params_load(&some, BLOCK_W, in->file, "", e) || describe(&what, in, r->t, r->o, e) ? -1 : 0;
	if (result == 0)
		note(0, "%s: starts from %s, step %s%s%s", r->o->output, r->o->init, step ? step : "unknown", what.n ? "; " : "",
		     what.n ? (char *)what.p : "");
	int anew = r->p->count - some.count;
	if (result == 0 && anew)
		note(0, "%s: %d tensor%s of another vocabulary start%s from chance", r->o->output, anew, plural((uint64_t)anew),
		     anew == 1 ? "s" : "");
	free(some.rows);
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
	if (open_file(&r->init, r->t, r->o, e))
		return -1;
	r->init.commands = parsed(r->init.file, "dalle.command");
	return weights_id(r->init.file, r->init.id, e);
}

int train_init_sizes(const struct tool *tool, int argc, char **argv, const char *kind, struct weights **w, struct error *e)
{
	struct stat st;
	const char *path = opt_early(tool, argc, argv, "init", NULL);
	*w = NULL;
	if (!path || strcmp(path, "-") == 0 || opt_early(tool, argc, argv, "preset", NULL) ||
	    (stat(path, &st) == 0 && !S_ISREG(st.st_mode)))
		return 0;
	*w = weights_open(path, e);
	return *w ? weights_need_kind(*w, kind, e) : -1;
}

void train_init_close(struct train_run *r)
{
	weights_close(r->init.file);
	json_decref(r->init.commands);
}
