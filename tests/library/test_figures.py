"""The derived records of a library: made once, and made again when they are gone or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.core.errors import DigestMismatch
from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.passed import derived_record
from tests.support.tiny import make_adapter


def test_a_record_is_made_once_and_again_when_it_is_gone_or_damaged(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    added = library.add(make_adapter(tmp_path / "a"), Description(name=parse_name("a"), version="1.0")).build
    folder = added.folder

    first = derived_record(library.store, folder, added.manifest)

    [kept] = (tmp_path / "home" / "cache" / "derived").iterdir()
    written = kept.read_bytes()
    weights = folder / "adapter_model.safetensors"
    assert (first.weights, bool(first.modules), first.reason) == (added.manifest.digests[weights.name], True, "")
    for damage in (kept.unlink, lambda: kept.write_bytes(b"{"), lambda: kept.write_bytes(b'{"schema": "older"}')):
        damage()
        assert derived_record(library.store, folder, added.manifest) == first
        assert kept.read_bytes() == written
    kept.unlink()
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.unlink()
    weights.write_bytes(raw)
    with pytest.raises(DigestMismatch):
        derived_record(library.store, folder, added.manifest)
