#!/bin/sh
# model-info.sh - a hand-made safetensors file shown as text and JSON, foreign and damaged files refused.
fails=0
fail() {
	echo "model-info: $*"
	fails=$((fails + 1))
}
# refuse STATUS WORDS ARGS...: exit status, one line that holds WORDS
refuse() {
	want=$1 words=$2
	shift 2
	model-info "$@" > out 2> err
	got=$?
	[ $got -eq "$want" ] || fail "$*: status $got, expected $want"
	[ "$(wc -l < err)" -eq 1 ] && grep -q -e "$words" err || fail "$*: said '$(cat err)', expected '$words'"
}

header='{"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"__metadata__":{"made by":"hand"}}'
{
	printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0"
	printf %s "$header"
	printf '\0\0\200\077\0\0\100\300' # 1.0, -3.0
} > m.safetensors

model-info -S m.safetensors > out || fail "a good file"
grep -q '^parameters   2$' out || fail "parameters: $(cat out)"
grep -q '^metadata     made by = hand$' out || fail "metadata: $(cat out)"
printf 'a.weight\tF32\t1x2\t8\t-1\t2\t-3\t1\t0\n' > expected
tail -n 1 out | cmp -s - expected || fail "tensor line: $(tail -n 1 out)"
model-info -J m.safetensors m.safetensors | grep -c '^{.*"parameters":2.*}$' | grep -q '^2$' || fail "one JSON line per file"
model-info -s - < m.safetensors | grep -q '^tensors      1$' || fail "standard input"
model-info -c m.safetensors | grep -q '1 read without a checksum' || fail "check without checksums"
model-info -s m.safetensors | grep -q a.weight && fail "-s lists tensors"

refuse 2 'expected a model file'
refuse 1 'No such file' missing
: > nothing
refuse 3 'is empty' nothing
refuse 3 'is a device' /dev/null
head -c 60 m.safetensors > cut
refuse 3 'truncated or corrupt' cut
head -c 107 m.safetensors > cut
refuse 3 'truncated' cut
{ cat m.safetensors; printf x; } > long
refuse 3 'after the last tensor' long
printf 'PK\003\004 archive of torch' > zip
refuse 3 'zip archive' zip
printf '\200\002}q.aaaaaaaaa' > pickle
refuse 3 'pickle' pickle
refuse 3 'directory' .
model-info m.safetensors > /dev/full 2> err
[ $? -eq 4 ] || fail "full device: $(cat err)"
# a bad file does not hide the good one after it
model-info zip m.safetensors > out 2> err
[ $? -eq 3 ] && grep -q a.weight out || fail "good file after a bad one"
exit $((fails > 0))
