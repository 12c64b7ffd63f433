# helpers.sh - read (".") by shell tests of tests/cli in their scratch folders: what failed, commands that must be refused,
# models compared, pictures to train on.  The test ends with `exit $failed`.
failed=0
bad() {
	echo "not ok: $*"
	failed=1
}
# refused STATUS WORDS COMMAND...: that status, one line on stderr that holds WORDS (a pattern), nothing on stdout, and no
# file `unwritten`, for commands that are told to write it
refused() {
	want=$1 words=$2
	shift 2
	"$@" > stdout 2> err < /dev/null
	got=$?
	[ $got -eq "$want" ] || bad "$*: status $got, expected $want: $(cat err)"
	[ "$(wc -l < err)" -eq 1 ] && grep -q -e "$words" err || bad "$*: said '$(cat err)', expected '$words'"
	[ ! -s stdout ] || bad "$*: wrote to stdout"
	[ ! -e unwritten ] || bad "$*: left an output file"
}
# tensors MODEL: names, shapes and checksums of all its tensors
tensors() { model-info -Jc "$1" | sed 's/.*"tensors"://'; }
# pictures N STEP: writes N different pictures of 16 x 16, and pairs.tsv with a caption each; their bytes stay below 128,
# which every awk can print
pictures() {
	LC_ALL=C awk -v n="$1" -v step="$2" 'BEGIN {
		for (i = 0; i < n; i++) {
			name = "p" i ".ppm"
			printf "P6 16 16 255\n" > name
			for (k = 0; k < 256; k++)
				printf "%c%c%c", 1 + i * step, 1 + k % 16 * 7, 1 + (k * i) % 120 > name
			close(name)
			print name "\tpicture " i
		}
	}' > pairs.tsv
}
