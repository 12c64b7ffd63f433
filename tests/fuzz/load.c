/* load.c - whole models of the three kinds from safetensors files, and one use of each.  Sizes on which activations depend
 * are kept small; weights are bounded by the file. */
#include "fuzz.h"

#include "../../libcommon/clip.h"
#include "../../libcommon/dalle.h"
#include "../../libcommon/dvae.h"

static const struct ops *ops;
static struct dev *dev;

static int64_t member(const struct weights *w, const char *key)
{
	return json_integer_value(json_object_get(weights_config(w), key));
}

static bool is_small(const char *path)
{
	struct error e = {0};
	struct weights *w = weights_open(path, &e);
	bool small = w && member(w, "size") <= 32 && member(w, "context") <= 64 && member(w, "text_length") <= 64 &&
	             member(w, "grid_w") <= 8 && member(w, "grid_h") <= 8;
	weights_close(w);
	return small;
}

static void use_dvae(const char *path)
{
	struct error e = {0};
	struct dvae *d = dvae_load(path, DVAE_ENCODER | DVAE_DECODER, ops, dev, 1, &e);
	MUST(d || e.status);
	if (!d)
		return;
	const struct dvae_config *c = dvae_configuration(d);
	uint8_t *rgb = mem_zero((size_t)(3 * c->size * c->size), 1, &e);
	int32_t *codes = mem_zero((size_t)(dvae_grid(c) * dvae_grid(c)), sizeof *codes, &e);
	MUST(rgb && codes && dvae_encode(d, codes, rgb, 1, &e) == 0);
	free(rgb);
	free(codes);
	dvae_free(d);
}

static void use_clip(const char *path)
{
	struct error e = {0};
	struct clip m = {0};
	struct tokens t = {0};
	const struct tokens *list[] = {&t};
	if (clip_load(&m, path, ops, dev, 1, &e) == 0) {
		uint8_t *rgb = mem_zero((size_t)(3 * m.config.size * m.config.size), 1, &e);
		float *out = mem_zero((size_t)(2 * m.config.embed), sizeof *out, &e);
		MUST(rgb && out && tokens_set(&t, (const uint32_t[]){0}, 1, &e) == 0);
		clip_embed(&m, rgb, list, 1, out, out + m.config.embed, &e);
		free(rgb);
		free(out);
		free(t.v);
	} else {
		MUST(e.status);
	}
	clip_free(&m);
}

static void use_dalle(const char *path)
{
	struct error e = {0};
	struct dalle d = {0};
	if (dalle_open(&d, path, ops, dev, &e) == 0)
		dalle_plan(&d, 1, false, &e);
	else
		MUST(e.status);
	dalle_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	fuzz_device(&ops, &dev);
	const char *path = fuzz_safetensors(p, n);
	if (!is_small(path))
		return 0;
	use_dvae(path);
	use_clip(path);
	use_dalle(path);
	return 0;
}
