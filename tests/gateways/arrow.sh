#!/usr/bin/env bash
# 10,000 prompts through Ray Data, DataFusion and Polars, beside the command itself
source "$(dirname "$0")/common.sh"
source tests/gateways/wheel.bash

install python3 python3-venv
python=$(wheel_python arrow arrow.txt)

step "10,000 prompts, two cores"
# Ray keeps its sockets there, whose paths are short.
export RAY_TMPDIR=/tmp RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 RAY_USAGE_STATS_ENABLED=0
"$python" tests/gateways/arrow_bulk.py "$work" "${HUBROUTER_ARROW_ROUNDS:-3}"
