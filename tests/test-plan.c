/* test-plan.c - the planner: the paper's numbers (recipe K8, E7, E15, D12), pairs by counting, memory against the planners
 * of the model and of its parameters, numbers that do not fit each other. */
#include <math.h>
#include <string.h>

#include "../libcommon/dalle.h"
#include "../libcommon/plan.h"
#include "check.h"

static struct error e;

static struct plan_input of_preset(const char *name, int gpus)
{
	return (struct plan_input){.config = dalle_preset_find(name)->config, .type = DT_F16, .batch = 1, .gpus = gpus, .node = 8,
	                           .overlap = true};
}

static struct plan made(const struct plan_input *in)
{
	struct plan p;
	e = (struct error){0};
	CHECK(plan_make(in, &p, &e) == 0, "%s", e.text);
	return p;
}

static bool near(double a, double b, double relative)
{
	return fabs(a - b) <= relative * fabs(b);
}

/* ---- K8, E7, E15 ---- */

static void check_compression(void)
{
	static const struct {
		const char *preset;
		int rank;
		double compression;
	} cases[] = {{"2.8b", 512, 0.833333}, {"5.6b", 640, 0.851190}, {"12b", 896, 0.858871}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct plan_input in = of_preset(cases[i].preset, 1024);
		in.rank = cases[i].rank;
		in.powersgd_type = DT_1_6_9;
		struct plan p = made(&in);
		CHECK(fabs(p.wire.compression - cases[i].compression) < 1e-6, "K8: %s is compressed by %f, expected %f",
		      cases[i].preset, p.wire.compression, cases[i].compression);
	}
	struct plan_input in = of_preset("12b", 1024);
	in.rank = 896;
	in.powersgd_type = DT_1_6_9;
	struct plan p = made(&in);
	CHECK(p.nodes == 128 && p.node == 8, "128 machines of 8");
	CHECK(near(p.wire.plain, 3.02e9, 0.002) && near(p.wire.p + p.wire.q, 0.43e9, 0.01), "E15: %g and %g bytes", p.wire.plain,
	      p.wire.p + p.wire.q);
	/* E7 by shapes: four of d x d/m, d x 4d/m and 4d/m x d, P a x r/m and Q r/m x b */
	double d = 3968, m = 8, r = 112, P = 5 * d * r + 4 * d / m * r, Q = 4 * r * d / m + r * 4 * d / m + r * d;
	CHECK(near(p.wire.p, 64 * 2 * P, 1e-12) && near(p.wire.q, 64 * 2 * Q, 1e-12), "E7: P %g, Q %g bytes", p.wire.p, p.wire.q);
	CHECK(near(p.wire.payload, p.wire.p + p.wire.q + p.wire.others, 1e-12) &&
	      near(p.wire.ring, p.wire.payload * 2 * 127 / 128, 1e-12), "what a ring sends");
}

/* ---- D12: one of 8 V100 with 16 GB ---- */

static void check_paper_memory(void)
{
	struct plan_input in = of_preset("12b", 1024);
	in.rank = 896;
	in.powersgd_type = DT_1_6_9;
	in.recompute = in.no_master = in.moments_16 = in.averages_on_host = true;
	struct plan p = made(&in);
	double others = 4.0 * (double)(p.parameters.total - p.parameters.attention - p.parameters.mlp) / 8;
	CHECK(near((double)p.memory.copies, 3.02e9, 0.002) && near((double)p.memory.gradients - others, 3.02e9, 0.002) &&
	      near((double)p.memory.moments - 2 * others, 6.05e9, 0.002), "D12: parameters, gradients and moments of 3.02 GB each");
	CHECK(near((double)p.memory.weights, others, 1e-3), "all else stays f32");
	CHECK(p.memory.powersgd > 3.02e9 + p.wire.p + 2 * p.wire.q && p.memory.powersgd < 3.02e9 + p.wire.p + 2 * p.wire.q + 3e9,
	      "E10: errors and factors on the host, and what computes them");
	CHECK(near((double)p.memory.stream, 2.6e9, 0.02), "D12: %.3g bytes of the residual stream", (double)p.memory.stream);
	CHECK(p.memory.averages == 0 && near((double)p.memory.host, 4.0 * (double)p.parameters.total / 8, 1e-3),
	      "C25: averages on the host");
	CHECK(near(p.wire.scatter, 7.0 / 8 * (8 * 3.023e9 + 8 * others), 1e-3), "reduce-scatter sends 7/8 of the gradients");
}

/* ---- against the real planners ---- */

static void check_one_process(const char *preset, enum dtype type, int batch, bool recompute)
{
	char text[200];
	struct plan_input in = of_preset(preset, 1);
	in.type = type;
	in.batch = batch;
	in.recompute = recompute;
	struct plan p = made(&in);
	struct dalle d;
	struct dev *dev = cpu_ops()->open(0, type, 1, text, sizeof text);
	CHECK(dalle_describe(&d, &in.config, 0.125, recompute, &e) == 0, "%s", e.text);
	uint64_t blocks = 0, activations = dalle_plan_bytes(&d, batch, true, cpu_ops(), dev);
	for (enum params_block b = 0; b < BLOCKS; b++) {
		struct block_use u = params_block_use(&d.params, b, type, true);
		blocks += u.matrices + u.others;
	}
	const struct plan_memory *m = &p.memory;
	CHECK(m->stream + m->inside + m->logits == activations && m->inside < activations, "%s: activations", preset);
	CHECK(m->weights + m->copies + m->gradients + m->moments + m->averages == blocks, "%s: blocks of parameters", preset);
	CHECK(m->total == blocks + activations && m->gathered + m->powersgd + m->host == 0, "%s: all", preset);
	CHECK(p.parameters.total == params_count(&d.params) &&
		      p.parameters.total == p.parameters.embeddings + p.parameters.attention + p.parameters.mlp +
						    p.parameters.gains + p.parameters.heads,
	      "%s: parameters", preset);
	dalle_free(&d);
	cpu_ops()->close(dev);
}

