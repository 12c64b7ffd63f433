/* emoji-report.c - how good are the ranked samples, without any trained judge: each held-out caption has a real
 * picture.  For every caption of the ranked stream the best sample is compared with all real pictures (RMSE at
 * 32x32); counted are the nearest picture being the right one, having the right subject, the right tone.  Beside it the
 * same for a copying baseline: the training picture whose caption shares most words.
 *
 *	emoji-report --pairs pairs.tsv --truth all.pix ranked.pix
 *
 * pairs.tsv: file, caption, key, split, group, subgroup, version, base, tones (emoji-extract writes it). */
#include "../libcommon/opt.h"
#include "../libcommon/stream.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 32, CELLS = SIDE * SIDE * 3, MAX_WORDS = 32 };
enum { COL_CAPTION = 1, COL_KEY = 2, COL_SPLIT = 3, COL_BASE = 7, COL_TONES = 8, COLUMNS = 9 };

struct pair {
	char *key, *caption, *base, *tones, *split; /* inside the table's text */
	float *thumb;                               /* (SIDE, SIDE, 3) in 0..1; NULL: no picture */
};

struct table {
	struct buf text;
	struct pair *at;
	size_t n;
};

struct tally {
	int captions, exact, subject, tone, tones_asked;
	double first, best; /* sums of scores */
	int scored;
};

/* ---- the table of pairs ---- */

static int parse_line(char *line, struct pair *p, struct error *e)
{
	char *column[COLUMNS];
	for (int i = 0; i < COLUMNS; i++) {
		column[i] = strsep(&line, "\t");
		if (!column[i])
			return fail(e, STATUS_BAD, "pairs: a line has %d columns, expected %d", i, COLUMNS);
	}
	*p = (struct pair){column[COL_KEY], column[COL_CAPTION], column[COL_BASE], column[COL_TONES], column[COL_SPLIT], NULL};
	return 0;
}

