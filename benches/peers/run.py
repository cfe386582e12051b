#!/usr/bin/env python3
"""hubrouter beside ONNX Runtime, PyTorch and candle: the same prompts, in turns, in one run.

What is timed: for the peers tokenizing and encoding (mean pooling included); for hubrouter the whole route:
tokenizing, encoding, scoring the hub, ranking, the decision. All read the weights of one bundle (f16) and
compute in f32, on the CPU, with the same number of threads. Each measures itself, inside its process.
With --device gpu hubrouter computes on the first hardware adapter and PyTorch, then the only peer, with CUDA.

    pip install torch transformers onnx onnxscript onnxruntime tokenizers numpy
    cargo build --release && cargo build --release --manifest-path benches/peers/candle/Cargo.toml
    python benches/peers/run.py --data CMR --threads 2
    python benches/peers/run.py --data CMR --device gpu

Without --data the prompts are made up, of about the lengths of the benchmark's.
"""

import argparse
import json
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUNDLE = ROOT / "weights" / "all-MiniLM-L6-v2"
MAX_TOKENS = 128
STEMS = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"]


def eval_prompts(folder):
    """The benchmark's eval prompts, without their `###Instruction:`."""
    root = Path(folder)
    root = root / "data" if (root / "data" / "processed").is_dir() else root
    prefix = re.compile(r"^\s*#+\s*instruction\s*:?\s*", re.IGNORECASE)
    prompts = []
    for stem in STEMS:
        for line in open(root / "processed" / f"cleaned-{stem}-eval.json", encoding="utf-8"):
            if line.strip():
                prompts.append(prefix.sub("", json.loads(line)["instruction"]).strip())
    return prompts


def made_up_prompts():
    rng = random.Random(1)
    words = "find a model that reads scanned invoices in three languages and writes a table of all sums please".split()
    return [" ".join(rng.choice(words) for _ in range(rng.choice([9, 12, 16, 18, 22, 30, 60]))) for _ in range(1000)]


class HubRouter:
    """`hubrouter route --json` on stdin; a batch takes what its slowest answer says."""

    name = "hubrouter"

    def __init__(self, threads, batch, device):
        command = [str(ROOT / "target/release/hubrouter"), "route", "--json", "--device", device, "--format", "jsonl",
                   "--threads", str(threads), "--batch", str(batch), "--domains", "1"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.batch = batch

    def __call__(self, prompts):
        assert len(prompts) == self.batch
        self.process.stdin.write("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        self.process.stdin.flush()
        answers = [json.loads(self.process.stdout.readline()) for _ in prompts]
        return max(answer["timings_us"]["total"] for answer in answers) / 1e6

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Candle:
    name = "candle"

    def __init__(self, threads, _batch, _device):
        program = ROOT / "benches/peers/candle/target/release/candle-peer"
        environment = {"RAYON_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen([str(program), str(BUNDLE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)

    def __call__(self, prompts):
        self.process.stdin.write(json.dumps(prompts) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Python:
    """What ONNX Runtime and PyTorch share: the tokenizer, padding to the longest, mean pooling."""

    def __init__(self):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()

    def pack(self, prompts):
        import numpy as np
        rows = [e.ids for e in (self.tokenizer.encode_batch(prompts) if len(prompts) > 1 else [self.tokenizer.encode(prompts[0])])]
        width = max(map(len, rows))
        ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def __call__(self, prompts):
        began = time.perf_counter()
        self.encode(*self.pack(prompts))
        return time.perf_counter() - began

    def close(self):
        pass


class OnnxRuntime(Python):
    name = "ONNX Runtime"

    def __init__(self, threads, _batch, _device):
        super().__init__()
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(exported(), options, providers=["CPUExecutionProvider"])

    def encode(self, ids, mask):
        import numpy as np
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states = self.session.run(None, feed)[0]
        weights = mask[:, :, None].astype(np.float32)
        return (states * weights).sum(1) / weights.sum(1)


class PyTorch(Python):
    name = "PyTorch"

    def __init__(self, threads, _batch, device):
        super().__init__()
        import torch
        torch.set_num_threads(threads)
        self.device = "cuda" if device == "gpu" else "cpu"
        self.model = load("sdpa").to(self.device)

    def encode(self, ids, mask):
        import torch
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(part).to(self.device) for part in (ids, mask))
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            return ((states * weights).sum(1) / weights.sum(1)).cpu()


def load(attention):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    return transformers.AutoModel.from_pretrained(BUNDLE, dtype=torch.float32, attn_implementation=attention).eval()


def exported():
    """The bundle as ONNX, made once a run."""
    import torch
    if not hasattr(exported, "path"):
        folder = tempfile.mkdtemp()
        exported.path = f"{folder}/encoder.onnx"
        model = load("eager")

        class Encoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask, token_type_ids):
                return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

        names = ["input_ids", "attention_mask", "token_type_ids"]
        ids = torch.ones(2, 16, dtype=torch.long)
        axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "states"]}
        torch.onnx.export(Encoder(), (ids, ids, torch.zeros_like(ids)), exported.path, input_names=names,
                          output_names=["states"], dynamic_axes=axes, opset_version=17, dynamo=False)
    return exported.path


