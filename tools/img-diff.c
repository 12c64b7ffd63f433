/* img-diff.c - how far the pictures of one stream are from those of another: PSNR by record
 * and over all. */
#include "../libcommon/filter.h"
#include "../libcommon/opt.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool as_json, each;

static const struct opt options[] = {
	OPT_FLAG('e', "each", &each, "also key, MSE and PSNR of each record"),
	OPT_FLAG('J', "json", &as_json, "JSON lines: one per record, then the whole"),
	OPT_END,
};
static const struct tool tool = {"img-diff", "[OPTION]... FILE [FILE]", "Compare the pictures of two streams", options};

struct totals {
	uint64_t records, values;
	double squares; /* exact: whole numbers below 2^53 */
};

/* 10 log10(255^2 / mse); infinite for equal pictures. */
static double psnr(double mse)
{
	return 10 * log10(255.0 * 255.0 / mse);
}

static uint64_t squared_error(const uint8_t *a, const uint8_t *b, size_t n)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < n; i++) {
		int d = a[i] - b[i];
		sum += (uint64_t)(d * d);
	}
	return sum;
}

static int check_pair(const struct record *a, const struct record *b, const char *name_a, const char *name_b,
		      struct error *e)
{
	if (a->key.n != b->key.n || (a->key.n && memcmp(a->key.p, b->key.p, a->key.n) != 0))
		return fail(e, STATUS_BAD, "%s has key '%.*s' where %s has '%.*s', expected the same records in the same order",
			    name_a, a->key.n < 100 ? (int)a->key.n : 100, a->key.n ? (char *)a->key.p : "", name_b,
			    b->key.n < 100 ? (int)b->key.n : 100, b->key.n ? (char *)b->key.p : "");
	if (need_pixels(a, name_a, e) || need_pixels(b, name_b, e))
		return -1;
	if (a->pixels.width != b->pixels.width || a->pixels.height != b->pixels.height)
		return fail(e, STATUS_BAD, "'%.*s' is %u x %u in %s and %u x %u in %s, expected the same size",
			    a->key.n < 100 ? (int)a->key.n : 100, a->key.n ? (char *)a->key.p : "", a->pixels.width,
			    a->pixels.height, name_a, b->pixels.width, b->pixels.height, name_b);
	return 0;
}

static int print_json(const char *name, json_t *what, double mse, struct error *e)
{
	json_t *o = json_object();
	int bad = !o || json_object_set_new(o, name, what) || json_object_set_new(o, "mse", json_real(mse)) ||
		  json_object_set_new(o, "psnr", isfinite(psnr(mse)) ? json_real(psnr(mse)) : json_null()) ||
		  json_dumpf(o, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9)) || putchar('\n') < 0;
	json_decref(o);
	return bad ? fail(e, STATUS_FAIL, "stdout: cannot write") : 0;
}

static int compare(struct totals *t, const struct record *a, const struct record *b, struct error *e)
{
	size_t n = 3 * (size_t)a->pixels.width * a->pixels.height;
	uint64_t sum = squared_error(a->pixels.rgb, b->pixels.rgb, n);
	double mse = (double)sum / (double)n;
	t->records++;
	t->values += n;
	t->squares += (double)sum;
	if (as_json)
		return print_json("key", json_stringn(a->key.n ? (char *)a->key.p : "", a->key.n), mse, e);
	if (each)
		printf("%.*s\t%.6g\t%.4f\n", (int)a->key.n, a->key.n ? (char *)a->key.p : "", mse, psnr(mse));
	return 0;
}

static int compare_all(struct totals *t, struct reader *a, struct reader *b, struct error *e)
{
	struct record left = {.has = 0}, right = {.has = 0};
	int r;
	for (;;) {
		r = reader_next(a, &left, e);
		int other = r < 0 ? -1 : reader_next(b, &right, e);
		if (r >= 0 && other >= 0 && r != other)
			fail(e, STATUS_BAD, "%s ends after %llu record%s and %s goes on, expected the same records",
			     reader_name(r ? b : a), (unsigned long long)t->records, plural(t->records), reader_name(r ? a : b));
		if (e->status || r == 0)
			break;
		if (check_pair(&left, &right, reader_name(a), reader_name(b), e) || compare(t, &left, &right, e))
			break;
	}
	record_free(&left);
	record_free(&right);
	return e->status ? -1 : 0;
}

static int diff(char *const *files, int n, struct error *e)
{
	static char dash[] = "-";
	char *const standard[] = {dash};
	struct totals t = {0};
	struct reader *a = reader_open(files, 1, e), *b = a ? reader_open(n > 1 ? files + 1 : standard, 1, e) : NULL;
	int r = b ? compare_all(&t, a, b, e) : -1;
	if (r == 0 && t.records == 0)
		r = fail(e, STATUS_BAD, "%s: holds no records, nothing to compare", files[0]);
	double mse = t.values ? t.squares / (double)t.values : 0;
	if (r == 0 && as_json)
		r = print_json("records", json_integer((json_int_t)t.records), mse, e);
	else if (r == 0)
		printf("records\t%llu\nmse\t%.6g\npsnr\t%.4f\n", (unsigned long long)t.records, mse, psnr(mse));
	reader_close(a);
	reader_close(b);
	return r;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (argc - first < 1 || argc - first > 2)
		return finish(opt_misuse("expected two streams: FILE FILE, or FILE and stdin"));
	return finish(diff(argv + first, argc - first, &e) ? report(&e) : STATUS_OK);
}
