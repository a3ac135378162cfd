"""`adapt port`: an adapter moves to a related base as its contract decides, and a refusal changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import adapterhub
from adapterhub.core.errors import CouldNotTell
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.inference.loader.text import load_base
from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library
from tests.support.moved_bases import moved_copy, reordered_copy, without_layers
from tests.support.tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a` has a contract on `base-7b`, `b` has none; beside it are relatives of the base."""
    adapt = recorded_library(tmp_path_factory.mktemp("port"))
    base, place = adapt.folder / "base", adapt.folder
    moved_copy(base, place / "next", 0.002)
    moved_copy(base, place / "far", 0.5)
    reordered_copy(base, place / "reordered")
    without_layers(base, place / "pruned", 0)
    shutil.copytree(base, place / "narrow")
    llama(5, hidden_size=16, max_position_embeddings=256).save_pretrained(place / "narrow")
    shutil.copytree(base, place / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(place / "half")
    for name in ("next", "far", "reordered", "pruned", "narrow", "half"):
        adapt.ok("base", "add", place / name, "--as", name)
    return adapt


@pytest.fixture
def adapt(made: Adapt, tmp_path: Path) -> Adapt:
    """A copy to change."""
    shutil.copytree(made.folder, tmp_path / "own", symlinks=True)
    return Adapt(tmp_path / "own")


def ported(adapt: Adapt, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(adapt.ok("port", *arguments, "--json"))
    return found


def builds(adapt: Adapt) -> dict[str, bytes]:
    """Every file of every installed build."""
    return {str(path): path.read_bytes() for one in adapt.library.installed() for path in one.folder.glob("*")}


# ------------------------------------------------------------ a new build
def test_a_near_base_gets_a_copy_with_a_contract_of_its_own(adapt: Adapt) -> None:
    before = builds(adapt)
    found = ported(adapt, "a", "--to", "next")
    [old] = [
        one
        for one in adapt.library.installed()
        if one.full_name == "a" and one.base_name == "base-7b" and one.manifest.version == "1.0.1"
    ]
    [new] = [one for one in adapt.library.installed() if one.full_name == "a" and one.base_name == "next"]
    contract, parent = contract_in(new.folder), contract_in(old.folder)

    assert builds(adapt).items() >= before.items()
    assert (found["method"], found["created"], found["version"], found["bases"]) == (
        "copy",
        True,
        "1.0.1",
        "SAME_SHAPES",
    )
    assert [one["method"] for one in found["tries"]] == ["copy"]  # it works, so nothing else is tried
    assert found["prediction"]["expected"] == "works"
    assert new.manifest.file(WEIGHTS_FILE) == old.manifest.file(WEIGHTS_FILE)
    assert new.manifest.relation == "ported from"
    assert [(one.digest, one.weight) for one in new.manifest.parents] == [(old.manifest.digest, 1.0)]
    assert new.manifest.recipe["options"] == {"by": "copy"}
    assert new.manifest.recipe["base"] == old.manifest.base.fingerprint.weights
    assert new.manifest.base.fingerprint.weights == adapt.library.bases.get("next").fingerprint.weights
    assert 0 < new.manifest.metrics["port_drift"] < 0.2
    assert contract is not None
    assert parent is not None
    assert contract.recorded.base == new.manifest.base.fingerprint.weights
    assert {one.base_odds for one in contract.goldens}.isdisjoint(one.base_odds for one in parent.goldens)
    assert {one.id: one.answer for one in contract.goldens}.items() <= {
        one.id: one.answer for one in parent.goldens
    }.items()
    assert len(contract.goldens) + len(found["left_out"]) == len(parent.goldens)
    assert found["contract"] == contract.digest
    adapt.ok("verify", "a@next==1.0.1")
    [tested] = json.loads(adapt.ok("test", "a@next", "--json"))
    assert (tested["outcome"], tested["base"]) == ("works", "next")
    assert tested["drift"] < 0.01
    assert ported(adapt, "a@base-7b", "--to", "next")["created"] is False


def test_a_reordered_base_gets_the_update_in_its_order(adapt: Adapt) -> None:
    found = ported(adapt, "a", "--to", "reordered", "-o", "a-again", "--version", "2.0.0")
    tries = {one["method"]: one["outcome"] for one in found["tries"]}

    assert (found["name"], found["version"], found["method"]) == ("a-again", "2.0.0", "project")
    assert tries["copy"] in ("broken", "drifts")
    assert tries["project"] == "works"
    adapt.ok("test", "a-again")


def test_a_fixed_way_is_the_only_one(adapt: Adapt) -> None:
    assert [one["method"] for one in ported(adapt, "a", "--to", "next", "--method", "project")["tries"]] == ["project"]


def test_without_a_contract_nothing_is_written_unless_that_is_meant(adapt: Adapt) -> None:
    before = builds(adapt)
    assert "has no contract" in adapt.fails(17, "port", "b", "--to", "next")
    assert builds(adapt) == before
    done = adapt("port", "b", "--to", "next", "--unproved")
    [new] = [one for one in adapt.library.installed() if one.full_name == "b" and one.base_name == "next"]

    assert done.exit_code == 0
    assert "nothing proves that it works" in done.stderr
    assert contract_in(new.folder) is None


# ------------------------------------------------------------ a look, and refusals
def test_a_dry_run_says_what_to_expect_and_writes_nothing(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a dry run loads no model")

    before = builds(adapt)
    monkeypatch.setattr("adapterhub.inference.loader.text.load_base", load)
    near, far = (ported(adapt, "a", "--to", name, "--dry-run") for name in ("next", "reordered"))

    assert near["prediction"]["expected"] == "works"
    assert far["prediction"]["expected"] == "fails"
    assert near["distance"]["change"] < 0.01 < far["distance"]["change"]
    assert {one["module"].rpartition(".")[2] for one in near["distance"]["modules"]} == {
        "q_proj",
        "v_proj",
        "down_proj",
    }
    assert "a copy: expected `fails`" in adapt.ok("port", "a", "--to", "reordered", "--dry-run")
    assert "lacks layer 0" in adapt.ok("port", "a", "--to", "pruned", "--dry-run")
    assert builds(adapt) == before


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("a", "--to", "far"), 3, "does not pass its contract on `far`"),
        (("a", "--to", "narrow"), 11, "other shapes where the adapter acts"),
        (("a", "--to", "half"), 2, "needs no port"),
        (("a", "--to", "base-7b"), 2, "needs no port"),
        (("a", "--to", "nowhere"), 10, "no base `nowhere`"),
        (("a", "--to", "next", "--method", "magic"), 2, "expected one of copy, project"),
        (("a", "--to", "next", "-o", "./folder"), 2, "a port is a build of the library"),
        (("dora", "--to", "next", "--unproved", "--method", "project"), 2, "moves plain LoRA"),
    ],
)
def test_refusals_change_nothing(adapt: Adapt, arguments: tuple[str, ...], code: int, text: str) -> None:
    before = builds(adapt)

    assert text in adapt.fails(code, "port", *arguments)
    assert builds(adapt) == before
    assert not (adapt.folder / "folder").exists()


def test_other_tokens_of_the_prompts_leave_no_verdict(adapt: Adapt) -> None:
    shutil.copytree(adapt.folder / "next", adapt.folder / "letters")
    text = (adapt.folder / "letters" / "tokenizer.json").read_text()
    swapped = text.replace('"e": ', '"#": ').replace('"o": ', '"e": ').replace('"#": ', '"o": ')
    (adapt.folder / "letters" / "tokenizer.json").write_text(swapped)
    before = builds(adapt)

    with pytest.raises(CouldNotTell, match="no verdict is possible"):
        adapterhub.Library(adapt.library.root).port("a", to=adapt.folder / "letters")
    assert builds(adapt) == before


def test_layers_that_are_gone_are_left_out(adapt: Adapt) -> None:
    found = ported(adapt, "a", "--to", "pruned", "--unproved")
    model, _ = load_base(adapt.folder / "pruned", dtype="auto")

    assert found["notes"] == ["the new base lacks layer 0 of `model.layers`: their part of the adapter is left out"]
    assert found["contract"] == ""
    with adapterhub.attach(model, "a@pruned", library=adapt.library) as attached:
        assert sum(hasattr(layer, "lora_A") for layer in attached.model.modules()) == 3
