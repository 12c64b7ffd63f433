/* model-info.c - what is in a model file: kind, config, identities, how it was made, state of training, tensors.
 * Works on any safetensors file; --check reads everything and compares checksums. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../libcommon/device.h"
#include "../libcommon/opt.h"
#include "../libcommon/weights.h"

static bool as_json, check, stats, summary;

/* ---- one file, as JSON; the text form is printed from it ---- */

static bool is_training(const char *name)
{
	return strncmp(name, "train.", 6) == 0;
}

static json_t *shape_json(const struct weights_tensor *t)
{
	json_t *shape = json_array();
	for (int i = 0; i < t->rank; i++)
		json_array_append_new(shape, json_integer(t->shape[i]));
	return shape;
}

static uint64_t elements(const struct weights_tensor *t)
{
	uint64_t n = 1;
	for (int i = 0; i < t->rank; i++)
		n *= (uint64_t)t->shape[i]; /* the reader checked the product */
	return n;
}

/* A real, or null: JSON knows no NaN. */
static json_t *real_json(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

static void add_stats(json_t *j, const float *x, uint64_t n)
{
	double sum = 0, squares = 0, low = INFINITY, high = -INFINITY;
	uint64_t bad = 0;
	for (uint64_t i = 0; i < n; i++) {
		if (!isfinite(x[i])) {
			bad++;
			continue;
		}
		sum += (double)x[i];
		squares += (double)x[i] * (double)x[i];
		low = fmin(low, (double)x[i]);
		high = fmax(high, (double)x[i]);
	}
	double good = (double)(n - bad), mean = sum / good;
	json_object_set_new(j, "mean", real_json(mean));
	json_object_set_new(j, "deviation", real_json(sqrt(fmax(0, squares / good - mean * mean))));
	json_object_set_new(j, "least", real_json(low));
	json_object_set_new(j, "largest", real_json(high));
	json_object_set_new(j, "not_finite", json_integer((json_int_t)bad));
}

static int tensor_stats(const struct weights *w, const struct weights_tensor *t, json_t *j, struct error *e)
{
	if (strcmp(t->type, "F32") && strcmp(t->type, "F16") && strcmp(t->type, "BF16") && strcmp(t->type, "F64"))
		return 0;
	float *x = mem_alloc(elements(t), sizeof *x, e);
	int r = x ? weights_read(w, t, x, e) : -1;
	if (r == 0)
		add_stats(j, x, elements(t));
	free(x);
	return r;
}

static json_t *tensor_json(const struct weights *w, const struct weights_tensor *t, struct error *e)
{
	char hex[17];
	json_t *j = json_pack("{s:s,s:s,s:o,s:I}", "name", t->name, "type", t->type, "shape", shape_json(t), "bytes",
	                      (json_int_t)t->bytes);
	int known = check ? weights_verify(w, t, hex, e) : 0;
	if (known >= 0 && check) {
		json_object_set_new(j, "checksum", json_string(hex));
		json_object_set_new(j, "verified", json_boolean(known));
	}
	if (known >= 0 && stats)
		tensor_stats(w, t, j, e);
	if (!e->status)
		return j;
	json_decref(j);
	return NULL;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp((*(const struct weights_tensor *const *)a)->name, (*(const struct weights_tensor *const *)b)->name);
}

static json_t *tensors_json(const struct weights *w, struct error *e)
{
	size_t n = weights_count(w);
	const struct weights_tensor **order = mem_alloc(n + 1, sizeof *order, e);
	json_t *list = json_array();
	for (size_t i = 0; order && i < n; i++)
		order[i] = weights_at(w, i);
	if (order)
		qsort(order, n, sizeof *order, compare_names);
	for (size_t i = 0; i < n && !e->status; i++)
		if (check || stats || !summary)
			json_array_append_new(list, tensor_json(w, order[i], e));
	free(order);
	return list;
}

static void add_counts(json_t *j, const struct weights *w)
{
	uint64_t parameters = 0, bytes = 0, training = 0;
	size_t tensors = 0;
	for (size_t i = 0; i < weights_count(w); i++) {
		const struct weights_tensor *t = weights_at(w, i);
		if (is_training(t->name)) {
			training += t->bytes;
			continue;
		}
		parameters += elements(t);
		bytes += t->bytes;
		tensors++;
	}
	json_object_set_new(j, "parameters", json_integer((json_int_t)parameters));
	json_object_set_new(j, "tensor_count", json_integer((json_int_t)tensors));
	json_object_set_new(j, "weight_bytes", json_integer((json_int_t)bytes));
	json_object_set_new(j, "training_bytes", json_integer((json_int_t)training));
}

/* Our metadata without its prefix, values that hold JSON as JSON; other programs' under "metadata". */
static void add_metadata(json_t *j, const struct weights *w)
{
	static const char *const own[] = {"kind", "id", "text_id", "image_id", "step", "version", "config", "command", "data",
	                                  "run", "state"};
	json_t *foreign = json_copy((json_t *)(uintptr_t)weights_metadata(w));
	json_object_del(foreign, "dalle.checksums");
	for (size_t i = 0; i < ARRAY_LEN(own); i++) {
		char key[40];
		snprintf(key, sizeof key, "dalle.%s", own[i]);
		const char *text = weights_meta(w, key);
		bool holds_json = text && (*text == '{' || *text == '[');
		json_t *value = holds_json ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
		if (text)
			json_object_set_new(j, own[i], value ? value : json_string(text));
		json_object_del(foreign, key);
	}
	if (json_object_size(foreign))
		json_object_set(j, "metadata", foreign);
	json_decref(foreign);
}

static json_t *file_json(const struct weights *w, struct error *e)
{
	json_t *j = json_pack("{s:s,s:I}", "file", weights_path(w), "bytes", (json_int_t)weights_bytes(w));
	if (!j) /* a name that is no UTF-8 */
		j = json_pack("{s:I}", "bytes", (json_int_t)weights_bytes(w));
	add_metadata(j, w);
	add_counts(j, w);
	json_object_set_new(j, "tensors", tensors_json(w, e));
	return j;
}

/* ---- as text ---- */

static void put_value(const json_t *v)
{
	char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
	put_escaped(text ? text : json_is_string(v) ? json_string_value(v) : "", stdout);
	free(text);
	putchar('\n');
}

static void put_member(const char *label, const json_t *v)
{
	if (!v || (json_is_string(v) && !*json_string_value(v)))
		return;
	printf("%-12s ", label);
	put_value(v);
}

static void put_bytes(const char *label, const json_t *v)
{
	char text[24];
	format_bytes(text, sizeof text, (uint64_t)json_integer_value(v));
	printf("%-12s %s\n", label, text);
}

static void put_object(const char *label, json_t *object)
{
	const char *key;
	json_t *value;
	json_object_foreach(object, key, value) {
		printf("%-12s ", label);
		put_escaped(key, stdout);
		printf(" = ");
		put_value(value);
	}
}

static void put_list(const char *label, const json_t *list)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		put_member(label, json_array_get(list, i));
}

