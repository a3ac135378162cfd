"""`adapt remove`: remove an installed adapter; `adapt gc` frees its space."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import installed_builds, several_fit
from adapterhub.cli.options.params import SPEC, Session, common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--all-versions", is_flag=True, help="Remove every build with this name.")
@click.option("--yes", "-y", is_flag=True, help="Remove without a prompt.")
@common
def remove(session: Session, spec: AdapterSpec, all_versions: bool, yes: bool) -> None:
    """Remove an adapter from the library. Its bytes stay in the store until `adapt gc`.

    Where the version has builds of several ranks, asks which to remove; --yes removes them all.

    \b
    Example:
      adapt remove legal-qa==1.0.0 --yes
    """
    library = session.library
    builds = builds_to_remove(library, [spec], all_versions=all_versions, yes=yes)
    names = ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)
    library.remove(builds)
    session.out.result([removed_document(b) for b in builds], lambda: session.out.line(f"removed {names}"))
    session.out.hint("`adapt gc` frees the disk space")


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

    names = ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)
    if names and not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(f"cannot ask before removing {names}: not a terminal", hint="pass `--yes` to confirm")
        click.confirm(f"Remove {names}?", abort=True, err=True)


def removed_document(build: Installed) -> dict[str, Any]:
    """The JSON document of a removed build."""
    return {"name": build.full_name, "version": build.manifest.version, "digest": build.manifest.digest}
