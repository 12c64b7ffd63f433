#!/bin/sh
# cuda-spills.sh REPORT... - ptxas' reports: fails when a kernel spills registers to memory or keeps an array there, which it
# indexes at run time; -l lists every kernel's registers.
list=0
[ "${1:-}" = -l ] && list=1 && shift
awk -v list=$list '
/Compiling entry function/ { split($0, q, "\047"); name = q[2]; arch = q[4] }
/bytes spill stores/ {
	spills = 0
	for (i = 1; i < NF; i++)
		if ($i == "bytes" && ($(i + 1) == "spill" || $(i + 1) == "stack") && $(i - 1) + 0 > 0)
			spills = 1
}
/Used [0-9]+ registers/ {
	kernels++
	for (i = 1; i < NF; i++)
		if ($i == "Used")
			registers = $(i + 1)
	if (list)
		printf "%-8s %4d  %s\n", arch, registers, name
	if (spills) {
		printf "spills: %s, %s\n", arch, name
		bad++
	}
}
END {
	if (!kernels) {
		print "no kernel in the reports"
		exit 1
	}
	exit bad > 0
}' "$@"
