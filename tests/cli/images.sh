# images.sh - img-pack and img-unpack: round trips through every form, bad files, refusals.
set -u
failed=0
bad() {
	echo "images.sh: $*"
	failed=1
}
# picture NAME SEED: a 9 x 7 PPM of noise
picture() {
	awk -v s="$2" 'BEGIN { srand(s); printf "P6\n9 7\n255\n"; for (i = 0; i < 189; i++) printf "%c", 1 + int(rand() * 120) }' >"$1"
}
picture a.ppm 1
picture b.ppm 2
picture c.ppm 3
printf 'a.ppm\tfirst picture\nb.ppm\tcaf\303\251 "two"\tsecond/key\nc.ppm\n' >list.tsv
cat a.ppm b.ppm c.ppm >all.ppm

# List -> records -> PPM: the same bytes; from a folder elsewhere too.
img-pack -s 0 -o list.pix list.tsv || bad "packing a list"
img-unpack --ppm list.pix | cmp - all.ppm || bad "list to PPM and back"
mkdir -p sub && cp list.tsv a.ppm b.ppm c.ppm sub && (cd / && img-pack -s 0 "$OLDPWD/sub/list.tsv") | img-unpack --ppm | cmp - all.ppm ||
	bad "paths of a list start at its folder"
img-pack -s 0 -C sub - <list.tsv | img-unpack --ppm | cmp - all.ppm || bad "-C"

# PPM -> PAM -> records; concatenated on a pipe.
img-pack -s 0 all.ppm | img-unpack --pam | img-pack -s 0 --caption x | img-unpack --ppm | cmp - all.ppm || bad "PAM round trip"

# PNG files and back: names from keys, text chunks, and the pixels.
img-unpack -D png list.pix || bad "-D"
[ "$(ls png | tr '\n' ' ')" = "a.png c.png second_key.png " ] || bad "file names: $(ls png)"
img-pack -s 0 png/a.png png/second_key.png png/c.png | img-unpack --ppm | cmp - all.ppm || bad "PNG round trip"
tr '\0' ' ' <png/a.png | grep -aq 'Description first picture' || bad "the caption is not in the PNG's text"
tr '\0' ' ' <png/a.png | grep -aq 'Command img-pack -s 0 -o list.pix list.tsv' || bad "the command line is not in the PNG's text"

# webdataset and back: pixels, captions; a tar made by tar.
img-unpack --tar -o out.tar list.pix || bad "--tar"
[ "$(tar tf out.tar | tr '\n' ' ')" = "a.png a.txt a.json second_key.png second_key.txt second_key.json c.png c.txt c.json " ] ||
	bad "members: $(tar tf out.tar)"
img-pack -s 0 out.tar | img-unpack --ppm | cmp - all.ppm || bad "tar round trip"
[ "$(tar xOf out.tar second_key.txt)" = 'café "two"' ] || bad "caption in the tar"
mkdir -p "wds/$(printf '%0120d' 0)" && cp a.ppm "wds/$(printf '%0120d' 0)/x.y.ppm" && printf ' a\n caption \n' >"wds/$(printf '%0120d' 0)/x.txt" &&
	printf '{"caption": "from json"}' >wds/0.json && cp png/c.png wds/0.png && printf zz >wds/0.bin
for format in gnu pax; do
	(cd wds && tar --format=$format -cf - 0.json 0.bin 0.png 0*/x.y.ppm 0*/x.txt) >wds-$format.tar
	img-pack -s 0 wds-$format.tar wds-gnu.tar -o wds.pix || bad "a $format archive"
	img-unpack --tar wds.pix | tar xOf - --wildcards '*.txt' | tr '\n' ' ' | grep -q '^from jsona captionfrom jsona caption$' ||
		bad "captions of a $format archive: $(img-unpack --tar wds.pix | tar xOf - --wildcards '*.txt')"
done
cat out.tar wds-gnu.tar | img-pack -s 0 | img-unpack --ppm | wc -c | grep -q "^ *$((5 * $(wc -c <a.ppm)))$" || bad "concatenated archives"

