/* test-stream.c - tokenstream(5): round trips, and that damage, lies and limits are refused. */
#include "check.h"

#include "../libcommon/record.h"
#include "../libcommon/rng.h"
#include "../libcommon/stream.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a small stream with every field ---- */

static void fill_header(struct header *h)
{
	struct error e = {0};
	char *argv[] = {"/usr/bin/test-stream", "-x", "it's here", NULL};
	snprintf(h->text.id, sizeof h->text.id, "%s", "00112233445566778899aabbccddeeff");
	h->text.size = 16384;
	h->text.length = 256;
	snprintf(h->image.id, sizeof h->image.id, "%s", "ffeeddccbbaa99887766554433221100");
	h->image.size = 8192;
	h->image.grid_width = h->image.grid_height = 8;
	CHECK(header_add_program(h, 3, argv, &e) == 0, "%s", e.text);
	buf_set(&h->unknown, "\xA2\x06\x02hi", 5, &e); /* field 100 */
}

static void fill_record(struct record *r, unsigned i)
{
	struct error e = {0};
	record_clear(r);
	buf_printf(&r->key, &e, "key%u", i);
	buf_printf(&r->caption, &e, "a red heart \xE2\x9D\xA4 %u", i);
	uint32_t v[64];
	for (unsigned k = 0; k < 64; k++)
		v[k] = (i * 977 + k * k * 31) % 8192;
	tokens_set(&r->text, v, i % 5, &e);
	tokens_set(&r->image, v, 64, &e);
	r->has = i % 32;
	r->score = r->has & HAS_SCORE ? 0.25f : 0;
	r->nll_text = r->has & HAS_NLL_TEXT ? -1.5f : 0;
	r->nll_image = r->has & HAS_NLL_IMAGE ? 7.125f : 0;
	r->seed = r->has & HAS_SEED ? 0xFEDCBA9876543210 : 0;
	r->sample = r->has & HAS_SAMPLE ? 4000000000 : 0;
	if (i % 3 == 0)
		buf_set(&r->model, "abc", 3, &e);
	if (i % 4 == 0)
		buf_set(&r->unknown, "\xC8\x3E\x07\xD2\x3E\x03xyz", 9, &e); /* fields 1001 and 1002 */
	if (i % 4 == 1 && i < 16) {
		pixels_resize(&r->pixels, 3, 2 + i % 2, &e);
		memset(r->pixels.rgb, (int)i, 3 * 3 * r->pixels.height);
	}
	CHECK(e.status == 0, "%s", e.text);
}

static bool buf_same(const struct buf *a, const struct buf *b)
{
	return a->n == b->n && (a->n == 0 || memcmp(a->p, b->p, a->n) == 0);
}

static bool tokens_same(const struct tokens *a, const struct tokens *b)
{
	return a->present == b->present && a->n == b->n && (a->n == 0 || memcmp(a->v, b->v, a->n * sizeof *a->v) == 0);
}

static bool record_same(const struct record *a, const struct record *b)
{
	size_t bytes = (size_t)3 * a->pixels.width * a->pixels.height;
	return buf_same(&a->key, &b->key) && buf_same(&a->caption, &b->caption) && buf_same(&a->model, &b->model) &&
	       buf_same(&a->unknown, &b->unknown) && tokens_same(&a->text, &b->text) &&
	       tokens_same(&a->image, &b->image) && a->pixels.width == b->pixels.width &&
	       a->pixels.height == b->pixels.height &&
	       (bytes == 0 || memcmp(a->pixels.rgb, b->pixels.rgb, bytes) == 0) && a->has == b->has &&
	       a->score == b->score && a->nll_text == b->nll_text && a->nll_image == b->nll_image &&
	       a->seed == b->seed && a->sample == b->sample;
}

static bool header_same(const struct header *a, const struct header *b)
{
	struct buf x = {0}, y = {0};
	struct error e = {0};
	header_encode(&x, a, &e);
	header_encode(&y, b, &e);
	bool same = e.status == 0 && buf_same(&x, &y);
	buf_free(&x);
	buf_free(&y);
	return same;
}

