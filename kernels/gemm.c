/* gemm.c - the matrix product of the reference linear and conv: blocked for the caches, packed
 * panels, register tiles in GNU vectors for AVX-512, AVX2 + FMA or whatever the compiler's default is.
 *
 * A thread owns a block of the result at a time: it packs that block's rows of A (K_BLOCK deep, stays in
 * L2), multiplies with panels of B (one stays in L1) into a private f32 block, and finishes that with bias, ReLU
 * and conversion.  B is packed once by all threads; when there is only one block of rows
 * (decoding, small batches) each panel is packed just before its only use. */
#include "dot.h"
#include "gemm.h"

struct isa {
	int mr, nr;
	void (*tile)(float *c, size_t ldc, const float *a, const float *b, size_t k, int add);
	void (*few)(float *c, const float *a, size_t across, const float *b, size_t m, size_t k, int go_on);
	void (*pack_a)(float *out, const void *x, enum dtype t, size_t across, size_t along, size_t n, size_t k);
	void (*pack_b)(float *out, const void *x, enum dtype t, size_t across, size_t along, size_t n, size_t k);
};

/* Vectors of the packing loops, the same for every instruction set. */
typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float vec2 __attribute__((vector_size(8), aligned(4), may_alias));
#define ISA plain
#define TARGET
#define LANES 4
#define MR 4
#define NV 2
#include "gemm-isa.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MR 6
#define NV 2
#include "gemm-isa.h"

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define MR 12
#define NV 2
#include "gemm-isa.h"
#endif

static const struct isa *best_isa(void)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f"))
		return &isa_avx512;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return &isa_avx2;
#endif
	return &isa_plain;
}

enum {
	K_BLOCK = 256,      /* 16 KiB of a panel of B in L1 (AVX2) */
	M_BLOCK = 96,       /* 96 KiB of A in L2 */
	N_BLOCK = 768,      /* at most: 288 KiB of the private result */
	B_BYTES = 32 << 20, /* most packed B at a time */
	FEW_ROWS = 32,      /* up to here B is not worth packing for all */
	DOT_ROWS = 512,     /* with bf16 instructions: reading b as it is beats oneDNN up to 16 rows; up to here a row's bits must not
	                     * depend on the rows around it, which oneDNN's do: these are the rows of sampling */
	SUB = 64,           /* depth of a panel that is used at once, 8 KiB; divides K_BLOCK */
	ONE_THREAD = 1 << 16, /* fewer products: starting threads takes longer */
};

/* How one product is cut up. */
struct plan {
	const struct isa *isa;
	size_t mb, nb;       /* block of the result; multiples of mr, nr */
	size_t rows, cols;   /* number of blocks */
	size_t block_floats; /* per thread: A block, result block, and a panel of B */
	size_t panels;       /* of nr columns */
	int shared;          /* B is packed before, for all */
	float *packed_b;     /* [blocks of k][panels][K_BLOCK or the rest, nr] */
	float *blocks;       /* [threads][block_floats] */
};

static size_t at_most(size_t x, size_t limit)
{
	return x < limit ? x : limit;
}

static struct plan make_plan(const struct dev *d, const struct gemm *g)
{
	const struct isa *isa = best_isa();
	size_t mr = (size_t)isa->mr, nr = (size_t)isa->nr;
	struct plan p = { .isa = isa };
	p.mb = at_most(M_BLOCK, cpu_round_up(g->m, mr));
	p.nb = at_most(N_BLOCK, cpu_round_up(g->n, nr));
	size_t wanted = d->threads > 1 ? 4 * (size_t)d->threads : 1;
	/* Enough blocks to keep all threads busy; narrow ones pay by packing A again. */
	while (((g->m + p.mb - 1) / p.mb) * ((g->n + p.nb - 1) / p.nb) < wanted && p.nb > 8 * nr)
		p.nb = cpu_round_up(p.nb / 2, nr);
	while (((g->m + p.mb - 1) / p.mb) * ((g->n + p.nb - 1) / p.nb) < wanted && p.mb > 4 * mr)
		p.mb = cpu_round_up(p.mb / 2, mr);
	while (((g->m + p.mb - 1) / p.mb) * ((g->n + p.nb - 1) / p.nb) < wanted && p.nb > nr)
		p.nb = cpu_round_up(p.nb / 2, nr);
	p.rows = (g->m + p.mb - 1) / p.mb;
	p.cols = (g->n + p.nb - 1) / p.nb;
	p.panels = (g->n + nr - 1) / nr;
	p.shared = p.rows > 1;
	p.block_floats = cpu_round_up(p.mb * K_BLOCK + p.mb * p.nb + K_BLOCK * nr, 16);
	return p;
}

/* Where panel q of the k block that starts at k lies, kb deep. */
static float *packed_panel(const struct plan *p, size_t q, size_t k, size_t kb)
{
	return p->packed_b + (k * p->panels + q * kb) * (size_t)p->isa->nr;
}

