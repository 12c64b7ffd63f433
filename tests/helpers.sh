# helpers.sh - read (".") by shell tests of tests/cli in their scratch folders: what failed, and commands that must be
# refused.  The test ends with `exit $failed`.
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
