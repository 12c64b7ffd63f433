/* clip-train - captions + pixels -> CLIP (recipe H1-H6).  The text tokens come from bpe-encode, the pictures have
 * the model's size. */
#include "../libcommon/clip.h"
#include "../libcommon/device.h"

#include <stdlib.h>

static struct train_options train = TRAIN_DEFAULTS;
static struct ranks ranks;
static struct run_options run = RUN_DEFAULTS(128);
static struct clip_config config;
static const char *preset = "small";
static int64_t size, shift = -1, memory = 1 << 30;
static bool closed;

static const struct opt options[] = {
	OPT_STRING('x', "preset", &preset, "NAME", "sizes and recipe: tiny|small|vit-b-32; the options below override it"),
	OPT_TRAIN(&train),
	OPT_RUN(&run),
	OPT_INT(0, "size", &size, 0, 4096, "N", "side of the model's pictures in pixels, 0 for the data's"),
	OPT_INT(0, "patch", &config.patch, 1, 4096, "N", "side of a patch in pixels"),
	OPT_INT(0, "image-width", &config.image_width, 1, 65536, "N", "width of the picture tower"),
	OPT_INT(0, "image-layers", &config.image_layers, 1, 1024, "N", "layers of the picture tower"),
	OPT_INT(0, "image-heads", &config.image_heads, 1, 1024, "N", "heads of the picture tower"),
	OPT_INT(0, "context", &config.context, 3, 65536, "N", "text positions, start and end included"),
	OPT_INT(0, "text-width", &config.text_width, 1, 65536, "N", "width of the text tower"),
	OPT_INT(0, "text-layers", &config.text_layers, 1, 1024, "N", "layers of the text tower"),
	OPT_INT(0, "text-heads", &config.text_heads, 1, 1024, "N", "heads of the text tower"),
	OPT_INT(0, "embed", &config.embed, 1, 65536, "N", "width of the shared space"),
	OPT_REAL(0, "decay", &config.decay, 0, 10, "X", "weight decay"),
	OPT_CHOICE(0, "augment", &config.augment, CLIP_AUGMENTS, "move pictures, take a random square of each, or neither"),
	OPT_INT(0, "shift", &shift, -1, 1024, "N", "move pictures by up to N pixels, -1 for a sixteenth of their side"),
	OPT_FLAG(0, "closed", &closed, "captions have start and end tokens, as CLIP's own vocabulary gives them"),
	OPT_FLAG(0, "new-vocabulary", &train.new_vocabulary, "with --init: the vocabulary may be another, its tensor starts anew"),
	OPT_INT(0, "memory", &memory, 1 << 20, 1e15, "BYTES", "keep at most this much data in memory"),
	OPT_END,
};
static const struct tool tool = {"clip-train", "-o MODEL [OPTION]... [FILE]...",
                                 "Train CLIP on records with captions as text tokens and pixels", options};

/* A preset's sizes and recipe; --init brings its model's sizes.  -1 to go on, or the exit status. */
static int apply_preset(int argc, char **argv)
{
	struct error e = {0};
	struct weights *w;
	if (clip_preset(opt_early(&tool, argc, argv, "preset", preset), &config, &e))
		return opt_misuse("%s", e.text);
	train.lr = config.lr;
	train.warmup = config.warmup;
	int r = train_init_sizes(&tool, argc, argv, "clip", &w, &e);
	if (r == 0 && w && (r = clip_config_from_json(&config, weights_config(w), weights_path(w), &e)) == 0) {
		size = config.size;
		closed = config.closed;
	}
	weights_close(w);
	return r ? report(&e) : -1;
}

/* What the data decides: picture size and vocabulary. */
static int fit_config(const struct header *h, const char *file, struct error *e)
{
	if (!h->text.id[0])
		return fail(e, STATUS_BAD, "%s: holds no text tokens, expected a stream from bpe-encode", file);
	if (!size && (!h->width || h->width != h->height))
		return fail(e, STATUS_BAD, "%s: pictures are not all squares of one size, expected img-pack -s SIZE or --size", file);
	config.size = size ? size : h->width;
	config.closed = closed;
	config.vocabulary = (int64_t)h->text.size + (closed ? 0 : 2); /* start and end */
	if (config.size % config.patch)
		return fail(e, STATUS_USAGE, "--patch %lld does not divide the pictures' side of %lld", (long long)config.patch,
		            (long long)config.size);
	return 0;
}

/* What one option says of another: -1 to go on, or the exit status. */
static int check_options(void)
{
	if (!train.output && !train.dry_run)
		return opt_misuse("-o MODEL is needed");
	if (config.image_width % config.image_heads)
		return opt_misuse("--image-width %lld is not a multiple of --image-heads %lld", (long long)config.image_width,
		                  (long long)config.image_heads);
	if (config.text_width % config.text_heads)
		return opt_misuse("--text-width %lld is not a multiple of --text-heads %lld", (long long)config.text_width,
		                  (long long)config.text_heads);
	return -1;
}

static void fill_trainer(struct clip_trainer *t, struct clip *m, const struct header *h)
{
	snprintf(m->text_id, sizeof m->text_id, "%s", h->text.id);
	t->seed = (uint64_t)train.seed;
	t->max_shift = (int)(shift < 0 ? config.size / 16 : shift);
	t->lr = train.lr;
	t->warmup = train.warmup;
}

static int train_model(struct loader *data, const struct ops *ops, struct dev *dev, int argc, char **argv, struct error *e)
{
	struct clip model = {0};
	struct clip_trainer trainer = {0};
	struct trainee trainee = {0};
	int status = STATUS_OK;
	if (clip_plan(&model, &config, ops, dev, (int)run.batch, true, e) == 0 && clip_trainer_init(&trainer, &model, e) == 0) {
		fill_trainer(&trainer, &model, loader_header(data));
		clip_trainee(&trainer, &trainee);
		trainee.config = clip_config_json(&config);
		trainee.recipe = clip_recipe(&trainer);
		if (!trainee.config || !trainee.recipe)
			fail(e, STATUS_LIMIT, "out of memory");
		else if (train_plan(&trainee, &train, ops, dev, e) == 0 && clip_build(&model, e) == 0)
			status = train_run(&trainee, &train, data, argc, argv, e);
		json_decref(trainee.config);
		json_decref(trainee.recipe);
	}
	clip_trainer_free(&trainer);
	clip_free(&model);
	return e->status ? e->status : status;
}

int main(int argc, char **argv)
{
	struct error e = {0};
	program_name = tool.name;
	int first, status = apply_preset(argc, argv);
	if (status < 0)
		status = opt_parse(&tool, argc, argv, &first);
	if (status < 0)
		status = check_options();
	if (status >= 0)
		return finish(status);
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
