/* sample.h - drawing image tokens for captions (recipe G2-G4), a batch of sequences at a time with key/value
 * caches: the text states (and a given prefix of the picture) of each caption run once, then every image token is
 * one step of all sequences.
 *
 * Sample k of a record depends only on the model, the record's text, key and prefix, k and the options: the draw at
 * position p uses (seed, sample_key(record, k), p).  Neither batch size nor order changes it (in f32). */
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

/* One sequence to draw. */
struct sample_job {
	const struct record *record; /* borrowed; text tokens, and image tokens for a prefix */
	uint32_t number;             /* of the sample within its record */
	uint32_t *tokens;            /* (N_I) out */
};

struct sampler;
/* For at most `batch` jobs at once.  d is borrowed, and must not be planned for anything else. */
struct sampler *sampler_new(struct dalle *d, int batch, const struct sample_options *o, struct error *e);
void sampler_free(struct sampler *s);
/* Called when a row of the picture is complete in all jobs; its failure ends the run. */
typedef int sample_row_fn(void *context, int rows_done, struct error *e);
/* Draw jobs[0 .. n-1], n <= batch; records as dalle_check_record wants them.  Jobs of one record should stand
 * together: their caption then runs once.  row may be NULL. */
int sampler_run(struct sampler *s, const struct sample_job *jobs, int n, sample_row_fn *row, void *context,
                struct error *e);

/* The number that stands for sample `number` of a record in the draws: of its key, or of its caption or text tokens when
 * it has no key. */
uint64_t sample_key(const struct record *r, uint32_t number);

#endif
