"""Families of bases: an adapter of one member runs on the others, and the verdict says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from adapterhub.core.errors import BaseMismatch
from adapterhub.inference.loader import attach
from tests.support.command_line import Adapt
from tests.support.tiny_models import llama, save_adapter


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    typed = Adapt(tmp_path)
    for name, model in (("first", llama(1)), ("second", llama(2)), ("wider", llama(1, hidden_size=64))):
        model.save_pretrained(tmp_path / name)
        typed.ok("base", "add", f"./{name}", "--as", name)
    save_adapter(tmp_path / "a", lambda: llama(1), LoraConfig(r=2, target_modules=["q_proj"]))
    typed.ok("add", "./a", "--name", "a", "--base", "first")
    return typed


def test_an_adapter_runs_on_another_member_with_a_note(adapt: Adapt) -> None:
    with pytest.raises(BaseMismatch):
        attach(llama(2), "a", library=adapt.library)

    adapt.ok("base", "family", "kin", "first", "second")

    with attach(llama(2), "a", library=adapt.library) as attached:
        [adapter] = attached.adapters
        assert adapter.verdict.name == "SAME_FAMILY"
        assert "`first` and `second` are of the family `kin`, which you declared" in attached.explain()
    with attach(llama(2), "a@second", library=adapt.library) as attached:
        assert torch.equal(attached.model(torch.arange(4)[None]).logits, attached.model(torch.arange(4)[None]).logits)
    assert adapt.json("base", "compare", "first", "second")["verdict"] == "SAME_FAMILY"
    warned = adapt("fuse", "a", "--base", "second", "-o", "./fused")
    assert (warned.exit_code, "are of the family `kin`" in warned.stderr) == (0, True)
    assert [f["name"] for f in adapt.json("base", "family")] == ["kin"]
    adapt.ok("base", "family", "kin", "--remove")
    with pytest.raises(BaseMismatch):
        attach(llama(2), "a", library=adapt.library)


def test_what_is_no_family_is_refused(adapt: Adapt) -> None:
    said = adapt.fails(11, "base", "family", "kin", "first", "wider")
    assert "`first` and `wider` are not a family: their verdict is DIFFERENT" in said
    assert "a family has at least two bases" in adapt.fails(2, "base", "family", "kin", "first", "first")
    assert "no family `kin`" in adapt.fails(10, "base", "family", "kin", "--remove")
    assert "is not a name for a family" in adapt.fails(2, "base", "family", "../kin", "first", "second")
    (adapt.folder / "home" / "families").mkdir()
    (adapt.folder / "home" / "families" / "kin.json").write_text("{}")
    assert "kin.json: not a usable family" in adapt.fails(16, "base", "family")


def test_other_weights_under_a_members_alias_leave_the_family(adapt: Adapt) -> None:
    adapt.ok("base", "family", "kin", "first", "second")
    adapt.ok("base", "remove", "second")
    llama(3).save_pretrained(adapt.folder / "third")
    adapt.ok("base", "add", "./third", "--as", "second")

    with pytest.raises(BaseMismatch):
        attach(llama(3), "a", library=adapt.library)
