"""Makes upgrade requests for everything that a project has locked or a library has installed.

`outdated.offers` answers them. A project looks in its own places; a library looks where each build came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, NotFound, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.outdated import UpgradeRequest
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.directory import PublishedDirectory, open_source
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.projects.file import objection_of
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.locking import base_choice, in_project
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
        raise NotFound(f"the project has no adapter `{shown(unknown[0])}`", hint="`adapt tree` shows what is locked")
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
    newest: dict[tuple[str, str], Installed] = {}
    here: dict[str, set[Digest]] = {}
    for build in library.installed():
        if specs and not any(_is_named(build, spec) for spec in specs):
            continue
        here.setdefault(build.full_name, set()).add(build.manifest.digest)
        fingerprint = build.base.fingerprint
        key = build.full_name, fingerprint.weights if fingerprint else ""
        if key not in newest or Version(build.manifest.version) > Version(newest[key].manifest.version):
            newest[key] = build
    for spec in specs:
        if not any(_is_named(build, spec) for build in newest.values()):
            raise library.not_installed(spec.full_name)
    disk = sources_from(session, where.places)
    # a local merge is not published
    builds = [build for build in newest.values() if not build.manifest.recipe]
    return [
        UpgradeRequest(
            key=build.full_name,
            spec=AdapterSpec.parse(build.full_name),
            version=build.manifest.version,
            digest=build.manifest.digest,
            rank=build.manifest.rank,
            wanted=_base_of(library, build),
            sources=_sources(session, library, build, disk, where),
            here=frozenset(here[build.full_name] - {build.manifest.digest}),
        )
        for build in sorted(builds, key=lambda b: b.full_name)
    ]


def _is_named(build: Installed, spec: AdapterSpec) -> bool:
    return build.manifest.name == spec.name and spec.namespace in (None, build.namespace)


def _base_of(library: Library, build: Installed) -> RequestedBase | None:
    fingerprint = build.base.fingerprint
    if fingerprint is None:
        return None
    record = library.bases.by_fingerprint(fingerprint)
    if record is not None:
        return RequestedBase(text=record.alias, record=record)
    return RequestedBase(text=fingerprint.weights, digest_prefix=fingerprint.weights)


def _sources(
    session: Session,
    library: Library,
    build: Installed,
    disk: Sequence[Source],
    where: Where,
) -> Callable[[], Sequence[Source]]:
    """Where a build came from, else the places where its name is looked up."""

    def find() -> Sequence[Source]:
        origin = library.origins.of(build.manifest.digest)
        found: list[Source] = list(disk)
        if where.remote is None and origin is not None and not origin.is_server:
            try:
                place = open_source(Path(origin.place))
            except AdapterHubError:
                place = None
            if isinstance(place, PublishedDirectory | Library):
                found.append(place)
        elif not where.offline:
            if where.remote is None and origin is not None:
                found.append(session.place_source(origin.place, token=where.token))
            else:
                found += session.sources_of(AdapterSpec.parse(build.full_name), where.remote, token=where.token)
        return list({(source.place, source.label): source for source in found}.values())

    return find
