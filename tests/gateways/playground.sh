#!/usr/bin/env bash
# The playground in headless Chromium, 400 and 1280 pixels wide, light and dark, by keyboard.
#
# HUBROUTER_PROFILE: `release` or `dev`, in which the gateway is built. HUBROUTER_SCREENSHOTS: a
# folder for pictures.
source "$(dirname "$0")/common.sh"
install chromium python3 python3-venv curl

venv=target/gateways/playwright
if ! "$venv/bin/python" -c 'import playwright' 2>/dev/null; then
  step "a venv with playwright"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check playwright==1.55.0
fi

profile=${HUBROUTER_PROFILE:-dev}
folder=$profile
[ "$profile" = dev ] && folder=debug
step "building ($profile)"
cargo build --locked --profile "$profile" -p hubrouter-gateway --bins --example mock_upstreams

read -r clients admin upstream keyed keyed_admin <<<"$(ports 5)"
start mock "target/$folder/examples/mock_upstreams" "mock=127.0.0.1:$upstream"
printf 'where = "not name = gpt2"\n' >"$work/policy.toml"
config() {
  cat <<TOML
listen = "127.0.0.1:$1"
admin_listen = "127.0.0.1:$2"
store = "$root/weights/cmrbench"
policy = "policy.toml"
$3

[[upstreams]]
name = "mock"
url = "http://127.0.0.1:$upstream"
apis = ["openai_chat", "anthropic_messages"]
models = [
  { name = "birdnet", model = "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL" },
  "nvidia/audio-flamingo-3-hf", "openai/whisper-small", "google/flan-t5-xxl", "gpt2",
]
TOML
}
config "$clients" "$admin" "" >"$work/open.toml"
config "$keyed" "$keyed_admin" 'client_key_env = "PLAYGROUND_KEY"' >"$work/keyed.toml"
start open "target/$folder/hubrouter-gateway" "$work/open.toml"
start keyed env PLAYGROUND_KEY=secret "target/$folder/hubrouter-gateway" "$work/keyed.toml"
until_ok "http://127.0.0.1:$clients/readyz"
until_ok "http://127.0.0.1:$keyed/readyz"

step "the page"
"$venv/bin/python" tests/gateways/playground.py "http://127.0.0.1:$clients" \
  "http://127.0.0.1:$keyed" "$(command -v chromium)" "${HUBROUTER_SCREENSHOTS:-$work}"
