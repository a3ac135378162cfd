"""The bytes of every file against the manifest's entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.errors import MalformedManifest
from adapterhub.manifest import LIMIT_BYTES, MANIFEST_FILE, Manifest
from adapterhub.verify._report import Finding
from adapterhub.verify._subject import Subject

if TYPE_CHECKING:
    from adapterhub.verify.files import Entry


def read_manifest_file(entry: Entry) -> Manifest:
    """The manifest in a taken file.

    Raises:
        MalformedManifest: every problem with its path.
    """
    try:
        with entry.open() as stream:
            raw = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise MalformedManifest(MANIFEST_FILE, [f"cannot be read: {error.strerror}"]) from None
    return Manifest.parse(raw, MANIFEST_FILE)


def check(subject: Subject) -> Iterator[Finding]:
    """Missing files, and files that are not what the manifest says. Without a manifest there is nothing to compare."""
    for entry in subject.manifest.files if subject.manifest else ():
        if entry.path not in subject.listing.taken:
            yield _error(entry.path, "is missing", entry.sha256)
            continue
        try:
            digest, size_bytes = subject.digest_of(entry.path)
        except OSError as error:
            yield _error(entry.path, f"cannot be read: {error.strerror}", entry.sha256)
            continue
        if digest != entry.sha256:
            yield _error(entry.path, f"is {digest}", entry.sha256)
        elif size_bytes != entry.size_bytes:
            yield _error(entry.path, f"holds {size_bytes} bytes", f"{entry.size_bytes} bytes as the manifest says")


def _error(where: str, message: str, expected: str) -> Finding:
    hint = "the file was changed or damaged; `adapt doctor --repair` fetches it again where it can"
    return Finding(code="E_DIGEST", severity="error", where=where, message=message, expected=expected, hint=hint)
