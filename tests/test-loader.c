/* test-loader.c - training records in order: each pass exact, the same seed the same order, resumable at any
 * point; in memory, by frame, through a buffer, and from pipes. */
#include "../libcommon/loader.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { RECORDS = 1500, PARTS = 2, ALL = PARTS * RECORDS, LARGE = 1 << 30, SMALL = 250000 };

static char folder[64], framed[PARTS][96], bare[96];

/* Record i of a part: its number is in the key and decides its tokens. */
static void write_part(const char *path, int first, int level)
{
	struct header h = {.text = {.id = "0123456789abcdef0123456789abcdef", .size = 65536, .length = 40}};
	struct record r = {0};
	struct error e = {0};
	struct writer *w = writer_open(path, &h, level, &e);
	bool ok = w != NULL;
	for (int i = first; ok && i < first + RECORDS; i++) {
		uint32_t v[40];
		size_t n = 10 + (size_t)i % 30;
		for (size_t k = 0; k < n; k++)
			v[k] = (uint32_t)(i * 7 + (int)k * 13) % 65536;
		r.key.n = 0;
		ok = buf_printf(&r.key, &e, "%d", i) == 0 && tokens_set(&r.text, v, n, &e) == 0 && writer_put(w, &r, &e) == 0;
	}
	ok = w && writer_close(w, &e) == 0 && ok;
	record_free(&r);
	if (!CHECK(ok, "writing %s: %s", path, e.text))
		exit(check_done());
}

static int number_of(const struct record *r)
{
	int64_t i = -1;
	struct error e = {0};
	parse_int((const char *)r->key.p, 0, ALL, &i, &e);
	return (int)i;
}

/* n records in batches of `batch`; fewer at the end of a pipe, -1 on failure. */
static int take(struct loader *l, int *out, int n, int batch)
{
	const struct record *b[64];
	struct error e = {0};
	int done = 0;
	while (done < n) {
		int want = n - done < batch ? n - done : batch, got = loader_next(l, b, want, &e);
		if (got < 0)
			CHECK(false, "loader_next: %s", e.text);
		if (got < 0)
			return -1;
		for (int i = 0; i < got; i++) /* the whole batch must be valid at once */
			out[done++] = number_of(b[i]);
		if (got < want)
			break;
	}
	return done;
}

static bool exact_cover(const int *v, int n)
{
	char seen[ALL] = {0};
	for (int i = 0; i < n; i++) {
		if (v[i] < 0 || v[i] >= n || seen[v[i]])
			return false;
		seen[v[i]] = 1;
	}
	return true;
}

/* Mean distance of a record from its place in file order. */
static double displacement(const int *v, int n)
{
	double sum = 0;
	for (int i = 0; i < n; i++)
		sum += abs(v[i] - i);
	return sum / n;
}

static void check_restore(const char *what, char *const *files, int n, uint64_t limit, const int *sequence, int total)
{
	int wrong = 0;
	static int part[ALL];
	for (int at = 0; at < 2 * total; at += at % total == 0 ? 1 : total / 7) {
		struct error e = {0};
		struct loader *l = loader_open(files, n, 5, limit, &e);
		struct loader_state s = {(uint64_t)(at / total), (uint64_t)(at % total)};
		int want = 2 * total - at < 700 ? 2 * total - at : 700;
		bool same = l && loader_restore(l, s, &e) == 0 && take(l, part, want, 64) == want;
		wrong += !same || memcmp(part, sequence + at, (size_t)want * sizeof *part) != 0;
		loader_close(l);
	}
	CHECK(wrong == 0, "%s: %d restores went on differently", what, wrong);
}

