/* model-main.c - see model-main.h. */
#include "model-main.h"

int model_main(const struct tool *tool, const char **model, const struct run_options *run, int argc, char **argv,
               filter_work *work)
{
	struct error e = {0};
	struct filter f = {0};
	const struct ops *ops = NULL;
	struct dev *dev = NULL;
	int first, status = opt_parse(tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!*model)
		return finish(opt_misuse("-m MODEL is needed"));
	if (device_open(run, &ops, &dev, &e) == 0)
		work(&f, ops, dev, argc, argv, first, &e);
	status = filter_close(&f, &e);
	device_close(ops, dev);
	return finish(status);
}
