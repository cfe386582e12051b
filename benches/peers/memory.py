#!/usr/bin/env python3
"""The memory, written again in NumPy, beside known classifiers and beside what the product made of the same rows.

Same rows, vectors and labels, all learnt at once, on one thread. x is the token means of the upper two thirds of the frozen
encoder's layers, each of length one, over sqrt(layers). The memory keeps, of q, which is x in steps of 1/64 of such a layer,
a count and a sum for each model and the sum of q q^T for all (docs/memory.md). Its peers are scikit-learn's, or a few lines where
scikit-learn has none, on x or on the words of the prompts. What a peer leaves open is chosen on the development rows, one
training row of each model that has two, never on the public eval rows that are reported. The memory's own settings are
fixed. Beside the labels it knows the card and the domain of each model, which the peers have no use for.

    pip install numpy scikit-learn safetensors torch transformers
    python benches/peers/memory.py --data CMR --encoder weights/all-MiniLM-L6-v2 --cache /tmp/vectors
    python benches/peers/memory.py --data CMR --encoder weights/all-MiniLM-L6-v2 --cache /tmp/vectors --only memory,ridge

Model, family and domain: accuracy in percent, the mean of the four experiences. Seconds of one core to fit all training
rows, with the settings chosen. Microseconds of one core to score a prompt against every model, in one batch of all eval rows:
encoding is not timed, and neither is finding the memory's words, which come with it; the peers' words are. MB: what serving
reads, and what must be kept to learn the next rows as if they had come with the first; for a method that has no such sums that
is every row. They are f32, but for the memory's with --store: then they are the parts of that store.

    hubrouter hub build --data CMR --out STORE
    python benches/peers/memory.py ... --write-rows FOLDER
    hubrouter learn --router STORE --recipe memory --set hold_out=false --introduce --examples FOLDER/train.jsonl
    hubrouter route --router STORE --json --top 10 --input FOLDER/eval.jsonl > ANSWERS
    python benches/peers/memory.py ... --store STORE --answers ANSWERS

The last command compares the product's memory with the one here, and says where the product's answers are wrong. It fails where
keys differ by more than 1e-3 of their norm, or fewer than 99.9 % of the answers agree.
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
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parent.parent.parent
CARDS = ROOT / "tests" / "fixtures" / "zero-shot" / "g0001-81f83b2c92b0"
STEMS = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"]
STEPS = 64
SHRINKAGE, KAPPA, PSEUDO, RIDGE, RANK, SMOOTHING = 0.7, 6, 2, 0.5, 384, 0.05
LEARNED, GAUSS, WORDS, NEWCOMER, TAU = 0.2, 0.04, 0.06, 0.5, 0.08


# Two names of one domain.
SYNONYMS = {
    **{f"multimodal {task}": f"computer vision {task}"
       for task in ("text-to-image", "image-to-text", "text-to-video", "zero-shot image classification")},
    "multimodal document question answering": "multimodal document question answer",
    "audio audio classification": "audio classification",
    "reinforcement learning reinforcement learning": "reinforcement learning",
}

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
        self.names, self.domains = [model["name"] for model in models], domains
        self.text, self.label, gold, domain, experience, split = [], [], [], [], [], []
        for number, stem in enumerate(STEMS, 1):
            for part in ("train", "val", "eval"):
                path = root / "processed" / f"cleaned-{stem}-{part}.json"
                if part == "train" and not path.is_file():
                    continue
                for row in map(json.loads, filter(str.strip, open(path, encoding="utf-8"))):
                    self.text.append(prefix.sub("", row["instruction"]).strip())
                    self.label.append(row["domain"])
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

def usual_layers(layers, width):
    """The layers that are remembered, from 0: the upper two thirds, or as many, evenly spread, as make 2,304 elements."""
    upper = layers - layers // 3
    most = min(max(2304 // width, 1), upper)
    return [layers - upper + place * upper // most - 1 for place in range(1, most + 1)]


def encode(texts, bundle, cache):
    """Unit token means of the usual layers, [rows, layers, width] in f32."""
    bundle = Path(bundle)
    about = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    shape = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    places = usual_layers(shape["num_hidden_layers"], shape["hidden_size"])
    texts = [about.get("query_prefix", "") + text for text in texts]
    of = json.dumps([about["files"], about["max_tokens"], places, texts], sort_keys=True)
    path = Path(cache) / f"units-{hashlib.sha256(of.encode()).hexdigest()[:16]}.npy"
    if path.is_file():
        return np.load(path)
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = transformers.AutoModel.from_pretrained(bundle, dtype=torch.float32).eval()
    encodings = tokenizer(bundle, about["max_tokens"]).encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
    out, started = np.zeros((len(texts), len(places), shape["hidden_size"]), dtype=np.float32), time.perf_counter()
    for at in range(0, len(order), 32):
        chosen = order[at : at + 32]
        width = max(len(encodings[i].ids) for i in chosen)
        ids, mask = torch.zeros(len(chosen), width, dtype=torch.long), torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(encodings[i].ids)], mask[row, : len(encodings[i].ids)] = torch.tensor(encodings[i].ids), 1
        with torch.inference_mode():
            outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
            real = mask.unsqueeze(-1).float()
            means = [(outputs[place] * real).sum(1) / real.sum(1) for place in places]
            out[chosen] = torch.nn.functional.normalize(torch.stack(means, 1), dim=2).numpy()
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


def hashes(ids, continues):
    """Of the words among `ids` and of each two that follow each other, once: FNV-1a behind splitmix64's finisher."""
    words = []
    for token in ids:
        if words and token in continues:
            words[-1].append(token)
        else:
            words.append([token])
    found = set()
    for word in words + [a + [2**32 - 1] + b for a, b in zip(words, words[1:])]:
        h = 0xCBF29CE484222325
        for token in word:
            h = ((h ^ token) * 0x100000001B3) % 2**64
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % 2**64
        found.add((h ^ (h >> 31)) >> 32)
    return sorted(found)


