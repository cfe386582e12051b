#!/usr/bin/env bash
# The wheel, installed into a fresh environment and tested there. HUBROUTER_WHEEL: one that is built.
set -euo pipefail
cd "$(dirname "$0")/../.."

step() { printf '\n== %s\n' "$*"; }

step "the wheel"
wheel=${HUBROUTER_WHEEL:-$(./bindings/python/wheel.sh dev)}
ls -l "$wheel"

step "a fresh environment"
venv=target/python/test
rm -rf $venv
python3 -m venv $venv
$venv/bin/pip install --quiet --disable-pip-version-check "$wheel"
# It routes with nothing else installed, from a folder that has no weights.
python=$PWD/$venv/bin/python
(cd / && "$python" -c 'import hubrouter
print(hubrouter.Router().route("Which bird is singing in this recording?"))')
$venv/bin/pip install --quiet --disable-pip-version-check --require-hashes \
  -r bindings/python/tests/requirements.txt

step "tests"
cd bindings/python
"$python" -m pytest -q -p no:cacheprovider tests "$@"

step "examples in docstrings"
"$python" tests/examples.py

step "types"
"$python" -m mypy --cache-dir=/dev/null python/hubrouter/_native.pyi \
  python/hubrouter/litellm.py backend.py tests examples
# PyO3 writes the list of what a module has.
"$python" -m mypy.stubtest --concise --allowlist <(echo 'hubrouter._native.__all__') \
  hubrouter._native
