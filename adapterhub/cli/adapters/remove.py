"""`adapt remove`: remove an installed adapter; `adapt gc` frees its space."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import installed_builds
from adapterhub.cli.options.params import SPEC, Session, common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--all-versions", is_flag=True, help="Remove every build with this name.")
@click.option("--yes", "-y", is_flag=True, help="Remove without a prompt.")
@common
def remove(session: Session, spec: AdapterSpec, all_versions: bool, yes: bool) -> None:
    """Remove an adapter from the library. Its bytes stay in the store until `adapt gc`.

    \b
    Example:
      adapt remove legal-qa==1.0.0 --yes
    """
    library = session.library
    builds = installed_builds(library, spec, all_versions=all_versions)
    names = confirm_removal(builds, yes=yes)
    library.remove(builds)
    session.out.result([removed_document(b) for b in builds], lambda: session.out.line(f"removed {names}"))
    session.out.hint("`adapt gc` frees the disk space")


def confirm_removal(builds: Sequence[Installed], *, yes: bool) -> str:
    """Ask before the removal of `builds`; returns their names.

    Raises:
        UsageProblem: confirmation is needed and stdin is not a terminal.
    """
    from adapterhub.core.errors import UsageProblem

    names = ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)
    if names and not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(f"cannot ask before removing {names}: not a terminal", hint="pass `--yes` to confirm")
        click.confirm(f"Remove {names}?", abort=True, err=True)
    return names


def removed_document(build: Installed) -> dict[str, Any]:
    """The JSON document of a removed build."""
    return {"name": build.full_name, "version": build.manifest.version, "digest": build.manifest.digest}
