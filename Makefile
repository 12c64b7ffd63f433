# Makefile - build, test, install.  `make help` lists the targets.
# Forcing a probe: make ONEDNN=0, make OPENMP=0, make CUDA=0, make MPI=0.  Sanitizers: make asan, make tsan.

VERSION  := $(shell sed -n 's/.*DALLE_VERSION "\(.*\)"/\1/p' libcommon/util.h)
PREFIX   ?= /usr/local
bindir   ?= $(PREFIX)/bin
mandir   ?= $(PREFIX)/share/man
CC       ?= cc
OPT      ?= -O3
CFLAGS   ?= -g
WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wvla -Wno-unused-parameter -Wno-psabi
BUILD    ?= build

# ---- probes: each compiles the calls that we use ----
probe = $(shell printf '%b\n' '$(1)' | $(CC) -x c - $(2) -o /dev/null >/dev/null 2>&1 && echo 1 || echo 0)
H     := \#include
ONEDNN ?= $(call probe,$(H) <dnnl.h>\nint main(void){return dnnl_version()==0;},-ldnnl)
OPENMP ?= $(call probe,$(H) <omp.h>\nint main(void){return omp_get_max_threads()==0;},-fopenmp)
JPEG   ?= $(call probe,$(H) <stdio.h>\n$(H) <jpeglib.h>\nint main(void){return !jpeg_std_error(0);},-ljpeg)
NVCC   ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA   ?= $(if $(NVCC),1,0)
MPICC  ?= mpicc
MPI    ?= $(shell printf '\043include <mpi.h>\nint main(void){return MPI_Init(0,0);}' | $(MPICC) -x c - -o /dev/null >/dev/null 2>&1 && echo 1 || echo 0)
HAVE_ZSTD := $(call probe,$(H) <zstd.h>\nint main(void){return !ZSTD_versionNumber();},-lzstd)
HAVE_PNG  := $(call probe,$(H) <png.h>\n$(H) <zlib.h>\nint main(void){return !png_access_version_number() || !zlibVersion();},-lpng -lz)
HAVE_JSON := $(call probe,$(H) <jansson.h>\nint main(void){return !json_object();},-ljansson)
HAVE_XXH  := $(call probe,$(H) <xxhash.h>\nint main(void){return !XXH3_64bits("",0);},-lxxhash)

ifneq ($(filter-out help clean dist uninstall,$(or $(MAKECMDGOALS),all)),)
say = $(info $(if $(filter 1,$(2)),found    ,not found) $(1))
$(call say,zstd    (token stream),$(HAVE_ZSTD))
$(call say,libpng  (pictures$(,) with zlib),$(HAVE_PNG))
$(call say,jansson (JSON),$(HAVE_JSON))
$(call say,xxhash  (content identities),$(HAVE_XXH))
$(call say,libjpeg (JPEG input$(,) optional),$(JPEG))
$(call say,OpenMP  (threads$(,) optional),$(OPENMP))
$(call say,oneDNN  (fast CPU products$(,) optional),$(ONEDNN))
$(call say,nvcc    (NVIDIA GPUs$(,) optional),$(CUDA))
$(call say,mpicc   (training with several ranks$(,) optional),$(MPI))
ifneq ($(HAVE_ZSTD)$(HAVE_PNG)$(HAVE_JSON)$(HAVE_XXH),1111)
$(error a required library is missing; on Debian: apt-get install libzstd-dev libpng-dev libjansson-dev libxxhash-dev libjpeg62-turbo-dev libdnnl-dev)
endif
endif
, := ,

DEFS := -D_GNU_SOURCE -DHAVE_JPEG=$(JPEG) -DHAVE_ONEDNN=$(ONEDNN)
LIBS := -lzstd -lpng -lz -ljansson -lxxhash -ldl -lm
LIBS += $(if $(filter 1,$(JPEG)),-ljpeg)
LIBS += $(if $(filter 1,$(ONEDNN)),-ldnnl)
ifeq ($(OPENMP),1)
OMP  := -fopenmp
else
OMP  := -Wno-unknown-pragmas
endif
# -ffp-contract=off in libcommon keeps image and BPE results equal over compilers; kernels may fuse.
FLAGS := -std=gnu11 $(OPT) $(CFLAGS) $(WARN) $(DEFS) $(OMP) $(CPPFLAGS) $(SAN)

