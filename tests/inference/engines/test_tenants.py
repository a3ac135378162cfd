"""Tenants, pinned and denied adapters and the audit log with a real vLLM."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import EngineFailed
from adapterhub.inference.serving.vllm import GUARD
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Answer, Server, adapt_serve, bare_vllm, engine_environ
from tests.inference.engines.variants import PROMPTS, peft_tokens, prompt_ids

pytestmark = pytest.mark.engine

SMALL = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
NAMES = ("pinned", "a-1", "a-2", "b-1", "withdrawn")
TENANTS = f"""
[tenants.a]
keys = ["{digest_of(b"key-a")}"]
adapters = ["a-1", "a-2", "pinned", "withdrawn"]
max-loaded = 1

[tenants.b]
keys = ["{digest_of(b"key-b")}"]
adapters = ["b-1"]
max-loaded = 1
tokens-per-minute = 40
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedLibrary:
    made = make_served_library(tmp_path_factory.mktemp("tenants"))
    for seed, name in enumerate(NAMES, 40):
        made.add(name, SMALL, seed=seed)
    (made.root / "tenants.toml").write_text(TENANTS)
    (made.root / "denied").write_text("")
    return made


@pytest.fixture(scope="module")
def server(served: ServedLibrary) -> Iterator[Server]:
    arguments = [
        *("--pin", "pinned", "--base", "smol", "--offline", "--max-rank", "8", "--slots", "2", "--cpu-slots", "3"),
        *("--tenants", str(served.root / "tenants.toml"), "--audit-log", str(served.root / "audit")),
        *("--deny-file", str(served.root / "denied")),
    ]
    with adapt_serve(served.home, served.root / "vllm.log", *arguments) as running:
        yield running


def complete(server: Server, who: str, model: str, prompt: str = PROMPTS[0], **more: Any) -> Answer:
    return server.complete(model, prompt, headers=headers(who, model), **more)


