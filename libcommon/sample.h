/* sample.h - drawing image tokens for captions (recipe G2-G4), a batch of sequences at a time with key/value caches:
 * the text states (and a given prefix of the picture) of each caption run once, then every image token is one
 * step of all sequences.  A sequence that ends makes place for the next one at once, whatever its caption.
 *
 *	sampler_submit(s, &record, n, &e);             samples 0 .. n-1 of a record wait their turn
 *	while ((r = sampler_step(s, &e)) > 0)          one token of every sample under way
 *		while (sampler_next(s, &x))            what has grown by a row in that step
 *			... x.tokens, complete when x.rows is the whole grid ...
 *
 * Sample k of a record depends only on the model, the record's text, key and prefix, k and the options: the draw at
 * position p uses (seed, sample_key(record, k), p).  Neither batch size nor order changes it; in 16 bits
 * where ops.h says that a row's bits do not depend on the batch. */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "dalle.h"

struct sample_options {
	double temperature; /* 0: greedy */
	int top_k;          /* 0: all */
	double top_p;       /* 1: all */
	double guidance;    /* logits = without + guidance (with - without), "without" being the empty caption; 1: off */
	int prefix_rows;    /* rows of the record's image tokens that are kept */
	uint64_t seed;
};

/* A sample, whole or under way. */
struct sample {
	const struct record *record; /* as submitted */
	uint32_t number;             /* within its record */
	const uint32_t *tokens;      /* (rows, W) */
	int rows;
};

struct sampler;
/* At most `batch` samples of at most `captions` records at once; batch samples in order, n of each record, are of
 * (batch + n - 2) / n + 1 records.  d is borrowed, and must not be planned for anything else, nor may its device
 * have another sampler. */
struct sampler *sampler_new(struct dalle *d, int batch, int captions, const struct sample_options *o, struct error *e);
void sampler_free(struct sampler *s); /* s may be NULL */

/* Whether there is room for another record whose samples could start with the next step. */
bool sampler_wants(const struct sampler *s);
/* Nothing waits and nothing is under way. */
bool sampler_idle(const struct sampler *s);
/* Samples 0 .. n-1 of r, as dalle_check_record wants it, will be drawn after all that were submitted before.  r is
 * copied.  Only while sampler_wants. */
int sampler_submit(struct sampler *s, const struct record *r, int64_t n, struct error *e);
/* Start waiting samples as far as there is room, then draw one token of all: 1, 0 when the sampler is idle, -1. */
int sampler_step(struct sampler *s, struct error *e);
/* After a step: the next sample that has completed a row in it, in the order of submission; false when there is no
 * further one.  Samples complete in that order too, as all take the same number of steps.  *out is valid until
 * sampler_next says false. */
bool sampler_next(struct sampler *s, struct sample *out);

/* The number that stands for sample `number` of a record in the draws: of its key, or of its caption or text tokens when
 * it has no key. */
uint64_t sample_key(const struct record *r, uint32_t number);

#endif
