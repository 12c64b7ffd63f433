/* unicode.h - UTF-8 and the composed form of text (NFC). */
#ifndef UNICODE_H
#define UNICODE_H

#include "util.h"

enum { NOT_UTF8 = 0x110000 }; /* one above the last code point */

/* The code point at p (n > 0) and its length; a byte that begins none is NOT_UTF8 of length 1. */
uint32_t utf8_decode(const uint8_t *p, size_t n, size_t *length);
/* The 1 to 4 bytes of a code point; their number. */
size_t utf8_encode(uint8_t out[4], uint32_t c);

/* Of rows that begin with the first and the last code point of a range, in order of these: the one that c is in, or NULL. */
const void *code_row(const void *rows, size_t n, size_t size, uint32_t c);
#define CODE_ROW(rows, c) code_row(rows, ARRAY_LEN(rows), sizeof *(rows), c)

/* n bytes of text in Unicode's normalization form C into *out (replaced): letters and accents that follow them become
 * one code point where there is one.  Bytes that are not UTF-8 stay. */
int unicode_compose(const void *text, size_t n, struct buf *out, struct error *e);

#endif
