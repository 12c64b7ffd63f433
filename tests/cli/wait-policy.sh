#!/bin/sh
# wait-policy.sh - programs with threads tell OpenMP not to spin for long, under their own name and unless the user has said
# how to wait.
. "$SRC/tests/helpers.sh"
img-pack --version | grep -q OpenMP || { echo "no OpenMP in this build"; exit 0; }
[ -r /proc/self/environ ] || { echo "no /proc here"; exit 0; }
mkfifo lines
exec 3<> lines

# settings [NAME=VALUE]...: the name of an img-pack started with these, and what its environment says of waiting, once it
# has begun its output and waits for input
settings() {
	env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$@" img-pack -o packed < lines 3>&- &
	until ls packed.tmp-* > found 2>&1; do kill -0 $! && sleep 0.02 || return; done
	cat "/proc/$!/comm"
	tr '\0' '\n' < "/proc/$!/environ" | grep -E '^(OMP_WAIT_POLICY|GOMP_SPINCOUNT)='
	kill $!
	wait $! 2> stopped
}
# told WORDS [NAME=VALUE]...
told() {
	want=$1
	shift
	got=$(settings "$@" | tr '\n' ' ')
	[ "$got" = "$want" ] || bad "with '$*': '$got', expected '$want'"
}
told 'img-pack GOMP_SPINCOUNT=1000 '
told 'img-pack GOMP_SPINCOUNT=7 ' GOMP_SPINCOUNT=7
told 'img-pack OMP_WAIT_POLICY=active ' OMP_WAIT_POLICY=active

# It starts itself with the same operands.
printf 'P6 1 1 255\nabc' > 'a b.ppm'
env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT img-pack 'a b.ppm' | tok-info | grep -q '^records.1$' || bad "operands"

# What comes through a pipe is read once, after that.
A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
"$BUILD/tests/gen-tokens" 8 1 256 $A 64 4 4 $A > train.tok
dalle-train -q -x tiny -b 4 -j 1 -n 1 -o model train.tok || bad "a model"
OMP_WAIT_POLICY=passive dalle-plan -m model > want || bad "plan of a model"
env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT dalle-plan -m /dev/stdin < model | cmp - want || bad "plan of a model from a file as stdin"
# shellcheck disable=SC2002
cat model | env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT dalle-plan -m /dev/stdin | cmp - want || bad "plan of a model from a pipe"
exit $failed
