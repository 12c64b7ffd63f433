/* config.h - the whole numbers and choices of a model's configuration: names and ranges in one table for the check, the JSON that
 * model files carry (dalle.config), and reading it back. */
#ifndef CONFIG_H
#define CONFIG_H

#include <jansson.h>

#include "util.h"

struct config_field {
	const char *name; /* of the member, also in JSON */
	size_t at, size;  /* of an int or an int64_t */
	int64_t min, max;
	const char *names; /* "a|b|c" of a choice, which JSON has by name (a number is read, too); NULL: a number */
};
#define CONFIG_CHOICE(type, member, max, names) {#member, offsetof(type, member), sizeof ((type *)0)->member, 0, max, names}
#define CONFIG_FIELD(type, member, min, max) {#member, offsetof(type, member), sizeof ((type *)0)->member, min, max, NULL}

/* `status` "NAME is 7, expected 1 to 5". */
int config_check(const void *config, const struct config_field *f, size_t n, int status, struct error *e);
/* A new object; NULL without memory. */
json_t *config_json(const void *config, const struct config_field *f, size_t n);
/* Sets the n members, which must all be there and in range.  STATUS_BAD with `file`. */
int config_parse(void *config, const struct config_field *f, size_t n, const json_t *j, const char *file, struct error *e);

#endif
