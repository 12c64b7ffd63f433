/* dvae-start.c - a dVAE that starts from data.  With random weights the logits of all places share one large part
 * (the vectors behind the last ReLU are positive), a handful of codes wins everywhere, and short runs do not recover.
 * Here every residual path starts silent (its last convolution is 0), the codes are the means of clusters (Lloyd's
 * k-means) of the encoder's own vectors, and the decoder's last convolution is the least-squares fit of the pictures
 * from the hard codes (dvae-start-fit.c).  Where a token is one place from end to end (one group, a first convolution of kernel 1), that
 * convolution starts as the principal directions of the pixel blocks, each with both signs, so that the ReLU before the
 * logits loses nothing: the codes are then clusters of the blocks themselves, and training begins at the quality of
 * vector-quantised blocks and adds what the neighbours know. */
#include "dvae-fit.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "dvae-net.h"
#include "dvae-start.h"
#include "rng.h"

enum { ENTROPY_ROWS = 256, BISECTIONS = 40, LLOYD = 10, SEED_ROWS = 8 /* for each code */, POWER_STEPS = 12, PIECE = 32 };

struct start {
	struct start_pictures pictures;
	struct dvae *d; /* theirs */
	size_t tokens;  /* of a picture */
	bool paired;    /* the encoder's vectors are (+p, -p) for each of C projections p, behind a ReLU */
	size_t rows, F, C, K; /* F: the encoder's vector; C: what is clustered, F or the projections */
	float *x;       /* (rows, C) the encoder's vectors, centred */
	double *mean;   /* (C) */
	double *far;    /* (rows) squared distance to the nearest prototype so far */
	float *prototype; /* (K, C) */
	double *square; /* (K) |prototype|^2 */
	int32_t *nearest; /* (rows) */
	double *scores;   /* (ENTROPY_ROWS, K) */
};

int start_put(const struct start_pictures *p, size_t from)
{
	struct dvae *d = p->d;
	size_t bytes = 3 * (size_t)(d->config.size * d->config.size), left = p->n - from, most = (size_t)d->batch;
	size_t n = left < most ? left : most;
	d->ops->put(d->dev, d->rgb, p->rgb + from * bytes, bytes * n);
	return (int)n;
}

/* squared_distance, or less than it but at least `enough`: the first components are the largest where they are principal
 * ones. */
static double distance_up_to(const float *a, const float *b, size_t n, double enough)
{
	double sum = 0;
	for (size_t i = 0; i < n && sum < enough; i += PIECE)
		sum += squared_distance(a + i, b + i, n - i < PIECE ? n - i : PIECE);
	return sum;
}

/* The encoder's vectors of rows first .. first + n - 1 as what is clustered. */
static void fold(const struct start *s, size_t first, const float *vector, size_t n)
{
	for (size_t i = 0; i < n * s->C; i++) {
		const float *v = vector + i / s->C * s->F;
		size_t c = i % s->C;
		s->x[first * s->C + i] = s->paired ? v[2 * c] - v[2 * c + 1] : v[c];
	}
}

static int read_vectors(struct start *s, struct error *e)
{
	float *vector = mem_alloc((size_t)s->d->batch * s->tokens, s->F * sizeof *vector, e);
	int n;
	for (size_t from = 0; vector && from < s->pictures.n; from += (size_t)n) {
		n = start_put(&s->pictures, from);
		size_t rows = (size_t)n * s->tokens;
		dvae_forward_vectors(s->d, n);
		s->d->ops->get(s->d->dev, vector, s->d->enc_last, rows * s->F * sizeof *vector);
		fold(s, from * s->tokens, vector, rows);
	}
	for (size_t i = 0; vector && i < s->rows * s->C; i++)
		s->mean[i % s->C] += s->x[i] / (double)s->rows;
	for (size_t i = 0; vector && i < s->rows * s->C; i++)
		s->x[i] -= (float)s->mean[i % s->C];
	free(vector);
	return vector ? device_check(s->d->ops, s->d->dev, e) : -1;
}

/* ---- clusters ---- */

