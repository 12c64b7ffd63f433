#!/bin/sh
# peer-dalle-pytorch.sh - training steps and sampling of dalle-tools beside DALLE-pytorch on this CPU, in one run, the
# two by turns: A B A B ...  Needs a build (make tests) and a Python with tests/bench/requirements.txt:
#
#     sh tests/bench/peer-dalle-pytorch.sh [-P PYTHON] [-j THREADS] [-r ROUNDS] [-n STEPS] [-s "SIZES"] [-w "train sample"]
#                                          [-p "f32 bf16"] [-b "BATCHES"] [-q]
#
# -s  rows of the table: LAYERSxWIDTHxHEADS:TEXT:GRID:TEXTVOCAB:IMAGEVOCAB:BATCH, apart by spaces (BATCH is of training)
# -b  batches of sampling; the peer's best of them stands against each of ours
# -q  quick: one small size, one round, to see that all works
# With -j 1 both go by CPU time, which other programs disturb less.
#
# Equal: layers, width, heads, sequence, batch, vocabularies, full captions, AdamW with clipping by the norm, the layers'
# kinds (row, column, row, row, ... conv last; the peer's conv window is 5 x 5, ours 11 x 11).  The peer has its own
# design elsewhere and at its fastest: GEGLU of 2 x 4 times the width (more parameters, see the table), rotary
# positions, token shift, one output head over both vocabularies, not reversible, torch's fused AdamW and autocast for bf16.  In
# training it computes rows and columns sparsely or as masked dense attention: the faster counts.
# For sampling its cache is on and rows and columns are masked dense ones, the only ones it can cache.
set -eu

python=python3 threads=0 rounds=3 steps=3 what='train sample' precisions='f32 bf16' batches='1 4 16 64'
sizes='6x256x8:64:16:4096:1024:8 8x512x8:256:32:16384:8192:2'
while getopts P:j:r:n:s:w:p:b:q option; do
	case $option in
	P) python=$OPTARG ;;
	j) threads=$OPTARG ;;
	r) rounds=$OPTARG ;;
	n) steps=$OPTARG ;;
	s) sizes=$OPTARG ;;
	w) what=$OPTARG ;;
	p) precisions=$OPTARG ;;
	b) batches=$OPTARG ;;
	q) sizes=4x128x4:32:8:1024:512:4 rounds=1 steps=2 batches='1 4' ;;
	*) exit 2 ;;
	esac
done
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Names of other processors make some libraries start wrongly.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE

ours() { "$BUILD/tests/bench-peer" -w "$1" $shape -b "$2" -p "$3" -j "$threads" -n "$4"; }
peer() { "$python" -W ignore tests/bench/peer_dalle_pytorch.py "$1" $shape --batch "$2" --precision "$3" --threads "$threads" --updates "$4" $5; }

# Sets shape and batch from one entry of $sizes.
read_size() {
	IFS=x: read -r l w h text grid tv iv batch <<-END
	$1
	END
	shape="--layers $l --width $w --heads $h --text-length $text --grid $grid --text-vocab $tv --image-vocab $iv"
}

# Lines of "median M least L mib K parameters P" on stdin as "MEDIAN-OF-MEDIANS LEAST MOST-MIB PARAMETERS".
gather() {
	sort -k2n | awk '{ m[NR] = $2; if (NR == 1 || $4 < least) least = $4; if ($6 > mib) mib = $6; p = $8 }
		END { print (m[int((NR + 1) / 2)] + m[int(NR / 2) + 1]) / 2, least, mib, p }'
}

train_row() { # PRECISION
	rm -f "$work"/*.t
	round=0
	while [ $round -lt "$rounds" ]; do
		ours train "$batch" "$1" "$steps" >> "$work/ours.t"
		peer train "$batch" "$1" "$steps" '' >> "$work/sparse.t"
		peer train "$batch" "$1" "$steps" --masked >> "$work/masked.t"
		round=$((round + 1))
	done
	for side in ours sparse masked; do
		gather < "$work/$side.t" > "$work/$side"
	done
	echo "$1 $(cat "$work/ours") $(cat "$work/sparse") $(cat "$work/masked")" | awk '{
		b = 6; way = "sparse"
		if ($(10) < $6) { b = 10; way = "masked" }
		printf "  %-5s ours %7.3f s (least %.3f) %6d MiB   peer, %s %7.3f s (least %.3f) %6d MiB   time %.2f (least %.2f) memory %.2f   parameters %.1f M and %.1f M\n",
			$1, $2, $3, $4, way, $b, $(b + 1), $(b + 2), $2 / $b, $3 / $(b + 1), $4 / $(b + 2), $5 / 1e6, $(b + 3) / 1e6 }'
}

# Pictures a minute of both for every batch, then ours against the best of the peer's.
sample_rows() {
	rm -f "$work/all"
	for b in $batches; do
		for p in $precisions; do
			echo "ours $b $p $(ours sample "$b" "$p" "$rounds")" >> "$work/all"
			echo "peer $b $p $(peer sample "$b" "$p" 1 --masked)" >> "$work/all"
		done
	done
	awk '{ rate = 60 * $2 / $7; most = rate > most && $1 == "peer" ? rate : most; n++; line[n] = $0; r[n] = rate }
		END { for (i = 1; i <= n; i++) { split(line[i], f, " ")
			printf "  %s batch %3d %-5s %10.2f pictures a minute, %6.2f times the best of the peer, %6d MiB\n", f[1], f[2], f[3], r[i], r[i] / most, f[9] } }' "$work/all"
}

for size in $sizes; do
	read_size "$size"
	echo "$l layers, $w wide, $h heads, $text text + $grid x $grid image states, $tv and $iv tokens"
	for kind in $what; do
		echo " $kind"
		if [ "$kind" = train ]; then
			for p in $precisions; do train_row "$p"; done
		else
			sample_rows
		fi
	done
done
