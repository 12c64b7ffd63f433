/* clip-rank - captions + pixels -> score (cosine of CLIP's two vectors), best first within each caption; or by the
 * transformer's likelihood, or by both; or a data filter; or retrieval figures. */
#include "../libcommon/clip-embed.h"
#include "../libcommon/device.h"
#include "../libcommon/filter.h"
#include "../libcommon/hash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct run_options run = RUN_DEFAULTS(64);
static const char *model_path, *output, *among, *weights_text = "clip=1";
static int64_t keep;
static double min_score = NAN;
static bool no_sort, retrieval;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model_path, "MODEL", "CLIP model file, or a folder as Hugging Face publishes it"),
	OPT_INT('k', "keep", &keep, 0, 1 << 30, "K", "keep the best K of each caption, 0 for all"),
	OPT_STRING('w', "weights", &weights_text, "LIST",
	           "what counts: clip=1 (the cosine), nll=1 (dalle-score's likelihood), or both"),
	OPT_REAL(0, "min-score", &min_score, -1e9, 1e9, "X", "drop records with a lower score"),
	OPT_FLAG(0, "no-sort", &no_sort, "leave the order: a data filter, one record at a time"),
	OPT_FLAG(0, "retrieval", &retrieval, "write no records but how well captions find their pictures, and the reverse"),
	OPT_STRING(0, "among", &among, "FILE", "for --retrieval: search these records instead of the input's"),
	OPT_RUN(&run),
	OPT_OUTPUT(&output),
	OPT_END,
};
static const struct tool tool = {"clip-rank", "[-m MODEL] [OPTION]... [FILE]...",
                                 "Score pictures against their captions with CLIP and rank them", options};

/* ---- what counts ---- */

enum { CLIP, NLL, PARTS };
static const char *const part_names[PARTS] = {"clip", "nll"};
static double weight[PARTS];

/* One "NAME=NUMBER". */
static int parse_part(const char *text, struct error *e)
{
	for (int i = 0; i < PARTS; i++) {
		size_t n = strlen(part_names[i]);
		if (strncmp(text, part_names[i], n) == 0 && text[n] == '=')
			return parse_real(text + n + 1, 0, 1e9, &weight[i], e);
	}
	return fail(e, STATUS_USAGE, "'%s', expected clip=NUMBER or nll=NUMBER", text);
}

static int parse_weights(const char *list, struct error *e)
{
	char *copy = mem_string(list, e), *rest = copy, *part;
	int r = copy ? 0 : -1;
	while (r == 0 && (part = strsep(&rest, ",")))
		r = parse_part(part, e);
	free(copy);
	if (r == 0 && weight[CLIP] == 0 && weight[NLL] == 0)
		r = fail(e, STATUS_USAGE, "'%s' gives no weight to anything", list);
	return r;
}

/* ---- scoring ---- */