static void write_stream(const char *path, unsigned n, int level)
{
	struct error e = {0};
	struct header h = {0};
	struct record r = {0};
	fill_header(&h);
	struct writer *w = writer_open(path, &h, level, &e);
	for (unsigned i = 0; w && i < n; i++) {
		fill_record(&r, i);
		writer_put(w, &r, &e);
		if (i % 256 == 255)
			writer_flush(w, &e);
	}
	CHECK(w && writer_close(w, &e) == 0 && e.status == 0, "writes %u records at level %d: %s", n, level, e.text);
	header_free(&h);
	record_free(&r);
}

/* Reads all records; how many equalled those of fill_record in order, e->status otherwise. */
static unsigned read_stream(char *const *files, int n, unsigned per_part, struct error *e)
{
	struct record r = {0}, want = {0};
	unsigned same = 0;
	struct reader *in = reader_open(files, n, e);
	int k = -1;
	for (unsigned i = 0; in && (k = reader_next(in, &r, e)) > 0; i++) {
		fill_record(&want, per_part ? i % per_part : i);
		same += record_same(&r, &want);
	}
	if (in && k == 0) {
		struct header h = {0};
		fill_header(&h);
		CHECK(header_same(&h, reader_header(in)), "the header comes back");
		header_free(&h);
	}
	reader_close(in);
	record_free(&r);
	record_free(&want);
	return same;
}

static void spill(const char *path, const void *p, size_t n)
{
	FILE *f = fopen(path, "wb");
	bool ok = f && fwrite(p, 1, n, f) == n;
	CHECK(f && fclose(f) == 0 && ok, "writes %s", path);
}

static void slurp(const char *path, struct buf *b)
{
	struct error e = {0};
	CHECK(read_file(path, 1 << 28, b, &e) == 0, "%s", e.text);
}

static void test_round_trip(void)
{
	static const int levels[] = {STREAM_LEVEL, 0, 1, 19, 22};
	static const unsigned counts[] = {0, 1, 40, 600};
	for (size_t l = 0; l < ARRAY_LEN(levels); l++) {
		for (size_t c = 0; c < ARRAY_LEN(counts); c++) {
			struct error e = {0};
			char *files[] = {"t.tok"};
			write_stream(files[0], counts[c], levels[l]);
			unsigned same = read_stream(files, 1, 0, &e);
			CHECK(e.status == 0 && same == counts[c], "level %d, %u records come back: %u, %s", levels[l],
			      counts[c], same, e.text);
		}
	}
}

/* ---- parts, operands, both encodings in one file ---- */

static void append(struct buf *b, const char *path)
{
	struct buf part = {0};
	struct error e = {0};
	slurp(path, &part);
	buf_add(b, part.p, part.n, &e);
	buf_free(&part);
}

static void test_parts(void)
{
	struct error e = {0};
	char *files[] = {"a.tok", "b.tok", "a.tok"}, *joined[] = {"c.tok"};
	struct buf b = {0};
	write_stream("a.tok", 20, STREAM_LEVEL);
	write_stream("b.tok", 20, 0);
	unsigned same = read_stream(files, 3, 20, &e);
	CHECK(e.status == 0 && same == 60, "three operands: %u, %s", same, e.text);
	append(&b, "a.tok"); /* frames, bare, bare, frames, frames, bare */
	append(&b, "b.tok");
	append(&b, "b.tok");
	append(&b, "a.tok");
	append(&b, "a.tok");
	append(&b, "b.tok");
	spill("c.tok", b.p, b.n);
	same = read_stream(joined, 1, 20, &e);
	CHECK(e.status == 0 && same == 120, "cat of six parts: %u, %s", same, e.text);
	spill("b.tok", "", 0);
	same = read_stream(files, 3, 20, &e);
	CHECK(e.status == STATUS_BAD && same == 20, "an empty second operand: %u, %s", same, e.text);
	buf_free(&b);
}

