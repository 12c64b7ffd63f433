/* arena.c - see arena.h. */
#include "arena.h"

#include "device.h"

void arena_plan(struct arena *a)
{
	*a = (struct arena){.planning = true};
}

void *arena_take(struct arena *a, size_t bytes)
{
	size_t rounded, end;
	if (__builtin_add_overflow(bytes, ARENA_ALIGN - 1, &rounded))
		rounded = SIZE_MAX;
	rounded -= rounded % ARENA_ALIGN;
	if (__builtin_add_overflow(a->used, rounded, &end))
		end = SIZE_MAX; /* stays too large to be had: arena_alloc reports it */
	size_t start = a->used;
	if (a->planning) {
		a->used = end;
		a->cap = end > a->cap ? end : a->cap;
		return NULL;
	}
	if (end > a->cap)
		return NULL;
	a->used = end;
	return a->base + start;
}

void *arena_take_n(struct arena *a, size_t count, size_t size)
{
	size_t bytes;
	if (__builtin_mul_overflow(count, size, &bytes))
		bytes = SIZE_MAX;
	return arena_take(a, bytes);
}

size_t arena_mark(const struct arena *a)
{
	return a->used;
}

void arena_back(struct arena *a, size_t mark)
{
	a->used = mark;
}

uint64_t arena_bytes(const struct arena *a)
{
	return a->cap;
}

int arena_alloc(struct arena *a, const struct ops *ops, struct dev *dev, const char *what, struct error *e)
{
	a->ops = ops;
	a->dev = dev;
	a->used = 0;
	a->planning = false;
	if (!a->cap)
		return 0;
	a->base = device_alloc(ops, dev, a->cap, what, e);
	return a->base ? 0 : -1;
}

void arena_free(struct arena *a)
{
	if (a->base)
		a->ops->release(a->dev, a->base);
	*a = (struct arena){0};
}
