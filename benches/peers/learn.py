#!/usr/bin/env python3
"""PyTorch's training step: what hubrouter does in phase 2, and at t = 1, with the edge defaults of carve.md section 10.

One step: encode a batch (MiniLM in f32, LoRA r 16, alpha 32 on all six maps of a layer, no dropout, mean pooling),
project by W, cosine to every row of E, cross-entropy of the full softmax with soft targets, gradients of LoRA, W and E,
LoRA's clipped, AdamW with three groups. The base weights are frozen and get no gradient. Batches are shuffled, not
sorted by length, and padded to their longest prompt. Tokenizing is done before and not timed.

    pip install torch transformers tokenizers
    python benches/peers/learn.py --data CMR --threads 2 [--device cuda] [--json]

Without --data the prompts are made up, of about the lengths of the benchmark's, with random golds.
"""

import argparse
import json
import platform
import random
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import linear, log_softmax, normalize

from run import BUNDLE, MAX_TOKENS, STEMS, load, made_up_prompts

TAU, EPSILON, NEIGHBOURS = 0.08, 0.02, 10
RANK, ALPHA = 16, 32
RATES, DECAY, CLIP, WARM_UP, EPOCHS = {"lora": 1e-3, "projection": 1e-3, "embeddings": 5e-3}, 1e-3, 1.0, 10, 5


def val_rows(folder):
    """(prompt, model id, domain) of every val row; ids in the order of the benchmark's registry."""
    root = Path(folder)
    root = root / "data" if (root / "data" / "processed").is_dir() else root
    prefix = re.compile(r"^\s*#+\s*instruction\s*:?\s*", re.IGNORECASE)
    ids, domains, rows = {}, {}, []
    for stem in STEMS:
        files = {split: root / "processed" / f"cleaned-{stem}-{split}.json" for split in ("train", "val")}
        read = {split: [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]
                for split, path in files.items() if path.is_file() or split == "val"}
        for row in read.get("train", []) + read["val"]:
            domains.setdefault(row["model_name"], row["domain"])
        for name in sorted({row["model_name"] for part in read.values() for row in part} - ids.keys()):
            ids[name] = len(ids)
        rows += [(prefix.sub("", row["instruction"]).strip(), ids[row["model_name"]]) for row in read["val"]]
    of = {ids[name]: domain for name, domain in domains.items()}
    return [(prompt, y, of[y]) for prompt, y in rows], of


def made_up_rows(models):
    rng = random.Random(2)
    of = {y: y % 58 for y in range(models)}
    return [(prompt, y, of[y]) for prompt in made_up_prompts() for y in [rng.randrange(models)]], of


