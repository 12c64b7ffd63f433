/* img-fid.c - how far the pictures of one stream are from those of another as a whole: the Frechet distance of CLIP's
 * picture vectors, with precision and recall, after the paper's blurs if wanted (recipe G6).  Not Inception FID. */
#include "../libcommon/clip-embed.h"
#include "../libcommon/device.h"
#include "../libcommon/filter.h"
#include "../libcommon/frechet.h"
#include "../libcommon/image.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLURS = 32 };

static struct run_options run = RUN_DEFAULTS(64);
static const char *model_path, *blur_list = "0";
static int64_t neighbours;
static bool as_json;

static const struct opt options[] = {
	OPT_STRING('m', "model", &model_path, "MODEL", "CLIP model file, or a folder as Hugging Face publishes it"),
	OPT_STRING(0, "blur", &blur_list, "RADII", "blur both sides by each of these radii, as 0,1,2,4,8 in the paper"),
	OPT_INT('k', "neighbours", &neighbours, 0, 1000, "K",
	        "also precision and recall by K neighbours, 3 is usual; 0 for neither"),
	OPT_FLAG('J', "json", &as_json, "JSON lines: an object for each radius"),
	OPT_RUN(&run),
	OPT_END,
};
static const struct tool tool = {"img-fid", "-m MODEL [OPTION]... FILE [FILE]",
                                 "Measure the Frechet distance of two streams' pictures on CLIP's features", options};

/* One stream at every radius. */
struct side {
	struct moments moments[MAX_BLURS];
	float *features[MAX_BLURS]; /* (cap, E), kept for the neighbours only */
	size_t n, cap;
};

struct work {
	struct embedder x;
	double radius[MAX_BLURS];
	int radii;
	struct record *records;         /* (batch) */
	size_t records_cap;
	struct pixels *blurred;         /* (batch) */
	const struct pixels **pictures; /* (batch) */
	struct side side[2];
	char *name[2];
};

static int parse_blurs(struct work *w, const char *list, struct error *e)
{
	char *copy = mem_string(list, e), *rest = copy, *word;
	int r = copy ? 0 : -1;
	while (r == 0 && (word = strsep(&rest, ",")))
		r = w->radii == MAX_BLURS ? fail(e, STATUS_USAGE, "more than %d radii", MAX_BLURS)
		                          : parse_real(word, 0, IMAGE_MAX_BLUR, &w->radius[w->radii++], e);
	free(copy);
	return r;
}

/* ---- features ---- */

/* The batch's pictures, blurred, to w->pictures. */
static int blur_batch(struct work *w, int n, double radius, struct error *e)
{
	for (int i = 0; i < n; i++) {
		const struct pixels *from = &w->records[i].pixels;
		w->pictures[i] = from;
		if (radius == 0)
			continue;
		if (pixels_resize(&w->blurred[i], from->width, from->height, e))
			return -1;
		memcpy(w->blurred[i].rgb, from->rgb, 3 * (size_t)from->width * from->height);
		if (image_blur(&w->blurred[i], radius, e))
			return -1;
		w->pictures[i] = &w->blurred[i];
	}
	return 0;
}

/* Room for n more vectors, where they are kept. */
static int side_reserve(struct work *w, struct side *s, size_t n, struct error *e)
{
	size_t E = (size_t)w->x.model.config.embed;
	size_t cap = s->cap;
	for (int i = 0; neighbours && i < w->radii; i++) {
		cap = s->cap; /* of all */
		if (array_room(&s->features[i], s->n + n, &cap, E * sizeof(float), e))
			return -1;
	}
	s->cap = cap;
	return 0;
}

static int side_add(struct work *w, struct side *s, int n, const char *file, struct error *e)
{
	size_t E = (size_t)w->x.model.config.embed;
	for (int i = 0; i < n; i++)
		if (need_pixels(&w->records[i], file, e))
			return -1;
	if (side_reserve(w, s, (size_t)n, e))
		return -1;
	for (int i = 0; i < w->radii; i++) {
		if (blur_batch(w, n, w->radius[i], e) || embed_pictures(&w->x, w->pictures, n, EMBED_FEATURES, file, e))
			return -1;
		moments_add(&s->moments[i], w->x.image, (size_t)n);
		if (neighbours)
			memcpy(s->features[i] + s->n * E, w->x.image, (size_t)n * E * sizeof(float));
	}
	s->n += (size_t)n;
	return 0;
}

/* Up to a batch of records; their number, 0 at the end, -1. */
static int read_batch(struct work *w, struct reader *in, struct error *e)
{
	int n = 0, r = 1;
	while (n < run.batch && (r = reader_next(in, &w->records[n], e)) > 0)
		n++;
	return r < 0 ? -1 : n;
}

