"""An alias that moves while vLLM answers: no request fails, and each answer is of the build that its headers name."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from adapterhub.library.aliasing import point
from adapterhub.library.store.catalog import Installed, folder_below
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, adapt_serve
from tests.inference.engines.variants import PROMPTS, SERVED, TOKENS, peft_tokens, prompt_ids

pytestmark = pytest.mark.engine

PROD = "moving@prod"
CLIENTS = 3
MOVES = 6


@dataclass(frozen=True)
class Said:
    """One answer: the digest in its headers, which prompt it answers, and its tokens."""

    digest: str
    prompt: int
    tokens: list[int]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedLibrary:
    return make_served_library(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def builds(served: ServedLibrary) -> list[Installed]:
    return served.add_versions("moving", 2, SERVED["plain"], seed=31)


@pytest.fixture(scope="module")
def server(served: ServedLibrary, builds: list[Installed]) -> Iterator[Server]:
    point(served.library, "prod", [(builds[0], 1.0)])
    arguments = [PROD, "--base", "smol", "--max-rank", "16", "--slots", "2", "--offline", "--alias-ttl", "3600"]
    with adapt_serve(served.home, served.root / "vllm.log", *arguments) as running:
        yield running


def ask(server: Server, prompt: int, **headers: str) -> Said:
    """The answer to one request for the alias; raises for every status but 200."""
    value = {
        "model": PROD, "prompt": prompt_ids(PROMPTS[prompt]), "max_tokens": TOKENS, "min_tokens": TOKENS,
        "temperature": 0, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(value).encode(), sent)
    with urllib.request.urlopen(request, timeout=300) as answer:
        told = json.load(answer)
        digest = answer.headers["x-adapter-digest"]
        assert told["model"].endswith(digest[:19])
        return Said(digest, prompt, told["choices"][0]["token_ids"])


def wait_for(said: Callable[[], str], digest: str) -> None:
    """Wait until requests get the build; the server looks at the alias's file by itself."""
    end = time.monotonic() + 120
    while said() != digest:
        assert time.monotonic() < end


def look_again(server: Server, said: Callable[[], str], digest: str) -> None:
    """Send SIGHUP, and wait until requests get the build."""
    assert server.parent is not None
    server.parent.send_signal(signal.SIGHUP)
    wait_for(said, digest)


def test_an_alias_moves_under_load_without_a_failed_or_a_wrong_answer(
    server: Server, served: ServedLibrary, builds: list[Installed], tell: Callable[[str, str], None]
) -> None:
    expected = {
        build.manifest.digest: peft_tokens(served.folders[f"moving-{number}"]) for number, build in enumerate(builds)
    }
    over = threading.Event()

    def client(number: int) -> list[Said]:
        found = []
        while not over.is_set():
            found.append(ask(server, (number + len(found)) % len(PROMPTS)))
        return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(client, number) for number in range(CLIENTS)]
        try:
            for number in range(1, MOVES + 1):
                build = builds[number % 2]
                point(served.library, "prod", [(build, 1.0)])
                wait_for(lambda: ask(server, 0).digest, build.manifest.digest)
        finally:
            over.set()
        answers = [answer for one in clients for answer in one.result()]  # a failed request raises here

    assert [one for one in answers if one.tokens != expected[one.digest][one.prompt]] == []
    assert {one.digest for one in answers} == set(expected)
    end, old = time.monotonic() + 60, builds[(MOVES + 1) % 2]
    while any(lease.what == folder_below(served.home, old) for lease in served.library._leases.living()):
        assert time.monotonic() < end, "what the alias left is still leased after its last request"
        time.sleep(0.1)
    tell("alias moved under load", f"{MOVES} moves, {len(answers)} answers of {CLIENTS} clients, 0 failed, 0 wrong")


def test_a_canary_gives_each_key_one_build(server: Server, served: ServedLibrary, builds: list[Installed]) -> None:
    alias = point(served.library, "prod", [(builds[0], 0.6), (builds[1], 0.4)])
    keys = [f"user-{number}" for number in range(12)]
    canary = next(key for key in keys if alias.for_key(key).digest == builds[1].manifest.digest)
    stable = next(key for key in keys if alias.for_key(key).digest == builds[0].manifest.digest)
    for key, build in ((canary, builds[1]), (stable, builds[0])):
        look_again(server, lambda key=key: ask(server, 0, x_request_key=key).digest, build.manifest.digest)  # type: ignore[misc]

    found = {key: {ask(server, at, x_request_key=key).digest for at in range(2)} for key in keys}

    assert found == {key: {alias.for_key(key).digest} for key in keys}
