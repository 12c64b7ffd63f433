/* source.c - see source.h. */
#include "source.h"
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { INPUT_SIZE = 1 << 17, CHUNK = 1 << SOURCE_WINDOW_LOG };
enum mode { PROBE, FRAME, BARE, SKIP, END };

struct source {
	char *name;
	int fd;
	ZSTD_DCtx *zstd;
	struct buf in; /* input read and not consumed: in.p[at .. in.n) */
	size_t at;
	uint64_t consumed, skip;
	enum mode mode;
	bool eof, truncated, bare;
	bool single; /* source_seek: one frame of these sizes */
	uint64_t left, expected, delivered;
};

static int source_setup(struct source *s, const char *path, struct error *e)
{
	bool is_stdin = strcmp(path, "-") == 0;
	s->name = mem_string(is_stdin ? "stdin" : path, e);
	if (!s->name || buf_reserve(&s->in, INPUT_SIZE, e))
		return -1;
	s->fd = source_input(path, s->in.p, &s->in.n, e);
	if (s->fd < 0)
		return -1;
	if (isatty(s->fd))
		return fail(e, STATUS_USAGE, "%s: is a terminal, expected a token stream from a file or a pipe (see --help)",
		            s->name);
	s->zstd = ZSTD_createDCtx();
	if (!s->zstd || ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, SOURCE_WINDOW_LOG)))
		return fail(e, STATUS_LIMIT, "out of memory");
	return 0;
}

struct source *source_open(const char *path, struct error *e)
{
	struct source *s = mem_zero(1, sizeof *s, e);
	if (!s)
		return NULL;
	s->fd = -1;
	if (source_setup(s, path, e)) {
		source_close(s);
		return NULL;
	}
	return s;
}

void source_close(struct source *s)
{
	if (!s)
		return;
	if (s->fd > STDERR_FILENO)
		close(s->fd);
	ZSTD_freeDCtx(s->zstd);
	buf_free(&s->in);
	free(s->name);
	free(s);
}

const char *source_name(const struct source *s)
{
	return s->name;
}

int source_fd(const struct source *s)
{
	return s->fd;
}

uint64_t source_position(const struct source *s)
{
	return s->consumed;
}

bool source_truncated(const struct source *s)
{
	return s->truncated;
}

bool source_bare(const struct source *s)
{
	return s->bare;
}

static size_t available(const struct source *s)
{
	return s->in.n - s->at;
}

static void consume(struct source *s, size_t n)
{
	s->at += n;
	s->consumed += n;
}

/* One read: what a pipe has now is worth having now.  0 also at the end. */
static int refill(struct source *s, struct error *e)
{
	memmove(s->in.p, s->in.p + s->at, available(s));
	s->in.n -= s->at;
	s->at = 0;
	size_t room = INPUT_SIZE > s->in.n ? INPUT_SIZE - s->in.n : 0;
	if (s->single && room > s->left)
		room = (size_t)s->left;
	if (room == 0) {
		s->eof = s->eof || s->single;
		return 0;
	}
	ssize_t k;
	do
		k = read(s->fd, s->in.p + s->in.n, room);
	while (k < 0 && errno == EINTR);
	if (k < 0)
		return fail_errno(e, "%s", s->name);
	s->eof = k == 0;
	s->in.n += (size_t)k;
	if (s->single)
		s->left -= (uint64_t)k;
	return 0;
}

/* ---- what is it? ---- */

