"""Routers, requests, decisions, policies."""

import json
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

import hubrouter
from conftest import PROMPT


def test_the_package_routes_with_its_own_store(router: hubrouter.Router) -> None:
    assert router.store.parent.parent == Path(hubrouter.__file__).parent
    decision = router.route(PROMPT, top=3)
    assert decision.model == "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL"
    assert decision.domains[0].domain == "Audio Audio Classification"
    assert [ranked.model for ranked in decision.ranked][0] == decision.model
    assert len(decision.ranked) == 3
    assert decision.generation == router.generation
    assert decision.ranked[0].probability > 0.9 and decision.confidence is not None
    info = router.info()
    assert (info["models"], info["threads"], info["device"]) == (2127, 1, "cpu")


def test_a_decision_is_the_json_of_the_command(router: hubrouter.Router) -> None:
    decision = router.route(hubrouter.Request(PROMPT, top=2, prompt_id="7"))
    fields = decision.to_dict()
    assert fields == json.loads(decision.json())
    assert fields["prompt_id"] == decision.prompt_id == "7"
    assert fields["ranked"][1]["model"] == decision.ranked[1].model
    assert fields["timings_us"] == decision.timings_us
    again = pickle.loads(pickle.dumps(decision))
    assert again.json() == decision.json()


def test_many_prompts_have_the_answers_of_single_ones(router: hubrouter.Router) -> None:
    prompts = [PROMPT, "Translate this letter into Spanish.", "Who is speaking?"]
    many = router.route_many(prompts, top=2)
    for prompt, decision in zip(prompts, many):
        assert isinstance(decision, hubrouter.Decision)
        alone = router.route(prompt, top=2)
        assert [(r.model, r.score) for r in alone.ranked] == [
            (r.model, r.score) for r in decision.ranked
        ]


def test_a_bad_prompt_spoils_only_itself(router: hubrouter.Router) -> None:
    good, bad = router.route_many([PROMPT, " "])
    assert isinstance(good, hubrouter.Decision)
    assert isinstance(bad, hubrouter.InvalidRequestError)
    with pytest.raises(TypeError, match="expected a str or a hubrouter.Request, found int"):
        router.route_many([PROMPT, 7])  # type: ignore[list-item]


def test_chat_requests(router: hubrouter.Router) -> None:
    body = {
        "messages": [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": "Shall I listen?"},
            {"role": "user", "content": "Yes, go on."},
        ],
        "tools": [{"type": "function", "function": {"name": "listen"}}],
    }
    decision = router.route_chat(body, top=1, session=("acme", "1"))
    assert decision.model == router.route(PROMPT, top=1).model
    assert decision.chat is not None and decision.chat["needs"]["has_tools"]
    assert decision.session is not None
    text = json.dumps(body)
    for same in (text, text.encode()):
        assert router.route_chat(same, shape="openai_chat").model == decision.model
    with pytest.raises(hubrouter.FormatError):
        router.route_chat("{")
    with pytest.raises(hubrouter.InvalidRequestError, match="shape"):
        router.route_chat(body, shape="other")  # type: ignore[arg-type]


def test_requests_keep_what_they_are_given() -> None:
    request = hubrouter.Request("a", top=3, prompt_id="7", session="x", deadline=0.25)
    assert (request.prompt, request.top, request.prompt_id) == ("a", 3, "7")
    assert (request.session, request.deadline, request.chat) == (("", "x"), 0.25, None)
    assert hubrouter.Request.from_json(request.json()).to_dict() == request.to_dict()
    with pytest.raises(hubrouter.InvalidRequestError, match="seconds"):
        hubrouter.Request("a", deadline=-1)


def test_explanations(router: hubrouter.Router) -> None:
    explanation = router.explain(PROMPT, top=2)
    assert explanation.decision.model == router.route(PROMPT).model
    assert explanation.runner_up is not None and explanation.runner_up["gap"] > 0
    assert explanation.near_models and explanation.near_domains
    assert explanation.to_dict() == json.loads(explanation.json())


