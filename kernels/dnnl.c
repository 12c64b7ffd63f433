/* dnnl.c - oneDNN (2.x and 3.x C interface) behind the convolutions, and behind the linear entries in bf16 and
 * f16 where the CPU multiplies these itself.  The only file that knows the library.
 *
 * f32 linear entries stay with gemm.c: oneDNN's product adds in another order for other row
 * counts, and a row's bits must not depend on its batch (SPEED.md has the rates).  Types that oneDNN cannot do
 * fast here are converted to f32 scratch, computed, and rounded.
 *
 * Activations are NHWC.  oneDNN chooses the layout of convolution weights; they are reordered at each call, which
 * costs a few percent and keeps no copies that could go stale. */
#include "gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <dnnl.h>

/* ---- the two interfaces ---- */

struct layout {
	dnnl_memory_desc_t md;
};

#if DNNL_VERSION_MAJOR >= 3
#define MD(layout) ((layout) ? (layout)->md : NULL)
#define MD_POINTER const_dnnl_memory_desc_t

static dnnl_status_t layout_set(struct layout *l, int n, const dnnl_dims_t dims, const dnnl_dims_t strides,
				dnnl_data_type_t t)
{
	return strides ? dnnl_memory_desc_create_with_strides(&l->md, n, dims, t, strides) :
			 dnnl_memory_desc_create_with_tag(&l->md, n, dims, t, dnnl_format_tag_any);
}

static void layout_free(struct layout *l)
{
	if (l->md)
		dnnl_memory_desc_destroy(l->md);
}

static dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_prop_kind_t kind, const struct layout *in,
			     const struct layout *w, const struct layout *b, const struct layout *out,
			     const dnnl_dims_t pad, const_dnnl_primitive_attr_t attr, const_dnnl_primitive_desc_t hint)
{
	static const dnnl_dims_t one = { 1, 1 }, none = { 0 };
	if (kind == dnnl_backward_data)
		return dnnl_convolution_backward_data_primitive_desc_create(pd, e, dnnl_convolution_direct, MD(in), MD(w),
									    MD(out), one, none, pad, pad, hint, attr);
	if (kind == dnnl_backward_weights)
		return dnnl_convolution_backward_weights_primitive_desc_create(pd, e, dnnl_convolution_direct, MD(in),
									       MD(w), NULL, MD(out), one, none, pad, pad,
									       hint, attr);
	return dnnl_convolution_forward_primitive_desc_create(pd, e, kind, dnnl_convolution_direct, MD(in), MD(w), MD(b),
							      MD(out), one, none, pad, pad, attr);
}

static dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const struct layout *x, const struct layout *w,
			       const struct layout *b, const struct layout *y, const_dnnl_primitive_attr_t attr)
{
	return dnnl_matmul_primitive_desc_create(pd, e, MD(x), MD(w), MD(b), MD(y), attr);
}

static dnnl_status_t add_relu(dnnl_post_ops_t p)
{
	return dnnl_post_ops_append_eltwise(p, dnnl_eltwise_relu, 0, 0);
}

static dnnl_status_t add_sum(dnnl_post_ops_t p)
{
	return dnnl_post_ops_append_sum(p, 1, 0, dnnl_data_type_undef);
}
#else
#define MD(layout) ((layout) ? &(layout)->md : NULL)
#define MD_POINTER const dnnl_memory_desc_t *

static dnnl_status_t layout_set(struct layout *l, int n, const dnnl_dims_t dims, const dnnl_dims_t strides,
				dnnl_data_type_t t)
{
	return strides ? dnnl_memory_desc_init_by_strides(&l->md, n, dims, t, strides) :
			 dnnl_memory_desc_init_by_tag(&l->md, n, dims, t, dnnl_format_tag_any);
}

static void layout_free(struct layout *l)
{
	(void)l;
}

static dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_prop_kind_t kind, const struct layout *in,
			     const struct layout *w, const struct layout *b, const struct layout *out,
			     const dnnl_dims_t pad, const_dnnl_primitive_attr_t attr, const_dnnl_primitive_desc_t hint)
{
	static const dnnl_dims_t one = { 1, 1 };
	dnnl_convolution_desc_t c;
	dnnl_status_t s;
	if (kind == dnnl_backward_data)
		s = dnnl_convolution_backward_data_desc_init(&c, dnnl_convolution_direct, MD(in), MD(w), MD(out), one, pad, pad);
	else if (kind == dnnl_backward_weights)
		s = dnnl_convolution_backward_weights_desc_init(&c, dnnl_convolution_direct, MD(in), MD(w), NULL, MD(out), one,
								pad, pad);
	else
		s = dnnl_convolution_forward_desc_init(&c, kind, dnnl_convolution_direct, MD(in), MD(w), MD(b), MD(out), one,
						       pad, pad);
	return s == dnnl_success ? dnnl_primitive_desc_create(pd, &c, attr, e, hint) : s;
}

static dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const struct layout *x, const struct layout *w,
			       const struct layout *b, const struct layout *y, const_dnnl_primitive_attr_t attr)
{
	dnnl_matmul_desc_t m;
	dnnl_status_t s = dnnl_matmul_desc_init(&m, MD(x), MD(w), MD(b), MD(y));
	return s == dnnl_success ? dnnl_primitive_desc_create(pd, &m, attr, e, NULL) : s;
}

static dnnl_status_t add_relu(dnnl_post_ops_t p)
{
	return dnnl_post_ops_append_eltwise(p, 1, dnnl_eltwise_relu, 0, 0);
}

static dnnl_status_t add_sum(dnnl_post_ops_t p)
{
	return dnnl_post_ops_append_sum(p, 1);
}
#endif

static dnnl_data_type_t data_type(enum dtype t)
{
	return t == DT_F32 ? dnnl_f32 : t == DT_BF16 ? dnnl_bf16 : dnnl_f16;
}

/* ---- kernels: a primitive of one shape, kept ready with its memory objects ---- */

enum kind { MATMUL, CONV_FWD, CONV_DX, CONV_DW };
enum role { IN, WEIGHTS, BIAS, OUT, SCRATCH, ROLES };

/* MATMUL: out[a, c] from in[a, b] and weights[b, c], dims a b c; the transposed flags say that an operand is stored
 * the other way round.  Convolutions: dims N H W in out k. */
struct key {
	int kind, type, out_type, bias, relu, sum, in_transposed, w_transposed;
	int64_t dims[6];
};

struct kernel {
	struct key key;
	uint64_t used;         /* time of the last use */
	dnnl_primitive_t run;  /* NULL: oneDNN has nothing fast for this */
	dnnl_primitive_t turn; /* plain weights to or from oneDNN's layout; NULL: the same */
	dnnl_memory_t memory[ROLES], plain;
	size_t weight_bytes, scratch_bytes;
};

enum { KERNELS = 256 };

struct accelerator {
	dnnl_engine_t engine;
	dnnl_stream_t stream;
	uint64_t clock;
	int n;
	int fast[3]; /* per type of products: oneDNN computes it natively here */
	struct kernel kernel[KERNELS];
};

static void kernel_free(struct kernel *k)
{
	for (int i = 0; i < ROLES; i++)
		if (k->memory[i])
			dnnl_memory_destroy(k->memory[i]);
	if (k->plain)
		dnnl_memory_destroy(k->plain);
	if (k->run)
		dnnl_primitive_destroy(k->run);
	if (k->turn)
		dnnl_primitive_destroy(k->turn);
	*k = (struct kernel){ 0 };
}

static void accelerator_close(struct dev *d)
{
	struct accelerator *a = d->accelerator;
	for (int i = 0; i < a->n; i++)
		kernel_free(&a->kernel[i]);
	dnnl_stream_destroy(a->stream);
	dnnl_engine_destroy(a->engine);
	free(a);
}

