/* tok-info.c - what a token stream holds: header, lineage, and counts over all records. */
#include "../libcommon/fields.h"
#include "../libcommon/opt.h"
#include "../libcommon/progress.h"
#include "../libcommon/stream.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool as_json, header_only;

static const struct opt options[] = {
	OPT_FLAG('J', "json", &as_json, "write one JSON object"),
	OPT_FLAG(0, "header", &header_only, "only what the header says; reads no records"),
	OPT_END
};
static const struct tool tool = {"tok-info", "[OPTION]... [FILE]...", "Describe token streams", options};

/* Smallest, mean and largest of a quantity. */
struct range {
	uint64_t n;
	double least, most, sum;
};

/* How often each token occurs. */
struct histogram {
	uint64_t *count;
	size_t size;
	uint64_t total;
};

enum { SIZES = 16 };

struct size {
	uint32_t width, height;
	uint64_t records;
};

struct stats {
	uint64_t records, with[FIELD_COUNT], other_sizes;
	struct range caption, text, image, score, nll_text, nll_image;
	struct histogram text_codes, image_codes;
	struct size sizes[SIZES];
	int size_count;
};

/* ---- gathering ---- */

static void range_add(struct range *r, double v)
{
	r->least = r->n == 0 || v < r->least ? v : r->least;
	r->most = r->n == 0 || v > r->most ? v : r->most;
	r->sum += v;
	r->n++;
}

static int histogram_add(struct histogram *h, const struct tokens *t, struct error *e)
{
	for (size_t i = 0; i < t->n; i++) {
		size_t code = t->v[i];
		if (code >= 1 << 24) /* larger than any model takes; keeps memory bounded, at 128 MiB */
			continue;
		if (code >= h->size) {
			size_t size = code + 1 > 2 * h->size ? code + 1 : 2 * h->size;
			uint64_t *count = mem_grow(h->count, size, sizeof *count, e);
			if (!count)
				return -1;
			memset(count + h->size, 0, (size - h->size) * sizeof *count);
			h->count = count;
			h->size = size;
		}
		h->count[code]++;
		h->total++;
	}
	return 0;
}

static uint64_t histogram_used(const struct histogram *h)
{
	uint64_t used = 0;
	for (size_t i = 0; i < h->size; i++)
		used += h->count[i] > 0;
	return used;
}

/* exp of the entropy of the codes' frequencies: how many codes are in use, in effect. */
static double histogram_perplexity(const struct histogram *h)
{
	double entropy = 0;
	for (size_t i = 0; i < h->size; i++) {
		double p = h->total ? (double)h->count[i] / (double)h->total : 0;
		entropy -= p > 0 ? p * log(p) : 0;
	}
	return exp(entropy);
}

static void count_size(struct stats *s, uint32_t width, uint32_t height)
{
	for (int i = 0; i < s->size_count; i++) {
		if (s->sizes[i].width == width && s->sizes[i].height == height) {
			s->sizes[i].records++;
			return;
		}
	}
	if (s->size_count < SIZES)
		s->sizes[s->size_count++] = (struct size){width, height, 1};
	else
		s->other_sizes++;
}

static int take(struct stats *s, const struct record *r, struct error *e)
{
	unsigned fields = record_fields(r);
	s->records++;
	for (int i = 0; i < FIELD_COUNT; i++)
		s->with[i] += fields >> i & 1;
	if (fields & FIELD_CAPTION)
		range_add(&s->caption, (double)r->caption.n);
	if (fields & FIELD_TEXT)
		range_add(&s->text, (double)r->text.n);
	if (fields & FIELD_IMAGE)
		range_add(&s->image, (double)r->image.n);
	if (fields & FIELD_SCORE)
		range_add(&s->score, (double)r->score);
	if (fields & FIELD_NLL_TEXT)
		range_add(&s->nll_text, (double)r->nll_text);
	if (fields & FIELD_NLL_IMAGE)
		range_add(&s->nll_image, (double)r->nll_image);
	if (fields & FIELD_PIXELS)
		count_size(s, r->pixels.width, r->pixels.height);
	return histogram_add(&s->text_codes, &r->text, e) || histogram_add(&s->image_codes, &r->image, e) ? -1 : 0;
}

/* Into s, and into total unless that is NULL. */
static int gather(struct stats *s, struct stats *total, struct reader *in, struct error *e)
{
	struct record r = {0};
	struct progress p;
	uint64_t done, bytes;
	int k;
	reader_progress(in, &done, &bytes);
	progress_start(&p, "bytes", bytes);
	while ((k = reader_next(in, &r, e)) > 0 && take(s, &r, e) == 0 && (!total || take(total, &r, e) == 0)) {
		reader_progress(in, &done, &bytes);
		progress_update(&p, done, NULL);
	}
	progress_end(&p);
	record_free(&r);
	return e->status ? -1 : k;
}

