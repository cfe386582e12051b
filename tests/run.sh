#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, all tests on the CPU and on a Vulkan
# adapter, documentation. Installs what is missing on Debian and Ubuntu.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

install() {
  step "installing $*"
  if ! command -v apt-get >/dev/null; then
    echo "$* missing, and there is no apt-get: install the equivalent of this system" >&2
    exit 1
  fi
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

command -v cargo >/dev/null || { echo "cargo missing: install Rust from https://rustup.rs" >&2; exit 1; }
command -v cc >/dev/null || install gcc libc6-dev
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

# A software Vulkan adapter, unless HUBROUTER_TEST_ADAPTER names another one.
if [ -z "${HUBROUTER_TEST_ADAPTER:-}" ] && ! ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1; then
  install mesa-vulkan-drivers libvulkan1
fi
# Mesa asks for it and says so on stderr where it is not set.
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"

step "format"
cargo fmt --check

step "lints"
cargo clippy --locked --all-targets -- -D warnings
cargo clippy --locked --no-default-features -- -D warnings

step "tests"
cargo test --locked

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

step "all passed"
