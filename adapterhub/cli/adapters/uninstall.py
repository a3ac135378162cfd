"""`adapt uninstall`: `remove`, which also takes the adapter out of the project when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import installed_builds
from adapterhub.cli.adapters.remove import confirm_removal, removed_document
from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option("--save", is_flag=True, help="Take it out of the project's adapters.toml and adapters.lock, too.")
@click.option("--all-versions", is_flag=True, help="Every build by that name.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@project_option
@common
def uninstall(session: Session, specs: tuple[AdapterSpec, ...], save: bool, all_versions: bool, yes: bool) -> None:
    """Remove installed adapters; with --save out of the project, too.

    The bytes stay in the store until `adapt gc`. With --save, a name is one of the project, and an adapter that other
    names of the project stand for stays installed. What merges of the project are made of is refused.

    \b
    Examples:
      adapt uninstall legal-qa==1.0.0 --yes
      adapt uninstall legal-qa --save --yes
    """
    from adapterhub.projects.saving import builds_of_key, key_of, take_out

    library = session.library
    if not save:
        builds = [b for spec in specs for b in installed_builds(library, spec, all_versions=all_versions)]
        confirm_removal(builds, yes=yes)
        library.remove(builds)
        _tell(session, builds, [])
        return
    project = session.need_project()
    keys = [key_of(project, spec) for spec in specs]
    builds = [b for key, spec in zip(keys, specs, strict=True) for b in builds_of_key(session, project, key, spec)]
    confirm_removal(builds, yes=yes)
    take_out(session, project, keys)
    library.remove(builds)
    _tell(session, builds, keys)
    session.out.hint("`adapt sync --prune` takes it out of `adapters/`")


def _tell(session: Session, builds: list[Installed], keys: list[AdapterName]) -> None:
    def text() -> None:
        if builds:
            session.out.line(f"removed {', '.join(f'{b.full_name} {b.manifest.label}' for b in builds)}")
        for key in keys:
            session.out.line(f"took {key} out of the project")

    document: dict[str, Any] = {"removed": [removed_document(b) for b in builds], "project_names": list(keys)}
    session.out.result(document, text)
    if builds:
        session.out.hint("`adapt gc` frees the space")