def words_of(texts, bundle):
    """Hashes, ascending, and which texts have them, [texts, hashes]."""
    bundle = Path(bundle)
    about = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    tokens, prefix = tokenizer(bundle, about["max_tokens"]), about.get("query_prefix", "")
    # WordPiece marks tokens that go on with a word, others those that begin one.
    pieces = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "WordPiece"
    goes_on = lambda token: token.startswith("##") if pieces else not token.startswith(("\u2581", "\u0120"))
    continues = {number for token, number in tokens.get_vocab().items() if goes_on(token)}
    rows = []
    for encoding in tokens.encode_batch([prefix + text for text in texts]):
        own = [token for token, special in zip(encoding.ids, encoding.special_tokens_mask) if not special]
        rows.append(hashes(own, continues))
    names, places = np.unique(np.concatenate(rows), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return names, sparse.csr_array((np.ones(len(places)), places, starts), shape=(len(texts), len(names)))


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


def sums_of(q, gold, models):
    """What a memory keeps: the sum of q and the number of prompts of each model, the sum of q q^T. Whole numbers, exactly."""
    whole = q.astype(float)
    sums, n = means(whole, gold, models)
    return sums, n, whole.T @ whole


def reference(sums, n, squares, layers, cards, domain_of):
    """P [384, d], bias [384], keys [models, 384], offsets [models] in f64.

    The first three as `sums_of` gives them, `cards` unit rows [models, width], `domain_of` a number for each model. A model
    may have no prompt. The score of a prompt is (x P^T + bias) keys^T + offsets, with x of length one.
    """
    models, domains, d = len(domain_of), domain_of.max() + 1, sums.shape[1]
    # Whole numbers are exact in f64, in whatever order they come; scaled once, here.
    one = 1 / (STEPS * np.sqrt(layers))
    s, xx = sums * one, squares * one**2
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
    mu = (s + KAPPA * (g[domain_of] + dc @ a)) / (n + KAPPA)[:, None]

    chol = np.linalg.cholesky(covariance)
    centre = mu.mean(0)
    white = solve_triangular(chol, (mu - centre).T, lower=True).T
    v = signs(d, min(RANK, d))
    for _ in range(3):
        v = np.linalg.qr(white.T @ (white @ v))[0]
    p = solve_triangular(chol, v, lower=True, trans="T").T
    keys = (mu - centre) @ p.T
    return p, -p @ centre, keys, -(keys**2).sum(1) / 2


def words_of_domains(present, domain, domains):
    """Naive Bayes over domains on words that prompts have or have not: what each adds, known ones, what they cost, prior."""
    counts = (present.T @ sparse.csr_array(np.eye(domains)[domain])).tocsr()
    n, total = np.bincount(domain, minlength=domains), np.asarray(counts.sum(0)).ravel()
    known = (np.asarray(counts.sum(1)).ravel() > 0).astype(float)
    counts.data = np.log((counts.data + SMOOTHING) / SMOOTHING)
    missing = np.log(SMOOTHING / (total + SMOOTHING * known.sum()))
    return counts, known, missing, np.log((n + 0.5) / (n.sum() + 0.5 * domains))


def score_words(present, bayes):
    """ln P(domain | words), 0 for the best; words that no training prompt has tell nothing."""
    more, known, missing, prior = bayes
    scores = (present @ more).toarray() + np.outer(present @ known, missing) + prior
    return scores - scores.max(1, keepdims=True)


def score(x, u, present, parts, bayes, cards, domain_of, n):
    """The whole router's scores, [rows, models]: learned cosine, Gaussian, words, newcomers."""
    p, bias, keys, offsets = parts
    scores = GAUSS * ((x @ p.T + bias) @ keys.T + offsets)
    scores += LEARNED / TAU * (u @ cards.T.astype(u.dtype))
    scores += WORDS * score_words(present, bayes)[:, domain_of]
    return scores + np.where(n > 0, 0, NEWCOMER)


# Each has settings by name to choose from, fit(rows, setting), predict(rows) -> model ids, and then bytes (serving, learning).

class Memory:
    settings = {"": None}

    def __init__(self, data, words=False):
        self.data, self.words = data, words
        self.label = "memory + words + card" if words else "memory alone"

    def fit(self, rows, _):
        data, owner = self.data, self.data.rows.domain_of
        *sums, squares = sums_of(data.q[rows], data.rows.gold[rows], len(owner))
        self.parts = reference(*sums, squares, data.layers, data.cards, owner)
        self.fast, self.n = [part.astype(np.float32) for part in self.parts], sums[1]
        serve, learn = sum(part.size for part in self.parts) * 4, 4 * (sums[0].size + len(squares) * (len(squares) + 1) // 2)
        serve, learn = data.size("recall", serve), data.size("memory", learn) + data.size("cards", 4 * data.cards.size)
        if self.words:
            self.bayes = words_of_domains(data.present[rows], owner[data.rows.gold[rows]], len(data.rows.domains))
            held = data.size("words", 8 * self.bayes[0].nnz)
            serve, learn = serve + data.size("head", 4 * data.cards.size) + held, learn + held
        self.bytes = serve, learn

    def predict(self, rows, parts=None):
        data = self.data
        parts = parts or self.fast
        x = data.x[rows].astype(parts[0].dtype)
        if self.words:
            scores = score(x, data.units[rows, -1], data.present[rows], parts, self.bayes, data.cards, data.rows.domain_of, self.n)
        else:
            scores = (x @ parts[0].T + parts[1]) @ parts[2].T + parts[3]
        return scores.argmax(1)

    def exact(self, rows):
        return self.predict(rows, self.parts)


class Vectors:
    """A scikit-learn classifier on x."""

    def __init__(self, data, label, make, settings, size):
        self.data, self.label, self.make, self.settings, self.size = data, label, make, settings, size

    def fit(self, rows, setting):
        self.model = self.make(setting).fit(self.data.x[rows], self.data.rows.gold[rows])
        self.bytes = self.size(len(rows), len(self.data.rows.names), self.data.x.shape[1], setting)

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
        sums, n = means(h, gold, len(self.data.rows.names))
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
        self.units = encode(self.rows.text, arguments.encoder, arguments.cache)
        self.layers = self.units.shape[1]
        self.q = np.rint(self.units * np.float32(STEPS)).astype(np.int16).reshape(len(self.units), -1)
        self.x = self.units.reshape(self.q.shape) / np.float32(np.sqrt(self.layers))
        self.words, self.present = words_of(self.rows.text, arguments.encoder)
        self.cards = load_file(arguments.cards)["model_embeddings.weight"].astype(float)
        self.store = arguments.store and generation(arguments.store)

    def size(self, part, otherwise):
        """Bytes of a part of the store, if there is one."""
        return (self.store / f"{part}.safetensors").stat().st_size if self.store else otherwise


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


# The product

def generation(store):
    """Folder of the current generation."""
    return Path(store) / (Path(store) / "current").read_text(encoding="utf-8").strip()


def unpack(data, count, at=0):
    """`count` whole numbers from byte `at` on, and where they end: blocks of 32, a byte of width before each."""
    out = np.zeros((-(-count // 32), 32), dtype=np.int64)
    for block in out:
        width = int(data[at])
        bits = np.unpackbits(data[at + 1 : at + 1 + 4 * width], bitorder="little").reshape(32, width)
        block[:] = bits @ (1 << np.arange(width, dtype=np.int64))
        at += 1 + 4 * width
    out = out.ravel()[:count]
    return (out >> 1) ^ -(out & 1), at


def kept(folder, d):
    """Sums, counts and squares of a store's memory."""
    part = load_file(folder / "memory.safetensors")
    n, at = part["prompt_counts"].astype(float), 0
    sums = np.zeros((len(n), d))
    for model in np.flatnonzero(n):
        sums[model], at = unpack(part["prompt_sums"], d, at)
    squares = np.zeros((d, d))
    squares[np.tril_indices(d)] = unpack(part["prompt_squares"], d * (d + 1) // 2)[0]
    return sums, n, squares + np.tril(squares, -1).T


def kept_words(folder, domains):
    """(word, number among `domains`, prompts) of a store."""
    part = load_file(folder / "words.safetensors")
    count, at, columns = int(part["entries"][0]), 0, []
    for _ in range(3):
        column, at = unpack(part["word_domain_count"], count, at)
        columns.append(column)
    own = bytes(part["domains"]).decode().splitlines()
    return set(zip(np.cumsum(columns[0]), [domains.index(own[number]) for number in columns[1]], columns[2]))


def differences(name, found, own):
    off = np.abs(found - own)
    print(f"{name}: {np.count_nonzero(off)} of {off.size} differ, by at most {off.max():.0f}; largest {np.abs(own).max():.0f}")


def compare(data, answers):
    """Prints how the store differs from the reference, and whether it is what it should be."""
    rows, folder = data.rows, data.store
    served, hub = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("memory.json", "hub.json"))
    assert [model["name"] for model in hub["models"]] == rows.names, "the store has another hub"
    found = {name: round(value, 9) for name, value in served["strengths"].items()}
    assert found == {"learned": LEARNED, "memory": GAUSS, "words": WORDS, "newcomer": NEWCOMER}, found
    assert served["solving"] == {"rank": RANK, "prior": "card"}, served["solving"]

    owner, gold = rows.domain_of, rows.gold[rows.learn]
    *sums, squares = kept(folder, data.q.shape[1])
    own_sums, own_n, own_squares = sums_of(data.q[rows.learn], gold, len(owner))
    differences("prompts of a model", sums[1], own_n)
    differences("sums", sums[0], own_sums)
    differences("squares", squares, own_squares)
    present = data.present[rows.learn]
    counts = (present.T @ sparse.csr_array(np.eye(len(rows.domains))[owner[gold]])).tocoo()
    own_words = set(zip(data.words[counts.coords[0]], counts.coords[1], counts.data.astype(int)))
    found_words = kept_words(folder, rows.domains)
    print(f"words of domains: {len(found_words)}, of which {len(found_words - own_words)} are not so here; {len(own_words - found_words)} more here")

    cards = load_file(folder / "cards.safetensors")["card_vectors"].astype(float)
    parts = reference(*sums, squares, data.layers, cards, owner)
    p, bias, keys, offsets = parts
    recall = {name: part.astype(float) for name, part in load_file(folder / "recall.safetensors").items()}
    far = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    # The product's P takes layers of length one.
    keys_off = far(recall["keys"] @ recall["projection"] * np.sqrt(data.layers), keys @ p)
    print(f"relative difference: keys times P {keys_off:.1e}, keys times bias {far(recall['keys'] @ recall['bias'], keys @ bias):.1e}, "
          f"offsets {far(recall['offsets'], offsets):.1e}, length of bias "
          f"{abs(np.linalg.norm(recall['bias']) / np.linalg.norm(bias) - 1):.1e}")

    bayes = words_of_domains(present, owner[gold], len(rows.domains))
    x, u, present = data.x[rows.eval].astype(float), data.units[rows.eval, -1], data.present[rows.eval]
    scores = score(x, u, present, parts, bayes, cards, owner, sums[1])
    best = scores.argmax(1)
    agree = best == answers[:, 0]
    margins = np.sort(scores, 1)[:, -1] - np.take_along_axis(scores, answers[:, :1], 1)[:, 0]
    print(f"first models that agree: {agree.sum()} of {len(agree)}, {100 * agree.mean():.2f} %; where they do not, the reference "
          f"scores its own higher by {', '.join(f'{margin:.1e}' for margin in margins[~agree]) or 'nothing'}")
    rounded = recall["projection"] * np.sqrt(data.layers), recall["bias"], recall["keys"], recall["offsets"]
    same = score(x, u, present, rounded, bayes, cards, owner, sums[1]).argmax(1) == answers[:, 0]
    print(f"with the product's own f16 keys and P: {same.sum()} of {len(same)}")
    for label, predicted in (("reference", best), ("product", answers[:, 0])):
        print(f"{label}: " + " / ".join(f"{value:.1f}" for value in rows.accuracy(predicted, rows.eval)))
    return keys_off <= 1e-3 and agree.mean() >= 0.999


def read_answers(path, rows):
    """Ranked models of the eval rows, [rows, 10]."""
    ids = {name: i for i, name in enumerate(rows.names)}
    lines = [json.loads(line) for line in open(path, encoding="utf-8")]
    assert len(lines) == len(rows.eval), f"{path}: expected {len(rows.eval)} answers, found {len(lines)}"
    return np.array([[ids[model["model"]] for model in line["ranked"]] for line in lines])


def analyse(rows, answers):
    """Where the product's answers are wrong, over all eval rows alike."""
    gold, domain, owner = rows.gold[rows.eval], rows.domain[rows.eval], rows.domain_of
    model, of = answers == gold[:, None], owner[answers] == domain[:, None]
    share = lambda hits: f"{100 * np.mean(hits):.1f}"
    print(f"{len(gold)} rows, right: model {share(model[:, 0])}, domain {share(of[:, 0])}")
    for found, name in ((model, "gold"), (of, "its domain")):
        print(f"{name} among the first 1 / 3 / 5 / 10: " + " / ".join(share(found[:, :k].any(1)) for k in (1, 3, 5, 10)))
    first = np.where(of.any(1), of.argmax(1), 0)
    print(f"the first of the ten in the right domain is right: {share(of.any(1) & np.take_along_axis(model, first[:, None], 1)[:, 0])}; "
          f"of rows whose domain is right: {share(model[of[:, 0], 0])}")
    n = np.bincount(rows.gold[rows.learn], minlength=len(owner))[gold]
    for low, high in ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, n.max())):
        some = (low <= n) & (n <= high)
        if some.any():
            print(f"golds with {low} to {high} training prompts, {some.sum()} rows: model {share(model[some, 0])}, domain {share(of[some, 0])}")
    since = np.full(len(owner), 9)
    np.minimum.at(since, rows.gold[rows.learn], rows.experience[rows.learn])
    for e in np.unique(rows.experience):
        mine = rows.experience[rows.eval] == e
        later, earlier = since[answers[mine, 0]] > e, since[answers[mine, 0]] < e
        print(f"E{e}: {mine.sum()} rows, {later.sum()} answered with a model of a later experience, {earlier.sum()} of an earlier; "
              f"of its golds {np.sum(since[gold[mine]] < e)} are of an earlier")
    merged = np.array([rows.domains.index(SYNONYMS.get(name, name)) for name in rows.domains])
    print(f"of {np.sum(~of[:, 0])} answers in another domain {np.sum((merged[owner[answers[:, 0]]] == merged[domain]) & ~of[:, 0])} are in one that "
          "means the same")
    pairs, times = np.unique(np.stack([domain, owner[answers[:, 0]]], 1)[~of[:, 0]], axis=0, return_counts=True)
    for place in np.argsort(-times, kind="stable")[:12]:
        want, got = pairs[place]
        mine = domain == want
        print(f"{rows.domains[want]} taken for {rows.domains[got]}: {times[place]} of {mine.sum()} rows, {share(of[mine, 0])} % right")


def write_rows(rows, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for i in rows.learn:
            row = {"instruction": rows.text[i], "model_name": rows.names[rows.gold[i]], "domain": rows.label[i]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with open(folder / "eval.jsonl", "w", encoding="utf-8") as file:
        for i in rows.eval:
            file.write(json.dumps({"prompt": rows.text[i]}, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a CMRBench checkout")
    parser.add_argument("--encoder", default=ROOT / "weights" / "all-MiniLM-L6-v2", help="folder of an encoder bundle")
    parser.add_argument("--cache", required=True, help="folder for the vectors, made once for an encoder and the rows")
    parser.add_argument("--cards", default=CARDS / "head.safetensors", help="card vectors: the head of a zero-shot generation")
    parser.add_argument("--hub", default=CARDS / "hub.json", help="its models, in order of their ids")
    parser.add_argument("--store", help="a store that `hubrouter learn --recipe memory` made of all training rows")
    parser.add_argument("--answers", help="`hubrouter route --json` of all eval rows with that store: compare and analyse, no table")
    parser.add_argument("--write-rows", help="folder for train.jsonl and eval.jsonl, which learn and route read; no table")
    parser.add_argument("--only", help="these rows of the table alone, with commas")
    arguments = parser.parse_args()
    if arguments.write_rows:
        return write_rows(Rows(arguments.data, arguments.hub), Path(arguments.write_rows))
    if arguments.answers and not arguments.store:
        parser.error("--answers: expected --store beside it")
    data = Data(arguments)
    if arguments.answers:
        answers = read_answers(arguments.answers, data.rows)
        same = compare(data, answers)
        analyse(data.rows, answers)
        return 0 if same else 1
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
