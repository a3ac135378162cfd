"""`adapt upgrade`: move to the newest allowed releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec
from adapterhub.cli.inspect.test import EXIT_CODES
from adapterhub.cli.options.params import (
    Session,
    common,
    places_option,
    project_option,
    remote_options,
    signatures_option,
    trust_option,
)
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.steps.projects import Synced
    from adapterhub.api.steps.upgrades.drop_ins import DropIn
    from adapterhub.api.steps.upgrades.projects import Preview
    from adapterhub.core.arguments import Testing
    from adapterhub.projects.locking import LockOutcome
    from adapterhub.projects.places import ProjectSources
    from adapterhub.projects.values import Project
    from adapterhub.trust.signing.policy import SignaturePolicy

_NOTHING = "no newer release is allowed; `adapt outdated` shows all releases"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_spec)
@click.option("--library", "is_library", is_flag=True, help="Upgrade the library even inside a project.")
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@click.option(
    "--test",
    is_flag=True,
    help="Take a release only if it passes the contract of the one that it replaces.",
)
@click.option("--accept-changes", is_flag=True, help="With --test: take a release that has changed, and say so.")
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
    test: bool,
    accept_changes: bool,
    places: tuple[Path, ...],
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Move to the newest allowed releases: lock and sync them in a project, install them outside.

    In a project, this is `adapt lock --upgrade [NAME...]` followed by `adapt sync`. In the library, it installs the
    newest release of each name for the same base and keeps the older one. It leaves a yanked version, for an older one
    if there is no newer, and says why it was yanked. `adapt outdated` lists newer releases beforehand; --dry-run shows
    which of them this command would take. `adapt rollback NAME` goes back.

    With --test, a release that passes the contract of the one it replaces is a drop-in. One that does not is left, with
    exit code 3, or 17 without a verdict.

    \b
    Examples:
      adapt upgrade
      adapt upgrade legal-qa
      adapt upgrade --dry-run
      adapt upgrade legal-qa --test
    """
    if accept_changes and not test:
        raise UsageProblem("`--accept-changes` needs `--test`, which tells what has changed")
    if test and dry_run:
        raise UsageProblem("`--dry-run` and `--test` exclude each other: a test brings the newer build")
    testing: Testing | None = None if not test else "warn" if accept_changes else "keep"
    project = None if is_library else session.project
    if project is None:
        _upgrade_library(
            session,
            names,
            signatures,
            remote=remote,
            token=token,
            offline=offline,
            places=places,
            dry_run=dry_run,
            testing=testing,
        )
        return
    from adapterhub.projects.places import ProjectSources

    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    if dry_run:
        _preview_project(session, project, names, sources)
    else:
        _upgrade_project(session, project, names, sources, signatures, testing)


def _upgrade_project(
    session: Session,
    project: Project,
    names: tuple[str, ...],
    sources: ProjectSources,
    signatures: SignaturePolicy | None,
    testing: Testing | None,
) -> None:
    from adapterhub.api.steps.upgrades.drop_ins import UpgradeTest
    from adapterhub.api.steps.upgrades.projects import upgrade_project

    test = UpgradeTest(session.library, testing, session.out, session.out) if testing else None
    outcome, synced = upgrade_project(session, project, names, sources, signatures, test=test, bars=session.out)
    tell_outcome(session, project, outcome, synced, tests=test.results if test else None)
    if not outcome.changes:
        session.out.note(_NOTHING)
    if refused := [one.tested.verdict for one in (test.results if test else ()) if not one.is_kept]:
        raise SystemExit(EXIT_CODES["CHANGED" if "CHANGED" in refused else "UNKNOWN"])


def tell_outcome(
    session: Session,
    project: Project,
    outcome: LockOutcome,
    synced: Synced,
    *,
    tests: Sequence[DropIn] | None = None,
) -> None:
    """Print what changed in the lock and in `adapters/`, in short lines or as JSON, and what a test said."""
    from adapterhub.cli.options.lock_changes import tell_changes
    from adapterhub.cli.projects.lock import lock_document
    from adapterhub.cli.projects.sync import document_of, say

    document = document_of(project, synced.plan, synced.done, is_new=synced.is_locked_anew)

    def text() -> None:
        tell_changes(session, outcome.changes, short=True)
        say(session, document, but={change.key for change in outcome.changes})
        for one in tests or ():
            if one.tested.passed:
                session.out.line(f"  {one.line}")

    tested = {} if tests is None else {"tests": [one.to_json() for one in tests]}
    session.out.result({**lock_document(outcome), "sync": document, **tested}, text)


def _preview_project(session: Session, project: Project, names: tuple[str, ...], sources: ProjectSources) -> None:
    """Resolve as an upgrade does and compare the folders; merges are listed, not run."""
    from adapterhub.api.steps.upgrades.projects import preview_upgrade

    preview = preview_upgrade(session, project, names, sources, bars=session.out)
    tell_preview(session, project, preview)
    if not preview.changes:
        session.out.note(_NOTHING)


def tell_preview(session: Session, project: Project, preview: Preview) -> None:
    """Print what would change in the lock and in `adapters/`."""
    from adapterhub.cli.options.lock_changes import tell_changes

    changes, folders = preview.changes, preview.folders
    document = {
        "project": str(project.folder),
        "changes": [change.to_json() for change in changes],
        "warnings": list(preview.warnings),
        "folders": [str(folder) for folder in folders],
    }

    def text() -> None:
        tell_changes(session, changes, short=True)
        session.out.line(
            f"would change {len(changes)} in the lock file and {len(folders)} in {project.folder}/adapters"
        )

    session.out.result(document, text)


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
    testing: Testing | None,
) -> None:
    from adapterhub.api.steps.installing import upgrade_library
    from adapterhub.core.specs import AdapterSpec

    done = upgrade_library(
        session,
        [AdapterSpec.parse(name) for name in names],
        remote=remote,
        token=token,
        offline=offline,
        places=places,
        signatures=signatures,
        dry_run=dry_run,
        testing=testing,
        bars=session.out,
    )
    documents: list[dict[str, Any]] = []
    for one in done:
        taken, present = one.offer.allowed, one.plan.present
        assert taken is not None  # an upgrade takes what is allowed
        documents.append(
            {
                "name": one.offer.request.key,
                "from": one.offer.request.version,
                "to": taken.version,
                "digest": taken.digest,
                "place": one.offer.place,
                "path": str(one.added.build.folder) if one.added else str(present.folder) if present else None,
                **({"tests": [one.tested.to_json()], "kept": one.is_kept} if one.tested else {}),
            }
        )

    def text() -> None:
        for d in documents:
            verb = "would install" if dry_run else "~" if d.get("kept", True) else "not upgraded:"
            session.out.line(f"{verb} {d['name']}  {d['from']} -> {d['to']}{_drop_in(d)}")
        if not documents:
            session.out.line("no newer release found")

    session.out.result(documents, text)
    if documents and not dry_run:
        session.out.hint("the older releases stay; `adapt remove NAME==VERSION` removes one")
    refused = [one.tested.verdict for one in done if one.tested is not None and not one.is_kept]
    if refused:
        raise SystemExit(EXIT_CODES["CHANGED" if "CHANGED" in refused else "UNKNOWN"])


def _drop_in(document: dict[str, Any]) -> str:
    """How the newer release does by the contract of the older; empty where that was not tested."""
    words = {"PASS": "drop-in", "CHANGED": "behaviour changed", "UNKNOWN": "no verdict is possible"}
    found = [f"  {words[one['verdict']]}: {'; '.join(one['broken'])}".rstrip(": ") for one in document.get("tests", ())]
    return "".join(found)
