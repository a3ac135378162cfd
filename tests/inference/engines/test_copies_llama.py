"""Adapters on quantised copies of their base, which llama.cpp itself made, with the real `llama-server`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.inference.engines.servers import adapt_serve
from tests.support.command_line import Adapt
from tests.support.llama_cpp import quantised, smollm2_gguf
from tests.support.trained_contract import pirate_library

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    return pirate_library(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("copies")
    return {kind: quantised(smollm2_gguf(), folder / f"{kind}.gguf", f"MOSTLY_{kind}") for kind in ("Q8_0", "Q4_K_M")}


def fine_tuned(path: Path, size: float) -> Path:
    """The base after a change of rank 16 in each projection of its attention, of this part of its norm."""
    shutil.copy(smollm2_gguf(), path)
    random = np.random.default_rng(3)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if "attn_" in tensor.name and tensor.data.ndim > 1:
            rows, columns = tensor.data.shape
            update = random.standard_normal((rows, 16)) @ random.standard_normal((16, columns))
            tensor.data[:] += update * (size * np.linalg.norm(tensor.data) / np.linalg.norm(update))
    return path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_a_copy_is_proven_and_answers_with_the_adapter(
    adapt: Adapt, copies: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    words = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(copies[kind]), "--llama-server", program]
    flags = "--ctx-size 1024 --threads 1"

    planned = json.loads(adapt.ok("serve", "pirate", *words, "--dry-run", "--json"))
    with adapt_serve(adapt.library.root, tmp_path / "llama.log", "pirate", *words, engine_args=flags) as running:
        asked = {"prompt": "You find the cup.", "max_tokens": 8, "temperature": 0}
        adapted = running.post("/v1/completions", {"model": "pirate", **asked}).value["choices"][0]["text"]
        plain = running.post("/v1/completions", {"model": "smol", **asked}).value["choices"][0]["text"]

    assert planned["proof"]["verdict"] == "SAME_WEIGHTS_QUANTISED"
    assert "th'" in adapted.lower()
    assert "th'" not in plain.lower()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_a_result_on_a_copy_names_the_copy(adapt: Adapt, copies: dict[str, Path], tmp_path: Path, kind: str) -> None:
    server = ("--gguf", copies[kind], "--llama-server", os.environ["ADAPTERHUB_LLAMA_SERVER"])

    done = adapt("export", "pirate", "--format", "gguf", "--test", *server, "-o", tmp_path / "a.gguf", "--json")

    assert done.exit_code in (0, 3), done.stderr
    source = adapt.json("base", "show", "smol")["fingerprint"]["weights"]
    if done.exit_code == 0:
        [tested] = json.loads(done.stdout)["tests"]
        assert tested["base"] == f"{kind}.gguf"
        assert tested["base_weights"] != source
        assert tested["base_verdict"].startswith("SAME_WEIGHTS_QUANTISED (gguf-")


@pytest.mark.parametrize("size", [0.01, 0.003])
def test_a_quantised_fine_tune_is_refused(adapt: Adapt, tmp_path: Path, size: float) -> None:
    tuned = fine_tuned(tmp_path / "tuned-f32.gguf", size)
    server = ("--llama-server", os.environ["ADAPTERHUB_LLAMA_SERVER"], "--dry-run")

    for kind in ("Q8_0", "Q4_K_M"):
        file = quantised(tuned, tmp_path / f"tuned-{kind}.gguf", f"MOSTLY_{kind}")
        said = adapt.fails(11, "serve", "pirate", "--base", "smol", "--engine", "llama.cpp", "--gguf", file, *server)
        assert f"`{file.name}` does not hold base `smol`" in said
        file.unlink()
