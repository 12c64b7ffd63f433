#!/bin/sh
# check-cuda.sh - `make check-cuda`, on a machine with an NVIDIA GPU: every op against the CPU's and against its
# definition, gradients, the tools from pixels to ranked samples with -d cuda, resumed runs, and compute-sanitizer
# where it is installed.  Ends with "N passed, N failed"; status 1 where there is no GPU, for nothing was checked.
#
#   BUILD=dir     build folder, default build
#   PREBUILT=1    run what is there: for a machine without the libraries' headers, to which a tree was copied that
#                 `make ONEDNN=0 all tests` built elsewhere (with lib*.so of ldd beside it, on LD_LIBRARY_PATH)
set -u
cd "$(dirname "$0")/.." || exit 1
SRC=$PWD BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$SRC/$BUILD ;; esac
unset DALLE_PLUGINS
passed=0 failed=0
bad() { echo "FAILED $*"; failed=$((failed + 1)); }

[ -n "${PREBUILT:-}" ] || make -s -j"${JOBS:-$(nproc)}" BUILD="$BUILD" tests || exit 1
if ! DALLE_PLUGINS=$BUILD/lib/dalle-tools "$BUILD/tests/bench-cuda" --probe; then
	echo "check-cuda: no GPU can be used here: nothing was checked"
	exit 1
fi
export DALLE_PLUGINS=$BUILD/lib/dalle-tools PATH="$BUILD/bin:$PATH" LC_ALL=C.UTF-8

# program NAME [ENVIRONMENT...]: a test program; its checks are counted
program() {
	name=$1
	shift
	env "$@" "$BUILD/tests/$name" > "$work/$name.log" 2>&1
	status=$?
	line=$(tail -n 1 "$work/$name.log")
	p=${line%% passed*} f=${line#*, } f=${f%% failed*}
	case $line in *' passed, '*) ;; *) p=0 f=1 ;; esac
	[ $status -eq 0 ] || [ "$f" -gt 0 ] || f=1
	passed=$((passed + p)) failed=$((failed + f))
	printf '%-12s %s\n' "$name" "$line"
	[ "$f" -eq 0 ] || grep -v '^[0-9]* passed' "$work/$name.log" | head -n 40
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
program test-cuda
for t in ops attn latent; do
	program "test-$t" OPS_DEVICE=cuda
done

before=$failed
. "$SRC/tests/cuda-pipeline.sh"
[ $failed -eq $before ] && passed=$((passed + 1)) && echo "pipeline     passed"

if command -v compute-sanitizer > /dev/null; then
	for check in memcheck racecheck; do
		if compute-sanitizer --tool $check --error-exitcode 9 dalle-train -q -x tiny -p bf16 -d cuda -n 2 -o sanitized.st train.tok \
			> "$check.log" 2>&1; then
			passed=$((passed + 1)) && echo "$check     passed"
		else
			bad "$check" && tail -n 20 "$check.log"
		fi
		rm -f sanitized.st
	done
else
	echo "compute-sanitizer is not installed: left out"
fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
