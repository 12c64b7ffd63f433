/* weights-params.c - between model files and the rows of a parameter table: loading blocks, and writing the file
 * of weights.h: safetensors with our metadata, checksums and identity. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "hash.h"
#include "weights.h"

/* ---- loading ---- */

static void shape_text(char *out, size_t n, const int64_t *shape, int rank)
{
	size_t at = 0;
	out[0] = 0;
	for (int i = 0; i < rank && at + 24 < n; i++)
		at += (size_t)snprintf(out + at, n - at, "%s%lld", i ? " x " : "", (long long)shape[i]);
}

static const struct weights_tensor *find_row(const struct weights *w, const struct param *r, const char *prefix,
                                             struct error *e)
{
	char name[160], want[100], got[200];
	snprintf(name, sizeof name, "%s%s", prefix, r->name);
	const struct weights_tensor *t = weights_find(w, name);
	shape_text(want, sizeof want, r->shape, r->rank);
	if (!t) {
		fail(e, STATUS_BAD, "%s: has no tensor %s, expected one of %s", weights_path(w), name, want);
		return NULL;
	}
	bool same = t->rank == r->rank;
	for (int i = 0; same && i < t->rank; i++)
		same = t->shape[i] == r->shape[i];
	if (same)
		return t;
	shape_text(got, sizeof got, t->shape, t->rank);
	fail(e, STATUS_BAD, "%s: tensor %s is %s, expected %s", weights_path(w), name, got, want);
	return NULL;
}

static int load_row(float *host, const struct param *r, const struct weights *w, const char *prefix, struct error *e)
{
	const struct weights_tensor *t = find_row(w, r, prefix, e);
	return t ? weights_read(w, t, host, e) : -1;
}

static size_t largest_row(const struct params *p)
{
	size_t most = 0;
	for (int i = 0; i < p->count; i++)
		most = p->rows[i].n > most ? p->rows[i].n : most;
	return most;
}

/* Row r in a block. */
static float *row_in(const struct param *r, enum params_block which)
{
	float *const at[] = {[BLOCK_W] = r->w, [BLOCK_M] = r->m, [BLOCK_V] = r->v, [BLOCK_AVG] = r->avg};
	return at[which];
}

int params_load(struct params *p, enum params_block which, const struct weights *w, const char *prefix, struct error *e)
{
	float *host = mem_alloc(largest_row(p), sizeof *host, e);
	int r = host ? 0 : -1;
	for (int i = 0; i < p->count && r == 0; i++) {
		r = load_row(host, &p->rows[i], w, prefix, e);
		if (r == 0)
			p->ops->put(p->dev, row_in(&p->rows[i], which), host, p->rows[i].n * sizeof *host);
		if (r == 0)
			r = device_check(p->ops, p->dev, e); /* host is used again for the next row */
	}
	free(host);
	return r;
}

int params_load_host(float *host, const struct params *p, const struct weights *w, const char *prefix, struct error *e)
{
	for (int i = 0; i < p->count; i++)
		if (load_row(host + (p->rows[i].w - p->w), &p->rows[i], w, prefix, e))
			return -1;
	return 0;
}

int params_to_host(float *host, struct params *p, enum params_block which, struct error *e)
{
	for (int i = 0; i < p->count; i++) {
		struct param *r = &p->rows[i];
		p->ops->get(p->dev, host + (r->w - p->w), row_in(r, which), r->n * sizeof *host);
	}
	return device_check(p->ops, p->dev, e);
}

/* ---- saving ---- */

struct entry {
	char name[128];
	const struct weights_part *part;
	const struct param *row;
	char hex[17]; /* checksum */
};

