/* base64.h - bytes as text (RFC 4648, with padding): pictures in JSON lines and in a terminal. */
#ifndef BASE64_H
#define BASE64_H

#include "util.h"

/* Append n bytes as (n + 2) / 3 * 4 characters. */
int base64_add(struct buf *out, const void *p, size_t n, struct error *e);
/* The bytes of n characters into out, which has room for n / 4 * 3; their number, or -1 when s is no base64. */
int64_t base64_decode(uint8_t *out, const char *s, size_t n);

#endif
