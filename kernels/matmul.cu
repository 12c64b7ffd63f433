/* matmul.cu - linear layers on a GPU.  16-bit products go through cuBLASLt, with bias and accumulation in its
 * epilogue; its choice of algorithm is asked for once per shape and kept.  What it declines, and all f32 products
 * (cuBLASLt's result of a row changes with the number of rows), are ours: gemm.cu; so are the layers of a few rows: few.cu.
 *
 * The library is looked for when a device is opened: where it is not installed, all products are ours. */
#include "few.cuh"
#include "gemm.cuh"
#include "products.cuh"
#include "wide.cuh"

#include <dlfcn.h>
#include <stdlib.h>

#ifndef PRODUCT_PLAN
#define PRODUCT_PLAN
struct product_plan {
	struct product_shape shape;
	int good; /* the library can */
#ifndef CUDA_EMULATED
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t a, b, d;
	cublasLtMatmulAlgo_t algo;
	size_t workspace;
#endif
};
#endif

/* ---- the library's functions ---- */

#ifdef CUDA_EMULATED
#if T_IS_F32
void products_open(struct dev *)
{
}

void products_close(struct dev *d)
{
	free(d->plans);
}
#endif
#else
#define LT_CALLS(X)                                                                                \
	X(Create) X(Destroy) X(GetVersion) X(Matmul) X(MatmulAlgoGetHeuristic) X(MatmulDescCreate)         \
	X(MatmulDescDestroy) X(MatmulDescSetAttribute) X(MatrixLayoutCreate) X(MatrixLayoutDestroy)        \
	X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy) X(MatmulPreferenceSetAttribute)
#define DECLARE_CALL(name) decltype(&cublasLt##name) name;
struct lt_calls {
	LT_CALLS(DECLARE_CALL)
};
extern struct lt_calls lt;

#if T_IS_F32
struct lt_calls lt;

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

static bool lt_load()
{
	void *so = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	bool all = so != NULL;
#define FIND_CALL(name) all = all && (*(void **)&lt.name = dlsym(so, "cublasLt" #name)) != NULL;
	LT_CALLS(FIND_CALL)
	return all;
}

void products_open(struct dev *d)
{
	if (d->without_lt)
		snprintf(d->products, sizeof d->products, "cuBLASLt is not wanted");
	else if (!lt_load())
		snprintf(d->products, sizeof d->products, "no " LIBRARY ": all products by our own kernels, which are slower");
	else if (cudaMalloc(&d->workspace, CUDA_WORKSPACE) != cudaSuccess || lt.Create(&d->lt) != CUBLAS_STATUS_SUCCESS)
		snprintf(d->products, sizeof d->products, LIBRARY " does not start: all products by our own kernels");
	else
		snprintf(d->products, sizeof d->products, "cuBLASLt %zu", lt.GetVersion());
	cudaGetLastError();
}

void products_close(struct dev *d)
{
	for (int i = 0; i < d->plan_count; i++) {
		struct product_plan *p = &d->plans[i];
		lt.MatrixLayoutDestroy(p->a);
		lt.MatrixLayoutDestroy(p->b);
		lt.MatrixLayoutDestroy(p->d);
		lt.MatmulDescDestroy(p->desc);
	}
	if (d->lt)
		lt.Destroy(d->lt);
	cudaFree(d->workspace);
	free(d->plans);
}
#endif
#endif

