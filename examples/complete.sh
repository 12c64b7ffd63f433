#!/bin/sh
# complete.sh - the paper's image-to-image in small: the upper halves of real pictures that were held out, with their
# captions, are completed.  Run again, it goes on where it stopped.
#
#	sh examples/complete.sh
#
# OUT=DIR        where quickstart.sh left its results (out); these land in DIR/complete
# CAPTIONS=N     pictures, spread over all that were held out (10)
# SAMPLES=N      completions drawn of each, of which the sheet shows the six that CLIP likes best (32)
# TEMPERATURE=X  of sampling (0.7)
set -eu
cd "$(dirname "$0")/.."
. examples/common.sh
CAPTIONS=${CAPTIONS:-10} SAMPLES=${SAMPLES:-32} TEMPERATURE=${TEMPERATURE:-0.7}
build
after_quickstart complete dvae.safetensors dalle.safetensors clip.safetensors combo.pix cross.pix combo.tok cross.tok \
	emoji/combo.tsv emoji/cross.tsv

cat ../emoji/combo.tsv ../emoji/cross.tsv | sed 's/[.]png.*//' | evenly "$CAPTIONS" > wanted
stage "real pictures" real.pix \
	'cat ../combo.pix ../cross.pix | tok-split --match wanted -o real.pix'
stage "their tokens" real.tok \
	'cat ../combo.tok ../cross.tok | tok-split --match wanted -o real.tok'
# Four of the eight rows: the first 32 tokens.
stage "upper halves, as the transformer sees them" upper.pix \
	"tok-dump real.tok | sed -E 's/(\"image\": ?\[([0-9]+, ?){31}[0-9]+)[^]]*/\1/' | tok-load --like real.tok |
		dvae-decode -m ../dvae.safetensors -o upper.pix"
stage "$SAMPLES completions of each, ranked" completed.pix \
	"dalle-sample -m ../dalle.safetensors --prefix-rows 4 -t $TEMPERATURE -n $SAMPLES real.tok |
		dvae-decode -m ../dvae.safetensors | clip-rank -m ../clip.safetensors -k 6 -o completed.pix"
stage "sheet: the real picture, its upper half, six completions" sheet.png \
	'while read -r key; do
		printf "%s\n" "$key" > row
		for pictures in real upper completed; do
			tok-split --match row $pictures.pix | tok-cat --drop text,image
		done
	done < wanted | img-unpack --group --labels -g 8x -o sheet.png'
say "done in $(($(date +%s) - began)) s: $folder/sheet.png"
