"""What a reader of the index may look up, and the index of an empty library."""

from __future__ import annotations

from typing import Protocol

from adapterhub.library.store.index import BaseRow, BuildRow, Filters


class IndexReader(Protocol):
    """The reading half of an index."""

    def search(self, filters: Filters) -> list[BuildRow]:
        """Builds that match every filter, by name, then newest first."""

    def names(self) -> list[str]:
        """Every full name, once."""

    def bases(self) -> list[BaseRow]:
        """Registered bases by alias."""

    def equivalents(self, weights: str) -> tuple[str, ...]:
        """Fingerprints that builds declare and that are the registered base `weights`, in any precision or layout."""

    def aliases(self) -> dict[str, str]:
        """Alias for every base fingerprint that is a registered base, in any precision or file layout."""

    def declared_bases(self) -> dict[str, str]:
        """Every base fingerprint that a build declares, with the digest of one such build."""

    def count(self) -> int:
        """How many builds are indexed."""


class EmptyIndex:
    """The index of a library without files: reading it makes none."""

    def search(self, filters: Filters) -> list[BuildRow]:  # noqa: ARG002 - as IndexReader
        """Nothing."""
        return []

    def names(self) -> list[str]:
        """Nothing."""
        return []

    def bases(self) -> list[BaseRow]:
        """Nothing."""
        return []

    def equivalents(self, weights: str) -> tuple[str, ...]:
        """Only the base itself."""
        return (weights,)

    def aliases(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def declared_bases(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def count(self) -> int:
        """None."""
        return 0
