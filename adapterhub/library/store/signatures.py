"""`model.sig` in the store: a blob like other files, linked into the folder of the build that it signs.

The manifest does not list it, because the signature covers the manifest. Its folder protects it from a sweep.
"""

from __future__ import annotations

import os
from pathlib import Path

from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.disk.files import sync_folder, write_file
from adapterhub.core.disk.real_folder import make_folder
from adapterhub.core.errors import SignatureRefused
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.library.store.blobs import Store
from adapterhub.trust.signing.appraisal import read_signature


def signature_objects(folder: Path) -> list[Digest]:
    """The digest of the signature in a folder, if there is one: an object to keep.

    Raises:
        SignatureRefused: `model.sig` is not a signature file.
    """
    path = folder / SIGNATURE_FILE
    try:
        raw = read_signature(path) if os.path.lexists(path) else None
    except SignatureRefused as error:
        hint = "`adapt doctor --repair` moves it to quarantine, and fetches the signature again where it can"
        raise SignatureRefused(error.what, error.clause, reason=error.reason, hint=hint) from None
    return [] if raw is None else [digest_of(raw)]


def link_signature(store: Store, staged: Path, view: Path) -> None:
    """Link the signature staged in one folder, if there is one, into another."""
    for digest in signature_objects(staged):
        store.adopt(staged / SIGNATURE_FILE, digest)
        store.link(digest, view / SIGNATURE_FILE)


def attach_signature(store: Store, folder: Path, raw: bytes) -> None:
    """Give an installed build this signature; at any moment it has the old or the new one."""
    with store.intent("sign") as intent:
        intent.need([digest_of(raw)])
        with store.os_errors_as_refusals():
            write_file(intent.folder / SIGNATURE_FILE, raw)
            view = intent.folder / "view"
            make_folder(view)
        link_signature(store, intent.folder, view)
        with store.lock("publish", exclusive=True), store.os_errors_as_refusals():
            (view / SIGNATURE_FILE).replace(folder / SIGNATURE_FILE)
            sync_folder(folder)
