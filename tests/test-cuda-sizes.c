/* test-cuda-sizes.c - the launches of the CUDA backend at the sizes of the paper's models and beyond: too many blocks, too
 * much shared memory or too large a block is an error there as on a GPU.  The emulated device computes nothing here
 * (EMU_DRY of kernels/emu.h), so that no memory is needed. */
#include "check.h"
#include "emulated.h"
#include "../kernels/ops.h"

#include <stdlib.h>
#include <string.h>

static const struct ops *o;
static struct dev *d;

static void *some(size_t bytes)
{
	void *p = o->alloc(d, bytes);
	if (!p) {
		fprintf(stderr, "no memory for %zu bytes\n", bytes);
		exit(1);
	}
	return p;
}

static void went_well(const char *what)
{
	char err[256] = "";
	CHECK(o->sync(d, err, sizeof err) == 0, "%s: %s", what, err);
}

static void linear(size_t rows, int in, int out, int flags)
{
	size_t weights = (size_t)in * (size_t)out;
	void *x = some(4 * rows * (size_t)in), *y = some(4 * rows * (size_t)out), *w = some(4 * weights), *dw = some(4 * weights);
	float *b = some(4 * (size_t)out);
	o->linear_fwd(d, y, x, w, b, rows, in, out, flags);
	o->linear_bwd(d, x, dw, b, y, x, w, rows, in, out, flags & OP_F32);
	o->linear_gelu_fwd(d, y, y, x, w, b, rows, in, out, 0);
	o->linear_add_fwd(d, y, x, x, w, b, rows, in, out);
	went_well("linear");
}

static void attention(int B, int H, int D, struct attn_mask m)
{
	size_t n = (size_t)B * (size_t)attn_length(&m) * (size_t)H * (size_t)D;
	void *qkv = some(12 * n), *y = some(4 * n), *dqkv = some(12 * n);
	float *lse = some(4 * n / (size_t)D);
	o->attn_fwd(d, y, lse, qkv, B, H, D, &m);
	o->attn_bwd(d, dqkv, y, qkv, y, lse, B, H, D, &m);
	went_well("attention");
}

/* A transformer's ops on B sequences of 256 + 32 x 32 states, and its weights' update. */
static void check_transformer(int C, int H, int B)
{
	size_t rows = (size_t)B * 1280, n = rows * (size_t)C, weights = 12u * 64u * (size_t)C * (size_t)C;
	float *h = some(4 * n), *s = some(4 * rows), *table = some(4 * (size_t)C * 16384);
	void *x = some(4 * n);
	int32_t *ids = some(4 * rows);
	double *total = some(8);
	o->embed_fwd(d, h, table, ids, rows, C, 1);
	o->embed_bwd(d, table, h, ids, rows, C);
	o->norm_fwd(d, x, s, s, h, table, table, rows, C, 0);
	struct norm_next next = {x, table, 1};
	o->norm_bwd(d, h, table, table, x, h, table, s, s, rows, C, 1, OP_ADD | OP_FILTER, &next);
	o->norm_bwd(d, h, table, table, x, h, table, s, s, rows, C - 1, 1, 0, NULL);
	went_well("embeddings and norms");
	linear(rows, C, 3 * C, 0), linear(rows, C, C, 0), linear(rows, C, 4 * C, 0), linear(rows, 4 * C, C, 0);
	linear(rows, C, 8192, OP_OUT_F32), linear(rows, C, 16384, OP_F32);
	for (enum attn_kind k = ATTN_CAUSAL; k <= ATTN_CONV; k++)
		attention(B, H, C / H, (struct attn_mask){k, 256, 32, 32, 11, 0});
	float *logits = some(4 * rows * 16384);
	o->xent(d, s, logits, logits, ids, rows, 16384, 1, 0);
	went_well("xent");
	struct adamw a = {.lr = 1, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-6f, .g_scale = 1, .step = 1};
	void *w = some(4 * weights);
	struct adamw_tensor t = {w, w, w, w, w, DT_F32, DT_F32, DT_F32, DT_F32};
	o->adamw(d, &t, weights, &a);
	o->sumsq(d, total, w, DT_F32, weights), o->average(d, w, w, DT_F32, weights, 0.9f);
	o->cast(d, x, h, n, 1, OP_FILTER), o->gelu_bwd(d, x, NULL, x, x, rows, C, 0), o->gelu_bwd(d, x, table, x, x, rows, 4 * C, 0), o->gelu_bwd(d, x, table, x, x, rows, 4 * C - 1, 0), o->add(d, h, h, x, 1, n);
	went_well("optimizer and elementwise");
}

/* One step of B sequences with all masks that have a grid; dense ones are no longer bound by shared memory. */
static void decoding(int B, int H, int D)
{
	size_t part = (size_t)H * (size_t)D, rows = (size_t)B;
	int32_t *ids = some(4 * rows);
	void *qkv = some(12 * rows * part), *y = some(4 * rows * part);
	for (enum attn_kind k = ATTN_CAUSAL; k <= ATTN_CONV; k++) {
		struct attn_mask m = {k, 256, 32, 32, 11, 0}, larger = {k, 1024, 128, 128, 11, 1};
		struct attn_cache cache = {y, y, attn_window(&m)}, larger_cache = {y, y, attn_window(&larger)};
		o->attn_step(d, y, &cache, qkv, ids, ids, ids, B, H, D, &m);
		o->attn_step(d, y, &larger_cache, qkv, ids, ids, ids, B, H, D, &larger);
	}
	went_well("attn_step");
}

