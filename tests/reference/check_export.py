#!/usr/bin/env python3
"""Loads a folder of `hubrouter generation export` with other libraries and compares their vectors with its samples.

  check_export.py FOLDER

Compared are tokens, pooled vectors by transformers with PEFT's adapter beside the weights, the same merged by PEFT,
queries by W and by sentence-transformers, and scores by W and E. Every element must be within 2e-5 (1 + |want|).

An encoder that is stored in f16 is served with merged weights in f16. The adapter beside the weights is then within
2e-3. Weights merged by PEFT are rounded here, too: its f32 sums differ in the last bit, so that some weights are a step
of f16 apart, and vectors are within 2e-4.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from carve import E, W, scores
from encoders import maps, pool

#: Of served weights; of weights that were rounded to f16 from other sums; of weights that were not rounded.
BOUND, BOUND_OF_ROUNDED, BOUND_OF_UNROUNDED = 2e-5, 2e-4, 2e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(0 if all(list(check(args.folder))) else 1)


@torch.no_grad()
def check(folder):
    """One verdict for each way; prints them."""
    said = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    for name, file in said["files"].items():
        data = (folder / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, f"{name}: its hash differs"
    samples, router = load_file(folder / said["samples"]), load_file(folder / "router.safetensors")
    w, e = torch.tensor(router[W]), torch.tensor(router[E])
    assert len(said["models"]) == len(e), f"expected {len(e)} models, found {len(said['models'])}"
    encoder, prompts = said["encoder"], said["prompts"]
    tokenizer = AutoTokenizer.from_pretrained(folder / said["base"])
    texts = [encoder["query_prefix"] + prompt.strip() for prompt in prompts]
    ids = [tokenizer(text, truncation=True, max_length=encoder["max_tokens"])["input_ids"] for text in texts]
    yield verdict("tokens", ids == [samples[f"{i}.ids"].tolist() for i in range(len(prompts))], len(prompts))

    network = AutoModel.from_pretrained(folder / said["base"], dtype=torch.float32, attn_implementation="eager").eval()
    merged_bound = BOUND
    if said.get("adapter"):
        rounded = said.get("merged_in") == "f16"
        merged_bound = BOUND_OF_ROUNDED if rounded else BOUND
        adapted = PeftModel.from_pretrained(network, folder / said["adapter"]).eval()
        bound = BOUND_OF_UNROUNDED if rounded else BOUND
        yield compare("transformers + PEFT: pooled", pooled(adapted, ids, encoder), samples["pooled"], bound)
        factors = load_file(folder / said["adapter"] / "adapter_model.safetensors")
        network = adapted.merge_and_unload()
        for path, linear in maps(network):
            if rounded and f"base_model.model.{path}.lora_A.weight" in factors:
                linear.weight.copy_(linear.weight.to(torch.float16))
    h = pooled(network, ids, encoder)
    yield compare("transformers, merged: pooled", h, samples["pooled"], merged_bound)
    u = torch.nn.functional.normalize(torch.tensor(h) @ w.T, dim=1).numpy()
    yield compare("W: queries", u, samples["queries"], merged_bound)
    cosines = scores(torch.tensor(h), w, e, tau=1.0).numpy()
    yield compare("W and E: cosines", cosines, samples["learned"] * said["tau"], merged_bound)
    sentence = SentenceTransformer(str(folder / said["sentence_transformers"]), device="cpu")
    yield compare("sentence-transformers: queries", sentence.encode(prompts), samples["queries"])


def pooled(network, prompts, encoder):
    """h of each prompt, encoded alone."""
    rows = []
    for ids in prompts:
        batch = torch.tensor([ids])
        states = network(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state[0]
        rows.append(pool(states, encoder["pooling"]))
    return torch.stack(rows).numpy()


def compare(what, got, want, bound=BOUND):
    error = (np.abs(got - want) / (1 + np.abs(want))).max() if got.shape == want.shape else np.inf
    return verdict(f"{what}: {error:.1e} of at most {bound:.0e}", bool(error <= bound), len(want))


def verdict(what, good, count):
    print(f"{'ok' if good else 'FAILED'}: {what}, {count} prompts")
    return good


if __name__ == "__main__":
    main()