# Damaged archives are refused wherever they are cut; no file is left.
size=$(wc -c <out.tar)
for cut in 1 511 512 600 1100 $((size / 2)) $((size - 1024)) ; do
	head -c $cut out.tar >cut.tar
	img-pack -q -s 0 -o cut.pix cut.tar 2>/dev/null && bad "an archive cut to $cut bytes was taken"
	[ -e cut.pix ] && bad "an archive cut to $cut bytes left an output"
done
head -c $((size - 512)) out.tar | img-pack -s 0 >/dev/null || bad "one end block is enough"

# Bad pictures: reported, counted, left out; --strict stops with status 3.
head -c 100 png/a.png >cut.png
echo text >text.png
: >empty.png
printf 'a.ppm\tgood\ncut.png\tx\ntext.png\tx\nempty.png\tx\nmissing.png\tx\n\n\ttab first\nb.ppm\tbad \377 caption\nc.ppm\tgood\n' >bad.tsv
img-pack -s 0 bad.tsv -o bad.pix 2>err || bad "bad pictures must not stop the rest"
grep -q '6 of 8 pictures left out' err || bad "counting bad pictures: $(cat err)"
grep -q 'missing.png: No such file' err || bad "a missing file is not named"
# The same as operands; what they are is told.
printf 'GIF89a..' >film.gif
img-pack -s 0 a.ppm empty.png text.png film.gif c.ppm -o bad.pix 2>err || bad "bad operands must not stop the rest: $(cat err)"
grep -q '^img-pack: empty.png: is empty, expected PNG, ' err && grep -q '^img-pack: text.png: is no picture, expected' err &&
	grep -q '^img-pack: film.gif: is a GIF picture, expected' err && grep -q '3 of 5 pictures left out' err || bad "bad operands: $(cat err)"
img-pack -q -s 0 bad.tsv -o bad.pix
img-pack -s 0 png -o unread.pix 2>err
[ $? = 1 ] && grep -q "^img-pack: png: is a directory, expected .*'find png -type f'" err && [ ! -e unread.pix ] || bad "a directory: $(cat err)"
find png -type f | sort | img-pack -q -s 0 | tok-dump --fields key | grep -q '"a"' || bad "a list as find prints it"
# A list of which little is there: ten are named, all are counted, the rest is packed.
awk 'BEGIN { for (i = 0; i < 300; i++) print (i == 150 ? "a.ppm" : "gone" i ".png") "\tx" }' >gone.tsv
img-pack -s 0 gone.tsv -o gone.pix 2>err || bad "missing pictures must not stop the rest"
[ "$(grep -c 'left out)$' err)" = 10 ] && grep -q 'gone9.png' err && grep -q -- '-v names them all' err && tail -n 1 err | grep -q '299 of 300 pictures left out' &&
	[ "$(wc -l <err)" = 12 ] || bad "many missing pictures: $(cat err)"
img-unpack --ppm gone.pix | cmp - a.ppm || bad "the one among the missing"
[ "$(img-pack -v -s 0 gone.tsv 2>&1 >/dev/null | grep -c 'left out)$')" = 299 ] || bad "-v names all that are missing"
head -n 10 gone.tsv | cat - list.tsv | img-pack -s 0 2>&1 >/dev/null | grep -q -- '-v names' && bad "there are no further ones"
# An empty list: an empty stream, told.
img-pack -s 0 /dev/null -o none.pix 2>err && tok-info none.pix | grep -q '^records.0$' && grep -q 'empty: no pictures' err || bad "an empty list: $(cat err)"
rm none.pix
cat a.ppm c.ppm >good.ppm
img-unpack --ppm bad.pix | cmp - good.ppm || bad "the good ones among the bad"
img-pack -s 0 --strict bad.tsv -o strict.pix 2>err
[ $? = 3 ] || bad "--strict: expected status 3"
[ -e strict.pix ] && bad "--strict left an output"
img-pack -s 0 cut.png >/dev/null 2>&1
[ $? = 3 ] || bad "nothing but bad pictures: expected status 3"
img-pack -s 0 list.pix >/dev/null 2>err
[ $? = 3 ] || bad "a stream is no picture"
grep -q 'zstd' err || bad "a stream is no picture: $(cat err)"
printf 'Some prose.\nMore of it.\n' >prose.txt
img-pack -o never.pix prose.txt 2>err
[ $? = 3 ] && [ "$(wc -l <err)" = 1 ] && grep -q 'PATH<TAB>CAPTION' err || bad "prose is no list: $(cat err)"
[ ! -e never.pix ] || bad "prose left an output"
img-pack -s 0 -b nonsense a.ppm >/dev/null 2>err
[ $? = 2 ] && grep -q -- '--background' err || bad "a colour: the option is not named: $(cat err)"

