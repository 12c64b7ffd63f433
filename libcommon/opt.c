/* opt.c - see opt.h.  A small parser of our own over the table rather than getopt_long: the
 * table carries ranges, defaults and help, and presets look options up before parsing. */
#include "opt.h"
#include "wait-policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool flag_help, flag_version, flag_quiet;
static int64_t verbose_count;

static const struct opt common_options[] = {
	OPT_FLAG('q', "quiet", &flag_quiet, "no progress and no warnings"),
	OPT_FLAG('v', "verbose", NULL, "say more; twice for even more"),
	OPT_FLAG('h', "help", &flag_help, "print this help and exit"),
	OPT_FLAG('V', "version", &flag_version, "print version and build and exit"),
	OPT_END,
};

/* ---- looking options up ---- */

static const struct opt *find_in(const struct opt *o, const char *name, size_t n, int *matches, bool *exact)
{
	const struct opt *found = NULL;
	for (; o->name; o++) {
		if (strncmp(o->name, name, n) != 0)
			continue;
		if (strlen(o->name) == n) {
			*exact = true;
			*matches = 1;
			return o;
		}
		++*matches;
		found = o;
	}
	return found;
}

/* Exact name, or the only option that starts with it.  NULL: none or several. */
static const struct opt *find_long(const struct tool *t, const char *name, size_t n, bool *ambiguous)
{
	int matches = 0;
	bool exact = false;
	const struct opt *a = find_in(t->options, name, n, &matches, &exact);
	if (exact)
		return a;
	const struct opt *b = find_in(common_options, name, n, &matches, &exact);
	if (exact)
		return b;
	*ambiguous = matches > 1;
	return matches == 1 ? (a ? a : b) : NULL;
}

const struct opt *opt_find(const struct opt *table, const char *name)
{
	for (const struct opt *o = table; o && o->name; o++) {
		size_t i = 0;
		while (name[i] && (name[i] == '_' ? '-' : name[i]) == o->name[i])
			i++;
		if (!name[i] && !o->name[i])
			return o;
	}
	return NULL;
}

static const struct opt *find_letter(const struct tool *t, char c)
{
	for (const struct opt *o = t->options; o->name; o++)
		if (o->letter == c)
			return o;
	for (const struct opt *o = common_options; o->name; o++)
		if (o->letter == c)
			return o;
	return NULL;
}

static bool takes_value(const struct opt *o)
{
	return o->kind != OPT_K_FLAG;
}

/* ---- help ---- */

static void print_default(const struct opt *o)
{
	switch (o->kind) {
	case OPT_K_INT: printf(" [%lld]", (long long)*o->to.integer); break;
	case OPT_K_REAL:
		if (!isnan(*o->to.real)) /* which stands for none */
			printf(" [%g]", *o->to.real);
		break;
	case OPT_K_STRING:
		if (*o->to.string && **o->to.string)
			printf(" [%s]", *o->to.string);
		break;
	case OPT_K_CHOICE: {
		size_t n;
		const char *s = choice_name(o->arg, *o->to.choice, &n);
		if (s)
			printf(" [%.*s]", (int)n, s);
		break;
	}
	default: break;
	}
}

static void print_options(const struct opt *o)
{
	for (; o->name; o++) {
		char left[80];
		snprintf(left, sizeof left, "%c%c%s--%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
		         o->letter ? ", " : "  ", o->name, takes_value(o) ? "=" : "", takes_value(o) ? o->arg : "");
		if (strlen(left) > 27)
			printf("  %s\n%31s", left, "");
		else
			printf("  %-29s", left);
		fputs(o->help, stdout);
		print_default(o);
		putchar('\n');
	}
}

static int print_help(const struct tool *t)
{
	printf("Usage: %s %s\n%s.\n\n", t->name, t->operands, t->summary);
	print_options(t->options);
	print_options(common_options);
	printf("\nExit status: 0 done, 1 failure, 2 misuse, 3 bad input, 4 limit reached%s.\nSee also: man %s\n",
	       opt_find(t->options, "restart") ? ", 75 stopped after saving" : "", t->name); /* trainers alone */
	return STATUS_OK;
}

static int print_version(const struct tool *t)
{
	printf("%s (dalle-tools) %s\ncompiler %s; libraries:%s%s%s zstd png jansson xxhash\n", t->name, DALLE_VERSION,
	       __VERSION__, HAVE_ONEDNN ? " oneDNN" : "", HAVE_JPEG ? " jpeg" : "",
#ifdef _OPENMP
	       " OpenMP"
#else
	       ""
#endif
	);
	return STATUS_OK;
}

/* ---- setting ---- */

static int set_choice(const struct opt *o, const char *value, struct error *e)
{
	int i = choice_number(o->arg, value);
	if (i < 0)
		return fail(e, STATUS_USAGE, "'%s' is not one of %s", value, o->arg);
	*o->to.choice = i;
	return 0;
}

