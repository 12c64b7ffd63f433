/* img-unpack.c - records with pixels -> PNG files, a sheet, animations of either, a webdataset
 * archive, PAM or PPM, or a drawing in the terminal. */
#include "../libcommon/animation.h"
#include "../libcommon/filter.h"
#include "../libcommon/names.h"
#include "../libcommon/opt.h"
#include "../libcommon/sheet.h"
#include "../libcommon/tar.h"
#include "../libcommon/terminal.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 64, MAX_TEXTS = 12, SHORT_TEXT = 64 };

static const char *folder, *grid, *output, *background = "white";
static bool as_tar, as_pam, as_ppm, show, labels, group, animate;
static int64_t scale = 1, gap = 4, delay = 200, hold = 2000;
static int protocol = TERMINAL_AUTO;

struct unpack {
	struct filter in;
	struct outfile out;
	struct names names;
	struct sheet sheet;
	struct films films;             /* of --animate */
	struct buf commands;            /* of the programs that made the stream */
	struct buf cells;               /* what is on a sheet: a line of JSON for each picture */
	struct buf made[BATCH], name;   /* encoded pictures of a batch */
	struct error bad[BATCH];
};

/* ---- what a PNG says about itself ---- */

struct texts {
	struct image_text v[MAX_TEXTS];
	size_t n;
	char numbers[MAX_TEXTS][SHORT_TEXT];
};

static void add_text(struct texts *t, const char *keyword, const char *text)
{
	if (text && *text && t->n < MAX_TEXTS)
		t->v[t->n++] = (struct image_text){keyword, text};
}

__attribute__((format(printf, 3, 4))) static void add_number(struct texts *t, const char *keyword, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(t->numbers[t->n], SHORT_TEXT, fmt, ap);
	va_end(ap);
	add_text(t, keyword, t->numbers[t->n]);
}

static void add_stream_texts(struct texts *t, const struct unpack *u)
{
	add_text(t, "Image-Codec", u->in.header.image.id);
	add_text(t, "Text-Codec", u->in.header.text.id);
	add_text(t, "Software", "dalle-tools " DALLE_VERSION);
	add_text(t, "Command", (const char *)u->commands.p);
}

static void collect(struct texts *t, const struct unpack *u, const struct record *r)
{
	add_text(t, "Description", (const char *)r->caption.p);
	add_text(t, "Key", (const char *)r->key.p);
	if (r->has & HAS_SEED)
		add_number(t, "Seed", "%llu", (unsigned long long)r->seed);
	if (r->has & HAS_SAMPLE)
		add_number(t, "Sample", "%u", r->sample);
	if (r->has & HAS_SCORE)
		add_number(t, "Score", "%.6g", (double)r->score);
	if (r->has & HAS_NLL_TEXT)
		add_number(t, "NLL-Text", "%.6g", (double)r->nll_text);
	if (r->has & HAS_NLL_IMAGE)
		add_number(t, "NLL-Image", "%.6g", (double)r->nll_image);
	add_text(t, "Model", r->model.n ? (const char *)r->model.p : NULL);
	add_stream_texts(t, u);
}

/* A record's buffers are not cleared byte by byte: an absent text may hold an older one. */
static void end_texts(struct record *r)
{
	if (r->key.p)
		r->key.p[r->key.n] = 0;
	if (r->caption.p)
		r->caption.p[r->caption.n] = 0;
	if (r->model.p)
		r->model.p[r->model.n] = 0;
}

static void encode(const struct unpack *u, struct record *r, struct buf *png, struct error *e)
{
	struct texts t = {.n = 0};
	end_texts(r);
	collect(&t, u, r);
	png->n = 0;
	image_write_png(png, &r->pixels, t.v, t.n, e);
}

/* PNGs of the batch, in parallel. */
static int encode_batch(struct unpack *u, int n, struct error *e)
{
#pragma omp parallel for schedule(dynamic, 1)
	for (int i = 0; i < n; i++) {
		u->bad[i] = (struct error){0};
		encode(u, &u->in.batch[i], &u->made[i], &u->bad[i]);
	}
	for (int i = 0; i < n; i++)
		if (u->bad[i].status)
			return fail(e, u->bad[i].status, "%s", u->bad[i].text);
	return 0;
}

/* ---- where pictures go: one function per form ---- */

/* One file of the folder, under u->name. */
static int put_file(struct unpack *u, const struct buf *png, struct error *e)
{
	struct buf path = {0};
	int status = buf_printf(&path, e, "%s/%s.png", folder, u->name.p);
	if (status == 0)
		status = write_file((const char *)path.p, png->p, png->n, true, e);
	buf_free(&path);
	return status;
}

