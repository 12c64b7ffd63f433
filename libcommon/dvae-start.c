/* dvae-start.c - a codebook that starts from data.  With random weights the logits of all places share one large
 * part (the vectors behind the last ReLU are positive), a handful of codes wins everywhere, and short runs do not
 * recover.  Here each code starts as one of the encoder's own vectors. */
#include "dvae-fit.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "dvae-net.h"
#include "rng.h"

enum { ENTROPY_ROWS = 256, BISECTIONS = 40 };

struct start {
	size_t rows, C, K;
	float *x;    /* (rows, C), centred */
	double *mean; /* (C) */
	double *far; /* (rows) squared distance to the nearest prototype so far */
	size_t *at;  /* (K) rows that are prototypes */
	double *square; /* (K) |prototype|^2 */
};

static double distance(const float *a, const float *b, size_t n)
{
	float sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

static void centre(struct start *s)
{
	for (size_t i = 0; i < s->rows * s->C; i++)
		s->mean[i % s->C] += s->x[i] / (double)s->rows;
	for (size_t i = 0; i < s->rows * s->C; i++)
		s->x[i] -= (float)s->mean[i % s->C];
}

/* The row where the running sum of `far` passes u of its total; any row when all are prototypes already. */
static size_t pick(const struct start *s, double u)
{
	double total = 0, sum = 0;
	for (size_t i = 0; i < s->rows; i++)
		total += s->far[i];
	for (size_t i = 0; i < s->rows && total > 0; i++) {
		sum += s->far[i];
		if (sum > u * total)
			return i;
	}
	size_t i = (size_t)(u * (double)s->rows);
	return i < s->rows ? i : s->rows - 1;
}

/* Drawn one after the other with probability proportional to the squared distance from those there are. */
static void choose(struct start *s, uint64_t seed)
{
	for (size_t i = 0; i < s->rows; i++)
		s->far[i] = 1;
	for (size_t k = 0; k < s->K; k++) {
		const float *p = s->x + s->C * (s->at[k] = pick(s, rng_unit(seed, RNG_INIT, 1, k)));
		s->square[k] = 0;
		for (size_t c = 0; c < s->C; c++)
			s->square[k] += (double)p[c] * p[c];
		for (size_t i = 0; i < s->rows; i++) {
			double far = distance(s->x + s->C * i, p, s->C);
			s->far[i] = k == 0 || far < s->far[i] ? far : s->far[i];
		}
	}
}

/* Entropy of softmax(scale * score). */
static double entropy_of(const double *score, size_t n, double scale)
{
	double top = -DBL_MAX, sum = 0, weighted = 0;
	for (size_t k = 0; k < n; k++)
		top = fmax(top, score[k]);
	for (size_t k = 0; k < n; k++) {
		double x = scale * (score[k] - top), p = exp(x);
		sum += p;
		weighted += p * x;
	}
	return log(sum) - weighted / sum;
}

/* The scale at which posteriors have the wanted mean entropy over some rows that are no prototypes themselves. */
static double find_scale(const struct start *s, double entropy, double *scores)
{
	size_t n = s->rows < ENTROPY_ROWS ? s->rows : ENTROPY_ROWS;
	for (size_t i = 0; i < n; i++) {
		const float *x = s->x + s->C * (i * s->rows / n);
		for (size_t k = 0; k < s->K; k++)
			scores[i * s->K + k] = -0.5 * distance(x, s->x + s->C * s->at[k], s->C);
	}
	double low = -30, high = 30; /* of ln scale */
	for (int step = 0; step < BISECTIONS; step++) {
		double middle = (low + high) / 2, mean = 0;
		for (size_t i = 0; i < n; i++)
			mean += entropy_of(scores + i * s->K, s->K, exp(middle)) / (double)n;
		if (mean > entropy)
			low = middle;
		else
			high = middle;
	}
	return exp(low);
}

static int put_encoder(struct dvae *d, const struct start *s, double scale, struct error *e)
{
	float *w = mem_alloc(s->K, (s->C + 1) * sizeof *w, e), *b = w + s->K * s->C;
	if (!w)
		return -1;
	for (size_t k = 0; k < s->K; k++) {
		const float *p = s->x + s->C * s->at[k];
		double bias = -0.5 * s->square[k];
		for (size_t c = 0; c < s->C; c++) {
			w[k * s->C + c] = (float)(scale * p[c]);
			bias -= s->mean[c] * p[c];
		}
		b[k] = (float)(scale * bias);
	}
	d->ops->put(d->dev, d->enc_out.w->w, w, s->K * s->C * sizeof *w);
	d->ops->put(d->dev, d->enc_out.b->w, b, s->K * sizeof *b);
	int status = device_check(d->ops, d->dev, e);
	free(w);
	return status;
}

/* Codebook vectors of unit variance, so that the decoder's first block sees what it is initialised for. */
static int put_decoder(struct dvae *d, const struct start *s, uint64_t seed, struct error *e)
{
	size_t I = (size_t)d->config.initial;
	float *project = mem_alloc(I * s->C, sizeof *project, e), *w = mem_alloc(I * s->K, sizeof *w, e);
	double squares = 0;
	int status = project && w ? 0 : -1;
	for (size_t k = 0; !status && k < s->K; k++)
		squares += s->square[k];
	double unit = squares > 0 ? sqrt((double)s->K / squares) : 0;
	if (!status)
		rng_normal(project, I * s->C, (float)unit, seed, RNG_INIT, 2);
	for (size_t i = 0; !status && i < I * s->K; i++) {
		const float *p = s->x + s->C * s->at[i % s->K], *q = project + i / s->K * s->C;
		w[i] = 0;
		for (size_t c = 0; c < s->C; c++)
			w[i] += p[c] * q[c];
	}
	if (!status) {
		d->ops->put(d->dev, d->dec_in.w->w, w, I * s->K * sizeof *w);
		status = device_check(d->ops, d->dev, e);
	}
	free(project);
	free(w);
	return status;
}

int dvae_calibrate(struct dvae *d, const uint8_t *rgb, int n, double entropy, uint64_t seed, struct error *e)
{
	size_t S = (size_t)d->config.size;
	struct start s = {.rows = (size_t)n * (size_t)d->grid * (size_t)d->grid, .C = (size_t)d->enc_out.in,
	                  .K = (size_t)d->config.codes};
	s.x = mem_alloc(s.rows * s.C, sizeof *s.x, e);
	s.mean = mem_zero(s.C, sizeof *s.mean, e);
	s.far = mem_alloc(s.rows, sizeof *s.far, e);
	s.at = mem_alloc(s.K, sizeof *s.at, e);
	s.square = mem_alloc(s.K, sizeof *s.square, e);
	double *scores = mem_alloc(s.K * ENTROPY_ROWS, sizeof *scores, e);
	int status = s.x && s.mean && s.far && s.at && s.square && scores ? 0 : -1;
	if (!status) {
		d->ops->put(d->dev, d->rgb, rgb, 3 * S * S * (size_t)n);
		dvae_forward_encoder(d, n);
		d->ops->get(d->dev, s.x, d->enc_last, s.rows * s.C * sizeof *s.x);
		centre(&s);
		choose(&s, seed);
		status = put_encoder(d, &s, find_scale(&s, entropy, scores), e) || put_decoder(d, &s, seed, e) ? -1 : 0;
	}
	free(s.x);
	free(s.mean);
	free(s.far);
	free(s.at);
	free(s.square);
	free(scores);
	return status;
}
