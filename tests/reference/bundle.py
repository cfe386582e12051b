"""Parity bundles: a folder with `parity.json`, which names every other file with its bytes and SHA-256."""

import hashlib
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file

#: Of a checkpoint; a bundle's files are those of its manifest.
CHECKPOINT = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
              "sentence_bert_config.json", "config_sentence_transformers.json", "modules.json", "1_Pooling/config.json",
              "README.md", "LICENSE*", "manifest.json"]


class Bundle:
    """The bundle in `folder`, which may have parts from an earlier call by the same program in the same mode."""

    def __init__(self, folder, name, made_by):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = {"kind": "hubrouter-parity", "schema_version": 1, "name": name, "made_by": made_by, "files": {},
                         "encoder": None, "prompts": None, "forward": None, "router": None, "learning": None}
        path = self.folder / "parity.json"
        if path.exists():
            old = json.loads(path.read_text())
            for key in ("kind", "schema_version", "name", "made_by"):
                assert old[key] == self.manifest[key], f"{path}: {key}: expected {self.manifest[key]}, found {old[key]}"
            self.manifest = old

    def tensors(self, name, tensors):
        """Writes `name`; f64 stays f64."""
        kinds = (np.float32, np.float64, np.int32)
        for key, value in tensors.items():
            assert value.dtype in kinds and np.isfinite(value).all(), f"{name}: {key}"
        self.folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, self.folder / name)
        self.note(name)

    def copy(self, source, patterns, to):
        """Copies files of the folder `source` into the bundle's folder `to`."""
        shutil.rmtree(self.folder / to, ignore_errors=True)
        files = self.manifest["files"]
        self.manifest["files"] = {name: file for name, file in files.items() if not name.startswith(f"{to}/")}
        for pattern in patterns:
            for path in sorted(Path(source).glob(pattern)):
                name = f"{to}/{path.relative_to(source).as_posix()}"
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.folder / name)
                self.note(name)

    def note(self, name):
        data = (self.folder / name).read_bytes()
        self.manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def write(self):
        self.manifest["files"] = dict(sorted(self.manifest["files"].items()))
        (self.folder / "parity.json").write_text(lines(self.manifest) + "\n", encoding="ascii")


def lines(value, depth=0):
    """JSON with a line for each entry of the outer objects and lists."""
    if depth > 1 or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    indent = "\n" + " " * (depth + 1)
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {rows(entry, depth + 1)}" for key, entry in value.items()]
        return "{" + indent + f",{indent}".join(entries) + "\n" + " " * depth + "}"
    return "[" + indent + f",{indent}".join(json.dumps(entry) for entry in value) + "\n" + " " * depth + "]"


def rows(value, depth):
    """A list of objects has a line for each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        indent = "\n" + " " * (depth + 1)
        return "[" + indent + f",{indent}".join(json.dumps(entry) for entry in value) + "\n" + " " * depth + "]"
    return lines(value, depth)


def made_by(device, mode, flags, seed):
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                "safetensors": safetensors.__version__, "numpy": np.__version__}
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"program": "tests/reference/parity.py", "version": "1", "versions": versions, "device": str(device),
            "device_name": name, "mode": mode, "flags": flags, "threads": torch.get_num_threads(), "seed": seed}
