"""A small data set for learning runs, and prompts for the other parts of a bundle. All of it is written here.

A model can do one thing (a verb) with one kind of data; its domain is the verb. Three experiences bring models, in
domains of their own and in earlier ones.

  data.py --to FOLDER      writes models.jsonl and examples.jsonl for `hubrouter hub build` and `learn`
"""

import argparse
import json
from pathlib import Path

import numpy as np

PROMPTS = [
    "route",
    "Please route the prompt to a model that can translate English.",
    "summarize the audio, the video and the tabular data; don't segment it first",
    "Übersetze „Guten Morgen“ ins Japanische: おはようございます — danke! 🙂",
    "x=y+z; fn main() {} [MASK] https://example.org/a?b=c&d=%20",
    "classify English or French audio quickly please " * 24,
]

DOMAINS = {
    "translate": "Translation", "summarize": "Summarization", "classify": "Classification",
    "detect": "Detection", "segment": "Segmentation", "transcribe": "Transcription",
}
EXPERIENCES = [
    {"translate": ["English", "French", "Chinese"], "classify": ["images", "audio", "video"],
     "summarize": ["English", "audio", "data"], "detect": ["images", "video", "data"]},
    {"segment": ["images", "video", "data"], "transcribe": ["audio", "video", "Chinese"], "translate": ["data"]},
    {"classify": ["data", "French"], "segment": ["audio"], "detect": ["audio"], "summarize": ["Chinese"]},
]
FORMS = [
    "{verb} {data} {end}",
    "route the prompt to a model that can {verb} {data} {end}",
    "{start} {verb} {data}",
    "a model to {verb} {data}, {end}",
    "{start} {verb} the {data} {end}",
    "can it {verb} {data} without running it first {end}",
]
STARTS = ["please", "quickly", "first", "don't translate it; only", "a prompt:", "Input:"]
ENDS = ["please", "quickly", "first", "in English", "in video or audio", "to data", "(quickly)", "without running it"]


class Model:
    def __init__(self, verb, data):
        self.verb, self.data = verb, data
        self.name, self.domain = f"reference/{verb}-{data.lower()}", DOMAINS[verb]
        self.card = f"{self.name}. {self.domain}"


def dataset(seed, train, evaluate):
    """The models by id, how many there are in each experience, and rows: text, model, experience, split.

    `train`, `evaluate`: rows of each model. No text comes twice.
    """
    rng = np.random.default_rng([seed, 1])
    models, known, rows, seen = [], [], [], set()
    for experience, groups in enumerate(EXPERIENCES):
        new = [Model(verb, data) for verb, kinds in groups.items() for data in kinds]
        first = len(models)
        models += sorted(new, key=lambda model: model.name)
        known.append(len(models))
        for split, count in [("train", train), ("eval", evaluate)]:
            for model in range(first, len(models)):
                for _ in range(count):
                    rows.append({"text": prompt(models[model], rng, seen), "model": model, "experience": experience,
                                 "split": split})
    return models, known, rows


def prompt(model, rng, seen):
    def pick(choices):
        return choices[rng.integers(len(choices))]

    while True:
        text = pick(FORMS).format(verb=model.verb, data=model.data, start=pick(STARTS), end=pick(ENDS))
        if text not in seen:
            seen.add(text)
            return text


def main():
    """All models; examples of the first two experiences, so that some models have none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    to = parser.parse_args().to
    models, _, rows = dataset(20260801, 6, 5)
    cards = [{"model_name": model.name, "domain": model.domain} for model in models]
    examples = [{"instruction": row["text"], "model_name": models[row["model"]].name} for row in rows
                if row["experience"] < 2 and row["split"] == "train"]
    for name, lines in [("models.jsonl", cards), ("examples.jsonl", examples)]:
        (to / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