/* Decoding of as many sequences as a sampler takes. */
static void check_sampling(int C, int H, int B)
{
	int32_t *ids = some(4 * (size_t)B);
	float *logits = some(4 * (size_t)B * 8192);
	struct draw how = {.temperature = 1, .top_k = 100, .top_p = 0.9f};
	decoding(B, H, C / H);
	o->draw(d, ids, logits, some(8 * (size_t)B), ids, (size_t)B, 8192, &how);
	o->draw(d, ids, logits, some(8 * (size_t)B), ids, 1, 1 << 20, &how);
	o->argmax(d, ids, logits, (size_t)B, 8192);
	went_well("sampling");
	for (size_t rows = 1; rows <= 8; rows++) {
		linear(rows, C, 3 * C, 0), linear(rows, C, C, OP_OUT_F32), linear(rows, C, 4 * C, 0), linear(rows, 4 * C, C, OP_OUT_F32);
		linear(rows, C, 8192, OP_OUT_F32);
	}
}

static void conv(int N, int side, int in, int out, int k, int flags)
{
	size_t pixels = (size_t)N * (size_t)side * (size_t)side, weights = (size_t)in * (size_t)out * (size_t)(k * k);
	void *x = some(4 * pixels * (size_t)in), *y = some(4 * pixels * (size_t)out), *w = some(4 * weights);
	float *b = some(4 * (size_t)out), *dw = some(4 * weights);
	o->conv_fwd(d, y, x, w, b, N, side, side, in, out, k, flags);
	o->conv_bwd(d, x, dw, b, y, x, w, N, side, side, in, out, k, flags & OP_F32);
	went_well("convolution");
}

/* The dVAE of the paper on N pictures. */
static void check_dvae(int N)
{
	size_t pixels = (size_t)N * 65536, rows = (size_t)N * 1024;
	float *x = some(4 * pixels * 1024), *y = some(4 * pixels * 256), *logits = some(4 * rows * 8192), *sum = some(4 * 8192);
	uint8_t *bytes = some(pixels * 256);
	conv(N, 256, 3, 256, 7, 0), conv(N, 256, 256, 64, 3, OP_RELU), conv(N, 128, 512, 128, 3, 0), conv(N, 64, 1024, 256, 1, 0);
	conv(N, 32, 2048, 8192, 1, OP_F32), conv(N, 32, 8192, 128, 1, 0), conv(N, 256, 64, 256, 1, OP_F32), conv(N, 256, 256, 6, 1, 0);
	o->maxpool_fwd(d, y, bytes, x, N, 256, 256, 256), o->maxpool_bwd(d, x, y, bytes, N, 256, 256, 256);
	o->upsample_fwd(d, x, y, N, 128, 128, 256), o->upsample_bwd(d, y, x, N, 128, 128, 256);
	o->gumbel_fwd(d, logits, y, logits, rows, 8192, 1, 1, 1, 0), o->gumbel_fwd(d, logits, y, logits, rows, 8192, 0, 1, 1, 0);
	o->gumbel_bwd(d, logits, logits, logits, logits, rows, 8192, 1, 1);
	o->usage_fwd(d, sum, logits, rows, 8192), o->usage_bwd(d, logits, sum, logits, rows, 8192);
	o->logit_laplace(d, y, x, x, x, pixels, 0, 1), o->reconstruct(d, bytes, x, pixels, 1, 0);
	o->pixels(d, x, bytes, pixels, (float[]){1, 1, 1}, (float[]){0, 0, 0});
	went_well("discrete VAE");
}

/* CLIP's batch of 32,768 pairs. */
static void check_clip(int B)
{
	size_t n = (size_t)B * 512;
	float *x = some(4 * n), *sim = some(4 * (size_t)B * (size_t)B), *r = some(4 * (size_t)B);
	attention(B, 12, 64, (struct attn_mask){ATTN_FULL, 50, 0, 0, 0, 0});
	attention(B, 8, 64, (struct attn_mask){ATTN_CAUSAL, 77, 0, 0, 0, 0});
	o->space_to_depth(d, some((size_t)B * 4 * 150528), some((size_t)B * 4 * 150528), B, 224, 224, 3, 32);
	o->l2_fwd(d, x, r, x, (size_t)B, 512), o->l2_bwd(d, x, x, x, r, (size_t)B, 512);
	o->linear_fwd(d, sim, x, x, NULL, (size_t)B, 512, B, OP_F32);
	o->clip_xent(d, r, sim, r, sim, r, NULL, B, 1);
	went_well("CLIP");
}

static void check_all(enum dtype t)
{
	char err[256];
	d = o->open(0, t, 1, err, sizeof err);
	if (!CHECK(d != NULL, "opens: %s", err))
		return;
	check_transformer(2048, 32, 64), check_transformer(3968, 62, 512);
	check_sampling(2048, 32, 1 << 16), check_sampling(2048, 32, 1), check_sampling(3968, 62, 512), check_sampling(3968, 62, 1);
	decoding(15, 32, 64), decoding(16, 32, 64), decoding(512, 16, 128), decoding(1, 16, 128), decoding(33, 5, 20), decoding(3, 7, 256);
	check_dvae(256);
	check_clip(32768);
	o->close(d);
}

int main(int argc, char **argv)
{
	char err[256];
	int index;
	choose_plugin(argv[0]);
	setenv("EMU_DRY", "1", 1);
	o = ops_find("cuda", &index, err, sizeof err);
	if (!CHECK(o != NULL, "the emulated device: %s", err))
		return check_done();
	static const char *const shared[] = {"227", "163", "99"}; /* KiB a block can have on sm_90, sm_80, sm_86 */
	for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
		setenv("EMU_SHARED", shared[i], 1);
		check_all(DT_F32), check_all(DT_BF16);
	}
	setenv("DALLE_CUDA_LT", "0", 1); /* products that cuBLASLt declines */
	check_all(DT_F16);
	return check_done();
}
