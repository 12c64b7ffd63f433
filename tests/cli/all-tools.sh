# all-tools.sh - what every tool must do alike: help, version, misuse, bad numbers, full and
# closed stdout, missing, unreadable and cut input; and the manual page names every option.
# Tools come from build/bin, how to run each from all-tools.rows.
set -u
bin=${BUILD:-$SRC/build}/bin
rows=$SRC/tests/cli/all-tools.rows
failed=0
no() {
	echo "all-tools.sh: $*"
	failed=1
}
need() { # set up or give up
	"$@" >setup.out 2>setup.err || {
		echo "all-tools.sh: setting up: $*: $(cat setup.err)"
		exit 1
	}
}
# run STATUS-LIST COMMAND: status must be one of the list; stdout in out, stderr in err.
run() {
	want=$1
	shift
	timeout 300 "$@" >out 2>err </dev/null
	status=$?
	case " $want " in
	*" $status "*) return 0 ;;
	esac
	no "$*: status $status, expected $want: $(head -c 300 err)"
	return 1
}
one_line() {
	[ "$(wc -l <err)" = 1 ] || no "$*: expected one line on stderr, got: $(head -c 400 err)"
}

# ---- help, version, misuse, manual page ----

# "letter name argument default" of each option in --help; "-" for what it lacks.
options() {
	"$1" --help | awk '
		function flush() { if (name) print letter, name, arg, dflt }
		/^  (-.,|   ) --/ {
			flush(); letter = "-"; arg = "-"; dflt = "-"; line = $0
			if (match(line, /^  -[^ ],/)) letter = substr(line, 4, 1)
			sub(/^ *(-., )?--/, "", line); split(line, w, " "); name = w[1]
			if (i = index(name, "=")) { arg = substr(name, i + 1); name = substr(name, 1, i - 1) }
		}
		/^$/ { flush(); name = "" }
		name && match($0, /\[[^]]*\]$/) { dflt = substr($0, RSTART + 1, RLENGTH - 2); if (dflt == "") dflt = "-" }
		END { flush() }'
}

check_manual() {
	page=$SRC/man/$1.1
	[ -f "$page" ] || { no "$1: no manual page"; return; }
	mandoc -Tascii "$page" 2>/dev/null | sed 's/.\x08//g' >page.txt
	options "$1" | while read -r letter name arg dflt; do
		grep -Eq "Fl -$name( |\$)" "$page" || echo "$1: the manual page lacks --$name"
		[ "$letter" = - ] || grep -q -- "-$letter[, =]" page.txt || echo "$1: the manual page lacks -$letter"
	done >lacking
	[ -s lacking ] && no "$(cat lacking)"
	for section in NAME SYNOPSIS DESCRIPTION 'EXIT STATUS' EXAMPLES; do
		grep -q "^$section" page.txt || no "$1: the manual page lacks $section"
	done
}

check_numbers() {
	options "$1" >opts.txt
	while read -r letter name arg dflt; do
		case $arg,$dflt in
		*,nan) no "$1 --help: 'nan' as a default says nothing" ;;
		*,[0-9]* | *,-[0-9]* | [XY],-) run 2 "$1" "--$name=12x" && one_line "$1 --$name=12x" ;;
		esac
		case $arg in
		*'|'*) [ "$name" = preset ] || run 2 "$1" "--$name=nonsense" && one_line "$1 --$name=nonsense" ;;
		esac
	done <opts.txt
}

check_generic() {
	t=$1
	run 0 "$t" --help
	[ -s out ] && [ ! -s err ] || no "$t --help: expected text on stdout only"
	sed -n '/^Exit status:/p' out | grep -oE '(status: |, )[0-9]+' | grep -oE '[0-9]+' >statuses
	sed -n '/^.Sh EXIT STATUS/,/^.Sh [^E]/p' "$SRC/man/$t.1" | tr '\n' ' ' | grep -oE '(STATUS |[,;] )[0-9]+' | grep -oE '[0-9]+' | cmp -s - statuses ||
		no "$t --help: other statuses than the manual page: $(cat statuses)"
	run 0 "$t" --version
	grep -q "$t.*[0-9]\.[0-9]" out || no "$t --version: $(head -1 out)"
	run 2 "$t" --no-such-option
	one_line "$t --no-such-option"
	grep -q "^$t: .*no-such-option" err || no "$t --no-such-option: says $(cat err)"
	[ -s out ] && no "$t --no-such-option: wrote on stdout"
	options "$t" | awk '$3 != "-" { print $2 }' >valued
	while read -r name; do
		run 2 "$t" "--$name" && one_line "$t --$name without its value"
	done <valued
	timeout 300 "$t" --help >/dev/full 2>err && no "$t --help to a full device: status 0"
	check_manual "$t"
	check_numbers "$t"
}

