/* emulated.h - the tests of the CUDA backend run on the emulated device of kernels/emu.h, the plugin in the folder
 * `emulated` beside the programs' own, unless DALLE_PLUGINS names another. */
#ifndef EMULATED_H
#define EMULATED_H

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* program: argv[0]. */
static void choose_plugin(const char *program)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(program, '/');
	snprintf(folder, sizeof folder, "%.*s/../emulated", slash ? (int)(slash - program) : 1, slash ? program : ".");
	setenv("DALLE_PLUGINS", folder, 0);
}

#endif
