/* clip-hf.c - the folder of a published CLIP: config.json up to a zero byte, then preprocessor_config.json (none when
 * empty); weights and vocabulary are the tests' own.  What loads embeds a picture and a caption. */
#include "fuzz.h"

#include "../../libcommon/clip.h"

static const struct ops *ops;
static struct dev *dev;

static void copy(const char *folder, const char *name)
{
	char path[200];
	snprintf(path, sizeof path, "tests/golden/%s/%s", folder, name);
	struct buf b = fuzz_load(path);
	fuzz_put(name, b.p, b.n);
	buf_free(&b);
}

static void begin(void)
{
	copy("clip-bpe", "vocab.json");
	copy("clip-bpe", "merges.txt");
	copy("hf-clip/quick", "model.safetensors");
	fuzz_device(&ops, &dev);
}

static void embed(struct clip *m)
{
	struct error e = {0};
	struct tokens t = {0};
	const struct tokens *list[] = {&t};
	struct bpe_coder *c = bpe_coder_new(m->bpe, &e);
	size_t bytes = (size_t)(3 * m->config.size * m->config.size);
	uint8_t *rgb = mem_zero(bytes, 1, &e);
	float *out = mem_zero(2 * (size_t)m->config.embed, sizeof *out, &e);
	MUST(c && rgb && out && bpe_encode(c, "a red heart", 11, 0, 0, 0, &t, &e) == 0);
	bpe_cut(m->bpe, &t, (size_t)m->config.context);
	MUST(clip_embed(m, rgb, list, 1, out, out + m->config.embed, &e) == 0 || e.status);
	bpe_coder_free(c);
	free(t.v);
	free(rgb);
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct clip m = {0};
	const uint8_t *more;
	size_t more_n, config_n = fuzz_cut(p, n, 0, &more, &more_n);
	if (!dev)
		begin();
	fuzz_put("config.json", p, config_n);
	fuzz_put("preprocessor_config.json", more_n ? more : NULL, more_n);
	if (clip_open(&m, fuzz_folder(), ops, dev, 1, &e) == 0)
		embed(&m);
	else
		MUST(e.status);
	clip_free(&m);
	return 0;
}
