/* base64.c - see base64.h. */
#include "base64.h"

#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_add(struct buf *out, const void *bytes, size_t n, struct error *e)
{
	const uint8_t *p = bytes;
	if (n > SIZE_MAX / 2)
		return fail(e, STATUS_LIMIT, "out of memory: %zu bytes as text asked for", n);
	size_t length = (n + 2) / 3 * 4;
	if (buf_reserve(out, length, e))
		return -1;
	uint8_t *q = out->p + out->n;
	for (size_t i = 0; i < n; i += 3) {
		size_t left = n - i;
		uint32_t v = (uint32_t)p[i] << 16 | (left > 1 ? (uint32_t)p[i + 1] << 8 : 0) | (left > 2 ? p[i + 2] : 0);
		*q++ = (uint8_t)digits[v >> 18];
		*q++ = (uint8_t)digits[v >> 12 & 63];
		*q++ = (uint8_t)(left > 1 ? digits[v >> 6 & 63] : '=');
		*q++ = (uint8_t)(left > 2 ? digits[v & 63] : '=');
	}
	*q = 0;
	out->n += length;
	return 0;
}

static int digit_value(char c)
{
	const char *p = c ? strchr(digits, c) : NULL;
	return p ? (int)(p - digits) : -1;
}

int64_t base64_decode(uint8_t *out, const char *s, size_t n)
{
	uint8_t *q = out;
	if (n % 4)
		return -1;
	for (size_t i = 0; i < n; i += 4) {
		bool last = i + 4 == n;
		int pad = last && s[i + 3] == '=' ? (s[i + 2] == '=' ? 2 : 1) : 0;
		uint32_t v = 0;
		for (int k = 0; k < 4; k++) {
			int d = k >= 4 - pad ? 0 : digit_value(s[i + (size_t)k]);
			if (d < 0)
				return -1;
			v = v << 6 | (uint32_t)d;
		}
		*q++ = (uint8_t)(v >> 16);
		if (pad < 2)
			*q++ = (uint8_t)(v >> 8);
		if (pad < 1)
			*q++ = (uint8_t)v;
	}
	return q - out;
}
