"""`adapt outdated`: what has a newer release, and what was withdrawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import (
    SPEC,
    Session,
    common,
    places_option,
    project_option,
    remote_options,
    trust_option,
)
from adapterhub.core.errors import AdapterHubError, NotFound, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.outdated import Asked, Offer
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Source
    from adapterhub.projects.values import Project


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[NAME...]")
@click.option("--all", "show_all", is_flag=True, help="Show what is up to date, too.")
@click.option("--library", "is_library", is_flag=True, help="Look at the library, inside a project, too.")
@places_option()
@project_option
@trust_option
@remote_options
@common
def outdated(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    show_all: bool,
    is_library: bool,
    places: tuple[Path, ...],
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Show which adapters have a newer release, one line for each place that has them, and which were withdrawn.

    In a project: what is locked, what `adapt upgrade` would take (`allowed`), and the newest that fits the base. Else:
    what is installed, and the newest where it came from. Nothing is changed.

    \b
    Examples:
      adapt outdated
      adapt outdated legal-qa --all
    """
    from adapterhub.distribution.outdated import offers

    project = None if is_library else session.project
    if project is not None:
        asked = project_asked(session, project, specs, remote=remote, token=token, offline=offline, places=places)
    else:
        asked = library_asked(session, specs, remote=remote, token=token, offline=offline, places=places)
    with session.out.steps("ask", unit="adapters") as progress:
        found = offers(session.library, asked, progress)
    told = [offer for offer in found if show_all or offer.is_worth_telling]
    session.out.result([offer.to_json() for offer in told], lambda: _say(session, told, is_project=project is not None))
    _say_rest(session, asked, found)


def _say(session: Session, told: Sequence[Offer], *, is_project: bool) -> None:
    rows: list[tuple[object, ...]] = []
    for offer in told:
        allowed = (offer.allowed.version if offer.allowed else None,) if is_project else ()
        newest = offer.newest.version if offer.newest else None
        rows.append((offer.asked.key, offer.asked.version, *allowed, newest, offer.place, _note(offer)))
    had = ("locked", "allowed") if is_project else ("installed",)
    session.out.table(("name", *had, "newest", "place", "note"), rows)


def _note(offer: Offer) -> str:
    if offer.problem is not None:
        return shown(offer.problem.splitlines()[0], 200)
    if offer.yanked is not None:
        return f"yanked: {shown(offer.yanked or 'no reason given', 200)}"
    if offer.allowed is None:
        return "nothing here is allowed"
    return ""


def _say_rest(session: Session, asked: Sequence[Asked], found: Sequence[Offer]) -> None:
    """What no place had, and what to do."""
    seen = {id(offer.asked) for offer in found}
    nowhere = [f"`{one.key}`" for one in asked if id(one) not in seen]
    if nowhere:
        session.out.note(f"no place that was asked has {', '.join(nowhere[:8])}" + (" …" if len(nowhere) > 8 else ""))  # noqa: PLR2004 - a line
    if any(offer.has_allowed for offer in found):
        session.out.hint("`adapt upgrade` takes what is allowed")
    elif found and not any(offer.is_worth_telling for offer in found):
        session.out.note("everything is up to date")


