/* dvae-net.h - inside the discrete VAE: its layers, the memory they compute in, forward and backward.  For dvae.c,
 * dvae-net.c, dvae-fit.c and the tests; everybody else uses dvae.h. */
#ifndef DVAE_NET_H
#define DVAE_NET_H

#include "arena.h"
#include "dvae.h"

/* Pixels to (0.1, 0.9) and back (B12, B13). */
#define DVAE_EPSILON 0.1f
#define DVAE_SPAN (1 - 2 * DVAE_EPSILON)

struct dvae_conv {
	struct param *w, *b; /* (out, in, kernel, kernel), (out) */
	int in, out, kernel;
};

/* y = id(x) + post_gain * conv4(relu(conv3(relu(conv2(relu(conv1(relu(x)))))))), B3 and B4. */
struct dvae_block {
	struct dvae_conv conv[4], id; /* id.out == 0: the identity */
	int side, in, out, hidden;
	/* kept for the backward pass */
	float *x;      /* (N,side,side,in), not owned: the stream before the block */
	void *xt;      /* the same as T, for id; NULL without id; x itself when T is f32 */
	void *r[4];    /* T: inputs of the four convolutions, after their ReLU */
	float *y;      /* (N,side,side,out) */
	/* the change of size after the block, at the end of every group but the last */
	uint8_t *which; /* of the max-pool */
	float *resized; /* (N,side/2,side/2,out) after pooling, (N,2 side,2 side,out) after upsampling; NULL: none */
};

struct dvae {
	struct dvae_config config;
	int parts, batch;
	int grid, side; /* G; S / s, the side of the first group */
	char id[ID_LENGTH + 1];
	const struct ops *ops;
	struct dev *dev;
	enum dtype type;
	struct params params;
	struct arena arena;
	int count; /* blocks of each half: groups * blocks */
	int32_t *codes; /* [batch*G*G] host */

	struct dvae_conv enc_in, enc_out, dec_in, dec_out;
	struct dvae_block *enc, *dec;

	uint8_t *rgb;    /* (N,S,S,3) */
	float *pixels;   /* (N,S,S,3), phi of them: input and target */
	float *patches;  /* (N,side,side,3ss) */
	void *patches_t; /* T */
	float *enc_first; /* (N,side,side,hidden), the stream's start */
	float *enc_last; /* (N,G,G,C), after the last ReLU */
	float *logits;   /* (N,G,G,K) */
	int32_t *argmax; /* (N,G,G) */
	float *z;        /* (N,G,G,K) */
	float *kl;       /* (N,G,G) */
	float *dec_first; /* (N,G,G,initial) */
	void *dec_last;  /* T (N,side,side,hidden), after the last ReLU */
	float *out_patches; /* (N,side,side,6ss) */
	float *out;      /* (N,S,S,6); out_patches itself when s is 1 */
	float *nll;      /* (N,S,S) */
	uint8_t *picture; /* (N,S,S,3), reconstructed */
	float *stream[2]; /* inference only: the residual stream, turn by turn */
	int turn;
	void *tmp;       /* T: largest of the streams */

	/* gradients, training only */
	float *dlogits, *dz, *dout, *dout_patches;
	float *dstream[2];
	void *dt, *dhidden[2]; /* T: largest stream; largest hidden */
	double *sums;    /* [2] */
	float *usage;    /* [K], of the usage bonus */
};

/* The table of parameters, in state-dict order; called before params_build. */
int dvae_table(struct dvae *d, struct error *e);
/* Every activation from the arena: called twice, see arena.h. */
void dvae_layout(struct dvae *d);

/* Forward.  n <= batch; nothing waits. */
void dvae_forward_patches(struct dvae *d, int n); /* rgb -> pixels, patches */
void dvae_forward_vectors(struct dvae *d, int n); /* rgb -> those and enc_last */
void dvae_forward_encoder(struct dvae *d, int n); /* rgb -> those and logits */
void dvae_forward_decoder(struct dvae *d, int n); /* z -> out */
/* Backward: dout -> gradients of the decoder's parameters and dz; dlogits -> those of the encoder.  What is between
 * them, ops.gumbel_bwd, is the caller's. */
void dvae_backward_decoder(struct dvae *d, int n);
void dvae_backward_encoder(struct dvae *d, int n);

#endif
