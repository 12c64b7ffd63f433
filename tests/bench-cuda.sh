#!/bin/sh
# bench-cuda.sh - `make bench-cuda`, on a machine with an NVIDIA GPU: ceilings and ops (bench-cuda), whole updates and
# sampling of 1.2b and 12b (bench-dalle), pictures a second of the paper's dVAE, the best of 512 samples, and PyTorch on the
# same card where python3 has it.  Rows are printed as they are measured; one that fails is said to, and the next follows.
# Status 1 where there is no GPU.
#
#   BUILD=dir     build folder, default build
#   SECONDS_ALL=S what has not begun after so many seconds is left out, default 300
set -u
cd "$(dirname "$0")/.." || exit 1
SRC=$PWD BUILD=${BUILD:-build} began=$(date +%s)
case $BUILD in /*) ;; *) BUILD=$SRC/$BUILD ;; esac
. "$SRC/tests/cuda-machine.sh" || {
	echo "bench-cuda: no GPU can be used here: nothing was measured"
	exit 1
}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

left() { echo $((${SECONDS_ALL:-300} - $(date +%s) + began)); }
title() { printf '\n%s (%d s left)\n' "$1" "$(left)"; }
# row COMMAND...: as long as there is time
row() {
	[ "$(left)" -gt 0 ] || { echo "  left out: no time" && return 1; }
	timeout -k 5 "$(left)" "$@" || { echo "  not measured, status $?: $*" && return 1; }
}
dalle() { row "$BUILD/tests/bench-dalle" -d cuda -p bf16 --peak "${PEAK:-989}" -t 0.5 "$@"; }

row "$BUILD/tests/bench-cuda"
title 'transformer 1.2b'
dalle -x 1.2b -b 16 --most 0
dalle -x 1.2b -b 32 --most 0
dalle -x 1.2b -n 0 --most 256 --images 512 | tee "$work/sampled"
printf '  the same at batch 1 without early starts\n'
DALLE_CUDA_EARLY=0 dalle -x 1.2b -n 0 --most 1

title 'PyTorch'
PYTHONUNBUFFERED=1 row python3 "$SRC/tests/bench-torch.py"

# ---- pictures ----

# pictures NAME TOOL OPTION... : the start of the program is taken off: the time of 512 records less that of 64
taken() {
	from=$(date +%s.%N)
	row "$@" > /dev/null || return 1
	date +%s.%N | awk -v from="$from" '{ print $1 - from }'
}
pictures() {
	name=$1 input=$2 all=
	shift 2
	few=$(taken "$@" "$work/$input.64") && all=$(taken "$@" "$work/$input.512") || { echo "  $name: not measured" && return; }
	awk -v name="$name" -v few="$few" -v all="$all" 'BEGIN {
		if (all > few)
			printf "  %-28s %9.0f pictures/s, 512 in %.2f s\n", name, 448 / (all - few), all
		else
			printf "  %-28s faster than its start, 512 in %.2f s\n", name, all
	}'
}
make_pictures() {
	head -c $((196608 * 64)) /dev/urandom > noise
	i=0
	while [ $i -lt 64 ]; do
		{ printf 'P6\n256 256\n255\n' && dd if=noise bs=196608 skip=$i count=1 2> /dev/null; } > $i.ppm
		printf '%d.ppm\tnoise number %d\n' $i $i
		i=$((i + 1))
	done > pairs.tsv
	cut -f2 pairs.tsv | bpe-train -q -k 270 -o words.bpe
	img-pack -q -s 256 pairs.tsv | bpe-encode -q -m words.bpe -o pix.64
	for k in 1 2 3 4 5 6 7 8; do cat pix.64; done > pix.512
	rm -f noise ./*.ppm
}

title 'pictures of 256 x 256: dVAE of the paper, CLIP vit-b-32'
(cd "$work" && make_pictures)
row dvae-train -q -x paper -d cuda -p bf16 -b 8 -n 1 -o "$work/dvae.st" "$work/pix.64"
pictures dvae-encode pix dvae-encode -q -d cuda -p bf16 -b 64 -m "$work/dvae.st" -o "$work/out.tok"
for n in 64 512; do row dvae-encode -q -d cuda -p bf16 -b 64 -m "$work/dvae.st" -o "$work/tok.$n" "$work/pix.$n"; done
pictures dvae-decode tok dvae-decode -q -d cuda -p bf16 -b 64 -m "$work/dvae.st" -o "$work/out.pix"
decoded=$all
row clip-train -q -x vit-b-32 -d cuda -p bf16 -b 16 -n 1 -o "$work/clip.st" "$work/pix.64"
pictures clip-rank pix clip-rank -q -d cuda -p bf16 -b 64 -k 1 -m "$work/clip.st" -o "$work/out.pix"
[ -z "$decoded" ] || [ -z "$all" ] || awk -v decoded="$decoded" -v ranked="$all" '/^pictures/ {
	printf "  best of 512 of one caption: sampled in %.1f s, decoded in %.1f s, ranked in %.1f s\n", $3, decoded, ranked }' "$work/sampled"

title 'transformer 12b, matrices, gradients and moments in 16 bits'
dalle -x 12b -b 4 --lean -n 2 --most 0 || dalle -x 5.6b -b 4 --lean -n 2 --most 0
dalle -x 12b -n 0 --most 16
