/* model-main.h - main of a filter that runs a model.  Apart from filter.h, so that filters that compute nothing do not
 * link the kernels. */
#ifndef MODEL_MAIN_H
#define MODEL_MAIN_H

#include "device.h"
#include "filter.h"

/* Opens the model and f, in the order that suits it, runs, and leaves nothing open but f.  -1 with e. */
typedef int filter_work(struct filter *f, const struct ops *ops, struct dev *dev, int argc, char **argv, int first,
                        struct error *e);

/* Options, of which -m (*model) is needed, the device, the work, and all closed again: main's status. */
int model_main(const struct tool *tool, const char **model, const struct run_options *run, int argc, char **argv,
               filter_work *work);

#endif
