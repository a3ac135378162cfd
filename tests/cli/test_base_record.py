"""A base without its weights: the record that one machine exports and another registers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import adapterhub
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The record of a base that no longer exists, as it comes out of the shell."""
    far = Adapt(tmp_path, home="far")
    far.ok("base", "add", make_base(tmp_path / "base"), "--as", "base-7b")
    path = tmp_path / "base.json"
    path.write_text(far.ok("base", "show", "base-7b", "--record"))
    (tmp_path / "base" / "model.safetensors").unlink()
    return path


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path)


def test_adapters_are_verified_against_a_base_that_is_not_there(adapt: Adapt, record: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "fits")
    make_adapter(tmp_path / "wider", width=16)

    adapt.ok("base", "add", record)
    adapt.ok("add", tmp_path / "fits", "--name", "fits", "--base", "base-7b")

    assert "does not fit the base" in adapt.fails(11, "add", tmp_path / "wider", "--name", "wider", "--base", "base-7b")
    assert adapt.ok("verify", "--all")
    assert [(one["alias"], one["path"]) for one in adapt.json("base", "list")] == [("base-7b", None)]
    assert "are not on this machine" in adapt.fails(10, "run", "fits", "Hello")


def test_both_forms_of_the_record_are_one_and_hold_no_place(adapt: Adapt, record: Path, tmp_path: Path) -> None:
    adapt.ok("base", "add", record)

    assert adapt.json("base", "show", "base-7b", "--record") == json.loads(record.read_text())
    assert str(tmp_path) not in record.read_text()
    assert adapterhub.Library(tmp_path / "home").show_base("base-7b").exported == record.read_bytes().rstrip()


def test_a_base_that_is_here_keeps_its_folder(adapt: Adapt, record: Path, tmp_path: Path) -> None:
    here = make_base(tmp_path / "again")
    adapt.ok("base", "add", here, "--as", "base-7b")

    adapt.ok("base", "add", record)
    adapt.ok("base", "add", record, "--as", "second")

    assert {one["alias"]: one["path"] for one in adapt.json("base", "list")} == {"base-7b": str(here), "second": None}


def test_a_record_of_other_weights_does_not_take_a_name(adapt: Adapt, record: Path, tmp_path: Path) -> None:
    adapt.ok("base", "add", make_base(tmp_path / "other", seed=1), "--as", "base-7b")

    assert "the name `base-7b` belongs to another base" in adapt.fails(15, "base", "add", record)


def lie(value: dict[str, Any]) -> None:
    value["tensors"][0][3] = "0" * 64


def rename(value: dict[str, Any]) -> None:
    value["alias"] = "../x"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lie, 16, "its fingerprint is not that of its tensors"),
        (rename, 2, "`../x`"),
        (lambda value: value.pop("tensors"), 16, "tensors: missing"),
        (lambda value: value.clear(), 16, "schema: expected adapterhub/base/1"),
        (lambda value: value.update(tensors=[]), 16, "holds no weights"),
    ],
)
def test_what_is_no_honest_record_is_refused(change: Any, code: int, said: str, adapt: Adapt, record: Path) -> None:
    value = json.loads(record.read_text())
    change(value)
    record.write_text(json.dumps(value))

    assert said in adapt.fails(code, "base", "add", record)
    assert adapt.json("base", "list") == []
