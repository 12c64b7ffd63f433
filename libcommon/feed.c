/* feed.c - see feed.h. */
#include "feed.h"
#include "lines.h"
#include "wire.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { CLOSED, LIST, ARCHIVE, PNM, SINGLE };

void feed_item_free(struct feed_item *item)
{
	buf_free(&item->key);
	buf_free(&item->caption);
	buf_free(&item->path);
	buf_free(&item->file);
	image_free(&item->pixels);
}

static void item_clear(struct feed_item *item)
{
	item->key.n = item->caption.n = item->path.n = item->file.n = 0;
	item->pixels.width = item->pixels.height = 0;
	item->bad = (struct error){0};
}

/* ---- text ---- */

bool feed_is_text(const struct buf *b)
{
	return b->n == 0 || (utf8_valid(b->p, b->n) && !memchr(b->p, 0, b->n));
}

/* Captions are one line everywhere in the suite: white space and control bytes fold to one space. */
static void fold_space(struct buf *b)
{
	size_t to = 0;
	for (size_t i = 0; i < b->n; i++) {
		bool space = b->p[i] <= ' ' || b->p[i] == 127;
		if (!space)
			b->p[to++] = b->p[i];
		else if (to && b->p[to - 1] != ' ')
			b->p[to++] = ' ';
	}
	while (to && b->p[to - 1] == ' ')
		to--;
	b->n = to;
	if (b->p)
		b->p[to] = 0;
}

/* Base name up to its last dot (a leading dot is part of the name). */
static int key_of_path(struct buf *key, const char *path, size_t n, struct error *e)
{
	size_t from = n, to;
	while (from && path[from - 1] != '/')
		from--;
	for (to = n; to > from + 1 && path[to - 1] != '.';)
		to--;
	return buf_set(key, path + from, to > from + 1 ? to - 1 - from : n - from, e);
}

/* ---- operands ---- */

void feed_open(struct feed *f, char *const *files, int n)
{
	static char dash[] = "-";
	static char *const standard[] = {dash};
	f->files = n ? files : standard;
	f->count = n ? n : 1;
	f->next = 0;
	f->kind = CLOSED;
	f->in = (struct input){.fd = -1};
}

static void close_operand(struct feed *f)
{
	if (f->kind == ARCHIVE)
		tar_free(&f->tar);
	input_close(&f->in);
	f->kind = CLOSED;
	f->pending = false;
	f->number = 0;
}

void feed_close(struct feed *f)
{
	close_operand(f);
	buf_free(&f->line);
	buf_free(&f->member);
}

static int open_operand(struct feed *f, struct error *e)
{
	size_t n;
	struct stat st;
	const char *path = f->files[f->next++];
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return fail(e, STATUS_FAIL, "%s: is a directory, expected a list of pictures, such as 'find %s -type f' prints, tar, PNM, PNG"
		            " or JPEG", path, path);
	if (input_open(&f->in, path, e))
		return -1;
	const uint8_t *p = input_peek(&f->in, TAR_BLOCK, &n, e);
	if (!p) {
		input_close(&f->in);
		return -1;
	}
	enum image_kind image = image_kind(p, n);
	f->kind = image == IMAGE_PNM ? PNM : image != IMAGE_UNKNOWN ? SINGLE : tar_looks_like(p, n) ? ARCHIVE : LIST;
	if (f->kind == LIST && list_names_picture((const uint8_t *)f->in.name, strlen(f->in.name)))
		f->kind = SINGLE; /* empty, or no picture that is read here: told as one, not as a list */
	if (f->kind == ARCHIVE)
		tar_open(&f->tar, &f->in);
	const char *what = n >= 4 && memcmp(p, "\x28\xb5\x2f\xfd", 4) == 0 ? "is zstd-compressed (a packed stream?)"
			   : n >= 2 && memcmp(p, "\x1f\x8b", 2) == 0	   ? "is gzip-compressed, expected it through zcat"
			   : f->kind == LIST && n && memchr(p, 0, n)	   ? "is not text"
									   : NULL;
	return what ? fail(e, STATUS_BAD, "%s: %s; expected a list of pictures, tar, PNM, PNG or JPEG", f->in.name, what) : 0;
}