def median(values):
    return statistics.median(values)


def compare(kind, runners, batches, block, pause):
    """Runners take turns, block by block; ratios are taken batch by batch, then their median.

    Before a block come a pause, in which the threads of whoever ran before stop spinning for more work, and
    two untimed batches. `block` 0 times single calls, each after the pause: what a quiet gateway sees.
    """
    warm_up = batches[:2] if block else []
    block = block or 1
    seconds = {runner.name: [] for runner in runners}
    for turn, start in enumerate(range(0, len(batches), block)):
        # The order turns, so that nobody always follows the same neighbour.
        for runner in runners[turn % len(runners):] + runners[:turn % len(runners)]:
            time.sleep(pause)
            for batch in warm_up:
                runner(batch)
            seconds[runner.name] += [runner(batch) for batch in batches[start : start + block]]
    print(f"\n{kind}: {len(batches)} batches of {len(batches[0])}")
    own = seconds[runners[0].name]
    rows = []
    for name, times in seconds.items():
        ratio = median(a / b for a, b in zip(own, times))
        texts = sum(map(len, batches)) / sum(times)
        rows.append({"name": name, "median_ms": median(times) * 1e3, "texts_per_second": texts, "hubrouter_time_ratio": ratio})
        print(f"  {name:14} median {median(times) * 1e3:8.2f} ms   {texts:7.1f} texts/s   "
              f"hubrouter takes {ratio:.2f} of its time, has {sum(times) / sum(own):.2f} times its texts/s")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a CMRBench checkout: route its eval prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--singles", type=int, default=300, help="single prompts")
    parser.add_argument("--peers", help="onnxruntime,pytorch,candle, which is the default; with --device gpu pytorch alone")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--output", help="file for the figures, JSON")
    arguments = parser.parse_args()
    prompts = eval_prompts(arguments.data) if arguments.data else made_up_prompts()
    known = {"onnxruntime": OnnxRuntime, "pytorch": PyTorch, "candle": Candle}
    able = list(known) if arguments.device == "cpu" else ["pytorch"]
    names = arguments.peers.split(",") if arguments.peers else able
    if not set(names) <= set(able):
        parser.error(f"--peers: expected some of {','.join(able)}, found {arguments.peers}")
    peers = [known[name] for name in names]

    single = [[p] for p in prompts[:: max(1, len(prompts) // arguments.singles)]]
    ordered = sorted(prompts, key=len)
    batches = [ordered[i : i + 32] for i in range(0, len(ordered) - 31, 32)]
    figures = {"machine": platform.processor() or platform.machine(), "device": arguments.device, "threads": arguments.threads, "prompts": arguments.data and "CMRBench eval" or "made up"}
    kinds = [
        ("single prompts, one after the other", single, 1, 20, 0.1),
        ("single prompts, 30 ms apart", single, 1, 0, 0.03),
        ("length-sorted batches", batches, 32, 4, 0.1),
    ]
    for kind, work, size, block, pause in kinds:
        runners = [runner(arguments.threads, size, arguments.device) for runner in [HubRouter, *peers]]
        figures[kind] = compare(kind, runners, work, block, pause)
        for runner in runners:
            runner.close()
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
