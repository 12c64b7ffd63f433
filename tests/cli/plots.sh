# plots.sh - img-diff and plot-log.
set -u
failed=0
bad() {
	echo "plots.sh: $*"
	failed=1
}
# Two pictures of 2 x 1: six values; one differs by 3, in the other one by 4: mse 9/6, 16/6, 25/12.
printf 'P6\n2 1\n255\nABCDEFP6\n2 1\n255\nABCDEF' >a.ppm
printf 'P6\n2 1\n255\nDBCDEFP6\n2 1\n255\nABCDEB' >b.ppm
img-pack -s 0 a.ppm -o a.pix && cp b.ppm sub.ppm && mkdir -p d && cp b.ppm d/a.ppm && img-pack -s 0 d/a.ppm -o b.pix || bad "packing"
img-diff a.pix b.pix >out || bad "img-diff failed"
printf 'records\t2\nmse\t2.08333\npsnr\t44.9432\n' | cmp -s - out || bad "summary: $(cat out)"
img-diff -e a.pix <b.pix | head -n 2 >out
printf 'a-000000\t1.5\t46.3699\na-000001\t2.66667\t43.8711\n' | cmp -s - out || bad "per record: $(cat out)"
img-diff --json a.pix b.pix | sed -n 1p | grep -q '"key":"a-000000","mse":1.5,"psnr":46.3698' || bad "JSON: $(img-diff --json a.pix b.pix)"
img-diff a.pix a.pix | grep -q 'psnr.inf' || bad "equal pictures"
img-diff --json a.pix a.pix | tail -n 1 | grep -q '"records":2,"mse":0.0,"psnr":null' || bad "equal pictures as JSON"
img-pack -s 0 sub.ppm -o keys.pix
head -c 17 a.ppm | img-pack -s 0 -o x.pix - && mv a.ppm whole.ppm && head -c 17 whole.ppm >a.ppm && img-pack -s 0 a.ppm -o short.pix
printf 'P6\n1 2\n255\nABCDEF' >a.ppm && img-pack -s 0 a.ppm -o turned.pix
for other in keys short turned; do
	img-diff a.pix $other.pix >/dev/null 2>err
	[ $? = 3 ] || bad "$other.pix: expected status 3"
	grep -q "$other.pix" err || bad "$other.pix is not named: $(cat err)"
done
img-diff a.pix short.pix b.pix 2>/dev/null
[ $? = 2 ] || bad "three operands: expected status 2"

# plot-log: a picture of the size asked for; what is no log is refused.
for i in 1 2 3 4 5 6 7 8 9; do
	echo "{\"step\": $i, \"loss\": $i.5, \"lr\": null}"
done >log.jsonl
png_size() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $3 * 256 + $4 "x" $7 * 256 + $8 }'; }
plot-log --width 300 --height 200 log.jsonl -o log.png && [ "$(png_size log.png)" = 300x200 ] || bad "a chart"
img-pack -s 0 log.png | img-unpack --ppm | od -An -v -tu1 -w3 -j15 | grep -q ' 31 105 180' || bad "no line in the chart"
plot-log -l -s 3 -t title -y loss,lr --y-min 0.1 --y-max 100 log.jsonl log.jsonl | head -c 8 | od -An -tx1 | grep -q '89 50 4e 47' || bad "more options"
# Where the line is: its pixels, counted along the rows.
line_pixels() { img-pack -s 0 "$1" | img-unpack --ppm | od -An -v -tu1 -w3 -j15 | awk '$1 == 31 && $2 == 105 && $3 == 180 { print NR }'; }
chart() { plot-log --width 300 --height 200 "$@" -o chart.png && line_pixels chart.png; }
printf '{"step": %d, "loss": %d}\n' 1 1 2 2 3 3 >linear.jsonl
printf '{"step": %d, "loss": %d}\n' -5 2 0 2 10 1 100 2 1000 3 >logarithmic.jsonl
chart linear.jsonl >linear && chart --log-x logarithmic.jsonl | cmp -s linear - && [ -s linear ] || bad "--log-x: not a straight line"
printf '{"step": %d, "loss": %d}\n' 1 3 2 2 3 1 >falling.jsonl
chart falling.jsonl >falling
rising=$(wc -l <linear) falling=$(wc -l <falling)
[ $((20 * (rising > falling ? rising - falling : falling - rising))) -lt "$rising" ] || bad "the legend hides a line: $rising pixels, $falling"
printf '{"step": 10, "lo' >>log.jsonl
plot-log log.jsonl -o log.png || bad "a cut last line belongs to a run that is still writing"
printf '\n{"step": 11, "loss": 1}\n' >>log.jsonl
plot-log log.jsonl -o none.png 2>err
[ $? = 3 ] || bad "a broken line: expected status 3"
grep -q 'log.jsonl: line 10' err || bad "a broken line is not named: $(cat err)"
echo text | plot-log -o none.png 2>/dev/null
[ $? = 3 ] || bad "text: expected status 3"
plot-log -y nothing log.png -o none.png 2>/dev/null
[ $? = 3 ] || bad "a PNG as log: expected status 3"
plot-log -y loss,los -o log.png falling.jsonl 2>err && [ "$(cat err)" = "plot-log: falling.jsonl: has no numbers of 'los'; it has step loss" ] ||
	bad "an unknown key beside another: $(cat err)"
plot-log -q -y loss,los -o log.png falling.jsonl 2>err && [ ! -s err ] || bad "-q: $(cat err)"
plot-log -x epoch -o none.png falling.jsonl 2>err
[ $? = 3 ] && [ "$(cat err)" = "plot-log: falling.jsonl: has no numbers of 'epoch'; it has step loss" ] || bad "an unknown axis: $(cat err)"
head -n 9 log.jsonl | plot-log -y nothing -o none.png 2>/dev/null
[ $? = 3 ] || bad "no points: expected status 3"
[ -e none.png ] && bad "a failure left an output"
exit $failed
