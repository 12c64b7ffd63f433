/* emu-ranks.cc - see emu.h: NCCL between processes of one machine, by a shared piece of memory that carries the id's name.
 * As there, two ranks on one device are refused, and a rank that does not come is waited for without end. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>

#include "emu.h"

static const size_t PIECE = 4096;
enum { MOST_RANKS = 64 };

struct meeting {
	std::atomic<int> arrived, turn;
	int device[MOST_RANKS];
	float piece[MOST_RANKS][PIECE];
};

struct ncclComm {
	struct meeting *m;
	int rank, size;
};

static void meet(const struct ncclComm *c)
{
	int turn = c->m->turn;
	if (++c->m->arrived == c->size) {
		c->m->arrived = 0;
		c->m->turn++;
	} else {
		while (c->m->turn == turn)
			usleep(100);
	}
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
	memset(id, 0, sizeof *id);
	return getrandom(id->internal, 8, 0) == 8 ? ncclSuccess : ncclSystemError;
}

static struct meeting *open_meeting(const char *name)
{
	int fd = shm_open(name, O_CREAT | O_RDWR, 0600);
	if (fd < 0)
		return NULL;
	void *p = ftruncate(fd, sizeof(struct meeting)) ? MAP_FAILED :
	          mmap(NULL, sizeof(struct meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? NULL : (struct meeting *)p;
}

ncclResult_t ncclCommAbort(ncclComm_t c)
{
	munmap(c->m, sizeof *c->m);
	delete c;
	return ncclSuccess;
}

static bool share_device(const struct ncclComm *c)
{
	for (int i = 0; i < c->size; i++)
		for (int k = 0; k < i; k++)
			if (c->m->device[i] == c->m->device[k])
				return true;
	return false;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank)
{
	uint64_t number;
	char name[40];
	memcpy(&number, id.internal, sizeof number);
	snprintf(name, sizeof name, "/dalle-emu-%016llx", (unsigned long long)number);
	struct meeting *m = size <= MOST_RANKS ? open_meeting(name) : NULL;
	*out = NULL;
	if (!m)
		return ncclSystemError;
	struct ncclComm *c = new ncclComm{m, rank, size};
	m->device[rank] = emu_device();
	meet(c);
	if (rank == 0)
		shm_unlink(name);
	if (share_device(c)) {
		ncclCommAbort(c);
		return ncclInvalidUsage;
	}
	*out = c;
	return ncclSuccess;
}

/* In the order of the ranks: the same bits on all. */
ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t, ncclRedOp_t, ncclComm_t c, cudaStream_t)
{
	emu_host([=] {
		for (size_t at = 0; at < n; at += PIECE) {
			size_t some = n - at < PIECE ? n - at : PIECE;
			memcpy(c->m->piece[c->rank], (const float *)from + at, some * sizeof(float));
			meet(c);
			for (size_t i = 0; i < some; i++) {
				float sum = 0;
				for (int r = 0; r < c->size; r++)
					sum += c->m->piece[r][i];
				((float *)to)[at + i] = sum;
			}
			meet(c);
		}
	});
	return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
	return r == ncclSuccess ? "no error" : r == ncclInvalidUsage ? "invalid usage" : "unhandled system error";
}
