#!/bin/sh
# pipeline.sh - every stage of the paper at preset tiny, from picture files to ranked samples; and the same again with
# every stream saved to a file and read back: the results are the same bytes.
set -u
failed=0
bad() { echo "pipeline.sh: $*"; failed=1; }

# picture FILE RGB1 RGB2: 16x16, the upper half of one colour, the lower of another (octal triples)
picture() {
	{
		printf 'P6\n16 16\n255\n'
		for half in "$2" "$3"; do
			i=0
			while [ $i -lt 128 ]; do
				printf "$half"
				i=$((i + 1))
			done
		done
	} > "$1"
}
red='\377\000\000' green='\000\240\000' blue='\000\000\377' white='\377\377\377'
for top in red green blue white; do
	for bottom in red green blue white; do
		eval "picture $top-$bottom.ppm \"\$$top\" \"\$$bottom\""
		printf '%s-%s.ppm\t%s over %s\n' $top $bottom $top $bottom
	done
done > pairs.tsv
cut -f2 pairs.tsv | bpe-train -q -k 300 -o words.bpe || bad bpe-train

# The stages, as pipes.
img-pack -s 16 pairs.tsv | dvae-train -q -x tiny -n 60 -o dvae.st || bad dvae-train
img-pack -s 16 pairs.tsv | bpe-encode -m words.bpe | dvae-encode -m dvae.st > train.tok || bad dvae-encode
dalle-train -q -x tiny -n 30 -o dalle.st train.tok || bad dalle-train
img-pack -s 16 pairs.tsv | bpe-encode -m words.bpe | clip-train -q -x tiny -b 16 -n 20 -o clip.st || bad clip-train
printf 'red over blue\nwhite over green\n' | bpe-encode -m words.bpe | dalle-sample -m dalle.st -n 5 |
	dvae-decode -m dvae.st | clip-rank -m clip.st -k 3 > piped.pix || bad "sampling"
img-unpack --group --labels -g 3x piped.pix > sheet.png || bad img-unpack
[ "$(tok-dump --fields caption piped.pix | uniq -c | awk '{ print $1 }' | tr '\n' ' ')" = '3 3 ' ] || bad "not three of each caption"
[ "$(head -c 4 sheet.png | tail -c 3)" = PNG ] || bad "the sheet is no PNG"

# Cut everywhere: a file between each two.
img-pack -s 16 -o a.pix pairs.tsv
dvae-train -q -x tiny -n 60 -o dvae2.st a.pix
bpe-encode -m words.bpe -o b.pix a.pix
dvae-encode -m dvae2.st -o c.tok b.pix
dalle-train -q -x tiny -n 30 -o dalle2.st c.tok
clip-train -q -x tiny -b 16 -n 20 -o clip2.st b.pix
printf 'red over blue\nwhite over green\n' | bpe-encode -m words.bpe -o d.tok
dalle-sample -m dalle2.st -n 5 -o e.tok d.tok
dvae-decode -m dvae2.st -o f.pix e.tok
clip-rank -m clip2.st -k 3 -o g.pix f.pix
# Ids cover weights and config; the files also hold command lines, which differ.
for m in dvae dalle clip; do
	[ "$(model-info $m.st | sed -n 's/^id  *//p')" = "$(model-info ${m}2.st | sed -n 's/^id  *//p')" ] || bad "$m differs when its input is a file"
done
# Records compared as JSON with their pixels: headers hold the command lines.
tok-dump train.tok > train.json
tok-dump c.tok | cmp -s - train.json || bad "tokens differ when cut"
tok-dump --pixels piped.pix > piped.json
tok-dump --pixels g.pix | cmp -s - piped.json || bad "ranked samples differ when cut"
# Bare content and joined streams are streams, too.
tok-cat -l 0 c.tok | tok-dump | cmp -s - train.json || bad "bare content differs"
tok-cat -n 7 c.tok > head.tok
tok-cat --skip 7 c.tok > tail.tok
cat head.tok tail.tok | tok-dump | cmp -s - train.json || bad "joined halves differ"
cat head.tok tail.tok | dalle-score -q -m dalle.st | tok-dump --fields nll_image > joined.nll
dalle-score -q -m dalle.st c.tok | tok-dump --fields nll_image | cmp -s - joined.nll || bad "scores of joined halves differ"

# Another dVAE, another vocabulary: refused with one line and status 3, no output.
dvae-train -q -x tiny -n 1 -s 9 -o other.st a.pix
printf 'zebra zebra\n' | bpe-train -q -k 260 -o other.bpe
refused() {
	"$@" -o refused.out 2> err
	status=$?
	[ $status -eq 3 ] && [ "$(wc -l < err)" -eq 1 ] && [ ! -e refused.out ] || bad "$*: status $status, $(cat err)"
}
refused dvae-decode -m other.st e.tok
printf 'red\n' | bpe-encode -m other.bpe > foreign.tok
refused dalle-sample -m dalle.st foreign.tok
dvae-encode -m other.st b.pix > foreign2.tok
refused dalle-train -x tiny -n 1 --eval foreign2.tok c.tok
refused dalle-score -m dalle.st foreign2.tok
exit $failed
