/* gen-tokens - records with made-up text and image tokens on stdout, for the tests of the tools that read them:
 *
 *	gen-tokens RECORDS SEED TEXT_VOCAB TEXT_ID IMAGE_VOCAB GRID_W GRID_H IMAGE_ID
 *
 * A caption of 2 to 7 tokens decides its picture, so that there is something to learn.  No test program itself. */
#include "../libcommon/rng.h"
#include "../libcommon/stream.h"

#include <stdlib.h>

static struct error err;

static int64_t number(const char *s)
{
	int64_t v = 0;
	if (parse_int(s, 0, 1 << 24, &v, &err))
		exit(report(&err));
	return v;
}

static int put_record(struct writer *w, struct record *r, const struct header *h, uint64_t seed, uint32_t i)
{
	uint32_t text[7], n = 2 + rng_below(seed, RNG_AUGMENT, i, 100, 6), sum = 0, N = h->image.grid_width * h->image.grid_height;
	uint32_t *image = mem_alloc(N, sizeof *image, &err);
	record_clear(r);
	for (uint32_t j = 0; j < n; j++)
		sum += text[j] = rng_below(seed, RNG_AUGMENT, i, j, h->text.size);
	for (uint32_t p = 0; image && p < N; p++)
		image[p] = (text[p % n] * 7 + p + sum) % h->image.size;
	int bad = !image || buf_printf(&r->key, &err, "r%05u", i) || buf_printf(&r->caption, &err, "caption %u", i) ||
	          tokens_set(&r->text, text, n, &err) || tokens_set(&r->image, image, N, &err) || writer_put(w, r, &err);
	free(image);
	return bad;
}

int main(int argc, char **argv)
{
	struct header h = {0};
	struct record r = {0};
	program_name = "gen-tokens";
	if (argc != 9) {
		warn("usage: gen-tokens RECORDS SEED TEXT_VOCAB TEXT_ID IMAGE_VOCAB GRID_W GRID_H IMAGE_ID");
		return 2;
	}
	int64_t records = number(argv[1]), seed = number(argv[2]);
	h.text.size = (uint32_t)number(argv[3]);
	h.text.length = 8;
	snprintf(h.text.id, sizeof h.text.id, "%s", argv[4]);
	h.image.size = (uint32_t)number(argv[5]);
	h.image.grid_width = (uint32_t)number(argv[6]);
	h.image.grid_height = (uint32_t)number(argv[7]);
	snprintf(h.image.id, sizeof h.image.id, "%s", argv[8]);
	struct writer *w = writer_open(NULL, &h, STREAM_LEVEL, &err);
	for (int64_t i = 0; w && i < records; i++)
		if (put_record(w, &r, &h, (uint64_t)seed, (uint32_t)i))
			break;
	if (!w || err.status)
		writer_abort(w);
	else
		writer_close(w, &err);
	record_free(&r);
	header_free(&h);
	return err.status ? report(&err) : STATUS_OK;
}
