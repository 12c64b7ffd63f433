#!/bin/sh
# plan.sh - dalle-plan: the memory of one GPU is what dalle-train --dry-run prints, the paper's cluster, sizes of a model
# file, rates from a file, JSON and refusals.
fails=0
fail() {
	echo "plan: $*"
	fails=$((fails + 1))
}
# refuse STATUS WORDS ARGS...
refuse() {
	want=$1 words=$2
	shift 2
	dalle-plan "$@" > out 2> err
	got=$?
	[ $got -eq "$want" ] || fail "$*: status $got, expected $want"
	[ "$(wc -l < err)" -eq 1 ] && grep -q -e "$words" err && [ ! -s out ] || fail "$*: said '$(cat err)', expected '$words'"
}
# line FILE LABEL: the value after the label, which may be set in
line() {
	sed -n "s/^ *$2  *\([0-9.]* *[KMGTP]*i*B*\).*/\1/p" "$1" | head -n 1 | sed 's/ *$//'
}

for how in '-x tiny -p f32' '-x small -p bf16' '-x small -p f32 --recompute -b 5' '-x 1.2b -p bf16 --recompute' '-x 12b -p f32' \
	'-x tiny -p f32 --layers 3 --width 64 --heads 4 --mask dense'; do
	dalle-train $how --dry-run > real 2> /dev/null # the large ones do not fit, and are printed
	dalle-plan $how > planned || fail "$how"
	for what in 'activations' 'total on device'; do
		[ -n "$(line real "$what")" ] && [ "$(line real "$what")" = "$(line planned "$what")" ] ||
			fail "$how: $what: '$(line real "$what")' of dalle-train, '$(line planned "$what")' planned"
	done
	[ "$(line real parameters)" = "$(sed -n 's/^  all  *\([0-9]*\).*/\1/p' planned | head -n 1)" ] || fail "$how: parameters"
done

# the paper's: 12.0 billion parameters on 1024 GPUs of 16 GB, rank 896
paper='-x 12b -g 1024 -p f16 --recompute --no-master --moments 16 --averages host'
dalle-plan $paper --rank 896 > paper || fail "the paper's cluster"
grep -q '85.8871 % less' paper || fail "compression: $(grep PowerSGD paper)"
grep -q 'between 128 machines' paper || fail "machines"
total=$(dalle-plan $paper --rank 896 -J | grep -o '"total":[0-9]*' | sed -n 2p)
[ "${total#*:}" -gt 14000000000 ] && [ "${total#*:}" -lt 17179869184 ] || fail "does not fit into 16 GiB: $total"
grep -q 'seconds' paper && fail "time without rates"

# rates: given and from a file; one GPU sends nothing
echo '{"flops": 1e14, "node_bandwidth": 1e11, "network": 1e10, "card": "none"}' > rates.json
dalle-plan -x 1.2b -g 16 --rates rates.json -J > a || fail "--rates"
dalle-plan -x 1.2b -g 16 --flops 1e14 --node-bandwidth 1e11 --network 1e10 -J | cmp - a || fail "rates by option"
dalle-plan -x 1.2b -g 16 --rates rates.json --network 1e8 | grep -q 'between machines  ' || fail "an option before the file"
dalle-plan -x 1.2b --flops 1e14 | grep -q 'images per hour' || fail "one GPU's time"
dalle-plan -x 1.2b | grep -q 'machine' && fail "one GPU sends something"
cat a | tr ',' '\n' | grep -q '"images_per_hour":[1-9]' || fail "JSON: $(cat a)"

# a model file's sizes
for i in 1 2 3 4; do
	awk -v s=$i 'BEGIN { srand(s); printf "P6\n16 16\n255\n"; for (i = 0; i < 768; i++) printf "%c", 1 + int(rand() * 120) }' > p$i.ppm
	printf 'p%d.ppm\tpicture %d\n' $i $i
done > list.tsv
img-pack -q -s 16 -o pix list.tsv && cut -f2 list.tsv | bpe-train -q -k 260 -o words && dvae-train -q -x tiny -n 1 -o dvae pix &&
	bpe-encode -q -m words -l 15 pix | dvae-encode -q -m dvae -o tok && dalle-train -q -x tiny --layers 2 -n 1 -o model tok || fail "training"
dalle-plan -m model -J | grep -q '"layers":2' || fail "sizes of a model file"
[ "$(dalle-plan -m model | sed -n 's/^  all  *\([0-9]*\).*/\1/p' | head -n 1)" = "$(model-info -s model | sed -n 's/^parameters *//p')" ] ||
	fail "parameters of a model file"

dalle-plan -x tiny -g 16 --flops 1e12 | grep -q '^  all, at least' || fail "time with rates missing is a bound"

refuse 2 'do not fill' -g 12
refuse 2 'between machines' -g 8 --rank 64
refuse 2 'multiple' -x tiny --width 33 --heads 2
refuse 2 'unknown' -x 13b
refuse 2 'options only' operand
refuse 3 'expected a dalle model' -m dvae
refuse 3 'JSON' --rates list.tsv
echo '{"flops": "many"}' > bad.json
refuse 3 'no number' --rates bad.json
refuse 1 'No such file' --rates missing
dalle-plan > /dev/full 2> err
[ $? -eq 4 ] || fail "full device: $(cat err)"
exit $((fails > 0))
