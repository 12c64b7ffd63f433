# dalle-train, dalle-sample, dalle-score: resume, batching, order, fields, and what does not fit.
set -u
. "$SRC/tests/helpers.sh"
gen=$BUILD/tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
ok() { [ "$1" -eq 0 ] || bad "$2"; }
same() { [ -s "$1" ] && cmp -s "$1" "$2"; ok $? "$3"; }

"$gen" 40 1 256 $A 64 4 4 $B >train.tok
"$gen" 9 2 256 $A 64 4 4 $B >other.tok

# The same weights in one go and in two, whatever the checkpoint in between.
run="dalle-train -x tiny -j1 -s 3 --save-every 7 --eval other.tok --eval-every 10"
$run -n 120 --restart -o whole.st train.tok 2>err.txt; ok $? "training: $(cat err.txt)"
cp whole.st first.st
$run -n 120 --restart -o whole.st train.tok; ok $? "training again"
same whole.st first.st "the same command gives the same model"
held parts.st $run -n 120 -o parts.st train.tok
kill -TERM $pid
released
[ $status -eq 75 ]; ok $? "stopped: status $status: $(cat err)"
$run -n 120 -o parts.st train.tok; ok $? "resuming"
for m in whole parts; do
	dalle-score -m $m.st --summary -j1 train.tok >$m.json; ok $? "scoring with $m.st"
	dalle-sample -m $m.st -j1 -n 2 train.tok >$m.smp; ok $? "sampling with $m.st"
done
same whole.json parts.json "a stopped and resumed run scores like an uninterrupted one"
dalle-train -x tiny -j1 -n 400 -s 3 -o good.st train.tok; ok $? "training longer"
dalle-score -m good.st -p f32 --summary -j1 train.tok >own.json
dalle-score -m good.st --summary --rotate-captions -j1 -b 7 train.tok >rotated.json
own=$(sed 's/.*nll_image": \([0-9.]*\).*/\1/' own.json) rotated=$(sed 's/.*nll_image": \([0-9.]*\).*/\1/' rotated.json)
[ "$(echo "$rotated > $own + 0.5" | awk '{print ($1 > $3 + $5)}')" = 1 ]; ok $? "wrong captions cost: $rotated nats, own captions $own"
dalle-score -m good.st --rotate-captions -j1 -b 40 train.tok | dalle-score -m good.st -j1 >a.tok; ok $? "rotation keeps records"
dalle-score -m good.st -p f32 -j1 -b 3 train.tok >b.tok
dalle-score -m good.st -p f32 -j1 -b 3 --summary <b.tok >c.json; same own.json c.json "scores add up whatever the batch"

# Samples do not depend on batch, order or neighbours, in any number format.
for p in f32 auto; do
	for b in 1 7 64; do dalle-sample -m good.st -p $p -j1 -n 3 -b $b other.tok >s.bin; dalle-score -m good.st -b 4 -j1 s.bin --summary >s$b.json; cp s.bin s$b.tok; done
	same s1.json s7.json "samples in batches of 1 and 7, $p"
	same s1.json s64.json "samples in batches of 1 and 64, $p"
	dalle-sample -m good.st -p $p -j2 -n 3 other.tok | dalle-score -m good.st -b 4 -j1 --summary >t2.json
	same s1.json t2.json "samples by two threads, $p"
done
grep -q '"records": 27' s1.json; ok $? "3 samples of each of 9 records: $(cat s1.json)"
dalle-sample -m good.st -j1 -t 0 --prefix-rows 4 train.tok | dalle-score -m good.st -p f32 -j1 --summary >p.json
same own.json p.json "a prefix of all rows gives the pictures back"
dalle-sample -m good.st -j1 --guidance 2 --top-k 5 --top-p 0.9 -t 0.8 other.tok | dalle-score -m good.st -j1 --summary >/dev/null; ok $? "guidance"
n=$(dalle-sample -m good.st -j1 --progressive 1 other.tok | zstd -dc | wc -c)
[ "$n" -gt "$(dalle-sample -m good.st -j1 other.tok | zstd -dc | wc -c)" ]; ok $? "progressive samples"

dalle-train -x tiny -j1 -n 5 --text-length 4 -o short.st train.tok 2>err.txt; ok $? "short captions"
sed -n 2p err.txt | grep -q "train.tok: the caption of record '[^']*' has [0-9]* tokens and is cut to 3 (--text-length)" &&
	[ "$(grep -c 'is cut to' err.txt)" -eq 1 ]; ok $? "the first cut caption is told at once: $(cat err.txt)"
