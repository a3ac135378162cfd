"""An alias that moves twenty times under the real llama.cpp: each answer is of the version that its header names."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapterhub.core.digests import Digest, hex_of
from adapterhub.library.aliasing import point
from adapterhub.library.store.catalog import Installed
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, adapt_serve
from tests.inference.engines.variants import PROMPTS, SERVED, TOKENS, peft_tokens, prompt_ids
from tests.support.llama_cpp import smollm2_gguf

pytestmark = pytest.mark.engine

PROD = "moving@prod"
VERSIONS = 4
CLIENTS = 3
MOVES = 20
WAIT_S = 300.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedLibrary:
    return make_served_library(tmp_path_factory.mktemp("swapped"))


@pytest.fixture(scope="module")
def builds(served: ServedLibrary) -> list[Installed]:
    return served.add_versions("moving", VERSIONS, SERVED["plain"], seed=31)


@pytest.fixture(scope="module")
def server(served: ServedLibrary, builds: list[Installed]) -> Iterator[Server]:
    point(served.library, "prod", [(builds[0], 1.0)])
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    words = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
    words += ["--alias-ttl", "3600", "--audit-log", str(served.root / "audit")]
    with adapt_serve(
        served.home, served.root / "llama.log", PROD, *words, engine_args="--ctx-size 1024 --threads 1"
    ) as running:
        yield running


def ask(server: Server, prompts: list[int]) -> tuple[Digest, list[list[int]]]:
    """The digest in the header, and the tokens of each prompt; raises for every status but 200."""
    asked = [prompt_ids(PROMPTS[prompt]) for prompt in prompts]
    value = {
        "model": PROD, "prompt": asked[0] if len(asked) == 1 else asked, "n_predict": TOKENS, "temperature": 0, "top_k": 1,
        "ignore_eos": True, "return_tokens": True,
    }  # fmt: skip
    with server.opened("/completion", value) as answer:
        told = json.load(answer)
        assert answer.headers["x-adapter-name"].startswith("moving==1.")
        return answer.headers["x-adapter-digest"], [one["tokens"] for one in ([told] if len(asked) == 1 else told)]


def move(server: Server, served: ServedLibrary, build: Installed) -> float:
    """Move the alias; the seconds until an answer is of the build."""
    assert server.parent is not None
    began = time.monotonic()
    point(served.library, "prod", [(build, 1.0)])
    server.parent.send_signal(signal.SIGHUP)
    while ask(server, [0])[0] != build.manifest.digest:
        assert time.monotonic() - began < WAIT_S
    return time.monotonic() - began


def test_an_alias_moves_twenty_times_and_each_answer_is_of_one_version_and_none_fails(
    server: Server, served: ServedLibrary, builds: list[Installed], tell: Callable[[str, str], None]
) -> None:
    expected = {
        build.manifest.digest: peft_tokens(served.folders[f"moving-{number}"]) for number, build in enumerate(builds)
    }
    assert len({str(one) for one in expected.values()}) == VERSIONS
    over = threading.Event()

    def client(number: int) -> list[tuple[Digest, list[int], list[list[int]]]]:
        found = []
        while not over.is_set():
            prompts = [
                (number + len(found) + at) % len(PROMPTS) for at in range(1 + number)
            ]  # of several requests each
            found.append((*ask(server, prompts), prompts))
        return [(digest, prompts, tokens) for digest, tokens, prompts in found]

    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(client, number) for number in range(CLIENTS)]
        try:
            seconds = [move(server, served, builds[number % VERSIONS]) for number in range(1, MOVES + 1)]
        finally:
            over.set()
        answers = [answer for one in clients for answer in one.result()]  # a failed request raises here

    wrong = [
        (digest, prompts)
        for digest, prompts, tokens in answers
        if tokens != [expected[digest][prompt] for prompt in prompts]
    ]
    assert wrong == []
    assert Counter(digest for digest, *_ in answers).keys() == expected.keys()
    events = [row for row in map(json.loads, (served.root / "audit").read_text().splitlines()) if "event" in row]
    assert Counter(row["event"] for row in events) == {"swap": MOVES}
    starts = sorted(row["duration_s"] for row in events)
    tell(
        "llama.cpp: alias moved under load",
        f"{MOVES} moves, {len(answers)} answers of {CLIENTS} clients, 0 failed, 0 wrong; "
        f"seconds to the first answer: median {sorted(seconds)[MOVES // 2]:.1f}, of which the start {starts[MOVES // 2]:.1f}",
    )


def test_one_generation_and_one_file_are_left(server: Server, builds: list[Installed], served: ServedLibrary) -> None:
    end = time.monotonic() + WAIT_S
    while len(engines := engines_of(server)) != 1:
        assert time.monotonic() < end, engines

    [command] = engines
    files = [Path(word) for word in command if word.endswith(".gguf")][1:]
    assert [one.stem for one in files] == [hex_of(builds[MOVES % VERSIONS].manifest.digest)]
    assert [*files[0].parent.glob("*.gguf")] == files


def engines_of(server: Server) -> list[list[str]]:
    """The commands of the engines that run."""
    assert server.parent is not None
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if int(parent) == server.parent.pid and "llama-server" in words[0]:
            found.append(words)
    return found
