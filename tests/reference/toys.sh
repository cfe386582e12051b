#!/bin/sh
# Makes the parity bundles in tests/fixtures: toys.sh [PYTHON]. A second run on the same machine gives
# the same bytes. $HUBROUTER is the program that makes the toy's encoder bundle and store.
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python3}
hubrouter=${HUBROUTER:-target/release/hubrouter}
fixtures=tests/fixtures
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

parity() {
    part=$1 bundle=$2
    shift 2
    "$python" tests/reference/parity.py "$part" --to "$fixtures/$bundle" "$@"
}

rm -rf "$fixtures"/parity-toy "$fixtures"/parity-toy-reference "$fixtures"/parity-toy-xlm-roberta \
    "$fixtures"/parity-toy-roberta

# A store with a trained encoder, a memory, and models that no prompt was learned for.
"$hubrouter" encoder import --from "$fixtures/toy-bert" --to "$work/toy-bert" --json > "$work/import"
"$python" tests/reference/data.py --to "$work"
"$hubrouter" hub build --models "$work/models.jsonl" --encoder "$work/toy-bert" --out "$work/store" \
    --device cpu --json > "$work/build"
"$hubrouter" learn --router "$work/store" --encoder "$work/toy-bert" --examples "$work/examples.jsonl" \
    --recipe carve --set epochs=2 --set lora.r=2 --set lora.alpha=4 --set hold_out=false \
    --set replay.privacy=hashes --device cpu --threads 1 --json > "$work/learn"

parity router parity-toy --encoder "$work/toy-bert" --router "$work/store"
parity learning parity-toy --encoder "$work/toy-bert"
parity learning parity-toy-reference --encoder "$fixtures/toy-bert" --profile reference --set experiences=1
parity encoder parity-toy-xlm-roberta --encoder "$fixtures/toy-xlm-roberta"
"$python" tests/reference/toy_roberta.py "$work/toy-roberta"
parity encoder parity-toy-roberta --encoder "$work/toy-roberta"