static float dot(const float *a, const float *b, int64_t n)
{
	float sum = 0;
#pragma omp simd reduction(+ : sum)
	for (int64_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/* Vectors of n records into x->image and x->text, (n, E) each. */
static int embed_batch(struct embedder *x, const struct record *r, int n, const char *file, struct error *e)
{
	const struct pixels **pictures = mem_alloc((size_t)n, sizeof *pictures, e);
	if (!pictures)
		return -1;
	for (int i = 0; i < n; i++)
		pictures[i] = &r[i].pixels;
	int status = embed_pictures(x, pictures, n, EMBED_UNIT, file, e) || embed_captions(x, r, n, file, e) ? -1 : 0;
	free(pictures);
	return status;
}

/* The score of one part alone: the cosine if it counts, else the log-likelihood per image token. */
static int score_batch(struct embedder *x, struct record *r, int n, const char *file, struct error *e)
{
	int64_t E = x->model.config.embed;
	if (weight[CLIP] > 0 && embed_batch(x, r, n, file, e))
		return -1;
	for (int i = 0; i < n; i++) {
		if (weight[NLL] > 0 && !(r[i].has & HAS_NLL_IMAGE))
			return fail(e, STATUS_BAD, "%s: a record has no nll of its image tokens, expected it from dalle-score", file);
		r[i].score = weight[CLIP] > 0 ? dot(x->image + i * E, x->text + i * E, E) : -r[i].nll_image;
		r[i].has |= HAS_SCORE;
	}
	return 0;
}

/* ---- ranking: the records of one caption are held until the next caption begins ---- */

struct group {
	struct record *at; /* copies, reused */
	size_t n, cap;
	uint64_t caption;  /* caption_hash of the text: captions that a model reads alike stay apart */
};

/* Best first; equal scores keep the order of the samples. */
static int by_score(const void *a, const void *b)
{
	const struct record *x = a, *y = b;
	if (x->score != y->score)
		return x->score < y->score ? 1 : -1;
	return (x->sample > y->sample) - (x->sample < y->sample);
}

static double part_value(const struct record *r, int part)
{
	return part == CLIP ? (double)r->score : -(double)r->nll_image;
}

/* Mean and deviation of a part over the group. */
static void part_moments(const struct group *g, int part, double *mean, double *deviation)
{
	double sum = 0, squares = 0;
	for (size_t i = 0; i < g->n; i++)
		sum += part_value(&g->at[i], part);
	*mean = sum / (double)g->n;
	for (size_t i = 0; i < g->n; i++)
		squares += (part_value(&g->at[i], part) - *mean) * (part_value(&g->at[i], part) - *mean);
	*deviation = sqrt(squares / (double)g->n);
}

/* The scores of both parts: a cosine and nats are of different kinds, so each counts in deviations from its mean over
 * the group; where all are equal it does not count. */
static void group_mix(struct group *g)
{
	double mean[PARTS], deviation[PARTS];
	for (int k = 0; k < PARTS; k++)
		part_moments(g, k, &mean[k], &deviation[k]);
	for (size_t i = 0; i < g->n; i++) {
		double sum = 0;
		for (int k = 0; k < PARTS; k++)
			sum += deviation[k] > 0 ? weight[k] * (part_value(&g->at[i], k) - mean[k]) / deviation[k] : 0;
		g->at[i].score = (float)sum;
	}
}

static uint64_t below; /* records dropped by --min-score */

static int put_unless_below(struct filter *f, const struct record *r, struct error *e)
{
	if (!(r->score < min_score))
		return writer_put(f->out, r, e);
	below++;
	return 0;
}

static int group_flush(struct group *g, struct filter *f, struct error *e)
{
	size_t n = keep && (size_t)keep < g->n ? (size_t)keep : g->n;
	if (g->n == 0)
		return 0;
	if (weight[CLIP] > 0 && weight[NLL] > 0)
		group_mix(g);
	qsort(g->at, g->n, sizeof *g->at, by_score);
	for (size_t i = 0; i < n; i++)
		if (put_unless_below(f, &g->at[i], e))
			return -1;
	g->n = 0;
	return 0;
}

static int group_add(struct group *g, struct filter *f, const struct record *r, uint64_t caption, struct error *e)
{
	if ((g->n && caption != g->caption && group_flush(g, f, e)) || records_room(&g->at, g->n + 1, &g->cap, e))
		return -1;
	g->caption = caption;
	return record_copy(&g->at[g->n++], r, e);
}

static int rank(struct embedder *x, struct filter *f, struct error *e)
{
	struct group g = {0};
	int n, r = 0;
	while (!r && (n = filter_batch(f, (int)run.batch, e)) > 0) {
		r = score_batch(x, f->batch, n, reader_name(f->in), e);
		for (int i = 0; !r && i < n; i++) {
			if (!no_sort)
				r = group_add(&g, f, &f->batch[i], caption_hash(&f->batch[i], true), e);
			else
				r = put_unless_below(f, &f->batch[i], e);
		}
	}
	if (!r && !e->status)
		r = group_flush(&g, f, e);
	records_free(g.at, g.cap);
	if (below)
		note(0, "left out %llu record%s with scores below %g", (unsigned long long)below, plural(below), min_score);
	return e->status ? -1 : r;
}

/* ---- retrieval ---- */

struct gallery { /* vectors of many records */
	float *image, *text; /* (n, E) */
	uint64_t *key;       /* hash of the record's key: the same record in input and --among counts once */
	size_t n, cap;
};

static int gallery_add(struct gallery *g, const struct embedder *x, const struct record *r, int n, struct error *e)
{
	size_t E = (size_t)x->model.config.embed;
	size_t need = g->n + (size_t)n, images = g->cap, texts = g->cap;
	if (array_room(&g->image, need, &images, E * sizeof(float), e) ||
	    array_room(&g->text, need, &texts, E * sizeof(float), e) || ARRAY_ROOM(g->key, need, &g->cap, e))
		return -1;
	memcpy(g->image + g->n * E, x->image, (size_t)n * E * sizeof(float));
	memcpy(g->text + g->n * E, x->text, (size_t)n * E * sizeof(float));
	for (int i = 0; i < n; i++)
		g->key[g->n++] = hash64(r[i].key.p, r[i].key.n);
	return 0;
}

static void gallery_free(struct gallery *g)
{
	free(g->image);
	free(g->text);
	free(g->key);
}

static int gallery_read(struct gallery *g, struct embedder *x, struct filter *f, struct error *e)
{
	int n;
	while ((n = filter_batch(f, (int)run.batch, e)) > 0)
		if (embed_batch(x, f->batch, n, reader_name(f->in), e) || gallery_add(g, x, f->batch, n, e))
			return -1;
	return n;
}

/* How many of the candidates score higher than the right one; ties count half, so that equal vectors gain nothing. */
static double rank_of(const float *query, const float *right, const struct gallery *in, const float *candidates,
                      uint64_t key, int64_t E)
{
	float own = dot(query, right, E);
	double better = 0;
	for (size_t i = 0; i < in->n; i++) {
		if (in->key[i] == key)
			continue;
		float other = dot(query, candidates + (int64_t)i * E, E);
		better += other > own ? 1 : other == own ? 0.5 : 0;
	}
	return better;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void print_recall(const char *what, double *ranks, size_t n, size_t candidates)
{
	size_t hits[3] = {0};
	static const int at[3] = {1, 5, 10};
	for (size_t i = 0; i < n; i++)
		for (int k = 0; k < 3; k++)
			hits[k] += ranks[i] < at[k];
	qsort(ranks, n, sizeof *ranks, by_value);
	printf("%s\t%zu\t%zu", what, n, candidates);
	for (int k = 0; k < 3; k++)
		printf("\t%.1f", 100.0 * (double)hits[k] / (double)n);
	printf("\t%.1f\n", (ranks[(n - 1) / 2] + ranks[n / 2]) / 2 + 1);
}

/* q: the input's records; pool: what is searched, the same or those of --among.  The right one always counts. */
static int print_retrieval(const struct gallery *q, const struct gallery *pool, int64_t E, struct error *e)
{
	if (!q->n)
		return fail(e, STATUS_BAD, "no records, expected captions with pictures");
	double *ranks = mem_alloc(q->n, sizeof *ranks, e);
	if (!ranks)
		return -1;
	printf("query\tqueries\tcandidates\tR@1 %%\tR@5 %%\tR@10 %%\tmedian rank\n");
#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < q->n; i++)
		ranks[i] = rank_of(q->text + (int64_t)i * E, q->image + (int64_t)i * E, pool, pool->image, q->key[i], E);
	print_recall("caption", ranks, q->n, pool->n);
#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < q->n; i++)
		ranks[i] = rank_of(q->image + (int64_t)i * E, q->text + (int64_t)i * E, pool, pool->text, q->key[i], E);
	print_recall("picture", ranks, q->n, pool->n);
	free(ranks);
	return 0;
}

static int retrieve(struct embedder *x, struct filter *f, int argc, char **argv, struct error *e)
{
	struct gallery q = {0}, pool = {0};
	struct filter other = {0};
	struct error none = {0};
	char *operand[] = {argv[0], (char *)among};
	int r = gallery_read(&q, x, f, e);
	if (!r && among)
		r = filter_open(&other, 2, operand, 1, e) || embedder_check(x, &other.header, among, e) ||
		    gallery_read(&pool, x, &other, e);
	if (!r)
		r = print_retrieval(&q, among ? &pool : &q, x->model.config.embed, e);
	filter_close(&other, &none); /* what went wrong is in e */
	gallery_free(&q);
	gallery_free(&pool);
	return r;
}

/* Everything but the ranking by likelihood alone needs a model. */
static int check_options(struct error *e)
{
	if (parse_weights(weights_text, e))
		return opt_misuse("--weights: %s", e->text);
	if (retrieval)
		weight[CLIP] = 1, weight[NLL] = 0;
	if (weight[CLIP] > 0 && !model_path)
		return opt_misuse("-m MODEL is needed");
	if (among && !retrieval)
		return opt_misuse("--among goes with --retrieval");
	if (no_sort && weight[CLIP] > 0 && weight[NLL] > 0)
		return opt_misuse("a mix compares the records of a caption, --no-sort takes each by itself");
	return STATUS_OK;
}

static int run_tool(struct filter *f, struct embedder *x, int argc, char **argv, struct error *e)
{
	if (weight[CLIP] > 0 && embedder_check(x, &f->header, reader_name(f->in), e))
		return -1;
	int r = retrieval ? retrieve(x, f, argc, argv, e) : filter_start(f, output, STREAM_LEVEL, e) || rank(x, f, e) ? -1 : 0;
	if (r == 0 && x->cut)
		note(0, "%llu caption%s cut to %lld tokens", (unsigned long long)x->cut, plural(x->cut),
		     (long long)x->model.config.context);
	return r;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	if ((status = check_options(&e)) != STATUS_OK)
		return finish(status);
	struct filter f = {0};
	struct embedder x = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	bool model = weight[CLIP] > 0;
	if (filter_open(&f, argc, argv, first, &e) == 0 && (!model || (device_open(&run, &ops, &dev, &e) == 0 &&
	    embedder_open(&x, model_path, ops, dev, (int)run.batch, &e) == 0)))
		run_tool(&f, &x, argc, argv, &e);
	embedder_close(&x);
	device_close(ops, dev);
	return finish(filter_close(&f, &e));
}
