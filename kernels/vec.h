/* vec.h - eight f32 lanes for the row functions of the CPU backend.  GNU vectors, so that sums
 * have one fixed order on every instruction set, whatever the address of the row; CLONES makes
 * a function once per instruction set and picks at load time.  CLONES belongs on inner functions,
 * not on those that hold an `omp parallel`: the outlined region would lose it.  What picks runs before
 * ThreadSanitizer is up, and would crash there. */
#ifndef VEC_H
#define VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define VINLINE inline __attribute__((always_inline))

/* Vectors are passed between inlined functions only, so their calling convention cannot differ: the
 * build says -Wno-psabi. */
enum { VL = 8 };
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

static VINLINE vf v_load(const float *p)
{
	vf v;
	memcpy(&v, p, sizeof v);
	return v;
}

static VINLINE void v_store(float *p, vf v)
{
	memcpy(p, &v, sizeof v);
}

static VINLINE vf v_set(float x)
{
	return (vf){x, x, x, x, x, x, x, x};
}

/* The n < VL values at p, the other lanes `fill`. */
static VINLINE vf v_load_part(const float *p, size_t n, float fill)
{
	float t[VL] = {fill, fill, fill, fill, fill, fill, fill, fill};
	for (size_t i = 0; i < n; i++)
		t[i] = p[i];
	return v_load(t);
}

static VINLINE void v_store_part(float *p, vf v, size_t n)
{
	float t[VL];
	v_store(t, v);
	for (size_t i = 0; i < n; i++)
		p[i] = t[i];
}

/* Values i.. of a row of n: whole vectors, then one with `fill` after the end. */
static VINLINE vf v_row(const float *p, size_t i, size_t n, float fill)
{
	return i + VL <= n ? v_load(p + i) : v_load_part(p + i, n - i, fill);
}

static VINLINE void v_row_store(float *p, size_t i, size_t n, vf v)
{
	if (i + VL <= n)
		v_store(p + i, v);
	else
		v_store_part(p + i, v, n - i);
}

/* Zeros from p[n] to the end of its last vector. */
static VINLINE void v_pad(float *p, size_t n)
{
	for (; n % VL; n++)
		p[n] = 0;
}

static VINLINE vf v_select(vi mask, vf yes, vf no)
{
	return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* A NaN in b stays, one in a gives b. */
static VINLINE vf v_max(vf a, vf b)
{
	return v_select(a > b, a, b);
}

static VINLINE vf v_min(vf a, vf b)
{
	return v_select(a < b, a, b);
}

static VINLINE vf v_abs(vf a)
{
	return (vf)((vi)a & 0x7fffffff);
}

static VINLINE float v_sum(vf v)
{
	return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static VINLINE float v_greatest(vf v)
{
	float m = v[0];
	for (int i = 1; i < VL; i++)
		m = v[i] > m ? v[i] : m;
	return m;
}

/* exp, relative error below 2e-7: x = n ln 2 + r, |r| <= ln 2 / 2, then a polynomial of degree 6
 * fitted at Chebyshev points.  Exactly 0 below -87.3, infinite from 88.4 (a little early), NaN kept. */
static VINLINE vf v_exp(vf x)
{
	const vf magic = v_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
	vi flush = x < -87.3f;
	vf c = v_select(flush, v_set(-87.3f), x);
	c = v_select(c > 89.0f, v_set(89.0f), c);
	vf t = c * 1.44269504f + magic;
	vf n = t - magic;
	vf r = (c - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two parts, the first of 16 bits */
	vf q = 0.00836323294788599f + r * 0.0013926250394433737f;
	q = 0.5f + r * (0.16666576266288757f + r * (0.04166655242443085f + r * q));
	vf p = 1.0f + (r + r * r * q);
	vf scale = (vf)(((vi)t - (vi)magic + 127) << 23);
	return (vf)((vi)(p * scale) & ~flush);
}

/* ln of a positive normal number, relative error below 3e-7: x = 2^e (1 + f), 1 + f between the square
 * roots of 1/2 and 2.  Nothing is promised for other arguments. */
static VINLINE vf v_log(vf x)
{
	vi e = ((vi)x - 0x3f3504f3) >> 23;
	vf f = (vf)((vi)x - (e << 23)) - 1.0f;
	vf n = __builtin_convertvector(e, vf);
	vf q = -0.12998183071613312f + f * (0.12622319161891937f + f * -0.0790274366736412f);
	q = 0.20001044869422913f + f * (-0.166412815451622f + f * (0.14214496314525604f + f * q));
	q = 0.3333333134651184f + f * (-0.25000306963920593f + f * q);
	vf tail = f * f * (f * q - 0.5f) + n * 1.42860677e-6f;
	return n * 0.693145752f + (f + tail);
}

#endif
