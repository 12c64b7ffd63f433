/* opt.h - one option table per tool drives parsing, range checks, --help, --version
 * and the test that compares them with the man page.
 *
 *	static const struct opt options[] = {
 *		OPT_INT('n', "samples", &samples, 1, 1e6, "N", "samples of each caption"),
 *		OPT_OUTPUT(&output), OPT_END
 *	};
 *	static const struct tool tool = {"dalle-sample", "[OPTION]... [FILE]...", "what it does", options};
 *	int main(int argc, char **argv)
 *	{
 *		int first, status = opt_parse(&tool, argc, argv, &first);
 *		if (status >= 0)
 *			return finish(status);
 *		... operands are argv[first .. argc-1]
 *
 * --help, --version, -q and -v are added to every tool.  Targets hold their defaults
 * before the call: --help prints them. */
#ifndef OPT_H
#define OPT_H

#include "util.h"

enum opt_kind { OPT_K_END, OPT_K_FLAG, OPT_K_INT, OPT_K_REAL, OPT_K_STRING, OPT_K_CHOICE };

struct opt {
	char letter;      /* 0: long form only */
	const char *name; /* every option has a long form */
	enum opt_kind kind;
	union { /* by kind, so that the compiler checks the target's type */
		bool *flag;
		int64_t *integer;
		double *real;
		const char **string;
		int *choice; /* index of the choice */
	} to;
	double min, max;
	const char *arg;  /* "N" in --help; for a choice "a|b|c", which is also the list */
	const char *help; /* one line, lower case, no full stop */
};

#define OPT_FLAG(l, n, t, h) {l, n, OPT_K_FLAG, {.flag = t}, 0, 0, NULL, h}
#define OPT_INT(l, n, t, lo, hi, a, h) {l, n, OPT_K_INT, {.integer = t}, lo, hi, a, h}
#define OPT_REAL(l, n, t, lo, hi, a, h) {l, n, OPT_K_REAL, {.real = t}, lo, hi, a, h}
#define OPT_STRING(l, n, t, a, h) {l, n, OPT_K_STRING, {.string = t}, 0, 0, a, h}
#define OPT_CHOICE(l, n, t, a, h) {l, n, OPT_K_CHOICE, {.choice = t}, 0, 0, a, h}
#define OPT_END {0, NULL, OPT_K_END, {NULL}, 0, 0, NULL, NULL}
#define OPT_OUTPUT(t) OPT_STRING('o', "output", t, "FILE", "write to FILE instead of stdout")

/* Where a model runs: the same four options for every such tool. */
struct run_options {
	const char *device; /* auto, cpu, cuda, cuda:N */
	int64_t threads;    /* 0: all that the process may use */
	int64_t batch;
	int precision; /* index into auto|f32|bf16|f16 */
	int gpu;       /* of those that device names without a number; not an option */
};
#define RUN_DEFAULTS(b) {"auto", 0, b, 0, 0}
#define OPT_RUN(r) \
	OPT_STRING('d', "device", &(r)->device, "DEVICE", "where to compute: auto, cpu, cuda or cuda:N"), \
	OPT_INT('j', "threads", &(r)->threads, 0, 4096, "N", "CPU threads, 0 for all"), \
	OPT_INT('b', "batch", &(r)->batch, 1, 1 << 20, "N", "records computed at once"), \
	OPT_CHOICE('p', "precision", &(r)->precision, "auto|f32|bf16|f16", "number format of the matrix products")

struct tool {
	const char *name;
	const char *operands; /* "[OPTION]... [FILE]..." */
	const char *summary;  /* one sentence */
	const struct opt *options;
};

/* Parse argv; GNU manners: bundled letters, -oFILE, --name=value, unambiguous
 * abbreviations, "--" ends options, operands and options may mix (argv is permuted
 * unless POSIXLY_CORRECT).  Sets program_name, verbosity, signal handlers and how threads wait (wait-policy.h: of
 * this and opt_early, what a main calls first comes before it reads anything).
 * Returns -1 to go on with operands from argv[*first], or the exit status:
 * 0 after --help/--version (on stdout), 2 after misuse (one line on stderr). */
int opt_parse(const struct tool *tool, int argc, char **argv, int *first);

/* Value of option `name` on the command line, or fallback; for presets, which must be
 * applied before the other options override their fields. */
const char *opt_early(const struct tool *tool, int argc, char **argv, const char *name, const char *fallback);

/* The option of that name, in which _ stands for -, in a table (NULL: an empty one); NULL when there is none. */
const struct opt *opt_find(const struct opt *table, const char *name);

/* One line for misuse found after parsing ("-n and --all exclude each other"); returns 2. */
int opt_misuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
