/* bench.c - rates of the heavy ops beside ceilings measured in the same run: large square products, memory copies,
 * zstd.  A figure, never a pass or fail.  Each row is the best of many runs within a short time, so that
 * a machine shared with others still shows what it can do; compare percentages, not runs.  With -j 1 the
 * clock is the thread's own CPU time, so that other programs disturb less.
 *
 *     bench [-j THREADS] [-t cpu|reference|all] [-m MILLISECONDS] [linear|conv|attention|memory]...
 * The table `reference` has no oneDNN; `all` uses oneDNN for f32 linear too. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include "../kernels/cpu.h"
#include "../libcommon/util.h"

static double budget = 0.25; /* seconds per figure */
static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void)
{
	struct timespec t;
	clock_gettime(clock_used, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct bench {
	const struct ops *o;
	struct dev *d[2]; /* f32, bf16 */
	float *f[4];      /* operands of both types */
	void *h[4];
	double ceiling[2]; /* GFLOP/s of large products, f32 and bf16 */
};

enum { FLOATS = 1 << 24 };

static void fill(struct bench *b)
{
	uint32_t state = 1;
	for (int i = 0; i < 4; i++) {
		b->f[i] = b->o->alloc(b->d[0], FLOATS * sizeof(float));
		b->h[i] = b->o->alloc(b->d[1], FLOATS * 2);
		if (!b->f[i] || !b->h[i]) {
			warn("out of memory");
			exit(STATUS_LIMIT);
		}
		for (size_t j = 0; j < FLOATS; j++) {
			state = state * 1664525 + 1013904223;
			b->f[i][j] = (float)(int32_t)state * 0x1p-31f;
		}
		b->o->cast(b->d[1], b->h[i], b->f[i], FLOATS, 1, 0);
	}
}

/* Seconds of the fastest run of `statement` within the budget, after one run to warm up. */
#define BEST(seconds, statement)                                                                   \
	do {                                                                                       \
		statement;                                                                         \
		double end_ = now() + budget;                                              \
		seconds = 1e30;                                                                    \
		do {                                                                               \
			double t_ = now();                                                 \
			statement;                                                                 \
			t_ = now() - t_;                                                   \
			seconds = t_ < seconds ? t_ : seconds;                                     \
		} while (now() < end_);                                                    \
	} while (0)

struct linear {
	const char *what;
	size_t rows;
	int in, out;
};

/* GFLOP/s of fwd, dx, dw in type t. */
static void linear_rates(const struct bench *b, int t, const struct linear *s, double rate[3])
{
	void *const *p = t ? b->h : (void *const *)b->f;
	double work = 2e-9 * (double)s->rows * s->in * s->out, sec;
	struct dev *d = b->d[t];
	BEST(sec, b->o->linear_fwd(d, p[0], p[1], p[2], NULL, s->rows, s->in, s->out, 0));
	rate[0] = work / sec;
	BEST(sec, b->o->linear_bwd(d, p[0], NULL, NULL, p[1], p[3], p[2], s->rows, s->in, s->out, 0));
	rate[1] = work / sec;
	BEST(sec, b->o->linear_bwd(d, NULL, b->f[0], NULL, p[1], p[3], p[2], s->rows, s->in, s->out, 0));
	rate[2] = work / sec;
}

static void conv_rates(const struct bench *b, int t, const int s[6], double rate[3])
{
	void *const *p = t ? b->h : (void *const *)b->f;
	double work = 2e-9 * s[0] * s[1] * s[2] * s[3] * s[4] * s[5] * s[5], sec;
	struct dev *d = b->d[t];
	BEST(sec, b->o->conv_fwd(d, p[0], p[1], p[2], NULL, s[0], s[1], s[2], s[3], s[4], s[5], 0));
	rate[0] = work / sec;
	BEST(sec, b->o->conv_bwd(d, p[0], NULL, NULL, p[1], p[3], p[2], s[0], s[1], s[2], s[3], s[4], s[5], 0));
	rate[1] = work / sec;
	BEST(sec, b->o->conv_bwd(d, NULL, b->f[0], NULL, p[1], p[3], p[2], s[0], s[1], s[2], s[3], s[4], s[5], 0));
	rate[2] = work / sec;
}

static void heading(const char *what)
{
	printf("\n%-44s %23s   %23s\n", what, "f32 GFLOP/s (% ceiling)", "bf16 GFLOP/s (% ceiling)");
	printf("%-44s %7s %7s %7s   %7s %7s %7s\n", "", "fwd", "dx", "dw", "fwd", "dx", "dw");
}

static void print_rates(const struct bench *b, const char *what, double rate[2][3])
{
	printf("%-44s", what);
	for (int t = 0; t < 2; t++) {
		for (int i = 0; i < 3; i++)
			printf(" %3.0f %2.0f%%", rate[t][i], 100 * rate[t][i] / b->ceiling[t]);
		printf("%s", t ? "\n" : "  ");
	}
	fflush(stdout);
}

static void measure_ceilings(struct bench *b)
{
	const struct linear square = { "", 2048, 2048, 2048 };
	double rate[3];
	for (int t = 0; t < 2; t++) {
		linear_rates(b, t, &square, rate);
		b->ceiling[t] = rate[0];
	}
#if HAVE_ONEDNN
	struct ops all = *b->o;
	struct bench c = *b;
	dnnl_override_all(&all);
	c.o = &all;
	linear_rates(&c, 0, &square, rate);
	b->ceiling[0] = rate[0] > b->ceiling[0] ? rate[0] : b->ceiling[0];
#endif
	printf("ceiling: product of 2048 x 2048 matrices          f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s\n", b->ceiling[0],
	       b->ceiling[1]);
}

static void bench_linear(const struct bench *b)
{
	static const struct linear shapes[] = {
		{ "square", 2048, 2048, 2048 },
		{ "qkv, 192 wide", 4096, 192, 576 },
		{ "mlp, 192 wide", 4096, 192, 768 },
		{ "mlp back, 192 wide", 4096, 768, 192 },
		{ "qkv, 256 wide", 8192, 256, 768 },
		{ "mlp, 256 wide", 8192, 256, 1024 },
		{ "mlp back, 256 wide", 8192, 1024, 256 },
		{ "qkv, 512 wide", 1024, 512, 1536 },
		{ "mlp, 512 wide", 4096, 512, 2048 },
		{ "decoding 64, 512 wide", 64, 512, 2048 },
		{ "decoding 8, 512 wide", 8, 512, 2048 },
		{ "decoding 1, 512 wide", 1, 512, 2048 },
	};
	heading("linear: rows x in -> out");
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		const struct linear *s = &shapes[i];
		double rate[2][3];
		char what[64];
		snprintf(what, sizeof what, "%s: %zu x %d -> %d", s->what, s->rows, s->in, s->out);
		for (int t = 0; t < 2; t++)
			linear_rates(b, t, s, rate[t]);
		print_rates(b, what, rate);
	}
}

static void bench_conv(const struct bench *b)
{
	static const int shapes[][6] = { /* N H W in out k */
		{ 32, 64, 64, 3, 32, 7 }, { 32, 64, 64, 32, 32, 3 }, { 32, 32, 32, 32, 64, 3 },
		{ 32, 16, 16, 64, 64, 3 }, { 64, 16, 16, 128, 128, 3 }, { 64, 8, 8, 64, 64, 3 },
		{ 64, 8, 8, 256, 64, 3 }, { 64, 8, 8, 64, 256, 3 }, { 64, 8, 8, 256, 256, 3 },
		{ 64, 8, 8, 256, 512, 1 }, { 64, 8, 8, 64, 256, 1 }, { 1, 64, 64, 512, 128, 3 }, { 1, 32, 32, 2048, 512, 1 },
	};
	heading("conv: N x H x W x in -> out, kernel");
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		const int *s = shapes[i];
		double rate[2][3];
		char what[64];
		snprintf(what, sizeof what, "%d x %d x %d x %d -> %d, %d", s[0], s[1], s[2], s[3], s[4], s[5]);
		for (int t = 0; t < 2; t++)
			conv_rates(b, t, s, rate[t]);
		print_rates(b, what, rate);
	}
}

