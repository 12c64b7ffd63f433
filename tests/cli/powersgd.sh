# powersgd.sh - dalle-train --powersgd: one rank and two give the same, full rank is a plain sum, runs go on to the same
# bits, what does not fit is refused.
. "$SRC/tests/helpers.sh"
set -u
fails=0
gen=$(dirname "$(command -v dalle-train)")/../tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
ok() { if [ "$1" -ne 0 ]; then echo "not ok: $2"; fails=$((fails + 1)); fi; }
"$gen" 40 1 256 $A 64 4 4 $B >train.tok

# The last update's loss, as --log has it; of 40, if no option says else.
train() { # OUTPUT OPTION...
	out=$1
	shift
	$ranks dalle-train -q -x tiny -j 1 -p f32 -b 4 --accumulate 2 -n 40 -o "$out" --log "$out.log" --log-every 1 "$@" train.tok
	ok $? "$out: $*"
	sed -n 's/^{"step":.*"loss":\([0-9.]*\),.*/\1/p' "$out.log" | tail -n 1
}
# near A B X: they differ by no more than X of B
near() { awk -v a="$1" -v b="$2" -v x="$3" 'BEGIN { d = a - b; exit !(a && b && d * d <= x * x * b * b) }'; }

ranks=
plain=$(train plain.st) full=$(train full.st --powersgd 1000) low=$(train low.st --powersgd 2)
low16=$(train low16.st --powersgd 2 --powersgd-format 16)
near "$full" "$plain" 1e-6; ok $? "full rank: loss $full, summed plainly $plain"
near "$low" "$plain" 0.1; ok $? "rank 2: loss $low, plainly $plain"
near "$low" "$plain" 1e-3 && ok 1 "rank 2 changes nothing: loss $low, plainly $plain"
near "$low16" "$low" 1e-4; ok $? "rank 2 in 16 bits: loss $low16, in f32 $low"
train keep.st --powersgd 2 --powersgd-keep >keep.loss
[ "$(tensors keep.st)" = "$(tensors low.st)" ]; ok $? "--powersgd-keep: other weights, though no update was left out"
train f16.st --powersgd 2 --powersgd-format 16 -p f16 >f16.loss
near "$(cat f16.loss)" "$low" 1e-3; ok $? "in f16, with gradient scales: loss $(cat f16.loss), in f32 $low"

# Gradients on a GPU, which the host plays.
cpu=$(train cpu.st --powersgd 2 -n 4)
gpu=$(DALLE_PLUGINS=$BUILD/emulated train gpu.st --powersgd 2 -n 4 -d cuda)
near "$gpu" "$cpu" 1e-5; ok $? "gradients on a GPU: loss $gpu, on the CPU $cpu"

# Two ranks, where MPI is.
if command -v mpirun >/dev/null && [ -e "$(dirname "$(command -v dalle-train)")/../lib/dalle-tools/dalle-mpi.so" ]; then
	export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
	mpi="timeout -k 5 60 mpirun --mca mpi_yield_when_idle 1 --bind-to none"
	ranks="$mpi -n 3"
	three=$(train three.st --powersgd 2 --accumulate 3 -n 4)
	ranks=
	one=$(train one.st --powersgd 2 --accumulate 3 -n 4)
	near "$three" "$one" 1e-5; ok $? "three ranks: loss $three, one $one"
	ranks="$mpi -n 2"
	two=$(train two.st --powersgd 2) two16=$(train two16.st --powersgd 2 --powersgd-format 16)
	near "$two" "$low" 1e-5; ok $? "two ranks: loss $two, one $low"
	near "$two16" "$low16" 1e-4; ok $? "two ranks in 16 bits: loss $two16, one $low16"
fi

# Ended at a checkpoint and resumed: the same weights and error buffers.  A stop saves, which must be at an update where
# the whole run does, too; killed runs go back to the last such.
for way in 'f32 1 USR1' '16 7 KILL'; do
	set -- $way
	format=$1
	how="--powersgd 2 --powersgd-format $format --save-every $2 --keep-state"
	long="dalle-train -q -x tiny -j 1 -p f32 -b 4 --accumulate 2 -n 100"
	$ranks $long -o whole$format.st $how train.tok; ok $? "$format, 100 updates"
	${ranks#timeout -k 5 60 } $long -o parts$format.st $how train.tok 2>err &
	pid=$!
	while ! [ -e parts$format.st ] && kill -0 $pid 2>/dev/null; do sleep 0.01; done
	if [ "$3" = KILL ] && [ "$ranks" ]; then pkill -KILL -P $pid; else kill "-$3" $pid 2>/dev/null; fi
	wait $pid
	model-info -s parts$format.st | grep -q '^unfinished ' ||
		echo "powersgd: no run was stopped, this machine is too fast for the test"
	$ranks $long -o parts$format.st $how train.tok; ok $? "$format, resumed"
	[ "$(tensors whole$format.st)" = "$(tensors parts$format.st)" ]; ok $? "$format: stopped and resumed: other weights"
	model-info -J whole$format.st | grep -q '"train.e.blocks.0.attn.qkv.weight"'; ok $? "$format: error buffers are in the file"
done
# The file can be gone on with by another number of ranks.
ranks=
$long -n 110 -o wholef32.st --powersgd 2 --keep-state train.tok 2>err
ok $? "prolonged by one rank: $(cat err)"

refused() { # STATUS PATTERN OPTION...
	want=$1 pattern=$2
	shift 2
	dalle-train -x tiny -j 1 -p f32 -b 4 --accumulate 2 -n 40 -o low.st "$@" train.tok 2>err
	got=$?
	[ $got -eq "$want" ] && [ "$(wc -l <err)" -eq 1 ] && grep -q -- "$pattern" err
	ok $? "$*: status $got, expected $want with '$pattern': $(cat err)"
}
refused 3 'with --powersgd 2 (now 3); --restart' --powersgd 3
refused 3 'with --powersgd-format f32 (now 16), no --powersgd-keep (now given); ' --powersgd 2 --powersgd-format 16 --powersgd-keep
refused 3 'with --powersgd 2 (now not given), ' --powersgd 0
refused 2 'need --powersgd' --powersgd-format 16
refused 2 'need --powersgd' --powersgd-keep
dalle-train -x tiny --powersgd 2 --dry-run train.tok | grep -q '^PowerSGD on host '; ok $? "--dry-run tells its memory"
total() { dalle-train -x tiny -d cpu --dry-run "$@" train.tok | grep '^total'; }
[ "$(total)" != "$(total --powersgd 2)" ]; ok $? "a processor's memory is the host's: $(total --powersgd 2)"
[ $fails -eq 0 ]
