"""`adapt cache show`: show what uses the library's disk space, and free what is unused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import listed, size_text
from adapterhub.core.arguments import Count, Seconds
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapterhub.api.upkeep import Freed
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.upkeep.space import Space

_COLUMNS = ("holder", "kind", "objects", "size", "alone")


@click.group(cls=Group)
def cache() -> None:
    """Show what uses the library's disk space, and free what nothing uses.

    \b
    Examples:
      adapt cache show
      adapt cache clean --dry-run
    """


@cache.command()
@click.option("--limit", type=kind_of(Count), default=20, show_default=True, metavar="N", help="Show N rows.")
@common
def show(session: Session, limit: int) -> None:
    """Show what uses the library's disk space: adapters, projects and processes, the largest first.

    Holders can share bytes. The column `alone` counts the bytes that only this holder needs.

    \b
    Example:
      adapt cache show
    """
    space = session.opened.space()
    session.out.result(space.to_json, lambda: _say(session, space, limit))
    if len(space.held) > limit:
        session.out.note(f"{len(space.held) - limit} more; `--limit {len(space.held)}` shows them")
    if space.unused_objects:
        session.out.hint(
            "`adapt cache clean` deletes unused objects; with `--unused` also adapters that no project needs"
        )


def _say(session: Session, space: Space, limit: int) -> None:
    rows: list[tuple[object, ...]] = [
        (one.holder.name, one.holder.kind, one.objects, size_text(one.size_bytes), size_text(one.alone_bytes))
        for one in space.held[:limit]
    ]
    if space.unused_objects:
        rows.append(("unused", "", space.unused_objects, size_text(space.unused_bytes), size_text(space.unused_bytes)))
    session.out.table(_COLUMNS, rows, right=("objects", "size", "alone"))
    session.out.line(f"{space.objects} objects, {size_text(space.size_bytes)} in {space.root}")
    for one in space.other:
        session.out.line(f"{one.name}\t{size_text(one.size_bytes)}")


@cache.command()
@click.option("--dry-run", is_flag=True, help="Show what would be deleted; delete nothing.")
@click.option(
    "--grace",
    "grace_s",
    type=kind_of(Seconds),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="Keep objects younger than this.",
)
@click.option("--unused", is_flag=True, help="First remove adapters that no project, alias or process needs.")
@click.option("--yes", "-y", is_flag=True, help="With --unused: remove without a prompt.")
@common
def clean(session: Session, yes: bool, dry_run: bool, **options: Any) -> None:
    """Delete objects that no installed adapter, project or running process uses.

    A project counts from its first `adapt lock` or `adapt sync` until its folder is gone. With --unused, an adapter
    stays only if a project's lock file, an alias, a running process or a needed merge uses it.

    \b
    Examples:
      adapt cache clean --dry-run
      adapt cache clean --unused --dry-run
    """
    freed = session.opened.gc(dry_run=dry_run, agree=None if yes else _agreeing(session), **options)
    session.out.result(freed.to_json(), lambda: _say_freed(session, freed))
    if dry_run and freed.builds:
        session.out.note("the space of these adapters is not counted above")
    _tell_kept(session, freed)


def _say_freed(session: Session, freed: Freed) -> None:
    would = freed.dry_run
    for build in freed.builds:
        session.out.line(f"{'would remove' if would else 'removed'} {build.full_name} {build.manifest.label}")
    if would and freed.gone:
        session.out.lines([f"{size_bytes}\t{path}" for path, size_bytes in freed.gone])
    told = f"{size_text(freed.freed_bytes)} in {len(freed.gone)} objects"
    session.out.line(f"{'would free' if would else 'freed'} {told}")


def _agreeing(session: Session) -> Callable[[Sequence[Installed]], None]:
    def agree(builds: Sequence[Installed]) -> None:
        names = listed([f"{b.full_name} {b.manifest.label}" for b in builds], 20)
        if not sys.stdin.isatty():
            raise UsageProblem(
                f"cannot ask before removing {names}: not a terminal",
                hint="pass `--yes` to confirm, or see `adapt cache clean --unused --dry-run`",
            )
        session.out.warn(f"no project, alias or process needs {names}")
        click.confirm(f"Remove {len(builds)} adapters?", abort=True, err=True)

    return agree


def _tell_kept(session: Session, freed: Freed) -> None:
    for claim in freed.claims:
        session.out.note(f"kept the files that `{claim.what}` uses: {claim.holder}")
        if not claim.holder.is_here:
            session.out.hint(f"if that process has ended, delete `{claim.path}`; it counts for a day")
    if freed.spared:
        session.out.hint(
            f"kept {len(freed.spared)} unused objects ({size_text(freed.spared_bytes)}) that are young; "
            "`adapt cache clean --grace 0` deletes them, too"
        )