struct save {
	const char *path; /* for messages */
	struct entry *entries; /* by name, the order of the file */
	size_t count;
	float *host;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int list_entries(struct save *s, const struct weights_part *parts, size_t n, struct error *e)
{
	size_t rows = 0, most = 0;
	for (size_t i = 0; i < n; i++) {
		rows += (size_t)parts[i].p->count;
		size_t largest = largest_row(parts[i].p);
		most = largest > most ? largest : most;
	}
	s->entries = mem_zero(rows, sizeof *s->entries, e);
	s->host = mem_alloc(most, sizeof *s->host, e);
	if (!s->entries || !s->host)
		return -1;
	for (size_t i = 0; i < n; i++)
		for (int k = 0; k < parts[i].p->count; k++) {
			struct entry *t = &s->entries[s->count++];
			t->part = &parts[i];
			t->row = &parts[i].p->rows[k];
			snprintf(t->name, sizeof t->name, "%s%s", parts[i].prefix, t->row->name);
		}
	qsort(s->entries, s->count, sizeof *s->entries, by_name);
	for (size_t i = 1; i < s->count; i++)
		if (strcmp(s->entries[i - 1].name, s->entries[i].name) == 0)
			return fail(e, STATUS_FAIL, "%s: tensor %s would be written twice", s->path, s->entries[i].name);
	return 0;
}

/* The entry's values on the host: borrowed until the next call. */
static const float *entry_values(struct save *s, const struct entry *t, struct error *e)
{
	struct params *p = t->part->p;
	if (t->part->host)
		return t->part->host + (t->row->w - p->w);
	p->ops->get(p->dev, s->host, row_in(t->row, t->part->which), t->row->n * sizeof *s->host);
	return device_check(p->ops, p->dev, e) ? NULL : s->host;
}

static int hash_entries(struct save *s, struct error *e)
{
	for (size_t i = 0; i < s->count; i++) {
		struct entry *t = &s->entries[i];
		const float *x = entry_values(s, t, e);
		if (!x)
			return -1;
		snprintf(t->hex, sizeof t->hex, "%016llx", (unsigned long long)hash64(x, t->row->n * sizeof *x));
	}
	return 0;
}

/* The model's identity: of the tensors that a reader of the model uses. */
static int identify(const struct save *s, const json_t *meta, char id[ID_LENGTH + 1], struct error *e)
{
	struct weights_sum *sums = mem_alloc(s->count, sizeof *sums, e);
	size_t n = 0;
	if (!sums)
		return -1;
	for (size_t i = 0; i < s->count; i++)
		if (!s->entries[i].part->prefix[0])
			sums[n++] = (struct weights_sum){s->entries[i].name, s->entries[i].hex};
	int r = weights_identify(json_string_value(json_object_get(meta, "dalle.kind")),
	                         json_string_value(json_object_get(meta, "dalle.config")), sums, n, id, e);
	free(sums);
	return r;
}

static json_t *checksums(const struct save *s)
{
	json_t *sums = json_object();
	for (size_t i = 0; i < s->count; i++)
		if (json_object_set_new(sums, s->entries[i].name, json_string(s->entries[i].hex))) {
			json_decref(sums);
			return NULL;
		}
	return sums;
}

/* meta with the identity and the checksums; NULL when out of memory. */
static json_t *full_metadata(const struct save *s, json_t *meta, const char *id)
{
	json_t *sums = checksums(s), *m = json_copy(meta);
	char *text = sums ? json_dumps(sums, JSON_COMPACT) : NULL;
	bool ok = m && text && json_object_set_new(m, "dalle.id", json_string(id)) == 0 &&
	          json_object_set_new(m, "dalle.checksums", json_string(text)) == 0;
	free(text);
	json_decref(sums);
	if (ok)
		return m;
	json_decref(m);
	return NULL;
}

static json_t *tensor_json(const struct entry *t, uint64_t begin)
{
	json_t *shape = json_array();
	for (int i = 0; i < t->row->rank; i++)
		json_array_append_new(shape, json_integer(t->row->shape[i]));
	uint64_t end = begin + t->row->n * sizeof(float);
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", "F32", "shape", shape, "data_offsets", (json_int_t)begin,
	                 (json_int_t)end);
}

/* The header text, padded with spaces so that the data begins at a multiple of 8. */
static int header_text(const struct save *s, json_t *meta, const char *id, struct buf *out, struct error *e)
{
	json_t *h = json_object(), *m = full_metadata(s, meta, id);
	uint64_t at = 0;
	bool ok = h && m && json_object_set_new(h, "__metadata__", m) == 0;
	for (size_t i = 0; ok && i < s->count; i++) {
		ok = json_object_set_new(h, s->entries[i].name, tensor_json(&s->entries[i], at)) == 0;
		at += s->entries[i].row->n * sizeof(float);
	}
	char *text = ok ? json_dumps(h, JSON_COMPACT) : NULL;
	json_decref(h);
	int r = text ? buf_add(out, text, strlen(text), e) : fail(e, STATUS_LIMIT, "%s: out of memory for the header", s->path);
	free(text);
	while (r == 0 && out->n % 8)
		r = buf_add(out, " ", 1, e);
	return r;
}

static int write_all(struct save *s, const struct buf *header, struct outfile *f, struct error *e)
{
	uint8_t length[8];
	for (int i = 0; i < 8; i++)
		length[i] = (uint8_t)((uint64_t)header->n >> (8 * i));
	if (write_full(f->fd, length, sizeof length, s->path, e) || write_full(f->fd, header->p, header->n, s->path, e))
		return -1;
	for (size_t i = 0; i < s->count; i++) {
		const float *x = entry_values(s, &s->entries[i], e);
		if (!x || write_full(f->fd, x, s->entries[i].row->n * sizeof *x, s->path, e))
			return -1;
	}
	return 0;
}

static int write_file(struct save *s, const struct buf *header, struct error *e)
{
	struct outfile f;
	if (outfile_open(&f, s->path, e))
		return -1;
	if (write_all(s, header, &f, e)) {
		outfile_abort(&f);
		return -1;
	}
	return outfile_commit(&f, e);
}

int weights_save(const char *path, json_t *meta, const struct weights_part *parts, size_t n, char id_out[ID_LENGTH + 1],
                 struct error *e)
{
	struct save s = {.path = path};
	struct buf header = {0};
	char id[ID_LENGTH + 1];
	/* The checksums stand before the data, so the values are fetched twice: first to hash, then to write. */
	int r = list_entries(&s, parts, n, e) || hash_entries(&s, e) || identify(&s, meta, id, e) ||
	        header_text(&s, meta, id, &header, e) || write_file(&s, &header, e);
	if (r == 0 && id_out)
		memcpy(id_out, id, sizeof id);
	free(s.entries);
	free(s.host);
	buf_free(&header);
	return r ? -1 : 0;
}
