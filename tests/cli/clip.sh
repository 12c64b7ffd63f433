#!/bin/sh
# clip.sh - clip-train and clip-rank: learns eight coloured squares, ranks them, and refuses what does not fit.
set -u
. "$SRC/tests/helpers.sh"

# square FILE R G B (octal): a 16x16 picture of one colour
square() {
	pixel="\\$2\\$3\\$4"
	row=
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do row=$row$pixel; done
	{
		printf 'P6\n16 16\n255\n'
		for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do printf "$row"; done
	} > "$1"
}
square red.ppm 377 000 000
square green.ppm 000 377 000
square blue.ppm 000 000 377
square white.ppm 377 377 377
square black.ppm 000 000 000
square yellow.ppm 377 377 000
square pink.ppm 377 200 300
square grey.ppm 200 200 200
for c in red green blue white black yellow pink grey; do printf '%s.ppm\ta %s square\n' $c $c; done > pairs.tsv
cut -f2 pairs.tsv | bpe-train -k 280 -q -o words.bpe || bad "bpe-train"
img-pack -s 16 pairs.tsv | bpe-encode -m words.bpe -o all.pix || bad "packing"

# Learning: every caption finds its picture.
clip-train -x tiny -b 8 -n 60 --shift 0 -d cpu -o clip.safetensors all.pix 2>err || bad "clip-train: $(cat err)"
clip-rank -m clip.safetensors --retrieval all.pix > table || bad "retrieval"
[ "$(awk '$1 == "caption" { print $4 }' table)" = 100.0 ] || bad "captions do not find their pictures: $(cat table)"

# Ranking: all pictures under one caption; the right one must come first.
cut -f1 pairs.tsv | sed "s/\$/	a blue square/" > asked.tsv
img-pack -s 16 asked.tsv | bpe-encode -m words.bpe > asked.pix
clip-rank -m clip.safetensors asked.pix > ranked.pix || bad "ranking"
[ "$(tok-dump --fields key ranked.pix | head -n 1)" = '{"key":"blue"}' ] || bad "first is $(tok-dump --fields key ranked.pix | head -n 1)"
tok-dump --fields score ranked.pix | tr -dc '0-9.\n-' | sort -rnc || bad "not best first"
[ "$(clip-rank -m clip.safetensors -k 3 asked.pix | tok-dump | wc -l)" -eq 3 ] || bad "-k 3"
# Captions that differ are two, even where the vocabulary makes them the same tokens.
tok-dump --pixels asked.pix | head -n 2 | sed '1s/"caption":"[^"]*"/"caption":"Red"/; 2s/"caption":"[^"]*"/"caption":"red"/; s/"text":\[[^]]*\]/"text":[7]/' |
	tok-load --like asked.pix > twins.pix
[ "$(clip-rank -m clip.safetensors -k 1 twins.pix | tok-dump | wc -l)" -eq 2 ] || bad "captions of equal tokens"
[ "$(clip-rank -m clip.safetensors --no-sort asked.pix | tok-dump --fields key)" = "$(tok-dump --fields key asked.pix)" ] || bad "--no-sort changed the order"
[ "$(clip-rank -m clip.safetensors --min-score 1 asked.pix 2>left | tok-dump | wc -l)" -eq 0 ] || bad "--min-score"
grep -q "left out $(tok-dump --fields key asked.pix | wc -l) records" left || bad "--min-score says: $(cat left)"

# By likelihood, and by both: the scores are those that awk computes from the cosines and nll.
tok-dump --pixels asked.pix | awk '{ sub(/}$/, ""); print $0 ",\"nll_image\":" 2 + (NR * 5 % 8) / 10 "}" }' | tok-load | bpe-encode -m words.bpe -o told.pix || bad "nll"
field() { sed "s/.*\"$1\":\([-0-9.e]*\).*/\1/"; }
clip-rank --weights nll=1 -k 3 told.pix | tok-dump >by-nll || bad "--weights nll=1"
[ "$(field nll_image <by-nll | awk '{ printf "%.1f ", $1 }')" = "2.0 2.1 2.2 " ] || bad "by likelihood: $(field nll_image <by-nll)"
[ "$(field score <by-nll | head -n 1)" = -2.0 ] || bad "by likelihood: the score is not minus nll"
clip-rank -w nll=1 --no-sort --min-score -2.25 told.pix | tok-dump | field nll_image | sort -n | tail -n 1 | grep -q '^2.2' || bad "likelihood as a filter"
clip-rank -m clip.safetensors --no-sort told.pix | tok-dump >by-clip
{ field score <by-clip; field nll_image <by-clip; } | awk '
	NR <= 8 { x[NR] = $1; mx += $1 / 8; next } { y[NR - 8] = -$1; my -= $1 / 8 }
	END { for (i = 1; i <= 8; i++) { vx += (x[i] - mx) ^ 2 / 8; vy += (y[i] - my) ^ 2 / 8 }
		for (i = 1; i <= 8; i++) print 2 * (x[i] - mx) / sqrt(vx) + 0.5 * (y[i] - my) / sqrt(vy) }' | sort -rg >want
