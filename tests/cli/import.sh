#!/bin/sh
# import.sh - published dVAE weights as PyTorch pickles: used as models directly, imported into safetensors, the same
# tokens either way; what model-import and the dVAE programs refuse.
. "$SRC/tests/helpers.sh"
golden=$SRC/tests/golden/openai-dvae
cp "$golden"/* .

# the picture whose codes the package found (make_openai_dvae.py)
awk 'BEGIN { printf "P6\n256 256\n255\n"
	for (y = 0; y < 256; y++) for (x = 0; x < 256; x++) for (c = 0; c < 3; c++)
		printf "%c", 1 + (x * (c + 3) + y * (7 - 2 * c) + int(x * y / 64)) % 120 }' > drawn.ppm
img-pack -s 0 -o drawn drawn.ppm || bad "img-pack"
identity() { tok-info --json "$1" | grep '"id": "[0-9a-f]\{32\}"' || echo "$1 has none"; }
for m in encoder.pkl encoder-old.pkl encoder-state.pkl; do
	dvae-encode -m $m -p f32 -o $m.tok drawn || bad "dvae-encode -m $m"
	tok-dump $m.tok | grep -o '"image":\[[^]]*\]' | tr -d '"image:[]' | tr , ' ' | cmp - codes-256.txt ||
		bad "$m: codes differ from the package's"
	[ "$(identity $m.tok)" = "$(identity encoder.pkl.tok)" ] || bad "$m: another identity than encoder.pkl"
done

# both halves merged, from either container, are one model with the encoder's identity
model-import -o dvae.safetensors encoder.pkl decoder-old.pkl || bad "model-import"
model-import encoder-old.pkl decoder.pkl > other.safetensors || bad "model-import to stdout"
model-info -c dvae.safetensors > info && grep -q '86 tensors intact' info || bad "its checksums: $(cat info)"
[ "$(tensors dvae.safetensors)" = "$(tensors other.safetensors)" ] || bad "the containers differ"
dvae-decode -m dvae.safetensors -p f32 encoder.pkl.tok | img-unpack --ppm > merged.ppm || bad "decoding with the merged file"
dvae-decode -m decoder.pkl -p f32 encoder.pkl.tok 2> err | img-unpack --ppm > alone.ppm
cmp merged.ppm alone.ppm || bad "decoder.pkl and the merged file decode differently"
grep -q 'decoder.pkl: holds no encoder' err || bad "a decoder alone says nothing: $(cat err)"
dvae-encode -m dvae.safetensors -p f32 drawn | dvae-decode -m dvae.safetensors -p f32 | img-unpack --ppm | cmp - merged.ppm ||
	bad "the merged file alone"
dvae-encode -m - -p f32 drawn < encoder.pkl > /dev/null || bad "a pickle from a pipe"

# --list shows what would be written; views of all types come out element after element
model-import --list encoder.pkl decoder.pkl | grep -q '^decoder.blocks.output.conv.w	F32	6x4x1x1	96$' || bad "--list"
model-import -o views.st views.pt && model-import -o views-old.st views-old.pt || bad "views"
[ "$(tensors views.st)" = "$(tensors views-old.st)" ] || bad "views of both containers"
model-import -o again.st views.safetensors && [ "$(tensors again.st)" = "$(tensors views.st)" ] || bad "views differ"

refused 2 'expected a model file' model-import
refused 2 'give one of them' model-import --list -o unwritten encoder.pkl
refused 3 'is in encoder.pkl too' model-import -o unwritten encoder.pkl encoder-old.pkl
refused 3 'expected the encoder' dvae-encode -m decoder.pkl -o unwritten drawn
refused 3 'expected the decoder' dvae-decode -m encoder.pkl -o unwritten encoder.pkl.tok
refused 3 'no dVAE' dvae-encode -m views.pt -o unwritten drawn
head -c 3000 views.pt > cut.pt
refused 3 'cut.pt: ' model-import -o unwritten cut.pt
# a pickle that would run a program: refused by its name
magic='\200\002\212\012\154\374\234\106\371\040\152\250\120\031.'
printf "$magic"'\200\002M\351\003.\200\002}X\015\000\000\000little_endian\210s.\200\002cos\nsystem\nX\012\000\000\000touch none\205R.' > evil.pt
refused 3 'evil.pt: .*os.system' model-import -o unwritten evil.pt
refused 3 'evil.pt: .*os.system' model-info evil.pt
refused 3 'evil.pt: .*os.system' dvae-decode -m evil.pt encoder.pkl.tok
model-import views.pt > /dev/full 2> err && bad "full device: status 0"
exit $failed
