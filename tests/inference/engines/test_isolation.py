"""Mixed load on real engines: each answer is that of a single run, whoever asked before and beside it.

Prompts share long beginnings on purpose, since engines reuse what they computed for equal beginnings.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, adapt_serve
from tests.inference.engines.variants import LINEAR
from tests.support.command_line import Adapt
from tests.support.llama_cpp import smollm2_gguf

pytestmark = pytest.mark.engine

REQUESTS = int(os.environ.get("ADAPTERHUB_ISOLATION_REQUESTS", "300"))
"""Of each engine, shared by the levels of concurrency; 2,000 in a long run."""

TURNS = int(os.environ.get("ADAPTERHUB_ISOLATION_TURNS", "3"))
"""Of five first tokens with and without load; 20 in a long run."""

LEVELS = (1, 8, 32)
BEGINNING = "The following is the record of a meeting of the board, which was held in the usual place. "
PROMPTS = (
    BEGINNING + "The first speaker said that",
    BEGINNING + "The first speaker asked whether",
    BEGINNING + "Nobody",
    "Once upon a time there was",
)
ADAPTERS = ("one", "two", "three", "four")
MERGES = {"half": ("one", "two"), "third": ("two", "three", "four")}
TOKENS = 8


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> ServedLibrary:
    """Four adapters, two merges, and an alias."""
    made = make_served_library(tmp_path_factory.mktemp("isolation"))
    for seed, name in enumerate(ADAPTERS, 60):
        made.add(name, {"r": 8, "lora_alpha": 16, "target_modules": LINEAR}, seed=seed)
    adapt = Adapt(made.root)
    for name, parents in MERGES.items():
        weights = ",".join(["1"] * len(parents))
        adapt.ok("merge", *parents, "--weights", weights, "-o", name)
    adapt.ok("alias", "set", "prod", "one==1.0.0")
    return made


@pytest.fixture(scope="module", params=["llama.cpp", "vllm"])
def server(isolated: ServedLibrary, request: pytest.FixtureRequest) -> Iterator[Server]:
    log = isolated.root / f"{request.param}.log"
    names = [*ADAPTERS, *MERGES, "one@prod"]
    if request.param == "vllm":
        words = ["--base", "smol", "--max-rank", "32", "--slots", "7", "--cpu-slots", "8"]
        with adapt_serve(isolated.home, log, *names, *words) as running:
            yield running
    else:
        with llama(isolated, log, *names) as running:
            yield running


def llama(made: ServedLibrary, log: Path, *words: str, flags: str = "--ctx-size 2048 --threads 1") -> Any:
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    chosen = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
    return adapt_serve(made.home, log, *words, *chosen, engine_args=flags)


def completion(model: str, prompt: str) -> tuple[str, dict[str, Any], Callable[[Any], str]]:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    return "/v1/completions", body, lambda value: value["choices"][0]["text"]


def chat(model: str, prompt: str) -> tuple[str, dict[str, Any], Callable[[Any], str]]:
    turns = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": turns, "max_tokens": TOKENS, "temperature": 0}
    return "/v1/chat/completions", body, lambda value: value["choices"][0]["message"]["content"]


def streamed(model: str, prompt: str) -> tuple[str, dict[str, Any], Callable[[Any], str]]:
    path, body, _ = completion(model, prompt)
    return path, body | {"stream": True}, _joined


def _joined(text: str) -> str:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return "".join(choice["text"] for line in lines[:-1] for choice in json.loads(line)["choices"])


FORMS = (completion, chat, streamed)
NAMES = ("smol", *ADAPTERS, *MERGES, "one@prod")


def asked(server: Server, form: Any, model: str, prompt: str) -> str:
    path, body, read = form(model, prompt)
    answer = server.post(path, body)
    assert answer.status == 200, answer.value
    return read(answer.value)


def test_mixed_load_answers_as_single_requests_do(
    server: Server, isolated: ServedLibrary, tell: Callable[[str, str], None]
) -> None:
    cases = list(itertools.product(FORMS, NAMES, PROMPTS))
    alone = {(form, name, prompt): asked(server, form, name, prompt) for form, name, prompt in cases}
    draw, wrong, done = random.Random(0), Counter[str](), 0
    adapt = Adapt(isolated.root)

    for level in LEVELS:
        chosen = [draw.choice(cases) for _ in range(REQUESTS // len(LEVELS))]
        with ThreadPoolExecutor(level) as threads:
            answers = threads.map(lambda case: asked(server, *case), chosen)
            for at, (case, answer) in enumerate(zip(chosen, answers, strict=True)):
                done += 1
                if answer != alone[case]:
                    wrong[f"{level} at once, {case[0].__name__}, {case[1]}"] += 1
                if at == len(chosen) // 2:  # moves to the same build: its meaning stays
                    adapt.ok("alias", "set", "prod", "one==1.0.0")

    tell(f"answers that differ from single ones, {isolated.root.name}", f"{sum(wrong.values())} of {done}")
    said = {name: tuple(alone[form, name, prompt] for form in FORMS for prompt in PROMPTS) for name in NAMES[:-1]}
    assert len(set(said.values())) == len(said), "the adapters answer alike, so a mixed-up answer would not show"
    assert not wrong


def test_a_prompt_that_another_adapter_computed_is_computed_again(isolated: ServedLibrary) -> None:
    """One slot: llama.cpp's own cache would give `two` the keys and values of `one` (default `--cache-ram`)."""
    prompt, other = PROMPTS[0], PROMPTS[3]
    with llama(isolated, isolated.root / "one-slot.log", *ADAPTERS, "--slots", "1") as server:
        fresh = {name: asked(server, completion, name, prompt) for name in ("one", "two")}
        for first, second in (("one", "two"), ("two", "one")):
            asked(server, completion, first, prompt)
            asked(server, completion, second, other)
            assert asked(server, completion, second, prompt) == fresh[second]