static double allowed_pairs(const struct attn_mask *m)
{
	double n = 0;
	for (int q = 0; q < attn_length(m); q++)
		for (int k = 0; k < attn_length(m); k++)
			n += attn_allowed(m, q, k);
	return n;
}

/* Seconds of one layer forward and backward in type t, for B sequences of H heads of D. */
static void attention_seconds(const struct bench *b, int t, const struct attn_mask *m, const int n[3], double sec[2])
{
	void *const *p = t ? b->h : (void *const *)b->f;
	size_t states = (size_t)n[0] * (size_t)attn_length(m), width = (size_t)n[1] * (size_t)n[2];
	float *lse = b->f[3] + states * width; /* after y, which is read; f[3] is no other operand */
	void *y = p[3];
	BEST(sec[0], b->o->attn_fwd(b->d[t], y, lse, p[1], n[0], n[1], n[2], m));
	BEST(sec[1], b->o->attn_bwd(b->d[t], p[0], p[2], p[1], y, lse, n[0], n[1], n[2], m));
}

/* One layer's attention alone at the paper's sequence: time as a share of the dense causal layer's, beside the share
 * of query-key pairs that its mask allows, below which no kernel of the same efficiency can get. */
static void bench_attention(const struct bench *b)
{
	static const int n[3] = { 1, 8, 64 };
	const struct {
		const char *what;
		struct attn_mask m;
	} rows[] = {
		{ "dense", { .kind = ATTN_CAUSAL, .n_text = 1280 } },
		{ "row", { .kind = ATTN_ROW, .n_text = 256, .grid_w = 32, .grid_h = 32 } },
		{ "column", { .kind = ATTN_COLUMN, .n_text = 256, .grid_w = 32, .grid_h = 32 } },
		{ "conv 11 x 11", { .kind = ATTN_CONV, .n_text = 256, .grid_w = 32, .grid_h = 32, .conv_k = 11 } },
	};
	double dense[2][2], all = allowed_pairs(&rows[0].m);
	printf("\n%-28s %-15s %26s   %26s\n", "attention, 8 heads of 64,", "", "f32 GFLOP/s, time to dense",
	       "bf16 GFLOP/s, time to dense");
	printf("%-28s %15s %12s %13s   %12s %13s\n", "256 text + 1024 image states", "pairs to dense", "fwd", "bwd", "fwd", "bwd");
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		double pairs = allowed_pairs(&rows[i].m), work = 2e-9 * pairs * n[0] * n[1] * n[2], sec[2];
		printf("%-28s %15.3f", rows[i].what, pairs / all);
		for (int t = 0; t < 2; t++) {
			attention_seconds(b, t, &rows[i].m, n, sec);
			if (i == 0)
				memcpy(dense[t], sec, sizeof sec);
			printf("   %4.0f  %.3f  %4.0f  %.3f", 2 * work / sec[0], sec[0] / dense[t][0], 5 * work / sec[1], sec[1] / dense[t][1]);
		}
		printf("\n");
		fflush(stdout);
	}
}

