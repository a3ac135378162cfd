"""`adapt trust`: trust the servers that a project names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.core.disk.nearest import ensure_there
from adapterhub.core.errors import NotFound, UsageProblem

if TYPE_CHECKING:
    from adapterhub.projects.trusted import TrustedProject


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
@click.option("--revoke", is_flag=True, help="Stop trusting the project.")
@click.option("--list", "is_list", is_flag=True, help="List the trusted projects.")
@common
def trust(session: Session, folder: Path | None, revoke: bool, is_list: bool) -> None:
    """Trust the servers that a project names.

    A project file that you did not write may name servers under `[remotes]`, and a lock file may name more. `adapt`
    contacts none of them before you agree. A later change of their names, URLs, namespaces or signature policies needs
    your agreement again. Namespaces and names of your own remotes stay yours in any case.

    \b
    Examples:
      adapt trust
      adapt trust ./assistant --revoke
      adapt trust --list
    """
    from adapterhub.projects.trusted import TrustedProjects

    trusted = TrustedProjects(session.root)
    if is_list:
        if revoke or folder is not None:
            raise UsageProblem("`--list` takes no DIR and no `--revoke`: it lists all projects")
        known = trusted.all()
        session.out.result(
            [one.to_json() for one in known],
            lambda: session.out.table(("project", "servers"), [(one.folder, " ".join(_urls(one))) for one in known]),
        )
        return
    place = _project_folder(session, folder, revoke=revoke)
    if revoke:
        was_there = trusted.revoke(place)
        text = f"{place} is no longer trusted" if was_there else f"{place} was not trusted"
        session.out.result({"project": str(place), "revoked": was_there}, lambda: session.out.line(text))
        return
    _agree(session, place)


def _agree(session: Session, place: Path) -> None:
    from adapterhub.api.steps.projects import trust_project
    from adapterhub.projects.project import read_project

    made = trust_project(session, read_project(place))

    def text() -> None:
        session.out.line(f"trusted {made.folder}")
        for url in _urls(made):
            session.out.line(f"  {url}")
        if not _urls(made):
            session.out.line("  the project names no servers of its own")

    session.out.result(made.to_json(), text)


def _urls(one: TrustedProject) -> list[str]:
    return [*(str(remote.get("url")) for remote in one.remotes), *one.sources]


def _project_folder(session: Session, folder: Path | None, *, revoke: bool) -> Path:
    """The project's folder; it need not exist any more to revoke trust."""
    if folder is None:
        found = session.project_folder
        if found is None:
            session.need_project()  # raises NotFound
        assert found is not None
        return found
    hint = f"`adapt init {folder}` creates a project there"
    if not revoke:
        ensure_there(folder, NotFound, what="folder", hint=hint)
    if not revoke and not (folder / PROJECT_FILE).is_file():
        raise NotFound(f"`{folder}` has no `{PROJECT_FILE}`", hint=hint)
    return folder
