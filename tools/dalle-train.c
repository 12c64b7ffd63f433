/* dalle-train - records with text and image tokens -> transformer (recipe C). */
#include "../libcommon/dalle-train.h"
#include "../libcommon/device.h"
#include "../libcommon/filter.h"

#include <string.h>

static struct train_options train = TRAIN_DEFAULTS;
static struct ranks ranks;
static struct run_options run = RUN_DEFAULTS(1);
static const char *preset = "small", *vocabulary, *halvings;
static int64_t layers, width, heads, conv_k, text_length, average_every, memory = 1 << 30;
static int64_t powersgd_rank, most_halvings = 5, plateau_window, plateau_patience = 2;
static double caption_dropout, token_dropout, plateau_gain = 0.002;
static struct dalle_preset model;
static bool recompute, centred, on_plateau, cosine;
static int grad_scale, powersgd_format;

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes and recipe: " DALLE_PRESETS "; the options below override it"),
	OPT_TRAIN(&train),
	OPT_RUN(&run),
	OPT_INT(0, "layers", &layers, 1, 1024, "N", "layers, each attention and MLP"),
	OPT_INT(0, "width", &width, 1, 1 << 17, "N", "width of the residual stream, a multiple of --heads"),
	OPT_INT(0, "heads", &heads, 1, 4096, "N", "attention heads"),
	OPT_CHOICE(0, "mask", &model.config.mask, DALLE_MASKS,
	           "attention: the paper's row, column and conv layers, or all earlier states"),
	OPT_INT(0, "conv-k", &conv_k, 1, 4095, "N", "side of the conv mask's window, odd"),
	OPT_FLAG(0, "conv-centred", &centred, "conv mask without the taps that wrap around (61 instead of 66)"),
	OPT_INT(0, "text-length", &text_length, 1, 1 << 16, "N", "text states; captions have at most N - 1 tokens"),
	OPT_STRING(0, "bpe", &vocabulary, "VOCAB", "vocabulary file: encode captions anew each time, with dropout"),
	OPT_REAL(0, "bpe-dropout", &model.recipe.bpe_dropout, 0, 1, "P", "share of merges skipped with --bpe"),
	OPT_REAL(0, "caption-dropout", &caption_dropout, 0, 1, "P", "share of captions replaced by the empty one, for --guidance"),
	OPT_REAL(0, "token-dropout", &token_dropout, 0, 1, "P",
	         "share of image tokens hidden from what follows them, against overfitting"),
	OPT_FLAG(0, "cosine", &cosine, "let the step size fall along a cosine; the small presets do"),
	OPT_REAL(0, "lr-end", &model.recipe.lr_end, 0, 1, "X", "end of the cosine, as a share of the peak step size"),
	OPT_STRING(0, "halve-at", &halvings, "LIST", "halve the step size at these updates (N,N,...) instead of the cosine"),
	OPT_FLAG(0, "halve-on-plateau", &on_plateau, "halve it when the training loss stops falling; the large presets do"),
	OPT_INT(0, "halvings", &most_halvings, 0, PLATEAU_MOST, "N", "most halvings on a plateau"),
	OPT_INT(0, "plateau-window", &plateau_window, 0, 1e12, "N",
	        "updates whose mean losses are compared, 0 for a fiftieth of all"),
	OPT_REAL(0, "plateau-gain", &plateau_gain, 0, 1, "X", "a mean that is lower by less than this share is no gain"),
	OPT_INT(0, "plateau-patience", &plateau_patience, 1, 1e6, "N", "means in a row without gain that make a plateau"),
	OPT_REAL(0, "decay", &model.recipe.decay, 0, 10, "X", "weight decay"),
	OPT_REAL(0, "clip", &model.recipe.clip, 0, 1e9, "X", "greatest norm of the gradient, 0 for any"),
	OPT_REAL(0, "average-decay", &model.recipe.average_decay, 0, 1, "X", "decay of the weight average, 0 for none"),
	OPT_INT(0, "average-every", &average_every, 1, 1 << 20, "N", "updates between averagings"),
	OPT_FLAG(0, "new-vocabulary", &train.new_vocabulary,
	         "with --init: vocabulary or dVAE may be others, their tensors start anew"),
	OPT_REAL(0, "init-scale", &model.recipe.init, 0, 10, "X", "scale of the initial weights; the literature has 0.125"),
	OPT_CHOICE(0, "grad-scale", &grad_scale, "resblock|global",
	           "with -p f16: a gradient scale for each resblock, or one for the loss"),
	OPT_INT(0, "powersgd", &powersgd_rank, 0, 1 << 20, "R",
	        "sum gradients of resblocks' matrices over ranks as products of rank R, with error feedback; 0 plainly"),
	OPT_CHOICE(0, "powersgd-format", &powersgd_format, "f32|16", "of its error buffers and messages; 16: 1-6-9"),
	OPT_FLAG(0, "powersgd-keep", &train.powersgd.keep_skipped,
	         "what an update that is left out has sent stays in the error buffers"),
	OPT_FLAG(0, "recompute", &recompute, "keep only resblock inputs and compute the rest again: less memory, more time"),
	OPT_INT(0, "memory", &memory, 1 << 20, 1e15, "BYTES", "keep at most this much data in memory"),
	OPT_END,
};
static const struct tool tool = {"dalle-train", "-o MODEL [OPTION]... [FILE]...",
                                 "Train the transformer on records with text and image tokens", options};

