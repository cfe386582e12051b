#!/usr/bin/env bash
# Builds the wheel and prints its path: wheel.sh [release | dev]. Needs Rust and python3 with venv.
#
# `release` is what users get, with GPUs. `dev` is for tests: the CPU alone, quick to build.
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${1:-release}
options=(--profile "$profile")
[ "$profile" = release ] || options+=(--no-default-features)
tools=target/python/tools
[ -x $tools/bin/pip ] || python3 -m venv $tools >&2
$tools/bin/pip install --quiet --disable-pip-version-check maturin==1.16.0 >&2
out=target/python/$profile
rm -rf "$out"
$tools/bin/python bindings/python/backend.py $tools/bin/maturin build --locked --out "$out" \
  --manifest-path bindings/python/Cargo.toml "${options[@]}" >&2
echo "$PWD"/"$out"/*.whl