# Crops: sizes, keys of variants, the same for any number of threads.
img-pack -s 4 -c paper-dvae -n 3 --seed 5 -j 1 list.tsv -o one.pix && img-pack -s 4 -c paper-dvae -n 3 --seed 5 -j 2 list.tsv -o two.pix || bad "variants"
img-unpack --ppm one.pix >one.ppm
img-unpack --ppm two.pix | cmp - one.ppm || bad "crops differ with the number of threads"
[ "$(wc -c <one.ppm)" = $((9 * (48 + 11))) ] || bad "nine variants of 4 x 4"
img-unpack -D variants one.pix && [ "$(ls variants | head -n 3 | tr '\n' ' ')" = "a~0.png a~1.png a~2.png " ] || bad "keys of variants: $(ls variants)"
img-pack -s 4 -c paper-dvae --seed 6 list.tsv | img-unpack --ppm | cmp -s - one.ppm && bad "the seed does nothing"
img-pack -s 8 -c paper-dalle list.tsv >/dev/null 2>&1
[ $? = 3 ] || bad "pictures of 9 x 7 are too small for the paper's crop to 8"
img-pack -s 8 -c pad -b 010203 a.ppm | img-unpack --ppm | tail -c 3 | od -An -tu1 | grep -q '1 *2 *3' || bad "letterbox on a background"
img-pack -n 2 a.ppm >/dev/null 2>&1
[ $? = 2 ] || bad "variants of a crop without chance: expected status 2"

# Sheets: 2 x 2 cells of 9 x 7 with gaps; grouped rows; refusals.
png_size() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $3 * 256 + $4 "x" $7 * 256 + $8 }'; }
img-unpack -g 2x2 --gap 1 list.pix -o sheet.png && [ "$(png_size sheet.png)" = 21x17 ] || bad "sheet: $(png_size sheet.png)"
img-unpack -g 2 --gap 0 --scale 3 list.pix >sheet.png && [ "$(png_size sheet.png)" = 54x42 ] || bad "scaled sheet: $(png_size sheet.png)"
img-unpack -g 4 --gap 0 --group list.pix >sheet.png && [ "$(png_size sheet.png)" = 9x21 ] || bad "grouped sheet: $(png_size sheet.png)"
img-unpack -g 1x1 list.pix 2>err >sheet.png && grep -q '2 more pictures' err || bad "pictures beyond the grid are counted"
img-unpack -g 3 --labels list.pix >labels.png && img-pack -s 0 labels.png >/dev/null || bad "labels"
for wrong in "" "-g 0y" "-g -3" "-g 4x2x1" "-D d --tar" "-D d -o f" "--show" "--animate" "--tar --animate" "-g 2 --animate --delay 65536"; do
	img-unpack $wrong list.pix >/dev/null 2>&1
	[ $? = 2 ] || bad "img-unpack $wrong: expected status 2"
done
head -c 60 list.pix >short.pix
img-unpack --ppm -o short.ppm short.pix 2>/dev/null && bad "a cut stream was taken"
[ -e short.ppm ] && bad "a cut stream left an output"

tr '\0' ' ' <sheet.png | grep -aq 'Records {"key":"a","caption":"first picture"}' || bad "a sheet tells its records"

