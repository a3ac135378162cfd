"""`adapt resize`: the closest adapter of a lower rank, from argv to exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from tests.support.adapter_folders import error_of, updates_in, write_folder
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

MODULES = {f"model.layers.{i}.self_attn.{m}": (8, 8) for i in (0, 1) for m in ("q_proj", "v_proj")}


@pytest.fixture
def adapt(tmp_path):
    make_adapter(tmp_path / "legal-qa", seed=1, rank=4)
    shell = Adapt(tmp_path)
    record = shell.library.bases.add(make_base(tmp_path / "base"), "base-7b")
    about = Description(
        name=parse_name("legal-qa"), version="1.2.0", task="legal", description="Answers.", license="mit"
    )
    shell.library.add(tmp_path / "legal-qa", about, base=record)
    return shell


def best_error(folder, rank: int) -> float:
    """The smallest relative error that any adapter of that rank could have (Eckart and Young)."""
    values = [torch.linalg.svdvals(update) for update in updates_in(folder).values()]
    return float((sum(v[rank:].square().sum() for v in values) / sum(v.square().sum() for v in values)) ** 0.5)


@pytest.mark.parametrize("fault", ["too large for float16", "tensors of no LoRA"])
def test_a_fault_of_many_modules_is_told_in_a_line(adapt, fault):
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(80)]
    is_strange = fault == "tensors of no LoRA"
    extra = {f"base_model.model.{name}.lora_strange": torch.ones(2) for name in names} if is_strange else {}
    folder = write_folder(adapt.folder / "large", dict.fromkeys(names, (8, 8)), extra=extra)
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * 1e6 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})

    told = adapt.fails(11, "resize", "./large", "--rank", "2", "--dtype", "float16", "-o", "./small")

    assert len(told.splitlines()) < 6
    assert "; and 79 more like it" in told


def test_rank_gives_the_closest_adapter_of_that_rank(adapt):
    parent = adapt.folder / "legal-qa"

    said = adapt.json("resize", "legal-qa", "--rank", "2")

    assert (said["before"]["ranks"], said["after"]["ranks"]) == ({"4": 4}, {"2": 4})
    assert said["after"]["size_bytes"] < said["before"]["size_bytes"]
    found = error_of(updates_in(Path(said["path"])), updates_in(parent))
    assert pytest.approx(best_error(parent, 2), rel=1e-4) == found
    assert pytest.approx(found, rel=1e-4) == said["relative_error"]


def test_what_was_said_of_the_parent_is_kept_unless_told_otherwise(adapt):
    adapt.ok("resize", "legal-qa", "--rank", "2", "-o", "small")
    adapt.ok(
        "resize", "legal-qa", "--rank", "2", "-o", "other", "--task", "mine", "--version", "2", "--description", ""
    )

    kept, told = adapt.json("show", "small"), adapt.json("show", "other")

    assert tuple(kept[key] for key in ("version", "task", "description", "license")) == (
        "1.2.0",
        "legal",
        "Answers.",
        "mit",
    )
    assert (told["version"], told["task"], told.get("description", "")) == ("2", "mine", "")
    assert [parent["spec"] for parent in kept["parents"]] == ["legal-qa==1.2.0"]


def test_the_same_name_becomes_another_build_of_the_release(adapt):
    adapt.ok("resize", "legal-qa", "--rank", "2", "-o", "legal-qa", "--variant")

    assert sorted((row["name"], row["version"], row["rank"]) for row in adapt.json("list")) == [
        ("legal-qa", "1.2.0", 2),
        ("legal-qa", "1.2.0", 4),
    ]


def test_energy_gives_each_module_the_rank_it_needs(adapt):
    write_folder(adapt.folder / "mixed", MODULES, ranks=dict(zip(MODULES, (1, 2, 3, 4), strict=True)))

    said = adapt.json("resize", "./mixed", "--energy", "0.9", "-o", "./out")

    exact, found = updates_in(adapt.folder / "mixed"), updates_in(adapt.folder / "out")
    for module, update in exact.items():
        assert float((found[module] - update).norm() / update.norm()) <= 0.1**0.5 + 1e-6
    assert sum(said["after"]["ranks"].values()) == 4
    assert max(map(int, said["after"]["ranks"])) < 4
    config = json.loads((adapt.folder / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] != {}


def test_max_error_holds_in_every_module(adapt):
    adapt.ok("resize", "./legal-qa", "--max-error", "0.4", "-o", "./out")

    exact, found = updates_in(adapt.folder / "legal-qa"), updates_in(adapt.folder / "out")
    assert all(float((found[m] - exact[m]).norm() / exact[m].norm()) <= 0.4 + 1e-6 for m in exact)
    assert error_of(found, exact) > 0.01


def test_sizes_ranks_and_the_error_are_said(adapt):
    said = adapt.ok("resize", "legal-qa", "--rank", "2", "-o", "legal-qa-r2").splitlines()

    assert said[0] == "resized legal-qa-r2 1.2.0 (rank 2)"
    assert said[1].startswith("  before  ")
    assert said[1].endswith("  rank 4 in 4 modules")
    assert said[2].startswith("  after   ")
    assert said[2].endswith("  rank 2 in 4 modules")
    assert said[3].startswith("  float32; relative error against the adapter: 0.")


def test_a_rank_beyond_the_adapters_own_copies_it_and_says_so(adapt):
    said = adapt.ok("resize", "legal-qa", "--rank", "64", "-o", "./out")

    assert "no module's update has a rank above 4; rank 64 would only add zeros" in said
    assert "relative error against the adapter: 0\n" in said
    name = "adapter_model.safetensors"
    assert (adapt.folder / "legal-qa" / name).read_bytes() == (adapt.folder / "out" / name).read_bytes()


def test_a_rank_beyond_the_numerical_one_drops_what_is_empty(adapt):
    folder = write_folder(adapt.folder / "padded", MODULES, ranks=6)
    for tensor in (tensors := load_file(folder / "adapter_model.safetensors")).values():
        if tensor.shape[0] == 6:
            tensor[2:] = 0  # rows of A
    save_file(tensors, folder / "adapter_model.safetensors")

    said = adapt.ok("resize", "./padded", "--rank", "5", "-o", "./out")

    assert "rank 2 in 4 modules" in said
    assert "rank above 2; rank 5 would only add" in said
    assert error_of(updates_in(adapt.folder / "out"), updates_in(folder)) < 1e-6


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_the_dtype_stays_unless_told_otherwise(adapt, dtype, expected):
    write_folder(adapt.folder / "half", MODULES, dtype=torch.bfloat16)

    adapt.ok("resize", "./half", "--rank", "2", "-o", "./out", *(["--dtype", dtype] if dtype else []))

    stored = load_file(adapt.folder / "out" / "adapter_model.safetensors")
    assert {expected} == {tensor.dtype for tensor in stored.values()}


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["legal-qa", "-o", "x"], "no option chooses the rank"),
        (
            2,
            ["legal-qa", "--rank", "2", "--max-error", "0.1", "-o", "x"],
            "--rank and --max-error each choose the rank",
        ),
        (2, ["legal-qa", "--rank", "0", "-o", "x"], "--rank"),
        (10, ["nobody", "--rank", "2", "-o", "x"], "nobody"),
        (15, ["legal-qa", "--rank", "2", "-o", "./base"], "exists"),
        (16, ["./base", "--rank", "2", "-o", "x"], "adapter_config.json"),
    ],
)
def test_refusals_have_their_exit_codes_and_leave_nothing(adapt, code, arguments, words):
    assert words in adapt.fails(code, "resize", *arguments)
    assert [row["name"] for row in adapt.json("list")] == ["legal-qa"]
    assert list((adapt.folder / "home").glob("tmp/*")) == []


def test_a_bias_in_the_factors_is_no_part_of_the_printed_error(adapt):
    shapes = {f"model.layers.{i}.self_attn.q_proj": (8, 8) for i in (0, 1)}
    biases = {f"base_model.model.{name}.lora_B.bias": torch.full((8,), 100.0) for name in shapes}
    folder = write_folder(adapt.folder / "biased", shapes, extra=biases, lora_bias=True)

    said = adapt.json("resize", "./biased", "--rank", "2", "-o", "./small")

    assert said["relative_error"] == pytest.approx(best_error(folder, 2), rel=1e-4)


@pytest.mark.parametrize("cut", [("--rank", "2"), ("--energy", "0.9"), ("--max-error", "0.1")])
def test_what_has_no_low_rank_factors_is_refused_by_name(adapt, cut):
    folder = adapt.folder / "scales"
    folder.mkdir()
    config = {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": [], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.q.ia3_l": torch.ones(8, 1)}, folder / "adapter_model.safetensors")

    told = adapt.fails(11, "resize", "./scales", *cut, "-o", "./small")

    assert "has no low-rank factors to make smaller" in told
    assert "--to lora" in told
