/* torch-file.c - see torch-file.h. */
#include "torch-file.h"

#include <stdlib.h>
#include <string.h>

#include "pickle.h"
#include "zip.h"

enum {
	PICKLE_LIMIT = 1 << 24, /* read for pickles at most: 16 MiB */
	MAX_DEPTH = 64,         /* of modules and dictionaries inside one another */
	MAX_NAME = 120,
	MAX_TENSORS = 1 << 16,
	MAX_STEPS = 1 << 24,    /* of a walk: a small graph can have very many paths */
};
/* Views may share storages, but what they hold in all stays within this many times the file. */
#define MAX_SHARING 16

/* ---- what a pickle may name ---- */

static const struct storage_type {
	const char *name, *type; /* of weights.h */
	uint64_t bytes;
} storage_types[] = {
	{"torch.FloatStorage", "F32", 4}, {"torch.HalfStorage", "F16", 2}, {"torch.BFloat16Storage", "BF16", 2},
	{"torch.DoubleStorage", "F64", 8}, {"torch.LongStorage", "I64", 8}, {"torch.IntStorage", "I32", 4},
	{"torch.ShortStorage", "I16", 2}, {"torch.CharStorage", "I8", 1}, {"torch.ByteStorage", "U8", 1},
	{"torch.BoolStorage", "BOOL", 1},
};

#define ORDERED_DICT "collections.OrderedDict"
#define REBUILD_TENSOR "torch._utils._rebuild_tensor_v2"
#define REBUILD_PARAMETER "torch._utils._rebuild_parameter"
#define MODULE "torch.nn.modules"

static const struct storage_type *find_storage_type(const struct pickle_value *v)
{
	for (size_t i = 0; v->kind == PICKLE_GLOBAL && i < ARRAY_LEN(storage_types); i++)
		if (strcmp(v->text, storage_types[i].name) == 0)
			return &storage_types[i];
	return NULL;
}

/* Modules are shells around their tensors: which class they are of does not matter. */
static const char *known(const char *name)
{
	static const char *const plain[] = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, "__builtin__.set",
	                                    "builtins.set", "torch.device", "torch.Size"};
	static const char *const modules[] = {"dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock",
	                                      "dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock",
	                                      "dall_e.utils.Conv2d"};
	for (size_t i = 0; i < ARRAY_LEN(plain); i++)
		if (strcmp(name, plain[i]) == 0)
			return plain[i];
	for (size_t i = 0; i < ARRAY_LEN(storage_types); i++)
		if (strcmp(name, storage_types[i].name) == 0)
			return storage_types[i].name;
	for (size_t i = 0; i < ARRAY_LEN(modules); i++)
		if (strcmp(name, modules[i]) == 0)
			return MODULE;
	return strncmp(name, MODULE ".", sizeof MODULE) == 0 ? MODULE : NULL;
}

/* ---- storages ---- */

struct torch_storage {
	const char *key; /* within the pickle */
	size_t key_n;
	const struct storage_type *type;
	uint64_t elements;
	struct weights_storage place;
	bool located;
};

/* A file being read. */
struct reading {
	struct torch_file *out;
	const struct file_bytes *bytes;
	struct error *e;
	struct torch_storage *storages; /* by key */
	size_t storage_n, storage_cap;
	char name[MAX_NAME + 1];  /* of what is walked now */
	size_t name_n;
	int64_t steps;
	uint64_t held;            /* bytes of all tensors so far */
};

