/* ops.c - finding a backend by name.  The CPU is built in; CUDA is a plugin (plugin.h), dalle-cuda.so, that
 * exports one function, `const struct ops *dalle_cuda_ops(void)`.  Unless DALLE_PLUGINS is set it is loaded only where
 * NVIDIA's driver is, for the plugin's libraries take long to load.  It
 * must have the same ABI number and table size as this build and leave no entry empty. */
#include "ops.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "entries.h"
#include "plugin.h"

#define PLUGIN "dalle-cuda.so"
#define DRIVER "libcuda.so.1"
#define PLUGIN_SYMBOL "dalle_cuda_ops"

static bool driver_present(void)
{
	void *driver = dlopen(DRIVER, RTLD_LAZY | RTLD_LOCAL);
	if (driver)
		dlclose(driver);
	return driver != NULL;
}

/* The name of the first empty entry, or NULL. */
static const char *missing_entry(const struct ops *o)
{
#define LACKS(entry)                                                                               \
	if (!o->entry)                                                                             \
		return #entry;
	OPS_ENTRIES(LACKS)
#undef LACKS
	return NULL;
}

static bool plugin_fits(const struct ops *o, char *err, size_t n)
{
	if (!o || o->abi != OPS_ABI || o->size != sizeof *o) {
		snprintf(err, n, PLUGIN ": made for another version: ABI %u size %u, expected ABI %d size %zu",
			 o ? o->abi : 0, o ? o->size : 0, OPS_ABI, sizeof *o);
		return false;
	}
	const char *name = missing_entry(o);
	if (name)
		snprintf(err, n, PLUGIN ": entry %s is missing", name);
	return !name;
}

static const struct ops *cuda_ops(char *err, size_t n)
{
	const struct ops *(*get)(void);
	char path[PATH_MAX];
	if (plugin_find(PLUGIN, "CUDA backend", path, sizeof path, err, n))
		return NULL;
	if (!getenv("DALLE_PLUGINS") && !driver_present()) {
		snprintf(err, n, "no NVIDIA driver (" DRIVER ")");
		return NULL;
	}
	*(void **)&get = plugin_symbol(path, PLUGIN_SYMBOL, err, n);
	if (!get)
		return NULL;
	const struct ops *o = get();
	return plugin_fits(o, err, n) ? o : NULL;
}

/* "cuda" or "cuda:N", N up to 1023. */
static bool parse_cuda(const char *name, int *index)
{
	char *end;
	*index = 0;
	if (strncmp(name, "cuda", 4))
		return false;
	if (!name[4])
		return true;
	if (name[4] != ':' || name[5] < '0' || name[5] > '9')
		return false;
	long i = strtol(name + 5, &end, 10);
	*index = (int)i;
	return !*end && i <= 1023;
}

const struct ops *ops_find(const char *name, int *index, char *err, size_t n)
{
	const struct ops *o;
	bool automatic = strcmp(name, "auto") == 0;
	if (n)
		err[0] = 0;
	*index = 0;
	if (strcmp(name, "cpu") == 0)
		return cpu_ops();
	if (!automatic && !parse_cuda(name, index)) {
		snprintf(err, n, "device '%s': expected auto, cpu, cuda or cuda:N", name);
		return NULL;
	}
	o = cuda_ops(err, n);
	if (o && *index < o->count())
		return o;
	if (o)
		o->open(*index, DT_F32, 0, err, n); /* refuses, and says why */
	return automatic ? cpu_ops() : NULL;
}
