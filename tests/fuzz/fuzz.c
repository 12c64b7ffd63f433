/* fuzz.c - see fuzz.h. */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static void write_all(int fd, const void *p, size_t n)
{
	struct error e = {0};
	MUST(write_full(fd, p, n, "fuzz", &e) == 0);
}

const char *fuzz_file(const void *p, size_t n)
{
	static char path[64];
	static int fd = -1;
	if (fd < 0) {
		fd = memfd_create("fuzz", MFD_CLOEXEC);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	MUST(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	write_all(fd, p, n);
	return path;
}

const char *fuzz_folder(void)
{
	static char path[300];
	const char *base = getenv("TMPDIR");
	if (!*path) {
		snprintf(path, sizeof path, "%s/fuzz-XXXXXX", base ? base : "/dev/shm");
		MUST(mkdtemp(path));
	}
	return path;
}

void fuzz_put(const char *name, const void *p, size_t n)
{
	char path[400];
	snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
	if (!p) {
		unlink(path);
		return;
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	MUST(fd >= 0);
	write_all(fd, p, n);
	close(fd);
}

void fuzz_device(const struct ops **ops, struct dev **dev)
{
	static struct dev *opened;
	char text[256];
	*ops = cpu_ops();
	if (!opened)
		opened = (*ops)->open(0, DT_F32, 1, text, sizeof text);
	MUST(opened);
	*dev = opened;
}

struct buf fuzz_load(const char *path)
{
	struct buf b = {0};
	struct error e = {0};
	if (read_file(path, 1 << 24, &b, &e)) {
		fprintf(stderr, "%s\n", e.text);
		exit(1);
	}
	return b;
}
