"""What answers questions about installed builds: the index, or an empty one for a library without files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from adapterhub.library.store.index import Index
    from adapterhub.library.store.rows import BaseCount, BaseRow, BuildFacts, BuildRow, Filters, Hit, SketchRow


class EmptyIndex:
    """The index of a library without files: reading it makes none."""

    def search(self, filters: Filters) -> list[BuildRow]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def vectors_of(self, filters: Filters, model: str) -> list[tuple[int, bytes | None]]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def without_vectors(self, model: str) -> list[int]:  # noqa: ARG002 - as Index
        """None."""
        return []

    def numbered(self, numbers: Iterable[int]) -> dict[int, BuildRow]:  # noqa: ARG002 - as Index
        """Nothing."""
        return {}

    def find(self, filters: Filters) -> list[Hit]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def numbers(self, filters: Filters) -> list[int]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def some(self, filters: Filters) -> list[int]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def facts_of(self, numbers: Sequence[int]) -> list[BuildFacts]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def names(self) -> list[str]:
        """Nothing."""
        return []

    def of_digest(self, digest: str) -> BuildRow | None:  # noqa: ARG002 - as Index
        """None."""
        return None

    def children(self, digest: str) -> list[BuildRow]:  # noqa: ARG002 - as Index
        """None."""
        return []

    def newest_children(self, digest: str, of_name: int, most: int) -> tuple[list[BuildRow], int]:  # noqa: ARG002 - as Index
        """None."""
        return [], 0

    def parents(self) -> set[str]:
        """None."""
        return set()

    def parents_among(self, digests: Sequence[str]) -> set[str]:  # noqa: ARG002 - as Index
        """None."""
        return set()

    def per_base(self) -> list[BaseCount]:
        """No base."""
        return []

    def of_images(self, numbers: Sequence[int]) -> tuple[bool, bool]:  # noqa: ARG002 - as Index
        """None is."""
        return False, False

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

    def has_any(self, numbers: Sequence[int], named: Iterable[tuple[str, str]]) -> bool:  # noqa: ARG002 - as Index
        """None has."""
        return False

    def sketches(self, digests: Sequence[str] | None = None) -> list[SketchRow]:  # noqa: ARG002 - as Index
        """Nothing."""
        return []

    def count(self) -> int:
        """None."""
        return 0


def holds_nothing(root: Path) -> bool:
    """Whether the library under `root` has no index, no builds and no bases, so that an `EmptyIndex` answers for it."""
    if (root / "index.db").exists() or (root / "adapters").exists():
        return False
    return not any((root / "bases").glob("[!.]*.json"))


IndexReader: TypeAlias = "Index | EmptyIndex"
"""Either one; the methods that both have are those of a reader."""
