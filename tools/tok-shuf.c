/* tok-shuf.c - the records of token streams in random order, larger than memory if need be. */
#include "../libcommon/filter.h"
#include "../libcommon/opt.h"
#include "../libcommon/shuffle.h"

#include <stdlib.h>

static const char *output, *folder;
static int64_t seed, memory = 256 << 20, level = STREAM_LEVEL;

static const struct opt options[] = {
	OPT_OUTPUT(&output),
	OPT_INT('s', "seed", &seed, 0, INT64_MAX, "N", "the same seed and input give the same order"),
	OPT_INT('S', "memory", &memory, 1 << 16, INT64_MAX, "BYTES", "hold at most this much, as 1Gi"),
	OPT_STRING('T', "temporary", &folder, "DIR", "folder for what does not fit; $TMPDIR or /tmp when not given"),
	OPT_INT('l', "level", &level, -1, 22, "N", "compression level, 0 for none (bare), -1 to fit the content"),
	OPT_END
};
static const struct tool tool = {"tok-shuf", "[OPTION]... [FILE]...", "Shuffle the records of token streams", options};

int main(int argc, char **argv)
{
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	struct error e = {0};
	struct filter f;
	const char *tmp = getenv("TMPDIR");
	if (!folder)
		folder = tmp && *tmp ? tmp : "/tmp";
	if (filter_open(&f, argc, argv, first, &e) == 0 && filter_start(&f, output, (int)level, &e) == 0)
		shuffle_stream(f.out, f.in, (uint64_t)seed, (uint64_t)memory, folder, &e);
	return finish(filter_close(&f, &e));
}
