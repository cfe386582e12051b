"""Load on the axum gateway: plain, routed with swaps, and one connection at a time."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request

TASKS = [
    "Which bird is singing in this recording",
    "Write down what is said in this meeting",
    "Translate this letter into German",
    "Summarise this article in three sentences",
    "Continue this story about a lighthouse",
    "Who is speaking in this interview",
    "Answer this question about the treaty",
    "Describe the sounds in this clip",
]
MATTERS = ["at dawn", "from the archive", "for a student", "in plain words", "with a title",
           "for my report", "as short as possible", "once more"]
ROUNDS = 10
PROMPTS = [f"{task} {matter}" for task in TASKS for matter in MATTERS]


def call(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data=data)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def chat(text):
    return {"model": "auto", "messages": [{"role": "user", "content": text}]}


class Gateway:
    def __init__(self, options):
        self.options = options
        self.names = [call(options.admin, "/admin/generation")["generation"]]

    def swap(self):
        """To the parent, or back to the child."""
        served = call(self.options.admin, "/admin/generation")["generation"]
        if served == self.names[0]:
            return call(self.options.admin, "/admin/rollback", {})["generation"]
        current = pathlib.Path(self.options.store) / "current"
        new = current.with_suffix(".new")
        new.write_text(self.names[0] + "\n")
        new.rename(current)
        return call(self.options.admin, "/admin/reload", {})["generation"]

    def expectations(self):
        answers = [call(self.options.clients, "/v1/route", chat(prompt)) for prompt in PROMPTS]
        return [answer["would_send"]["model"] for answer in answers]

    def resident(self):
        status = pathlib.Path(f"/proc/{self.options.process}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.options.process}/stat").read_text()
        user, system = fields.rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def layer_time(self, cached):
        """Bound in seconds -> share of the routes that the layer answered within it."""
        with urllib.request.urlopen(f"http://{self.options.admin}/metrics", timeout=60) as text:
            lines = text.read().decode().splitlines()
        name = 'hubrouter_route_duration_seconds_bucket{le="'
        mine = [line[len(name):] for line in lines if line.startswith(name)]
        mine = [line.split('"', 1) for line in mine if f'cached="{cached}"' in line]
        counts = {float(bound): int(rest.rsplit(" ", 1)[1]) for bound, rest in mine}
        return {bound: count / counts[float("inf")] for bound, count in counts.items()}


def lua(value):
    if isinstance(value, dict):
        return "{" + ",".join(f"[{json.dumps(k)}]={lua(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(lua, value)) + "}"
    return json.dumps(value)


def load(options, mode, connections, seconds, run):
    environment = dict(os.environ, LOAD_MODE=mode, LOAD_RUN=str(run),
                       LOAD_TABLE=f"{options.work}/table.lua")
    threads = min(2, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
               "-s", "tests/gateways/axum.lua", f"http://{options.clients}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, result = done.stdout.rsplit("RESULT ", 1)
    result = json.loads(result)
    if result["bad"] or result["errors"]:
        sys.exit(f"{mode}: failed or mixed answers: {result}\n{before}")
    return result


def show(name, result):
    rate = result["requests"] / result["seconds"]
    print(f"{name:<34} {result['requests']:>8} {rate:>9.0f} {result['p50_us'] / 1000:>9.2f} "
          f"{result['p99_us'] / 1000:>9.2f}", flush=True)


def one_connection(options, gateway):
    """One request at a time. The machine may be busy with others, so that many short rounds take
    turns: the quietest round of each kind counts, and the gateway's own CPU time beside it."""
    rounds = {"plain": [], "hit": [], "miss": []}
    load(options, "hit", 1, 2, 3)
    for turn in range(ROUNDS):
        for mode, results in rounds.items():
            before = gateway.cpu_seconds()
            result = load(options, mode, 1, 1, 10 + turn)
            result["cpu_us"] = 1e6 * (gateway.cpu_seconds() - before) / result["requests"]
            results.append(result)
    quiet = {}
    for mode, results in rounds.items():
        quiet[mode] = {key: min(result[key] for result in results) for key in ("p50_us", "p99_us")}
        requests = sum(result["requests"] for result in results)
        cpu = sum(result["cpu_us"] * result["requests"] for result in results)
        quiet[mode]["cpu_us"] = cpu / requests
        seconds = sum(result["seconds"] for result in results)
        show(f"{mode}, one connection", {"requests": requests, "seconds": seconds} | quiet[mode])
    for mode in ("hit", "miss"):
        p50, p99, cpu = (quiet[mode][key] - quiet["plain"][key] for key in quiet[mode])
        print(f"a {mode} adds {p50:.0f} us p50, {p99:.0f} us p99 (quietest of {ROUNDS} rounds), "
              f"{cpu:.0f} us of CPU")
    within = gateway.layer_time("true")
    print(f"the layer answered {within[1e-4]:.1%} of the hits within 100 us, "
          f"{within[5e-5]:.1%} within 50")
    adds = quiet["hit"]["p50_us"] - quiet["plain"]["p50_us"]
    assert adds < 100, f"a hit of the cache adds {adds} us"
    assert within[1e-4] > 0.5, within


