#!/bin/sh
# Builds a Debian package of the command, its weights, manual pages and completions:
# ./packaging/deb.sh [FOLDER]
#
# FOLDER: where it is put, target/package by default. Needs: cargo install --locked cargo-deb@3.8.0
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/package}

cargo deb --version >/dev/null 2>&1 || {
  echo "cargo-deb missing: cargo install --locked cargo-deb@3.8.0" >&2
  exit 1
}
cargo build --release --locked
program=${CARGO_TARGET_DIR:-target}/release/hubrouter

# What cargo-deb takes from target/package/files (package.metadata.deb in Cargo.toml).
files=target/package/files
rm -rf "$files"
mkdir -p "$files/man" "$files/completions" "$out"
"$program" man --out "$files/man"
"$program" completions bash >"$files/completions/hubrouter"
"$program" completions zsh >"$files/completions/_hubrouter"
"$program" completions fish >"$files/completions/hubrouter.fish"
cargo deb --no-build --locked --output "$out"
