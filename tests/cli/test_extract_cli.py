"""`adapt extract` from argv to exit code, interrupted, and on the real base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.text import load_base
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.extract import ExtractOptions, extract_into_library, model_record
from tests.support.adapter_folders import error_of, updates_in
from tests.support.command_line import Adapt
from tests.support.interrupting import adapt_interrupted_at
from tests.support.real_base import smollm2_base
from tests.support.tiny import make_base

ADAPT = [sys.executable, "-c", "from adapterhub.cli import main; main()"]
SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"


@pytest.fixture
def adapt(tmp_path):
    make_base(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for layer in (0, 1):
        factors = torch.randn(8, 2, generator=generator), torch.randn(2, 8, generator=generator)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] += factors[0] @ factors[1]
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    shell = Adapt(tmp_path)
    shell.library.catalog.put_base(shell.library.bases.add(tmp_path / "base", "base-7b"))
    return shell


def test_extract_installs_an_adapter_of_the_base(adapt):
    said = adapt.ok("extract", "./tuned", "--base", "base-7b", "--rank", "2", "-o", "legal", "--task", "law")

    lines = said.splitlines()
    assert "extracted legal 1.0.0 (rank 2)" in lines[0]
    assert "  rank 2 in 2 modules; float32" in lines
    assert "  not in the adapter: 1 tensor, 8 numbers" in lines
    assert "    model.norm.weight  8  a vector" in lines
    shown = adapt.json("show", "legal")
    assert (shown["task"], shown["recipe"]["method"]) == ("law", "extract")
    assert "ok" in adapt.ok("verify", "legal")


def test_tensors_left_out_for_one_reason_share_a_line(adapt):
    for name, by in (("base", 0), ("tuned", 1)):
        path = adapt.folder / name / "model.safetensors"
        norms = {f"model.layers.{i}.norm.weight": torch.ones(8) + by for i in range(60)}
        save_file(load_file(path) | norms, path)

    said = adapt.ok("extract", "./tuned", "--base", "./base", "--rank", "2", "-o", "./legal")

    assert "    model.layers.0.norm.weight and 60 more  488  a vector" in said.splitlines()
    assert len(said.splitlines()) < 10
    path = adapt.folder / "again"
    document = adapt.json("extract", "./tuned", "--base", "./base", "--rank", "2", "-o", str(path))
    assert len(document["left_out"]) == 61


@pytest.mark.parametrize("fault", ["only one model has them", "other shapes", "NaN", "vectors", "quantised"])
def test_a_fault_of_many_tensors_is_told_in_a_line(adapt, fault):
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(80)]
    if fault == "vectors":
        names = [f"model.layers.{i}.norm.weight" for i in range(80)]
    start = {name: torch.ones(8) if fault == "vectors" else torch.ones(8, 8) for name in names}
    changes = {
        "only one model has them": {},
        "other shapes": {name: torch.ones(8, 4) for name in names},
        "NaN": {
            name: torch.eye(8).fill_diagonal_(i).index_fill(0, torch.tensor(7), torch.nan)
            for i, name in enumerate(names)
        },
        "vectors": {name: torch.zeros(8) for name in names},
        "quantised": {name: torch.ones(8, 8, dtype=torch.int8) for name in names},
    }
    for folder, tensors in (("base", start), ("tuned", changes[fault])):
        kept = load_file(adapt.folder / "base" / "model.safetensors")
        kept = {name: kept[name] for name in kept if name not in start}
        save_file(kept | tensors, adapt.folder / folder / "model.safetensors")

    told = adapt.fails(11, "extract", "./tuned", "--base", "./base", "--rank", "2", "-o", "./out")

    assert len(told.splitlines()) < 6
    assert " more like it" in told


def test_the_hint_of_the_rest_works_as_typed(adapt):
    arguments = ["extract", "./tuned", "--base", "base-7b", "--energy", "0.999", "-o", "./out"]
    hinted = adapt(*arguments[:-1], "./first").stderr

    said = adapt.json(*arguments, "--save-rest")

    assert "hint: `--save-rest` stores 1 of the tensors" in hinted
    assert [(o["name"], o["carried"]) for o in said["left_out"]] == [("model.norm.weight", True)]
    assert said["missing_share"] < 0.04
    config = json.loads((adapt.folder / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.norm"]


def test_json_tells_everything_that_was_measured(adapt):
    said = adapt.json("extract", "./tuned", "--base", "base-7b", "--max-error", "0.01", "-o", "./out")

    assert said["ranks"] == {"2": 2}
    assert said["relative_error"] < 1e-5 < said["missing_share"]
    assert (str(Path("out")), "float32", 7) == (said["path"], said["dtype"], said["unchanged_tensors"])
    assert said["recipe"]["options"] == {"max_error": 0.01}


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["./tuned", "--base", "base-7b"], "no option chooses the rank"),
        (2, ["./tuned", "--base", "base-7b", "--rank", "1", "--energy", "0.5"], "--rank and --energy"),
        (10, ["nobody", "--base", "base-7b", "--rank", "1"], "no base `nobody`"),
        (11, ["./base", "--base", "base-7b", "--rank", "1"], "nothing to extract"),
        (16, ["./home", "--base", "base-7b", "--rank", "1"], "holds no weights"),
    ],
)
def test_refusals_have_their_exit_codes_and_leave_nothing(adapt, code, arguments, words):
    said = adapt.fails(code, "extract", *arguments, "-o", "legal")

    assert words in said
    assert list((adapt.folder / "home").glob("tmp/*")) == []
    assert adapt.json("list") == []


def test_ctrl_c_leaves_nothing(adapt):
    shapes = {f"model.layers.{i}.self_attn.q_proj.weight": (16, 16) for i in range(12)}
    for seed, name in enumerate(("big", "bigger")):
        (adapt.folder / name).mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(tensors, adapt.folder / name / "model.safetensors")
    home = adapt.folder / "home"
    environ = os.environ | {"ADAPTERHUB_HOME": str(home)}

    done = adapt_interrupted_at(
        "adapterhub.weights.lowrank.factors", "TensorFileWriter.add", signal.SIGINT,
        *("extract", "./bigger", "--base", "./big", "--rank", "4", "-o", "legal"),
        folder=adapt.folder, environ=environ,
    )  # fmt: skip

    assert (done.exit_code, done.stderr.strip()) == (130, "interrupted; nothing half-made was kept")
    assert list(home.glob("tmp/*")) == []
    assert adapt.json("list") == []


# ---------------------------------------------------------------- the real base
@pytest.mark.exhaustive
def test_the_demo_adapter_comes_out_of_the_real_base(tmp_path):
    library = Library(tmp_path / "home")
    library.bases.add(smollm2_base(), "smol")
    model, tokenizer = load_base(smollm2_base(), dtype="float32")
    tokens = tokenizer("Priya wants 5 lamps for 30 dollars.", return_tensors="pt")
    merged = PeftModel.from_pretrained(model, SHIPPED / "json").merge_and_unload()
    with torch.no_grad():
        expected = merged(**tokens).logits
    merged.save_pretrained(tmp_path / "tuned", max_shard_size="200MB")
    records = [model_record(library.bases, spec) for spec in ("smol", str(tmp_path / "tuned"))]
    about = Description(name=parse_name("json"), version="1.0.0")

    added, result = extract_into_library(library, *records, about, ExtractOptions(rank=4))

    assert result.ranks == {4: 60}
    assert result.left_out == ()
    # float32 weights hold an update of 1/100 of their size to about 1e-5 of itself
    assert result.relative_error < 1e-3
    assert error_of(updates_in(added.build.folder), updates_in(SHIPPED / "json")) < 1e-3
    base, _ = load_base(smollm2_base(), dtype="float32")
    with torch.no_grad():
        with attach(base, "json@smol", library=library) as attached:
            found = attached.model(**tokens).logits
        in_peft = PeftModel.from_pretrained(base, added.build.folder)(**tokens).logits
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)
    assert torch.allclose(in_peft, expected, atol=1e-3, rtol=1e-3)
