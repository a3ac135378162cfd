"""Moving one build between two places: the ends and the one `copy` that install, push and mirror share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Protocol

from adapterhub.digests import Digest, Progress
from adapterhub.manifest import FileEntry, Manifest
from adapterhub.specs import AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One build that a place offers. `origin` is where it came from, in words; `yanked` is the reason, or None."""

    manifest: Manifest
    namespace: str | None
    origin: str
    yanked: str | None = None

    @property
    def digest(self) -> Digest:
        """Identity of the build."""
        return self.manifest.digest

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.manifest.name}" if self.namespace else self.manifest.name


class Source(Protocol):
    """A place that builds come from."""

    @property
    def label(self) -> str:
        """The place in words, for messages."""

    def releases(self, spec: AdapterSpec) -> Sequence[Release]:
        """Every build by the name in `spec` (its base, versions and rank are not looked at)."""

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """The bytes of one file of a build."""


class Receiver(Protocol):
    """One build on its way in; nobody sees it before `publish`."""

    def has(self, entry: FileEntry) -> bool:
        """Whether the bytes are there already and need not be sent."""

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Take one file; refused with `DigestMismatch` unless the bytes are those of `entry`."""

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
    """What a copy moved: files and bytes sent, files that were there already."""

    sent_files: int
    sent_bytes: int
    present_files: int


def copy(release: Release, source: Source, destination: Destination, progress: Progress | None = None) -> Copied:
    """Bring one build from `source` to `destination`: blobs first, then the manifest with the release.

    Each stream is hashed against its entry by the receiver; right length with wrong bytes is refused.
    An interrupted copy never shows half a release.
    """
    sent_files = sent_bytes = present = 0
    with destination.receive(release) as receiver:
        for entry in release.manifest.files:
            if receiver.has(entry):
                present += 1
                continue
            with source.open(release, entry) as stream:
                receiver.put(entry, stream, progress)
            sent_files += 1
            sent_bytes += entry.size_bytes
        receiver.publish()
    return Copied(sent_files=sent_files, sent_bytes=sent_bytes, present_files=present)


class Continued(io.RawIOBase):
    """`begun`, then what comes after as many bytes in `rest`."""

    def __init__(self, begun: IO[bytes], rest: IO[bytes]) -> None:
        super().__init__()
        self._begun, self._rest = begun, rest
        self._is_begun = True

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # io types it by a protocol that 3.10 lacks
        """Fill a part of `buffer`; 0 at the end."""
        if self._is_begun:
            data = self._begun.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._rest.seek(self._begun.tell())
            self._begun.close()
            self._is_begun = False
        data = self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
