"""Stores that are built, learned into, swapped and rolled back; logs of feedback."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import hubrouter
from conftest import MODELS

EXAMPLES = [
    {"instruction": f"{verb} the name of the {thing}.", "model_name": "acme/ner"}
    for verb in ("Find", "Tell me", "What is", "Look up")
    for thing in ("person", "city", "river", "ship")
]


def learned(report: dict[str, Any]) -> int:
    return int(report["examples"] + report["held_out"])


def test_a_store_of_ones_own_models(store: Path) -> None:
    router = hubrouter.Router(store, device="cpu", threads=1)
    assert sorted(router.hub.names()) == sorted(str(model["model_name"]) for model in MODELS)
    assert router.route("Find the names of persons.").model == "acme/ner"


def test_building_over_a_store_is_refused(store: Path) -> None:
    with pytest.raises(hubrouter.RefusedError):
        hubrouter.build(store, MODELS[:2], device="cpu")


def test_models_are_also_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "models.jsonl"
    steps: list[hubrouter.Progress] = []
    file.write_text("".join(json.dumps(model) + "\n" for model in MODELS))
    hubrouter.build(tmp_path / "store", file, device="cpu", progress=steps.append)
    assert [step.stage for step in steps][:1] == ["encoding cards"]
    assert (steps[-1].done, steps[-1].total) == (len(MODELS), len(MODELS))


def test_an_exception_of_the_callback_is_raised(tmp_path: Path) -> None:
    def progress(step: hubrouter.Progress) -> None:
        raise RuntimeError(step.stage)

    with pytest.raises(RuntimeError, match="encoding cards"):
        hubrouter.build(tmp_path / "store", MODELS, device="cpu", progress=progress)


def test_learning_publishes_a_child_that_can_be_rolled_back(store: Path) -> None:
    router = hubrouter.Router(store, device="cpu", threads=1)
    parent = router.generation
    stages: list[str] = []

    def progress(step: hubrouter.Progress) -> None:
        stages.append(step.stage)

    report = hubrouter.learn(
        store, EXAMPLES, recipe="memory", settings={"seed": 3}, device="cpu", progress=progress
    )
    assert report is not None and not report["refused"] and stages
    assert report["parent"] == parent and learned(report) == len(EXAMPLES)
    assert router.generation == parent and router.refresh() and not router.refresh()
    assert router.generation == report["generation"]
    assert router.rollback() == parent == router.generation
    router.install(report["generation"])
    assert router.generation == report["generation"]
    with pytest.raises(hubrouter.InvalidRequestError):
        router.install("g0009-000000000000")
    assert hubrouter.Router(store, generation="g0001", device="cpu").generation == parent


def test_learning_introduces_models_and_reads_files(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    rows = [{"instruction": f"Which bird sings {n}?", "model_name": "acme/birds"} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [{"model_name": "acme/birds", "domain": "Audio", "description": "Hears birds."}]
    report = hubrouter.learn(store, file, models=models, recipe="memory", device="cpu")
    assert report is not None and report["models_added"] == 1
    assert "acme/birds" in hubrouter.Router(store, device="cpu").hub


def test_a_dry_run_changes_nothing(store: Path) -> None:
    report = hubrouter.learn(store, EXAMPLES, recipe="memory", dry_run=True, device="cpu")
    assert report is not None and report["generation"] is None
    assert hubrouter.Router(store, device="cpu").generation.startswith("g0001")


def test_learning_stops_where_the_callback_says_so_and_resumes(store: Path) -> None:
    many = [
        {"instruction": f"{row['instruction']} {n}", "model_name": row["model_name"]}
        for row in EXAMPLES
        for n in range(2)
    ]
    arguments: dict[str, Any] = {
        "recipe": "carve",
        "settings": {"epochs": 4, "batch": 8},
        "device": "cpu",
    }
    steps = 0

    def stop(step: hubrouter.Progress) -> bool:
        nonlocal steps
        steps += step.loss is not None
        return steps < 2

    assert hubrouter.learn(store, many, progress=stop, **arguments) is None

    def fail(step: hubrouter.Progress) -> None:
        if step.loss is not None:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        hubrouter.learn(store, many, progress=fail, **arguments)
    report = hubrouter.learn(store, many, **arguments)
    assert report is not None and report["generation"].startswith("g0002")


def test_errors_of_learning(store: Path) -> None:
    with pytest.raises(hubrouter.InvalidRequestError):
        hubrouter.learn(store, [{"instruction": "a", "model_name": "acme/unknown"}], device="cpu")
    with pytest.raises(hubrouter.InvalidRequestError, match=r"examples\[0\]"):
        hubrouter.learn(store, [{"instruction": "a"}], device="cpu")
    with pytest.raises(hubrouter.InvalidRequestError):
        hubrouter.learn(store, EXAMPLES, settings={"no.such": 1})
    with pytest.raises(hubrouter.InvalidRequestError):
        hubrouter.learn(store, EXAMPLES, recipe="other")


def test_a_watch_follows_the_store(store: Path) -> None:
    router = hubrouter.Router(store, device="cpu", threads=1)
    with router.watch(0.05) as watch:
        report = hubrouter.learn(store, EXAMPLES, recipe="memory", device="cpu")
        assert report is not None
        waited = threading.Event()
        for _ in range(200):
            if router.generation == report["generation"]:
                break
            waited.wait(0.05)
        assert router.generation == report["generation"]
        assert (watch.reloads, watch.errors, watch.last_error) == (1, 0, None)
    watch.stop()


def test_feedback_becomes_learning(store: Path, tmp_path: Path) -> None:
    router = hubrouter.Router(store, device="cpu", threads=1)
    log = hubrouter.FeedbackLog(tmp_path / "log", keep="text")
    for row in EXAMPLES:
        request = hubrouter.Request(row["instruction"])
        decision = router.route(request)
        log.observe(request, decision, used="acme/ner", success=True, cost=0.1, input_tokens=9)
    assert log.folder == tmp_path / "log" and log.lost == 0
    report = hubrouter.learn(store, log.folder, recipe="memory", device="cpu")
    assert report is not None and learned(report) == len(EXAMPLES)
    with pytest.raises(hubrouter.Error):
        hubrouter.FeedbackLog(tmp_path / "other", keep="all")  # type: ignore[arg-type]