static void pack_all_b(const struct dev *d, const struct plan *p, const struct gemm *g)
{
	/* Rows are read in long runs where they can be, in many tasks where not. */
	const size_t group = g->b.across == 1 ? 16 : 2, nr = (size_t)p->isa->nr;
	size_t groups = (p->panels + group - 1) / group, deep = (g->k + K_BLOCK - 1) / K_BLOCK;
#pragma omp parallel for num_threads(d->threads) schedule(static)
	for (size_t task = 0; task < groups * deep; task++) {
		size_t k = task / groups * K_BLOCK, q = task % groups * group, kb = at_most(K_BLOCK, g->k - k);
		p->isa->pack_b(packed_panel(p, q, k, kb),
			       at_const(g->b.p, g->b.type, q * nr * g->b.across + k * g->b.along), g->b.type, g->b.across,
			       g->b.along, at_most(group * nr, g->n - q * nr), kb);
	}
}

/* out = one block row of the result: + bias, ReLU, then stored in the result's type. */
static void finish_row(const struct gemm *g, size_t i, size_t j, size_t n, float *row)
{
	if (g->bias)
		for (size_t q = 0; q < n; q++)
			row[q] += g->bias[j + q];
	if (g->relu)
		for (size_t q = 0; q < n; q++)
			row[q] = row[q] > 0 ? row[q] : 0;
	void *c = at(g->c, g->c_type, i * g->ldc + j);
	const void *add = g->add ? at_const(g->add, g->c_type, i * g->ldc + j) : NULL;
	if (add && g->c_type == DT_F32) {
		const float *old = add;
		float *sum = c;
		for (size_t q = 0; q < n; q++)
			sum[q] = old[q] + row[q];
		return;
	}
	if (add) {
		float old[N_BLOCK];
		row_to_f32(old, add, g->c_type, n);
		for (size_t q = 0; q < n; q++)
			row[q] += old[q];
	}
	row_from_f32(c, g->c_type, row, n);
}

/* One block of the result at (i, j), m x n of it real. */
static void multiply_block(const struct plan *p, const struct gemm *g, float *work, size_t i, size_t j, size_t m, size_t n)
{
	const struct isa *isa = p->isa;
	size_t mr = (size_t)isa->mr, nr = (size_t)isa->nr, ldc = p->nb;
	float *a = work, *c = a + p->mb * K_BLOCK, *panel = c + p->mb * p->nb;
	if (!g->k)
		memset(c, 0, p->mb * p->nb * sizeof *c);
	for (size_t k = 0; k < g->k; k += K_BLOCK) {
		size_t kb = at_most(K_BLOCK, g->k - k);
		isa->pack_a(a, at_const(g->a.p, g->a.type, i * g->a.across + k * g->a.along), g->a.type, g->a.across,
			    g->a.along, m, kb);
		for (size_t r = 0; r < n; r += nr) {
			const float *b = panel;
			if (p->shared)
				b = packed_panel(p, (j + r) / nr, k, kb);
			else
				isa->pack_b(panel, at_const(g->b.p, g->b.type, (j + r) * g->b.across + k * g->b.along),
					    g->b.type, g->b.across, g->b.along, at_most(nr, n - r), kb);
			for (size_t q = 0; q < m; q += mr)
				isa->tile(c + q * ldc + r, ldc, a + q * kb, b, kb, k > 0);
		}
	}
	for (size_t q = 0; q < m; q++)
		finish_row(g, i + q, j, n, c + q * ldc);
}

static int multiply(struct dev *d, const char *op, const struct gemm *g)
{
	struct plan p = make_plan(d, g);
	size_t blocks = p.rows * p.cols;
	p.blocks = cpu_scratch(d, op, (size_t)d->threads * p.block_floats * sizeof(float));
	p.packed_b = p.shared ? cpu_scratch(d, op, p.panels * (size_t)p.isa->nr * g->k * sizeof(float)) : p.blocks;
	if (!p.blocks || !p.packed_b)
		return -1;
	if (p.shared)
		pack_all_b(d, &p, g);
#pragma omp parallel for num_threads(d->threads) schedule(dynamic, 1)
	for (size_t q = 0; q < blocks; q++) {
		size_t i = q / p.cols * p.mb, j = q % p.cols * p.nb;
		multiply_block(&p, g, p.blocks + (size_t)cpu_thread() * p.block_floats, i, j, at_most(p.mb, g->m - i),
			       at_most(p.nb, g->n - j));
	}
	return 0;
}

/* ---- few rows: each weight is used a few times only, so that reading them is what counts ---- */

/* Columns j .. j+n-1, n <= nr, of c[m, nr] in f32.  A panel is packed SUB deep, multiplied at once, and its rows are
 * asked for AHEAD elements before they are packed: they are too short and too many for the hardware to foresee. */
