/* dalle-plan - what training a transformer will take: memory of a GPU by part, operations, bytes on the wire, time. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../libcommon/device.h"
#include "../libcommon/json-file.h"
#include "../libcommon/plan.h"
#include "../libcommon/weights.h"

static const char *preset = "12b", *model_path, *rates_path;
static int64_t layers, width, heads, conv_k, text_length, gpus = 1, node = 8, batch, rank;
static int precision = 1, moments, averages, powersgd_format;
static bool as_json, no_overlap;
static struct plan_input in;
static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes: " DALLE_PRESETS "; the options below override them"),
	OPT_STRING('m', "model", &model_path, "MODEL", "sizes of this model file instead"),
	OPT_INT(0, "layers", &layers, 1, 1024, "N", "layers, each attention and MLP"),
	OPT_INT(0, "width", &width, 1, 1 << 17, "N", "width of the residual stream, a multiple of --heads"),
	OPT_INT(0, "heads", &heads, 1, 4096, "N", "attention heads"),
	OPT_CHOICE(0, "mask", &in.config.mask, DALLE_MASKS, "attention: the paper's kinds of layers, or all earlier states"),
	OPT_INT(0, "conv-k", &conv_k, 1, 4095, "N", "side of the conv mask's window, odd"),
	OPT_INT(0, "text-length", &text_length, 1, 1 << 16, "N", "text states"),
	OPT_INT('g', "gpus", &gpus, 1, 1024, "N", "GPUs in all"),
	OPT_INT(0, "node", &node, 1, 64, "N", "GPUs of one machine, which share its parameters"),
	OPT_INT('b', "batch", &batch, 1, 1 << 20, "N", "sequences that one GPU computes at once"),
	OPT_CHOICE('p', "precision", &precision, "f32|bf16|f16", "number format of the matrix products"),
	OPT_FLAG(0, "recompute", &in.recompute, "keep only resblock inputs and compute the rest again"),
	OPT_FLAG(0, "no-master", &in.no_master, "matrices in 16 bits only"),
	OPT_CHOICE(0, "moments", &moments, "f32|16", "number format of Adam's moments of matrices"),
	OPT_CHOICE(0, "averages", &averages, "device|host", "where averaged weights are kept"),
	OPT_INT(0, "powersgd", &rank, 0, 1 << 17, "R", "sum gradients between machines as products of rank R; 0 plainly"),
	OPT_CHOICE(0, "powersgd-format", &powersgd_format, "f32|16", "of its error buffers and messages; 16: 1-6-9"),
	OPT_REAL(0, "flops", &in.flops, 0, 1e21, "X", "operations per second that a GPU sustains, 0 for not known"),
	OPT_REAL(0, "node-bandwidth", &in.node_bandwidth, 0, 1e15, "X",
	         "bytes per second of a GPU inside its machine, 0 for not known"),
	OPT_REAL(0, "network", &in.network, 0, 1e15, "X", "bytes per second of a GPU between machines, 0 for not known"),
	OPT_STRING(0, "rates", &rates_path, "FILE", "JSON object with flops, node_bandwidth, network, as measured"),
	OPT_FLAG(0, "no-overlap", &no_overlap, "computing and sending take turns"),
	OPT_FLAG('J', "json", &as_json, "one JSON object instead of the table"),
	OPT_END,
};
static const struct tool tool = {"dalle-plan", "[OPTION]...",
                                 "Plan memory, traffic and time of training a transformer", options};

/* ---- input ---- */

/* Sizes of the preset or of the model file, before the other options override them. */
static int apply_sizes(int argc, char **argv, struct error *e)
{
	const char *path = opt_early(&tool, argc, argv, "model", NULL), *name = opt_early(&tool, argc, argv, "preset", preset);
	const struct dalle_preset *p = dalle_preset_find(name);
	if (!p)
		return fail(e, STATUS_USAGE, "preset '%s' is unknown, expected " DALLE_PRESETS, name);
	in.config = p->config;
	batch = p->recipe.batch;
	if (path) {
		struct weights *w = weights_open(path, e);
		int r = w ? weights_need_kind(w, "dalle", e) || dalle_config_parse(&in.config, weights_config(w), path, e) : -1;
		weights_close(w);
		if (r)
			return -1;
	}
	layers = in.config.layers;
	width = in.config.width;
	heads = in.config.heads;
	conv_k = in.config.conv_k;
	text_length = in.config.text_length;
	return 0;
}

static int read_rates(const char *path, struct error *e)
{
	const struct {
		const char *name;
		double *to;
	} rates[] = {{"flops", &in.flops}, {"node_bandwidth", &in.node_bandwidth}, {"network", &in.network}};
	json_t *j = json_file_read(path, 1 << 20, e);
	int r = j ? 0 : -1;
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(rates); i++) {
		const json_t *v = json_object_get(j, rates[i].name);
		if (v && !(json_is_number(v) && json_number_value(v) >= 0))
			r = fail(e, STATUS_BAD, "%s: %s is no number from 0", path, rates[i].name);
		/* What the command line says goes before. */
		if (r == 0 && v && *rates[i].to == 0)
			*rates[i].to = json_number_value(v);
	}
	json_decref(j);
	return r;
}

