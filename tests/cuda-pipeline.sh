# cuda-pipeline.sh - read (".") by tests/cli/cuda.sh and tests/check-cuda.sh in a scratch folder: from pixels to ranked
# samples with -d cuda, beside the CPU.  Expects the tools on PATH and bad(), which notes a failure.

# Four by four shades with a grain (of flat pictures the start is exact, and the signs of its errors are chance), a
# picture each, and its caption; bytes below 128 are what every awk can print.
LC_ALL=C awk 'BEGIN {
	split("118 85 50 15", shade)
	for (t = 1; t <= 4; t++)
		for (b = 1; b <= 4; b++) {
			name = t b ".ppm"
			printf "P6 16 16 255\n" > name
			for (k = 0; k < 256; k++) {
				grain = (grain * 85 + 17) % 4093
				g = int(grain / 256)
				printf "%c%c%c", (k < 128 ? shade[t] : 40) - g / 2, 60 + 2 * g, (k < 128 ? 121 - shade[t] : shade[b] - 8) + g > name
			}
			close(name)
			print name "\tshade " shade[t] " over shade " shade[b]
		}
}' > pairs.tsv
cut -f2 pairs.tsv | bpe-train -q -k 270 -o words.bpe || bad bpe-train
img-pack -q -s 16 pairs.tsv | bpe-encode -q -m words.bpe -o all.pix || bad img-pack

tensors() { model-info -Jc "$1" | sed 's/.*"tensors"://'; }
# NAME FILE: the last value of that name
logged() { sed -n 's/.*"'"$1"'": *\([0-9.e+-]*\).*/\1/p' "$2" | tail -n 1; }
# near A B TOLERANCE WHAT
near() {
	awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; exit !(a != "" && b != "" && (d < 0 ? -d : d) <= t * (a < 0 ? -a : a)) }' ||
		bad "$4: $1 and $2"
}

# near_lines FILE FILE TOLERANCE WHAT: number by number
near_lines() {
	[ -s "$1" ] && [ "$(wc -l < "$1")" = "$(wc -l < "$2")" ] || bad "$4: not as many"
	paste "$1" "$2" > both.txt
	while read -r a b; do near "$a" "$b" "$3" "$4"; done < both.txt
}

# The three trainers in f32: a few updates give the CPU's losses; cut in two, the same bytes as in one go.
trainer() { # NAME INPUT TOOL OPTION...
	name=$1 input=$2
	shift 2
	"$@" -q -x tiny -p f32 -d cpu -n 4 --log $name-cpu.jsonl -o $name-cpu.st "$input" || bad "$name on the CPU"
	"$@" -q -x tiny -p f32 -d cuda -n 4 --log $name.jsonl -o $name.st "$input" || bad "$name on CUDA"
	near "$(logged loss $name-cpu.jsonl)" "$(logged loss $name.jsonl)" 1e-4 "$name: losses of CPU and CUDA"
	near "$(logged grad_norm $name-cpu.jsonl)" "$(logged grad_norm $name.jsonl)" 1e-3 "$name: gradients of CPU and CUDA"
	"$@" -q -x tiny -p f32 -d cuda -n 4 -o $name-cut.st --save-every 2 "$input" > /dev/null 2>&1 &
	pid=$!
	while [ ! -e $name-cut.st ] && kill -0 $pid 2> /dev/null; do sleep 0.05; done
	kill -9 $pid 2> /dev/null
	wait $pid 2> /dev/null
	"$@" -q -x tiny -p f32 -d cuda -n 4 -o $name-cut.st --save-every 2 "$input" || bad "$name resumed"
	[ "$(tensors $name.st)" = "$(tensors $name-cut.st)" ] || bad "$name: resumed, other weights"
}
trainer dvae all.pix dvae-train
dvae-encode -q -d cuda -p f32 -m dvae.st -o train.tok all.pix || bad dvae-encode
trainer dalle train.tok dalle-train
trainer clip all.pix clip-train -b 16

# Samples: greedy ones are the CPU's, drawn ones do not depend on the batch.
printf 'shade 118 over shade 15\nshade 50 over shade 50\n' | bpe-encode -q -m words.bpe -o ask.tok
sample() { dalle-sample -q -m dalle-cpu.st -p f32 "$@" ask.tok | tok-dump --fields image; }
sample -d cpu -t 0 -n 1 > greedy.cpu
sample -d cuda -t 0 -n 1 > greedy.cuda
[ -s greedy.cpu ] && cmp -s greedy.cpu greedy.cuda || bad "greedy samples differ from the CPU's"
sample -d cuda -n 3 -b 1 > drawn.1
sample -d cuda -n 3 -b 6 > drawn.6
[ -s drawn.1 ] && cmp -s drawn.1 drawn.6 || bad "samples depend on the batch"

# Ranked, on both.
for device in cpu cuda; do
	dalle-sample -q -d $device -p f32 -m dalle-cpu.st -n 3 -t 0.5 ask.tok | dvae-decode -q -d $device -p f32 -m dvae.st |
		clip-rank -q -d $device -p f32 -m clip-cpu.st -k 2 > ranked.$device || bad "ranking on $device"
	tok-dump --fields score ranked.$device | tr -dc '0-9.\n-' > scores.$device
done
[ "$(wc -l < scores.cuda)" -eq 4 ] || bad "not two samples of each caption"
near_lines scores.cpu scores.cuda 1e-2 scores
dalle-score -q -d cpu -p f32 -m dalle-cpu.st train.tok | tok-dump --fields nll_image | tr -dc '0-9.\n' > nll.cpu
dalle-score -q -d cuda -p f32 -m dalle-cpu.st train.tok | tok-dump --fields nll_image | tr -dc '0-9.\n' > nll.cuda
near_lines nll.cpu nll.cuda 1e-4 likelihoods

# The 16-bit types train, too.
for p in bf16 f16; do
	dvae-train -q -x tiny -p $p -d cuda -n 2 -o dvae-$p.st all.pix || bad "dvae-train in $p"
	dalle-train -q -x tiny -p $p -d cuda -n 3 --log $p.jsonl -o dalle-$p.st train.tok || bad "dalle-train in $p"
	dalle-train -q -x tiny -p f32 -d cuda -n 3 --log $p-f32.jsonl -o dalle-$p-f32.st train.tok || bad "dalle-train in f32"
	near "$(logged loss $p.jsonl)" "$(logged loss $p-f32.jsonl)" 3e-2 "dalle-train: losses in $p and f32"
	clip-train -q -x tiny -p $p -d cuda -b 16 -n 2 -o clip-$p.st all.pix || bad "clip-train in $p"
	dalle-sample -q -d cuda -p $p -m dalle-$p.st -n 2 ask.tok | dvae-decode -q -d cuda -p $p -m dvae.st |
		clip-rank -q -d cuda -p $p -m clip-$p.st -k 1 | tok-dump --fields score | grep -qv nan || bad "pipeline in $p"
done