static uint32_t magic_of(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static bool is_skippable(uint32_t magic)
{
	return (magic & ~15u) == ZSTD_MAGIC_SKIPPABLE_START;
}

bool source_starts_frame(const uint8_t *p, size_t n)
{
	return n >= 4 && (magic_of(p) == ZSTD_MAGICNUMBER || is_skippable(magic_of(p)));
}

/* Stream.header, its length, Header.version: 0A, varint, 08, 1..127.  `whole` asks for all
 * of it; without, the beginning of it will do (a file cut there). */
static bool starts_bare(const uint8_t *p, size_t n, bool whole)
{
	size_t i = 1;
	if (n == 0 || p[0] != 0x0A)
		return false;
	while (i < n && i < 6 && p[i] >= 128)
		i++;
	if (i + 2 >= n)
		return !whole && (i + 1 >= n || p[i + 1] == 0x08);
	return p[i] < 128 && p[i + 1] == 0x08 && p[i + 2] > 0 && p[i + 2] < 128;
}

bool stream_looks_like(const uint8_t *p, size_t n)
{
	return source_starts_frame(p, n) || starts_bare(p, n, true);
}

/* The one place where a read has to be undone: a pipe has no lseek, and a FIFO cannot be
 * opened twice.  One input at a time is kept. */
static struct {
	char *path; /* NULL: nothing is kept */
	int fd;
	uint8_t p[SOURCE_PEEK];
	size_t n;
} peeked;

int source_total(char *const *files, int n, uint64_t *total, struct error *e)
{
	bool known = true;
	uint64_t sum = 0;
	for (int i = 0; i < n; i++) {
		struct stat st;
		bool is_stdin = strcmp(files[i], "-") == 0;
		if (is_stdin ? fstat(STDIN_FILENO, &st) : stat(files[i], &st))
			return fail_errno(e, "%s", is_stdin ? "stdin" : files[i]);
		known = known && S_ISREG(st.st_mode);
		sum += (uint64_t)st.st_size;
	}
	*total = known ? sum : 0;
	return 0;
}

static int open_input(const char *path, struct error *e)
{
	bool is_stdin = strcmp(path, "-") == 0;
	int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? fail_errno(e, "%s", is_stdin ? "stdin" : path) : fd;
}

int source_input(const char *path, uint8_t p[SOURCE_PEEK], size_t *n, struct error *e)
{
	*n = 0;
	if (!peeked.path || strcmp(path, peeked.path) != 0)
		return open_input(path, e);
	memcpy(p, peeked.p, peeked.n);
	*n = peeked.n;
	free(peeked.path);
	peeked.path = NULL;
	return peeked.fd;
}

int stream_detect(const char *path, struct error *e)
{
	if (peeked.path && strcmp(path, peeked.path) == 0)
		return stream_looks_like(peeked.p, peeked.n);
	int fd = open_input(path, e);
	if (fd < 0)
		return -1;
	int64_t n = isatty(fd) ? 0 : read_full(fd, peeked.p, SOURCE_PEEK, path, e);
	peeked.n = n > 0 ? (size_t)n : 0;
	bool keep = n > 0 && lseek(fd, -(off_t)n, SEEK_CUR) < 0;
	if (keep) {
		free(peeked.path);
		peeked.fd = fd;
		peeked.path = mem_string(path, e);
		if (peeked.path)
			return stream_looks_like(peeked.p, peeked.n);
	}
	if (fd > STDERR_FILENO)
		close(fd);
	return e->status ? -1 : stream_looks_like(peeked.p, peeked.n);
}

static bool is_text(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n && i < 64; i++)
		if ((p[i] < 32 && !strchr("\t\r\n", p[i])) || p[i] == 0 || p[i] == 127)
			return false;
	return n > 0;
}

/* What users hand over by mistake, by its first bytes. */
static const char *describe(const uint8_t *p, size_t n)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *what;
	} known[] = {
		{"\x89PNG", 4, "a PNG picture; img-pack packs pictures"},
		{"\xFF\xD8\xFF", 3, "a JPEG picture; img-pack packs pictures"},
		{"GIF8", 4, "a GIF picture"},
		{"RIFF", 4, "a RIFF file (WebP?)"},
		{"P6", 2, "a PPM picture; img-pack packs pictures"},
		{"P5", 2, "a PGM picture"},
		{"P7", 2, "a PAM picture; img-pack packs pictures"},
		{"PK\3\4", 4, "a zip file (or a PyTorch checkpoint)"},
		{"\x1F\x8B", 2, "a gzip file"},
		{"BZh", 3, "a bzip2 file"},
		{"\xFD" "7zXZ", 5, "an xz file"},
		{"\x80\2", 2, "a Python pickle"},
		{"\x80\3", 2, "a Python pickle"},
		{"\x80\4", 2, "a Python pickle"},
		{"\x80\5", 2, "a Python pickle"},
		{"{", 1, "JSON; tok-load reads JSON lines"},
		{"[", 1, "JSON"},
	};
	if (n > 8 && p[8] == '{' && magic_of(p + 4) == 0)
		return "a safetensors model, which goes to -m or model-info";
	if (n > 262 && memcmp(p + 257, "ustar", 5) == 0)
		return "a tar archive; img-pack packs webdataset tars";
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (n >= known[i].n && memcmp(p, known[i].bytes, known[i].n) == 0)
			return known[i].what;
	return is_text(p, n) ? "text; bpe-encode and img-pack read text" : NULL;
}

static int refuse(const struct source *s, struct error *e)
{
	const uint8_t *p = s->in.p + s->at;
	const char *what = describe(p, available(s));
	if (s->consumed)
		return fail(e, STATUS_BAD, "%s: something that is no token stream begins at byte %llu", s->name,
		            (unsigned long long)s->consumed);
	if (what)
		return fail(e, STATUS_BAD, "%s: not a token stream: looks like %s", s->name, what);
	return fail(e, STATUS_BAD, "%s: not a token stream: begins %02x %02x, expected zstd frames (28 b5 2f fd)", s->name,
	            p[0], available(s) > 1 ? p[1] : 0);
}

/* At a border between frames: choose how to read what follows. */
static int probe(struct source *s, struct error *e)
{
	while (available(s) < 8 && !s->eof)
		if (refill(s, e))
			return -1;
	const uint8_t *p = s->in.p + s->at;
	size_t n = available(s);
	s->bare = false;
	if (n == 0) {
		s->mode = END;
	} else if (n >= 8 && is_skippable(magic_of(p))) {
		s->skip = 8 + (uint64_t)magic_of(p + 4);
		s->mode = SKIP;
	} else if (n >= 4 && magic_of(p) == ZSTD_MAGICNUMBER) {
		ZSTD_DCtx_reset(s->zstd, ZSTD_reset_session_only);
		s->mode = FRAME;
	} else if (starts_bare(p, n, false)) {
		s->mode = BARE;
		s->bare = true;
	} else if ((n < 8 && source_starts_frame(p, n)) || (n < 4 && memcmp(p, "\x28\xB5\x2F\xFD", n) == 0) ||
	           (n < 4 && s->consumed)) {
		s->truncated = true;
		s->mode = END;
	} else {
		return refuse(s, e);
	}
	return 0;
}

