#!/bin/sh
# plan.sh - dalle-plan: the memory of one GPU is what dalle-train --dry-run prints, the paper's cluster, sizes of a model
# file, rates from a file, JSON and refusals.
. "$SRC/tests/helpers.sh"
# line FILE LABEL: the value after the label, which may be set in
line() {
	sed -n "s/^ *$2  *\([0-9.]* *[KMGTP]*i*B*\).*/\1/p" "$1" | head -n 1 | sed 's/ *$//'
}

for how in '-x tiny -p f32' '-x small -p bf16' '-x small -p f32 --recompute -b 5' '-x 1.2b -p bf16 --recompute' '-x 12b -p f32' \
	'-x tiny -p f32 --layers 3 --width 64 --heads 4 --mask dense'; do
	dalle-train $how --dry-run > real 2> /dev/null # the large ones do not fit, and are printed
	dalle-plan $how > planned || bad "$how"
	for what in 'activations' 'total on device'; do
		[ -n "$(line real "$what")" ] && [ "$(line real "$what")" = "$(line planned "$what")" ] ||
			bad "$how: $what: '$(line real "$what")' of dalle-train, '$(line planned "$what")' planned"
	done
	[ "$(line real parameters)" = "$(sed -n 's/^  all  *\([0-9]*\).*/\1/p' planned | head -n 1)" ] || bad "$how: parameters"
done

for how in '-x tiny' '-x small --powersgd-format 16' '-x 1.2b --powersgd-format 16' '-x tiny --layers 3 --width 64 --heads 4'; do
	dalle-train $how --powersgd 12 --dry-run > real 2> /dev/null
	dalle-plan $how --powersgd 12 > planned || bad "$how --powersgd 12"
	[ -n "$(line real 'PowerSGD on host')" ] && [ "$(line real 'PowerSGD on host')" = "$(line planned 'PowerSGD on host')" ] ||
		bad "$how: PowerSGD: '$(line real 'PowerSGD on host')' of dalle-train, '$(line planned 'PowerSGD on host')' planned"
done

# the paper's: 12.0 billion parameters on 1024 GPUs of 16 GB, rank 896
paper='-x 12b -g 1024 -p f16 --recompute --no-master --moments 16 --averages host'
dalle-plan $paper --powersgd 896 --powersgd-format 16 > paper || bad "the paper's cluster"
grep -q '85.8871 % less' paper || bad "compression: $(grep PowerSGD paper)"
grep -q 'between 128 machines' paper || bad "machines"
total=$(dalle-plan $paper --powersgd 896 --powersgd-format 16 -J | grep -o '"total":[0-9]*' | sed -n 2p)
[ "${total#*:}" -gt 14000000000 ] && [ "${total#*:}" -lt 17179869184 ] || bad "does not fit into 16 GiB: $total"
grep -q 'seconds' paper && bad "time without rates"

# rates: given and from a file; one GPU sends nothing
echo '{"flops": 1e14, "node_bandwidth": 1e11, "network": 1e10, "card": "none"}' > rates.json
dalle-plan -x 1.2b -g 16 --rates rates.json -J > a || bad "--rates"
dalle-plan -x 1.2b -g 16 --flops 1e14 --node-bandwidth 1e11 --network 1e10 -J | cmp - a || bad "rates by option"
dalle-plan -x 1.2b -g 16 --rates rates.json --network 1e8 | grep -q 'between machines  ' || bad "an option before the file"
dalle-plan -x 1.2b --flops 1e14 | grep -q 'images per hour' || bad "one GPU's time"
dalle-plan -x 1.2b | grep -q 'machine' && bad "one GPU sends something"
cat a | tr ',' '\n' | grep -q '"images_per_hour":[1-9]' || bad "JSON: $(cat a)"

# a model file's sizes
for i in 1 2 3 4; do
	awk -v s=$i 'BEGIN { srand(s); printf "P6\n16 16\n255\n"; for (i = 0; i < 768; i++) printf "%c", 1 + int(rand() * 120) }' > p$i.ppm
	printf 'p%d.ppm\tpicture %d\n' $i $i
done > list.tsv
img-pack -q -s 16 -o pix list.tsv && cut -f2 list.tsv | bpe-train -q -k 260 -o words && dvae-train -q -x tiny -n 1 -o dvae pix &&
	bpe-encode -q -m words -l 15 pix | dvae-encode -q -m dvae -o tok && dalle-train -q -x tiny --layers 2 -n 1 -o model tok || bad "training"
dalle-plan -m model -J | grep -q '"layers":2' || bad "sizes of a model file"
[ "$(dalle-plan -m model | sed -n 's/^  all  *\([0-9]*\).*/\1/p' | head -n 1)" = "$(model-info -s model | sed -n 's/^parameters *//p')" ] ||
	bad "parameters of a model file"

dalle-plan -x tiny -g 16 --flops 1e12 | grep -q '^  all, at least' || bad "time with rates missing is a bound"

refused 2 'do not fill' dalle-plan -g 12
refused 2 'between machines' dalle-plan -g 8 --powersgd 64
refused 2 'no multiple of the 8 GPUs' dalle-plan -g 16 --powersgd 65
refused 2 'needs --powersgd' dalle-plan --powersgd-format 16
refused 2 'multiple' dalle-plan -x tiny --width 33 --heads 2
refused 2 'unknown' dalle-plan -x 13b
refused 2 'options only' dalle-plan operand
refused 3 'expected a dalle model' dalle-plan -m dvae
refused 3 'JSON' dalle-plan --rates list.tsv
echo '{"flops": "many"}' > bad.json
refused 3 'no number' dalle-plan --rates bad.json
refused 1 'No such file' dalle-plan --rates missing
dalle-plan > /dev/full 2> err
[ $? -eq 4 ] || bad "full device: $(cat err)"
exit $failed
