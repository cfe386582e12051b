#!/usr/bin/env python3
"""Writes parity bundles, which `hubrouter verify` replays: the same numbers by PyTorch, computed from docs/carve.md and
docs/memory.md. README.md says how to install and what a bundle holds.

  parity.py encoder  --encoder FOLDER --to BUNDLE                   tokens, every layer, pooled vectors
  parity.py router   --encoder FOLDER --to BUNDLE --router STORE    ... queries, parts of scores, the best models
  parity.py learning --encoder FOLDER --to BUNDLE                   ... a learning run over three experiences

Each command writes the encoder's part; `router` and `learning` add their own to those that the folder has.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Deterministic products on CUDA.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch

import learning
import routing
from bundle import CHECKPOINT, Bundle, made_by
from carve import check_vectors
from data import PROMPTS
from encoders import Encoder, numbers, pool

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    check_vectors()
    flags = {"tf32": args.tf32, "deterministic": True, "attention": "eager"}
    mode = "tf32" if args.tf32 else args.dtype
    bundle = Bundle(args.to, args.name or args.to.resolve().name, made_by(args.device, mode, flags, args.seed))
    encoder = Encoder(args.encoder, args.device, DTYPES[args.dtype])
    describe(bundle, encoder, args)
    forward(bundle, encoder, prompts(args))
    if args.command == "router":
        router(bundle, encoder, args, mode)
    if args.command == "learning":
        learn(bundle, encoder, args)
    bundle.write()
    size = sum(file["bytes"] for file in bundle.manifest["files"].values())
    print(f"{args.to}: {len(bundle.manifest['files'])} files, {size} bytes")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("encoder", "router", "learning"):
        command = commands.add_parser(name)
        add = command.add_argument
        add("--encoder", type=Path, required=True, help="a Hugging Face checkpoint or an encoder bundle of hubrouter")
        add("--to", type=Path, required=True, help="the bundle's folder")
        add("--name", help="of the bundle [default: the folder's]")
        add("--prompts", type=Path, help='JSON Lines with "prompt" [default: the script\'s own]')
        add("--device", default="cpu", help="cpu, cuda or cuda:N [default: cpu]")
        add("--dtype", choices=DTYPES, default="f32", help="of weights and activations [default: f32]")
        add("--tf32", action="store_true", help="let CUDA round the factors of f32 products to 11 bits")
        add("--threads", type=int, default=1, help="of the CPU [default: 1]")
        add("--seed", type=int, default=20260801, help="of every draw [default: 20260801]")
        add("--without-encoder", action="store_true", help="name the encoder's hash and do not copy its files")
        if name == "router":
            add("--router", type=Path, required=True, help="a store of hubrouter, whose current generation is taken")
            add("--top", type=int, default=10, help="best models of a prompt that are listed [default: 10]")
            add("--without-router", action="store_true", help="name the generation and do not copy its files")
        if name == "learning":
            add("--profile", choices=["intended", "reference"], default="intended",
                help="docs/carve.md, or with what the published code does otherwise [default: intended]")
            add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of learning.py")
            add("--without-f64", action="store_true", help="skip the second run, which says what rounding does")
    args = parser.parse_args()
    args.device = str(torch.device(args.device, 0) if args.device == "cuda" else torch.device(args.device))
    if args.tf32 and not (args.device.startswith("cuda") and args.dtype == "f32"):
        parser.error("--tf32: expected --device cuda and --dtype f32")
    if args.command == "learning" and args.dtype != "f32":
        parser.error("--dtype: learning runs in f32")
    return args


def prompts(args):
    if args.prompts is None:
        return PROMPTS
    lines = args.prompts.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines if line.strip()]


def describe(bundle, encoder, args):
    """The `encoder` part, and its files."""
    if not args.without_encoder:
        bundle.copy(encoder.folder, CHECKPOINT, "encoder")
    bundle.manifest["encoder"] = {
        "folder": None if args.without_encoder else "encoder", "form": encoder.form, "name": encoder.name,
        "revision": encoder.revision, "tokenizer_sha256": encoder.tokenizer_sha256,
        "model_type": encoder.model.config.model_type, "layers": encoder.layers, "hidden": encoder.hidden,
        "pooling": encoder.pooling, "query_prefix": encoder.query_prefix, "max_tokens": encoder.max_tokens}


@torch.no_grad()
def forward(bundle, encoder, prompts):
    """Tokens, every layer's output and the pooled vector of each prompt, encoded alone; and how far a padded batch of
    all is from that."""
    tensors, alone = {}, []
    ids = [encoder.ids(prompt) for prompt in prompts]
    for i, own in enumerate(ids):
        states = encoder.states(own)
        kept, pooled = kept_rows(len(own)), pool(states[-1], encoder.pooling)
        tensors[f"{i}.ids"], tensors[f"{i}.rows"] = np.array(own, np.int32), np.array(kept, np.int32)
        tensors[f"{i}.layers"] = np.stack([numbers(layer[kept]) for layer in states])
        tensors[f"{i}.pooled"] = numbers(pooled)
        alone.append(numbers(pooled))
    padded = np.abs(numbers(encoder.padded(ids)) - np.stack(alone)).max()
    bundle.tensors("forward.safetensors", tensors)
    bundle.manifest["prompts"] = prompts
    bundle.manifest["forward"] = {"file": "forward.safetensors", "padded": {"max_abs": float(padded)}}


def kept_rows(tokens):
    """Which tokens' rows are stored: all of a short prompt; of a long one the ends and the middle."""
    middle = tokens // 2
    some = {0, 1, 2, middle - 1, middle, middle + 1, tokens - 2, tokens - 1}
    return list(range(tokens)) if tokens < 20 else sorted(some)


