#!/usr/bin/env python3
"""hubrouter beside ONNX Runtime, OpenVINO, PyTorch and candle: the same prompts, in turns, in one run.

What is timed: for the peers tokenizing and encoding (mean pooling included); for hubrouter the whole route:
tokenizing, encoding, scoring the hub, ranking, the decision. All read the weights of one bundle (f16), on the CPU,
with the same number of threads. Each measures itself, inside its process: candle and hubrouter in one of their own,
the others in this one, as hubrouter with --wheel. Peers compute in f32, ONNX Runtime also in
int8 (its dynamic quantisation, as it comes), OpenVINO and PyTorch also in bf16; hubrouter in each of --precision.
With --device gpu hubrouter computes on the first hardware adapter and PyTorch, then the only peer, with CUDA.

Beside each speed stands the agreement with f32: PyTorch's vectors, prompt by prompt. A vector's best model and best
domain are those of the zero-shot router in tests/fixtures, whose map is the identity; so one rule serves all.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 numpy==2.4.6 \\
        onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 openvino==2026.4.1
    cargo build --release && cargo build --release --manifest-path benches/peers/candle/Cargo.toml
    python benches/peers/run.py --data CMR --threads 2
    python benches/peers/run.py --data CMR --device gpu

Without --data the prompts are made up, of about the lengths of the benchmark's. Other versions than these are
measured all the same, and named with the figures.
"""

import argparse
import importlib.metadata
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
PROGRAM = ROOT / "target" / "release" / "hubrouter"
ZERO_SHOT = ROOT / "tests" / "fixtures" / "zero-shot"
PINS = {
    "torch": "2.15.0", "transformers": "5.24.0", "tokenizers": "0.23.3", "numpy": "2.4.6", "onnx": "1.23.2",
    "onnxscript": "0.7.2", "onnxruntime": "1.32.0", "openvino": "2026.4.1",
}
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


def precisions():
    """Those that the program offers; None alone where it has no such option."""
    text = subprocess.run([PROGRAM, "route", "--help"], capture_output=True, text=True, check=True).stdout
    return ["f32", "bf16", "int8"] if "--precision" in text else [None]


