/* clip-rank - captions + pixels -> score (cosine of CLIP's two vectors), best first within each caption; or a data
 * filter; or retrieval figures. */
#include "../libcommon/clip.h"
#include "../libcommon/device.h"
#include "../libcommon/filter.h"
#include "../libcommon/hash.h"

#include <stdlib.h>
#include <string.h>

static struct run_options run = RUN_DEFAULTS(64);
static const char *model_path, *output, *among;
static int64_t keep;
static double min_score = -2;
static bool no_sort, retrieval;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model_path, "MODEL", "CLIP model file"),
	OPT_OUTPUT(&output),
	OPT_INT('k', "keep", &keep, 0, 1 << 30, "K", "keep the best K of each caption, 0 for all"),
	OPT_REAL(0, "min-score", &min_score, -2, 1, "X", "drop records below this cosine"),
	OPT_FLAG(0, "no-sort", &no_sort, "leave the order: a data filter, one record at a time"),
	OPT_FLAG(0, "retrieval", &retrieval, "write no records but how well captions find their pictures, and the reverse"),
	OPT_STRING(0, "among", &among, "FILE", "for --retrieval: search these records instead of the input's"),
	OPT_RUN(&run),
	OPT_END,
};
static const struct tool tool = {"clip-rank", "-m MODEL [OPTION]... [FILE]...",
                                 "Score pictures against their captions with CLIP and rank them", options};

/* ---- scoring ---- */

struct scorer {
	struct clip model;
	float *image, *text; /* (batch, E) host */
	uint8_t *rgb;        /* (batch, size, size, 3) host */
	const struct tokens **tokens;
};

static int scorer_open(struct scorer *s, const struct ops *ops, struct dev *dev, struct error *e)
{
	if (clip_load(&s->model, model_path, ops, dev, (int)run.batch, e))
		return -1;
	size_t B = (size_t)run.batch, side = (size_t)s->model.config.size, E = (size_t)s->model.config.embed;
	s->image = mem_alloc(B * E, sizeof(float), e);
	s->text = mem_alloc(B * E, sizeof(float), e);
	s->rgb = mem_alloc(B, side * side * 3, e);
	s->tokens = mem_alloc(B, sizeof *s->tokens, e);
	return s->image && s->text && s->rgb && s->tokens ? 0 : -1;
}

static void scorer_close(struct scorer *s)
{
	free(s->image);
	free(s->text);
	free(s->rgb);
	free(s->tokens);
	clip_free(&s->model);
}

static int check_header(const struct scorer *s, const struct header *h, const char *file, struct error *e)
{
	if (need_text(h, file, e))
		return -1;
	if (strcmp(h->text.id, s->model.text_id) != 0)
		return fail(e, STATUS_BAD, "%s: text tokens of vocabulary %s, expected %s, which %s was trained with", file, h->text.id,
		            s->model.text_id, model_path);
	return 0;
}

static int check_record(const struct scorer *s, const struct record *r, const char *file, struct error *e)
{
	uint32_t side = (uint32_t)s->model.config.size;
	if (need_pixels(r, file, e))
		return -1;
	if (r->pixels.width != side || r->pixels.height != side)
		return fail(e, STATUS_BAD, "%s: a picture is %ux%u, expected %ux%u, the size of %s", file, r->pixels.width,
		            r->pixels.height, side, side, model_path);
	return 0;
}

/* Vectors of n records into s->image and s->text, (n, E) each. */
static int embed_batch(struct scorer *s, const struct record *r, int n, const char *file, struct error *e)
{
	size_t picture = (size_t)(s->model.config.size * s->model.config.size) * 3;
	for (int i = 0; i < n; i++) {
		if (check_record(s, &r[i], file, e))
			return -1;
		memcpy(s->rgb + (size_t)i * picture, r[i].pixels.rgb, picture);
		s->tokens[i] = &r[i].text;
	}
	return clip_embed(&s->model, s->rgb, s->tokens, n, s->image, s->text, e);
}