class Batches:
    """Batch `i` of an endless run over the rows: padded ids, mask, and per row the places and weights of its targets."""

    def __init__(self, rows, of, size, seed):
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        members = {}
        for y in sorted(of):
            members.setdefault(of[y], []).append(y)
        self.rows = []
        for (_, y, domain), encoding in zip(rows, tokenizer.encode_batch([prompt for prompt, _, _ in rows])):
            near = [j for j in members[domain] if j != y][:NEIGHBOURS]
            # Without a neighbour epsilon is dropped. Unused places point at the gold with weight 0.
            spare = NEIGHBOURS - len(near)
            self.rows.append((encoding.ids, [y] + near + [y] * spare,
                              [1 - EPSILON] + [EPSILON / max(1, len(near))] * len(near) + [0.0] * spare))
        self.size, self.seed, self.per_epoch = size, seed, -(-len(rows) // size)

    def __getitem__(self, index):
        epoch, at = divmod(index, self.per_epoch)
        order = list(range(len(self.rows)))
        random.Random(self.seed + epoch).shuffle(order)
        chosen = [self.rows[i] for i in order[at * self.size : (at + 1) * self.size]]
        width = max(len(ids) for ids, _, _ in chosen)
        ids, mask = torch.zeros(len(chosen), width, dtype=torch.long), torch.zeros(len(chosen), width, dtype=torch.long)
        for i, (row, _, _) in enumerate(chosen):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        return ids, mask, torch.tensor([places for _, places, _ in chosen]), torch.tensor([weights for _, _, weights in chosen])


class Adapted(nn.Module):
    """y = x W^T + b + scale (x A^T) B^T."""

    def __init__(self, base):
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        bound = base.in_features ** -0.5
        self.a = nn.Parameter(torch.empty(RANK, base.in_features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x):
        return linear(x, self.weight, self.bias) + ((x @ self.a.T) @ self.b.T) * (ALPHA / RANK)


class Learner:
    def __init__(self, models, steps, attention, device):
        torch.manual_seed(1)
        self.encoder = load(attention).requires_grad_(False)
        for layer in range(self.encoder.config.num_hidden_layers):
            for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                         "intermediate.dense", "output.dense"]:
                path = f"encoder.layer.{layer}.{name}"
                self.encoder.set_submodule(path, Adapted(self.encoder.get_submodule(path)))
        width = self.encoder.config.hidden_size
        self.device = torch.device(device)
        self.encoder.to(self.device)
        self.lora = [p for p in self.encoder.parameters() if p.requires_grad]
        self.w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width, device=self.device)))
        self.e = nn.Parameter(nn.init.xavier_uniform_(torch.empty(models, width, device=self.device)))
        groups = [{"params": self.lora, "lr": RATES["lora"]}, {"params": [self.w], "lr": RATES["projection"]},
                  {"params": [self.e], "lr": RATES["embeddings"]}]
        # fused: the fastest of PyTorch's forms.
        self.optimiser = torch.optim.AdamW(groups, weight_decay=DECAY, fused=True)
        warm_up = min(WARM_UP, steps // 2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda k: k / max(1, warm_up) if k < warm_up else max(0.0, (steps - k) / (steps - warm_up)))

    def loss(self, ids, mask, places, weights):
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask.unsqueeze(-1).float()
        h = (states * real).sum(1) / real.sum(1)
        s = normalize(h @ self.w.T, dim=1) @ normalize(self.e, dim=1).T / TAU
        return -(log_softmax(s, 1).gather(1, places) * weights).sum(1).mean()

    def now(self):
        """Seconds, once all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, batch):
        """The loss, and the seconds of forward, backward and optimiser."""
        marks = [self.now()]
        loss = self.loss(*(part.to(self.device) for part in batch))
        marks.append(self.now())
        loss.backward()
        marks.append(self.now())
        nn.utils.clip_grad_norm_(self.lora, CLIP)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        marks.append(self.now())
        return loss.item(), [b - a for a, b in zip(marks, marks[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a CMRBench checkout: learn its val rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="PyTorch's name of a device")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=3, help="untimed steps before them")
    parser.add_argument("--first", type=int, default=0, help="batch to begin with, so that blocks of a run differ")
    parser.add_argument("--models", type=int, default=2127, help="rows of E")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--seed", type=int, default=1, help="of the order of rows")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows, of = val_rows(arguments.data) if arguments.data else made_up_rows(arguments.models)
    assert max(of) < arguments.models, f"--models: at least {max(of) + 1}"
    batches = Batches(rows, of, arguments.batch, arguments.seed)
    learner = Learner(arguments.models, EPOCHS * batches.per_epoch, arguments.attention, arguments.device)
    losses, parts, examples, real, padded = [], [], 0, 0, 0
    for i in range(arguments.warm_up + arguments.steps):
        batch = batches[arguments.first + i]
        loss, seconds = learner.step(batch)
        losses.append(loss)
        if i >= arguments.warm_up:
            parts.append(seconds)
            examples, real, padded = examples + len(batch[0]), real + int(batch[1].sum()), padded + batch[1].numel()
    steps = sorted(map(sum, parts))
    figures = {
        "name": "PyTorch", "version": torch.__version__, "machine": platform.processor() or platform.machine(),
        "prompts": "CMRBench val" if arguments.data else "made up", "device": arguments.device, "threads": arguments.threads, "batch": arguments.batch,
        "models": arguments.models, "attention": arguments.attention, "steps": arguments.steps,
        "trained": sum(p.numel() for p in [*learner.lora, learner.w, learner.e]),
        "tokens_per_step": real / len(steps), "padded_tokens_per_step": padded / len(steps),
        "seconds_per_step": statistics.median(steps), "fastest": steps[0], "slowest": steps[-1],
        "parts": dict(zip(["forward", "backward", "optimiser"], map(statistics.median, zip(*parts)))),
        "examples_per_second": examples / sum(steps), "first_loss": losses[0], "last_loss": losses[-1],
    }
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    sys.exit(main())
