#!/usr/bin/env bash
# The axum gateway under load: four upstreams, 64 connections, a generation swapped every second.
#
# HUBROUTER_LOAD_SECONDS: length of the load with swaps, 60. HUBROUTER_PROFILE: `release` or `dev`.
source "$(dirname "$0")/common.sh"
install wrk curl python3

profile=${HUBROUTER_PROFILE:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug
step "building ($profile)"
cargo build --locked --profile "$profile" -p hubrouter-gateway --bins --example mock_upstreams

step "a store with two generations"
mkdir "$work/store"
cp -r weights/cmrbench/g* weights/cmrbench/current tests/fixtures/zero-shot/g* "$work/store/"

read -r clients admin a b c d <<<"$(ports 6)"
start mock "target/$folder/examples/mock_upstreams" \
  "a=127.0.0.1:$a" "b=127.0.0.1:$b" "c=127.0.0.1:$c" "d=127.0.0.1:$d"
upstream() {
  local name=$1 port=$2
  shift 2
  printf '\n[[upstreams]]\nname = "%s"\nurl = "http://127.0.0.1:%s"\napis = ["openai_chat"]\n' \
    "$name" "$port"
  printf 'models = ['
  printf '"%s", ' "$@"
  printf ']\n'
}
{
  cat <<TOML
listen = "127.0.0.1:$clients"
admin_listen = "127.0.0.1:$admin"
store = "$work/store"
encoder = "$root/weights/all-MiniLM-L6-v2"

[routing]
# Swaps come through the administrator's address.
watch_seconds = 0.0
TOML
  upstream a "$a" DBD-research-group/AudioProtoPNet-20-BirdSet-XCL openai/whisper-small
  upstream b "$b" google/flan-t5-xxl gpt2
  upstream c "$c" nvidia/audio-flamingo-3-hf openai/whisper-base
  upstream d "$d" google/flan-t5-base facebook/bart-large-cnn
} >"$work/gateway.toml"
start gateway "target/$folder/hubrouter-gateway" "$work/gateway.toml"
gateway=$last
until_ok "http://127.0.0.1:$clients/readyz"

python3 tests/gateways/axum.py --clients "127.0.0.1:$clients" --admin "127.0.0.1:$admin" \
  --process "$gateway" --store "$work/store" --work "$work" \
  --seconds "${HUBROUTER_LOAD_SECONDS:-60}"

step "the gateway ends when it is told to"
kill "$gateway"
for _ in $(seq 100); do
  kill -0 "$gateway" 2>/dev/null || exit 0
  sleep 0.1
done
echo "the gateway did not end" >&2
exit 1
