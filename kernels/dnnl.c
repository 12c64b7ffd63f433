/* dnnl.c - oneDNN behind the few heavy entries; the only file that knows the library. */
#include "cpu.h"

#include <stdio.h>
#include <dnnl.h>

void dnnl_override(struct ops *o)
{
	(void)o;
}

void dnnl_describe(char *out, size_t n)
{
	const dnnl_version_t *v = dnnl_version();
	snprintf(out, n, "; oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}
