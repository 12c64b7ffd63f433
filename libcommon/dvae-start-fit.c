/* dvae-start-fit.c - the last step of a start from data: the decoder's last convolution is the least-squares fit of the
 * pictures from the features before it, which the hard codes give. */
#include <math.h>
#include <stdlib.h>

#include "device.h"
#include "dvae-net.h"
#include "dvae-start.h"

/* Sums over all places: features f (C, after the last ReLU), targets t (3ss logits of a block's pixels). */
struct fit {
	size_t n, C, T;   /* places; features; 6ss, of which the first half is fitted (mu) and the rest is 0 (ln b) */
	float *gram;      /* device (C, C) sum f f' */
	float *cross;     /* device (T, C) sum t f' */
	float *f_sum, *t_sum; /* device (C), (T) */
	double *squares;  /* host (T / 2) sum t^2 */
};

static float logit(float x)
{
	return logf(x / (1 - x));
}

/* Add the places of the n pictures of one batch, decoded from hard codes; host: (rows, T + T / 2). */
static void fit_add(struct fit *fit, struct dvae *d, int n, float *host)
{
	const struct ops *o = d->ops;
	size_t rows = (size_t)n * (size_t)(d->side * d->side), half = fit->T / 2, tokens = (size_t)n * (size_t)(d->grid * d->grid);
	dvae_forward_encoder(d, n);
	o->argmax(d->dev, d->argmax, d->logits, tokens, (int)d->config.codes);
	o->onehot(d->dev, d->z, d->argmax, tokens, (int)d->config.codes);
	dvae_forward_decoder(d, n);
	float *phi = host + rows * fit->T; /* (rows, T / 2) */
	o->get(d->dev, phi, d->patches, rows * half * sizeof *phi);
	for (size_t i = 0; i < rows * fit->T; i++) {
		size_t t = i % fit->T;
		host[i] = t < half ? logit(phi[i / fit->T * half + t]) : 0;
		if (t < half)
			fit->squares[t] += (double)host[i] * host[i];
	}
	o->put(d->dev, d->out_patches, host, rows * fit->T * sizeof *host);
	o->cast(d->dev, d->dt, d->out_patches, rows * fit->T, 1, 0);
	o->linear_bwd(d->dev, NULL, fit->cross, fit->t_sum, d->dt, d->dec_last, d->dec_out.w->t, rows, (int)fit->C,
	              (int)fit->T, 0);
	o->linear_bwd(d->dev, NULL, fit->gram, fit->f_sum, d->dec_last, d->dec_last, d->dec_out.w->t, rows, (int)fit->C,
	              (int)fit->C, 0);
	fit->n += rows;
}

/* In place: the lower triangle of a (n, n) becomes L, a = L L'.  0, or -1 when a is not positive definite. */
static int cholesky(double *a, size_t n)
{
	for (size_t j = 0; j < n; j++) {
		for (size_t k = 0; k < j; k++)
			for (size_t i = j; i < n; i++)
				a[i * n + j] -= a[i * n + k] * a[j * n + k];
		if (!(a[j * n + j] > 0))
			return -1;
		double root = sqrt(a[j * n + j]);
		for (size_t i = j; i < n; i++)
			a[i * n + j] /= root;
	}
	return 0;
}

/* x = (L L')^-1 x */
static void cholesky_solve(const double *l, double *x, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		for (size_t k = 0; k < i; k++)
			x[i] -= l[i * n + k] * x[k];
		x[i] /= l[i * n + i];
	}
	for (size_t i = n; i-- > 0;) {
		for (size_t k = i + 1; k < n; k++)
			x[i] -= l[k * n + i] * x[k];
		x[i] /= l[i * n + i];
	}
}

/* Covariance of the features with a ridge of a thousandth of its mean, factored. */
static int factor(const struct fit *fit, const float *gram, const float *f_sum, double *a)
{
	double trace = 0, n = (double)fit->n;
	for (size_t i = 0; i < fit->C * fit->C; i++)
		a[i] = gram[i] - (double)f_sum[i / fit->C] * f_sum[i % fit->C] / n;
	for (size_t i = 0; i < fit->C; i++)
		trace += a[i * fit->C + i];
	for (size_t i = 0; i < fit->C; i++)
		a[i * fit->C + i] += 1e-3 * trace / (double)fit->C + 1e-12;
	return cholesky(a, fit->C);
}

