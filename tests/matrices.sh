#!/usr/bin/env bash
# The kernels for matrix units on a software adapter that has such: llvmpipe of Mesa 26, which Debian's
# unstable release has. It is unpacked into target/matrices, beside the system's own, with the C library
# that it was built for. Products are compared with f64 and with themselves, by matrices of 8 x 8, and
# vectors and routes by each variant with those of the CPU.
#
#   tests/matrices.sh        on Debian; about 200 MB to download and unpack, and ten minutes
set -euo pipefail
cd "$(dirname "$0")/.."

at="$PWD/target/matrices"
libraries="$at/root/usr/lib/$(uname -m)-linux-gnu"
if [ ! -e "$libraries/libvulkan_lvp.so" ]; then
  mkdir -p "$at"/{lists/partial,archives/partial,debs}
  echo "deb http://deb.debian.org/debian sid main" > "$at/sources.list"
  : > "$at/status"
  options=(-o Dir::Etc::sourcelist="$at/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$at/lists" -o Dir::State::status="$at/status" -o Dir::Cache="$at"
    -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq || {
    echo "expected Debian's unstable packages, found no way to get them: see above" >&2
    exit 1
  }
  names=$(apt-get "${options[@]}" -y --no-install-recommends --print-uris install mesa-vulkan-drivers libvulkan1 |
    sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p")
  # shellcheck disable=SC2086 # names of packages, one word each
  (cd "$at/debs" && apt-get "${options[@]}" download $names)
  for package in "$at"/debs/*.deb; do dpkg-deb -x "$package" "$at/root"; done
fi

export VK_DRIVER_FILES="$at/root/usr/share/vulkan/icd.d/lvp_icd.json"
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"
# Programs by the unpacked C library, whose Mesa cannot be loaded by an older one.
by_mesa() { "$libraries"/ld-linux-*.so.* --library-path "$libraries" "$@"; }
# The program that cargo built for `cargo test $*`.
built() {
  cargo test --locked --features tower "$@" --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

unit=$(built --lib)
properties=$(built --test properties)
export LP_NATIVE_VECTOR_WIDTH=256 HUBROUTER_TEST_MATRICES=1
echo "== products"
by_mesa "$unit" matri linear flight
echo "== variants"
by_mesa "$properties" variant
echo "all passed"
