/* attn.cuh - which keys a query sees, for attn.cu, flash.cu and attn-step.cu.  In the first two, states are numbered in an
 * order in which the image keys of a query are one short run: as they are, or by columns of the grid for ATTN_COLUMN
 * (recipe C16). */
#ifndef ATTN_CUH
#define ATTN_CUH

#include "cuda.cuh"

struct mask {
	enum attn_kind kind;
	int S, text;   /* text: states whose keys are a prefix; all of them for FULL and CAUSAL */
	int W, GH;     /* sides of the grid */
	int h, reach;  /* CONV: (k - 1) / 2; offsets from `reach` on are out of sight */
	int centred;
	struct divisor by_W, by_GH;
};

static inline struct mask mask_of(const struct attn_mask *m)
{
	int S = attn_length(m), dense = m->kind == ATTN_FULL || m->kind == ATTN_CAUSAL, h = (m->conv_k - 1) / 2;
	struct mask r = {m->kind, S, dense ? S : m->n_text, m->grid_w, m->grid_h, h, (h + 1) * m->grid_w, m->conv_centred,
	                 divisor_of(m->grid_w), divisor_of(m->grid_h)};
	return r;
}

/* The state at place i of the order. */
DEVICE int state_at(const struct mask &m, int i)
{
	if (m.kind != ATTN_COLUMN || i < m.text)
		return i;
	int p = i - m.text, column = quotient(p, m.by_GH);
	return m.text + (p - column * m.GH) * m.W + column;
}

/* The first key after the text that query i sees; i itself is the last. */
DEVICE int first_image_key(const struct mask &m, int i)
{
	int p = i - m.text, first = 0;
	if (m.kind == ATTN_ROW)
		first = p - m.W;
	else if (m.kind == ATTN_COLUMN)
		first = quotient(p, m.by_GH) * m.GH;
	else
		first = p - m.reach + 1;
	return m.text + max(first, 0);
}

/* The last query that sees key j, of which j itself is the first (but for FULL). */
DEVICE int last_query(const struct mask &m, int j)
{
	int p = j - m.text, last;
	if (j < m.text)
		return m.S - 1;
	if (m.kind == ATTN_ROW)
		last = p + m.W;
	else if (m.kind == ATTN_COLUMN)
		last = quotient(p, m.by_GH) * m.GH + m.GH - 1;
	else
		last = p + m.reach - 1;
	return min(m.text + last, m.S - 1);
}

/* Whether an offset below `reach` is one of the convolution's taps. */
DEVICE bool conv_tap(const struct mask &m, int o)
{
	int side = o - quotient(o, m.by_W) * m.W;
	/* No branches: the kernels unroll this. */
	return ((side <= m.h) | (side >= m.W - m.h)) & (!m.centred | (o <= m.h * m.W + m.h));
}

enum { HEAD_MOST = 256 }; /* columns of a head */

static inline bool width_fits(struct dev *d, int D)
{
	if (D > HEAD_MOST)
		cuda_fail(d, "heads of width %d, expected at most %d", D, HEAD_MOST);
	return D <= HEAD_MOST;
}

#endif