tail -n 1 err.txt | grep -q '[1-9][0-9]* of 40 captions drawn, .* cut to 3 tokens'; ok $? "cut captions are counted: $(cat err.txt)"
dalle-sample -m short.st -j1 other.tok 2>err.txt >/dev/null; ok $? "sampling with cut captions"
grep -q '[1-9] captions cut to 3 tokens' err.txt; ok $? "cut captions are counted: $(cat err.txt)"

# What does not fit.
"$gen" 3 1 256 $B 64 4 4 $B >vocabulary.tok
"$gen" 3 1 256 $A 64 4 4 $A >codec.tok
"$gen" 3 1 256 $A 64 8 2 $B >grid.tok
"$gen" 3 1 256 "" 64 4 4 $B >notext.tok
"$gen" 3 1 256 $A 64 4 4 "" >noimage.tok
head -c 200 train.tok >cut.tok
for t in dalle-sample dalle-score; do
	refused 3 "$B" $t -m good.st -o unwritten vocabulary.tok
	refused 3 "no text tokens" $t -m good.st -o unwritten notext.tok
	refused 3 "cut.tok" $t -m good.st -o unwritten cut.tok
	refused 3 "good.st\|train.tok\|safetensors" $t -m train.tok -o unwritten other.tok
	refused 2 "-m MODEL" $t -o unwritten other.tok
done
refused 3 "$A" dalle-score -m good.st -o unwritten codec.tok
refused 3 "8x2" dalle-score -m good.st -o unwritten grid.tok
refused 3 "8x2" dalle-sample -m good.st --prefix-rows 1 -o unwritten grid.tok
refused 3 "no image tokens" dalle-score -m good.st -o unwritten noimage.tok
refused 2 "prefix of 5 rows" dalle-sample -m good.st --prefix-rows 5 -o unwritten other.tok
refused 3 "no image tokens" dalle-train -x tiny -n 1 -o unwritten noimage.tok
refused 3 "no text tokens" dalle-train -x tiny -n 1 -o unwritten notext.tok
refused 3 "cut.tok" dalle-train -x tiny -n 1 -o unwritten cut.tok
refused 2 "preset 'huge'" dalle-train -x huge -n 1 -o unwritten train.tok
# Halvings: by a rule in the large presets, at given updates, by a rule when asked for; the rule is part of the run.
large="dalle-train -q -x 1.2b --layers 1 --width 32 --heads 2 --conv-k 3 --text-length 16 -b 2 -j1 -n 2"
$large -o rule.st train.tok && model-info -s rule.st | grep -q '^training *halve_on_plateau = .*"halvings":5' ; ok $? "the large presets halve on a plateau"
model-info -s rule.st | grep -q '^config *mask = paper$' && model-info -sJ rule.st | grep -q '"mask":"paper"'; ok $? "model-info names the mask"
$large --halve-at 1 -o at.st train.tok; ok $? "--halve-at with a large preset"
model-info -s at.st | grep -q plateau; [ $? -ne 0 ]; ok $? "--halve-at takes the rule's place"
$large --cosine --log cosine.jsonl -n 6 --warmup 1 --lr 1 --lr-end 0.25 -o cosine.st train.tok; ok $? "--cosine with a large preset"
model-info -s cosine.st | grep -q plateau; [ $? -ne 0 ]; ok $? "--cosine takes the rule's place"
grep -q '"step_sizes":\[1.0,1.0,1.0,0.[67][0-9]*,0.[23][0-9]*\]' cosine.jsonl; ok $? "--cosine falls: $(head -n 1 cosine.jsonl)"
refused 2 "exclude each other" dalle-train -x tiny --halve-on-plateau --halve-at 5 -n 1 -o unwritten train.tok
refused 2 "--lr-end .* which --halve-at replaces" dalle-train -x tiny --lr-end 0.1 --halve-at 5 -n 1 -o unwritten train.tok
refused 2 "--lr-end .* which --halve-on-plateau replaces" dalle-train -x tiny --lr-end 0.1 --halve-on-plateau -n 1 -o unwritten train.tok
refused 2 "which the preset's --halve-on-plateau replaces" $large --lr-end 0.1 -o unwritten train.tok
refused 2 "--plateau-gain needs --halve-on-plateau" dalle-train -x tiny --plateau-gain 0.1 -n 1 -o unwritten train.tok
refused 2 "--halvings needs --halve-on-plateau" $large --cosine --halvings 3 -o unwritten train.tok
refused 2 "exclude each other" $large --cosine --halve-at 5 -o unwritten train.tok
refused 2 "exclude each other" $large --cosine --halve-on-plateau -o unwritten train.tok
dalle-train -x tiny -j1 -n 400 -s 3 --halve-on-plateau --plateau-gain 1 --plateau-patience 1 --plateau-window 20 --halvings 3 \
	--log halved.jsonl -o halved.st train.tok 2>err.txt; ok $? "halving: $(cat err.txt)"
