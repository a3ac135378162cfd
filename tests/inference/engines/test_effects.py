"""Adapters that do nothing, with the real engines: each is refused before it answers, and a good one is served."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.library.intake.description import Description
from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.servers import ENGINE_ARGS, adapt_serve
from tests.inference.engines.variants import PROMPTS, SMALL
from tests.support.llama_cpp import smollm2_gguf

pytestmark = pytest.mark.engine


def words_for(engine: str) -> tuple[list[str], str]:
    """The arguments of `adapt serve`, and those of the engine."""
    if engine == "vllm":
        return ["--base", "smol", "--max-rank", "16", "--slots", "3", "--cpu-slots", "4"], ENGINE_ARGS
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    words = ["--base", "smol", "--engine", engine, "--gguf", str(smollm2_gguf()), "--llama-server", program]
    return words, "--ctx-size 1024 --threads 1"


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_adapters_without_effect_are_refused_and_the_others_answer(
    engine: str, tmp_path: Path, tell: Callable[[str, str], None]
) -> None:
    served = make_served_library(tmp_path)
    for name in ("good", "better"):
        served.add(name, SMALL, seed=len(name))
    for name, factor in (("zero", 0.0), ("faint", 1e-30), ("beside", 1e-31)):
        folder = tmp_path / name
        shutil.copytree(served.folders["good"], folder)
        tensors = load_file(folder / WEIGHTS_FILE)
        scaled = {key: one * factor if "lora_B" in key else one for key, one in tensors.items()}
        save_file(scaled, folder / WEIGHTS_FILE, {"format": "pt"})
        served.library.add(folder, Description(name=parse_name(name), version="1.0.0"), base=served.record)
    names, log = ["good", "zero", "faint", "better"], tmp_path / "audit.jsonl"
    chosen, flags = words_for(engine)
    asked = {"prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0}
    told: dict[str, list[tuple[int, str]]] = {}
    spent: dict[str, list[float]] = {}
    with adapt_serve(
        served.home,
        tmp_path / "log",
        *names,
        "beside",
        *chosen,
        "--audit-log",
        str(log),
        engine_args=flags,
    ) as running:
        for name in ("smol", *names, *names):
            began = time.perf_counter()
            answer = running.post("/v1/completions", {"model": name, **asked})
            spent.setdefault(name, []).append(time.perf_counter() - began)
            words = answer.value["error"]["message"] if answer.status != 200 else answer.value["choices"][0]["text"]
            told.setdefault(name, []).append((answer.status, words))
        with ThreadPoolExecutor(6) as clients:  # the rest of a batch moves the numbers of each of its rows
            others = [clients.submit(running.complete, "good", PROMPTS[at % 3], 32 + at) for at in range(6)]
            refused = running.post("/v1/completions", {"model": "beside", **asked})
            assert [one.result().status for one in others] == [200] * 6

    assert (refused.status, refused.value["error"]["type"]) == (424, "AdapterWithoutEffect")
    assert {name: [status for status, _ in each] for name, each in told.items()} == {
        "smol": [200], "good": [200, 200], "better": [200, 200], "zero": [424, 424], "faint": [424, 424],
    }  # fmt: skip
    assert "every lora_B is zero" in told["zero"][0][1]
    assert "not zero, and the engine still gives the same numbers" in told["faint"][0][1]
    logged = [row for row in map(json.loads, log.read_text().splitlines()) if row["refusal"]]
    assert [(row["adapter"], row["refusal"]) for row in logged][:2] == [
        ("zero==1.0.0", "AdapterWithoutEffect"), ("faint==1.0.0", "AdapterWithoutEffect"),
    ]  # fmt: skip
    tell(
        f"{engine}: first answer with the question, of 16 tokens, against the second",
        f"{spent['better'][0] / spent['better'][1]:.2f}",
    )
