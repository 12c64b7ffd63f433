/* terminal.h - pictures in a terminal: kitty's graphics, sixel, or half blocks in colour. */
#ifndef TERMINAL_H
#define TERMINAL_H

#include "image.h"

enum terminal_kind { TERMINAL_AUTO, TERMINAL_KITTY, TERMINAL_SIXEL, TERMINAL_BLOCKS };
#define TERMINAL_NAMES "auto|kitty|sixel|blocks"

struct terminal {
	enum terminal_kind kind;
	uint32_t columns;      /* of characters */
	uint32_t width;        /* of pixels, estimated when the terminal does not say */
	bool few_colours;      /* 256 of them, not 24 bits */
};
/* Find out about the terminal on fd.  AUTO goes by the environment, then asks the terminal and
 * waits 0.2 s for an answer; half blocks work everywhere. */
void terminal_open(struct terminal *t, int fd, enum terminal_kind kind);
/* Append to `out` the bytes that draw the picture, shrunk to the terminal's width if needed. */
int terminal_draw(struct buf *out, const struct terminal *t, const struct pixels *p, struct error *e);

#endif
