#!/bin/sh
# run.sh [TARGET]... - run the targets that `make fuzz` has built (clang with libFuzzer; Debian: clang, libclang-rt-14-dev), by
# default all, each for FUZZ_SECONDS (60) on one core.  Seeds are made here, of the tests' own files and by the tools.  What is
# found (crashes, hangs, memory over 2 GiB, properties that do not hold) stays in build-fuzz/found/ as TARGET-KIND-HASH;
# `build-fuzz/fuzz/TARGET FILE` shows it again.  Exit status 1 when there is any.  The corpus in build-fuzz/corpus/ grows from
# run to run.  A hang is what takes 20 s: no input takes one, but a busy machine may take its processor away for some.
set -u
cd "$(dirname "$0")/../.." || exit 1
FUZZ=${FUZZ:-build-fuzz}
PATH=$PWD/${BUILD:-build}/bin:$PATH
seconds=${FUZZ_SECONDS:-60}
golden=tests/golden
corpus=$FUZZ/corpus
TMPDIR=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d) || exit 1
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM

# joined TARGET NAME PART...: a seed of parts with a zero byte between them
joined() {
	to=$corpus/$1/$2
	cat "$3" >"$to"
	shift 3
	for part; do printf '\0' | cat - "$part" >>"$to"; done
}

seed_streams() {
	cat >"$TMPDIR/lines" <<-'END'
	{"key":"a","caption":"a red heart","text":[1,2,300],"image":[0,1,2,3],"score":1.5,"nll_text":2,"nll_image":3,"seed":7}
	{"key":"b/c.png","caption":"zwei Häuser","text":[],"image":[5,6,7,4],"sample":2,"model":"0123456789abcdef0123456789abcdef"}
	{"key":"p","pixels":{"width":2,"height":1,"rgb":"AAECAwQF"},"unknown":"YgEx","score":"nan","seed":"18446744073709551615"}
	END
	cp "$TMPDIR/lines" "$corpus/json-lines/all"
	split -l 1 "$TMPDIR/lines" "$corpus/json-lines/line-"
	tok-load -l 0 -o "$TMPDIR/bare" "$TMPDIR/lines"
	tok-load -o "$TMPDIR/framed" "$TMPDIR/lines"
	printf 'dalle-bpe 1\nrule paper\nsize 257\n116 104 th\n' >"$TMPDIR/words"
	img-pack -q -s 16 -o "$TMPDIR/pixels" "$golden/pillow.ppm"
	echo 'a thing' | bpe-encode -q -m "$TMPDIR/words" --level=0 -o "$TMPDIR/text"
	for frames in 0 1 3; do
		for f in bare text; do
			{ printf "\\00$frames"; cat "$TMPDIR/$f"; } >"$corpus/stream/$f-$frames"
		done
	done
	for f in bare framed pixels text; do cp "$TMPDIR/$f" "$corpus/frames/$f"; done
	cat "$TMPDIR/framed" "$TMPDIR/framed" >"$corpus/frames/joined"
	cat "$TMPDIR/bare" "$TMPDIR/framed" >"$corpus/frames/mixed"
	# without checksums, which mutations break
	zstd -q --no-check -c "$TMPDIR/bare" >"$corpus/frames/unchecked"
}

# The JSON header of a safetensors file, alone.
header() {
	n=$(od -An -tu8 -N8 "$1" | tr -d ' ')
	tail -c +9 "$1" | head -c "$n"
}

