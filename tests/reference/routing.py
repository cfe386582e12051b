"""A generation of hubrouter in PyTorch: its router's queries, parts of scores and ranking (docs/memory.md)."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn.functional import normalize

import memory
from carve import E, W, domain_key
from encoders import merge, pool


class Generation:
    """The generation `folder`, for an encoder whose weights get its adapter."""

    def __init__(self, folder, encoder):
        self.folder, self.encoder = Path(folder), encoder
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        pin, own = self.manifest["encoder"]["sha256"], encoder.revision
        assert own in (pin, None), f"{folder}: expected the encoder {pin}, found {own}"
        self.models = json.loads((self.folder / "hub.json").read_text())["models"]
        self.tau = self.manifest["tau"]
        head = load_file(self.folder / "head.safetensors")
        self.w, self.e = (encoder_tensor(encoder, head[name]) for name in (W, E))
        keys = [domain_key(model["domain"]) for model in self.models]
        self.domains = sorted(set(keys))
        self.of = np.array([self.domains.index(key) for key in keys])
        self.retired = np.array([bool(model.get("retired")) for model in self.models])
        self.merge_adapter()
        self.recall = self.words = None
        if (self.folder / "memory.json").exists():
            self.read_memory()

    def merge_adapter(self):
        lora = self.manifest.get("adapter")
        if lora:
            factors = load_file(self.folder / "adapter.safetensors")
            named = {name.removeprefix("base_model.model."): encoder_tensor(self.encoder, value)
                     for name, value in factors.items()}
            merge(self.encoder, named, lora["alpha"] / lora["r"])

    def read_memory(self):
        self.strengths = json.loads((self.folder / "memory.json").read_text())["strengths"]
        recall = load_file(self.folder / "recall.safetensors")
        self.layers = recall["layers"].tolist()
        self.recall = memory.Solved(*(recall[name].astype(np.float64) for name in ("projection", "bias", "keys")))
        self.recall.offsets, self.prompts = recall["offsets"].astype(np.float64), recall["prompt_counts"]
        stored = load_file(self.folder / "words.safetensors")
        count, names = int(stored["entries"][0]), stored["domains"].tobytes().decode().split("\n")
        rest, columns = stored["word_domain_count"].tobytes(), []
        for _ in range(3):
            column, rest = memory.unpack(rest, count)
            columns.append(column)
        words = np.cumsum(columns[0]).tolist()
        counts = {(word, self.domains.index(names[domain])): n for word, domain, n in zip(words, *columns[1:])}
        prompts = [int(self.prompts[self.of == domain].sum()) for domain in range(len(self.domains))]
        self.words = memory.Words(prompts, counts)

    @torch.no_grad()
    def parts(self, text):
        """Of one prompt: the unit query, and by part the scores of all models (of domains: `words`); `place` is the
        prompt in the memory's space."""
        states = self.encoder.states(self.encoder.ids(text))
        u = normalize(self.w @ pool(states[-1], self.encoder.pooling), dim=0, eps=1e-12)
        cosines = (normalize(self.e, dim=1, eps=1e-12) @ u).to("cpu", torch.float64).numpy()
        out = {"queries": u.to("cpu", torch.float64).numpy(), "learned": cosines / self.tau}
        if self.recall is None:
            return out | {"scores": out["learned"]}
        strength = self.strengths
        x = memory.units(states, self.layers).to("cpu", torch.float64).numpy()
        place = self.recall.projection @ x + self.recall.bias
        newcomer = np.where(self.prompts == 0, strength["newcomer"], 0.0)
        out["learned"] = strength["learned"] * out["learned"]
        out["places"] = place
        out["memory"] = strength["memory"] * (self.recall.keys @ place + self.recall.offsets) + newcomer
        out["words"] = strength["words"] * self.words.scores(self.encoder.words(text))
        out["scores"] = out["learned"] + out["memory"] + out["words"][self.of]
        return out

    def best(self, scores, k):
        """Ids of the `k` best models that are not retired: the larger score first, of equals the lower id."""
        order = np.lexsort((np.arange(len(scores)), -scores))
        return [int(i) for i in order if not self.retired[i]][:k]


def encoder_tensor(encoder, value):
    return torch.tensor(value).to(encoder.device, encoder.dtype)


def current(store):
    """The folder of a store's current generation."""
    store = Path(store)
    return store / (store / "current").read_text().strip()
