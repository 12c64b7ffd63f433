/* clip-hf.c - CLIP as Hugging Face publishes it: a folder with config.json, model.safetensors, vocab.json, merges.txt
 * and perhaps preprocessor_config.json, used as it is.  Sizes come from the config, whose absent fields have the
 * defaults of ViT-B/32; tensors are renamed and queries, keys and values stacked while they are read.  Tensors that the
 * model does not use (position_ids of older files) are left alone. */
#include "clip.h"

#include "device.h"
#include "json-file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_CONFIG = 1 << 24, OLD_END = 2, STANDARD_END = 49407 };

/* ---- members of JSON objects ---- */

/* Field `key` as a whole number; *out keeps its value when the field is absent or null. */
static int get_int(const char *name, const json_t *j, const char *key, int64_t *out, struct error *e)
{
	const json_t *v = json_object_get(j, key);
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v))
		return fail(e, STATUS_BAD, "%s: '%s' is no whole number", name, key);
	*out = json_integer_value(v);
	return 0;
}

static int get_three(const char *name, const json_t *j, const char *key, float out[3], struct error *e)
{
	const json_t *v = json_object_get(j, key);
	if (!v || json_is_null(v))
		return 0;
	for (size_t i = 0; i < 3; i++) {
		const json_t *x = json_array_get(v, i);
		if (json_array_size(v) != 3 || !json_is_number(x))
			return fail(e, STATUS_BAD, "%s: '%s' is not three numbers", name, key);
		out[i] = (float)json_number_value(x);
	}
	return 0;
}

/* ---- config.json ---- */

/* One tower's part of the config, with the defaults of ViT-B/32. */
struct tower {
	int64_t width, hidden, layers, heads, exact;
};

/* hidden_act decides the activation, never the model's name; our norms have eps 1e-5. */
static int read_tower(const char *name, const json_t *j, struct tower *t, struct error *e)
{
	const json_t *act = json_object_get(j, "hidden_act"), *eps = json_object_get(j, "layer_norm_eps");
	const char *text = act ? json_string_value(act) : "quick_gelu";
	if (!text || (strcmp(text, "quick_gelu") != 0 && strcmp(text, "gelu") != 0))
		return fail(e, STATUS_BAD, "%s: hidden_act '%.40s', expected quick_gelu or gelu", name, text ? text : "");
	t->exact = strcmp(text, "gelu") == 0;
	if (eps && fabs(json_number_value(eps) - 1e-5) > 1e-9)
		return fail(e, STATUS_BAD, "%s: layer_norm_eps %g, expected 1e-5", name, json_number_value(eps));
	if (get_int(name, j, "hidden_size", &t->width, e) || get_int(name, j, "intermediate_size", &t->hidden, e) ||
	    get_int(name, j, "num_hidden_layers", &t->layers, e) || get_int(name, j, "num_attention_heads", &t->heads, e))
		return -1;
	return t->hidden >= 1 ? 0 : fail(e, STATUS_BAD, "%s: intermediate_size %lld, expected 1 or more", name,
	                                 (long long)t->hidden);
}

/* Old files say it twice; then the part under `key`_dict counts. */
static const json_t *part_of(const json_t *root, const char *key)
{
	char dict[40];
	snprintf(dict, sizeof dict, "%s_dict", key);
	const json_t *j = json_object_get(root, dict);
	return json_is_object(j) ? j : json_object_get(root, key);
}

/* Into c, and which token ends a caption. */
static int read_config(struct clip_config *c, int64_t *end_token, const char *name, const json_t *root, struct error *e)
{
	const json_t *text = part_of(root, "text_config"), *vision = part_of(root, "vision_config");
	const char *type = json_string_value(json_object_get(root, "model_type"));
	struct tower image = {768, 3072, 12, 12, 0}, words = {512, 2048, 12, 8, 0};
	int64_t channels = 3;
	*c = (struct clip_config){.size = 224, .patch = 32, .context = 77, .vocabulary = 49408, .embed = 512};
	*end_token = STANDARD_END;
	if (type && strcmp(type, "clip") != 0)
		return fail(e, STATUS_BAD, "%s: is of a model of type '%.40s', expected clip", name, type);
	if (read_tower(name, text, &words, e) || read_tower(name, vision, &image, e) ||
	    get_int(name, text, "max_position_embeddings", &c->context, e) ||
	    get_int(name, text, "vocab_size", &c->vocabulary, e) ||
	    get_int(name, text, "eos_token_id", end_token, e) || get_int(name, vision, "image_size", &c->size, e) ||
	    get_int(name, vision, "patch_size", &c->patch, e) || get_int(name, vision, "num_channels", &channels, e) ||
	    get_int(name, root, "projection_dim", &c->embed, e))
		return -1;
	if (channels != 3)
		return fail(e, STATUS_BAD, "%s: pictures of %lld channel%s, expected 3", name, (long long)channels,
		            plural((uint64_t)channels));
	if (image.exact != words.exact)
		return fail(e, STATUS_BAD, "%s: the towers have different activations, expected the same hidden_act", name);
	c->image_width = image.width, c->image_hidden = image.hidden, c->image_layers = image.layers, c->image_heads = image.heads;
	c->text_width = words.width, c->text_hidden = words.hidden, c->text_layers = words.layers, c->text_heads = words.heads;
	c->exact_gelu = image.exact;
	/* Configs of before 2023 name a wrong end token, always this one: the largest token of the caption is meant. */
	if (*end_token == OLD_END)
		*end_token = -1;
	return 0;
}

