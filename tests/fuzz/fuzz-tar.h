/* fuzz-tar.h - for the targets tar and feed: the checksums of all blocks that look like headers of a tar archive are made
 * right, so that mutations of them get further than that. */
#ifndef FUZZ_TAR_H
#define FUZZ_TAR_H

#include "../../libcommon/tar.h"

static inline void fuzz_seal_tar(uint8_t *p, size_t n)
{
	for (uint8_t *block = p; n >= TAR_BLOCK; n -= TAR_BLOCK, block += TAR_BLOCK) {
		unsigned sum = 0;
		if (memcmp(block + 257, "ustar", 5) != 0 && block[155] != ' ')
			continue;
		memset(block + 148, ' ', 8);
		for (int i = 0; i < TAR_BLOCK; i++)
			sum += block[i];
		snprintf((char *)block + 148, 8, "%06o", sum);
		block[155] = ' ';
	}
}

#endif