/* Bytes like picture tokens: 13 random bits in every 16. */
static void bench_zstd(const struct bench *b)
{
	size_t n = 1 << 22, room = ZSTD_compressBound(n), packed = 0;
	uint8_t *in = malloc(n), *out = malloc(room);
	double sec;
	for (size_t i = 0; in && i < n / 2; i++) {
		uint16_t token = (uint16_t)(float_bits(b->f[0][i]) >> 7 & 0x1fff);
		memcpy(in + 2 * i, &token, 2);
	}
	if (in && out) {
		BEST(sec, packed = ZSTD_compress(out, room, in, n, 3));
		printf("%-44s %7.0f MB/s, to %.1f %%\n", "zstd -3, tokens as 16 bits", 1e-6 * (double)n / sec,
		       100.0 * (double)packed / (double)n);
		BEST(sec, ZSTD_decompress(in, n, out, packed));
		printf("%-44s %7.0f MB/s\n", "zstd -d", 1e-6 * (double)n / sec);
	}
	free(in);
	free(out);
}

static void bench_memory(const struct bench *b)
{
	size_t n = FLOATS * sizeof(float);
	double sec;
	printf("\nmemory\n");
	BEST(sec, memcpy(b->f[0], b->f[1], n));
	printf("%-44s %7.1f GB/s read and as much written\n", "memcpy, 64 MiB, 1 thread", 1e-9 * (double)n / sec);
	BEST(sec, b->o->copy2d(b->d[0], b->f[0], 1 << 16, b->f[1], 1 << 16, 1 << 16, n >> 16));
	printf("%-44s %7.1f GB/s read and as much written\n", "copy, 64 MiB, all threads", 1e-9 * (double)n / sec);
	BEST(sec, memcpy(b->f[0], b->f[1], 1 << 14));
	printf("%-44s %7.1f GB/s read and as much written\n", "memcpy, 16 KiB (cache)", 1e-9 * (1 << 14) / sec);
	bench_zstd(b);
}