def router(bundle, encoder, args, mode):
    folder = routing.current(args.router)
    generation = routing.Generation(folder, encoder)
    if not args.without_router:
        bundle.copy(args.router, ["current", f"{folder.name}/*"], "router")
    parts = [generation.parts(prompt) for prompt in bundle.manifest["prompts"]]
    top = min(args.top, int((~generation.retired).sum()))
    best = [generation.best(part["scores"], top) for part in parts]
    tensors = {name: np.stack([part[name] for part in parts]).astype(np.float32) for name in parts[0]}
    tensors["top.ids"] = np.array(best, np.int32)
    tensors["top.scores"] = np.take_along_axis(tensors["scores"], tensors["top.ids"], 1)
    bundle.tensors("router.safetensors", tensors)
    bundle.manifest["router"] = {"folder": None if args.without_router else "router", "generation": folder.name,
                                 "file": "router.safetensors", "top": top, "mode": mode}


def learn(bundle, encoder, args):
    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    known = learning.Settings.__dataclass_fields__
    for key in changes:
        assert key in known, f"--set {key}: expected one of {', '.join(known)}"
    settings = learning.Settings.of(args.profile, seed=args.seed, **changes)
    plan = learning.Plan(settings, encoder.hidden)
    run = learning.Run(plan, encoder).go()
    part = learning.record(run, "learning.safetensors")
    if not args.without_f64:
        exact = Encoder(encoder.folder, encoder.device, torch.float64)
        part["f32_from_f64"] = learning.compare(run, learning.Run(plan, exact, start=run.tensors).go())
        print(json.dumps(part["f32_from_f64"], indent=1))
    print("learned", rounded(part["matrix"]["learned"]), "served", rounded(part["matrix"]["served"]))
    print("losses", rounded([[step["losses"]["total"] for step in part["steps"]]]))
    bundle.tensors("learning.safetensors", run.tensors)
    bundle.manifest["learning"] = part


def rounded(rows):
    return [[round(value, 2) for value in row] for row in rows]


if __name__ == "__main__":
    main()
