/* weights-params.c - between model files and the rows of a parameter table: loading blocks, and saving them through
 * weights-write.c. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
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

static size_t largest_row(const struct params *p)
{
	size_t most = 0;
	for (int i = 0; i < p->count; i++)
		most = p->rows[i].n > most ? p->rows[i].n : most;
	return most;
}

/* The type in a file of what is stored so; the moments' formats are just words to others. */
static const char *file_type(enum dtype t)
{
	static const char *const names[] = {"F32", "BF16", "F16", "U16", "U16"};
	return names[t];
}

static int load_row(struct params *p, const struct param *r, enum params_block which, const struct weights *w,
                    const char *prefix, float *host, struct error *e)
{
	const struct weights_tensor *t = find_row(w, r, prefix, e);
	struct place to = params_place(p, r, which);
	if (!t)
		return -1;
	if (strcmp(t->type, file_type(to.type)))
		return weights_read(w, t, host, e) ? -1 : params_put(p, r, which, host, e);
	if (weights_read_raw(w, t, host, e))
		return -1;
	p->ops->put(p->dev, to.p, host, t->bytes);
	return device_check(p->ops, p->dev, e); /* host is used again for the next row */
}

int params_fit(const struct params *p, const struct weights *w, const char *prefix, struct error *e)
{
	for (int i = 0; i < p->count; i++)
		if (!find_row(w, &p->rows[i], prefix, e))
			return -1;
	return 0;
}

int params_load(struct params *p, enum params_block which, const struct weights *w, const char *prefix, struct error *e)
{
	float *host = mem_alloc(largest_row(p), sizeof *host, e);
	int r = host ? 0 : -1;
	for (int i = 0; i < p->count && r == 0; i++)
		r = load_row(p, &p->rows[i], which, w, prefix, host, e);
	free(host);
	return r;
}

int params_load_host(float *host, const struct params *p, const struct weights *w, const char *prefix, struct error *e)
{
	for (int i = 0; i < p->count; i++) {
		const struct weights_tensor *t = find_row(w, &p->rows[i], prefix, e);
		if (!t || weights_read(w, t, host + p->rows[i].at, e))
			return -1;
	}
	return 0;
}

int params_load_kept(const struct kept_rows *kept, const struct params *p, const struct weights *w, const char *prefix,
                     struct error *e)
{
	for (int i = 0; i < p->count; i++) {
		const struct weights_tensor *t = kept->at[i] ? find_row(w, &p->rows[i], prefix, e) : NULL;
		if (!kept->at[i])
			continue;
		if (!t)
			return -1;
		if (strcmp(t->type, file_type(kept->type)))
			return fail(e, STATUS_BAD, "%s: tensor %s is %s, expected %s", weights_path(w), t->name, t->type,
			            file_type(kept->type));
		if (weights_read_raw(w, t, kept->at[i], e))
			return -1;
	}
	return 0;
}

int params_to_host(float *host, struct params *p, enum params_block which, struct error *e)
{
	for (int i = 0; i < p->count; i++)
		if (params_get(p, &p->rows[i], which, host + p->rows[i].at, e))
			return -1;
	return 0;
}

/* ---- saving ---- */

/* Where an entry's values come from. */
struct origin {
	const struct weights_part *part;
	const struct param *row;
};

struct save {
	struct weights_entry *entries;
	struct origin *origins;
	size_t count;
	float *host; /* room for the largest row */
};

static enum dtype part_type(const struct weights_part *part, const struct param *row)
{
	return part->kept ? part->kept->type : part->host ? DT_F32 : params_place(part->p, row, part->which).type;
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
	s->origins = mem_zero(rows, sizeof *s->origins, e);
	s->host = mem_alloc(most, sizeof *s->host, e);
	if (!s->entries || !s->origins || !s->host)
		return -1;
	for (size_t i = 0; i < n; i++)
		for (int k = 0; k < parts[i].p->count; k++) {
			const struct param *row = &parts[i].p->rows[k];
			struct weights_entry *t = &s->entries[s->count];
			enum dtype type = part_type(&parts[i], row);
			if (parts[i].kept && !parts[i].kept->at[k])
				continue;
			s->origins[s->count] = (struct origin){&parts[i], row};
			*t = (struct weights_entry){.type = file_type(type), .rank = row->rank, .bytes = row->n * dtype_bytes(type),
			                            .from = &s->origins[s->count++]};
			memcpy(t->shape, row->shape, sizeof row->shape);
			snprintf(t->name, sizeof t->name, "%s%s", parts[i].prefix, row->name);
		}
	return 0;
}

/* The row's bytes on the host. */
static const void *fetch(void *arg, const struct weights_entry *t, struct error *e)
{
	struct save *s = arg;
	const struct origin *from = t->from;
	struct params *p = from->part->p;
	if (from->part->kept)
		return from->part->kept->at[from->row - p->rows];
	if (from->part->host)
		return from->part->host + from->row->at;
	p->ops->get(p->dev, s->host, params_place(p, from->row, from->part->which).p, t->bytes);
	return device_check(p->ops, p->dev, e) ? NULL : s->host;
}

int weights_save(const char *path, json_t *meta, const struct weights_part *parts, size_t n, char id_out[ID_LENGTH + 1],
                 struct error *e)
{
	struct save s = {0};
	int r = list_entries(&s, parts, n, e);
	if (r == 0)
		r = weights_write(path, meta, s.entries, s.count, fetch, &s, id_out, e);
	free(s.entries);
	free(s.origins);
	free(s.host);
	return r;
}
