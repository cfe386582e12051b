#!/bin/sh
# The reference and hubrouter with MiniLM: run.sh [WORK]. Takes some minutes, installs PyTorch into
# WORK (default: target/reference) once, and is no part of tests/run.sh.
#
# Tests the Python programs; makes bundles of the bundled encoder, router and a learning run in both
# profiles, verifies them; exports the bundled generation and loads it with PEFT and
# sentence-transformers. $HUBROUTER: the program (default: target/release/hubrouter).
set -eu
cd "$(dirname "$0")/../.."
work=${1:-target/reference}
hubrouter=${HUBROUTER:-target/release/hubrouter}
here=tests/reference
mkdir -p "$work"

if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv"
fi
python=$work/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check -r $here/requirements.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu

"$python" $here/test_reference.py

minilm=weights/all-MiniLM-L6-v2
learn="--set rank=8 --set alpha=16 --set lr_lora=5e-4 --set lr_w=3e-4 --set lr_e=2e-3"
rm -rf "$work/minilm" "$work/minilm-reference" "$work/export"
"$python" $here/parity.py router --encoder $minilm --router weights/cmrbench --to "$work/minilm" \
    --without-encoder --without-router
"$python" $here/parity.py learning --encoder $minilm --to "$work/minilm" --without-encoder $learn
"$python" $here/parity.py learning --encoder $minilm --to "$work/minilm-reference" \
    --without-encoder --profile reference --set experiences=1 $learn
"$hubrouter" verify "$work/minilm" --encoder $minilm --router weights/cmrbench
"$hubrouter" verify "$work/minilm-reference" --encoder $minilm

"$hubrouter" generation export --router weights/cmrbench --to "$work/export"
"$python" $here/check_export.py "$work/export"
echo "reference: everything passed"
