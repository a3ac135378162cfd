"""`adapt doctor`: is this installation well, and what to do where it is not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from adapterhub.cli.options.params import Session, common, places_option, project_option, remote_options
from adapterhub.cli.output import size_text
from adapterhub.cli.start.self_check import Line, dependencies, entry_point, extras, folders, project_files
from adapterhub.core.disk.real_folder import OTHERS_MAY_WRITE
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import EXIT_SOME_FAILED, AdapterHubError, NotAllowed, RemoteUnreachable, UsageProblem

_LOW_BYTES = 1_000_000_000


@click.command()
@click.option("--rebuild-index", is_flag=True, help="Make the index again from the installed folders.")
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Look at every byte of the store and mend it: damaged files go into quarantine and are fetched again.",
)
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done; change nothing.")
@places_option("With --repair: another place to fetch from, as in `adapt install`; may be repeated.")
@project_option
@remote_options
@common
def doctor(
    session: Session,
    rebuild_index: bool,
    is_repair: bool,
    dry_run: bool,
    places: tuple[Path, ...],
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Check the installation: dependencies, command, home, disk, links, index, project, and the connection to the hub.

    With --repair: mend the store. Files that are not what their digest says are moved into `quarantine/`, never
    deleted; the right bytes come from the store itself, from other adapters, from the place an adapter was installed
    from, or from --from. Exit code 0: all is well or mended. 3: something could not be mended, or --dry-run found
    damage.

    \b
    Examples:
      adapt doctor --offline
      adapt doctor --rebuild-index
      adapt doctor --repair --dry-run
    """
    if (dry_run or places) and not is_repair:
        raise UsageProblem("`--dry-run` and `--from` belong to `--repair`", hint="`adapt doctor --repair --dry-run`")
    if is_repair:
        _repair(session, places, remote, token, dry_run=dry_run, offline=offline)
        return
    if rebuild_index:
        count = session.library.catalog.rebuild(set_newer_aside=True)
        session.out.note(f"index rebuilt: {count} builds")
    project = session.project_folder
    lines = [
        *_versions(),
        *entry_point(sys.argv[0]),
        *_home(session.root),
        *folders(session.root, project),
        *_index(session),
        *project_files(session),
        _remote(session, remote, token, offline=offline),
    ]

    def text() -> None:
        session.out.table(("check", "state", "fact"), [(line.what, line.state, line.fact) for line in lines])
        for line in lines:
            session.out.hint(line.hint)

    session.out.result([{"check": i.what, "state": i.state, "fact": i.fact, "hint": i.hint} for i in lines], text)
    if any(line.state == "failed" for line in lines):
        raise SystemExit(EXIT_SOME_FAILED)


def _repair(
    session: Session, places: tuple[Path, ...], remote: str | None, token: str | None, *, dry_run: bool, offline: bool
) -> None:
    from adapterhub.library.directory import open_source
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.repair import repair
    from adapterhub.projects.session import sources_from

    def find_source(origin: Origin) -> Source:
        if origin.is_server:
            if remote or offline:
                return session.named_hub(remote, token=token, offline=offline)
            return session.place_source(origin.place, token=token)
        return open_source(Path(origin.place))

    steps = repair(session.library, find_source, sources_from(session, places), dry_run=dry_run)
    rest = sum(not step.is_mended for step in steps)

    def text() -> None:
        would = "would be " if dry_run else ""
        for step in steps:
            said = f"{would}{step.action}" if step.is_mended else step.action
            session.out.line(f"{said}\t{step.path}" + (f"\t{step.detail}" if step.detail else ""))
        if not steps:
            session.out.line("nothing is damaged")

    session.out.result({"dry_run": dry_run, "mended": rest == 0, "steps": [step.to_json() for step in steps]}, text)
    if rest:
        session.out.hint("install or add these again, or name a place that has them with `--from DIR`")
    if rest or (dry_run and steps):
        raise SystemExit(EXIT_SOME_FAILED)


def _versions() -> Iterator[Line]:
    yield Line("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from dependencies()
    yield from extras()


def _home(root: Path) -> Iterator[Line]:
    there = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        yield Line("home", "failed", f"{root}: not writable", "set ADAPTERHUB_HOME or `--root` to a folder of yours")
        return
    try:
        Root(root).ensure_real_folders()
    except NotAllowed as error:
        yield Line("home", "failed", error.message, error.hint)
        return
    yield Line("home", "ok", str(root) if root.exists() else f"{root} (made with the first `adapt add`)")
    if root.exists() and root.stat().st_mode & OTHERS_MAY_WRITE:
        yield Line("permissions", "warning", f"others may write in `{root}`", f"`chmod -R go-w {root}`")
    free = shutil.disk_usage(there).free
    low = free < _LOW_BYTES
    yield Line(
        "disk", "warning" if low else "ok", f"{size_text(free)} free", "`adapt gc` frees unused objects" if low else ""
    )
    leftovers = list((root / "tmp").glob("*"))
    if leftovers:
        yield Line(
            "leftovers", "warning", f"{len(leftovers)} in `{root / 'tmp'}`", "`adapt gc` sweeps them when they are old"
        )


def _index(session: Session) -> Iterator[Line]:
    from adapterhub.library.store.index import IndexNewer
    from adapterhub.library.upkeep.damage import damaged_index

    library = session.library
    if not session.root.exists():
        yield Line("index", "skipped", "nothing is installed yet")
        return
    broken = library.broken()
    for one in broken:
        yield Line("builds", "failed", f"{one.folder}: {one.reason}", "`adapt doctor --repair` mends what it can")
    index = library.catalog.index
    folders = sum(1 for _ in library.installed())
    try:
        indexed = index.count() if index.path.exists() else 0
    except IndexNewer as error:
        yield Line("index", "warning", error.message, error.hint)
        return
    except AdapterHubError as error:
        yield Line("index", "failed", error.message, "`adapt doctor --rebuild-index` makes it again")
        return
    hint = "`adapt doctor --rebuild-index` makes it again"
    if indexed != folders:
        yield Line("index", "failed", f"{indexed} builds indexed, {folders} installed", hint)
    elif problems := [damage.message for damage in damaged_index(library)]:
        yield Line("index", "failed", "; ".join(problems), hint)
    else:
        yield Line("index", "ok", f"{indexed} builds")


def _remote(session: Session, remote: str | None, token: str | None, *, offline: bool) -> Line:
    if offline:
        return Line("hub", "skipped", "--offline")
    hub = session.named_hub(remote, token=token, offline=False)
    try:
        who = hub.who()
    except RemoteUnreachable as error:
        return Line(
            "hub", "warning", error.message, "everything local works without it; `--remote URL` names another server"
        )
    except AdapterHubError as error:
        return Line("hub", "warning", error.message, error.hint)
    return Line("hub", "ok", f"{hub.endpoint}: {who}")