/* ---- as text ---- */

static void print_program(const struct program *p)
{
	printf("program\t");
	put_escaped(p->name, stdout);
	putchar(' ');
	put_escaped(p->version, stdout);
	putchar('\t');
	put_escaped(p->command, stdout);
	putchar('\n');
}

static void print_header(const struct header *h)
{
	if (h->text.id[0] || h->text.size)
		printf("text codec\t%s, %u token%s, at most %u a record\n", h->text.id, h->text.size, plural(h->text.size),
		       h->text.length);
	if (h->image.id[0] || h->image.size)
		printf("image codec\t%s, %u code%s, grid %ux%u\n", h->image.id, h->image.size, plural(h->image.size),
		       h->image.grid_width, h->image.grid_height);
	if (h->width)
		printf("pictures\t%ux%u\n", h->width, h->height);
	for (size_t i = 0; i < h->program_count; i++)
		print_program(&h->programs[i]);
}

static void print_range(const char *name, const struct range *r)
{
	if (r->n)
		printf("%s\t%g to %g, mean %.6g\n", name, r->least, r->most, r->sum / (double)r->n);
}

static void print_codes(const char *name, const struct histogram *h, uint32_t size)
{
	char of[24] = ""; /* a stream need not say how many there are */
	if (size)
		snprintf(of, sizeof of, " of %u", size);
	if (h->total)
		printf("%s\t%" PRIu64 "%s used, perplexity %.1f\n", name, histogram_used(h), of, histogram_perplexity(h));
}

static void print_stats(const struct stats *s, const struct header *h)
{
	printf("records\t%" PRIu64 "\n", s->records);
	for (int i = 0; i < FIELD_COUNT; i++)
		if (s->with[i])
			printf("with %s\t%" PRIu64 "\n", field_name(i), s->with[i]);
	print_range("caption bytes", &s->caption);
	print_range("text tokens", &s->text);
	print_codes("text codes", &s->text_codes, h->text.size);
	print_range("image tokens", &s->image);
	print_codes("image codes", &s->image_codes, h->image.size);
	print_range("score", &s->score);
	print_range("nll_text", &s->nll_text);
	print_range("nll_image", &s->nll_image);
	for (int i = 0; i < s->size_count; i++)
		printf("size %ux%u\t%" PRIu64 "\n", s->sizes[i].width, s->sizes[i].height, s->sizes[i].records);
	if (s->other_sizes)
		printf("other sizes\t%" PRIu64 "\n", s->other_sizes);
}

/* ---- as JSON ---- */

static json_t *json_header(const struct header *h)
{
	json_t *programs = json_array();
	for (size_t i = 0; i < h->program_count; i++)
		json_array_append_new(programs, json_pack("{s:s, s:s, s:s}", "name", h->programs[i].name, "version",
		                                          h->programs[i].version, "command", h->programs[i].command));
	return json_pack("{s:{s:s, s:I, s:I}, s:{s:s, s:I, s:I, s:I}, s:I, s:I, s:o}", "text", "id", h->text.id, "size",
	                 (json_int_t)h->text.size, "length", (json_int_t)h->text.length, "image", "id", h->image.id,
	                 "size", (json_int_t)h->image.size, "grid_width", (json_int_t)h->image.grid_width,
	                 "grid_height", (json_int_t)h->image.grid_height, "width", (json_int_t)h->width, "height",
	                 (json_int_t)h->height, "programs", programs);
}

static void set_range(json_t *o, const char *name, const struct range *r)
{
	if (r->n && isfinite(r->sum))
		json_object_set_new(o, name, json_pack("{s:f, s:f, s:f}", "min", r->least, "max", r->most, "mean",
		                                       r->sum / (double)r->n));
}

static void set_codes(json_t *o, const char *name, const struct histogram *h)
{
	if (h->total)
		json_object_set_new(o, name, json_pack("{s:I, s:f}", "used", (json_int_t)histogram_used(h), "perplexity",
		                                       histogram_perplexity(h)));
}

static json_t *json_sizes(const struct stats *s)
{
	json_t *a = json_array();
	for (int i = 0; i < s->size_count; i++)
		json_array_append_new(a, json_pack("{s:I, s:I, s:I}", "width", (json_int_t)s->sizes[i].width, "height",
		                                   (json_int_t)s->sizes[i].height, "records",
		                                   (json_int_t)s->sizes[i].records));
	return a;
}

