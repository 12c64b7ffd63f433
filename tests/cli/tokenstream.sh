# tokenstream.sh - the filter printed in tokenstream(5) compiles and works as it says there.
set -u
bad() {
	echo "tokenstream.sh: $*"
	exit 1
}
sed -n '/^#include <stdio.h>/,/^\.Ed/p' "$SRC/man/tokenstream.5" | sed '/^\.Ed/d; s/\\e/\\/g' >thin.c
${CC:-cc} -std=c99 -Wall -Wextra -o thin thin.c 2>err || bad "does not compile: $(cat err)"
i=0
while [ $i -lt 301 ]; do
	echo "{\"key\":\"k$i\",\"image\":[$i,1]}"
	i=$((i + 1))
done | tok-load -o in.tok || bad "tok-load"
cat in.tok in.tok >two.tok
zstd -q -dc two.tok | ./thin | tok-cat -o half.tok || bad "the pipeline of the page"
tok-dump --fields key half.tok >have
i=0
while [ $i -lt 301 ]; do
	echo "{\"key\":\"k$i\"}"
	i=$((i + 2))
done >want
cat want want | cmp - have || bad "not every second record"
zstd -q -dc in.tok | head -c 900 | ./thin >cut.bare 2>/dev/null && bad "truncation was not noticed"
tok-info cut.bare >/dev/null 2>&1
[ $? = 3 ] || bad "its cut output should be refused"
# The shortest stream of the page.
printf '\012\002\010\001\032\000' | tok-info | grep -q '^records	0$' || bad "the shortest stream"
exit 0
