/* weights.c - reading model files: the safetensors header, checked before anything in it is believed, then
 * tensors by position.  Files of torch.save come through torch-file.c, which runs nothing in them.  Writing is in
 * weights-write.c. */
#include "weights.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "../kernels/convert.h"
#include "hash.h"
#include "torch-file.h"
#include "zip.h"

#define HEADER_LIMIT 100000000u /* bytes; the reference reader's */
enum { CHUNK = 1 << 18 }; /* bytes read at once */

struct weights {
	struct file_bytes file;
	uint64_t data;    /* where the data section begins */
	struct torch_file torch; /* of torch.save: the tensors; else empty */
	json_t *header, *metadata, *checksums, *config;
	struct weights_tensor *tensors; /* by offset */
	size_t count;
};

static const struct {
	const char *name;
	unsigned bits;
} types[] = {
	{"F32", 32}, {"F16", 16}, {"BF16", 16}, {"F64", 64}, {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},
	{"U64", 64}, {"U32", 32}, {"U16", 16}, {"U8", 8}, {"BOOL", 8}, {"C64", 64}, {"F8_E4M3", 8},
	{"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},
};

unsigned weights_type_bits(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(types); i++)
		if (strcmp(types[i].name, name) == 0)
			return types[i].bits;
	return 0;
}

static int bad(const struct weights *w, struct error *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int bad(const struct weights *w, struct error *e, const char *fmt, ...)
{
	char text[400];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return fail(e, STATUS_BAD, "%s: %s", w->file.name, text);
}

/* What a file that is no model file is, from its first bytes; NULL when unknown. */
static const char *recognise(const uint8_t *p, size_t n)
{
	static const struct {
		const char *magic;
		size_t n;
		const char *what;
	} known[] = {
		{"\x80\2", 2, "a Python pickle not of torch.save"}, {"\x80\3", 2, "a Python pickle not of torch.save"},
		{"\x80\4", 2, "a Python pickle not of torch.save"}, {"\x80\5", 2, "a Python pickle not of torch.save"},
		{"\x93NUMPY", 6, "a NumPy array"}, {"GGUF", 4, "a GGUF model"},
		{"\x89HDF\r\n", 6, "an HDF5 file"}, {"\x28\xb5\x2f\xfd", 4, "zstd data, perhaps a token stream"},
		{"\x5e\x2a\x4d\x18", 4, "zstd data, perhaps a token stream"}, {"\x1f\x8b", 2, "gzip data"},
		{"\x89PNG", 4, "a PNG picture"}, {"\xff\xd8\xff", 3, "a JPEG picture"},
		{"version https://git-lfs", 23, "a Git LFS pointer instead of the file itself"},
	};
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (n >= known[i].n && memcmp(p, known[i].magic, known[i].n) == 0)
			return known[i].what;
	return n == 0 ? "empty" : NULL;
}

static int not_ours(const struct weights *w, const uint8_t *first, size_t n, struct error *e)
{
	const char *what = recognise(first, n);
	return bad(w, e, "%s%s, expected a safetensors file or one of torch.save", what ? "is " : "is not a model file",
	           what ? what : "");
}

/* ---- header ---- */

static json_t *parse_object(const struct weights *w, const char *text, size_t n, const char *what, struct error *e)
{
	json_error_t at;
	json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at);
	if (!j)
		bad(w, e, "%s: %.160s", what, at.text);
	else if (!json_is_object(j))
		bad(w, e, "%s: is not a JSON object", what);
	if (j && !json_is_object(j)) {
		json_decref(j);
		j = NULL;
	}
	return j;
}

/* The JSON object of `length` bytes after the length itself. */
static int read_header(struct weights *w, const uint8_t *first, size_t n, struct error *e)
{
	uint64_t length = n < 8 ? 0 : get_le(first, 8);
	if (n < 9 || first[8] != '{' || length < 2)
		return not_ours(w, first, n, e);
	if (length > w->file.size - 8 || length > HEADER_LIMIT)
		return bad(w, e, "is truncated or corrupt: a header of %llu bytes in a file of %llu",
		           (unsigned long long)length, (unsigned long long)w->file.size);
	char *text = mem_alloc((size_t)length, 1, e);
	if (!text)
		return -1;
	if (bytes_get(&w->file, text, (size_t)length, 8, e) == 0)
		w->header = parse_object(w, text, (size_t)length, "header", e);
	free(text);
	w->data = 8 + length;
	return w->header ? 0 : -1;
}

