"""The memory (docs/memory.md) in numpy, f64: what it keeps of prompts, how it is solved, how it scores.

The formulas are those of src/memory/solve.rs and src/memory/served.rs.
"""

import numpy as np
import torch
from torch.nn.functional import normalize

from encoders import mix

STEPS = 64  # quantisation steps between 0 and 1
SHRINK, PSEUDO, RIDGE, KAPPA, POWERS, WIDENED, ALONE = 0.7, 2.0, 0.5, 6.0, 3, 12, 0.5
DEPENDENT = 1e-12  # a pivot below this share of what it was is rounding
SMOOTHING = 0.05  # of the counts of words
STRENGTHS = {"learned": 0.2, "memory": 0.04, "words": 0.06, "newcomer": 0.5}


def usual_layers(count, hidden):
    """The layers that are remembered, from 0: the upper two thirds, fewer where the vector would be too wide."""
    upper = count - count // 3
    most = min(max(2304 // hidden, 1), upper)
    return [count - upper + place * upper // most - 1 for place in range(1, most + 1)]


def units(states, layers):
    """x [L H]: the mean over the tokens of each remembered layer's output, as unit vectors. `states`: of
    `Encoder.states`, whose first entry is the embeddings'."""
    return torch.cat([normalize(states[layer + 1].mean(0), dim=0, eps=1e-12) for layer in layers])


def quantized(x):
    """q: the nearest of 64 steps to each element, halves to even."""
    return np.rint(np.clip(x.astype(np.float32), -1, 1) * np.float32(STEPS)).astype(np.int64)


class Solved:
    """The served form: y = P x + b, and of each model the key k and the offset -|k|^2 / 2."""

    def __init__(self, projection, bias, keys):
        self.projection, self.bias, self.keys = projection, bias, keys
        self.offsets = -(keys * keys).sum(1) / 2

    def rounded(self):
        """As a generation stores it: P and keys in f16, bias and offsets in f32."""
        stored = Solved(*(half(part) for part in (self.projection, self.bias, self.keys)))
        stored.bias, stored.offsets = self.bias.astype(np.float32), self.offsets.astype(np.float32)
        return stored


def half(values):
    return values.astype(np.float32).astype(np.float16).astype(np.float64)


def solve(counts, sums, squares, domains, cards, layers, rank):
    """A Gaussian for each model, with one covariance for all.

    `counts` [M], `sums` [M, L H] and `squares` [L H, L H] are integers: of prompts, of their q, of q q^T. `domains`:
    the number of each model's domain; `cards` [M, H]; `layers`: how many L; `rank`: directions at most.
    """
    counts = np.asarray(counts, np.float64)
    models, width = sums.shape
    scale = 1.0 / (STEPS * np.sqrt(layers))
    s = sums * scale
    factor = factor_of(squares * scale**2, s, counts, scale)
    mu = means(s, counts, np.asarray(domains), np.asarray(cards, np.float64))
    mean = mu.mean(0)
    rows = mu - mean
    whitened = directions(rows, factor, min(rank, width, models - 1))
    if whitened.shape[1] == 0:
        whitened = np.zeros((width, 1))  # nothing tells the models apart
    return Solved(whitened.T / np.sqrt(layers), -mean @ whitened, rows @ whitened)


def factor_of(squares, s, counts, scale):
    """L of S = L L^T; more of the sphere is added until S is positive definite."""
    width = len(squares)
    known = counts > 0
    scaled = s[known] / np.sqrt(counts[known])[:, None]
    within = squares - scaled.T @ scaled
    free = counts.sum() - known.sum()
    share = (1 - SHRINK) / free if free else 0.0
    sphere = SHRINK * np.trace(within) / (free * width) if free else ALONE / width
    sphere = max(sphere, share * scale**2 * np.sqrt(width), 1e-9)
    for attempt in range(WIDENED):
        try:
            return np.linalg.cholesky(share * within + sphere * np.eye(width))
        except np.linalg.LinAlgError:
            sphere *= 4
    raise np.linalg.LinAlgError("the covariance is not positive definite")


def means(s, counts, domains, cards):
    """mu [M, L H]: s / n, drawn to the mean that is expected before any prompt."""
    number = domains.max() + 1
    everywhere = s.sum(0) / max(counts.sum(), 1.0)
    group = np.zeros((number, s.shape[1]))
    centred = cards.copy()
    for domain in range(number):
        own = domains == domain
        group[domain] = (PSEUDO * everywhere + s[own].sum(0)) / (PSEUDO + counts[own].sum())
        centred[own] -= cards[own].mean(0)
    known = counts > 0
    root = np.sqrt(counts[known] / (counts[known] + 1))[:, None]
    a = centred[known] * root
    b = (s[known] / counts[known][:, None] - group[domains[known]]) * root
    regression = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1]), a.T @ b)
    prior = group[domains] + centred @ regression
    return (s + KAPPA * prior) / (counts + KAPPA)[:, None]


