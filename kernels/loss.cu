/* loss.cu - loss.c on a GPU: cross-entropies, the choice of the largest, and the drawing of tokens.  A block a
 * row; probabilities are never stored. */
#include "cuda.cuh"

namespace FOR_TYPE {

enum { ROW_THREADS = 256, ROW_ROOM = ROW_THREADS / WARP };

/* ---- the sum of exp in one pass ---- */

/* sum of exp(x - top) over what was seen; top -INFINITY: nothing yet. */
struct softmax_sum {
	float top, sum;
};

DEVICE void softmax_add(struct softmax_sum &s, float x)
{
	if (x > s.top) {
		s.sum = s.sum * expf(s.top - x) + 1.0f;
		s.top = x;
	} else if (x != -INFINITY) {
		s.sum += expf(x - s.top); /* a NaN comes here and stays */
	}
}

/* log of the sum of exp over the block's values. */
DEVICE float block_lse(struct softmax_sum s, float *room)
{
	float top = block_max(s.top, room);
	float mine = s.top == -INFINITY && s.sum == 0 ? 0 : s.sum * expf(s.top - top);
	return top + logf(block_sum(mine, room));
}

/* ---- token cross-entropy ---- */

template <int N>
KERNEL xent_kernel(float *nll, T *dlogits, const float *logits, const int32_t *target, int V, float scale, int *flag)
{
	float *room = (float *)SHARED, v[N];
	size_t r = blockIdx.x;
	const float *x = logits + r * V;
	int hit = target[r];
	if (hit >= V) {
		if (threadIdx.x == 0)
			atomicOr(flag, FLAG_TARGET);
		return;
	}
	if (hit < 0) {
		if (nll && threadIdx.x == 0)
			nll[r] = 0;
		for (int i = (int)threadIdx.x; dlogits && i < V; i += ROW_THREADS)
			dlogits[r * V + i] = make<T>(0);
		return;
	}
	struct softmax_sum s = {-INFINITY, 0};
	for (int i = (int)threadIdx.x * N; i < V; i += ROW_THREADS * N) {
		load<N>(v, x + i);
		for (int k = 0; k < N; k++)
			softmax_add(s, v[k]);
	}
	float lse = block_lse(s, room);
	if (nll && threadIdx.x == 0)
		nll[r] = lse - x[hit];
	for (int i = (int)threadIdx.x * N; dlogits && i < V; i += ROW_THREADS * N) {
		load<N>(v, x + i);
		for (int k = 0; k < N; k++)
			v[k] = scale * (expf(v[k] - lse) - (i + k == hit ? 1.0f : 0.0f));
		store<N>(dlogits + r * V + i, v);
	}
}

void xent(struct dev *d, float *nll, void *dlogits, const float *logits, const int32_t *target, size_t rows, int V,
          float scale, int flags)
{
	if (!T_IS_F32 && flags & OP_F32) {
		for_f32::xent(d, nll, dlogits, logits, target, rows, V, scale, flags);
		return;
	}
	bool vector = V % 4 == 0 && aligned(logits, 16) && aligned(dlogits, 16);
	launch(d, vector ? xent_kernel<4> : xent_kernel<1>, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(float), nll,
	       (T *)dlogits, logits, target, V, scale, d->flag);
}

/* ---- contrastive cross-entropy ---- */

/* Equal captions are no negatives of each other. */
DEVICE bool counts(const int32_t *group, int i, int j)
{
	return i == j || !group || group[i] != group[j];
}

/* lse[0..B-1] over rows, lse[B..2B-1] over columns: a block each. */
KERNEL contrast_lse_kernel(float *lse, const float *sim, const float *s, const int32_t *group, int B)
{
	float *room = (float *)SHARED, gain = expf(*s);
	int i = (int)blockIdx.x % B;
	bool column = (int)blockIdx.x >= B;
	struct softmax_sum sum = {-INFINITY, 0};
	for (int j = (int)threadIdx.x; j < B; j += ROW_THREADS)
		if (counts(group, i, j))
			softmax_add(sum, gain * sim[column ? (size_t)j * B + i : (size_t)i * B + j]);
	float out = block_lse(sum, room);
	if (threadIdx.x == 0)
		lse[blockIdx.x] = out;
}

/* Row i of dsim, and its share of ds. */
KERNEL contrast_bwd_kernel(float *dsim, double *row_ds, const float *lse, const float *sim, const float *s,
                           const int32_t *group, int B, float scale)
{
	double *room = (double *)SHARED, ds = 0;
	int i = (int)blockIdx.x;
	float gain = expf(*s);
	for (int j = (int)threadIdx.x; j < B; j += ROW_THREADS) {
		float l = gain * sim[(size_t)i * B + j], g = 0;
		if (counts(group, i, j))
			g = (expf(l - lse[i]) + expf(l - lse[B + j]) - (i == j ? 2.0f : 0.0f)) / (2.0f * B) * scale;
		ds += (double)g * l;
		if (dsim)
			dsim[(size_t)i * B + j] = g * gain;
	}
	ds = block_sum(ds, room);
	if (threadIdx.x == 0)
		row_ds[i] = ds;
}

KERNEL contrast_total_kernel(float *loss, float *ds, const float *lse, const double *row_ds, const float *sim, const float *s,
                             int B)
{
	double *room = (double *)SHARED, sum = 0, total = 0;
	float gain = expf(*s);
	for (int i = (int)threadIdx.x; i < B; i += ROW_THREADS) {
		sum += (double)lse[i] + lse[B + i] - 2.0 * (gain * sim[(size_t)i * B + i]);
		total += row_ds[i];
	}
	sum = block_sum(sum, room);
	total = block_sum(total, room);
	if (threadIdx.x)
		return;
	if (loss)
		*loss = (float)(sum / (2.0 * B));
	if (ds)
		*ds = (float)total;
}

void clip_xent(struct dev *d, float *loss, float *dsim, float *ds, const float *sim, const float *s, const int32_t *group, int B,
               float scale)
{
	float *lse = (float *)cuda_scratch(d, 2 * (size_t)B * sizeof *lse);
	double *row_ds = (double *)cuda_scratch(d, (size_t)B * sizeof *row_ds);
	size_t room = ROW_ROOM * sizeof(double);
	if (!lse || !row_ds)
		return;
	launch(d, contrast_lse_kernel, dim3(2 * (unsigned)B), dim3(ROW_THREADS), room, lse, sim, s, group, B);
	launch(d, contrast_bwd_kernel, dim3((unsigned)B), dim3(ROW_THREADS), room, dsim, row_ds, lse, sim, s, group, B, scale);
	launch(d, contrast_total_kernel, dim3(1), dim3(ROW_THREADS), room, loss, ds, lse, row_ds, sim, s, B);
}

/* ---- largest ---- */

/* The first of the largest values; NaN are passed over, 0 when there is nothing else. */
struct place {
	float value;
	int index;
};

DEVICE void place_better(struct place &a, float value, int index)
{
	if (value > a.value || (value == a.value && index < a.index)) {
		a.value = value;
		a.index = index;
	}
}

/* All threads of the block get it; room: ROW_ROOM places. */
DEVICE int block_argmax(const float *x, int V, struct place *room)
{
	struct place best = {-INFINITY, V};
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		place_better(best, x[i], i);
	for (int o = WARP / 2; o; o /= 2) {
		float value = __shfl_xor_sync(ALL_LANES, best.value, o);
		int index = __shfl_xor_sync(ALL_LANES, best.index, o);
		place_better(best, value, index);
	}
	__syncthreads();
	if (threadIdx.x % WARP == 0)
		room[threadIdx.x / WARP] = best;
	__syncthreads();
	best = room[0];
	for (int i = 1; i < ROW_ROOM; i++)
		place_better(best, room[i].value, room[i].index);
	return best.index < V ? best.index : 0;
}

KERNEL argmax_kernel(int32_t *idx, const float *x, int V)
{
	int best = block_argmax(x + (size_t)blockIdx.x * V, V, (struct place *)SHARED);
	if (threadIdx.x == 0)
		idx[blockIdx.x] = best;
}

void argmax(struct dev *d, int32_t *idx, const float *x, size_t rows, int V)
{
	launch(d, argmax_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), ROW_ROOM * sizeof(struct place), idx, x, V);
}

