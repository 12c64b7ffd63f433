# helpers.sh - read (".") by shell tests of tests/cli in their scratch folders: what failed, commands that must be refused,
# models compared, pictures to train on, trainers held in the middle, ranks.  The test ends with `exit $failed`.
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
# near WHAT BOUND A B: numbers that differ by no more than BOUND of A
near() {
	awk -v a="$3" -v b="$4" -v most="$2" 'BEGIN { d = a - b; exit !(a != "" && b != "" && (d < 0 ? -d : d) <= most * (a < 0 ? -a : a)) }' ||
		bad "$1: $4, expected $3"
}
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
# held FILE COMMAND...: starts a trainer that saves FILE every few updates, and returns once it did.  It stands in the middle
# then, however fast or slow the machine is: its log is a pipe that nobody reads, full but for two pages, which are
# fewer than 60 updates.  Sets $pid; what it says is in err.  released: lets it go on, waits for its end and sets $status.
held() {
	file=$1
	shift
	saved=$(stat -c '%i %y' "$file" 2> /dev/null)
	rm -f held && mkfifo held && exec 3<> held
	dd if=/dev/zero of=held bs=4096 oflag=nonblock 2> /dev/null
	dd of=/dev/null bs="$(getconf PAGESIZE)" count=2 <&3 2> /dev/null
	"$@" --log held --log-every 1 2> err 3>&- &
	pid=$!
	while [ "$(stat -c '%i %y' "$file" 2> /dev/null)" = "$saved" ]; do
		kill -0 $pid 2> /dev/null || break
		sleep 0.02
	done
}
released() {
	cat <&3 > /dev/null &
	reader=$!
	wait $pid
	status=$?
	kill $reader
	wait $reader 2> /dev/null
	exec 3>&-
	rm held
}
# mpi_found: whether ranks can be started here, by Open MPI, whose options are used; sets them
mpi_found() {
	[ -e "$BUILD/lib/dalle-tools/dalle-mpi.so" ] && mpirun --version 2> /dev/null | grep -q 'Open MPI' || return 1
	[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
	export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
	export OMPI_MCA_orte_execute_quiet=1
}
