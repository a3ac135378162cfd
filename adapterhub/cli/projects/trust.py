"""`adapt trust`: agree to the servers that a project names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import NotFound, UsageProblem

if TYPE_CHECKING:
    from adapterhub.projects.trusted import TrustedProject


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
@click.option("--revoke", is_flag=True, help="Take it back.")
@click.option("--list", "is_list", is_flag=True, help="List the projects that are trusted.")
@common
def trust(session: Session, folder: Path | None, revoke: bool, is_list: bool) -> None:
    """Agree to the servers that a project names, once for this folder and what it says of servers.

    A project file comes from somebody else, and may name servers under `[remotes]`; a lock file may name more. None of
    them is asked before you agree. An edit of their names, URLs, namespaces or signature policies asks again. A
    namespace or a name that you gave to a remote of your own stays yours, whatever is agreed to here.

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
            raise UsageProblem("`--list` lists all projects, so it goes alone")
        known = trusted.all()
        session.out.result(
            [one.to_json() for one in known],
            lambda: session.out.table(("project", "servers"), [(one.folder, " ".join(_urls(one))) for one in known]),
        )
        return
    place = _project_folder(session, folder, revoke=revoke)
    if revoke:
        was_there = trusted.revoke(place)
        text = f"{place} is not trusted any more" if was_there else f"{place} was not trusted"
        session.out.result({"project": str(place), "revoked": was_there}, lambda: session.out.line(text))
        return
    _agree(session, place, trusted)


def _agree(session: Session, place: Path, trusted: Any) -> None:  # noqa: ANN401 - TrustedProjects
    from adapterhub.library.admission.admission import Admission
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.project import read_project
    from adapterhub.projects.trust import ensure_no_takeover, servers_in

    project = read_project(place)
    ensure_no_takeover(project, session.remotes.all(), Admission(session.library))
    made = trusted.trust(place, servers_in(session, project, previous_lock(project)))

    def text() -> None:
        session.out.line(f"trusted {made.folder}")
        for url in _urls(made):
            session.out.line(f"  {url}")
        if not _urls(made):
            session.out.line("  it names no server of its own")

    session.out.result(made.to_json(), text)


def _urls(one: TrustedProject) -> list[str]:
    return [*(str(remote.get("url")) for remote in one.remotes), *one.sources]


def _project_folder(session: Session, folder: Path | None, *, revoke: bool) -> Path:
    """The folder that is meant; to take trust back, the project need not be there any more."""
    from adapterhub.core.disk.home import PROJECT_FILE

    if folder is None:
        found = session.project_folder
        if found is None:
            session.need_project()  # which says so
        assert found is not None
        return found
    if not revoke and not (folder / PROJECT_FILE).is_file():
        raise NotFound(f"`{folder}` has no `{PROJECT_FILE}`", hint=f"`adapt init {folder}` makes a project of it")
    return folder