static int set_json(json_t *o, const char *name, json_t *value)
{
	return value ? json_object_set_new(o, name, value) : -1;
}

/* The record's fields as JSON text, to be freed; NULL when there is no memory. */
static char *describe(const struct record *r)
{
	json_t *o = json_object();
	int bad = !o || set_json(o, "key", json_stringn(r->key.n ? (char *)r->key.p : "", r->key.n)) ||
		  set_json(o, "caption", json_stringn(r->caption.n ? (char *)r->caption.p : "", r->caption.n)) ||
		  (r->has & HAS_SEED && set_json(o, "seed", json_integer((json_int_t)r->seed))) ||
		  (r->has & HAS_SAMPLE && set_json(o, "sample", json_integer(r->sample))) ||
		  (r->has & HAS_SCORE && set_json(o, "score", json_real((double)r->score))) ||
		  (r->has & HAS_NLL_TEXT && set_json(o, "nll_text", json_real((double)r->nll_text))) ||
		  (r->has & HAS_NLL_IMAGE && set_json(o, "nll_image", json_real((double)r->nll_image))) ||
		  (r->model.n && set_json(o, "model", json_stringn((char *)r->model.p, r->model.n)));
	char *text = bad ? NULL : json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER);
	json_decref(o);
	return text;
}

static int add_member(struct unpack *u, struct buf *out, const char *extension, const void *p, size_t n, struct error *e)
{
	struct buf name = {0};
	int r = buf_printf(&name, e, "%s.%s", u->name.p, extension) || tar_add(out, (const char *)name.p, p, n, e) ? -1 : 0;
	buf_free(&name);
	return r;
}

static int put_tar(struct unpack *u, const struct record *r, const struct buf *png, struct error *e)
{
	struct buf out = {0};
	char *json = describe(r);
	int status = !json ? fail(e, STATUS_LIMIT, "out of memory")
		     : add_member(u, &out, "png", png->p, png->n, e) || add_member(u, &out, "txt", r->caption.p, r->caption.n, e) ||
			       add_member(u, &out, "json", json, strlen(json), e) || write_full(u->out.fd, out.p, out.n, u->out.path, e)
			 ? -1
			 : 0;
	free(json);
	buf_free(&out);
	return status;
}

static int put_pnm(struct unpack *u, const struct record *r, struct error *e)
{
	char head[160];
	uint32_t w = r->pixels.width, h = r->pixels.height;
	int n = as_ppm ? snprintf(head, sizeof head, "P6\n%u %u\n255\n", w, h)
		       : snprintf(head, sizeof head, "P7\nWIDTH %u\nHEIGHT %u\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n", w, h);
	return write_full(u->out.fd, head, (size_t)n, u->out.path, e) ||
			       write_full(u->out.fd, r->pixels.rgb, 3 * (size_t)w * h, u->out.path, e)
		   ? -1
		   : 0;
}

/* A picture for the sheet, and what is to be known of it. */
static int put_cell(struct unpack *u, const struct record *r, struct error *e)
{
	if (sheet_add(&u->sheet, r, e))
		return -1;
	if (u->sheet.left_out)
		return 0;
	char *json = describe(r);
	int status = json ? buf_printf(&u->cells, e, "%s%s", u->cells.n ? "\n" : "", json) : fail(e, STATUS_LIMIT, "out of memory");
	free(json);
	return status;
}

static int put_batch(struct unpack *u, int n, struct error *e)
{
	bool png = (folder || as_tar) && !animate;
	uint64_t number = u->in.records - (uint64_t)n;
	for (int i = 0; i < n; i++)
		if (need_pixels(&u->in.batch[i], reader_name(u->in.in), e))
			return -1;
	if (png && encode_batch(u, n, e))
		return -1;
	for (int i = 0; i < n; i++) {
		struct record *r = &u->in.batch[i];
		if (png && names_make(&u->names, &u->name, r, number + (uint64_t)i, e))
			return -1;
		if (animate  ? films_add(&u->films, r, e)
		    : folder ? put_file(u, &u->made[i], e)
		    : as_tar ? put_tar(u, r, &u->made[i], e)
		    : as_pam || as_ppm ? put_pnm(u, r, e)
				       : put_cell(u, r, e))
			return -1;
	}
	return 0;
}

/* ---- animations: all frames are held, as a sample's come between those of others ---- */

static void free_frames(struct buf *frames, size_t n)
{
	for (size_t i = 0; frames && i < n; i++)
		buf_free(&frames[i]);
	free(frames);
}

