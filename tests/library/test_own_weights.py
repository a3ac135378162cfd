"""Weights that the library writes itself are read once on their way into the store, and are what was checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.library.intake import staging
from adapterhub.trust.verify import subject
from tests.support.command_line import Adapt
from tests.support.foreign_files import kohya


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    kohya(tmp_path / "style.safetensors", every=20)
    return Adapt(tmp_path)


def test_one_pass_gives_digest_and_numbers(adapt, monkeypatch):
    passes, scan = [], subject.scan_weights
    monkeypatch.setattr(subject, "scan_weights", lambda held, *rest: passes.append(held) or scan(held, *rest))

    adapt.ok("add", "style.safetensors")

    (build,) = adapt.library.installed()
    (held,) = passes
    stored = hashlib.sha256((build.folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert held.digest == build.manifest.file(WEIGHTS_FILE).sha256 == f"sha256:{stored}"
    assert (build.folder / WEIGHTS_FILE).samefile(adapt.library.store.blob_path(held.digest))
    assert not list((adapt.library.root / "tmp").iterdir())
    raw = (adapt.folder / "style.safetensors").read_bytes()
    origin, start = build.manifest.annotations["origin"], 8 + int.from_bytes(raw[:8], "little")
    assert origin["sha256"] == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert origin["data_sha256"] == f"sha256:{hashlib.sha256(raw[start:]).hexdigest()}"


def test_weights_that_are_swapped_after_their_pass_are_not_stored(adapt, monkeypatch):
    stage = staging.stage_files

    def then_swapped(store, intent, *rest):
        entries = stage(store, intent, *rest)
        path = intent.folder / WEIGHTS_FILE
        raw = path.read_bytes()
        path.unlink()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        return entries

    monkeypatch.setattr(staging, "stage_files", then_swapped)

    assert f"[E_DIGEST] {WEIGHTS_FILE}" in adapt.fails(16, "add", "style.safetensors")
    assert not list(adapt.library.installed())
    assert not list((adapt.library.root / "tmp").iterdir())
    assert not list(adapt.library.root.glob("blobs/sha256/*/*"))
