#!/bin/sh
# bench-cuda.sh - `make bench-cuda`, on a machine with an NVIDIA GPU: ceilings and ops (bench-cuda), whole updates and
# sampling of 1.2b and 12b (bench-dalle), pictures a second of the paper's dVAE, and PyTorch's attention on the same card
# where python3 has torch.  Status 1 where there is no GPU.
set -u
cd "$(dirname "$0")/.." || exit 1
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
PATH=$BUILD/bin:$PATH
"$BUILD/tests/bench-cuda" --probe > /dev/null || {
	echo "bench-cuda: no GPU can be used here: nothing was measured"
	exit 1
}
"$BUILD/tests/bench-cuda" || exit 1

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
for row in "1.2b -b 16 --most 512" "12b -b 2 --most 16 -n 2"; do
	printf '\ntransformer %s\n' "$row"
	# shellcheck disable=SC2086
	"$BUILD/tests/bench-dalle" -d cuda -p bf16 -x $row || echo "  not measured: see the line above"
done

printf '\ndVAE of the paper, 256 x 256\n'
head -c $((196608 * 64)) /dev/urandom > "$work/noise"
i=0
while [ $i -lt 64 ]; do
	printf 'P6\n256 256\n255\n'
	dd if="$work/noise" bs=196608 skip=$i count=1 2> /dev/null
	i=$((i + 1))
done > "$work/noise.ppm"
img-pack -q -s 256 -o "$work/one.pix" "$work/noise.ppm"
for k in 1 2 3 4 5 6 7 8; do cat "$work/one.pix"; done > "$work/noise.pix"
dvae-train -q -x paper -d cuda -p bf16 -b 8 -n 1 -o "$work/dvae.st" "$work/one.pix"
# The start of the program is taken off: the time of 512 pictures less that of 64.
encode() {
	from=$(date +%s.%N)
	dvae-encode -q -d cuda -p bf16 -b 64 -m "$work/dvae.st" -o "$work/out.tok" "$1" || exit 1
	date +%s.%N | awk -v from="$from" '{ print $1 - from }'
}
few=$(encode "$work/one.pix") all=$(encode "$work/noise.pix")
awk -v few="$few" -v all="$all" 'BEGIN { printf "  dvae-encode %26.0f pictures/s\n", 448 / (all - few) }'

printf '\nPyTorch, scaled_dot_product_attention, causal, 8 x 32 heads of 64, 1280 states, bf16\n'
python3 - << 'E' 2> /dev/null || echo "  not measured: python3 has no torch that sees the GPU"
import time
import torch
import torch.nn.functional as F

q, k, v, g = (torch.randn(8, 32, 1280, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(4))


def forward():
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def both():
    forward().backward(g)


def seconds(run):
    best = 1e30
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            run()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 50)
    return best


flops = 4 * 8 * 32 * 64 * 1280 * 1281 / 2
f, b = seconds(forward), seconds(both)
print(f"  dense                        forward {1e3 * f:7.3f} ms {1e-12 * flops / f:6.1f} TFLOP/s, "
      f"with backward {1e3 * b:7.3f} ms {1e-12 * 3.5 * flops / b:6.1f} TFLOP/s")
E