static struct accelerator *accelerator_open(void)
{
	struct accelerator *a = calloc(1, sizeof *a);
	if (a && dnnl_engine_create(&a->engine, dnnl_cpu, 0) == dnnl_success) {
		if (dnnl_stream_create(&a->stream, a->engine, dnnl_stream_default_flags) == dnnl_success)
			return a;
		dnnl_engine_destroy(a->engine);
	}
	free(a);
	return NULL;
}

/* The library's state, made at its first use; NULL when it does not start (a build of it without a CPU engine). */
static struct accelerator *accelerator(struct dev *d)
{
#ifdef _OPENMP
	omp_set_num_threads(d->threads); /* of the calling thread: what oneDNN goes by */
#endif
	if (d->accelerator || d->accelerator_failed)
		return d->accelerator;
	struct accelerator *a = accelerator_open();
	d->accelerator_failed = !a;
	if (!a)
		return NULL;
	a->fast[DT_F32] = 1;
	a->fast[DT_BF16] = cpu_preferred(0) == DT_BF16;
	a->fast[DT_F16] = DNNL_VERSION_MAJOR >= 3 && (cpu_has("avx512_fp16") || cpu_has("amx_fp16"));
	d->accelerator = a;
	d->accelerator_close = accelerator_close;
	return a;
}

/* The layouts of one kernel; IN and OUT are those of the forward pass for all convolutions. */
static int make_layouts(struct layout l[ROLES], struct layout *plain, const struct key *k)
{
	const int64_t *n = k->dims;
	dnnl_data_type_t t = data_type((enum dtype)k->type), to = data_type((enum dtype)k->out_type);
	if (k->kind == MATMUL) {
		dnnl_dims_t in = { n[0], n[1] }, w = { n[1], n[2] }, b = { 1, n[2] }, out = { n[0], n[2] };
		dnnl_dims_t in_s = { n[1], 1 }, w_s = { n[2], 1 }, b_s = { n[2], 1 }, out_s = { n[2], 1 };
		dnnl_dims_t in_t = { 1, n[0] }, w_t = { 1, n[1] };
		return layout_set(&l[IN], 2, in, k->in_transposed ? in_t : in_s, t) ||
		       layout_set(&l[WEIGHTS], 2, w, k->w_transposed ? w_t : w_s, t) ||
		       layout_set(&l[BIAS], 2, b, b_s, dnnl_f32) || layout_set(&l[OUT], 2, out, out_s, to);
	}
	int64_t N = n[0], H = n[1], W = n[2], I = n[3], O = n[4], q = n[5];
	dnnl_dims_t in = { N, I, H, W }, in_s = { H * W * I, 1, W * I, I };
	dnnl_dims_t out = { N, O, H, W }, out_s = { H * W * O, 1, W * O, O };
	dnnl_dims_t w = { O, I, q, q }, w_s = { I * q * q, q * q, q, 1 }, b = { O }, b_s = { 1 };
	dnnl_data_type_t tw = k->kind == CONV_DW ? dnnl_f32 : t;
	return layout_set(&l[IN], 4, in, in_s, t) || layout_set(&l[OUT], 4, out, out_s, t) ||
	       layout_set(&l[WEIGHTS], 4, w, NULL, tw) || layout_set(&l[BIAS], 1, b, b_s, dnnl_f32) ||
	       layout_set(plain, 4, w, w_s, tw);
}

static int make_attributes(dnnl_primitive_attr_t *attr, const struct key *k)
{
	dnnl_post_ops_t post;
	if (dnnl_primitive_attr_create(attr) || dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user))
		return -1;
	if (dnnl_post_ops_create(&post))
		return -1;
	int failed = (k->relu && add_relu(post)) || (k->sum && add_sum(post)) || dnnl_primitive_attr_set_post_ops(*attr, post);
	dnnl_post_ops_destroy(post);
	return failed;
}

/* The forward pass whose gradients these are: its weights are of the input's type, where CONV_DW's are f32. */
static int make_hint(dnnl_primitive_desc_t *pd, const struct accelerator *a, const struct key *k, struct layout l[ROLES],
		     const dnnl_dims_t pad)
{
	const dnnl_dims_t w = { k->dims[4], k->dims[3], k->dims[5], k->dims[5] };
	struct layout weights = { 0 };
	int failed = layout_set(&weights, 4, w, NULL, data_type((enum dtype)k->type)) ||
		     pd_conv(pd, a->engine, dnnl_forward_training, &l[IN], &weights, NULL, &l[OUT], pad, NULL, NULL);
	layout_free(&weights);
	return failed;
}

