"""Verdicts of `adapterhub.formats.engines` beside what the engine itself does, on variants that PEFT saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.formats.engines import Verdict, judge
from adapterhub.inference.engine_bases import base_facts
from adapterhub.inference.export import export
from adapterhub.inference.serving.provider import RANK_SETTING
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.trust.verify import open_subject
from tests.inference.engines.servers import Server
from tests.inference.engines.variants import PROMPTS, VARIANTS, peft_logprobs, prompt_ids, write_variant
from tests.support.llama_cpp import Engine, smollm2_gguf
from tests.support.real_base import smollm2_base

pytestmark = pytest.mark.engine

MOST = 64
"""Ranks of the server."""
NEAR = 2e-3
"""Log-probabilities in float32: 5e-6 apart where both mean the same, above 1e-2 where something was left out."""
NEAR_GGUF = 1e-2
"""The same for llama.cpp over the whole vocabulary: its own kernels, 1e-3 apart without an adapter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verdicts")


@pytest.fixture(scope="module")
def record(folder: Path) -> BaseRecord:
    return Library(folder / "home").bases.look(smollm2_base())


def verdict_on(adapter: Path, record: BaseRecord, target: str) -> Verdict:
    subject, findings = open_subject(adapter)
    assert subject is not None, findings
    return judge(target, subject.config, subject.weights, base=base_facts(record))


def is_served_right(server: Server, name: str, adapter: Path) -> tuple[bool, str]:
    """Whether vLLM takes it and gives PEFT's numbers; and what it says or gives instead."""
    loaded = server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})
    if loaded.status != 200:
        return False, loaded.message
    answer = server.complete(name, PROMPTS[0], 1, logprobs=5, return_tokens_as_token_ids=True)
    server.post("/v1/unload_lora_adapter", {"lora_name": name})
    if answer.status != 200:
        return False, answer.message
    told = answer.value["choices"][0]["logprobs"]["top_logprobs"][0]
    reference = peft_logprobs(adapter, PROMPTS[0])
    apart = max(abs(value - float(reference[int(token.removeprefix("token_id:"))])) for token, value in told.items())
    return apart < NEAR, f"{apart:.1e} apart from PEFT"


@pytest.mark.parametrize("name", VARIANTS)
def test_vllm_does_what_the_verdict_says(name: str, folder: Path, record: BaseRecord, bare: Server) -> None:
    adapter = write_variant(folder / name, VARIANTS[name])
    verdict = verdict_on(adapter, record, "vllm@0.32")
    needed = verdict.settings.get(RANK_SETTING)

    served, said = is_served_right(bare, name, adapter)

    assert served == (verdict.ok and isinstance(needed, int) and needed <= MOST), (said, verdict)
    print(f"{name}: {'yes' if verdict.ok else 'no'} ({needed}); {said}")  # noqa: T201 - `-s` shows the table


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Engine]:
    engine = Engine(smollm2_gguf())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    made = Library(folder / "home")
    made.bases.add(smollm2_base(), "smol")
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_does_what_the_verdict_says(
    name: str, folder: Path, record: BaseRecord, library: Library, llama: Engine
) -> None:
    adapter = folder / name
    if not adapter.exists():
        write_variant(adapter, VARIANTS[name])
    verdict = verdict_on(adapter, record, "llama.cpp")
    file = folder / f"{name}.gguf"

    try:
        export(adapter, file, form="gguf", library=library, base="smol")
    except UnsupportedAdapter as refusal:
        served, said = False, refusal.message
    else:
        logits = llama.ask(prompt_ids(PROMPTS[0]), {file: 1.0})
        apart = float((logits[-1].log_softmax(-1) - peft_logprobs(adapter, PROMPTS[0])).abs().max())
        served, said = apart < NEAR_GGUF, f"{apart:.1e} apart from PEFT"

    assert served == verdict.ok, (said, verdict)
    print(f"{name}: {'yes' if verdict.ok else 'no'}; {said}")  # noqa: T201 - as above
