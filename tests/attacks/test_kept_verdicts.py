"""Kept verdicts and losses count for the files of the base that are there now, and for no others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.library.results import KeptResults
from adapterhub.library.store.catalog import Installed
from tests.support.command_line import Adapt
from tests.support.contracts import RECORD, recorded_library

pytestmark = pytest.mark.filterwarnings("ignore")

PROJECT = """\
[project]
base = "base-7b"

[remotes.published]
path = "../own/published"

[adapters]
a = "==1.0.1"
"""
TRY = ("search", "--base", "base-7b", "--try", "examples.jsonl")


def set_in(name: str, **changed: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def with_file(name: str, text: str) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)

    return change


def one_weight(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] += 2  # no sampled number
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def a_buffer(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


SETTINGS = {
    "the norm": set_in("config.json", rms_norm_eps=0.5),
    "the rotation": set_in("config.json", rope_parameters={"rope_theta": 3.0, "rope_type": "default"}),
    "the writing": set_in("generation_config.json", repetition_penalty=5.0),
    "the tokenizer's settings": set_in("tokenizer_config.json", add_prefix_space=True),
    "a template": with_file("chat_template.jinja", "{{ messages }}"),
    "a named template": with_file("additional_chat_templates/tool.jinja", "{{ messages }}"),
    "a vocabulary of any name": with_file("dict.bpe", "a b\n"),
    "a buffer": a_buffer,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a verdict on `a`, its losses, a published build, and a project."""
    adapt = recorded_library(tmp_path_factory.mktemp("kept") / "own")
    base = adapt.folder / "base"
    for path in base.iterdir():  # old enough to be cached
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**10))
    adapt.ok("test", "a")
    adapt.ok("push", "a==1.0.1", "--to", "./published")
    adapt.ok(*TRY)
    adapt.ok("key", "new", "ann", "--unencrypted")
    adapt.ok("key", "trust", "ann")
    work = Adapt(adapt.folder.parent / "work", "../own/home")
    work.folder.mkdir()
    (work.folder / "adapters.toml").write_text(PROJECT)
    work.ok("sync", "--test")
    return adapt.folder.parent


@pytest.fixture
def own(measured: Path, tmp_path: Path) -> Adapt:
    """A copy to change; its base lies where the records say."""
    shutil.copytree(measured, tmp_path / "all", symlinks=True)
    for name in ("bases", "cache"):
        for path in (tmp_path / "all" / "own" / "home" / name).rglob("*.json"):
            path.write_text(path.read_text().replace(str(measured), str(tmp_path / "all")))
    adapt = Adapt(tmp_path / "all" / "own")
    assert result_of(adapt)["is_cached"] is True  # the copy is the same base
    return adapt


def work_of(own: Adapt) -> Adapt:
    return Adapt(own.folder.parent / "work", "../own/home")


def result_of(adapt: Adapt, *options: str) -> dict[str, object]:
    (result,) = json.loads(adapt("test", "a", *options, "--json").stdout)
    return dict(result)


def build_of(adapt: Adapt) -> Installed:
    return find_installed(adapt.library, AdapterSpec.parse("a"))[0]


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_no_verdict_outlives_a_changed_file_of_its_base(own: Adapt, change: Callable[[Path], None]) -> None:
    before = result_of(own)
    change(own.folder / "base")
    after = result_of(own)

    assert (after["is_cached"], after["base_state"] == before["base_state"]) == (False, False)
    tried = json.loads(own(*TRY, "--json").stdout)["results"]
    assert tried
    assert [one["name"] for one in tried if one["tried"]["is_cached"]] == []


def test_a_changed_config_is_seen_by_every_command_that_tests(own: Adapt) -> None:
    own.ok("contract", "policy", "require")
    work_of(own).ok("sync", "--frozen")
    assert "tested today: PASS on base-7b" in own.ok("info", "a")
    SETTINGS["the norm"](own.folder / "base")

    assert "tested today, before its base changed: PASS on base-7b" in own.ok("info", "a")
    assert "has no PASS on this base" in work_of(own).fails(14, "sync", "--frozen")
    assert own("test", "a").exit_code == 3
    assert own("test", "--all", "--require").exit_code == 3
    assert work_of(own)("sync", "--test").exit_code == 3
    assert work_of(own)("sync", "--frozen", "--check", "--test").exit_code == 3
    own.ok("remove", "a==1.0.1", "--yes")
    assert own("install", "a@base-7b==1.0.1", "--from", "./published", "--test").exit_code == 3


def test_what_is_signed_is_the_verdict_on_the_files_that_are_there(own: Adapt) -> None:
    SETTINGS["the norm"](own.folder / "base")
    own("test", "a", "--sign")

    [result] = own.json("contract", "results", "a")[0]["results"]
    assert result["verdict"] == "CHANGED"


def test_weights_that_are_not_the_registered_ones_are_refused_as_fuse_refuses_them(own: Adapt) -> None:
    one_weight(own.folder / "base")
    said = own.fails(11, "fuse", "a", "-o", "fused").splitlines()[0]

    assert "was registered with" in said
    for words in (("test", "a"), ("test", "a", "--again", "--sign"), RECORD, TRY):
        assert said in own.fails(11, *words), words
    assert own("test", "--all", "--require").exit_code == 17
    assert said.removeprefix("error: ") in work_of(own)("sync", "--test").stderr
    assert work_of(own)("sync", "--frozen", "--check", "--test").exit_code == 17
    own.ok("contract", "policy", "require")
    assert said.removeprefix("error: ") in work_of(own).fails(14, "sync")
    own.ok("remove", "a==1.0.1", "--yes")
    assert said in own.fails(11, "install", "a@base-7b==1.0.1", "--from", "./published", "--test")
    assert own.json("contract", "results", "a")[0]["results"] == []


def test_a_base_that_changes_during_a_test_gives_no_verdict(own: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.inference.contracts import checking

    real = checking.check

    def changing(*given: object, **named: object) -> object:
        found = real(*given, **named)  # type: ignore[arg-type]
        SETTINGS["the writing"](own.folder / "base")
        return found

    monkeypatch.setattr(checking, "check", changing)

    assert "changed while `a 1.0.1` was tested" in own.fails(17, "test", "a", "--again")


def test_a_damaged_build_has_no_kept_losses(own: Adapt) -> None:
    path = build_of(own).folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    found = own.json(*TRY)

    assert "a" not in [one["name"] for one in found["results"] if one["digest"] == build_of(own).manifest.digest]


def test_results_are_ordered_by_their_number_and_not_by_the_clock(own: Adapt) -> None:
    digest = build_of(own).manifest.digest
    result_of(own, "--bound", "same=1", "--again")
    result_of(own, "--again")
    folder = own.folder / "home" / "cache" / "tests" / digest.removeprefix("sha256:")
    for at, path in enumerate(sorted(folder.glob("*.json"))):
        os.utime(path, (at, at))
    kept = KeptResults(own.library.store).all(digest)

    assert [one.result.bounds["same"] for one in kept] == [1.0, 0.9]
    assert [one.sequence for one in kept] == sorted({one.sequence for one in kept})
