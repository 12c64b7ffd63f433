# stream.sh - tokenstream(5) from outside: protoc and zstd read what we write and the other
# way round; tok-* tools over it.
set -u
bad() {
	echo "stream.sh: $*"
	exit 1
}
PROTO="--proto_path=$SRC/libcommon stream.proto"

# ---- JSON lines to a stream and back ----
cat >in.jsonl <<'J'
{"key":"a","caption":"a red heart ❤","text":[1,2,300],"image":[0,8191,77,5],"score":0.25,"seed":"18446744073709551615","sample":4294967295,"model":"m"}
{"key":"b","caption":"","text":[],"nll_text":-1.5,"nll_image":"nan"}
{"key":"c","pixels":{"width":2,"height":1,"rgb":"AAECAwQF"},"unknown":"wj4DeHl6"}
{"key":"d \u0000 \"quoted\"","image":[3]}
J
tok-load in.jsonl >a.tok || bad "tok-load: status $?"
tok-dump --pixels a.tok >out.jsonl || bad "tok-dump: status $?"
sed 's/"caption":"",//' in.jsonl | cmp - out.jsonl || bad "tok-dump differs from what tok-load took"
tok-dump a.tok | grep -q pixels && bad "pixels without --pixels"
[ "$(tok-dump --fields key a.tok | head -1)" = '{"key":"a"}' ] || bad "--fields key"

# ---- zstd and protoc read ours ----
zstd -q -t a.tok || bad "zstd -t"
zstd -q -dc a.tok >a.bare || bad "zstd -dc"
# shellcheck disable=SC2086
protoc $PROTO --decode=dalle.Stream <a.bare >a.txt || bad "protoc --decode"
grep -q 'caption: "a red heart' a.txt || bad "protoc finds no caption"
grep -q 'records: 4' a.txt || bad "protoc finds no end record"
tok-cat -l 0 a.tok >b.bare || bad "tok-cat -l 0"
# shellcheck disable=SC2086
protoc $PROTO --decode=dalle.Stream <b.bare >b.txt || bad "protoc --decode of bare content"
[ "$(grep -c '^record' b.txt)" = 4 ] || bad "protoc: other records in bare content"

# ---- we read what protoc writes, bare and through zstd ----
# (protoc's text form has no unknown fields that it would take back.)
tok-cat --drop unknown a.tok | zstd -q -dc >known.bare || bad "--drop unknown"
# shellcheck disable=SC2086
protoc $PROTO --decode=dalle.Stream <known.bare | protoc $PROTO --encode=dalle.Stream >c.bare || bad "protoc --encode"
sed 's/,"unknown":"[^"]*"//' out.jsonl >known.jsonl
tok-dump --pixels c.bare | cmp - known.jsonl || bad "protoc's encoding of our stream"
zstd -q -c c.bare | tok-dump --pixels | cmp - known.jsonl || bad "zstd of protoc's encoding"
cat >hand.txt <<'P'
header { version: 1 image { id: "00112233445566778899aabbccddeeff" size: 16 grid_width: 2 grid_height: 2 } }
record { key: "x" image { count: 4 bits: 4 packed: "\x21\x43" } }
record { key: "y" image { count: 2 bits: 16 packed: "\x0f\x00\x01\x00" } }
end { records: 2 }
P
# shellcheck disable=SC2086
protoc $PROTO --encode=dalle.Stream <hand.txt >hand.bare || bad "protoc --encode by hand"
tok-dump hand.bare >hand.jsonl || bad "a stream written by hand"
printf '%s\n' '{"key":"x","image":[1,2,3,4]}' '{"key":"y","image":[15,1]}' | cmp - hand.jsonl || bad "hand.jsonl"