# Frames by key and sample number, as files, as animations of each sample and as one of a sheet.
tok-dump --pixels list.pix | awk 'NR < 3 { for (k = 0; k < 2; k++) line[2 * k + NR] = $0 }
	END { for (i = 1; i <= 4; i++) { sub(/"key":"[^"]*"/, "\"key\":\"film\"", line[i]); sub(/}$/, ",\"seed\":3,\"sample\":" i % 2 "}", line[i]); print line[i] } }' |
	tok-load -o frames.pix
img-unpack -D frames frames.pix && [ "$(ls frames | tr '\n' ' ')" = "film-000-2.png film-000.png film-001-2.png film-001.png " ] || bad "numbered frames: $(ls frames)"
img-unpack -D films --animate --delay 70 frames.pix && [ "$(ls films | tr '\n' ' ')" = "film-000.png film-001.png " ] || bad "films: $(ls films)"
for f in films/film-000.png films/film-001.png; do
	[ "$(grep -aoE 'acTL|fcTL|fdAT|IEND' $f | tr '\n' ' ')" = "acTL fcTL fdAT fcTL fdAT IEND " ] || bad "$f: $(grep -aoE 'acTL|fcTL|fdAT|IEND' $f | tr '\n' ' ')"
done
tr '\0' ' ' <films/film-001.png | grep -aq 'Sample 1' || bad "an animation tells its sample"
img-pack -s 0 films/film-001.png films/film-000.png | img-unpack --ppm >stills.ppm
cat a.ppm b.ppm | cmp - stills.ppm || bad "the still of an animation is its last frame"
img-unpack -g 2 --gap 1 --animate frames.pix -o film.png && [ "$(png_size film.png)" = 21x9 ] || bad "animated sheet: $(png_size film.png)"
[ "$(grep -aoE 'fcTL' film.png | wc -l)" = 2 ] || bad "an animated sheet has a frame for each step"
img-pack -s 4 --caption x a.ppm -o small.pix
{ tok-dump --pixels list.pix | head -n 1; tok-dump --pixels small.pix; } | sed 's/"key":"[^"]*"/"key":"k"/' | tok-load -o mixed.pix
img-unpack -D mixed --animate mixed.pix 2>err
[ $? = 3 ] && grep -q '9x7 and 4x4 in one animation' err || bad "frames of two sizes: $(cat err)"

# In a terminal: half blocks carry the colours; 9 x 7 pixels are four lines.
if command -v script >/dev/null; then
	script -qec "stty cols 80; img-unpack --show --gap 0 --protocol blocks -g 1x1 -q list.pix" /dev/null </dev/null >screen
	[ "$(grep -c '▀' screen)" = 4 ] || bad "half blocks: expected 4 lines"
	want=$(tail -c +12 a.ppm | od -An -tu1 -N3 | awk '{ print "38;2;" $1 ";" $2 ";" $3 "m" }')
	head -n 1 screen | grep -q "^.\[$want" || bad "half blocks: the first pixel is not $want"
	script -qec "img-unpack --show --protocol sixel -g 1x1 -q list.pix" /dev/null </dev/null | grep -q 'Pq"1;1;17;15#0;2;0;0;0' || bad "sixel"
	script -qec "img-unpack --show --protocol kitty -g 1x1 -q list.pix" /dev/null </dev/null | grep -q '_Ga=T,f=100,q=2,m=0;iVBORw0KGgo' || bad "kitty"
fi

# netpbm, where it is installed: its files are read, ours are what it expects.
if command -v pngtopam >/dev/null && command -v pnmtopng >/dev/null; then
	pngtopam png/a.png | cmp - a.ppm || bad "netpbm reads our PNG otherwise"
	pnmtopng -interlace a.ppm 2>/dev/null >i.png && img-pack -s 0 i.png | img-unpack --ppm | cmp - a.ppm || bad "an interlaced PNG of netpbm"
	img-unpack --pam list.pix | pamfile -allimages 2>/dev/null | grep -c 'RGB\|PPM' | grep -q '^3$' || bad "netpbm reads our PAM"
fi
exit $failed
