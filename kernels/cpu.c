/* cpu.c - the CPU as a device: opening, threads, memory, scratch and the sticky error, and the
 * table of its entries.  The computing entries live in the files that cpu.h names; where the
 * build has oneDNN, dnnl.c then replaces a few of them. */
#include "cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20, LINE = 64 };

/* ---- what the system grants ---- */

static int64_t file_number(const char *path, int field)
{
	FILE *f = fopen(path, "re");
	char word[2][32] = { "", "" };
	if (!f)
		return -1;
	int n = fscanf(f, "%31s %31s", word[0], word[1]);
	fclose(f);
	if (n <= field || word[field][0] < '0' || word[field][0] > '9') /* "max" is no limit */
		return -1;
	return strtoll(word[field], NULL, 10);
}

/* This process's folder below /sys/fs/cgroup (version 2), "" for the root or when unknown. */
static void cgroup_path(char *out, size_t n)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[1024];
	out[0] = 0;
	while (f && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		if (strncmp(line, "0::/", 4) == 0 && line[4])
			snprintf(out, n, "%s", line + 3);
	}
	if (f)
		fclose(f);
}

/* The least over the cgroup and its ancestors of what one(folder) says; -1: no limit. */
static int64_t cgroup_least(int64_t (*one)(const char *folder))
{
	char path[1024], folder[1200];
	int64_t least = -1;
	cgroup_path(path, sizeof path);
	for (;;) {
		snprintf(folder, sizeof folder, "/sys/fs/cgroup%s", path);
		int64_t v = one(folder);
		if (v >= 0 && (least < 0 || v < least))
			least = v;
		char *slash = strrchr(path, '/');
		if (!slash)
			return least;
		*slash = 0;
	}
}

static int64_t quota_threads(const char *folder)
{
	char file[1300];
	snprintf(file, sizeof file, "%s/cpu.max", folder);
	int64_t quota = file_number(file, 0), period = file_number(file, 1);
	if (quota < 0) { /* version 1 */
		quota = file_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 0);
		period = file_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 0);
	}
	return quota <= 0 || period <= 0 ? -1 : quota < period ? 1 : (quota + period / 2) / period;
}

static int64_t quota_memory(const char *folder)
{
	char max[1300], current[1300];
	snprintf(max, sizeof max, "%s/memory.max", folder);
	snprintf(current, sizeof current, "%s/memory.current", folder);
	int64_t limit = file_number(max, 0), used = file_number(current, 0);
	if (limit < 0) {
		limit = file_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", 0);
		used = file_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", 0);
	}
	return limit < 0 || used < 0 ? -1 : limit > used ? limit - used : 0;
}

int cpu_usable_threads(void)
{
	cpu_set_t set;
	int n = (int)sysconf(_SC_NPROCESSORS_ONLN);
#ifdef _OPENMP
	if (getenv("OMP_NUM_THREADS"))
		return omp_get_max_threads();
#endif
	if (sched_getaffinity(0, sizeof set, &set) == 0)
		n = CPU_COUNT(&set);
	int64_t quota = cgroup_least(quota_threads);
	return quota > 0 && quota < n ? (int)quota : n > 0 ? n : 1;
}

/* The value of the first "name : value" line of /proc/cpuinfo. */
static bool cpuinfo_line(const char *name, char *out, size_t n)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[8192];
	bool found = false;
	out[0] = 0;
	while (f && !found && fgets(line, sizeof line, f)) {
		char *colon = strchr(line, ':');
		if (strncmp(line, name, strlen(name)) || !colon)
			continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(out, n, "%s", colon[1] == ' ' ? colon + 2 : colon + 1);
		found = true;
	}
	if (f)
		fclose(f);
	return found;
}

static bool has_word(const char *list, const char *word)
{
	size_t n = strlen(word);
	for (const char *p = list; (p = strstr(p, word)); p += n)
		if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
			return true;
	return false;
}

static void cpu_flags(char *out, size_t n)
{
	if (!cpuinfo_line("flags", out, n))
		cpuinfo_line("Features", out, n); /* Arm */
}

int cpu_has(const char *flag)
{
	char flags[8192];
	cpu_flags(flags, sizeof flags);
	return has_word(flags, flag);
}

/* ---- entries ---- */

int cpu_count(void)
{
	return 1;
}

