/* plan.h - what a training run of the transformer will take: memory of one GPU by part, floating-point operations, bytes on
 * the wire, time.  Parameters and activations are asked of the model itself (dalle_describe, dalle_plan_bytes); the rest
 * is arithmetic of recipe D and E.  Letters: C width, L layers, H heads, S states, B sequences of one GPU, T the type of
 * the products, m GPUs of one machine, n machines, r the total rank of PowerSGD, M matrices of resblocks (12 L C^2), O all
 * other parameters.
 *
 *	weights            4 (M + O) / m; 4 O / m without a master copy (D12)
 *	copies for products  T M / m when T is not f32
 *	gradients          4 (M + O) / m; matrices T without a master copy
 *	moments            8 (M + O) / m; matrices 4 when in 16 bits (D10)
 *	averages           4 (M + O) / m on the device or on the host (C25); on the device without a master copy T M / m more
 *	gathered           m > 1: two resblocks in T (the one at work and the next, E2, E3) and one full gradient, or, when that
 *	                   is more, the largest of the other tensors and its gradient in f32
 *	residual stream    what is kept of every resblock: its f32 input (C27, D3); (2 L + 1) B S C 4
 *	logits             of one chunk of rows, and their gradients
 *	inside             all other activations: of every layer, or of one with recomputation
 *	PowerSGD           on the host: error buffers M / m (E10), factors P, Q and the Q before, all in its format, and f32 to
 *	                   compute with, as for m = 1
 *
 *	operations         products 2 M B S, heads 2 B C (V_T N_T + V_I N_I), attention 4 C B per allowed pair of states:
 *	                   forward once, backward twice that, and with recomputation forward of the resblocks once more
 *
 *	in a machine       all-gather (m - 1) / m of all parameters forward and of the resblocks' backward, reduce-scatter the
 *	                   same of gradients (E1, E2): T for matrices, f32 for the rest
 *	between machines   the gradients of a GPU's shard, matrices in 16 bits, the rest f32 (D2): the payload; with PowerSGD P
 *	                   and Q instead of matrices (E7), in its format:
 *	                       per layer  P (5 C r m + 4 C r) / m^2,  Q (C r m + 8 C r) / m^2
 *	                   compression is 1 - (P + Q) / (M / m) in 16 bits, which for m = 8 is 1 - 5 r / (8 C);
 *	                   a ring sends 2 (n - 1) / n times the payload
 *	time               of the slowest of the three when they overlap (E13), or of their sum */
#ifndef PLAN_H
#define PLAN_H

#include "dalle-config.h"

struct plan_input {
	struct dalle_config config;
	enum dtype type; /* T */
	int batch;       /* B */
	int gpus, node;  /* n * m, m: gpus <= node means one machine */
	int rank;        /* r; 0: plain all-reduce */
	enum dtype powersgd_type; /* of error buffers, P and Q: DT_F32 or DT_1_6_9 */
	bool recompute, no_master, moments_16, averages_on_host;
	double flops, node_bandwidth, network; /* of one GPU, sustained, per second: operations, bytes, bytes; 0: not known */
	bool overlap;
};

struct plan_parameters {
	uint64_t embeddings, attention, mlp, gains, heads, total; /* attention, mlp: matrices; gains: gains and biases of blocks */
};

struct plan_memory { /* bytes of one GPU */
	uint64_t weights, copies, gradients, moments, averages, gathered, stream, inside, logits, total;
	uint64_t host, powersgd; /* on the host: averages, and what PowerSGD keeps there */
};

enum { PLAN_KINDS = ATTN_CONV + 1 };
struct plan_flops { /* of one GPU and update */
	double products, heads, attention[PLAN_KINDS], recomputed, total;
	int layers[PLAN_KINDS];     /* of each kind of mask */
	uint64_t pairs[PLAN_KINDS]; /* that one layer of the kind allows in a sequence */
};

struct plan_wire { /* bytes of one GPU and update */
	double gather, scatter;      /* inside its machine */
	double plain;                /* shard of the matrices' gradients in 16 bits */
	double p, q;                 /* what is sent instead; 0 without PowerSGD */
	double others;               /* shard of the other gradients */
	double payload, ring;        /* between machines */
	double compression;          /* of matrices; 0 without PowerSGD */
};

struct plan_time { /* seconds of one update */
	double compute, node, network, total; /* 0: not known, or nothing to do */
	double images;                        /* per hour, all GPUs; 0: not known */
};

struct plan {
	int node, nodes; /* m, n */
	struct plan_parameters parameters;
	struct plan_memory memory;
	struct plan_flops flops;
	struct plan_wire wire;
	struct plan_time time;
};

/* STATUS_USAGE when the numbers do not fit each other (GPUs that fill no machines, a rank that does not divide). */
int plan_make(const struct plan_input *in, struct plan *out, struct error *e);

#endif
