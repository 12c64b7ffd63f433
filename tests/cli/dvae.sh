# dvae.sh - dvae-train, dvae-encode and dvae-decode: the pipe from pictures to a model and through it, exact resume,
# cuts in the pipe, partial grids, and everything that must be refused.
set -u
. "$SRC/tests/helpers.sh"
# picture SEED SIZE: a PPM of two colours with a border that depends on the seed
picture() {
	awk -v s="$1" -v n="$2" 'BEGIN { srand(s); for (i = 0; i < 6; i++) c[i] = 1 + int(rand() * 120)
		x0 = int(rand() * n); y0 = int(rand() * n); printf "P6\n%d %d\n255\n", n, n
		for (y = 0; y < n; y++) for (x = 0; x < n; x++) for (k = 0; k < 3; k++)
			printf "%c", (x < x0) != (y < y0) ? c[k] : c[3 + k] }'
}
i=0
while [ $i -lt 24 ]; do
	picture $i 16
	i=$((i + 1))
done >all.ppm
img-pack -s 16 --caption picture -o all.pix all.ppm || bad "packing"
picture 99 12 | img-pack -s 12 -o other.pix
train="dvae-train -x tiny -j 1 -p f32 -s 3"

# From a pipe and from a file: the same model.  The log and the preview appear.
img-pack -s 16 --caption picture all.ppm | $train -n 30 -o pipe.st --log log.jsonl --eval all.pix --preview seen.png ||
	bad "training from a pipe"
[ "$(head -c 4 seen.png | tail -c 3)" = PNG ] || bad "no preview"
for key in distortion kl rate codes perplexity tau beta eval_loss eval_elb eval_relaxed_elb eval_rate eval_codes eval_psnr; do
	grep -q "\"$key\":-*[0-9]" log.jsonl || bad "the log lacks $key"
done
plot-log -y eval_elb,eval_relaxed_elb -o bounds.png log.jsonl || bad "plotting the bounds"
$train -n 30 -o file.st --log log2.jsonl --eval all.pix all.pix || bad "training from a file"
first=$(sed -n 's/.*"eval_loss":\([^,]*\).*/\1/p' log.jsonl | head -n 1)
last=$(sed -n 's/.*"eval_loss":\([^,]*\).*/\1/p' log.jsonl | tail -n 1)
awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a) }' || bad "held-out loss went from $first to $last"

# The same command again: nothing to do.  Another dry run: a plan, and no file.
before=$(cksum <pipe.st)
img-pack -s 16 --caption picture all.ppm | $train -n 30 -o pipe.st --log log.jsonl --eval all.pix --preview seen.png 2>/dev/null ||
	bad "a complete run is no error"
[ "$before" = "$(cksum <pipe.st)" ] || bad "a complete model was rewritten"
$train --dry-run all.pix | grep -q 'total on device' || bad "no memory plan"
# The start from data takes memory for each of 2^18 tokens: 64 channels of 4 bytes and 12 more; and a fourth of that many
# pictures of 768 bytes.
$train --dry-run --groups 3 --hidden 16 all.pix | grep '^start on host' > plan
grep -q ' 115 MiB' plan || bad "memory of the start: $(cat plan)"
$train --dry-run --calibrate 0 all.pix | grep 'start on host' && bad "memory of a start that is not from data"

# Stopped and continued = uninterrupted, in every byte of tokens and pictures and in the model's identity.
held cut.st $train -n 120 --save-every 10 -o cut.st all.pix
kill -USR1 $pid
released
[ $status = 75 ] || bad "stopped: expected status 75, got $status: $(cat err)"
$train -n 120 --save-every 10 -o cut.st all.pix || bad "continuing"
$train -n 120 --save-every 10 -o whole.st --preview trained.png all.pix || bad "the uninterrupted run"
for m in cut whole; do dvae-encode -m $m.st -d cpu -p f32 all.pix | dvae-decode -m $m.st -p f32 | img-unpack --ppm >$m.ppm; done
cmp -s cut.ppm whole.ppm || bad "a continued run differs from an uninterrupted one"

