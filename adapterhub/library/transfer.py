"""Moving one build between two places: the ends and the one `copy` that install, push and mirror share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Protocol

from adapterhub.core.digests import Progress
from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.core.limits import limits
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, FileEntry
from adapterhub.formats.release import Provenance, Release


class Source(Protocol):
    """A place that builds come from."""

    @property
    def label(self) -> str:
        """The place in words, for messages."""

    @property
    def place(self) -> str:
        """A URL or an absolute path by which it can be found again."""

    def releases(self, spec: AdapterSpec) -> Sequence[Release]:
        """Every build by the name in `spec` (its base, versions and rank are not looked at)."""

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """The bytes of one file of a build."""

    def provenance(self, release: Release) -> Provenance:
        """The signature of a build that `releases` gave, and what lies beside it."""


class Receiver(Protocol):
    """One build on its way in; nobody sees it before `publish`."""

    def has(self, entry: FileEntry) -> bool:
        """Whether the bytes are there already and need not be sent."""

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Take one file; refused with `DigestMismatch` unless the bytes are those of `entry`."""

    def sign(self, signature: bytes) -> bool:
        """Take the signature that stands beside the files, after them; whether it is another than is there already."""

    def publish(self) -> None:
        """Make the build visible, all at once."""


class Destination(Protocol):
    """A place that builds go to."""

    @property
    def label(self) -> str:
        """The place in words, for messages."""

    def receive(self, release: Release) -> AbstractContextManager[Receiver]:
        """Begin to take a build; leaving the block without `publish` leaves the place as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy moved: files and bytes sent, files that were there already, and whether a signature was sent."""

    sent_files: int
    sent_bytes: int
    present_files: int
    sent_signature: bool = False


def check_sizes(release: Release) -> None:
    """Refuse a build whose manifest announces more than an adapter may have, before a byte of it is asked for.

    Raises:
        RefusedAdapter: with every file that is too large.
    """
    most = limits()
    bounds = {WEIGHTS_FILE: most.file_bytes, CONFIG_FILE: most.config_bytes}
    found = [
        ("E_LIMIT", f"{entry.path}: holds {entry.size_bytes} bytes, expected at most {bound}")
        for entry in release.manifest.files
        if entry.size_bytes > (bound := bounds.get(entry.path, most.text_bytes))
    ]
    if found:
        raise RefusedAdapter(f"refused `{shown(release.origin, 200)}`. Nothing was stored", found)


def copy(
    release: Release,
    source: Source,
    destination: Destination,
    progress: Progress | None = None,
    *,
    signature: bytes | None = None,
) -> Copied:
    """Bring one build from `source` to `destination`: blobs first, then the manifest with the release.

    Each stream is hashed against its entry by the receiver; right length with wrong bytes is refused.
    An interrupted copy never shows half a release. `signature` is passed on as it is; whoever calls has judged it.
    """
    sent_files = sent_bytes = present = 0
    check_sizes(release)
    with destination.receive(release) as receiver:
        for entry in release.manifest.files:
            if receiver.has(entry):
                present += 1
                continue
            with source.open(release, entry) as stream:
                receiver.put(entry, stream, progress)
            sent_files += 1
            sent_bytes += entry.size_bytes
        is_signed_anew = signature is not None and receiver.sign(signature)
        receiver.publish()
    return Copied(sent_files=sent_files, sent_bytes=sent_bytes, present_files=present, sent_signature=is_signed_anew)