/* A JSON whole number of at least 0. */
static int natural(const struct weights *w, const char *name, const json_t *j, uint64_t *out, struct error *e)
{
	if (!json_is_integer(j) || json_integer_value(j) < 0)
		return bad(w, e, "tensor %.80s: shape or offset is no whole number from 0", name);
	*out = (uint64_t)json_integer_value(j);
	return 0;
}

static int read_shape(const struct weights *w, struct weights_tensor *t, const json_t *shape, uint64_t *bits,
                      struct error *e)
{
	*bits = weights_type_bits(t->type);
	if (!json_is_array(shape) || json_array_size(shape) > ARRAY_LEN(t->shape))
		return bad(w, e, "tensor %.80s: no shape of at most %zu sides", t->name, ARRAY_LEN(t->shape));
	t->rank = (int)json_array_size(shape);
	for (int i = 0; i < t->rank; i++) {
		uint64_t side = 0;
		if (natural(w, t->name, json_array_get(shape, (size_t)i), &side, e))
			return -1;
		t->shape[i] = (int64_t)side;
		if (__builtin_mul_overflow(*bits, side, bits))
			return bad(w, e, "tensor %.80s: the shape's product overflows", t->name);
	}
	if (*bits % 8)
		return bad(w, e, "tensor %.80s: does not fill whole bytes", t->name);
	return 0;
}

static int read_tensor(const struct weights *w, struct weights_tensor *t, const char *name, const json_t *j,
                       struct error *e)
{
	const char *type = json_string_value(json_object_get(j, "dtype"));
	const json_t *ends = json_object_get(j, "data_offsets");
	uint64_t end = 0, bits;
	*t = (struct weights_tensor){.name = name};
	if (!json_is_object(j) || json_object_size(j) != 3 || !type || !json_is_array(ends) || json_array_size(ends) != 2)
		return bad(w, e, "tensor %.80s: expected dtype, shape and data_offsets", name);
	if (!weights_type_bits(type))
		return bad(w, e, "tensor %.80s: type '%.20s' is unknown", name, type);
	snprintf(t->type, sizeof t->type, "%s", type);
	if (read_shape(w, t, json_object_get(j, "shape"), &bits, e) ||
	    natural(w, name, json_array_get(ends, 0), &t->offset, e) || natural(w, name, json_array_get(ends, 1), &end, e))
		return -1;
	if (end < t->offset || end - t->offset != bits / 8)
		return bad(w, e, "tensor %.80s: holds %lld byte%s, its shape needs %llu", name, (long long)(end - t->offset),
		           plural(end - t->offset), (unsigned long long)(bits / 8));
	t->bytes = bits / 8;
	return 0;
}

static int by_offset(const void *pa, const void *pb)
{
	const struct weights_tensor *a = pa, *b = pb;
	if (a->offset != b->offset)
		return a->offset < b->offset ? -1 : 1;
	if (a->bytes != b->bytes) /* empty ones first */
		return a->bytes < b->bytes ? -1 : 1;
	return strcmp(a->name, b->name);
}

/* Every byte belongs to exactly one tensor: no overlap, no hole, nothing after the end. */
static int check_layout(const struct weights *w, struct error *e)
{
	uint64_t at = 0, room = w->file.size - w->data;
	for (size_t i = 0; i < w->count; i++) {
		const struct weights_tensor *t = &w->tensors[i];
		if (t->offset != at)
			return bad(w, e, "tensor %.80s: begins at %llu, expected %llu (%s)", t->name,
			           (unsigned long long)t->offset, (unsigned long long)at,
			           t->offset < at ? "overlap" : "hole");
		if (t->bytes > room - at)
			return bad(w, e, "is truncated: tensor %.80s ends after the end of the file", t->name);
		at += t->bytes;
	}
	if (at != room)
		return bad(w, e, "has %llu byte%s after the last tensor", (unsigned long long)(room - at), plural(room - at));
	return 0;
}

