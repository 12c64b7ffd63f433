/* image-crop.c - from a picture of any shape to a square: geometry first, then pixels. */
#include "image.h"
#include "rng.h"

/* Draws of one crop, so that each has a number stream of its own. */
enum draw { DRAW_X, DRAW_Y, DRAW_SIZE, DRAW_WINDOW_X, DRAW_WINDOW_Y, DRAW_MIRROR, DRAWS = 8 };

struct dice {
	uint64_t seed, index;
	uint32_t variant;
};

/* Uniform in [low, high). */
static uint32_t roll(const struct dice *d, enum draw what, uint32_t low, uint32_t high)
{
	return low + rng_below(d->seed, RNG_AUGMENT, d->variant * DRAWS + what, d->index, high - low);
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static void plan_pad(struct crop *c, uint32_t width, uint32_t height, uint32_t size)
{
	uint32_t longer = width > height ? width : height;
	/* Rounded to the nearest pixel; a sliver keeps one. */
	c->width = (uint32_t)(((uint64_t)width * size + longer / 2) / longer);
	c->height = (uint32_t)(((uint64_t)height * size + longer / 2) / longer);
	c->width = c->width ? c->width : 1;
	c->height = c->height ? c->height : 1;
	c->from = (struct rect){0, 0, width, height};
	c->window = (struct rect){0, 0, c->width, c->height};
	c->x = (size - c->width) / 2;
	c->y = (size - c->height) / 2;
}

static uint32_t near_middle(const struct dice *d, enum draw what, uint32_t spare)
{
	uint32_t low = (uint32_t)(3 * (uint64_t)spare / 8), high = (uint32_t)(5 * (uint64_t)spare / 8);
	return roll(d, what, low, high > low ? high : low + 1);
}

/* Size t x t drawn from [low, high], and a random window of it. */
static void plan_window(struct crop *c, const struct dice *d, uint32_t low, uint32_t high, uint32_t size)
{
	c->width = c->height = roll(d, DRAW_SIZE, low, high + 1);
	c->window.x = roll(d, DRAW_WINDOW_X, 0, c->width - size + 1);
	c->window.y = roll(d, DRAW_WINDOW_Y, 0, c->height - size + 1);
}

int crop_plan(struct crop *c, enum crop_mode mode, uint32_t width, uint32_t height, uint32_t size, uint64_t seed,
	      uint32_t variant, uint64_t index, struct error *e)
{
	struct dice d = {seed, index, variant};
	uint32_t side = smaller(width, height), spare_x = width - side, spare_y = height - side;
	bool paper = mode == CROP_DVAE || mode == CROP_DALLE;
	*c = (struct crop){.from = {spare_x / 2, spare_y / 2, side, side},
			   .width = size,
			   .height = size,
			   .window = {0, 0, size, size}};
	if (paper && side < size)
		return fail(e, STATUS_BAD, "%u x %u pixels are too small for this crop, expected at least %u x %u", width,
			    height, size, size);
	if (mode == CROP_PAD)
		plan_pad(c, width, height, size);
	if (mode == CROP_RANDOM || mode == CROP_DVAE) {
		c->from.x = roll(&d, DRAW_X, 0, spare_x + 1);
		c->from.y = roll(&d, DRAW_Y, 0, spare_y + 1);
	}
	if (mode == CROP_DALLE) {
		c->from.x = near_middle(&d, DRAW_X, spare_x);
		c->from.y = near_middle(&d, DRAW_Y, spare_y);
		plan_window(c, &d, size, smaller(side, size * 9 / 8), size);
	}
	if (mode == CROP_DVAE) {
		plan_window(c, &d, smaller(side, size * 9 / 8), smaller(side, size * 12 / 8), size);
		c->mirrored = roll(&d, DRAW_MIRROR, 0, 2) == 1;
	}
	return 0;
}

int crop_apply(struct pixels *out, const struct pixels *in, const struct crop *c, uint32_t size,
	       const uint8_t background[3], enum resize_filter filter, struct error *e)
{
	if (c->window.width == size && c->window.height == size) {
		if (image_resize(out, in, c->from, c->width, c->height, c->window, filter, e))
			return -1;
	} else {
		struct pixels part = {0};
		int r = image_resize(&part, in, c->from, c->width, c->height, c->window, filter, e);
		if (r == 0 && (r = pixels_resize(out, size, size, e)) == 0) {
			image_fill(out, background);
			image_paste(out, c->x, c->y, &part);
		}
		image_free(&part);
		if (r)
			return -1;
	}
	if (c->mirrored)
		image_mirror(out);
	return 0;
}

uint32_t crop_least_side(enum crop_mode mode, uint32_t size)
{
	return mode == CROP_DVAE ? size * 12 / 8 : mode == CROP_DALLE ? size * 9 / 8 : size;
}