/* Row t of the last convolution: mu = w f + b with least squares; for ln b a constant, the Laplace scale of the rest. */
static void solve_row(const struct fit *fit, const double *a, size_t t, const float *cross, const float *f_sum,
                      const float *t_sum, double *x, float *w, float *b)
{
	double n = (double)fit->n, rest = fit->squares[t] - (double)t_sum[t] * t_sum[t] / n, mean = t_sum[t] / n;
	for (size_t c = 0; c < fit->C; c++)
		x[c] = cross[t * fit->C + c] - (double)t_sum[t] * f_sum[c] / n;
	cholesky_solve(a, x, fit->C);
	for (size_t c = 0; c < fit->C; c++) {
		rest -= x[c] * (cross[t * fit->C + c] - (double)t_sum[t] * f_sum[c] / n);
		mean -= x[c] * f_sum[c] / n;
		w[t * fit->C + c] = (float)x[c];
	}
	b[t] = (float)mean;
	b[t + fit->T / 2] = (float)(0.5 * log(fmax(rest / n, 1e-4) / 2));
}

static int fit_solve(const struct fit *fit, struct dvae *d, struct error *e)
{
	size_t C = fit->C, T = fit->T;
	float *host = mem_alloc(C * C + T * C + C + T, sizeof *host, e), *w = mem_zero(T * C + T, sizeof *w, e);
	double *a = mem_alloc(C * C + C, sizeof *a, e);
	int status = host && w && a ? 0 : -1;
	if (!status) {
		float *cross = host + C * C, *f_sum = cross + T * C, *t_sum = f_sum + C;
		d->ops->get(d->dev, host, fit->gram, C * C * sizeof *host);
		d->ops->get(d->dev, cross, fit->cross, T * C * sizeof *host);
		d->ops->get(d->dev, f_sum, fit->f_sum, C * sizeof *host);
		d->ops->get(d->dev, t_sum, fit->t_sum, T * sizeof *host);
		if (factor(fit, host, f_sum, a) == 0) { /* else the features say nothing: chance stays */
			for (size_t t = 0; t < T / 2; t++)
				solve_row(fit, a, t, cross, f_sum, t_sum, a + C * C, w, w + T * C);
			status = params_put(&d->params, d->dec_out.w, BLOCK_W, w, e) ||
			         params_put(&d->params, d->dec_out.b, BLOCK_W, w + T * C, e) ? -1 : 0;
		}
		status = status || device_check(d->ops, d->dev, e) ? -1 : 0;
	}
	free(host);
	free(w);
	free(a);
	return status;
}

int start_decoder_end(const struct start_pictures *p, struct error *e)
{
	struct dvae *d = p->d;
	struct fit f = {.C = (size_t)d->dec_out.in, .T = (size_t)d->dec_out.out};
	size_t rows = (size_t)d->batch * (size_t)(d->side * d->side);
	float *host = mem_alloc(rows, (f.T + f.T / 2) * sizeof *host, e);
	f.squares = mem_zero(f.T / 2, sizeof *f.squares, e);
	f.gram = device_alloc(d->ops, d->dev, (f.C * f.C + f.T * f.C + f.C + f.T) * sizeof *f.gram, "start of the decoder", e);
	int n, status = host && f.squares && f.gram ? 0 : -1;
	if (!status) {
		f.cross = f.gram + f.C * f.C, f.f_sum = f.cross + f.T * f.C, f.t_sum = f.f_sum + f.C;
		for (size_t from = 0; from < p->n; from += (size_t)n) {
			n = start_put(p, from);
			fit_add(&f, d, n, host);
		}
		status = fit_solve(&f, d, e);
	}
	if (f.gram)
		d->ops->release(d->dev, f.gram);
	free(f.squares);
	free(host);
	return status;
}
