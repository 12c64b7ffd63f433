/* test-weights.c - model files: round trips through params, a file of the public library, and the attack
 * list: crafted headers, every truncation and every flipped bit of a small file. */
#include "../libcommon/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../libcommon/device.h"
#include "check.h"
#include "golden/safetensors.h"

static char folder[64], path[128];

static void write_bytes(const void *p, size_t n)
{
	FILE *f = fopen(path, "wb");
	if (!f || fwrite(p, 1, n, f) != n || fclose(f)) {
		perror(path);
		exit(1);
	}
}

/* The file of a header text and `data` zero bytes; length_add falsifies the header's length. */
static void write_crafted(const char *header, size_t data, int64_t length_add)
{
	struct buf b = {0};
	struct error e = {0};
	uint64_t n = strlen(header) + (uint64_t)length_add;
	buf_add(&b, &n, 8, &e);
	buf_add(&b, header, strlen(header), &e);
	for (size_t i = 0; i < data; i++)
		buf_add(&b, "", 1, &e);
	write_bytes(b.p, b.n);
	buf_free(&b);
}

static bool opens(struct error *e)
{
	*e = (struct error){0};
	struct weights *w = weights_open(path, e);
	weights_close(w);
	return w != NULL;
}

/* Refused with STATUS_BAD and a message that names the file and holds `expected`. */
static void refused(const char *what, const char *expected)
{
	struct error e;
	bool ok = opens(&e);
	CHECK(!ok && e.status == STATUS_BAD && strstr(e.text, path) && strstr(e.text, expected),
	      "%s: refused with '%s', got %d '%s'", what, expected, e.status, e.text);
}

/* ---- the reader's rules ---- */

/* A tensor of a header. */
#define T(name, type, shape, offsets) \
	"\"" name "\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"