/* n > 0 encoded frames as one APNG to u->name in the folder, or to the output. */
static int put_animation(struct unpack *u, const struct buf *frames, size_t n, struct error *e)
{
	struct buf file = {0};
	int r = apng_write(&file, frames, n, (uint32_t)delay, (uint32_t)hold, e);
	if (r == 0)
		r = folder ? put_file(u, &file, e) : write_full(u->out.fd, file.p, file.n, u->out.path, e);
	buf_free(&file);
	return r;
}

static int put_film(struct unpack *u, const struct film *film, uint64_t number, struct error *e)
{
	struct buf *frames = mem_zero(film->n, sizeof *frames, e);
	if (!frames)
		return -1;
	for (size_t i = 0; i < film->n && !e->status; i++)
		encode(u, &film->frames[i], &frames[i], e);
	int r = e->status || names_make(&u->names, &u->name, &film->frames[0], number, e) ? -1 : 0;
	r = r == 0 ? put_animation(u, frames, film->n, e) : r;
	free_frames(frames, film->n);
	return r;
}

static int encode_sheet(struct unpack *u, struct buf *png, const struct pixels *whole, struct error *e)
{
	struct texts t = {.n = 0};
	add_text(&t, "Records", (const char *)u->cells.p);
	add_stream_texts(&t, u);
	return image_write_png(png, whole, t.v, t.n, e);
}

/* The sheet of every sample's frame i, or its last one when it has fewer. */
static int film_sheet(struct unpack *u, size_t i, struct buf *png, struct error *e)
{
	struct pixels whole = {0};
	int r = 0;
	sheet_clear(&u->sheet);
	u->cells.n = 0;
	for (size_t k = 0; k < u->films.n && r == 0; k++) {
		const struct film *film = &u->films.at[k];
		r = put_cell(u, &film->frames[i < film->n ? i : film->n - 1], e);
	}
	if (r == 0 && (r = sheet_render(&u->sheet, &whole, e)) == 0)
		r = encode_sheet(u, png, &whole, e);
	image_free(&whole);
	return r;
}

static int end_animation(struct unpack *u, struct error *e)
{
	size_t most = 1;
	int r = 0;
	for (size_t k = 0; k < u->films.n; k++) {
		most = u->films.at[k].n > most ? u->films.at[k].n : most;
		if (folder && put_film(u, &u->films.at[k], k, e))
			return -1;
	}
	if (folder)
		return 0;
	struct buf *frames = mem_zero(most, sizeof *frames, e);
	r = frames ? 0 : -1;
	for (size_t i = 0; i < most && r == 0; i++)
		r = film_sheet(u, i, &frames[i], e);
	r = r == 0 ? put_animation(u, frames, most, e) : r;
	free_frames(frames, most);
	return r;
}

/* ---- the end of each form ---- */

static int end_sheet(struct unpack *u, struct error *e)
{
	struct pixels whole = {0};
	struct buf bytes = {0};
	struct terminal t;
	int r = sheet_render(&u->sheet, &whole, e);
	if (r == 0 && show) {
		terminal_open(&t, STDOUT_FILENO, (enum terminal_kind)protocol);
		r = terminal_draw(&bytes, &t, &whole, e);
	} else if (r == 0) {
		r = encode_sheet(u, &bytes, &whole, e);
	}
	if (r == 0)
		r = write_full(u->out.fd, bytes.p, bytes.n, u->out.path, e);
	image_free(&whole);
	buf_free(&bytes);
	return r;
}

static int end(struct unpack *u, struct error *e)
{
	struct buf tail = {0};
	int r = 0;
	if (animate)
		r = end_animation(u, e);
	else if (grid || show)
		r = end_sheet(u, e);
	if (r == 0 && u->sheet.left_out)
		note(0, "%llu more picture%s did not fit on the sheet", (unsigned long long)u->sheet.left_out,
		     plural(u->sheet.left_out));
	if (as_tar)
		r = tar_end(&tail, e) || write_full(u->out.fd, tail.p, tail.n, u->out.path, e) ? -1 : 0;
	buf_free(&tail);
	return r || folder ? r : outfile_commit(&u->out, e);
}

/* ---- start ---- */

/* "4x2", "4x" or "4" (as many rows as it takes), "x2". */
static int parse_grid(const char *text, struct sheet_options *o, struct error *e)
{
	char *stop;
	unsigned long columns = *text == 'x' ? 0 : strtoul(text, &stop, 10), rows = 0;
	if (*text == 'x')
		stop = (char *)(uintptr_t)text;
	bool good = *text >= '0' && *text <= '9' ? true : *text == 'x';
	if (good && *stop == 'x' && stop[1]) {
		good = stop[1] >= '0' && stop[1] <= '9';
		rows = strtoul(stop + 1, &stop, 10);
	} else if (good && *stop == 'x') {
		stop++;
	}
	if (!good || *stop || columns > STREAM_MAX_SIDE || rows > STREAM_MAX_SIDE)
		return fail(e, STATUS_USAGE, "--grid '%s', expected COLUMNSxROWS like 4x2", text);
	o->columns = (uint32_t)columns;
	o->rows = (uint32_t)rows;
	return 0;
}

