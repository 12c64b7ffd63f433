/* device.h - from the four options of OPT_RUN to an opened device, and from a device's sticky error to a
 * struct error.  Used by every tool that runs a model. */
#ifndef DEVICE_H
#define DEVICE_H

#include "../kernels/ops.h"
#include "opt.h"

/* Open the device that -d, -j and -p name; -p auto is the device's preferred type.  With -v one line says what
 * was chosen.  STATUS_USAGE for a name that is none, STATUS_FAIL for a device that is not there. */
int device_open(const struct run_options *r, const struct ops **ops, struct dev **dev, struct error *e);
void device_close(const struct ops *ops, struct dev *dev); /* dev may be NULL */

/* Wait for the device; its first failure, if any, as a struct error. */
int device_check(const struct ops *ops, struct dev *dev, struct error *e);

/* `bytes` of device memory, zeroed.  NULL and STATUS_LIMIT "WHAT: needs 3.1 GiB of memory, cpu has 1.9 GiB free". */
void *device_alloc(const struct ops *ops, struct dev *dev, uint64_t bytes, const char *what, struct error *e);

const char *dtype_name(enum dtype t); /* "f32", "bf16", "f16", "1-6-9", "0-6-10" */
/* "512 B", "3.4 KiB", "1.25 GiB"; out of at least 16 bytes. */
void format_bytes(char *out, size_t n, uint64_t bytes);

#endif
