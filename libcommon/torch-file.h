/* torch-file.h - the tensors of files written by torch.save, without running what is in them: state dictionaries and
 * whole module objects, from the zip container (torch 1.6 and later) and the older one (pickles, then storages).
 *
 * A tensor is a view of a storage: type, offset, shape and strides.  All that is checked here, so that a reader only
 * has to follow it.  Names are those of a state dictionary: keys joined with dots; modules are walked by their
 * _parameters, _buffers and _modules, and whatever is no tensor is passed over; a tensor alone is "tensor".  The halves
 * of the published dVAE name their tensors alike (blocks.input.w): "encoder." or "decoder." is put before them. */
#ifndef TORCH_FILE_H
#define TORCH_FILE_H

#include "bytes.h"
#include "weights.h"

struct torch_file {
	struct weights_tensor *tensors; /* by name; offsets from the file's begin; names are owned */
	size_t count, cap;
};

/* True when the n first bytes (32 suffice) are those of a zip archive or of an old container. */
bool torch_looks_like(const uint8_t *p, size_t n);
/* STATUS_BAD when the file is damaged, or holds what is no tensor data: "FILE: pickle at byte 12: calls for os.system,
 * ...".  Free with torch_free in any case. */
int torch_read(struct torch_file *t, const struct file_bytes *bytes, struct error *e);
void torch_free(struct torch_file *t);

#endif
