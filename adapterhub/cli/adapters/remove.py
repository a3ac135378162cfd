"""`adapt remove`: remove installed adapters, and with --save those of the project; `adapt gc` frees their space."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import installed_builds, several_fit
from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.library.library import Library
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

    Where the version has builds of several ranks, asks which to remove; --yes removes them all.

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
        builds = builds_to_remove(library, specs, all_versions=all_versions, yes=yes)
    library.remove(builds)
    document: dict[str, Any] = {"removed": [_document(b) for b in builds], "project_names": keys}
    session.out.result(document, lambda: _say(session, builds, keys))
    if builds:
        session.out.hint("`adapt gc` frees the disk space")
    if keys:
        session.out.hint("`adapt sync --prune` removes it from `adapters/`")


def builds_to_remove(
    library: Library, specs: Sequence[AdapterSpec], *, all_versions: bool, yes: bool
) -> list[Installed]:
    """The builds that the user agrees to remove: asks which where a spec fits several ranks, then confirms.

    Raises:
        UsageProblem: an answer is needed and stdin is not a terminal.
    """
    found: list[tuple[AdapterSpec, list[Installed]]] = [
        (spec, installed_builds(library, spec, all_versions=all_versions)) for spec in specs
    ]
    chosen: list[Installed] = []
    clear: list[Installed] = []
    for spec, builds in found:
        if len(builds) == 1 or all_versions or yes:
            clear += builds
        elif not sys.stdin.isatty():
            raise several_fit(spec, builds, hint="name one of them, or pass `--yes` to remove them all")
        else:
            chosen += _asked(spec, builds)
    confirm_removal(clear, yes=yes)
    return list({build.folder: build for build in (*clear, *chosen)}.values())


def _asked(spec: AdapterSpec, builds: Sequence[Installed]) -> Sequence[Installed]:
    """Those of `builds` that the user chooses on the terminal."""
    click.echo(f"`{spec}` fits {len(builds)} builds:", err=True)
    for number, build in enumerate(builds, 1):
        click.echo(f"  {number}  {build.full_name} {build.manifest.label}  {build.spec}", err=True)
    numbers = [str(number) for number in range(1, len(builds) + 1)]
    answer = click.prompt("Remove which, or `all`", type=click.Choice([*numbers, "all"]), err=True)
    return builds if answer == "all" else [builds[int(answer) - 1]]


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
