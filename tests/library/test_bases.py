from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.errors import BaseNotFound, Conflict, Malformed, SpecError, UsageProblem
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.library.bases.records import BaseRecord, Bases

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_base(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A settled folder with a model of two small matrices."""
    folder.mkdir(parents=True)
    numbers = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(8, 8, generator=numbers).to(dtype) for name in ("model.a.weight", "model.b.weight")}
    save_file(tensors, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (1_600_000_000, 1_600_000_000))
    return folder


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(tmp_path / "home" / "bases", tmp_path / "home" / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "Tiny_Base 7B")


def test_an_added_base_is_found_by_every_name(bases: Bases, folder: Path) -> None:
    added = bases.add(folder, hub_id="acme/Tiny-7B", commit=COMMIT)

    assert added.alias == "tiny-7b"
    for name in ("tiny-7b", "acme/Tiny-7B", "ACME/tiny-7b", added.fingerprint.weights, added.fingerprint.weights[:15]):
        assert bases.find(name) == added, name
    link = folder.parent / "link"
    link.symlink_to(folder)
    for place in (folder, link):
        assert bases.find(BaseSpec(kind="path", text=str(place))) == added
    assert bases.list() == (added,)


def test_records_survive_their_file(bases: Bases, folder: Path) -> None:
    added = bases.add(folder, "base-7b", hub_id="acme/tiny", commit=COMMIT)

    again = Bases(bases.folder, None).get("base-7b")

    assert again == added
    assert [fact.name for fact in again.tensors] == ["model.a.weight", "model.b.weight"]
    assert again.path == folder
    assert BaseRecord.parse(added.to_bytes(), "x") == added


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("Tiny_Base 7B", "tiny_base-7b"),
        ("Llama-2-7b-hf", "llama-2-7b-hf"),
        ("--Qwen2.5..x", "qwen2.5.x"),
        ("modèle", "mod-le"),
        ("7b", "7b"),
    ],
)
def test_the_default_alias_comes_from_the_folder(bases: Bases, tmp_path: Path, name: str, alias: str) -> None:
    assert bases.add(write_base(tmp_path / name)).alias == alias


@pytest.mark.parametrize("name", ["main", "1.0", COMMIT, "con", "模型"])
def test_a_folder_name_that_reads_as_something_else_needs_an_alias(bases: Bases, tmp_path: Path, name: str) -> None:
    folder = write_base(tmp_path / name)

    with pytest.raises(SpecError, match="no name of a base can be made") as caught:
        bases.add(folder)
    assert caught.value.hint == f"`adapt base add {folder} --as NAME` gives it one"
    assert bases.add(folder, "mine").alias == "mine"


@pytest.mark.parametrize("alias", ["", "a/b", "./x", "a b", "sha256:12345678", "../up", ".hidden"])
def test_an_alias_that_is_none_is_refused(bases: Bases, folder: Path, alias: str) -> None:
    with pytest.raises(SpecError):
        bases.add(folder, alias)
    assert bases.list() == ()


def test_a_snapshot_of_a_hub_cache_is_named_after_its_repository(bases: Bases, tmp_path: Path) -> None:
    snapshot = write_base(tmp_path / "models--acme--Tiny-7B" / "snapshots" / COMMIT)

    record = bases.add(snapshot)

    assert (record.alias, record.hub, record.hints.commit) == ("tiny-7b", "acme/Tiny-7B", COMMIT)


def test_adding_the_same_again_changes_nothing(bases: Bases, folder: Path) -> None:
    first = bases.add(folder, "mine")

    assert bases.add(folder) == first
    assert bases.add(folder, "mine") == first
    assert bases.aliases() == ("mine",)


def test_a_moved_folder_is_followed(bases: Bases, folder: Path, tmp_path: Path) -> None:
    bases.add(folder, "mine")
    moved = folder.rename(tmp_path / "moved")

    bases.add(moved, "mine")

    assert bases.get("mine").path == moved


def test_an_alias_never_changes_its_weights(bases: Bases, folder: Path, tmp_path: Path) -> None:
    first = bases.add(folder, "mine")
    other = write_base(tmp_path / "other", seed=1)

    with pytest.raises(Conflict) as caught:
        bases.add(other, "mine")

    assert first.fingerprint.weights in caught.value.message
    assert bases.look(other).fingerprint.weights in caught.value.message
    assert f"`adapt base add {other} --as NAME`" in caught.value.hint
    assert bases.list() == (first,)


def test_aliases_that_differ_only_in_case_are_refused(bases: Bases, folder: Path) -> None:
    bases.add(folder, "mine")

    with pytest.raises(Conflict, match="differs only in case"):
        bases.add(folder, "Mine")


def test_a_hub_id_or_digest_of_two_bases_lists_them(bases: Bases, folder: Path, tmp_path: Path) -> None:
    old = bases.add(folder, "old", hub_id="acme/tiny")
    new = bases.add(write_base(tmp_path / "new", seed=1), "new", hub_id="acme/tiny")

    with pytest.raises(UsageProblem, match=r"names 2 bases: `new` .*, `old`"):
        bases.find("acme/tiny")
    assert bases.find(old.fingerprint.weights[:15]) == old
    assert bases.find(new.fingerprint.weights[:15]) == new


def test_two_aliases_of_one_base_are_not_ambiguous(bases: Bases, folder: Path) -> None:
    first = bases.add(folder, "a", hub_id="acme/tiny")
    bases.add(folder, "b", hub_id="acme/tiny")

    assert bases.find("acme/tiny") == first


def test_a_folder_is_looked_at_without_registering_it(
    bases: Bases, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    seen = bases.find(".")

    assert (seen.alias, seen.path, seen.label) == ("", folder, str(folder))
    assert bases.list() == ()


def test_a_registered_folder_with_new_weights_is_told_as_what_it_is_now(bases: Bases, folder: Path) -> None:
    before = bases.add(folder, "mine")
    shutil.rmtree(folder)
    write_base(folder, seed=1)

    now = bases.find(str(folder))

    assert now.alias == ""
    assert compare(before.fingerprint, now.fingerprint).verdict is BaseVerdict.SAME_SHAPES
    assert bases.get("mine") == before


def test_a_fingerprint_finds_the_base_that_fits_best(bases: Bases, folder: Path, tmp_path: Path) -> None:
    whole = bases.add(folder, "z-whole")
    half = bases.add(write_base(tmp_path / "half", dtype=torch.bfloat16), "a-half")
    quarter = bases.look(write_base(tmp_path / "quarter", dtype=torch.float16))
    other = bases.look(write_base(tmp_path / "other", seed=1))

    assert bases.by_fingerprint(whole.fingerprint) == whole
    assert bases.by_fingerprint(half.fingerprint) == half
    assert bases.by_fingerprint(quarter.fingerprint) == half
    assert bases.by_fingerprint(other.fingerprint) is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("base-7", "did you mean `base-7b`? `adapt base list` lists all"),
        ("acme/Base-7B", "did you mean `base-7b`? `adapt base list` lists all"),
        ("sha256:00000000", "`adapt base add PATH` registers one; `adapt base list` lists all"),
        ("some-folder", "a folder is written `./some-folder`"),
    ],
)
def test_an_unknown_base_is_answered_with_what_may_be_meant(
    bases: Bases, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hint: str
) -> None:
    bases.add(folder, "base-7b")
    (tmp_path / "some-folder").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(BaseNotFound, match="no base") as caught:
        bases.find(text)
    assert caught.value.hint == hint


def test_removing_forgets_the_base_and_leaves_the_folder(bases: Bases, folder: Path) -> None:
    bases.add(folder, "mine")

    bases.remove("mine")

    assert bases.list() == ()
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(BaseNotFound):
        bases.remove("mine")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"", "not JSON"),
        (lambda raw: raw[:-9], "not JSON"),
        (lambda _: b"[]", "schema: expected adapterhub/base/1"),
        (lambda raw: raw.replace(b"base/1", b"base/9"), "schema: expected adapterhub/base/1"),
        (lambda raw: raw.replace(b'"hints"', b'"hint"'), "hints: missing"),
        (lambda raw: raw.replace(b'"F32"', b'"f33"'), r"tensors\[0\]: dtype f33"),
        (lambda raw: raw.replace(b'"alias":"mine"', b'"alias":"yours"'), "holds the base `yours`, expected `mine`"),
        (lambda raw: raw.replace(b'"hub":null', b'"hub":3'), "hub: expected text, got 3"),
    ],
)
def test_a_damaged_record_is_refused_by_file_name_and_can_be_removed(
    bases: Bases, folder: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    bases.add(folder, "mine")
    path = bases.folder / "mine.json"
    path.write_bytes(damage(path.read_bytes()))

    for read in (lambda: bases.get("mine"), bases.list, lambda: bases.find("acme/x")):
        with pytest.raises(Malformed, match=message) as caught:
            read()
        assert str(path) in caught.value.message

    bases.remove("mine")
    assert bases.list() == ()


def test_an_interrupted_write_leaves_no_base(bases: Bases, folder: Path) -> None:
    bases.add(folder, "mine")
    (bases.folder / ".other.json.123-abcd").write_bytes(b"{")

    assert bases.aliases() == ("mine",)


def test_of_many_writers_of_one_alias_one_wins_and_the_others_are_told(bases: Bases, tmp_path: Path) -> None:
    folders = [write_base(tmp_path / f"model-{seed}", seed) for seed in range(8)]
    refused: list[Conflict] = []

    def add(folder: Path) -> None:
        try:
            bases.add(folder, "mine")
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=add, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(refused) == 7
    assert bases.get("mine").path in folders
