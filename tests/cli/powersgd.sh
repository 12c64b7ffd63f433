#!/bin/sh
# powersgd.sh - dalle-train --powersgd: one rank and two give the same, full rank is a plain sum, runs go on to the same
# bits, what does not fit is refused.
set -u
. "$SRC/tests/helpers.sh"
gen=$BUILD/tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
"$gen" 40 1 256 $A 64 4 4 $B >train.tok || bad "gen-tokens"
tiny="dalle-train -x tiny -j 1 -p f32 -b 4 --accumulate 2"

# The last update's loss, as --log has it; of 40, if no option says else.  A run that fails has none, which is near nothing.
train() { # OUTPUT OPTION...
	out=$1
	shift
	$ranks $tiny -q -n 40 -o "$out" --log "$out.log" --log-every 1 "$@" train.tok || return
	sed -n 's/^{"step":.*"loss":\([0-9.]*\),.*/\1/p' "$out.log" | tail -n 1
}

ranks=
plain=$(train plain.st) full=$(train full.st --powersgd 1000) low=$(train low.st --powersgd 2)
low16=$(train low16.st --powersgd 2 --powersgd-format 16)
near "full rank, a plain sum: loss" 1e-6 "$plain" "$full"
near "rank 2, a plain sum: loss" 0.1 "$plain" "$low"
(near "" 1e-3 "$plain" "$low") >far
[ -s far ] || bad "rank 2 changes nothing: loss $low, plainly $plain"
near "rank 2 in 16 bits: loss" 1e-4 "$low" "$low16"
train keep.st --powersgd 2 --powersgd-keep >keep.loss
[ "$(tensors keep.st)" = "$(tensors low.st)" ] || bad "--powersgd-keep: other weights, though no update was left out"
near "in f16, with gradient scales: loss" 1e-3 "$low" "$(train f16.st --powersgd 2 --powersgd-format 16 -p f16)"

# Gradients on a GPU, which the host plays.
near "gradients on a GPU: loss" 1e-5 "$(train cpu.st --powersgd 2 -n 4)" \
	"$(DALLE_PLUGINS=$BUILD/emulated train gpu.st --powersgd 2 -n 4 -d cuda)"

# Two ranks, where MPI is.
number=
if mpi_found; then
	mpi="timeout -k 5 300 mpirun"
	one=$(train one.st --powersgd 2 --accumulate 3 -n 4)
	ranks="$mpi -n 3"
	near "three ranks, one: loss" 1e-5 "$one" "$(train three.st --powersgd 2 --accumulate 3 -n 4)"
	ranks="$mpi -n 2"
	near "two ranks, one: loss" 1e-5 "$low" "$(train two.st --powersgd 2)"
	near "two ranks in 16 bits, one: loss" 1e-4 "$low16" "$(train two16.st --powersgd 2 --powersgd-format 16)"
	number='.$OMPI_COMM_WORLD_RANK'
fi

# Ended at a checkpoint and resumed: the same weights and error buffers.  A stop saves, which must be at an update where
# the whole run does, too; killed runs go back to the last such.
for way in 'f32 1 TERM 75' '16 7 KILL 137'; do
	set -- $way
	run="$tiny -q -n 60 --powersgd 2 --powersgd-format $1 --save-every $2 --keep-state"
	$ranks $run -o whole.$1 train.tok || bad "$1: the whole run"
	held parts.$1 $ranks sh -c "echo \$\$ >pid$number; exec \"\$@\"" sh $run -o parts.$1 train.tok
	kill "-$3" "$(cat pid${number:+.0})"
	released
	[ $status -eq "$4" ] || bad "$1: SIG$3: status $status, expected $4: $(cat err)"
	$ranks $run -o parts.$1 train.tok || bad "$1: resumed"
	[ "$(tensors whole.$1)" = "$(tensors parts.$1)" ] || bad "$1: SIG$3 and resumed: other weights"
	model-info -J whole.$1 | grep -q '"train.e.blocks.0.attn.qkv.weight"' || bad "$1: error buffers are in the file"
done
# The file can be gone on with by another number of ranks.
$tiny -q -n 70 -o whole.f32 --powersgd 2 --keep-state train.tok || bad "prolonged by one rank"

more="$tiny -n 40 -o low.st"
refused 3 'with --powersgd 2 (now 3); --restart' $more --powersgd 3 train.tok
refused 3 'with --powersgd-format f32 (now 16), no --powersgd-keep (now given); ' $more --powersgd 2 --powersgd-format 16 --powersgd-keep train.tok
refused 3 'with --powersgd 2 (now not given), ' $more --powersgd 0 train.tok
refused 2 'need --powersgd' $more --powersgd-format 16 train.tok
refused 2 'need --powersgd' $more --powersgd-keep train.tok
total() { dalle-train -x tiny -d cpu --dry-run "$@" train.tok | grep '^total'; }
dalle-train -x tiny --powersgd 2 --dry-run train.tok | grep -q '^PowerSGD on host ' || bad "--dry-run does not tell its memory"
[ "$(total)" != "$(total --powersgd 2)" ] || bad "a processor's memory is the host's: $(total --powersgd 2)"
exit $failed