static int apply_options(struct error *e)
{
	in.config.layers = (int)layers;
	in.config.width = (int)width;
	in.config.heads = (int)heads;
	in.config.conv_k = (int)conv_k;
	in.config.text_length = (int)text_length;
	in.type = types[precision];
	in.batch = (int)batch;
	in.gpus = (int)gpus;
	in.node = (int)node;
	in.rank = (int)rank;
	in.powersgd_type = powersgd_format ? DT_1_6_9 : DT_F32;
	if (powersgd_format && !rank)
		return fail(e, STATUS_USAGE, "--powersgd-format needs --powersgd");
	in.moments_16 = moments == 1;
	in.averages_on_host = averages == 1;
	in.overlap = !no_overlap;
	struct error inner = {0};
	if (dalle_config_check(&in.config, &inner))
		return fail(e, STATUS_USAGE, "%s", inner.text);
	return rates_path ? read_rates(rates_path, e) : 0;
}

/* ---- output ---- */

static const char *const mask_names[PLAN_KINDS] = {"full", "causal", "row", "column", "conv"};

static void put_count(const char *what, uint64_t n, const char *about)
{
	printf("%-22s %15llu%s%s\n", what, (unsigned long long)n, *about ? "  " : "", about);
}

static void put_bytes(const char *what, double bytes, const char *about)
{
	char text[24];
	format_bytes(text, sizeof text, bytes < 1.8e19 ? (uint64_t)bytes : UINT64_MAX);
	if (bytes > 0)
		printf("%-22s %15s%s%s\n", what, text, *about ? "  " : "", about);
}

static void put_parameters(const struct plan_parameters *n)
{
	printf("parameters\n");
	put_count("  embeddings", n->embeddings, "");
	put_count("  attention", n->attention, "matrices");
	put_count("  MLP", n->mlp, "matrices");
	put_count("  gains and biases", n->gains, "of resblocks");
	put_count("  heads", n->heads, "with the last norm");
	put_count("  all", n->total, "");
}

static void put_memory(const struct plan *p)
{
	const struct plan_memory *m = &p->memory;
	char about[80], kind[40];
	snprintf(kind, sizeof kind, "matrices in %s", dtype_name(in.type));
	printf("memory of a GPU\n");
	put_bytes("  weights", (double)m->weights, in.no_master ? "f32, without matrices" : "f32");
	put_bytes("  weight copies", (double)m->copies, kind);
	put_bytes("  gradients", (double)m->gradients, in.no_master ? kind : "f32");
	put_bytes("  moments", (double)m->moments, in.moments_16 ? "matrices in 16 bits, two" : "f32, two");
	put_bytes("  averaged weights", (double)m->averages, "f32");
	put_bytes("  gathered", (double)m->gathered, "whole resblocks at work and a gradient");
	put_bytes("  residual stream", (double)m->stream, "f32, inputs of resblocks");
	put_bytes("  inside resblocks", (double)m->inside, in.recompute ? "of one layer at a time" : "of every layer");
	put_bytes("  logits", (double)m->logits, "of one chunk");
	snprintf(about, sizeof about, "%d sequence%s", in.batch, plural((uint64_t)in.batch));
	put_bytes("  activations", (double)(m->stream + m->inside + m->logits), about);
	put_bytes("  total on device", (double)m->total, "");
	put_bytes("  averages on host", (double)m->host, "f32");
	put_bytes("  PowerSGD on host", (double)m->powersgd, "error buffers and factors");
}

static void put_operations(const char *what, double x, const char *about)
{
	if (x > 0)
		printf("%-22s %15.4g%s%s\n", what, x, *about ? "  " : "", about);
}

static void put_flops(const struct plan_flops *f)
{
	char what[40], about[80];
	printf("operations of an update and a GPU\n");
	put_operations("  matrix products", f->products, "");
	for (int k = 0; k < PLAN_KINDS; k++) {
		snprintf(what, sizeof what, "  %s attention", mask_names[k]);
		snprintf(about, sizeof about, "%d layer%s of %llu pairs", f->layers[k], plural((uint64_t)f->layers[k]), (unsigned long long)f->pairs[k]);
		put_operations(what, f->attention[k], about);
	}
	put_operations("  heads", f->heads, "captions of full length");
	put_operations("  computed again", f->recomputed, "");
	put_operations("  all", f->total, "");
}