static int make_descriptor(dnnl_primitive_desc_t *pd, const struct accelerator *a, const struct key *k,
			   struct layout l[ROLES], const_dnnl_primitive_attr_t attr)
{
	const struct layout *b = k->bias ? &l[BIAS] : NULL;
	const dnnl_dims_t pad = { (k->dims[5] - 1) / 2, (k->dims[5] - 1) / 2 };
	if (k->kind == MATMUL)
		return pd_matmul(pd, a->engine, &l[IN], &l[WEIGHTS], b, &l[OUT], attr);
	if (k->kind == CONV_FWD)
		return pd_conv(pd, a->engine, dnnl_forward_inference, &l[IN], &l[WEIGHTS], b, &l[OUT], pad, attr, NULL);
	dnnl_primitive_desc_t hint;
	if (make_hint(&hint, a, k, l, pad))
		return -1;
	int failed = pd_conv(pd, a->engine, k->kind == CONV_DX ? dnnl_backward_data : dnnl_backward_weights, &l[IN],
			     &l[WEIGHTS], NULL, &l[OUT], pad, attr, hint);
	dnnl_primitive_desc_destroy(hint);
	return failed;
}

/* oneDNN's own plain loops are slower than ours. */
static int is_reference(const_dnnl_primitive_desc_t pd)
{
	const char *name = "";
	dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
	return strncmp(name, "ref", 3) == 0;
}

static int make_turn(struct kernel *k, const struct accelerator *a, const struct layout *plain,
		     const_dnnl_primitive_desc_t pd)
{
	dnnl_primitive_desc_t turn;
	int out = k->key.kind == CONV_DW;
	if (k->key.kind == MATMUL)
		return 0;
	MD_POINTER own = dnnl_primitive_desc_query_md(pd, out ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
	if (dnnl_memory_desc_equal(own, MD(plain)))
		return 0;
	if (dnnl_memory_create(&k->plain, MD(plain), a->engine, DNNL_MEMORY_NONE) ||
	    dnnl_reorder_primitive_desc_create(&turn, out ? own : MD(plain), a->engine, out ? MD(plain) : own, a->engine, NULL))
		return -1;
	int failed = dnnl_primitive_create(&k->turn, turn);
	dnnl_primitive_desc_destroy(turn);
	return failed;
}

/* Memory objects without data; the layouts are the primitive's. */
static int make_memory(struct kernel *k, const struct accelerator *a, const struct layout l[ROLES],
		       const_dnnl_primitive_desc_t pd)
{
	MD_POINTER w = dnnl_primitive_desc_query_md(
		pd, k->key.kind == CONV_DW ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
	MD_POINTER s = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
	k->weight_bytes = dnnl_memory_desc_get_size(w);
	k->scratch_bytes = dnnl_memory_desc_get_size(s);
	return dnnl_memory_create(&k->memory[IN], MD(&l[IN]), a->engine, DNNL_MEMORY_NONE) ||
	       dnnl_memory_create(&k->memory[OUT], MD(&l[OUT]), a->engine, DNNL_MEMORY_NONE) ||
	       dnnl_memory_create(&k->memory[BIAS], MD(&l[BIAS]), a->engine, DNNL_MEMORY_NONE) ||
	       dnnl_memory_create(&k->memory[WEIGHTS], w, a->engine, DNNL_MEMORY_NONE) ||
	       dnnl_memory_create(&k->memory[SCRATCH], s, a->engine, DNNL_MEMORY_NONE);
}

static void kernel_make(struct kernel *k, const struct accelerator *a, const struct key *key)
{
	struct layout l[ROLES] = { 0 }, plain = { 0 };
	dnnl_primitive_attr_t attr = NULL;
	dnnl_primitive_desc_t pd = NULL;
	*k = (struct kernel){ .key = *key };
	int failed = make_layouts(l, &plain, key) || make_attributes(&attr, key) || make_descriptor(&pd, a, key, l, attr) ||
		     is_reference(pd) || make_turn(k, a, &plain, pd) || make_memory(k, a, l, pd) ||
		     dnnl_primitive_create(&k->run, pd);
	if (pd)
		dnnl_primitive_desc_destroy(pd);
	if (attr)
		dnnl_primitive_attr_destroy(attr);
	for (int i = 0; i < ROLES; i++)
		layout_free(&l[i]);
	layout_free(&plain);
	if (failed) { /* the entry stays, to say so at once the next time */
		kernel_free(k);
		k->key = *key;
	}
}

/* The kernel for key, made at its first use; NULL when oneDNN has nothing fast for it. */
static struct kernel *kernel_find(struct accelerator *a, const struct key *key)
{
	struct kernel *k = NULL, *oldest = a->kernel;
	if (!a->fast[key->type])
		return NULL;
	for (int i = 0; i < a->n && !k; i++) {
		if (!memcmp(&a->kernel[i].key, key, sizeof *key))
			k = &a->kernel[i];
		else if (a->kernel[i].used < oldest->used)
			oldest = &a->kernel[i];
	}
	if (!k) {
		k = a->n < KERNELS ? &a->kernel[a->n++] : oldest;
		kernel_free(k);
		kernel_make(k, a, key);
	}
	k->used = ++a->clock;
	return k->run ? k : NULL;
}

static dnnl_status_t turn_weights(const struct accelerator *a, const struct kernel *k, dnnl_memory_t from, dnnl_memory_t to)
{
	dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, from }, { DNNL_ARG_TO, to } };
	return dnnl_primitive_execute(k->turn, a->stream, 2, args);
}

