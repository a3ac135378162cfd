"""`adapt upgrade`: take the newest that is allowed, of everything or of what is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec
from adapterhub.cli.options.params import (
    Session,
    common,
    places_option,
    project_option,
    remote_options,
    signatures_option,
    trust_option,
)

if TYPE_CHECKING:
    from adapterhub.projects.places import ProjectSources
    from adapterhub.projects.values import Lock, LockedMerge, MergeRequirement, Project
    from adapterhub.trust.signing.policy import SignaturePolicy

_NOTHING = "nothing newer is allowed; `adapt outdated` shows what else there is"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_spec)
@click.option("--library", "is_library", is_flag=True, help="Upgrade the library, inside a project, too.")
@click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")
@places_option()
@signatures_option
@project_option
@trust_option
@remote_options
@common
def upgrade(
    session: Session,
    names: tuple[str, ...],
    is_library: bool,
    dry_run: bool,
    places: tuple[Path, ...],
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Upgrade the project: lock the newest that it allows, then sync. Outside of one: install the newest releases.

    In a project this is `adapt lock --upgrade [NAME...]` and `adapt sync` in one. In the library the newest release of
    each name comes beside what is there, for the base of the installed one; the older stays until it is removed.
    `adapt outdated` shows beforehand what there is, and --dry-run what this would take of it.

    \b
    Examples:
      adapt upgrade
      adapt upgrade legal-qa
      adapt upgrade --dry-run
    """
    project = None if is_library else session.project
    if project is None:
        _upgrade_library(
            session, names, signatures, remote=remote, token=token, offline=offline, places=places, dry_run=dry_run
        )
        return
    from adapterhub.projects.places import ProjectSources

    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    if dry_run:
        _preview_project(session, project, names, sources)
    else:
        _upgrade_project(session, project, names, sources, signatures)


def _upgrade_project(
    session: Session,
    project: Project,
    names: tuple[str, ...],
    sources: ProjectSources,
    signatures: SignaturePolicy | None,
) -> None:
    from adapterhub.cli.options.lock_changes import tell_changes
    from adapterhub.cli.projects.lock import lock_document
    from adapterhub.cli.projects.sync import document_of, say
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.locking import ALL
    from adapterhub.projects.places import build_sources, lock_now, save_lock
    from adapterhub.projects.sync import plan_sync, run_sync, syncing, wanted_entries

    previous = previous_lock(project)
    sources.settle(previous)
    outcome = lock_now(session, project, sources, previous=previous, upgrade=names or ALL, bars=session.out)
    for warning in outcome.warnings:
        session.out.warn(warning)
    is_new = save_lock(session, project, outcome.lock)
    library = session.library
    with syncing(library, project.folder) as target:
        plan = plan_sync(target, wanted_entries(outcome.lock, _groups_there(project, outcome.lock)))
        means = build_sources(session, outcome.lock, sources, signatures, bars=session.out)
        done = run_sync(library, outcome.lock, plan, means)
    for one in done.brought:
        for warning in one.warnings:
            session.out.warn(warning)
    document = document_of(project, plan, done, is_new=is_new)

    def text() -> None:
        tell_changes(session, outcome.changes)
        say(session, document)

    session.out.result({**lock_document(outcome), "sync": document}, text)
    if not outcome.changes:
        session.out.note(_NOTHING)


def _preview_project(session: Session, project: Project, names: tuple[str, ...], sources: ProjectSources) -> None:
    """Choose as an upgrade does, and look at the folders; merges that it would run are told, and not run."""
    from dataclasses import replace

    from adapterhub.cli.options.lock_changes import tell_changes
    from adapterhub.cli.projects.lock import change_document
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.locking import ALL
    from adapterhub.projects.places import lock_now
    from adapterhub.projects.sync import ensure_unblocked, opened, plan_sync, wanted_entries

    to_merge: set[str] = set()

    def put_off(wanted: MergeRequirement, _inputs: object) -> LockedMerge:
        to_merge.add(wanted.key)
        return _unmade(wanted)

    previous = previous_lock(project)
    sources.settle(previous)
    outcome = lock_now(
        session, project, sources, previous=previous, upgrade=names or ALL, make_merge=put_off, bars=session.out
    )
    for warning in outcome.warnings:
        session.out.warn(warning)
    with opened(session.library.store, project.folder) as target:
        plan = plan_sync(target, wanted_entries(outcome.lock, _groups_there(project, outcome.lock)))
    ensure_unblocked(plan)
    changes = [replace(c, text="merged anew") if c.key in to_merge else c for c in outcome.changes]
    folders = [step.folder for step in plan.steps if step.state.standing != "right"]
    document = {
        "project": str(project.folder),
        "changes": [change_document(change) for change in changes],
        "warnings": list(outcome.warnings),
        "folders": [str(folder) for folder in folders],
    }

    def text() -> None:
        tell_changes(session, changes)
        session.out.line(
            f"would change {len(changes)} in the lock file and {len(folders)} in {project.folder}/adapters"
        )

    session.out.result(document, text)
    if not changes:
        session.out.note(_NOTHING)


def _unmade(wanted: MergeRequirement) -> LockedMerge:
    """What stands for a merge that is not run: no digest, so that it differs from whatever is locked or there."""
    from adapterhub.core.digests import Digest
    from adapterhub.projects.values import LockedMerge, LockedSource

    return LockedMerge(
        key=wanted.key,
        version=wanted.version or "",
        digest=Digest(""),
        base=None,
        rank=None,
        step=wanted.step,
        task=wanted.task,
        description=wanted.description,
        license=wanted.license,
        source=LockedSource(),
        files=(),
    )


def _groups_there(project: Project, lock: Lock) -> set[str]:
    """The optional groups that were synced before, as far as their folders tell."""
    from adapterhub.core.disk.home import ADAPTERS_FOLDER

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
    dry_run: bool,
) -> None:
    from dataclasses import replace

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.install import plan_install, run_install
    from adapterhub.distribution.outdated import Offer, offers
    from adapterhub.projects.upgrades import library_requests

    library = session.library
    specs = [AdapterSpec.parse(name) for name in names]
    asked = library_requests(session, specs, remote=remote, token=token, offline=offline, places=places)
    with session.out.steps("ask", unit="adapters") as progress:
        found = offers(library, asked, progress)
    best: dict[int, Offer] = {}
    for offer in found:
        if offer.problem is not None:
            session.out.warn(f"`{offer.request.key}`: {offer.problem.splitlines()[0]}")
        elif offer.has_allowed and id(offer.request) not in best:
            best[id(offer.request)] = offer
    documents: list[dict[str, Any]] = []
    for offer in best.values():
        one, taken = offer.request, offer.allowed
        assert taken is not None  # `has_allowed`
        spec = replace(one.spec, namespace=taken.namespace, digest_prefix=taken.digest)
        sources = [source for source in one.sources() if source.label == offer.place]
        plan = plan_install(library, spec, sources, wanted=one.wanted)
        for warning in plan.resolution.warnings:
            session.out.warn(warning)
        added = None
        if not dry_run:
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
            what = f"{d['name']} {d['from']} -> {d['to']} from {d['place']}"
            session.out.line(f"would install {what}" if dry_run else f"{what}  {d['path']}")
        if not documents:
            session.out.line("nothing newer was found")

    session.out.result(documents, text)
    if documents and not dry_run:
        session.out.hint("the older releases stay; `adapt remove NAME==VERSION` takes one away")
