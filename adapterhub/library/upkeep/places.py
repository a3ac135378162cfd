"""The places from which a lost object may be fetched: the recorded origin of a build, then the sources of this run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from adapterhub.library.transfer import Source

T = TypeVar("T")

FindSource = Callable[[Origin], Source]
"""Opens the place of an origin as a source; it may raise any `AdapterHubError`."""


class Places:
    """The places for the builds of one library."""

    def __init__(self, library: Library, find_source: FindSource, sources: Sequence[Source]) -> None:
        self._origins, self._find_source, self._sources = library.origins, find_source, sources

    def first_with(
        self, take: Callable[[Source, AdapterSpec], T | None], build: Digest, name: str = ""
    ) -> tuple[T | None, str]:
        """The first result of `take` that is not empty, and its place; else None, and why each place has nothing."""
        reasons = []
        for label, place, spec in self._of(build, name):
            try:
                found = take(self._open(place), spec)
            except AdapterHubError as error:
                reasons.append(f"{label}: {error.message.splitlines()[0]}")
                continue
            if found:
                return found, f"from {label}"
            reasons.append(f"{label}: does not have it")
        return None, "; ".join(reasons) or "no known place has it"

    def _of(self, build: Digest, name: str) -> Iterator[tuple[str, Origin | Source, AdapterSpec]]:
        origin = self._origins.of(build)
        with contextlib.suppress(AdapterHubError):
            if origin is not None:
                yield f"`{origin.place}`", origin, AdapterSpec.parse(origin.name)
        name = origin.name if origin is not None else name
        if name:
            for source in self._sources:
                yield source.label, source, AdapterSpec.parse(name)

    def _open(self, place: Origin | Source) -> Source:
        if not isinstance(place, Origin):
            return place
        if not place.is_server and not Path(place.place).exists():
            raise AdapterNotFound("does not exist any more")
        return self._find_source(place)