namespace FOR_TYPE {

#if !T_IS_F32
/* ---- the library ---- */

#ifdef CUDA_EMULATED
bool library_there(const struct dev *d)
{
	return !d->without_lt;
}

static bool plan_make(struct dev *, struct product_plan *, const struct library_product *)
{
	return true;
}

/* The definition. */
static bool plan_run(struct dev *, const struct product_plan *, const struct library_product *l)
{
	struct library_product q = *l;
	emu_host([q] {
		const struct product_shape &s = q.s;
		const T *a = (const T *)q.a, *b = (const T *)q.b;
		for (size_t j = 0; j < (size_t)s.n; j++)
			for (size_t i = 0; i < (size_t)s.m; i++) {
				float sum = 0;
				for (size_t k = 0; k < (size_t)s.k; k++)
					sum += to_f(a[s.a_transposed ? i * s.k + k : k * s.m + i]) *
					       to_f(b[s.b_transposed ? k * s.n + j : j * s.k + k]);
				size_t at = j * s.m + i;
				if (q.bias)
					sum += s.d_f32 ? ((const float *)q.bias)[i] : to_f(((const T *)q.bias)[i]);
				if (s.add)
					sum += s.d_f32 ? ((const float *)q.c)[at] : to_f(((const T *)q.c)[at]);
				if (s.d_f32)
					((float *)q.d)[at] = sum;
				else
					((T *)q.d)[at] = make<T>(sum);
			}
	});
	return true;
}
#else
bool library_there(const struct dev *d)
{
	return d->lt != NULL;
}

static void layout_make(cublasLtMatrixLayout_t *out, cudaDataType_t type, int transposed, int rows, int columns)
{
	int r = transposed ? columns : rows, c = transposed ? rows : columns;
	lt.MatrixLayoutCreate(out, type, (uint64_t)r, (uint64_t)c, r);
}

/* The bias counts as aligned as its pointer is when the library is asked. */
static void plan_describe(struct product_plan *p, const void *bias)
{
	const struct product_shape *s = &p->shape;
	cudaDataType_t t = T_DTYPE == DT_BF16 ? CUDA_R_16BF : CUDA_R_16F, dt = s->d_f32 ? CUDA_R_32F : t;
	cublasOperation_t ta = s->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, tb = s->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
	cublasLtEpilogue_t epilogue = s->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
	lt.MatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	lt.MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
	lt.MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
	lt.MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
	if (s->bias)
		lt.MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
	layout_make(&p->a, t, s->a_transposed, s->m, s->k);
	layout_make(&p->b, t, s->b_transposed, s->k, s->n);
	layout_make(&p->d, dt, 0, s->m, s->n);
}

/* Whether the library has an algorithm.  Parts of a sum are added in f32 only, not in the type of the result. */
static bool plan_make(struct dev *d, struct product_plan *p, const struct library_product *l)
{
	cublasLtMatmulPreference_t wish;
	cublasLtMatmulHeuristicResult_t found;
	size_t room = CUDA_WORKSPACE;
	uint32_t bytes = (uint32_t)p->shape.alignment, sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	int count = 0;
	plan_describe(p, l->bias);
	lt.MatmulPreferenceCreate(&wish);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &bytes, sizeof bytes);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &bytes, sizeof bytes);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &bytes, sizeof bytes);
	lt.MatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &bytes, sizeof bytes);
	cublasStatus_t e = lt.MatmulAlgoGetHeuristic(d->lt, p->desc, p->a, p->b, p->d, p->d, wish, 1, &found, &count);
	lt.MatmulPreferenceDestroy(wish);
	if (e != CUBLAS_STATUS_SUCCESS || count < 1 || found.state != CUBLAS_STATUS_SUCCESS)
		return false;
	p->algo = found.algo;
	p->workspace = found.workspaceSize;
	return true;
}

static bool plan_run(struct dev *d, const struct product_plan *p, const struct library_product *l)
{
	float one = 1, beta = l->s.add ? 1 : 0;
	if (l->bias)
		lt.MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &l->bias, sizeof l->bias);
	const void *c = l->s.add ? l->c : l->d;
	return lt.Matmul(d->lt, p->desc, &one, l->a, p->a, l->b, p->b, &beta, c, p->d, l->d, p->d, &p->algo, d->workspace,
	                 p->workspace, queue_of(d)) == CUBLAS_STATUS_SUCCESS;
}
#endif

/* The largest power of two, up to 256, that all addresses are multiples of. */
static int alignment_of(const struct library_product *l)
{
	uintptr_t all = (uintptr_t)l->a | (uintptr_t)l->b | (uintptr_t)l->d | (uintptr_t)l->c | (uintptr_t)l->bias | 256;
	return (int)(all & -all);
}

/* The plan of a shape, made when it is met first; NULL: no room for more. */
static struct product_plan *plan_of(struct dev *d, const struct library_product *l)
{
	int i = 0;
	while (i < d->plan_count && memcmp(&d->plans[i].shape, &l->s, sizeof l->s))
		i++;
	if (i == CUDA_PLANS)
		return NULL;
	if (!d->plans && !(d->plans = (struct product_plan *)calloc(CUDA_PLANS, sizeof *d->plans)))
		return NULL;
	if (i == d->plan_count) {
		d->plans[i].shape = l->s;
		d->plans[i].good = plan_make(d, &d->plans[i], l);
		d->plan_count++;
	}
	return &d->plans[i];
}

bool library_run(struct dev *d, struct library_product *l)
{
	if (!library_there(d) || d->error[0])
		return false;
	l->s.add = l->c != NULL;
	l->s.bias = l->bias != NULL;
	l->s.alignment = alignment_of(l);
	l->s.type = T_DTYPE;
	struct product_plan *p = plan_of(d, l);
	if (p && p->good)
		p->good = plan_run(d, p, l);
	return p && p->good;
}

