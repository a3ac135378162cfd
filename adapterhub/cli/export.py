"""`adapt export`: what a project or library has, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.completing import complete_group
from adapterhub.cli.params import Session, common, project_option
from adapterhub.errors import NotAllowed, UsageProblem

if TYPE_CHECKING:
    from adapterhub.locked_builds import Locked


@click.command()
@click.option("--requirements", is_flag=True, help="A plain list, one `name==version#sha256:digest` a line.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_group,
    help="An optional group of the project, too.",
)
@click.option("--all-groups", is_flag=True, help="Every optional group.")
@click.option("--library", "is_library", is_flag=True, help="What is installed, inside a project, too.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it to a file."
)
@project_option
@common
def export(
    session: Session,
    requirements: bool,
    groups: tuple[str, ...],
    all_groups: bool,
    is_library: bool,
    output: Path | None,
) -> None:
    """Export what the project has locked, else what is installed, as a plain list with the digest of each.

    `adapt install -r FILE` installs exactly these again. A merge that was never published is left out: it is made from
    the lock file, by `adapt sync`.

    \b
    Examples:
      adapt export --requirements
      adapt export --requirements --all-groups -o adapters.txt
    """
    if not requirements:
        raise UsageProblem("say what to export", hint="`adapt export --requirements` writes a plain list")
    folder = None if is_library else session.project_folder
    if folder is None and (groups or all_groups):
        raise UsageProblem("groups are those of a project, and this is none", hint="leave `--group` out")
    if folder is None:
        lines = sorted(f"{b.full_name}=={b.manifest.version}#{b.manifest.digest}" for b in session.library.installed())
    else:
        lines = _locked(session, folder, None if all_groups else groups)
    text = "".join(f"{line}\n" for line in lines)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise NotAllowed(f"`{output}` cannot be written: {error.strerror}") from None
    document = {"requirements": lines, "output": str(output) if output else None}
    session.out.result(document, lambda: None if output else session.out.piece(text))
    if output is not None:
        session.out.note(f"wrote {len(lines)} adapters to `{output}`")


def _locked(session: Session, folder: Path, groups: tuple[str, ...] | None) -> list[str]:
    from adapterhub.project import read_lock
    from adapterhub.sync import wanted_entries

    lock = read_lock(folder)
    if groups and (unknown := [name for name in groups if name not in {e.group for e in lock.entries.values()}]):
        raise UsageProblem(f"nothing is locked in a group `{unknown[0]}`")
    entries = wanted_entries(lock, groups)
    left = [f"`{entry.key}`" for entry in entries if _is_home_made(entry)]
    if left:
        session.out.warn(f"left out, as no place has it but as a recipe: {', '.join(left)}")
    return sorted(_line(entry) for entry in entries if not _is_home_made(entry))


def _is_home_made(entry: Locked) -> bool:
    from adapterhub.project.values import LockedMerge

    return isinstance(entry, LockedMerge) and entry.source.is_library


def _line(entry: Locked) -> str:
    from adapterhub.locked_builds import exact_spec

    return f"{exact_spec(entry)}#{entry.digest}"
