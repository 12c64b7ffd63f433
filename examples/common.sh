# common.sh - what the examples share; sourced by each from the top of the tree.
export LC_ALL=C
began=$(date +%s)
OUT=${OUT:-out}

say() { printf '%s\n' "$*" >&2; }

# build: the programs, first in PATH; the plugin for GPUs, which takes minutes to compile, only where there is a driver
build() {
	cuda=
	[ -e /proc/driver/nvidia ] || cuda=CUDA=0
	make -j"$(nproc)" $cuda >/dev/null
	PATH=$PWD/build/bin:$PWD/build/examples:$PATH
}

# after_quickstart FOLDER FILE...: into FOLDER below the results of quickstart.sh, which must have left the FILEs
after_quickstart() {
	folder=$OUT/$1
	shift
	for f in "$@"; do
		[ -e "$OUT/$f" ] && continue
		say "${0##*/}: $OUT/$f is missing; 'sh examples/quickstart.sh' makes it"
		exit 1
	done
	mkdir -p "$folder"
	cd "$folder"
}

# stage NAME FILE 'PIPELINE': run it unless FILE is there; FILE appears only when it is whole.
stage() {
	if [ -e "$2" ]; then
		say "done before: $1"
		return
	fi
	say "\$ $3"
	start=$(date +%s)
	sh -euc "$3"
	[ -e "$2" ] || { say "${0##*/}: '$1' did not make $2"; exit 1; }
	say "[$(($(date +%s) - start)) s] $1"
}

# field NAME: its value in the JSON of standard input
field() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" | head -n 1; }

# evenly N: N lines of standard input, or all, at equal distances
evenly() { awk -v n="$1" '{ line[NR] = $0 } END { for (n = n < NR ? n : NR; i < n; i++) print line[1 + int((i + 0.5) * NR / n)] }'; }
