"""Compares the bytes of every file with the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import DigestMismatch, MalformedManifest
from adapterhub.core.limits import limits
from adapterhub.formats.manifest import LIMIT_BYTES, MANIFEST_FILE, Manifest
from adapterhub.formats.safetensors.header import recognise
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject

if TYPE_CHECKING:
    from adapterhub.trust.verify.subject import Entry, FolderListing


def read_manifest_file(entry: Entry) -> Manifest:
    """Return the manifest in a taken file.

    Raises:
        MalformedManifest: every problem with its path.
    """
    try:
        held = entry.held
        raw = held.start(LIMIT_BYTES + 1) if held.size_bytes > LIMIT_BYTES else bytes(held.load())
    except OSError as error:
        raise MalformedManifest(MANIFEST_FILE, [f"cannot be read: {error.strerror}"]) from None
    kind = recognise(raw)
    if kind is not None:
        raise MalformedManifest(MANIFEST_FILE, [f"is not JSON but {kind.name}"], hint=kind.hint)
    return Manifest.parse(raw, MANIFEST_FILE)


def check(subject: Subject) -> Iterator[Finding]:
    """Missing files, and files that differ from the manifest; nothing without a manifest."""
    _ = subject.numbers  # so that the pass that hashes the weights reads the numbers too
    yield from differing(subject.listing, subject.manifest)


def differing(listing: FolderListing, manifest: Manifest | None) -> Iterator[Finding]:
    """As `check`, for a folder whose files may break their format."""
    for entry in manifest.files if manifest else ():
        if entry.path not in listing.taken:
            yield _error(entry.path, "is missing", entry.sha256)
            continue
        try:
            held = listing.taken[entry.path].held
            if held.size_bytes > limits().file_bytes:  # too large to hash, and known to differ
                yield _error(entry.path, f"holds {held.size_bytes} bytes", f"{entry.size_bytes} bytes")
                continue
            digest = held.digest
        except OSError as error:
            yield _error(entry.path, f"cannot be read: {error.strerror}", entry.sha256)
            continue
        if digest != entry.sha256:
            yield _error(entry.path, f"is {digest}", entry.sha256)
        elif held.size_bytes != entry.size_bytes:
            yield _error(entry.path, f"holds {held.size_bytes} bytes", f"{entry.size_bytes} bytes as the manifest says")


def ensure_undamaged(findings: Iterable[Finding], where: str) -> None:
    """Raise if a file differs from the manifest; `where` is the path before the file's name.

    Raises:
        DigestMismatch: names the first such file and both digests.
    """
    damaged = next((f for f in findings if f.code == "E_DIGEST"), None)
    if damaged is not None:
        actual = damaged.message.removeprefix("is ")
        raise DigestMismatch(f"{where}{damaged.where}", expected=damaged.expected, actual=actual, hint=damaged.hint)


def changed(error: DigestMismatch) -> Finding:
    """Return the finding for a file that changed during the checks."""
    return Finding(
        "E_DIGEST", PurePath(error.where).name, f"is {error.actual}", expected=error.expected, hint=error.hint
    )


def _error(where: str, message: str, expected: str) -> Finding:
    return Finding("E_DIGEST", where, message, expected=expected, hint=REPAIR_HINT)
