/* check.h - the test programs' harness: CHECK(condition, "what is shown"), and check_done()
 * as the last statement of main, which prints "N passed, N failed" and gives the status. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdio.h>

static int check_passed, check_failed;

#define CHECK(ok, ...) check_that(ok, __FILE__, __LINE__, __VA_ARGS__)

__attribute__((format(printf, 4, 5))) __attribute__((unused)) static bool
check_that(bool ok, const char *file, int line, const char *fmt, ...)
{
	char text[512];
	__builtin_va_list ap;
	__builtin_va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	__builtin_va_end(ap);
	if (ok)
		check_passed++;
	else
		check_failed++;
	if (!ok)
		printf("not ok: %s (%s:%d)\n", text, file, line);
	return ok;
}

__attribute__((unused)) static int check_done(void)
{
	printf("%d passed, %d failed\n", check_passed, check_failed);
	return check_failed != 0;
}

#endif