/* Run with the given data; w is plain, read or (CONV_DW) written.  0, or -1 with the sticky error set. */
static int kernel_run(struct dev *d, const char *op, const struct kernel *k, const void *in, void *w, const float *b,
		      void *out)
{
	static const int arg[][ROLES] = {
		[MATMUL] = { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD },
		[CONV_FWD] = { DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD },
		[CONV_DX] = { DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, 0, DNNL_ARG_DIFF_DST, DNNL_ARG_SCRATCHPAD },
		[CONV_DW] = { DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, 0, DNNL_ARG_DIFF_DST, DNNL_ARG_SCRATCHPAD },
	};
	const struct accelerator *a = d->accelerator;
	struct scratch_mark mark = cpu_scratch_begin(d);
	void *own = k->turn ? cpu_scratch(d, op, k->weight_bytes) : w;
	void *data[ROLES] = { (void *)(uintptr_t)in, own, (void *)(uintptr_t)b, out, cpu_scratch(d, op, k->scratch_bytes) };
	dnnl_exec_arg_t args[ROLES];
	dnnl_status_t s = dnnl_success;
	int n = 0, writes = k->key.kind == CONV_DW;
	if (own && data[SCRATCH]) {
		for (int i = 0; i < ROLES && !s; i++) {
			s = dnnl_memory_set_data_handle(k->memory[i], data[i]);
			if (i != BIAS || b)
				args[n++] = (dnnl_exec_arg_t){ arg[k->key.kind][i], k->memory[i] };
		}
		if (k->turn && !s)
			s = dnnl_memory_set_data_handle(k->plain, w);
		if (k->turn && !writes && !s)
			s = turn_weights(a, k, k->plain, k->memory[WEIGHTS]);
		if (!s)
			s = dnnl_primitive_execute(k->run, a->stream, n, args);
		if (k->turn && writes && !s)
			s = turn_weights(a, k, k->memory[WEIGHTS], k->plain);
		if (!s)
			s = dnnl_stream_wait(a->stream);
		if (s)
			cpu_fail(d, op, "oneDNN status %d", (int)s);
	}
	cpu_scratch_end(d, mark);
	return s || !own || !data[SCRATCH] ? -1 : 0;
}

