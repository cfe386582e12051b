# For the stages: `source common.sh` first. Everything is beneath $work, which goes at the end, as
# does every process that `start` began.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
work=$(mktemp -d)
started=()

step() { printf '\n== %s\n' "$*"; }

finish() {
  local code=$?
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
  if [ "$code" != 0 ] && [ -d "$work" ]; then
    for log in "$work"/*.log; do
      if [ -f "$log" ]; then echo "-- the end of $(basename "$log")" && tail -n 20 "$log"; fi
    done >&2
  fi
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND ..: in the background, its output in $work/NAME.log; $last is its process.
start() {
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 &
  last=$!
  started+=("$last")
}

# install PACKAGE ..: those of apt that are missing.
install() {
  local missing=()
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} != 0 ] || return 0
  step "installing ${missing[*]}"
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# ports N: so many free ports of this machine.
ports() {
  python3 - "$1" <<'PY'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held))
PY
}

# until_ok URL: waits until it answers with success, at most a minute.
until_ok() {
  for _ in $(seq 600); do
    if curl -sf -o /dev/null "$1"; then return; fi
    sleep 0.1
  done
  echo "$1 does not answer" >&2
  return 1
}
