#!/bin/sh
# quickstart.sh - DALL-E from nothing to pictures, on a CPU: 3,664 emoji with their Unicode names go through every
# stage of the paper; the results land in out/.  Run again, it goes on where it stopped.
#
#	sh examples/quickstart.sh
#
# OUT=DIR  where results go (out)
# The numbers of updates follow from the speed of the machine; they stay in DIR/*.steps, to be changed by hand.
set -eu
cd "$(dirname "$0")/.."
. examples/common.sh

# ---- packages, build ----

packages="gcc make libzstd-dev libpng-dev libjpeg62-turbo-dev libjansson-dev libxxhash-dev libdnnl-dev
	fonts-noto-color-emoji unicode-data"
missing=
for p in $packages; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
	say "installing:$missing"
	root=
	[ "$(id -u)" = 0 ] || root=sudo
	$root apt-get update -qq
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
build
mkdir -p "$OUT"
cd "$OUT"

# ---- how much training fits ----

# fit NAME SECONDS MOST COMMAND...: into NAME.steps how many updates of a trainer take SECONDS here, at most MOST, by
# timing a few.
fit() {
	name=$1 seconds=$2 most=$3
	shift 3
	[ -e "$name.steps" ] && return
	rm -f fit.jsonl
	"$@" -q -n 24 --log-every 8 --log fit.jsonl --restart -o fit.safetensors
	sed -n 's/.*"step":\([0-9]*\),.*"seconds":\([0-9.e-]*\).*/\1 \2/p' fit.jsonl |
		awk -v seconds="$seconds" -v most="$most" '
			$1 == 8 { t = $2 }
			$1 == 24 { n = int(seconds / (($2 - t) / 16) / 50) * 50 }
			END { print (n < 100 ? 100 : n > most ? most : n) }' > "$name.steps"
	rm -f fit.jsonl fit.safetensors
	say "$name: $(cat "$name.steps") updates in about $seconds s on this machine, $most on a fast one"
}

# ---- the pipeline ----

stage "pictures and names out of the font" emoji/pairs.tsv \
	'emoji-extract -D emoji'
for split in train combo cross novel; do
	stage "pictures: $split" $split.pix \
		"img-pack -s 64 --crop pad -o $split.pix emoji/$split.tsv"
done
stage "vocabulary" words.bpe \
	'cut -f2 emoji/train.tsv | bpe-train -q -k 2048 -o words.bpe'
fit dvae 420 8000 dvae-train -x small --calibrate 0 train.pix
stage "dVAE, $(cat dvae.steps) updates" dvae.done \
	"dvae-train -x small -n $(cat dvae.steps) --eval combo.pix --log dvae.jsonl --preview dvae.png -o dvae.safetensors train.pix
	: > dvae.done"
for split in train combo cross novel; do
	stage "tokens: $split" $split.tok \
		"bpe-encode -m words.bpe $split.pix | dvae-encode -m dvae.safetensors -o $split.tok"
done
dalle="dalle-train -x small --token-dropout 0.1 --bpe words.bpe"
fit dalle 400 2000 $dalle train.tok
stage "transformer, $(cat dalle.steps) updates" dalle.done \
	"$dalle -n $(cat dalle.steps) --eval combo.tok --eval-every 100 --patience 4 --log dalle.jsonl -o dalle.safetensors train.tok
	: > dalle.done"
stage "captions of CLIP's pictures" train.clip \
	'bpe-encode -m words.bpe -o train.clip train.pix'
fit clip 160 3000 clip-train -x small train.clip
stage "CLIP, $(cat clip.steps) updates" clip.done \
	"clip-train -x small -n $(cat clip.steps) --log clip.jsonl -o clip.safetensors train.clip
	: > clip.done"
stage "16 samples of each held-out caption, ranked" ranked.pix \
	'cat combo.tok cross.tok | dalle-sample -m dalle.safetensors -t 0.7 -n 16 |
		dvae-decode -m dvae.safetensors | clip-rank -m clip.safetensors -o ranked.pix'

# ---- what came out ----

# Every twelfth held-out caption: the real picture, then its eight best samples.
stage "sheet of samples" samples.png \
	'cat emoji/combo.tsv emoji/cross.tsv | awk "NR % 12 == 5" | sed "s/[.]png.*//" > shown
	while read -r key; do
		printf "%s\n" "$key" > wanted
		cat combo.pix cross.pix | tok-split --match wanted
		tok-split --match wanted ranked.pix | tok-cat -n 8 --drop text,image
	done < shown | img-unpack --group --labels -g 9x -o samples.png'
stage "loss curves" clip-curves.png \
	'plot-log -t "dVAE: loss per value" -y loss,eval_loss --smooth 20 dvae.jsonl -o dvae-curves.png
	plot-log -t "transformer: nats per token" -y loss,eval_loss,eval_image,eval_text --smooth 20 dalle.jsonl -o dalle-curves.png
	plot-log -t "CLIP: loss" --smooth 20 clip.jsonl -o clip-curves.png'

measure_tokens() {
	printf '%-6s %8s %11s %11s %11s %11s %11s %11s\n' split PSNR 'codes used' perplexity 'text nats' shuffled \
		'image nats' shuffled
	for split in train combo cross novel; do
		psnr=$(dvae-decode -m dvae.safetensors $split.tok | img-diff $split.pix - | awk '$1 == "psnr" { print $2 }')
		codes=$(tok-info $split.tok | sed -n 's/^image codes[^0-9]*\([0-9]*\) of.*perplexity \([0-9.]*\).*/\1 \2/p')
		own=$(dalle-score -m dalle.safetensors --summary $split.tok)
		other=$(tok-shuf $split.tok | dalle-score -m dalle.safetensors --summary --rotate-captions)
		printf '%-6s %8.2f %11d %11.1f %11.3f %11.3f %11.3f %11.3f\n' $split "$psnr" $codes \
			"$(echo "$own" | field nll_text)" "$(echo "$other" | field nll_text)" \
			"$(echo "$own" | field nll_image)" "$(echo "$other" | field nll_image)"
	done
}

measure_retrieval() {
	cat train.pix combo.pix cross.pix novel.pix | bpe-encode -m words.bpe -o all.pix
	printf '%-6s captions that find their picture among all %d: R@1 %%, R@5 %%\n' split "$(tok-dump --fields key all.pix | wc -l)"
	for split in train combo cross novel; do
		bpe-encode -m words.bpe $split.pix | clip-rank -m clip.safetensors --retrieval --among all.pix |
			awk -v name=$split '$1 == "caption" { printf "%-6s %6.1f %6.1f\n", name, $4, $5 }'
	done
}

report() {
	measure_tokens
	echo
	measure_retrieval
	echo
	emoji-report --pairs emoji/pairs.tsv --truth all.pix ranked.pix
}

if [ ! -e report.txt ]; then
	start=$(date +%s)
	report > report.tmp
	mv report.tmp report.txt
	say "[$(($(date +%s) - start)) s] report"
fi
cat report.txt
say "done in $(($(date +%s) - began)) s: $OUT/samples.png, $OUT/dvae.png, $OUT/*-curves.png, $OUT/report.txt"
