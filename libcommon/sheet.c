/* sheet.c - see sheet.h. */
#include "sheet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LABEL_LINES = 8, LEAST_LABEL_WIDTH = 64, LABEL_SPACE = 4 };

static const uint8_t black[3] = {20, 20, 20}, white[3] = {235, 235, 235}, grey[3] = {120, 120, 120};

/* Sizes of a sheet in the making. */
struct layout {
	uint32_t columns, rows, cell_width, cell_height, text;
	struct row {
		uint32_t y, heading, lines; /* top of the pictures; lines of text over and under them */
		const struct buf *caption;
	} *row;
	uint64_t width, height;
};

/* ---- cells ---- */

/* Where the next picture goes, as long as the number of columns is known. */
static void place(const struct sheet *s, struct sheet_cell *c, const struct sheet_cell *before, uint32_t columns)
{
	bool fresh = before && s->options.group && c->caption_hash != before->caption_hash;
	c->row = before ? before->row : 0;
	c->column = before ? before->column + 1 : 0;
	if (fresh || c->column == columns) {
		c->row++;
		c->column = 0;
	}
}

static void describe(struct sheet_cell *c, const struct record *r)
{
	c->note[0] = 0;
	if (r->has & HAS_SCORE)
		snprintf(c->note, sizeof c->note, "%.3f", (double)r->score);
	else if (r->has & HAS_NLL_IMAGE)
		snprintf(c->note, sizeof c->note, "%.3f nats", (double)r->nll_image);
}

static int copy_pixels(struct pixels *to, const struct pixels *from, struct error *e)
{
	if (pixels_resize(to, from->width, from->height, e))
		return -1;
	memcpy(to->rgb, from->rgb, 3 * (size_t)from->width * from->height);
	return 0;
}

int sheet_add(struct sheet *s, const struct record *r, struct error *e)
{
	if (ARRAY_ROOM(s->cells, s->n + 1, &s->cap, e))
		return -1;
	struct sheet_cell *c = &s->cells[s->n];
	*c = (struct sheet_cell){.caption_hash = caption_hash(r, true)};
	if (buf_set(&c->caption, r->caption.p, r->caption.n, e))
		return -1;
	describe(c, r);
	place(s, c, s->n ? c - 1 : NULL, s->options.columns);
	if (s->left_out || (s->options.columns && s->options.rows && c->row >= s->options.rows)) {
		s->left_out++;
		buf_free(&c->caption);
		return 0;
	}
	s->n++; /* before the copy, so that sheet_free sees it */
	return copy_pixels(&c->pixels, &r->pixels, e);
}

void sheet_clear(struct sheet *s)
{
	struct sheet_options o = s->options;
	sheet_free(s);
	s->options = o;
}

void sheet_free(struct sheet *s)
{
	for (size_t i = 0; i < s->n; i++) {
		image_free(&s->cells[i].pixels);
		buf_free(&s->cells[i].caption);
	}
	free(s->cells);
	*s = (struct sheet){.n = 0};
}

/* ---- layout ---- */

static void measure(const struct sheet *s, struct layout *l)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct pixels *p = &s->cells[i].pixels;
		l->cell_width = p->width > l->cell_width ? p->width : l->cell_width;
		l->cell_height = p->height > l->cell_height ? p->height : l->cell_height;
	}
	l->cell_width *= s->options.scale;
	l->cell_height *= s->options.scale;
	l->text = l->cell_width >= 192 ? 2 : 1;
	if (s->options.labels && !s->options.group && l->cell_width < LEAST_LABEL_WIDTH)
		l->cell_width = LEAST_LABEL_WIDTH;
}

static void place_all(struct sheet *s, struct layout *l)
{
	size_t rows = s->options.rows;
	l->columns = s->options.columns;
	if (!l->columns && s->options.group)
		l->columns = UINT32_MAX; /* the longest group decides */
	else if (!l->columns) /* by the rows asked for, or nearly square */
		l->columns = rows ? (uint32_t)((s->n + rows - 1) / rows) : (uint32_t)ceil(sqrt((double)s->n));
	for (size_t i = 0; i < s->n; i++)
		place(s, &s->cells[i], i ? &s->cells[i - 1] : NULL, l->columns);
	uint32_t widest = 0;
	for (size_t i = 0; i < s->n; i++)
		widest = s->cells[i].column + 1 > widest ? s->cells[i].column + 1 : widest;
	l->rows = s->n ? s->cells[s->n - 1].row + 1 : 0;
	if (s->options.group || !s->options.rows) /* no empty columns where the grid is not given whole */
		l->columns = widest;
	else if (s->options.columns)
		l->rows = s->options.rows;
}

static uint32_t label_lines(const struct sheet *s, const struct layout *l, const struct sheet_cell *c)
{
	uint32_t lines = c->note[0] ? 1 : 0;
	if (!s->options.group)
		lines += font_lines((const char *)c->caption.p, c->caption.n, l->text, l->cell_width);
	return lines > MAX_LABEL_LINES ? MAX_LABEL_LINES : lines;
}

