/* matmul.c - linear layers on the CPU without a library: three products in terms of gemm.c, whatever the types. */
#include "gemm.h"

/* x[rows, n] with rows as the outer index, and its transpose. */
static struct operand plain(const void *p, enum dtype t, size_t n)
{
	return (struct operand){ p, t, n, 1 };
}

static struct operand transposed(const void *p, enum dtype t, size_t n)
{
	return (struct operand){ p, t, 1, n };
}

void cpu_linear_fwd(struct dev *d, void *y, const void *x, const void *w, const float *b, size_t rows, int in, int out,
		    int flags)
{
	enum dtype t = call_type(d, flags);
	size_t I = (size_t)in, O = (size_t)out;
	cpu_gemm(d, "linear_fwd",
		 &(struct gemm){
			 .m = rows, .n = O, .k = I,
			 .a = plain(x, t, I),
			 .b = plain(w, t, I),
			 .c = y, .c_type = flags & OP_OUT_F32 ? DT_F32 : t, .ldc = O,
			 .bias = b,
		 });
}

void cpu_linear_add_fwd(struct dev *d, float *y, const float *h, const void *x, const void *w, const float *b, size_t rows,
			int in, int out)
{
	size_t I = (size_t)in, O = (size_t)out;
	cpu_gemm(d, "linear_add_fwd",
		 &(struct gemm){
			 .m = rows, .n = O, .k = I,
			 .a = plain(x, d->type, I),
			 .b = plain(w, d->type, I),
			 .c = y, .c_type = DT_F32, .ldc = O,
			 .bias = b, .add = h,
		 });
}

void cpu_linear_bwd(struct dev *d, void *dx, void *dw, float *db, const void *dy, const void *x, const void *w,
		    size_t rows, int in, int out, int flags)
{
	enum dtype t = call_type(d, flags);
	size_t I = (size_t)in, O = (size_t)out;
	if (dx)
		cpu_gemm(d, "linear_bwd",
			 &(struct gemm){
				 .m = rows, .n = I, .k = O,
				 .a = plain(dy, t, O),
				 .b = transposed(w, t, I),
				 .c = dx, .c_type = t, .ldc = I,
			 });
	if (dw)
		cpu_gemm(d, "linear_bwd",
			 &(struct gemm){
				 .m = O, .n = I, .k = rows,
				 .a = transposed(dy, t, O),
				 .b = transposed(x, t, I),
				 .c = dw, .c_type = flags & OP_DW_T ? t : DT_F32, .ldc = I,
				 .add = dw,
			 });
	if (db)
		cpu_column_sums(d, "linear_bwd", db, dy, t, rows, O);
}

void cpu_linear_gelu_fwd(struct dev *d, void *y, void *u, const void *x, const void *w, const float *b, size_t rows, int in,
			 int out, int exact)
{
	cpu_linear_fwd(d, u, x, w, b, rows, in, out, 0);
	cpu_gelu_fwd(d, y, u, rows * (size_t)out, exact); /* of u as it is stored: the backward sees the same */
}
