#!/bin/sh
# img-fid.sh - img-fid: equal streams, blurred ones, order of records and batches, both kinds of model, refusals.
set -u
. "$SRC/tests/helpers.sh"
golden=$SRC/tests/golden

# 60 pictures of 16 x 16: noise of random strength on a random colour; 60 others; 60 of one half of the colours.
pictures() {
	awk -v seed="$1" -v least="$2" 'BEGIN { srand(seed); for (k = 0; k < 60; k++) {
		printf "P6\n16 16\n255\n"; s = rand() * 40
		for (c = 0; c < 3; c++) mean[c] = least + rand() * (80 - least)
		for (i = 0; i < 768; i++) printf "%c", 1 + int(mean[i % 3] + rand() * s) } }' | img-pack -s 16 --caption "a picture" -o "$3"
}
pictures 1 0 one.pix
pictures 2 0 two.pix
pictures 3 50 half.pix
cp -r "$golden/hf-clip/quick" clip && chmod -R u+w clip && cp "$golden/clip-bpe/vocab.json" "$golden/clip-bpe/merges.txt" clip || exit 1

# value RADIUS COLUMN < table
value() { awk -F'\t' -v r="$1" -v c="$2" '$1 == r { print $c }'; }

img-fid -m clip -p f32 --blur 0,1,2,4,8 -k 3 one.pix one.pix >same || bad "equal streams"
[ "$(wc -l <same)" = 6 ] || bad "five radii: $(cat same)"
awk -F'\t' 'NR > 1 && !($2 == 60 && $3 == 60 && $4 < 1e-6 && $4 > -1e-6 && $5 == 1 && $6 == 1) { exit 1 }' same || bad "equal streams: $(cat same)"
img-fid -m clip -p f32 -k 3 --blur 0,4 one.pix two.pix >other
img-fid -m clip -p f32 -k 3 --blur 0,4 one.pix half.pix >narrow
awk -v a="$(value 0 4 <other)" -v b="$(value 0 4 <narrow)" 'BEGIN { exit !(a > 0 && b > 4 * a) }' || bad "half of the colours must be farther: $(cat other narrow)"
awk -v p="$(value 0 5 <narrow)" -v r="$(value 0 6 <narrow)" 'BEGIN { exit !(p > 0.7 && r < p) }' || bad "half of the colours: precision over recall: $(cat narrow)"
[ "$(value 0 4 <other)" != "$(value 4 4 <other)" ] || bad "the blur does nothing"

# One by one, from standard input, as JSON: the same numbers.
img-fid -m clip -p f32 -k 3 --blur 0,4 -b 1 -j 1 one.pix <two.pix | cmp -s - other || bad "batches of one from standard input"
img-fid -m clip -p f32 -k 3 --blur 4 --json one.pix two.pix >json
grep -q '^{"blur":4.0,"records":\[60,60\],"features":12,"clip_frechet":[0-9.]*,"precision":[0-9.]*,"recall":[0-9.]*}$' json || bad "JSON: $(cat json)"
d=$(sed 's/.*frechet":\([0-9.]*\).*/\1/' json)
awk -v a="$d" -v b="$(value 4 4 <other)" 'BEGIN { d = a - b; exit !(d < 1e-5 && d > -1e-5) }' || bad "JSON says $d"
cat one.pix two.pix >both.pix && [ "$(img-fid -m clip one.pix both.pix | cut -f3 | tail -n 1)" = 120 ] || bad "concatenated streams"

# One of our models; few records are told.
bpe-train -k 280 -q -o words.bpe <<-END
	a picture
END
bpe-encode -m words.bpe one.pix | clip-train -x tiny -n 1 -q -d cpu -o own.safetensors - 2>err || bad "clip-train: $(cat err)"
img-fid -m own.safetensors one.pix two.pix >table 2>err || bad "our model: $(cat err)"
img-fid -m clip one.pix two.pix >table 2>err && [ ! -s err ] || bad "60 records for 12 features need no warning: $(cat err)"
tok-dump --pixels one.pix | head -n 5 | tok-load -o five.pix
img-fid -m clip five.pix one.pix >table 2>err && grep -q '^img-fid: five.pix: 5 records are few for 12 features' err || bad "few records: $(cat err)"

# refused STATUS TEXT ARGUMENTS
tok-dump --pixels one.pix | head -n 1 | tok-load -o single.pix
tok-dump one.pix | tok-load -o blind.pix
img-pack -s 0 --caption x "$golden/pillow.ppm" -o odd.pix
refused 3 'holds 1 record, expected two' img-fid -m clip one.pix single.pix
refused 3 'neighbours of 5 and 60' img-fid -m clip -q -k 5 five.pix one.pix
refused 3 'no pictures' img-fid -m clip one.pix blind.pix
refused 3 'a picture is 16x10, expected 16x16' img-fid -m own.safetensors one.pix odd.pix
refused 2 'blur' img-fid -m clip --blur 1,,2 one.pix two.pix
refused 2 'blur' img-fid -m clip --blur 1,x one.pix two.pix
refused 2 'two streams' img-fid -m clip one.pix two.pix one.pix
exit $failed