static void test_disagreement(void)
{
	static const char *const what[] = {"vocabulary", "image codec", "image codec", "pictures", "vocabulary"};
	char *files[] = {"a.tok", "b.tok"};
	for (int i = 0; i < 5; i++) {
		struct header h = {0};
		struct error e = {0};
		write_stream("a.tok", 2, STREAM_LEVEL);
		fill_header(&h);
		switch (i) {
		case 0: h.text.id[5] = 'a'; break;
		case 1: h.image.size = 4096; break;
		case 2: h.image.grid_height = 9; break;
		case 3: h.width = 77; break;
		case 4: h.text.length = 12; break;
		}
		struct writer *w = writer_open("b.tok", &h, STREAM_LEVEL, &e);
		CHECK(w && writer_close(w, &e) == 0, "%s", e.text);
		unsigned same = read_stream(files, 2, 0, &e);
		CHECK(e.status == STATUS_BAD && same == 2 && strstr(e.text, what[i]) && strstr(e.text, "b.tok"),
		      "parts that differ are refused: %s", e.text);
		header_free(&h);
	}
}

/* ---- damage ---- */

static void test_truncation(int level, unsigned expected_good)
{
	struct buf b = {0};
	char *files[] = {"cut.tok"};
	unsigned good = 0;
	write_stream("t.tok", 6, level);
	slurp("t.tok", &b);
	for (size_t n = 0; n < b.n; n++) {
		struct error e = {0};
		spill("cut.tok", b.p, n);
		unsigned same = read_stream(files, 1, 0, &e);
		if (e.status == 0 && same == 6)
			good++;
		else if (e.status != STATUS_BAD)
			CHECK(false, "cut at %zu of %zu: status %d, %u records, %s", n, b.n, e.status, same, e.text);
	}
	/* Without its seek table, and only then, a compressed stream is whole as well. */
	CHECK(good == expected_good, "level %d: %u cuts of %zu read as whole, expected %u", level, good, b.n,
	      expected_good);
	buf_free(&b);
}

static void test_bit_flips(void)
{
	struct buf b = {0};
	char *files[] = {"flip.tok"};
	unsigned detected = 0, harmless = 0;
	write_stream("t.tok", 6, STREAM_LEVEL);
	slurp("t.tok", &b);
	for (size_t bit = 0; bit < 8 * b.n; bit++) {
		struct error e = {0};
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		spill("flip.tok", b.p, b.n);
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		unsigned same = read_stream(files, 1, 0, &e);
		if (e.status == STATUS_BAD || e.status == STATUS_LIMIT)
			detected++;
		else if (e.status == 0 && same == 6)
			harmless++;
		else
			CHECK(false, "bit %zu: status %d, %u records, %s", bit, e.status, same, e.text);
	}
	CHECK(detected + harmless == 8 * b.n && detected > 7 * b.n, "flips: %u detected, %u harmless of %zu", detected,
	      harmless, 8 * b.n);
	buf_free(&b);
}

/* Frames dropped, doubled or swapped keep their checksums: counts and order must tell. */
static void test_frames_moved(void)
{
	struct buf b = {0}, m = {0};
	struct error e = {0};
	char *files[] = {"moved.tok"};
	write_stream("t.tok", 300, STREAM_LEVEL);
	slurp("t.tok", &b);
	size_t at[8], n = 0;
	for (size_t i = 0; i + 4 < b.n && n < 8; i++)
		if (memcmp(b.p + i, "\x28\xB5\x2F\xFD", 4) == 0)
			at[n++] = i;
	CHECK(n == 3, "header, 256 records, 44 records and end: %zu frames", n);
	buf_set(&m, b.p, at[1], &e);
	buf_add(&m, b.p + at[2], b.n - at[2], &e);
	spill("moved.tok", m.p, m.n);
	read_stream(files, 1, 0, &e);
	CHECK(e.status == STATUS_BAD && strstr(e.text, "counts 300"), "a dropped frame: %s", e.text);
	e = (struct error){0};
	buf_set(&m, b.p, at[2], &e);
	buf_add(&m, b.p + at[1], b.n - at[1], &e);
	spill("moved.tok", m.p, m.n);
	read_stream(files, 1, 0, &e);
	CHECK(e.status == STATUS_BAD, "a doubled frame: %s", e.text);
	buf_free(&b);
	buf_free(&m);
}

