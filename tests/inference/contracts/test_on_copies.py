"""Results on quantised copies of a base: they are about the weights that answered, not about those of the source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library
from tests.support.llama_cpp import write_base
from tests.support.llama_server import make_llama_server
from tests.support.quantised_copies import float8_copy
from tests.support.standin_vllm import make_standin

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a` with a contract that was recorded on `base-7b`, of which `fp8` and `q8` are copies."""
    adapt = recorded_library(tmp_path_factory.mktemp("copies"))
    adapt.ok("base", "add", float8_copy(adapt.folder / "base", adapt.folder / "fp8", block=16), "--as", "fp8")
    model = AutoModelForCausalLM.from_pretrained(adapt.folder / "base", dtype=torch.float32)
    write_base(model, adapt.folder / "q8.gguf", GGMLQuantizationType.Q8_0)
    adapt.ok("base", "add", "q8.gguf", "--as", "q8")
    return adapt


def weights_of(adapt: Adapt, base: str) -> str:
    return str(adapt.json("base", "show", base)["fingerprint"]["weights"])


def test_a_result_on_a_copy_names_its_weights_and_says_what_it_is(made: Adapt) -> None:
    [on_copy] = json.loads(made("test", "a", "--base", "fp8", "--json").stdout)
    [on_source] = made.json("test", "a")

    assert (on_copy["base"], on_copy["base_weights"]) == ("fp8", weights_of(made, "fp8"))
    assert (on_copy["verdict"] in {"PASS", "CHANGED"}, on_copy["base_verdict"]) == (True, "SAME_WEIGHTS_QUANTISED")
    assert (on_source["base"], on_source["base_weights"]) == ("base-7b", weights_of(made, "base-7b"))
    assert on_source["verdict"] == "PASS"


def test_a_pass_on_the_source_lets_nothing_be_served_on_a_copy(made: Adapt, tmp_path: Path) -> None:
    made.json("test", "a")
    serve = ("serve", "a", "--python", make_standin(tmp_path / "vllm"), "--dry-run", "--base")
    made.ok("contract", "policy", "require")
    try:
        made.ok(*serve, "base-7b")
        assert "has no PASS on this base" in made.fails(14, *serve, "fp8")
    finally:
        made.ok("contract", "policy", "warn")


def test_a_gguf_file_is_asked_in_llama_cpp_and_the_way_there_is_told(made: Adapt, tmp_path: Path) -> None:
    program = make_llama_server(tmp_path / "llama-server")
    words = ("--format", "gguf", "--test", "--gguf", made.folder / "q8.gguf", "--llama-server", program)

    assert "--format gguf --test --gguf" in made.fails(10, "test", "a", "--base", "q8")
    done = made("export", "a", *words, "-o", tmp_path / "a.gguf", "--json")

    assert done.exit_code in (0, 3)
    if done.exit_code == 0:
        [tested] = json.loads(done.stdout)["tests"]
        assert (tested["base"], tested["base_weights"]) == ("q8.gguf", weights_of(made, "q8"))
        assert tested["base_verdict"] == "SAME_WEIGHTS_QUANTISED (gguf-q8_0)"


def test_a_file_for_a_copy_is_one_for_its_source_and_comes_back_on_both(made: Adapt, tmp_path: Path) -> None:
    for base in ("base-7b", "fp8", "q8"):
        made.ok("export", "a", "--format", "gguf", "--base", base, "-o", tmp_path / f"{base}.gguf")
    files = [(tmp_path / f"{base}.gguf").read_bytes() for base in ("base-7b", "fp8", "q8")]

    assert files[0] == files[1] == files[2]
    assert weights_of(made, "base-7b").encode() in files[0]
    for base in ("base-7b", "fp8", "q8"):
        made.ok("add", tmp_path / "q8.gguf", "--name", f"back-{base}", "--base", base)
    other = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(made.folder / "base").config)
    other.save_pretrained(tmp_path / "other")
    made.ok("base", "add", tmp_path / "other", "--as", "other")
    assert "other weights than `other`" in made.fails(11, "add", tmp_path / "q8.gguf", "--name", "x", "--base", "other")