/* "2048x512"; "scalar" for rank 0. */
static void put_shape(const json_t *shape)
{
	size_t n = json_array_size(shape);
	for (size_t i = 0; i < n; i++)
		printf("%s%lld", i ? "x" : "", (long long)json_integer_value(json_array_get(shape, i)));
	printf("%s", n ? "" : "scalar");
}

static void put_stats(const json_t *t)
{
	static const char *const reals[] = {"mean", "deviation", "least", "largest"};
	for (size_t i = 0; i < ARRAY_LEN(reals); i++) {
		const json_t *x = json_object_get(t, reals[i]);
		if (json_is_real(x))
			printf("\t%.6g", json_real_value(x));
		else
			printf("\t-"); /* no such value: integers, no finite element */
	}
	printf("\t%lld", (long long)json_integer_value(json_object_get(t, "not_finite")));
}

static void put_tensors(const json_t *list)
{
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *t = json_array_get(list, i);
		put_escaped(json_string_value(json_object_get(t, "name")), stdout);
		printf("\t%s\t", json_string_value(json_object_get(t, "type")));
		put_shape(json_object_get(t, "shape"));
		printf("\t%lld", (long long)json_integer_value(json_object_get(t, "bytes")));
		if (stats)
			put_stats(t);
		printf("\n");
	}
}

static void put_check(const json_t *list)
{
	size_t verified = 0, n = json_array_size(list);
	for (size_t i = 0; i < n; i++)
		verified += json_is_true(json_object_get(json_array_get(list, i), "verified"));
	printf("%-12s %zu tensor%s intact", "check", verified, plural(verified));
	if (verified < n)
		printf(", %zu read without a checksum to compare", n - verified);
	printf("\n");
}

static void put_file(json_t *j)
{
	static const char *const members[] = {"file", "kind", "id", "text_id", "image_id", "step", "version"};
	for (size_t i = 0; i < ARRAY_LEN(members); i++)
		put_member(members[i], json_object_get(j, members[i]));
	put_object("config", json_object_get(j, "config"));
	put_object("metadata", json_object_get(j, "metadata"));
	put_list("command", json_object_get(j, "command"));
	put_list("data", json_object_get(j, "data"));
	put_object("training", json_object_get(j, "run"));
	put_object(json_is_true(json_object_get(json_object_get(j, "state"), "complete")) ? "kept" : "unfinished",
	           json_object_get(j, "state"));
	put_member("parameters", json_object_get(j, "parameters"));
	put_member("tensors", json_object_get(j, "tensor_count"));
	put_bytes("weights", json_object_get(j, "weight_bytes"));
	if (json_integer_value(json_object_get(j, "training_bytes")))
		put_bytes("optimizer", json_object_get(j, "training_bytes"));
	put_bytes("file size", json_object_get(j, "bytes"));
	if (check)
		put_check(json_object_get(j, "tensors"));
	if (!summary)
		put_tensors(json_object_get(j, "tensors"));
}

/* ---- files ---- */

static int show(const char *path, bool first)
{
	struct error e = {0};
	struct weights *w = weights_open(path, &e);
	json_t *j = w ? file_json(w, &e) : NULL;
	if (!e.status && as_json) {
		if (summary)
			json_object_del(j, "tensors");
		json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
		putchar('\n');
	} else if (!e.status) {
		if (!first)
			putchar('\n');
		put_file(j);
	}
	json_decref(j);
	weights_close(w);
	return e.status ? report(&e) : STATUS_OK;
}

static const struct opt options[] = {
	OPT_FLAG('c', "check", &check, "read every tensor and compare its checksum"),
	OPT_FLAG('J', "json", &as_json, "one JSON object per file and line"),
	OPT_FLAG('S', "stats", &stats, "mean, deviation, least, largest and number of non-finite values of each tensor"),
	OPT_FLAG('s', "summary", &summary, "leave out the list of tensors"),
	OPT_END,
};

int main(int argc, char **argv)
{
	static const struct tool tool = {"model-info", "[OPTION]... FILE...", "Show what is in a model file", options};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (first == argc)
		return finish(opt_misuse("expected a model file"));
	status = STATUS_OK;
	for (int i = first; i < argc; i++) {
		int s = show(argv[i], i == first);
		status = status ? status : s;
	}
	return finish(status);
}
