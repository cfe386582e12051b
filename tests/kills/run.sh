#!/usr/bin/env bash
# 1,000 kills of every command that writes, half of them at a chosen system call (tests/kills_all.rs).
# Installs strace on Debian and Ubuntu; a process-id namespace for each run wants root.
# Usage: tests/kills/run.sh [KILLS]; HUBROUTER_FUZZ_SEED draws other moments.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v strace >/dev/null; then
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace >/dev/null
fi
unshare --pid --fork true 2>/dev/null || echo "no process-id namespace: the next process has another id" >&2

HUBROUTER_KILLS="${1:-1000}" exec cargo test --locked --test kills_all -- --nocapture
