#!/bin/sh
# trainer-large.sh - data several times larger than --memory: in shards, stopped and resumed to the same bytes, damaged
# under way, through a pipe; memory that does not suffice; numbers that are no longer finite.
. "$SRC/tests/helpers.sh"
gen=$BUILD/tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb

# 15000 records of some 320 bytes in memory: more than four times 1 MiB
for part in 1 2 3; do
	"$gen" 5000 $part 256 $A 64 4 4 $B > $part.tok || bad "gen-tokens"
done
run="dalle-train -q -x tiny -j 1 -b 32 -n 240 --memory 1Mi --save-every 10"
$run -o whole.st 1.tok 2.tok 3.tok || bad "three shards"
for k in 1 2 3; do # the same, stopped three times
	held parts.st $run -o parts.st 1.tok 2.tok 3.tok
	kill -TERM $pid
	released
	[ $status -eq 75 ] || bad "stop $k: status $status: $(cat err)"
done
$run -o parts.st 1.tok 2.tok 3.tok || bad "continuing"
[ "$(tensors whole.st)" = "$(tensors parts.st)" ] || bad "stopped and continued: other weights"

# A frame that is damaged after the start: its file and place, the checkpoint stays and is of use.
held damaged.st $run -o damaged.st -n 100000 1.tok 2.tok 3.tok
cp 2.tok good.tok
size=$(wc -c < 2.tok)
dd if=/dev/zero of=2.tok bs=1 seek=$((size / 3)) count=$((size / 3)) conv=notrunc 2> /dev/null
released
[ $status -eq 3 ] && [ "$(wc -l < err)" -eq 1 ] && grep -q '2.tok: .*byte [0-9]' err || bad "damage: status $status: $(cat err)"
model-info -cq damaged.st > info && grep -q '^unfinished   step = ' info || bad "damage: no good checkpoint"
cp good.tok 2.tok

# A pipe larger than memory gives one pass; -n says how much of it.
cat 1.tok 2.tok 3.tok | $run -o pipe.st || bad "from a pipe"
cat 1.tok | dalle-train -q -x tiny -j 1 -b 32 -n 200 --memory 1Mi -o short.st 2> err
[ $? -eq 1 ] && grep -q 'ended at step 156 of 200' err || bad "a short pipe: $(cat err)"

# Memory: refused before the data is read.
(ulimit -v 3000000; dalle-train -j 1 -x 1.2b -o never.st 1.tok 2> err)
[ $? -eq 4 ] && [ "$(wc -l < err)" -eq 1 ] && grep -q 'needs .* of memory.*--batch or --recompute or --moments 16' err || bad "memory: $(cat err)"
[ ! -e never.st ] || bad "memory: left a file"

# A step size that leaves the range of numbers: step and tensor, the last checkpoint.
dalle-train -q -x tiny -j 1 -n 3000 --lr 10 --clip 0 --save-every 5 -o nan.st 1.tok 2> err
[ $? -eq 1 ] && grep -q 'step [0-9]*: .*not finite: .* of [a-z].*holds step [0-9]*[05]$' err || bad "not finite: $(cat err)"
"$gen" 20 4 256 $A 64 4 4 $B > few.tok
dalle-score -q -j 1 -m nan.st --summary few.tok > score || bad "the checkpoint before it is of no use"
exit $failed
