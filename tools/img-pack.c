/* img-pack.c - pictures with captions -> records with key, caption and pixels.  Pictures are
 * decoded in parallel; records come out in the order of the input. */
#include "../libcommon/feed.h"
#include "../libcommon/hash.h"
#include "../libcommon/opt.h"
#include "../libcommon/progress.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_set_num_threads(n) ((void)(n))
#endif

static int64_t size = 256, variants = 1, seed, threads, max_pixels = 100000000;
static int crop_choice = CROP_CENTER, filter_choice = RESIZE_AUTO;
static bool strict;
static const char *output, *background = "white", *caption = "", *folder;

enum { NAMED = 10 }; /* pictures left out that are named without -v */

/* One picture on its way: item -> records. */
struct slot {
	struct feed_item item;
	struct record *records; /* `variants` of them */
	struct error bad;
};

/* Two banks: while one is decoded, the other is written. */
struct bank {
	struct slot *slots;
	int n;
};

struct pack {
	struct feed feed;
	struct image_options options;
	struct writer *out;
	struct bank banks[2];
	int batch;
	uint64_t done, left_out;
	struct progress progress;
};

/* ---- one picture ---- */

static int decode(struct pixels *whole, struct feed_item *item, const struct image_options *o, struct error *e)
{
	const char *name = (const char *)item->path.p;
	if (item->bad.status) {
		*e = item->bad;
		return -1;
	}
	if (item->pixels.width) {
		*whole = item->pixels; /* takes it over */
		item->pixels = (struct pixels){0};
		return 0;
	}
	if (!item->file.n && read_file(name, IMAGE_MAX_FILE, &item->file, e))
		return -1;
	return image_decode(whole, item->file.p, item->file.n, o, name, e);
}

static int cut(const struct pack *p, struct pixels *out, const struct feed_item *item, const struct pixels *whole,
	       uint32_t variant, struct error *e)
{
	struct crop c;
	struct error why = {0};
	bool paper = crop_choice == CROP_DVAE || crop_choice == CROP_DALLE;
	enum resize_filter filter = paper && filter_choice == RESIZE_AUTO ? RESIZE_TF_AREA : (enum resize_filter)filter_choice;
	if (crop_plan(&c, (enum crop_mode)crop_choice, whole->width, whole->height, (uint32_t)size, (uint64_t)seed, variant,
		      hash64(item->key.p, item->key.n), &why))
		return fail(e, why.status, "%s: %s", item->path.p, why.text);
	return crop_apply(out, whole, &c, (uint32_t)size, p->options.background, filter, e);
}

static int make_record(const struct pack *p, struct record *r, const struct feed_item *item, const struct pixels *whole,
		       uint32_t variant, struct error *e)
{
	record_clear(r);
	if (buf_set(&r->key, item->key.p, item->key.n, e) || (variants > 1 && buf_printf(&r->key, e, "~%u", variant)) ||
	    buf_set(&r->caption, item->caption.p, item->caption.n, e))
		return -1;
	if (size)
		return cut(p, &r->pixels, item, whole, variant, e);
	if (pixels_resize(&r->pixels, whole->width, whole->height, e))
		return -1;
	memcpy(r->pixels.rgb, whole->rgb, 3 * (size_t)whole->width * whole->height);
	return 0;
}

static void work(const struct pack *p, struct slot *s)
{
	struct pixels whole = {0};
	s->bad = (struct error){0};
	int r = decode(&whole, &s->item, &p->options, &s->bad);
	for (uint32_t v = 0; r == 0 && v < variants; v++)
		r = make_record(p, &s->records[v], &s->item, &whole, v, &s->bad);
	image_free(&whole);
}

/* ---- batches ---- */

/* The number of items read into the bank, -1. */
static int fill_bank(struct pack *p, struct bank *b, struct error *e)
{
	for (b->n = 0; b->n < p->batch; b->n++) {
		int r = feed_next(&p->feed, &b->slots[b->n].item, e);
		if (r < 0)
			return -1;
		if (r == 0)
			break;
	}
	return b->n;
}

/* The first few are named, so that a list whose pictures are not there fits a screen; all are counted at the end. */
static void leave_out(struct pack *p, const struct error *bad)
{
	p->left_out++;
	note(p->left_out <= NAMED ? 0 : 1, "%s (left out)", bad->text);
	if (p->left_out == NAMED + 1 && verbosity < 1)
		note(0, "further ones are only counted; -v names them all");
}

static int write_bank(struct pack *p, struct bank *b, struct error *e)
{
	for (int i = 0; i < b->n; i++) {
		struct slot *s = &b->slots[i];
		if (s->bad.status && strict)
			return fail(e, STATUS_BAD, "%s", s->bad.text);
		if (s->bad.status)
			leave_out(p, &s->bad);
		for (int64_t v = 0; !s->bad.status && v < variants; v++)
			if (writer_put(p->out, &s->records[v], e))
				return -1;
		p->done++;
	}
	progress_update(&p->progress, p->done, NULL);
	return 0;
}