struct onehot_op {
	float *z;
	const int32_t *idx;
	int V;
	template <int N> __device__ void at(size_t i) const
	{
		for (int k = 0; k < N; k++)
			z[i + k] = (size_t)idx[(i + k) / V] == (i + k) % V ? 1.0f : 0.0f;
	}
};

void onehot(struct dev *d, float *z, const int32_t *idx, size_t rows, int V)
{
	map(d, rows * V, true, onehot_op{z, idx, V});
}

/* ---- draws ---- */

/* Shared memory of a draw: the weights of the row where they fit, and room for reductions. */
struct draw_room {
	double sums[ROW_THREADS];
	struct place places[ROW_ROOM];
	int found;
};

/* The number and mass of the weights from `least` on. */
DEVICE void weights_from(int &count, double &mass, const float *e, int V, float least, double *room)
{
	int n = 0;
	double s = 0;
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		if (e[i] >= least) {
			n++;
			s += e[i];
		}
	mass = block_sum(s, room);
	count = (int)block_sum((double)n, room);
}

/* The greatest weight w such that the weights >= w number at least k (k > 0) or have at least this mass: bisection
 * over the bits. */
DEVICE float draw_threshold(const float *e, int V, int k, double mass, double *room)
{
	uint32_t low = 0, high = float_to_bits(1.0f) + 1; /* the greatest weight is 1 */
	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;
		int n;
		double s;
		weights_from(n, s, e, V, bits_to_float(mid), room);
		if (k ? n >= k : s >= mass)
			low = mid;
		else
			high = mid;
	}
	return bits_to_float(low);
}

