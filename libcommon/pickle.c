/* pickle.c - see pickle.h.  The opcodes are those of Python's pickletools; protocols 0 and 1 (text), extension codes and
 * out-of-band buffers are not among them. */
#include "pickle.h"

#include "bytes.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_VALUES = 256, MAX_NAME = 200 };

struct pickle_chunk {
	struct pickle_chunk *next;
	size_t used;
	struct pickle_value values[CHUNK_VALUES];
};

/* The machine: what Python's unpickler keeps. */
struct machine {
	struct pickle *out;
	const uint8_t *start, *p, *end;
	const char *file;
	pickle_known *known;
	struct error *e;
	struct pickle_value **stack, **memo;
	size_t depth, stack_cap, memo_n, memo_cap;
	size_t *marks, mark_n, mark_cap;
	uint8_t op;
};

static int bad(const struct machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int bad(const struct machine *m, const char *fmt, ...)
{
	char text[300];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return fail(m->e, STATUS_BAD, "%s: pickle at byte %zu: %s", m->file, (size_t)(m->p - m->start), text);
}

/* ---- input ---- */

/* The next n bytes, or NULL. */
static const uint8_t *take(struct machine *m, uint64_t n)
{
	if (n > (uint64_t)(m->end - m->p)) {
		bad(m, "is truncated");
		return NULL;
	}
	m->p += n;
	return m->p - n;
}

/* A little-endian number of `bytes` bytes into *v. */
static int take_number(struct machine *m, int bytes, uint64_t *v)
{
	const uint8_t *p = take(m, (uint64_t)bytes);
	*v = p ? get_le(p, bytes) : 0;
	return p ? 0 : -1;
}

/* ---- values and stack ---- */

static struct pickle_value *new_value(struct machine *m, enum pickle_kind kind)
{
	struct pickle *out = m->out;
	if (out->values == PICKLE_MAX_VALUES) {
		bad(m, "holds more than %d values", PICKLE_MAX_VALUES);
		return NULL;
	}
	if (!out->chunks || out->chunks->used == CHUNK_VALUES) {
		struct pickle_chunk *c = mem_zero(1, sizeof *c, m->e);
		if (!c)
			return NULL;
		c->next = out->chunks;
		out->chunks = c;
	}
	struct pickle_value *v = &out->chunks->values[out->chunks->used++];
	out->values++;
	v->kind = kind;
	return v;
}

static int push(struct machine *m, struct pickle_value *v)
{
	if (!v)
		return -1;
	if (m->depth == PICKLE_MAX_VALUES)
		return bad(m, "its stack is deeper than %d", PICKLE_MAX_VALUES);
	if (ARRAY_ROOM(m->stack, m->depth + 1, &m->stack_cap, m->e))
		return -1;
	m->stack[m->depth++] = v;
	return 0;
}

/* Values above the last mark. */
static size_t above(const struct machine *m)
{
	return m->depth - (m->mark_n ? m->marks[m->mark_n - 1] : 0);
}

static struct pickle_value *pop(struct machine *m)
{
	if (above(m) == 0) {
		bad(m, "opcode 0x%02x finds too few values", m->op);
		return NULL;
	}
	return m->stack[--m->depth];
}

static int set_mark(struct machine *m)
{
	if (m->mark_n == PICKLE_MAX_VALUES)
		return bad(m, "has more than %d marks", PICKLE_MAX_VALUES);
	if (ARRAY_ROOM(m->marks, m->mark_n + 1, &m->mark_cap, m->e))
		return -1;
	m->marks[m->mark_n++] = m->depth;
	return 0;
}

/* Remove the last mark: how many values stood above it. */
static int pop_mark(struct machine *m, size_t *n)
{
	if (!m->mark_n)
		return bad(m, "opcode 0x%02x without a mark", m->op);
	*n = above(m);
	m->mark_n--;
	return 0;
}

static int add_item(struct machine *m, struct pickle_value *to, struct pickle_value *v)
{
	if (ARRAY_ROOM(to->item, to->n + 1, &to->cap, m->e))
		return -1;
	to->item[to->n++] = v;
	return 0;
}

/* Move the n values on top of the stack into `to`. */
static int move_items(struct machine *m, struct pickle_value *to, size_t n)
{
	if (!to)
		return -1;
	for (size_t i = m->depth - n; i < m->depth; i++)
		if (add_item(m, to, m->stack[i]))
			return -1;
	m->depth -= n;
	return 0;
}

static int push_items(struct machine *m, enum pickle_kind kind, size_t n)
{
	if (n > above(m))
		return bad(m, "opcode 0x%02x finds too few values", m->op);
	struct pickle_value *v = new_value(m, kind);
	return move_items(m, v, n) || push(m, v) ? -1 : 0;
}

/* ---- opcodes ---- */

static int push_int(struct machine *m, enum pickle_kind kind, int64_t x)
{
	struct pickle_value *v = new_value(m, kind);
	if (v)
		v->integer = x;
	return push(m, v);
}

static int push_text(struct machine *m, enum pickle_kind kind, int length_bytes)
{
	uint64_t n;
	const uint8_t *p = take_number(m, length_bytes, &n) ? NULL : take(m, n);
	struct pickle_value *v = p ? new_value(m, kind) : NULL;
	if (v)
		v->text = (const char *)p, v->n = (size_t)n;
	return push(m, v);
}

/* Two's complement of n bytes; beyond 64 bits the bytes themselves. */
static int push_long(struct machine *m, int length_bytes)
{
	uint64_t n;
	const uint8_t *p = take_number(m, length_bytes, &n) ? NULL : take(m, n);
	if (!p)
		return -1;
	if (n <= 8) {
		uint64_t x = get_le(p, (int)n);
		if (n && n < 8 && p[n - 1] & 0x80)
			x |= ~(uint64_t)0 << (8 * n);
		return push_int(m, PICKLE_INT, (int64_t)x);
	}
	struct pickle_value *v = new_value(m, PICKLE_BYTES);
	if (v)
		v->text = (const char *)p, v->n = (size_t)n;
	return push(m, v);
}

static int push_sized_int(struct machine *m, int bytes)
{
	uint64_t x;
	if (take_number(m, bytes, &x))
		return -1;
	return push_int(m, PICKLE_INT, bytes == 4 ? (int32_t)(uint32_t)x : (int64_t)x);
}

static int push_real(struct machine *m)
{
	const uint8_t *p = take(m, 8);
	struct pickle_value *v = p ? new_value(m, PICKLE_REAL) : NULL;
	uint64_t bits = 0;
	if (!v)
		return -1;
	for (int i = 0; i < 8; i++)
		bits = bits << 8 | p[i]; /* the one big-endian number of the format */
	memcpy(&v->real, &bits, sizeof bits);
	return push(m, v);
}

/* Bytes up to a newline, which is taken too. */
static const char *take_line(struct machine *m, size_t *n)
{
	const uint8_t *p = m->p, *newline = memchr(p, '\n', (size_t)(m->end - p));
	if (!newline) {
		bad(m, "is truncated");
		return NULL;
	}
	*n = (size_t)(newline - p);
	m->p = newline + 1;
	return (const char *)p;
}

static int push_global(struct machine *m, const char *module, size_t module_n, const char *name, size_t name_n)
{
	char full[MAX_NAME + 1];
	if (module_n + name_n + 1 > MAX_NAME)
		return bad(m, "names something in more than %d characters", MAX_NAME);
	snprintf(full, sizeof full, "%.*s.%.*s", (int)module_n, module, (int)name_n, name);
	const char *allowed = m->known(full);
	if (!allowed)
		return bad(m, "calls for %s, which a model's tensors do not need: refused", full);
	struct pickle_value *v = new_value(m, PICKLE_GLOBAL);
	if (v)
		v->text = allowed, v->n = strlen(allowed);
	return push(m, v);
}

static int do_global(struct machine *m)
{
	size_t module_n, name_n;
	const char *module = take_line(m, &module_n);
	const char *name = module ? take_line(m, &name_n) : NULL;
	return name ? push_global(m, module, module_n, name, name_n) : -1;
}

static int do_stack_global(struct machine *m)
{
	const struct pickle_value *name = pop(m), *module = name ? pop(m) : NULL;
	if (!module)
		return -1;
	if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
		return bad(m, "calls for something whose name is no text");
	return push_global(m, module->text, module->n, name->text, name->n);
}

/* callee and arguments on the stack to a call. */
static int do_call(struct machine *m)
{
	struct pickle_value *arguments = pop(m), *callee = arguments ? pop(m) : NULL;
	if (!callee)
		return -1;
	if ((callee->kind != PICKLE_GLOBAL && callee->kind != PICKLE_OUTSIDE) || arguments->kind != PICKLE_TUPLE)
		return bad(m, "calls something that is no name");
	struct pickle_value *v = new_value(m, PICKLE_CALL);
	if (v)
		v->callee = callee, v->arguments = arguments;
	return push(m, v);
}

static int do_outside(struct machine *m)
{
	struct pickle_value *id = pop(m), *v = id ? new_value(m, PICKLE_OUTSIDE) : NULL;
	if (v)
		v->arguments = id;
	return push(m, v);
}

static int do_build(struct machine *m)
{
	struct pickle_value *state = pop(m), *to = state ? pop(m) : NULL;
	if (!to)
		return -1;
	if (to->kind != PICKLE_CALL)
		return bad(m, "gives a state to something that is no object");
	to->state = state;
	return push(m, to);
}

/* The n values on top go into the container below them. */
static int do_add(struct machine *m, size_t n, bool pairs)
{
	if (n >= above(m))
		return bad(m, "opcode 0x%02x finds too few values", m->op);
	struct pickle_value *to = m->stack[m->depth - n - 1];
	bool fits = pairs ? to->kind == PICKLE_DICT || to->kind == PICKLE_CALL : to->kind == PICKLE_LIST;
	if (!fits || (pairs && n % 2))
		return bad(m, "opcode 0x%02x fills something that is no %s", m->op, pairs ? "dictionary" : "list");
	return move_items(m, to, n);
}

static int do_add_marked(struct machine *m, bool pairs)
{
	size_t n = 0;
	return pop_mark(m, &n) ? -1 : do_add(m, n, pairs);
}

static int do_marked(struct machine *m, enum pickle_kind kind)
{
	size_t n = 0;
	if (pop_mark(m, &n))
		return -1;
	if (kind == PICKLE_DICT && n % 2)
		return bad(m, "a dictionary with a key and no value");
	return push_items(m, kind, n);
}

static int do_discard_marked(struct machine *m)
{
	size_t n = 0;
	if (pop_mark(m, &n))
		return -1;
	m->depth -= n;
	return 0;
}

static int do_put(struct machine *m, uint64_t at)
{
	if (above(m) == 0)
		return bad(m, "remembers nothing");
	if (at >= PICKLE_MAX_VALUES)
		return bad(m, "its memo is larger than %d", PICKLE_MAX_VALUES);
	while (m->memo_n <= at) {
		if (ARRAY_ROOM(m->memo, m->memo_n + 1, &m->memo_cap, m->e))
			return -1;
		m->memo[m->memo_n++] = NULL;
	}
	m->memo[at] = m->stack[m->depth - 1];
	return 0;
}

static int do_put_sized(struct machine *m, int bytes)
{
	uint64_t at;
	return take_number(m, bytes, &at) ? -1 : do_put(m, at);
}

static int do_get(struct machine *m, int bytes)
{
	uint64_t at;
	if (take_number(m, bytes, &at))
		return -1;
	if (at >= m->memo_n || !m->memo[at])
		return bad(m, "recalls value %llu, which was not remembered", (unsigned long long)at);
	return push(m, m->memo[at]);
}

static int do_protocol(struct machine *m)
{
	const uint8_t *p = take(m, 1);
	if (!p)
		return -1;
	return *p >= 2 && *p <= 5 ? 0 : bad(m, "protocol %d, expected 2 to 5", *p);
}

static int do_duplicate(struct machine *m)
{
	return above(m) ? push(m, m->stack[m->depth - 1]) : bad(m, "duplicates nothing");
}

/* One opcode but STOP. */
static int step(struct machine *m)
{
	switch (m->op) {
	case 0x80: return do_protocol(m);
	case 0x95: return take(m, 8) ? 0 : -1; /* FRAME: a hint about reading ahead */
	case '(': return set_mark(m);
	case '0': return pop(m) ? 0 : -1;
	case '1': return do_discard_marked(m);
	case '2': return do_duplicate(m);
	case 'N': return push(m, new_value(m, PICKLE_NONE));
	case 0x88: return push_int(m, PICKLE_BOOL, 1);
	case 0x89: return push_int(m, PICKLE_BOOL, 0);
	case 'J': return push_sized_int(m, 4);
	case 'K': return push_sized_int(m, 1);
	case 'M': return push_sized_int(m, 2);
	case 0x8a: return push_long(m, 1);
	case 0x8b: return push_long(m, 4);
	case 'G': return push_real(m);
	case 'X': return push_text(m, PICKLE_TEXT, 4);
	case 0x8c: return push_text(m, PICKLE_TEXT, 1);
	case 0x8d: return push_text(m, PICKLE_TEXT, 8);
	case 'T': case 'B': return push_text(m, PICKLE_BYTES, 4);
	case 'U': case 'C': return push_text(m, PICKLE_BYTES, 1);
	case 0x8e: case 0x96: return push_text(m, PICKLE_BYTES, 8);
	case ')': return push(m, new_value(m, PICKLE_TUPLE));
	case 0x85: return push_items(m, PICKLE_TUPLE, 1);
	case 0x86: return push_items(m, PICKLE_TUPLE, 2);
	case 0x87: return push_items(m, PICKLE_TUPLE, 3);
	case 't': return do_marked(m, PICKLE_TUPLE);
	case ']': case 0x8f: return push(m, new_value(m, PICKLE_LIST));
	case 'l': case 0x91: return do_marked(m, PICKLE_LIST);
	case '}': return push(m, new_value(m, PICKLE_DICT));
	case 'd': return do_marked(m, PICKLE_DICT);
	case 'a': return do_add(m, 1, false);
	case 'e': case 0x90: return do_add_marked(m, false);
	case 's': return do_add(m, 2, true);
	case 'u': return do_add_marked(m, true);
	case 'c': return do_global(m);
	case 0x93: return do_stack_global(m);
	case 0x81: case 'R': return do_call(m);
	case 'b': return do_build(m);
	case 'Q': return do_outside(m);
	case 'q': return do_put_sized(m, 1);
	case 'r': return do_put_sized(m, 4);
	case 0x94: return do_put(m, m->memo_n); /* nothing else fills the memo in protocols 4 and 5 */
	case 'h': return do_get(m, 1);
	case 'j': return do_get(m, 4);
	default: return bad(m, "opcode 0x%02x is not one of data: refused", m->op);
	}
}

static int interpret(struct machine *m)
{
	for (;;) {
		const uint8_t *op = take(m, 1);
		if (!op)
			return -1;
		m->op = *op;
		if (m->op == '.')
			break;
		if (step(m))
			return -1;
	}
	m->out->root = pop(m);
	m->out->used = (size_t)(m->p - m->start);
	return m->out->root ? 0 : -1;
}

int pickle_read(struct pickle *out, const void *p, size_t n, const char *file, pickle_known *known, struct error *e)
{
	*out = (struct pickle){0};
	struct machine m = {.out = out, .start = p, .p = p, .end = (const uint8_t *)p + n, .file = file, .known = known, .e = e};
	int r = interpret(&m);
	free(m.stack);
	free(m.memo);
	free(m.marks);
	return r;
}

void pickle_free(struct pickle *p)
{
	while (p->chunks) {
		struct pickle_chunk *next = p->chunks->next;
		for (size_t i = 0; i < p->chunks->used; i++)
			free(p->chunks->values[i].item);
		free(p->chunks);
		p->chunks = next;
	}
	*p = (struct pickle){0};
}

int pickle_each(const struct pickle *p, int (*visit)(void *arg, const struct pickle_value *v), void *arg)
{
	for (const struct pickle_chunk *c = p->chunks; c; c = c->next)
		for (size_t i = 0; i < c->used; i++)
			if (visit(arg, &c->values[i]))
				return -1;
	return 0;
}

bool pickle_is(const struct pickle_value *v, const char *s)
{
	return v && v->kind == PICKLE_TEXT && v->n == strlen(s) && memcmp(v->text, s, v->n) == 0;
}
