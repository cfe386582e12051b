#!/bin/sh
# Writes include/hubrouter.h: ./include/header.sh
#
# Needs: cargo install --locked cbindgen@0.29.4
set -eu
cd "$(dirname "$0")/.."
cbindgen --quiet --config cbindgen.toml --crate hubrouter --output include/hubrouter.h.new
mv include/hubrouter.h.new include/hubrouter.h
