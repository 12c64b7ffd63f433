/* font.h - a small bitmap font, for labels under pictures and the axes of charts. */
#ifndef FONT_H
#define FONT_H

#include "image.h"

enum { FONT_HEIGHT = 9, FONT_LINE = 11 }; /* pixels at scale 1: a glyph with descender, a line */

/* Text is UTF-8.  ASCII is drawn, Latin-1 letters as their base letters, common typographic
 * signs as their ASCII likeness, all else as a box. */
uint32_t font_width(const char *text, size_t n, uint32_t scale);
/* Draw with the upper left corner at (x, y), cut at the picture's edges. */
void font_draw(struct pixels *p, int64_t x, int64_t y, const char *text, size_t n, uint32_t scale,
	       const uint8_t rgb[3]);
/* How many bytes of the text fit into `width` pixels as one line, breaking at a space where one
 * is and inside a word where not (at least one character); *skip is the bytes to pass over
 * then, the space included. */
size_t font_fit(const char *text, size_t n, uint32_t scale, uint32_t width, size_t *skip);
/* Lines that the text takes when wrapped to `width`; and drawing them, each centred or from the left. */
uint32_t font_lines(const char *text, size_t n, uint32_t scale, uint32_t width);
void font_draw_wrapped(struct pixels *p, int64_t x, int64_t y, const char *text, size_t n, uint32_t scale,
		       uint32_t width, uint32_t most_lines, bool centred, const uint8_t rgb[3]);

#endif
