/* feed.c - what img-pack reads: lists, archives of samples, PNM, single pictures.  Checksums of tar headers are made right
 * first; paths of lists are not followed. */
#include "fuzz.h"
#include "fuzz-tar.h"

#include "../../libcommon/feed.h"

static void use(struct feed_item *item)
{
	struct error e = {0};
	struct image_options o = IMAGE_DEFAULTS;
	MUST(item->path.n || item->bad.status);
	if (item->bad.status)
		return;
	MUST(feed_is_text(&item->key) && feed_is_text(&item->caption));
	o.max_pixels = 1 << 16;
	if (item->file.n)
		image_decode(&item->pixels, item->file.p, item->file.n, &o, "fuzz", &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf file = {0};
	struct feed_item item = {0};
	struct feed f = {.caption = "none", .folder = "/nowhere", .options = IMAGE_DEFAULTS};
	f.options.max_pixels = 1 << 16;
	MUST(buf_add(&file, p, n, &e) == 0);
	fuzz_seal_tar(file.p, n);
	char *path = (char *)(uintptr_t)fuzz_file(file.p, n);
	feed_open(&f, &path, 1);
	int k;
	while ((k = feed_next(&f, &item, &e)) == 1)
		use(&item);
	MUST(k == 0 || e.status);
	feed_close(&f);
	feed_item_free(&item);
	buf_free(&file);
	return 0;
}