/* ---- lists: path<TAB>caption<TAB>key, further columns ignored ---- */

static int join_path(struct feed *f, struct buf *out, const char *path, size_t n, struct error *e)
{
	const char *list = f->in.name, *slash = f->in.fd > 0 ? strrchr(list, '/') : NULL;
	out->n = 0;
	if (n && path[0] != '/') {
		if (f->folder && buf_printf(out, e, "%s/", f->folder))
			return -1;
		if (!f->folder && slash && buf_add(out, list, (size_t)(slash - list) + 1, e))
			return -1;
	}
	return buf_add(out, path, n, e);
}

static int next_line(struct feed *f, struct feed_item *item, struct error *e)
{
	int r;
	do {
		f->number++;
		r = input_line(&f->in, &f->line, FEED_MAX_TEXT, e);
	} while (r == 1 && f->line.n == 0);
	if (r != 1)
		return r;
	struct list_line l;
	bool tab = list_split(&l, f->line.p, f->line.n);
	if (!tab)
		l.caption = (const uint8_t *)f->caption, l.caption_n = strlen(f->caption);
	if (join_path(f, &item->path, (const char *)l.name, l.name_n, e) || buf_set(&item->caption, l.caption, l.caption_n, e) ||
	    list_key(&item->key, &l, e))
		return -1;
	if (f->number == 1 && !tab && access((char *)item->path.p, F_OK) && errno != EACCES)
		return fail(e, STATUS_BAD, "%s: is no list of pictures: line 1 has no tab and names no file, expected PATH<TAB>CAPTION",
		            f->in.name);
	if (!l.name_n)
		fail(&item->bad, STATUS_BAD, "%s: line %llu: no path", f->in.name, (unsigned long long)f->number);
	return 1;
}

/* ---- webdataset: adjacent members with the same path up to the first dot of the base name ---- */

static size_t sample_name(const struct buf *name)
{
	size_t at = name->n;
	while (at && name->p[at - 1] != '/')
		at--;
	while (at < name->n && name->p[at] != '.')
		at++;
	return at;
}

static int caption_of_json(struct feed_item *item, const struct buf *text, struct error *e)
{
	json_error_t why;
	json_t *root = json_loadb((const char *)text->p, text->n, 0, &why), *value = root ? json_object_get(root, "caption") : NULL;
	int r = 0;
	if (!root)
		fail(&item->bad, STATUS_BAD, "%s: %.200s: not JSON: %s", item->path.p, item->key.p, why.text);
	else if (json_is_string(value))
		r = buf_set(&item->caption, json_string_value(value), json_string_length(value), e);
	json_decref(root);
	return r;
}

static bool field_is(const char *field, const char *names)
{
	size_t n = strlen(field);
	for (const char *p = names; n && (p = strstr(p, field)); p++)
		if ((p == names || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0))
			return true;
	return false;
}

/* What the member under the cursor adds to the sample.  .txt wins over .json. */
static int take_member(struct feed *f, struct feed_item *item, bool *has_text, struct error *e)
{
	size_t stem = sample_name(&f->tar.name);
	const char *field = stem < f->tar.name.n ? (const char *)f->tar.name.p + stem + 1 : "";
	if (field_is(field, "txt text caption") && !*has_text) {
		if (tar_read(&f->tar, &item->caption, FEED_MAX_TEXT, e))
			return -1;
		*has_text = true;
	} else if (field_is(field, "json")) {
		if (tar_read(&f->tar, &f->member, FEED_MAX_JSON, e) || (!*has_text && caption_of_json(item, &f->member, e)))
			return -1;
	} else if (f->tar.size > IMAGE_MAX_FILE) {
		fail(&item->bad, STATUS_LIMIT, "%s: %.200s: %llu bytes, expected at most %d", f->in.name, f->tar.name.p,
		     (unsigned long long)f->tar.size, IMAGE_MAX_FILE);
	} else if (item->file.n == 0 && f->tar.size) {
		if (tar_read(&f->tar, &item->file, IMAGE_MAX_FILE, e))
			return -1;
		if (image_kind(item->file.p, item->file.n) == IMAGE_UNKNOWN)
			item->file.n = 0; /* some other field of the sample */
	}
	return 0;
}

