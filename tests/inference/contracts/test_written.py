"""What is written for other programs is loaded again and asked: fused models and exports keep the contract, or are not written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import adapterhub
from adapterhub.core.errors import BehaviourChanged
from adapterhub.formats.manifest import CONTRACT_FILE
from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library

pytestmark = pytest.mark.filterwarnings("ignore")

FORMS = ("peft", "merged", "vllm")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a` with its contract, `liar` with the weights of `b` and the contract of `a`, `b` without one."""
    adapt = recorded_library(tmp_path_factory.mktemp("written"))
    contract = next(adapt.library.root.glob("adapters/*/a/1.0.1-*")) / CONTRACT_FILE
    adapt.ok("add", "./b", "--name", "bare", "--base", "base-7b")
    shutil.copy(contract, adapt.folder / "b" / CONTRACT_FILE)
    adapt.ok("add", "./b", "--name", "liar", "--base", "base-7b")
    return adapt


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".", "out"))]


@pytest.mark.parametrize("words", [("fuse",), *(("export", "--format", form) for form in FORMS)], ids=" ".join)
def test_what_passes_is_written_and_nothing_else(words: tuple[str, ...], made: Adapt, tmp_path: Path) -> None:
    before = left(made.folder)
    for name, code in (("liar", 3), ("bare", 17)):
        refused = made(*words, name, "-o", tmp_path / "out", "--test")
        assert (refused.exit_code, "Nothing was written" in refused.stderr) == (code, True), refused.stderr
        assert (left(tmp_path), left(made.folder)) == ([], before)
    document = json.loads(made.ok(*words, "a", "-o", tmp_path / "out", "--test", "--json"))

    assert [(one["name"], one["verdict"], one["same"]) for one in document["tests"]] == [("a", "PASS", 1.0)]
    assert (tmp_path / "out" / "config.json").exists() or (tmp_path / "out" / "adapter_config.json").exists()


def test_python_asks_too_and_other_programs_are_not_pretended(made: Adapt, tmp_path: Path) -> None:
    library = adapterhub.Library(made.library.root)
    with pytest.raises(BehaviourChanged):
        library.fuse("liar", output=tmp_path / "out", test=True)
    [tested] = library.fuse("a", output=tmp_path / "fused", test=True).tests
    [exported] = library.export("a", tmp_path / "plain", format="peft", test=True).tests
    for form in ("gguf", "ollama"):
        refused = made("export", "a", "--format", form, "-o", tmp_path / "out", "--test")
        assert (refused.exit_code, (tmp_path / "out").exists()) == (2, False)

    assert (tested.verdict, exported.verdict) == ("PASS", "PASS")


def test_a_gguf_file_is_asked_in_llama_cpp(made: Adapt, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync")
    from tests.support.llama_cpp import write_base
    from tests.support.llama_server import make_llama_server

    model = AutoModelForCausalLM.from_pretrained(made.folder / "base", dtype=torch.float32)
    base, program = write_base(model, tmp_path / "base.gguf"), make_llama_server(tmp_path / "llama-server")
    words = ("--format", "gguf", "--test", "--gguf", base, "--llama-server", program, "-o")
    refused = made("export", "liar", *words, tmp_path / "out.gguf")

    assert (refused.exit_code, "the result has changed in llama.cpp. Nothing was written" in refused.stderr) == (
        3,
        True,
    )
    assert made("export", "bare", *words, tmp_path / "out.gguf").exit_code == 17
    assert left(tmp_path) == []
    document = json.loads(made.ok("export", "a", *words, tmp_path / "out.gguf", "--json"))
    assert [(one["verdict"], one["same"], one["engine"]) for one in document["tests"]] == [("PASS", 1.0, "llama.cpp")]
    assert made("export", "a", "--format", "peft", *words[2:], tmp_path / "out").exit_code == 2
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    assert "no such model" in made.fails(18, "export", "a", *words, tmp_path / "other.gguf")


def test_several_adapters_are_held_to_their_rules_alone(made: Adapt, tmp_path: Path) -> None:
    line = made.ok("fuse", "a", "liar", "--weights", "0.5,0.5", "-o", tmp_path / "out", "--test")

    assert line.count("  same") == 2  # both contracts are measured, and their goldens do not bind