static void set_stats(json_t *o, const struct stats *s)
{
	json_t *with = json_object();
	for (int i = 0; i < FIELD_COUNT; i++)
		json_object_set_new(with, field_name(i), json_integer((json_int_t)s->with[i]));
	json_object_set_new(o, "records", json_integer((json_int_t)s->records));
	json_object_set_new(o, "with", with);
	set_range(o, "caption_bytes", &s->caption);
	set_range(o, "text_tokens", &s->text);
	set_codes(o, "text_codes", &s->text_codes);
	set_range(o, "image_tokens", &s->image);
	set_codes(o, "image_codes", &s->image_codes);
	set_range(o, "score", &s->score);
	set_range(o, "nll_text", &s->nll_text);
	set_range(o, "nll_image", &s->nll_image);
	json_object_set_new(o, "sizes", json_sizes(s));
	json_object_set_new(o, "other_sizes", json_integer((json_int_t)s->other_sizes));
}

/* ---- one stream, or several and all of them ---- */

/* What is written: text at once, JSON at the end. */
struct summary {
	json_t *root, *files; /* files: of several */
	struct stats total;   /* of several */
	struct header codecs; /* of the total; only text and image are set */
	bool mixed_text, mixed_image;
	int count;
};

/* `file` NULL: the only one. */
static json_t *json_stream(const char *file, const struct header *h, const struct stats *s)
{
	json_t *o = json_object();
	if (file)
		json_object_set_new(o, "file", json_string(file));
	json_object_set_new(o, "header", json_header(h));
	if (!header_only)
		set_stats(o, s);
	return o;
}

static void stats_free(struct stats *s)
{
	free(s->text_codes.count);
	free(s->image_codes.count);
}

/* Codes of different vocabularies do not add up. */
static void add_codecs(struct summary *all, const struct header *h)
{
	struct header *c = &all->codecs;
	all->count++;
	if (!c->text.id[0])
		c->text = h->text;
	if (!c->image.id[0])
		c->image = h->image;
	all->mixed_text |= h->text.id[0] && strcmp(c->text.id, h->text.id);
	all->mixed_image |= h->image.id[0] && strcmp(c->image.id, h->image.id);
}

static void put_stream(struct summary *all, const char *file, const struct header *h, const struct stats *s)
{
	if (as_json && !file) {
		all->root = json_stream(NULL, h, s);
	} else if (as_json) {
		json_array_append_new(all->files, json_stream(file, h, s));
	} else {
		if (file) {
			printf("file\t");
			put_escaped(file, stdout);
			putchar('\n');
		}
		print_header(h);
		if (!header_only)
			print_stats(s, h);
		if (file)
			putchar('\n');
	}
}

static int describe(struct summary *all, char *const *files, int n, const char *file, struct error *e)
{
	struct stats s = {0};
	struct reader *in = reader_open(files, n, e);
	int r = in ? 0 : -1;
	if (r == 0 && !header_only)
		r = gather(&s, file ? &all->total : NULL, in, e);
	if (r == 0) {
		add_codecs(all, reader_header(in));
		put_stream(all, file, reader_header(in), &s);
	}
	reader_close(in);
	stats_free(&s);
	return r;
}

/* A file that is damaged hides no other.  Returns the first failure's status. */
static int describe_each(struct summary *all, char *const *files, int n)
{
	int result = STATUS_OK;
	for (int i = 0; i < n; i++) {
		struct error e = {0};
		if (describe(all, files + i, 1, files[i], &e)) {
			int status = report(&e);
			result = result ? result : status;
		}
	}
	return result;
}

static void put_total(struct summary *all)
{
	if (all->mixed_text)
		all->total.text_codes.total = 0; /* is not shown */
	if (all->mixed_image)
		all->total.image_codes.total = 0;
	if (as_json) {
		all->root = json_pack("{s:O}", "files", all->files);
		if (!header_only) {
			json_t *o = json_object();
			set_stats(o, &all->total);
			json_object_set_new(all->root, "total", o);
		}
	} else if (!header_only) {
		printf("total\t%d file%s\n", all->count, plural((uint64_t)all->count));
		print_stats(&all->total, &all->codecs);
	}
}

static int print_json(const json_t *root, struct error *e)
{
	char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
	if (!text)
		return fail(e, STATUS_LIMIT, "out of memory");
	puts(text);
	free(text);
	return 0;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct summary all = {.files = json_array()};
	int result = STATUS_OK;
	if (argc - first > 1) {
		result = describe_each(&all, argv + first, argc - first);
		put_total(&all);
	} else {
		describe(&all, argv + first, argc - first, NULL, &e);
	}
	if (!e.status && as_json)
		print_json(all.root, &e);
	json_decref(all.root);
	json_decref(all.files);
	stats_free(&all.total);
	return finish(e.status ? report(&e) : result);
}
