"""CARvE's formulas in PyTorch. Section and vector numbers (6.5, V10) are those of docs/carve.md."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import log_softmax, normalize

TAU = 0.08
W, E = "prompt_projection.weight", "model_embeddings.weight"
BETAS, ADAM_EPSILON = [0.9, 0.999], 1e-8


def scores(h, w, e, tau=TAU):
    """s [B, M] of pooled vectors [B, H], W [D, H] and E [M, D] (section 2)."""
    return normalize(h @ w.T, dim=1, eps=1e-12) @ normalize(e, dim=1, eps=1e-12).T / tau


def cross_entropy(s, q):
    """l_i of scores and targets [B, K] (5.1)."""
    return -(q * log_softmax(s, 1)).sum(1)


def soft(candidates, gold, neighbours, epsilon):
    """Targets of one list of candidates: without a neighbour in it, epsilon is dropped (5.1)."""
    present = [j for j, c in enumerate(candidates) if c in neighbours]
    q = np.zeros(len(candidates), np.float32)
    q[candidates.index(gold)] = 1 - epsilon
    for j in present:
        q[j] = epsilon / len(present)
    return q


def embedding_anchor(e, reference):
    """Mean of 1 - cos over the rows of `reference`, in the stable form |r - e|^2 / 2 of 6.5."""
    d = normalize(reference, dim=1, eps=1e-12) - normalize(e[: len(reference)], dim=1, eps=1e-12)
    return (d * d).sum(1).mean() / 2


def projection_anchor(w, reference):
    return ((w - reference) ** 2).mean()


def projection_strength(d, h, at_1024_by_4096=5e4):
    return at_1024_by_4096 * d * h / (1024 * 4096)


def schedule(k, warm_up, steps):
    """The factor of every learning rate at step `k` (section 10)."""
    return k / warm_up if k < warm_up else max(0.0, (steps - k) / max(steps - warm_up, 1))


def adamw(lora, w, e, weight_decay):
    """AdamW over the adapters, W and E, whose rates are set before each step. Parameters without a gradient have no
    decay, and their counter stands still."""
    groups = [{"params": lora}, {"params": [w]}, {"params": [e]}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=ADAM_EPSILON, weight_decay=weight_decay, foreach=False)


def clip(parameters, limit):
    """Multiplies the gradients by min(1, limit / (norm + 1e-6)); the norm before."""
    return nn.utils.clip_grad_norm_(parameters, limit).item()


def domain_key(domain):
    """A domain as it is compared (section 1)."""
    return " ".join(domain.split()).lower() or "unknown"


def check_vectors():
    """The formulas of this file against test vectors of carve.md; stops at the first that differs."""
    def close(got, want):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)

    def leaf(rows):
        return torch.tensor(rows, dtype=torch.float64, requires_grad=True)

    # V10, V27
    w, h = leaf([[1, 0.5], [-0.5, 2], [0.25, -1]]), leaf([[1, 1], [2, -1]])
    e = leaf([[1, 0, 0], [0, 2, 0], [1, 2, -1], [-1, 1, 0.5]])
    for q, rows, mu, want in [
        ([[1, 0, 0], [1, 0, 0]], [0.6931771, 13.4364386], 5, 33.9376852),
        ([[1, 0, 0], [1, 0, 0]], [0.6931771, 13.4364386], 1, 7.0648079),
        ([[0.98, 0.01, 0.01], [0.98, 0, 0.02]], [0.7903994, 13.4738961], 5, 34.0799400),
    ]:
        s = scores(h, w, e).gather(1, torch.tensor([[0, 1, 3], [2, 0, 1]]))
        l = cross_entropy(s, torch.tensor(q, dtype=torch.float64))
        close(l.detach(), rows)
        close((torch.tensor([1.0, mu]) * l).mean().item(), want)
        if q[0][0] == 1 and mu == 5:
            hard = (torch.tensor([1.0, 5.0]) * l).mean()
    close(projection_strength(3, 2), 0.0715255737)
    close(projection_strength(384, 384), 1757.8125)
    reference = torch.tensor([[1, 0.1, 0], [0, 2, 0.2]], dtype=torch.float64)
    close(embedding_anchor(e, reference).item(), 0.0049628098)
    close(projection_anchor(w, w.detach() - 0.01).item(), 1e-4)
    pull = projection_strength(3, 2) * projection_anchor(w, w.detach() - 0.01)
    total = hard + 1e4 * embedding_anchor(e, reference) + pull
    close(total.item(), 83.5657903)
    total.backward()
    close(w.grad, [[1.2125037, -2.6893085], [2.4296683, 0.8689423], [-0.5199955, 0.2603646]])
    close(e.grad[:2], [[0, -525.1174660, 13.7994355], [1.0416369, 0, -249.2801138]])
    # V11: a row equal to its reference is not pulled, in f32 either.
    row = torch.tensor([[0.3, -0.7, 0.11]], requires_grad=True)
    embedding_anchor(row, row.detach().clone()).backward()
    assert not row.grad.any()
    # V21
    theta = leaf([1, -2])
    optimiser = torch.optim.AdamW([theta], lr=0.1, weight_decay=0.01, betas=BETAS, eps=ADAM_EPSILON, foreach=False)
    for g, want in [([0.5, -1], [0.899000002, -1.898000001]), ([0.25, 1], [0.80488304, -1.90136516])]:
        theta.grad = torch.tensor(g, dtype=torch.float64)
        optimiser.step()
        close(theta.detach(), want)
    # V22
    theta.grad = torch.tensor([3, 4], dtype=torch.float64)
    clip([theta], 1.0)
    close(theta.grad, [0.59999988, 0.79999984])
    # V23
    close([1e-3 * schedule(k, 10, 310) for k in (0, 1, 10, 122, 309)], [0, 1e-4, 1e-3, 6.2666667e-4, 3.3333333e-6])
