#!/usr/bin/env bash
# Long fuzzing: every boundary for SECONDS, then again with the next seed, ROUNDS times. Goes on where
# a boundary fails; failing cases are kept in $HUBROUTER_FUZZ_OUT. Says what CPU time it took.
# Usage: tests/hostile/run.sh [SECONDS] [ROUNDS] [FIRST SEED]
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds="${1:-150}" rounds="${2:-6}" first="${3:-1}"
export RUST_BACKTRACE=0 HUBROUTER_FUZZ_SECONDS="$seconds"
boundaries=(stores manifests safetensors bundles exchange lines requests options settings parity)
cargo test --locked --test hostile --no-run
for ((seed = first; seed < first + rounds; seed++)); do
  for boundary in "${boundaries[@]}"; do
    HUBROUTER_FUZZ_SEED="$seed" nice -n 19 \
      cargo test --quiet --locked --test hostile -- --exact "$boundary" --nocapture || true
    echo "seed $seed, $boundary: CPU so far, shell and then children, user and then system:"
    times
  done
done