/* ---- preprocessor_config.json ---- */

/* "size" and "crop_size" are numbers in old files and objects in new ones. */
static int get_side(const char *name, const json_t *j, const char *key, int64_t *out, struct error *e)
{
	const json_t *v = json_object_get(j, key);
	int64_t height = *out;
	if (!json_is_object(v))
		return get_int(name, j, key, out, e);
	if (json_object_get(v, "shortest_edge"))
		return get_int(name, v, "shortest_edge", out, e);
	if (get_int(name, v, "width", out, e) || get_int(name, v, "height", &height, e))
		return -1;
	return height == *out ? 0 : fail(e, STATUS_BAD, "%s: '%s' is no square", name, key);
}

static int read_preprocessor(struct clip *m, const char *name, const json_t *j, struct error *e)
{
	enum { BICUBIC = 3 };
	int64_t crop = m->config.size, filter = BICUBIC;
	if (get_side(name, j, "size", &m->resize, e) || get_side(name, j, "crop_size", &crop, e) ||
	    get_int(name, j, "resample", &filter, e) || get_three(name, j, "image_mean", m->mean, e) ||
	    get_three(name, j, "image_std", m->deviation, e))
		return -1;
	if (filter != BICUBIC)
		return fail(e, STATUS_BAD, "%s: resample %lld, expected 3 (bicubic)", name, (long long)filter);
	if (crop != m->config.size || m->resize < crop || m->resize > STREAM_MAX_SIDE)
		return fail(e, STATUS_BAD, "%s: pictures of size %lld, cropped to %lld, expected %lld, the model's", name,
		            (long long)m->resize, (long long)crop, (long long)m->config.size);
	for (int i = 0; i < 3; i++)
		if (!(m->deviation[i] > 0))
			return fail(e, STATUS_BAD, "%s: 'image_std' %g, expected more than 0", name, (double)m->deviation[i]);
	return 0;
}

/* ---- tensors ---- */

/* The published name of the part of one of our rows that is not a block's, or NULL. */
static const char *outer_name(const char *ours)
{
	static const char *const names[][2] = {
		{"visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"},
		{"visual.class_embedding", "vision_model.embeddings.class_embedding"},
		{"visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"},
		{"visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"}, /* spelt so */
		{"visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"},
		{"visual.ln_post.weight", "vision_model.post_layernorm.weight"},
		{"visual.ln_post.bias", "vision_model.post_layernorm.bias"},
		{"visual.proj.weight", "visual_projection.weight"},
		{"token_embedding.weight", "text_model.embeddings.token_embedding.weight"},
		{"positional_embedding", "text_model.embeddings.position_embedding.weight"},
		{"ln_final.weight", "text_model.final_layer_norm.weight"},
		{"ln_final.bias", "text_model.final_layer_norm.bias"},
		{"text_projection.weight", "text_projection.weight"},
		{"logit_scale", "logit_scale"},
	};
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcmp(names[i][0], ours) == 0)
			return names[i][1];
	return NULL;
}

