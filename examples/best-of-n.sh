#!/bin/sh
# best-of-n.sh - the paper's figure 9(c) in small: do more samples to choose from make better pictures?  Of N samples of
# each held-out caption one CLIP chooses the best, and another, trained on other pictures from another seed, judges it.
# Run again, it goes on where it stopped.
#
#	sh examples/best-of-n.sh
#
# OUT=DIR        where quickstart.sh left its results (out); these land in DIR/best-of-n
# CAPTIONS=N     held-out captions, spread over all (96)
# SAMPLES=N      samples of each, a power of two (512)
# TEMPERATURE=X  of sampling (1, as in the paper)
# CLIP_STEPS=N   updates of each CLIP (600)
set -eu
cd "$(dirname "$0")/.."
. examples/common.sh
CAPTIONS=${CAPTIONS:-96} SAMPLES=${SAMPLES:-512} TEMPERATURE=${TEMPERATURE:-1} CLIP_STEPS=${CLIP_STEPS:-600}
[ $((SAMPLES & (SAMPLES - 1))) = 0 ] || { say "best-of-n.sh: SAMPLES is $SAMPLES, expected a power of two"; exit 2; }
build
after_quickstart best-of-n words.bpe dvae.safetensors dalle.safetensors train.pix combo.pix cross.pix novel.pix combo.tok \
	emoji/pairs.tsv emoji/combo.tsv

stage "training pictures in two halves" judge.clip \
	'bpe-encode -m ../words.bpe ../train.pix | tok-split --held-out 50% -o ranker.clip --rest judge.clip'
seed=1
for who in ranker judge; do
	stage "CLIP: the $who, $CLIP_STEPS updates" $who.done \
		"clip-train -x small --seed $seed -n $CLIP_STEPS --log $who.jsonl -o $who.safetensors $who.clip
		: > $who.done"
	seed=$((seed + 1))
done

sed 's/[.]png.*//' ../emoji/combo.tsv | evenly "$CAPTIONS" > wanted
stage "$SAMPLES samples of each of $CAPTIONS captions" samples.tok \
	"tok-split --match wanted ../combo.tok | dalle-sample -m ../dalle.safetensors -t $TEMPERATURE -n $SAMPLES -o samples.tok"
for who in ranker judge; do
	stage "scores by the $who" $who.scores \
		"dvae-decode -m ../dvae.safetensors samples.tok | clip-rank -m $who.safetensors --no-sort |
			tok-dump --fields score -o $who.scores"
done
stage "scores of the real pictures, as the dVAE shows them" real.scores \
	"tok-split --match wanted ../combo.tok | dvae-decode -m ../dvae.safetensors |
		clip-rank -m judge.safetensors --no-sort | tok-dump --fields score -o real.scores"

# means: per N the two CLIPs' mean scores of the best of N, how much the judge's has risen since N = 1, and the standard error
# of that over the captions.  Samples 0 .. N-1 of a caption are what a run with -n N draws, and the next N are as good: each
# caption counts with all its SAMPLES / N choices.  Into chosen: per N the records that are the best of the first N samples.
means() {
	paste ranker.scores judge.scores | awk -F '[:}]' -v samples="$SAMPLES" '
		{ ranker[NR] = $2; judge[NR] = $4 } # {"score":0.31}<TAB>{"score":0.29}
		function best(first, n,  i, top) {
			for (top = i = first; i < first + n; i++)
				if (ranker[i] > ranker[top])
					top = i
			return top
		}
		function choose(caption, n,  i, top, mean) {
			for (i = 0; i < samples; i += n) {
				top = best(caption * samples + i + 1, n)
				sum += ranker[top] * n / samples
				mean += judge[top] * n / samples
				if (i == 0)
					print n, top > "chosen"
			}
			return mean
		}
		END {
			captions = NR / samples
			for (n = 1; n <= samples; n *= 2) {
				sum = judged = gain = squares = 0
				for (c = 0; c < captions; c++) {
					mean = choose(c, n)
					single[c] = n == 1 ? mean : single[c]
					judged += mean / captions
					gain += (mean - single[c]) / captions
					squares += (mean - single[c]) ^ 2 / captions
				}
				error = captions > 1 && squares > gain ^ 2 ? sqrt((squares - gain ^ 2) / (captions - 1)) : 0
				print n, sum / captions, judged, gain, error
			}
		}'
}

# hits N: of how many captions the best of the first N samples is, of all real pictures, nearest to the one that was asked
# for, and to one of the right subject, in percent
hits() {
	awk -v n="$1" 'NR == FNR { if ($1 == n) wanted[$2]; next } FNR in wanted' chosen samples.json |
		tok-load --like samples.tok | dvae-decode -q -m ../dvae.safetensors |
		emoji-report --pairs ../emoji/pairs.tsv --truth all.pix | awk '$1 == "combo" && /to the best/ { print $(NF - 2), $(NF - 1) }'
}

report() {
	real=$(awk -F '[:}]' '{ sum += $2 } END { print sum / NR }' real.scores)
	printf '%4s %8s %8s %18s %9s %9s\n' N ranker judge 'judge: gain' 'exact %' 'subject %'
	means > means.txt
	while read -r n ranker judge gain error; do
		found=$(hits "$n" </dev/null)
		printf '%4d %8.4f %8.4f %+9.4f +- %.4f %9s %9s\n' "$n" "$ranker" "$judge" "$gain" "$error" $found
		echo "{\"N\": $n, \"ranker\": $ranker, \"judge\": $judge, \"real pictures\": $real}" >&3
	done < means.txt
	echo
	for who in ranker judge; do
		bpe-encode -m ../words.bpe ../combo.pix | clip-rank -m $who.safetensors --retrieval |
			awk -v who=$who '$1 == "caption" { printf "%s: %s %% of the %d held-out captions find their picture first\n", who, $4, $2 }'
	done
}

if [ ! -e report.txt ]; then
	cat ../train.pix ../combo.pix ../cross.pix ../novel.pix > all.pix
	tok-dump --fields key,caption,image,sample samples.tok > samples.json
	report > report.tmp 3> best.jsonl
	rm all.pix samples.json
	mv report.tmp report.txt
fi
plot-log -x N --log-x -y 'judge,real pictures,ranker' -t "best of N: mean CLIP score" -o best.png best.jsonl
cat report.txt
say "done in $(($(date +%s) - began)) s: $folder/best.png, $folder/report.txt"