/* ---- convolutions ---- */

struct conv {
	const char *op;
	int N, H, W, in, out, k;
};

static size_t size_in(const struct conv *c)
{
	return (size_t)c->N * (size_t)c->H * (size_t)c->W * (size_t)c->in;
}

static size_t size_out(const struct conv *c)
{
	return (size_t)c->N * (size_t)c->H * (size_t)c->W * (size_t)c->out;
}

static size_t size_w(const struct conv *c)
{
	return (size_t)c->in * (size_t)c->out * (size_t)c->k * (size_t)c->k;
}

static struct kernel *conv_kernel(struct dev *d, const struct conv *c, enum kind kind, enum dtype t, int bias, int relu)
{
	struct accelerator *a = accelerator(d);
	struct key key = { .kind = (int)kind, .type = (int)t, .out_type = (int)t, .bias = bias, .relu = relu,
			   .dims = { c->N, c->H, c->W, c->in, c->out, c->k } };
	return a && c->N && c->H && c->W ? kernel_find(a, &key) : NULL;
}

enum { PART = 1 << 14 }; /* elements per task of the loops below */

static const float *as_f32(struct dev *d, const char *op, const void *x, enum dtype t, size_t n)
{
	float *y = cpu_scratch(d, op, n * sizeof *y);
#pragma omp parallel for num_threads(d->threads)
	for (size_t i = 0; i < (y ? n : 0); i += PART)
		row_to_f32(y + i, at_const(x, t, i), t, n - i < PART ? n - i : PART);
	return y;
}

static void round_to(const struct dev *d, void *y, enum dtype t, const float *x, size_t n)
{
#pragma omp parallel for num_threads(d->threads)
	for (size_t i = 0; i < n; i += PART)
		row_from_f32(at(y, t, i), t, x + i, n - i < PART ? n - i : PART);
}

static void dnnl_conv_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, int N, int H, int W, int in,
			  int out, int k, int flags)
{
	struct conv c = { "conv_fwd", N, H, W, in, out, k };
	enum dtype t = call_type(d, flags);
	int relu = (flags & OP_RELU) != 0;
	struct kernel *native = conv_kernel(d, &c, CONV_FWD, t, b != NULL, relu);
	struct kernel *f32 = native ? NULL : conv_kernel(d, &c, CONV_FWD, DT_F32, b != NULL, relu);
	struct scratch_mark mark = cpu_scratch_begin(d);
	if (native) {
		kernel_run(d, c.op, native, x, (void *)(uintptr_t)w, b, y);
	} else if (f32) {
		const float *fx = as_f32(d, c.op, x, t, size_in(&c)), *fw = as_f32(d, c.op, w, t, size_w(&c));
		float *fy = cpu_scratch(d, c.op, size_out(&c) * sizeof *fy);
		if (fx && fw && fy && !kernel_run(d, c.op, f32, fx, (void *)(uintptr_t)fw, b, fy))
			round_to(d, y, t, fy, size_out(&c));
	} else {
		cpu_conv_fwd(d, y, x, w, b, N, H, W, in, out, k, flags);
	}
	cpu_scratch_end(d, mark);
}

static void conv_dx(struct dev *d, void *dx, const void *dy, const void *w, enum dtype t, const struct conv *c,
		    struct kernel *native, struct kernel *f32)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	if (native) {
		kernel_run(d, c->op, native, dx, (void *)(uintptr_t)w, NULL, (void *)(uintptr_t)dy);
	} else {
		const float *fy = as_f32(d, c->op, dy, t, size_out(c)), *fw = as_f32(d, c->op, w, t, size_w(c));
		float *fx = cpu_scratch(d, c->op, size_in(c) * sizeof *fx);
		if (fx && fw && fy &&
		    !kernel_run(d, c->op, f32, fx, (void *)(uintptr_t)fw, NULL, (void *)(uintptr_t)fy))
			round_to(d, dx, t, fx, size_in(c));
	}
	cpu_scratch_end(d, mark);
}