seed_models() {
	cp "$golden"/openai-dvae/views* "$corpus/model"
	cp "$golden"/openai-dvae/encoder-old.pkl "$corpus/model"
	for f in "$golden"/*.safetensors "$golden"/openai-dvae/views.safetensors; do
		name=$(basename "$f")
		header "$f" >"$corpus/safetensors/$name"
		[ "$(wc -c <"$f")" -gt 65536 ] || cp "$f" "$corpus/model/$name"
	done
	cat >"$corpus/safetensors/small" <<-'END'
	{"__metadata__":{"dalle.kind":"dvae","dalle.config":"{\"size\":8}","dalle.checksums":"{}"},
	"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}
	END
	printf '\0000123456789' >>"$corpus/safetensors/small"
	# Small models of each kind, without identity and checksums, which no mutation would fit.
	dvae-train -q -x tiny -n 1 -o "$TMPDIR/dvae" "$TMPDIR/pixels"
	dvae-encode -q --keep-pixels -m "$TMPDIR/dvae" "$TMPDIR/pixels" | bpe-encode -q -l 24 -m "$TMPDIR/words" -o "$TMPDIR/tokens"
	dalle-train -q -x tiny -n 1 -o "$TMPDIR/dalle" "$TMPDIR/tokens"
	clip-train -q -x tiny -n 1 -o "$TMPDIR/clip" "$TMPDIR/tokens"
	for kind in dvae dalle clip; do
		header "$TMPDIR/$kind" | sed 's/"dalle.id":"[0-9a-f]*",*//; s/"dalle.checksums":"{[^}]*}",*//; s/,}/}/' \
			>"$corpus/load/$kind"
		cp "$corpus/load/$kind" "$corpus/safetensors/tiny-$kind"
	done
	for f in views.pt encoder-state.pkl encoder.pkl; do # data.pkl is the first file of the archive, from byte 64 to the next PK
		end=$(LC_ALL=C grep -aob PK "$golden/openai-dvae/$f" | sed -n '2s/:.*//p')
		{ printf '\000'; head -c "$end" "$golden/openai-dvae/$f" | tail -c +65; } >"$corpus/pickle/$f"
	done
	# a dictionary with a tensor, a view of storages of other types, and a module around one
	tensor() { # KEY TYPE OFFSET
		printf 'ctorch._utils\n_rebuild_tensor_v2\n((X\007\000\000\000storagectorch\n%sStorage\nX\001\000\000\000%s' "$2" "$1"
		printf 'X\003\000\000\000cpuK\020tQK%b' "$3"'K\002K\004\206K\004K\001\206\211ccollections\nOrderedDict\n)RtR'
	}
	{ printf '\200\002}X\001\000\000\000a'; tensor 0 Float '\0000'; printf 's.'; } >"$TMPDIR/one"
	{
		printf '\200\002ccollections\nOrderedDict\n)R(X\001\000\000\000a'; tensor 0 Float '\0004'
		printf 'K\002'; tensor 1 Half '\0001'; printf 'X\001\000\000\000b}X\001\000\000\000c'; tensor 2 Double '\0000'
		printf 'su.'
	} >"$TMPDIR/several"
	{
		printf '\200\002ctorch.nn.modules.module\nModule\n)\201}(X\013\000\000\000_parametersccollections\nOrderedDict\n)R'
		printf 'X\001\000\000\000wctorch._utils\n_rebuild_parameter\n'; tensor 0 Float '\0000'
		printf '\211ccollections\nOrderedDict\n)R\207RsX\010\000\000\000_modules}X\001\000\000\000m'
		printf 'ctorch.nn.modules.module\nModule\n)\201}X\010\000\000\000_buffers}X\001\000\000\000b'; tensor 3 Byte '\0010'; printf 'ssbsub.'
	} >"$TMPDIR/module"
	for f in one several module; do
		for container in 0 1 2 12; do # the last: three storages in the old one
			{ printf "\\0$container"; cat "$TMPDIR/$f"; } >"$corpus/pickle/$f-$container"
		done
	done
	cat >"$corpus/config/dalle" <<-'END'
	{"text_length":16,"text_vocab":256,"grid_w":4,"grid_h":4,"image_vocab":64,"layers":4,"width":32,"heads":2,
	"conv_k":3,"conv_centred":0,"mask":"paper","logits_f32":true}
	END
	cat >"$corpus/config/clip" <<-'END'
	{"size":16,"patch":4,"image_width":16,"image_layers":1,"image_heads":2,"context":8,"vocabulary":300,
	"text_width":16,"text_layers":1,"text_heads":2,"embed":8,"exact_gelu":0,"closed":true}
	END
	cat >"$corpus/config/dvae" <<-'END'
	{"size":16,"stem":1,"hidden":8,"initial":4,"groups":2,"blocks":1,"codes":64,"kernel":3,"post_gain":0.125}
	END
	for m in quick old first; do
		set -- "$golden/hf-clip/$m/config.json"
		[ ! -e "$golden/hf-clip/$m/preprocessor_config.json" ] || set -- "$@" "$golden/hf-clip/$m/preprocessor_config.json"
		joined clip-hf "$m" "$@"
	done
}

seed_texts() {
	printf 'The thing, then; 2 th\303\244ler' >"$TMPDIR/say"
	joined bpe paper "$TMPDIR/words" "$TMPDIR/say"
	sed 's/paper/wide/' "$TMPDIR/words" >"$TMPDIR/wide"
	joined bpe wide "$TMPDIR/wide" "$TMPDIR/say"
	bpe-train -q -k 300 -o "$TMPDIR/trained" LICENSE
	joined bpe trained "$TMPDIR/trained" "$TMPDIR/say"
	{ cat "$TMPDIR/say"; echo; cat "$golden/clip-bpe/merges.txt"; } >"$TMPDIR/merges"
	printf ',"<|more|>":999' >"$TMPDIR/members"
	joined bpe-clip more "$TMPDIR/merges" "$TMPDIR/members"
	joined bpe-clip plain "$TMPDIR/merges"
	printf 'a/b.png\ta red heart\tkey\r\nc.png\tzwei H\303\244user\nplain \377 line\n' >"$TMPDIR/list"
	{ printf '\001'; cat "$TMPDIR/list"; } >"$corpus/lines/newline"
	{ printf '\002'; tr '\n' '\0' <"$TMPDIR/list"; } >"$corpus/lines/zero"
	{ printf '\201'; cat "$golden/clip-bpe/texts"; } >"$corpus/lines/twice"
}

