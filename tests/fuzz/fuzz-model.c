/* fuzz-model.c - see fuzz.h: model files. */
#include "fuzz.h"

#include "../../libcommon/clip.h"
#include "../../libcommon/dalle-config.h"
#include "../../libcommon/dvae.h"

enum { MOST = 1 << 22, MOST_DATA = 1 << 18 }; /* bytes of a tensor that is read; of a file that is made */

static size_t told_end(const uint8_t *p, size_t n)
{
	json_t *root = json_loadb((const char *)p, n, 0, NULL), *tensor;
	const char *name;
	json_int_t end = 0;
	json_object_foreach(root, name, tensor) {
		json_int_t v = json_integer_value(json_array_get(json_object_get(tensor, "data_offsets"), 1));
		end = v > end ? v : end;
	}
	json_decref(root);
	return end < MOST_DATA ? (size_t)end : MOST_DATA;
}

const char *fuzz_safetensors(const uint8_t *p, size_t n)
{
	struct error e = {0};
	static struct buf file;
	const uint8_t *data;
	size_t data_n, json_n = fuzz_cut(p, n, 0, &data, &data_n), end = told_end(p, json_n);
	uint64_t length = json_n;
	MUST(buf_set(&file, &length, sizeof length, &e) == 0 && buf_add(&file, p, json_n, &e) == 0);
	MUST(buf_reserve(&file, end, &e) == 0);
	memset(file.p + file.n, 0, end);
	if (data_n)
		memcpy(file.p + file.n, data, data_n < end ? data_n : end);
	return fuzz_file(file.p, file.n + end);
}

static void use_tensor(const struct weights *w, const struct weights_tensor *t)
{
	struct error e = {0};
	char hex[17];
	unsigned bits = weights_type_bits(t->type);
	MUST(bits && weights_find(w, t->name) && t->rank >= 0 && t->rank <= 8);
	MUST(t->bytes <= 16 * weights_bytes(w));
	if (t->bytes > MOST)
		return;
	uint8_t *raw = mem_alloc(t->bytes, 1, &e);
	float *values = mem_alloc(t->bytes * 8 / bits, sizeof *values, &e);
	MUST(raw && values);
	weights_read_raw(w, t, raw, &e);
	e = (struct error){0};
	weights_read(w, t, values, &e);
	e = (struct error){0};
	weights_verify(w, t, hex, &e);
	free(raw);
	free(values);
}

static void use_sizes(const struct weights *w)
{
	struct error e = {0};
	struct dvae_config dvae;
	struct clip_config clip = {0};
	struct dalle_config dalle;
	for (int parts = DVAE_ENCODER; parts <= (DVAE_ENCODER | DVAE_DECODER); parts++) {
		e = (struct error){0};
		dvae_config_from_tensors(&dvae, parts, w, &e);
	}
	if (!weights_config(w))
		return;
	dvae_config_from_json(&dvae, weights_config(w), "fuzz", &e);
	clip_config_from_json(&clip, weights_config(w), "fuzz", &e);
	dalle_config_parse(&dalle, weights_config(w), "fuzz", &e);
}

void fuzz_model(const char *path)
{
	struct error e = {0};
	char id[ID_LENGTH + 1];
	struct weights *w = weights_open(path, &e);
	MUST(w || e.status);
	if (!w)
		return;
	for (size_t i = 0; i < weights_count(w); i++)
		use_tensor(w, weights_at(w, i));
	weights_id(w, id, &e);
	e = (struct error){0};
	weights_need_kind(w, "dvae", &e);
	use_sizes(w);
	weights_close(w);
}
