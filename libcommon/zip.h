/* zip.h - where the files of a zip archive lie, from its central directory (APPNOTE 4.3, zip64 included).  For archives
 * whose files are read in place by position, as PyTorch's are; compressed ones are listed and not unpacked, and nothing
 * is ever extracted to a name. */
#ifndef ZIP_H
#define ZIP_H

#include "bytes.h"

struct zip_entry {
	const char *name; /* a file's path in the archive, terminated */
	uint64_t size;    /* bytes of the file */
	uint64_t header;  /* where its local header is */
	uint32_t crc;     /* CRC-32 of the file */
	bool plain;       /* neither compressed nor encrypted */
};

struct zip {
	const struct file_bytes *bytes;
	struct zip_entry *entries; /* by name */
	size_t count;
	struct buf names;
};

/* True when the n first bytes are those of a zip archive. */
bool zip_looks_like(const uint8_t *p, size_t n);
/* Read the directory of `bytes`, which must outlive it.  STATUS_BAD when it is damaged or a name stands twice,
 * STATUS_LIMIT for unreasonable sizes.  Free with zip_free in any case. */
int zip_open(struct zip *z, const struct file_bytes *bytes, struct error *e);
void zip_free(struct zip *z);
const struct zip_entry *zip_find(const struct zip *z, const char *name); /* NULL: none */
/* Where the entry's bytes begin: entry->size of them are inside the archive.  STATUS_BAD when they are not, or are not
 * plain. */
int zip_locate(const struct zip *z, const struct zip_entry *entry, uint64_t *at, struct error *e);

/* STATUS_BAD unless the n bytes at `at` have this CRC-32; `what` is for the message. */
int zip_check(const struct file_bytes *bytes, uint64_t at, uint64_t n, uint32_t crc, const char *what, struct error *e);

#endif