seed_charts() {
	one='\000\000\000\000\000\000\360\077' above='\001\000\000\000\000\000\360\077' two='\000\000\000\000\000\000\000\100'
	large='\352\214\240\071\131\076\051\106' zero='\000\000\000\000\000\000\000\000'
	printf "\\000$one$two$zero$one$one$two$two$large" >"$corpus/chart/linear"
	printf "\\003$one$two$one$one$above$two$two$large$large$two" >"$corpus/chart/logarithmic"
	printf "\\014$one$two$zero$one$one$two$above$two$large$one" >"$corpus/chart/ends"
}

seed_pictures() {
	printf 'P6\n# small\n3 2\n255\nabcdefghijklmnopqr' >"$TMPDIR/a.ppm"
	printf 'P5 4 1 65535\n12345678' >"$TMPDIR/b.pgm"
	printf 'P7\nWIDTH 2\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n12345678' >"$TMPDIR/c.pam"
	cat "$TMPDIR/a.ppm" "$TMPDIR/b.pgm" "$TMPDIR/c.pam" >"$TMPDIR/d.pnm"
	mkdir "$TMPDIR/png" && img-unpack -q -D "$TMPDIR/png" "$TMPDIR/pixels"
	for f in "$TMPDIR"/[a-d].p* "$TMPDIR"/png/*1.png; do
		{ printf '\022'; cat "$f"; } >"$corpus/image/$(basename "$f")"
	done
	seed_image() { { printf '\003'; base64 -d; } >"$corpus/image/$1"; }
	# 16 x 8 pixels: PNG with palette and tRNS, interlaced 16-bit RGBA; JPEG baseline and progressive with EXIF, CMYK
	while read -r name text; do echo "$text" | seed_image "$name"; done <tests/fuzz/pictures.base64
	printf 'The first file.' >"$TMPDIR/one.txt"
	long=$(printf '%0150d' 7)
	cp "$TMPDIR/one.txt" "$TMPDIR/$long.txt"
	for format in v7 ustar gnu pax; do
		(cd "$TMPDIR" && tar --format=$format -cf - a.ppm one.txt "$long.txt" 2>/dev/null) >"$corpus/tar/$format"
	done
	truncate -s '<8K' "$corpus"/tar/*
	cp "$corpus"/tar/* "$TMPDIR"/[a-d].p* "$TMPDIR"/png/*1.png "$TMPDIR/list" "$corpus/feed"
	img-unpack -q --tar "$TMPDIR/pixels" | head -c 8192 >"$corpus/feed/ours"
}

# The dictionaries of a target: files of words that mutations put in.
words() {
	case $1 in
	feed) set -- tar image ;;
	frames) set -- stream frames ;;
	load) set -- safetensors config ;;
	model) set -- safetensors zip ;;
	esac
	echo '# none may be empty'
	for name; do [ ! -e "tests/fuzz/$name.dict" ] || cat "tests/fuzz/$name.dict"; done
}

targets=${*:-$(cd "$FUZZ/fuzz" && ls)}
for t in $(cd "$FUZZ/fuzz" && ls); do mkdir -p "$corpus/$t"; done
mkdir -p "$FUZZ/found"
seed_streams
seed_models
seed_texts
seed_pictures
seed_charts

status=0
for t in $targets; do
	words "$t" >"$TMPDIR/dictionary"
	set -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 -max_len=16384 -artifact_prefix="$FUZZ/found/$t-" \
		-dict="$TMPDIR/dictionary" "$corpus/$t"
	if "$FUZZ/fuzz/$t" "$@" >"$FUZZ/$t.log" 2>&1; then
		printf '%-12s %s\n' "$t" "$(grep 'DONE' "$FUZZ/$t.log" | sed 's/ exec.*rss/ rss/')"
	else
		why=$(grep -m 1 'ERROR\|runtime error\|does not hold' "$FUZZ/$t.log" || tail -n 1 "$FUZZ/$t.log")
		printf '%-12s FOUND: %s\n' "$t" "$why"
		status=1
	fi
done
exit $status
