#!/bin/sh
# check.sh - install what is missing (Debian, root), build, run every test, and end with one
# line "N passed, N failed".  Test programs count their own checks; a shell test of
# tests/cli and a manual page count one each.
#
#   BUILD=dir     build folder, default build
#   JOBS=n        compilations at once, default 2
#   KEEP=1        leave the scratch folder of failed tests
#   ONLY=pattern  run only tests whose name matches (shell pattern)
set -u
cd "$(dirname "$0")/.." || exit 1
SRC=$PWD
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$SRC/$BUILD ;; esac
JOBS=${JOBS:-2}
ONLY=${ONLY:-*}
C_TIMEOUT=${C_TIMEOUT:-1200}
SH_TIMEOUT=${SH_TIMEOUT:-1200}
# Threads that wait sleep: spinning ones would take the cores from each other where tests share them with other work.
export OMP_WAIT_POLICY=passive
passed=0 failed=0

packages='gcc g++ make libzstd-dev libpng-dev libjansson-dev libxxhash-dev libjpeg62-turbo-dev
	libdnnl-dev openmpi-bin libopenmpi-dev protobuf-compiler mandoc zstd fonts-noto-color-emoji unicode-data'

install_missing() {
	command -v dpkg-query >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
	missing=
	for p in $packages; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
	done
	[ -z "$missing" ] && return 0
	echo "installing$missing"
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086
	apt-get -qq -y install --no-install-recommends $missing >/dev/null 2>&1 || {
		apt-get -qq update >/dev/null 2>&1
		apt-get -qq -y install --no-install-recommends $missing >/dev/null 2>&1
	} || echo "could not install$missing" >&2
}

selected() {
	# shellcheck disable=SC2254
	case $1 in $ONLY) return 0 ;; esac
	return 1
}

# result NAME PASSED FAILED LOG: count, and show the log of what failed.
result() {
	passed=$((passed + $2)) failed=$((failed + $3))
	if [ "$3" -gt 0 ]; then
		echo "FAILED $1"
		grep -v '^[0-9]* passed, [0-9]* failed$' "$4" | tail -n 60 | sed 's/^/    /'
	fi
}

run_program() {
	name=${1##*/}
	selected "$name" || return 0
	dir=$scratch/$name
	mkdir "$dir"
	(cd "$dir" && SRC=$SRC PATH=$BUILD/bin:$BUILD/examples:$PATH exec timeout -k 10 "$C_TIMEOUT" "$1") \
		>"$dir.log" 2>&1 </dev/null
	status=$?
	line=$(grep '^[0-9][0-9]* passed, [0-9][0-9]* failed$' "$dir.log" | tail -n 1)
	p=${line%% passed*} f=${line#*, } f=${f%% failed*}
	if [ -z "$line" ]; then
		p=0 f=1
		echo "$name ended with status $status before its last line (124: over $C_TIMEOUT s)" >>"$dir.log"
	elif [ $status -ne 0 ] && [ "$f" -eq 0 ]; then
		f=1
		echo "$name passed its checks and ended with status $status" >>"$dir.log"
	fi
	result "$name" "$p" "$f" "$dir.log"
	clean "$dir" "$f"
}

run_script() {
	name=cli/${1##*/} base=${1##*/}
	selected "$base" || return 0
	dir=$scratch/cli-$base
	mkdir "$dir"
	(cd "$dir" && SRC=$SRC BUILD=$BUILD PATH=$BUILD/bin:$BUILD/examples:$PATH LC_ALL=C.UTF-8 \
		exec timeout -k 10 "$SH_TIMEOUT" sh "$1") >"$dir.log" 2>&1 </dev/null
	status=$?
	if [ $status -eq 0 ]; then
		result "$name" 1 0 "$dir.log"
	else
		echo "$name ended with status $status (124: over $SH_TIMEOUT s)" >>"$dir.log"
		result "$name" 0 1 "$dir.log"
	fi
	clean "$dir" $status
}

# Manual pages must be free of the warnings of mandoc and, where it is installed, of troff (which sees tables too wide).
lint_page() {
	name=${1##*/}
	selected "$name" || return 0
	{
		mandoc -Tlint -Wwarning "$1"
		! command -v groff >/dev/null || groff -mdoc -ww -Tutf8 "$1" 2>&1 >/dev/null
	} >"$scratch/lint.log" 2>&1
	if [ ! -s "$scratch/lint.log" ]; then
		result "$name" 1 0 "$scratch/lint.log"
	else
		result "$name" 0 1 "$scratch/lint.log"
	fi
}

clean() {
	[ "${KEEP:-}" ] && [ "$2" -ne 0 ] && return
	rm -rf "$1"
}

install_missing
if ! make -s -j"$JOBS" BUILD="$BUILD" tests emulated >"$BUILD.log" 2>&1; then
	tail -n 60 "$BUILD.log"
	echo "the build failed"
	echo "0 passed, 1 failed"
	exit 1
fi
rm -f "$BUILD.log"

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
for t in "$SRC"/tests/test-*.c; do
	t=${t##*/}
	run_program "$BUILD/tests/${t%.c}"
done
for t in "$SRC"/tests/cli/*.sh; do
	run_script "$t"
done
for m in "$SRC"/man/*.[157]; do
	[ -e "$m" ] && lint_page "$m"
done
if [ "${KEEP:-}" ] && [ $failed -gt 0 ]; then
	trap - EXIT
	echo "kept in $scratch"
fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
