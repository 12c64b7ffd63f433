# dalle-sample as a service at the end of a pipe: order of records, partial records, answers before the input ends, flat
# memory over many captions.
set -u
. "$SRC/tests/helpers.sh"
gen=$BUILD/tests/gen-tokens
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa B=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
ok() { [ "$1" -eq 0 ] || bad "$2"; }
records() { tok-dump "$@" 2>/dev/null | sed 's/.*"key": *"\([^"]*\)".*"sample": *\([0-9]*\).*/\1 \2/'; }

"$gen" 40 1 256 $A 64 4 4 $B >train.tok
dalle-train -x tiny -j1 -n 2 -q -o m.st train.tok; ok $? "training"

# Caption by caption, sample by sample, however many are under way.
"$gen" 5 3 256 $A 64 4 4 $B >five.tok
tok-dump five.tok | sed 's/.*"key": *"\([^"]*\)".*/\1/' | awk '{ for (k = 0; k < 7; k++) print $0, k }' >want.txt
for b in 1 3 10 64; do
	dalle-sample -m m.st -j1 -n 7 -b $b five.tok >s.tok; ok $? "batch $b"
	records s.tok >have.txt
	cmp -s want.txt have.txt; ok $? "order of records in batches of $b: $(head -n 9 have.txt | tr '\n' ',')"
done

# Partial records: those of a sample before it and with ever more rows; without them the stream is as ever.
dalle-sample -m m.st -j2 -n 7 -b 4 --progressive 1 five.tok >p.tok; ok $? "progressive"
tok-dump p.tok | sed 's/.*"key": *"\([^"]*\)".*"image": *\[\([^]]*\)\].*"sample": *\([0-9]*\).*/\1 \3 \2/; s/,/ /g' |
	awk '{ n = NF - 2; id = $1 " " $2; if (n != last[id] + 4) exit 1; last[id] = n; if (n == 16) print id }' >have.txt
ok $? "partial records have 4, 8, 12 and 16 tokens: $(tok-dump p.tok | head -n 1)"
cmp -s want.txt have.txt; ok $? "whole records between partial ones keep their order"

# One caption is answered while the pipe stays open, and then 1,000 need no more memory than 100.
mkfifo in out
cat out >out.bin &
dalle-sample -m m.st -j1 -b 16 <in >out 2>err.txt &
pid=$!
exec 3>in
# What has come so far; the stream has no end yet.
arrived() { zstd -dc out.bin 2>/dev/null | grep -ao 'caption [0-9]' | wc -l; }
# answered N: wait for N records, for which the time of the whole test is left
answered() {
	while [ "$(arrived)" -lt "$1" ] && kill -0 $pid 2>/dev/null; do sleep 0.1; done
	[ "$(arrived)" -eq "$1" ]; ok $? "$1 captions answered while the pipe is open: $(arrived), $(cat err.txt)"
}
peak() { awk '/^VmHWM/ { print $2 }' /proc/$pid/status; }
"$gen" 1 5 256 $A 64 4 4 $B >&3
answered 1
"$gen" 99 6 256 $A 64 4 4 $B >&3
answered 100
few=$(peak)
"$gen" 900 7 256 $A 64 4 4 $B >&3
answered 1000
many=$(peak)
exec 3>&-
wait $pid; ok $? "sampling from a pipe: $(cat err.txt)"
# A caption kept would be 1 kB: the tables of the allocator and of the frames written are less.
[ "$many" -le $((few + 512)) ]; ok $? "memory: $few kB after 100 captions, $many kB after 1000"

# With -v the caches are told: text of the captions under way, one picture for each sample.
dalle-sample -v -m m.st -j1 -n 4 -b 4 five.tok 2>err.txt >/dev/null
grep -q 'caches: .* text of 2 captions, .* for 4 image sequences' err.txt; ok $? "memory of the caches: $(cat err.txt)"
exit $failed