# ---------------------------------------------------------------- tenants
KEYS = {"modest": "key-modest", "greedy": "key-greedy"}
TENANTS = "".join(
    f'[tenants.{name}]\nkeys = ["{digest_of(key.encode())}"]\nadapters = ["*"]\n' for name, key in KEYS.items()
)


@pytest.fixture(scope="module")
def shared(isolated: ServedLibrary) -> Iterator[Server]:
    file = isolated.root / "tenants.toml"
    file.write_text(TENANTS)
    with llama(isolated, isolated.root / "shared.log", *ADAPTERS, "--tenants", str(file)) as running:
        yield running


def post(server: Server, tenant: str, body: Mapping[str, Any], path: str = "/v1/completions") -> tuple[int, Any]:
    answer = server.post(path, body, headers={"Authorization": f"Bearer {KEYS[tenant]}"})
    return answer.status, answer.value


def test_no_count_tells_what_another_tenant_sent(shared: Server) -> None:
    secret = BEGINNING + "The password of the safe is"
    body = {"model": "one", "prompt": secret, "max_tokens": 1, "temperature": 0}

    post(shared, "greedy", body)
    told = [post(shared, "modest", body)[1]["usage"] for _ in range(2)]

    cached = [usage.get("prompt_tokens_details", {}).get("cached_tokens", 0) for usage in told]
    assert cached[0] == 0
    assert cached[1] > 0  # its own prompt


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "grammar": "root ::= " + 60_000 * "("},
        {"prompt": "a", "json_schema": {"pattern": "(" * 20_000}},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"maxItems": 10**9}}}},
        {"prompt": "a", "max_tokens": 10**12},
        {"prompt": ["a"] * 100_000},
        {"prompt": "a", "id_slot": 0, "lora": [{"id": 0, "scale": 1e9}]},
    ],
)
def test_a_request_that_would_end_the_engine_is_refused(shared: Server, body: dict[str, Any]) -> None:
    refused = post(shared, "greedy", {"model": "one", **body})[0]
    works = post(shared, "modest", {"model": "one", "prompt": "a", "max_tokens": 1})[0]

    assert refused in {400, 403, 413}
    assert works == 200