static int set_option(const struct opt *o, const char *value, struct error *e)
{
	switch (o->kind) {
	case OPT_K_FLAG:
		if (o->to.flag)
			*o->to.flag = true;
		else
			verbose_count++;
		return 0;
	case OPT_K_INT: /* INT64_MAX as a double is 2^63, which no int64_t holds */
		return parse_int(value, (int64_t)o->min, o->max < 0x1p63 ? (int64_t)o->max : INT64_MAX, o->to.integer, e);
	case OPT_K_REAL: return parse_real(value, o->min, o->max, o->to.real, e);
	case OPT_K_STRING: *o->to.string = value; return 0;
	case OPT_K_CHOICE: return set_choice(o, value, e);
	default: return 0;
	}
}

int opt_misuse(const char *fmt, ...)
{
	char text[400];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	warn("%s; try %s --help", text, program_name);
	return STATUS_USAGE;
}

static int set_named(const struct opt *o, const char *shown, const char *value)
{
	struct error e = {0};
	if (set_option(o, value, &e) == 0)
		return -1;
	return opt_misuse("option %s: %s", shown, e.text);
}

/* One "--name[=value]" at argv[*i]; -1 to go on. */
static int parse_long(const struct tool *t, int argc, char **argv, int *i)
{
	const char *name = argv[*i] + 2, *eq = strchr(name, '=');
	size_t n = eq ? (size_t)(eq - name) : strlen(name);
	bool ambiguous = false;
	const struct opt *o = find_long(t, name, n, &ambiguous);
	if (!o)
		return opt_misuse("%s option --%.*s", ambiguous ? "ambiguous" : "unknown", (int)n, name);
	char shown[64];
	snprintf(shown, sizeof shown, "--%s", o->name);
	if (!takes_value(o))
		return eq ? opt_misuse("option %s takes no value", shown) : set_named(o, shown, NULL);
	if (!eq && *i + 1 >= argc)
		return opt_misuse("option %s needs a value (%s)", shown, o->arg);
	return set_named(o, shown, eq ? eq + 1 : argv[++*i]);
}

/* One "-abcVALUE" at argv[*i]; -1 to go on. */
static int parse_letters(const struct tool *t, int argc, char **argv, int *i)
{
	for (const char *p = argv[*i] + 1; *p; p++) {
		const struct opt *o = find_letter(t, *p);
		char shown[8] = {'-', *p, 0};
		if (!o)
			return opt_misuse("unknown option %s", shown);
		int r;
		if (!takes_value(o)) {
			r = set_named(o, shown, NULL);
		} else if (p[1]) {
			return set_named(o, shown, p + 1);
		} else {
			if (*i + 1 >= argc)
				return opt_misuse("option %s needs a value (%s)", shown, o->arg);
			return set_named(o, shown, argv[++*i]);
		}
		if (r >= 0)
			return r;
	}
	return -1;
}

static bool is_option(const char *s)
{
	return s[0] == '-' && s[1];
}

/* Move argv[from..from+n) to position `to` <= from, keeping the order of what it passes. */
static void rotate(char **argv, int to, int from, int n)
{
	for (int k = 0; k < n; k++) {
		char *moved = argv[from + k];
		memmove(argv + to + k + 1, argv + to + k, (size_t)(from - to) * sizeof *argv);
		argv[to + k] = moved;
	}
}

int opt_parse(const struct tool *tool, int argc, char **argv, int *first)
{
	wait_policy_set(argv);
	program_name = tool->name;
	signals_install();
	bool posix = getenv("POSIXLY_CORRECT") != NULL;
	int done = 1; /* argv[1..done) are options already parsed */
	for (int i = 1; i < argc; i++) {
		int at = i, r;
		if (strcmp(argv[i], "--") == 0) {
			rotate(argv, done, i, 1);
			done++;
			break;
		}
		if (!is_option(argv[i])) {
			if (posix)
				break;
			continue;
		}
		r = argv[i][1] == '-' ? parse_long(tool, argc, argv, &i) : parse_letters(tool, argc, argv, &i);
		if (r >= 0)
			return r;
		rotate(argv, done, at, i - at + 1);
		done += i - at + 1;
	}
	*first = done;
	if (flag_help)
		return print_help(tool);
	if (flag_version)
		return print_version(tool);
	verbosity = flag_quiet ? -1 : (int)verbose_count;
	return -1;
}

const char *opt_early(const struct tool *tool, int argc, char **argv, const char *name, const char *fallback)
{
	const char *value = fallback;
	wait_policy_set(argv); /* the caller may read the file that an option names, which a pipe gives once */
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		const char *s = argv[i];
		if (!is_option(s))
			continue;
		const struct opt *o = NULL;
		const char *v = NULL;
		if (s[1] == '-') {
			bool ambiguous = false;
			const char *eq = strchr(s, '=');
			o = find_long(tool, s + 2, eq ? (size_t)(eq - s - 2) : strlen(s + 2), &ambiguous);
			v = eq ? eq + 1 : NULL;
		} else {
			const char *p = s + 1;
			while ((o = find_letter(tool, *p)) && !takes_value(o) && p[1])
				p++;
			v = o && p[1] ? p + 1 : NULL;
		}
		if (!o || !takes_value(o))
			continue;
		if (!v && i + 1 < argc)
			v = argv[++i];
		if (v && strcmp(o->name, name) == 0) /* opt_parse tells of a value that is missing */
			value = v;
	}
	return value;
}
