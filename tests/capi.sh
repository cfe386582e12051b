#!/usr/bin/env bash
# The C interface against an installed library: the examples, the promise of version 1, malformed
# calls, threads. HUBROUTER_CAPI_PREFIX: a prefix where it is installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
store=$root/weights/cmrbench

step() { printf '\n== %s\n' "$*"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=${HUBROUTER_CAPI_PREFIX:-$work/prefix}
if [ -z "${HUBROUTER_CAPI_PREFIX:-}" ]; then
  step "the library, installed"
  HUBROUTER_PROFILE="${HUBROUTER_PROFILE:-dev}" ./include/install.sh "$prefix"
fi
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib

step "symbols: those of the header and no others"
declared=$(grep -oE '\bhubrouter_[a-z_]+\(' "$prefix/include/hubrouter.h" | tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$prefix/lib/libhubrouter.so" |
  awk '$2 == "T" { print $3 }' | sort -u)
diff <(echo "$declared") <(echo "$exported")

# compile OUT SOURCE [FLAGS]: a program of tests/capi against the installed files.
strict=(-std=c11 -Wall -Wextra -Werror -pedantic -g)
compile() {
  local out=$1 source=$2
  shift 2
  # shellcheck disable=SC2046
  cc "${strict[@]}" $(pkg-config --cflags hubrouter) -o "$work/$out" "$source" "$@" \
    $(pkg-config --libs hubrouter) -pthread
}

step "the header in C11 and C++11"
for language in c c++; do
  command -v g++ >/dev/null || [ "$language" = c ] || continue
  standard=-std=${language}11
  echo '#include <hubrouter.h>' |
    cc "$standard" -x "$language" -Wall -Wextra -Werror -pedantic -fsyntax-only \
      -I "$prefix/include" -
done

step "version 1 as it was promised"
compile abi tests/capi/abi.c
"$work/abi"

step "every function"
mkdir "$work/store"
cp -r weights/cmrbench/g* weights/cmrbench/current tests/fixtures/zero-shot/g* "$work/store/"
compile calls tests/capi/calls.c -fsanitize=address,undefined -fno-sanitize-recover=all
"$work/calls" "$work/store" "$root/weights/all-MiniLM-L6-v2"

step "the example in C, linked to the shared and to the static library"
cp -r examples/c "$work/c"
make -s -C "$work/c" CFLAGS="-std=c11 -Wall -Wextra -Werror -pedantic" route route-static
prompts=("Which bird is singing in this recording?" "Translate this letter.")
"$work/c/route" "$store" "${prompts[@]}" >"$work/shared.txt"
env -u LD_LIBRARY_PATH "$work/c/route-static" "$store" "${prompts[@]}" >"$work/static.txt"
without_times() { sed 's/"timings_us":{[^}]*}//' "$1"; }
diff <(without_times "$work/shared.txt") <(without_times "$work/static.txt")
grep -q '^ .*AudioProtoPNet-20-BirdSet-XCL' "$work/shared.txt"
grep -v '^{' "$work/shared.txt"
if "$work/c/route" /nowhere "Who?" 2>"$work/stderr"; then exit 1; fi
grep '^io: /nowhere' "$work/stderr"

step "the program of docs/embedding.md"
awk '/^```c$/ { code = 1; next } /^```$/ && code { exit } code' docs/embedding.md >"$work/first.c"
compile first "$work/first.c"
"$work/first" | tee "$work/first.txt"
grep -q AudioProtoPNet "$work/first.txt"

step "the example in Python"
python3 examples/python/ctypes_route.py "$prefix/lib/libhubrouter.so" "$store" "${prompts[@]}" |
  tee "$work/python.txt"
grep -q 'status 5, invalid_request: ' "$work/python.txt"
diff <(grep '%' "$work/python.txt") <(grep '%' <(grep -v '^{' "$work/shared.txt") | head -n 6)

step "two copies of the library in one process"
cp "$prefix/lib/libhubrouter.so.1.0.0" "$work/copy.so"
PYTHONDONTWRITEBYTECODE=1 python3 tests/capi/copies.py "$prefix/lib/libhubrouter.so" \
  "$work/copy.so" "$store"

if command -v go >/dev/null; then
  step "the example in Go"
  cp -r examples/go "$work/go"
  (cd "$work/go" && GOFLAGS=-mod=mod GOCACHE="$work/go-cache" go build -o route . &&
    go vet . && ./route "$store" "${prompts[@]}") | tee "$work/go.txt"
  diff "$work/go.txt" <(grep '%' "$work/python.txt")
else
  echo "not checked: there is no go"
fi

step "malformed calls, with AddressSanitizer and the leak check"
compile malformed tests/capi/malformed.c -fsanitize=address,undefined -fno-sanitize-recover=all
"$work/malformed" "$store" "${HUBROUTER_CAPI_CALLS:-10000}"

step "eight threads, with AddressSanitizer and the leak check"
compile threads-asan tests/capi/threads.c -fsanitize=address,undefined -fno-sanitize-recover=all
"$work/threads-asan" "$store" "${HUBROUTER_CAPI_ROUNDS:-20}"

if command -v valgrind >/dev/null; then
  step "eight threads under valgrind"
  compile threads tests/capi/threads.c
  valgrind --quiet --error-exitcode=99 --leak-check=full \
    --errors-for-leak-kinds=definite,indirect,possible "$work/threads" "$store" 1
else
  echo "not checked: there is no valgrind"
fi

step "all passed"
