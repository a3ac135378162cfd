"""Adapters of several components of a pipeline: verified, merged, compared, resized, extracted and fused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.inference.loader import attach
from adapterhub.weights.lowrank.factors import AdapterFactors
from tests.inference.test_pipelines import BOUND, SEVERAL, close, fused, latents, modules_of, ready, save, written
from tests.support import pipelines
from tests.support.command_line import Adapt


def updates_of(folder: Path) -> dict[str, torch.Tensor]:
    """The update of each module of an adapter, as a matrix in float64."""
    with AdapterFactors(folder) as factors:
        found = {name: factors.read(name) for name in factors.modules}
    return {name: one.scale * one.b.double() @ one.a.double() for name, one in found.items()}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return ready(pipelines.sdxl())


@pytest.fixture
def adapt(pipeline: Any, tmp_path: Path) -> Adapt:
    """A library with the pipeline `x`, and the adapters `wide` on three components and `narrow` on the UNet."""
    typed = Adapt(tmp_path)
    pipeline.save_pretrained(tmp_path / "sdxl")
    typed.ok("base", "add", "./sdxl", "--as", "x")
    save(tmp_path / "wide", modules_of(pipeline, SEVERAL), seed=1)
    save(tmp_path / "narrow", modules_of(pipeline, {"unet": ("to_q", "conv1")}), drop="unet.", seed=2)
    save(tmp_path / "other", modules_of(pipeline, {"unet": ("to_q",), "text_encoder": ("fc1",)}), seed=3)
    for name in ("wide", "narrow", "other"):
        typed.ok("add", f"./{name}", "--base", "x")
    return typed


def test_every_command_narrows_a_pipeline_to_the_component_of_an_adapter(adapt: Adapt) -> None:
    adapt.ok("verify", "./narrow", "--base", "x")
    adapt.ok("verify", "./wide", "--base", "x")
    adapt.ok("verify", "narrow@x")
    for spec in ("narrow@x", "wide@x"):
        adapt.ok("export", spec, "--format", "peft", "--output", spec.partition("@")[0] + "-out")
    adapt.ok("export", "./narrow", "--base", "x", "--format", "peft", "--output", "folder-out")

    [build] = adapt.library.builds_named(parse_name("narrow"))
    assert build.base.fingerprint == adapt.library.bases.get("x").part("unet").fingerprint


def test_a_merge_of_several_components_equals_the_weighted_sum(adapt: Adapt, pipeline: Any) -> None:
    wide = save(adapt.folder / "w", modules_of(pipeline, SEVERAL), seed=1)
    other = save(adapt.folder / "o", modules_of(pipeline, {"unet": ("to_q",), "text_encoder": ("fc1",)}), seed=3)
    expected = {name: 0.7 * update for name, update in wide.items()}
    for name, update in other.items():
        expected[name] = expected.get(name, 0) + 0.3 * update

    adapt.ok("merge", "wide", "other", "--weights", "0.7,0.3", "-o", "both")

    adapt.ok("verify", "both@x")
    goal = fused(pipeline, expected)
    with attach(pipeline, "both", library=adapt.library):
        assert close(latents(pipeline), goal)
    adapt.ok("resize", "wide", "--rank", 8, "-o", "wider")
    goal = fused(pipeline, wide)
    with attach(pipeline, "wider", library=adapt.library):
        assert close(latents(pipeline), goal)
    same = adapt.json("compare", "wide", "other")
    assert same is not None


def test_a_merge_of_one_component_with_several_equals_the_weighted_sum(adapt: Adapt, pipeline: Any) -> None:
    wide = save(adapt.folder / "w", modules_of(pipeline, SEVERAL), seed=1)
    narrow = save(adapt.folder / "n", modules_of(pipeline, {"unet": ("to_q", "conv1")}), seed=2)
    none = torch.zeros(())
    expected = {name: 0.7 * narrow.get(name, none) + 0.3 * wide.get(name, none) for name in narrow | wide}

    adapt.ok("merge", "wide", "narrow", "--weights", "0.3,0.7", "-o", "turned")
    adapt.ok("merge", "narrow", "wide", "--weights", "0.7,0.3", "-o", "both")

    for [build] in map(adapt.library.builds_named, (parse_name("both"), parse_name("turned"))):
        assert build.base.fingerprint == adapt.library.bases.get("x").fingerprint
        assert {parent.spec: parent.weight for parent in build.manifest.parents} == {
            "narrow==1.0.0": 0.7, "wide==1.0.0": 0.3,
        }  # fmt: skip
        held = updates_of(build.folder)
        assert len(held) == len(expected)
        for name, update in expected.items():
            assert (held[written(name)] - update.flatten(1)).abs().max() <= 1e-6 * update.abs().max(), name
    goal = fused(pipeline, expected)
    with attach(pipeline, "both", library=adapt.library):
        assert close(latents(pipeline), goal)
    (adapt.folder / "recipe.toml").write_text(adapt.ok("show", "both", "--recipe"))
    assert "recorded" in adapt.ok("merge", "--recipe", "recipe.toml")


def test_one_component_with_several_is_refused_where_it_has_other_weights(adapt: Adapt) -> None:
    tuned = shutil.copytree(adapt.folder / "sdxl" / "unet", adapt.folder / "tuned")
    file = tuned / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(file).items()}, file)
    adapt.ok("base", "add", "./tuned", "--as", "tuned")
    adapt.ok("add", "./narrow", "--base", "tuned", "--name", "astray")
    assert "different bases" in adapt.fails(11, "merge", "astray", "wide", "-o", "both")


def test_one_component_has_the_base_of_that_component(adapt: Adapt, pipeline: Any) -> None:
    assert [row["base"] for row in adapt.json("list") if row["name"] == "narrow"] == ["x/unet"]
    adapt.ok("verify", "narrow@x")
    adapt.ok("fuse", "narrow@x", "-o", "./fused")
    assert "expected" in adapt.fails(16, "fuse", "wide", "-o", "./whole")
    asked = adapt.fails(11, "run", "wide", "hello")
    assert "draws images" in asked
    assert "--image" in asked
    narrow = save(adapt.folder / "n", modules_of(pipeline, {"unet": ("to_q", "conv1")}), seed=2)
    before = load_file(adapt.folder / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    [file] = (adapt.folder / "fused").glob("*.safetensors")
    after = load_file(file)
    for name, tensor in before.items():
        update = narrow.get(f"unet.{name.removesuffix('.weight')}", torch.zeros(()))
        assert torch.allclose(after[name].double(), tensor.double() + update, atol=BOUND)
    adapt.ok("extract", "./fused", "--base", "x/unet", "--rank", 4, "-o", "back")
    adapt.ok("verify", "back")
