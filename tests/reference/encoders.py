"""Encoders in PyTorch: BERT, RoBERTa and XLM-RoBERTa checkpoints, and hubrouter's encoder bundles.

`Encoder` knows a folder's network, tokenizer, pooling, prefixes and limit. Prompts are encoded one at a time, so that
nothing is padded. `Adapted` puts LoRA on a linear map (docs/carve.md section 2).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel

#: The linear maps of a layer that get an adapter.
MAPS = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense"]


class Encoder:
    """The network of `folder` in `dtype` on `device`, with its tokenizer. Nothing in it is trained."""

    def __init__(self, folder, device="cpu", dtype=torch.float32):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        manifest = read_json(self.folder / "manifest.json")
        if manifest and manifest.get("kind") == "hubrouter-encoder":
            self.form, self.revision = "bundle", sha256(self.folder / "manifest.json")
            self.name, self.pooling, self.max_tokens = manifest["name"], manifest["pooling"], manifest["max_tokens"]
            self.query_prefix, self.document_prefix = manifest["query_prefix"], manifest["document_prefix"]
        else:
            self.form, self.revision, self.name = "checkpoint", None, self.folder.resolve().name
            self.pooling, self.max_tokens = stated_pooling(self.folder), stated_limit(self.folder)
            self.query_prefix, self.document_prefix = stated_prefixes(self.folder)
        self.tokenizer_sha256 = sha256(self.folder / "tokenizer.json")
        self.tokenizer = tokenizer(self.folder, self.max_tokens)
        self.model, self.stored = network(self.folder)
        self.model.to(self.device, dtype)
        self.hidden, self.layers = self.model.config.hidden_size, self.model.config.num_hidden_layers
        self.continues = continuing_tokens(self.folder, self.tokenizer)

    def encode(self, text, prefix=None):
        """The tokens of a prompt, special ones included, as the tokenizers package gives them."""
        text = text.strip().replace("\r\n", "\n").strip()
        return self.tokenizer.encode((self.query_prefix if prefix is None else prefix) + text)

    def ids(self, text):
        return self.encode(text).ids

    def document_ids(self, text):
        return self.encode(text, self.document_prefix).ids

    def states(self, ids):
        """The output of the embeddings and of every layer, each [tokens, H]."""
        batch = torch.tensor([ids], device=self.device)
        out = self.model(input_ids=batch, attention_mask=torch.ones_like(batch), output_hidden_states=True)
        return [states[0] for states in out.hidden_states]

    def pooled(self, ids):
        """h [H]"""
        return pool(self.states(ids)[-1], self.pooling)

    def padded(self, prompts):
        """h [B, H] of prompts (their ids) in one batch, padded on the right and masked."""
        longest = max(map(len, prompts))
        pad = self.model.config.pad_token_id or 0
        batch = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in prompts], device=self.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=self.device)
        states = self.model(input_ids=batch, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        mask = mask[:, :, None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    def words(self, text):
        """Hashes of the text's words and of each two that follow each other, ascending (src/text/words.rs)."""
        encoding = self.encode(text)
        own = [token for token, special in zip(encoding.ids, encoding.special_tokens_mask) if not special]
        return word_hashes(own, self.continues)


def pool(states, pooling):
    """h [H] of the last layer's output [tokens, H]."""
    return states.mean(0) if pooling == "mean" else states[0]


def network(folder):
    """The network of a checkpoint or bundle in f32, by transformers, with plain (eager) attention; and the element type
    that its weights are stored in.

    Loaded by hand: shards of any element type, a prefix such as `bert.`, and the gamma and beta of old files.
    """
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager")
    tensors = {}
    for shard in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(shard)
    marker = "embeddings.word_embeddings.weight"
    prefix = next(name for name in tensors if name.endswith(marker)).removesuffix(marker)
    state = {}
    for name, value in tensors.items():
        name = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        state[name.replace("LayerNorm.beta", "LayerNorm.bias")] = value.to(torch.float32)
    result = model.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("pooler") and "position_ids" not in name]
    assert not missing, f"{folder}: expected {missing[0]}, found no such tensor"
    return model.eval().requires_grad_(False), tensors[prefix + marker].dtype


def tokenizer(folder, limit):
    tok = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tok.no_padding()
    tok.enable_truncation(limit)
    return tok