/* --init brings its model's sizes. */
static int apply_init(int argc, char **argv)
{
	struct error e = {0};
	struct weights *w;
	int r = train_init_sizes(&tool, argc, argv, "dalle", &w, &e);
	if (r == 0 && w)
		r = dalle_config_parse(&model.config, weights_config(w), weights_path(w), &e);
	weights_close(w);
	return r ? report(&e) : 0;
}

static int apply_preset(int argc, char **argv)
{
	const char *name = opt_early(&tool, argc, argv, "preset", preset);
	const struct dalle_preset *p = dalle_preset_find(name);
	if (!p)
		return opt_misuse("preset '%s' is unknown, expected " DALLE_PRESETS, name);
	model = *p;
	int status = apply_init(argc, argv);
	layers = model.config.layers;
	width = model.config.width;
	heads = model.config.heads;
	conv_k = model.config.conv_k;
	centred = model.config.conv_centred;
	text_length = model.config.text_length;
	train.lr = p->recipe.lr;
	train.warmup = p->recipe.warmup;
	average_every = p->recipe.average_every;
	run.batch = p->recipe.batch;
	return status;
}

static bool halves_on_plateau(void)
{
	return on_plateau || (model.recipe.halving && !cosine && !halvings);
}

static void apply_options(void)
{
	model.config.layers = (int)layers;
	model.config.width = (int)width;
	model.config.heads = (int)heads;
	model.config.conv_k = (int)conv_k;
	model.config.conv_centred = centred;
	model.config.text_length = (int)text_length;
	model.recipe.average_every = (int)average_every;
	model.recipe.batch = (int)run.batch;
	train.powersgd.rank = (int)powersgd_rank;
	train.powersgd.type = powersgd_format ? DT_1_6_9 : DT_F32;
	train.powersgd.seed = (uint64_t)train.seed;
	model.recipe.lr = train.lr;
	model.recipe.warmup = train.warmup;
	on_plateau = halves_on_plateau();
}

/* Options of one schedule of step sizes with another: -1 to go on, or the exit status. */
static int check_schedule(int argc, char **argv)
{
	static const char *const plateau[] = {"halvings", "plateau-window", "plateau-gain", "plateau-patience"};
	if (cosine + on_plateau + (halvings != NULL) > 1)
		return opt_misuse("--cosine, --halve-at and --halve-on-plateau exclude each other");
	if (opt_early(&tool, argc, argv, "lr-end", NULL) && (halvings || halves_on_plateau()))
		return opt_misuse("--lr-end is the end of the cosine, which %s replaces", halvings ? "--halve-at" :
		                  on_plateau ? "--halve-on-plateau" : "the preset's --halve-on-plateau");
	for (size_t i = 0; i < ARRAY_LEN(plateau); i++)
		if (opt_early(&tool, argc, argv, plateau[i], NULL) && !halves_on_plateau())
			return opt_misuse("--%s needs --halve-on-plateau", plateau[i]);
	return -1;
}

/* What one option says of another: -1 to go on, or the exit status. */
static int check_options(int argc, char **argv)
{
	if (!train.output && !train.dry_run)
		return opt_misuse("-o MODEL is needed");
	if (width % heads)
		return opt_misuse("--width %lld is not a multiple of --heads %lld", (long long)width, (long long)heads);
	if (conv_k % 2 == 0)
		return opt_misuse("--conv-k %lld is even, expected an odd number", (long long)conv_k);
	if ((powersgd_format || train.powersgd.keep_skipped) && !powersgd_rank)
		return opt_misuse("--powersgd-format and --powersgd-keep need --powersgd");
	return check_schedule(argc, argv);
}

