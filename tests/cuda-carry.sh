#!/bin/sh
# cuda-carry.sh FOLDER - what check-cuda.sh and bench-cuda.sh need on a machine with a GPU that has neither this suite's
# libraries nor a network, stripped, into FOLDER; to be followed there by
#	PREBUILT=1 sh FOLDER/tests/check-cuda.sh; PREBUILT=1 sh FOLDER/tests/bench-cuda.sh
#   BUILD=dir     build folder, default build: of `make ONEDNN=0 all tests`
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build} to=$1
mkdir -p "$to/tests" "$to/build/bin" "$to/build/tests" "$to/build/so" "$to/build/lib/dalle-tools"
cp tests/*cuda*.sh tests/bench-torch.py "$to/tests"
cp "$BUILD"/bin/* "$to/build/bin"
for t in test-cuda test-cuda-few test-ops test-attn test-latent test-optim bench-cuda bench-dalle; do cp "$BUILD/tests/$t" "$to/build/tests"; done
cp "$BUILD/lib/dalle-tools/dalle-cuda.so" "$to/build/lib/dalle-tools"
strip "$to"/build/bin/* "$to"/build/tests/* "$to/build/lib/dalle-tools/dalle-cuda.so"
# The C library's own are the machine's.
ldd "$to"/build/bin/* "$to"/build/tests/* | awk '/=> \// { print $3 }' | sort -u | while read -r so; do
	case ${so##*/} in libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | libgcc_s.so* | libstdc++.so*) ;; *) cp "$so" "$to/build/so" ;; esac
done
du -sh "$to"
