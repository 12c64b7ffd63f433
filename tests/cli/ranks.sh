#!/bin/sh
# ranks.sh - training by several processes: the losses of one process with the same command, stop and resume, one rank that
# fails, refusals.  Needs mpirun.
set -u
. "$SRC/tests/helpers.sh"

# Without the backend: alone nothing changes, ranks are told what is missing.
gen=$BUILD/tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
"$gen" 40 1 256 $A 64 4 4 $B > train.tok && "$gen" 18 2 256 $A 64 4 4 $B > held.tok || bad "gen-tokens"
tiny="dalle-train -q -x tiny -s 3 -b 4 -n 2"
without="env DALLE_PLUGINS=/nonexistent OMPI_COMM_WORLD_SIZE=2"
refused 1 'no MPI backend is installed' env DALLE_PLUGINS=/nonexistent $tiny --comm mpi -o unwritten train.tok
refused 1 'started with other processes.*--comm none' $without $tiny -o unwritten train.tok
$without $tiny --comm none -o none.st train.tok || bad "--comm none"
echo 'no library' > dalle-mpi.so
refused 1 'dalle-mpi.so: ' env DALLE_PLUGINS=. $tiny --comm mpi -o unwritten train.tok

if ! mpi_found; then
	echo "ranks.sh: no Open MPI or no mpicc here (apt-get install openmpi-bin libopenmpi-dev): the rest was skipped"
	exit $failed
fi

# ranks N COMMAND...: as N processes; what mpirun itself says of their status is left out of err
ranks() {
	n=$1
	shift
	timeout -k 5 300 mpirun -n "$n" "$@" 2> err
}
last() { grep "\"$2\":" "$1" | tail -n 1 | sed "s/.*\"$2\":\([-0-9.e]*\).*/\1/"; } # LOG NAME

# sums over two and three ranks, one more than divides what is summed
for n in 2 3; do
	ranks $n "$BUILD/tests/test-comm" > out || bad "test-comm, $n ranks: $(cat out err)"
done

ranks 3 "$BUILD/tests/test-comm" abort > out
status=$?
[ $status -eq 3 ] && [ ! -s out ] || bad "a rank that aborts: status $status: $(cat out err)"

refused 1 'MPI finds this one alone' env SLURM_STEP_NUM_TASKS=2 $tiny -o unwritten train.tok

# compare NAME N BOUND OPTION...: dalle-train by one process and by N
compare() {
	name=$1 n=$2 bound=$3
	shift 3
	command="dalle-train -x tiny -s 3 -b 4 -n 25 --accumulate 4 --log-every 1 --eval held.tok --eval-every 10 $*"
	$command -q -j1 -o one.st --restart --log one.jsonl train.tok || bad "$name: one process"
	ranks "$n" $command -o "$name.st" --log "$name.jsonl" train.tok || bad "$name: $(cat err)"
	for metric in loss grad_norm eval_loss eval_image; do
		near "$name, $n ranks: $metric" "$bound" "$(last one.jsonl $metric)" "$(last "$name.jsonl" $metric)"
	done
	rm one.jsonl
}
compare f32 2 1e-5 -p f32
grep -q '40 records, 25 updates of 16, 2 ranks' err && [ "$(grep -c 'held-out loss' err)" -eq 3 ] && [ "$(grep -vc ' left$' err)" -eq 5 ] || # a slow run tells how much is
	bad "lines of two ranks: $(cat err)"
[ "$(grep -c '"grad_norm"' f32.jsonl)" -eq 25 ] || bad "the log has other lines than one process writes"
compare bf16 2 2e-2 -p bf16
compare narrow 2 5e-2 -p bf16 --no-master --moments 16
compare f16 3 2e-2 -p f16
ls | grep -q 'lock\|tmp-' && bad "left behind: $(ls)"

# the same bits again by as many ranks, whatever stopped them meanwhile; another number of ranks goes on from there
many="dalle-train -q -x tiny -s 3 -b 4 -p f32 -n 60 --accumulate 4 --save-every 10"
ranks 2 $many -o whole.st train.tok || bad "whole run: $(cat err)"
for way in 'TERM 1 75' 'KILL 1 137' 'USR1 mpirun 75'; do
	set -- $way # signal, who gets it, status
	rm -f stopped.st
	# shellcheck disable=SC2016
	held stopped.st sh -c 'echo $$ > pid.mpirun; exec mpirun -n 2 "$@"' sh sh -c 'echo $$ > pid.$OMPI_COMM_WORLD_RANK; exec "$@"' sh \
		$many -o stopped.st train.tok
	kill "-$1" "$(cat "pid.$2")"
	released
	[ $status -eq "$3" ] || bad "SIG$1 to $2: status $status, expected $3: $(cat err)"
	model-info -s stopped.st | grep -q '^unfinished   step = ' || bad "SIG$1 to $2: no state saved"
	[ "$2" != mpirun ] || break
	ranks 2 $many -o stopped.st train.tok || bad "resume after SIG$1 to $2: $(cat err)"
	[ "$(tensors whole.st)" = "$(tensors stopped.st)" ] || bad "SIG$1 to $2 and resume: other weights"