enum dtype cpu_preferred(int index)
{
	/* The references convert bf16 at every load: only a library with bf16 instructions gains. */
	if (HAVE_ONEDNN && (cpu_has("amx_bf16") || cpu_has("avx512_bf16") || cpu_has("bf16")))
		return DT_BF16;
	return DT_F32;
}

struct dev *cpu_open(int index, enum dtype t, int threads, char *err, size_t n)
{
	if (index != 0) {
		snprintf(err, n, "device %d: there is one CPU device, 0", index);
		return NULL;
	}
	struct dev *d = calloc(1, sizeof *d);
	if (!d) {
		snprintf(err, n, "out of memory");
		return NULL;
	}
	d->type = t;
	d->threads = threads > 0 ? threads : cpu_usable_threads();
#ifndef _OPENMP
	d->threads = 1; /* whatever was asked for */
#endif
	return d;
}

void cpu_close(struct dev *d)
{
	if (!d)
		return;
	if (d->accelerator_close)
		d->accelerator_close(d);
	for (int i = 0; i < d->chunks; i++)
		free(d->chunk[i].base);
	free(d);
}

enum dtype cpu_type(const struct dev *d)
{
	return d->type;
}

void cpu_describe(const struct dev *d, char *out, size_t n)
{
	static const char *const sets[] = { "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16" };
	char model[128], flags[8192];
	cpuinfo_line("model name", model, sizeof model);
	cpu_flags(flags, sizeof flags);
	int at = snprintf(out, n, "%s, %d thread%s", model[0] ? model : "CPU", d->threads, d->threads == 1 ? "" : "s");
	for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
		if (has_word(flags, sets[i]) && at >= 0 && (size_t)at < n)
			at += snprintf(out + at, n - (size_t)at, " %s", sets[i]);
#if HAVE_ONEDNN
	if (at >= 0 && (size_t)at < n)
		dnnl_describe(out + at, n - (size_t)at);
#endif
}

/* What `ulimit -v` leaves of the address space, or -1. */
static int64_t address_space_left(void)
{
	struct rlimit limit;
	unsigned long long pages = 0;
	if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return -1;
	FILE *f = fopen("/proc/self/statm", "re");
	bool known = f && fscanf(f, "%llu", &pages) == 1;
	if (f)
		fclose(f);
	uint64_t used = known ? pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
	return used < limit.rlim_cur ? (int64_t)(limit.rlim_cur - used) : 0;
}

uint64_t cpu_memory(const struct dev *d)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[256];
	unsigned long long kb = 0;
	while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %llu", &kb) != 1)
		;
	if (f)
		fclose(f);
	int64_t quota = cgroup_least(quota_memory);
	int64_t space = address_space_left();
	uint64_t bytes = (uint64_t)kb * 1024;
	bytes = quota >= 0 && (uint64_t)quota < bytes ? (uint64_t)quota : bytes;
	return space >= 0 && (uint64_t)space < bytes ? (uint64_t)space : bytes;
}

/* Large blocks ask for huge pages: products over tall matrices miss the page table cache otherwise. */
static void *aligned_block(size_t bytes)
{
	void *p;
	bool large = bytes >= 2 * HUGE_PAGE;
	if (bytes > SIZE_MAX / 2 || posix_memalign(&p, large ? HUGE_PAGE : LINE, bytes ? bytes : LINE))
		return NULL;
	if (large)
		madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* advice: refusal is no failure */
	return p;
}

void *cpu_alloc(struct dev *d, size_t bytes)
{
	void *p = aligned_block(bytes);
	if (p)
		memset(p, 0, bytes);
	return p;
}

void cpu_release(struct dev *d, void *p)
{
	free(p);
}

void cpu_put(struct dev *d, void *dst, const void *host, size_t bytes)
{
	if (bytes)
		memmove(dst, host, bytes);
}

void cpu_get(struct dev *d, void *host, const void *src, size_t bytes)
{
	if (bytes)
		memmove(host, src, bytes);
}

void cpu_copy2d(struct dev *d, void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t bytes,
		size_t rows)
{
#pragma omp parallel for num_threads(d->threads) if (bytes * rows > 1 << 16)
	for (size_t r = 0; r < rows; r++)
		memcpy((char *)dst + r * dst_stride, (const char *)src + r * src_stride, bytes);
}

void cpu_zero(struct dev *d, void *p, size_t bytes)
{
	const size_t part = 1 << 18;
#pragma omp parallel for num_threads(d->threads) if (bytes > 4 * part)
	for (size_t i = 0; i < bytes; i += part)
		memset((char *)p + i, 0, bytes - i < part ? bytes - i : part);
}

