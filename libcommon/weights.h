/* weights.h - model files: safetensors, one file, readable by the public library.
 * __metadata__ (all strings): "dalle.kind" (dvae, dalle, clip), "dalle.config" (JSON), "dalle.id" (hash of kind, config
 * and tensor checksums), "dalle.text_id", "dalle.image_id" (what it was trained on), "dalle.step", "dalle.version",
 * "dalle.command", "dalle.data" (JSON arrays of command lines: of the model, of its data), "dalle.run" (JSON: what decides
 * the result), "dalle.checksums" (JSON object: tensor -> XXH3-64 hex), and while training is unfinished, or with
 * --keep-state, "dalle.state" (JSON: counters, data position, best evaluation, ...).
 * The reader follows the safetensors rules: 8-byte length, bounded header, no duplicate keys, offsets contiguous from
 * 0 without holes to exactly the end of the file, sizes = product of shape and type with checked multiplication. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include <jansson.h>

#include "params.h"
#include "stream.h"

/* The bytes that a tensor of a PyTorch file is a view of. */
struct weights_storage {
	uint64_t at, bytes; /* from the file's begin */
	uint32_t crc;       /* CRC-32 of them */
	bool has_crc;
};

struct weights_tensor {
	const char *name;
	char type[8]; /* "F32", "BF16", "F16", "I64", ... as in the file */
	int rank;
	int64_t shape[8];
	uint64_t offset, bytes; /* of its first element within the data section; of all its elements */
	/* PyTorch files only: */
	bool strided;      /* its elements do not lie one after the other, but by stride (in elements) */
	int64_t stride[8];
	struct weights_storage storage;
};

struct weights; /* an open file */
/* Open and check the header; "-" and pipes are read into memory first.  Files of torch.save are read too, without
 * running what is in them (torch-file.h); they have no metadata.  STATUS_BAD for anything else: what it is (NumPy, GGUF,
 * HDF5, a token stream, ...) and what was expected.  Of our own files the identity is checked too, which covers kind,
 * config and the list of checksums. */
struct weights *weights_open(const char *path, struct error *e);
void weights_close(struct weights *w);
const char *weights_path(const struct weights *w);
/* A metadata string, or NULL. */
const char *weights_meta(const struct weights *w, const char *key);
/* "dalle.config" parsed (borrowed), or NULL for files that are not ours. */
json_t *weights_config(const struct weights *w);
/* Bits of an element of type "F32", ...; 0 for an unknown one. */
unsigned weights_type_bits(const char *type);
size_t weights_count(const struct weights *w);
const struct weights_tensor *weights_at(const struct weights *w, size_t i);
const struct weights_tensor *weights_find(const struct weights *w, const char *name);
/* The tensor as f32 (F32, F16, BF16, F64 are converted), checksum verified when there is one. */
int weights_read(const struct weights *w, const struct weights_tensor *t, float *out, struct error *e);
/* Its t->bytes bytes as they are, in row-major order, checksum verified when there is one. */
int weights_read_raw(const struct weights *w, const struct weights_tensor *t, void *out, struct error *e);
/* Read the tensor's bytes of any type and compare with its checksum, or with a zip archive's CRC: 1 equal, 0 when the file
 * has none for it, -1 different (STATUS_BAD) or unreadable.  hex, if not NULL, gets the XXH3-64. */
int weights_verify(const struct weights *w, const struct weights_tensor *t, char hex[17], struct error *e);
uint64_t weights_bytes(const struct weights *w); /* size of the file */
/* The identity of a model: hash over kind, config and n pairs of name and checksum, by name. */
struct weights_sum {
	const char *name, *checksum;
};
int weights_identify(const char *kind, const char *config, const struct weights_sum *sums, size_t n, char id[ID_LENGTH + 1],
                     struct error *e);
/* That of a file: dalle.id, or where another program wrote none, what ours would have written, computed from all tensors. */
int weights_id(const struct weights *w, char id[ID_LENGTH + 1], struct error *e);
/* The metadata as a JSON object of strings (borrowed; empty when there is none). */
const json_t *weights_metadata(const struct weights *w);

/* STATUS_BAD unless dalle.kind is `kind`: "FILE: is a clip model, expected a dvae model". */
int weights_need_kind(const struct weights *w, const char *kind, struct error *e);
/* STATUS_BAD unless every row of p has its tensor, named prefix + row name, with its shape.  To be asked before
 * params_build: then what a model takes for its weights is bounded by the size of the file, whatever its config says. */
int params_fit(const struct params *p, const struct weights *w, const char *prefix, struct error *e);
/* Fill a block of p from tensors named so, after the same checks.  Values are converted to
 * the row's storage (params_place); a tensor of that very type is taken bit by bit.  Then params_refresh is the caller's. */
int params_load(struct params *p, enum params_block which, const struct weights *w, const char *prefix, struct error *e);

/* The same into a host array: row r begins at element r->at.  total elements. */
int params_load_host(float *host, const struct params *p, const struct weights *w, const char *prefix, struct error *e);
/* What is kept of some rows beside the blocks, on the host, in one of their number formats. */
struct kept_rows {
	void **at; /* (p->count); NULL: nothing of this row */
	enum dtype type;
};
/* The same into such memory; the tensors must be of its type. */
int params_load_kept(const struct kept_rows *kept, const struct params *p, const struct weights *w, const char *prefix,
                     struct error *e);
/* A block of p as floats in that layout. */
int params_to_host(float *host, struct params *p, enum params_block which, struct error *e);

/* ---- writing ---- */

/* A tensor to write. */
struct weights_entry {
	char name[160];
	const char *type; /* "F32", ... */
	int rank;
	int64_t shape[8];
	uint64_t bytes;
	const void *from; /* the caller's */
	char hex[17];     /* checksum, set by weights_write */
};
/* The t->bytes bytes of an entry: borrowed until the next call.  NULL with e filled. */
typedef const void *weights_fetch(void *arg, const struct weights_entry *t, struct error *e);
/* Write atomically (temporary name, fsync, rename, fsync of the folder); path NULL or "-" is standard output.  meta: JSON
 * object of strings, to which checksums are added here, and dalle.id when it holds dalle.kind: the id covers kind, config
 * and the tensors whose names do not begin with "train.".  Sorts the entries.  id_out may be NULL. */
int weights_write(const char *path, json_t *meta, struct weights_entry *entries, size_t n, weights_fetch *fetch, void *arg,
                  char id_out[ID_LENGTH + 1], struct error *e);

/* What to write: rows of p from the given block under prefix + name, in their storage: F32, F16 or BF16, and U16 for the
 * moments' formats. */
struct weights_part {
	struct params *p;
	enum params_block which;
	const char *prefix;
	const float *host; /* NULL, or take the values from here (params_to_host), as F32, instead of the device */
	const struct kept_rows *kept; /* NULL, or take them from here */
};
/* These rows by weights_write. */
int weights_save(const char *path, json_t *meta, const struct weights_part *parts, size_t n, char id_out[ID_LENGTH + 1],
                 struct error *e);

#endif
