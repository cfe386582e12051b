#!/usr/bin/env bash
# Int8 on 64-bit Arm, in an emulator: kernels, encoders, and routes of the bundled store, which are
# in int8 only if a vector has the bits that were recorded on x86-64. Once on a CPU with dot
# products and once on one without. Takes minutes.
#
# Debian and Ubuntu: apt-get install qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross,
# and rustup target add aarch64-unknown-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
for command in qemu-aarch64-static aarch64-linux-gnu-gcc; do
  command -v "$command" >/dev/null || { echo "$command missing: see the head of $0" >&2; exit 1; }
done
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

# on CPU KERNEL: the tests, on a CPU whose kernel for int8 has to be KERNEL.
on() {
  printf '\n== %s: %s\n' "$1" "$2"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $1" \
    HUBROUTER_TEST_INT8="$2" \
    cargo test --locked --no-default-features --target "$target" --lib -- \
    device::cpu::low encoder::low route::router::tests
}

on max "Arm dot products"
on cortex-a72 none
