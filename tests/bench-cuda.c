/* bench-cuda.c - rates of the CUDA backend's ops beside ceilings measured in the same run: the product of two large
 * matrices and the copy of a large block.  --probe only says which device there is; status 1: none.  Whole updates and
 * sampling are bench-dalle's, run by bench-cuda.sh.
 *
 * Each group of rows is a process of its own: a failure ends that group only, even one that the device does not recover
 * from. */
#include "../kernels/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct ops *ops;
static struct dev *dev;
static struct ceilings {
	double gemm, copy; /* operations and bytes a second */
} *most; /* shared by all processes */

static void need(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "bench-cuda: %s\n", what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void finish(void)
{
	char err[300];
	need(ops->sync(dev, err, sizeof err) == 0, err);
}

/* Memory with values that are not zero: products of zeros take less power. */
static void *filled(size_t bytes)
{
	void *p = ops->alloc(dev, bytes), *h = malloc(1 << 20);
	need(p && h, "out of memory");
	for (size_t i = 0; i < 1 << 19; i++)
		((uint16_t *)h)[i] = (uint16_t)(0x3c00 + i * 40503 % 256 + (i % 3 ? 0x8000 : 0));
	for (size_t at = 0; at < bytes; at += 1 << 20)
		ops->put(dev, (char *)p + at, h, bytes - at < 1 << 20 ? bytes - at : 1 << 20);
	finish();
	free(h);
	return p;
}

/* Seconds of one call of run(), of the fastest of three rounds of at least a fifth of a second. */
static double seconds(void (*run)(void *), void *with)
{
	double best = 1e30;
	run(with);
	finish();
	for (int round = 0; round < 3; round++) {
		int n = 0;
		double start = now(), t;
		do {
			for (int i = 0; i < 10; i++)
				run(with);
			n += 10;
			finish();
			t = now() - start;
		} while (t < 0.2);
		best = t / n < best ? t / n : best;
	}
	return best;
}

struct product {
	size_t rows;
	int in, out, flags;
	void *x, *w, *y;
	float *dw, *b;
};

static void run_forward(void *with)
{
	struct product *p = with;
	ops->linear_fwd(dev, p->y, p->x, p->w, NULL, p->rows, p->in, p->out, p->flags);
}

static void run_biased(void *with)
{
	struct product *p = with;
	ops->linear_fwd(dev, p->y, p->x, p->w, p->b, p->rows, p->in, p->out, p->flags);
}

static void run_gelu(void *with)
{
	struct product *p = with;
	ops->linear_gelu_fwd(dev, p->y, p->y, p->x, p->w, p->b, p->rows, p->in, p->out, 0);
}

static void run_dx(void *with)
{
	struct product *p = with;
	ops->linear_bwd(dev, p->x, NULL, NULL, p->y, p->x, p->w, p->rows, p->in, p->out, p->flags);
}

static void run_dw(void *with)
{
	struct product *p = with;
	ops->linear_bwd(dev, NULL, p->dw, NULL, p->y, p->x, p->w, p->rows, p->in, p->out, p->flags);
}

static double product_rate(struct product *p, void (*run)(void *))
{
	return 2.0 * (double)p->rows * p->in * p->out / seconds(run, p);
}

static void bench_product(size_t rows, int in, int out, int flags, const char *name)
{
	size_t each = flags & OP_F32 ? 4 : 2, n = (size_t)in * (size_t)out;
	struct product p = {rows, in, out, flags, filled(each * rows * (size_t)in), filled(each * n), filled(each * rows * (size_t)out),
	                    filled(4 * n), filled(4 * (size_t)out)};
	static void (*const runs[])(void *) = {run_forward, run_biased, run_gelu, run_dx, run_dw};
	static const char *const names[] = {"forward", "with bias", "and GELU", "dx", "dw"};
	if (most->gemm == 0)
		most->gemm = product_rate(&p, run_forward);
	for (int i = 0; i < 5; i++) {
		if (flags & OP_F32 && runs[i] == run_gelu)
			continue;
		double rate = product_rate(&p, runs[i]);
		printf("  %-28s %-9s %7.1f TFLOP/s  %3.0f %% of the ceiling\n", name, names[i], rate * 1e-12, 100 * rate / most->gemm);
	}
	ops->release(dev, p.x), ops->release(dev, p.w), ops->release(dev, p.y), ops->release(dev, p.dw), ops->release(dev, p.b);
}

/* ---- decoding: products of a few rows, which are the reading of their weights ---- */

enum { LAYERS = 24, PRODUCTS = 4 };
static const struct {
	const char *name;
	int in, out, flags;
} decoded[PRODUCTS] = {
	{"2048 -> 6144", 2048, 6144, 0}, {"2048 -> 2048, f32", 2048, 2048, OP_OUT_F32}, {"2048 -> 8192, GELU", 2048, 8192, 0},
	{"8192 -> 2048, f32", 8192, 2048, OP_OUT_F32},
};

struct step {
	size_t rows;
	int from, to; /* which products */
	int id;       /* of the recording */
	void *x, *y, *u;
	char *w;      /* every layer has its own, more than caches hold */
	float *b;
};

/* Queues a step's products, or only counts the bytes of their weights. */
static size_t queue_step(const struct step *s, int count_only)
{
	size_t at = 0;
	for (int l = 0; l < LAYERS; l++)
		for (int i = s->from; i < s->to; i++) {
			int in = decoded[i].in, out = decoded[i].out;
			if (!count_only && out == 8192)
				ops->linear_gelu_fwd(dev, s->y, s->u, s->x, s->w + at, s->b, s->rows, in, out, 0);
			else if (!count_only)
				ops->linear_fwd(dev, s->y, s->x, s->w + at, s->b, s->rows, in, out, decoded[i].flags);
			at += 2 * (size_t)in * (size_t)out;
		}
	return at;
}

static void run_step(void *with)
{
	struct step *s = with;
	if (ops->replay(dev, s->id))
		return;
	ops->record_begin(dev, s->id);
	queue_step(s, 0);
	ops->record_end(dev, s->id);
}

static void print_step(struct step *s, const char *name)
{
	double rate = (double)queue_step(s, 1) / seconds(run_step, s);
	printf("  %zu rows, %-28s %8.0f GB/s  %3.0f %% of the copy\n", s->rows, name, 1e-9 * rate, 100 * rate / most->copy);
	s->id++;
}

static void bench_steps(void)
{
	struct step s = {.from = 0, .to = PRODUCTS, .x = filled(8 * 8192 * 2), .y = filled(8 * 8192 * 4), .u = filled(8 * 8192 * 2),
	                 .b = filled(8192 * 4)};
	s.w = filled(queue_step(&s, 1));
	for (s.rows = 1; s.rows <= 8; s.rows += 7) {
		for (int i = 0; i < PRODUCTS; i++) {
			s.from = i, s.to = i + 1;
			print_step(&s, decoded[i].name);
		}
		s.from = 0, s.to = PRODUCTS;
		print_step(&s, "all four in turn");
	}
	ops->release(dev, s.x), ops->release(dev, s.y), ops->release(dev, s.u), ops->release(dev, s.b), ops->release(dev, s.w);
}

struct block {
	void *a, *b;
	size_t bytes;
};

static void run_copy(void *with)
{
	struct block *b = with;
	ops->copy2d(dev, b->a, b->bytes, b->b, b->bytes, b->bytes, 1);
}

struct attention {
	int B, H, D;
	struct attn_mask m;
	void *qkv, *y, *dy, *dqkv;
	float *lse;
};

static void run_attention(void *with)
{
	struct attention *a = with;
	ops->attn_fwd(dev, a->y, a->lse, a->qkv, a->B, a->H, a->D, &a->m);
}

static void run_attention_both(void *with)
{
	struct attention *a = with;
	run_attention(with);
	ops->attn_bwd(dev, a->dqkv, a->dy, a->qkv, a->y, a->lse, a->B, a->H, a->D, &a->m);
}

/* The paper's sequence of 256 + 1024 states.  Operations are counted for the scores that the mask leaves. */
static void bench_attention(const char *name, struct attn_mask m)
{
	struct attention a = {.B = 8, .H = 32, .D = 64, .m = m};
	size_t S = (size_t)attn_length(&m), n = (size_t)(a.B * a.H * a.D) * S;
	double seen = 0;
	for (int q = 0; q < (int)S; q++)
		for (int k = 0; k < (int)S; k++)
			seen += attn_allowed(&m, q, k);
	a.qkv = filled(6 * n), a.y = filled(2 * n), a.dy = filled(2 * n), a.dqkv = filled(6 * n);
	a.lse = filled((size_t)(a.B * a.H) * S * 4);
	double one = 4 * seen * a.B * a.H * a.D, f = seconds(run_attention, &a), both = seconds(run_attention_both, &a);
	printf("  %-28s forward %7.3f ms %6.1f TFLOP/s, with backward %7.3f ms %6.1f TFLOP/s\n", name, 1e3 * f, 1e-12 * one / f,
	       1e3 * both, 1e-12 * 3.5 * one / both);
	ops->release(dev, a.qkv), ops->release(dev, a.y), ops->release(dev, a.dy), ops->release(dev, a.dqkv);
	ops->release(dev, a.lse);
}

/* One step of B sequences of a caption, 32 heads of 64, 256 text states; each call takes the next caption and the next
 * sequences of those that are kept, so that keys come from memory, as between the products of a model. */
enum { CAPTIONS = 64, SLOTS = 512, CALLS = 64, HEADS = 32, WIDTH = 64 };
struct decoding {
	int B, id;
	struct attn_mask m;
	struct attn_cache c;
	void *qkv, *y;
	int32_t *context, *slot, *pos; /* [CAPTIONS, SLOTS], [SLOTS], [SLOTS] */
};

/* CALLS steps, recorded: queueing them one by one takes longer than a small one does. */
static void run_decoding(void *with)
{
	struct decoding *x = with;
	if (ops->replay(dev, x->id))
		return;
	ops->record_begin(dev, x->id);
	for (int i = 0; i < CALLS; i++) {
		size_t first = (size_t)i * (size_t)x->B % SLOTS;
		ops->attn_step(dev, x->y, &x->c, x->qkv, x->context + (size_t)i * SLOTS, x->slot + first, x->pos + first, x->B, HEADS, WIDTH,
		               &x->m);
	}
	ops->record_end(dev, x->id);
}

static int32_t *put_ints(size_t n, int each, int first, int step)
{
	int32_t *h = malloc(n * sizeof *h), *p = ops->alloc(dev, n * sizeof *h);
	need(h && p, "out of memory");
	for (size_t i = 0; i < n; i++)
		h[i] = first + (int32_t)(i / (size_t)each) * step;
	ops->put(dev, p, h, n * sizeof *h);
	finish();
	free(h);
	return p;
}

/* Counted is what must be read and written at least: the text once, each sequence's image keys and values, qkv, y. */
static void bench_decoding(int id, const char *name, struct attn_mask m, int B)
{
	enum { POS = 999 };
	struct decoding x = {.B = B, .id = id, .m = m, .c.window = attn_window(&m)};
	size_t state = 2 * HEADS * WIDTH * 2, seen = 0;
	struct attn_mask image = m;
	image.n_text = 0;
	for (int k = 0; k < POS; k++)
		seen += attn_allowed(&image, POS, k) != 0;
	x.c.text = filled(CAPTIONS * (size_t)m.n_text * state), x.c.image = filled(SLOTS * (size_t)x.c.window * state);
	x.qkv = filled(SLOTS * state * 3 / 2), x.y = filled(SLOTS * state / 2);
	x.context = put_ints((size_t)CAPTIONS * SLOTS, SLOTS, 0, 1), x.slot = put_ints(SLOTS, 1, 0, 1), x.pos = put_ints(SLOTS, 1, POS, 0);
	double t = seconds(run_decoding, &x) / CALLS;
	double bytes = (double)state * ((double)m.n_text + B * ((double)seen + 3));
	printf("  %-12s %3d sequences %14.2f us %8.0f GB/s  %3.0f %% of the copy\n", name, B, 1e6 * t, 1e-9 * bytes / t,
	       100 * bytes / t / most->copy);
	ops->release(dev, x.c.text), ops->release(dev, x.c.image), ops->release(dev, x.qkv), ops->release(dev, x.y);
	ops->release(dev, x.context), ops->release(dev, x.slot), ops->release(dev, x.pos);
}

struct conv {
	int N, side, in, out, k;
	void *x, *w, *y;
	float *b, *dw;
};

static void run_conv(void *with)
{
	struct conv *c = with;
	ops->conv_fwd(dev, c->y, c->x, c->w, c->b, c->N, c->side, c->side, c->in, c->out, c->k, OP_RELU);
}

static void run_conv_bwd(void *with)
{
	struct conv *c = with;
	ops->conv_bwd(dev, c->x, c->dw, NULL, c->y, c->x, c->w, c->N, c->side, c->side, c->in, c->out, c->k, 0);
}

static void bench_conv(int side, int in, int out, int k)
{
	struct conv c = {16, side, in, out, k, NULL, NULL, NULL, NULL, NULL};
	size_t pixels = (size_t)(c.N * side) * (size_t)side, weights = (size_t)(in * out) * (size_t)(k * k);
	c.x = filled(2 * pixels * (size_t)in), c.y = filled(2 * pixels * (size_t)out), c.w = filled(2 * weights);
	c.b = filled(4 * (size_t)out), c.dw = filled(4 * weights);
	double one = 2 * (double)pixels * (double)weights, f = one / seconds(run_conv, &c), b = 2 * one / seconds(run_conv_bwd, &c);
	printf("  %3d x %-3d  %4d -> %-4d k %d      forward %6.1f TFLOP/s %3.0f %%, backward %6.1f TFLOP/s %3.0f %%\n",
	       side, side, in, out, k, 1e-12 * f, 100 * f / most->gemm, 1e-12 * b, 100 * b / most->gemm);
	ops->release(dev, c.x), ops->release(dev, c.y), ops->release(dev, c.w), ops->release(dev, c.b), ops->release(dev, c.dw);
}

struct update {
	struct adamw_tensor x;
	size_t n;
};

static void run_update(void *with)
{
	struct update *u = with;
	struct adamw a = {.lr = 1e-9f, .beta1 = 0.9f, .beta2 = 0.96f, .eps = 1e-6f, .g_scale = 1, .step = 2};
	ops->adamw(dev, &u->x, u->n, &a);
}

static void bench_update(const char *name, enum dtype w, enum dtype m, enum dtype v, enum dtype g)
{
	enum { N = 1 << 26 };
	struct update u = {{filled((size_t)N * 4), NULL, filled((size_t)N * 4), filled((size_t)N * 4),
			    filled((size_t)N * 4), w, m, v, g},
			   N};
	void *copy_of = w == DT_F32 ? filled((size_t)N * 2) : NULL;
	u.x.wt = copy_of;
	double bytes = 2.0 * (double)(dtype_bytes(w) + dtype_bytes(m) + dtype_bytes(v)) + (double)dtype_bytes(g) +
		       (copy_of ? 2 : 0);
	double rate = bytes * N / seconds(run_update, &u);
	printf("  AdamW, %-21s %8.0f GB/s  %3.0f %% of the copy\n", name, 1e-9 * rate, 100 * rate / most->copy);
	ops->release(dev, u.x.w), ops->release(dev, u.x.m), ops->release(dev, u.x.v), ops->release(dev, (void *)(uintptr_t)u.x.g);
	ops->release(dev, copy_of);
}

/* ---- groups of rows ---- */

static void ceilings(void)
{
	enum { N = 8192 };
	struct block b = {filled((size_t)1 << 30), filled((size_t)1 << 30), (size_t)1 << 30};
	struct product p = {N, N, N, 0, b.a, b.b, filled((size_t)2 * N * N), NULL, NULL};
	most->gemm = product_rate(&p, run_forward);
	printf("  product of 8192 x 8192 x 8192 %10.1f TFLOP/s\n", most->gemm * 1e-12);
	most->copy = 2.0 * (double)b.bytes / seconds(run_copy, &b);
	printf("  copy, read and written        %10.0f GB/s\n", 1e-9 * most->copy);
}

static void layers(void)
{
	bench_product(10240, 2048, 6144, 0, "10240 x 2048 -> 6144");
	bench_product(10240, 2048, 8192, 0, "10240 x 2048 -> 8192");
	bench_product(10240, 8192, 2048, 0, "10240 x 8192 -> 2048");
	bench_product(1536, 2048, 8192, OP_F32, "head, f32: 1536 x 2048 -> 8192");
}

static void attentions(void)
{
	bench_attention("dense", (struct attn_mask){ATTN_CAUSAL, 1280, 0, 0, 0, 0});
	bench_attention("row", (struct attn_mask){ATTN_ROW, 256, 32, 32, 0, 0});
	bench_attention("column", (struct attn_mask){ATTN_COLUMN, 256, 32, 32, 0, 0});
	bench_attention("convolution", (struct attn_mask){ATTN_CONV, 256, 32, 32, 11, 0});
}

static void decodings(void)
{
	static const int batches[] = {1, 16, 64, 512};
	for (int i = 0; i < 4; i++) {
		bench_decoding(3 * i, "row", (struct attn_mask){ATTN_ROW, 256, 32, 32, 0, 0}, batches[i]);
		bench_decoding(3 * i + 1, "column", (struct attn_mask){ATTN_COLUMN, 256, 32, 32, 0, 0}, batches[i]);
		bench_decoding(3 * i + 2, "convolution", (struct attn_mask){ATTN_CONV, 256, 32, 32, 11, 0}, batches[i]);
	}
}

static void convolutions(void)
{
	bench_conv(256, 3, 256, 7), bench_conv(256, 256, 64, 3), bench_conv(256, 64, 64, 3), bench_conv(128, 128, 128, 3);
	bench_conv(64, 256, 256, 3), bench_conv(32, 512, 512, 3);
}

static void updates(void)
{
	bench_update("f32", DT_F32, DT_F32, DT_F32, DT_F32);
	bench_update("bf16, 1-6-9, 0-6-10", DT_BF16, DT_1_6_9, DT_0_6_10, DT_BF16);
}

static const struct group {
	const char *name;
	void (*rows)(void);
} groups[] = {
	{"ceilings, bf16", ceilings},
	{"layers of 1.2b, 8 sequences", layers},
	{"products of a decoding step of 1.2b, bytes of the weights", bench_steps},
	{"attention, 8 sequences of 256 + 32 x 32 states, 32 heads of 64", attentions},
	{"decoding of sequences of one caption, 256 + 32 x 32 states, 32 heads of 64", decodings},
	{"convolutions of the paper's dVAE, 16 pictures", convolutions},
	{"optimizer, 67 million weights", updates},
};

static void open_device(void)
{
	char text[300] = "";
	int index = 0;
	ops = ops_find("cuda", &index, text, sizeof text);
	dev = ops ? ops->open(index, DT_BF16, 0, text, sizeof text) : NULL;
	need(dev != NULL, text);
}

static int run_group(const struct group *g)
{
	int status = 0;
	printf("%s\n", g->name);
	fflush(stdout);
	pid_t child = fork();
	need(child >= 0, "fork failed");
	if (child == 0) {
		open_device();
		g->rows();
		ops->close(dev);
		exit(0);
	}
	need(waitpid(child, &status, 0) == child, "waitpid failed");
	if (status)
		printf("  the rest of these rows failed: see above\n");
	return status != 0;
}

int main(int argc, char **argv)
{
	int failed = 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1 && !strcmp(argv[1], "--probe")) {
		char text[300] = "";
		open_device();
		ops->describe(dev, text, sizeof text);
		printf("%s\n", text);
		return 0;
	}
	most = mmap(NULL, sizeof *most, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(most != MAP_FAILED, "out of memory");
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
		failed += run_group(&groups[i]);
	return failed != 0;
}
