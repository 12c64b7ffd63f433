/* safetensors.c - the header of safetensors: JSON up to a zero byte, the data behind it. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	fuzz_model(fuzz_safetensors(p, n));
	return 0;
}
