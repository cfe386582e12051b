"""OpenAI's client against LiteLLM's proxy: litellm_client.py PROXY KEY UPSTREAM REQUESTS."""

import asyncio
import statistics
import sys
import time
from collections import Counter

from openai import AsyncOpenAI

PROXY, KEY, UPSTREAM, REQUESTS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
ASKS = {
    "birds": "Which bird is singing in recording {n}?",
    "letters": "Translate letter {n} into Spanish.",
}
MODELS = {
    "birds": "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL",
    "letters": "ByteDance-Seed/Seed-X-PPO-7B",
}


async def ask(client: AsyncOpenAI, model: str, prompt: str, stream: bool = False):
    """The answer's text and headers."""
    messages = [{"role": "user", "content": prompt}]
    raw = client.chat.completions.with_raw_response
    response = await raw.create(model=model, messages=messages, stream=stream)
    answer = response.parse()
    if not stream:
        return answer.choices[0].message.content, response.headers
    parts = [part.choices[0].delta.content or "" async for part in answer if part.choices]
    return "".join(parts), response.headers


def check(found: object, want: object, what: str) -> None:
    if found != want:
        raise SystemExit(f"{what}: expected {want!r}, found {found!r}")


async def everything_is_routed(client: AsyncOpenAI, model: str, count: int) -> None:
    """`count` requests, a third of them streamed, eight at once: each at the right upstream."""
    limit = asyncio.Semaphore(8)

    async def one(n: int) -> None:
        want = ("birds", "letters")[n % 2]
        async with limit:
            text, headers = await ask(client, model, ASKS[want].format(n=n), stream=n % 3 == 0)
        check(text, want, f"request {n}")
        check(headers.get("x-hubrouter-model"), MODELS[want], f"header of request {n}")
        check("abstained" in str(headers.keys()), False, f"header of request {n}")

    await asyncio.gather(*map(one, range(count)))
    print(f"{count} requests for {model}: all routed, no failure")


async def abstaining_leaves_the_choice(client: AsyncOpenAI) -> None:
    texts = Counter()
    for n in range(40):
        text, headers = await ask(client, "careful", ASKS["birds"].format(n=n), stream=n % 2 == 0)
        check(headers.get("x-hubrouter-abstained"), "low_confidence", "abstained")
        texts[text] += 1
    check(set(texts), {"birds", "letters"}, "upstreams of requests that were not routed")
    print(f"40 requests where the router abstains: {dict(texts)}")


async def explicit_names_are_left_alone(client: AsyncOpenAI) -> None:
    for name, other in (("birds", "letters"), ("letters", "birds")):
        text, headers = await ask(client, name, ASKS[other].format(n=1))
        check((text, headers.get("x-hubrouter-model")), (name, None), f"request for {name}")
    print("requests for a model by its name: left alone")


async def what_has_no_text_is_answered(client: AsyncOpenAI) -> None:
    text, headers = await ask(client, "auto", " ")
    check(headers.get("x-hubrouter-error"), "invalid_request", "error")
    check(text in MODELS, True, "upstream")
    print("a request without text: answered by LiteLLM's own choice")


async def times(client: AsyncOpenAI, direct: AsyncOpenAI, count: int) -> None:
    """One after the other, in turn: an upstream alone, the proxy, the proxy with the plug-in."""
    kinds = {
        "upstream alone": (direct, "birds"),
        "proxy, a model by its name": (client, "birds"),
        "proxy, routed": (client, "auto"),
        "proxy, routed, prompt known": (client, "auto"),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for n in range(count):
        for kind, (to, model) in kinds.items():
            number = 0 if kind.endswith("known") else n + 100_000
            began = time.perf_counter()
            await ask(to, model, ASKS["birds"].format(n=number))
            taken[kind].append(1e3 * (time.perf_counter() - began))
    for kind, values in taken.items():
        values.sort()
        p50, p99 = statistics.median(values), values[int(0.99 * len(values))]
        print(f"{kind:30} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms ({count} requests)")


async def main() -> None:
    client = AsyncOpenAI(base_url=PROXY, api_key=KEY, max_retries=0, timeout=60)
    direct = AsyncOpenAI(base_url=UPSTREAM, api_key="none", max_retries=0, timeout=60)
    await ask(client, "auto", "Opens the router.")
    await everything_is_routed(client, "auto", REQUESTS)
    await everything_is_routed(client, "pick", 100)
    await abstaining_leaves_the_choice(client)
    await explicit_names_are_left_alone(client)
    await what_has_no_text_is_answered(client)
    for want, prompt in ASKS.items():
        text, headers = await ask(client, "tiers", prompt.format(n=7))
        check(text, want, "tier")
        tier = {"birds": "COMPLEX", "letters": "SIMPLE"}[want]
        check(headers.get("x-litellm-complexity-router-tier"), tier, "tier")
    print("the classifier's tier: both right")
    await times(client, direct, 200)


asyncio.run(main())
