/* dvae-train - pixels -> discrete VAE (paper 2.1, A.2, A.3; recipe B). */
#include "../libcommon/device.h"
#include "../libcommon/dvae-fit.h"

static struct train_options train = TRAIN_DEFAULTS;
static struct ranks ranks;
static struct run_options run = RUN_DEFAULTS(32);
static struct dvae_config config;
static struct dvae_fit_options fit;
static const char *preset = "small";
static int64_t memory = 1 << 30;
static int augment;

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes and recipe: " DVAE_PRESETS "; the options below override it"),
	OPT_TRAIN(&train),
	OPT_RUN(&run),
	OPT_INT(0, "size", &config.size, 0, STREAM_MAX_SIDE, "N", "side of the pictures in pixels, 0 for the data's"),
	OPT_INT(0, "stem", &config.stem, 1, 64, "N", "side of the pixel blocks that the first convolution sees as one place"),
	OPT_INT(0, "hidden", &config.hidden, 4, 1 << 16, "N", "channels of the first group, doubled by each next one"),
	OPT_INT(0, "initial", &config.initial, 1, 1 << 16, "N", "width of the codebook's vectors"),
	OPT_INT(0, "groups", &config.groups, 1, 8, "N", "groups of residual blocks, a halving between each two"),
	OPT_INT(0, "blocks", &config.blocks, 1, 64, "N", "residual blocks in a group"),
	OPT_INT(0, "codes", &config.codes, 2, 1 << 20, "N", "codes in the codebook"),
	OPT_INT(0, "kernel", &config.kernel, 1, 63, "N", "side of the first convolution's kernel, odd"),
	OPT_REAL(0, "gain", &config.post_gain, 0, 1000, "X", "factor of the residual paths, 0 for 1 / (groups * blocks)^2"),
	OPT_REAL(0, "lr-end", &fit.schedule.lr_end, 0, 10, "X", "step size at the end of its schedule, itself and no share of --lr"),
	OPT_REAL(0, "lr-steps", &fit.schedule.lr_span, 0, 1e12, "X", "updates of that schedule, up to 1: share of all"),
	OPT_REAL(0, "beta", &fit.schedule.beta, 0, 1e6, "X", "weight of the KL term after its rise from 0"),
	OPT_REAL(0, "beta-steps", &fit.schedule.beta_span, 0, 1e12, "X", "updates of that rise, up to 1: share of all"),
	OPT_REAL(0, "tau", &fit.schedule.tau_start, 1e-3, 1e3, "X", "temperature of the relaxation at the start"),
	OPT_REAL(0, "tau-end", &fit.schedule.tau_end, 1e-3, 1e3, "X", "temperature at the end of its schedule"),
	OPT_REAL(0, "tau-steps", &fit.schedule.tau_span, 0, 1e12, "X", "updates of that schedule, up to 1: share of all"),
	OPT_REAL(0, "average-decay", &fit.schedule.average_decay, 0, 0.999999, "X", "decay of the weight average, 0 for none"),
	OPT_REAL(0, "usage-bonus", &fit.usage_bonus, 0, 1e3, "X", "weight of the mean code distribution's entropy, fading out"),
	OPT_REAL(0, "calibrate", &fit.calibrate, 0, 100, "X",
	         "start from clusters of the data, posteriors of X nats; 0 from chance"),
	OPT_REAL(0, "least-b", &fit.least_b, 0, 100, "X", "scale of the likelihood below which errors do not count more, 0 for none"),
	OPT_CHOICE(0, "augment", &augment, DVAE_AUGMENTS, "what is done to the pictures"),
	OPT_STRING(0, "preview", &fit.preview, "FILE", "PNG of originals over reconstructions, after each evaluation"),
	OPT_INT(0, "memory", &memory, 1 << 20, 1e15, "BYTES", "keep at most this much data in memory"),
	OPT_END,
};
static const struct tool tool = {"dvae-train", "-o MODEL [OPTION]... [FILE]...",
                                 "Train a discrete VAE on the pixels of records", options};

