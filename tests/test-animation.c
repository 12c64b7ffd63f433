/* test-animation.c - APNG: every chunk's checksum, numbers and times, and each frame taken out again as a PNG of its own;
 * frames sorted by key and sample. */
#include "../libcommon/animation.h"
#include "../libcommon/image.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { FRAMES = 4, W = 37, H = 29, DELAY = 300, HOLD = 1700 };

static const struct image_options options = IMAGE_DEFAULTS;

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void make_picture(struct pixels *p, uint32_t width, uint32_t height, uint32_t seed)
{
	struct error e = {0};
	if (pixels_resize(p, width, height, &e))
		abort();
	for (size_t i = 0; i < 3 * (size_t)width * height; i++) {
		seed = seed * 1664525u + 1013904223u;
		p->rgb[i] = (uint8_t)(seed >> 24);
	}
}

static void add_chunk(struct buf *out, const char *name, const uint8_t *data, uint32_t n)
{
	struct error e = {0};
	uint8_t head[8] = {(uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n}, tail[4];
	memcpy(head + 4, name, 4);
	uint32_t crc = (uint32_t)crc32(crc32(0, head + 4, 4), n ? data : head, n);
	for (int i = 0; i < 4; i++)
		tail[i] = (uint8_t)(crc >> (24 - 8 * i));
	if (buf_add(out, head, 8, &e) || buf_add(out, data, n, &e) || buf_add(out, tail, 4, &e))
		abort();
}

/* The frame so far against the picture that it was made of. */
static void check_frame(struct buf *png, int frame)
{
	struct error e = {0};
	struct pixels got = {0}, want = {0};
	make_picture(&want, W, H, (uint32_t)frame);
	add_chunk(png, "IEND", NULL, 0);
	CHECK(image_decode(&got, png->p, png->n, &options, "frame", &e) == 0 && got.width == W && got.height == H &&
	      memcmp(got.rgb, want.rgb, 3 * W * H) == 0, "frame %d: %s", frame, e.text);
	image_free(&got);
	image_free(&want);
}

/* Chunk after chunk. */
static void check_file(const struct buf *file)
{
	struct buf png = {0};
	struct error e = {0};
	uint32_t number = 0, length;
	int frame = -1;
	bool still = false;
	for (size_t at = 8; at + 12 <= file->n; at += 12 + (size_t)length) {
		const uint8_t *p = file->p + at, *data = p + 8;
		length = get32(p);
		if (!CHECK(length <= file->n - at - 12, "a chunk of %u bytes at %zu", length, at))
			break;
		CHECK(get32(data + length) == (uint32_t)crc32(0, p + 4, length + 4), "checksum of %.4s", (const char *)p + 4);
		if (memcmp(p + 4, "acTL", 4) == 0)
			CHECK(!still && get32(data) == FRAMES && get32(data + 4) == 0, "frames and turns come before the pixels");
		still = still || memcmp(p + 4, "IDAT", 4) == 0;
		if (memcmp(p + 4, "fcTL", 4) == 0) {
			if (frame >= 0)
				check_frame(&png, frame);
			frame++;
			CHECK(still && length == 26 && get32(data) == number++ && get32(data + 4) == W && get32(data + 8) == H &&
			      get32(data + 12) == 0 && get32(data + 16) == 0, "control of frame %d", frame);
			CHECK((data[20] << 8 | data[21]) == (frame == FRAMES - 1 ? HOLD : DELAY) && (data[22] << 8 | data[23]) == 1000 &&
			      data[24] == 0 && data[25] == 0, "times of frame %d", frame);
			png.n = 0;
			if (buf_add(&png, file->p, 8 + 25, &e)) /* signature and IHDR */
				abort();
		}
		if (memcmp(p + 4, "fdAT", 4) == 0) {
			CHECK(get32(data) == number++, "number of pixels of frame %d", frame);
			add_chunk(&png, "IDAT", data + 4, length - 4);
		}
	}
	check_frame(&png, frame);
	CHECK(frame == FRAMES - 1 && memcmp(file->p + file->n - 8, "IEND", 4) == 0, "%d frames and an end", frame + 1);
	buf_free(&png);
}

static void test_apng(void)
{
	struct error e = {0};
	struct buf png[FRAMES] = {{0}}, file = {0};
	struct pixels p = {0}, still = {0};
	const struct image_text text = {"Title", "the last"};
	for (int i = 0; i < FRAMES; i++) {
		make_picture(&p, W, H, (uint32_t)i);
		CHECK(image_write_png(&png[i], &p, &text, i == FRAMES - 1, &e) == 0, "%s", e.text);
	}
	CHECK(apng_write(&file, png, FRAMES, DELAY, HOLD, &e) == 0, "%s", e.text);
	check_file(&file);
	CHECK(image_decode(&still, file.p, file.n, &options, "still", &e) == 0 && memcmp(still.rgb, p.rgb, 3 * W * H) == 0,
	      "the still is the last frame: %s", e.text);
	CHECK(memmem(file.p, file.n, "tEXtTitle\0the last", 18) != NULL, "with its text");
	make_picture(&p, H, W, 1);
	png[1].n = 0;
	image_write_png(&png[1], &p, NULL, 0, &e);
	CHECK(apng_write(&file, png, FRAMES, DELAY, HOLD, &e) && e.status == STATUS_BAD, "frames of two sizes are refused");
	for (int i = 0; i < FRAMES; i++)
		buf_free(&png[i]);
	buf_free(&file);
	image_free(&p);
	image_free(&still);
}

static void test_films(void)
{
	static const struct {
		const char *key;
		unsigned has, sample;
		size_t film;
	} frames[] = {{"a", HAS_SAMPLE, 0, 0}, {"a", HAS_SAMPLE, 1, 1}, {"b", 0, 7, 2}, {"a", HAS_SAMPLE, 1, 1}, {"b", 0, 3, 2},
	              {"", 0, 0, 3}, {"a", HAS_SAMPLE, 0, 0}, {"ab", HAS_SAMPLE, 0, 4}, {"", 0, 0, 3}};
	struct error e = {0};
	struct films films = {0};
	struct record r = {.has = 0};
	size_t count[5] = {0};
	for (size_t i = 0; i < ARRAY_LEN(frames); i++) {
		buf_set(&r.key, frames[i].key, strlen(frames[i].key), &e);
		r.has = frames[i].has;
		r.sample = frames[i].sample;
		r.score = (float)i;
		CHECK(films_add(&films, &r, &e) == 0, "%s", e.text);
		const struct film *f = &films.at[frames[i].film];
		CHECK(frames[i].film < films.n && f->n == ++count[frames[i].film] && f->frames[f->n - 1].score == (float)i,
		      "frame %zu belongs to film %zu", i, frames[i].film);
	}
	CHECK(films.n == 5, "%zu films", films.n);
	r.has = HAS_SAMPLE;
	for (uint32_t i = 0; i < 600; i++) {
		r.sample = 10 + i % 200;
		CHECK(films_add(&films, &r, &e) == 0 && films.n == 5 + (i < 200 ? i + 1 : 200) &&
		      films.at[5 + i % 200].n == i / 200 + 1, "frame %u of many films", i);
	}
	films_free(&films);
	record_free(&r);
}

int main(void)
{
	test_apng();
	test_films();
	return check_done();
}