static int read_tensors(struct weights *w, struct error *e)
{
	const char *name;
	json_t *j;
	w->tensors = mem_alloc(json_object_size(w->header) + 1, sizeof *w->tensors, e);
	if (!w->tensors)
		return -1;
	json_object_foreach(w->header, name, j) {
		if (strcmp(name, "__metadata__") == 0)
			continue;
		if (read_tensor(w, &w->tensors[w->count], name, j, e))
			return -1;
		w->count++;
	}
	qsort(w->tensors, w->count, sizeof *w->tensors, by_offset);
	return check_layout(w, e);
}

/* The JSON object inside metadata string `key`; *out stays NULL when there is none. */
static int meta_object(struct weights *w, const char *key, json_t **out, struct error *e)
{
	const char *text = weights_meta(w, key);
	if (!text)
		return 0;
	*out = parse_object(w, text, strlen(text), key, e);
	return *out ? 0 : -1;
}

static int read_metadata(struct weights *w, struct error *e)
{
	const char *key;
	json_t *value, *m = json_object_get(w->header, "__metadata__");
	if (m && !json_is_object(m))
		return bad(w, e, "__metadata__ is not a JSON object");
	w->metadata = m ? json_incref(m) : json_object();
	if (!w->metadata)
		return fail(e, STATUS_LIMIT, "out of memory");
	json_object_foreach(w->metadata, key, value)
		if (!json_is_string(value))
			return bad(w, e, "__metadata__ %.80s is not a string", key);
	return meta_object(w, "dalle.config", &w->config, e) || meta_object(w, "dalle.checksums", &w->checksums, e) ? -1 : 0;
}

/* ---- identity ---- */

static void hash_text(struct hash *h, const char *s)
{
	hash_add(h, s ? s : "", s ? strlen(s) + 1 : 1);
}

int weights_identify(const char *kind, const char *config, const struct weights_sum *sums, size_t n, char id[ID_LENGTH + 1],
                     struct error *e)
{
	struct hash *h = hash_new(e);
	if (!h)
		return -1;
	hash_text(h, kind);
	hash_text(h, config);
	for (size_t i = 0; i < n; i++) {
		hash_text(h, sums[i].name);
		hash_text(h, sums[i].checksum);
	}
	hash_finish(h, id);
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct weights_sum *)a)->name, ((const struct weights_sum *)b)->name);
}

/* The tensors of the model itself, without those of a training in progress. */
static size_t list_sums(const struct weights *w, struct weights_sum *sums)
{
	size_t n = 0;
	for (size_t i = 0; i < w->count; i++) {
		const char *name = w->tensors[i].name;
		if (strncmp(name, "train.", 6))
			sums[n++] = (struct weights_sum){name, json_string_value(json_object_get(w->checksums, name))};
	}
	qsort(sums, n, sizeof *sums, by_name);
	return n;
}

static int check_identity(const struct weights *w, struct error *e)
{
	char id[ID_LENGTH + 1];
	const char *expected = weights_meta(w, "dalle.id");
	if (!expected)
		return 0;
	struct weights_sum *sums = mem_alloc(w->count + 1, sizeof *sums, e);
	if (!sums)
		return -1;
	size_t n = list_sums(w, sums);
	int r = weights_identify(weights_meta(w, "dalle.kind"), weights_meta(w, "dalle.config"), sums, n, id, e);
	free(sums);
	if (r == 0 && strcmp(id, expected))
		r = bad(w, e, "header is corrupt: kind, config or checksums do not fit the id %.32s", expected);
	return r;
}

int weights_id(const struct weights *w, char id[ID_LENGTH + 1], struct error *e)
{
	const char *told = weights_meta(w, "dalle.id");
	if (told) {
		snprintf(id, ID_LENGTH + 1, "%s", told);
		return 0;
	}
	struct weights_sum *sums = mem_alloc(w->count + 1, sizeof *sums, e);
	char (*hex)[17] = mem_alloc(w->count + 1, sizeof *hex, e);
	size_t n = sums && hex ? list_sums(w, sums) : 0;
	int r = sums && hex ? 0 : -1;
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = weights_verify(w, weights_find(w, sums[i].name), hex[i], e) < 0 ? -1 : 0;
		sums[i].checksum = hex[i];
	}
	if (r == 0)
		r = weights_identify(weights_meta(w, "dalle.kind"), weights_meta(w, "dalle.config"), sums, n, id, e);
	free(sums);
	free(hex);
	return r;
}

static int open_safetensors(struct weights *w, const uint8_t *first, size_t n, struct error *e)
{
	return read_header(w, first, n, e) || read_metadata(w, e) || read_tensors(w, e) || check_identity(w, e) ? -1 : 0;
}