static void conv_dw(struct dev *d, float *dw, const void *dy, const void *x, enum dtype t, const struct conv *c,
		    struct kernel *native, struct kernel *f32)
{
	struct scratch_mark mark = cpu_scratch_begin(d);
	float *sum = cpu_scratch(d, c->op, size_w(c) * sizeof *sum);
	int failed = 1;
	if (native && sum) {
		failed = kernel_run(d, c->op, native, x, sum, NULL, (void *)(uintptr_t)dy);
	} else if (sum) {
		const float *fy = as_f32(d, c->op, dy, t, size_out(c)), *fx = as_f32(d, c->op, x, t, size_in(c));
		failed = !fx || !fy || kernel_run(d, c->op, f32, fx, sum, NULL, (void *)(uintptr_t)fy);
	}
#pragma omp parallel for num_threads(d->threads)
	for (size_t i = 0; i < (failed ? 0 : size_w(c)); i += PART)
		for (size_t j = i; j < i + PART && j < size_w(c); j++)
			dw[j] += sum[j];
	cpu_scratch_end(d, mark);
}

static void dnnl_conv_bwd(struct dev *d, void *dx, float *dw, float *db, const void *dy, const void *x, const void *w, int N,
			  int H, int W, int in, int out, int k, int flags)
{
	struct conv c = { "conv_bwd", N, H, W, in, out, k };
	enum dtype t = call_type(d, flags);
	if (dx) {
		struct kernel *native = conv_kernel(d, &c, CONV_DX, t, 0, 0);
		struct kernel *f32 = native ? NULL : conv_kernel(d, &c, CONV_DX, DT_F32, 0, 0);
		if (native || f32)
			conv_dx(d, dx, dy, w, t, &c, native, f32);
		else
			cpu_conv_bwd(d, dx, NULL, NULL, dy, x, w, N, H, W, in, out, k, flags);
	}
	if (dw) {
		struct kernel *native = conv_kernel(d, &c, CONV_DW, t, 0, 0);
		struct kernel *f32 = native ? NULL : conv_kernel(d, &c, CONV_DW, DT_F32, 0, 0);
		if (native || f32)
			conv_dw(d, dw, dy, x, t, &c, native, f32);
		else
			cpu_conv_bwd(d, NULL, dw, NULL, dy, x, w, N, H, W, in, out, k, flags);
	}
	if (db)
		cpu_column_sums(d, c.op, db, dy, t, (size_t)N * (size_t)H * (size_t)W, (size_t)out);
}

/* ---- linear ---- */

/* out[a, c] = or += in[a, b] weights[b, c] + bias; 0 when oneDNN did it. */
static int product(struct dev *d, const char *op, struct key key, void *out, const void *in, const void *w, const float *b)
{
	struct accelerator *a = accelerator(d);
	key.kind = MATMUL;
	key.bias = b != NULL;
	struct kernel *k = a && key.dims[0] && key.dims[1] && key.dims[2] ? kernel_find(a, &key) : NULL;
	if (!k)
		return -1;
	kernel_run(d, op, k, in, (void *)(uintptr_t)w, b, out);
	return 0;
}

static void dnnl_linear_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, size_t rows, int in,
			    int out, int flags)
{
	enum dtype t = call_type(d, flags), to = flags & OP_OUT_F32 ? DT_F32 : t;
	struct key key = { .type = (int)t, .out_type = (int)to, .w_transposed = 1, .dims = { (int64_t)rows, in, out } };
	if (product(d, "linear_fwd", key, y, x, w, b))
		cpu_linear_fwd(d, y, x, w, b, rows, in, out, flags);
}

/* oneDNN adds in place only. */
static void dnnl_linear_add_fwd(struct dev *d, float *y, const float *h, const void *x, const void *w, const float *b,
				size_t rows, int in, int out)
{
	size_t bytes = (size_t)out * sizeof *y;
	struct key key = { .type = (int)d->type, .out_type = DT_F32, .sum = 1, .w_transposed = 1,
			   .dims = { (int64_t)rows, in, out } };
	if (y != h)
		cpu_copy2d(d, y, bytes, h, bytes, bytes, rows);
	if (product(d, "linear_add_fwd", key, y, x, w, b))
		cpu_linear_add_fwd(d, y, y, x, w, b, rows, in, out);
}