def stated_pooling(folder):
    """`mean` or `cls`, by the checkpoint's pooling module."""
    modules = read_json(folder / "modules.json") or []
    paths = [module["path"] for module in modules if module["type"].endswith("Pooling")]
    config = read_json(folder / (paths[0] if paths else "1_Pooling") / "config.json") or {}
    if "pooling_mode" in config:
        return config["pooling_mode"]
    return "cls" if config.get("pooling_mode_cls_token") else "mean"


def stated_limit(folder):
    """The smallest number of tokens that the checkpoint states anywhere, as `hubrouter encoder import` takes it."""
    config = read_json(folder / "config.json")
    first = config["pad_token_id"] + 1 if "roberta" in config["model_type"] else 0
    limits = [config["max_position_embeddings"] - first]
    limits.append(((read_json(folder / "tokenizer.json") or {}).get("truncation") or {}).get("max_length"))
    limits.append((read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length"))
    limits.append((read_json(folder / "tokenizer_config.json") or {}).get("model_max_length"))
    return min(limit for limit in limits if isinstance(limit, int))


def stated_prefixes(folder):
    """The texts before a prompt and before a model card."""
    prompts = (read_json(folder / "config_sentence_transformers.json") or {}).get("prompts", {})
    return prompts.get("query", ""), prompts.get("passage", prompts.get("document", ""))


def continuing_tokens(folder, tok):
    """Ids of the tokens that go on with the word before them: WordPiece marks those that do, others those that begin
    one."""
    model = read_json(Path(folder) / "tokenizer.json")["model"]
    if model["type"] == "WordPiece":
        mark = model["continuing_subword_prefix"]
        return {number for token, number in tok.get_vocab().items() if mark and token.startswith(mark)}
    if model["type"] == "WordLevel":
        return set()
    return {number for token, number in tok.get_vocab().items() if not token.startswith(("\u2581", "\u0120"))}


def word_hashes(ids, continues):
    words = []
    for token in ids:
        if words and token in continues:
            words[-1].append(token)
        else:
            words.append([token])
    hashes, before = set(), None
    for word in words:
        state = fnv(0xCBF29CE484222325, word)
        hashes.add(mix(state) >> 32)
        if before is not None:
            # No token has the id between the two words of a pair.
            hashes.add(mix(fnv(fnv(before, [0xFFFFFFFF]), word)) >> 32)
        before = state
    return sorted(hashes)


def fnv(state, ids):
    """64-bit FNV-1a over ids, going on from `state`."""
    for token in ids:
        state = ((state ^ token) * 0x100000001B3) % 2**64
    return state


def mix(z):
    """The finisher of splitmix64 (Steele et al., 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


class Adapted(nn.Module):
    """y = x W^T + b + scale (x La^T) Lb^T; the map itself is frozen."""

    def __init__(self, base, a, b, scale):
        super().__init__()
        self.base, self.a, self.b, self.scale = base, a, b, scale

    def forward(self, x):
        return self.base(x) + self.scale * ((x @ self.a.T) @ self.b.T)


def maps(model):
    """Path and module of every adapted map, in the order of the layers."""
    for layer in range(model.config.num_hidden_layers):
        for name in MAPS:
            path = f"encoder.layer.{layer}.{name}"
            yield path, model.get_submodule(path)


def adapt(model, parameters, scale):
    """Puts the factors `<map>.lora_A.weight`, `<map>.lora_B.weight` of `parameters` on the maps that have some."""
    for path, linear in list(maps(model)):
        if f"{path}.lora_A.weight" in parameters:
            a, b = parameters[f"{path}.lora_A.weight"], parameters[f"{path}.lora_B.weight"]
            model.set_submodule(path, Adapted(linear, a, b, scale))


@torch.no_grad()
def merge(encoder, parameters, scale):
    """Adds the adapters to the weights, as hubrouter serves them: rounded to f16 where the encoder is stored in f16.

    The products are added in the order of the rank, so that f16 rounds the same numbers on both sides.
    """
    for path, linear in maps(encoder.model):
        if f"{path}.lora_A.weight" in parameters:
            a, b = (parameters[f"{path}.lora_{part}.weight"].to(linear.weight) for part in "AB")
            merged = linear.weight.clone()
            for row, column in zip(a, b.T):
                merged += (scale * column)[:, None] * row
            linear.weight.copy_(merged.to(torch.float16) if encoder.stored == torch.float16 else merged)


def read_json(path):
    """None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def numbers(tensor):
    """A copy of a tensor as an f32 array."""
    return np.array(tensor.detach().to("cpu", torch.float32))