/* Each thread has a run of neighbouring weights. */
DEVICE void my_run(int &from, int &to, int V)
{
	int n = (V + ROW_THREADS - 1) / ROW_THREADS;
	from = min((int)threadIdx.x * n, V);
	to = min(from + n, V);
}

/* The sum of what the threads before this one hold; all: of all threads. */
DEVICE double sum_before(double mine, double &all, double *room)
{
	double before = 0;
	__syncthreads();
	room[threadIdx.x] = mine;
	__syncthreads();
	all = 0;
	for (int i = 0; i < ROW_THREADS; i++) {
		if (i == (int)threadIdx.x)
			before = all;
		all += room[i];
	}
	return before;
}

/* Zero the weights below the threshold, and of those equal to it all but the first ones needed. */
DEVICE void draw_cut(float *e, int V, float least, int k, double mass, double *room)
{
	int count, from, to, ties = 0, needed = 0;
	double kept, all;
	weights_from(count, kept, e, V, bits_to_float(float_to_bits(least) + 1), room);
	my_run(from, to, V);
	for (int i = from; i < to; i++)
		ties += e[i] == least;
	int rank = (int)sum_before((double)ties, all, room);
	if (k)
		needed = k - count;
	else
		for (; kept < mass && needed < (int)all; kept += least)
			needed++;
	for (int i = from; i < to; i++) {
		if (e[i] == least && rank++ < needed)
			continue;
		if (e[i] <= least)
			e[i] = 0;
	}
	__syncthreads();
}