/* ---- hostile content, bare so that it can be written by hand ---- */

static int status_of(const char *content, size_t n, const char *say)
{
	struct error e = {0};
	struct record r = {0};
	char *files[] = {"bad.tok"};
	spill("bad.tok", content, n);
	struct reader *in = reader_open(files, 1, &e);
	while (in && reader_next(in, &r, &e) > 0)
		;
	reader_close(in);
	record_free(&r);
	CHECK(e.status == 0 || strncmp(e.text, "bad.tok: ", 9) == 0, "the message names the file: %s", e.text);
	CHECK(!say || strstr(e.text, say), "says '%s': %s", say, e.text);
	return e.status;
}

#define H "\x0A\x02\x08\x01" /* a header: version 1 */
#define BAD(status, content, say) CHECK(status_of(content, sizeof content - 1, say) == status, "%s", #content)

static void test_hostile(void)
{
	BAD(STATUS_OK, H "\x12\x00\x1A\x02\x08\x01", NULL);
	BAD(STATUS_OK, H "\x1A\x00", NULL);
	BAD(STATUS_BAD, H "\x12\x00\x1A\x00", "1 record, the end record counts 0");
	BAD(STATUS_BAD, H "\x1A\x02\x08\x01", NULL);
	BAD(STATUS_BAD, H "\x12\x00", "truncated: 1 record and no end record");
	BAD(STATUS_BAD, H H "\x1A\x00", "truncated part");
	BAD(STATUS_BAD, H "\x1A\x00\x12\x00", "before any header");
	BAD(STATUS_BAD, H "\x1A\x00\x1A\x00", "without a header");
	BAD(STATUS_BAD, H "\x22\x00\x1A\x00", "unknown field 4");
	BAD(STATUS_BAD, H "\x10\x00\x1A\x00", "unknown field 2"); /* a record that is a number */
	BAD(STATUS_BAD, H "\x13\x14\x1A\x00", NULL);              /* a group */
	BAD(STATUS_BAD, H "\x12\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", NULL);
	BAD(STATUS_LIMIT, H "\x12\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", "limit");
	BAD(STATUS_LIMIT, H "\x12\x81\x80\x80\x80\x04", "limit");
	BAD(STATUS_BAD, H "\x12\x80\x80\x80\x80\x04", "truncated"); /* 1 GiB claimed, nothing there */
	BAD(STATUS_BAD, "\x0A\x02\x08\x02\x1A\x00", "version 2");
	BAD(STATUS_BAD, "\x0A\x00\x1A\x00", "not a token stream");
	BAD(STATUS_BAD, "\x0A\x04\x08\x01\x20\x80", "corrupt");
	BAD(STATUS_BAD, "\x0A\x04\x08\x01\x10\x05\x1A\x00", "field 2");   /* codec that is a number */
	BAD(STATUS_BAD, "\x0A\x08\x08\x01\x12\x04\x0A\x02zz\x1A\x00", "32 hex digits");
	BAD(STATUS_LIMIT, "\x0A\x06\x08\x01\x20\x81\x80\x02\x1A\x00", "limit"); /* width 32769 */
	BAD(STATUS_BAD, H "\x12\x03\x0A\x05x\x1A\x02\x08\x01", "corrupt record"); /* key longer than the record */
	BAD(STATUS_BAD, H "\x12\x03\x0A\x01\xFF\x1A\x02\x08\x01", "UTF-8");
	BAD(STATUS_BAD, H "\x12\x02\x08\x01\x1A\x02\x08\x01", "no text");
	BAD(STATUS_BAD, H "\x12\x04\x22\x02\x08\x05\x1A\x02\x08\x01", "5 image tokens of 0 bits");
	BAD(STATUS_BAD, H "\x12\x06\x22\x04\x08\x05\x10\x0D\x1A\x02\x08\x01", "5 image tokens of 13 bits in 0 bytes");
	BAD(STATUS_BAD, H "\x12\x06\x22\x04\x08\x00\x10\x21\x1A\x02\x08\x01", "33 bits");
	BAD(STATUS_LIMIT, H "\x12\x07\x22\x05\x08\xFF\xFF\xFF\x7F\x1A\x02\x08\x01", "image tokens");
	BAD(STATUS_BAD, H "\x12\x08\x22\x06\x08\x01\x10\x10\x1A\x00\x1A\x02\x08\x01", "1 image token of 16 bits in 0 bytes");
	BAD(STATUS_OK, H "\x12\x02\x1A\x00\x1A\x02\x08\x01", NULL); /* an empty caption's tokens */
	BAD(STATUS_BAD, H "\x12\x06\x2A\x04\x08\x05\x10\x05\x1A\x02\x08\x01", "5 x 5 in 0 bytes");
	BAD(STATUS_LIMIT, H "\x12\x0A\x2A\x08\x08\xFF\xFF\x03\x10\xFF\xFF\x03\x1A\x02\x08\x01", "picture of 65535 x 65535");
	BAD(STATUS_BAD, H "\x12\x02\x30\x01\x1A\x02\x08\x01", "no float");
	BAD(STATUS_BAD, H "\x12\x03\x35\x01\x01\x1A\x02\x08\x01", "corrupt record");
	BAD(STATUS_BAD, H "\x12\x06\x50\xFF\xFF\xFF\xFF\x7F\x1A\x02\x08\x01", "field 10");
	BAD(STATUS_BAD, "", "empty");
	BAD(STATUS_BAD, "\x89PNG\r\n\x1A\n....", "PNG");
	BAD(STATUS_BAD, "\xFF\xD8\xFF\xE0....", "JPEG");
	BAD(STATUS_BAD, "PK\x03\x04....", "zip");
	BAD(STATUS_BAD, "\x80\x02}q....", "pickle");
	BAD(STATUS_BAD, "{\"key\": 1}", "tok-load");
	BAD(STATUS_BAD, "a red heart\n", "text");
	BAD(STATUS_BAD, "\x50\x00\x00\x00\x00\x00\x00\x00{\"a\"", "safetensors");
	BAD(STATUS_BAD, "\x28\xB5\x2F", "truncated");
	BAD(STATUS_BAD, "\x50\x2A\x4D\x18\x04\x00\x00\x00", "truncated");
	BAD(STATUS_BAD, "\x50\x2A\x4D\x18\x01\x00\x00\x00z", "empty");
}

