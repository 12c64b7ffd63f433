/* json-file.h - files that are one JSON object: configurations, vocabularies, measured rates. */
#ifndef JSON_FILE_H
#define JSON_FILE_H

#include <jansson.h>

#include "util.h"

/* A new reference to the object in the file ("-": standard input), without doubled names.  NULL when it cannot be read,
 * has more than `limit` bytes (STATUS_LIMIT), or is no JSON object (STATUS_BAD: "FILE: line 3: ..."). */
json_t *json_file_read(const char *path, size_t limit, struct error *e);

#endif