done
$many -o stopped.st -j1 --log stopped.jsonl train.tok || bad "one process goes on from two ranks"
$many -o alone.st -j1 --log alone.jsonl train.tok || bad "one process"
near "begun by two ranks, ended by one: loss" 1e-4 "$(last alone.jsonl loss)" "$(last stopped.jsonl loss)"
ranks 2 $many -o stopped.st train.tok || bad "complete run again: $(cat err)"

# dVAE and CLIP
pictures 24 5
cut -f2 pairs.tsv | bpe-train -q -k 300 -o words.bpe && img-pack -q -s 16 pairs.tsv | bpe-encode -q -m words.bpe -o data.pix ||
	bad "setting up pictures"
for kind in dvae clip; do
	command="$kind-train -q -x tiny -b 4 -p f32 -n 10 --accumulate 3 --log-every 1 --eval data.pix"
	$command -j1 -o $kind-one.st --log $kind-one.jsonl data.pix || bad "$kind-train alone"
	ranks 2 $command -o $kind-two.st --log $kind-two.jsonl data.pix || bad "$kind-train: $(cat err)"
	for metric in loss eval_loss $([ $kind = dvae ] && echo eval_codes eval_perplexity eval_relaxed_elb); do
		near "$kind-train, 2 ranks: $metric" 2e-4 "$(last $kind-one.jsonl $metric)" "$(last $kind-two.jsonl $metric)"
	done
done

# GPUs, played by the host, that sum by themselves (NCCL); where they cannot the hosts do, and say why
run="dalle-train -v -x tiny -s 3 -b 4 -p f32 -d cuda -n 4 --accumulate 3 --restart"
for way in '2 .--accumulate 4:from GPU to GPU' '1 .:through the hosts. memory: NCCL: .*invalid usage' \
	'2 .-d cuda#0:through the hosts. memory: NCCL: .*invalid usage' '2 .--powersgd 40:through the hosts. memory: PowerSGD' \
	'2 .-p bf16 --no-master:through the hosts. memory: gradients are in 16 bits'; do
	option=${way%%:*} said=${way#*:}
	gpus="env EMU_DEVICES=${option%% *} DALLE_PLUGINS=$BUILD/emulated:$BUILD/lib/dalle-tools"
	option=$(echo "${option#* .}" | tr '#' ':')
	# shellcheck disable=SC2086
	$gpus $run $option -o one.st --log one.jsonl train.tok 2> err && ranks 2 $gpus $run $option -o two.st --log two.jsonl train.tok ||
		bad "GPUs, $way: $(cat err)"
	grep -q "gradients are summed $said" err || bad "GPUs, $way: $(cat err)"
	case $way in *PowerSGD | *bits) bound=5e-2 ;; *) bound=1e-5 ;; esac
	near "GPUs, $way: loss" $bound "$(last one.jsonl loss)" "$(last two.jsonl loss)"
	near "GPUs, $way: grad_norm" $bound "$(last one.jsonl grad_norm)" "$(last two.jsonl grad_norm)"
	rm one.jsonl two.jsonl
done

# refuses STATUS TEXT COMMAND...: of all ranks one line
refuses() {
	want=$1 text=$2
	shift 2
	timeout -k 5 300 mpirun "$@" > /dev/null 2> err
	status=$?
	grep '^[a-z]*-train: ' err > told
	[ $status -eq "$want" ] && [ "$(wc -l < told)" -eq 1 ] && grep -q -- "$text" told || bad "$*: status $status: $(cat err)"
}
two="$tiny --accumulate 2"
refuses 2 'accumulate 1 is less than the 2 ranks' -n 2 $tiny -o new.st train.tok
refuses 2 'stdin: is a pipe' -n 2 $two -o new.st
mkfifo fifo
for option in eval init bpe; do
	refuses 2 'fifo: is a pipe' -n 2 $two --$option fifo -o new.st train.tok
