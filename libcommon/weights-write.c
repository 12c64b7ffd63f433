/* weights-write.c - writing the file of weights.h: safetensors with our metadata, checksums and, for models of ours,
 * their identity. */
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "weights.h"

struct writing {
	const char *path; /* for messages */
	struct weights_entry *entries;
	size_t count;
	weights_fetch *fetch;
	void *arg;
};

/* Types of larger elements first, so that each begins at a multiple of its size; then by name. */
static int by_place(const void *pa, const void *pb)
{
	const struct weights_entry *a = pa, *b = pb;
	unsigned x = weights_type_bits(a->type), y = weights_type_bits(b->type);
	return x != y ? (x > y ? -1 : 1) : strcmp(a->name, b->name);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct weights_sum *)a)->name, ((const struct weights_sum *)b)->name);
}

/* Names with their checksums, by name; the caller frees.  Two equal names would make a file that no reader takes. */
static struct weights_sum *list_sums(const struct writing *w, struct error *e)
{
	struct weights_sum *sums = mem_alloc(w->count + 1, sizeof *sums, e);
	if (!sums)
		return NULL;
	for (size_t i = 0; i < w->count; i++)
		sums[i] = (struct weights_sum){w->entries[i].name, w->entries[i].hex};
	qsort(sums, w->count, sizeof *sums, by_name);
	for (size_t i = 1; i < w->count; i++)
		if (strcmp(sums[i - 1].name, sums[i].name) == 0) {
			fail(e, STATUS_BAD, "%s: tensor %s would be written twice", w->path, sums[i].name);
			free(sums);
			return NULL;
		}
	return sums;
}

static int hash_entries(struct writing *w, struct error *e)
{
	for (size_t i = 0; i < w->count; i++) {
		struct weights_entry *t = &w->entries[i];
		const void *x = w->fetch(w->arg, t, e);
		if (!x)
			return -1;
		snprintf(t->hex, sizeof t->hex, "%016llx", (unsigned long long)hash64(x, (size_t)t->bytes));
	}
	return 0;
}

/* The model's identity: of the tensors that a reader of the model uses. */
static int identify(const json_t *meta, const struct weights_sum *sums, size_t n, char id[ID_LENGTH + 1], struct error *e)
{
	struct weights_sum *used = mem_alloc(n + 1, sizeof *used, e);
	size_t count = 0;
	if (!used)
		return -1;
	for (size_t i = 0; i < n; i++)
		if (strncmp(sums[i].name, "train.", 6))
			used[count++] = sums[i];
	int r = weights_identify(json_string_value(json_object_get(meta, "dalle.kind")),
	                         json_string_value(json_object_get(meta, "dalle.config")), used, count, id, e);
	free(used);
	return r;
}

static json_t *checksums(const struct weights_sum *sums, size_t n)
{
	json_t *j = json_object();
	for (size_t i = 0; i < n; i++)
		if (json_object_set_new(j, sums[i].name, json_string(sums[i].checksum))) {
			json_decref(j);
			return NULL;
		}
	return j;
}

/* meta with the identity (when there is one) and the checksums; NULL when out of memory. */
static json_t *full_metadata(json_t *meta, const struct weights_sum *sums, size_t n, const char *id)
{
	json_t *list = checksums(sums, n), *m = json_copy(meta);
	char *text = list ? json_dumps(list, JSON_COMPACT) : NULL;
	bool ok = m && text && (!*id || json_object_set_new(m, "dalle.id", json_string(id)) == 0) &&
	          json_object_set_new(m, "dalle.checksums", json_string(text)) == 0;
	free(text);
	json_decref(list);
	if (ok)
		return m;
	json_decref(m);
	return NULL;
}

static json_t *tensor_json(const struct weights_entry *t, uint64_t begin)
{
	json_t *shape = json_array();
	for (int i = 0; i < t->rank; i++)
		json_array_append_new(shape, json_integer(t->shape[i]));
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->type, "shape", shape, "data_offsets", (json_int_t)begin,
	                 (json_int_t)(begin + t->bytes));
}

/* The header text, padded with spaces so that the data begins at a multiple of 8.  Takes metadata m. */
static int header_text(const struct writing *w, json_t *m, struct buf *out, struct error *e)
{
	json_t *h = json_object();
	uint64_t at = 0;
	bool ok = h && m && json_object_set_new(h, "__metadata__", m) == 0;
	for (size_t i = 0; ok && i < w->count; i++) {
		ok = json_object_set_new(h, w->entries[i].name, tensor_json(&w->entries[i], at)) == 0;
		at += w->entries[i].bytes;
	}
	char *text = ok ? json_dumps(h, JSON_COMPACT) : NULL;
	json_decref(h);
	int r = text ? buf_add(out, text, strlen(text), e)
	             : fail(e, STATUS_FAIL, "%s: cannot write the header: no memory, or a name that is no UTF-8", w->path);
	free(text);
	while (r == 0 && out->n % 8)
		r = buf_add(out, " ", 1, e);
	return r;
}

static int make_header(const struct writing *w, json_t *meta, struct buf *header, char id[ID_LENGTH + 1], struct error *e)
{
	struct weights_sum *sums = list_sums(w, e);
	id[0] = 0;
	int r = sums ? 0 : -1;
	if (r == 0 && json_object_get(meta, "dalle.kind"))
		r = identify(meta, sums, w->count, id, e);
	if (r == 0)
		r = header_text(w, full_metadata(meta, sums, w->count, id), header, e);
	free(sums);
	return r;
}

static int write_all(struct writing *w, const struct buf *header, struct outfile *f, struct error *e)
{
	uint8_t length[8];
	for (int i = 0; i < 8; i++)
		length[i] = (uint8_t)((uint64_t)header->n >> (8 * i));
	if (write_full(f->fd, length, sizeof length, f->path, e) || write_full(f->fd, header->p, header->n, f->path, e))
		return -1;
	for (size_t i = 0; i < w->count; i++) {
		const void *x = w->fetch(w->arg, &w->entries[i], e);
		if (!x || write_full(f->fd, x, (size_t)w->entries[i].bytes, f->path, e))
			return -1;
	}
	return 0;
}

static int write_parts(struct writing *w, const char *path, const struct buf *header, struct error *e)
{
	struct outfile f;
	if (outfile_open(&f, path, e))
		return -1;
	if (write_all(w, header, &f, e)) {
		outfile_abort(&f);
		return -1;
	}
	return outfile_commit(&f, e);
}

int weights_write(const char *path, json_t *meta, struct weights_entry *entries, size_t n, weights_fetch *fetch, void *arg,
                  char id_out[ID_LENGTH + 1], struct error *e)
{
	struct writing w = {path ? path : "stdout", entries, n, fetch, arg};
	struct buf header = {0};
	char id[ID_LENGTH + 1];
	qsort(entries, n, sizeof *entries, by_place);
	/* The checksums stand before the data, so the values are fetched twice: first to hash, then to write. */
	int r = hash_entries(&w, e) || make_header(&w, meta, &header, id, e) || write_parts(&w, path, &header, e);
	if (r == 0 && id_out)
		memcpy(id_out, id, sizeof id);
	buf_free(&header);
	return r ? -1 : 0;
}
