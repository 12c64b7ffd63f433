/* dalle-config.c - see dalle-config.h. */
#include "dalle-config.h"

#include "config.h"

#include <string.h>

/* Data sizes are the paper's where a stream does not set them; `small` is for pictures of 64 to 128 pixels with short
 * captions on a CPU.  1.2b has the paper's recipe at a size of later reimplementations. */
#define PAPER_DATA .text_length = 256, .text_vocab = 16384, .grid_w = 32, .grid_h = 32, .image_vocab = 8192
#define PAPER_SIZE(l, w, h) {PAPER_DATA, .layers = l, .width = w, .heads = h, .conv_k = 11, .logits_f32 = true}
#define PAPER_RECIPE(b, rate) \
	{.batch = b, .lr = rate, .lr_end = 1.0 / 32, .warmup = 5000, .halving = true, .beta1 = 0.9, .beta2 = 0.96, \
	 .eps = 1e-8, .decay = 4.5e-2, .v_max = 5, .clip = 4, .average_decay = 0.99, .average_every = 25, \
	 .bpe_dropout = 0.1, .init = 0.125}
#define SHORT_RECIPE(b, rate, warm) \
	{.batch = b, .lr = rate, .lr_end = 0.02, .warmup = warm, .beta1 = 0.9, .beta2 = 0.96, .eps = 1e-8, \
	 .decay = 4.5e-2, .v_max = 5, .clip = 4, .average_decay = 0.98, .average_every = 1, .bpe_dropout = 0.1, \
	 .init = 1}

static const struct dalle_preset presets[] = {
	{"tiny",
	 {.text_length = 16, .text_vocab = 256, .grid_w = 4, .grid_h = 4, .image_vocab = 64, .layers = 4, .width = 32,
	  .heads = 2, .conv_k = 3},
	 SHORT_RECIPE(8, 3e-3, 10)},
	{"small",
	 {.text_length = 32, .text_vocab = 2048, .grid_w = 8, .grid_h = 8, .image_vocab = 2048, .layers = 4, .width = 192,
	  .heads = 6, .conv_k = 11},
	 SHORT_RECIPE(32, 3e-3, 40)},
	{"1.2b", PAPER_SIZE(24, 2048, 32), PAPER_RECIPE(8, 4.5e-4)},
	{"2.8b", PAPER_SIZE(64, 1920, 30), PAPER_RECIPE(4, 4.5e-4)},
	{"5.6b", PAPER_SIZE(64, 2688, 42), PAPER_RECIPE(2, 4.5e-4)},
	{"12b", PAPER_SIZE(64, 3968, 62), PAPER_RECIPE(1, 4.5e-4)},
};

const struct dalle_preset *dalle_preset_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(presets); i++)
		if (strcmp(presets[i].name, name) == 0)
			return &presets[i];
	return NULL;
}

struct attn_mask dalle_mask_of(const struct dalle_config *c, int i)
{
	struct attn_mask m = {.kind = ATTN_ROW, .n_text = c->text_length, .grid_w = c->grid_w, .grid_h = c->grid_h,
	                      .conv_k = c->conv_k, .conv_centred = c->conv_centred};
	if (c->mask == DALLE_MASK_DENSE)
		m.kind = ATTN_CAUSAL;
	else if (i == c->layers - 1)
		m.kind = ATTN_CONV;
	else if (i % 4 == 1)
		m.kind = ATTN_COLUMN;
	return m;
}

/* Text states see all before them, image states all text and, whatever their place, the same distances back. */
uint64_t dalle_mask_pairs(const struct attn_mask *mask)
{
	uint64_t text = (uint64_t)mask->n_text, S = (uint64_t)attn_length(mask), image = S - text;
	uint64_t pairs = text * (text + 1) / 2 + image * text;
	for (uint64_t o = 0; o < image; o++)
		if (attn_allowed(mask, (int)(S - 1), (int)(S - 1 - o)))
			pairs += image - o;
	return pairs;
}

void dalle_config_from_header(struct dalle_config *c, const struct header *h)
{
	c->text_vocab = (int)h->text.size;
	c->image_vocab = (int)h->image.size;
	c->grid_w = (int)h->image.grid_width;
	c->grid_h = (int)h->image.grid_height;
}

/* ---- JSON ---- */

static const struct config_field fields[] = {
#define FIELD(name, min, max) CONFIG_FIELD(struct dalle_config, name, min, max)
	FIELD(text_length, 1, 1 << 16), FIELD(text_vocab, 1, 1 << 24), FIELD(grid_w, 1, 4096), FIELD(grid_h, 1, 4096),
	FIELD(image_vocab, 1, 1 << 24), FIELD(layers, 1, 1024), FIELD(width, 1, 1 << 17), FIELD(heads, 1, 1 << 12),
	FIELD(conv_k, 1, 4095), FIELD(conv_centred, 0, 1),
	CONFIG_CHOICE(struct dalle_config, mask, DALLE_MASK_DENSE, DALLE_MASKS),
#undef FIELD
};

int dalle_config_check(const struct dalle_config *c, struct error *e)
{
	if (config_check(c, fields, ARRAY_LEN(fields), STATUS_BAD, e))
		return -1;
	if (c->width % c->heads)
		return fail(e, STATUS_BAD, "width %d is not a multiple of %d heads", c->width, c->heads);
	if (c->conv_k % 2 == 0)
		return fail(e, STATUS_BAD, "conv_k %d is even, expected an odd number", c->conv_k);
	if ((int64_t)c->grid_w * c->grid_h > 1 << 20)
		return fail(e, STATUS_BAD, "grid of %dx%d tokens is larger than 2^20", c->grid_w, c->grid_h);
	return 0;
}

json_t *dalle_config_json(const struct dalle_config *c)
{
	json_t *j = config_json(c, fields, ARRAY_LEN(fields));
	if (j && json_object_set_new(j, "logits_f32", json_boolean(c->logits_f32)) == 0)
		return j;
	json_decref(j);
	return NULL;
}

int dalle_config_parse(struct dalle_config *c, const json_t *j, const char *name, struct error *e)
{
	struct error inner = {0};
	*c = (struct dalle_config){.logits_f32 = json_is_true(json_object_get(j, "logits_f32"))};
	if (config_parse(c, fields, ARRAY_LEN(fields), j, name, e))
		return -1;
	return dalle_config_check(c, &inner) ? fail(e, STATUS_BAD, "%s: %s", name, inner.text) : 0;
}
