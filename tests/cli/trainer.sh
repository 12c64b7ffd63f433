#!/bin/sh
# trainer.sh - what every trainer does, shown with dvae-train: stop and resume to the same bytes, a full disk, a second
# run on the same file, refusals, --dry-run.
. "$SRC/tests/helpers.sh"
pictures 40 3
img-pack -q -s 16 -o data pairs.tsv || bad "img-pack"

common="-q -x tiny -b 8 -j 1 -n 60"
train() { # OUTPUT OPTION...
	out=$1
	shift
	dvae-train $common -o "$out" "$@" data
}

train whole.safetensors || bad "uninterrupted run"
# the same run, killed ten times: in the middle, then at moments that differ, mostly while it writes a checkpoint; machines
# differ in how far it gets, which must not matter
held killed.safetensors dvae-train $common -o killed.safetensors --save-every 1 data
kill -9 $pid
released
[ $status -eq 137 ] || bad "kill -9: status $status: $(cat err)"
for wait in 0.05 0.08 0.03 0.11 0.06 0.09 0.04 0.13 0.07; do
	dvae-train $common -o killed.safetensors --save-every 1 data > /dev/null 2>&1 &
	pid=$!
	sleep $wait
	kill -9 $pid 2> /dev/null
	wait $pid 2> /dev/null
done
train killed.safetensors --save-every 1 || bad "run after kill -9"
[ "$(tensors whole.safetensors)" = "$(tensors killed.safetensors)" ] || bad "kill -9 and resume: other weights"
ls | grep -q 'tmp-\|lock' && bad "left behind: $(ls)"

