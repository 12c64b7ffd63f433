#!/bin/sh
# bench.sh - `make bench`: rates of the ops, then of the tools, each beside what limits it.
# Every step prints its own lines; a step whose tool is not built is left out.
set -eu
BUILD=${BUILD:-build}
bin=$PWD/$BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$BUILD/tests/bench" "$@"

printf '\ntransformer, whole updates and sampling\n'
for p in f32 bf16; do
	"$BUILD/tests/bench-dalle" -p $p
done

# Steps of the tools: step NAME TOOL... runs bench_NAME (below) when every TOOL is built.  It finds the
# tools on PATH and may write under $work.
PATH=$bin:$PATH
step() {
	name=$1
	shift
	for tool; do
		[ -x "$bin/$tool" ] || return 0
	done
	printf '\n%s\n' "$name"
	"bench_$name"
}
