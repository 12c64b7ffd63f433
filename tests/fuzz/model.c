/* model.c - model files as they are: safetensors, and PyTorch's in both containers. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	fuzz_model(fuzz_file(p, n));
	return 0;
}
