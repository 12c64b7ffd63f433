# cuda-machine.sh - read (".") by check-cuda.sh and bench-cuda.sh: finds the plugin, the libraries carried along in $BUILD/so
# and, where only PyTorch's wheels hold it, cuBLASLt.  The GPU is described; status 1 where there is none.
export DALLE_PLUGINS="$BUILD/lib/dalle-tools" PATH="$BUILD/bin:$PATH" LC_ALL=C.UTF-8
also() { LD_LIBRARY_PATH=$1${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} && export LD_LIBRARY_PATH; }
[ ! -d "$BUILD/so" ] || also "$BUILD/so"

# cublas_folder NAME
cublas_folder() {
	for f in /usr/local/cuda*/lib64/"$1" $(python3 -c '
import glob, site, sys
for p in site.getsitepackages() + sys.path:
    for f in glob.glob(p + "/nvidia/*/lib/" + sys.argv[1]):
        print(f)' "$1" 2> /dev/null); do
		[ ! -e "$f" ] || { dirname "$f" && return; }
	done
}

gpu=$("$BUILD/tests/bench-cuda" --probe 2>&1) || { echo "$gpu" && return 1; }
case $gpu in *', no libcublasLt'*)
	folder=${gpu##*, no } folder=$(cublas_folder "${folder%%:*}")
	[ -z "$folder" ] || { also "$folder" && gpu=$("$BUILD/tests/bench-cuda" --probe); } ;;
esac
echo "$gpu"
