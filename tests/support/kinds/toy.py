"""A kind of remote that no part of adapterhub knows: shops at `toy://NAME`, each a directory that a test names.

Only this file makes it work; `test_kinds.py` shows it to adapterhub as one more file of `distribution/kinds/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Final

from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.kind import Kind, RemoteAccess
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.transfer import Source

SHOPS: Final[dict[str, Path]] = {}
"""The directory behind each address."""
OPENED: Final[list[tuple[str, str | None]]] = []
"""Each address that was opened, with the token that it was opened with."""


class Shop:
    """A shop as a source; with `ticket` it has that one build."""

    def __init__(self, address: str, ticket: str | None = None) -> None:
        self.place, self.label, self.ticket = address, f"shop `{address}`", ticket
        self._inside = PublishedDirectory(SHOPS[address])

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """See `Source`."""
        found = self._inside.releases(spec)
        return [r for r in found if self.ticket is None or r.digest == self.ticket]

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """See `Source`."""
        return self._inside.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """See `Source`."""
        return self._inside.provenance(release)


class ToyKind(Kind):
    """See the module."""

    name = "toy"
    pin_keys = ("ticket",)

    def parse_address(self, text: str) -> str:
        """`toy://NAME`."""
        if not text.startswith("toy://"):
            raise UsageProblem(f"`{text}` is no shop: expected `toy://NAME`")
        return text

    def open(self, address: str, access: RemoteAccess) -> Source:
        """The shop."""
        OPENED.append((address, access.token))
        return Shop(address)

    def claims(self, place: str) -> bool:
        """Whether it is a shop."""
        return place.startswith("toy://")

    def pin(self, source: Source, release: Release) -> Mapping[str, str]:  # noqa: ARG002 - the protocol
        """The digest, on a ticket."""
        return {"ticket": release.digest}

    def pinned(self, source: Source, pin: Mapping[str, str], spec: AdapterSpec) -> Iterable[Source]:  # noqa: ARG002 - the protocol
        """What the ticket is for."""
        return [Shop(source.place, pin["ticket"])]

    def describe(self, address: str, pin: Mapping[str, str]) -> str:
        """`ticket sha256:0123 of toy://shop`."""
        return f"ticket {pin['ticket'][:11]} of {address}"


KIND: Final = ToyKind()