int cpu_sync(struct dev *d, char *err, size_t n)
{
	if (!d->error[0])
		return 0;
	snprintf(err, n, "%s", d->error);
	d->error[0] = 0;
	return -1;
}

/* Calls cost nothing here: nothing is kept. */
int cpu_replay(struct dev *d, int id)
{
	return 0;
}

void cpu_record_begin(struct dev *d, int id)
{
}

void cpu_record_end(struct dev *d, int id)
{
}

/* The processes' memory is where the sums are: comm.h makes them. */
int cpu_ranks_id(void *id, char *err, size_t n)
{
	snprintf(err, n, "the CPU has none");
	return -1;
}

int cpu_ranks_join(struct dev *d, const void *id, int rank, int size, char *err, size_t n)
{
	return cpu_ranks_id(NULL, err, n);
}

void cpu_ranks_sum(struct dev *d, float *x, size_t n)
{
	cpu_fail(d, "ranks_sum", "not joined");
}

void cpu_fail(struct dev *d, const char *op, const char *fmt, ...)
{
	if (d->error[0])
		return;
	int at = snprintf(d->error, sizeof d->error, "%s: ", op);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(d->error + at, sizeof d->error - (size_t)at, fmt, ap);
	va_end(ap);
}

/* ---- scratch: a list of chunks, cut from the front, made one when it falls empty ---- */

struct scratch_mark cpu_scratch_begin(struct dev *d)
{
	return (struct scratch_mark){ d->current, d->chunks ? d->chunk[d->current].used : 0 };
}

void *cpu_scratch(struct dev *d, const char *op, size_t bytes)
{
	bytes = bytes > SIZE_MAX - LINE ? bytes : (bytes + LINE - 1) / LINE * LINE;
	for (; d->current < d->chunks; d->current++) {
		size_t used = d->chunk[d->current].used;
		if (d->chunk[d->current].size - used >= bytes) {
			d->chunk[d->current].used = used + bytes;
			return d->chunk[d->current].base + used;
		}
		if (d->current + 1 == d->chunks)
			break;
	}
	size_t size = bytes > HUGE_PAGE ? bytes : HUGE_PAGE;
	char *base = d->chunks < SCRATCH_CHUNKS ? aligned_block(size) : NULL;
	if (!base) {
		cpu_fail(d, op, "out of memory: %zu bytes of scratch", bytes);
		return NULL;
	}
	d->current = d->chunks++;
	d->chunk[d->current].base = base;
	d->chunk[d->current].size = size;
	d->chunk[d->current].used = bytes;
	return base;
}

void cpu_scratch_end(struct dev *d, struct scratch_mark m)
{
	for (int i = m.chunk + 1; i < d->chunks; i++)
		d->chunk[i].used = 0;
	d->current = m.chunk;
	if (d->chunks)
		d->chunk[m.chunk].used = m.used;
	if (m.chunk || m.used || d->chunks < 2)
		return;
	/* Empty: one chunk as large as all together serves the next op without waste. */
	size_t total = 0;
	for (int i = 0; i < d->chunks; i++) {
		total += d->chunk[i].size;
		free(d->chunk[i].base);
	}
	char *base = aligned_block(total);
	d->chunks = base != NULL;
	d->chunk[0].base = base;
	d->chunk[0].size = total;
	d->chunk[0].used = 0;
}

/* ---- the table ---- */

#define FILL(entry) .entry = cpu_##entry,
static const struct ops reference = {
	.abi = OPS_ABI,
	.size = sizeof(struct ops),
	.name = "cpu",
	ENTRIES_CPU(FILL)
	ENTRIES_ELEM(FILL)
	ENTRIES_MATMUL(FILL)
	ENTRIES_CONV(FILL)
	ENTRIES_NORM(FILL)
	ENTRIES_ATTN(FILL)
	ENTRIES_LOSS(FILL)
	ENTRIES_LATENT(FILL)
	ENTRIES_OPTIM(FILL)
};

const struct ops *cpu_reference_ops(void)
{
	return &reference;
}

#if HAVE_ONEDNN
static struct ops table;

static void fill_table(void)
{
	table = reference;
	dnnl_override(&table);
}

const struct ops *cpu_ops(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, fill_table);
	return &table;
}
#else
const struct ops *cpu_ops(void)
{
	return &reference;
}
#endif
