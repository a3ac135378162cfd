"""Makes upgrade requests for everything that a project has locked or a library has installed.

`outdated.offers` answers them. A project looks in its own places; a library looks where each build came from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.outdated import UpgradeRequest
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import BaseRef
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.directory import open_source
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source
from adapterhub.projects.file import not_in_project, objection_of
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.locking.choosing import base_choice, in_project
from adapterhub.projects.places import ANYWHERE, ProjectSources, Where
from adapterhub.projects.session import Session, sources_from
from adapterhub.projects.values import LockedAdapter, Project


def project_requests(
    session: Session,
    project: Project,
    specs: Sequence[AdapterSpec],
    where: Where = ANYWHERE,
) -> list[UpgradeRequest]:
    """One request for each locked adapter, or for those in `specs`, with the places of the project.

    Raises:
        NotFound: the project is not locked, or has no adapter of that name.
    """
    lock, library = read_lock(project.folder), session.library
    names = [str(spec) for spec in specs]
    known = {wanted.key for wanted in project.adapters}
    if unknown := [name for name in names if name not in known]:
        raise not_in_project(unknown[0], known)
    base = base_choice(library, project, lock, takes_new=False)
    objection = objection_of(project.policy, time.time())
    sources = ProjectSources(session, project, where)
    sources.settle(lock)
    found: list[UpgradeRequest] = []
    for wanted in project.adapters:
        entry = lock.entries.get(wanted.key)
        if (names and wanted.key not in names) or not isinstance(entry, LockedAdapter):
            continue
        own = wanted.spec.base
        judged = base.wanted if own is None else requested_base(in_project(own, project.folder), library.bases)
        found.append(
            UpgradeRequest(
                key=wanted.key,
                spec=wanted.spec,
                version=entry.version,
                digest=entry.digest,
                rank=entry.rank,
                wanted=judged,
                sources=lambda wanted=wanted: sources(wanted),  # type: ignore[misc]  # bound for this turn
                ranks=wanted.ranks,
                objection=objection,
            )
        )
    return found


def library_requests(
    session: Session,
    specs: Sequence[AdapterSpec],
    where: Where = ANYWHERE,
) -> list[UpgradeRequest]:
    """One request for the newest installed build of each name and base, with the places that may have it.

    Raises:
        AdapterNotFound: nothing of that name is installed.
    """
    library = session.library
    newest: dict[tuple[str, str], _Have] = {}
    here: dict[str, set[Digest]] = {}
    for have in _installed(library, specs):
        here.setdefault(have.name, set()).add(have.digest)
        key = have.name, have.base.fingerprint.weights if have.base.fingerprint else ""
        if key not in newest or Version(have.version) > Version(newest[key].version):
            newest[key] = have
    disk = sources_from(session, where.places)
    wanted = cache(partial(_base_of, library))
    return [
        UpgradeRequest(
            key=have.name,
            spec=AdapterSpec.parse(have.name),
            version=have.version,
            digest=have.digest,
            rank=have.rank,
            wanted=wanted(have.base.fingerprint),
            sources=_sources(session, library, have, disk, where),
            here=frozenset(here[have.name] - {have.digest}),
        )
        for have in sorted(newest.values(), key=lambda have: have.name)
        if not have.is_merge  # a local merge is not published
    ]


@dataclass(frozen=True, slots=True)
class _Have:
    """The facts about a build that an upgrade needs: a tenth of its manifest."""

    name: str
    version: str
    digest: Digest
    rank: int | None
    base: BaseRef
    is_merge: bool


def _installed(library: Library, specs: Sequence[AdapterSpec]) -> Iterator[_Have]:
    """Yield the installed builds, or those that `specs` name.

    Raises:
        AdapterNotFound: nothing of that name is installed.
    """
    bases: dict[str, BaseRef] = {}  # a hundred thousand builds have a few
    every = [library.installed()] if not specs else []
    for spec in specs:
        named = library.builds_named(spec.name, spec.namespace)
        if not named:
            raise library.not_installed(spec.full_name)
        every.append(iter(named))
    for build in chain.from_iterable(every):
        manifest, fingerprint = build.manifest, build.base.fingerprint
        base = bases.setdefault(fingerprint.weights, build.base) if fingerprint else BaseRef()
        yield _Have(
            build.full_name, manifest.version, manifest.digest, manifest.rank, base, is_merge=bool(manifest.recipe)
        )


def _base_of(library: Library, fingerprint: BaseFingerprint | None) -> RequestedBase | None:
    if fingerprint is None:
        return None
    record = library.bases.by_fingerprint(fingerprint)
    if record is not None:
        return RequestedBase(text=record.alias, record=record, bases=library.bases)
    return RequestedBase(text=fingerprint.weights, digest_prefix=fingerprint.weights)


def _sources(
    session: Session,
    library: Library,
    have: _Have,
    disk: Sequence[Source],
    where: Where,
) -> Callable[[], Sequence[Source]]:
    """Return a function that finds the sources of a build: its origin, or the places where its name is looked up."""

    def find() -> Sequence[Source]:
        origin = library.origins.of(have.digest)
        found: list[Source] = list(disk)
        if where.remote is None and origin is not None and not origin.is_server:
            with contextlib.suppress(AdapterHubError):
                found.append(open_source(Path(origin.place), plain=False))
        elif not where.offline:
            if where.remote is None and origin is not None:
                found.append(session.place_source(origin.place, token=where.token))
            else:
                found += session.sources_of(AdapterSpec.parse(have.name), where.remote, token=where.token)
        return list({(source.place, source.label): source for source in found}.values())

    return find
