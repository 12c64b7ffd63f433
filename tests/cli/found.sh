#!/bin/sh
# found.sh - what fuzzing (make fuzz) and the reading for it found, through the tools.
. "$SRC/tests/helpers.sh"

# model FILE KIND CONFIG: a file that has this config and no tensors
model() {
	header='{"__metadata__":{"dalle.kind":"'$2'","dalle.config":"'$(printf %s "$3" | sed 's/"/\\"/g')'"}}'
	{
		printf "\\$(printf %03o $((${#header} % 256)))\\$(printf %03o $((${#header} / 256)))\\0\\0\\0\\0\\0\\0"
		printf %s "$header"
	} >"$1"
}

# Sizes are believed once the file has tensors of them: no machine has the memory that these ask for, and that is not the
# failure which is told.
echo '{"key":"a","caption":"a","text":[1],"image":[1],"pixels":{"width":1,"height":1,"rgb":"AAAA"}}' |
	tok-load -o in || bad "tok-load"
model dalle dalle '{"text_length":65536,"text_vocab":16777216,"grid_w":32,"grid_h":32,"image_vocab":16777216,"layers":16,'\
'"width":65536,"heads":64,"conv_k":3,"conv_centred":0,"mask":"paper"}'
refused 3 'dalle: has no tensor' dalle-score -d cpu -m dalle in
model clip clip '{"size":16,"patch":4,"image_width":65536,"image_layers":64,"image_heads":64,"context":16,'\
'"vocabulary":16777216,"text_width":65536,"text_layers":64,"text_heads":64,"embed":65536,"exact_gelu":0}'
refused 3 'clip: has no tensor' clip-rank -d cpu -m clip in
model dvae dvae '{"size":16,"stem":1,"hidden":65536,"initial":65536,"groups":4,"blocks":1,"codes":1048576,"kernel":3,'\
'"post_gain":1}'
refused 3 'dvae: has no tensor' dvae-encode -d cpu -m dvae in

# A small stream with a large code: counting codes takes no memory without end.
echo '{"text":[67108863,16777215]}' | tok-load -o codes || bad "tok-load of large codes"
(ulimit -v 300000 && tok-info codes >out) && grep -q '^text codes.1 used' out ||
	bad "tok-info with little memory: $(cat out)"

# Charts: points far outside of ends that the user sets, and values that differ in their last bit.
printf '{"step":1,"loss":-1e30}\n{"step":2,"loss":1}\n' >far.log
plot-log --y-min=0 -o far.png far.log || bad "a point far below --y-min"
printf '{"step":1,"loss":1}\n{"step":1.0000000000000002,"loss":1.0000000000000002}\n' >near.log
for scale in --quiet --log-x --log-y; do
	timeout 120 plot-log $scale -o near.png near.log || bad "values of nearly no difference, $scale: status $?"
done
exit $failed
