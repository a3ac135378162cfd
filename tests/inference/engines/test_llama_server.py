"""`adapt serve --engine llama.cpp` with the real `llama-server`, on a real base."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.inference.engines.served_library import ServedLibrary
from tests.inference.engines.servers import Server, adapt_serve
from tests.inference.engines.variants import PROMPTS, SERVED, TOKENS, peft_tokens, prompt_ids
from tests.support.llama_cpp import smollm2_gguf

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def llama(served: ServedLibrary) -> Iterator[Server]:
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    chosen = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
    flags = "--ctx-size 1024 --threads 1"
    with adapt_serve(served.home, served.root / "llama.log", *SERVED, *chosen, engine_args=flags) as running:
        yield running


def tokens_of(server: Server, name: str, prompt: str) -> list[int]:
    asked = {"prompt": prompt_ids(prompt), "n_predict": TOKENS, "temperature": 0, "top_k": 1, "ignore_eos": True}
    answer = server.post("/completion", {"model": name, "return_tokens": True, "cache_prompt": False, **asked})
    assert answer.status == 200, answer.value
    return answer.value["tokens"]


def test_greedy_tokens_are_those_of_peft_whichever_adapter_was_asked_before(
    llama: Server, served: ServedLibrary
) -> None:
    expected = {"smol": peft_tokens(None), **{name: peft_tokens(served.folders[name]) for name in SERVED}}

    for names in (["smol", *SERVED], [*reversed(SERVED), "smol"]):
        found = {name: [tokens_of(llama, name, prompt) for prompt in PROMPTS] for name in names}
        assert found == {name: expected[name] for name in names}


def test_an_unknown_name_and_the_engines_own_switch_are_refused(llama: Server) -> None:
    asked = {"prompt": PROMPTS[0], "max_tokens": 1}

    unknown = llama.post("/v1/completions", {"model": "nobody", **asked})
    switch = llama.post("/lora-adapters", [{"id": 0, "scale": 1.0}])
    known = llama.post(
        "/v1/chat/completions", {"model": "plain", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    )

    assert (unknown.status, switch.status, known.status) == (404, 404, 200)
