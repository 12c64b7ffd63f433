# bpe.sh - bpe-train, bpe-encode and bpe-decode in pipelines, and what they refuse.
set -u
. "$SRC/tests/helpers.sh"

cat >captions <<'END'
Grinning Face
grinning face with big eyes
man cook: medium-light skin tone
Woman cook: medium-light skin tone

flag: Côte d’Ivoire 123
END
tr A-Z a-z <captions >lower
i=0
while [ $i -lt 20 ]; do cat captions; i=$((i + 1)); done >many

# Training: deterministic, order does not matter, from stdin, FIFOs or files.
bpe-train -q -k 300 -o words.bpe many || bad "bpe-train failed"
sort -r many | bpe-train -q -k 300 >other.bpe || bad "bpe-train from stdin failed"
cmp words.bpe other.bpe || bad "the order of captions changed the vocabulary"
mkfifo pipe && (cat many >pipe &) && bpe-train -q -k 300 pipe | cmp - words.bpe || bad "training from a FIFO"
sed 's/^/key	/; s/$/	third/' many | bpe-train -q -t -k 300 | cmp - words.bpe || bad "-t: the key was counted"
tr '\n' '\0' <many | bpe-train -q -0 -k 300 | cmp - words.bpe || bad "-0 gave another vocabulary"
bpe-train -k 4000 many 2>err >/dev/null || bad "running out of merges is no failure"
grep -q 'instead of 4000' err || bad "no word about a vocabulary smaller than asked for: $(cat err)"
grep -q '^size 300$' words.bpe || bad "-k 300 was not reached"