clip-rank -m clip.safetensors --weights clip=2,nll=0.5 told.pix | tok-dump | field score >mixed || bad "a mix"
paste want mixed | awk '{ d = $1 - $2; if (d > 1e-3 || d < -1e-3) exit 1 } END { exit NR != 8 }' || bad "mixed scores: $(paste want mixed)"
sort -rgc mixed || bad "a mix is not best first"
for wrong in "" "clip" "clip=x" "clip=-1" "clip=0,nll=0" "beauty=1" "clip=1,,nll=1"; do
	clip-rank -m clip.safetensors -w "$wrong" told.pix >out 2>err
	[ $? = 2 ] && grep -q -- '--weights' err || bad "--weights '$wrong' is misuse: $(cat err)"
done
for wrong in "told.pix" "-m clip.safetensors --no-sort -w clip=1,nll=1 told.pix" "-m clip.safetensors --among told.pix told.pix"; do
	clip-rank $wrong >out 2>err
	[ $? = 2 ] || bad "clip-rank $wrong: expected status 2"
done

# Retrieval: of eight pictures under one caption each caption is as near to all: ties count half, the median rank is 4.5.
tok-dump --pixels asked.pix | sed 's/"pixels":{"width":16,"height":16,"rgb":"[^"]*"}/PIXELS/' | sed "s|PIXELS|$(tok-dump --pixels asked.pix | head -n 1 | grep -o '"pixels":{[^}]*}')|" | tok-load | bpe-encode -m words.bpe -o alike.pix
clip-rank -m clip.safetensors -p f32 --retrieval alike.pix | awk -F'\t' 'NR > 1 && !($2 == 8 && $3 == 8 && $4 == 0 && $5 == 100 && $6 == 100 && $7 == 4.5) { exit 1 }' ||
	bad "retrieval among equals: $(clip-rank -m clip.safetensors --retrieval alike.pix)"

# One by one and together: the same scores.
clip-rank -m clip.safetensors -p f32 -b 1 -j 1 asked.pix | tok-dump > one
clip-rank -m clip.safetensors -p f32 -b 8 asked.pix | tok-dump > eight
cmp -s one eight || bad "scores depend on the batch"

# Random squares of pictures of any shape; held-out ones are cut in the middle.
i=0
: > wide.tsv
for c in red green blue white; do
	i=$((i + 1))
	{
		printf 'P6\n%d %d\n255\n' $((20 + 4 * i)) $((16 + i))
		head -c $(((20 + 4 * i) * (16 + i) * 3)) /dev/zero | tr '\0' "\\10$i"
	} > wide$c.ppm
	printf 'wide%s.ppm\ta %s square\n' $c $c >> wide.tsv
done
img-pack -s 0 wide.tsv | bpe-encode -m words.bpe -o wide.pix || bad "packing wide pictures"
clip-train -q -x tiny -b 4 -n 30 --size 16 --augment crop --eval wide.pix --log wide.log -o wide.safetensors wide.pix ||
	bad "--augment crop"
model-info -s wide.safetensors | grep -q '^config *size = 16$' || bad "--size"
grep -q '"eval_loss":[0-9]' wide.log && grep -q '"temperature":[0-9]' wide.log || bad "the log of --augment crop"

