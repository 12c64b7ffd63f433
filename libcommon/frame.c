/* frame.c - see frame.h. */
#include "frame.h"
#include "seek.h"
#include "stream.h"

#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

/* Measured, see tokenstream(5): tokens in files are kept for long, so they get zstd's
 * optimal parser; what passes a pipe lives for a moment; pictures gain little from more
 * than level 1. */
enum { FILE_LEVEL = 22, PIPE_LEVEL = 3, PIXEL_LEVEL = 1, WINDOW_LOG = 23, MAX_LEVEL = 22 };

struct frames {
	struct outfile out;
	ZSTD_CCtx *zstd;
	int level;
	struct buf packed[2]; /* compressed candidates */
	struct seek_table table;
};

static int frames_setup(struct frames *f, const char *path, int level, struct error *e)
{
	if (level < STREAM_LEVEL || level > MAX_LEVEL)
		return fail(e, STATUS_USAGE, "compression level %d, expected 0 to %d", level, MAX_LEVEL);
	f->level = level;
	f->zstd = ZSTD_createCCtx();
	if (!f->zstd || ZSTD_isError(ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_checksumFlag, 1)))
		return fail(e, STATUS_LIMIT, "out of memory");
	if (outfile_open(&f->out, path, e))
		return -1;
	if (isatty(f->out.fd))
		return fail(e, STATUS_USAGE, "%s: is a terminal, a token stream is binary: use -o FILE or a pipe",
		            f->out.path);
	return 0;
}

struct frames *frames_open(const char *path, int level, struct error *e)
{
	struct frames *f = mem_zero(1, sizeof *f, e);
	if (!f)
		return NULL;
	f->out.fd = -1;
	if (frames_setup(f, path, level, e)) {
		frames_abort(f);
		return NULL;
	}
	return f;
}

const char *frames_name(const struct frames *f)
{
	return f->out.path;
}

bool frames_bare(const struct frames *f)
{
	return f->level == 0;
}

bool frames_kept(const struct frames *f)
{
	return f->out.regular;
}

static int set_level(struct frames *f, int level, struct error *e)
{
	/* The top levels look for matches of 3 bytes; tokens of two bytes never have one, and
	 * without them the parse is 0.2 % better. */
	size_t match = ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_minMatch, level >= FILE_LEVEL ? 4 : 0);
	/* Levels from 20 use larger windows than readers have to accept. */
	size_t window = ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_windowLog, level >= 20 ? WINDOW_LOG : 0);
	size_t own = ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_compressionLevel, level);
	if (ZSTD_isError(match) || ZSTD_isError(window) || ZSTD_isError(own))
		return fail(e, STATUS_FAIL, "%s: zstd refuses level %d", f->out.path, level);
	return 0;
}

static int compress(struct frames *f, struct buf *to, const struct buf *content, int level, struct error *e)
{
	size_t room = ZSTD_compressBound(content->n);
	to->n = 0;
	if (ZSTD_isError(room) || buf_reserve(to, room, e))
		return fail(e, STATUS_LIMIT, "%s: no memory to compress %zu bytes", f->out.path, content->n);
	if (set_level(f, level, e))
		return -1;
	size_t n = ZSTD_compress2(f->zstd, to->p, room, content->p, content->n);
	if (ZSTD_isError(n))
		return fail(e, STATUS_FAIL, "%s: zstd: %s", f->out.path, ZSTD_getErrorName(n));
	to->n = n;
	return 0;
}

int frames_put(struct frames *f, const struct buf *a, const struct buf *b, bool bulky, struct error *e)
{
	if (a->n == 0)
		return 0;
	if (f->level == 0)
		return write_full(f->out.fd, a->p, a->n, f->out.path, e);
	int level = f->level != STREAM_LEVEL ? f->level
	            : bulky                  ? PIXEL_LEVEL
	            : frames_kept(f)         ? FILE_LEVEL
	                                     : PIPE_LEVEL;
	if (compress(f, &f->packed[0], a, level, e) || (b && compress(f, &f->packed[1], b, level, e)))
		return -1;
	bool second = b && f->packed[1].n < f->packed[0].n;
	const struct buf *best = &f->packed[second];
	if (seek_add(&f->table, best->n, second ? b->n : a->n, e))
		return -1;
	return write_full(f->out.fd, best->p, best->n, f->out.path, e);
}

static void frames_free(struct frames *f)
{
	ZSTD_freeCCtx(f->zstd);
	buf_free(&f->packed[0]);
	buf_free(&f->packed[1]);
	seek_free(&f->table);
	free(f);
}

int frames_close(struct frames *f, struct error *e)
{
	struct buf table = {0};
	int r = 0;
	if (f->level != 0)
		r = seek_encode(&f->table, &table, e) || write_full(f->out.fd, table.p, table.n, f->out.path, e) ? -1 : 0;
	buf_free(&table);
	if (r) {
		frames_abort(f);
		return -1;
	}
	r = outfile_commit(&f->out, e);
	frames_free(f);
	return r;
}

void frames_abort(struct frames *f)
{
	if (!f)
		return;
	outfile_abort(&f->out);
	frames_free(f);
}
