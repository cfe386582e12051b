#!/usr/bin/env python3
"""The memory of sums beside known classifiers: the same rows, vectors and labels, all learnt at once, on one thread.

A text is x: the token means of all layers of the frozen encoder, each of length one, times 256 and rounded, over
256 sqrt(layers). The memory keeps a count and a sum of x for each model and X^T X for all. Its peers are scikit-learn's, or
a few lines where scikit-learn has none, on the same x or on the words of the prompts. What a peer leaves open is chosen on
the development rows, one training row of each model that has two, never on the public eval rows that are reported. The
memory's own settings are fixed. Beside the labels it knows the card and the domain of each model, which the peers have no use for.

    pip install numpy scikit-learn safetensors torch transformers
    python benches/peers/memory.py --data CMR --encoder weights/all-MiniLM-L6-v2 --cache /tmp/vectors
    python benches/peers/memory.py --data CMR --encoder weights/all-MiniLM-L6-v2 --cache /tmp/vectors --only memory,ridge

Model, family and domain: accuracy in percent, the mean of the four experiences. Seconds of one core to fit all training
rows, with the settings chosen. Microseconds of one core to score a prompt against every model, in one batch of all eval rows:
encoding is not timed, counting words is. MB in f32: what serving reads, and what must be kept to learn the next rows as if
they had come with the first; for a method that has no such sums that is every row.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import hashlib
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parent.parent.parent
CARDS = ROOT / "weights" / "cmrbench" / "g0001-81f83b2c92b0"
STEMS = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"]
STEPS = 256
SHRINKAGE, STRENGTH, PSEUDO, RIDGE, RANK = 0.7, 6, 2, 0.5, 384
COSINE, GAUSS, WORDS = 0.32 / 0.08, 0.03, 0.06


# Rows

def key(text):
    return " ".join(text.split()).lower()


class Rows:
    """Every training and public eval row in order, and the hub: ids, family and domain of each model."""

    def __init__(self, folder, hub):
        root = Path(folder)
        root = root / "data" if (root / "data" / "processed").is_dir() else root
        prefix = re.compile(r"^\s*#+\s*instruction\s*:?\s*", re.IGNORECASE)
        models = json.loads(Path(hub).read_text(encoding="utf-8"))["models"]
        ids = {model["name"]: i for i, model in enumerate(models)}
        domains = sorted({key(model["domain"]) for model in models})
        families = [model.get("family") or model["name"] for model in models]
        self.domain_of = np.array([domains.index(key(model["domain"])) for model in models])
        self.family_of = np.unique(families, return_inverse=True)[1]
        self.models, self.domains = len(models), len(domains)
        self.text, gold, domain, experience, split = [], [], [], [], []
        for number, stem in enumerate(STEMS, 1):
            for part in ("train", "val", "eval"):
                path = root / "processed" / f"cleaned-{stem}-{part}.json"
                if part == "train" and not path.is_file():
                    continue
                for row in map(json.loads, filter(str.strip, open(path, encoding="utf-8"))):
                    self.text.append(prefix.sub("", row["instruction"]).strip())
                    gold.append(ids[row["model_name"]])
                    domain.append(domains.index(key(row["domain"])) if key(row["domain"]) in domains else -1)
                    experience.append(number)
                    split.append("eval" if part == "eval" else "train")
        self.gold, self.domain, self.experience = np.array(gold), np.array(domain), np.array(experience)
        # The development row of a model in an experience is the one whose text has the smallest digest.
        split, of = np.array(split, dtype="<U5"), {}
        for i in np.flatnonzero(split == "train"):
            of.setdefault((experience[i], gold[i]), []).append(i)
        for places in of.values():
            if len(places) > 1:
                split[min(places, key=lambda i: hashlib.sha256(key(self.text[i]).encode()).digest())] = "dev"
        self.fit, self.dev, self.eval = (np.flatnonzero(split == name) for name in ("train", "dev", "eval"))
        self.learn = np.flatnonzero(split != "eval")

    def accuracy(self, predicted, rows):
        """Model, family and domain in percent, the mean of the experiences."""
        right = np.stack([predicted == self.gold[rows], self.family_of[predicted] == self.family_of[self.gold[rows]],
                          self.domain_of[predicted] == self.domain[rows]])
        return 100 * np.mean([right[:, self.experience[rows] == e].mean(1) for e in np.unique(self.experience)], axis=0)


# Vectors

def encode(texts, bundle, cache):
    """q [rows, layers x width] as int16: 256 times the unit token mean of every layer, rounded."""
    bundle = Path(bundle)
    about = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    texts = [about.get("query_prefix", "") + text for text in texts]
    name = hashlib.sha256(json.dumps([about["files"], about["max_tokens"], texts], sort_keys=True).encode()).hexdigest()
    path = Path(cache) / f"layers-{name[:16]}.npy"
    if path.is_file():
        return np.load(path)
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = transformers.AutoModel.from_pretrained(bundle, dtype=torch.float32).eval()
    encodings = tokenizer(bundle, about["max_tokens"]).encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
    out, started = None, time.perf_counter()
    for at in range(0, len(order), 32):
        chosen = order[at : at + 32]
        width = max(len(encodings[i].ids) for i in chosen)
        ids, mask = torch.zeros(len(chosen), width, dtype=torch.long), torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(encodings[i].ids)], mask[row, : len(encodings[i].ids)] = torch.tensor(encodings[i].ids), 1
        with torch.inference_mode():
            layers = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
            real = mask.unsqueeze(-1).float()
            means = [torch.nn.functional.normalize((layer * real).sum(1) / real.sum(1), dim=1) for layer in layers]
        part = np.rint(torch.cat(means, 1).double().numpy() * STEPS)
        out = np.zeros((len(texts), part.shape[1]), dtype=np.int16) if out is None else out
        out[chosen] = part
    print(f"encoded {len(texts)} texts in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, out)
    return out


def tokenizer(bundle, max_tokens):
    from tokenizers import Tokenizer
    tokens = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokens.enable_truncation(max_tokens)
    tokens.no_padding()
    return tokens


# The memory

def splitmix64(z):
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def signs(rows, columns):
    bits = splitmix64(np.arange(rows * columns, dtype=np.uint64).reshape(rows, columns)) >> np.uint64(63)
    return np.where(bits == 0, 1.0, -1.0)


def means(values, of, groups):
    """Sum of `values` and number of rows for each group."""
    out = np.zeros((groups, values.shape[1]))
    np.add.at(out, of, values)
    return out, np.bincount(of, minlength=groups).astype(float)


def reference(q, layers, gold, cards, domain_of):
    """P [384, d], bias [384], keys [models, 384], offsets [models] in f64.

    `q` whole numbers [rows, d], `gold` the model of each row, `cards` unit rows [models, width], `domain_of` a number for
    each model. A model may have no row. The score of a prompt is (x P^T + bias) keys^T + offsets, x = real(q, layers).
    """
    models, domains, d = len(domain_of), domain_of.max() + 1, q.shape[1]
    # Sums of whole numbers are exact in f64, in whatever order they come; scaled once, at the end.
    one = 1 / (STEPS * np.sqrt(layers))
    whole = q.astype(float)
    sums, n = means(whole, gold, models)
    s, xx = sums * one, whole.T @ whole * one**2
    known = n > 0
    average = s.sum(0) / n.sum()
    within = xx - (s[known] / n[known, None]).T @ s[known]
    within /= max(1, n.sum() - known.sum())
    covariance = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / d * np.eye(d)

    g, of_domain = means(s, domain_of, domains)
    prompts = np.bincount(domain_of, weights=n, minlength=domains)
    g = (g + PSEUDO * average) / (prompts + PSEUDO)[:, None]
    middle = means(cards, domain_of, domains)[0] / of_domain[:, None]
    dc, w = cards - middle[domain_of], n / (n + 1)
    dy = np.where(known[:, None], s / np.maximum(n, 1)[:, None], 0) - g[domain_of]
    a = np.linalg.solve((dc * w[:, None]).T @ dc + RIDGE * np.eye(dc.shape[1]), (dc * w[:, None]).T @ dy)
    mu = (s + STRENGTH * (g[domain_of] + dc @ a)) / (n + STRENGTH)[:, None]

    chol = np.linalg.cholesky(covariance)
    centre = mu.mean(0)
    white = solve_triangular(chol, (mu - centre).T, lower=True).T
    v = signs(d, min(RANK, d))
    for _ in range(3):
        v = np.linalg.qr(white.T @ (white @ v))[0]
    p = solve_triangular(chol, v, lower=True, trans="T").T
    keys = (mu - centre) @ p.T
    return p, -p @ centre, keys, -(keys**2).sum(1) / 2


def real(q, layers):
    return q / (STEPS * np.sqrt(layers))


def words_of_domains(texts, domain, domains, smoothing=0.05):
    """Naive Bayes over domains on the words and pairs of neighbours of the prompts: the counter, and what each adds."""
    counter = CountVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), binary=True, dtype=np.float64)
    present = counter.fit_transform(texts)
    counts = present.T @ sparse.csr_array(np.eye(domains)[domain])
    n, total = np.bincount(domain, minlength=domains), np.asarray(counts.sum(0)).ravel()
    weights = np.log(counts.toarray() + smoothing) - np.log(total + smoothing * counts.shape[0])
    prior = np.log((n + 0.5) / (n.sum() + 0.5 * domains))
    held = 8 * counts.shape[0] + 4 * counts.nnz
    return counter, weights, prior, held


# Each has settings by name to choose from, fit(rows, setting), predict(rows) -> model ids, and then bytes (serving, learning).

class Memory:
    settings, label = {"": None}, "memory of sums, alone"

    def __init__(self, data, words=False):
        self.data, self.words = data, words
        if words:
            self.label = "memory of sums + words + card"

    def fit(self, rows, _):
        data = self.data
        self.parts = reference(data.q[rows], data.layers, data.rows.gold[rows], data.cards, data.rows.domain_of)
        self.fast = [part.astype(np.float32) for part in self.parts]
        d, m = data.q.shape[1], data.rows.models
        serve, learn = sum(part.size for part in self.parts) * 4, 4 * (m * (d + 1) + d * (d + 1) // 2 + data.cards.size)
        if self.words:
            texts = [data.rows.text[i] for i in rows]
            *self.bayes, held = words_of_domains(texts, data.rows.domain[rows], data.rows.domains)
            serve, learn = serve + 4 * data.cards.size + held, learn + held
        self.bytes = serve, learn

    def predict(self, rows, parts=None):
        data = self.data
        p, bias, keys, offsets = parts or self.fast
        scores = (data.x[rows].astype(p.dtype) @ p.T + bias) @ keys.T + offsets
        if self.words:
            counter, weights, prior = self.bayes
            words = counter.transform([data.rows.text[i] for i in rows]) @ weights + prior
            u = data.x[rows, -data.cards.shape[1]:]
            u = u / np.linalg.norm(u, axis=1, keepdims=True)
            scores = GAUSS * scores + COSINE * (u @ data.cards.T.astype(u.dtype)) + WORDS * words[:, data.rows.domain_of]
        return scores.argmax(1)

    def exact(self, rows):
        return self.predict(rows, self.parts)


class Vectors:
    """A scikit-learn classifier on x."""

    def __init__(self, data, label, make, settings, size):
        self.data, self.label, self.make, self.settings, self.size = data, label, make, settings, size

    def fit(self, rows, setting):
        self.model = self.make(setting).fit(self.data.x[rows], self.data.rows.gold[rows])
        self.bytes = self.size(len(rows), self.data.rows.models, self.data.x.shape[1], setting)

    def predict(self, rows):
        return self.model.predict(self.data.x[rows])


class Centroids:
    """Nearest class mean, of dense or sparse rows, by distance or by angle."""

    def __init__(self, metric):
        self.metric = metric

    def fit(self, values, gold):
        hot = sparse.csr_array((np.ones(len(gold), dtype=np.float32), (gold, np.arange(len(gold)))))
        n = np.maximum(np.bincount(gold), 1).astype(np.float32)
        self.centroids = sparse.diags_array(1 / n) @ (hot @ values)
        square = (self.centroids.multiply(self.centroids) if sparse.issparse(self.centroids) else self.centroids**2).sum(1)
        if self.metric == "angle":
            self.centroids = sparse.diags_array(1 / np.sqrt(np.maximum(square, 1e-12))) @ self.centroids
            square = np.zeros_like(square)
        self.offsets = -square / 2
        return self

    def predict(self, values):
        scores = values @ self.centroids.T
        return ((scores.toarray() if sparse.issparse(scores) else scores) + self.offsets).argmax(1)


class Linear:
    """Argmax of a linear map of `lift(x)`, solved from its Gram matrix and class sums."""

    def __init__(self, data, label, settings):
        self.data, self.label, self.settings = data, label, settings

    def lift(self, x):
        return x

    def solve(self, gram, sums, n, setting):
        """Weights [classes, d], offsets."""
        raise NotImplementedError

    def fit(self, rows, setting):
        h, gold = self.lift(self.data.x[rows]), self.data.rows.gold[rows]
        sums, n = means(h, gold, self.data.rows.models)
        gram = h.T.astype(float) @ h.astype(float)
        self.weights, self.offsets = (part.astype(np.float32) for part in self.solve(gram, sums, n, setting))
        m, d = sums.shape
        self.bytes = 4 * (m * (d + 1) + self.extra()), 4 * (m * (d + 1) + d * (d + 1) // 2 + self.extra())

    def extra(self):
        return 0

    def predict(self, rows):
        return (self.lift(self.data.x[rows]) @ self.weights.T + self.offsets).argmax(1)


class RanPac(Linear):
    """RanPAC: random ReLU features of x, ridge regression on one-hot models."""

    def lift(self, x):
        if not hasattr(self, "map"):
            self.map = np.random.default_rng(1).standard_normal((x.shape[1], 4096), dtype=np.float32)
        return np.maximum(x @ self.map, 0)

    def solve(self, gram, sums, n, setting):
        scale = np.trace(gram) / len(gram)
        return cho_solve(cho_factor(gram + setting * scale * np.eye(len(gram))), sums.T).T, np.zeros(len(n))

    def extra(self):
        return self.map.size


class Discriminant(Linear):
    """Streaming linear discriminant analysis: class means and one shrunk covariance, no prior mean."""

    def solve(self, gram, sums, n, setting):
        mu = sums / np.maximum(n, 1)[:, None]
        within = (gram - mu.T @ sums) / max(1, n.sum() - (n > 0).sum())
        within = (1 - setting) * within + setting * np.trace(within) / len(within) * np.eye(len(within))
        weights = cho_solve(cho_factor(within), mu.T).T
        return weights, -(weights * mu).sum(1) / 2


class Words:
    """A scikit-learn classifier on TF-IDF of words."""

    def __init__(self, data, label, make, settings, size):
        self.data, self.label, self.make, self.settings, self.size = data, label, make, settings, size

    def fit(self, rows, setting):
        pairs, rest = setting
        self.counter = TfidfVectorizer(
            token_pattern=r"\w+", ngram_range=(1, 2 if pairs else 1), sublinear_tf=True, dtype=np.float32)
        values = self.counter.fit_transform([self.data.rows.text[i] for i in rows])
        self.model = self.make(rest).fit(values, self.data.rows.gold[rows])
        self.bytes = self.size(self, values)

    def predict(self, rows):
        return self.model.predict(self.counter.transform([self.data.rows.text[i] for i in rows]))


def of_rows(values):
    """Bytes of the words of every row: a place of 4 bytes and a count of 4."""
    return 8 * values.nnz + 8 * values.shape[1]


def centroid_bytes(peer, values):
    held = 8 * peer.model.centroids.nnz + 12 * values.shape[1]
    return held, held


def linear_bytes(peer, values):
    return 4 * (peer.model.coef_.size + peer.model.intercept_.size) + 12 * values.shape[1], of_rows(values)


def peers(data):
    rows_kept = lambda n, m, d, _: (4 * n * (d + 1), 4 * n * (d + 1))
    means_kept = lambda n, m, d, _: (4 * m * (d + 1), 4 * m * (d + 1))
    # Weights of rows by the number of their class change with every row: they need all rows again.
    ridge_kept = lambda n, m, d, setting: (4 * m * (d + 1), 4 * (n * (d + 1) if setting[1] else m * (d + 1) + d * (d + 1) // 2))
    neighbours = lambda k: lambda weights: KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    ridge = lambda setting: RidgeClassifier(setting[0], class_weight=setting[1], solver="cholesky")
    svm = lambda c: LinearSVC(C=c, random_state=1)
    strengths = {f"alpha {a}{and_alike}": (a, weight) for and_alike, weight in (("", None), (", classes alike", "balanced"))
                 for a in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)}
    metrics = {"distance": "distance", "angle": "angle"}
    word_metrics = {metric + end: (pairs, metric) for end, pairs in (("", False), (", pairs", True)) for metric in metrics}
    return {
        "memory": Memory(data),
        "router": Memory(data, words=True),
        "knn1": Vectors(data, "nearest neighbour, cosine", neighbours(1), {"": "uniform"}, rows_kept),
        "knn5": Vectors(data, "5 nearest neighbours, cosine", neighbours(5),
                        {"votes alike": "uniform", "votes by distance": "distance"}, rows_kept),
        "means": Vectors(data, "nearest class mean", Centroids, metrics, means_kept),
        "ridge": Vectors(data, "ridge classifier", ridge, strengths, ridge_kept),
        "ranpac": RanPac(data, "RanPAC, 4,096 features", {f"ridge {a}": a for a in (0.0003, 0.001, 0.003, 0.01, 0.03)}),
        "slda": Discriminant(data, "streaming LDA", {f"shrinkage {a}": a for a in (0.5, 0.7, 0.9, 0.95, 0.98)}),
        "centroid": Words(data, "TF-IDF, nearest centroid", Centroids, word_metrics, centroid_bytes),
        "svm": Words(data, "TF-IDF, linear SVM", svm, {f"C {c}": (False, c) for c in (0.1, 0.3, 1, 3)}, linear_bytes),
    }


class Data:
    def __init__(self, arguments):
        self.rows = Rows(arguments.data, arguments.hub)
        self.q = encode(self.rows.text, arguments.encoder, arguments.cache)
        self.cards = load_file(arguments.cards)["model_embeddings.weight"].astype(float)
        self.cards /= np.linalg.norm(self.cards, axis=1, keepdims=True)
        self.layers = json.loads((Path(arguments.encoder) / "config.json").read_text())["num_hidden_layers"]
        self.x = real(self.q, self.layers).astype(np.float32)


def measure(peer, data):
    """One row of the table."""
    rows = data.rows
    seen = {}
    for name, setting in peer.settings.items():
        peer.fit(rows.fit, setting)
        seen[name] = rows.accuracy(peer.predict(rows.dev), rows.dev)[0]
        print(f"{peer.label}: {seen[name]:.1f} % of models on development rows {name and f'with {name}'}", file=sys.stderr)
    best = max(seen, key=seen.get)
    started = time.process_time()
    peer.fit(rows.learn, peer.settings[best])
    fitted = time.process_time() - started
    seconds = []
    for _ in range(3):
        started = time.process_time()
        predicted = peer.predict(rows.eval)
        seconds.append(time.process_time() - started)
    if hasattr(peer, "exact"):
        predicted = peer.exact(rows.eval)
    return best, rows.accuracy(predicted, rows.eval), fitted, min(seconds) / len(rows.eval) * 1e6, peer.bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a CMRBench checkout")
    parser.add_argument("--encoder", default=ROOT / "weights" / "all-MiniLM-L6-v2", help="folder of an encoder bundle")
    parser.add_argument("--cache", required=True, help="folder for the vectors, made once for an encoder and the rows")
    parser.add_argument("--cards", default=CARDS / "head.safetensors", help="card vectors: the head of a zero-shot generation")
    parser.add_argument("--hub", default=CARDS / "hub.json", help="its models, in order of their ids")
    parser.add_argument("--only", help="these rows of the table alone, with commas")
    arguments = parser.parse_args()
    data = Data(arguments)
    all_peers = peers(data)
    names = arguments.only.split(",") if arguments.only else list(all_peers)
    if unknown := [name for name in names if name not in all_peers]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(all_peers)}")
    print("| | settings | model | family | domain | s to fit | µs a prompt | MB to serve | MB to go on |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        best, accuracy, fitted, score, (serve, learn) = measure(all_peers[name], data)
        figures = [*(f"{value:.1f}" for value in [*accuracy, fitted]), f"{score:.0f}", f"{serve / 1e6:.1f}", f"{learn / 1e6:.1f}"]
        print(f"| {all_peers[name].label} | {best} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
