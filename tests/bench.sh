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

printf '\ndiscrete VAE, whole updates\n'
for p in f32 bf16; do
	"$BUILD/tests/bench-dvae" -p $p
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

# seconds COMMAND...: wall time of a command; its output is kept in $work/out.
seconds() {
	from=$(date +%s.%N)
	"$@" > "$work/out"
	echo "$from $(date +%s.%N)" | awk '{ print $2 - $1 }'
}

bench_bpe() {
	cat README.md man/* libcommon/*.[ch] kernels/*.[ch] > "$work/one"
	for i in 1 2 3 4 5 6 7 8 9 10; do cat "$work/one"; done > "$work/text"
	bytes=$(wc -c < "$work/text")
	t=$(seconds bpe-train -q -k 4096 -o "$work/words.bpe" "$work/text")
	e=$(seconds bpe-encode -q -m "$work/words.bpe" -l 4096 "$work/text")
	awk -v b="$bytes" -v t="$t" -v e="$e" 'BEGIN {
		printf "  bpe-train, 4096 tokens %8.1f MB/s\n  bpe-encode, records    %8.1f MB/s\n", b / t / 1e6, b / e / 1e6 }'
}

# Pictures of noise: no compression helps, every byte passes.
bench_pictures() {
	i=0
	while [ $i -lt 512 ]; do
		printf 'P6\n64 64\n255\n'
		head -c 12288 /dev/urandom
		i=$((i + 1))
	done > "$work/noise.ppm"
	p=$(seconds img-pack -q -s 64 -o "$work/noise.pix" "$work/noise.ppm")
	c=$(seconds tok-cat -q "$work/noise.pix")
	dvae-train -q -x small -n 1 -o "$work/dvae.st" "$work/noise.pix"
	e=$(seconds dvae-encode -q -m "$work/dvae.st" -o "$work/noise.tok" "$work/noise.pix")
	d=$(seconds dvae-decode -q -m "$work/dvae.st" "$work/noise.tok")
	bytes=$(wc -c < "$work/noise.tok")
	awk -v p="$p" -v c="$c" -v e="$e" -v d="$d" -v b="$bytes" 'BEGIN {
		printf "  img-pack               %8.1f MB/s of pixels\n  stream in and out      %8.1f MB/s of pixels\n", 6.29 / p, 6.29 / c
		printf "  dvae-encode, small     %8.1f pictures/s of 64 x 64\n  dvae-decode, small     %8.1f pictures/s\n", 512 / e, 512 / d
		printf "  tokens of 64 codes     %8.1f bytes a record\n", b / 512 }'
}

step bpe bpe-train bpe-encode
step pictures img-pack tok-cat dvae-train dvae-encode dvae-decode