static const struct ops *table(const char *name)
{
	if (strcmp(name, "reference") == 0)
		return cpu_reference_ops();
#if HAVE_ONEDNN
	static struct ops all;
	if (strcmp(name, "all") == 0) {
		all = *cpu_ops();
		dnnl_override_all(&all);
		return &all;
	}
#endif
	return strcmp(name, "cpu") == 0 ? cpu_ops() : NULL;
}

static bool wanted(char **names, const char *name)
{
	bool none = !*names;
	for (; *names; names++)
		if (strcmp(*names, name) == 0)
			return true;
	return none;
}

int main(int argc, char **argv)
{
	struct bench b = { .o = cpu_ops() };
	char text[512];
	int threads = 0, c;
	struct error e = { 0 };
	int64_t v = 0;
	program_name = "bench";
	while ((c = getopt(argc, argv, "j:t:m:")) != -1) {
		if (c == 't')
			b.o = table(optarg);
		else if (c == '?' || parse_int(optarg, 1, 100000, &v, &e))
			return STATUS_USAGE;
		if (c == 'j')
			threads = (int)v;
		if (c == 'j' && threads == 1)
			clock_used = CLOCK_THREAD_CPUTIME_ID;
		if (c == 'm')
			budget = 1e-3 * (double)v;
	}
	if (!b.o)
		return STATUS_USAGE;
	for (int t = 0; t < 2; t++) {
		b.d[t] = b.o->open(0, (enum dtype)t, threads, text, sizeof text);
		if (!b.d[t]) {
			warn("%s", text);
			return STATUS_FAIL;
		}
	}
	b.o->describe(b.d[0], text, sizeof text);
	printf("%s\n", text);
	fill(&b);
	measure_ceilings(&b);
	if (wanted(argv + optind, "linear"))
		bench_linear(&b);
	if (wanted(argv + optind, "conv"))
		bench_conv(&b);
	if (wanted(argv + optind, "attention"))
		bench_attention(&b);
	if (wanted(argv + optind, "memory"))
		bench_memory(&b);
	return finish(b.o->sync(b.d[0], text, sizeof text) || b.o->sync(b.d[1], text, sizeof text) ? STATUS_FAIL : STATUS_OK);
}
