"""What lies beside a signature that does not cover it: named, and refused where signatures are required."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.trust.signing.appraisal import OF_GIT, provenance_of, unsigned_beside
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """A home that trusts `ana`, beside the folder `got` with an adapter that she signed."""
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "b")
    adapt.ok("key", "new", "ana", "--unencrypted")
    adapt.ok("add", "./made", "--name", "n", "--base", "b")
    adapt.ok("key", "sign", "n", "--key", "ana")
    adapt.ok("pull", "n", "./got")
    (tmp_path / "ana.pub").write_text(adapt.ok("key", "show", "ana"))
    adapt.ok("key", "trust", "ana", "ana.pub")
    assert "signed by `ana`" in adapt.ok("verify", "./got", "--base", "b", "--strict")
    return adapt


def leave(folder: Path) -> None:
    """As a clone and a download leave it."""
    for name in (".git", ".github", ".cache"):
        (folder / name).mkdir()
        (folder / name / "payload").write_text("x")
    for name in (".gitattributes", ".gitignore"):
        (folder / name).write_text("x")


def codes(adapt: Adapt, *arguments: object) -> tuple[int, list[str]]:
    done = adapt("verify", *arguments, "--base", "b", "--json")
    return done.exit_code, [f["code"] for f in json.loads(done.stdout)[0]["findings"] if "NOT_SIGNED" in f["code"]]


def test_what_is_not_signed_is_named(adapt: Adapt) -> None:
    leave(adapt.folder / "got")

    said = adapt.ok("verify", "./got", "--base", "b")

    assert [name for name in OF_GIT if name not in said] == []
    assert codes(adapt, "./got") == (0, ["W_NOT_SIGNED"])


def test_strict_refuses_it(adapt: Adapt) -> None:
    leave(adapt.folder / "got")

    assert codes(adapt, "./got", "--strict") == (3, ["E_NOT_SIGNED"])


def test_a_policy_that_requires_signatures_refuses_it(adapt: Adapt) -> None:
    leave(adapt.folder / "got")
    adapt.ok("key", "policy", "require")

    assert codes(adapt, "./got") == (3, ["E_NOT_SIGNED"])


def test_it_is_refused_in_an_installed_build_too(adapt: Adapt) -> None:
    build = next(adapt.library.installed())
    (build.folder / ".cache").mkdir()

    assert codes(adapt, "n") == (0, ["W_NOT_SIGNED"])
    assert codes(adapt, "n", "--strict") == (3, ["E_NOT_SIGNED"])


def test_a_folder_without_a_signature_is_not_spoken_of(adapt: Adapt) -> None:
    leave(adapt.folder / "made")

    assert codes(adapt, "./made", "--strict") == (0, [])
    assert unsigned_beside(provenance_of(adapt.folder / "made")) == ()