static void put_wire(const struct plan *p)
{
	const struct plan_wire *w = &p->wire;
	char about[80];
	if (p->node > 1) {
		printf("bytes of an update and a GPU inside its machine of %d\n", p->node);
		put_bytes("  all-gather", w->gather, "");
		put_bytes("  reduce-scatter", w->scatter, "");
	}
	if (p->nodes < 2)
		return;
	printf("bytes of an update and a GPU between %d machines\n", p->nodes);
	put_bytes("  matrices", w->plain, in.rank ? "16 bits, not sent" : "16 bits");
	snprintf(about, sizeof about, "instead, %.4f %% %s", 100 * fabs(w->compression), w->compression < 0 ? "more" : "less");
	put_bytes("  PowerSGD P and Q", w->p + w->q, about);
	put_bytes("  others", w->others, "f32");
	put_bytes("  payload", w->payload, "");
	put_bytes("  sent in a ring", w->ring, "");
}

static void put_seconds(const char *what, double x, bool needed)
{
	if (x > 0)
		printf("%-22s %15.4g\n", what, x);
	else if (needed)
		printf("%-22s %15s\n", what, "not known");
}

static void put_time(const struct plan *p)
{
	printf("seconds of an update%s\n", in.overlap ? ", sending while computing" : ", sending after computing");
	put_seconds("  computing", p->time.compute, true);
	put_seconds("  inside machines", p->time.node, p->node > 1);
	put_seconds("  between machines", p->time.network, p->nodes > 1);
	bool part = !(p->time.compute > 0) || (p->node > 1 && !(p->time.node > 0)) || (p->nodes > 1 && !(p->time.network > 0));
	put_seconds(part ? "  all, at least" : "  all", p->time.total, true);
	put_seconds(part ? "images/hour, at most" : "images per hour", p->time.images, false);
}

static void put_table(const struct plan *p)
{
	put_parameters(&p->parameters);
	put_memory(p);
	put_flops(&p->flops);
	put_wire(p);
	if (in.flops > 0 || in.node_bandwidth > 0 || in.network > 0)
		put_time(p);
}

static json_t *attention_json(const struct plan_flops *f)
{
	json_t *j = json_object();
	for (int k = 0; k < PLAN_KINDS; k++)
		if (f->layers[k])
			json_object_set_new(j, mask_names[k], json_pack("{s:i,s:I,s:f}", "layers", f->layers[k], "pairs",
			                                                 (json_int_t)f->pairs[k], "operations", f->attention[k]));
	return j;
}

static json_t *plan_json(const struct plan *p)
{
	const struct plan_parameters *n = &p->parameters;
	const struct plan_memory *m = &p->memory;
	const struct plan_flops *f = &p->flops;
	const struct plan_wire *w = &p->wire;
	const struct plan_time *t = &p->time;
#define N(x) (json_int_t)(x)
	json_t *config = dalle_config_json(&in.config);
	json_t *counts = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "embeddings", N(n->embeddings), "attention", N(n->attention), "mlp",
	                           N(n->mlp), "gains", N(n->gains), "heads", N(n->heads), "total", N(n->total));
	json_t *memory = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}",
	                           "weights", N(m->weights), "copies", N(m->copies),
	                           "gradients", N(m->gradients), "moments", N(m->moments), "averages",
	                           N(m->averages), "gathered", N(m->gathered), "stream", N(m->stream), "inside", N(m->inside),
	                           "logits", N(m->logits), "total", N(m->total), "host", N(m->host), "powersgd", N(m->powersgd));
#undef N
	json_t *flops = json_pack("{s:f,s:o,s:f,s:f,s:f}", "products", f->products, "attention", attention_json(f),
	                          "heads", f->heads,
	                          "recomputed", f->recomputed, "total", f->total);
	json_t *wire = json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "gather", w->gather, "scatter", w->scatter,
	                         "matrices", w->plain,
	                         "p", w->p, "q", w->q, "others", w->others, "payload", w->payload, "ring", w->ring, "compression",
	                         w->compression);
	json_t *time = json_pack("{s:f,s:f,s:f,s:f,s:f}", "compute", t->compute, "node", t->node, "network", t->network, "total",
	                         t->total, "images_per_hour", t->images);
	return json_pack("{s:o,s:i,s:i,s:i,s:o,s:o,s:o,s:o,s:o}", "config", config, "gpus", in.gpus, "machines", p->nodes, "batch",
	                 in.batch, "parameters", counts, "memory", memory, "flops", flops, "wire", wire, "seconds", time);
}

static int put_json(const struct plan *p, struct error *e)
{
	json_t *j = plan_json(p);
	if (!j)
		return fail(e, STATUS_LIMIT, "out of memory");
	json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
	putchar('\n');
	json_decref(j);
	return 0;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	struct plan plan;
	program_name = tool.name;
	int first = argc, status = apply_sizes(argc, argv, &e) ? report(&e) : opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (first < argc)
		return finish(opt_misuse("'%s': expected options only", argv[first]));
	if (apply_options(&e) || plan_make(&in, &plan, &e))
		return finish(report(&e));
	if (as_json)
		put_json(&plan, &e);
	else
		put_table(&plan);
	return finish(e.status ? report(&e) : STATUS_OK);
}