static int side_add_all(struct work *w, struct side *s, struct reader *in, struct error *e)
{
	struct progress progress;
	int n;
	progress_start(&progress, "records", 0);
	while ((n = read_batch(w, in, e)) > 0 && side_add(w, s, n, reader_name(in), e) == 0)
		progress_update(&progress, s->n, NULL);
	progress_end(&progress);
	if (n == 0 && s->n < 2)
		return fail(e, STATUS_BAD, "%s: holds %zu record%s, expected two or more", reader_name(in), s->n, plural(s->n));
	return e->status ? -1 : 0;
}

static int side_read(struct work *w, int which, struct error *e)
{
	struct side *s = &w->side[which];
	size_t E = (size_t)w->x.model.config.embed;
	for (int i = 0; i < w->radii; i++)
		if (moments_init(&s->moments[i], E, e))
			return -1;
	struct reader *in = reader_open(&w->name[which], 1, e);
	int r = in ? side_add_all(w, s, in, e) : -1;
	reader_close(in);
	if (r == 0 && s->n <= E)
		note(0, "%s: %zu records are few for %zu features: the covariance is singular and the distance too large",
		     w->name[which], s->n, E);
	return r;
}

/* ---- results ---- */

static int print_json(const struct work *w, int i, double distance, double precision, double recall, struct error *e)
{
	json_t *o = json_pack("{s:f, s:[I, I], s:I, s:f}", "blur", w->radius[i], "records", (json_int_t)w->side[0].n,
	                      (json_int_t)w->side[1].n, "features", (json_int_t)w->x.model.config.embed, "clip_frechet", distance);
	int bad = !o || (neighbours && (json_object_set_new(o, "precision", json_real(precision)) ||
	                                json_object_set_new(o, "recall", json_real(recall)))) ||
	          json_dumpf(o, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9)) || putchar('\n') < 0;
	json_decref(o);
	return bad ? fail(e, STATUS_FAIL, "stdout: cannot write") : 0;
}

static int print_row(const struct work *w, int i, struct error *e)
{
	const struct side *a = &w->side[0], *b = &w->side[1];
	double distance, precision = 0, recall = 0;
	if (frechet_distance(&a->moments[i], &b->moments[i], &distance, e) ||
	    (neighbours && precision_recall(a->features[i], a->n, b->features[i], b->n, (size_t)w->x.model.config.embed,
	                                    (size_t)neighbours, &precision, &recall, e)))
		return -1;
	if (as_json)
		return print_json(w, i, distance, precision, recall, e);
	if (i == 0)
		printf("blur\trecords\tagainst\tCLIP Frechet distance%s\n", neighbours ? "\tprecision\trecall" : "");
	printf("%g\t%zu\t%zu\t%.6g", w->radius[i], a->n, b->n, distance);
	if (neighbours)
		printf("\t%.4f\t%.4f", precision, recall);
	putchar('\n');
	return 0;
}

static int measure(struct work *w, struct error *e)
{
	w->pictures = mem_alloc((size_t)run.batch, sizeof *w->pictures, e);
	w->blurred = mem_zero((size_t)run.batch, sizeof *w->blurred, e);
	if (!w->pictures || !w->blurred || records_room(&w->records, (size_t)run.batch, &w->records_cap, e) ||
	    side_read(w, 0, e) || side_read(w, 1, e))
		return -1;
	for (int i = 0; i < w->radii; i++)
		if (print_row(w, i, e))
			return -1;
	return 0;
}

static void work_free(struct work *w)
{
	for (int s = 0; s < 2; s++) {
		for (int i = 0; i < w->radii; i++) {
			moments_free(&w->side[s].moments[i]);
			free(w->side[s].features[i]);
		}
	}
	for (int64_t i = 0; w->blurred && i < run.batch; i++)
		image_free(&w->blurred[i]);
	records_free(w->records, w->records_cap);
	free(w->blurred);
	free(w->pictures);
	embedder_close(&w->x);
}

int main(int argc, char **argv)
{
	static char dash[] = "-";
	static struct work w;
	struct error e = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!model_path)
		return finish(opt_misuse("-m MODEL is needed"));
	if (argc - first < 1 || argc - first > 2)
		return finish(opt_misuse("expected two streams: FILE FILE, or FILE and stdin"));
	if (parse_blurs(&w, blur_list, &e))
		return finish(opt_misuse("--blur: %s", e.text));
	w.name[0] = argv[first];
	w.name[1] = argc - first > 1 ? argv[first + 1] : dash;
	if (device_open(&run, &ops, &dev, &e) == 0 && embedder_open(&w.x, model_path, ops, dev, (int)run.batch, &e) == 0)
		measure(&w, &e);
	work_free(&w);
	device_close(ops, dev);
	return finish(e.status ? report(&e) : STATUS_OK);
}
