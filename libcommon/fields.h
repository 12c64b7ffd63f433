/* fields.h - the fields of a record by name, for tools that choose among them, and records
 * as JSON objects (tok-dump, tok-load). */
#ifndef FIELDS_H
#define FIELDS_H

#include "stream.h"

#include <jansson.h>

enum field_bit {
	FIELD_KEY = 1, FIELD_CAPTION = 2, FIELD_TEXT = 4, FIELD_IMAGE = 8, FIELD_PIXELS = 16, FIELD_SCORE = 32,
	FIELD_NLL_TEXT = 64, FIELD_NLL_IMAGE = 128, FIELD_SEED = 256, FIELD_SAMPLE = 512, FIELD_MODEL = 1024,
	FIELD_UNKNOWN = 2048, /* all that newer versions added */
};
enum { FIELD_COUNT = 12, FIELD_ALL = (1 << FIELD_COUNT) - 1 };
#define FIELD_NAMES "key,caption,text,image,pixels,score,nll_text,nll_image,seed,sample,model,unknown"

const char *field_name(int i); /* 0 .. FIELD_COUNT-1, "key" first */
/* "key,image" to bits; STATUS_USAGE naming `option` and the word that is no field. */
int fields_parse(const char *option, const char *list, unsigned *bits, struct error *e);
unsigned record_fields(const struct record *r); /* which it has */
void record_project(struct record *r, unsigned keep);
/* A header that describes records after record_project. */
void header_project(struct header *h, unsigned keep);

/* A new object with those of the fields that the record has.  Non-finite scalars and seeds
 * over 2^53 are strings, pixels and unknown fields base64.  NULL with e. */
json_t *record_to_json(const struct record *r, unsigned fields, struct error *e);
/* The reverse, exact.  STATUS_BAD names the member that is wrong or unknown. */
int record_from_json(struct record *r, const json_t *object, struct error *e);

#endif