/* ---- content ---- */

static int skip_some(struct source *s, struct error *e)
{
	if (available(s) == 0 && refill(s, e))
		return -1;
	size_t n = available(s) < s->skip ? available(s) : (size_t)s->skip;
	consume(s, n);
	s->skip -= n;
	if (s->skip == 0) {
		s->mode = PROBE;
	} else if (s->eof) {
		s->truncated = true;
		s->mode = END;
	}
	return 0;
}

static int zstd_failure(const struct source *s, size_t code, struct error *e)
{
	switch (ZSTD_getErrorCode(code)) {
	case ZSTD_error_frameParameter_windowTooLarge:
		return fail(e, STATUS_LIMIT, "%s: a zstd window over %d MiB, which is the limit; compress with --long=%d",
		            s->name, CHUNK >> 20, SOURCE_WINDOW_LOG);
	case ZSTD_error_memory_allocation: return fail(e, STATUS_LIMIT, "%s: out of memory", s->name);
	default:
		return fail(e, STATUS_BAD, "%s: corrupt: zstd frame before byte %llu: %s", s->name,
		            (unsigned long long)s->consumed, ZSTD_getErrorName(code));
	}
}

static int frame_done(struct source *s, struct error *e)
{
	s->mode = PROBE;
	if (!s->single)
		return 0;
	s->mode = END;
	if (available(s) || s->left || s->delivered != s->expected)
		return fail(e, STATUS_BAD, "%s: corrupt: the seek table gives a frame other sizes than it has", s->name);
	return 0;
}

/* Append content until the frame ends or CHUNK bytes came. */
static int fill_frame(struct source *s, struct buf *b, struct error *e)
{
	size_t first = b->n, step = ZSTD_DStreamOutSize();
	while (b->n - first < CHUNK && s->mode == FRAME) {
		if (buf_reserve(b, step, e))
			return -1;
		ZSTD_inBuffer in = {s->in.p + s->at, available(s), 0};
		ZSTD_outBuffer out = {b->p + b->n, step, 0};
		size_t r = ZSTD_decompressStream(s->zstd, &out, &in);
		consume(s, in.pos);
		b->n += out.pos;
		s->delivered += out.pos;
		if (ZSTD_isError(r))
			return zstd_failure(s, r, e);
		if (r == 0 && frame_done(s, e))
			return -1;
		/* Nothing more to be had from this input: zstd fills the output first. */
		if (r != 0 && out.pos < out.size && available(s) == 0 && refill(s, e))
			return -1;
		if (r != 0 && out.pos < out.size && available(s) == 0 && s->eof) {
			s->truncated = true;
			s->mode = END;
		}
	}
	b->p[b->n] = 0;
	return 0;
}

static int fill_bare(struct source *s, struct buf *b, struct error *e)
{
	if (available(s) == 0 && refill(s, e))
		return -1;
	size_t n = available(s);
	if (n == 0)
		s->mode = END;
	if (buf_add(b, s->in.p + s->at, n, e))
		return -1;
	consume(s, n);
	return 0;
}

int source_fill(struct source *s, struct buf *b, struct error *e)
{
	size_t before = b->n;
	while (b->n == before && s->mode != END) {
		int r = 0;
		switch (s->mode) {
		case PROBE: r = probe(s, e); break;
		case SKIP: r = skip_some(s, e); break;
		case FRAME: r = fill_frame(s, b, e); break;
		case BARE: r = fill_bare(s, b, e); break;
		case END: break;
		}
		if (r)
			return -1;
	}
	/* The part of a cut frame that could be unpacked did not pass its checksum. */
	if (s->truncated)
		b->n = before;
	return b->n > before;
}

int source_unread(struct source *s, const uint8_t *p, size_t n, struct error *e)
{
	size_t kept = available(s);
	if (buf_reserve(&s->in, n, e))
		return -1;
	memmove(s->in.p + n, s->in.p + s->at, kept);
	memcpy(s->in.p, p, n);
	s->in.n = n + kept;
	s->at = 0;
	s->consumed -= n;
	s->mode = PROBE;
	return 0;
}

int source_seek(struct source *s, uint64_t offset, uint64_t compressed, uint64_t content, struct error *e)
{
	if (lseek(s->fd, (off_t)offset, SEEK_SET) < 0)
		return fail_errno(e, "%s", s->name);
	s->in.n = s->at = 0;
	s->consumed = offset;
	s->single = true;
	s->left = compressed;
	s->expected = content;
	s->delivered = 0;
	s->eof = s->truncated = false;
	s->mode = PROBE;
	return 0;
}