TOOLS    := $(sort $(basename $(notdir $(wildcard tools/*.c))))
EXAMPLES := $(sort $(basename $(notdir $(wildcard examples/*.c))))
FUZZ     := $(filter-out fuzz fuzz-%,$(sort $(basename $(notdir $(wildcard tests/fuzz/*.c)))))
TESTS    := $(sort $(basename $(notdir $(wildcard tests/*.c))))
LIB_SRC  := $(wildcard libcommon/*.c) $(wildcard kernels/*.c)
LIB_SRC  := $(filter-out libcommon/comm-mpi.c,$(LIB_SRC))
ifneq ($(ONEDNN),1)
LIB_SRC  := $(filter-out kernels/dnnl.c,$(LIB_SRC))
endif
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
LIB      := $(BUILD)/libdalle.a
MAN      := $(wildcard man/*.[157])

PLUGIN   := dalle-cuda.so
RANKS    := dalle-mpi.so
PLUGINS  := $(if $(filter 1,$(CUDA)),$(PLUGIN)) $(if $(filter 1,$(MPI)),$(RANKS))
all: $(TOOLS:%=$(BUILD)/bin/%) $(EXAMPLES:%=$(BUILD)/examples/%) $(PLUGINS:%=$(BUILD)/lib/dalle-tools/%) ## build every program (the default)

# Flags are remembered: a change of them rebuilds.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(CC) $(FLAGS) $(LDFLAGS) $(LIBS)' | cmp -s - $@ || echo '$(CC) $(FLAGS) $(LDFLAGS) $(LIBS)' > $@
FORCE:

# Square roots and selections become vector code; no value changes.
$(BUILD)/kernels/%.o: OPT += -fno-math-errno -fno-trapping-math
$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MMD -MP -c $< -o $@
$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^
# --as-needed: tools that compute nothing do not load oneDNN.
link = @mkdir -p $(@D); $(CC) $(OMP) $(SAN) $(LDFLAGS) -Wl,--as-needed -o $@ $< $(LIB) $(LIBS)
$(BUILD)/bin/%: $(BUILD)/tools/%.o $(LIB)
	$(link)
$(BUILD)/examples/%: $(BUILD)/examples/%.o $(LIB)
	$(link)
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIB)
	$(link)

# ---- the plugin for ranks ----
$(BUILD)/lib/dalle-tools/$(RANKS): libcommon/comm-mpi.c libcommon/comm.h libcommon/util.h kernels/convert.h kernels/ops.h $(BUILD)/flags
	@mkdir -p $(@D)
	$(MPICC) -std=gnu11 $(OMP) $(OPT) $(CFLAGS) $(WARN) -Wno-unknown-pragmas -D_GNU_SOURCE $(CPPFLAGS) -fPIC -fvisibility=hidden -shared $< -o $@

# ---- the CUDA plugin: each source once per element type; no program links to it ----
CU_TYPED := elem norm loss gemm matmul conv attn attn-step
CU_HALF  := flash flash-bwd few
CU_BF16  := wide
CU_ONCE  := latent optim ranks
CU_EMU   := emu.o emu-runtime.o emu-ranks.o
CU_OBJ   := cuda.o $(CU_TYPED:%=%-f32.o) $(foreach t,bf16 f16,$(CU_TYPED:%=%-$(t).o) $(CU_HALF:%=%-$(t).o)) $(CU_BF16:%=%-bf16.o) $(CU_ONCE:%=%-f32.o)
GENCODE  ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90
NVFLAGS  := -std=c++17 -O3 -Werror all-warnings -Xptxas -v -Xcompiler -Wall,-Wextra,-fPIC,-fvisibility=hidden $(GENCODE)
CXX      ?= g++
EMUFLAGS := -std=c++17 -g -Wall -Wextra -Wshadow -Wno-unused-function -Wno-unused-parameter -Wno-unknown-pragmas -fPIC \
            -fvisibility=hidden -DCUDA_EMULATED
EMU_SAN  := -O1 -fsanitize=address,undefined -fno-omit-frame-pointer
# The report of registers and spills stays beside each object.
nvcc_compile = @mkdir -p $(@D); echo nvcc $< $(1); $(NVCC) $(NVFLAGS) $(1) -MMD -MP -c $< -o $@ 2>$(@:.o=.ptxas) || { cat $(@:.o=.ptxas); rm -f $@; exit 1; }
emu_compile = @mkdir -p $(@D); $(CXX) -x c++ $(EMUFLAGS) $(1) -MMD -MP -c $< -o $@
$(BUILD)/cuda/cuda.o: kernels/cuda.cu Makefile
	$(call nvcc_compile)
$(BUILD)/emulated/%.o: EMU := -O2
$(BUILD)/sanitized/%.o: EMU := $(EMU_SAN)
$(BUILD)/emulated/cuda.o $(BUILD)/sanitized/cuda.o: kernels/cuda.cu Makefile
	$(call emu_compile,$(EMU))
$(BUILD)/emulated/%.o: kernels/%.cc Makefile
	$(call emu_compile,$(EMU))
$(BUILD)/sanitized/%.o: kernels/%.cc Makefile
	$(call emu_compile,$(EMU))
define typed_rules
$(BUILD)/cuda/%-$(1).o: kernels/%.cu Makefile
	$$(call nvcc_compile,-DTYPE=$(1))
$(BUILD)/emulated/%-$(1).o: kernels/%.cu Makefile
	$$(call emu_compile,$$(EMU) -DTYPE=$(1))
$(BUILD)/sanitized/%-$(1).o: kernels/%.cu Makefile
	$$(call emu_compile,$$(EMU) -DTYPE=$(1))
endef
$(foreach t,f32 bf16 f16,$(eval $(call typed_rules,$(t))))

cuda: $(BUILD)/lib/dalle-tools/$(PLUGIN) ## the CUDA plugin (built by all when nvcc is found)
$(BUILD)/lib/dalle-tools/$(PLUGIN): $(CU_OBJ:%=$(BUILD)/cuda/%)
	@mkdir -p $(@D)
	$(NVCC) -shared -cudart static $(GENCODE) -Xcompiler -fvisibility=hidden -Xlinker -rpath=$(abspath $(dir $(NVCC))../lib64) -o $@ $^ -ldl
emulated: $(BUILD)/emulated/$(PLUGIN) $(BUILD)/sanitized/$(PLUGIN) ## the plugin on a device that the host plays, for tests
$(BUILD)/emulated/$(PLUGIN): $(patsubst %,$(BUILD)/emulated/%,$(CU_OBJ) $(CU_EMU))
	$(CXX) -shared -o $@ $^ -ldl
$(BUILD)/sanitized/$(PLUGIN): $(patsubst %,$(BUILD)/sanitized/%,$(CU_OBJ) $(CU_EMU))
	$(CXX) -shared $(EMU_SAN) -o $@ $^ -ldl

tests: all $(TESTS:%=$(BUILD)/tests/%) ## build the test programs
check: ## run every test; ends with "N passed, N failed"
	sh tests/check.sh
bench: all $(BUILD)/tests/bench $(BUILD)/tests/bench-dalle $(BUILD)/tests/bench-dvae ## measure rates beside ceilings
	sh tests/bench.sh
check-cuda: tests ## on a machine with a GPU: every op and the tools against the CPU
	sh tests/check-cuda.sh
bench-cuda: all $(BUILD)/tests/bench-cuda $(BUILD)/tests/bench-dalle ## the same for rates
	sh tests/bench-cuda.sh
asan: ## build with address and undefined-behaviour sanitizers into build-asan/
	$(MAKE) BUILD=build-asan OPT=-O1 SAN="-fsanitize=address,undefined -fno-omit-frame-pointer" tests
tsan: ## build with the thread sanitizer into build-tsan/; libgomp's own threads are false alarms, run with OMP_NUM_THREADS=1
	$(MAKE) BUILD=build-tsan OPT=-O1 ONEDNN=0 CUDA=0 SAN="-fsanitize=thread -fno-omit-frame-pointer" tests

# Every target is linked with what they share, tests/fuzz/fuzz*.c.
FUZZ_CC  ?= clang
FUZZ_SAN := address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
fuzz: $(TOOLS:%=$(BUILD)/bin/%) ## mutate the input of every reader, FUZZ_SECONDS each (60); needs clang, builds into build-fuzz/
	$(MAKE) BUILD=build-fuzz CC=$(FUZZ_CC) OPT=-O1 ONEDNN=0 OPENMP=0 CUDA=0 MPI=0 SAN="-fsanitize=fuzzer-no-link,$(FUZZ_SAN)" fuzzers
	BUILD=$(BUILD) sh tests/fuzz/run.sh
fuzzers: $(FUZZ:%=$(BUILD)/fuzz/%)
$(BUILD)/fuzz/%: $(BUILD)/tests/fuzz/%.o $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/fuzz/fuzz*.c)) $(LIB)
	@mkdir -p $(@D)
	$(CC) -fsanitize=fuzzer,$(FUZZ_SAN) $(LDFLAGS) -o $@ $^ $(LIBS)

install: all ## install programs and man pages under PREFIX (and DESTDIR)
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(PREFIX)/share/dalle-tools
	install -m 755 $(TOOLS:%=$(BUILD)/bin/%) $(DESTDIR)$(bindir)
	for p in $(PLUGINS); do install -D -m 755 $(BUILD)/lib/dalle-tools/$$p $(DESTDIR)$(PREFIX)/lib/dalle-tools/$$p; done
	install -m 644 libcommon/stream.proto $(DESTDIR)$(PREFIX)/share/dalle-tools
	for m in $(MAN); do install -D -m 644 $$m $(DESTDIR)$(mandir)/man$${m##*.}/$${m##*/}; done
uninstall: ## remove what install put there
	rm -f $(TOOLS:%=$(DESTDIR)$(bindir)/%)
	rm -rf $(DESTDIR)$(PREFIX)/share/dalle-tools $(DESTDIR)$(PREFIX)/lib/dalle-tools
	for m in $(MAN); do rm -f $(DESTDIR)$(mandir)/man$${m##*.}/$${m##*/}; done
dist: ## pack the tracked files as dalle-tools-VERSION.tar.gz
	git archive --prefix=dalle-tools-$(VERSION)/ -o dalle-tools-$(VERSION).tar.gz HEAD
clean: ## remove what was built
	rm -rf $(BUILD) build-asan build-tsan build-fuzz
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1: \2/p' Makefile

.PHONY: all tests check check-cuda bench bench-cuda cuda emulated asan tsan fuzz fuzzers install uninstall dist clean help FORCE
.SECONDARY:
-include $(LIB_OBJ:.o=.d) $(wildcard $(BUILD)/cuda/*.d $(BUILD)/emulated/*.d $(BUILD)/sanitized/*.d) $(wildcard $(BUILD)/tools/*.d $(BUILD)/examples/*.d $(BUILD)/tests/*.d $(BUILD)/tests/fuzz/*.d)
