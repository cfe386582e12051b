"""Bulk routing beside the command: arrow_bulk.py FOLDER ROUNDS.

Each round routes the same prompts with the command and in every engine, one after the other. An
engine's rate is from its first batch's beginning to its last batch's end, since the start of a
cluster is no matter of routing; the wall time of the whole call is shown beside it.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datafusion
import polars as pl
import pyarrow as pa

import hubrouter

FOLDER, ROUNDS = Path(sys.argv[1]), int(sys.argv[2])
COUNT, BATCH, BAR = 10_000, 500, 0.9

ASKS = ["Translate", "Summarise", "Explain", "Find the names in", "Write a reply to", "Transcribe"]
THINGS = ["this letter", "the recording", "a contract", "the photo of a street", "my notes"]
WORDS = (
    "about the weather in spring with many details of rivers birds houses and a table of numbers "
    "that somebody wrote by hand while waiting for the train to a town near the sea where music"
).split()


def prompts() -> list[str]:
    """Prompts of 6 to 40 words, the same every time."""
    draw = random.Random(7)
    ask = lambda: f"{draw.choice(ASKS)} {draw.choice(THINGS)}"  # noqa: E731
    more = lambda: " ".join(draw.choices(WORDS, k=draw.randint(3, 36)))  # noqa: E731
    return [f"{ask()} {more()}, {n}." for n in range(COUNT)]


PROMPTS = prompts()
SPANS: list[tuple[float, float]] = []


def command() -> tuple[list[str], float, float]:
    """The command with its defaults for a file, on two threads."""
    lines, routes = FOLDER / "prompts.jsonl", FOLDER / "routes.jsonl"
    lines.write_text("".join(json.dumps({"prompt": p, "top": 1}) + "\n" for p in PROMPTS))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hubrouter", "route", "--device", "cpu", "--threads", "2",
         "--top", "1", "--input", str(lines), "--output", str(routes)],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    took = time.perf_counter() - began
    answers = [json.loads(line) for line in routes.read_text().splitlines()]
    return [answer["ranked"][0]["model"] for answer in answers], took, took


ROUTER = hubrouter.Router(device="cpu", threads=2)


def models(column: object) -> hubrouter.ArrowColumn:
    began = time.time()
    routes = ROUTER.route_arrow(column)
    SPANS.append((began, time.time()))
    assert not routes.failed
    return routes.column("model")


def spanned(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """Its answers, seconds from the first batch to the last, and of all."""
    SPANS.clear()
    began = time.time()
    found = work()
    all_of_it = time.time() - began
    return found, max(e for _, e in SPANS) - min(b for b, _ in SPANS), all_of_it


def in_datafusion() -> list[str]:
    context = datafusion.SessionContext(
        datafusion.SessionConfig().with_target_partitions(1).with_batch_size(BATCH)
    )
    context.from_arrow(pa.table({"prompt": PROMPTS}), name="asks")
    route = datafusion.udf(
        lambda column: pa.array(models(column)), [pa.string()], pa.string(), "immutable", "route"
    )
    context.register_udf(route)
    return context.sql("SELECT route(prompt) AS model FROM asks").to_arrow_table()["model"].to_pylist()


def in_polars() -> list[str]:
    frame = pl.DataFrame({"prompt": PROMPTS})
    route = pl.col("prompt").map_batches(lambda p: pl.Series(models(p)), return_dtype=pl.String)
    return frame.select(model=route)["model"].to_list()


class Route:
    """An actor: it opens a router once."""

    def __init__(self) -> None:
        self.router = hubrouter.Router(device="cpu", threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.time()
        routes = self.router.route_arrow(batch)
        assert not routes.failed
        batch = batch.append_column("model", pa.array(routes.column("model")))
        for name, value in (("began", began), ("ended", time.time())):
            batch = batch.append_column(name, pa.array([value] * len(batch)))
        return batch


def in_ray() -> list[str]:
    import ray

    table = pa.table({"n": range(COUNT), "prompt": PROMPTS})
    dataset = ray.data.from_arrow([table.slice(n, BATCH) for n in range(0, COUNT, BATCH)])
    pool = ray.data.ActorPoolStrategy(size=2)
    done = dataset.map_batches(
        Route, batch_format="pyarrow", batch_size=BATCH, compute=pool, num_cpus=1
    )
    rows = pa.concat_tables(ray.get(done.to_arrow_refs())).sort_by("n")
    SPANS.extend(zip(rows["began"].to_pylist(), rows["ended"].to_pylist()))
    return rows["model"].to_pylist()


def main() -> int:
    import ray

    os.environ["PYTHONWARNINGS"] = "ignore"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ROUTER.warm_up()
    engines = {"Ray Data": in_ray, "DataFusion": in_datafusion, "Polars": in_polars}
    rates: dict[str, list[float]] = {"command": [], **{name: [] for name in engines}}
    walls: dict[str, list[float]] = {"command": [], **{name: [] for name in engines}}
    for _ in range(ROUNDS):
        want, took, wall = command()
        rates["command"].append(COUNT / took)
        walls["command"].append(wall)
        for name, work in engines.items():
            found, took, wall = spanned(work)
            different = sum(a != b for a, b in zip(found, want, strict=True))
            if different:
                print(f"{name}: {different} of {COUNT} answers are not the command's")
                return 1
            rates[name].append(COUNT / took)
            walls[name].append(wall)
    ray.shutdown()
    short = []
    for name, values in rates.items():
        # Of each round beside the command in the same round.
        ratio = statistics.median(v / c for v, c in zip(values, rates["command"]))
        wall = statistics.median(walls[name])
        rate = statistics.median(values)
        print(f"{name:12} {rate:7.0f} prompts/s, {ratio:.2f} of the command; {wall:.1f} s in all")
        if ratio < BAR:
            short.append(name)
    if short:
        print(f"expected at least {BAR} of the command's rate; below: {', '.join(short)}")
    return int(bool(short))


sys.exit(main())
