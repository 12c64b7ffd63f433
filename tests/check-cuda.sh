#!/bin/sh
# check-cuda.sh - `make check-cuda`, on a machine with an NVIDIA GPU: every op against the CPU's and against its
# definition, gradients, the tools from pixels to ranked samples with -d cuda, resumed runs, and compute-sanitizer
# where it is installed.  Ends with "N passed, N failed"; status 1 where there is no GPU, for nothing was checked.
#
#   BUILD=dir     build folder, default build
#   PREBUILT=1    run what is there: for a machine without the libraries' headers, to which cuda-carry.sh's folder was copied
#   LIMIT=S       seconds for each part, default 240
set -u
cd "$(dirname "$0")/.." || exit 1
SRC=$PWD BUILD=${BUILD:-build} LIMIT=${LIMIT:-240}
case $BUILD in /*) ;; *) BUILD=$SRC/$BUILD ;; esac
passed=0 failed=0
bad() { echo "FAILED $*"; failed=$((failed + 1)); }

[ -n "${PREBUILT:-}" ] || make -s -j"${JOBS:-$(nproc)}" BUILD="$BUILD" tests || exit 1
. "$SRC/tests/cuda-machine.sh" || {
	echo "check-cuda: no GPU can be used here: nothing was checked"
	exit 1
}

# program NAME [ENVIRONMENT...]: a test program; its checks are counted
program() {
	name=$1
	shift
	env "$@" timeout -k 5 "$LIMIT" "$BUILD/tests/$name" > "$work/$name.log" 2>&1
	status=$?
	line=$(tail -n 1 "$work/$name.log")
	p=${line%% passed*} f=${line#*, } f=${f%% failed*}
	case $line in *' passed, '*) ;; *) p=0 f=1 ;; esac
	[ $status -eq 0 ] || [ "$f" -gt 0 ] || f=1
	passed=$((passed + p)) failed=$((failed + f))
	printf '%-12s %s\n' "$name" "${line:-no result, status $status}"
	[ "$f" -eq 0 ] || grep -v '^[0-9]* passed' "$work/$name.log" | head -n 40
	[ "$f" -eq 0 ]
}

# sanitizer NAME OPTIONS COMMAND...: a check that the sanitizer cannot make here, or not in time, is left out
sanitizer() {
	check=$1 options=$2
	shift 2
	# shellcheck disable=SC2086
	timeout -k 5 "$LIMIT" compute-sanitizer --tool "$check" $options --error-exitcode 9 "$@" > "$check.log" 2>&1
	status=$?
	if [ $status -eq 0 ]; then
		passed=$((passed + 1)) && echo "$check     passed"
	elif [ $status -ge 124 ] || grep -q 'Device not supported' "$check.log"; then
		echo "$check     left out: $(tail -n 1 "$check.log")"
	else
		bad "$check" && head -n 30 "$check.log"
	fi
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
program test-cuda CUDA_LARGE=1 || {
	echo "with DALLE_CUDA_SYNC, which tells the op of a failure:"
	DALLE_CUDA_SYNC=1 timeout -k 5 "$LIMIT" "$BUILD/tests/test-cuda" 2>&1 | tail -n 40
}
program test-cuda-few CUDA_LARGE=1
for t in ops attn latent optim; do
	program "test-$t" OPS_DEVICE=cuda
done

before=$failed
. "$SRC/tests/cuda-pipeline.sh"
[ $failed -eq $before ] && passed=$((passed + 1)) && echo "pipeline     passed"

if command -v compute-sanitizer > /dev/null; then
	# Allocations that must fail are no errors; every group of checks is a process.
	sanitizer memcheck '--target-processes all --report-api-errors no' "$BUILD/tests/test-cuda"
	sanitizer racecheck '' dalle-train -q -x tiny -p bf16 -d cuda -n 2 -o sanitized.st train.tok
else
	echo "compute-sanitizer is not installed: left out"
fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
