/* sheet.h - many pictures on one: a grid with, if wanted, captions and scores. */
#ifndef SHEET_H
#define SHEET_H

#include "font.h"

struct sheet_options {
	uint32_t columns, rows; /* 0: columns for a nearly square sheet; as many rows as it takes */
	uint32_t scale;         /* pictures are enlarged this many times, pixels stay sharp */
	uint32_t gap;           /* pixels between and around pictures */
	bool labels;            /* caption and score under each picture */
	bool group;             /* a new row whenever the caption changes; with labels, the caption heads the row */
	uint8_t background[3];
};

struct sheet_cell {
	struct pixels pixels;
	struct buf caption;
	uint64_t caption_hash;
	char note[32]; /* score or nll as text */
	uint32_t row, column;
};

/* Zero-initialise except options; free with sheet_free. */
struct sheet {
	struct sheet_options options;
	struct sheet_cell *cells;
	size_t n, cap;
	uint64_t left_out; /* pictures that came after the grid was full */
};

/* Takes a copy of the record's picture, caption and score. */
int sheet_add(struct sheet *s, const struct record *r, struct error *e);
/* Draw all into *out.  STATUS_LIMIT when the sheet would be larger than a picture may be. */
int sheet_render(struct sheet *s, struct pixels *out, struct error *e);
void sheet_clear(struct sheet *s); /* empty again, options stay */
void sheet_free(struct sheet *s);

#endif
