"""Signed statements of how builds were made, which lie beside them and come in with them.

    made/<64 hex of the manifest>/<64 hex of the file>.json    in a library

A published directory has them in `.made/`, beside the folder of the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import SignatureRefused
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.signed_files import SignedFiles
from adapterhub.trust.signing.results import SignedStatement, read_made
from adapterhub.trust.signing.trust import TrustFile, clock

if TYPE_CHECKING:
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Source

MOST: Final = 20
"""Statements on one build that a library takes."""


def files_in(store: Store, manifest: Digest) -> SignedFiles:
    """Those of a library on one manifest."""
    return SignedFiles(store.root / "made", manifest, store, limit_bytes=SIGNATURE_LIMIT_BYTES)


def files_beside(build: Path, manifest: Digest) -> SignedFiles:
    """Those beside the folder of a published build."""
    return SignedFiles(build.parent / ".made", manifest, limit_bytes=SIGNATURE_LIMIT_BYTES)


def statements_of(library: Library, build: Installed) -> tuple[list[SignedStatement], list[str]]:
    """Return the statements that a library has on a build, each verified now, and why others do not count.

    Raises:
        NotAllowed, Malformed: the file of the trusted keys cannot be used.
    """
    trust = TrustFile(library.root).read()
    place = library.origins.place_of(build.manifest.digest, build.full_name)
    found, refusals = [], []
    for raw in files_in(library.store, build.manifest.digest).read():
        try:
            found.append(
                read_made(raw, trust, full_name=build.full_name, manifest=build.manifest, places=[place], now=clock())
            )
        except SignatureRefused as error:
            refusals.append(error.clause)
    return found, refusals


def statements_at(source: Source, release: Release) -> Sequence[bytes]:
    """Return the statements that a place offers on a release, unverified; none if its kind has no room for them."""
    if isinstance(store := getattr(source, "store", None), Store):  # another library
        return files_in(store, release.digest).read()
    read = getattr(source, "statements", None)
    found: Sequence[bytes] = read(release) if read is not None and release.manifest.recipe else ()
    return found


def take_statements(library: Library, offered: Sequence[bytes], build: Installed) -> int:
    """Keep at most `MOST` of the statements that a place offers on a build, none that is broken; how many are new."""
    if not offered:
        return 0
    files = files_in(library.store, build.manifest.digest)
    present, trust, count = files.read(), TrustFile(library.root).read(), 0
    for raw in offered[: max(0, MOST - len(present))]:
        try:
            read_made(raw, trust, full_name=build.full_name, manifest=build.manifest, now=clock())
        except SignatureRefused:
            continue
        if raw not in present:
            files.add(raw)
            count += 1
    return count