static float dot(const float *a, const float *b, int64_t n)
{
	float sum = 0;
	for (int64_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static int score_batch(struct scorer *s, struct record *r, int n, const char *file, struct error *e)
{
	int64_t E = s->model.config.embed;
	if (embed_batch(s, r, n, file, e))
		return -1;
	for (int i = 0; i < n; i++) {
		r[i].score = dot(s->image + i * E, s->text + i * E, E);
		r[i].has |= HAS_SCORE;
	}
	return 0;
}

/* ---- ranking: the records of one caption are held until the next caption begins ---- */

struct group {
	struct record *at; /* copies, reused */
	size_t n, cap;
};

/* Best first; equal scores keep the order of the samples. */
static int by_score(const void *a, const void *b)
{
	const struct record *x = a, *y = b;
	if (x->score != y->score)
		return x->score < y->score ? 1 : -1;
	return (x->sample > y->sample) - (x->sample < y->sample);
}

static int group_flush(struct group *g, struct filter *f, struct error *e)
{
	size_t n = keep && (size_t)keep < g->n ? (size_t)keep : g->n;
	qsort(g->at, g->n, sizeof *g->at, by_score);
	for (size_t i = 0; i < n; i++)
		if (g->at[i].score >= min_score && writer_put(f->out, &g->at[i], e))
			return -1;
	g->n = 0;
	return 0;
}

static bool same_bytes(const void *a, size_t a_n, const void *b, size_t b_n)
{
	return a_n == b_n && (a_n == 0 || memcmp(a, b, a_n) == 0);
}

static bool same_caption(const struct record *a, const struct record *b)
{
	return same_bytes(a->caption.p, a->caption.n, b->caption.p, b->caption.n) &&
	       same_bytes(a->text.v, a->text.n * sizeof *a->text.v, b->text.v, b->text.n * sizeof *b->text.v);
}

static int group_add(struct group *g, struct filter *f, const struct record *r, struct error *e)
{
	if (g->n && !same_caption(&g->at[0], r) && group_flush(g, f, e))
		return -1;
	if (g->n == g->cap) {
		size_t cap = g->cap ? 2 * g->cap : 64;
		struct record *at = mem_grow(g->at, cap, sizeof *at, e);
		if (!at)
			return -1;
		memset(at + g->cap, 0, (cap - g->cap) * sizeof *at);
		g->at = at;
		g->cap = cap;
	}
	return record_copy(&g->at[g->n++], r, e);
}

static void group_free(struct group *g)
{
	for (size_t i = 0; i < g->cap; i++)
		record_free(&g->at[i]);
	free(g->at);
}

static int rank(struct scorer *s, struct filter *f, struct error *e)
{
	struct group g = {0};
	int n, r = 0;
	while (!r && (n = filter_batch(f, (int)run.batch, e)) > 0) {
		r = score_batch(s, f->batch, n, reader_name(f->in), e);
		for (int i = 0; !r && i < n; i++) {
			if (!no_sort)
				r = group_add(&g, f, &f->batch[i], e);
			else if (f->batch[i].score >= min_score)
				r = writer_put(f->out, &f->batch[i], e);
		}
	}
	if (!r && !e->status)
		r = group_flush(&g, f, e);
	group_free(&g);
	return e->status ? -1 : r;
}

/* ---- retrieval ---- */

struct gallery { /* vectors of many records */
	float *image, *text; /* (n, E) */
	uint64_t *key;       /* hash of the record's key: the same record in input and --among counts once */
	size_t n, cap;
};

static int gallery_add(struct gallery *g, const struct scorer *s, const struct record *r, int n, struct error *e)
{
	size_t E = (size_t)s->model.config.embed;
	if (g->n + (size_t)n > g->cap) {
		size_t cap = g->cap ? 2 * g->cap : 1024;
		cap = cap > g->n + (size_t)n ? cap : g->n + (size_t)n;
		float *image = mem_grow(g->image, cap * E, sizeof(float), e);
		g->image = image ? image : g->image;
		float *text = mem_grow(g->text, cap * E, sizeof(float), e);
		g->text = text ? text : g->text;
		uint64_t *key = mem_grow(g->key, cap, sizeof *key, e);
		g->key = key ? key : g->key;
		if (!image || !text || !key)
			return -1;
		g->cap = cap;
	}
	memcpy(g->image + g->n * E, s->image, (size_t)n * E * sizeof(float));
	memcpy(g->text + g->n * E, s->text, (size_t)n * E * sizeof(float));
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

static int gallery_read(struct gallery *g, struct scorer *s, struct filter *f, struct error *e)
{
	int n;
	while ((n = filter_batch(f, (int)run.batch, e)) > 0)
		if (embed_batch(s, f->batch, n, reader_name(f->in), e) || gallery_add(g, s, f->batch, n, e))
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
	printf("\t%.1f\n", ranks[n / 2] + 1);
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
	for (size_t i = 0; i < q->n; i++)
		ranks[i] = rank_of(q->text + (int64_t)i * E, q->image + (int64_t)i * E, pool, pool->image, q->key[i], E);
	print_recall("caption", ranks, q->n, pool->n);
	for (size_t i = 0; i < q->n; i++)
		ranks[i] = rank_of(q->image + (int64_t)i * E, q->text + (int64_t)i * E, pool, pool->text, q->key[i], E);
	print_recall("picture", ranks, q->n, pool->n);
	free(ranks);
	return 0;
}

static int retrieve(struct scorer *s, struct filter *f, int argc, char **argv, struct error *e)
{
	struct gallery q = {0}, pool = {0};
	struct filter other = {0};
	char *operand[] = {argv[0], (char *)among};
	int r = gallery_read(&q, s, f, e);
	if (!r && among) {
		r = filter_open(&other, 2, operand, 1, e) || check_header(s, &other.header, among, e) ||
		    gallery_read(&pool, s, &other, e);
		reader_close(other.in);
		other.in = NULL;
	}
	if (!r)
		r = print_retrieval(&q, among ? &pool : &q, s->model.config.embed, e);
	gallery_free(&q);
	gallery_free(&pool);
	return r;
}

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!model_path)
		return finish(opt_misuse("-m MODEL is needed"));
	struct error e = {0};
	struct filter f = {0};
	struct scorer s = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	if (filter_open(&f, argc, argv, first, &e) == 0 && device_open(&run, &ops, &dev, &e) == 0 &&
	    scorer_open(&s, ops, dev, &e) == 0 && check_header(&s, &f.header, reader_name(f.in), &e) == 0) {
		if (retrieval)
			retrieve(&s, &f, argc, argv, &e);
		else if (filter_start(&f, output, STREAM_LEVEL, &e) == 0)
			rank(&s, &f, &e);
	}
	scorer_close(&s);
	device_close(ops, dev);
	return finish(filter_close(&f, &e));
}