/* Bare content has no checksum: whatever a few changed bytes say must end in a status, and
 * under the sanitizers without a finding. */
static void test_mutations(void)
{
	struct buf b = {0};
	char *files[] = {"flip.tok"};
	struct record r = {0};
	write_stream("t.tok", 12, 0);
	slurp("t.tok", &b);
	for (uint32_t i = 0; i < 4000; i++) {
		struct error e = {0};
		struct buf m = {0};
		buf_add(&m, b.p, b.n, &e);
		for (uint32_t k = 0; k <= i % 4; k++)
			m.p[rng_below(i, RNG_SAMPLE, 2 * k, 0, (uint32_t)b.n)] =
				(uint8_t)rng_u32(i, RNG_SAMPLE, 2 * k + 1, 0);
		spill("flip.tok", m.p, m.n);
		struct reader *in = reader_open(files, 1, &e);
		while (in && reader_next(in, &r, &e) > 0)
			;
		reader_close(in);
		if (e.status != STATUS_OK && e.status != STATUS_BAD && e.status != STATUS_LIMIT)
			CHECK(false, "mutation %u: status %d, %s", i, e.status, e.text);
		buf_free(&m);
	}
	record_free(&r);
	buf_free(&b);
}

/* ---- limits ---- */

/* 64 MiB of zeros in one record is a few KiB of zstd; a record of 2 GiB must not be taken. */
static void test_bomb(void)
{
	struct error e = {0};
	struct buf content = {0};
	char *files[] = {"bomb.tok"};
	size_t claimed = (size_t)1 << 25;
	buf_add(&content, H "\x12\x80\x80\x80\x80\x04", 10, &e); /* 1 GiB, which the limit allows */
	CHECK(buf_reserve(&content, claimed, &e) == 0, "%s", e.text);
	memset(content.p + content.n, 0, claimed);
	content.n += claimed;
	spill("bomb.bare", content.p, content.n);
	CHECK(system("zstd -q -f --no-progress bomb.bare -o bomb.tok") == 0, "zstd runs");
	struct record r = {0};
	struct reader *in = reader_open(files, 1, &e);
	CHECK(in && reader_next(in, &r, &e) == -1 && e.status == STATUS_BAD && strstr(e.text, "truncated"),
	      "a record cut in a bomb: %s", e.text);
	reader_close(in);
	record_free(&r);
	e = (struct error){0};
	CHECK(system("zstd -q -f --long=27 --zstd=wlog=27 --no-progress bomb.bare -o bomb.tok") == 0, "zstd runs");
	in = reader_open(files, 1, &e);
	CHECK(!in && e.status == STATUS_LIMIT && strstr(e.text, "window"), "a window of 128 MiB: %s", e.text);
	reader_close(in);
	unlink("bomb.bare");
	unlink("bomb.tok");
	buf_free(&content);
}

