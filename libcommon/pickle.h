/* pickle.h - Python pickles read as data: an interpreter of the opcodes of protocols 2 to 5 that builds values and runs
 * nothing.  What a pickle would call stays a PICKLE_CALL, whose callee the caller of pickle_read has allowed by name;
 * every other name, and every opcode that is not needed for data, is refused.
 *
 * Hostile input: values, stack, memo and lengths are bounded, nothing here recurses, and memory is at most a fixed
 * multiple of the input.  The result is a graph: values may be shared and may contain themselves, so whoever walks it
 * counts his steps. */
#ifndef PICKLE_H
#define PICKLE_H

#include "util.h"

enum pickle_kind {
	PICKLE_NONE,
	PICKLE_BOOL, PICKLE_INT,   /* integer */
	PICKLE_REAL,               /* real */
	PICKLE_TEXT, PICKLE_BYTES, /* text, n bytes, not terminated; BYTES also for whole numbers above 64 bits */
	PICKLE_TUPLE, PICKLE_LIST, /* item, n values; sets are lists */
	PICKLE_DICT,               /* item, n values: key, value, key, value, ... as they were set */
	PICKLE_GLOBAL,             /* text: what `known` returned, terminated */
	PICKLE_OUTSIDE,            /* arguments: the persistent id */
	PICKLE_CALL,               /* callee (GLOBAL or OUTSIDE), arguments (TUPLE), state or NULL; item as in DICT */
};

struct pickle_value {
	enum pickle_kind kind;
	union {
		int64_t integer;
		double real;
		const char *text; /* within the input: valid as long as that */
	};
	size_t n, cap;
	struct pickle_value **item;
	struct pickle_value *callee, *arguments, *state;
};

struct pickle {
	struct pickle_value *root;
	size_t used; /* bytes of the input, STOP included */
	struct pickle_chunk *chunks;
	size_t values;
};

/* "module.name" to a static name for it, or NULL to refuse it. */
typedef const char *pickle_known(const char *name);

enum { PICKLE_MAX_VALUES = 1 << 20 };

/* Interpret the pickle that begins at p and ends before p + n.  STATUS_BAD when it is damaged, truncated or names
 * something unknown; `file` is for messages.  Free with pickle_free in any case. */
int pickle_read(struct pickle *out, const void *p, size_t n, const char *file, pickle_known *known, struct error *e);
void pickle_free(struct pickle *p);

/* Every value that the pickle made, each once, in no order; stops with -1 when visit returns nonzero. */
int pickle_each(const struct pickle *p, int (*visit)(void *arg, const struct pickle_value *v), void *arg);

/* True for text equal to s. */
bool pickle_is(const struct pickle_value *v, const char *s);

#endif