def directions(rows, factor, rank):
    """L^-T V^T [L H, R]: subspace iteration from rows of fixed signs."""
    width = rows.shape[1]
    v = np.array([sign(place) for place in range(width * rank)]).reshape(width, rank)
    for _ in range(POWERS):
        if v.shape[1] == 0:
            return v
        v = rows.T @ (rows @ np.linalg.solve(factor.T, v))
        v = orthonormal(np.linalg.solve(factor, v).T).T
    return np.linalg.solve(factor.T, v)


def sign(place):
    """1 or -1: the highest bit of the `place`th output of splitmix64, from 0."""
    return 1.0 if mix((place + 0x9E3779B97F4A7C15) % 2**64) >> 63 == 0 else -1.0


def orthonormal(v):
    """Orthonormal rows that span what those of `v` do, by Cholesky factors of their products, twice. Rows that depend
    on those before them are dropped."""
    for _ in range(2):
        factor, kept = pivoted(v @ v.T)
        v = np.linalg.solve(factor, v)[kept]
    return v


def pivoted(a):
    """The Cholesky factor, with 1 on the diagonal of each row that depends on those before it; which rows do not."""
    n = len(a)
    factor, kept = np.zeros((n, n)), np.ones(n, bool)
    for j in range(n):
        for t in range(j):
            if kept[t]:
                factor[j, t] = (a[j, t] - factor[t, :t] @ factor[j, :t]) / factor[t, t]
        left = a[j, j] - factor[j, :j] @ factor[j, :j]
        if left > DEPENDENT * a[j, j]:
            factor[j, j] = np.sqrt(left)
        else:
            kept[j], factor[j, :j], factor[j, j] = False, 0.0, 1.0
    return factor, kept


class Words:
    """Naive Bayes over domains by the words of learned prompts."""

    def __init__(self, prompts, counts):
        """`prompts`: of each domain [N]; `counts`: {(word, domain): prompts}."""
        prompts = np.asarray(prompts, np.float64)
        self.prior = np.log((prompts + 0.5) / (prompts.sum() + 0.5 * len(prompts)))
        self.entries, totals = {}, np.zeros(len(prompts))
        for (word, domain), count in counts.items():
            totals[domain] += count
            more = np.float32(np.log((count + SMOOTHING) / SMOOTHING))
            self.entries.setdefault(word, []).append((domain, float(more)))
        different = SMOOTHING * len(self.entries)
        self.missing = np.log(SMOOTHING / np.maximum(totals + different, SMOOTHING))

    def scores(self, words):
        """ln P(d | words) [N], 0 for the best domain. Words that no learned prompt has are ignored."""
        scores = self.prior.copy()
        for word in words:
            if word in self.entries:
                scores += self.missing
                for domain, more in self.entries[word]:
                    scores[domain] += more
        return scores - scores.max()


def unpack(packed, count):
    """`count` integers from the beginning of `packed`, and the rest (src/memory/packing.rs): blocks of 32, each a
    width in bits and then its values, zigzag, lowest bit first."""
    values = []
    while len(values) < count:
        width, packed = packed[0], packed[1:]
        block, packed = int.from_bytes(packed[: 4 * width], "little"), packed[4 * width:]
        for place in range(min(32, count - len(values))):
            value = (block >> (width * place)) % 2**width
            values.append((value >> 1) ^ -(value & 1))
    return values, packed
