"""`adapt init`: create a project in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE

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
    from adapterhub.api.project import Project

    project = Project.create(folder, base=base, library=session.opened)
    session.out.result(project.to_json(), lambda: session.out.line(f"created {folder / PROJECT_FILE}"))
    session.out.note(
        f"{PROJECT_FILE} names the base and the adapters; commit it, and {LOCK_FILE}, which `adapt lock` writes"
    )
    session.out.note("`adapt sync` makes adapters/, links to the locked builds; leave it out of version control")
    session.out.hint("`adapt install NAME --save` adds an adapter; `adapt lock` chooses all versions")
