#!/usr/bin/env bash
# Metrics, dashboard and alerts of the axum gateway against promtool and a real Prometheus.
#
# HUBROUTER_PROFILE: `release` or `dev`, in which the gateway is built.
source "$(dirname "$0")/common.sh"
install prometheus curl python3

profile=${HUBROUTER_PROFILE:-dev}
folder=$profile
[ "$profile" = dev ] && folder=debug
monitoring=examples/gateway/monitoring

step "the rules, and their tests"
promtool check rules "$monitoring/alerts.yml"
cp "$monitoring/alerts.yml" tests/gateways/alerts_test.yml "$work"
(cd "$work" && promtool test rules alerts_test.yml)

step "building ($profile)"
cargo build --locked --profile "$profile" -p hubrouter-gateway --bins --example mock_upstreams

read -r clients admin upstream server <<<"$(ports 4)"
start mock "target/$folder/examples/mock_upstreams" "mock=127.0.0.1:$upstream"
cat >"$work/gateway.toml" <<TOML
listen = "127.0.0.1:$clients"
admin_listen = "127.0.0.1:$admin"
store = "$root/weights/cmrbench"

[[upstreams]]
name = "mock"
url = "http://127.0.0.1:$upstream"
apis = ["openai_chat", "anthropic_messages"]
models = ["google/flan-t5-xxl", "openai/whisper-small"]
TOML
start gateway "target/$folder/hubrouter-gateway" "$work/gateway.toml"
until_ok "http://127.0.0.1:$admin/readyz"

step "the text of /metrics"
ask() {
  curl -sf -o /dev/null "http://127.0.0.1:$clients/v1/chat/completions" \
    -d "{\"model\": \"$1\", \"messages\": [{\"role\": \"user\", \"content\": \"$2\"}]}"
}
ask auto "Translate this letter."
ask auto "Translate this letter."
ask google/flan-t5-xxl "Who is speaking?"
curl -sf "http://127.0.0.1:$admin/metrics" >"$work/metrics.txt"
promtool check metrics <"$work/metrics.txt"

step "every expression of the dashboard and of the rules has an answer from Prometheus"
mkdir "$work/data"
cat >"$work/prometheus.yml" <<YAML
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [$work/alerts.yml]
scrape_configs:
  - job_name: hubrouter-gateway
    static_configs: [{targets: ["127.0.0.1:$admin"]}]
YAML
start prometheus prometheus --config.file "$work/prometheus.yml" \
  --storage.tsdb.path "$work/data" --web.listen-address "127.0.0.1:$server"
until_ok "http://127.0.0.1:$server/-/ready"
for n in $(seq 12); do
  ask auto "Translate this letter, take $n."
  ask auto "Translate this letter."
  sleep 0.5
done
python3 tests/gateways/monitoring.py "http://127.0.0.1:$server" "$work/metrics.txt" "$monitoring"