done
head -c 500 train.tok > cut.tok
refuses 3 'cut.tok: ' -n 2 $two -o new.st cut.tok
refuses 2 '--patience needs' -n 2 $two --patience 2 -o new.st train.tok
# one rank alone: it tells, none waits for it
refuses 1 'rank 1: missing.tok: ' -n 1 $two -o new.st train.tok : -n 1 $two -o new.st missing.tok
# what must be equal everywhere, named
differs() { refuses 1 "rank 1: new.st: rank 0 has .*$1" -n 1 $two -o new.st --eval held.tok train.tok : -n 1 $two -o new.st --eval $2; }
differs 'data ' 'held.tok held.tok'
differs '--eval ' 'train.tok train.tok'
differs '--save-every 1000 (here 1)' 'held.tok --save-every 1 train.tok'
differs '--precision bf16 (here f32)\|--precision f32 (here ' 'held.tok -p f32 train.tok'
differs '--width 32 (here 64)' 'held.tok --width 64 train.tok'
differs 'no --halve-at (here 5)' 'held.tok --halve-at 5 train.tok'
refuses 2 'rank 1: another rank does not train' -n 1 $two --dry-run train.tok : -n 1 $two -o new.st train.tok
[ ! -e new.st ] && [ ! -e new.st.lock ] || bad "a refused run left a file"
(printf 'P6 8 8 255\n' && head -c 192 p1.ppm) > small.ppm
(cat pairs.tsv && printf 'small.ppm\tsmall\n') > mixed.tsv && img-pack -q -s 0 mixed.tsv > mixed.pix || bad "setting up pictures of two sizes"
refuses 3 'record .* is 8x8 pixels' -n 3 dvae-train -q -x tiny -b 2 -n 50 --size 16 --calibrate 0 --accumulate 3 -o mixed.st mixed.pix
# also before the training begins
refuses 1 "rank 1: .*cuda" -n 1 $two --dry-run train.tok : -n 1 env EMU_DEVICES=0 DALLE_PLUGINS="$BUILD/emulated:$BUILD/lib/dalle-tools" $two --dry-run -d cuda train.tok
# captions that are cut are those of all ranks
for kind in dalle clip; do
	file=train.tok most=--text-length
	[ $kind = dalle ] || file=data.pix most=--context
	ranks 2 $kind-train -x tiny -s 3 -b 4 -n 2 --accumulate 2 $most 4 -o cut.st --restart "$file" || bad "$kind: cut captions: $(cat err)"
	tail -n 1 err | grep -q '[1-9] of 16 captions drawn' || bad "$kind: cut captions are not those of two ranks: $(cat err)"
done
# a plan is printed once; ranks on the processors of one machine divide its memory
ranks 2 $two --dry-run train.tok > plan
[ "$(grep -c '^parameters' plan)" -eq 1 ] && grep -q '^messages on host .*285 KiB' plan || bad "--dry-run of two ranks: $(cat plan)"
room() { awk '/^free on device/ { printf "%.0f", $4 * 1024 ^ index("KMGT", substr($5, 1, 1)) }' "$1"; }
$two --dry-run train.tok > alone
[ "$(room plan)" -gt 0 ] && [ "$(room plan)" -lt $(($(room alone) * 3 / 4)) ] || bad "memory of two ranks: $(cat alone plan)"
# ranks that do not compute alike: another device is told at once, and what nothing tells before anything is written
# (a processor that computes another cosine)
export EMU_DEVICES=1
refuses 1 'rank 1: new.st: rank 0 has --device cpu (here cuda)' -n 1 $two -p f32 -d cpu -o new.st train.tok : \
	-n 1 env DALLE_PLUGINS="$BUILD/emulated:$BUILD/lib/dalle-tools" $two -p f32 -d cuda -o new.st train.tok
cat > odd.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
double cos(double x)
{
	static int calls; /* the first ones describe the run */
	double (*real)(double);
	*(void **)&real = dlsym(RTLD_NEXT, "cos");
	return real(x) * (++calls > 5 ? 1.001 : 1);
}
END
${CC:-cc} -shared -fPIC -o odd.so odd.c -ldl || bad "setting up another cosine"
refuses 1 'rank 1: .*other bits than those of rank 0' -n 1 $two -n 20 -o new.st train.tok : \
	-n 1 env LD_PRELOAD="$PWD/odd.so" $two -n 20 -o new.st train.tok
refuses 1 'would go on from another state than rank 0' -n 1 $two -p f16 -o new.st train.tok : \
	-n 1 $two -p f16 --grad-scale global -o new.st train.tok
[ ! -e new.st ] || bad "drifted ranks wrote a file"
exit $failed