# ---------------------------------------------------------------- project
def project_asked(
    session: Session,
    project: Project,
    specs: Sequence[AdapterSpec],
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
    places: tuple[Path, ...],
) -> list[Asked]:
    """What is locked, or what of it is named, with the places of the project.

    Raises:
        NotFound: the project is not locked, or has no adapter by a name.
    """
    import time

    from adapterhub.distribution.choosing import RankBounds
    from adapterhub.distribution.outdated import Asked
    from adapterhub.library.bases.requested import requested_base
    from adapterhub.projects.file.policy import objection_of
    from adapterhub.projects.lock.lockfile import read_lock
    from adapterhub.projects.locking import base_choice, in_project
    from adapterhub.projects.places import ProjectSources
    from adapterhub.projects.values import LockedAdapter

    lock, library = read_lock(project.folder), session.library
    names = [str(spec) for spec in specs]
    known = {wanted.key for wanted in project.adapters}
    if unknown := [name for name in names if name not in known]:
        raise NotFound(f"the project has no adapter `{shown(unknown[0])}`", hint="`adapt tree` shows what is locked")
    base = base_choice(library, project, lock, takes_new=False)
    objection = objection_of(project.policy, time.time())
    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    sources.settle(lock)
    found: list[Asked] = []
    for wanted in project.adapters:
        entry = lock.entries.get(wanted.key)
        if (names and wanted.key not in names) or not isinstance(entry, LockedAdapter):
            continue
        own = wanted.spec.base
        judged = base.wanted if own is None else requested_base(in_project(own, project.folder), library.bases)
        found.append(
            Asked(
                key=wanted.key,
                spec=wanted.spec,
                version=entry.version,
                digest=entry.digest,
                rank=entry.rank,
                wanted=judged,
                sources=lambda wanted=wanted: sources(wanted),  # type: ignore[misc]  # bound for this turn
                bounds=RankBounds(rank=wanted.rank, min_rank=wanted.min_rank, max_rank=wanted.max_rank),
                objection=objection,
            )
        )
    return found


# ---------------------------------------------------------------- library
def library_asked(
    session: Session,
    specs: Sequence[AdapterSpec],
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
    places: tuple[Path, ...],
) -> list[Asked]:
    """The newest installed build of each name for each base, with the places that it can be had at.

    Raises:
        AdapterNotFound: nothing by a name is installed.
    """
    from packaging.version import Version

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.outdated import Asked
    from adapterhub.projects.session import sources_from

    library = session.library
    newest: dict[tuple[str, str], Installed] = {}
    for build in library.installed():
        if specs and not any(_is_named(build, spec) for spec in specs):
            continue
        fingerprint = build.base.fingerprint
        key = build.full_name, fingerprint.weights if fingerprint else ""
        if key not in newest or Version(build.manifest.version) > Version(newest[key].manifest.version):
            newest[key] = build
    for spec in specs:
        if not any(_is_named(build, spec) for build in newest.values()):
            raise library.not_installed(spec.full_name)
    disk = sources_from(session, places)
    builds = [
        build for build in newest.values() if not build.manifest.recipe
    ]  # a merge of one's own is published nowhere
    return [
        Asked(
            key=build.full_name,
            spec=AdapterSpec.parse(build.full_name),
            version=build.manifest.version,
            digest=build.manifest.digest,
            rank=build.manifest.rank,
            wanted=_base_of(library, build),
            sources=_sources(session, library, build, disk, remote=remote, token=token, offline=offline),
        )
        for build in sorted(builds, key=lambda b: b.full_name)
    ]


def _is_named(build: Installed, spec: AdapterSpec) -> bool:
    return build.manifest.name == spec.name and spec.namespace in (None, build.namespace)


def _base_of(library: Library, build: Installed) -> RequestedBase | None:
    from adapterhub.library.bases.requested import RequestedBase

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
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> Callable[[], Sequence[Source]]:
    """Where a build came from, else where one would look for its name."""
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.directory import PublishedDirectory, open_source
    from adapterhub.library.library import Library as LibrarySource

    def find() -> Sequence[Source]:
        origin = library.origins.of(build.manifest.digest)
        found: list[Source] = list(disk)
        if remote is None and origin is not None and not origin.is_server:
            try:
                place = open_source(Path(origin.place))
            except AdapterHubError:
                place = None
            if isinstance(place, PublishedDirectory | LibrarySource):
                found.append(place)
        elif not offline:
            if remote is None and origin is not None:
                found.append(session.place_hub(origin.place, token=token))
            else:
                found += session.sources_of(AdapterSpec.parse(build.full_name), remote, token=token)
        return list({(source.place, source.label): source for source in found}.values())

    return find
