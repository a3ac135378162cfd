"""`adapt init`: create a project in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.arguments import path_of
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.errors import BaseNotFound

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec


@click.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
@click.option("--base", type=BASE, help="Use this base model for the project's adapters.")
@common
def init(session: Session, folder: Path, base: BaseSpec | None) -> None:
    """Create a project: write an `adapters.toml` into a folder.

    The project file lists the adapters, their base and their sources. `adapt install NAME --save` adds an adapter,
    `adapt lock` chooses exact builds and writes them to `adapters.lock`, and `adapt sync` brings them into `adapters/`.

    \b
    Examples:
      adapt init --base base-7b
      adapt init ./assistant --base ./models/base-7b
    """
    from adapterhub.projects.file.editing import create_project
    from adapterhub.projects.places import base_to_write
    from adapterhub.projects.project import find_project

    outer = find_project(folder.absolute().parent)
    if base is not None:
        base = base_to_write(base, folder)
    project = create_project(folder, base)
    path = folder / PROJECT_FILE
    session.out.result(
        {"project": str(project.folder.absolute()), "file": str(path.absolute()), "base": str(base) if base else None},
        lambda: session.out.line(f"created {path}"),
    )
    session.out.note(
        f"{PROJECT_FILE} names the base and the adapters; commit it, and {LOCK_FILE}, which `adapt lock` writes"
    )
    session.out.note("`adapt sync` makes adapters/, links to the locked builds; leave it out of version control")
    if outer is not None:
        session.out.note(f"`{outer}` is also a project; commands inside `{folder}` use the new one")
    if base is not None and base.kind == "alias":
        try:
            session.library.bases.get(base.text)
        except BaseNotFound as error:
            session.out.warn(f"{error.message} is registered yet")
            session.out.hint(f"`adapt base add PATH --as {base.text}` registers it")
            return
    if base is not None and base.kind == "path" and not (folder / path_of(base.text)).is_dir():
        session.out.warn(f"no folder `{base.text}` in `{folder}` yet")
    session.out.hint("`adapt install NAME --save` adds an adapter; `adapt lock` chooses all versions")
