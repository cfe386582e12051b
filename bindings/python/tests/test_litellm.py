"""The plug-ins for LiteLLM, without LiteLLM: `tests/gateways/run.sh litellm` has the real one."""

import asyncio
import copy
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import hubrouter
from conftest import PROMPT

if "litellm" not in sys.modules:
    for name in ("litellm", "litellm.integrations", "litellm.integrations.custom_logger"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[name].CustomLogger = type("CustomLogger", (), {})  # type: ignore[attr-defined]

from hubrouter import litellm

BIRDS = "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL"
NAMES = ["openai/birds", "openai/flan"]
DEPLOYMENTS = {"openai/birds": BIRDS, "openai/flan": "google/flan-t5-xxl"}


@dataclass
class Context:
    structured_messages: list[dict[str, Any]]
    candidate_models: list[str]
    metadata: dict[str, Any] = field(default_factory=lambda: {"model_group": "auto"})
    signals: dict[str, Any] = field(default_factory=dict)


def asking(prompt: str, names: list[str] = NAMES) -> Context:
    return Context([{"role": "user", "content": prompt}], list(names))


def run(plugin: litellm.RoutingPlugin, context: Context) -> Context:
    done: Context = asyncio.run(plugin.run(context))
    return done


def test_the_best_deployment_is_left() -> None:
    plugin = litellm.RoutingPlugin(deployments=DEPLOYMENTS)
    done = run(plugin, asking(PROMPT))
    assert done.candidate_models == ["openai/birds"]
    assert done.signals["hubrouter"]["model"] == BIRDS
    json.dumps(done.signals)


def test_deployments_of_one_model_are_left_together() -> None:
    names = ["a/birds", "b/birds", "openai/flan"]
    plugin = litellm.RoutingPlugin(
        deployments={**DEPLOYMENTS, "a/birds": BIRDS, "b/birds": {"model": BIRDS}}
    )
    assert run(plugin, asking(PROMPT, names)).candidate_models == names[:2]


def test_names_of_the_hub_need_no_deployment(caplog: pytest.LogCaptureFixture) -> None:
    names = ["huggingface/google/flan-t5-xxl", BIRDS, "openai/unknown"]
    assert run(litellm.plugin, asking(PROMPT, names)).candidate_models == [BIRDS]
    done = run(litellm.plugin, asking("Translate to German: good morning.", names))
    assert done.candidate_models == names[:1]
    assert [record.args for record in caplog.records] == [("openai/unknown",)]


@pytest.mark.parametrize(
    ("prompt", "names", "policy", "want"),
    [
        (PROMPT, NAMES, {"abstain": {"min_confidence": 1.0}}, ("abstained", "low_confidence")),
        (" ", NAMES, {}, ("error", "invalid_request")),
        (PROMPT, NAMES, {"where": "family = none"}, ("error", "no_candidate")),
        (PROMPT, ["x/1", "x/2"], {}, ("error", "no_candidate")),
    ],
)
def test_what_is_not_routed_keeps_its_list(
    prompt: str, names: list[str], policy: dict[str, Any], want: tuple[str, str]
) -> None:
    plugin = litellm.RoutingPlugin(deployments=DEPLOYMENTS, policy=policy)
    done = run(plugin, asking(prompt, names))
    assert done.candidate_models == names
    assert done.signals["hubrouter"][want[0]] == want[1]


def test_a_fallback_answers_where_the_router_abstains() -> None:
    policy = {"abstain": {"min_confidence": 1.0}, "fallbacks": ["name = google/flan-t5-xxl"]}
    plugin = litellm.RoutingPlugin(deployments=DEPLOYMENTS, policy=policy)
    done = run(plugin, asking(PROMPT))
    assert done.candidate_models == ["openai/flan"]
    assert done.signals["hubrouter"]["abstained"] == "low_confidence"


def test_other_groups_are_left_alone() -> None:
    plugin = litellm.RoutingPlugin(deployments=DEPLOYMENTS)
    context = asking(PROMPT)
    context.metadata = {"model_group": "other"}
    assert run(plugin, context).candidate_models == NAMES and not context.signals
    every = litellm.RoutingPlugin(group=None, deployments=DEPLOYMENTS)
    assert run(every, context).candidate_models == ["openai/birds"]


def test_what_is_wrong_is_found_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(hubrouter.InvalidRequestError, match="whisper"):
        litellm.RoutingPlugin(deployments={"a": "openai/whisper-smal"})
    with pytest.raises(hubrouter.IoError):
        litellm.RoutingPlugin(tmp_path / "none")
    with pytest.raises(hubrouter.Error):
        litellm.RoutingPlugin(deployments=DEPLOYMENTS, policy={"were": "a = 1"})


def test_deployments_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "deployments.json"
    rows = [{"name": name, "model": model} for name, model in DEPLOYMENTS.items()]
    file.write_text(json.dumps(rows))
    plugin = litellm.RoutingPlugin(deployments=file)
    assert run(plugin, asking(PROMPT)).candidate_models == ["openai/birds"]


def test_tiers() -> None:
    classifier = litellm.ClassifierPlugin(
        {"SIMPLE": ["google/flan-t5-xxl"], "COMPLEX": ["openai/whisper-small", BIRDS]}
    )
    copied = copy.deepcopy(classifier)
    assert asyncio.run(copied.classify(asking(PROMPT))) == "COMPLEX"
    assert asyncio.run(copied.classify(asking("Translate to German: hello."))) == "SIMPLE"
    assert asyncio.run(copied.classify(asking(" "))) is None


def test_the_hook_picks_a_group_and_tells_in_headers() -> None:
    deployments = {"birds": BIRDS, "flan": "google/flan-t5-xxl"}
    hook = litellm.Hook(["birds", "flan"], deployments=deployments)

    def routed(model: str, prompt: str) -> tuple[str, dict[str, str] | None]:
        messages = [{"role": "user", "content": prompt}]
        data = {"model": model, "messages": messages, "metadata": None, "user": object()}
        data = asyncio.run(hook.async_pre_call_hook(None, None, data, "completion"))
        headers = asyncio.run(hook.async_post_call_response_headers_hook(data, None, None))
        return str(data["model"]), headers

    model, headers = routed("auto", PROMPT)
    assert model == "birds" and headers is not None
    assert headers["x-hubrouter-model"] == BIRDS and headers["x-hubrouter-deployments"] == "birds"
    assert routed("flan", PROMPT) == ("flan", None)
    model, headers = routed("auto", " ")
    assert (model, headers) == ("auto", {"x-hubrouter-error": "invalid_request"})


def test_no_exception_reaches_a_request() -> None:
    circle: list[Any] = []
    circle.append(circle)
    context = asking(PROMPT)
    context.structured_messages = circle
    done = run(litellm.RoutingPlugin(deployments=DEPLOYMENTS), context)
    assert done.candidate_models == NAMES
    assert done.signals["hubrouter"] == {"error": "ValueError"}


def test_headers_are_ascii_and_of_known_names() -> None:
    signal = {"domain": "a\r\nb: é", "probability": 0.25, "other": "x", "x\n": "y"}
    data = {"litellm_metadata": {"routing_plugin_signals": {"hubrouter": signal}}}
    headers = asyncio.run(litellm.headers.async_post_call_response_headers_hook(data, None, None))
    assert headers == {"x-hubrouter-domain": "a??b: ?", "x-hubrouter-probability": "0.2500"}