/* The row where the running sum of `far` passes u of its total; any row when all are prototypes already. */
static size_t pick(const struct start *s, size_t rows, double u)
{
	double total = 0, sum = 0;
	for (size_t i = 0; i < rows; i++)
		total += s->far[i];
	for (size_t i = 0; i < rows && total > 0; i++) {
		sum += s->far[i];
		if (sum > u * total)
			return i;
	}
	size_t i = (size_t)(u * (double)rows);
	return i < rows ? i : rows - 1;
}

static const float *spread_row(const struct start *s, size_t i, size_t n)
{
	return s->x + i * s->rows / n * s->C;
}

/* Prototype k is new: the distances of n rows spread over the data.  A row at distance r of the nearest prototype so
 * far has nothing nearer in one that is 2r away from that. */
static void draw_near(struct start *s, size_t k, size_t n)
{
	const float *p = s->prototype + k * s->C;
	double *apart = s->square; /* of p and each earlier prototype */
	for (size_t j = 0; j < k; j++)
		apart[j] = squared_distance(s->prototype + j * s->C, p, s->C);
#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < n; i++) {
		double least = k ? s->far[i] : DBL_MAX;
		if (k && apart[s->nearest[i]] >= 4 * least)
			continue;
		double far = distance_up_to(spread_row(s, i, n), p, s->C, least);
		if (far < least) {
			s->far[i] = far;
			s->nearest[i] = (int32_t)k;
		}
	}
}

/* First prototypes: of some rows for each, spread over the data, drawn one after the other with probability
 * proportional to the squared distance from those there are (k-means++). */
static void choose(struct start *s, uint64_t seed)
{
	size_t n = s->rows < SEED_ROWS * s->K ? s->rows : SEED_ROWS * s->K;
	for (size_t i = 0; i < n; i++)
		s->far[i] = 1;
	for (size_t k = 0; k < s->K; k++) {
		size_t i = pick(s, n, rng_unit(seed, RNG_INIT, 1, k));
		memcpy(s->prototype + k * s->C, spread_row(s, i, n), s->C * sizeof *s->prototype);
		draw_near(s, k, n);
	}
}

static void square_all(struct start *s)
{
	for (size_t k = 0; k < s->K; k++) {
		s->square[k] = 0;
		for (size_t c = 0; c < s->C; c++)
			s->square[k] += (double)s->prototype[k * s->C + c] * s->prototype[k * s->C + c];
	}
}

/* The nearest prototype of every row, in the memory of the encoder's last convolution: x p - |p|^2 / 2 is largest there. */
static int assign(struct start *s, struct error *e)
{
	struct dvae *d = s->d;
	size_t block = (size_t)d->batch * s->tokens;
	float *b = mem_alloc(s->K, sizeof *b, e);
	if (!b)
		return -1;
	square_all(s);
	for (size_t k = 0; k < s->K; k++)
		b[k] = (float)(-0.5 * s->square[k]);
	d->ops->put(d->dev, d->enc_out.w->w, s->prototype, s->K * s->C * sizeof *s->prototype);
	d->ops->put(d->dev, d->enc_out.b->w, b, s->K * sizeof *b);
	for (size_t from = 0; from < s->rows; from += block) {
		size_t n = s->rows - from < block ? s->rows - from : block;
		d->ops->put(d->dev, d->enc_last, s->x + from * s->C, n * s->C * sizeof *s->x);
		d->ops->linear_fwd(d->dev, d->logits, d->enc_last, d->enc_out.w->w, d->enc_out.b->w, n, (int)s->C, (int)s->K,
		                   OP_F32);
		d->ops->argmax(d->dev, d->argmax, d->logits, n, (int)s->K);
		d->ops->get(d->dev, s->nearest + from, d->argmax, n * sizeof *s->nearest);
	}
	free(b);
	return device_check(d->ops, d->dev, e);
}

/* Prototypes to the means of their rows; one without rows stays. */
static int move_to_means(struct start *s, struct error *e)
{
	double *sum = mem_zero(s->K, s->C * sizeof *sum, e);
	size_t *count = mem_zero(s->K, sizeof *count, e);
	for (size_t i = 0; sum && count && i < s->rows; i++) {
		size_t k = (size_t)s->nearest[i];
		count[k]++;
		for (size_t c = 0; c < s->C; c++)
			sum[k * s->C + c] += s->x[i * s->C + c];
	}
	for (size_t i = 0; sum && count && i < s->K * s->C; i++)
		if (count[i / s->C])
			s->prototype[i] = (float)(sum[i] / (double)count[i / s->C]);
	int status = sum && count ? 0 : -1;
	free(sum);
	free(count);
	return status;
}

