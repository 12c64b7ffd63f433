/* model-import.c - published weights to safetensors: the tensors of files of torch.save (or safetensors), several
 * operands merged into one file, as they are: names, types and values. */
#include <stdlib.h>
#include <string.h>

#include "../libcommon/opt.h"
#include "../libcommon/weights.h"

static const char *output;
static bool list;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_FLAG('l', "list", &list, "write names, types, shapes and bytes of the tensors as text instead"),
	OPT_END,
};

/* Files being merged. */
struct import {
	struct weights **files;
	size_t file_n;
	struct weights_entry *entries;
	struct source {
		const struct weights *file;
		const struct weights_tensor *tensor;
	} *sources;
	size_t count;
	uint8_t *raw; /* room for the largest tensor */
};

static int open_files(struct import *m, char **paths, size_t n, struct error *e)
{
	m->files = mem_zero(n, sizeof *m->files, e);
	for (size_t i = 0; m->files && i < n; i++) {
		m->files[i] = weights_open(paths[i], e);
		if (!m->files[i])
			return -1;
		m->file_n++;
	}
	return m->files ? 0 : -1;
}

static int add_entry(struct import *m, const struct weights *w, const struct weights_tensor *t, struct error *e)
{
	struct weights_entry *entry = &m->entries[m->count];
	struct source *from = &m->sources[m->count];
	if (strlen(t->name) >= sizeof entry->name)
		return fail(e, STATUS_BAD, "%s: tensor %.60s...: the name is longer than %zu bytes", weights_path(w), t->name,
		            sizeof entry->name - 1);
	*from = (struct source){w, t};
	*entry = (struct weights_entry){.type = t->type, .rank = t->rank, .bytes = t->bytes, .from = from};
	snprintf(entry->name, sizeof entry->name, "%s", t->name);
	memcpy(entry->shape, t->shape, sizeof entry->shape);
	m->count++;
	return 0;
}

/* Twins in the order of the operands. */
static int by_name(const void *pa, const void *pb)
{
	const struct weights_entry *a = pa, *b = pb;
	int order = strcmp(a->name, b->name);
	return order ? order : a->from < b->from ? -1 : 1;
}

static int check_twins(struct import *m, struct error *e)
{
	qsort(m->entries, m->count, sizeof *m->entries, by_name);
	for (size_t i = 1; i < m->count; i++) {
		const struct source *a = m->entries[i - 1].from, *b = m->entries[i].from;
		if (strcmp(a->tensor->name, b->tensor->name) == 0)
			return fail(e, STATUS_BAD, "%s: tensor %s is in %s too, expected it in one of them", weights_path(b->file),
			            b->tensor->name, weights_path(a->file));
	}
	return 0;
}

static int collect(struct import *m, struct error *e)
{
	size_t n = 0;
	uint64_t most = 0;
	for (size_t i = 0; i < m->file_n; i++)
		n += weights_count(m->files[i]);
	m->entries = mem_zero(n + 1, sizeof *m->entries, e);
	m->sources = mem_zero(n + 1, sizeof *m->sources, e);
	if (!m->entries || !m->sources)
		return -1;
	for (size_t i = 0; i < m->file_n; i++)
		for (size_t k = 0; k < weights_count(m->files[i]); k++) {
			const struct weights_tensor *t = weights_at(m->files[i], k);
			most = t->bytes > most ? t->bytes : most;
			if (add_entry(m, m->files[i], t, e))
				return -1;
		}
	m->raw = mem_alloc((size_t)most + 1, 1, e);
	return m->raw ? check_twins(m, e) : -1;
}

static void print_list(const struct import *m)
{
	for (size_t i = 0; i < m->count; i++) {
		const struct weights_entry *t = &m->entries[i];
		put_escaped(t->name, stdout);
		printf("\t%s\t%s", t->type, t->rank ? "" : "scalar");
		for (int k = 0; k < t->rank; k++)
			printf("%s%lld", k ? "x" : "", (long long)t->shape[k]);
		printf("\t%llu\n", (unsigned long long)t->bytes);
	}
}

static const void *fetch(void *arg, const struct weights_entry *t, struct error *e)
{
	struct import *m = arg;
	const struct source *from = t->from;
	return weights_read_raw(from->file, from->tensor, m->raw, e) ? NULL : m->raw;
}

/* How the file was made; NULL when the command line is no UTF-8. */
static json_t *own_metadata(int argc, char **argv, struct error *e)
{
	struct buf command = {0};
	if (command_line(&command, argc, argv, e))
		return NULL;
	json_t *commands = json_pack("[s]", command.p);
	char *text = commands ? json_dumps(commands, JSON_COMPACT) : NULL;
	json_t *meta = text ? json_pack("{s:s,s:s}", "dalle.version", DALLE_VERSION, "dalle.command", text) : NULL;
	if (!meta)
		fail(e, STATUS_FAIL, "the command line is no UTF-8");
	free(text);
	json_decref(commands);
	buf_free(&command);
	return meta;
}

/* What a single file says about itself is kept.  No dalle.kind is made up: what the tensors are is for the program that
 * loads them to see. */
static int write_model(struct import *m, int argc, char **argv, struct error *e)
{
	json_t *meta = own_metadata(argc, argv, e);
	if (!meta)
		return -1;
	int r = 0;
	if (m->file_n == 1)
		r = json_object_update(meta, (json_t *)(uintptr_t)weights_metadata(m->files[0]));
	r = r ? fail(e, STATUS_LIMIT, "out of memory") : weights_write(output, meta, m->entries, m->count, fetch, m, NULL, e);
	json_decref(meta);
	return r;
}

static void import_free(struct import *m)
{
	for (size_t i = 0; i < m->file_n; i++)
		weights_close(m->files[i]);
	free(m->files);
	free(m->entries);
	free(m->sources);
	free(m->raw);
}

int main(int argc, char **argv)
{
	static const struct tool tool = {"model-import", "[OPTION]... FILE...",
	                                 "Write the tensors of PyTorch files as one safetensors file", options};
	struct error e = {0};
	struct import m = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (first == argc)
		return finish(opt_misuse("expected a model file"));
	if (list && output)
		return finish(opt_misuse("--list writes text to standard output, and -o a model: give one of them"));
	if (open_files(&m, argv + first, (size_t)(argc - first), &e) == 0 && collect(&m, &e) == 0) {
		if (list)
			print_list(&m);
		else
			write_model(&m, argc, argv, &e);
	}
	import_free(&m);
	return finish(e.status ? report(&e) : STATUS_OK);
}