class HubRouter:
    """`hubrouter route --json` on stdin; a batch takes what its slowest answer says."""

    def __init__(self, precision, threads, batch, device, *options):
        command = [PROGRAM, "route", "--json", "--device", device, "--format", "jsonl", "--threads", str(threads),
                   "--batch", str(batch), "--domains", "1", *options, *(["--precision", precision] if precision else [])]
        self.name = f"hubrouter {precision or 'f32'}"
        self.precision = precision
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.batch = batch
        self.seen = {}

    def __call__(self, prompts):
        return max(answer["timings_us"]["total"] for answer in self.answers(prompts)) / 1e6

    def answers(self, prompts):
        assert len(prompts) == self.batch
        self.process.stdin.write("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        self.process.stdin.flush()
        return [json.loads(self.process.stdout.readline()) for _ in prompts]

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def vectors(self, prompts, judge):
        """Pooled unit vectors: the solution of all models' cosines by the zero-shot router."""
        import numpy as np
        options = ["--router", str(ZERO_SHOT), "--top", str(len(judge.keys))]
        zero_shot = HubRouter(self.precision, 1, 1, "cpu", *options)
        rows = []
        for prompt in prompts:
            cosines = np.empty(len(judge.keys))
            for ranked in zero_shot.answers([prompt])[0]["ranked"]:
                cosines[judge.place[ranked["model"]]] = ranked["cosine"]
            rows.append(judge.inverse @ cosines)
        zero_shot.close()
        return dict(zip(prompts, rows))


class HubRouterWheel(HubRouter):
    """The Python package, in the process of the peers and timed as they are."""

    def __init__(self, precision, threads, batch, device):
        import hubrouter
        self.name = f"hubrouter {precision}"
        self.precision, self.batch, self.seen = precision, batch, {}
        self.router = hubrouter.Router(device=device, threads=threads, precision=precision)

    def __call__(self, prompts):
        began = time.perf_counter()
        if self.batch == 1:
            self.router.route(prompts[0])
        else:
            self.router.route_many(prompts)
        return time.perf_counter() - began

    def close(self):
        del self.router


class Program:
    """A peer in a process of its own, which speaks the protocol of pipe.rs."""

    def __init__(self, command, environment=None):
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)

    def __call__(self, prompts):
        self.process.stdin.write(json.dumps(prompts) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.command[0]}: expected an answer, found its end with {self.process.wait()}; see above")
        return json.loads(answer)["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Candle(Program):
    name = "candle f32"
    seen = {}

    def __init__(self, threads, _batch, _device):
        program = ROOT / "benches/peers/candle/target/release/candle-peer"
        super().__init__([program, BUNDLE], {"RAYON_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"})


class Python:
    """What the peers in this process share: the tokenizer, padding to the longest, mean pooling."""

    def __init__(self):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        # The vector of each prompt, as it came in the last batch that it was in.
        self.seen = {}

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
        vectors = self.encode(*self.pack(prompts))
        seconds = time.perf_counter() - began
        self.seen.update(zip(prompts, vectors))
        return seconds

    def feed(self, ids, mask):
        import numpy as np
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def pooled(self, states, mask):
        import numpy as np
        weights = mask[:, :, None].astype(np.float32)
        return (states * weights).sum(1) / weights.sum(1)

    def close(self):
        pass


class OnnxRuntime(Python):
    name = "ONNX Runtime f32"

    def __init__(self, threads, _batch, _device):
        super().__init__()
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(self.path(), options, providers=["CPUExecutionProvider"])

    def path(self):
        return exported()

    def encode(self, ids, mask):
        return self.pooled(self.session.run(None, self.feed(ids, mask))[0], mask)


class OnnxRuntimeInt8(OnnxRuntime):
    """Weights and activations per tensor, scales of activations found in the call: its default."""

    name = "ONNX Runtime int8"

    def path(self):
        if not hasattr(OnnxRuntimeInt8, "quantised"):
            from onnxruntime.quantization import QuantType, quantize_dynamic
            OnnxRuntimeInt8.quantised = f"{exported()}.int8"
            quantize_dynamic(exported(), OnnxRuntimeInt8.quantised, weight_type=QuantType.QInt8)
        return OnnxRuntimeInt8.quantised


class OpenVino(Python):
    name = "OpenVINO f32"
    precision = "f32"

    def __init__(self, threads, _batch, _device):
        super().__init__()
        import openvino
        hints = {"INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                 "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        self.model = core.compile_model(core.read_model(exported()), "CPU", hints)

    def encode(self, ids, mask):
        return self.pooled(self.model(self.feed(ids, mask))[0], mask)


class OpenVinoBf16(OpenVino):
    name = "OpenVINO bf16"
    precision = "bf16"


class PyTorch(Python):
    name = "PyTorch f32"
    dtype = "float32"

    def __init__(self, threads, _batch, device):
        super().__init__()
        import torch
        torch.set_num_threads(threads)
        self.device = "cuda" if device == "gpu" else "cpu"
        self.model = load("sdpa").to(self.device, getattr(torch, self.dtype))

    def encode(self, ids, mask):
        import torch
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(part).to(self.device) for part in (ids, mask))
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            return ((states.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()


class PyTorchBf16(PyTorch):
    name = "PyTorch bf16"
    dtype = "bfloat16"


class Judge:
    """The zero-shot router's answer for a pooled vector, and the agreement of two vectors."""

    def __init__(self, prompts):
        import numpy as np
        folder = ZERO_SHOT / (ZERO_SHOT / "current").read_text().split()[0]
        data = (folder / "head.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])["model_embeddings.weight"]
        begin, end = entry["data_offsets"]
        keys = np.frombuffer(data[8 + size :][begin:end], np.float32).reshape(entry["shape"]).astype(np.float64)
        self.keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        # Some directions are in no card, nor in any prompt: layer norm fixes them.
        self.inverse = np.linalg.pinv(self.keys, rcond=1e-4)
        self.tau = json.loads((folder / "manifest.json").read_text())["tau"]
        models = json.loads((folder / "hub.json").read_text())["models"]
        self.place = {model["name"]: i for i, model in enumerate(models)}
        domains = sorted({model["domain"].lower() for model in models})
        of = [domains.index(model["domain"].lower()) for model in models]
        self.member = np.eye(len(domains))[of]
        truth = PyTorch(1, 1, "cpu")
        for prompt in prompts:
            truth([prompt])
        self.truth = truth.seen

    def best(self, vector):
        """The best model, and the domain whose members have the largest sum of exponentials."""
        import numpy as np
        scores = self.keys @ vector / np.linalg.norm(vector) / self.tau
        return scores.argmax(), (np.exp(scores - scores.max()) @ self.member).argmax()

    def agreement(self, seen):
        """Percent of the prompts with f32's best model, with its best domain; mean and worst cosine."""
        import numpy as np
        if not seen:
            return None
        same, cosines = [], []
        for prompt, vector in seen.items():
            vector, want = np.asarray(vector, np.float64), np.asarray(self.truth[prompt], np.float64)
            same.append([a == b for a, b in zip(self.best(vector), self.best(want))])
            cosines.append(vector @ want / np.linalg.norm(vector) / np.linalg.norm(want))
        model, domain = np.mean(same, axis=0) * 100
        return {"same_model": model, "same_domain": domain, "cosine": np.mean(cosines), "worst_cosine": np.min(cosines)}


def load(attention):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    return transformers.AutoModel.from_pretrained(BUNDLE, dtype=torch.float32, attn_implementation=attention).eval()


def exported():
    """The bundle as ONNX, made once a run."""
    import torch
    if not hasattr(exported, "path"):
        exported.folder = tempfile.TemporaryDirectory()  # removed when the program ends
        exported.path = f"{exported.folder.name}/encoder.onnx"
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


def compare(kind, runners, batches, block, pause, judge):
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
    own = {runner.name: seconds[runner.name] for runner in runners if isinstance(runner, HubRouter)}
    ours = ", ".join(name.removeprefix("hubrouter ") for name in own)
    print(f"\n{kind}: {len(batches)} batches of {len(batches[0])}; times of hubrouter ({ours}) over each row's; "
          "same best model and domain as f32, mean and worst cosine")
    rows = []
    for runner in runners:
        times = seconds[runner.name]
        ratios = {name: median(a / b for a, b in zip(mine, times)) for name, mine in own.items()}
        texts = sum(map(len, batches)) / sum(times)
        agreement = judge and judge.agreement(runner.seen)
        rows.append({"name": runner.name, "median_ms": median(times) * 1e3, "texts_per_second": texts,
                     "hubrouter_time_ratios": ratios, "agreement": agreement})
        said = "    -" if not agreement else (
            f"{agreement['same_model']:5.1f} {agreement['same_domain']:5.1f} %  "
            f"{agreement['cosine']:.5f} {agreement['worst_cosine']:.4f}")
        print(f"  {runner.name:18} {median(times) * 1e3:8.2f} ms {texts:7.1f} texts/s   "
              f"{' '.join(f'{ratio:.2f}' for ratio in ratios.values())}   {said}")
    return rows


def versions():
    found = {name: importlib.metadata.version(name) for name in PINS if installed(name)}
    other = [f"{name} {found[name]} in place of {PINS[name]}" for name in found if found[name] != PINS[name]]
    if other:
        print("other versions than the pinned ones: " + ", ".join(other), file=sys.stderr)
    return found


def installed(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def main():
    known = {"onnxruntime": OnnxRuntime, "onnxruntime-int8": OnnxRuntimeInt8, "openvino": OpenVino,
             "openvino-bf16": OpenVinoBf16, "pytorch": PyTorch, "pytorch-bf16": PyTorchBf16, "candle": Candle}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a CMRBench checkout: route its eval prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--singles", type=int, default=300, help="single prompts")
    parser.add_argument("--batches", type=int, help="batches of 32, spread over all lengths [default: all]")
    parser.add_argument("--peers", help=f"{','.join(known)}, which is the default; with --device gpu pytorch alone")
    parser.add_argument("--precision", help="hubrouter's, by commas [default: all that it has]")
    parser.add_argument("--wheel", action="store_true", help="hubrouter by its Python package, in the process of the peers")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--output", help="file for the figures, JSON")
    arguments = parser.parse_args()
    prompts = eval_prompts(arguments.data) if arguments.data else made_up_prompts()
    able = list(known) if arguments.device == "cpu" else ["pytorch"]
    names = arguments.peers.split(",") if arguments.peers else able
    if not set(names) <= set(able):
        parser.error(f"--peers: expected some of {','.join(able)}, found {arguments.peers}")
    own = arguments.precision.split(",") if arguments.precision else precisions()
    if not set(own) <= set(precisions()):
        parser.error(f"--precision: expected some of {precisions()}, found {arguments.precision}")
    if arguments.device == "gpu":
        own = own[:1]

    single = [[p] for p in prompts[:: max(1, len(prompts) // arguments.singles)]]
    ordered = sorted(prompts, key=len)
    batches = [ordered[i : i + 32] for i in range(0, len(ordered) - 31, 32)]
    batches = batches[:: max(1, len(batches) // (arguments.batches or len(batches)))]
    figures = {"machine": platform.processor() or platform.machine(), "device": arguments.device, "threads": arguments.threads, "prompts": arguments.data and "CMRBench eval" or "made up", "versions": versions()}
    judge = Judge({prompt for batch in single + batches for prompt in batch})
    kinds = [
        ("single prompts, one after the other", single, 1, 20, 0.1),
        ("single prompts, 30 ms apart", single, 1, 0, 0.03),
        ("length-sorted batches", batches, 32, 4, 0.1),
    ]
    router = HubRouterWheel if arguments.wheel else HubRouter
    routers = [lambda *machine, precision=precision: router(precision, *machine) for precision in own]
    vectors = {}
    for kind, work, size, block, pause in kinds:
        runners = [make(arguments.threads, size, arguments.device) for make in routers + [known[name] for name in names]]
        for runner in runners[: len(own)] if arguments.device == "cpu" else []:
            # A prompt's numbers are the same in any company, so those of the single ones do for batches.
            if runner.name not in vectors:
                vectors[runner.name] = runner.vectors([batch[0] for batch in single], judge)
            runner.seen = vectors[runner.name]
        figures[kind] = compare(kind, runners, work, block, pause, judge)
        for runner in runners:
            runner.close()
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
