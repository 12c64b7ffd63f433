/* arena.h - one device block for everything a model computes with (activations, their gradients,
 * scratch): planned first, taken once, so that steady state allocates nothing and a run that does not
 * fit says so at its start.
 *
 * The model has one layout function that calls arena_take for every tensor, always in the same order:
 *
 *	arena_plan(&a);
 *	layout(model, &a);                         pointers are NULL, sizes are counted
 *	if (arena_alloc(&a, ops, dev, "dvae activations", &e))
 *		return -1;
 *	layout(model, &a);                         the same calls give pointers
 *	...
 *	arena_free(&a);
 *
 * Memory that is needed in turns can share its place: m = arena_mark(&a), take, arena_back(&a, m), take. */
#ifndef ARENA_H
#define ARENA_H

#include "../kernels/ops.h"
#include "util.h"

enum { ARENA_ALIGN = 64 }; /* bytes; every piece starts at a multiple */

struct arena {
	const struct ops *ops;
	struct dev *dev;
	char *base;    /* device block of cap bytes, zeroed when taken; NULL while planning */
	size_t used;   /* bytes of the pieces given now */
	size_t cap;    /* planning: the most that was in use; later: the block's size */
	bool planning;
};

/* Start (again) to count; a block held from before is not freed. */
void arena_plan(struct arena *a);
/* The next piece of `bytes`.  While planning NULL.  After arena_alloc a device pointer, or NULL when more is
 * taken than was planned (a layout function that differs between its two calls). */
void *arena_take(struct arena *a, size_t bytes);
/* `count` items of `size` bytes: the product is checked, and a plan that overflows fails in arena_alloc. */
void *arena_take_n(struct arena *a, size_t count, size_t size);
/* Where the arena stands, and back to there: pieces taken since then share their place with later ones. */
size_t arena_mark(const struct arena *a);
void arena_back(struct arena *a, size_t mark);
/* Bytes planned so far: for memory plans, before or after arena_alloc. */
uint64_t arena_bytes(const struct arena *a);
/* Take the planned block, zeroed, and begin at its start.  STATUS_LIMIT "WHAT: needs 1.2 GiB, 0.8 GiB are free"
 * when it does not fit.  An empty plan takes nothing. */
int arena_alloc(struct arena *a, const struct ops *ops, struct dev *dev, const char *what, struct error *e);
void arena_free(struct arena *a); /* back to a zero-initialised arena */

#endif