# CLIP's own vocabulary: captions come with both ends.
img-pack -s 16 pairs.tsv | bpe-encode -m "$SRC/tests/golden/clip-bpe" -l 20 -o closed.pix || bad "CLIP's vocabulary"
clip-train -q -x tiny -b 8 -n 60 --shift 0 --closed -o closed.safetensors closed.pix || bad "--closed"
size=$(tok-info --json closed.pix | tr -d ' \n' | sed 's/.*"text":{[^}]*"size":\([0-9]*\).*/\1/')
model-info -s closed.safetensors | grep -q "^config *vocabulary = $size$" || bad "--closed: the vocabulary is not $size: $(model-info -s closed.safetensors | grep vocab)"
clip-rank -m closed.safetensors --retrieval closed.pix > table || bad "--closed: retrieval"
[ "$(awk '$1 == "caption" { print $4 }' table)" = 100.0 ] || bad "--closed: captions do not find their pictures: $(cat table)"

# Another vocabulary: only when asked for.
clip-train -q -x tiny -b 8 -n 2 --init clip.safetensors --new-vocabulary -o tuned.safetensors closed.pix || bad "--new-vocabulary"

# Captions that are cut: told once when first seen, counted at the end.
clip-train -x tiny -b 8 -n 4 --context 4 -o cut.safetensors all.pix 2> err || bad "captions that are cut"
grep -q "all.pix: the caption of record '[a-z]*' has [0-9]* tokens and is cut to 2 (--context)" err && tail -n 1 err | grep -q '^clip-train: 32 of 32 captions drawn, .* cut to 2 tokens' &&
	[ "$(grep -c 'is cut' err)" -eq 1 ] || bad "captions that are cut: $(cat err)"

# A model's sizes come with it, crops and ends of captions included.
clip-train -q -b 4 -n 2 --augment crop --init wide.safetensors -o sizes.safetensors wide.pix || bad "--init without a preset"
[ "$(model-info -s sizes.safetensors | grep '^config')" = "$(model-info -s wide.safetensors | grep '^config')" ] || bad "--init brings other sizes"
clip-train -q -b 8 -n 2 --init closed.safetensors -o sizes.safetensors --restart closed.pix && model-info -s sizes.safetensors | grep -q '^config *closed = true' ||
	bad "--init brings no --closed"

printf 'zebra zebra\n' | bpe-train -k 260 -q -o other.bpe
img-pack -s 16 pairs.tsv | bpe-encode -m other.bpe > other.pix
img-pack -s 24 pairs.tsv | bpe-encode -m words.bpe > large.pix
img-pack -s 16 pairs.tsv > untold.pix
cut -f2 pairs.tsv | bpe-encode -m words.bpe > blind.tok
head -c 300 all.pix > cut.pix
refused 3 'vocabulary' clip-rank -m clip.safetensors other.pix -o unwritten
refused 3 '24x24' clip-rank -m clip.safetensors large.pix -o unwritten
refused 3 'text' clip-rank -m clip.safetensors untold.pix -o unwritten
refused 3 'pictures' clip-rank -m clip.safetensors blind.tok -o unwritten
refused 3 'nll' clip-rank -w nll=1 all.pix -o unwritten
refused 3 '' clip-rank -m clip.safetensors cut.pix -o unwritten
refused 3 '' clip-rank -m words.bpe all.pix -o unwritten
refused 3 'text' clip-train -x tiny -n 1 untold.pix -o unwritten
refused 3 'squares' clip-train -x tiny -n 1 blind.tok -o unwritten
refused 3 '24x24, expected 16x16' clip-train -q -x tiny -n 1 --size 16 large.pix -o unwritten
refused 3 'start token' clip-train -q -x tiny -n 1 --closed all.pix -o unwritten
refused 3 '--new-vocabulary' clip-train -q -x tiny -n 1 --init clip.safetensors other.pix -o unwritten
refused 3 '--text-width 32 (here 64)' clip-train -q -n 1 --text-width 64 --init clip.safetensors all.pix -o unwritten
refused 3 '24x24, expected 16x16' clip-train -q -n 1 --init clip.safetensors large.pix -o unwritten
refused 2 '--patch 7 .* side of 16' clip-train -q -x tiny -n 1 --patch 7 all.pix -o unwritten
refused 2 '--text-width 33 .*--text-heads 2' clip-train -q -x tiny -n 1 --text-width 33 all.pix -o unwritten
refused 2 'preset' clip-train -x nonsense -n 1 all.pix -o unwritten
exit $failed