static int bad(const struct reading *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int bad(const struct reading *r, const char *fmt, ...)
{
	char text[300];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return fail(r->e, STATUS_BAD, "%s: %s", r->bytes->name, text);
}

/* Persistent ids: ("storage", type, key, where it was, elements[, view]), and in old files ("module", class, ...). */
static bool is_storage(const struct pickle_value *id)
{
	return id->kind == PICKLE_TUPLE && id->n >= 5 && pickle_is(id->item[0], "storage");
}

static int collect_storage(void *arg, const struct pickle_value *v)
{
	struct reading *r = arg;
	if (v->kind != PICKLE_OUTSIDE || !is_storage(v->arguments))
		return 0;
	struct pickle_value **id = v->arguments->item;
	const struct storage_type *type = find_storage_type(id[1]);
	if (!type || id[2]->kind != PICKLE_TEXT || id[4]->kind != PICKLE_INT || id[4]->integer < 0)
		return bad(r, "a storage without a known type, key and size");
	if (v->arguments->n > 5 && id[5]->kind != PICKLE_NONE)
		return bad(r, "a storage that is a view of another one, which is not supported");
	if (ARRAY_ROOM(r->storages, r->storage_n + 1, &r->storage_cap, r->e))
		return -1;
	r->storages[r->storage_n++] = (struct torch_storage){.key = id[2]->text, .key_n = id[2]->n, .type = type,
	                                               .elements = (uint64_t)id[4]->integer};
	return 0;
}

static int by_key(const void *pa, const void *pb)
{
	const struct torch_storage *a = pa, *b = pb;
	if (a->key_n != b->key_n)
		return a->key_n < b->key_n ? -1 : 1;
	return memcmp(a->key, b->key, a->key_n);
}

/* Each storage once, whatever number of tensors name it. */
static int collect_storages(struct reading *r, const struct pickle *p)
{
	if (pickle_each(p, collect_storage, r))
		return -1;
	if (r->storage_n == 0)
		return bad(r, "holds no tensors");
	qsort(r->storages, r->storage_n, sizeof *r->storages, by_key);
	size_t n = 1;
	for (size_t i = 1; i < r->storage_n; i++) {
		struct torch_storage *last = &r->storages[n - 1], *s = &r->storages[i];
		if (by_key(last, s))
			r->storages[n++] = *s;
		else if (last->type != s->type || last->elements != s->elements)
			return bad(r, "storage %.*s: has two types or sizes", (int)(s->key_n < 40 ? s->key_n : 40), s->key);
	}
	r->storage_n = n;
	return 0;
}

static struct torch_storage *find_storage(const struct reading *r, const struct pickle_value *key)
{
	struct torch_storage wanted = {.key = key->text, .key_n = key->n};
	if (key->kind != PICKLE_TEXT || !r->storage_n)
		return NULL;
	return bsearch(&wanted, r->storages, r->storage_n, sizeof wanted, by_key);
}

/* ---- tensors ---- */

static int add_tensor(struct reading *r, const struct weights_tensor *t)
{
	struct torch_file *out = r->out;
	if (out->count == MAX_TENSORS)
		return bad(r, "holds more than %d tensors", MAX_TENSORS);
	if (ARRAY_ROOM(out->tensors, out->count + 1, &out->cap, r->e))
		return -1;
	char *name = mem_string(*r->name ? r->name : "tensor", r->e);
	if (!name)
		return -1;
	out->tensors[out->count] = *t;
	out->tensors[out->count++].name = name;
	return 0;
}

/* Shape and strides, and how many elements of the storage lie from the first to the last one of the tensor. */
static int read_view(struct reading *r, struct weights_tensor *t, const struct pickle_value *shape,
                     const struct pickle_value *stride, uint64_t *elements, uint64_t *span)
{
	if (shape->kind != PICKLE_TUPLE || stride->kind != PICKLE_TUPLE || shape->n != stride->n ||
	    shape->n > ARRAY_LEN(t->shape))
		return bad(r, "tensor %s: no shape and strides of at most %zu sides", r->name, ARRAY_LEN(t->shape));
	t->rank = (int)shape->n;
	*elements = 1;
	*span = 1;
	for (size_t i = 0; i < shape->n; i++) {
		const struct pickle_value *n = shape->item[i], *step = stride->item[i];
		if (n->kind != PICKLE_INT || step->kind != PICKLE_INT || n->integer < 0 || step->integer < 0)
			return bad(r, "tensor %s: shape or stride is no whole number from 0", r->name);
		t->shape[i] = n->integer;
		t->stride[i] = step->integer;
		uint64_t reach = 0;
		if (__builtin_mul_overflow(*elements, (uint64_t)n->integer, elements) ||
		    (n->integer && (__builtin_mul_overflow((uint64_t)n->integer - 1, (uint64_t)step->integer, &reach) ||
		                    __builtin_add_overflow(*span, reach, span))))
			return bad(r, "tensor %s: the shape's product overflows", r->name);
	}
	if (*elements == 0)
		*span = 0;
	return 0;
}

static bool is_strided(const struct weights_tensor *t)
{
	int64_t step = 1;
	for (int i = t->rank - 1; i >= 0; i--) {
		if (t->shape[i] != 1 && t->stride[i] != step)
			return true;
		step *= t->shape[i];
	}
	return false;
}

/* Arguments of REBUILD_TENSOR: storage, offset, shape, strides, ... */
static int read_tensor(struct reading *r, const struct pickle_value *arguments)
{
	struct weights_tensor t = {0};
	uint64_t elements = 0, span = 0;
	struct pickle_value **item = arguments->item;
	if (arguments->n < 4 || item[0]->kind != PICKLE_OUTSIDE || !is_storage(item[0]->arguments) ||
	    item[1]->kind != PICKLE_INT || item[1]->integer < 0)
		return bad(r, "tensor %s: expected a storage, an offset, a shape and strides", r->name);
	const struct torch_storage *s = find_storage(r, item[0]->arguments->item[2]);
	if (!s || !s->located)
		return bad(r, "tensor %s: its storage is missing", r->name);
	uint64_t offset = (uint64_t)item[1]->integer;
	if (read_view(r, &t, item[2], item[3], &elements, &span))
		return -1;
	/* Repeated elements (stride 0) would let a small file ask for any amount of memory. */
	if (offset > s->elements || span > s->elements - offset || elements > s->elements)
		return bad(r, "tensor %s: reaches beyond its storage of %llu elements", r->name, (unsigned long long)s->elements);
	snprintf(t.type, sizeof t.type, "%s", s->type->type);
	t.strided = elements && is_strided(&t);
	t.offset = s->place.at + offset * s->type->bytes;
	t.bytes = elements * s->type->bytes;
	t.storage = s->place;
	r->held += (span > elements ? span : elements) * s->type->bytes;
	if (r->held / MAX_SHARING > r->bytes->size)
		return bad(r, "its tensors hold more than %d times the file", MAX_SHARING);
	return add_tensor(r, &t);
}

/* ---- walking ---- */

/* name.key, and back again by setting name_n. */
static int enter(struct reading *r, const struct pickle_value *key)
{
	char number[24];
	const char *text = key->text;
	size_t n = key->n;
	if (key->kind == PICKLE_INT) {
		n = (size_t)snprintf(number, sizeof number, "%lld", (long long)key->integer);
		text = number;
	} else if (key->kind != PICKLE_TEXT || n == 0 || memchr(text, 0, n)) {
		return bad(r, "%s: a key that is no name", *r->name ? r->name : "the outermost dictionary");
	}
	size_t dot = r->name_n > 0;
	if (n + dot > MAX_NAME - r->name_n)
		return bad(r, "%s...: a tensor's name is longer than %d characters", r->name, MAX_NAME);
	if (dot)
		r->name[r->name_n++] = '.';
	memcpy(r->name + r->name_n, text, n);
	r->name_n += n;
	r->name[r->name_n] = 0;
	return 0;
}

static int walk(struct reading *r, const struct pickle_value *v, int depth);

/* Pairs of a dictionary that hold something to walk. */
static int walk_pairs(struct reading *r, const struct pickle_value *v, int depth)
{
	for (size_t i = 0; i + 1 < v->n; i += 2) {
		size_t back = r->name_n;
		const struct pickle_value *value = v->item[i + 1];
		if (++r->steps > MAX_STEPS)
			return bad(r, "its dictionaries have more than %d paths", MAX_STEPS);
		if (value->kind != PICKLE_DICT && value->kind != PICKLE_CALL)
			continue;
		if (enter(r, v->item[i]) || walk(r, value, depth + 1))
			return -1;
		r->name_n = back;
		r->name[back] = 0;
	}
	return 0;
}

static int walk_module(struct reading *r, const struct pickle_value *v, int depth)
{
	static const char *const parts[] = {"_parameters", "_buffers", "_modules"};
	const struct pickle_value *state = v->state;
	for (size_t i = 0; state && state->kind == PICKLE_DICT && i + 1 < state->n; i += 2)
		for (size_t k = 0; k < ARRAY_LEN(parts); k++) {
			const struct pickle_value *part = state->item[i + 1];
			bool holds = part->kind == PICKLE_DICT || part->kind == PICKLE_CALL;
			if (++r->steps > MAX_STEPS)
				return bad(r, "its modules have more than %d paths", MAX_STEPS);
			if (holds && pickle_is(state->item[i], parts[k]) && walk_pairs(r, part, depth))
				return -1;
		}
	return 0;
}

/* The class of an old container stands in its persistent id. */
static const char *callee_name(const struct pickle_value *callee)
{
	if (callee->kind == PICKLE_GLOBAL)
		return callee->text;
	const struct pickle_value *id = callee->arguments;
	bool module = id->kind == PICKLE_TUPLE && id->n >= 2 && pickle_is(id->item[0], "module");
	return module && id->item[1]->kind == PICKLE_GLOBAL ? id->item[1]->text : "";
}

static int walk_call(struct reading *r, const struct pickle_value *v, int depth)
{
	const char *name = callee_name(v->callee);
	const struct pickle_value *arguments = v->arguments;
	if (strcmp(name, REBUILD_TENSOR) == 0)
		return read_tensor(r, arguments);
	if (strcmp(name, REBUILD_PARAMETER) == 0) /* data, ... */
		return arguments->n ? walk(r, arguments->item[0], depth + 1) : 0;
	if (strcmp(name, ORDERED_DICT) == 0)
		return walk_pairs(r, v, depth);
	return strcmp(name, MODULE) == 0 ? walk_module(r, v, depth) : 0;
}

static int walk(struct reading *r, const struct pickle_value *v, int depth)
{
	if (depth > MAX_DEPTH)
		return bad(r, "%.60s...: more than %d dictionaries inside one another", r->name, MAX_DEPTH);
	if (v->kind == PICKLE_DICT)
		return walk_pairs(r, v, depth);
	return v->kind == PICKLE_CALL ? walk_call(r, v, depth) : 0;
}

/* ---- names ---- */

/* The published halves: the first convolution of a residual block is 3x3 in the encoder, 1x1 in the decoder (B3, B4). */
static int name_half(struct reading *r)
{
	static const char first[] = "blocks.group_1.block_1.res_path.conv_1.w";
	const char *half = NULL;
	for (size_t i = 0; i < r->out->count; i++) {
		const struct weights_tensor *t = &r->out->tensors[i];
		if (strcmp(t->name, first) == 0 && t->rank == 4)
			half = t->shape[3] == 1 ? "decoder." : "encoder.";
	}
	for (size_t i = 0; half && i < r->out->count; i++) {
		struct weights_tensor *t = &r->out->tensors[i];
		char full[MAX_NAME + 16];
		if (strncmp(t->name, "blocks.", 7))
			continue;
		snprintf(full, sizeof full, "%s%s", half, t->name);
		char *name = mem_string(full, r->e);
		if (!name)
			return -1;
		free((char *)(uintptr_t)t->name);
		t->name = name;
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct weights_tensor *)a)->name, ((const struct weights_tensor *)b)->name);
}

