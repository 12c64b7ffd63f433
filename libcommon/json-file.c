/* json-file.c - see json-file.h. */
#include "json-file.h"

#include <string.h>

json_t *json_file_read(const char *path, size_t limit, struct error *e)
{
	const char *name = strcmp(path, "-") == 0 ? "stdin" : path;
	struct buf text = {0};
	json_error_t why = {0};
	if (read_file(path, limit, &text, e)) {
		buf_free(&text);
		return NULL;
	}
	json_t *j = json_loadb(text.n ? (const char *)text.p : "", text.n, JSON_REJECT_DUPLICATES, &why);
	buf_free(&text);
	if (json_is_object(j))
		return j;
	if (j)
		fail(e, STATUS_BAD, "%s: is JSON, but no object, expected one", name);
	else
		fail(e, STATUS_BAD, "%s: line %d: %.160s, expected a JSON object", name, why.line, why.text);
	json_decref(j);
	return NULL;
}
