#!/usr/bin/env python3
"""Tests of the programs in this folder that need no weights: `python test_reference.py`."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

import memory
from carve import E, W, check_vectors
from convert import Refused, convert
from data import dataset
from encoders import fnv, mix, word_hashes
from learning import Plan, Settings


class Formulas(unittest.TestCase):
    def test_vectors_of_carve_md(self):
        check_vectors()

    def test_splitmix64(self):
        """V8: the first outputs from 0."""
        step = 0x9E3779B97F4A7C15
        outputs = [mix(step * (i + 1) % 2**64) for i in range(3)]
        self.assertEqual(outputs, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F])

    def test_words_and_pairs_count_once(self):
        """As src/text/words.rs tests it: odd ids go on with a word."""
        def found(ids):
            return word_hashes(ids, {id for id in range(10) if id % 2})

        self.assertEqual(len(found([2, 4, 2, 4])), 4)
        self.assertNotEqual(found([2, 4]), found([4, 2]))
        self.assertEqual(found([2, 3, 5]), [mix(fnv(0xCBF29CE484222325, [2, 3, 5])) >> 32])

    def test_remembered_layers(self):
        for (count, hidden), want in [((6, 384), [2, 3, 4, 5]), ((12, 384), [4, 5, 7, 8, 9, 11]),
                                      ((12, 768), [5, 8, 11]), ((2, 32), [0, 1]), ((24, 4096), [23])]:
            self.assertEqual(memory.usual_layers(count, hidden), want)

    def test_quantized(self):
        found = memory.quantized(np.array([1.0, -1.0, 0.0, 0.02, -0.024, 1.001]))
        self.assertEqual(found.tolist(), [64, -64, 0, 1, -2, 64])

    def test_unpack(self):
        """A block of 32 values of 3 bits: 0, -1, 1, -2, 2, ... in zigzag."""
        bits = sum((i % 8) << (3 * i) for i in range(32))
        values, rest = memory.unpack(bytes([3]) + bits.to_bytes(12, "little") + b"x", 30)
        self.assertEqual((values[:5], len(values), rest), ([0, -1, 1, -2, 2], 30, b"x"))

    def test_naive_bayes(self):
        """As src/memory/served.rs tests it: three prompts of domain 0, one of domain 1, none of domain 2."""
        words = memory.Words([3, 1, 0], {(3, 0): 2, (7, 0): 1, (7, 1): 1})
        smooth = memory.SMOOTHING

        def p(share, counts, total):
            return np.log((share + 0.5) / 5.5) + sum(np.log((n + smooth) / (total + 2 * smooth)) for n in counts)

        want = np.array([p(3, [2, 1], 3), p(1, [0, 1], 1), p(0, [0, 0], 0)])
        np.testing.assert_allclose(words.scores([3, 5, 7]), want - want[0], atol=1e-6)


class Solving(unittest.TestCase):
    """`memory.solve` against its formulas, with the inverse of S in place of factors and directions."""

    def test_scores_are_those_of_the_gaussians(self):
        rng = np.random.default_rng(0)
        layers, hidden, models = 2, 5, 7
        domains = np.array([0, 0, 1, 1, 1, 2, 2])
        counts = np.array([3, 1, 4, 0, 2, 5, 2])
        centres = rng.normal(size=(models, layers, hidden))
        q, golds = [], []
        for model, count in enumerate(counts):
            for _ in range(count):
                x = centres[model] + rng.normal(size=(layers, hidden))
                q.append(memory.quantized((x / np.linalg.norm(x, axis=1, keepdims=True)).ravel()))
                golds.append(model)
        q, golds, cards = np.array(q), np.array(golds), rng.normal(size=(models, 3))
        sums = np.stack([q[golds == model].sum(0) for model in range(models)])
        solved = memory.solve(counts, sums, q.T @ q, domains, cards, layers, 384)

        scale = 1 / (64 * np.sqrt(2))
        x, s = q * scale, sums * scale
        within = sum(np.outer(v, v) for v in (x[i] - x[golds == golds[i]].mean(0) for i in range(len(x))))
        free = len(x) - (counts > 0).sum()
        inverse = np.linalg.inv(0.3 * within / free + 0.7 * np.trace(within) / free / 10 * np.eye(10))
        mu = memory.means(s, counts.astype(float), domains, cards)
        for prompt in x:
            want = mu @ inverse @ prompt - np.einsum("ij,jk,ik->i", mu, inverse, mu) / 2
            place = solved.projection @ (prompt * np.sqrt(2)) + solved.bias
            got = solved.keys @ place + solved.offsets
            np.testing.assert_allclose(got - got[0], want - want[0], atol=1e-8)

    def test_rows_that_depend_on_others_are_dropped(self):
        v = np.random.default_rng(1).normal(size=(5, 40))
        v[2], v[4] = v[0] - 3 * v[1], 0
        q = memory.orthonormal(v)
        np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(v @ q.T @ q, v, atol=1e-10)


class Plans(unittest.TestCase):
    def test_a_seed_makes_the_same_rows(self):
        first, again, other = (dataset(seed, 6, 5) for seed in (1, 1, 2))
        self.assertEqual(first[2], again[2])
        self.assertNotEqual(first[2], other[2])
        self.assertEqual(len({row["text"] for row in first[2]}), len(first[2]))

    def test_weights_are_a_mean_or_a_sum(self):
        """Of each micro-batch over its rows; over the micro-batches as the profile says."""
        for profile, whole in [("intended", 1.0), ("reference", None)]:
            for step in Plan(Settings.of(profile), 40).steps:
                if step.phase == 2:
                    total = sum(item.weight for batch in step.batches for item in batch)
                    self.assertAlmostEqual(total, whole or len(step.batches))

    def test_phases(self):
        plan = Plan(Settings.of("intended"), 40)
        for t in range(3):
            own = [step for step in plan.steps if step.experience == t]
            frozen = sum(step.phase == 1 for step in own)
            rows = sum(len(batch) for step in own for batch in step.batches) // plan.settings.epochs
            micro = -(-rows // plan.settings.batch)
            self.assertEqual(len(own), 4 * -(-micro // 2))
            self.assertEqual(frozen, int(0.4 * (micro // 2) * 4) if t else 0)
            self.assertTrue(all(step.phase == 1 for step in own[:frozen]))
            self.assertTrue(all((step.anchors is not None) == (t > 0) for step in own))


class Conversion(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.checkpoint = self.folder / "checkpoint"
        self.make()

    def make(self, config=(), state=None, names=("b/two", "a/One", "c")):
        """A checkpoint as the reference writes it: 3 models, width 4, hidden width 6."""
        torch.manual_seed(0)
        self.checkpoint.mkdir(exist_ok=True)
        self.state = state or {W: torch.randn(4, 6).to(torch.bfloat16), E: torch.randn(3, 4)}
        torch.save(self.state, self.checkpoint / "router_model.pt")
        registry = {
            "model2idx": {name: i for i, name in enumerate(names)},
            "idx2model": {str(i): name for i, name in enumerate(names)},
            "metadata": {"0": {"domain": "audio", "family": None, "model_text": names[0], "card_text": "Hears."},
                         "1": {"domain": "audio", "family": "f", "model_text": names[1]}},
            "num_models": 3, "domain2models": {"audio": [0, 1]}, "graph": None}
        (self.checkpoint / "model_registry.json").write_text(json.dumps(registry))
        config = {"num_models": 3, "embedding_dim": 4, "lm_hidden_size": 6, "tau": 0.08, "pooling": "mean",
                  "K_total": 64, **dict(config)}
        (self.checkpoint / "router_config.json").write_text(json.dumps(config))

    def adapter(self, names):
        torch.save({name: torch.ones(2, 6) for name in names}, self.checkpoint / "adapter_model.bin")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/encoder",
                  "target_modules": ["query"]}
        (self.checkpoint / "adapter_config.json").write_text(json.dumps(config))

    def convert(self, **more):
        to = self.folder / "converted"
        convert(self.checkpoint, to, **more)
        return to, json.loads((to / "router.json").read_text())

    def test_a_checkpoint_becomes_a_folder(self):
        to, said = self.convert(encoder="some/encoder")
        head = load_file(to / "router.safetensors")
        np.testing.assert_array_equal(head[W], self.state[W].to(torch.float32).numpy())
        np.testing.assert_array_equal(head[E], self.state[E].numpy())
        self.assertEqual([model["name"] for model in said["models"]], ["b/two", "a/One", "c"])
        self.assertEqual([model["domain"] for model in said["models"]], ["audio", "audio", "unknown"])
        self.assertEqual([model.get("description") for model in said["models"]], ["Hears.", None, None])
        self.assertEqual((said["kind"], said["tau"], said["width"]), ("hubrouter-router", 0.08, 4))
        self.assertEqual(said["encoder"], {"name": "some/encoder", "width": 6, "pooling": "mean"})
        self.assertEqual(list(said["files"]), ["router.safetensors"])
        self.assertNotIn("adapter", said)

    def test_the_adapter_gets_the_names_of_a_plain_encoder(self):
        query = "encoder.layer.0.attention.self.query.lora_A"
        self.adapter([f"base_model.model.bert.{query}.default.weight"])
        to, said = self.convert()
        self.assertEqual(said["encoder"]["name"], "org/encoder")
        factors = load_file(to / "adapter/adapter_model.safetensors")
        self.assertEqual(list(factors), [f"base_model.model.{query}.weight"])
        self.assertEqual(set(said["files"]), {"router.safetensors", "adapter/adapter_config.json",
                                              "adapter/adapter_model.safetensors"})

    def test_what_is_refused(self):
        self.refused("--encoder: expected", encoder=None)
        for config, want in [({"pooling": "last_token"}, "pooling: expected mean"),
                             ({"num_models": 4}, "expected 4 models"), ({"tau": 0.0}, "tau: expected")]:
            self.make(config)
            self.refused(want)
        self.make(names=("a", "a", "b"))
        self.refused("model2idx that differ")
        self.make(state={W: torch.ones(4, 6), E: torch.full((3, 4), torch.nan)})
        self.refused("finite")
        self.make(state={W: torch.ones(4, 6), E: torch.ones(3, 4), "head.bias": torch.ones(1)})
        self.refused("head.bias")
        self.make()
        self.adapter(["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])
        self.refused("q_proj")
        self.assertEqual([path.name for path in self.folder.iterdir()], ["checkpoint"])

    def refused(self, want, encoder="e"):
        with self.assertRaises(Refused) as caught:
            self.convert(encoder=encoder)
        self.assertIn(want, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