static int start(struct unpack *u, int argc, char **argv, int first, struct error *e)
{
	struct sheet_options *o = &u->sheet.options;
	*o = (struct sheet_options){.scale = (uint32_t)scale, .gap = (uint32_t)gap, .labels = labels, .group = group};
	if (image_parse_colour("--background", background, o->background, e) || (grid && parse_grid(grid, o, e)) ||
	    filter_open(&u->in, argc, argv, first, e))
		return -1;
	for (size_t i = 0; i < u->in.header.program_count; i++)
		if (buf_printf(&u->commands, e, "%s%s", i ? "\n" : "", u->in.header.programs[i].command))
			return -1;
	if (folder)
		return mkdir(folder, 0777) && errno != EEXIST ? fail_errno(e, "%s", folder) : 0;
	return outfile_open(&u->out, output, e);
}

static int unpack(int argc, char **argv, int first, struct error *e)
{
	struct unpack u = {.out = {.fd = -1}};
	int n = start(&u, argc, argv, first, e) ? -1 : 1;
	while (n > 0 && (n = filter_batch(&u.in, BATCH, e)) > 0)
		if (put_batch(&u, n, e))
			n = -1;
	if (n == 0)
		end(&u, e);
	if (e->status && !folder)
		outfile_abort(&u.out);
	for (int i = 0; i < BATCH; i++)
		buf_free(&u.made[i]);
	buf_free(&u.name);
	buf_free(&u.commands);
	buf_free(&u.cells);
	films_free(&u.films);
	names_free(&u.names);
	sheet_free(&u.sheet);
	return filter_close(&u.in, e);
}

static const struct opt options[] = {
	OPT_STRING('D', "directory", &folder, "DIR", "write one PNG per record into DIR"),
	OPT_STRING('g', "grid", &grid, "COLSxROWS", "write one PNG with all pictures in a grid; either number may be left out"),
	OPT_FLAG(0, "tar", &as_tar, "write a webdataset archive (png, txt, json)"),
	OPT_FLAG(0, "pam", &as_pam, "write concatenated PAM pictures"),
	OPT_FLAG(0, "ppm", &as_ppm, "write concatenated PPM pictures"),
	OPT_FLAG(0, "show", &show, "draw in the terminal"),
	OPT_CHOICE(0, "protocol", &protocol, TERMINAL_NAMES, "how --show draws"),
	OPT_FLAG(0, "animate", &animate, "with -D or -g: pictures of one key and sample number are frames of an APNG"),
	OPT_INT(0, "delay", &delay, 0, 65535, "MS", "milliseconds that a frame of --animate stays"),
	OPT_INT(0, "hold", &hold, 0, 65535, "MS", "the same of the last frame"),
	OPT_FLAG('l', "labels", &labels, "caption and score on sheets"),
	OPT_FLAG(0, "group", &group, "sheets start a row whenever the caption changes"),
	OPT_INT(0, "scale", &scale, 1, 64, "N", "enlarge pictures of sheets N times"),
	OPT_INT(0, "gap", &gap, 0, 1000, "N", "pixels between pictures of sheets"),
	OPT_STRING('b', "background", &background, "COLOUR", "of sheets: RRGGBB, white, black, grey"),
	OPT_OUTPUT(&output),
	OPT_END,
};

int main(int argc, char **argv)
{
	static const struct tool tool = {"img-unpack", "[OPTION]... [FILE]...",
	                                 "Turn records with pictures into picture files", options};
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	int forms = (folder != NULL) + (grid || show) + as_tar + as_pam + as_ppm;
	if (forms != 1)
		return finish(opt_misuse("expected exactly one of -D, -g (or --show), --tar, --pam, --ppm"));
	if (animate && (show || !(folder || grid)))
		return finish(opt_misuse("--animate goes with -D or -g"));
	if (folder && output)
		return finish(opt_misuse("-D and -o exclude each other"));
	if (show && (output || !isatty(STDOUT_FILENO)))
		return finish(opt_misuse("--show draws on a terminal, and stdout is none; expected -g for a file"));
	if (!show && !folder && !output && isatty(STDOUT_FILENO))
		return finish(opt_misuse("not writing binary data to a terminal; expected -o FILE, a pipe or --show"));
	return finish(unpack(argc, argv, first, &e));
}