static void test_writer_refuses(void)
{
	struct header h = {0};
	struct record r = {0};
	fill_header(&h);
	for (int i = 0; i < 6; i++) {
		struct error e = {0};
		uint32_t token = 8192, many[65] = {0};
		struct writer *w = writer_open("w.tok", &h, STREAM_LEVEL, &e);
		record_clear(&r);
		switch (i) {
		case 0: tokens_set(&r.image, &token, 1, &e); break;
		case 1: tokens_set(&r.image, many, 65, &e); break;
		case 2: buf_set(&r.caption, "\xC0\x80", 2, &e); break;
		case 3: token = 16384, tokens_set(&r.text, &token, 1, &e); break;
		case 4: buf_set(&r.key, "\xED\xA0\x80", 3, &e); break; /* a lone surrogate */
		case 5:
			buf_reserve(&r.key, STREAM_MAX_TEXT + 1, &e);
			memset(r.key.p, 'a', r.key.n = STREAM_MAX_TEXT + 1);
			break;
		}
		CHECK(w && writer_put(w, &r, &e) == -1 && e.status == (i == 5 ? STATUS_LIMIT : STATUS_BAD) &&
		      strstr(e.text, "record 1"), "case %d is refused: %s", i, e.text);
		e = (struct error){0};
		fill_record(&r, 0);
		CHECK(writer_put(w, &r, &e) == 0, "and the writer goes on: %s", e.text);
		writer_abort(w);
		CHECK(access("w.tok", F_OK) != 0, "an aborted file does not appear");
	}
	header_free(&h);
	record_free(&r);
}

/* ---- random access ---- */

static void test_frames(void)
{
	struct error e = {0};
	struct buf b = {0};
	struct record r = {0}, want = {0};
	char *files[] = {"f.tok", "g.tok"};
	write_stream("f.tok", 600, STREAM_LEVEL);
	append(&b, "f.tok");
	append(&b, "f.tok");
	spill("g.tok", b.p, b.n);
	struct reader *in = reader_open(files, 2, &e);
	CHECK(in && reader_frames(in, 0, &e) == 4, "header and 3 frames: %s", e.text);
	CHECK(in && reader_frames(in, 1, &e) == 8, "a joined file has all frames of both: %s", e.text);
	static const int order[][3] = {{1, 6, 256}, {0, 3, 512}, {1, 0, 0}, {1, 3, 512}, {0, 1, 0}, {1, 7, 512}};
	for (size_t i = 0; in && i < ARRAY_LEN(order); i++) {
		int k = reader_seek(in, order[i][0], order[i][1], &e);
		unsigned n = 0, same = 0, first = (unsigned)order[i][2];
		while (k == 0 && reader_next(in, &r, &e) > 0) {
			fill_record(&want, first + n++);
			same += record_same(&r, &want);
		}
		unsigned expected = order[i][1] % 4 == 0 ? 0 : first == 512 ? 88 : 256;
		CHECK(e.status == 0 && n == expected && same == n, "frame %d of file %d: %u records, %u right: %s",
		      order[i][1], order[i][0], n, same, e.text);
	}
	CHECK(in && reader_seek(in, 0, 4, &e) == -1, "no such frame");
	reader_close(in);
	buf_free(&b);
	record_free(&r);
	record_free(&want);
}

