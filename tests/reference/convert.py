#!/usr/bin/env python3
"""Converts a router checkpoint of the published reference (collagelab/CMR) into a folder that hubrouter reads.

  convert.py CHECKPOINT --to FOLDER [--encoder NAME]

CHECKPOINT holds `router_model.pt` (read with weights_only, so nothing in it is run), `model_registry.json`,
`router_config.json` and, where an encoder was adapted, PEFT's `adapter_config.json` with its weights. FOLDER gets
`router.json`, `router.safetensors` and `adapter/`, which `hubrouter generation import` reads. The encoder itself is not
part of either.
"""

import argparse
import hashlib
import json
import platform
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from carve import E, W

#: A factor of a BERT-family encoder's map, with what PEFT and model classes put before and behind the name.
FACTOR = re.compile(r"^(?:base_model\.model\.)?(?:bert\.|roberta\.|model\.)?(encoder\.layer\.\d+\..+\.lora_[AB])"
                    r"(?:\.default)?\.weight$")


class Refused(Exception):
    """The checkpoint is not what this program can convert; says what was expected and what was found."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="the new folder; it must not exist")
    parser.add_argument("--encoder", help="name of the encoder [default: the adapter's base model]")
    args = parser.parse_args()
    try:
        print(json.dumps(convert(args.checkpoint, args.to, args.encoder), indent=1))
    except Refused as error:
        sys.exit(f"convert.py: {error}")


def convert(checkpoint, to, encoder=None):
    """Writes the folder `to`; returns what `router.json` says, without models and files."""
    if to.exists():
        raise Refused(f"{to}: already exists")
    config, models = read_json(checkpoint / "router_config.json"), registry(checkpoint / "model_registry.json")
    w, e = head(checkpoint / "router_model.pt")
    sizes = (config["num_models"], config["embedding_dim"], config.get("lm_hidden_size", w.shape[1]))
    if (len(e), e.shape[1], w.shape[1]) != sizes or w.shape[0] != e.shape[1] or len(models) != len(e):
        raise Refused(f"{checkpoint}: expected {sizes[0]} models, width {sizes[1]} and hidden width {sizes[2]} in each "
                      f"file, found {len(models)} names, E {list(e.shape)} and W {list(w.shape)}")
    if config["pooling"] != "mean":
        raise Refused(f"pooling: expected mean, found {config['pooling']}: the last token's state belongs to decoder "
                      "language models, which hubrouter does not run")
    if not config["tau"] > 0:
        raise Refused(f"tau: expected a positive number, found {config['tau']}")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".tmp-") as staged:
        staged = Path(staged) / "folder"
        staged.mkdir()
        base = adapter(checkpoint, staged / "adapter", w.shape[1])
        save_file({W: w, E: e}, staged / "router.safetensors")
        if not (encoder or base):
            raise Refused("--encoder: expected the encoder's name, which the checkpoint does not say")
        said = {
            "kind": "hubrouter-router", "schema_version": 1,
            "made_by": f"tests/reference/convert.py (python {platform.python_version()}, torch {torch.__version__})",
            "encoder": {"name": encoder or base, "width": w.shape[1], "pooling": config["pooling"]},
            "width": w.shape[0], "tau": config["tau"], "trained": True}
        if (staged / "adapter").exists():
            said["adapter"] = "adapter"
        paths = [path for path in sorted(staged.rglob("*")) if path.is_file()]
        files = {path.relative_to(staged).as_posix(): digest(path) for path in paths}
        whole = json.dumps({**said, "models": models, "files": files}, indent=1)
        (staged / "router.json").write_text(whole + "\n", encoding="utf-8")
        staged.rename(to)
    return {**said, "models": len(models)}


def head(path):
    """W [D, H] and E [M, D] in f32."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    own = {name: [key for key in state if key == name or key.endswith(f".{name}")] for name in (W, E)}
    other = set(state) - set(own[W]) - set(own[E])
    if other or [len(keys) for keys in own.values()] != [1, 1]:
        raise Refused(f"{path}: expected {W} and {E}, found {', '.join(sorted(state))}")
    tensors = [state[keys[0]].to(torch.float32).numpy() for keys in own.values()]
    for name, value in zip(own, tensors):
        if value.ndim != 2 or not np.isfinite(value).all():
            raise Refused(f"{path}: {name}: expected a matrix of finite numbers, found {list(value.shape)}")
    return [np.ascontiguousarray(value) for value in tensors]


def registry(path):
    """The models by id."""
    data = read_json(path)
    names = {int(key): name for key, name in data["idx2model"].items()}
    numbers = {name: i for i, name in names.items()}
    if sorted(names) != list(range(len(names))) or len(numbers) != len(names) or numbers != data["model2idx"]:
        raise Refused(f"{path}: expected each id from 0 on with one name, found idx2model and model2idx that differ")
    models = []
    for i, name in sorted(names.items()):
        known = data["metadata"].get(str(i), {})
        if not name.strip():
            raise Refused(f"{path}: model {i}: expected a name, found {name!r}")
        model = {"name": name, "domain": known.get("domain") or "unknown", "family": known.get("family"),
                 "description": known.get("card_text")}
        models.append({key: value for key, value in model.items() if value is not None})
    return models


def adapter(checkpoint, to, hidden):
    """Writes the adapter in PEFT's form with the names of a plain encoder; returns the name of its base model."""
    path = checkpoint / "adapter_config.json"
    if not path.exists():
        return None
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise Refused(f"{path}: peft_type: expected LORA, found {config.get('peft_type')}")
    weights = checkpoint / "adapter_model.safetensors"
    if weights.exists():
        tensors = load_file(weights)
    else:
        tensors = torch.load(checkpoint / "adapter_model.bin", map_location="cpu", weights_only=True)
    factors = {}
    for name, value in tensors.items():
        match = FACTOR.match(name)
        if not match:
            raise Refused(f"{checkpoint}: expected factors of encoder.layer.N in the adapter, found {name}")
        value = np.ascontiguousarray(value.to(torch.float32).numpy())
        if value.ndim != 2 or not np.isfinite(value).all():
            raise Refused(f"{checkpoint}: {name}: expected a matrix of finite numbers, found {list(value.shape)}")
        factors[f"base_model.model.{match[1]}.weight"] = value
    first = factors.get("base_model.model.encoder.layer.0.attention.self.query.lora_A.weight")
    if first is not None and first.shape[1] != hidden:
        raise Refused(f"{checkpoint}: expected factors of width {hidden}, as W has it, found {first.shape[1]}")
    to.mkdir()
    save_file(factors, to / "adapter_model.safetensors")
    (to / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return config.get("base_model_name_or_path")


def read_json(path):
    if not path.exists():
        raise Refused(f"{path}: expected a file, found none")
    return json.loads(path.read_text(encoding="utf-8"))


def digest(path):
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    main()
