"""`adapt serve` and the plugin inside a real vLLM, on a real base."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.inference.engines.served_library import ServedLibrary
from tests.inference.engines.servers import Server, engine_environ
from tests.inference.engines.variants import PROMPTS, SERVED, peft_tokens

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def expected(served: ServedLibrary) -> dict[str, list[list[int]]]:
    names = ["plain", "rslora", "patterns", "embedding", "fresh", "many-0"]
    return {"smol": peft_tokens(None), **{name: peft_tokens(served.folders[name]) for name in names}}


def test_greedy_tokens_are_those_of_peft(server: Server, expected: dict[str, list[list[int]]]) -> None:
    answers = {name: server.tokens(name) for name in ("smol", *SERVED)}

    assert answers == {name: expected[name] for name in answers}
    assert len({str(tokens) for tokens in answers.values()}) == len(answers)


def test_rows_of_one_batch_keep_to_their_own_adapter(server: Server, expected: dict[str, list[list[int]]]) -> None:
    asked = [(name, at) for at in range(len(PROMPTS)) for name in ("smol", "embedding", "plain")]
    server.tokens("embedding")  # loaded before

    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda one: server.complete(one[0], PROMPTS[one[1]]).tokens, asked))

    assert answers == [expected[name][at] for name, at in asked]


def test_first_requests_at_the_same_time_fetch_an_adapter_once(
    server: Server, served: ServedLibrary, expected: dict[str, list[list[int]]]
) -> None:
    names = ["fresh"] * 6 + ["fresh==1.0"] * 6

    with ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(lambda name: server.complete(name, PROMPTS[0]).tokens, names))

    assert answers == [expected["fresh"][0]] * len(names)
    assert [len(server.lines(f"] {name} is fresh==1.0.0")) for name in ("fresh", "fresh==1.0")] == [1, 1]
    listed = [row for row in server.get("/v1/models")["data"] if row["id"].startswith("fresh==")]
    assert [(row["root"], row["parent"]) for row in listed] == [(listed[0]["id"], "smol")]
    assert server.get(f"/v1/models/{quote(listed[0]['id'])}")["id"] == listed[0]["id"]
    assert len(served.library.builds_named("fresh")) == 1


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("spoilt", 422, "[E_NONFINITE]"),
        ("elsewhere", 409, "made for another base"),
        ("big", 409, "rank 32, at most 16 asked"),
        ("plain==2", 409, "version 1.0.0 is outside ==2"),
        ("plain@other", 404, "no base `other`"),
        ("nothing", 404, "no adapter `nothing`"),
        ("../../etc/passwd", 400, "a path is not an adapter name"),
        ("plain@/etc", 400, "not by path"),
    ],
)
def test_what_must_not_be_served_is_refused_in_our_words_and_later_answers_stay_right(
    server: Server, served: ServedLibrary, expected: dict[str, list[list[int]]], name: str, status: int, words: str
) -> None:
    answer = server.complete(name, PROMPTS[0])

    assert (answer.status, words in answer.message, f"`{name}`" in answer.message) == (status, True, True), answer.value
    assert str(served.root) not in answer.message
    assert [server.complete(n, PROMPTS[1]).tokens for n in ("smol", "plain")] == [
        expected[n][1] for n in ("smol", "plain")
    ]


def test_the_metric_by_which_gateways_choose_a_server_has_the_one_name(server: Server, served: ServedLibrary) -> None:
    server.complete("plain>=1", PROMPTS[0])
    digest = served.library.builds_named("plain")[0].manifest.digest

    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("vllm:lora_requests_info")]

    assert any(f'running_lora_adapters="plain==1.0.0#{digest[:19]}"' in line for line in lines)


@pytest.mark.parametrize("route", ["/v1/load_lora_adapter", "/adapters"])
def test_no_client_can_give_a_path(server: Server, served: ServedLibrary, route: str) -> None:
    answer = server.post(route, {"lora_name": "x", "lora_path": str(served.folders["big"]), "name": "x", "src": "/"})

    assert (answer.status, answer.message.split(":")[0]) == (403, "loading an adapter by path is switched off")


def test_what_is_served_survives_remove_gc_and_rm(
    server: Server, served: ServedLibrary, expected: dict[str, list[list[int]]]
) -> None:
    assert server.complete("many-0", PROMPTS[0]).tokens == expected["many-0"][0]
    build = served.library.builds_named("many-0")[0]

    refused = _adapt(served, "remove", "many-0", "--yes")
    shutil.rmtree(build.folder)
    _adapt(served, "cache", "clean", "--grace", "0", check=True)
    for number in range(1, 6):  # more than the engine keeps: the first has to be read again
        server.complete(f"many-{number}", PROMPTS[0])

    assert refused.returncode == 15
    assert server.complete("many-0", PROMPTS[1]).tokens == expected["many-0"][1]


def _adapt(served: ServedLibrary, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapterhub.cli", *arguments]
    environ = engine_environ() | {"ADAPTERHUB_HOME": str(served.home)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=check, cwd=served.root)
