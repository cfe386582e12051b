#!/usr/bin/env bash
# nginx with the C library through LuaJIT's FFI, as examples/nginx has it
#
# HUBROUTER_CAPI_PREFIX: where the library is installed already. HUBROUTER_PROFILE: `release` or `dev`.
source "$(dirname "$0")/common.sh"
install curl python3 wrk nginx libnginx-mod-http-lua

prefix=${HUBROUTER_CAPI_PREFIX:-$work/prefix}
[ -n "${HUBROUTER_CAPI_PREFIX:-}" ] || ./include/install.sh "$prefix"

step "a store with two generations"
mkdir "$work/store"
cp -r weights/cmrbench/g* weights/cmrbench/current tests/fixtures/zero-shot/g* "$work/store/"

serve() {
  echo "$1" >"$work/store/current.new"
  mv "$work/store/current.new" "$work/store/current"
}

# serve_with NAME PORT BIRDS SPEECH LETTERS: nginx with the configuration that users copy, and these
# ports and paths; $last is its process.
serve_with() {
  local folder=$work/$1 options
  options="{\"device\": \"cpu\", \"threads\": 1, \"cache_bytes\": 67108864,"
  options="$options \"encoder\": \"$root/weights/all-MiniLM-L6-v2\"}"
  mkdir -p "$folder/temporary"
  cp examples/nginx/hubrouter.lua "$folder/"
  sed -e "s/127.0.0.1:10001/127.0.0.1:$2/; s/127.0.0.1:8001/127.0.0.1:$3/" \
    -e "s/127.0.0.1:8002/127.0.0.1:$4/; s/127.0.0.1:8003/127.0.0.1:$5/" \
    -e "s#load(\"/usr/local\")#load(\"$prefix\")#" \
    -e "s#\"../../weights/cmrbench\"#\"$work/store\"#" \
    -e "s#^\( *\)store = .*#&\n\1options = [[$options]],#" \
    -e "s/worker_processes auto/worker_processes 2/" examples/nginx/nginx.conf >"$folder/nginx.conf"
  for kind in client_body proxy fastcgi uwsgi scgi; do
    sed -i "s#^http {#&\n  ${kind}_temp_path $folder/temporary/$kind;#" "$folder/nginx.conf"
  done
  # The folder is this user's alone.
  local user=()
  [ "$(id -u)" != 0 ] || user=(-g "user root;")
  start "$1" nginx -p "$folder/" -c nginx.conf "${user[@]}"
  until_ok "http://127.0.0.1:$2/"
}

step "nginx"
read -r port birds speech letters quick answers <<<"$(ports 6)"
start upstreams python3 tests/gateways/echo_upstreams.py \
  "birds=$birds" "speech=$speech" "letters=$letters"
serve_with nginx "$port" "$birds" "$speech" "$letters"
nginx=$last
python3 tests/gateways/nginx.py "$port"

step "load, and a generation swapped every second"
seconds=${HUBROUTER_LOAD_SECONDS:-60}
KIND=load wrk -t2 -c16 -d"${seconds}s" --timeout 10s -s tests/gateways/chat_load.lua \
  "http://127.0.0.1:$port" >"$work/wrk.log" 2>&1 &
load=$!
started+=("$load")
swaps=0
while kill -0 "$load" 2>/dev/null; do
  sleep 1
  if [ $((swaps % 2)) = 0 ]; then serve "$(cat tests/fixtures/zero-shot/current)"
  else serve "$(cat weights/cmrbench/current)"; fi
  swaps=$((swaps + 1))
done
wait "$load"
grep -E '^RESULT|^one of' "$work/wrk.log"
grep -q '^RESULT.* failed=0 ' "$work/wrk.log"
echo "swaps: $swaps"
# One was sent that cannot be.
[ "$(grep -c 'not routed' "$work/nginx.log")" = 1 ]
if grep -E '\[(alert|emerg|crit)\]' "$work/nginx.log"; then exit 1; fi

step "a hit of the cache beside nginx alone, one connection, median of five p50"
mkdir "$work/answers"
cat >"$work/answers/nginx.conf" <<CONF
daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  server {
    listen 127.0.0.1:$answers;
    keepalive_requests 1000000000;
    location / { return 200 "{}"; }
  }
}
CONF
start answers nginx -p "$work/answers/" -c nginx.conf
until_ok "http://127.0.0.1:$answers/"
serve_with quick "$quick" "$answers" "$answers" "$answers"
quickly=$last
for _ in 1 2 3 4 5; do
  for path in /v1/chat/completions /v1/plain; do
    KIND=same CHAT_PATH=$path wrk -t1 -c1 -d2s -s tests/gateways/chat_load.lua \
      "http://127.0.0.1:$quick" | sed -n 's/^RESULT.*p50_us=\([^ ]*\).*/\1/p' \
      >>"$work/p50-$(basename "$path").txt"
  done
done
median() { sort -n "$1" | sed -n 3p; }
echo "routed $(median "$work/p50-completions.txt") us, plain $(median "$work/p50-plain.txt") us"

step "nginx ends when it is told to"
for process in "$quickly" "$nginx"; do
  kill "$process"
  wait "$process"
done
