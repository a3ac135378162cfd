"""What our plugin and middleware cost requests for the base alone: CPU time beside plain vLLM, with and without LoRA.

    python -m tests.inference.engines.bench_base

Three servers with the same flags run at the same time: vLLM as `adapt serve` starts it, `vllm serve --enable-lora` and
`vllm serve`. Each round sends the same requests to each in turn, in another order each time. What counts is the CPU
time, user and system, of all processes of a server and of its API process alone, because other work on the machine
disturbs it least; `spread` is the middle half of the rounds. Before, the middleware runs alone, before a route that does
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from adapterhub.inference.serving.chain.asgi import App, Message, Receive, Send
from adapterhub.inference.serving.vllm import GUARD
from adapterhub.vllm_plugin import guard
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.inference.engines.__main__ import vllm_python
from tests.inference.engines.bench_vllm import SLOTS
from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.servers import Server, bare_vllm, cpu_seconds, group_of
from tests.inference.engines.variants import PROMPTS
from tests.support.real_base import smollm2_base

ROUNDS = 12
REQUESTS = 8
"""At once, a round and a server."""
TOKENS = 8
ALONE = 1000
"""Requests to the middleware without a server."""
KINDS: Mapping[str, dict[str, Any]] = {"whole answers": {}, "streams": {"stream": True}}
OURS, LORA, PLAIN = "adapterhub", "vllm --enable-lora", "vllm"

Cost = tuple[float, float]
"""CPU milliseconds a request, of all processes and of the API process."""


@contextlib.contextmanager
def three_servers(folder: Path) -> Iterator[dict[str, Server]]:
    """By name; ours stands on a library that knows the base alone."""
    served = make_served_library(folder)
    ours = {"VLLM_PLUGINS": "adapterhub", "ADAPTERHUB_HOME": str(served.home)}
    kinds: dict[str, tuple[tuple[str, ...], bool, dict[str, str]]] = {
        OURS: ((*SLOTS, "--middleware", GUARD), True, ours),
        LORA: (SLOTS, True, {}),
        PLAIN: ((), False, {}),
    }
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                bare_vllm(smollm2_base(), folder / f"{at}.log", *flags, lora=lora, environ=environ)
            )
            for at, (name, (flags, lora, environ)) in enumerate(kinds.items())
        }


def cost_of(server: Server, more: Mapping[str, Any]) -> Cost:
    """Of the requests of one round."""
    processes = group_of(server.pid)
    before = cpu_seconds(processes), cpu_seconds([server.pid])
    with ThreadPoolExecutor(REQUESTS) as threads:
        jobs = [PROMPTS[at % len(PROMPTS)] for at in range(REQUESTS)]
        answers = list(threads.map(lambda prompt: server.complete("base", prompt, TOKENS, **more), jobs))
    assert all(answer.status == 200 for answer in answers)
    after = cpu_seconds(processes), cpu_seconds([server.pid])
    whole, api = (1000 * (new - old) / REQUESTS for old, new in zip(before, after, strict=True))
    return whole, api


def costs(servers: Mapping[str, Server], more: Mapping[str, Any]) -> dict[str, list[Cost]]:
    """One a round, after a round that is not counted."""
    order, found = list(servers), dict[str, list[Cost]]()
    draw = random.Random(1)
    for number in range(ROUNDS + 1):
        draw.shuffle(order)
        for name in order:
            cost = cost_of(servers[name], more)
            if number:
                found.setdefault(name, []).append(cost)
    return found


def table(found: Mapping[str, Sequence[Cost]]) -> dict[str, Any]:
    """Medians and the least of all rounds, and the median and the middle half of the ratios of the same round."""
    rows: dict[str, Any] = {}
    for name, one in found.items():
        for what, costs in zip(("CPU ms", "API process, CPU ms"), zip(*one, strict=True), strict=True):
            rows.setdefault(name, {})[what] = {
                "median": round(statistics.median(costs), 2),
                "least": round(min(costs), 2),
            }
    for other in (LORA, PLAIN):
        for at, what in enumerate(("CPU", "API process")):
            ratios = [our[at] / their[at] for our, their in zip(found[OURS], found[other], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows[f"{what}, {OURS} to {other}"] = {"ratio": round(middle, 3), "spread": [round(low, 3), round(high, 3)]}
    return rows


async def middleware_us(tokens: int, chunks: int) -> float:
    """Microseconds of CPU that the middleware takes for a request of so many tokens, answered in so many pieces."""

    async def route(_scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for at in range(chunks):
            await send({"type": "http.response.body", "body": b"data: {}", "more_body": at + 1 < chunks})

    async def send(_message: Message) -> None:
        pass

    models = SimpleNamespace(is_base_model=lambda name: name == "base", lora_requests={})
    scope: Message = {
        "type": "http", "method": "POST", "path": "/v1/completions",
        "headers": [(b"host", b"here"), (b"content-type", b"application/json")],
        "app": SimpleNamespace(state=SimpleNamespace(openai_serving_models=models)),
    }  # fmt: skip
    body = json.dumps({"model": "base", "prompt": list(range(tokens))}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def seconds(app: App) -> float:
        start = time.process_time()
        for _ in range(ALONE):
            await app(dict(scope), receive, send)
        return time.process_time() - start

    with mock.patch.object(guard, "registered_resolver", return_value=AdapterHubResolver({}, ["vllm"])):
        app = guard.Guard(route)
    return min([1e6 * (await seconds(app) - await seconds(route)) / ALONE for _ in range(7)])


def main() -> int:
    alone = {f"{tokens} tokens, {chunks} pieces": round(asyncio.run(middleware_us(tokens, chunks)), 1)
             for tokens, chunks in ((50, 1), (50, 100), (3000, 1))}  # fmt: skip
    print(json.dumps({"middleware alone, us of CPU": alone}))  # noqa: T201 - its report
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder, three_servers(Path(folder)) as servers:
        for kind, more in KINDS.items():
            print(json.dumps({kind: table(costs(servers, more))}, indent=1), flush=True)  # noqa: T201 - its report
    return 0


if __name__ == "__main__":
    sys.exit(main())
