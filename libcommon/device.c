/* device.c - see device.h. */
#include "device.h"

#include <string.h>

enum { PRECISION_AUTO }; /* the other indices of OPT_RUN's list are dtype + 1 */

const char *dtype_name(enum dtype t)
{
	static const char *const names[] = {"f32", "bf16", "f16", "1-6-9", "0-6-10"};
	return (size_t)t < ARRAY_LEN(names) ? names[t] : "?";
}

void format_bytes(char *out, size_t n, uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double x = (double)bytes;
	size_t u = 0;
	while (x >= 1023.95 && u + 1 < ARRAY_LEN(units)) {
		x /= 1024;
		u++;
	}
	snprintf(out, n, u && x < 99.95 ? "%.1f %s" : "%.0f %s", x, units[u]);
}

/* Whether the name could name a device at all: else it is misuse. */
static bool known_name(const char *s)
{
	if (strcmp(s, "auto") == 0 || strcmp(s, "cpu") == 0 || strcmp(s, "cuda") == 0)
		return true;
	struct error ignored = {0};
	int64_t index;
	return strncmp(s, "cuda:", 5) == 0 && parse_int(s + 5, 0, 1 << 16, &index, &ignored) == 0;
}

static struct dev *open_typed(const struct ops *ops, int index, const struct run_options *r, char *err, size_t n)
{
	enum dtype type = r->precision == PRECISION_AUTO ? ops->preferred(index) : (enum dtype)(r->precision - 1);
	return ops->open(index, type, (int)r->threads, err, n);
}

int device_open(const struct run_options *r, const struct ops **ops, struct dev **dev, struct error *e)
{
	char text[300];
	int index = 0;
	*dev = NULL;
	if (!known_name(r->device))
		return fail(e, STATUS_USAGE, "device '%s' is unknown, expected auto, cpu, cuda or cuda:N", r->device);
	*ops = ops_find(r->device, &index, text, sizeof text);
	if (*ops && !strchr(r->device, ':') && (*ops)->count() > 0)
		index = r->gpu % (*ops)->count();
	if (*ops)
		*dev = open_typed(*ops, index, r, text, sizeof text);
	if (strcmp(r->device, "auto") == 0 && (!*dev || text[0])) {
		note(1, "not on CUDA: %s", text);
		if (!*dev) {
			*ops = cpu_ops();
			*dev = open_typed(*ops, 0, r, text, sizeof text);
		}
	}
	if (!*dev)
		return fail(e, STATUS_FAIL, "device %s: %s", r->device, text);
	enum dtype type = (*ops)->type(*dev);
	(*ops)->describe(*dev, text, sizeof text);
	note(1, "computing in %s on %s: %s", dtype_name(type), (*ops)->name, text);
	return 0;
}

void device_close(const struct ops *ops, struct dev *dev)
{
	if (dev)
		ops->close(dev);
}

int device_check(const struct ops *ops, struct dev *dev, struct error *e)
{
	char text[300];
	if (ops->sync(dev, text, sizeof text) == 0)
		return 0;
	return fail(e, STATUS_FAIL, "%s: %s", ops->name, text);
}

void *device_alloc(const struct ops *ops, struct dev *dev, uint64_t bytes, const char *what, struct error *e)
{
	uint64_t room = ops->memory(dev);
	void *p = bytes <= room && bytes <= PTRDIFF_MAX ? ops->alloc(dev, (size_t)bytes) : NULL;
	if (!p) {
		char need[24], have[24];
		format_bytes(need, sizeof need, bytes);
		format_bytes(have, sizeof have, room);
		fail(e, STATUS_LIMIT, "%s: needs %s of memory, %s has %s free", what, need, ops->name, have);
		char ignored[64];
		ops->sync(dev, ignored, sizeof ignored); /* a sticky "alloc" error is now told */
	}
	return p;
}
