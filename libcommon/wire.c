/* wire.c - see wire.h. */
#include "wire.h"

#include <string.h>

struct cursor cursor_over(const void *p, size_t n)
{
	return (struct cursor){.p = p, .end = p ? (const uint8_t *)p + n : p};
}

uint64_t cursor_varint(struct cursor *c)
{
	uint64_t v = 0;
	for (int shift = 0; shift < 70; shift += 7) {
		if (c->p == c->end)
			break;
		uint8_t byte = *c->p++;
		if (shift == 63 && byte > 1)
			break; /* more than 64 bits */
		v |= (uint64_t)(byte & 127) << shift;
		if (byte < 128)
			return v;
	}
	c->bad = true;
	return 0;
}

static uint64_t cursor_fixed(struct cursor *c, int bytes)
{
	uint64_t v = 0;
	if (c->end - c->p < bytes) {
		c->bad = true;
		return 0;
	}
	for (int i = 0; i < bytes; i++)
		v |= (uint64_t)c->p[i] << 8 * i;
	c->p += bytes;
	return v;
}

bool cursor_tag(struct cursor *c, struct field *f)
{
	if (c->bad || c->p == c->end)
		return false;
	*f = (struct field){.start = c->p};
	uint64_t tag = cursor_varint(c);
	f->number = (uint32_t)(tag >> 3);
	f->type = (enum wire_type)(tag & 7);
	if (tag >> 3 == 0 || tag >> 32)
		c->bad = true;
	if (!c->bad && f->type == WIRE_BYTES)
		f->value = cursor_varint(c);
	return !c->bad;
}

bool cursor_field(struct cursor *c, struct field *f)
{
	if (!cursor_tag(c, f))
		return false;
	switch (f->type) {
	case WIRE_VARINT: f->value = cursor_varint(c); break;
	case WIRE_I64: f->value = cursor_fixed(c, 8); break;
	case WIRE_I32: f->value = cursor_fixed(c, 4); break;
	case WIRE_BYTES:
		if (f->value > (uint64_t)(c->end - c->p)) {
			c->bad = true;
			break;
		}
		f->p = c->p;
		f->n = (size_t)f->value;
		c->p += f->n;
		break;
	default: c->bad = true;
	}
	return !c->bad;
}

float field_float(const struct field *f)
{
	uint32_t bits = (uint32_t)f->value;
	float v;
	memcpy(&v, &bits, sizeof v);
	return v;
}

int wire_varint(struct buf *b, uint64_t v, struct error *e)
{
	uint8_t bytes[10];
	size_t n = 0;
	for (; v >= 128; v >>= 7)
		bytes[n++] = (uint8_t)(v | 128);
	bytes[n++] = (uint8_t)v;
	return buf_add(b, bytes, n, e);
}

static int wire_tag(struct buf *b, uint32_t number, enum wire_type type, struct error *e)
{
	return wire_varint(b, (uint64_t)number << 3 | type, e);
}

int wire_uint(struct buf *b, uint32_t number, uint64_t v, struct error *e)
{
	return wire_tag(b, number, WIRE_VARINT, e) || wire_varint(b, v, e) ? -1 : 0;
}

int wire_float(struct buf *b, uint32_t number, float v, struct error *e)
{
	uint32_t bits;
	memcpy(&bits, &v, sizeof bits);
	uint8_t bytes[4] = {(uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16), (uint8_t)(bits >> 24)};
	return wire_tag(b, number, WIRE_I32, e) || buf_add(b, bytes, 4, e) ? -1 : 0;
}

int wire_bytes_open(struct buf *b, uint32_t number, size_t n, struct error *e)
{
	return wire_tag(b, number, WIRE_BYTES, e) || wire_varint(b, n, e) ? -1 : 0;
}

int wire_bytes(struct buf *b, uint32_t number, const void *p, size_t n, struct error *e)
{
	return wire_bytes_open(b, number, n, e) || buf_add(b, p, n, e) ? -1 : 0;
}

int wire_begin(struct buf *b, uint32_t number, size_t *mark, struct error *e)
{
	if (wire_tag(b, number, WIRE_BYTES, e))
		return -1;
	*mark = b->n;
	return 0;
}

/* The length goes in front of the body, so the body moves by the few bytes it takes. */
int wire_end(struct buf *b, size_t mark, struct error *e)
{
	size_t body = b->n - mark;
	if (wire_varint(b, body, e))
		return -1;
	uint8_t length[10];
	size_t n = b->n - mark - body;
	memcpy(length, b->p + mark + body, n);
	memmove(b->p + mark + n, b->p + mark, body);
	memcpy(b->p + mark, length, n);
	return 0;
}

/* Bytes of the sequence that lead starts and the least code point it may hold; 0: none. */
static int utf8_length(uint8_t lead, uint32_t *least)
{
	if (lead < 0x80)
		return *least = 0, 1;
	if (lead >= 0xC2 && lead < 0xE0)
		return *least = 0x80, 2;
	if (lead >= 0xE0 && lead < 0xF0)
		return *least = 0x800, 3;
	if (lead >= 0xF0 && lead < 0xF5)
		return *least = 0x10000, 4;
	return 0;
}

bool utf8_valid(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n;) {
		uint32_t least, v;
		int length = utf8_length(p[i], &least);
		if (length == 0 || n - i < (size_t)length)
			return false;
		v = length == 1 ? p[i] : p[i] & (0x7Fu >> length);
		for (int k = 1; k < length; k++) {
			if ((p[i + (size_t)k] & 0xC0) != 0x80)
				return false;
			v = v << 6 | (p[i + (size_t)k] & 0x3Fu);
		}
		if (v < least || v > 0x10FFFF || (v >= 0xD800 && v < 0xE000))
			return false;
		i += (size_t)length;
	}
	return true;
}
