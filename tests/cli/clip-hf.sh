#!/bin/sh
# clip-hf.sh - clip-rank with CLIP folders as `transformers` saves them: scores against that library's
# (tests/golden/make_hf_clip.py), with three kinds of config and file; and folders that are not right.
set -u
failed=0
bad() { echo "clip-hf.sh: $*"; failed=1; }
golden=$SRC/tests/golden

cp -r "$golden/hf-clip" hf && chmod -R u+w hf || exit 1
for m in quick old first; do cp "$golden/clip-bpe/vocab.json" "$golden/clip-bpe/merges.txt" hf/$m; done
tok-load -o in.pix hf/records.json || bad "tok-load"

# scores STREAM: key, tab, score of each record
scores() { tok-dump --fields key,score "$1" | sed 's/.*"key":"\([^"]*\)".*"score":\([-0-9.e]*\)}/\1\t\2/'; }
column=2
for m in quick old first; do
	clip-rank -m hf/$m -d cpu -p f32 -b 5 --no-sort -o $m.pix in.pix 2>err || bad "$m: $(cat err)"
	[ "$m" = first ] || grep -q ' captions* cut to [0-9]* tokens$' err || bad "$m: long captions are not counted: $(cat err)"
	scores $m.pix >$m.scores
	cut -f1,$column hf/scores | paste - $m.scores | awk -v m=$m '
		$1 != $3 { print m ": " $1 " is " $3; bad = 1 }
		{ d = $2 - $4; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
		END { if (n != 18 || worst > 5e-6) { print m ": " n " records, worst difference " worst; bad = 1 } exit bad }' ||
		bad "$m: scores differ from those of transformers"
	column=$((column + 1))
done

# Captions are embedded once where they repeat; the records keep all else; ranking and retrieval run.
tok-dump --pixels in.pix | sed 's/"caption":"[^"]*"/"caption":"a red heart"/' | tok-load -o same.pix
clip-rank -m hf/quick -p f32 -b 4 --no-sort same.pix | tok-dump >four
clip-rank -m hf/quick -p f32 -b 1 --no-sort same.pix | tok-dump >one
cmp -s one four || bad "equal captions in one batch: other scores"
clip-rank -m hf/quick -p f32 -k 5 same.pix | tok-dump --fields score | tr -dc '0-9.\n-' >five
[ "$(wc -l <five)" = 5 ] && sort -rnc five || bad "ranking with a published model: $(cat five)"
clip-rank -q -m hf/old --retrieval in.pix | awk -F'\t' 'NR > 1 && $2 == 18 && $3 == 18 { n++ } END { exit n != 2 }' || bad "retrieval"
# Text tokens of another vocabulary do not matter to it.
bpe-encode -m hf/quick -o told.pix in.pix && clip-rank -q -m hf/quick -p f32 --no-sort told.pix -o out.pix && scores out.pix | cmp -s - quick.scores ||
	bad "a stream with text tokens"

# refused TEXT: clip-rank with folder `broken` ends with status 3, one line, no output
refused() {
	clip-rank -m broken -o refused.out in.pix >out 2>err
	status=$?
	[ $status = 3 ] || bad "$1: status $status, expected 3: $(cat err)"
	[ "$(wc -l <err)" = 1 ] && grep -q -- "$1" err || bad "$1: says '$(cat err)'"
	[ ! -e refused.out ] || bad "$1: left an output"
	rm -rf broken
}
# with FILE SED: a copy of `quick` whose FILE is edited
with() {
	cp -r hf/quick broken
	sed "$2" hf/quick/$1 >broken/$1
}
with config.json 's/"text_config": {/&"hidden_act": "gelu_new",/' && refused "hidden_act 'gelu_new', expected quick_gelu or gelu"
with config.json 's/"text_config": {/&"hidden_act": "gelu",/' && refused 'different activations'
with config.json 's/"model_type": "clip"/"model_type": "siglip"/' && refused "type 'siglip', expected clip"
with config.json 's/"patch_size": 8/"patch_size": 7/' && refused 'not a multiple of the patch'
with config.json 's/"hidden_size": 16/"hidden_size": 20/' && refused 'does not have the shape'
with config.json 's/"vocab_size": [0-9]*/"vocab_size": 16777216/; s/"hidden_size": 16/"hidden_size": 65536/' && # terabytes
	refused 'does not have the shape'
with config.json 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' && refused 'has no tensor'
with config.json 's/"hidden_size": 16/"hidden_size": "wide"/' && refused "'hidden_size' is no whole number"
with config.json 's/"intermediate_size": 24/"intermediate_size": 4000000000/' && refused 'MLP width'
with config.json 's/"num_attention_heads": 4/"num_attention_heads": 0/' && refused 'heads'
with config.json 's/"vocab_size": [0-9]*/"vocab_size": 400/' && refused 'vocab.json has'
with config.json '$d' && refused 'config.json: line'
with merges.txt '2s/.*/no such/' && refused 'merges.txt: line 2'
cp -r hf/first broken && echo '{"size": 15}' >broken/preprocessor_config.json && refused 'pictures of size 15'
cp -r hf/first broken && echo '{"resample": 2}' >broken/preprocessor_config.json && refused 'resample 2, expected 3'
cp -r hf/first broken && echo '{"image_std": [1, 0, 1]}' >broken/preprocessor_config.json && refused 'image_std'
cp -r hf/first broken && head -c 5000 hf/first/model.safetensors >broken/model.safetensors && refused 'truncated'
for file in config.json model.safetensors vocab.json; do
	cp -r hf/quick broken && rm broken/$file
	clip-rank -m broken in.pix >out 2>err
	[ $? = 1 ] && grep -q "broken/$file: No such file" err || bad "without $file: $(cat err)"
	rm -rf broken
done
tok-dump --pixels in.pix | sed 's/"caption":"[^"]*",//' | tok-load -o mute.pix
clip-rank -q -m hf/quick mute.pix >out 2>err
[ $? = 3 ] && grep -q 'has no caption' err || bad "records without captions: $(cat err)"
exit $failed