static void few_panel(const struct isa *isa, const struct gemm *g, const float *a, size_t across, float *c, size_t j,
		      size_t n)
{
	size_t nr = (size_t)isa->nr, size = g->m * nr;
	float *s = c + size, *panel = s + size;
	for (size_t k0 = 0; k0 < g->k; k0 += K_BLOCK) {
		size_t end = at_most(k0 + K_BLOCK, g->k);
		for (size_t k = k0, kb; k < end; k += kb) {
			kb = at_most(SUB, end - k);
			isa->pack_b(panel, at_const(g->b.p, g->b.type, j * g->b.across + k), g->b.type, g->b.across, 1, n, kb);
			isa->few(s, a + k, across, panel, g->m, kb, k > k0);
		}
		for (size_t i = 0; i < size; i++)
			c[i] = k0 ? s[i] + c[i] : s[i];
	}
}

static const float *rows_as_f32(struct dev *d, const char *op, const struct gemm *g, size_t *across)
{
	*across = g->a.across;
	if (g->a.type == DT_F32)
		return g->a.p;
	float *a = cpu_scratch(d, op, g->m * g->k * sizeof *a);
	for (size_t i = 0; a && i < g->m; i++)
		row_to_f32(a + i * g->k, at_const(g->a.p, g->a.type, i * g->a.across), g->a.type, g->k);
	*across = g->k;
	return a;
}

static int multiply_few(struct dev *d, const char *op, const struct gemm *g, int dots)
{
	const struct isa *isa = best_isa();
	size_t nr = (size_t)isa->nr, each = cpu_round_up(2 * g->m * nr + SUB * nr, 16), across = 0;
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *work = cpu_scratch(d, op, (size_t)d->threads * each * sizeof *work);
	const float *a = work && !dots ? rows_as_f32(d, op, g, &across) : NULL;
	size_t columns = work && (dots || a) ? g->n : 0;
#pragma omp parallel for num_threads(d->threads) schedule(dynamic, 1) if (g->m * g->n * g->k > ONE_THREAD)
	for (size_t j = 0; j < columns; j += nr) {
		float *c = work + (size_t)cpu_thread() * each;
		size_t n = at_most(nr, g->n - j);
		if (dots)
			cpu_dot_block(c, nr, g, j, n);
		else
			few_panel(isa, g, a, across, c, j, n);
		for (size_t i = 0; i < g->m; i++)
			finish_row(g, i, j, n, c + i * nr);
	}
	cpu_scratch_end(d, mark);
	return columns == g->n ? 0 : -1;
}

int cpu_gemm_dots(size_t rows, enum dtype t)
{
	return t == DT_BF16 && rows <= DOT_ROWS && cpu_dot_works();
}

int cpu_gemm(struct dev *d, const char *op, const struct gemm *g)
{
	int dots = g->a.type == g->b.type && cpu_gemm_dots(g->m, g->a.type);
	if ((dots || g->m <= FEW_ROWS) && g->k && g->a.along == 1 && g->b.along == 1)
		return multiply_few(d, op, g, dots);
	size_t step = B_BYTES / sizeof(float) / (g->k ? g->k : 1);
	step = step < N_BLOCK ? N_BLOCK : step / N_BLOCK * N_BLOCK;
	for (size_t j = 0; g->m && j < g->n; j += step) {
		struct gemm part = *g;
		struct scratch_mark mark = cpu_scratch_begin(d);
		part.n = at_most(step, g->n - j);
		part.b.p = at_const(g->b.p, g->b.type, j * g->b.across);
		part.c = at(g->c, g->c_type, j);
		part.add = g->add ? at_const(g->add, g->c_type, j) : NULL;
		part.bias = g->bias ? g->bias + j : NULL;
		int failed = multiply(d, op, &part);
		cpu_scratch_end(d, mark);
		if (failed)
			return -1;
	}
	return 0;
}

void cpu_column_sums(struct dev *d, const char *op, float *sums, const void *x, enum dtype t, size_t rows, size_t n)
{
	enum { ROWS = 128 }; /* per partial sum: fixed, so that the order is too */
	size_t parts = (rows + ROWS - 1) / ROWS;
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *partial = cpu_scratch(d, op, 2 * parts * n * sizeof *partial); /* [parts, n], and a row of each in f32 */
	if (partial) {
		memset(partial, 0, parts * n * sizeof *partial);
#pragma omp parallel for num_threads(d->threads)
		for (size_t p = 0; p < parts; p++) {
			float *s = partial + p * n, *row = partial + (parts + p) * n;
			for (size_t r = p * ROWS; r < rows && r < (p + 1) * ROWS; r++) {
				row_to_f32(row, at_const(x, t, r * n), t, n);
				for (size_t j = 0; j < n; j++)
					s[j] += row[j];
			}
		}
		for (size_t p = 0; p < parts; p++)
			for (size_t j = 0; j < n; j++)
				sums[j] += partial[p * n + j];
	}
	cpu_scratch_end(d, mark);
}
