#!/bin/sh
# cuda.sh - the CUDA backend on a device that the host plays (kernels/emu.h): all ops with sanitizers, with the threads of a
# block in the other order, the tools from pixels to ranked samples, and what is said when CUDA cannot be had.
set -u
failed=0
bad() { echo "cuda.sh: $*"; failed=1; }
bin=$BUILD/bin

# With sanitizers; they must be loaded before the program that loads the plugin.
san=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)
for t in cuda cuda-few; do
	DALLE_PLUGINS=$BUILD/sanitized LD_PRELOAD=$san ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		"$BUILD/tests/test-$t" > sanitized.log 2>&1 || { bad "test-$t with sanitizers"; tail -n 20 sanitized.log; }
	# A missing barrier shows in one order or the other.
	EMU_ORDER=reverse DALLE_PLUGINS=$BUILD/emulated "$BUILD/tests/test-$t" > reverse.log 2>&1 ||
		{ bad "test-$t, threads in reverse"; tail -n 20 reverse.log; }
done
# The definitions and finite differences of the tests of ops.
for t in ops attn optim; do
	OPS_DEVICE=cuda DALLE_PLUGINS=$BUILD/emulated "$BUILD/tests/test-$t" > $t.log 2>&1 || { bad "test-$t"; tail -n 20 $t.log; }
done

# Whole updates and steps of the paper's sizes, without computing: launches that a GPU would refuse.
for size in "1.2b -b 16" "12b -b 4 --lean"; do
	# shellcheck disable=SC2086
	EMU_DRY=1 DALLE_PLUGINS=$BUILD/emulated "$BUILD/tests/bench-dalle" -d cuda -p bf16 -x $size -n 1 --most 4 -t 0 > dry.log 2>&1 ||
		{ bad "launches of $size"; cat dry.log; }
done

# The tools from pixels to ranked samples.
export DALLE_PLUGINS=$BUILD/emulated
. "$SRC/tests/cuda-pipeline.sh"

# Device memory is touched by kernels and copies only.
export EMU_GUARD=1
dvae-train -q -x tiny -p bf16 -d cuda -n 1 -o guarded.st all.pix || bad "dvae-train touches device memory"
dalle-train -q -x tiny -p bf16 -d cuda -n 1 --eval train.tok -o guarded2.st train.tok || bad "dalle-train touches device memory"
clip-train -q -x tiny -p bf16 -d cuda -b 16 -n 1 -o guarded3.st all.pix || bad "clip-train touches device memory"
unset EMU_GUARD

# says STATUS TEXT COMMAND...: one line that holds TEXT
says() {
	want=$1 text=$2
	shift 2
	"$@" > out 2> err
	status=$?
	[ $status -eq "$want" ] && [ "$(wc -l < err)" -eq 1 ] && grep -q -- "$text" err || bad "$*: status $status: $(cat err)"
}
score="dalle-score -p f32 -m dalle-cpu.st -o score.tok train.tok"
says 1 'no CUDA-capable device' env EMU_DEVICES=0 $score -q -d cuda
says 1 'there are 1 CUDA devices, 0..0' $score -q -d cuda:1
says 1 'no CUDA backend is installed' env DALLE_PLUGINS=/nonexistent $score -q -d cuda
says 1 'dalle-cuda.so: ' env DALLE_PLUGINS=. sh -c "echo no library > dalle-cuda.so; $score -q -d cuda"
rm -f dalle-cuda.so
says 4 'needs .* of memory, cuda has .* free' dalle-train -q -d cuda -x 1.2b -o large.st train.tok
[ ! -e large.st ] || bad "a model file of a run that did not fit"
# auto: the CPU when there is no device, said once with -v
EMU_DEVICES=0 $score -v -d auto 2> err || bad "auto without a device"
[ "$(grep -c 'not on CUDA: no usable CUDA device' err)" = 1 ] && grep -q 'on cpu' err || bad "auto: $(cat err)"
$score -v -d auto 2> err && grep -q 'on cuda: emulated device' err || bad "auto with a device: $(cat err)"

# What the host's build of the plugin cannot show: spills of the real one, where it was built.
if ls "$BUILD"/cuda/*.ptxas > /dev/null 2>&1; then
	sh "$SRC/tests/cuda-spills.sh" "$BUILD"/cuda/*.ptxas || bad "register spills"
fi
exit $failed