def headers(who: str, request_id: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{who}", "x-request-id": request_id}


def models(server: Server, who: str, request_id: str = "models") -> list[str]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/v1/models", headers=headers(who, request_id))
    return [card["id"].partition("==")[0] for card in json.loads(connection.getresponse().read())["data"]]


def line_of(served: ServedLibrary, request_id: str) -> dict[str, Any]:
    """The line of the audit log about that request, once it is there: it is written after the answer."""
    end = time.monotonic() + 60
    while True:
        for line in map(json.loads, (served.root / "audit").read_text().splitlines()):
            if line["request_id"] == request_id:
                return line  # type: ignore[no-any-return]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_pinned_is_there_before_the_first_request(server: Server) -> None:
    assert models(server, "a") == ["smol", "pinned"]
    assert len(server.lines("Resolved and loaded LoRA adapter 'pinned==1.0.0")) == 1


def test_a_tenant_uses_and_sees_its_own_adapters_alone(server: Server, served: ServedLibrary) -> None:
    answers = [complete(server, *one) for one in (("a", "a-1"), ("a", "b-1"), ("c", "a-2"), ("a", "nothing"))]

    assert [one.status for one in answers] == [200, 403, 401, 403]
    assert answers[1].value["error"]["type"] == "PermissionDeniedError"
    assert answers[0].tokens == peft_tokens(served.folders["a-1"])[0]
    refused = line_of(served, "a-2")
    assert (refused["tenant"], refused["status"]) == (None, 401)
    assert models(server, "b", "models of b") == ["smol"]
    told = [line_of(served, one) for one in ("a-1", "b-1", "nothing", "models of b")]
    assert [(one["tenant"], one["status"]) for one in told] == [("a", 200), ("a", 403), ("a", 403), ("b", 200)]
    usage = answers[0].value["usage"]
    assert (told[0]["prompt_tokens"], told[0]["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert (told[0]["adapter"], told[0]["digest"]) == (
        "a-1==1.0.0",
        served.library.builds_named("a-1")[0].manifest.digest,
    )


def test_a_stream_says_who_answers_and_its_tokens_are_recorded(server: Server, served: ServedLibrary) -> None:
    body = {"model": "a-1", "prompt": prompt_ids(PROMPTS[0]), "max_tokens": 5, "min_tokens": 5, "stream": True}
    answer = server.post("/v1/completions", body, headers=headers("a", "the stream"))

    *events, end = [line.removeprefix("data: ") for line in answer.value.split("\n\n")[:-1]]
    parsed = [json.loads(event) for event in events]
    assert end == "[DONE]"
    assert [event.get("adapter", {}).get("name") for event in parsed] == ["a-1==1.0.0"] + [None] * (len(parsed) - 1)
    assert all(event["choices"] for event in parsed)  # the event with the usage is not for the client
    told = line_of(served, "the stream")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (len(prompt_ids(PROMPTS[0])), 5)


def test_a_tenant_takes_the_place_of_its_own_adapter_and_answers_stay_right(
    server: Server, served: ServedLibrary
) -> None:
    expected = {name: peft_tokens(served.folders[name])[0] for name in ("a-1", "a-2", "b-1", "pinned")}
    asked = [("b", "b-1"), ("a", "a-1"), ("a", "a-2"), ("a", "pinned"), ("a", "a-1"), ("a", "a-2"), ("a", "pinned")]

    answers = [complete(server, *one).tokens for one in asked]

    assert answers == [expected[name] for _, name in asked]
    assert models(server, "a") == ["smol", "pinned", "a-2"]
    assert models(server, "b") == ["smol", "b-1"]
    assert [len(server.lines(f"loaded LoRA adapter '{name}==1.0.0")) for name in ("pinned", "b-1")] == [1, 1]


def test_a_tenant_that_used_its_tokens_waits(server: Server) -> None:
    answers = [complete(server, "b", "b-1") for _ in range(8)]
    refused = next(one for one in answers if one.status != 200)

    assert (refused.status, refused.value["error"]["type"]) == (429, "RateLimitError")
    assert complete(server, "a", "pinned").status == 200


def test_a_loaded_adapter_that_is_denied_is_refused_and_freed(server: Server, served: ServedLibrary) -> None:
    assert complete(server, "a", "withdrawn").status == 200
    (served.root / "denied").write_text("withdrawn leaks names\n")
    end = time.monotonic() + 60
    while (answer := complete(server, "a", "withdrawn")).status == 200:
        assert time.monotonic() < end

    assert (answer.status, answer.message) == (410, "`withdrawn==1.0.0` is not served any more: leaks names")
    assert complete(server, "a", "a-1").tokens == peft_tokens(served.folders["a-1"])[0]
    removed = subprocess.run(
        [sys.executable, "-m", "adapterhub.cli", "remove", "withdrawn", "--yes"],
        env=engine_environ() | {"ADAPTERHUB_HOME": str(served.home)}, capture_output=True, text=True, check=False,
        cwd=served.root,
    )  # fmt: skip
    assert removed.returncode == 0, removed.stderr


def test_no_prompt_is_in_the_log(served: ServedLibrary) -> None:
    text = Path(served.root / "audit").read_text()

    assert "prompt_tokens" in text
    assert not any(prompt[:20] in text for prompt in PROMPTS)


def test_a_server_that_cannot_load_what_it_was_told_to_ends_and_says_why(served: ServedLibrary) -> None:
    environ = {
        "ADAPTERHUB_HOME": str(served.home), "ADAPTERHUB_SERVE_OFFLINE": "1", "ADAPTERHUB_SERVE_PRELOAD": "nothing",
        "VLLM_PLUGINS": "adapterhub",
    }  # fmt: skip
    log = served.root / "ends.log"

    with (
        pytest.raises(EngineFailed, match="before it was ready"),
        bare_vllm(served.record.path, log, "--middleware", GUARD, environ=environ),  # type: ignore[arg-type]  # it has a folder
    ):
        pass

    assert "the server does not start: no adapter `nothing`" in log.read_text()
