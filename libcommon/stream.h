/* stream.h - tokenstream(5): header, records and end record, as one protobuf message in
 * independent zstd frames.  The field list is stream.proto; the byte layout is
 * tokenstream(5).
 *
 *	struct reader *in = reader_open(files, n, &e);     reads the first header
 *	struct writer *out = writer_open(path, &header, level, &e);
 *	while ((r = reader_next(in, &record, &e)) > 0)
 *		writer_put(out, &record, &e);
 *	writer_close(out, &e);                             end record, seek table, rename
 */
#ifndef STREAM_H
#define STREAM_H

#include "util.h"

#define ID_LENGTH 32 /* hex digits of a content hash */

struct text_codec {
	char id[ID_LENGTH + 1]; /* "" : the stream holds no text tokens */
	uint32_t size, length;
};

struct image_codec {
	char id[ID_LENGTH + 1]; /* "" : the stream holds no image tokens */
	uint32_t size, grid_width, grid_height;
};

struct program {
	char *name, *version, *command;
};

/* Owned by whoever declares it; zero-initialise, free with header_free. */
struct header {
	struct text_codec text;
	struct image_codec image;
	uint32_t width, height; /* pixels; 0 when absent or mixed */
	struct program *programs;
	size_t program_count;
	struct buf unknown; /* fields of newer versions, passed through as they came */
};
int header_copy(struct header *to, const struct header *from, struct error *e);
void header_free(struct header *h);
/* Append a lineage entry for this program with its command line. */
int header_add_program(struct header *h, int argc, char **argv, struct error *e);
/* program_name and argv[1..] as a shell would take them, into *out (replaced).  Always UTF-8: words that are not
 * have '?' for the bytes from 0x80 on. */
int command_line(struct buf *out, int argc, char **argv, struct error *e);

struct tokens {
	uint32_t *v;
	size_t n, cap;
	bool present; /* an empty caption has present text of n = 0 */
};

struct pixels {
	uint8_t *rgb; /* (height, width, 3) */
	uint32_t width, height; /* 0: absent */
	size_t cap;
};

enum { HAS_SCORE = 1, HAS_NLL_TEXT = 2, HAS_NLL_IMAGE = 4, HAS_SEED = 8, HAS_SAMPLE = 16 };

/* A record owns its memory and reuses it from call to call; zero-initialise. */
struct record {
	struct buf key, caption, model; /* UTF-8; n = 0 means absent */
	struct tokens text, image;
	struct pixels pixels;
	unsigned has; /* HAS_* of the scalars below */
	float score, nll_text, nll_image;
	uint64_t seed;
	uint32_t sample;
	struct buf unknown;
};
void record_clear(struct record *r); /* keeps memory */
void record_free(struct record *r);
int record_copy(struct record *to, const struct record *from, struct error *e);
int tokens_set(struct tokens *t, const uint32_t *v, size_t n, struct error *e);
int tokens_reserve(struct tokens *t, size_t n, struct error *e); /* room for n, whatever it holds now */
/* Room for `need` records in an array that grows; new ones are zero. */
int records_room(struct record **v, size_t need, size_t *cap, struct error *e);
void records_free(struct record *v, size_t cap); /* those that records_room made, and the array */
/* Records with equal captions have the same number.  Equal is what a reader sees: the text tokens, as our models do, or
 * by_text the caption itself, as people and published models do; where that one is absent, the other counts. */
uint64_t caption_hash(const struct record *r, bool by_text);
/* Room for a picture of this size; contents undefined. */
int pixels_resize(struct pixels *p, uint32_t width, uint32_t height, struct error *e);
size_t record_bytes(const struct record *r); /* about what it holds in memory */

/* Limits: anything larger in a stream is refused before memory is taken for it. */
enum {
	STREAM_MAX_SIDE = 16384,           /* pixels */
	STREAM_MAX_TOKENS = 1 << 20,       /* of each kind in a record */
	STREAM_MAX_RECORD = 1 << 30,       /* bytes */
	STREAM_MAX_TEXT = 1 << 20,         /* bytes of a caption, key or command line */
};

/* ---- reading ---- */

/* Reads the operands one after the other as one stream; n = 0 or "-" is stdin.  Accepts
 * zstd frames and bare content, refuses a terminal.  Reads up to the first header.
 * NULL with e: STATUS_BAD when it is no stream.  A later part whose text or image codec or
 * size differs is STATUS_BAD, naming both.  reader_header stays that of the first part:
 * programs and unknown fields of later headers are checked and not kept.  The array of
 * files must outlive the reader; each operand must hold whole parts. */
struct reader *reader_open(char *const *files, int n, struct error *e);
const struct header *reader_header(const struct reader *r);
/* The next record into *rec (cleared first): 1, 0 at the end after every end record was
 * checked, -1 on failure (STATUS_BAD for truncation, wrong counts, corruption). */
int reader_next(struct reader *r, struct record *rec, struct error *e);
const char *reader_name(const struct reader *r); /* file being read, for messages */
/* Bytes consumed of bytes in all (0 when unknown, as on a pipe): for progress. */
void reader_progress(const struct reader *r, uint64_t *done, uint64_t *total);
void reader_close(struct reader *r);

/* True when the first bytes of a file are those of a stream (zstd or bare). */
bool stream_looks_like(const uint8_t *p, size_t n);
/* Whether the file at path ("-": stdin) is a stream, without losing what was read: what was
 * taken from a pipe goes to the next reader of the same path.  1, 0, -1. */
int stream_detect(const char *path, struct error *e);

/* Random access by frame, for trainers that shuffle: only regular files whose seek tables
 * cover them (else -1 from reader_frames, with e filled: read in order with a new reader).
 * Returns the number of frames of operand `index`; reader_seek continues with that frame;
 * then reader_next gives the records of this frame only and 0 after its last one.  Some
 * frames hold no record: the first has the header alone.  Record counts are not checked
 * this way, sizes and checksums of frames are. */
int64_t reader_frames(struct reader *r, int index, struct error *e);
int reader_seek(struct reader *r, int index, int64_t frame, struct error *e);

/* ---- writing ---- */

enum { STREAM_LEVEL = -1 }; /* the default compression level; 0 writes bare content */
/* path NULL or "-": stdout (a terminal is refused).  The header is copied and written at
 * once.  writer_put: STATUS_BAD when the record does not fit the header (a token outside
 * its codec, more tokens than declared, another picture size) or its texts are not UTF-8;
 * STATUS_LIMIT when it is over the limits above. */
struct writer *writer_open(const char *path, const struct header *h, int level, struct error *e);
int writer_put(struct writer *w, const struct record *rec, struct error *e);
/* Write what is buffered as a frame of its own now, so that a reader on a pipe sees it. */
int writer_flush(struct writer *w, struct error *e);
/* Whether what is written goes to a new regular file: nobody waits for it, so that large frames are best. */
bool writer_kept(const struct writer *w);
/* End record, last frame, seek table, fsync and rename or close; frees w in every case. */
int writer_close(struct writer *w, struct error *e);
void writer_abort(struct writer *w); /* no end record; a file does not appear */

#endif
