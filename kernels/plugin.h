/* plugin.h - finding what no program links to: a shared object that exports one symbol.  It is looked for in the folders of
 * the environment variable DALLE_PLUGINS (colon-separated), or, when that is not set, in ../lib/dalle-tools beside the
 * program's folder and in the program's own folder.  Never unloaded: threads of the libraries behind it outlive any
 * close. */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <stddef.h>

/* The first `file` that exists, into path.  0, or -1 with "no WHAT is installed (no FILE in FOLDERS)". */
int plugin_find(const char *file, const char *what, char *path, size_t path_n, char *err, size_t n);
/* Its symbol, a function; NULL with err when the object does not load or lacks it. */
void *plugin_symbol(const char *path, const char *symbol, char *err, size_t n);

#endif
