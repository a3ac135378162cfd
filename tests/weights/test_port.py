"""Moving an adapter to another base: each way where the truth is known, and what is paired with what."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.errors import BaseMismatch, UnsupportedAdapter, UsageProblem
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.port import OpenedPort, opened
from adapterhub.weights.port.catalogue import describe, names
from adapterhub.weights.port.methods import copy, project
from adapterhub.weights.port.place import Place
from adapterhub.weights.port.prediction import BOUNDS, expected_of, predict
from tests.support.moved_bases import moved_copy, reordered_copy, without_layers
from tests.support.run_library import write_base
from tests.support.tiny_models import llama, save_adapter

OUT, WIDTH = 16, 16
PLAIN = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(numbers(size, size, seed=seed))[0]


def place(old: Tensor, new: Tensor, hidden: Tensor | None = None) -> Place:
    update = LowRank(a=numbers(3, WIDTH, seed=1), b=numbers(OUT, 3, seed=2), scale=0.5)
    return Place(update=update, weights=lambda: (old, new), hidden=lambda: hidden)


def dense(update: LowRank) -> Tensor:
    return update.scale * update.b.double() @ update.a.double()


def off(found: LowRank, truth: Tensor) -> float:
    return float((dense(found) - truth).norm() / truth.norm())


# ------------------------------------------------------------ the ways, where the truth is known
@pytest.mark.parametrize("side", ["out", "in"])
def test_project_turns_an_update_as_its_weight_was_turned(side: str) -> None:
    old = numbers(OUT, WIDTH, seed=3)
    left = rotation(OUT, 4) if side == "out" else torch.eye(OUT, dtype=torch.float64)
    right = rotation(WIDTH, 5) if side == "in" else torch.eye(WIDTH, dtype=torch.float64)
    here = place(old, left @ old @ right.T)
    truth = left @ dense(here.update) @ right.T

    assert off(copy.move(here), truth) > 0.5
    assert off(project.move(here), truth) < 1e-6


@pytest.mark.parametrize("move", [copy.move, project.move])
def test_a_base_that_did_not_change_gives_the_update_itself(move: Callable[[Place], LowRank]) -> None:
    old = numbers(OUT, WIDTH, seed=3)
    here = place(old, old)

    assert off(move(here), dense(here.update)) < 1e-6
    assert move(here).rank == here.update.rank


def test_the_ways_are_found_by_their_files() -> None:
    assert names()[0] == "copy"
    assert {name: describe(name).needs for name in names()} == {
        "copy": "nothing", "project": "weights",
    }  # fmt: skip
    assert all(describe(name).summary.endswith(".") for name in names())
    with pytest.raises(UsageProblem, match="expected one of copy, project"):
        describe("projects")


def test_project_takes_one_side_from_the_embedding_and_fits_the_other() -> None:
    old, left, right = numbers(12, WIDTH, seed=3), rotation(12, 4), rotation(WIDTH, 5)
    update = LowRank(a=numbers(3, WIDTH, seed=1), b=numbers(12, 3, seed=2))
    here = replace(place(old, left @ old @ right.T, hidden=right), update=update)
    alone = replace(here, hidden=lambda: None)
    truth = left @ dense(update) @ right.T

    assert off(project.move(here), truth) < 1e-6
    assert off(project.move(alone), truth) > 0.3  # nothing tells which side turned


def test_project_does_not_fit_what_the_embedding_explains() -> None:
    old, right = numbers(6, WIDTH, seed=3), rotation(WIDTH, 5)  # reads six directions; the others a fit would keep
    update = LowRank(a=numbers(3, WIDTH, seed=1), b=numbers(6, 3, seed=2))
    here = replace(place(old, old @ right.T, hidden=right + 1e-9 * numbers(WIDTH, WIDTH, seed=8)), update=update)

    assert off(project.move(here), dense(update) @ right.T) < 1e-6


def test_project_keeps_the_update_where_a_weight_moved_in_another_way() -> None:
    old = numbers(OUT, WIDTH, seed=3)

    for share in (0.1, 2.0):
        here = place(old, old + share * numbers(OUT, WIDTH, seed=4))
        assert project.move(here) is here.update


# ------------------------------------------------------------ bases
@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its relatives, and a plain adapter for it."""
    folder = tmp_path_factory.mktemp("port")
    base = write_base(folder / "base")
    moved_copy(base, folder / "next", 0.01)
    moved_copy(base, folder / "far", 1.0)
    reordered_copy(base, folder / "reordered")
    without_layers(base, folder / "pruned", 0)
    llama(5, hidden_size=16, max_position_embeddings=256).save_pretrained(folder / "narrow")
    save_adapter(folder / "a", llama, PLAIN, seed=1)
    return folder


def look(world: Path, name: str) -> BaseRecord:
    return Library(world / "library").bases.look(world / name)


def open_on(world: Path, name: str, adapter: str = "a") -> contextlib.AbstractContextManager[OpenedPort]:
    old = look(world, "base")
    return opened(world / adapter, None, adapter, old.fingerprint, old, look(world, name))


