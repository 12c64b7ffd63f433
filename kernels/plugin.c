/* plugin.c - see plugin.h. */
#include "plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The program's own folder, "" when unknown. */
static void program_folder(char *out, size_t n)
{
	ssize_t len = readlink("/proc/self/exe", out, n - 1);
	out[len > 0 ? len : 0] = 0;
	char *slash = strrchr(out, '/');
	if (slash)
		*slash = 0;
}

static void default_folders(char *out, size_t n)
{
	char folder[PATH_MAX];
	program_folder(folder, sizeof folder);
	snprintf(out, n, "%s/../lib/dalle-tools:%s", folder, folder);
}

int plugin_find(const char *file, const char *what, char *path, size_t path_n, char *err, size_t n)
{
	char folders[3 * PATH_MAX];
	const char *set = getenv("DALLE_PLUGINS");
	if (set)
		snprintf(folders, sizeof folders, "%s", set);
	else
		default_folders(folders, sizeof folders);
	char *rest = folders;
	for (char *folder; (folder = strsep(&rest, ":"));) {
		int length = snprintf(path, path_n, "%s/%s", folder, file);
		if (folder[0] && length < (int)path_n && access(path, F_OK) == 0)
			return 0;
	}
	snprintf(err, n, "no %s is installed (no %s in %s)", what, file, set ? set : "../lib/dalle-tools beside the program");
	return -1;
}

void *plugin_symbol(const char *path, const char *symbol, char *err, size_t n)
{
	void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!so) {
		snprintf(err, n, "%s", dlerror());
		return NULL;
	}
	void *found = dlsym(so, symbol);
	const char *slash = strrchr(path, '/');
	if (!found)
		snprintf(err, n, "%s: symbol %s is missing", slash ? slash + 1 : path, symbol);
	return found;
}