# ---- cat, slices, projection ----
cat a.tok c.bare a.tok >joined.tok
[ "$(tok-dump joined.tok | wc -l)" = 12 ] || bad "cat of streams"
tok-cat a.tok c.bare - <a.tok | tok-dump | cmp - "$(tok-dump joined.tok >j.jsonl; echo j.jsonl)" || bad "tok-cat of operands"
tok-cat --skip 3 --head 2 joined.tok | tok-dump --fields key >slice.jsonl || bad "slice"
[ "$(cat slice.jsonl)" = '{"key":"d \u0000 \"quoted\""}
{"key":"a"}' ] || bad "slice: $(cat slice.jsonl)"
tok-cat --drop image,text hand.bare | tok-info --json | grep -q '"size": 16' && bad "the header still describes dropped fields"
tok-cat --head 0 a.tok | tok-info | grep -q '^records	0$' || bad "an empty stream"
tok-info a.tok | grep -q '^program	tok-load' || bad "lineage"
# Several: each, then all of them.
{ printf 'file\ta.tok\n'; tok-info a.tok; printf '\nfile\tc.bare\n'; tok-info c.bare; printf '\ntotal\t2 files\n'; cat a.tok c.bare | tok-info | sed '/^text codec/d; /^image codec/d; /^pictures/d; /^program/d'; } >want
tok-info a.tok c.bare | cmp - want || bad "tok-info of two files: $(tok-info a.tok c.bare | diff - want)"
tok-info --json a.tok c.bare | tr -d ' \n' >two
cat a.tok c.bare | tok-info --json | tr -d ' \n' | sed 's/.*"programs":\[[^]]*\]},//' >sum
grep -q '^{"files":\[{"file":"a.tok","header":{.*},{"file":"c.bare","header":{' two && [ "$(sed 's/.*"total":{//' two)" = "$(cat sum)}" ] ||
	bad "tok-info --json of two files: $(cat two), not $(cat sum)"
bpe-encode -m "$SRC/tests/golden/clip-bpe" a.tok -o other.tok || bad "bpe-encode"
[ "$(tok-info other.tok other.tok | grep -c '^text codes')" = 3 ] || bad "codes of one vocabulary add up"
echo 'a red heart' | bpe-train -q -k 257 -o tiny.bpe && bpe-encode -m tiny.bpe a.tok -o mixed.tok || bad "another vocabulary"
[ "$(tok-info other.tok mixed.tok other.tok | grep -c '^text codes')" = 3 ] || bad "codes of two vocabularies do not add up: $(tok-info other.tok mixed.tok)"
[ "$(tok-info --header a.tok c.bare | grep -c '^file\|^total')" = 2 ] || bad "tok-info --header of two files"
tok-cat a.tok | tok-info --header | grep -c '^program' | grep -q '^2$' || bad "lineage grows"

# ---- damage and wrong inputs ----
expect() { # status, words, command...
	want=$1 words=$2
	shift 2
	"$@" >/dev/null 2>err
	status=$?
	[ $status = "$want" ] || bad "$*: status $status, expected $want: $(cat err)"
	[ "$(wc -l <err)" = 1 ] || bad "$*: not one line: $(cat err)"
	grep -q -- "$words" err || bad "$*: says '$(cat err)', expected '$words'"
}
head -c 100 a.tok >cut.tok
expect 3 'cut.tok: truncated' tok-info cut.tok
tok-info a.tok cut.tok c.bare >three 2>err
[ $? = 3 ] && grep -q 'cut.tok: truncated' err && tok-info a.tok c.bare | cmp -s - three || bad "a damaged file hides others: $(cat err three)"
head -c 130 b.bare >cut.bare
expect 3 'truncated: 0 records and no end record' tok-cat -o never.tok cut.bare
[ ! -e never.tok ] || bad "a failed run left its output"
ls | grep -q 'never' && bad "a failed run left a temporary file"
expect 3 'vocabulary\|image codec' tok-cat -o never.tok a.tok hand.bare
printf '\211PNG\r\n\032\n' >x.png
expect 3 'PNG' tok-info x.png
printf 'PK\003\004xxxxxxxxxx' >x.pt
expect 3 'PyTorch' tok-info x.pt
expect 3 'tok-load reads JSON' tok-info in.jsonl
expect 3 'line 2: ' sh -c 'printf "{}\n{\"key\":1}\n" | tok-load'
expect 3 'unknown member' sh -c 'echo "{\"kee\":\"a\"}" | tok-load'
expect 3 'not JSON' sh -c 'echo "{" | tok-load'
expect 3 'declares 16 codes' sh -c 'echo "{\"image\":[16]}" | tok-load --like hand.bare'
expect 1 'No such file' tok-info a.tok nowhere.tok
expect 2 'no field' tok-cat --fields key,color a.tok

# ---- split and shuffle ----
i=0
while [ $i -lt 2000 ]; do
	echo "{\"key\":\"k$i\",\"image\":[$((i % 7)),$i]}"
	i=$((i + 1))
done >many.jsonl
tok-load -o many.tok many.jsonl || bad "tok-load of many"
tok-split --held-out 10% -o train.tok --rest held.tok many.tok || bad "tok-split"
tok-dump train.tok held.tok | sort >both && sort many.jsonl | cmp - both || bad "tok-split lost records"
n=$(tok-dump held.tok | wc -l)
[ "$n" -gt 140 ] && [ "$n" -lt 260 ] || bad "tok-split held out $n of 2000, expected about 200"
tok-shuf -s 3 many.tok | tok-split --held-out 0.1 --rest again.tok -o /dev/null || bad "tok-split of a pipe"
tok-dump again.tok | sort >again && tok-dump held.tok | sort | cmp - again || bad "the split depends on order"
printf 'k5\nk1999\nk5\nnone\n' >keys
tok-split --match keys -o listed.tok --rest unlisted.tok many.tok 2>err || bad "--match"
grep -q 'no record has 1 of the 3 keys' err || bad "--match does not tell missing keys: $(cat err)"
[ "$(tok-dump --fields key listed.tok | tr -d '\n')" = '{"key":"k5"}{"key":"k1999"}' ] || bad "--match: listed"
[ "$(tok-dump unlisted.tok | wc -l)" = 1998 ] || bad "--match: unlisted"
expect 2 'needed' tok-split a.tok
expect 2 'same file' tok-split --held-out 5% --rest - a.tok
expect 2 'is an input' tok-split --held-out 5% -o /dev/null --rest ./a.tok a.tok
expect 3 'no key' sh -c 'echo "{}" | tok-load | tok-split --held-out 5% -o /dev/null'

tok-shuf -s 3 many.tok | tok-dump >s1 || bad "tok-shuf"
tok-shuf -s 3 -S 64Ki -T . many.tok | tok-dump >s2 || bad "tok-shuf through temporary streams"
cmp s1 s2 || bad "the order depends on memory"
sort s1 | cmp - both || bad "tok-shuf lost records"
cmp -s s1 many.jsonl && bad "tok-shuf left the order"
tok-shuf -s 4 many.tok | tok-dump | cmp -s - s1 && bad "the seed does not matter"
ls -d tok-shuf-* 2>/dev/null && bad "tok-shuf left temporary files"
# Half of the first 1000 records stay in the first half: 500 +- 5 standard deviations of 16.
n=$(head -1000 s1 | sed 's/.*"k\([0-9]*\)".*/\1/' | awk '$1 < 1000' | wc -l)
[ "$n" -gt 420 ] && [ "$n" -lt 580 ] || bad "tok-shuf: $n of 1000 in the first half"
exit 0