# ---- running ----

# with INPUT: the row's arguments with IN replaced, and -o OUT for outputs to a file.
with() {
	line=$(printf ' %s ' "$arguments" | sed "s| IN | $1 |g; s| IN | $1 |g; s| \([A-Z][A-Z]*\) | $work/\1 |g")
	[ "$output" = file ] && line="$line -o $work/never"
	echo "$line"
}

check_row() {
	t=$1 input=$2 output=$3 arguments=$4
	good=$work/in.$input
	# shellcheck disable=SC2046
	if [ "$output" = stdout ]; then
		run 0 "$t" $(with "$good") || return
		[ -s out ] || no "$t: wrote nothing"
		timeout 300 "$t" $(with "$good") >/dev/full 2>err </dev/null
		status=$?
		[ $status = 4 ] || [ $status = 1 ] || no "$t on a full device: status $status"
		grep -q 'No space' err || no "$t on a full device: says '$(head -1 err)'"
		timeout 300 "$t" $(with "$good") >&- 2>err </dev/null && no "$t with closed stdout: status 0"
		grep -q "^$t: " err || no "$t with closed stdout: says nothing"
	fi
	for bad in "$work/missing" "$work" /proc/self/mem; do
		# shellcheck disable=SC2046
		run '1 3' "$t" $(with "$bad") && {
			[ "$bad" = /proc/self/mem ] || grep -q -- "$bad" err || no "$t $bad: does not name the file: $(cat err)"
			[ ! -e "$work/never" ] || no "$t $bad: left an output"
		}
		rm -f "$work/never"
	done
	[ "$input" = stream ] || return 0
	for bad in "$work/cut.stream" "$work/flip.stream" "$work/empty.stream" "$work/in.lines"; do
		# shellcheck disable=SC2046
		run 3 "$t" $(with "$bad") && {
			one_line "$t ${bad##*/}"
			grep -q -- "$bad" err || no "$t ${bad##*/}: does not name the file: $(cat err)"
			[ ! -e "$work/never" ] || no "$t ${bad##*/}: left an output"
		}
		rm -f "$work/never"
	done
}

# ---- small data ----

work=$PWD/work
mkdir "$work" || exit 1
for i in 1 2 3 4 5 6 7 8; do
	awk -v s=$i 'BEGIN { srand(s); printf "P6\n16 16\n255\n"; for (i = 0; i < 768; i++) printf "%c", 1 + int(rand() * 120) }' >"$work/p$i.ppm"
	printf 'p%d.ppm\ta picture of number %d\n' $i $i >>"$work/list.tsv"
	echo "a picture of number $i" >>"$work/in.lines"
	printf '{"step":%d,"loss":%d.5}\n' $i $((9 - i)) >>"$work/in.log"
done
export OMP_NUM_THREADS=1
cat "$work"/p?.ppm >"$work/in.ppm"
need bpe-train -k 300 -o "$work/BPE" "$work/in.lines"
need img-pack -s 16 -o "$work/pix" "$work/list.tsv"
need bpe-encode -m "$work/BPE" -l 24 -o "$work/text" "$work/pix"
need dvae-train -x tiny -n 1 -o "$work/DVAE" "$work/text"
need dvae-encode -m "$work/DVAE" --keep-pixels -o "$work/in.stream" "$work/text"
need dalle-train -x tiny -n 1 -o "$work/DALLE" "$work/in.stream"
need clip-train -x tiny -n 1 -o "$work/CLIP" "$work/in.stream"
cp "$work/DVAE" "$work/in.model"
echo '{"flops": 1e12}' >"$work/in.rates"
need tok-dump -o "$work/in.json" "$work/in.stream"
size=$(wc -c <"$work/in.stream")
head -c $((size / 2)) "$work/in.stream" >"$work/cut.stream"
{ head -c $((size / 2)) "$work/in.stream"; printf '\252\125'; tail -c +$((size / 2 + 3)) "$work/in.stream"; } >"$work/flip.stream"
: >"$work/empty.stream"

for path in "$bin"/*; do
	[ -x "$path" ] && [ ! -d "$path" ] || continue
	t=${path##*/}
	check_generic "$t"
	row=$(grep "^$t *|" "$rows") || {
		no "$t has no line in tests/cli/all-tools.rows, add one"
		continue
	}
	input=$(echo "$row" | cut -d'|' -f2 | tr -d ' ') output=$(echo "$row" | cut -d'|' -f3 | tr -d ' ')
	check_row "$t" "$input" "$output" "$(echo "$row" | cut -d'|' -f4)"
done
exit $failed
