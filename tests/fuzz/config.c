/* config.c - sizes of models as their files tell them (dalle.config); what is let through is described and planned, but no
 * memory is taken for it. */
#include "fuzz.h"

#include "../../libcommon/arena.h"
#include "../../libcommon/clip.h"
#include "../../libcommon/dalle.h"
#include "../../libcommon/dvae.h"

static const struct ops *ops;
static struct dev *dev;

static void use_dalle(const json_t *j)
{
	struct error e = {0};
	struct dalle d = {0};
	struct dalle_config c;
	if (dalle_config_parse(&c, j, "fuzz", &e) == 0 && dalle_describe(&d, &c, 0.125, false, &e) == 0) {
		dalle_plan_bytes(&d, 2, true, ops, dev);
		params_count(&d.params);
	}
	dalle_free(&d);
}

static void use_clip(const json_t *j)
{
	struct error e = {0};
	struct clip m = {0};
	struct clip_config c = {0};
	if (clip_config_from_json(&c, j, "fuzz", &e) == 0 && clip_plan(&m, &c, ops, dev, 2, true, &e) == 0)
		params_count(&m.params);
	clip_free(&m);
}

static void use_dvae(const json_t *j)
{
	struct error e = {0};
	struct dvae_config c;
	double encode, decode;
	if (dvae_config_from_json(&c, j, "fuzz", &e))
		return;
	dvae_flops(&c, &encode, &decode);
	struct dvae *d = dvae_plan(&c, DVAE_ENCODER | DVAE_DECODER | DVAE_TRAINING, DT_F32, 2, &e);
	if (d)
		params_count(dvae_params(d));
	dvae_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	fuzz_device(&ops, &dev);
	json_t *j = json_loadb((const char *)p, n, JSON_REJECT_DUPLICATES, NULL);
	use_dalle(j);
	use_clip(j);
	use_dvae(j);
	json_decref(j);
	return 0;
}