static int next_sample(struct feed *f, struct feed_item *item, struct error *e)
{
	bool has_text = false;
	int r = f->pending ? 1 : tar_next(&f->tar, e);
	if (r != 1)
		return r;
	if (buf_set(&item->key, f->tar.name.p, sample_name(&f->tar.name), e) ||
	    buf_printf(&item->path, e, "%s: %s", f->in.name, item->key.p))
		return -1;
	do {
		if (take_member(f, item, &has_text, e))
			return -1;
		r = tar_next(&f->tar, e);
	} while (r == 1 && sample_name(&f->tar.name) == item->key.n && memcmp(f->tar.name.p, item->key.p, item->key.n) == 0);
	f->pending = r == 1;
	if (r < 0)
		return -1;
	if (!item->file.n)
		fail(&item->bad, STATUS_BAD, "%s: no picture, expected PNG, JPEG or PNM with this sample", item->path.p);
	if (!item->caption.n && buf_set(&item->caption, f->caption, strlen(f->caption), e))
		return -1;
	fold_space(&item->caption);
	return 1;
}

/* ---- pictures themselves ---- */

static int next_pnm(struct feed *f, struct feed_item *item, struct error *e)
{
	int r = image_read_pnm(&item->pixels, &f->in, &f->options, e);
	if (r != 1)
		return r;
	bool is_stdin = f->in.fd == 0;
	if (is_stdin ? buf_set(&item->key, "stdin", 5, e) : key_of_path(&item->key, f->in.name, strlen(f->in.name), e))
		return -1;
	if (buf_printf(&item->key, e, "-%06llu", (unsigned long long)f->number++) ||
	    buf_set(&item->path, f->in.name, strlen(f->in.name), e) ||
	    buf_set(&item->caption, f->caption, strlen(f->caption), e))
		return -1;
	return 1;
}

static int next_single(struct feed *f, struct feed_item *item, struct error *e)
{
	if (f->number++)
		return 0;
	do {
		if (buf_reserve(&item->file, 1 << 16, e))
			return -1;
		int64_t got = input_read(&f->in, item->file.p + item->file.n, 1 << 16, e);
		if (got < 0)
			return -1;
		item->file.n += (size_t)got;
		if (got < 1 << 16)
			break;
	} while (item->file.n <= IMAGE_MAX_FILE);
	if (item->file.n > IMAGE_MAX_FILE)
		fail(&item->bad, STATUS_LIMIT, "%s: more than %d bytes", f->in.name, IMAGE_MAX_FILE);
	return key_of_path(&item->key, f->in.name, strlen(f->in.name), e) ||
		       buf_set(&item->path, f->in.name, strlen(f->in.name), e) ||
		       buf_set(&item->caption, f->caption, strlen(f->caption), e)
		   ? -1
		   : 1;
}

int feed_next(struct feed *f, struct feed_item *item, struct error *e)
{
	for (;;) {
		int r = 0;
		item_clear(item);
		switch (f->kind) {
		case LIST: r = next_line(f, item, e); break;
		case ARCHIVE: r = next_sample(f, item, e); break;
		case PNM: r = next_pnm(f, item, e); break;
		case SINGLE: r = next_single(f, item, e); break;
		default: break;
		}
		if (r == 1 && !item->bad.status && !(feed_is_text(&item->caption) && feed_is_text(&item->key)))
			fail(&item->bad, STATUS_BAD, "%s: the caption or the key is not UTF-8", item->path.p);
		if (r)
			return r;
		close_operand(f);
		if (f->next >= f->count)
			return 0;
		if (open_operand(f, e))
			return -1;
	}
}
