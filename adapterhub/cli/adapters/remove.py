"""`adapt remove`: remove installed adapters, and with --save those of the project; `adapt gc` frees their space."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import installed_builds
from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option("--save", is_flag=True, help="Also remove it from the project's adapters.toml and adapters.lock.")
@click.option("--all-versions", is_flag=True, help="Remove every build with this name.")
@click.option("--yes", "-y", is_flag=True, help="Remove without a prompt.")
@project_option
@common
def remove(session: Session, specs: tuple[AdapterSpec, ...], save: bool, all_versions: bool, yes: bool) -> None:
    """Remove adapters from the library, and from the project with --save.

    Their bytes stay in the store until `adapt gc`. With --save, give the names that the project uses; a build that
    another name of the project uses stays installed. Refuses to remove an adapter that the project's merges need.
    `adapt uninstall` is the same command.

    \b
    Examples:
      adapt remove legal-qa==1.0.0 --yes
      adapt remove legal-qa --save --yes
    """
    library = session.library
    keys: list[AdapterName] = []
    if save:
        from adapterhub.projects.saving import builds_of_key, key_of, take_out

        project = session.need_project()
        keys = [key_of(project, spec) for spec in specs]
        builds = [b for key, spec in zip(keys, specs, strict=True) for b in builds_of_key(session, project, key, spec)]
        confirm_removal(builds, yes=yes)
        take_out(session, project, keys)
    else:
        builds = [b for spec in specs for b in installed_builds(library, spec, all_versions=all_versions)]
        confirm_removal(builds, yes=yes)
    library.remove(builds)
    document: dict[str, Any] = {"removed": [_document(b) for b in builds], "project_names": keys}
    session.out.result(document, lambda: _say(session, builds, keys))
    if builds:
        session.out.hint("`adapt gc` frees the disk space")
    if keys:
        session.out.hint("`adapt sync --prune` removes it from `adapters/`")


def confirm_removal(builds: Sequence[Installed], *, yes: bool) -> None:
    """Ask before the removal of `builds`.

    Raises:
        UsageProblem: confirmation is needed and stdin is not a terminal.
    """
    from adapterhub.core.errors import UsageProblem

    names = _names(builds)
    if names and not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(f"cannot ask before removing {names}: not a terminal", hint="pass `--yes` to confirm")
        click.confirm(f"Remove {names}?", abort=True, err=True)


def _say(session: Session, builds: Sequence[Installed], keys: Sequence[AdapterName]) -> None:
    if builds:
        session.out.line(f"removed {_names(builds)}")
    for key in keys:
        session.out.line(f"removed {key} from the project")


def _names(builds: Sequence[Installed]) -> str:
    return ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)


def _document(build: Installed) -> dict[str, Any]:
    return {"name": build.full_name, "version": build.manifest.version, "digest": build.manifest.digest}