static int run(struct pack *p, struct error *e)
{
	int now = 0, n, r = 0;
	do {
		struct bank *bank = &p->banks[now], *before = &p->banks[!now];
		n = fill_bank(p, bank, e);
		/* Item -1 writes the other bank; it comes first, as it takes longest. */
#pragma omp parallel for schedule(dynamic, 1)
		for (int i = -1; i < n; i++) {
			if (i >= 0)
				work(p, &bank->slots[i]);
			else
				r = write_bank(p, before, e);
		}
		now = !now;
	} while (n > 0 && r == 0);
	return n < 0 || r ? -1 : 0;
}

/* ---- start and end ---- */

static int make_banks(struct pack *p, struct error *e)
{
	p->batch = 16 * omp_get_max_threads();
	for (int k = 0; k < 2; k++) {
		p->banks[k].slots = mem_zero((size_t)p->batch, sizeof(struct slot), e);
		if (!p->banks[k].slots)
			return -1;
		for (int i = 0; i < p->batch; i++)
			if (!(p->banks[k].slots[i].records = mem_zero((size_t)variants, sizeof(struct record), e)))
				return -1;
	}
	return 0;
}

static void free_banks(struct pack *p)
{
	for (int k = 0; k < 2; k++) {
		for (int i = 0; p->banks[k].slots && i < p->batch; i++) {
			struct slot *s = &p->banks[k].slots[i];
			for (int64_t v = 0; s->records && v < variants; v++)
				record_free(&s->records[v]);
			free(s->records);
			feed_item_free(&s->item);
		}
		free(p->banks[k].slots);
	}
}

static int start(struct pack *p, int argc, char **argv, int first, struct error *e)
{
	struct header h = {.width = (uint32_t)size, .height = (uint32_t)size};
	p->options = (struct image_options)IMAGE_DEFAULTS;
	p->options.max_pixels = (uint64_t)max_pixels;
	p->options.least_side = size ? crop_least_side((enum crop_mode)crop_choice, (uint32_t)size) : 0;
	if (threads)
		omp_set_num_threads((int)threads);
	if (image_parse_colour("--background", background, p->options.background, e) || make_banks(p, e))
		return -1;
	p->feed = (struct feed){.caption = caption, .folder = folder, .options = p->options};
	feed_open(&p->feed, argv + first, argc - first);
	if (header_add_program(&h, argc, argv, e) == 0)
		p->out = writer_open(output, &h, STREAM_LEVEL, e);
	header_free(&h);
	progress_start(&p->progress, "pictures", 0);
	return p->out ? 0 : -1;
}

static int pack(int argc, char **argv, int first, struct error *e)
{
	struct pack p = {.batch = 0};
	int r = start(&p, argc, argv, first, e) ? -1 : run(&p, e);
	progress_end(&p.progress);
	if (r == 0 && p.done && p.left_out == p.done)
		r = fail(e, STATUS_BAD, "none of %llu picture%s could be used", (unsigned long long)p.done, plural(p.done));
	if (r == 0)
		r = writer_close(p.out, e);
	else if (p.out)
		writer_abort(p.out);
	if (r == 0 && !p.done)
		note(0, "the input is empty: no pictures");
	if (r == 0 && p.left_out)
		note(0, "%llu of %llu picture%s left out", (unsigned long long)p.left_out, (unsigned long long)p.done, plural(p.done));
	feed_close(&p.feed);
	free_banks(&p);
	return r;
}

static const struct opt options[] = {
	OPT_INT('s', "size", &size, 0, STREAM_MAX_SIDE, "SIZE", "side of the square in pixels, 0 for pictures as they are"),
	OPT_CHOICE('c', "crop", &crop_choice, CROP_NAMES, "how a picture becomes a square"),
	OPT_INT('n', "variants", &variants, 1, 10000, "N", "random crops of each picture"),
	OPT_INT(0, "seed", &seed, 0, 9e18, "SEED", "seed of random crops"),
	OPT_CHOICE('f', "filter", &filter_choice, RESIZE_NAMES, "how pictures are resized"),
	OPT_STRING('b', "background", &background, "COLOUR", "behind transparent parts: RRGGBB, white, black, grey"),
	OPT_STRING(0, "caption", &caption, "TEXT", "caption of pictures that have none"),
	OPT_STRING('C', "directory", &folder, "DIR", "relative paths of lists start at DIR"),
	OPT_INT(0, "max-pixels", &max_pixels, 1, STREAM_MAX_SIDE * (double)STREAM_MAX_SIDE, "N", "leave out pictures of more pixels than these"),
	OPT_FLAG(0, "strict", &strict, "stop at the first picture that cannot be used"),
	OPT_INT('j', "threads", &threads, 0, 4096, "N", "CPU threads, 0 for all"),
	OPT_OUTPUT(&output),
	OPT_END,
};

int main(int argc, char **argv)
{
	static const struct tool tool = {"img-pack", "[OPTION]... [FILE]...", "Pack pictures with captions into a stream of records",
					 options};
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (variants > 1 && (size == 0 || crop_choice == CROP_CENTER || crop_choice == CROP_PAD))
		return finish(opt_misuse("--variants needs a size and a random crop: random, paper-dvae or paper-dalle"));
	if (first == argc && isatty(STDIN_FILENO))
		return finish(opt_misuse("stdin is a terminal, expected a list of pictures, tar or PNM"));
	return finish(pack(argc, argv, first, &e) ? report(&e) : STATUS_OK);
}