static int table_read(struct table *t, const char *path, struct error *e)
{
	if (read_file(path, 64 << 20, &t->text, e))
		return -1;
	char *rest = (char *)t->text.p, *line;
	while ((line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		struct pair *grown = mem_grow(t->at, t->n + 1, sizeof *t->at, e);
		if (!grown)
			return -1;
		t->at = grown;
		if (parse_line(line, &t->at[t->n++], e))
			return -1;
	}
	return 0;
}

static struct pair *table_find(const struct table *t, const struct buf *key)
{
	for (size_t i = 0; i < t->n; i++)
		if (key->n && strcmp(t->at[i].key, (const char *)key->p) == 0)
			return &t->at[i];
	return NULL;
}

static void table_free(struct table *t)
{
	for (size_t i = 0; i < t->n; i++)
		free(t->at[i].thumb);
	free(t->at);
	buf_free(&t->text);
}

/* ---- pictures at 32x32 ---- */

/* Plain area average; sides smaller than SIDE repeat pixels. */
static void thumbnail(float *out, const struct pixels *p)
{
	for (int y = 0; y < SIDE; y++) {
		uint32_t y0 = (uint32_t)y * p->height / SIDE, y1 = ((uint32_t)y + 1) * p->height / SIDE;
		y1 = y1 > y0 ? y1 : y0 + 1;
		for (int x = 0; x < SIDE; x++) {
			uint32_t x0 = (uint32_t)x * p->width / SIDE, x1 = ((uint32_t)x + 1) * p->width / SIDE;
			x1 = x1 > x0 ? x1 : x0 + 1;
			double sum[3] = {0};
			for (uint32_t v = y0; v < y1; v++)
				for (uint32_t u = x0; u < x1; u++)
					for (int c = 0; c < 3; c++)
						sum[c] += p->rgb[((size_t)v * p->width + u) * 3 + (size_t)c];
			for (int c = 0; c < 3; c++)
				out[(y * SIDE + x) * 3 + c] = (float)(sum[c] / (255.0 * (y1 - y0) * (x1 - x0)));
		}
	}
}

static double distance(const float *a, const float *b)
{
	float sum = 0;
	for (int i = 0; i < CELLS; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

static const struct pair *nearest(const struct table *t, const float *thumb)
{
	const struct pair *best = NULL;
	double least = DBL_MAX;
	for (size_t i = 0; i < t->n; i++) {
		double d = t->at[i].thumb ? distance(t->at[i].thumb, thumb) : DBL_MAX;
		if (d < least) {
			least = d;
			best = &t->at[i];
		}
	}
	return best;
}

static int read_truth(struct table *t, const char *path, struct error *e)
{
	char *files[] = {(char *)path};
	struct record rec = {0};
	struct reader *in = reader_open(files, 1, e);
	int r = -1;
	while (in && (r = reader_next(in, &rec, e)) > 0) {
		struct pair *p = table_find(t, &rec.key);
		if (!p || p->thumb || !rec.pixels.width)
			continue;
		p->thumb = mem_alloc(CELLS, sizeof(float), e);
		if (!p->thumb)
			break;
		thumbnail(p->thumb, &rec.pixels);
	}
	record_free(&rec);
	if (in)
		reader_close(in);
	return e->status ? -1 : r;
}

/* ---- the copying baseline ---- */

static int split_words(const char *s, char words[MAX_WORDS][24])
{
	int n = 0;
	while (*s && n < MAX_WORDS) {
		size_t k = 0;
		while (*s && !isalnum((unsigned char)*s) && !((unsigned char)*s & 128))
			s++;
		for (; *s && (isalnum((unsigned char)*s) || ((unsigned char)*s & 128)); s++)
			if (k < sizeof words[n] - 1)
				words[n][k++] = (char)tolower((unsigned char)*s);
		words[n][k] = 0;
		n += k > 0;
	}
	return n;
}

/* Shared words, each counted once; of equal counts the caption with fewest other words wins. */
static double caption_overlap(const char *a, const char *b)
{
	char wa[MAX_WORDS][24], wb[MAX_WORDS][24];
	int na = split_words(a, wa), nb = split_words(b, wb), shared = 0;
	for (int i = 0; i < na; i++) {
		for (int j = 0; j < nb; j++) {
			if (strcmp(wa[i], wb[j]) == 0) {
				shared++;
				wb[j][0] = 0;
				break;
			}
		}
	}
	return shared - 0.001 * nb;
}

static const struct pair *copied(const struct table *t, const struct pair *asked)
{
	const struct pair *best = NULL;
	double most = -DBL_MAX;
	for (size_t i = 0; i < t->n; i++) {
		if (strcmp(t->at[i].split, "train") != 0 || !t->at[i].thumb)
			continue;
		double s = caption_overlap(asked->caption, t->at[i].caption);
		if (s > most) {
			most = s;
			best = &t->at[i];
		}
	}
	return best;
}

/* ---- counting ---- */

static void count(struct tally *c, const struct pair *asked, const struct pair *found)
{
	c->captions++;
	/* Some names share one glyph: the same picture under another name is as right. */
	c->exact += found == asked || (asked->thumb && distance(asked->thumb, found->thumb) == 0);
	c->subject += strcmp(found->base, asked->base) == 0;
	if (*asked->tones) {
		c->tones_asked++;
		c->tone += strcmp(found->tones, asked->tones) == 0;
	}
}

struct group { /* the samples of one caption */
	const struct pair *asked;
	float *first, *best; /* thumbnails; best = highest score */
	float first_score, best_score;
	uint32_t first_sample;
};

enum { SPLITS = 2 };
static const char *const split_names[SPLITS] = {"combo", "cross"};
struct report {
	struct tally first[SPLITS], best[SPLITS], copy[SPLITS];
};

static void close_group(struct group *g, const struct table *t, struct report *r)
{
	for (int s = 0; g->asked && s < SPLITS; s++) {
		if (strcmp(g->asked->split, split_names[s]) != 0)
			continue;
		count(&r->first[s], g->asked, nearest(t, g->first));
		count(&r->best[s], g->asked, nearest(t, g->best));
		count(&r->copy[s], g->asked, copied(t, g->asked));
		r->best[s].first += g->first_score;
		r->best[s].best += g->best_score;
		r->best[s].scored++;
	}
	g->asked = NULL;
}

static void add_sample(struct group *g, const struct record *rec)
{
	float score = rec->has & HAS_SCORE ? rec->score : 0;
	if (rec->sample < g->first_sample) {
		g->first_sample = rec->sample;
		g->first_score = score;
		thumbnail(g->first, &rec->pixels);
	}
	if (score > g->best_score) {
		g->best_score = score;
		thumbnail(g->best, &rec->pixels);
	}
}

static int read_samples(const struct table *t, char *const *files, int n, struct report *r, struct error *e)
{
	float thumbs[2][CELLS];
	struct group g = {.first = thumbs[0], .best = thumbs[1]};
	struct record rec = {0};
	struct reader *in = reader_open(files, n, e);
	int more = -1;
	while (in && (more = reader_next(in, &rec, e)) > 0) {
		const struct pair *p = table_find(t, &rec.key);
		if (!p || !rec.pixels.width)
			continue;
		if (p != g.asked) {
			close_group(&g, t, r);
			g.asked = p;
			g.first_sample = UINT32_MAX;
			g.best_score = -FLT_MAX;
		}
		add_sample(&g, &rec);
	}
	close_group(&g, t, r);
	record_free(&rec);
	if (in)
		reader_close(in);
	return more;
}

static void print_tally(const char *split, const char *what, const struct tally *c)
{
	double n = c->captions ? c->captions : 1, tones = c->tones_asked ? c->tones_asked : 1;
	printf("%-6s %-22s %8d %9.1f %9.1f %9.1f\n", split, what, c->captions, 100 * c->exact / n, 100 * c->subject / n,
	       100 * c->tone / tones);
}

static void print_report(const struct report *r)
{
	printf("%-6s %-22s %8s %9s %9s %9s\n", "split", "nearest real picture", "captions", "exact %", "subject %", "tone %");
	for (int s = 0; s < SPLITS; s++) {
		print_tally(split_names[s], "to the first sample", &r->first[s]);
		print_tally(split_names[s], "to the best sample", &r->best[s]);
		print_tally(split_names[s], "to a copied picture", &r->copy[s]);
	}
	for (int s = 0; s < SPLITS; s++)
		if (r->best[s].scored)
			printf("%-6s mean CLIP score: first sample %.3f, best sample %.3f\n", split_names[s],
			       r->best[s].first / r->best[s].scored, r->best[s].best / r->best[s].scored);
}

static const char *pairs_path, *truth_path;
static const struct opt options[] = {
	OPT_STRING(0, "pairs", &pairs_path, "FILE", "table that emoji-extract wrote"),
	OPT_STRING(0, "truth", &truth_path, "FILE", "stream with every real picture"),
	OPT_END,
};
static const struct tool tool = {"emoji-report", "--pairs=FILE --truth=FILE [FILE]...",
                                 "Compare ranked emoji samples with the real pictures of their captions", options};

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!pairs_path || !truth_path)
		return finish(opt_misuse("--pairs and --truth are needed"));
	struct error e = {0};
	struct table t = {0};
	struct report r = {0};
	if (table_read(&t, pairs_path, &e) || read_truth(&t, truth_path, &e) ||
	    read_samples(&t, argv + first, argc - first, &r, &e) < 0)
		status = report(&e);
	else
		print_report(&r);
	table_free(&t);
	return finish(status < 0 ? STATUS_OK : status);
}
