"""`adapt uninstall`: `remove`, which also takes the adapter out of the project when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.adapters.remove import confirm_removal, installed_builds, removed_document
from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.values import Project


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
    library = session.library
    if not save:
        builds = [b for spec in specs for b in installed_builds(library, spec, all_versions=all_versions)]
        confirm_removal(builds, yes=yes)
        library.remove(builds)
        _tell(session, builds, [])
        return
    project = session.need_project()
    keys = [_key(project, spec) for spec in specs]
    builds = [b for key, spec in zip(keys, specs, strict=True) for b in _builds(session, library, project, key, spec)]
    confirm_removal(builds, yes=yes)
    _take_out(session, project, keys)
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


def _key(project: Project, spec: AdapterSpec) -> AdapterName:
    """The name in the project that is meant: by that name, or the only one for that adapter.

    Raises:
        NotFound: the project has neither.
    """
    from adapterhub.core.disk.home import PROJECT_FILE
    from adapterhub.core.errors import NotFound
    from adapterhub.formats.documents import near_name

    keys = [wanted.key for wanted in project.wanted]
    if spec.namespace is None and spec.name in keys:
        return spec.name
    found = [wanted.key for wanted in project.adapters if wanted.spec.full_name == spec.full_name]
    if len(found) == 1:
        return found[0]
    if found:
        told = ", ".join(f"`{key}`" for key in found)
        raise NotFound(f"the project has `{spec.full_name}` under several names: {told}", hint="give one of these")
    near = near_name(spec.name, keys)
    raise NotFound(f"the project has no `{spec.full_name}`{near}", hint=f"`{project.folder / PROJECT_FILE}` lists them")


def _builds(
    session: Session, library: Library, project: Project, key: AdapterName, spec: AdapterSpec
) -> list[Installed]:
    """The locked build under that name, if it is installed and no other name of the project stands for it."""
    from adapterhub.projects.builds import locked_build
    from adapterhub.projects.lock.lockfile import previous_lock

    lock = previous_lock(project)
    entry = lock.entries.get(key) if lock else None
    if lock is None or entry is None:
        return []
    if any(other.digest == entry.digest for other in lock.entries.values() if other.key != key):
        session.out.note(f"`{spec.full_name}` stays installed: the project has it under another name, too")
        return []
    build = locked_build(library, entry)
    return [build] if build is not None else []


def _take_out(session: Session, project: Project, keys: list[AdapterName]) -> None:
    """Out of the project file, and out of the lock, both or neither; what else is stale in the lock stays so."""
    from dataclasses import replace

    from adapterhub.projects.file.editing import text_of_project, without_adapters, write_project
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.places import editing, save_lock

    with editing(session.library, project.folder):
        text = without_adapters(text_of_project(project.folder), keys)
        lock = previous_lock(project)
        write_project(project.folder, text)
        if lock is not None:
            adapters = tuple(entry for entry in lock.adapters if entry.key not in keys)
            merges = tuple(entry for entry in lock.merges if entry.key not in keys)
            save_lock(session, project, replace(lock, adapters=adapters, merges=merges))
