#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, all tests on the CPU and on a Vulkan
# adapter, tests of a build without features, the oldest compiler, other platforms, documentation.
# Installs what is missing on Debian and Ubuntu.
set -euo pipefail
cd "$(dirname "$0")/.."

# Tests press Ctrl-C, which is ignored by what a script starts with `&`, or `nohup` does.
ignored=$(sed -n 's/^SigIgn:\s*/0x/p' /proc/self/status 2>/dev/null || true)
if (( ${ignored:-0} & 3 )); then exec env --default-signal=HUP,INT ./tests/run.sh; fi

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

# have NAME TEST GET: true where the command TEST succeeds, if need be after GET.
have() {
  if bash -c "$2" >/dev/null 2>&1; then return; fi
  if timeout 300 bash -c "$3" >/dev/null 2>&1 && bash -c "$2" >/dev/null 2>&1; then return; fi
  echo "not checked: $1 cannot be installed here"
  unchecked+=("$1")
  return 1
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
cargo fmt --check --all

step "lints"
cargo clippy --locked --all-targets --features tower,capi -- -D warnings
cargo clippy --locked -p hubrouter-gateway -p hubrouter-envoy -p hubrouter-loom -p hubrouter-shaders --all-targets \
  -- -D warnings
cargo clippy --locked --all-targets --no-default-features -- -D warnings
cargo clippy --locked --no-default-features --features gpu -- -D warnings

step "tests; the gateway; the module for Envoy, with an Envoy of its tests' own"
# Together, so that they build the library once.
cargo test --locked -p hubrouter -p hubrouter-gateway -p hubrouter-envoy --features hubrouter/tower

step "the threads of a call in every order"
cargo test --locked -p hubrouter-loom

step "shaders for Metal and Direct3D"
cargo test --locked -p hubrouter-shaders

step "tests without features: the CPU alone"
# On every platform, whatever crate would bring them.
tree=$(cargo tree --locked --no-default-features -e normal,build --target all --prefix none)
if grep -E '^(wgpu|naga|tokio|http|hyper|tower|axum|pyo3|arrow)' <<<"$tree"; then
  echo "expected no GPU, no HTTP and nothing of bindings without their features, found those above" >&2
  exit 1
fi
cargo test --locked --no-default-features --features capi --lib --test concurrency --test golden --test hosts

step "the C interface"
for tool in make pkg-config python3; do command -v $tool >/dev/null || install $tool; done
./tests/capi.sh

# What rustup or pip cannot get here is named, and is no failure.
unchecked=()

step "the Python wheel"
python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
cargo clippy --locked --package hubrouter-python --no-default-features -- -D warnings
tools=target/python/tools
if have "the Python wheel" "$tools/bin/maturin --version" \
  "python3 -m venv $tools && $tools/bin/pip install --quiet maturin==1.16.0"; then
  ./bindings/python/test.sh
fi

oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
step "the oldest compiler: $oldest"
if have "the compiler $oldest" \
  "rustup run $oldest rustc --version" "rustup toolchain install $oldest --profile minimal"; then
  cargo "+$oldest" check --locked --all-targets --target-dir target/oldest
fi
step "other platforms"
targets=()
for target in aarch64-unknown-linux-gnu x86_64-pc-windows-gnu; do
  if have "$target" "rustup target list --installed | grep -qx $target" "rustup target add $target"; then
    targets+=(--target "$target")
    # A check links nothing, so the C and assembly of dependencies need no compiler for the target.
    export "CC_${target//-/_}=true" "AR_${target//-/_}=true"
  fi
done
if [ ${#targets[@]} != 0 ]; then cargo check --locked "${targets[@]}"; fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --features tower

if [ ${#unchecked[@]} != 0 ]; then
  step "all passed, but not checked:$(printf ' %s;' "${unchecked[@]}")"
else
  step "all passed"
fi
