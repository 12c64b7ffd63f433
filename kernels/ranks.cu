/* ranks.cu - sums over the GPUs of several processes, by NCCL: no copy through the hosts' memory.  The library is loaded when
 * ranks ask for it, so a machine without it, or a build without its header, still trains with ranks. */
#include "cuda.cuh"

#ifdef CUDA_EMULATED
#define HAVE_NCCL 1
#else
#include <dlfcn.h>
#if __has_include(<nccl.h>)
#include <nccl.h>
#define HAVE_NCCL 1
#endif
#endif

#ifdef HAVE_NCCL
#define LIBRARY "libnccl.so.2"
#define NCCL_CALLS(X) X(GetUniqueId) X(CommInitRank) X(AllReduce) X(CommAbort) X(GetErrorString)
#define DECLARE_CALL(name) decltype(&nccl##name) name;
static struct {
	NCCL_CALLS(DECLARE_CALL)
} nccl;

static_assert(sizeof(ncclUniqueId) == RANKS_ID, "what ranks tell each other is NCCL's id");

static bool load(char *err, size_t n)
{
	bool all = true;
#ifdef CUDA_EMULATED
#define FIND_CALL(name) nccl.name = nccl##name;
#else
	void *so = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	all = so != NULL;
#define FIND_CALL(name) all = all && (*(void **)&nccl.name = dlsym(so, "nccl" #name)) != NULL;
#endif
	NCCL_CALLS(FIND_CALL)
	if (!all)
		snprintf(err, n, LIBRARY " cannot be loaded");
	return all;
}

static bool well(ncclResult_t r, const char *what, char *err, size_t n)
{
	if (r != ncclSuccess)
		snprintf(err, n, "NCCL: %s: %s", what, nccl.GetErrorString(r));
	return r == ncclSuccess;
}

int plugin_ranks_id(void *id, char *err, size_t n)
{
	return load(err, n) && (!id || well(nccl.GetUniqueId((ncclUniqueId *)id), "no id", err, n)) ? 0 : -1;
}

int plugin_ranks_join(struct dev *d, const void *id, int rank, int size, char *err, size_t n)
{
	ncclUniqueId of_all;
	memcpy(&of_all, id, sizeof of_all);
	return load(err, n) && well(nccl.CommInitRank(&d->ranks, size, of_all, rank), "the ranks do not join (two on one GPU?)", err, n) ? 0 : -1;
}

void plugin_ranks_sum(struct dev *d, float *x, size_t n)
{
	char why[200];
	d->op = "ranks_sum";
	if (!d->error[0] && !well(nccl.AllReduce(x, x, n, ncclFloat32, ncclSum, d->ranks, queue_of(d)), "sum", why, sizeof why))
		cuda_fail(d, "%s", why);
}

/* Not CommDestroy, which may wait for the other ranks: this one may be the only one to end. */
void ranks_close(struct dev *d)
{
	if (d->ranks)
		nccl.CommAbort(d->ranks);
}
#else
int plugin_ranks_id(void *, char *err, size_t n)
{
	snprintf(err, n, "this build is without NCCL");
	return -1;
}

int plugin_ranks_join(struct dev *, const void *id, int, int, char *err, size_t n)
{
	return plugin_ranks_id(NULL, err, n);
}

void plugin_ranks_sum(struct dev *d, float *, size_t)
{
	cuda_fail(d, "not joined");
}

void ranks_close(struct dev *) {}
#endif
