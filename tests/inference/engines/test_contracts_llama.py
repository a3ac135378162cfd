"""Contracts of a trained adapter with the real `llama-server`: an export is asked there, and a server starts after a test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from adapterhub.formats.manifest import CONTRACT_FILE
from tests.inference.engines.servers import adapt_serve
from tests.support.command_line import Adapt
from tests.support.llama_cpp import smollm2_gguf
from tests.support.trained_contract import SHIPPED, pirate_library

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`pirate` with its contract, and `liar`, which is `json` with the contract of `pirate`."""
    adapt = pirate_library(tmp_path_factory.mktemp("trained"))
    shutil.copytree(SHIPPED / "json", adapt.folder / "liar")
    shutil.copy(next(adapt.library.root.glob("adapters/*/pirate/1.0.1-*")) / CONTRACT_FILE, adapt.folder / "liar")
    adapt.ok("add", "./liar", "--name", "liar", "--base", "smol")
    return adapt


def test_an_exported_file_answers_in_llama_cpp_as_recorded_or_is_not_written(adapt: Adapt, tmp_path: Path) -> None:
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    server = ("--gguf", smollm2_gguf(), "--llama-server", program)
    words = ("--format", "gguf", "--test", *server, "-o", tmp_path / "a.gguf")
    refused = adapt.fails(3, "export", "liar", *words)

    assert "the result has changed in llama.cpp. Nothing was written" in refused
    assert list(tmp_path.iterdir()) == []
    document = adapt.json("export", "pirate", *words)
    [tested] = document["tests"]
    assert (tested["verdict"], tested["goldens"], tested["engine"]) == ("PASS", 20, "llama.cpp")
    assert (tmp_path / "a.gguf").is_file()


def test_a_server_of_llama_cpp_starts_once_what_it_serves_has_passed(adapt: Adapt, tmp_path: Path) -> None:
    program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
    words = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
    refused = adapt.fails(3, "serve", "liar", *words, "--test", "--dry-run")

    assert "`liar 1.0.0` has changed. It is not served" in refused
    flags = "--ctx-size 1024 --threads 1"
    log = tmp_path / "llama.log"
    with adapt_serve(adapt.library.root, log, "pirate", *words, "--test", engine_args=flags) as running:
        answer = running.post("/v1/completions", {"model": "pirate", "prompt": "You find the cup.", "max_tokens": 8})
        assert answer.status == 200, answer.value
        assert "th'" in answer.value["choices"][0]["text"].lower()