static int cluster(struct start *s, uint64_t seed, struct error *e)
{
	choose(s, seed);
	for (int i = 0; i < LLOYD; i++)
		if (assign(s, e) || move_to_means(s, e))
			return -1;
	square_all(s);
	return 0;
}

/* ---- the encoder's end, the decoder's beginning ---- */

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

/* The scale at which posteriors have the wanted mean entropy over some rows. */
static double find_scale(const struct start *s, double entropy)
{
	double *scores = s->scores;
	size_t n = s->rows < ENTROPY_ROWS ? s->rows : ENTROPY_ROWS;
	for (size_t i = 0; i < n; i++) {
		const float *x = spread_row(s, i, n);
		for (size_t k = 0; k < s->K; k++)
			scores[i * s->K + k] = -0.5 * squared_distance(x, s->prototype + s->C * k, s->C);
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

/* Weights of projection c, or of its two signs. */
static void unfold(const struct start *s, float *w, size_t c, float value)
{
	if (!s->paired) {
		w[c] = value;
	} else {
		w[2 * c] = value;
		w[2 * c + 1] = -value;
	}
}

static int put_encoder(const struct start *s, double scale, struct error *e)
{
	struct dvae *d = s->d;
	float *w = mem_zero(s->K, (s->F + 1) * sizeof *w, e);
	if (!w)
		return -1;
	float *b = w + s->K * s->F;
	for (size_t k = 0; k < s->K; k++) {
		const float *p = s->prototype + s->C * k;
		double bias = -0.5 * s->square[k];
		for (size_t c = 0; c < s->C; c++) {
			unfold(s, w + k * s->F, c, (float)(scale * p[c]));
			bias -= s->mean[c] * p[c];
		}
		b[k] = (float)(scale * bias);
	}
	d->ops->put(d->dev, d->enc_out.w->w, w, s->K * s->F * sizeof *w);
	d->ops->put(d->dev, d->enc_out.b->w, b, s->K * sizeof *b);
	int status = device_check(d->ops, d->dev, e);
	free(w);
	return status;
}

/* (in, C) from what is clustered to the codebook's vectors: the first directions, or random ones. */
static void fill_projection(const struct start *s, float *project, size_t I, double unit, uint64_t seed)
{
	if (!s->paired) {
		rng_normal(project, I * s->C, (float)unit, seed, RNG_INIT, 2);
		return;
	}
	for (size_t i = 0; i < I * s->C; i++)
		project[i] = i / s->C == i % s->C ? (float)unit : 0;
}

/* Codebook vectors of unit variance, so that the decoder's first block sees what it is initialised for. */
static int put_decoder(const struct start *s, uint64_t seed, struct error *e)
{
	struct dvae *d = s->d;
	size_t I = (size_t)d->config.initial;
	float *project = mem_alloc(I * s->C, sizeof *project, e), *w = mem_alloc(I * s->K, sizeof *w, e);
	double squares = 0;
	int status = project && w ? 0 : -1;
	for (size_t k = 0; !status && k < s->K; k++)
		squares += s->square[k];
	double unit = squares > 0 ? sqrt((double)s->K / squares) : 0;
	if (!status)
		fill_projection(s, project, I, unit, seed);
	for (size_t i = 0; !status && i < I * s->K; i++) {
		const float *p = s->prototype + s->C * (i % s->K), *q = project + i / s->K * s->C;
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

/* ---- the first convolution, the residual paths ---- */

static void silence(struct dvae_block *blocks, int count, const struct dvae *d)
{
	for (int i = 0; i < count; i++) {
		const struct param *r = blocks[i].conv[3].w;
		struct place w = params_place(&d->params, r, BLOCK_W);
		d->ops->zero(d->dev, w.p, r->n * dtype_bytes(w.type));
	}
}

/* Rows 2i and 2i + 1 of the 1x1 convolution become + and - direction i of `direction` (n, in), with biases that
 * subtract `mean` (NULL: 0); what rows are left keep their start. */
static int put_signs(struct dvae *d, const struct dvae_conv *c, const double *direction, size_t n, const double *mean,
                     struct error *e)
{
	size_t in = (size_t)c->in;
	float *w = mem_alloc(c->w->n + c->b->n, sizeof *w, e), *b = w ? w + c->w->n : NULL;
	if (!w || params_get(&d->params, c->w, BLOCK_W, w, e) || params_get(&d->params, c->b, BLOCK_W, b, e)) {
		free(w);
		return -1;
	}
	for (size_t i = 0; i < n; i++) {
		double at = 0;
		for (size_t k = 0; k < in; k++) {
			w[2 * i * in + k] = (float)direction[i * in + k];
			w[(2 * i + 1) * in + k] = -w[2 * i * in + k];
			at += mean ? direction[i * in + k] * mean[k] : 0;
		}
		b[2 * i] = (float)-at;
		b[2 * i + 1] = (float)at;
	}
	int status = params_put(&d->params, c->w, BLOCK_W, w, e) || params_put(&d->params, c->b, BLOCK_W, b, e) ? -1 : 0;
	free(w);
	return status;
}

/* Rows of q (m, n) orthonormal, one after the other; a row that the others span becomes 0. */
static void orthonormalise(double *q, size_t m, size_t n)
{
	for (size_t i = 0; i < m; i++) {
		double *row = q + i * n, square = 0;
		for (size_t j = 0; j < i; j++) {
			double dot = 0;
			for (size_t k = 0; k < n; k++)
				dot += row[k] * q[j * n + k];
			for (size_t k = 0; k < n; k++)
				row[k] -= dot * q[j * n + k];
		}
		for (size_t k = 0; k < n; k++)
			square += row[k] * row[k];
		for (size_t k = 0; k < n; k++)
			row[k] = square > 1e-24 ? row[k] / sqrt(square) : 0;
	}
}

/* The m strongest directions of the symmetric a (n, n), into q (m, n), by powers of it; z (m, n) is scratch. */
static void principal(const double *a, size_t n, double *q, size_t m, double *z, uint64_t seed)
{
	for (size_t i = 0; i < m * n; i++)
		q[i] = rng_unit(seed, RNG_INIT, 3, i) - 0.5;
	orthonormalise(q, m, n);
	for (int step = 0; step < POWER_STEPS; step++) {
#pragma omp parallel for schedule(static)
		for (size_t i = 0; i < m; i++) {
			double *out = z + i * n;
			memset(out, 0, n * sizeof *out);
			for (size_t k = 0; k < n; k++)
				for (size_t j = 0; j < n; j++)
					out[j] += q[i * n + k] * a[k * n + j];
		}
		memcpy(q, z, m * n * sizeof *q);
		orthonormalise(q, m, n);
	}
}

/* Mean (n) and covariance (n, n) of the blocks of pixels that the first convolution sees. */
static int block_statistics(const struct start *s, size_t n, double *mean, double *covariance, struct error *e)
{
	struct dvae *d = s->d;
	const struct ops *o = d->ops;
	float *gram = device_alloc(o, d->dev, (n * n + n) * sizeof *gram, "statistics of pixels", e);
	float *host = mem_alloc(n * n + n, sizeof *host, e);
	double rows = 0;
	int count, status = gram && host ? 0 : -1;
	for (size_t from = 0; !status && from < s->pictures.n; from += (size_t)count) {
		count = start_put(&s->pictures, from);
		size_t places = (size_t)count * (size_t)(d->side * d->side);
		dvae_forward_patches(d, count);
		o->linear_bwd(d->dev, NULL, gram, gram + n * n, d->patches, d->patches, NULL, places, (int)n, (int)n, OP_F32);
		rows += (double)places;
	}
	if (!status) {
		o->get(d->dev, host, gram, (n * n + n) * sizeof *host);
		status = device_check(o, d->dev, e);
	}
	for (size_t i = 0; !status && i < n; i++)
		mean[i] = host[n * n + i] / rows;
	for (size_t i = 0; !status && i < n * n; i++)
		covariance[i] = host[i] / rows - mean[i / n] * mean[i % n];
	if (gram)
		o->release(d->dev, gram);
	free(host);
	return status;
}

/* The first convolution gets the C strongest directions of its blocks, each with both signs. */
static int start_paired(const struct start *s, uint64_t seed, struct error *e)
{
	size_t n = (size_t)s->d->enc_in.in;
	double *mean = mem_alloc(n, sizeof *mean, e), *covariance = mem_alloc(n, n * sizeof *covariance, e);
	double *q = mem_alloc(s->C, 2 * n * sizeof *q, e);
	int status = mean && covariance && q ? block_statistics(s, n, mean, covariance, e) : -1;
	if (!status) {
		principal(covariance, n, q, s->C, q + s->C * n, seed);
		status = put_signs(s->d, &s->d->enc_in, q, s->C, mean, e);
	}
	free(mean);
	free(covariance);
	free(q);
	return status;
}

/* The decoder's first block, too, passes its input on in both signs where it has the room. */
static int pass_signs(struct dvae *d, struct error *e)
{
	const struct dvae_conv *id = &d->dec[0].id;
	size_t n = (size_t)id->in;
	if (!id->out || id->out < 2 * id->in)
		return 0;
	double *unit = mem_zero(n, n * sizeof *unit, e);
	if (!unit)
		return -1;
	for (size_t i = 0; i < n; i++)
		unit[i * n + i] = 1;
	int status = put_signs(d, id, unit, n, NULL, e);
	free(unit);
	return status;
}

static int start_paths(struct start *s, uint64_t seed, struct error *e)
{
	struct dvae *d = s->d;
	silence(d->enc, d->count, d);
	silence(d->dec, d->count, d);
	if ((s->paired && start_paired(s, seed, e)) || pass_signs(d, e))
		return -1;
	params_refresh(&d->params);
	return device_check(d->ops, d->dev, e);
}

/* ---- all of it ---- */

static int take(struct start *s, struct error *e)
{
	s->x = mem_alloc(s->rows, s->C * sizeof *s->x, e);
	s->mean = mem_zero(s->C, sizeof *s->mean, e);
	s->far = mem_alloc(s->rows, sizeof *s->far, e);
	s->prototype = mem_alloc(s->K, s->C * sizeof *s->prototype, e);
	s->square = mem_alloc(s->K, sizeof *s->square, e);
	s->nearest = mem_alloc(s->rows, sizeof *s->nearest, e);
	s->scores = mem_alloc(s->K * ENTROPY_ROWS, sizeof *s->scores, e);
	return s->x && s->mean && s->far && s->prototype && s->square && s->nearest && s->scores ? 0 : -1;
}

static void give_back(struct start *s)
{
	free(s->x);
	free(s->mean);
	free(s->far);
	free(s->prototype);
	free(s->square);
	free(s->nearest);
	free(s->scores);
}

static struct start start_of(struct dvae *d, const uint8_t *rgb, size_t pictures)
{
	struct start s = {.pictures = {d, rgb, pictures}, .d = d, .tokens = (size_t)d->grid * (size_t)d->grid,
	                  .F = (size_t)d->enc_out.in, .K = (size_t)d->config.codes};
	size_t n = (size_t)d->enc_in.in;
	s.paired = d->config.groups == 1 && d->enc_in.kernel == 1;
	s.C = !s.paired ? s.F : n < s.F / 2 ? n : s.F / 2;
	s.rows = pictures * s.tokens;
	return s;
}

uint64_t dvae_calibrate_bytes(struct dvae *d, size_t pictures)
{
	struct start s = start_of(d, NULL, pictures);
	uint64_t row = s.C * sizeof *s.x + sizeof *s.far + sizeof *s.nearest;
	uint64_t code = s.C * (sizeof *s.prototype + sizeof(double) /* sums */) + ENTROPY_ROWS * sizeof *s.scores;
	return s.rows * row + s.K * code + (s.F + 1) * s.K * sizeof(float) /* the last convolution */;
}

int dvae_calibrate(struct dvae *d, const uint8_t *rgb, size_t pictures, double entropy, uint64_t seed, struct error *e)
{
	struct start s = start_of(d, rgb, pictures);
	int status = take(&s, e) || start_paths(&s, seed, e) || read_vectors(&s, e) || cluster(&s, seed, e) ||
	             put_encoder(&s, find_scale(&s, entropy), e) || put_decoder(&s, seed, e);
	if (!status) {
		params_refresh(&d->params);
		status = start_decoder_end(&s.pictures, e);
	}
	give_back(&s);
	return status ? -1 : 0;
}
