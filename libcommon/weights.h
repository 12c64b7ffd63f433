/* weights.h - model files: safetensors, one file, readable by the public library.
 * __metadata__ (all strings): "dalle.kind" (dvae, dalle, clip), "dalle.config" (JSON), "dalle.id" (hash of kind, config
 * and tensor checksums), "dalle.text_id", "dalle.image_id" (what it was trained on), "dalle.step", "dalle.version",
 * "dalle.command" (JSON array of command lines), "dalle.checksums" (JSON object: tensor -> XXH3-64 hex),
 * and while training is unfinished "dalle.state" (JSON: counters, data position, best evaluation, ...).
 * The reader follows the safetensors rules: 8-byte length, bounded header, no duplicate keys, offsets contiguous from
 * 0 without holes to exactly the end of the file, sizes = product of shape and type with checked multiplication. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include <jansson.h>

#include "params.h"
#include "stream.h"

struct weights_tensor {
	const char *name;
	char type[8]; /* "F32", "BF16", "F16", "I64", ... as in the file */
	int rank;
	int64_t shape[8];
	uint64_t offset, bytes; /* within the data section */
};

struct weights; /* an open file */
struct weights *weights_open(const char *path, struct error *e);
void weights_close(struct weights *w);
const char *weights_path(const struct weights *w);
/* A metadata string, or NULL. */
const char *weights_meta(const struct weights *w, const char *key);
/* "dalle.config" parsed (borrowed), or NULL for files that are not ours. */
json_t *weights_config(const struct weights *w);
size_t weights_count(const struct weights *w);
const struct weights_tensor *weights_at(const struct weights *w, size_t i);
const struct weights_tensor *weights_find(const struct weights *w, const char *name);
/* The tensor as f32 (F32, F16, BF16, F64 are converted), checksum verified when there is one. */
int weights_read(const struct weights *w, const struct weights_tensor *t, float *out, struct error *e);

/* STATUS_BAD unless dalle.kind is `kind`: "FILE: is a clip model, expected a dvae model". */
int weights_need_kind(const struct weights *w, const char *kind, struct error *e);
/* Fill p's master weights (block `w`, or `m`, `v`, `avg` by which) from tensors named prefix + row name: every row
 * must be there with its shape.  Then params_refresh is the caller's. */
enum params_block { BLOCK_W, BLOCK_M, BLOCK_V, BLOCK_AVG };
int params_load(struct params *p, enum params_block which, const struct weights *w, const char *prefix, struct error *e);

/* What to write: rows of p from the given block under prefix + name, in `type` ("F32" or "BF16"). */
struct weights_part {
	struct params *p;
	enum params_block which;
	const char *prefix;
};
/* Write atomically (temporary name, fsync, rename, fsync of the folder).  meta: JSON object of strings, to which
 * checksums and dalle.id are added here: the id covers dalle.kind, dalle.config and the parts with prefix "".
 * id_out may be NULL. */
int weights_save(const char *path, json_t *meta, const struct weights_part *parts, size_t n, char id_out[ID_LENGTH + 1],
                 struct error *e);

#endif
