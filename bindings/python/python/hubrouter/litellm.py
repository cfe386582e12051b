"""Routing in LiteLLM: a routing plug-in, a classifier and a hook, for the proxy and its SDK.

`docs/gateways.md` shows a configuration. All three choose among *deployments*: names that LiteLLM
knows, each with the model of the hub that it stands for.

>>> from hubrouter.litellm import RoutingPlugin
>>> plugin = RoutingPlugin(deployments={"openai/my-whisper": "openai/whisper-small"})
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from litellm.integrations.custom_logger import CustomLogger

from hubrouter import Decision, Error, Policy, Request, Router

__all__ = ["ClassifierPlugin", "Hook", "RoutingPlugin"]

LOG = logging.getLogger("hubrouter.litellm")

SIGNAL = "hubrouter"
"""Where the decision is kept: a key of `RoutingContext.signals` and of a request's metadata."""

SIGNALS = (
    "model", "domain", "probability", "confidence", "generation", "deployments", "abstained",
    "error",
)  # fmt: skip
"""What a signal may have, and so the names behind `x-hubrouter-`."""

MOST_SETS = 256
"""Compiled sets of deployments that are kept."""

Described = str | Mapping[str, Any]
"""A model of the hub, or what a candidate has (docs/policy.md): `model`, `attributes`, `card`."""


class Context(Protocol):
    """What is used of LiteLLM's `RoutingContext`."""

    structured_messages: list[dict[str, Any]]
    candidate_models: list[str]
    metadata: dict[str, Any]
    signals: dict[str, Any]


_ROUTERS: dict[str, Router] = {}
_LOCK = threading.Lock()


def _opened(store: str | PathLike[str] | None, options: Mapping[str, Any]) -> Router:
    """The router of this store with these options; plug-ins share it."""
    # Requests come in threads: each routes on its own.
    options = {"device": "cpu", "threads": 1, "cache_bytes": 8 << 20, **options}
    key = json.dumps([store, options], default=str, sort_keys=True)
    with _LOCK:
        if key not in _ROUTERS:
            _ROUTERS[key] = Router(store, **options)
        return _ROUTERS[key]