static void dnnl_linear_bwd(struct dev *d, void *dx, void *dw, float *db, const void *dy, const void *x, const void *w,
			    size_t rows, int in, int out, int flags)
{
	enum dtype t = call_type(d, flags);
	struct key to_x = { .type = (int)t, .out_type = (int)t, .dims = { (int64_t)rows, out, in } };
	enum dtype w_type = flags & OP_DW_T ? t : DT_F32;
	struct key to_w = { .type = (int)t, .out_type = (int)w_type, .sum = 1, .in_transposed = 1,
			    .dims = { out, (int64_t)rows, in } };
	if (dx && product(d, "linear_bwd", to_x, dx, dy, w, NULL))
		cpu_linear_bwd(d, dx, NULL, NULL, dy, x, w, rows, in, out, flags);
	if (dw && product(d, "linear_bwd", to_w, dw, dy, x, NULL))
		cpu_linear_bwd(d, NULL, dw, NULL, dy, x, w, rows, in, out, flags);
	if (db)
		cpu_column_sums(d, "linear_bwd", db, dy, t, rows, (size_t)out);
}

/* f32 keeps to gemm.c, see above, and so do few rows of bf16. */
static int is_ours(size_t rows, enum dtype t)
{
	return t == DT_F32 || cpu_gemm_dots(rows, t);
}

static void linear_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, size_t rows, int in, int out,
		       int flags)
{
	(is_ours(rows, call_type(d, flags)) ? cpu_linear_fwd : dnnl_linear_fwd)(d, y, x, w, b, rows, in, out, flags);
}

static void linear_add_fwd(struct dev *d, float *y, const float *h, const void *x, const void *w, const float *b, size_t rows,
			   int in, int out)
{
	(is_ours(rows, d->type) ? cpu_linear_add_fwd : dnnl_linear_add_fwd)(d, y, h, x, w, b, rows, in, out);
}

static void linear_bwd(struct dev *d, void *dx, void *dw, float *db, const void *dy, const void *x, const void *w,
		       size_t rows, int in, int out, int flags)
{
	(call_type(d, flags) == DT_F32 ? cpu_linear_bwd : dnnl_linear_bwd)(d, dx, dw, db, dy, x, w, rows, in, out, flags);
}

static void dnnl_linear_gelu_fwd(struct dev *d, void *y, void *u, const void *x, const void *w, const float *b, size_t rows,
				 int in, int out, int exact)
{
	dnnl_linear_fwd(d, u, x, w, b, rows, in, out, 0);
	cpu_gelu_fwd(d, y, u, rows * (size_t)out, exact);
}

static void linear_gelu_fwd(struct dev *d, void *y, void *u, const void *x, const void *w, const float *b, size_t rows,
			    int in, int out, int exact)
{
	(is_ours(rows, d->type) ? cpu_linear_gelu_fwd : dnnl_linear_gelu_fwd)(d, y, u, x, w, b, rows, in, out, exact);
}

void dnnl_override(struct ops *o)
{
	o->linear_fwd = linear_fwd;
	o->linear_add_fwd = linear_add_fwd;
	o->linear_bwd = linear_bwd;
	o->linear_gelu_fwd = linear_gelu_fwd;
	o->conv_fwd = dnnl_conv_fwd;
	o->conv_bwd = dnnl_conv_bwd;
}

void dnnl_override_all(struct ops *o)
{
	dnnl_override(o);
	o->linear_fwd = dnnl_linear_fwd;
	o->linear_add_fwd = dnnl_linear_add_fwd;
	o->linear_bwd = dnnl_linear_bwd;
	o->linear_gelu_fwd = dnnl_linear_gelu_fwd;
}

void dnnl_describe(char *out, size_t n)
{
	const dnnl_version_t *v = dnnl_version();
	snprintf(out, n, "; oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}
