"""Finds out which installed builds their servers have withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.admission.admission import Admission
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.origins import address_in
from adapterhub.library.transfer import Source

_SERVERS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A build that this library has from a server; `repository` is "" where it is not known."""

    digest: Digest
    spec: AdapterSpec
    place: str
    repository: str = ""

    @property
    def address(self) -> str:
        """Whose word on the build counts."""
        return address_in(self.place, self.repository)


FindSource = Callable[[str], "Source | None"]
"""Returns the server at a URL; None if it may not be asked. It may raise."""


def withdrawn_builds(
    library: Library, builds: Iterable[Installed], find_source: FindSource | None
) -> dict[Digest, str]:
    """The same as `withdrawn`, for installed builds; those that came from no server are passed over."""
    here = []
    for build in builds:
        origin = library.origins.under(build.manifest.digest, build.full_name)
        if origin is not None and origin.is_server:
            spec = AdapterSpec.parse(f"{build.full_name}=={build.manifest.version}")
            digest, repository = build.manifest.digest, origin.repository
            here.append(Here(digest=digest, spec=spec, place=origin.place, repository=repository))
    return withdrawn(library, here, find_source)


def why_withdrawn(library: Library, build: Installed, find_source: FindSource | None) -> str | None:
    """The reason for one installed build; None if it was not yanked."""
    return withdrawn_builds(library, [build], find_source).get(build.manifest.digest)


def withdrawn(
    library: Library,
    builds: Iterable[Here],
    find_source: FindSource | None,
    *,
    call: Callable[[str, Callable[[], None]], None] = lambda _, ask: ask(),
) -> dict[Digest, str]:
    """The reason of each of `builds` that its server has yanked, by its digest.

    Each server is asked once, and what it says is remembered. What it said last counts if it may not be asked, and if
    it does not answer within a few seconds. Only the server that a namespace belongs to has a say in it, and there
    only the repository that a build came from. `call` makes the requests to the server at a URL, or leaves them out by
    raising an `AdapterHubError`.
    """
    by_place: dict[str, list[Here]] = {}
    admission = Admission(library)
    for one in builds:
        if admission.may_offer(one.place, one.spec.namespace):
            by_place.setdefault(one.place, []).append(one)

    def ask(place: str) -> None:
        source = find_source(place) if find_source is not None else None
        if source is None:
            return
        from adapterhub.distribution.hub import Hub  # imports the Hub's client, for which nothing else here waits

        hub = getattr(source, "hub", source)
        if not isinstance(hub, Hub):
            return
        here = by_place[place]
        came_from = {one.digest: one.repository for one in here if one.repository}
        told = hub.hurried().yanked({one.digest: one.spec for one in here}, came_from)
        for one in here:
            library.yanks.note(one.digest, one.address, told.get(one.digest))

    def ask_quietly(place: str) -> None:
        try:
            call(place, lambda: ask(place))
        except AdapterHubError:  # not needed: what was seen before counts
            return

    if by_place and find_source is not None:
        with ThreadPoolExecutor(_SERVERS_AT_ONCE) as pool:
            list(pool.map(ask_quietly, by_place))
    found = {one.digest: library.yanks.reason(one.digest, one.address) for some in by_place.values() for one in some}
    return {digest: reason for digest, reason in found.items() if reason is not None}
