"""`adapt sync`: make the project's `adapters/` match the lock file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.cli.options.params import Session, common, project_option, signatures_option, trust_option
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.output import listed, size_text
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from adapterhub.core.arguments import Testing
    from adapterhub.projects.sync import SyncPlan, SyncResult
    from adapterhub.projects.values import Project
    from adapterhub.trust.signing.policy import SignaturePolicy


@click.command()
@click.option("--frozen", is_flag=True, help="Do not update the lock file; fail if it is missing or stale.")
@click.option("--offline", is_flag=True, help="Use no network.")
@click.option("--check", is_flag=True, help="Read every byte again, even of files that appear unchanged.")
@click.option("--prune", is_flag=True, help="Remove folders that the lock file does not list.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", shell_complete=complete_group, help="Include an optional group."
)
@click.option("--all-groups", is_flag=True, help="Include every optional group.")
@click.option("--yes", "-y", is_flag=True, help="With --prune: also delete folders that sync did not make, unprompted.")
@test_option("Change folders only if each build answers as its contract records")
@signatures_option
@project_option
@trust_option
@common
def sync(
    session: Session,
    frozen: bool,
    offline: bool,
    check: bool,
    prune: bool,
    groups: tuple[str, ...],
    all_groups: bool,
    yes: bool,
    test: Testing | None,
    signatures: SignaturePolicy | None,
) -> None:
    """Make the project's `adapters/` match its lock file, with links into the library.

    First updates a lock file that is missing or stale. Fetches each missing build by its digest from its locked source
    and makes each merge again from its recipe. Leaves correct folders untouched, and changes nothing in `adapters/`
    until every build is available.

    A file counts as unchanged, without being read, while its size, times and inode are those that sync left. --check
    reads every byte; use `adapt sync --frozen --check` in CI.

    --test asks every build with a contract on the base of the project, before any folder changes, and a merge by the
    lines of its inputs' contracts that bind it. A kept result of the same build, base and precision is free.

    \b
    Examples:
      adapt sync
      adapt sync --frozen --check
      adapt sync --group eval --prune
      adapt sync --test
    """
    from adapterhub.api.steps.projects import sync_project

    if yes and not prune:
        raise UsageProblem("`--yes` needs `--prune`, because nothing else deletes folders")
    project, asked = session.need_project(), None
    if test:
        from adapterhub.api.steps.contracts.syncing import SyncTest

        asked = SyncTest(session.library, test, session.out, session.out)
    synced = sync_project(
        session,
        project,
        frozen=frozen,
        offline=offline,
        check=check,
        prune=prune,
        groups=groups,
        all_groups=all_groups,
        delete=lambda plan: _to_delete(session, plan, yes=yes),
        signatures=signatures,
        test=asked,
        bars=session.out,
    )
    plan, done = synced.plan, synced.done
    document = document_of(project, plan, done, is_new=synced.is_locked_anew)
    document |= {"tests": [one.to_json() for one in synced.tests]} if test else {}
    session.out.result(document, lambda: say(session, document))
    for one in synced.tests:
        if one.passed:
            session.out.note(f"{one.label}: PASS, {one.kept}")
    _note_left(session, document["left"], pruned=prune)


def _to_delete(session: Session, plan: SyncPlan, *, yes: bool) -> list[Path]:
    """The folders not made by sync that the user agrees to delete."""
    folders = [*(step.folder for step in plan.blocked), *plan.foreign]
    if not folders or yes:
        return folders
    if not sys.stdin.isatty():
        return []
    session.out.warn("sync did not make these folders; their contents may exist nowhere else:")
    for folder in folders:
        session.out.note(f"  {folder}")
    return folders if click.confirm("Delete them?", err=True) else []


def _note_left(session: Session, left: Sequence[dict[str, Any]], *, pruned: bool) -> None:
    ours = [one["path"] for one in left if one["made_by_sync"]]
    others = [one["path"] for one in left if not one["made_by_sync"]]
    if ours:
        session.out.note(f"not in the lock file: {_names(ours)}")
        session.out.hint("`adapt sync --prune` removes folders that sync made")
    if others and pruned:
        session.out.note(f"kept, because sync did not make them: {_names(others)}")
        session.out.hint("`adapt sync --prune --yes` deletes them, too")


def _names(paths: Sequence[str]) -> str:
    return listed([f"`{Path(path).name}`" for path in paths])


def document_of(project: Project, plan: SyncPlan, done: SyncResult, *, is_new: bool) -> dict[str, Any]:
    """The JSON document of a sync."""
    from adapterhub.projects.builds import full_name_of

    brought = {one.entry.key: one for one in done.brought}
    removed, folder = {str(path) for path in done.removed}, str(plan.target.path)
    left = [(path, True) for path in plan.left] + [(path, False) for path in plan.foreign]
    return {
        "project": str(project.folder),
        "locked_anew": is_new,
        "adapters": [
            {
                "key": step.entry.key,
                "name": full_name_of(step.entry),
                "version": step.entry.version,
                "digest": step.entry.digest,
                "group": step.entry.group,
                "path": f"{folder}/{step.entry.key}",
                "done": what,
                "from": brought[step.entry.key].origin if step.entry.key in brought else None,
                "repaired": list(step.state.reasons) if what == "replaced" else [],
            }
            for step, what in done.steps
        ],
        "fetched_bytes": sum(one.sent_bytes for one in done.brought),
        "removed": sorted(removed),
        "left": [{"path": str(p), "made_by_sync": ours} for p, ours in left if str(p) not in removed],
    }


def say(session: Session, document: dict[str, Any], *, but: Collection[str | None] = ()) -> None:
    """Print what a sync did; it leaves out the names in `but` unless it repaired them."""
    adapters = document["adapters"]
    for one in adapters:
        if one["done"] == "kept" or (one["key"] in but and not one["repaired"]):
            continue
        origin = f"  from {one['from']}" if one["from"] else ""
        session.out.line(f"{one['done']} {one['key']}  {one['name']} {one['version']}{origin}")
        for reason in one["repaired"]:
            session.out.line(f"  it had changed: {reason}")
    for path in document["removed"]:
        session.out.line(f"removed {Path(path).name}")
    changed = sum(one["done"] != "kept" for one in adapters)
    fetched = f", {size_text(document['fetched_bytes'])} fetched" if document["fetched_bytes"] else ""
    count = f"{len(adapters)} adapter{'s' * (len(adapters) != 1)}"
    state = f"{changed} changed" if changed else "all as locked"
    session.out.line(f"{count} in {document['project']}/adapters: {state}{fetched}")
