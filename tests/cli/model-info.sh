#!/bin/sh
# model-info.sh - a hand-made safetensors file shown as text and JSON, foreign and damaged files refused.
. "$SRC/tests/helpers.sh"

header='{"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"__metadata__":{"made by":"hand"}}'
{
	printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0"
	printf %s "$header"
	printf '\0\0\200\077\0\0\100\300' # 1.0, -3.0
} > m.safetensors

model-info -S m.safetensors > out || bad "a good file"
grep -q '^parameters   2$' out || bad "parameters: $(cat out)"
grep -q '^metadata     made by = hand$' out || bad "metadata: $(cat out)"
printf 'a.weight\tF32\t1x2\t8\t-1\t2\t-3\t1\t0\n' > expected
tail -n 1 out | cmp -s - expected || bad "tensor line: $(tail -n 1 out)"
model-info -J m.safetensors m.safetensors | grep -c '^{.*"parameters":2.*}$' | grep -q '^2$' || bad "one JSON line per file"
model-info -s - < m.safetensors | grep -q '^tensors      1$' || bad "standard input"
model-info -c m.safetensors | grep -q '1 read without a checksum' || bad "check without checksums"
model-info -s m.safetensors | grep -q a.weight && bad "-s lists tensors"

refused 2 'expected a model file' model-info
refused 1 'No such file' model-info missing
: > nothing
refused 3 'is empty' model-info nothing
refused 3 'is a device' model-info /dev/null
head -c 60 m.safetensors > cut
refused 3 'truncated or corrupt' model-info cut
head -c 107 m.safetensors > cut
refused 3 'truncated' model-info cut
{ cat m.safetensors; printf x; } > long
refused 3 'after the last tensor' model-info long
printf 'PK\003\004 archive of torch' > zip
refused 3 'zip archive' model-info zip
printf '\200\002}q.aaaaaaaaa' > pickle
refused 3 'pickle' model-info pickle
refused 3 'directory' model-info .
model-info m.safetensors > /dev/full 2> err
[ $? -eq 4 ] || bad "full device: $(cat err)"
# a bad file does not hide the good one after it
model-info zip m.safetensors > out 2> err
[ $? -eq 3 ] && grep -q a.weight out || bad "good file after a bad one"
exit $failed