static int frames_of(const char *path)
{
	struct error e = {0};
	char *files[] = {(char *)path};
	struct reader *in = reader_open(files, 1, &e);
	int n = in ? (int)reader_frames(in, 0, &e) : -2;
	reader_close(in);
	return n;
}

static void test_bad_tables(void)
{
	struct buf b = {0};
	write_stream("f.tok", 600, 0);
	CHECK(frames_of("f.tok") == -1, "bare content has no frames");
	write_stream("f.tok", 600, STREAM_LEVEL);
	slurp("f.tok", &b);
	unsigned wrong = 0;
	/* 4 entries, 17 bytes around them: each flip of the table is noticed on loading or on use. */
	for (size_t bit = 8 * (b.n - 49); bit < 8 * b.n; bit++) {
		struct error e = {0};
		struct record r = {0};
		char *files[] = {"g.tok"};
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		spill("g.tok", b.p, b.n);
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		struct reader *in = reader_open(files, 1, &e);
		int64_t n = in ? reader_frames(in, 0, &e) : -1;
		unsigned records = 0;
		for (int64_t k = 0; k < n && reader_seek(in, 0, k, &e) == 0;)
			for (k++; reader_next(in, &r, &e) > 0; records++)
				;
		if (e.status == 0 && (n != 4 || records != 600))
			wrong++;
		reader_close(in);
		record_free(&r);
	}
	CHECK(wrong == 0, "%u flips of the seek table gave wrong records", wrong);
	buf_free(&b);
}

/* ---- size ---- */

static size_t size_of(const char *path)
{
	struct buf b = {0};
	slurp(path, &b);
	size_t n = b.n;
	buf_free(&b);
	return n;
}

static size_t zstd_u16(const uint16_t *v, size_t n)
{
	spill("u16", v, 2 * n);
	CHECK(system("zstd -19 -q -f --no-check u16 -o u16.zst") == 0, "zstd runs");
	return size_of("u16.zst");
}

/* kind 0: uniform codes; 1: skewed codes; 2: mostly one background code, as pictures of
 * objects give. */
static uint16_t draw(int kind, uint64_t i)
{
	uint32_t x = rng_u32(1, RNG_SAMPLE, 0, i), y = rng_u32(1, RNG_SAMPLE, 1, i), z = rng_u32(1, RNG_SAMPLE, 2, i);
	if (kind == 0)
		return (uint16_t)(x % 8192);
	if (kind == 1)
		return (uint16_t)((uint64_t)(x % 8192) * (y % 8192) / 8192 * (z % 8192) / 8192);
	return (uint16_t)(x % 4 ? 1234 : y % 8192);
}