class _Chooser:
    """Chooses among names. A wrong store, policy or deployment is found when it is made."""

    def __init__(
        self,
        store: str | PathLike[str] | None,
        deployments: Mapping[str, Described] | str | PathLike[str],
        policy: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        if not isinstance(deployments, Mapping):
            listed = json.loads(Path(deployments).read_text(encoding="utf-8"))
            deployments = {row["name"]: row for row in listed}
        self._deployments = dict(deployments)
        self._policy = dict(policy or {})
        self._router = _opened(store, options)
        self._lock = threading.Lock()
        self._policies: dict[tuple[str, ...], Policy | None] = {}
        self.compiled(tuple(self._deployments))

    def __deepcopy__(self, memo: object) -> _Chooser:
        # LiteLLM copies its configuration with the plug-ins in it.
        return self

    def _candidate(self, name: str) -> dict[str, Any] | None:
        """The candidate of this name; None if neither the deployments nor the hub know it."""
        described = self._deployments.get(name)
        if isinstance(described, str):
            return {"name": name, "model": described}
        if described is not None:
            return {**described, "name": name}
        # "openai/gpt2" is a provider and a model; a hub may know either.
        for model in (name, name.partition("/")[2]):
            if model in self._router.hub:
                return {"name": name, "model": model}
        LOG.warning("%s is no model of the hub, and no deployment describes it", name)
        return None

    def compiled(self, names: tuple[str, ...]) -> Policy | None:
        """The policy that admits these names; None if it knows none of them."""
        with self._lock:
            if names in self._policies:
                return self._policies[names]
        found = [self._candidate(name) for name in names]
        candidates = [candidate for candidate in found if candidate]
        policy = None
        if candidates:
            policy = self._router.compile({**self._policy, "candidates": candidates})
        with self._lock:
            while len(self._policies) >= MOST_SETS:
                self._policies.pop(next(iter(self._policies)))
            self._policies[names] = policy
        return policy

    def choose(self, body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The deployments that should get a chat request, and why, as a signal.

        `deployments` is missing where there is no choice: it abstained, or failed.
        """
        try:
            policy = self.compiled(tuple(dict.fromkeys(names)))
            if policy is None:
                return {"error": "no_candidate"}
            request = Request.from_chat(json.dumps(body, default=str), top=1)
            return _signal(self._router.route(request, policy=policy))
        except Exception as error:
            # Whatever it is, the request goes on without a router.
            LOG.warning("not routed: %s", error)
            return {"error": error.kind if isinstance(error, Error) else type(error).__name__}


def _signal(decision: Decision) -> dict[str, Any]:
    best = decision.ranked[0]
    signal: dict[str, Any] = {
        "model": best.model,
        "domain": best.domain,
        "probability": best.probability,
        "generation": decision.generation,
    }
    if decision.confidence:
        signal["confidence"] = decision.confidence["model"]
    if decision.abstained:
        signal["abstained"] = decision.abstained["reason"]
        # A fallback of the policy answers in place of the router; without one nobody does.
        if not (decision.policy or {}).get("fallback"):
            return signal
    signal["deployments"] = best.deployments
    return signal


class RoutingPlugin:
    """Narrows the deployments of a model group to those of the best model.

    For `router_settings.plugins`. `group`: the model group of requests to route; None for all.
    `deployments`: LiteLLM's `litellm_params.model` -> a model of the hub, or a candidate with a
    card; or the path of a JSON file with a list of candidates. Names that are missing are looked up
    in the hub. `policy`: fields of a policy. Options are those of `hubrouter.Router`.

    Where the router abstains or fails, the list stays as it is.
    """

    def __init__(
        self,
        store: str | PathLike[str] | None = None,
        *,
        group: str | None = "auto",
        deployments: Mapping[str, Described] | str | PathLike[str] = {},
        policy: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._group = group
        self._chooser = _Chooser(store, deployments, policy, options)

    async def run(self, context: Any) -> Any:
        """LiteLLM's entry: a `RoutingContext` in and out."""
        group = context.metadata.get("model_group", self._group)
        if self._group not in (None, group) or len(set(context.candidate_models)) < 2:
            return context
        body = {"messages": context.structured_messages}
        names = context.candidate_models
        signal = await asyncio.to_thread(self._chooser.choose, body, names)
        context.signals[SIGNAL] = signal
        if "deployments" in signal:
            context.candidate_models = [name for name in names if name in signal["deployments"]]
        return context


class ClassifierPlugin:
    """Names the tier of a request, for `classifier_plugin` of the complexity router.

    `tiers`: the name of a tier -> the models of the hub, or candidates with cards, that stand for
    it. The tier of the best model is the answer; None, which LiteLLM answers with its own
    classifier, where the router abstains or fails.
    """

    def __init__(
        self,
        tiers: Mapping[str, Sequence[Described]],
        store: str | PathLike[str] | None = None,
        *,
        policy: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._tiers: dict[str, str] = {}
        deployments: dict[str, Described] = {}
        for tier, models in tiers.items():
            for number, model in enumerate(models):
                name = f"{tier}/{number}"
                self._tiers[name] = tier
                deployments[name] = model
        self._chooser = _Chooser(store, deployments, policy, options)

    async def classify(self, context: Any) -> str | None:
        """LiteLLM's entry: a `RoutingContext` in, the name of a tier out."""
        body = {"messages": list(context.structured_messages)}
        signal = await asyncio.to_thread(self._chooser.choose, body, list(self._tiers))
        names = signal.get("deployments")
        return self._tiers[names[0]] if names else None


class Hook(CustomLogger):  # type: ignore[misc]
    """A callback for `litellm_settings.callbacks`: the decision in `x-hubrouter-*` headers.

    With `models`, names of model groups, it also replaces the model of requests for `group` by the
    best of them. It then sees the whole request: what it demands (tools, images, tokens) counts if
    the policy has `chat_needs`. Without `models` it reports what a `RoutingPlugin` decided.

    Where the router abstains or fails, the model stays as it is.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        store: str | PathLike[str] | None = None,
        *,
        group: str = "auto",
        deployments: Mapping[str, Described] | str | PathLike[str] = {},
        policy: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._models = tuple(models)
        self._group = group
        if self._models:
            self._chooser = _Chooser(store, deployments, policy, options)
            self._chooser.compiled(self._models)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """LiteLLM's entry before a call: sets `data["model"]`."""
        if self._models and data.get("model") == self._group:
            body = {key: data[key] for key in BODY if key in data}
            signal = await asyncio.to_thread(self._chooser.choose, body, self._models)
            data["metadata"] = {**(data.get("metadata") or {}), SIGNAL: signal}
            if "deployments" in signal:
                data["model"] = signal["deployments"][0]
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """LiteLLM's entry after a call: the headers."""
        for key in ("metadata", "litellm_metadata"):
            metadata = data.get(key) or {}
            signal = metadata.get(SIGNAL)
            signal = signal or (metadata.get("routing_plugin_signals") or {}).get(SIGNAL)
            if signal:
                # A client may send metadata of its own: known names alone become headers.
                known = [name for name in SIGNALS if name in signal]
                return {f"x-hubrouter-{name}": _text(signal[name]) for name in known}
        return None


BODY = (
    "messages", "input", "instructions", "system", "tools", "functions", "max_tokens",
    "max_completion_tokens", "max_output_tokens", "response_format", "text", "modalities",
)  # fmt: skip
"""Keys of a chat request that the router reads; the others are LiteLLM's own."""


def _text(value: object) -> str:
    """A value as a header: printable ASCII."""
    if isinstance(value, float):
        value = f"{value:.4f}"
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return "".join(c if " " <= c <= "~" else "?" for c in str(value))


def __getattr__(name: str) -> Any:
    """`hubrouter.litellm.plugin` for `router_settings.plugins`, `hubrouter.litellm.headers` for
    `litellm_settings.callbacks`: they route the group `auto` with the hub of the package.
    """
    if name not in ("plugin", "headers"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made: RoutingPlugin | Hook = RoutingPlugin() if name == "plugin" else Hook()
    globals()[name] = made
    return made
