/* lines.c - lists and captions as lines; the first byte chooses what ends a line. */
#include "fuzz.h"

#include "../../libcommon/lines.h"
#include "../../libcommon/names.h"
#include "../../libcommon/wire.h"

static void use(const struct lines *l, const uint8_t *p, size_t n, struct names *names, uint64_t number)
{
	struct error e = {0};
	struct list_line line;
	struct record r = {0};
	struct buf text = {0}, name = {0};
	bool tab = list_split(&line, p, n);
	MUST(line.name_n + line.caption_n + line.key_n <= n);
	MUST(list_key(&r.key, &line, &e) == 0);
	MUST(text_repair(p, n, &text, &e) >= 0 && utf8_valid(text.p, text.n) && text_repair(text.p, text.n, &name, &e) == 0);
	MUST(names_make(names, &name, &r, number, &e) == 0 && name.n && name.n < 250 && !memchr(name.p, '/', name.n));
	lines_caption(l, tab, p, n, &line, &e);
	record_free(&r);
	buf_free(&text);
	buf_free(&name);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct names names = {0};
	const uint8_t *line;
	size_t line_n, got = 0;
	if (n == 0)
		return 0;
	char *path = (char *)(uintptr_t)fuzz_file(p + 1, n - 1), *files[] = {path, path};
	struct lines *l = lines_open(files, 1 + (*p >> 7), *p & 1 ? '\n' : 0, &e);
	int k = l ? 1 : -1;
	while (k == 1 && (k = lines_next(l, &line, &line_n, &e)) == 1) {
		use(l, line, line_n, &names, lines_number(l));
		got += line_n;
	}
	MUST(got <= 2 * n && (k == 0 || e.status));
	lines_close(l);
	names_free(&names);
	return 0;
}