static void test_size(int kind)
{
	enum { N = 600, GRID = 1024 };
	struct header h = {0};
	struct record r = {0};
	struct error e = {0};
	uint16_t *all = malloc(2 * N * GRID);
	snprintf(h.image.id, sizeof h.image.id, "%s", "ffeeddccbbaa99887766554433221100");
	h.image.size = 8192;
	h.image.grid_width = h.image.grid_height = 32;
	struct writer *w = writer_open("size.tok", &h, STREAM_LEVEL, &e);
	for (unsigned i = 0; w && all && i < N; i++) {
		uint32_t v[GRID];
		for (unsigned k = 0; k < GRID; k++)
			v[k] = all[i * GRID + k] = draw(kind, i * GRID + k);
		record_clear(&r);
		buf_printf(&r.key, &e, "%09u", i);
		buf_printf(&r.caption, &e, "a photograph of object number %u in a field", rng_u32(2, RNG_SAMPLE, 0, i) % 4096);
		tokens_set(&r.image, v, GRID, &e);
		writer_put(w, &r, &e);
	}
	CHECK(w && all && writer_close(w, &e) == 0, "%s", e.text);
	size_t ours = size_of("size.tok"), zstd = zstd_u16(all, N * GRID);
	printf("size %d: %.3f bits a token all told, zstd -19 of u16 %.3f\n", kind, 8.0 * (double)ours / (N * GRID),
	       8.0 * (double)zstd / (N * GRID));
	if (kind == 0)
		CHECK(8.0 * (double)ours / (N * GRID) <= 13 * 1.03, "13 bits a token and 3 %%");
	/* Keys, captions and the fields around the tokens are not in the u16 file: a caption of
	 * this kind has 12 random bits and a key counts up, 12 bytes a record pay for all. */
	CHECK(ours <= zstd + 12 * N, "kind %d: %zu bytes, zstd -19 of plain u16 %zu", kind, ours, zstd);
	free(all);
	header_free(&h);
	record_free(&r);
}

/* Arrays that grow keep what they hold and give zeroed records; captions are equal as their readers see them. */
static void test_records(void)
{
	struct error e = {0};
	struct record *v = NULL, a = {0}, b = {0};
	uint32_t tokens[] = {3, 1, 2};
	size_t cap = 0;
	for (uint32_t i = 0; i < 100; i++) {
		CHECK(records_room(&v, i + 1, &cap, &e) == 0 && cap > i && v[cap - 1].key.p == NULL && v[i].seed == 0, "room for %u", i);
		v[i].seed = i + 1;
		CHECK(v[0].seed == 1 && v[i / 2].seed == i / 2 + 1, "records stay when the array grows");
	}
	size_t before = cap;
	CHECK(records_room(&v, SIZE_MAX / 2, &cap, &e) < 0 && e.status == STATUS_LIMIT && cap == before, "too many");
	records_free(v, cap);
	e.status = 0;
	CHECK(!buf_set(&a.caption, "A cat", 5, &e) && !buf_set(&b.caption, "a cat", 5, &e), "%s", e.text);
	CHECK(caption_hash(&a, false) != caption_hash(&b, false), "captions without tokens differ as text");
	CHECK(!tokens_set(&a.text, tokens, 3, &e) && !tokens_set(&b.text, tokens, 3, &e), "%s", e.text);
	CHECK(caption_hash(&a, false) == caption_hash(&b, false), "the same tokens are the same caption");
	CHECK(caption_hash(&a, true) != caption_hash(&b, true), "but not for who reads the text");
	b.text.v[2]++;
	CHECK(caption_hash(&a, false) != caption_hash(&b, false), "other tokens");
	record_free(&a);
	record_free(&b);
}

int main(void)
{
	char folder[] = "test-stream-XXXXXX";
	if (!mkdtemp(folder) || chdir(folder)) {
		perror(folder);
		return 1;
	}
	test_round_trip();
	test_parts();
	test_disagreement();
	test_truncation(STREAM_LEVEL, 1);
	test_truncation(0, 0);
	test_bit_flips();
	test_frames_moved();
	test_hostile();
	test_mutations();
	test_bomb();
	test_writer_refuses();
	test_frames();
	test_bad_tables();
	test_records();
	for (int kind = 0; kind < 3; kind++)
		test_size(kind);
	static const char *const scratch[] = {"t.tok", "a.tok", "b.tok", "c.tok", "cut.tok", "flip.tok", "moved.tok",
	                                      "bad.tok", "f.tok", "g.tok", "u16", "u16.zst", "size.tok"};
	for (size_t i = 0; i < ARRAY_LEN(scratch); i++)
		unlink(scratch[i]);
	if (chdir("..") == 0 && rmdir(folder))
		perror(folder);
	return check_done();
}