/* Two passes, the state on the way, seeds, restoring. */
static void check_files(const char *what, char *const *files, int n, uint64_t limit, double least)
{
	static int v[2 * ALL], again[2 * ALL];
	int total = n * RECORDS;
	struct error e = {0};
	struct loader *l = loader_open(files, n, 5, limit, &e), *m = loader_open(files, n, 5, limit, &e);
	struct loader *other = loader_open(files, n, 6, limit, &e);
	if (!CHECK(l && m && other, "%s: %s", what, e.text))
		return;
	CHECK(loader_records(l) == (uint64_t)total, "%s: %llu records", what, (unsigned long long)loader_records(l));
	CHECK(take(l, v, 2 * total, 7) == 2 * total, "%s: two passes", what);
	struct loader_state s = loader_state(l);
	CHECK(s.epoch == 2 && s.position == 0, "%s: state after two passes", what);
	CHECK(exact_cover(v, total) && exact_cover(v + total, total), "%s: every record exactly once a pass", what);
	CHECK(memcmp(v, v + total, (size_t)total * sizeof *v) != 0, "%s: the passes differ", what);
	/* A random permutation moves a record by a third of the pass on average. */
	CHECK(displacement(v, total) > least * total, "%s: shuffled by %.3f of a pass, at least %.3f", what,
	      displacement(v, total) / total, least);
	CHECK(take(m, again, 2 * total, 64) == 2 * total && memcmp(v, again, sizeof *v * 2 * (size_t)total) == 0,
	      "%s: the same order for the same seed and any batch", what);
	CHECK(take(other, again, total, 64) == total && exact_cover(again, total) && memcmp(v, again, sizeof *v * (size_t)total),
	      "%s: another order for another seed", what);
	CHECK(strcmp(loader_identity(l), loader_identity(m)) == 0, "%s: identity", what);
	loader_close(l);
	loader_close(m);
	loader_close(other);
	check_restore(what, files, n, limit, v, total);
}

static void check_in_order(const char *what, char *const *files, int n, uint64_t limit)
{
	const struct record *b[50];
	struct error e = {0};
	struct loader *l = loader_open(files, n, 5, limit, &e);
	for (int round = 0; round < 2; round++) {
		int next = 0, got = 0;
		bool ok = l && loader_rewind(l, &e) == 0;
		while (ok && (got = loader_next_in_order(l, b, 50, &e)) > 0)
			for (int i = 0; i < got; i++)
				ok = ok && number_of(b[i]) == next++;
		CHECK(ok && got == 0 && next == n * RECORDS, "%s: in file order, %d of %d: %s", what, next, n * RECORDS, e.text);
	}
	loader_close(l);
}

/* A child feeds the file into a pipe; its reading end is /dev/fd/N, written into name. */
static pid_t open_pipe(const char *path, char name[32], int *end)
{
	int ends[2];
	struct error e = {0};
	struct buf b = {0};
	if (read_file(path, 1 << 26, &b, &e) || pipe(ends))
		exit(1);
	pid_t child = fork();
	if (child == 0) {
		close(ends[0]);
		signal(SIGPIPE, SIG_DFL);
		write_full(ends[1], b.p, b.n, "pipe", &e);
		_exit(0);
	}
	close(ends[1]);
	buf_free(&b);
	*end = ends[0];
	snprintf(name, 32, "/dev/fd/%d", ends[0]);
	return child;
}

static struct loader *piped(const char *path, uint64_t limit, pid_t *child, struct error *e)
{
	static char name[32];
	static char *names[1] = {name};
	int end;
	*child = open_pipe(path, name, &end);
	struct loader *l = loader_open(names, 1, 5, limit, e);
	close(end); /* the reader holds its own */
	return l;
}

static void check_small_pipe(void)
{
	static int v[2 * RECORDS];
	struct error e = {0};
	pid_t child;
	struct loader *l = piped(framed[0], LARGE, &child, &e);
	if (!CHECK(l != NULL, "a pipe that fits: %s", e.text))
		return;
	CHECK(take(l, v, 2 * RECORDS, 64) == 2 * RECORDS && exact_cover(v, RECORDS) && exact_cover(v + RECORDS, RECORDS),
	      "a pipe that fits memory gives several passes");
	loader_close(l);
	waitpid(child, NULL, 0);
}