/* The data decides vocabularies and grid. */
static int fit_config(const struct header *h, const char *file, struct error *e)
{
	if (need_text(h, file, e) || need_image(h, file, e))
		return -1;
	dalle_config_from_header(&model.config, h);
	struct error inner = {0};
	if (dalle_config_check(&model.config, &inner))
		return fail(e, STATUS_BAD, "%s: %s", file, inner.text);
	return 0;
}

static int open_vocabulary(struct dalle_fit *f, const struct header *h, struct error *e)
{
	if (!vocabulary)
		return 0;
	f->bpe = ranks_need_file(&ranks, vocabulary, e) ? NULL : bpe_open(vocabulary, e);
	if (!f->bpe)
		return -1;
	if (strcmp(bpe_id(f->bpe), h->text.id) != 0)
		return fail(e, STATUS_BAD, "%s: is vocabulary %s, but the text tokens of %s are of %s", vocabulary, bpe_id(f->bpe),
		            f->file, h->text.id);
	return 0;
}

/* 0 ready to run, 1 the plan was printed, -1. */
static int prepare(struct dalle_fit *f, struct trainee *t, const struct header *h, const struct ops *ops, struct dev *dev,
                   struct error *e)
{
	json_t *config = dalle_config_json(&model.config);
	if (!config)
		return fail(e, STATUS_LIMIT, "out of memory");
	f->recipe = model.recipe;
	f->caption_dropout = caption_dropout;
	f->token_dropout = token_dropout;
	f->constant = on_plateau || halvings;
	train.powersgd.threads = (int)run.threads;
	f->grad_scale = grad_scale ? GRAD_SCALE_GLOBAL : GRAD_SCALE_RESBLOCK;
	uint64_t bytes = 0;
	int r = dalle_parse_halvings(f, halvings, e) || open_vocabulary(f, h, e) ||
	        dalle_describe(f->d, &model.config, model.recipe.init, recompute, e) || dalle_fit_start(f, e);
	if (r == 0)
		bytes = dalle_plan_bytes(f->d, (int)run.batch, true, ops, dev);
	dalle_fit_trainee(f, t, config, h);
	if (r == 0 && !(t->recipe = dalle_fit_recipe(f)))
		r = fail(e, STATUS_LIMIT, "out of memory");
	t->activation_bytes = bytes;
	t->can_recompute = !recompute;
	if (on_plateau)
		t->plateau = (struct plateau_rule){(int)most_halvings, model.recipe.warmup, plateau_window,
		                                  plateau_patience, plateau_gain};
	int planned = r == 0 ? train_plan(t, &train, ops, dev, e) : -1;
	if (planned)
		return planned;
	return dalle_build(f->d, ops, dev, true, e) || dalle_plan(f->d, (int)run.batch, true, e) ? -1 : 0;
}

static int train_model(struct loader *data, int argc, char **argv, struct error *e)
{
	static const struct header none;
	struct dalle d = {0};
	struct dalle_fit fit = {.d = &d, .file = data ? loader_name(data) : ""};
	struct trainee t = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	int status = STATUS_OK;
	const struct header *h = data ? loader_header(data) : &none;
	if (device_open(&run, &ops, &dev, e) == 0 && prepare(&fit, &t, h, ops, dev, e) == 0)
		status = train_run(&t, &train, data, argc, argv, e);
	json_decref(t.config);
	json_decref(t.recipe);
	dalle_fit_free(&fit);
	bpe_close(fit.bpe);
	dalle_free(&d);
	device_close(ops, dev);
	return status;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	program_name = tool.name;
	int first, status = apply_preset(argc, argv);
	if (status == 0 && (status = opt_parse(&tool, argc, argv, &first)) < 0 && (status = check_options(argc, argv)) < 0)
		apply_options();
	if (status >= 0)
		return finish(status);
	/* A plan without data is made for the preset's vocabularies and grid. */
	train.table = options;
	struct loader *data = NULL;
	bool planned = train.dry_run && first == argc;
	if (ranks_open(&ranks, &train, &run, argv + first, argc - first, &e) == 0 && !planned)
		data = loader_begin(argv + first, argc - first, (uint64_t)train.seed, (uint64_t)memory, &e);
	if (!e.status && (planned || fit_config(loader_header(data), loader_name(data), &e) == 0))
		status = train_model(data, argc, argv, &e);
	loader_close(data);
	return finish(ranks_close(&ranks, status, &e));
}
