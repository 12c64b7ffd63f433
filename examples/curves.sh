#!/bin/sh
# curves.sh - does what makes the transformer cheap cost quality?  Learning curves on the emoji, all with the same data,
# batches and number of updates: the paper's masks in f32, in bf16 and in f16 with gradient scales; every layer dense;
# and two more seeds of the first, which show how much is chance.  Run again, it goes on where it stopped.
#
#	sh examples/curves.sh
#
# OUT=DIR   where quickstart.sh left its results (out); these land in DIR/curves
# STEPS=N   updates of each training (800)
# EVERY=N   updates between evaluations (50)
# RUNS=N    trainings at a time, each on one thread (2)
set -eu
cd "$(dirname "$0")/.."
. examples/common.sh
STEPS=${STEPS:-800} EVERY=${EVERY:-50} RUNS=${RUNS:-2}
build
after_quickstart curves words.bpe train.tok combo.tok

# run NAME OPTION...: print the command that trains it
run() {
	names="$names $1" log=$1.jsonl model=$1.safetensors
	shift
	echo "dalle-train -q -x small -j 1 -n $STEPS $* --bpe ../words.bpe --eval ../combo.tok --eval-every $EVERY --log $log -o $model ../train.tok"
}

names=
{
	run paper-f32 -p f32
	run paper-f32-seed2 -p f32 --seed 2
	run paper-f32-seed3 -p f32 --seed 3
	run paper-bf16 -p bf16
	run dense-f32 -p f32 --mask dense
	run paper-f16 -p f16
} > commands
logs=$(printf '%s.jsonl ' $names)

# A training that has ended does nothing when its command runs again, one that was cut off goes on.
cat commands >&2
stage "$(wc -l < commands) trainings, $RUNS at a time" trained \
	"xargs -P $RUNS -I{} sh -c {} < commands
	: > trained"
stage "curves" training.png \
	"plot-log -t 'held-out pairs: nats per image token' -l -y eval_image $logs -o held-out.png
	plot-log -t 'training: nats per image token, means over 10 updates' -l -y image $logs -o training.png"

# The last evaluation of each, and how far it is from the seeds' mean, in their standard deviations.
report() {
	for name in $names; do
		echo "$name $(grep '"eval_image"' $name.jsonl | tail -n 1 | field eval_image)"
	done | awk '
		{ name[NR] = $1; nats[NR] = $2 }
		$1 ~ /^paper-f32/ { n++; sum += $2; squares += $2 * $2; low = n == 1 || $2 < low ? $2 : low; high = $2 > high ? $2 : high }
		END {
			mean = sum / n
			deviation = sqrt((squares - n * mean * mean) / (n - 1))
			printf "%-16s %15s %22s\n", "training", "held-out nats", "from the mean of seeds"
			for (i = 1; i <= NR; i++)
				printf "%-16s %15.4f %22s\n", name[i], nats[i], sprintf("%+.4f", nats[i] - mean)
			printf "\n%d seeds of paper-f32: mean %.4f, from %.4f to %.4f, standard deviation %.4f\n", n, mean, low, high, deviation
		}'
}
report > report.txt
cat report.txt
say "done in $(($(date +%s) - began)) s: $folder/held-out.png, $folder/training.png, $folder/report.txt"