# Without --eval the preview shows the last batch, 8 pictures beside each other: there is one in the last column.
corner=$(img-pack -s 0 trained.png | img-unpack --ppm | tail -c 3 | od -An -tx1 | tr -d ' ')
[ "$corner" != ffffff ] || bad "a preview without --eval lacks pictures"

# The size is the data's unless it is given; larger pictures are cut on the fly, as the paper's listing 1 does.
$train -n 2 -o small.st other.pix && model-info -s small.st | grep -q '^config *size = 12$' || bad "the size of the data"
for i in 1 2 3 4; do picture $i 20; done | img-pack -s 20 -o large.pix
$train -q -n 4 --size 8 --augment paper -o augmented.st large.pix && model-info -s augmented.st | grep -q '^config *size = 8$' ||
	bad "--augment paper"
$train -q -n 4 --size 8 -o plain.st large.pix || bad "--size"
model-info -s plain.st | grep -q "^id *$(model-info -s augmented.st | sed -n 's/^id *//p')" && bad "--augment paper does nothing"
$train -q -n 4 --augment paper -o none.st large.pix 2>err
[ $? = 2 ] && grep -q -- 'give --size' err || bad "--augment paper without --size: $(cat err)"
$train -q -n 4 --size 24 --augment paper -o none.st large.pix 2>err
[ $? = 3 ] && grep -q '20x20 pixels, the dVAE' err || bad "--augment paper of small pictures: $(cat err)"

# Cuts anywhere in the pipe change nothing; batches neither.
dvae-encode -m whole.st -p f32 -o all.tok all.pix || bad "encoding"
dvae-encode -m whole.st -p f32 -b 5 <all.pix | dvae-decode -m whole.st -p f32 -b 7 | img-unpack --ppm | cmp - whole.ppm ||
	bad "pictures depend on the batch or on cuts in the pipe"
dvae-decode -m whole.st -p f32 all.tok | img-unpack --ppm | cmp - whole.ppm || bad "decoding a saved stream"
img-unpack --ppm all.tok >/dev/null 2>&1 && bad "pixels were not dropped"
dvae-encode -m whole.st -p f32 --keep-pixels all.pix | img-unpack --ppm | cmp - all.ppm || bad "--keep-pixels"

# Refused, with status 3, one line that names both sides, and no output file.
id=$(dvae-encode -m pipe.st -p f32 all.pix | { dvae-decode -m whole.st 2>&1 >/dev/null || :; } | sed -n 's/.*of dVAE \([0-9a-f]*\), expected \([0-9a-f]*\).*/\1/p')
[ ${#id} = 32 ] || bad "the other dVAE is not named: '$id'"
refused 3 'expected [0-9a-f]\{32\}' dvae-decode -m pipe.st all.tok -o unwritten
refused 3 '12x12 pixels, expected 16x16' dvae-encode -m whole.st other.pix -o unwritten
refused 3 '12x12 pixels' dvae-train -q -x tiny --size 16 -n 5 other.pix -o unwritten
refused 3 'img-pack' dvae-encode -m whole.st all.tok -o unwritten
refused 3 'image tokens' dvae-decode -m whole.st all.pix -o unwritten
refused 3 'whole.st' dvae-decode -m whole.st whole.st -o unwritten
refused 3 'all.pix' dvae-encode -m all.pix all.pix -o unwritten
head -c 200 whole.st >cut.model
refused 3 'cut.model' dvae-encode -m cut.model all.pix -o unwritten
head -c 300 all.tok >cut.tok
refused 3 'cut.tok' dvae-decode -m whole.st cut.tok -o unwritten
for t in dvae-encode dvae-decode; do
	$t all.pix >/dev/null 2>err && bad "$t without a model"
	[ $? = 2 ] && grep -q -- '-m MODEL is needed' err || bad "$t without a model: $(cat err)"
done
dvae-train -x huge -o none.st all.pix 2>/dev/null
[ $? = 2 ] || bad "unknown preset: expected status 2"
exit $failed