/* Lines of text in each row, then where each row is. */
static void stack_rows(const struct sheet *s, struct layout *l)
{
	uint32_t gap = s->options.gap, line = FONT_LINE * l->text;
	l->width = gap + l->columns * ((uint64_t)l->cell_width + gap);
	for (size_t i = 0; s->options.labels && i < s->n; i++) {
		const struct sheet_cell *c = &s->cells[i];
		struct row *r = &l->row[c->row];
		uint32_t lines = label_lines(s, l, c);
		r->lines = lines > r->lines ? lines : r->lines;
		if (s->options.group && c->column == 0 && (i == 0 || c->caption_hash != c[-1].caption_hash)) {
			r->caption = &c->caption;
			r->heading = font_lines((const char *)c->caption.p, c->caption.n, l->text,
						(uint32_t)(l->width > 2 * gap ? l->width - 2 * gap : 1));
		}
	}
	l->height = gap;
	for (uint32_t i = 0; i < l->rows; i++) {
		l->height += l->row[i].heading ? (uint64_t)l->row[i].heading * line + LABEL_SPACE : 0;
		l->row[i].y = (uint32_t)(l->height > STREAM_MAX_SIDE ? STREAM_MAX_SIDE : l->height);
		l->height += (uint64_t)l->cell_height + gap + (l->row[i].lines ? (uint64_t)l->row[i].lines * line + LABEL_SPACE : 0);
	}
}

/* ---- drawing ---- */

static int draw_picture(const struct sheet *s, const struct layout *l, struct pixels *out, const struct sheet_cell *c,
			uint32_t x, uint32_t y, struct error *e)
{
	struct pixels scaled = {0};
	uint32_t w = c->pixels.width * s->options.scale, h = c->pixels.height * s->options.scale;
	int r = image_scale(&scaled, &c->pixels, w, h, RESIZE_NEAREST, e);
	if (r == 0)
		image_paste(out, x + (l->cell_width - w) / 2, y + (l->cell_height - h), &scaled);
	image_free(&scaled);
	return r;
}

static void draw_label(const struct sheet *s, const struct layout *l, struct pixels *out, const struct sheet_cell *c,
		       uint32_t x, uint32_t y, const uint8_t ink[3])
{
	y += l->cell_height + LABEL_SPACE;
	if (!s->options.group) {
		uint32_t lines = font_lines((const char *)c->caption.p, c->caption.n, l->text, l->cell_width);
		uint32_t most = MAX_LABEL_LINES - (c->note[0] != 0);
		lines = lines > most ? most : lines;
		font_draw_wrapped(out, x, y, (const char *)c->caption.p, c->caption.n, l->text, l->cell_width, lines, true, ink);
		y += lines * FONT_LINE * l->text;
	}
	font_draw_wrapped(out, x, y, c->note, strlen(c->note), l->text, l->cell_width, 1, true, grey);
}

static int draw(const struct sheet *s, const struct layout *l, struct pixels *out, struct error *e)
{
	const uint8_t *b = s->options.background;
	const uint8_t *ink = b[0] * 3 + b[1] * 6 + b[2] > 1275 ? black : white;
	uint32_t gap = s->options.gap, line = FONT_LINE * l->text;
	image_fill(out, b);
	for (uint32_t i = 0; i < l->rows; i++) {
		const struct row *r = &l->row[i];
		if (r->caption)
			font_draw_wrapped(out, gap, r->y - r->heading * line - LABEL_SPACE, (const char *)r->caption->p,
					  r->caption->n, l->text, (uint32_t)(l->width > 2 * gap ? l->width - 2 * gap : 1),
					  r->heading, false, ink);
	}
	for (size_t i = 0; i < s->n; i++) {
		const struct sheet_cell *c = &s->cells[i];
		uint32_t x = gap + c->column * (l->cell_width + gap), y = l->row[c->row].y;
		if (draw_picture(s, l, out, c, x, y, e))
			return -1;
		if (s->options.labels)
			draw_label(s, l, out, c, x, y, ink);
	}
	return 0;
}

int sheet_render(struct sheet *s, struct pixels *out, struct error *e)
{
	struct layout l = {0};
	int r = -1;
	if (s->n == 0)
		return fail(e, STATUS_BAD, "no pictures to put on a sheet");
	measure(s, &l);
	place_all(s, &l);
	l.row = mem_zero(l.rows, sizeof *l.row, e);
	if (!l.row)
		return -1;
	stack_rows(s, &l);
	if (l.width > STREAM_MAX_SIDE || l.height > STREAM_MAX_SIDE)
		fail(e, STATUS_LIMIT, "a sheet of %llu x %llu pixels, expected sides of at most %d: show fewer pictures",
		     (unsigned long long)l.width, (unsigned long long)l.height, STREAM_MAX_SIDE);
	else if (pixels_resize(out, (uint32_t)l.width, (uint32_t)l.height, e) == 0)
		r = draw(s, &l, out, e);
	free(l.row);
	return r;
}