def main():
    parser = argparse.ArgumentParser()
    for name in ("clients", "admin", "process", "store", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    options = parser.parse_args()
    gateway = Gateway(options)

    # The right answer to each prompt by each generation, asked before there is load.
    expected = {gateway.names[0]: gateway.expectations()}
    gateway.names.append(gateway.swap())
    expected[gateway.names[1]] = gateway.expectations()
    assert gateway.swap() == gateway.names[0]
    differ = sum(a != b for a, b in zip(*expected.values()))
    assert differ > 5, f"the generations differ in {differ} answers: swaps would not show"
    served = call(options.clients, "/v1/models")["data"]
    upstream_of = {m["id"]: m["owned_by"] for m in served if m["owned_by"] != "hubrouter"}
    with open(f"{options.work}/table.lua", "w", encoding="utf-8") as table:
        for name, value in [("prompts", PROMPTS), ("models", sorted(upstream_of)),
                            ("upstream_of", upstream_of), ("expected", expected)]:
            table.write(f"{name}={lua(value)}\n")
    print(f"{len(PROMPTS)} prompts, {differ} with another model after a swap")

    print(f"{'':<34} {'requests':>8} {'per s':>9} {'p50 ms':>9} {'p99 ms':>9}")
    half = max(5, options.seconds // 4)
    show("plain, 64 connections", load(options, "plain", 64, half, 0))
    over = threading.Event()
    swaps, memory, failures = [], [], []

    def swap_every_second():
        began, turn = time.monotonic(), 0
        while True:
            # The next whole second, also after a swap that took longer than one.
            turn = max(turn + 1, int(time.monotonic() - began) + 1)
            if over.wait(max(0, began + turn - time.monotonic())):
                return
            try:
                swaps.append(gateway.swap())
                memory.append(gateway.resident())
            except Exception as error:  # reported below, and the run fails
                failures.append(error)

    swapping = threading.Thread(target=swap_every_second)
    swapping.start()
    mixed = load(options, "mixed", 64, options.seconds, 1)
    over.set()
    swapping.join()
    show("routed, 64 connections, swaps", mixed)
    assert not failures, failures
    # On a busy machine a swap may take longer than a second.
    assert len(swaps) >= 0.5 * options.seconds, f"{len(swaps)} swaps"
    assert mixed["generations"] == 2, mixed
    third = max(1, len(memory) // 3)
    early, late = max(memory[third:2 * third]), max(memory[-third:])
    print(f"{len(swaps)} swaps; memory: {memory[0]:.0f} MiB first, at most {early:.0f} in the "
          f"second third and {late:.0f} in the last")
    # Sooner the allocator has not reached its plateau.
    assert late <= 1.1 * early or options.seconds < 45, memory
    show("plain again, 64 connections", load(options, "plain", 64, half, 2))

    while call(options.admin, "/admin/generation")["generation"] != gateway.names[0]:
        gateway.swap()
    one_connection(options, gateway)


main()