def test_distance_grows_with_the_change(world: Path) -> None:
    found = {}
    for name in ("base", "next", "far", "reordered"):
        with open_on(world, name) as run:
            found[name] = run.distance()

    assert found["base"].change == 0
    assert found["base"].overlap == pytest.approx(1)
    assert found["next"].change == pytest.approx(0.01, rel=0.1)
    assert found["next"].overlap > 0.99
    assert found["far"].change == pytest.approx(1, rel=0.1)
    assert found["reordered"].overlap < 0.5
    assert len(found["next"].modules) == 6
    assert found["next"].modules[0].update == found["far"].modules[0].update > 0
    assert [predict(found[name]).expected for name in ("base", "reordered")] == ["works", "fails"]
    assert predict(found["far"]).expected != "works"
    assert predict(None).expected == "cannot tell"
    assert found["base"].strength == 0
    assert found["next"].strength < found["far"].strength


def test_a_concentrated_change_is_stronger_than_one_of_the_same_norm_that_is_spread(
    world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "base", tmp_path / "sharp")
    tensors = load_file(world / "base" / "model.safetensors")
    for name, weight in tensors.items():
        if weight.ndim == 2 and ".layers." in name:
            left, right = (torch.randn(size, generator=torch.Generator().manual_seed(1)) for size in weight.shape)
            change = torch.outer(left, right)
            weight.add_(0.01 * weight.norm() * change / change.norm())
    save_file(tensors, tmp_path / "sharp" / "model.safetensors", {"format": "pt"})
    old, library = look(world, "base"), Library(world / "library")
    with open_on(world, "next") as spread:
        wide = spread.distance()
    with opened(world / "a", None, "a", old.fingerprint, old, library.bases.look(tmp_path / "sharp")) as run:
        sharp = run.distance()

    assert wide is not None
    assert sharp is not None
    assert sharp.change == pytest.approx(wide.change, rel=0.1)
    assert sharp.concentration > 3 * wide.concentration
    assert sharp.strength > 3 * wide.strength


def test_between_the_bounds_no_answer_is_given() -> None:
    near, far = BOUNDS

    assert 0 < near < far
    asked = (0, near, (near + far) / 2, far, 9)
    assert [expected_of(one, 1.0) for one in asked] == ["works", "works", "cannot tell", "fails", "fails"]
    assert expected_of(0, 0.3) == "fails"  # the bases do other work where the adapter acts


def test_a_copy_has_the_bytes_of_the_adapter(world: Path, tmp_path: Path) -> None:
    with open_on(world, "next") as run:
        run.write("copy", tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    own = json.loads((world / "a" / CONFIG_FILE).read_text())

    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == (world / "a" / WEIGHTS_FILE).read_bytes()
    assert config["base_model_name_or_path"] is None
    assert {**config, "base_model_name_or_path": own["base_model_name_or_path"]} == own | {"revision": None}


def test_project_undoes_another_order_of_the_hidden_numbers(world: Path, tmp_path: Path) -> None:
    with open_on(world, "reordered") as run:
        run.write("project", tmp_path / "out")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    before, after = load_file(world / "a" / WEIGHTS_FILE), load_file(tmp_path / "out" / WEIGHTS_FILE)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    update = before[name.format("B")] @ before[name.format("A")]

    assert before.keys() == after.keys()
    assert torch.allclose(after[name.format("B")] @ after[name.format("A")], update[:, order], atol=1e-4)


def test_layers_that_are_left_get_their_own_part(world: Path, tmp_path: Path) -> None:
    with open_on(world, "pruned") as run:
        run.write("copy", tmp_path / "out")
        assert run.notes == ("the new base lacks layer 0 of `model.layers`: their part of the adapter is left out",)
        assert run.distance().change > 0.3  # what is gone counts
    before, after = load_file(world / "a" / WEIGHTS_FILE), load_file(tmp_path / "out" / WEIGHTS_FILE)
    old, new = (f"base_model.model.model.layers.{at}.self_attn.q_proj.lora_A.weight" for at in (1, 0))
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())

    assert torch.equal(after[new], before[old])
    assert len(after) == len(before) // 2
    assert config["lora_alpha"] == config["r"] == 4
    scale = after[new.replace("_A", "_B")] / before[old.replace("_A", "_B")]
    assert torch.allclose(scale.nan_to_num(4.0), torch.tensor(4.0))


def test_other_shapes_are_refused_by_name(world: Path) -> None:
    with pytest.raises(BaseMismatch, match=r"q_proj.*is for \[32, 32\].*is \[16, 16\]"), open_on(world, "narrow"):
        pass


def test_what_cannot_be_renumbered_is_refused(world: Path, tmp_path: Path) -> None:
    save_adapter(world / "dora", llama, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), seed=2)
    with open_on(world, "pruned", "dora") as run:
        with pytest.raises(UnsupportedAdapter, match="other layers"):
            run.write("copy", tmp_path / "out")
        with pytest.raises(UsageProblem, match="plain LoRA"):
            run.write("project", tmp_path / "out")
    assert not (tmp_path / "out").exists()
