#!/usr/bin/env python3
"""PyTorch with CUDA on the prompts of examples/card.rs: encoding alone, tokenizing included. As it comes (f32), and by
CUDA graphs in f32 and f16, one graph for each shape, captured before it is timed. With --burn, burn's wgpu backend
on three of these shapes. Run by benches/card.sh.

    python benches/peers/card.py --out FILE [--quick]
    python benches/peers/card.py --out FILE [--quick] --burn BINARY [--software]
    python benches/peers/card.py --join FOLDER      # the JSON of one run from the files of FOLDER
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

WORDS = ("find a model that reads scanned invoices in three languages and writes table of sums for photos birds speech "
         "from noisy rooms with names").split()
MASK = (1 << 64) - 1
SINGLES = [8, 18, 32, 64, 128]
BATCHES = [8, 32, 256, 1024]
SECONDS = 4


def prompt(i):
    """That of benches/common/hub.rs."""
    state, words = i + 1, []
    for _ in range(7 + i * 7 % 20):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        words.append(WORDS[(state >> 33) % len(WORDS)])
    return " ".join(words)


class Eager:
    """The model as it comes; ids and mask go to the card for each call."""

    def __init__(self, dtype):
        import torch
        from run import Python, load
        self.torch, self.pack = torch, Python().pack
        self.model = load("sdpa").to("cuda", dtype).eval()

    def forward(self, ids, mask):
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        return (states.float() * weights).sum(1) / weights.sum(1)

    def __call__(self, prompts):
        ids, mask = (self.torch.from_numpy(part).to("cuda") for part in self.pack(prompts))
        with self.torch.inference_mode():
            return self.forward(ids, mask).cpu()


class Graphs(Eager):
    """One CUDA graph for each shape."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.graphs = {}

    def capture(self, shape):
        torch = self.torch
        ids, mask = (torch.ones(shape, dtype=torch.int64, device="cuda") for _ in range(2))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(3):
                self.forward(ids, mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.inference_mode():
            vectors = self.forward(ids, mask)
        self.graphs[shape] = graph, ids, mask, vectors

    def __call__(self, prompts):
        ids, mask = map(self.torch.from_numpy, self.pack(prompts))
        if tuple(ids.shape) not in self.graphs:
            self.capture(tuple(ids.shape))
        graph, own_ids, own_mask, vectors = self.graphs[tuple(ids.shape)]
        own_ids.copy_(ids)
        own_mask.copy_(mask)
        graph.replay()
        return vectors.cpu()


def times(call, prompts, most):
    call(prompts)
    seconds, began = [], time.perf_counter()
    while len(seconds) < most and (not seconds or time.perf_counter() - began < SECONDS):
        one = time.perf_counter()
        call(prompts)
        seconds.append((time.perf_counter() - one) * 1e3)
    seconds.sort()
    half = statistics.median(seconds)
    return {"p50_ms": half, "p95_ms": seconds[round((len(seconds) - 1) * 0.95)], "least_ms": seconds[0],
            "calls": len(seconds), "texts_per_second": len(prompts) / half * 1e3}


def work_of(singles, batches):
    words = ("find a model that reads scanned invoices in three languages " * 20).split()
    work = {f"one of about {tokens} tokens": [" ".join(words[: tokens - 2])] for tokens in singles}
    return work | {f"batch of {size}": [prompt(i) for i in range(size)] for size in batches}


def measure_burn(binary, software, quick):
    from run import BUNDLE, Program
    burn, figures = Program([binary, BUNDLE] + (["software"] if software else [])), {}
    # It tries its kernels on each new shape, so it has fewer of them here.
    for label, prompts in work_of([18], [8] if quick else [32, 1024]).items():
        figures[label] = times(burn, prompts, 3 if quick else 400)
        print("burn", label, round(figures[label]["p50_ms"], 3))
    return {"f32": figures}


def measure(quick):
    import torch
    figures = {"torch": torch.__version__, "python": platform.python_version()}
    if not torch.cuda.is_available():
        # PyTorch on the CPU is no comparison for a card.
        return figures | {"missing": "no CUDA"}
    figures["device"] = torch.cuda.get_device_name()
    work = work_of(SINGLES, BATCHES[: 1 if quick else None])
    for name, kind, dtype in [("eager f32", Eager, torch.float32), ("graphs f32", Graphs, torch.float32),
                              ("graphs f16", Graphs, torch.float16)]:
        runner = kind(dtype)
        figures[name] = {label: times(runner, prompts, 3 if quick else 400) for label, prompts in work.items()}
        print(name, {label: round(found["p50_ms"], 3) for label, found in figures[name].items()})
    return figures


def join(folder):
    figures = {"machine": (folder / "machine.txt").read_text().splitlines()}
    for name in ["hubrouter", "pytorch", "pytorch-learning", "burn"]:
        path = folder / f"{name}.json"
        text = path.read_text().strip() if path.is_file() else ""
        figures[name] = json.loads(text) if text else {"missing": "no figures"}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--join", type=Path)
    parser.add_argument("--burn", type=Path, help="the program of benches/peers/burn")
    parser.add_argument("--software", action="store_true", help="burn on a software adapter")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.join:
        print(json.dumps(join(arguments.join), indent=1))
    elif arguments.burn:
        found = measure_burn(arguments.burn, arguments.software, arguments.quick)
        arguments.out.write_text(json.dumps(found))
    else:
        arguments.out.write_text(json.dumps(measure(arguments.quick)))


if __name__ == "__main__":
    sys.exit(main())
