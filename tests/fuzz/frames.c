/* frames.c - token streams as files: zstd frames, skippable ones, seek tables, parts that follow one another. */
#include "fuzz-stream.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	fuzz_stream(fuzz_file(p, n));
	return 0;
}