static int open_torch(struct weights *w, struct error *e)
{
	w->metadata = json_object();
	if (!w->metadata)
		return fail(e, STATUS_LIMIT, "out of memory");
	if (torch_read(&w->torch, &w->file, e))
		return -1;
	w->tensors = w->torch.tensors;
	w->count = w->torch.count;
	return 0;
}

static int open_any(struct weights *w, const char *path, struct error *e)
{
	uint8_t first[32];
	if (bytes_open(&w->file, path, "a model file", e))
		return -1;
	size_t n = w->file.size < sizeof first ? (size_t)w->file.size : sizeof first;
	if (bytes_get(&w->file, first, n, 0, e))
		return -1;
	return torch_looks_like(first, n) ? open_torch(w, e) : open_safetensors(w, first, n, e);
}

struct weights *weights_open(const char *path, struct error *e)
{
	struct weights *w = mem_zero(1, sizeof *w, e);
	if (w && open_any(w, path, e)) {
		weights_close(w);
		w = NULL;
	}
	return w;
}

void weights_close(struct weights *w)
{
	if (!w)
		return;
	bytes_close(&w->file);
	json_decref(w->checksums);
	json_decref(w->config);
	json_decref(w->metadata);
	json_decref(w->header);
	if (w->tensors != w->torch.tensors)
		free(w->tensors);
	torch_free(&w->torch);
	free(w);
}

/* ---- access ---- */

const char *weights_path(const struct weights *w)
{
	return w->file.name;
}

const char *weights_meta(const struct weights *w, const char *key)
{
	return json_string_value(json_object_get(w->metadata, key));
}

const json_t *weights_metadata(const struct weights *w)
{
	return w->metadata;
}

json_t *weights_config(const struct weights *w)
{
	return w->config;
}

uint64_t weights_bytes(const struct weights *w)
{
	return w->file.size;
}

size_t weights_count(const struct weights *w)
{
	return w->count;
}

const struct weights_tensor *weights_at(const struct weights *w, size_t i)
{
	return &w->tensors[i];
}

const struct weights_tensor *weights_find(const struct weights *w, const char *name)
{
	for (size_t i = 0; i < w->count; i++)
		if (strcmp(w->tensors[i].name, name) == 0)
			return &w->tensors[i];
	return NULL;
}

int weights_need_kind(const struct weights *w, const char *kind, struct error *e)
{
	const char *k = weights_meta(w, "dalle.kind");
	if (!k)
		return bad(w, e, "is a model file of another program, expected a %s model", kind);
	if (strcmp(k, kind))
		return bad(w, e, "is a %.40s model, expected a %s model", k, kind);
	return 0;
}

/* ---- tensors ---- */

static double f64_at(const uint8_t *p)
{
	double x;
	memcpy(&x, p, sizeof x);
	return x;
}

/* n elements at p of this type. */
static void convert(float *out, const uint8_t *p, const char *type, size_t n)
{
	if (strcmp(type, "F32") == 0)
		memcpy(out, p, 4 * n);
	else if (strcmp(type, "F64") == 0)
		for (size_t i = 0; i < n; i++)
			out[i] = (float)f64_at(p + 8 * i);
	else
		row_to_f32(out, p, strcmp(type, "BF16") == 0 ? DT_BF16 : DT_F16, n);
}

/* What a pass over a tensor's bytes leaves behind; each may be NULL. */
struct pass {
	float *values;
	uint8_t *raw;
	XXH3_state_t *state;
};

static int pass_over(const struct weights_tensor *t, struct pass *p, uint64_t at, const uint8_t *chunk, size_t n,
                     struct error *e)
{
	if (p->values)
		convert(p->values + at / (weights_type_bits(t->type) / 8), chunk, t->type, n / (weights_type_bits(t->type) / 8));
	if (p->raw)
		memcpy(p->raw + at, chunk, n);
	return XXH3_64bits_update(p->state, chunk, n) == XXH_OK ? 0 : fail(e, STATUS_FAIL, "cannot hash");
}