/* ---- operations ---- */

static void check_operations(void)
{
	struct plan_input in = of_preset("12b", 1);
	struct plan p = made(&in);
	for (int i = 0; i < 64; i++) {
		struct attn_mask mask = dalle_mask_of(&in.config, i);
		uint64_t pairs = 0;
		for (int q = 0; q < 1280 && (i < 2 || i == 63); q++)
			for (int k = 0; k <= q; k++)
				pairs += attn_allowed(&mask, q, k) != 0;
		CHECK(!pairs || pairs == p.flops.pairs[mask.kind], "layer %d: %llu pairs", i, (unsigned long long)pairs);
	}
	CHECK(p.flops.layers[ATTN_ROW] == 47 && p.flops.layers[ATTN_COLUMN] == 16 && p.flops.layers[ATTN_CONV] == 1, "K6: layers");
	CHECK(near(p.flops.products, 6.0 * 64 * 12 * 3968 * 3968 * 1280, 1e-12), "products: %g", p.flops.products);
	CHECK(near(p.flops.heads, 6.0 * 3968 * (16384.0 * 256 + 8192.0 * 1024), 1e-12), "heads: %g", p.flops.heads);
	CHECK(p.flops.recomputed == 0, "nothing is computed again");
	in.recompute = true;
	struct plan again = made(&in);
	double attention = p.flops.attention[ATTN_ROW] + p.flops.attention[ATTN_COLUMN] + p.flops.attention[ATTN_CONV];
	CHECK(near(again.flops.recomputed, (p.flops.products + attention) / 3, 1e-12), "resblocks once more");
	CHECK(again.memory.inside < p.memory.inside / 20 && again.memory.stream == p.memory.stream, "recomputation saves memory");
	in.config.mask = DALLE_MASK_DENSE;
	p = made(&in);
	CHECK(p.flops.pairs[ATTN_CAUSAL] == 1280 * 1281 / 2 && p.flops.layers[ATTN_CAUSAL] == 64, "dense masks");
}

static void check_time(void)
{
	struct plan_input in = of_preset("1.2b", 16);
	in.flops = 1e14;
	in.node_bandwidth = 1e11;
	in.network = 1e9;
	struct plan p = made(&in);
	CHECK(near(p.time.compute, p.flops.total / 1e14, 1e-12) && near(p.time.network, p.wire.ring / 1e9, 1e-12) &&
	      near(p.time.node, (p.wire.gather + p.wire.scatter) / 1e11, 1e-12), "seconds are amounts by rates");
	CHECK(p.time.network > p.time.compute && p.time.total == p.time.network, "the slowest decides");
	CHECK(near(p.time.images, 3600 * 16 / p.time.total, 1e-12), "images per hour");
	in.overlap = false;
	struct plan turns = made(&in);
	CHECK(near(turns.time.total, p.time.compute + p.time.node + p.time.network, 1e-12), "one after the other");
	in.gpus = 1;
	p = made(&in);
	CHECK(p.wire.gather + p.wire.scatter + p.wire.ring == 0 && p.time.total == p.time.compute, "one GPU sends nothing");
}

/* ---- what does not fit ---- */

static void check_misfits(void)
{
	static const struct {
		int gpus, node, rank;
		bool no_master;
		enum dtype type;
		const char *expected;
	} cases[] = {
		{12, 8, 0, false, DT_F16, "do not fill"}, {8, 8, 64, false, DT_F16, "between machines"},
		{16, 8, 100, false, DT_F16, "no multiple"}, {16, 8, 4096, false, DT_F16, "more than the width"},
		{1, 8, 0, true, DT_F32, "16-bit"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct plan_input in = of_preset("1.2b", cases[i].gpus);
		struct plan p;
		in.node = cases[i].node;
		in.rank = cases[i].rank;
		in.no_master = cases[i].no_master;
		in.type = cases[i].type;
		e = (struct error){0};
		CHECK(plan_make(&in, &p, &e) && e.status == STATUS_USAGE && strstr(e.text, cases[i].expected),
		      "misfit %zu: '%s'", i, e.text);
	}
	struct plan_input in = of_preset("12b", 1);
	struct plan p;
	in.config.layers = 1024;
	in.config.width = 1 << 17;
	in.config.heads = 1;
	in.config.text_length = 1 << 16;
	in.batch = 1 << 20;
	e = (struct error){0};
	CHECK(plan_make(&in, &p, &e) && e.status == STATUS_LIMIT, "more than can be counted: '%s'", e.text);
}

int main(void)
{
	check_compression();
	check_paper_memory();
	check_one_process("tiny", DT_F32, 8, false);
	check_one_process("small", DT_BF16, 64, false);
	check_one_process("small", DT_F32, 3, true);
	check_one_process("12b", DT_F16, 1, true);
	check_operations();
	check_time();
	check_misfits();
	return check_done();
}