/* "visual.blocks.3.mlp.up.bias" -> "vision_model.encoder.layers.3.mlp.fc1.bias"; of attn.qkv, part 0, 1 or 2. */
static void block_name(char *out, size_t n, const char *ours, int part)
{
	static const char *const inner[][2] = {{"norm1", "layer_norm1"}, {"norm2", "layer_norm2"},
	                                       {"attn.out", "self_attn.out_proj"},
	                                       {"mlp.up", "mlp.fc1"}, {"mlp.down", "mlp.fc2"}};
	static const char *const parts[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
	bool visual = strncmp(ours, "visual.", 7) == 0;
	const char *number = strchr(ours, '.') + strlen(".blocks."), *middle = strchr(number, '.') + 1, *end = strrchr(ours, '.');
	const char *name = parts[part];
	for (size_t i = 0; i < ARRAY_LEN(inner); i++)
		if (strncmp(middle, inner[i][0], (size_t)(end - middle)) == 0)
			name = inner[i][1];
	snprintf(out, n, "%s_model.encoder.layers.%.*s.%s%s", visual ? "vision" : "text", (int)(middle - 1 - number), number, name,
	         end);
}

/* Shapes agree but for leading sides of 1 (the class vector, the scalar); `parts` of t make the row. */
static bool same_shape(const struct weights_tensor *t, const struct param *r, int parts)
{
	int skip = 0;
	while (skip < r->rank && r->shape[skip] == 1 && r->rank - skip > t->rank)
		skip++;
	bool same = r->rank - skip == t->rank;
	for (int i = 0; same && i < t->rank; i++)
		same = t->shape[i] == r->shape[i + skip] / (i == 0 ? parts : 1);
	return same;
}

/* The tensors that make the row; host NULL: only look for them. */
static int read_row(const struct weights *w, const struct param *r, float *host, struct error *e)
{
	const char *outer = outer_name(r->name);
	int parts = !outer && strstr(r->name, ".qkv.") ? 3 : 1;
	for (int i = 0; i < parts; i++) {
		char name[160];
		if (outer)
			snprintf(name, sizeof name, "%s", outer);
		else
			block_name(name, sizeof name, r->name, i);
		const struct weights_tensor *t = weights_find(w, name);
		if (!t)
			return fail(e, STATUS_BAD, "%s: has no tensor %s", weights_path(w), name);
		if (!same_shape(t, r, parts))
			return fail(e, STATUS_BAD, "%s: tensor %s does not have the shape that config.json says", weights_path(w), name);
		if (host && weights_read(w, t, host + (size_t)i * (r->n / (size_t)parts), e))
			return -1;
	}
	return 0;
}

static int read_weights(struct clip *m, const struct weights *w, struct error *e)
{
	struct params *p = &m->params;
	size_t most = 0;
	for (int i = 0; i < p->count; i++)
		most = p->rows[i].n > most ? p->rows[i].n : most;
	float *host = mem_alloc(most, sizeof *host, e);
	int r = host ? 0 : -1;
	for (int i = 0; i < p->count && r == 0; i++) {
		r = read_row(w, &p->rows[i], host, e);
		if (r == 0)
			p->ops->put(p->dev, p->rows[i].w, host, p->rows[i].n * sizeof *host);
		if (r == 0)
			r = device_check(p->ops, p->dev, e); /* host is used again for the next row */
	}
	free(host);
	if (r == 0)
		params_refresh(p);
	return r;
}

/* Memory is taken once the file has all that config.json says. */
static int build(struct clip *m, const char *name, struct error *e)
{
	struct weights *w = weights_open(name, e);
	int r = w ? 0 : -1;
	for (int i = 0; i < m->params.count && r == 0; i++)
		r = read_row(w, &m->params.rows[i], NULL, e);
	if (r == 0)
		r = clip_build(m, e) || read_weights(m, w, e) ? -1 : 0;
	weights_close(w);
	return r;
}

/* ---- the folder ---- */

struct folder {
	char config[4096], weights[4096], preprocessor[4096];
};

static int name_files(struct folder *f, const char *path, struct error *e)
{
	const struct {
		char *to;
		const char *name;
	} files[] = {{f->config, "config.json"}, {f->weights, "model.safetensors"}, {f->preprocessor, "preprocessor_config.json"}};
	for (size_t i = 0; i < ARRAY_LEN(files); i++)
		if ((size_t)snprintf(files[i].to, sizeof f->config, "%s/%s", path, files[i].name) >= sizeof f->config)
			return fail(e, STATUS_FAIL, "%s: the name is too long", path);
	return 0;
}

/* The model's sizes, its activations' plan and how its pictures are made. */
static int plan(struct clip *m, const struct folder *f, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	struct clip_config c;
	struct error inner = {0};
	struct stat st;
	int64_t end_token;
	json_t *j = json_file_read(f->config, MAX_CONFIG, e);
	int r = j ? read_config(&c, &end_token, f->config, j, e) : -1;
	json_decref(j);
	if (r)
		return -1;
	if (clip_plan(m, &c, ops, dev, batch, false, &inner))
		return fail(e, inner.status, "%s: %s", f->config, inner.text);
	m->end_token = end_token;
	m->resize = c.size;
	if (stat(f->preprocessor, &st))
		return 0;
	j = json_file_read(f->preprocessor, MAX_CONFIG, e);
	r = j ? read_preprocessor(m, f->preprocessor, j, e) : -1;
	json_decref(j);
	return r;
}

static int load_folder(struct clip *m, const char *folder, const struct ops *ops, struct dev *dev, int batch,
		       struct error *e)
{
	struct folder f;
	*m = (struct clip){0};
	if (name_files(&f, folder, e) || plan(m, &f, ops, dev, batch, e))
		return -1;
	m->bpe = bpe_open(folder, e);
	if (!m->bpe)
		return -1;
	if (bpe_size(m->bpe) > m->config.vocabulary)
		return fail(e, STATUS_BAD, "%s: vocab.json has %u tokens, config.json says %lld", folder, bpe_size(m->bpe),
		            (long long)m->config.vocabulary);
	return build(m, f.weights, e);
}

int clip_open(struct clip *m, const char *path, const struct ops *ops, struct dev *dev, int batch, struct error *e)
{
	struct stat st;
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return load_folder(m, path, ops, dev, batch, e);
	return clip_load(m, path, ops, dev, batch, e);
}
