"""`adapt cache` and `adapt gc`: show what uses the library's disk space, and free what is unused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import listed, size_text
from adapterhub.core.arguments import Count, Seconds
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.library.store.catalog import Installed, Swept
    from adapterhub.library.upkeep.space import Space

_COLUMNS = ("holder", "kind", "objects", "size", "alone")


@click.command()
@click.option("--limit", type=kind_of(Count), default=20, show_default=True, metavar="N", help="Show N rows.")
@common
def cache(session: Session, limit: int) -> None:
    """Show what uses the library's disk space: adapters, projects and processes, the largest first.

    Holders can share bytes. The column `alone` counts the bytes that only this holder needs.

    \b
    Example:
      adapt cache
    """
    from adapterhub.library.upkeep.space import space_of

    space = space_of(session.library)
    session.out.result(lambda: _document(session, space), lambda: _say(session, space, limit))
    if len(space.held) > limit:
        session.out.note(f"{len(space.held) - limit} more; `--limit {len(space.held)}` shows them")
    if space.unused_objects:
        session.out.hint("`adapt gc` deletes unused objects; `adapt gc --unused` also adapters that no project needs")


def _document(session: Session, space: Space) -> dict[str, Any]:
    return {
        "root": str(session.root),
        "objects": space.objects,
        "size_bytes": space.size_bytes,
        "holders": [one.to_json() for one in space.held],
        "unused_objects": space.unused_objects,
        "unused_bytes": space.unused_bytes,
        "other": [{"name": name, "size_bytes": size} for name, size in space.other],
    }


def _say(session: Session, space: Space, limit: int) -> None:
    rows: list[tuple[object, ...]] = [
        (one.holder.name, one.holder.kind, one.objects, size_text(one.size_bytes), size_text(one.alone_bytes))
        for one in space.held[:limit]
    ]
    if space.unused_objects:
        rows.append(("unused", "", space.unused_objects, size_text(space.unused_bytes), size_text(space.unused_bytes)))
    session.out.table(_COLUMNS, rows, right=("objects", "size", "alone"))
    session.out.line(f"{space.objects} objects, {size_text(space.size_bytes)} in {session.root}")
    for name, size in space.other:
        session.out.line(f"{name}\t{size_text(size)}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be deleted; delete nothing.")
@click.option(
    "--grace",
    "grace_s",
    type=kind_of(Seconds),
    metavar="SECONDS",
    help="Keep objects younger than this [default: 3600].",
)
@click.option("--unused", is_flag=True, help="First remove adapters that no project, alias or process needs.")
@click.option("--yes", "-y", is_flag=True, help="With --unused: remove without a prompt.")
@common
def gc(session: Session, dry_run: bool, grace_s: float | None, unused: bool, yes: bool) -> None:
    """Delete objects that no installed adapter, project or running process uses.

    A project counts from its first `adapt lock` or `adapt sync` until its folder is gone. With --unused, an adapter
    stays only if a project's lock file, an alias, a running process or a needed merge uses it.

    \b
    Examples:
      adapt gc --dry-run
      adapt gc --unused --dry-run
    """
    from adapterhub.library.store.roots import KnownProjects
    from adapterhub.library.store.sweep import GRACE_S
    from adapterhub.library.upkeep.space import unused_builds

    library = session.library
    builds = unused_builds(library) if unused else []
    if builds and not dry_run:
        _confirm(session, builds, yes=yes)
        library.remove(builds)
    if not dry_run:
        for folder in KnownProjects(session.root).forget_gone():
            session.out.note(f"the project `{folder}` is gone and no longer keeps anything")
    swept = library.gc(grace_s=GRACE_S if grace_s is None else grace_s, dry_run=dry_run)
    gone, spared = sum(s for _, s in swept.gone), sum(s for _, s in swept.spared)

    def text() -> None:
        for build in builds:
            verb = "would remove" if dry_run else "removed"
            session.out.line(f"{verb} {build.full_name} {build.manifest.label}")
        if dry_run and swept.gone:
            session.out.line("\n".join(f"{size_bytes}\t{path}" for path, size_bytes in swept.gone))
        verb = "would free" if dry_run else "freed"
        session.out.line(f"{verb} {size_text(gone)} in {len(swept.gone)} objects")

    session.out.result(
        {
            "dry_run": dry_run,
            "removed": [
                {"name": b.full_name, "version": b.manifest.version, "digest": b.manifest.digest} for b in builds
            ],
            "freed_bytes": gone,
            "objects": [{"path": str(p), "size_bytes": s} for p, s in swept.gone],
            "spared_bytes": spared,
            "spared_objects": len(swept.spared),
            "in_use": [
                {"by": str(c.holder), "what": c.what, "host": c.holder.host, "pid": c.holder.pid, "file": str(c.path)}
                for c in swept.claims
            ],
        },
        text,
    )
    if dry_run and builds:
        session.out.note("the space of these adapters is not counted above")
    _tell_kept(session, swept, spared)


def _confirm(session: Session, builds: list[Installed], *, yes: bool) -> None:
    names = listed([f"{b.full_name} {b.manifest.label}" for b in builds], 20)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"cannot ask before removing {names}: not a terminal",
            hint="pass `--yes` to confirm, or see `adapt gc --unused --dry-run`",
        )
    session.out.warn(f"no project, alias or process needs {names}")
    click.confirm(f"Remove {len(builds)} adapters?", abort=True, err=True)


def _tell_kept(session: Session, swept: Swept, spared_bytes: int) -> None:
    for claim in swept.claims:
        session.out.note(f"kept the files that `{claim.what}` uses: {claim.holder}")
        if not claim.holder.is_here:
            session.out.hint(f"if that process has ended, delete `{claim.path}`; it counts for a day")
    if swept.spared:
        session.out.hint(
            f"kept {len(swept.spared)} unused objects ({size_text(spared_bytes)}) that are young; "
            "`adapt gc --grace 0` deletes them, too"
        )