static void check_attacks(void)
{
	static const struct {
		const char *what, *header;
		size_t data;
		const char *expected;
	} cases[] = {
		{"overlap", "{" T("a", "F32", "2", "0,8") "," T("b", "F32", "2", "4,12") "}", 12, "overlap"},
		{"same place", "{" T("a", "F32", "2", "0,8") "," T("b", "F32", "2", "0,8") "}", 8, "overlap"},
		{"hole", "{" T("a", "F32", "2", "0,8") "," T("b", "F32", "1", "12,16") "}", 16, "hole"},
		{"hole at the start", "{" T("a", "F32", "2", "8,16") "}", 16, "hole"},
		{"bytes at the end", "{" T("a", "F32", "2", "0,8") "}", 9, "after the last tensor"},
		{"data without tensors", "{}", 4, "after the last tensor"},
		{"too little data", "{" T("a", "F32", "2", "0,8") "}", 7, "truncated"},
		{"wrong product", "{" T("a", "F32", "3", "0,8") "}", 8, "its shape needs 12"},
		{"offsets reversed", "{" T("a", "F32", "2", "8,0") "}", 8, "its shape needs"},
		{"product wraps", "{" T("a", "F32", "4611686018427387904,4", "0,0") "}", 0, "overflows"},
		{"product wraps to the size", "{" T("a", "U8", "4294967296,4294967296,2", "0,0") "}", 0, "overflows"},
		{"number beyond 64 bits", "{" T("a", "F32", "99999999999999999999", "0,8") "}", 8, "header"},
		{"negative side", "{" T("a", "F32", "-2", "0,8") "}", 8, "whole number"},
		{"negative offset", "{" T("a", "F32", "2", "-8,0") "}", 8, "whole number"},
		{"fraction", "{" T("a", "F32", "2.0", "0,8") "}", 8, "whole number"},
		{"string for a number", "{" T("a", "F32", "\"2\"", "0,8") "}", 8, "whole number"},
		{"nine sides", "{" T("a", "U8", "1,1,1,1,1,1,1,1,1", "0,1") "}", 1, "shape"},
		{"unknown type", "{" T("a", "F33", "2", "0,8") "}", 8, "type 'F33'"},
		{"half a byte", "{" T("a", "F4", "3", "0,1") "}", 1, "whole bytes"},
		{"no type", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "expected dtype"},
		{"three offsets", "{" T("a", "F32", "2", "0,8,8") "}", 8, "expected dtype"},
		{"a further member", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, "expected dtype"},
		{"tensor is a number", "{\"a\":7}", 0, "expected dtype"},
		{"duplicate tensor", "{" T("a", "U8", "1", "0,1") "," T("a", "U8", "1", "1,2") "}", 2, "duplicate"},
		{"duplicate member", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate"},
		{"duplicate metadata", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate"},
		{"metadata is a list", "{\"__metadata__\":[]}", 0, "__metadata__"},
		{"metadata number", "{\"__metadata__\":{\"k\":1}}", 0, "not a string"},
		{"metadata nested", "{\"__metadata__\":{\"k\":{}}}", 0, "not a string"},
		{"our config is no JSON", "{\"__metadata__\":{\"dalle.config\":\"{\"}}", 0, "dalle.config"},
		{"our config is a list", "{\"__metadata__\":{\"dalle.config\":\"[]\"}}", 0, "dalle.config"},
		{"not JSON", "{\"a\":", 0, "header"},
		{"text behind the object", "{} {}", 0, "header"},
		{"NUL in a name", "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "header"},
		{"bad UTF-8", "{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "header"},
		{"list", "[]", 0, "expected a safetensors file"},
		{"space before the object", " {}", 0, "expected a safetensors file"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		write_crafted(cases[i].header, cases[i].data, 0);
		refused(cases[i].what, cases[i].expected);
	}
}

static void check_lengths(void)
{
	static const char good[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}   ";
	struct error e;
	write_crafted(good, 1, 0);
	CHECK(opens(&e), "trailing spaces in the header are fine: %s", e.text);
	write_crafted("{}", 0, 0);
	CHECK(opens(&e), "no tensors are fine: %s", e.text);
	static const int64_t wrong[] = {1, 2, 100, 100000000, INT64_MAX / 2, -60};
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		write_crafted(good, 1, wrong[i]);
		CHECK(!opens(&e) && e.status == STATUS_BAD, "a header length %lld off is refused: %s", (long long)wrong[i], e.text);
	}
}

/* Deep nesting must end in a message, not in a stack overflow. */
static void check_depth(void)
{
	enum { DEPTH = 100000 };
	struct buf b = {0};
	struct error e = {0};
	buf_printf(&b, &e, "{\"a\":");
	for (int i = 0; i < DEPTH; i++)
		buf_add(&b, "[", 1, &e);
	write_crafted((char *)b.p, 0, 0);
	buf_free(&b);
	refused("100000 brackets", "header");
}

static void check_strangers(void)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *expected;
	} cases[] = {
		{"", 0, "empty"}, {"\x80\2}q\1.......", 12, "pickle"},
		{"\x80\4\x95........", 12, "pickle"}, {"GGUF\3\0\0\0....", 12, "GGUF"}, {"\x93NUMPY\1\0....", 12, "NumPy"},
		{"\x28\xb5\x2f\xfd........", 12, "token stream"}, {"\x89PNG\r\n\x1a\n....", 12, "PNG"},
		{"hello, this is text", 19, "not a model file"}, {"abc", 3, "not a model file"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		write_bytes(cases[i].bytes, cases[i].n);
		refused("a foreign file", cases[i].expected);
		refused("a foreign file", "expected a safetensors file");
	}
	/* Torn files of PyTorch, which test-torch.c knows whole. */
	write_bytes("PK\3\4archive/data.pkl", 20);
	refused("a torn zip archive", "zip");
	write_bytes("\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
	refused("a torn old container", "truncated");
	struct error e = {0};
	CHECK(!weights_open(folder, &e) && e.status == STATUS_BAD && strstr(e.text, "directory"), "a folder: %s", e.text);
	e = (struct error){0};
	CHECK(!weights_open("/nonexistent/x", &e) && e.status == STATUS_FAIL, "a missing file: %s", e.text);
}

/* ---- a file of the public library ---- */

static void check_values(const struct weights *w, const char *name, int rank, double tolerance)
{
	static const double expected[] = {0.0, -1.5, 3.25, 1e-3, 65504.0, -0.125};
	float x[6] = {0};
	struct error e = {0};
	const struct weights_tensor *t = weights_find(w, name);
	if (!CHECK(t && t->rank == rank && t->shape[0] == 2 && t->shape[1] == 3, "%s: shape", name))
		return;
	CHECK(weights_read(w, t, x, &e) == 0, "%s: %s", name, e.text);
	for (int i = 0; i < 6; i++)
		CHECK(fabs(x[i] - expected[i]) <= tolerance * fabs(expected[i]), "%s[%d] = %g, expected %g", name, i, (double)x[i],
		      expected[i]);
}

static void check_golden(void)
{
	struct error e = {0};
	write_bytes(golden_safetensors, sizeof golden_safetensors);
	struct weights *w = weights_open(path, &e);
	if (!CHECK(w != NULL, "a file of the library opens: %s", e.text))
		return;
	CHECK(weights_count(w) == 7, "seven tensors, got %zu", weights_count(w));
	check_values(w, "embed.weight", 2, 1e-7); /* rounding of 0.001 to f32 */
	check_values(w, "double", 2, 1e-7);       /* to f32 when read */
	check_values(w, "half", 2, 0x1p-11);      /* half a unit of 10 bits */
	check_values(w, "brain", 2, 0x1p-8);
	float one = 0, none;
	CHECK(weights_read(w, weights_find(w, "scalar"), &one, &e) == 0 && one == 2.5f, "rank 0: %g", (double)one);
	CHECK(weights_read(w, weights_find(w, "empty"), &none, &e) == 0, "no elements: %s", e.text);
	CHECK(weights_read(w, weights_find(w, "ids"), &one, &e) == -1 && strstr(e.text, "I64"),
	      "integers are not weights: %s", e.text);
	e = (struct error){0};
	CHECK(weights_verify(w, weights_find(w, "ids"), NULL, &e) == 0, "no checksum in it");
	CHECK(weights_meta(w, "note") && strcmp(weights_meta(w, "note"), "caf\u00e9 \"quoted\"") == 0, "metadata");
	CHECK(!weights_config(w) && weights_need_kind(w, "dvae", &e) == -1 && strstr(e.text, "another program"),
	      "kind: %s", e.text);
	weights_close(w);
}

/* ---- our own files ---- */

struct toy {
	struct params p;
	struct param *weight, *bias, *gain, *scale;
	struct dev *dev;
};

static bool toy_build(struct toy *t, enum dtype type, int64_t in, bool training)
{
	const struct ops *ops = cpu_ops();
	struct error e = {0};
	char text[200];
	*t = (struct toy){0};
	t->dev = ops->open(0, type, 1, text, sizeof text);
	int bad = params_add(&t->p, &t->weight, PARAM_MATRIX, 0.02f, 0, 2, (int64_t[]){3, in}, &e, "blocks.%d.weight", 0) ||
	          params_add(&t->p, &t->bias, PARAM_BIAS, 0, 0, 1, (int64_t[]){3}, &e, "blocks.%d.bias", 0) ||
	          params_add(&t->p, &t->gain, PARAM_GAIN, 0, -1, 1, (int64_t[]){5}, &e, "norm.weight") ||
	          params_add(&t->p, &t->scale, PARAM_SCALAR, 2.5f, -1, 1, (int64_t[]){1}, &e, "scale") ||
	          params_build(&t->p, ops, t->dev, training, &e) || params_init(&t->p, 7, &e);
	return CHECK(!bad, "toy model: %s", e.text);
}

static void toy_free(struct toy *t)
{
	params_free(&t->p);
	cpu_ops()->close(t->dev);
}

static json_t *toy_meta(const char *kind)
{
	return json_pack("{s:s,s:s,s:s}", "dalle.kind", kind, "dalle.config", "{\"width\":4}", "dalle.step", "12");
}

static int toy_save(struct toy *t, const char *kind, char id[ID_LENGTH + 1], struct error *e)
{
	struct weights_part parts[] = {{.p = &t->p, .which = BLOCK_W, .prefix = ""},
	                               {.p = &t->p, .which = BLOCK_M, .prefix = "train.m."}};
	json_t *meta = toy_meta(kind);
	int r = weights_save(path, meta, parts, t->p.training ? 2 : 1, id, e);
	json_decref(meta);
	return r;
}

static void check_round_trip(void)
{
	struct toy a, b;
	struct error e = {0};
	char id[ID_LENGTH + 1], again[ID_LENGTH + 1];
	if (!toy_build(&a, DT_F32, 4, true) || !toy_build(&b, DT_BF16, 4, false))
		return;
	CHECK(a.gain->w[4] == 1 && a.scale->w[0] == 2.5f && a.bias->w[2] == 0 && a.weight->w[0] != 0, "initial values");
	CHECK(b.weight->t != (void *)b.weight->w && b.bias->t == (void *)b.bias->w, "only matrices have a copy");
	CHECK(params_count(&a.p) == 21, "21 parameters");
	CHECK(toy_save(&a, "dvae", id, &e) == 0, "save: %s", e.text);
	memset(b.weight->w, 0, 12 * 4);
	struct weights *w = weights_open(path, &e);
	if (!CHECK(w != NULL, "open: %s", e.text))
		return;
	CHECK(weights_count(w) == 8 && weights_find(w, "train.m.scale"), "both parts are there");
	CHECK(params_load(&b.p, BLOCK_W, w, "", &e) == 0 && memcmp(a.weight->w, b.weight->w, 12 * 4) == 0, "load: %s", e.text);
	CHECK(strcmp(weights_meta(w, "dalle.id"), id) == 0, "the identity is in the file");
	CHECK(json_integer_value(json_object_get(weights_config(w), "width")) == 4, "config");
	for (size_t i = 0; i < weights_count(w); i++)
		CHECK(weights_verify(w, weights_at(w, i), NULL, &e) == 1, "checksum of %s: %s", weights_at(w, i)->name, e.text);
	CHECK(weights_need_kind(w, "dvae", &e) == 0, "kind");
	CHECK(weights_need_kind(w, "clip", &e) == -1 && strstr(e.text, "is a dvae model, expected a clip model"), "%s", e.text);
	weights_close(w);
	e = (struct error){0};
	((float *)a.p.m)[0] = 1;
	CHECK(toy_save(&a, "dvae", again, &e) == 0 && strcmp(id, again) == 0, "moments do not change the identity");
	CHECK(toy_save(&a, "dalle", again, &e) == 0 && strcmp(id, again), "the kind does");
	a.bias->w[1] = 1e-30f;
	CHECK(toy_save(&a, "dvae", again, &e) == 0 && strcmp(id, again), "a weight does");
	toy_free(&a);
	toy_free(&b);
}

/* What is kept of one row in 16 bits beside the blocks: there and back, and other types and names refused. */
static void check_kept(void)
{
	struct toy a;
	struct error e = {0};
	uint16_t words[12], again[12] = {0};
	if (!toy_build(&a, DT_F32, 4, false))
		return;
	void *at[8] = {0}, *other[8] = {0};
	long k = a.weight - a.p.rows;
	for (int i = 0; i < 12; i++)
		words[i] = (uint16_t)(5000 * i);
	at[k] = words, other[k] = again;
	struct kept_rows from = {at, DT_1_6_9}, to = {other, DT_1_6_9}, floats = {other, DT_F32};
	struct weights_part parts[] = {{.p = &a.p, .which = BLOCK_W, .prefix = ""}, {.p = &a.p, .prefix = "train.e.", .kept = &from}};
	json_t *meta = toy_meta("dvae");
	CHECK(weights_save(path, meta, parts, 2, NULL, &e) == 0, "save: %s", e.text);
	json_decref(meta);
	struct weights *w = weights_open(path, &e);
	if (!CHECK(w, "open: %s", e.text))
		return;
	CHECK(weights_count(w) == 5 && params_load_kept(&to, &a.p, w, "train.e.", &e) == 0 && memcmp(words, again, sizeof words) == 0,
	      "kept rows come back: %s", e.text);
	CHECK(params_load_kept(&floats, &a.p, w, "train.e.", &e) == -1 && e.status == STATUS_BAD && strstr(e.text, "is U16, expected F32"),
	      "%s", e.text);
	e = (struct error){0};
	CHECK(params_load_kept(&to, &a.p, w, "train.q.", &e) == -1 && strstr(e.text, "has no tensor train.q.blocks.0.weight"), "%s", e.text);
	weights_close(w);
	toy_free(&a);
}

static void check_wrong_shape(void)
{
	struct toy a, b;
	struct error e = {0};
	if (!toy_build(&a, DT_F32, 4, false) || !toy_build(&b, DT_F32, 5, false))
		return;
	CHECK(toy_save(&a, "dvae", NULL, &e) == 0, "save: %s", e.text);
	struct weights *w = weights_open(path, &e);
	CHECK(params_load(&b.p, BLOCK_W, w, "", &e) == -1 && e.status == STATUS_BAD &&
		      strstr(e.text, "is 3 x 4, expected 3 x 5"),
	      "%s", e.text);
	e = (struct error){0};
	CHECK(params_load(&a.p, BLOCK_W, w, "train.w.", &e) == -1 &&
		      strstr(e.text, "has no tensor train.w.blocks.0.weight"),
	      "%s", e.text);
	weights_close(w);
	toy_free(&a);
	toy_free(&b);
}

/* Whether the whole file reads and every checksum holds. */
static bool intact(void)
{
	struct error e = {0};
	struct weights *w = weights_open(path, &e);
	bool ok = w && weights_need_kind(w, "dvae", &e) == 0;
	for (size_t i = 0; ok && i < weights_count(w); i++)
		ok = weights_verify(w, weights_at(w, i), NULL, &e) == 1;
	weights_close(w);
	return ok;
}

static void check_damage(void)
{
	struct toy a;
	struct error e = {0};
	struct buf b = {0};
	if (!toy_build(&a, DT_F32, 4, false))
		return;
	CHECK(toy_save(&a, "dvae", NULL, &e) == 0 && intact() && read_file(path, 1 << 20, &b, &e) == 0, "a small file: %s", e.text);
	size_t survived = 0, missed = 0;
	for (size_t n = 0; n < b.n; n++) {
		write_bytes(b.p, n);
		survived += opens(&e) || e.status != STATUS_BAD;
	}
	CHECK(survived == 0, "%zu of %zu truncations were not refused", survived, b.n);
	size_t data = 8 + (size_t)b.p[0] + ((size_t)b.p[1] << 8);
	for (size_t bit = 8 * data; bit < 8 * b.n; bit++) {
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		write_bytes(b.p, b.n);
		missed += intact();
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	CHECK(missed == 0 && b.n > data, "%zu of %zu flipped bits of the data were not found", missed, 8 * (b.n - data));
	/* In the header a flip of the step or of a space is harmless; kind and config belong to the identity. */
	uint8_t *config = memmem(b.p, b.n, "width", 5), *kind = memmem(b.p, b.n, "dvae", 4);
	missed = 0;
	for (size_t bit = 0; bit < 8 * data; bit++) {
		size_t at = bit / 8;
		bool covered = (config && at >= (size_t)(config - b.p) && at < (size_t)(config - b.p) + 9) ||
		               (kind && at >= (size_t)(kind - b.p) && at < (size_t)(kind - b.p) + 4);
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		write_bytes(b.p, b.n);
		missed += intact() && covered;
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	CHECK(missed == 0 && config && kind, "%zu flipped bits of kind and config were not found", missed);
	buf_free(&b);
	toy_free(&a);
}

static void check_save_failure(void)
{
	struct toy a;
	struct error e = {0};
	if (!toy_build(&a, DT_F32, 4, false))
		return;
	struct weights_part part = {.p = &a.p, .which = BLOCK_W, .prefix = ""};
	json_t *meta = toy_meta("dvae");
	CHECK(weights_save("/dev/full", meta, &part, 1, NULL, &e) == -1 && e.status == STATUS_LIMIT, "full device: %s", e.text);
	e = (struct error){0};
	CHECK(weights_save("/nonexistent/x", meta, &part, 1, NULL, &e) == -1 && e.status == STATUS_FAIL, "no folder: %s", e.text);
	json_decref(meta);
	toy_free(&a);
}

/* A drawn tensor depends on its name and the seed, not on the rows around it. */
static void check_init(void)
{
	struct toy a, b;
	struct error e = {0};
	double sum = 0, squares = 0;
	if (!toy_build(&a, DT_F32, 10000, false) || !toy_build(&b, DT_F32, 10000, false))
		return;
	CHECK(memcmp(a.weight->w, b.weight->w, a.weight->n * 4) == 0, "the same seed, the same weights");
	CHECK(params_init(&b.p, 8, &e) == 0 && memcmp(a.weight->w, b.weight->w, a.weight->n * 4), "another seed, others");
	for (size_t i = 0; i < a.weight->n; i++)
		sum += a.weight->w[i], squares += (double)a.weight->w[i] * a.weight->w[i];
	double n = (double)a.weight->n, deviation = sqrt(squares / n);
	/* Five standard errors of 30000 draws. */
	CHECK(fabs(sum / n) < 5 * 0.02 / sqrt(n) && fabs(deviation - 0.02) < 5 * 0.02 / sqrt(2 * n),
	      "mean %g, deviation %g", sum / n, deviation);
	CHECK(!params_find_nonfinite(&a.p, false), "all finite");
	a.bias->w[1] = NAN;
	const char *name = params_find_nonfinite(&a.p, false);
	CHECK(name && strcmp(name, "blocks.0.bias") == 0, "the tensor with a NaN is named: %s", name ? name : "none");
	toy_free(&a);
	toy_free(&b);
}

static void check_table(void)
{
	struct params p = {0};
	struct error e = {0};
	CHECK(params_add(&p, NULL, PARAM_BIAS, 0, 0, 1, (int64_t[]){0}, &e, "a") == -1, "an empty side: %s", e.text);
	e = (struct error){0};
	CHECK(params_add(&p, NULL, PARAM_BIAS, 0, 0, 2, (int64_t[]){1LL << 40, 1LL << 40}, &e, "a") == -1, "overflow: %s", e.text);
	e = (struct error){0};
	CHECK(params_add(&p, NULL, PARAM_BIAS, 0, 0, 1, (int64_t[]){3}, &e, "a") == 0 &&
	      params_add(&p, NULL, PARAM_BIAS, 0, 0, 1, (int64_t[]){3}, &e, "a") == -1, "a name twice: %s", e.text);
	params_free(&p);
}

int main(void)
{
	snprintf(folder, sizeof folder, "/tmp/test-weights-XXXXXX");
	if (!mkdtemp(folder))
		return 1;
	snprintf(path, sizeof path, "%s/m.safetensors", folder);
	check_attacks();
	check_lengths();
	check_depth();
	check_strangers();
	check_golden();
	check_table();
	check_init();
	check_round_trip();
	check_kept();
	check_wrong_shape();
	check_damage();
	check_save_failure();
	unlink(path);
	CHECK(rmdir(folder) == 0, "no other file was left in the folder");
	return check_done();
}