/* Index at the fraction u of the weights, in token order; weights of 0 are never taken. */
DEVICE int draw_inverse(const float *e, int V, double u, struct draw_room *room)
{
	int from, to, last = -1;
	double mine = 0, all, sum;
	my_run(from, to, V);
	for (int i = from; i < to; i++)
		if (e[i] > 0) {
			mine += e[i];
			last = i;
		}
	sum = sum_before(mine, all, room->sums);
	int at = -1;
	if (last >= 0 && sum <= u * all)
		for (int i = from; i < to && at < 0; i++)
			if (e[i] > 0) {
				sum += e[i];
				at = sum > u * all ? i : -1;
			}
	/* Rounding may leave none: then the last that can be taken. */
	double winner = at >= 0 ? 2.0 * V - at : last;
	__syncthreads();
	room->sums[threadIdx.x] = winner;
	__syncthreads();
	for (int i = 0; i < ROW_THREADS; i++)
		winner = room->sums[i] > winner ? room->sums[i] : winner;
	return winner >= V ? 2 * V - (int)winner : (int)winner;
}

/* e[V] = exp((x - top) / temperature); whether all is finite. */
DEVICE bool draw_weights(float *e, const float *x, int V, float temperature, double *room)
{
	float top = -INFINITY, *small = (float *)room;
	double s = 0;
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS)
		top = x[i] > top ? x[i] : top;
	top = block_max(top, small);
	for (int i = (int)threadIdx.x; i < V; i += ROW_THREADS) {
		e[i] = expf((x[i] - top) / temperature);
		s += e[i];
	}
	s = block_sum(s, room);
	return s - s == 0;
}

KERNEL draw_kernel(int32_t *token, float *scratch, const float *logits, const uint64_t *key, const int32_t *position, int V,
                   struct draw how, int *flag)
{
	struct draw_room *room = (struct draw_room *)SHARED;
	size_t r = blockIdx.x;
	const float *x = logits + r * V;
	float *e = scratch ? scratch + r * V : (float *)(room + 1);
	if (position[r] < 0) {
		if (threadIdx.x == 0)
			token[r] = -1;
		return;
	}
	bool good = draw_weights(e, x, V, how.temperature > 0 ? how.temperature : 1.0f, room->sums);
	int out = 0;
	if (!good) {
		if (threadIdx.x == 0)
			atomicOr(flag, FLAG_LOGITS);
	} else if (!(how.temperature > 0)) {
		out = block_argmax(x, V, room->places);
	} else {
		if (how.top_k > 0 && how.top_k < V)
			draw_cut(e, V, draw_threshold(e, V, how.top_k, 0, room->sums), how.top_k, 0, room->sums);
		if (how.top_p < 1.0f) {
			/* Of what top_k left; at least one token. */
			int n;
			double mass;
			weights_from(n, mass, e, V, 0, room->sums);
			mass = fmax(how.top_p * mass, 1e-30);
			draw_cut(e, V, draw_threshold(e, V, 0, mass, room->sums), 0, mass, room->sums);
		}
		uint32_t bits[4];
		philox(bits, how.seed, (uint32_t)key[r], (uint32_t)(key[r] >> 32), (uint32_t)position[r], RNG_SAMPLE);
		out = draw_inverse(e, V, (bits[0] + 0.5) * 0x1p-32, room);
	}
	if (threadIdx.x == 0)
		token[r] = out;
}

void draw(struct dev *d, int32_t *token, const float *logits, const uint64_t *key, const int32_t *position, size_t rows,
          int V, const struct draw *how)
{
	size_t shared = sizeof(struct draw_room) + (size_t)V * sizeof(float);
	float *scratch = NULL;
	if (shared > d->shared_max) {
		shared = sizeof(struct draw_room);
		scratch = (float *)cuda_scratch(d, rows * V * sizeof *scratch);
		if (!scratch)
			return;
	}
	launch(d, draw_kernel, dim3((unsigned)rows), dim3(ROW_THREADS), shared, token, scratch, logits, key, position, V, *how,
	       d->flag);
}
}
