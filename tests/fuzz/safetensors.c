/* safetensors.c - the header of safetensors: JSON up to a zero byte, the data behind it.  Data is cut or filled up with zeros
 * to the end that the header tells, so that mutations of the header find their bytes there. */
#include "fuzz.h"

#include <jansson.h>

enum { MOST = 1 << 18 };

static size_t told_end(const uint8_t *p, size_t n)
{
	json_t *root = json_loadb((const char *)p, n, 0, NULL), *tensor;
	const char *name;
	json_int_t end = 0;
	json_object_foreach(root, name, tensor) {
		json_int_t v = json_integer_value(json_array_get(json_object_get(tensor, "data_offsets"), 1));
		end = v > end ? v : end;
	}
	json_decref(root);
	return end < MOST ? (size_t)end : MOST;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct buf file = {0};
	const uint8_t *data;
	size_t data_n, json_n = fuzz_cut(p, n, 0, &data, &data_n), end = told_end(p, json_n);
	uint64_t length = json_n;
	MUST(buf_add(&file, &length, sizeof length, &e) == 0 && buf_add(&file, p, json_n, &e) == 0);
	MUST(buf_reserve(&file, end, &e) == 0);
	memset(file.p + file.n, 0, end);
	if (data_n)
		memcpy(file.p + file.n, data, data_n < end ? data_n : end);
	file.n += end;
	fuzz_model(fuzz_file(file.p, file.n));
	buf_free(&file);
	return 0;
}