static int finish_names(struct reading *r)
{
	struct torch_file *out = r->out;
	if (out->count == 0)
		return bad(r, "holds no tensors");
	if (name_half(r))
		return -1;
	qsort(out->tensors, out->count, sizeof *out->tensors, by_name);
	for (size_t i = 1; i < out->count; i++)
		if (strcmp(out->tensors[i - 1].name, out->tensors[i].name) == 0)
			return bad(r, "tensor %s: stands twice", out->tensors[i].name);
	return 0;
}

/* ---- the zip container: NAME/data.pkl, NAME/data/KEY, ... ---- */

static const struct zip_entry *find_pickle(const struct zip *z)
{
	for (size_t i = 0; i < z->count; i++) {
		const char *slash = strchr(z->entries[i].name, '/');
		if (slash && strcmp(slash, "/data.pkl") == 0)
			return &z->entries[i];
	}
	return NULL;
}

/* Bytes of a small entry, checked. */
static int read_entry(const struct zip *z, const struct zip_entry *entry, struct buf *out, struct error *e)
{
	uint64_t at;
	if (zip_locate(z, entry, &at, e) || zip_check(z->bytes, at, entry->size, entry->crc, entry->name, e))
		return -1;
	if (entry->size > PICKLE_LIMIT)
		return fail(e, STATUS_LIMIT, "%s: %.100s of %llu bytes, expected at most %d", z->bytes->name, entry->name,
		            (unsigned long long)entry->size, PICKLE_LIMIT);
	if (buf_reserve(out, (size_t)entry->size, e))
		return -1;
	out->n = (size_t)entry->size;
	return bytes_get(z->bytes, out->p, out->n, at, e);
}

