/* test-pillow.c - bicubic resampling and the Gaussian blur against Pillow, byte for byte (tests/golden/make_pillow.py). */
#include "../libcommon/image.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

static const struct image_options options = IMAGE_DEFAULTS;

/* The script's pictures: noise on the left, sharp edges on the right. */
static void pillow_picture(struct pixels *p, uint32_t width, uint32_t height, uint32_t *seed)
{
	struct error e = {0};
	if (pixels_resize(p, width, height, &e))
		abort();
	uint8_t *to = p->rgb;
	for (uint32_t y = 0; y < height; y++)
		for (uint32_t x = 0; x < width; x++)
			for (uint32_t c = 0; c < 3; c++) {
				*seed = *seed * 1664525u + 1013904223u;
				*to++ = (uint8_t)(2 * x < width ? *seed >> 24 : (x / 3 + y / 4 + c) % 2 ? 255 : 0);
			}
}

static bool same_picture(const struct pixels *a, const struct pixels *b)
{
	return a->width == b->width && a->height == b->height && memcmp(a->rgb, b->rgb, 3 * (size_t)a->width * a->height) == 0;
}

static void test_bicubic(struct input *s, uint32_t *seed)
{
	static const uint32_t sizes[][4] = {{37, 23, 16, 10}, {9, 14, 31, 17}, {64, 64, 16, 16}, {5, 5, 5, 9}, {7, 40, 3, 40},
					    {1, 1, 4, 3}, {50, 3, 2, 2}, {33, 21, 33, 21}, {100, 13, 11, 13}, {3, 2, 40, 27}};
	struct pixels in = {0}, out = {0}, part = {0}, want = {0};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		const uint32_t *k = sizes[i];
		struct error e = {0};
		pillow_picture(&in, k[0], k[1], seed);
		bool good = image_read_pnm(&want, s, &options, &e) == 1 &&
			    image_bicubic(&out, &in, k[2], k[3], (struct rect){0, 0, k[2], k[3]}, &e) == 0;
		CHECK(good && same_picture(&out, &want), "bicubic %ux%u to %ux%u: %s", k[0], k[1], k[2], k[3], e.text);
		struct rect window = {k[2] / 3, k[3] / 4, k[2] - k[2] / 3, (k[3] + 1) / 2};
		good = image_bicubic(&part, &in, k[2], k[3], window, &e) == 0;
		for (uint32_t y = 0; good && y < window.height; y++)
			good = memcmp(part.rgb + 3 * (size_t)y * window.width,
				      want.rgb + 3 * ((size_t)(y + window.y) * k[2] + window.x), 3 * (size_t)window.width) == 0;
		CHECK(good, "a window of bicubic %ux%u to %ux%u", k[0], k[1], k[2], k[3]);
	}
	image_free(&in);
	image_free(&out);
	image_free(&part);
	image_free(&want);
}

static void test_blur(struct input *s, uint32_t *seed)
{
	static const struct {
		uint32_t width, height;
		double radius;
	} cases[] = {{23, 17, 1}, {23, 17, 2}, {23, 17, 4},   {23, 17, 8}, {9, 31, 0.5},
		     {5, 3, 8},   {1, 7, 1},   {16, 16, 3.3}, {12, 12, 0}};
	struct pixels p = {0}, want = {0};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct error e = {0};
		pillow_picture(&p, cases[i].width, cases[i].height, seed);
		bool good = image_read_pnm(&want, s, &options, &e) == 1 && image_blur(&p, cases[i].radius, &e) == 0;
		CHECK(good && same_picture(&p, &want), "blur of %ux%u by %g: %s", cases[i].width, cases[i].height,
		      cases[i].radius, e.text);
	}
	image_free(&p);
	image_free(&want);
}

int main(void)
{
	struct error e = {0};
	struct buf file = {0};
	struct pixels rest = {0};
	struct input s;
	uint32_t seed = 99;
	char path[4096];
	const char *root = getenv("SRC");
	snprintf(path, sizeof path, "%s/tests/golden/pillow.ppm", root ? root : ".");
	if (!CHECK(read_file(path, 1 << 20, &file, &e) == 0, "%s", e.text))
		return check_done();
	input_memory(&s, file.p, file.n, path);
	test_bicubic(&s, &seed);
	test_blur(&s, &seed);
	CHECK(image_read_pnm(&rest, &s, &options, &e) == 0, "no case is left over");
	buf_free(&file);
	image_free(&rest);
	return check_done();
}