/* The library takes a bias in the type of the result: for 16-bit ones it is rounded first. */
static const void *library_bias(struct dev *d, const float *b, int out, bool wide)
{
	if (!b || wide || !library_there(d))
		return b;
	void *rounded = cuda_scratch(d, (size_t)out * sizeof(T));
	if (rounded)
		cast(d, rounded, b, (size_t)out, 1, 0);
	return rounded;
}
#endif

/* ---- entries ---- */

static bool too_many(struct dev *d, size_t rows)
{
	if (rows > INT32_MAX)
		cuda_fail(d, "%zu rows, expected less than 2^31", rows);
	return rows > INT32_MAX;
}

/* y = x w^T + b, f32 where `wide`; + h where that is not NULL. */
static void forward(struct dev *d, void *y, bool wide, const float *h, const void *x, const void *w, const float *b,
                    size_t rows, int in, int out)
{
	if (few_rows(d, few{y, NULL, x, w, b, in, out, wide, h, 0, 0}, rows) || too_many(d, rows) || !rows)
		return;
#if !T_IS_F32
	struct library_product l = {product_of(out, (int)rows, in, 1, 0, wide), w, x, y, h, library_bias(d, b, out, wide)};
	if (library_run(d, &l))
		return;
#endif
	struct product p = {lines(x, in, true), lines(w, in, true), (int)rows, out, in, y, wide, h, false, b, 1};
	own_product(d, &p);
}

void linear_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, size_t rows, int in, int out,
		int flags)
{
	if (!T_IS_F32 && flags & OP_F32) {
		if (!for_bf16::wide_fwd(d, (float *)y, (const float *)x, (const float *)w, b, rows, in, out))
			for_f32::linear_fwd(d, y, x, w, b, rows, in, out, flags);
	} else {
		forward(d, y, flags & OP_OUT_F32, NULL, x, w, b, rows, in, out);
	}
}

void linear_add_fwd(struct dev *d, float *y, const float *h, const void *x, const void *w, const float *b, size_t rows,
                    int in, int out)
{
	forward(d, y, true, h, x, w, b, rows, in, out);
}

static void linear_dx(struct dev *d, void *dx, const void *dy, const void *w, int rows, int in, int out)
{
#if !T_IS_F32
	struct library_product l = {product_of(in, rows, out, 0, 0, 0), w, dy, dx, NULL, NULL};
	if (library_run(d, &l))
		return;
#endif
	struct product p = {lines(dy, out, true), lines(w, in, false), rows, in, out, dx, false, NULL, false, NULL, 1};
	own_product(d, &p);
}

static void linear_dw(struct dev *d, void *dw, bool dw_t, const void *dy, const void *x, int rows, int in, int out)
{
#if !T_IS_F32
	struct library_product l = {product_of(in, out, rows, 0, 1, !dw_t), x, dy, dw, dw, NULL};
	if (library_run(d, &l))
		return;
#endif
	struct product p = {lines(dy, out, false), lines(x, in, false), out, in, rows, NULL, false, NULL, false, NULL, 1};
	weight_gradient(d, dw, dw_t, &p, in, in, 1);
}

void linear_bwd(struct dev *d, void *dx, void *dw, float *db, const void *dy, const void *x, const void *w, size_t rows,
                int in, int out, int flags)
{
	if (!T_IS_F32 && flags & OP_F32) {
		if (dx && for_bf16::wide_dx(d, (float *)dx, (const float *)dy, (const float *)w, rows, in, out))
			dx = NULL;
		if (dw && for_bf16::wide_dw(d, (float *)dw, (const float *)dy, (const float *)x, rows, in, out))
			dw = NULL;
		for_f32::linear_bwd(d, dx, dw, db, dy, x, w, rows, in, out, flags);
		return;
	}
	if (too_many(d, rows) || !rows)
		return;
	if (dx)
		linear_dx(d, dx, dy, w, (int)rows, in, out);
	if (dw)
		linear_dw(d, dw, flags & OP_DW_T, dy, x, (int)rows, in, out);
	if (db)
		column_sums(d, db, dy, rows, out);
}

void linear_gelu_fwd(struct dev *d, void *y, void *u, const void *x, const void *w, const float *b, size_t rows, int in,
                     int out, int exact)
{
	if (few_rows(d, few{y, u, x, w, b, in, out, false, NULL, exact, 0}, rows))
		return;
	linear_fwd(d, u, x, w, b, rows, in, out, 0);
	gelu_fwd(d, y, u, rows * (size_t)out, exact); /* of u as it is stored: the backward sees the same */
}
}
