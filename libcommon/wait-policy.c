/* wait-policy.c - see wait-policy.h. */
#include "wait-policy.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

/* Turns of the waiting loop, 10 to 50 microseconds: the next loop of one step comes sooner, the next batch of a pipe later. */
#define TURNS "1000"

/* NULL in programs that do not link GNU's OpenMP. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));

void wait_policy_set(char **argv)
{
	char path[PATH_MAX];
	if (!GOMP_parallel || getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
		return;
	if (!getauxval(AT_BASE)) /* the dynamic loader was started, with the program as its operand: the file is the loader's */
		return;
	/* The path itself, not the link: the program's name in ps and top is that of the file. */
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	if (n <= 0)
		return;
	path[n] = '\0';
	if (setenv("GOMP_SPINCOUNT", TURNS, 1) == 0)
		execv(path, argv);
}
