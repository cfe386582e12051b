#!/usr/bin/env bash
# LiteLLM's proxy with the plug-ins of hubrouter.litellm, and OpenAI's client
source "$(dirname "$0")/common.sh"
source tests/gateways/wheel.bash

install curl python3 python3-venv
python=$(wheel_python litellm litellm.txt)

step "servers"
read -r birds letters proxy <<<"$(ports 3)"
start birds python3 tests/gateways/upstream.py "$birds" birds
start letters python3 tests/gateways/upstream.py "$letters" letters
cp bindings/python/examples/litellm/{config.yaml,routing.py} "$work/"
key=sk-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
# Nothing of this shell's environment: a proxy gets no secrets to lose.
start litellm env -i PATH="$PATH" HOME="$work" LITELLM_LOCAL_MODEL_COST_MAP=True \
  LITELLM_MASTER_KEY="$key" LITELLM_TELEMETRY=False NO_COLOR=1 \
  BIRDS_URL="http://127.0.0.1:$birds/v1" BIRDS_KEY=none \
  LETTERS_URL="http://127.0.0.1:$letters/v1" LETTERS_KEY=none \
  "$python" -c 'from litellm import run_server; run_server()' \
  --config "$work/config.yaml" --host 127.0.0.1 --port "$proxy"
# It takes 10 s on a machine of its own, and minutes on a busy one.
alive=http://127.0.0.1:$proxy/health/liveliness
for _ in 1 2 3 4 5 6; do until_ok "$alive" 2>/dev/null && break; done
until_ok "$alive"

step "requests"
"$python" tests/gateways/litellm_client.py "http://127.0.0.1:$proxy/v1" "$key" \
  "http://127.0.0.1:$birds/v1" "${HUBROUTER_LITELLM_REQUESTS:-1000}"
if grep -i traceback "$work/litellm.log"; then exit 1; fi
# The one without text, and no other.
[ "$(grep -c 'not routed' "$work/litellm.log")" = 1 ]
