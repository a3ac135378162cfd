"""Signing a folder: every file is read again, and a signature is known for ours only where all of it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import DigestMismatch, SignatureRefused
from adapterhub.formats.manifest import CARD_FILE, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.signature import Bundle, Identity, read_statement, signed_files
from adapterhub.library.installed import Added
from adapterhub.library.intake.staging import signature_objects
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.keys import is_signed_by, sign_folder
from tests.support.signed_offers import ANN, BEN, release, signed


@pytest.fixture
def build(add: Callable[..., Added]) -> Installed:
    return add("legal-qa", namespace="acme").build


def replaced(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def test_what_is_signed_is_the_build_with_its_card(build: Installed) -> None:
    replaced(build.folder / CARD_FILE, b"card")
    read: list[int] = []

    raw = sign_folder(build.folder, build.manifest, "acme", ANN, read.append)

    statement = read_statement(Bundle.parse(raw).payload)
    assert dict(statement.files) == signed_files(build.manifest, digest_of(b"card"))
    assert statement.identity == Identity.of(build.manifest, "acme")
    assert sum(read) == build.manifest.size_bytes + len(build.manifest.to_bytes())
    (build.folder / CARD_FILE).unlink()
    (build.folder / CARD_FILE).symlink_to(WEIGHTS_FILE)
    raw = sign_folder(build.folder, build.manifest, "acme", ANN)
    assert CARD_FILE not in read_statement(Bundle.parse(raw).payload).files


def test_a_file_that_is_not_that_of_the_manifest_is_not_signed(build: Installed) -> None:
    path = build.folder / WEIGHTS_FILE
    replaced(path, b"other")
    with pytest.raises(DigestMismatch) as told:
        sign_folder(build.folder, build.manifest, "acme", ANN)
    assert (told.value.where, told.value.expected) == (str(path), build.manifest.digests[WEIGHTS_FILE])
    assert told.value.actual == digest_of(b"other")
    assert told.value.hint == "nothing was signed; `adapt doctor --repair` fetches the file again where it can"
    path.unlink()
    with pytest.raises(DigestMismatch) as told:
        sign_folder(build.folder, build.manifest, "acme", ANN)
    assert (told.value.where, told.value.actual) == (str(path), "No such file or directory")


def test_a_signature_is_ours_only_for_this_build_name_and_key() -> None:
    offered = release()
    raw = signed(offered).signature
    manifest = offered.manifest

    assert is_signed_by(raw, manifest, "acme", ANN.public) is True
    assert is_signed_by(None, manifest, "acme", ANN.public) is False
    assert is_signed_by(b"{}", manifest, "acme", ANN.public) is False
    assert is_signed_by(raw, manifest, "beta", ANN.public) is False
    assert is_signed_by(raw, manifest, "acme", BEN.public) is False
    assert is_signed_by(raw, release("2.0.0").manifest, "acme", ANN.public) is False
    assert raw is not None
    bundle = Bundle.parse(raw)
    forged = Bundle(hint=bundle.hint, payload=bundle.payload, signature=BEN.sign(b"x")).to_bytes()
    assert is_signed_by(forged, manifest, "acme", ANN.public) is False


def test_the_signature_of_a_folder_is_an_object_to_keep(tmp_path: Path) -> None:
    assert signature_objects(tmp_path) == []
    (tmp_path / SIGNATURE_FILE).write_bytes(b"raw")
    assert signature_objects(tmp_path) == [digest_of(b"raw")]
    replaced(tmp_path / SIGNATURE_FILE, b"")
    (tmp_path / SIGNATURE_FILE).unlink()
    (tmp_path / SIGNATURE_FILE).symlink_to("nowhere")
    with pytest.raises(SignatureRefused) as told:
        signature_objects(tmp_path)
    assert (told.value.reason, told.value.clause) == ("broken", "it is a link")
    assert told.value.what.endswith(f"{SIGNATURE_FILE}`")
    assert (
        told.value.hint
        == "`adapt doctor --repair` moves it to quarantine, and fetches the signature again where it can"
    )
