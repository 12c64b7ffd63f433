# emoji.sh - emoji-extract against the list that these package versions are known to give.
set -u
tool=$SRC/build/examples/emoji-extract
for dir in $(printf '%s' "$PATH" | tr ':' ' '); do
	[ -x "$dir/../examples/emoji-extract" ] && tool=$dir/../examples/emoji-extract && break
done
bad() {
	echo "emoji.sh: $*"
	exit 1
}

# Bad fonts: a file of the wrong kind, and the real one cut short, must not give pictures.
echo 'not a font' >not-a-font
"$tool" -D none -f not-a-font -l /dev/null 2>err && bad "a text file was taken for a font"
[ $? = 3 ] || bad "a text file as font: expected status 3"
grep -q 'not-a-font: expected a font' err || bad "message: $(cat err)"

version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null; }
[ "$(version fonts-noto-color-emoji)" = 2.042-0+deb12u1 ] && [ "$(version unicode-data)" = 15.0.0-1 ] ||
	{ echo "emoji.sh: font or list not installed in the known version, rest not run"; exit 0; }

"$tool" -D emoji || bad "extraction failed"
[ "$(find emoji -name '*.png' | wc -l)" = 3664 ] || bad "expected 3664 pictures"
[ "$(wc -l <emoji/train.tsv)" = 3276 ] || bad "expected 3276 training pairs"
# The list (file, caption, split) that the notes on this data set give, as a hash.
want=13b41090a3ce6f1ba8060ae5b106639f0bebbcc2fb6ca63d392823770cbf53c8
have=$(cut -f1,2,4 emoji/pairs.tsv | sha256sum | cut -c1-64)
[ "$have" = $want ] || bad "pairs.tsv: other files, captions or splits than expected"
for split in train combo cross novel dup; do
	awk -F'\t' -v s=$split '$4 == s { print $1 "\t" $2 }' emoji/pairs.tsv | cmp -s - emoji/$split.tsv ||
		bad "$split.tsv differs from the rows of pairs.tsv"
done

# A font cut short anywhere: no crash, and never a picture from outside of the file.
font=/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
for size in 100 20000 5000000 10920000 10950000; do
	head -c $size $font >cut.ttf
	"$tool" -q -D cut -f cut.ttf 2>err
	[ $? = 3 ] || bad "font cut to $size bytes: expected status 3"
done
exit 0
