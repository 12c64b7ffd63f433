/* entries.h - the entries of struct ops by the file that defines them (x.c, x.cu), for the tables of the
 * backends and for the check that a plugin lacks none. */
#ifndef ENTRIES_H
#define ENTRIES_H

#define ENTRIES_CPU(X)                                                                             \
	X(count) X(preferred) X(open) X(close) X(type) X(describe) X(memory) X(alloc) X(release)   \
	X(put) X(get) X(copy2d) X(zero) X(sync) X(replay) X(record_begin) X(record_end)    \
	X(ranks_id) X(ranks_join) X(ranks_sum)
#define ENTRIES_ELEM(X)                                                                            \
	X(cast) X(uncast) X(add) X(relu_fwd) X(relu_bwd) X(relu_bwd_add) X(gelu_fwd) X(gelu_bwd)   \
	X(pixels) X(embed_fwd) X(embed_bwd)
#define ENTRIES_MATMUL(X) X(linear_fwd) X(linear_add_fwd) X(linear_bwd) X(linear_gelu_fwd)
#define ENTRIES_CONV(X)                                                                            \
	X(conv_fwd) X(conv_bwd) X(maxpool_fwd) X(maxpool_bwd) X(upsample_fwd) X(upsample_bwd)      \
	X(space_to_depth) X(depth_to_space)
#define ENTRIES_NORM(X) X(norm_fwd) X(norm_bwd) X(l2_fwd) X(l2_bwd)
#define ENTRIES_ATTN(X) X(attn_fwd) X(attn_bwd) X(attn_step)
#define ENTRIES_LOSS(X) X(xent) X(clip_xent) X(argmax) X(onehot) X(draw)
#define ENTRIES_LATENT(X) X(gumbel_fwd) X(gumbel_bwd) X(usage_fwd) X(usage_bwd) X(logit_laplace) X(reconstruct)
#define ENTRIES_OPTIM(X) X(adamw) X(sumsq) X(average) X(sum)
#define OPS_ENTRIES(X)                                                                             \
	ENTRIES_CPU(X) ENTRIES_ELEM(X) ENTRIES_MATMUL(X) ENTRIES_CONV(X) ENTRIES_NORM(X)           \
	ENTRIES_ATTN(X) ENTRIES_LOSS(X) ENTRIES_LATENT(X) ENTRIES_OPTIM(X)

#endif