# Lines to records and back.
bpe-encode -m words.bpe <captions >a.tok 2>err || bad "bpe-encode failed: $(cat err)"
[ -s err ] && bad "not silent: $(cat err)"
bpe-decode -m words.bpe a.tok | cmp - lower || bad "decoding does not give the captions"
bpe-decode -t -m words.bpe a.tok | cut -f1 | tr '\n' ' ' | grep -q '^1 2 3 4 5 6 $' || bad "keys are not line numbers"
bpe-encode -m words.bpe -o b.tok captions && bpe-decode -m words.bpe -o text b.tok && cmp text lower || bad "-o"
sed 's/$/\r/' captions | bpe-encode -m words.bpe | bpe-decode -m words.bpe | cmp - lower || bad "CR was not dropped"
printf 'no newline' | bpe-encode -m words.bpe | bpe-decode -m words.bpe | grep -qx 'no newline' || bad "last line without newline"
tr '\n' '\0' <captions | bpe-encode -0 -m words.bpe | bpe-decode -0 -m words.bpe | tr '\0' '\n' | cmp - lower || bad "-0"
printf 'k1\ta b\n00/v1.2\tc\n' >keys.tsv && bpe-encode -t -m words.bpe keys.tsv | bpe-decode -t -m words.bpe | cmp - keys.tsv || bad "-t: keys"
# A list of pictures: the keys and captions that img-pack takes from it.
printf 'P6 1 1 255\nabc' | tee a.png a.b.JPG plain >none.ppm
mkdir -p d && cp a.png d/.png && cp a.png d/c.ppm
printf '%s\n' 'a.png	one' './a.b.JPG	two' 'd/c.ppm	three	key/3.png	more' 'd/c.ppm	four		' 'plain	five' '' 'a.png' 'd/.png	six' >list.tsv
img-pack -s 0 list.tsv | tok-dump --fields key,caption >packed && bpe-encode -t -m words.bpe list.tsv | tok-dump --fields key,caption | cmp - packed ||
	bad "-t: other keys than img-pack's: $(cat packed)"
{ echo && cat list.tsv; } | bpe-encode -t -m words.bpe | tok-dump --fields key,caption | cmp - packed || bad "-t: an empty first line"
[ "$(sed 's/{"key":"\([^"]*\)".*/\1/' packed | tr '\n' ' ')" = 'a a.b key/3.png c plain a d/.png ' ] || bad "keys of a list: $(cat packed)"
printf 'two\nlines\0' >n0 && bpe-encode -0 -m words.bpe n0 >n.tok
[ "$(bpe-decode -m words.bpe n.tok)" = 'two lines' ] || bad "a newline in a caption must not make two lines"
bpe-decode -0 -m words.bpe n.tok | cmp - n0 || bad "-0 keeps the newline"
printf '' | bpe-encode -m words.bpe | bpe-decode -m words.bpe >none && [ ! -s none ] || bad "no lines, no records"
pieces=$(echo 'GRINNING x1' | bpe-encode -m words.bpe | bpe-decode -m words.bpe --separator='|')
[ "$pieces" = 'grinning| |x|1' ] || bad "pieces: $pieces"

# Records in: the same tokens from a stream as from lines; joined streams; tokens are replaced.
bpe-encode -m words.bpe <a.tok | bpe-decode -m words.bpe | cmp - lower || bad "records in"
cat a.tok a.tok | bpe-encode -m words.bpe | bpe-decode -m words.bpe | wc -l | grep -q '^ *12$' || bad "joined streams"
bpe-train -q -k 280 -o small.bpe a.tok || bad "training from records"
bpe-encode -m small.bpe a.tok | bpe-decode -m small.bpe | cmp - lower || bad "tokens of another vocabulary were not replaced"
(cat a.tok >pipe &) && bpe-encode -m words.bpe pipe | bpe-decode -m words.bpe | cmp - lower || bad "a stream from a FIFO"

# Fields that this version does not know stay: record { 1: "k" 2: "ab" 999: 77 }.
printf '\012\002\010\001\022\012\012\001k\022\002ab\270\076\115\032\002\010\001' >unknown.bare
bpe-encode --level 0 -m words.bpe unknown.bare >unknown.tok || bad "a stream with an unknown field"
LC_ALL=C grep -q "$(printf '\270\076\115')" unknown.tok || bad "the unknown field was lost"

# Dropout: same seed, same tokens; also for a part of the input; other tokens than without.
drop() { bpe-encode -m words.bpe --dropout 0.5 --seed "$1" -t | bpe-decode -t -m words.bpe --separator='|'; }
awk '{ print NR "\t" $0 }' many >keyed
drop 1 <keyed >d1
drop 1 <keyed | cmp - d1 || bad "dropout with the same seed differs"
drop 2 <keyed | cmp -s - d1 && bad "dropout with another seed is the same"
tail -n 50 keyed | drop 1 >d2
tail -n 50 d1 | cmp - d2 || bad "dropout depends on the records before"
tr -d '|' <d1 | cut -f2 | head -6 | cmp - lower || bad "dropout changes the text"
[ "$(echo abc | bpe-encode -m words.bpe --dropout 1 | bpe-decode -m words.bpe --separator='|')" = 'a|b|c' ] || bad "dropout 1"

# Long captions and bytes that are not UTF-8.
awk 'BEGIN { for (i = 0; i < 400; i++) printf "%d ", i % 10; print "" }' >long
bpe-encode -m words.bpe long 2>err | bpe-decode -m words.bpe >cut
[ "$(wc -c <cut)" = 257 ] || bad "a long caption has $(wc -c <cut) bytes, expected 256 and a newline"
grep -q '1 of 1 caption cut to 256' err || bad "no word about the cut: $(cat err)"
bpe-encode -q -m words.bpe -l 10 long 2>err | bpe-decode -m words.bpe | grep -qx '0 1 2 3 4 ' || bad "-l 10"
[ -s err ] && bad "-q is not quiet: $(cat err)"
refused 3 'caption 1 has 800 tokens, expected at most 256' bpe-encode --strict -m words.bpe -o unwritten long
printf 'a\377b\303\n' >latin
bpe-encode -m words.bpe latin 2>err | bpe-decode -m words.bpe >mended || bad "bytes that are not UTF-8"
printf 'a\357\277\275b\357\277\275\n' | cmp - mended || bad "U+FFFD for bad bytes"
grep -q '1 of 1 caption not UTF-8' err || bad "no word about bad UTF-8: $(cat err)"
refused 3 'line 1 is not UTF-8' bpe-encode --strict -m words.bpe -o unwritten latin
head -c 1100000 /dev/zero | tr '\0' a >huge
refused 4 'line 1 is longer' bpe-encode -m words.bpe -o unwritten huge
head -c 1000000 huge | bpe-encode -q -m words.bpe -l 1000000 | bpe-decode -m words.bpe | wc -c | grep -q '^ *1000001$' ||
	bad "a word of a million letters"

# A published CLIP model's folder: both ends are tokens, cutting keeps them.
clip=$SRC/tests/golden/clip-bpe
echo 'Grinning  FACE!' | bpe-encode -m "$clip" | bpe-decode -m "$clip" | grep -qx 'grinning face !' || bad "CLIP vocabulary"
echo 'Grinning  FACE!' | bpe-encode -q -l 2 -m "$clip" | bpe-decode -m "$clip" | grep -qx '' || bad "CLIP, cut to both ends"
mkdir broken && cp "$clip/merges.txt" broken
refused 1 'broken/vocab.json' bpe-encode -m broken -o unwritten captions
echo '{"a": 0, "b": 0}' >broken/vocab.json
refused 3 'vocab.json: the id' bpe-encode -m broken -o unwritten captions
echo '[[[' >broken/vocab.json
refused 3 'vocab.json: line' bpe-encode -m broken -o unwritten captions
cp "$clip/vocab.json" broken && echo 'a zzz' >>broken/merges.txt
refused 3 'merges.txt: line' bpe-encode -m broken -o unwritten captions

# Refusals.
refused 3 'tokens of vocabulary [0-9a-f]\{32\}, but small.bpe is [0-9a-f]\{32\}' bpe-decode -m small.bpe -o unwritten a.tok
refused 3 'holds no text tokens' bpe-decode -m words.bpe -o unwritten unknown.bare
refused 3 'not a BPE vocabulary' bpe-encode -m captions -o unwritten captions
refused 3 'not a BPE vocabulary' bpe-decode -m a.tok -o unwritten a.tok
head -c 400 words.bpe >torn.bpe
refused 3 'truncated' bpe-encode -m torn.bpe -o unwritten captions
refused 1 'missing.bpe' bpe-encode -m missing.bpe -o unwritten captions
refused 1 'missing' bpe-encode -m words.bpe -o unwritten captions missing
refused 3 'is a token stream' bpe-encode -m words.bpe -o unwritten captions a.tok
refused 3 'line 1 has no tab and names no picture, expected NAME<TAB>CAPTION' bpe-encode -t -m words.bpe -o unwritten captions
refused 3 'no captions' bpe-train -o unwritten /dev/null
# no text: a picture, a model; a list whose keys would become captions
printf '\211PNG\r\n\032\n\0\0\0\rIHDR' >picture
printf '\100\0\0\0\0\0\0\0{"__metadata__":{}}' >model
for f in picture model; do
	refused 3 'is not text' bpe-encode -m words.bpe -o unwritten $f
	refused 3 'is not text' bpe-train -o unwritten $f
done
refused 3 'is not text' bpe-encode -0 -m words.bpe -o unwritten picture
printf 'one.png\ta cat\n' >list.tsv
refused 2 'line 1 has a tab.*give -t for lines of NAME<TAB>CAPTION' bpe-encode -m words.bpe -o unwritten list.tsv
refused 2 'line 1 has a tab.*give -t for lines of NAME<TAB>CAPTION' bpe-train -o unwritten list.tsv
refused 3 'captions' bpe-decode -m words.bpe -o unwritten captions
head -c 100 a.tok >torn.tok
refused 3 'torn.tok' bpe-encode -m words.bpe -o unwritten torn.tok
refused 2 '-m VOCAB' bpe-encode captions
refused 2 'dropout' bpe-encode -m words.bpe --dropout 1.5 captions
refused 2 '-t and -0' bpe-encode -m words.bpe -t -o unwritten a.tok
bpe-encode -m words.bpe captions >/dev/full 2>err
[ $? = 4 ] || bad "a full device: expected status 4 ($(cat err))"
bpe-train many >/dev/full 2>/dev/null
[ $? = 4 ] || bad "bpe-train, a full device: expected status 4"
exit $failed