[ "$(grep -c 'step size halved to' err.txt)" -eq 3 ] && [ "$(grep -c '"halving":' halved.jsonl)" -eq 3 ]; ok $? "three halvings: $(cat err.txt)"
[ "$(sed -n 's/.*"step":400,.*"lr":\([0-9.e-]*\),.*/\1/p' halved.jsonl | awk '{ print ($1 > 0.000374 && $1 < 0.000376) }')" = 1 ]; ok $? "the step size ends at an eighth"

# From another model's weights: the same vocabulary, or another one when asked for, and nothing of another size.
"$gen" 40 5 300 $B 64 4 4 $B >foreign.tok
dalle-train -x tiny -j1 -n 2 --init good.st -o tuned.st train.tok 2>err.txt; ok $? "--init: $(cat err.txt)"
grep -q "starts from good.st, step 400" err.txt; ok $? "--init tells: $(cat err.txt)"
[ "$(model-info -s tuned.st | grep -c '^command ')" -eq 2 ]; ok $? "both commands are remembered"
dalle-train -j1 -n 2 --init good.st -o sizes.st train.tok 2>err.txt; ok $? "--init without a preset: $(cat err.txt)"
[ "$(model-info -s sizes.st | grep '^config ')" = "$(model-info -s good.st | grep '^config ')" ]; ok $? "--init brings the sizes"
refused 3 "--layers 4 (here 6)" dalle-train -q --layers 6 -n 1 --init good.st -o unwritten train.tok
refused 3 "--width 32 (here 192)" dalle-train -q -x small -n 1 --init good.st -o unwritten train.tok
cat good.st | dalle-train -q -x tiny -j1 -n 2 --init - -o piped.st train.tok; ok $? "--init from a pipe"
refused 3 "of vocabulary $A, the data of $B; --new-vocabulary" dalle-train -q -x tiny -n 1 --init good.st -o unwritten foreign.tok
dalle-train -x tiny -j1 -n 2 --init good.st --new-vocabulary -o other.st foreign.tok 2>err.txt; ok $? "--new-vocabulary: $(cat err.txt)"
grep -q "text_vocab 256 (here 300)" err.txt && grep -q "3 tensors of another vocabulary start from" err.txt; ok $? "--new-vocabulary tells: $(cat err.txt)"
refused 3 "expected .*--layers 4 (here 6)" dalle-train -q -x tiny --layers 6 -n 1 --init good.st -o unwritten train.tok
refused 3 "expected .*--width 32 (here 3968)" dalle-train -q -x 12b -n 1 --init good.st -o unwritten train.tok # before memory is asked for
refused 2 "needs --init" dalle-train -q -x tiny -n 1 --new-vocabulary -o unwritten train.tok
refused 2 "--halve-at: " dalle-train -x tiny --halve-at 5,3 -n 1 -o unwritten train.tok
refused 2 "--width 33 .*--heads 2" dalle-train -x tiny --width 33 -n 1 -o unwritten train.tok
refused 2 "--conv-k 4 " dalle-train -x tiny --conv-k 4 -n 1 -o unwritten train.tok
refused 2 "--fields: 'nonsense'" tok-cat --fields key,nonsense -o unwritten train.tok
refused 4 "needs" sh -c "ulimit -v 3000000; exec dalle-train -j1 -x 12b -n 1 -o unwritten train.tok" # whatever the machine has
dalle-sample -m good.st -j1 noimage.tok >/dev/null; ok $? "captions alone are enough to sample"
dalle-train -x 12b --dry-run >plan.txt 2>/dev/null
grep -q 'parameters *12292' plan.txt; ok $? "plan of the 12b preset without data: $(cat plan.txt)"
exit $failed
