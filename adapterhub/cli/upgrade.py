"""`adapt upgrade`: take the newest that is allowed, of everything or of what is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completing import complete_spec
from adapterhub.cli.params import Session, common, places_option, project_option, remote_options, signatures_option

if TYPE_CHECKING:
    from adapterhub.project.values import Lock, Project
    from adapterhub.remotes import SignaturePolicy


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_spec)
@click.option("--library", "is_library", is_flag=True, help="Upgrade the library, inside a project, too.")
@places_option()
@signatures_option
@project_option
@remote_options
@common
def upgrade(
    session: Session,
    names: tuple[str, ...],
    is_library: bool,
    places: tuple[Path, ...],
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Upgrade the project: lock the newest that it allows, then sync. Outside of one: install the newest releases.

    In a project this is `adapt lock --upgrade [NAME...]` and `adapt sync` in one. In the library the newest release of
    each name comes beside what is there, for the base of the installed one; the older stays until it is removed.
    `adapt outdated` shows beforehand what there is.

    \b
    Examples:
      adapt upgrade
      adapt upgrade legal-qa
    """
    project = None if is_library else session.project
    if project is not None:
        _upgrade_project(
            session, project, names, signatures, remote=remote, token=token, offline=offline, places=places
        )
    else:
        _upgrade_library(session, names, signatures, remote=remote, token=token, offline=offline, places=places)


def _upgrade_project(
    session: Session,
    project: Project,
    names: tuple[str, ...],
    signatures: SignaturePolicy | None,
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
    places: tuple[Path, ...],
) -> None:
    from adapterhub.cli.lock import lock_document, tell_changes
    from adapterhub.cli.project_sources import ProjectSources, lock_now, previous_lock, save_lock
    from adapterhub.cli.sync import document_of, means_of, say
    from adapterhub.locking import ALL
    from adapterhub.sync import plan_sync, run_sync, syncing, wanted_entries

    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    previous = previous_lock(project)
    outcome = lock_now(session, project, sources, previous=previous, upgrade=names or ALL)
    for warning in outcome.warnings:
        session.out.warn(warning)
    is_new = save_lock(session, project, outcome.lock)
    library = session.library
    with syncing(library, project.folder):
        plan = plan_sync(project.folder, wanted_entries(outcome.lock, _groups_there(project, outcome.lock)))
        done = run_sync(library, outcome.lock, plan, means_of(session, outcome.lock, sources, signatures))
    for one in done.brought:
        for warning in one.warnings:
            session.out.warn(warning)
    document = document_of(project, plan, done, is_new=is_new)

    def text() -> None:
        tell_changes(session, outcome.changes)
        say(session, document)

    session.out.result({**lock_document(outcome), "sync": document}, text)
    if not outcome.changes:
        session.out.note("nothing newer is allowed; `adapt outdated` shows what else there is")


def _groups_there(project: Project, lock: Lock) -> set[str]:
    """The optional groups that were synced before, as far as their folders tell."""
    from adapterhub.project.values import ADAPTERS_FOLDER

    folder = project.folder / ADAPTERS_FOLDER
    return {entry.group for entry in lock.entries.values() if entry.group and (folder / entry.key).is_dir()}


def _upgrade_library(
    session: Session,
    names: tuple[str, ...],
    signatures: SignaturePolicy | None,
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
    places: tuple[Path, ...],
) -> None:
    from dataclasses import replace

    from adapterhub.cli.outdated import library_asked
    from adapterhub.install import plan_install, run_install
    from adapterhub.outdated import Offer, offers
    from adapterhub.specs import AdapterSpec

    library = session.library
    specs = [AdapterSpec.parse(name) for name in names]
    asked = library_asked(session, specs, remote=remote, token=token, offline=offline, places=places)
    with session.out.steps("ask", unit="adapters") as progress:
        found = offers(library, asked, progress)
    best: dict[int, Offer] = {}
    for offer in found:
        if offer.problem is not None:
            session.out.warn(f"`{offer.asked.key}`: {offer.problem.splitlines()[0]}")
        elif offer.has_allowed and id(offer.asked) not in best:
            best[id(offer.asked)] = offer
    documents: list[dict[str, Any]] = []
    for offer in best.values():
        one, taken = offer.asked, offer.allowed
        assert taken is not None  # `has_allowed`
        spec = replace(one.spec, namespace=taken.namespace, digest_prefix=taken.digest)
        sources = [source for source in one.sources() if source.label == offer.place]
        plan = plan_install(library, spec, sources, wanted=one.wanted)
        for warning in plan.resolution.warnings:
            session.out.warn(warning)
        with session.out.progress(f"install {one.key}", plan.copy_bytes) as bytes_done:
            added = run_install(library, plan, bytes_done, signatures=signatures)
        for finding in added.report.warnings if added else ():
            session.out.warn(f"[{finding.code}] {finding.message}")
        documents.append(
            {
                "name": one.key,
                "from": one.version,
                "to": taken.version,
                "digest": taken.digest,
                "place": offer.place,
                "path": str(added.build.folder) if added else str(plan.present.folder) if plan.present else None,
            }
        )

    def text() -> None:
        for d in documents:
            session.out.line(f"{d['name']} {d['from']} -> {d['to']} from {d['place']}  {d['path']}")
        if not documents:
            session.out.line("nothing newer was found")

    session.out.result(documents, text)
    if documents:
        session.out.hint("the older releases stay; `adapt remove NAME==VERSION` takes one away")