static void check_large_pipe(void)
{
	static int v[RECORDS + 10], rest[RECORDS];
	struct error e = {0};
	pid_t child;
	struct loader *l = piped(framed[0], SMALL, &child, &e);
	if (!CHECK(l != NULL, "a pipe larger than memory: %s", e.text))
		return;
	CHECK(loader_records(l) == 0, "its length is unknown");
	CHECK(take(l, v, RECORDS + 10, 64) == RECORDS && exact_cover(v, RECORDS), "it gives every record once, then ends");
	CHECK(displacement(v, RECORDS) > 50, "in another order (%.1f)", displacement(v, RECORDS));
	CHECK(loader_rewind(l, &e) == -1 && e.status == STATUS_LIMIT, "and cannot be evaluated on: %s", e.text);
	loader_close(l);
	waitpid(child, NULL, 0);
	e = (struct error){0};
	l = piped(framed[0], SMALL, &child, &e);
	CHECK(l && loader_restore(l, (struct loader_state){0, 777}, &e) == 0 && take(l, rest, RECORDS, 13) == RECORDS - 777 &&
	      memcmp(rest, v + 777, (RECORDS - 777) * sizeof *v) == 0, "the same pipe again goes on in the middle: %s", e.text);
	loader_close(l);
	waitpid(child, NULL, 0);
}

static void check_refusals(void)
{
	char empty[100], cut[100];
	char *names[] = {empty};
	struct header h = {0};
	struct error e = {0};
	snprintf(empty, sizeof empty, "%s/empty", folder);
	struct writer *w = writer_open(empty, &h, STREAM_LEVEL, &e);
	CHECK(w && writer_close(w, &e) == 0, "%s", e.text);
	CHECK(!loader_open(names, 1, 1, LARGE, &e) && e.status == STATUS_BAD && strstr(e.text, "no records"),
	      "no records: %s", e.text);
	struct buf b = {0};
	e = (struct error){0};
	snprintf(cut, sizeof cut, "%s/cut", folder);
	names[0] = cut;
	FILE *f = fopen(cut, "wb");
	CHECK(f && read_file(framed[0], 1 << 26, &b, &e) == 0 && fwrite(b.p, 1, b.n * 3 / 4, f) && fclose(f) == 0,
	      "cut: %s", e.text);
	static const uint64_t limits[] = {LARGE, SMALL};
	for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
		e = (struct error){0};
		CHECK(!loader_open(names, 1, 1, limits[i], &e) && e.status == STATUS_BAD,
		      "a truncated file is refused at open: %s", e.text);
	}
	buf_free(&b);
	unlink(cut);
	unlink(empty);
}

static void check_identities(void)
{
	char *a[] = {framed[0]}, *b[] = {framed[1]}, *both[] = {framed[0], framed[1]}, *c[] = {bare};
	char *const *sets[] = {a, b, both, c};
	const int counts[] = {1, 1, 2, 1};
	char id[ARRAY_LEN(sets)][ID_LENGTH + 1] = {""};
	for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
		struct error e = {0};
		struct loader *l = loader_open(sets[i], counts[i], 1, LARGE, &e);
		if (CHECK(l != NULL, "%s", e.text))
			memcpy(id[i], loader_identity(l), sizeof id[i]);
		loader_close(l);
	}
	CHECK(strcmp(id[0], id[1]) && strcmp(id[0], id[2]) && strcmp(id[1], id[2]), "other records, other identity");
	CHECK(strcmp(id[0], id[3]) == 0, "the same records in another file, the same identity");
}

int main(void)
{
	snprintf(folder, sizeof folder, "/tmp/test-loader-XXXXXX");
	if (!mkdtemp(folder))
		return 1;
	for (int i = 0; i < PARTS; i++) {
		snprintf(framed[i], sizeof framed[i], "%s/%d.tok", folder, i);
		write_part(framed[i], i * RECORDS, STREAM_LEVEL);
	}
	snprintf(bare, sizeof bare, "%s/bare.tok", folder);
	write_part(bare, 0, 0);
	char *one[] = {framed[0]}, *two[] = {framed[0], framed[1]}, *plain[] = {bare};
	check_files("in memory", two, 2, LARGE, 0.3);
	check_files("by frame", two, 2, SMALL, 0.15);
	check_files("by frame, a frame at a time", one, 1, 1, 0.1);
	check_files("through a buffer", plain, 1, SMALL, 0.03);
	check_files("through a small buffer", plain, 1, 5000, 0);
	check_in_order("in memory", two, 2, LARGE);
	check_in_order("by frame", two, 2, SMALL);
	check_in_order("through a buffer", plain, 1, SMALL);
	check_small_pipe();
	check_large_pipe();
	check_refusals();
	check_identities();
	for (int i = 0; i < PARTS; i++)
		unlink(framed[i]);
	unlink(bare);
	rmdir(folder);
	return check_done();
}
