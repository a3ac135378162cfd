"""`adapt remove`: remove installed adapters, and with --save those of the project; `cache clean` frees their space."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import SPEC, Session, common, project_option
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
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

    Their bytes stay in the store until `adapt cache clean`. With --save, give the names that the project uses; a build
    that another name of the project uses stays installed. Refuses to remove an adapter that the project's merges need.

    If the version has builds of several ranks, asks which to remove; --yes removes them all.

    \b
    Examples:
      adapt remove legal-qa==1.0.0 --yes
      adapt remove legal-qa --save --yes
    """
    choose = (lambda _spec, builds: builds) if yes else _asked if sys.stdin.isatty() else None
    agree = None if yes else _agree
    gone = session.opened.remove(*specs, save=save, all_versions=all_versions, choose=choose, agree=agree)

    def text() -> None:
        if gone.builds:
            session.out.line(f"removed {_names(gone.builds)}")
        session.out.lines([f"removed {key} from the project" for key in gone.project_names])

    session.out.result(gone.to_json(), text)
    if gone.builds:
        session.out.hint("`adapt cache clean` frees the disk space")
    if gone.project_names:
        session.out.hint("`adapt sync --prune` removes it from `adapters/`")


def _asked(spec: AdapterSpec, builds: Sequence[Installed]) -> Sequence[Installed]:
    """Those of `builds` that the user chooses on the terminal."""
    click.echo(f"`{spec}` fits {len(builds)} builds:", err=True)
    for number, build in enumerate(builds, 1):
        click.echo(f"  {number}  {build.full_name} {build.manifest.label}  {build.spec}", err=True)
    numbers = [str(number) for number in range(1, len(builds) + 1)]
    answer = click.prompt("Remove which, or `all`", type=click.Choice([*numbers, "all"]), err=True)
    return builds if answer == "all" else [builds[int(answer) - 1]]


def _agree(builds: Sequence[Installed]) -> None:
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"cannot ask before removing {_names(builds)}: not a terminal", hint="pass `--yes` to confirm"
        )
    click.confirm(f"Remove {_names(builds)}?", abort=True, err=True)


def _names(builds: Sequence[Installed]) -> str:
    return ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)
