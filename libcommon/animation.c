/* animation.c - see animation.h. */
#include "animation.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* ---- films ---- */

/* The film that r belongs to, made if there is none. */
static struct film *find_film(struct films *f, const struct record *r, struct error *e)
{
	uint64_t sample[2] = {hash64(r->key.p, r->key.n), r->has & HAS_SAMPLE ? r->sample : 0};
	size_t *place = hash_table_find(&f->places, hash64(sample, sizeof sample), e);
	if (!place || (!*place && ARRAY_ROOM(f->at, f->n + 1, &f->cap, e)))
		return NULL;
	if (!*place) {
		f->at[f->n++] = (struct film){0};
		*place = f->n;
	}
	return &f->at[*place - 1];
}

int films_add(struct films *f, const struct record *r, struct error *e)
{
	struct film *film = find_film(f, r, e);
	if (!film || records_room(&film->frames, film->n + 1, &film->cap, e))
		return -1;
	struct record slim = *r; /* borrowed */
	slim.text = slim.image = (struct tokens){0};
	slim.unknown = (struct buf){0};
	return record_copy(&film->frames[film->n++], &slim, e);
}

void films_free(struct films *f)
{
	for (size_t i = 0; i < f->n; i++)
		records_free(f->at[i].frames, f->at[i].cap);
	free(f->at);
	hash_table_free(&f->places);
	*f = (struct films){0};
}

/* ---- APNG: chunks of PNG files in a new order ---- */

enum { SIGNATURE = 8, AROUND = 12 }; /* bytes: of a file's start; of a chunk around its data (length, name, CRC) */

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* A chunk of two pieces of data, the first not NULL. */
static int put_chunk(struct buf *out, const char *name, const uint8_t *a, size_t an, const uint8_t *b, size_t bn,
                     struct error *e)
{
	uint8_t length[4], crc[4];
	uLong sum = crc32(crc32(0, (const Bytef *)name, 4), a, (uInt)an);
	put32(length, (uint32_t)(an + bn));
	put32(crc, (uint32_t)(bn ? crc32(sum, b, (uInt)bn) : sum));
	return buf_add(out, length, 4, e) || buf_add(out, name, 4, e) || buf_add(out, a, an, e) || buf_add(out, b, bn, e) ||
	       buf_add(out, crc, 4, e) ? -1 : 0;
}

/* The next chunk of a PNG from *at on: its bytes with all around, and *at moved; NULL at the end. */
static const uint8_t *next_chunk(const struct buf *png, size_t *at, size_t *n)
{
	if (*at + AROUND > png->n)
		return NULL;
	const uint8_t *p = png->p + *at;
	*n = (size_t)get32(p) + AROUND;
	*at += *n;
	return *at <= png->n ? p : NULL;
}

static bool is(const uint8_t *chunk, const char *name)
{
	return memcmp(chunk + 4, name, 4) == 0;
}

/* The finished picture as a file of its own, but for its end: a still.  It is no frame, as no frame control precedes it. */
static int put_still(struct buf *out, const struct buf *png, size_t frames, struct error *e)
{
	size_t at = SIGNATURE, n;
	uint8_t control[8];
	put32(control, (uint32_t)frames);
	put32(control + 4, 0); /* without end */
	if (buf_add(out, png->p, SIGNATURE, e))
		return -1;
	for (const uint8_t *p = next_chunk(png, &at, &n); p && !is(p, "IEND"); p = next_chunk(png, &at, &n)) {
		if (buf_add(out, p, n, e) || (is(p, "IHDR") && put_chunk(out, "acTL", control, sizeof control, NULL, 0, e)))
			return -1;
	}
	return 0;
}

/* Shown whole at (0, 0), in place of the frame before. */
static int put_frame_control(struct buf *out, const struct buf *png, uint32_t *number, uint32_t delay, struct error *e)
{
	uint8_t c[26] = {0};
	put32(c, (*number)++);
	memcpy(c + 4, png->p + SIGNATURE + 8, 8); /* width and height from IHDR */
	c[20] = (uint8_t)(delay >> 8);
	c[21] = (uint8_t)delay;
	c[22] = 1000 >> 8; /* of a second */
	c[23] = 1000 & 255;
	return put_chunk(out, "fcTL", c, sizeof c, NULL, 0, e);
}

static int put_frame(struct buf *out, const struct buf *png, uint32_t *number, uint32_t delay, struct error *e)
{
	size_t at = SIGNATURE, n;
	if (put_frame_control(out, png, number, delay, e))
		return -1;
	for (const uint8_t *p = next_chunk(png, &at, &n); p; p = next_chunk(png, &at, &n)) {
		uint8_t sequence[4];
		if (!is(p, "IDAT"))
			continue;
		put32(sequence, (*number)++);
		if (put_chunk(out, "fdAT", sequence, 4, p + 8, n - AROUND, e))
			return -1;
	}
	return 0;
}

int apng_write(struct buf *out, const struct buf *png, size_t n, uint32_t delay, uint32_t hold, struct error *e)
{
	uint32_t number = 0;
	for (size_t i = 1; i < n; i++) {
		const uint8_t *a = png[0].p + SIGNATURE + 8, *b = png[i].p + SIGNATURE + 8;
		if (memcmp(a, b, 8) != 0)
			return fail(e, STATUS_BAD, "frames of %ux%u and %ux%u in one animation, expected the same size", get32(a),
			            get32(a + 4), get32(b), get32(b + 4));
	}
	if (put_still(out, &png[n - 1], n, e))
		return -1;
	for (size_t i = 0; i < n; i++)
		if (put_frame(out, &png[i], &number, i + 1 < n ? delay : hold, e))
			return -1;
	return put_chunk(out, "IEND", (const uint8_t *)"", 0, NULL, 0, e);
}
