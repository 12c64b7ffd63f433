/* image.c - PNG, JPEG and PNM, decoded, cropped and resized.  The first byte chooses the options; the checksums of PNG
 * chunks are made right first. */
#include "fuzz.h"

#include <zlib.h>

#include "../../libcommon/image.h"

static uint32_t get_be(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void seal_png(uint8_t *p, size_t n)
{
	for (size_t at = 8; n - at >= 12 && at < n;) {
		size_t length = get_be(p + at);
		if (length > n - at - 12)
			return;
		uint32_t crc = (uint32_t)crc32(crc32(0, NULL, 0), p + at + 4, (uInt)length + 4);
		for (int i = 0; i < 4; i++)
			p[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
		at += 12 + length;
	}
}

static void use(const struct pixels *p, uint8_t choice)
{
	enum { SIDE = 16 };
	static const uint8_t white[3] = {255, 255, 255};
	struct error e = {0};
	struct crop c;
	struct pixels out = {0}, again = {0};
	struct buf png = {0};
	struct image_options o = IMAGE_DEFAULTS;
	MUST(p->width && p->height && p->width <= IMAGE_MAX_SIDE && p->height <= IMAGE_MAX_SIDE);
	if ((uint64_t)p->width * p->height > 1 << 16)
		return;
	if (crop_plan(&c, choice % (CROP_PAD + 1), p->width, p->height, SIDE, choice, 0, 7, &e) == 0) {
		MUST(crop_apply(&out, p, &c, SIDE, white, choice % (RESIZE_NEAREST + 1), &e) == 0);
		MUST(out.width == SIDE && out.height == SIDE);
	}
	MUST(image_write_png(&png, p, NULL, 0, &e) == 0 && image_decode(&again, png.p, png.n, &o, "again", &e) == 0);
	MUST(again.width == p->width && again.height == p->height);
	MUST(memcmp(again.rgb, p->rgb, (size_t)3 * p->width * p->height) == 0);
	image_free(&out);
	image_free(&again);
	buf_free(&png);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf file = {0};
	struct pixels out = {0};
	struct image_options o = IMAGE_DEFAULTS;
	struct input in;
	if (n < 2)
		return 0;
	uint8_t choice = *p++;
	n--;
	o.least_side = choice & 15;
	MUST(buf_add(&file, p, n, &e) == 0);
	if (image_kind(p, n) == IMAGE_PNG)
		seal_png(file.p, n);
	if (image_decode(&out, file.p, n, &o, "fuzz", &e) == 0)
		use(&out, choice);
	else
		MUST(e.status);
	e = (struct error){0};
	input_memory(&in, file.p, n, "fuzz");
	for (int i = 0; i < 8 && image_kind(p, n) == IMAGE_PNM && image_read_pnm(&out, &in, &o, &e) == 1; i++)
		use(&out, choice);
	input_close(&in);
	image_free(&out);
	buf_free(&file);
	return 0;
}
