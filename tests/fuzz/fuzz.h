/* fuzz.h - what the fuzz targets share.  Each target is one file with LLVMFuzzerTestOneInput, which gives the bytes of one
 * input to a reader, uses all that the reader lets through, and checks that it survives being written and read again.
 * Sanitizers see the rest.  run.sh builds nothing: `make fuzz` does. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/ops.h"
#include "../../libcommon/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

/* A property that must hold for every input. */
#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

/* The path of a file that holds these bytes until the next call.  Its memory is the system's. */
const char *fuzz_file(const void *p, size_t n);
/* The path of this target's own folder, and a file in it (absent when p is NULL). */
const char *fuzz_folder(void);
void fuzz_put(const char *name, const void *p, size_t n);
/* A file that is there already, whole; the program ends when it is not. */
struct buf fuzz_load(const char *path);

/* Cut an input in two at the first byte `at` (the second part is empty without one); the number of bytes before it. */
static inline size_t fuzz_cut(const uint8_t *p, size_t n, uint8_t at, const uint8_t **rest, size_t *rest_n)
{
	const uint8_t *found = n ? memchr(p, at, n) : NULL;
	size_t first = found ? (size_t)(found - p) : n;
	*rest = p + first + (found != NULL);
	*rest_n = n - first - (found != NULL);
	return first;
}

/* The CPU in f32, on one thread; opened at the first call. */
void fuzz_device(const struct ops **ops, struct dev **dev);

/* fuzz-model.c.  A safetensors file: its header up to a zero byte, then its data, cut or filled up with zeros to the end
 * that the header tells, so that mutations of the header find their bytes there.  The file's path. */
const char *fuzz_safetensors(const uint8_t *p, size_t n);
/* Open a model file, read all of its tensors, understand its sizes. */
void fuzz_model(const char *path);

#endif