static int locate_in_zip(struct reading *r, const struct zip *z, struct torch_storage *s, const char *folder,
                         size_t folder_n)
{
	char name[256];
	uint64_t at, bytes;
	if (folder_n + s->key_n + 8 > sizeof name || memchr(s->key, 0, s->key_n))
		return bad(r, "a storage's key is too long");
	snprintf(name, sizeof name, "%.*s/data/%.*s", (int)folder_n, folder, (int)s->key_n, s->key);
	const struct zip_entry *entry = zip_find(z, name);
	if (!entry)
		return bad(r, "storage %s: is missing", name);
	if (__builtin_mul_overflow(s->elements, s->type->bytes, &bytes) || bytes != entry->size)
		return bad(r, "storage %s: has %llu byte%s, expected %llu element%s of %llu", name, (unsigned long long)entry->size,
		           plural(entry->size), (unsigned long long)s->elements, plural(s->elements), (unsigned long long)s->type->bytes);
	if (zip_locate(z, entry, &at, r->e))
		return -1;
	s->place = (struct weights_storage){.at = at, .bytes = bytes, .crc = entry->crc, .has_crc = true};
	s->located = true;
	return 0;
}

/* Newer files say how their numbers lie. */
static int check_byte_order(struct reading *r, const struct zip *z, const char *folder, size_t folder_n)
{
	char name[256];
	struct buf order = {0};
	snprintf(name, sizeof name, "%.*s/byteorder", (int)folder_n, folder);
	const struct zip_entry *entry = zip_find(z, name);
	if (!entry)
		return 0;
	int s = read_entry(z, entry, &order, r->e);
	if (s == 0 && (order.n != 6 || memcmp(order.p, "little", 6)))
		s = bad(r, "its numbers are not little-endian");
	buf_free(&order);
	return s;
}