# asked to stop: saves, 75, continues; a second signal right after the first (both come as it wakes) is no impatience
held stopped.safetensors dvae-train ${common#-q } -o stopped.safetensors --save-every 5 data
kill -STOP $pid
while grep -q '^State:.[^TtZX]' /proc/$pid/status; do
	sleep 0.02
done
kill -TERM $pid
kill -USR1 $pid
kill -CONT $pid
released
[ $status -eq 75 ] || bad "SIGTERM: status $status"
model-info -s stopped.safetensors | grep -q '^unfinished   step = ' || bad "SIGTERM: no state saved"
[ "$(grep -c ' at step ' err)" -eq 1 ] && grep -q 'stopped and saved at step .*the same command continues$' err ||
	bad "SIGTERM: told in one line: $(cat err)"
grep -q 'without this log' err && bad "SIGTERM: the log ended: $(cat err)"
train stopped.safetensors || bad "continue after SIGTERM"
[ "$(tensors whole.safetensors)" = "$(tensors stopped.safetensors)" ] || bad "SIGTERM and resume: other weights"

# complete: says so, computes nothing
dvae-train -x tiny -b 8 -j 1 -n 60 -o whole.safetensors data 2> err || bad "complete run again"
grep -q 'already complete' err || bad "complete: said '$(cat err)'"
# lines without a terminal: start, evaluations, end; none with -q
dvae-train -x tiny -b 8 -j 1 -n 20 --eval data --eval-every 10 -o told.safetensors data 2> err || bad "a run that tells"
[ "$(sed -n '1p;$p' err | grep -c 'updates of 8$\|complete at step 20 of 20')" -eq 2 ] &&
	[ "$(grep -c 'held-out loss' err)" -eq 2 ] || bad "lines without a terminal: $(cat err)"
dvae-train -q -x tiny -b 8 -j 1 -n 20 --eval data -o quiet.safetensors data 2> err
[ ! -s err ] || bad "-q is not quiet: $(cat err)"
# one of a kind
dvae-train -x tiny -b 1 -j 1 -n 1 -o one.safetensors data 2> err || bad "one update"
grep -q ', 40 records, 1 update of 1$' err || bad "one update: $(cat err)"
dvae-train -x tiny -b 1 -j 1 --dry-run data | grep -q '1 record at once$' || bad "one record"
# another run: refused, named
train whole.safetensors -s 7 2> err
[ $? -eq 3 ] && grep -q 'complete run with --seed 1 (now 7); --restart' err || bad "other seed: $(cat err)"
train whole.safetensors -s 7 --lr 0.002 --hidden 24 --gain 0.5 --moments 16 --augment flip 2> err
[ $? -eq 3 ] && [ "$(wc -l < err)" -eq 1 ] || bad "many other options: $(cat err)"
for what in '--hidden 16 (now 24)' '--gain [0-9.]* (now 0.5)' '--seed 1 (now 7)' '--lr [0-9.]* (now 0.002)' \
	'--augment none (now flip)' 'no --moments (now 16)'; do
	grep -q -e "$what" err || bad "many other options: no '$what' in $(cat err)"
done
grep -q 'step_sizes' err && bad "many other options: what follows from them is told: $(cat err)"
dvae-train -q -x tiny -b 8 -j 1 -n 59 -o whole.safetensors data 2> err
[ $? -eq 3 ] && grep -q 'with --steps 60 (now 59); --restart' err || bad "fewer steps: $(cat err)"
dvae-train -q -x tiny -b 8 -j 1 -n 61 -o whole.safetensors data 2> err
[ $? -eq 3 ] && grep -q 'cannot go on to step 61; .*--init whole.safetensors .*--restart' err || bad "more steps: $(cat err)"
# with its state kept it goes on
train long.safetensors --keep-state || bad "--keep-state"
[ "$(model-info -s long.safetensors | sed -n 's/^id *//p')" = "$(model-info -s whole.safetensors | sed -n 's/^id *//p')" ] ||
	bad "--keep-state makes another model"
model-info -s long.safetensors | grep -q '^kept *complete = true' || bad "model-info on --keep-state: $(model-info -s long.safetensors)"
dvae-train -x tiny -b 8 -j 1 -n 70 --keep-state -o long.safetensors data 2> err || bad "a longer run: $(cat err)"
grep -q 'continues at step 60 of 70' err && model-info -s long.safetensors | grep -q '^step *70$' || bad "a longer run: $(cat err)"
# fine-tuning: from another model's weights
dvae-train -x tiny -b 8 -j 1 -n 2 --init whole.safetensors -o tuned.safetensors data 2> err || bad "--init: $(cat err)"
grep -q 'starts from whole.safetensors, step 60' err || bad "--init: $(cat err)"
dvae-train -q -b 8 -j 1 -n 2 --init whole.safetensors -o sizes.safetensors data || bad "--init without a preset"
[ "$(model-info -s sizes.safetensors | grep '^config')" = "$(model-info -s whole.safetensors | grep '^config')" ] ||
	bad "--init brings other sizes: $(model-info -s sizes.safetensors | grep '^config')"
dvae-train -q -x tiny -b 8 -j 1 -n 2 --hidden 32 --init whole.safetensors -o other.safetensors data 2> err
[ $? -eq 3 ] && grep -q 'whole.safetensors: tensor .* expected .*--hidden 16 (here 32)' err || bad "--init, another size: $(cat err)"
[ ! -e other.safetensors ] || bad "--init, another size: left a file"
dvae-train -q -x tiny -b 8 -j 1 -n 2 --init data -o other.safetensors data 2> err
[ $? -eq 3 ] && grep -q 'data: ' err || bad "--init of no model: $(cat err)"

# a disk that is full: status 4, the old file intact, nothing else left
cp whole.safetensors before
(ulimit -f 8; train whole.safetensors -s 7 --restart 2> err)
[ $? -eq 4 ] || bad "full disk: status not 4: $(cat err)"
cmp -s before whole.safetensors || bad "full disk: the old file changed"
ls | grep -q 'tmp-\|lock' && bad "full disk: left behind: $(ls)"

# devices are neither checkpoints nor models; some have no end
timeout 120 dvae-train -q -x tiny -n 1 -o /dev/full data 2> err
[ $? -eq 1 ] && grep -q 'no regular file' err || bad "a device as output: $(cat err)"
timeout 120 model-info /dev/full > /dev/null 2> err
[ $? -eq 3 ] && grep -q 'is a device' err || bad "a device as model: $(cat err)"

train plan.safetensors --dry-run > plan || bad "--dry-run"
grep -q '^parameters ' plan && grep -q '^total on device ' plan || bad "--dry-run: $(cat plan)"
[ ! -e plan.safetensors ] || bad "--dry-run wrote a file"

# 16-bit storage: the plan says so, a killed run goes on to the same weights, f32 has nothing to do without
narrow="-p bf16 --moments 16 --no-master"
train plan.safetensors $narrow --dry-run > plan || bad "--dry-run $narrow"
grep -q '^first moments .*matrices 1-6-9, others f32' plan && grep -q '^second moments .*matrices 0-6-10' plan &&
	grep -q '^bytes per parameter  *10  of matrices, 16 of others' plan || bad "--dry-run $narrow: $(cat plan)"
train narrow.safetensors $narrow || bad "run with $narrow"
held killed16.safetensors dvae-train $common -o killed16.safetensors $narrow --save-every 2 data
kill -9 $pid
released
train killed16.safetensors $narrow --save-every 2 || bad "16 bits: run after kill -9"
[ "$(tensors narrow.safetensors)" = "$(tensors killed16.safetensors)" ] || bad "16 bits: other weights after kill -9"
train narrow.safetensors -p bf16 --moments 16 2> err
[ $? -eq 3 ] && grep -q 'with --no-master (now not given); --restart' err || bad "with a master copy after all: $(cat err)"
dvae-train -q -x tiny -n 2 -p f32 --no-master -o f32.safetensors data 2> err
[ $? -eq 2 ] && grep -q -- '--no-master needs' err || bad "--no-master in f32: $(cat err)"

# f16: the loss is scaled, the log says how
dvae-train $common -p f16 --log f16.jsonl -o f16.safetensors data || bad "f16"
tail -n 2 f16.jsonl | grep -q '"skipped":0,"scale_min":85[0-9.]*,"scale_max":85' || bad "f16: $(tail -n 2 f16.jsonl)"
exit $failed
