"""Folders that a stranger prepared, with links to files of the user: nothing behind a link is read, stored or shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub.core.disk.files import is_own
from tests.support.command_line import Adapt
from tests.support.foreign_files import kohya
from tests.support.tiny import make_adapter, make_base

MALFORMED, NOT_FOUND = 16, 10
PRIVATE = "the-title-of-a-private-file"


def mlx(path: Path) -> None:
    rng = np.random.default_rng(0)
    save_file(
        {
            "model.layers.0.self_attn.q_proj.lora_a": rng.standard_normal((8, 2)).astype("f4"),
            "model.layers.0.self_attn.q_proj.lora_b": rng.standard_normal((2, 8)).astype("f4"),
        },
        path,
    )


def mlx_config(path: Path) -> None:
    parameters = {"rank": 2, "scale": 2.0, "dropout": 0.0}
    path.write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}))


def kohya_file(path: Path) -> None:
    kohya(path, every=40, metadata={"modelspec.title": PRIVATE})


def diffusers_file(path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ones = np.ones((2, 8), "f4"), np.ones((8, 2), "f4")
    tensors = dict(zip((f"{name}.lora_A.weight", f"{name}.lora_B.weight"), ones, strict=True))
    save_file(tensors, path, metadata={"modelspec.title": PRIVATE})


def comfy_file(path: Path) -> None:
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    ones = np.ones((2, 8), "f4"), np.ones((8, 2), "f4")
    tensors = dict(zip((f"{name}.lora_A.weight", f"{name}.lora_B.weight"), ones, strict=True))
    save_file(tensors, path, metadata={"modelspec.title": PRIVATE})


FILES: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "MLX": ("adapters.safetensors", mlx),
    "kohya": ("style.safetensors", kohya_file),
    "diffusers": ("pytorch_lora_weights.safetensors", diffusers_file),
    "ComfyUI": ("flux.safetensors", comfy_file),
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone beside a private folder of the user."""
    (tmp_path / "private").mkdir()
    (tmp_path / "clone").mkdir()
    return tmp_path / "clone"


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_program_that_is_a_link_out_is_not_read(tmp_path, clone, kind):
    adapt, (name, make) = Adapt(tmp_path), FILES[kind]
    make(tmp_path / "private" / name)
    mlx_config(clone / "adapter_config.json")
    (clone / name).symlink_to(f"../private/{name}")

    for given in ("clone", f"clone/{name}"):
        for command in (
            ("add", given, "--name", "x"),
            ("verify", given),
            ("identify", given),
            ("identify", given, "clone"),
        ):
            done = adapt(*command)
            assert PRIVATE not in done.stdout + done.stderr, command
            if command[0] == "add":
                assert done.exit_code == MALFORMED
                assert f"is a link out of its folder, to ../private/{name}" in done.stderr
    assert adapt.json("list") == []


def test_the_same_files_are_taken_where_the_links_stay_inside(tmp_path, clone):
    adapt = Adapt(tmp_path)
    for name, make in FILES.values():
        folder = clone / name.partition(".")[0]
        (folder / "real").mkdir(parents=True)
        make(folder / "real" / name)
        mlx_config(folder / "adapter_config.json")
        (folder / name).symlink_to(f"real/{name}")
        adapt.ok("add", folder / name)

    assert len(adapt.json("list")) == len(FILES)


@pytest.mark.parametrize("kind", FILES)
def test_the_same_files_are_taken_from_a_snapshot_of_the_hub_cache(tmp_path, kind):
    adapt, (name, make) = Adapt(tmp_path), FILES[kind]
    blobs, snapshot = tmp_path / "models--acme--x" / "blobs", tmp_path / "models--acme--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    make(blobs / "1")
    mlx_config(blobs / "2")
    (snapshot / name).symlink_to("../../blobs/1")
    (snapshot / "adapter_config.json").symlink_to("../../blobs/2")

    adapt.ok("add", snapshot, "--name", "x")

    assert [row["name"] for row in adapt.json("list")] == ["x"]


def test_a_config_of_mlx_that_is_a_link_out_is_not_read(tmp_path, clone):
    adapt = Adapt(tmp_path)
    mlx(clone / "adapters.safetensors")
    mlx_config(tmp_path / "private" / "config.json")
    (clone / "adapter_config.json").symlink_to("../private/config.json")

    said = adapt.fails(MALFORMED, "add", "clone", "--name", "x")

    assert "adapter_config.json" in said
    assert "is a link out of its folder" in said


def test_weights_of_a_base_that_are_a_link_out_are_not_read(tmp_path, clone):
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "private" / "base")
    shutil.copytree(tmp_path / "private" / "base", clone / "base")
    (clone / "base" / "model.safetensors").unlink()
    (clone / "base" / "model.safetensors").symlink_to("../../private/base/model.safetensors")

    assert "is a link out of its folder" in adapt.fails(MALFORMED, "base", "add", "clone/base")
    assert adapt.json("base", "list") == []


def test_a_component_of_a_pipeline_that_is_a_link_out_is_not_read(tmp_path, clone):
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "private" / "unet")
    (clone / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": ["diffusers", "Y"]}))
    (clone / "unet").symlink_to("../private/unet")

    assert "is a link out of its folder" in adapt.fails(MALFORMED, "base", "add", "clone")
    assert adapt.json("base", "list") == []


def test_fuse_copies_no_file_of_a_base_that_is_a_link_out(tmp_path, clone):
    adapt = Adapt(tmp_path)
    make_base(clone / "base")
    make_adapter(tmp_path / "made")
    adapt.ok("base", "add", "clone/base", "--as", "b")
    adapt.ok("add", "made", "--name", "x", "--base", "b")
    (tmp_path / "private" / "key").write_text(PRIVATE)
    (clone / "base" / "LICENSE").symlink_to("../../private/key")

    assert "is a link out of its folder" in adapt.fails(MALFORMED, "fuse", "x", "-o", "out")
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_the_hub_cache_that_is_a_link_out_is_passed_over(tmp_path, monkeypatch):
    adapt, repository = Adapt(tmp_path), tmp_path / "hub" / "models--acme--x"
    make_adapter(tmp_path / "private")
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / "abc").symlink_to("../../../private")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    assert adapt("install", "acme/x", "--offline").exit_code == NOT_FOUND
    assert adapt.json("list") == []


def test_a_folder_on_the_way_that_is_a_link_out_counts_as_well(tmp_path, clone):
    (tmp_path / "private" / "a").write_text("a")
    (clone / "inner").symlink_to("../private")
    (clone / "loop").symlink_to("loop")

    assert [is_own(clone, name) for name in ("inner", "inner/a", "loop", "nothing", "../private/a")] == [False] * 5