/* --init brings its model's sizes. */
static int apply_init(int argc, char **argv)
{
	struct error e = {0};
	struct weights *w;
	int r = train_init_sizes(&tool, argc, argv, "dvae", &w, &e);
	if (r == 0 && w)
		r = dvae_config_from_json(&config, weights_config(w), weights_path(w), &e);
	weights_close(w);
	return r ? report(&e) : -1;
}

/* The preset's fields become the defaults that options override: -1 to go on, or the exit status. */
static int apply_preset(int argc, char **argv)
{
	const char *name = opt_early(&tool, argc, argv, "preset", preset);
	const struct dvae_preset *p = dvae_preset(name);
	if (!p)
		return opt_misuse("preset '%s' is unknown, expected " DVAE_PRESETS, name);
	config = p->config;
	fit.schedule = p->schedule;
	train.lr = p->schedule.lr;
	train.warmup = p->schedule.warmup;
	fit.usage_bonus = p->usage_bonus;
	fit.calibrate = p->calibrate;
	fit.least_b = p->least_b;
	run.batch = p->batch;
	return apply_init(argc, argv);
}

/* The picture size, when it is not given, is the data's. */
static int fit_config(const struct header *h, const char *file, struct error *e)
{
	if (config.size)
		return 0;
	if (fit.augment == DVAE_AUGMENT_PAPER)
		return fail(e, STATUS_USAGE, "--augment paper cuts pictures from larger ones: give --size");
	if (!h->width || h->width != h->height)
		return fail(e, STATUS_BAD, "%s: pictures are not all squares of one size, expected img-pack -s SIZE or --size",
		            file);
	config.size = h->width;
	return 0;
}

static int train_fit(struct dvae *d, struct loader *data, int argc, char **argv, struct error *e)
{
	struct trainee trainee = {0};
	fit.data = data;
	struct dvae_fit *f = dvae_fit_new(d, &fit, loader_name(data), e);
	int status = STATUS_FAIL;
	if (!f)
		return status;
	dvae_fit_trainee(f, &trainee);
	trainee.config = dvae_config_to_json(dvae_configuration(d));
	trainee.recipe = dvae_fit_recipe(&fit);
	trainee.text_id = trainee.image_id = "";
	if (trainee.config && trainee.recipe)
		status = train_run(&trainee, &train, data, argc, argv, e);
	else
		fail(e, STATUS_LIMIT, "out of memory");
	json_decref(trainee.config);
	json_decref(trainee.recipe);
	dvae_fit_free(f);
	return status;
}

static int train_model(struct loader *data, const struct ops *ops, struct dev *dev, int argc, char **argv, struct error *e)
{
	int parts = DVAE_ENCODER | DVAE_DECODER | DVAE_TRAINING, status = STATUS_OK;
	struct dvae *d = dvae_plan(&config, parts, ops->type(dev), (int)run.batch, e);
	struct trainee sizes = {0};
	if (!d)
		return e->status;
	dvae_fit_plan(d, &fit, &sizes);
	sizes.config = dvae_config_to_json(dvae_configuration(d));
	int planned = train_plan(&sizes, &train, ops, dev, e);
	json_decref(sizes.config);
	if (planned == 0 && dvae_build(d, ops, dev, e) == 0)
		status = train_fit(d, data, argc, argv, e);
	dvae_free(d);
	return e->status ? e->status : status;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	program_name = tool.name;
	int first, status = apply_preset(argc, argv);
	if (status < 0)
		status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!train.output && !train.dry_run)
		return finish(opt_misuse("-o MODEL is needed"));
	fit.augment = (enum dvae_augment)augment;
	fit.schedule.lr = train.lr;
	fit.schedule.warmup = train.warmup;
	train.table = options;
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	struct loader *data = NULL;
	if (ranks_open(&ranks, &train, &run, argv + first, argc - first, &e) == 0)
		data = loader_begin(argv + first, argc - first, (uint64_t)train.seed, (uint64_t)memory, &e);
	if (data && fit_config(loader_header(data), loader_name(data), &e) == 0 && device_open(&run, &ops, &dev, &e) == 0)
		status = train_model(data, ops, dev, argc, argv, &e);
	loader_close(data);
	device_close(ops, dev);
	return finish(ranks_close(&ranks, status, &e));
}
