#!/usr/bin/env bash
# Everything to know of one card within eight minutes: hubrouter by examples/card.rs, and beside it in
# the same run PyTorch with CUDA, as it comes and with CUDA graphs in f32 and f16, and burn's wgpu backend.
# One JSON comes out, which benches/README.md is made from.
#
#   benches/card.sh [--device NAME] [--out FOLDER] [--card BINARY] [--burn BINARY] [--quick]
#
# NAME: part of an adapter's name, or `gpu` (the default). BINARY: examples/card.rs as it was built
# elsewhere, maybe packed: on a machine without cargo,
#   cargo build --release --example card && strip target/release/examples/card && xz target/release/examples/card
# The other BINARY: benches/peers/burn, in the same way. Without it burn is left out.
# --quick: small counts, to see on a software adapter that all of it runs; its times mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

# Seconds for hubrouter, PyTorch, its learning, and burn: 470 of the eight minutes.
limits=(250 100 60 60)
device=gpu out="${OUT:-target/card}" card="" burn="" quick=()
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device="$2"; shift 2 ;;
    --out) out="$2"; shift 2 ;;
    --card) card="$2"; shift 2 ;;
    --burn) burn="$2"; shift 2 ;;
    --quick) quick=(quick) limits=(1800 600 600 1200); shift ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
mkdir -p "$out"
# Those of an earlier run are none of this one.
rm -f "$out"/{hubrouter,pytorch,pytorch-learning,burn}.json
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"
began=$SECONDS
say() { printf '%4d s  %s\n' "$((SECONDS - began))" "$*"; }

if [ -z "$card" ]; then
  cargo build --locked --release --example card || exit 1
  card=target/release/examples/card
fi
# unpacked NAME FILE: the path of the program that FILE is, or holds.
unpacked() {
  case "$2" in
    *.xz) xz -dc "$2" > "$out/$1" && chmod +x "$out/$1" && echo "$out/$1" ;;
    *) echo "$2" ;;
  esac
}
card=$(unpacked card "$card") || exit 1

say "machine"
{
  date -u +%FT%TZ
  uname -srm
  nproc
  uptime
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit \
    --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
} > "$out/machine.txt"
cat "$out/machine.txt"

say "hubrouter on $device"
timeout "${limits[0]}" "$card" "$device" "$out/hubrouter.json" "${quick[@]}" || say "hubrouter ended with $?"

say "PyTorch"
if python3 -c 'import torch, tokenizers, transformers' 2>/dev/null; then
  timeout "${limits[1]}" python3 benches/peers/card.py --out "$out/pytorch.json" "${quick[@]/#/--}" ||
    say "PyTorch ended with $?"
  if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    timeout "${limits[2]}" python3 benches/peers/learn.py --device cuda --steps 20 --json \
      > "$out/pytorch-learning.json" || say "PyTorch's learning ended with $?"
  fi
else
  echo '{"missing": "no PyTorch"}' > "$out/pytorch.json"
  say "no PyTorch here"
fi

if [ -n "$burn" ]; then
  say "burn"
  [[ $device = *llvmpipe* ]] && software=(--software) || software=()
  burn=$(unpacked burn "$burn") || exit 1
  timeout "${limits[3]}" python3 benches/peers/card.py --out "$out/burn.json" --burn "$burn" \
    "${software[@]}" "${quick[@]/#/--}" || say "burn ended with $?"
fi

python3 benches/peers/card.py --join "$out" > "$out/card.json" && say "$out/card.json"