static int read_from_zip(struct reading *r, const struct zip *z, const struct zip_entry *entry, struct buf *text,
                         struct pickle *p)
{
	size_t folder_n = (size_t)(strchr(entry->name, '/') - entry->name);
	if (folder_n > 200)
		return bad(r, "its folder's name is too long");
	if (check_byte_order(r, z, entry->name, folder_n) || read_entry(z, entry, text, r->e) ||
	    pickle_read(p, text->p, text->n, r->bytes->name, known, r->e) || collect_storages(r, p))
		return -1;
	for (size_t i = 0; i < r->storage_n; i++)
		if (locate_in_zip(r, z, &r->storages[i], entry->name, folder_n))
			return -1;
	return walk(r, p->root, 0);
}

static int read_zip(struct reading *r)
{
	struct zip z;
	struct buf text = {0};
	struct pickle p = {0};
	int s = zip_open(&z, r->bytes, r->e);
	const struct zip_entry *entry = s == 0 ? find_pickle(&z) : NULL;
	if (s == 0 && !entry)
		s = bad(r, "is a zip archive without data.pkl, expected one of torch.save");
	if (s == 0)
		s = read_from_zip(r, &z, entry, &text, &p);
	pickle_free(&p);
	buf_free(&text);
	zip_free(&z);
	return s;
}

/* ---- the old container: pickles of magic, version, machine, object and keys; then per key its size and elements ---- */

enum { OLD_MAGIC, OLD_VERSION, OLD_MACHINE, OLD_OBJECT, OLD_KEYS, OLD_PICKLES };
static const uint8_t old_magic[] = "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

static int check_machine(struct reading *r, const struct pickle *p)
{
	if (p[OLD_VERSION].root->kind != PICKLE_INT || p[OLD_VERSION].root->integer != 1001)
		return bad(r, "is an old PyTorch file of another version than 1001");
	const struct pickle_value *machine = p[OLD_MACHINE].root;
	for (size_t i = 0; machine->kind == PICKLE_DICT && i + 1 < machine->n; i += 2) {
		const struct pickle_value *v = machine->item[i + 1];
		if (pickle_is(machine->item[i], "little_endian"))
			return v->kind == PICKLE_BOOL && v->integer ? 0 : bad(r, "its numbers are not little-endian");
	}
	return bad(r, "is an old PyTorch file that does not say how its numbers lie");
}

