/* dvae-start.h - inside dvae_calibrate: the pictures that it reads batch by batch, and its last step.  For dvae-start.c and
 * dvae-start-fit.c. */
#ifndef DVAE_START_H
#define DVAE_START_H

#include "dvae.h"

struct start_pictures {
	struct dvae *d;
	const uint8_t *rgb; /* (n, S, S, 3) */
	size_t n;
};
/* Those from picture `from` on, as many as a batch holds, become d's input; how many they are. */
int start_put(const struct start_pictures *p, size_t from);
/* The decoder's last convolution from the hard codes of all of them. */
int start_decoder_end(const struct start_pictures *p, struct error *e);

#endif