/* Element after element into row-major order. */
static void gather(uint8_t *out, const uint8_t *span, const struct weights_tensor *t, size_t size)
{
	int64_t index[8] = {0}, at = 0;
	for (size_t i = 0; i < t->bytes / size; i++) {
		memcpy(out + i * size, span + (size_t)at * size, size);
		for (int k = t->rank - 1; k >= 0; k--) {
			at += t->stride[k];
			if (++index[k] < t->shape[k])
				break;
			at -= index[k] * t->stride[k];
			index[k] = 0;
		}
	}
}

static int pass_strided(const struct weights *w, const struct weights_tensor *t, struct pass *p, struct error *e)
{
	size_t size = weights_type_bits(t->type) / 8, last = 0;
	for (int i = 0; i < t->rank; i++)
		last += (size_t)(t->shape[i] - 1) * (size_t)t->stride[i]; /* torch_read checked that this is in the file */
	size_t bytes = (last + 1) * size;
	uint8_t *span = mem_alloc(bytes, 1, e), *out = mem_alloc((size_t)t->bytes, 1, e);
	int r = span && out ? bytes_get(&w->file, span, bytes, w->data + t->offset, e) : -1;
	if (r == 0) {
		gather(out, span, t, size);
		r = pass_over(t, p, 0, out, (size_t)t->bytes, e);
	}
	free(span);
	free(out);
	return r;
}

static int pass_plain(const struct weights *w, const struct weights_tensor *t, struct pass *p, struct error *e)
{
	uint8_t *chunk = mem_alloc(CHUNK, 1, e);
	int r = chunk ? 0 : -1;
	for (uint64_t at = 0; r == 0 && at < t->bytes; at += CHUNK) {
		size_t n = t->bytes - at < CHUNK ? (size_t)(t->bytes - at) : CHUNK;
		r = bytes_get(&w->file, chunk, n, w->data + t->offset + at, e);
		if (r == 0)
			r = pass_over(t, p, at, chunk, n, e);
	}
	free(chunk);
	return r;
}

/* Pass over the tensor's bytes: hash them, convert or copy them when asked to. */
static int scan(const struct weights *w, const struct weights_tensor *t, float *values, uint8_t *raw, char hex[17],
                struct error *e)
{
	struct pass p = {values, raw, XXH3_createState()};
	int r = p.state && XXH3_64bits_reset(p.state) == XXH_OK ? 0 : fail(e, STATUS_LIMIT, "out of memory");
	if (r == 0)
		r = t->strided ? pass_strided(w, t, &p, e) : pass_plain(w, t, &p, e);
	if (r == 0)
		snprintf(hex, 17, "%016llx", (unsigned long long)XXH3_64bits_digest(p.state));
	XXH3_freeState(p.state);
	return r;
}

static int compare(const struct weights *w, const struct weights_tensor *t, const char *hex, struct error *e)
{
	const struct weights_storage *s = &t->storage;
	if (s->has_crc)
		return zip_check(&w->file, s->at, s->bytes, s->crc, t->name, e) ? -1 : 1;
	const char *expected = json_string_value(json_object_get(w->checksums, t->name));
	if (!expected)
		return 0;
	if (strcmp(expected, hex))
		return bad(w, e, "tensor %.80s: is corrupt (checksum %s, expected %.16s)", t->name, hex, expected);
	return 1;
}

int weights_verify(const struct weights *w, const struct weights_tensor *t, char hex[17], struct error *e)
{
	char own[17];
	if (scan(w, t, NULL, NULL, own, e))
		return -1;
	if (hex)
		memcpy(hex, own, sizeof own);
	return compare(w, t, own, e);
}

int weights_read(const struct weights *w, const struct weights_tensor *t, float *out, struct error *e)
{
	static const char *const readable[] = {"F32", "F16", "BF16", "F64"};
	bool ok = false;
	char hex[17];
	for (size_t i = 0; i < ARRAY_LEN(readable); i++)
		ok = ok || strcmp(t->type, readable[i]) == 0;
	if (!ok)
		return bad(w, e, "tensor %.80s: is of type %s, expected F32, F16, BF16 or F64", t->name, t->type);
	if (scan(w, t, out, NULL, hex, e))
		return -1;
	return compare(w, t, hex, e) < 0 ? -1 : 0;
}

int weights_read_raw(const struct weights *w, const struct weights_tensor *t, void *out, struct error *e)
{
	char hex[17];
	if (scan(w, t, NULL, out, hex, e))
		return -1;
	return compare(w, t, hex, e) < 0 ? -1 : 0;
}