static int locate_old(struct reading *r, const struct pickle_value *key, uint64_t *at)
{
	struct torch_storage *s = find_storage(r, key);
	uint8_t p[8];
	uint64_t bytes;
	if (!s || s->located)
		return bad(r, "a storage that no tensor uses, or that stands twice");
	if (bytes_get(r->bytes, p, sizeof p, *at, r->e))
		return -1;
	uint64_t elements = get_le(p, sizeof p);
	if (elements != s->elements || __builtin_mul_overflow(elements, s->type->bytes, &bytes))
		return bad(r, "storage %.*s: has %llu element%s, expected %llu", (int)(s->key_n < 40 ? s->key_n : 40), s->key,
		           (unsigned long long)elements, plural(elements), (unsigned long long)s->elements);
	*at += 8;
	if (bytes > r->bytes->size - *at)
		return bad(r, "is truncated: %llu byte%s, expected at least %llu more", (unsigned long long)r->bytes->size,
		           plural(r->bytes->size),
		           (unsigned long long)(bytes - (r->bytes->size - *at)));
	s->place = (struct weights_storage){.at = *at, .bytes = bytes};
	s->located = true;
	*at += bytes;
	return 0;
}

static int read_pickles(struct reading *r, const struct buf *text, struct pickle *p)
{
	uint64_t at = 0;
	for (int i = 0; i < OLD_PICKLES; i++) {
		if (pickle_read(&p[i], text->p + at, text->n - at, r->bytes->name, known, r->e))
			return -1;
		at += p[i].used;
	}
	const struct pickle_value *keys = p[OLD_KEYS].root;
	if (check_machine(r, p) || collect_storages(r, &p[OLD_OBJECT]))
		return -1;
	if (keys->kind != PICKLE_LIST)
		return bad(r, "has no list of storages");
	for (size_t i = 0; i < keys->n; i++)
		if (locate_old(r, keys->item[i], &at))
			return -1;
	if (at != r->bytes->size)
		return bad(r, "has %llu byte%s after the last storage", (unsigned long long)(r->bytes->size - at),
		           plural(r->bytes->size - at));
	return walk(r, p[OLD_OBJECT].root, 0);
}

static int read_old(struct reading *r)
{
	struct pickle p[OLD_PICKLES] = {{0}};
	struct buf text = {0};
	size_t n = r->bytes->size < PICKLE_LIMIT ? (size_t)r->bytes->size : PICKLE_LIMIT;
	int s = buf_reserve(&text, n, r->e);
	if (s == 0)
		s = bytes_get(r->bytes, text.p, text.n = n, 0, r->e);
	if (s == 0)
		s = read_pickles(r, &text, p);
	for (int i = 0; i < OLD_PICKLES; i++)
		pickle_free(&p[i]);
	buf_free(&text);
	return s;
}

/* ---- both ---- */

static bool is_old(const uint8_t *p, size_t n)
{
	return n >= sizeof old_magic - 1 && memcmp(p, old_magic, sizeof old_magic - 1) == 0;
}

bool torch_looks_like(const uint8_t *p, size_t n)
{
	return zip_looks_like(p, n) || is_old(p, n);
}

int torch_read(struct torch_file *t, const struct file_bytes *bytes, struct error *e)
{
	struct reading r = {.out = t, .bytes = bytes, .e = e};
	uint8_t first[4] = {0};
	*t = (struct torch_file){0};
	int s = bytes_get(bytes, first, bytes->size < sizeof first ? (size_t)bytes->size : sizeof first, 0, e);
	if (s == 0)
		s = zip_looks_like(first, sizeof first) ? read_zip(&r) : read_old(&r);
	if (s == 0)
		s = finish_names(&r);
	free(r.storages);
	return s;
}

void torch_free(struct torch_file *t)
{
	for (size_t i = 0; i < t->count; i++)
		free((char *)(uintptr_t)t->tensors[i].name);
	free(t->tensors);
	*t = (struct torch_file){0};
}
