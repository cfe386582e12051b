"""A learning run over three experiences (docs/carve.md), with everything that is needed to take the same steps again.

What is drawn does not depend on parameters, so it is drawn first (`Plan`) and the steps follow (`Run`): in f32, and
once more in f64 to say how far rounding alone carries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import memory
from carve import (E, TAU, W, adamw, clip, cross_entropy, domain_key, embedding_anchor, projection_anchor,
                   projection_strength, schedule, scores, soft)
from data import dataset
from encoders import Encoder, adapt, maps, merge, numbers, pool


@dataclass
class Settings:
    """Of a run; the names in comments are those of `hubrouter learn --set`."""

    profile: str = "intended"
    seed: int = 0
    rank: int = 2  # lora.r
    alpha: float = 4.0  # lora.alpha
    train: int = 6  # rows of a model to learn from
    evaluate: int = 5  # rows of a model to measure on
    epochs: int = 4
    batch: int = 8
    accumulate: int = 2
    warm_up: int = 3
    phase_split: float = 0.4
    replay_ratio: float = 0.1  # replay.ratio; rows are drawn at random
    lr_lora: float = 2e-3
    lr_w: float = 1e-3
    lr_e: float = 5e-3
    weight_decay: float = 1e-3
    clip: float = 1.0
    epsilon: float = 0.02  # soft.eps
    neighbours: int = 10  # soft.k
    experiences: int = 3
    # What differs by profile.
    grad_reset: bool = True
    accumulation: str = "mean"
    candidates: int = 0  # candidates.k; 0: all models
    semantic: int = 0  # candidates.semantic
    far: int = 0  # candidates.far
    constant_rates: bool = False  # lr.router = constant
    replay_weight: float = 1.0  # mu
    anchor_embedding: float = 100.0
    anchor_phases: tuple = (1, 2)

    @classmethod
    def of(cls, profile, **changes):
        """`intended`: docs/carve.md. `reference`: with two things that the published code does otherwise (section 14),
        and the settings of the recipe `paper` where they can be seen in a short run."""
        own = {} if profile == "intended" else {
            "grad_reset": False, "accumulation": "sum", "candidates": 8, "semantic": 4, "far": 2,
            "constant_rates": True, "lr_w": 3e-4, "lr_e": 1e-3, "replay_weight": 5.0, "anchor_embedding": 1e4,
            "anchor_phases": (1,)}
        return cls(profile=profile, **(own | changes))


@dataclass
class Item:
    """A row in a micro-batch."""

    row: int
    weight: float  # of l_i in the step's gradient
    candidates: list  # None: all models
    targets: list  # [model, mass], the gold first

    def json(self):
        return {"row": self.row, "weight": self.weight, "candidates": self.candidates, "targets": self.targets}


@dataclass
class Step:
    experience: int
    first: bool  # of its experience
    phase: int  # 1: the encoder is frozen; 2: everything is trained
    batches: list
    rates: dict
    counters: dict
    anchors: dict
    gradients: bool


class Plan:
    """The data, and every step's rows, candidates, targets and rates."""

    def __init__(self, settings, hidden):
        self.settings, self.width = settings, hidden
        self.models, self.known, self.rows = dataset(settings.seed, settings.train, settings.evaluate)
        self.known = self.known[: settings.experiences]
        self.models = self.models[: self.known[-1]]
        self.rows = [row for row in self.rows if row["experience"] < settings.experiences]
        self.keys = [domain_key(model.domain) for model in self.models]
        self.rng = np.random.default_rng([settings.seed, 2])
        self.replayed, self.steps = [], []
        for experience in range(settings.experiences):
            self.steps += self.experience(experience)
        self.choose_gradients()

    def of(self, experience, split):
        return [i for i, row in enumerate(self.rows) if row["experience"] == experience and row["split"] == split]

    def experience(self, t):
        settings, own = self.settings, self.of(t, "train")
        replay = [row for kept in self.replayed for row in kept]
        budget = max(1, int(settings.replay_ratio * len(own)))
        self.replayed.append(sorted(self.rng.choice(own, budget, replace=False).tolist()))
        order = own + replay
        micro = -(-len(order) // settings.batch)
        total = settings.epochs * -(-micro // settings.accumulate)
        windows = micro // settings.accumulate * settings.epochs
        split = 0 if t == 0 else int(settings.phase_split * windows)
        steps = []
        for _ in range(settings.epochs):
            shuffled = self.rng.permutation(order).tolist()
            cut = [shuffled[i: i + settings.batch] for i in range(0, len(shuffled), settings.batch)]
            for i in range(0, micro, settings.accumulate):
                window = cut[i: i + settings.accumulate]
                steps.append(self.step(t, len(steps), total, split, window, set(replay)))
        return steps

    def step(self, t, k, total, split, window, replay):
        settings = self.settings
        phase = 1 if k < split else 2
        factor = schedule(k, settings.warm_up, total)
        router = 1.0 if settings.constant_rates else factor
        rates = {"lora": None if phase == 1 else settings.lr_lora * factor,
                 "projection": settings.lr_w * router, "embeddings": settings.lr_e * router}
        counters = {"lora": None if phase == 1 else k + 1 - split, "router": k + 1}
        mean = settings.accumulation == "mean"
        batches = [[self.item(t, row, phase, replay, len(batch) * (len(window) if mean else 1)) for row in batch]
                   for batch in window]
        anchors = None
        if t > 0 and phase in settings.anchor_phases:
            # The published code adds the anchors to every micro-batch's loss.
            times = 1 if mean else len(window)
            anchors = {"embedding": times * settings.anchor_embedding,
                       "projection": times * projection_strength(self.width, self.width)}
        return Step(t, k == 0, phase, batches, rates, counters, anchors, False)

    def item(self, t, row, phase, replay, share):
        settings, gold = self.settings, self.rows[row]["model"]
        known = range(self.known[t])
        near = [j for j in known if j != gold and self.keys[j] == self.keys[gold]]
        candidates = self.sampled(gold, near, known) if settings.candidates else None
        listed = list(known) if candidates is None else candidates
        epsilon = 0.0 if phase == 1 else settings.epsilon
        q = soft(listed, gold, near[: settings.neighbours], epsilon)
        targets = [[gold, 1 - epsilon]]
        others = [j for j in near[: settings.neighbours] if j in listed] if epsilon else []
        targets += [[j, epsilon / len(others)] for j in others]
        assert all(np.float32(mass) == q[listed.index(j)] for j, mass in targets)
        weight = settings.replay_weight if phase == 1 and row in replay else 1.0
        return Item(row, weight / share, candidates, targets)

    def sampled(self, gold, near, known):
        """The list of section 4.1 without mined models: gold, semantic (here: of the gold's domain), far, fill."""
        settings, chosen = self.settings, [gold]

        def draw(pool, count):
            pool = [j for j in pool if j not in chosen]
            count = min(count, len(pool))
            chosen.extend(self.rng.choice(pool, count, replace=False).tolist() if count else [])
            return count

        missing = settings.semantic - draw(near, settings.semantic)
        draw([j for j in known if self.keys[j] != self.keys[gold]], settings.far + missing)
        draw(known, settings.candidates - len(chosen))
        return chosen[: settings.candidates]

    def choose_gradients(self):
        """The first step of every experience, the second of all, and the first of each phase 2 that follows a phase
        1."""
        for k, step in enumerate(self.steps):
            begins = k > 0 and step.phase == 2 and self.steps[k - 1].phase == 1
            step.gradients = step.first or k == 1 or begins


class Run:
    """The steps of `plan`, from parameters that are drawn here or given."""

    def __init__(self, plan, encoder, start=None):
        self.plan, self.encoder, settings = plan, encoder, plan.settings
        self.frozen = Encoder(encoder.folder, encoder.device, encoder.dtype)
        self.ids = [encoder.ids(row["text"]) for row in plan.rows]
        self.cards = [encoder.document_ids(model.card) for model in plan.models]
        self.given = start if start is not None else {}
        self.parameters = {}
        rng = np.random.default_rng([settings.seed, 3])
        for path, linear in maps(encoder.model):
            # Lb is not 0 as at the start of real learning, so that the first step's gradients have no zeros.
            self.new(f"{path}.lora_A.weight", rng.uniform(-1, 1, (settings.rank, linear.in_features))
                     / np.sqrt(linear.in_features))
            self.new(f"{path}.lora_B.weight", rng.normal(0, 0.02, (linear.out_features, settings.rank)))
        adapt(encoder.model, self.parameters, settings.alpha / settings.rank)
        self.new(W, np.eye(encoder.hidden))
        self.new(E, self.card_rows(0, plan.known[0]))
        self.lora = [value for name, value in self.parameters.items() if ".lora_" in name]
        self.tensors = {"0.rows" if name == E else f"start.{name}": numbers(value)
                        for name, value in self.parameters.items()}
        self.tensors["cards"] = self.card_vectors()
        self.losses, self.learned, self.served, self.ends, self.seen = [], [], [], [], []

    def new(self, name, value):
        """A parameter: the one given, or `value` rounded to f32."""
        value = self.given.get("0.rows" if name == E else f"start.{name}", np.asarray(value, np.float32))
        value = torch.tensor(value).to(self.encoder.device, self.encoder.dtype)
        self.parameters[name] = nn.Parameter(value)

    @torch.no_grad()
    def card_rows(self, first, last):
        """Rows of E of new models: norm(W h(card)) (section 3)."""
        w = self.parameters[W]
        rows = [w @ self.encoder.pooled(self.cards[model]) for model in range(first, last)]
        return numbers(nn.functional.normalize(torch.stack(rows), dim=1, eps=1e-12))

    @torch.no_grad()
    def card_vectors(self):
        """Unit vectors of the cards by the encoder without adapters, in f16 as a generation keeps them."""
        rows = torch.stack([self.frozen.pooled(ids) for ids in self.cards])
        return numbers(nn.functional.normalize(rows, dim=1, eps=1e-12)).astype(np.float16).astype(np.float32)

    def go(self):
        for t in range(self.plan.settings.experiences):
            self.begin(t)
            for k, step in enumerate(self.plan.steps):
                if step.experience == t:
                    self.step(k, step)
            end = {name: numbers(value) for name, value in self.parameters.items()}
            self.ends.append(end)
            self.tensors |= {f"end.{t}.{name}": value for name, value in end.items()}
            self.measure(t)
        return self

    def begin(self, t):
        """Rows of new models, references of the anchors, a new optimiser."""
        known, w = self.plan.known, self.parameters[W]
        self.old_w, self.old_e = w.detach().clone(), self.parameters[E].detach().clone()
        if t > 0:
            new = self.given.get(f"{t}.rows", self.card_rows(known[t - 1], known[t]))
            self.tensors[f"{t}.rows"] = new
            new = torch.tensor(new).to(w.device, w.dtype)
            self.parameters[E] = nn.Parameter(torch.cat([self.old_e, new]))
        for value in self.parameters.values():
            value.grad = None
        self.optimiser = adamw(self.lora, w, self.parameters[E], self.plan.settings.weight_decay)

    def step(self, k, step):
        settings, w, e = self.plan.settings, self.parameters[W], self.parameters[E]
        for value in self.lora + ([w, e] if settings.grad_reset else []):
            value.grad = None
        route = 0.0
        for batch in step.batches:
            loss = self.route(batch, frozen=step.phase == 1)
            loss.backward()
            route += loss.item()
        terms = {"route": route, "embedding": 0.0, "projection": 0.0}
        if step.anchors:
            pulls = {"embedding": step.anchors["embedding"] * embedding_anchor(e, self.old_e),
                     "projection": step.anchors["projection"] * projection_anchor(w, self.old_w)}
            sum(pulls.values()).backward()
            terms |= {name: pull.item() for name, pull in pulls.items()}
        self.losses.append(terms | {"total": sum(terms.values())})
        if step.gradients:
            self.tensors |= {f"gradient.{k}.{name}": numbers(value.grad) for name, value in self.parameters.items()
                             if value.grad is not None}
        if step.phase == 2:
            clip(self.lora, settings.clip)
        names = ["lora", "projection", "embeddings"]
        for group, name in zip(self.optimiser.param_groups, names):
            group["lr"] = step.rates[name] or 0.0
        self.optimiser.step()
        for value, count in [(w, step.counters["router"]), (self.lora[0], step.counters["lora"])]:
            assert count is None or int(self.optimiser.state[value]["step"]) == count

    def route(self, batch, frozen):
        """The sum of weight * l_i over a micro-batch."""
        with torch.set_grad_enabled(not frozen):
            h = torch.stack([self.encoder.pooled(self.ids[item.row]) for item in batch])
        s = scores(h, self.parameters[W], self.parameters[E])
        if batch[0].candidates is not None:
            lists = [item.candidates for item in batch]
            s = s.gather(1, torch.tensor(lists, device=s.device))
        else:
            lists = [list(range(s.shape[1]))] * len(batch)
        q = np.zeros(s.shape, np.float32)
        for i, item in enumerate(batch):
            for model, mass in item.targets:
                q[i, lists[i].index(model)] = mass
        weights = torch.tensor([item.weight for item in batch], dtype=torch.float32).to(s.device, s.dtype)
        return (weights * cross_entropy(s, torch.tensor(q).to(s.device, s.dtype))).sum()

    @torch.no_grad()
    def measure(self, t):
        """The memory after experience `t`, and scores of every row to measure on: by cosine as it was learned, and as
        they would be served.

        The memory gets the rows of `t` as the encoder sees them now; what it has of earlier rows stays as it is.
        """
        plan, settings = self.plan, self.plan.settings
        encoder = Encoder(self.encoder.folder, self.encoder.device, self.encoder.dtype)
        merge(encoder, self.parameters, settings.alpha / settings.rank)
        known, layers = plan.known[t], memory.usual_layers(encoder.layers, encoder.hidden)
        new = plan.of(t, "train")
        self.seen += [(row, memory.quantized(numbers(memory.units(encoder.states(self.ids[row]), layers))))
                      for row in new]
        golds = np.array([plan.rows[row]["model"] for row, _ in self.seen])
        q = np.stack([q for _, q in self.seen])
        counts = np.bincount(golds, minlength=known)
        sums = np.stack([q[golds == model].sum(0) for model in range(known)])
        names = sorted(set(plan.keys[:known]))
        domains = np.array([names.index(key) for key in plan.keys[:known]])
        cards = self.tensors["cards"][:known]
        solved = memory.solve(counts, sums, q.T @ q, domains, cards, len(layers), rank=384)
        words = self.words(domains, len(names))
        self.tensors |= {
            f"memory.{t}.counts": counts.astype(np.int32), f"memory.{t}.sums": sums.astype(np.int32),
            f"memory.{t}.keys": solved.keys, f"memory.{t}.projection": solved.projection,
            f"memory.{t}.bias": solved.bias}
        stored, strength = solved.rounded(), memory.STRENGTHS
        learned, served = [], []
        for i in (i for i, row in enumerate(plan.rows) if row["split"] == "eval" and row["experience"] <= t):
            states = encoder.states(self.ids[i])
            cosine = self.cosines(pool(states[-1], encoder.pooling))
            place = stored.projection @ memory.units(states, layers).to("cpu", torch.float64).numpy() + stored.bias
            whole = strength["learned"] * cosine + strength["memory"] * (stored.keys @ place + stored.offsets)
            whole += strength["words"] * words.scores(encoder.words(plan.rows[i]["text"]))[domains]
            learned.append(self.cosines(self.encoder.pooled(self.ids[i])))
            served.append(whole)
        self.learned.append(np.stack(learned))
        self.served.append(np.stack(served))

    def cosines(self, h):
        """Over tau, of a pooled vector with every model."""
        return scores(h[None], self.parameters[W], self.parameters[E])[0].to("cpu", torch.float64).numpy()

    def words(self, domains, number):
        counts, prompts = {}, [0] * number
        for i, _ in self.seen:
            domain = int(domains[self.plan.rows[i]["model"]])
            prompts[domain] += 1
            for word in self.encoder.words(self.plan.rows[i]["text"]):
                counts[word, domain] = counts.get((word, domain), 0) + 1
        return memory.Words(prompts, counts)

    def predictions(self, which):
        """By experience the best model of each row to measure on; of equals the lower id."""
        return [scores.argmax(1).tolist() for scores in which]

    def matrix(self, which):
        """Accuracy in per cent after experience t on the rows of each e <= t."""
        matrix = []
        for t, found in enumerate(self.predictions(which)):
            rows = [row for row in self.plan.rows if row["split"] == "eval" and row["experience"] <= t]
            hits = [[p == row["model"] for p, row in zip(found, rows) if row["experience"] == e] for e in range(t + 1)]
            matrix.append([100 * sum(own) / len(own) for own in hits])
        return matrix


def record(run, file):
    """The `learning` part of parity.json; its tensors are `run.tensors`."""
    plan, settings = run.plan, run.plan.settings
    layers = memory.usual_layers(run.encoder.layers, run.encoder.hidden)
    return {
        "file": file, "profile": settings.profile, "rank": settings.rank, "alpha": settings.alpha, "tau": TAU,
        "clip": settings.clip, "clip_scope": "lora", "weight_decay": settings.weight_decay, "adam": [0.9, 0.999, 1e-8],
        "switches": {"grad.reset": settings.grad_reset, "accumulation": settings.accumulation},
        "memory": {"layers": layers, "rank": 384, "prior": "card", "strengths": memory.STRENGTHS},
        "experiences": settings.experiences, "models": plan.known,
        "names": [model.name for model in plan.models], "domains": [model.domain for model in plan.models],
        "rows": plan.rows,
        "steps": [{"experience": step.experience, "phase": step.phase, "rates": step.rates, "counters": step.counters,
                   "batches": [[item.json() for item in batch] for batch in step.batches], "anchors": step.anchors,
                   "losses": losses, "gradients": step.gradients} for step, losses in zip(plan.steps, run.losses)],
        "matrix": {"learned": run.matrix(run.learned), "served": run.matrix(run.served)},
        "predictions": {"learned": run.predictions(run.learned), "served": run.predictions(run.served)},
    }


def compare(run, exact):
    """How far `run` is from the same run in f64: losses, gradients, what the steps moved, keys, closest decisions."""
    def distance(got, want):
        size = np.linalg.norm(want)
        return float(np.linalg.norm(got - want) / size) if size else float(np.abs(got).max())

    def margin(which):
        best = [np.sort(scores, 1)[:, -2:] for scores in which]
        return float(min((pair[:, 1] - pair[:, 0]).min() for pair in best))

    keys = [key for key in run.tensors if key.startswith("gradient.")]
    gradients = {key: distance(run.tensors[key], exact.tensors[key].astype(np.float64)) for key in keys}
    moved = {}
    for t, (got, want) in enumerate(zip(run.ends, exact.ends)):
        for name in got:
            was = run.ends[t - 1][name] if t else run.tensors.get(f"start.{name}")
            if name == E:
                was = np.concatenate(([was] if t else []) + [run.tensors[f"{t}.rows"]])
            moved[f"{t}.{name}"] = distance(got[name] - was, want[name].astype(np.float64) - was)
    losses = [abs(a["total"] - b["total"]) / b["total"] for a, b in zip(run.losses, exact.losses)]
    first = sum(step.experience == 0 for step in run.plan.steps)
    same = [run.predictions(a) == exact.predictions(b)
            for a, b in [(run.learned, exact.learned), (run.served, exact.served)]]
    return {"losses": {"first experience": max(losses[:first]), "all": max(losses)},
            "gradients": max(gradients.values()), "gradient": max(gradients, key=gradients.get),
            "moved": {key: moved[key] for key in sorted(moved, key=moved.get)[-4:]},
            "q": sum(int((q != other).sum()) for (_, q), (_, other) in zip(run.seen, exact.seen)),
            "keys": max(distance(run.tensors[f"memory.{t}.keys"], exact.tensors[f"memory.{t}.keys"])
                        for t in range(run.plan.settings.experiences)),
            "same predictions": same,
            "closest decisions": {"learned": margin(run.learned), "served": margin(run.served)}}
