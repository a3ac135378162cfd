"""`adapt uninstall`: like `remove`, but with --save also removes the adapter from the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.adapters.remove import builds_to_remove, confirm_removal, removed_document
from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option("--save", is_flag=True, help="Also remove it from the project's adapters.toml and adapters.lock.")
@click.option("--all-versions", is_flag=True, help="Remove every build with this name.")
@click.option("--yes", "-y", is_flag=True, help="Remove without a prompt.")
@project_option
@common
def uninstall(session: Session, specs: tuple[AdapterSpec, ...], save: bool, all_versions: bool, yes: bool) -> None:
    """Remove adapters from the library, and from the project with --save.

    Their bytes stay in the store until `adapt gc`. Where a version has builds of several ranks, asks which to remove;
    --yes removes them all. With --save, give the names that the project uses; a build that
    another name of the project uses stays installed. Refuses to remove an adapter that the project's merges need.

    \b
    Examples:
      adapt uninstall legal-qa==1.0.0 --yes
      adapt uninstall legal-qa --save --yes
    """
    from adapterhub.projects.saving import builds_of_key, key_of, take_out

    library = session.library
    if not save:
        builds = builds_to_remove(library, specs, all_versions=all_versions, yes=yes)
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
    session.out.hint("`adapt sync --prune` removes it from `adapters/`")


def _tell(session: Session, builds: list[Installed], keys: list[AdapterName]) -> None:
    def text() -> None:
        if builds:
            session.out.line(f"removed {', '.join(f'{b.full_name} {b.manifest.label}' for b in builds)}")
        for key in keys:
            session.out.line(f"removed {key} from the project")

    document: dict[str, Any] = {"removed": [removed_document(b) for b in builds], "project_names": list(keys)}
    session.out.result(document, text)
    if builds:
        session.out.hint("`adapt gc` frees the disk space")