def test_policies_and_candidates(router: hubrouter.Router, tmp_path: Path) -> None:
    two = router.candidates(["openai/whisper-small", "google/flan-t5-xxl"])
    assert two.eligible == 2
    decision = router.route("Write down what is said.", policy=two)
    assert decision.model == "openai/whisper-small" and len(decision.ranked) == 2
    assert decision.policy is not None and decision.policy["eligible"] == 2
    file = tmp_path / "policy.toml"
    file.write_text('where = "family = whisper"\n')
    whisper = router.compile(file)
    assert whisper.eligible > 1 and whisper.excluded[0]["by"]
    assert router.compile({"where": "family = whisper"}).to_dict() == whisper.to_dict()
    with pytest.raises(hubrouter.InvalidRequestError, match="openai/whisper"):
        router.candidates(["openai/whisper-smal"])
    other = hubrouter.Router(device="cpu", threads=1)
    with pytest.raises(hubrouter.InvalidRequestError, match="another router's"):
        other.route(PROMPT, policy=two)


def test_a_policy_that_admits_nothing(router: hubrouter.Router) -> None:
    nothing = router.compile({"where": "family = no-such-family"})
    assert nothing.eligible == 0
    with pytest.raises(hubrouter.NoCandidateError):
        router.route(PROMPT, policy=nothing)


def test_the_hub(router: hubrouter.Router) -> None:
    hub = router.hub
    assert len(hub) == 2127 and hub.active == len(hub.names()) <= len(hub)
    model = hub["openai/whisper-small"]
    assert model.family == "whisper" and not model.retired
    assert hub.models()[model.id].name == model.name
    assert "no/such" not in hub
    with pytest.raises(KeyError):
        hub["no/such"]


def test_every_kind_of_error_has_a_class() -> None:
    classes = [
        value
        for value in vars(hubrouter).values()
        if isinstance(value, type) and issubclass(value, hubrouter.Error)
    ]
    kinds = {value.kind for value in classes if value is not hubrouter.Error}
    assert kinds == {
        "io", "format", "mismatch", "tokenizer", "invalid_request", "no_candidate", "no_adapter",
        "limits", "device", "device_lost", "out_of_memory", "numeric", "refused", "unsupported",
        "deadline", "overloaded", "panic",
    }  # fmt: skip
    assert len(classes) == len(kinds) + 1


def test_errors_say_what_was_found(tmp_path: Path, router: hubrouter.Router) -> None:
    with pytest.raises(hubrouter.IoError, match=str(tmp_path)) as caught:
        hubrouter.Router(tmp_path / "nothing")
    assert caught.value.kind == "io" and isinstance(caught.value, hubrouter.Error)
    with pytest.raises(hubrouter.InvalidRequestError, match="precision"):
        hubrouter.Router(precision="f16")  # type: ignore[arg-type]
    with pytest.raises(hubrouter.InvalidRequestError, match="f16"):
        hubrouter.Router(cpu="f16")
    with pytest.raises(hubrouter.NoAdapterError):
        hubrouter.Router(device="no such adapter")
    with pytest.raises(hubrouter.InvalidRequestError, match="UTF-8"):
        router.route("\ud800")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_computing_releases_the_gil(router: hubrouter.Router) -> None:
    """While one thread computes, another one runs Python."""
    ticks, over = [0], threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks[0]
    # One call into the library, of some hundred milliseconds.
    router.route_many([f"{PROMPT} {n}" for n in range(200)])
    during = ticks[0] - before
    over.set()
    thread.join()
    assert during > 5


def test_threads_share_a_router(router: hubrouter.Router) -> None:
    want = router.route(PROMPT, top=1).ranked[0].score
    found: list[float] = []

    def route() -> None:
        for _ in range(20):
            found.append(router.route(PROMPT, top=1).ranked[0].score)

    threads = [threading.Thread(target=route) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 80


def test_a_forked_child_is_told() -> None:
    router = hubrouter.Router(device="cpu", threads=2)
    pid = os.fork()
    if pid == 0:
        try:
            router.route(PROMPT)
        except hubrouter.UnsupportedError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_cache_and_queue() -> None:
    router = hubrouter.Router(device="cpu", threads=1, cache_bytes=1 << 20, queue=0)
    assert not router.route(PROMPT).cached
    assert router.route(PROMPT).cached
    assert router.info()["stats"]["cache"]["hits"] == 1