def test_a_stream_that_its_client_left_stops_in_the_engine(shared: Server) -> None:
    body = {"model": "one", "prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True}
    host = shared.url.removeprefix("http://")
    headers = {"Authorization": f"Bearer {KEYS['greedy']}", "Content-Type": "application/json"}
    for _ in range(4):
        connection = http.client.HTTPConnection(host)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.readline()
        answer.close()
        connection.close()
    began = time.monotonic()

    assert post(shared, "modest", {"model": "two", "prompt": "a", "max_tokens": 1})[0] == 200
    whole = time.monotonic()
    assert post(shared, "greedy", body | {"stream": False})[0] == 200
    assert whole - began < (time.monotonic() - whole) / 2, "the left streams went on"


def first_token_s(server: Server, tenant: str, prompt: str) -> float:
    body = json.dumps({"model": "two", "prompt": prompt, "max_tokens": 2, "stream": True, "temperature": 0})
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=600)
    headers = {"Authorization": f"Bearer {KEYS[tenant]}", "Content-Type": "application/json"}
    began = time.monotonic()
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    assert answer.status == 200
    answer.readline()
    seconds = time.monotonic() - began
    answer.read()
    connection.close()
    return seconds


LOADS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "lists of prompts": lambda at: {"model": "one", "prompt": [f"{at} {BEGINNING}"] * 4, "max_tokens": 40},
    "long prompts": lambda at: {"model": "one", "prompt": f"{at} {18 * BEGINNING}", "max_tokens": 1},
    "all adapters": lambda at: {"model": NAMES[at % 5], "prompt": f"{at} {BEGINNING}", "max_tokens": 40},
    "sampled forms": lambda at: {"prompt": f"{at}", "n": 4, "temperature": 1.5, "json_schema": {"type": "object"}},
}


@pytest.mark.parametrize("kind", LOADS)
def test_the_load_of_one_tenant_and_the_first_token_of_another(
    shared: Server, kind: str, tell: Callable[[str, str], None]
) -> None:
    """In turns, so that the noise of the machine is the same for both."""
    loads, ended = threading.Event(), threading.Event()
    running: dict[int, http.client.HTTPConnection] = {}

    def load(at: int) -> None:
        headers = {"Authorization": f"Bearer {KEYS['greedy']}", "Content-Type": "application/json"}
        body = json.dumps({"ignore_eos": True, **LOADS[kind](at)})
        while not ended.is_set():
            if loads.wait(0.1):
                running[at] = http.client.HTTPConnection(shared.url.removeprefix("http://"), timeout=600)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    running[at].request("POST", "/v1/completions", body, headers)
                    assert running[at].getresponse().read()

    def measured(count: int) -> list[float]:
        told = []
        for at in range(count):
            time.sleep(0.2)
            told.append(first_token_s(shared, "modest", f"{at} {PROMPTS[0]}"))
        return told

    alone, beside = list[float](), list[float]()
    measured(2)
    with ThreadPoolExecutor(16) as threads:
        clients = [threads.submit(load, at) for at in range(16)]
        try:
            for _ in range(TURNS):
                alone += measured(5)
                loads.set()
                time.sleep(1)
                beside += measured(5)
                loads.clear()
                for one in running.values():
                    with contextlib.suppress(OSError, AttributeError):
                        one.sock.shutdown(socket.SHUT_RDWR)
                time.sleep(3)  # the engine notices that they left
        finally:
            ended.set()
    for client in clients:
        client.result()

    ratios = [at(beside) / at(alone) for at in (statistics.median, max)]
    tell(
        f"first token beside 16 clients with {kind}, of alone ({len(alone)} each)",
        f"median {ratios[0]:.2f}, largest {ratios[1]:.2f}",
    )
    assert ratios[0] <= 1.5
    assert ratios[1] <= 3, "the noise of the machine, or a wait for another tenant"
