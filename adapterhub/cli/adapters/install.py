"""`adapt install`: choose a build that fits, show it and install it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.cli.options.params import (
    BASE,
    SPEC,
    Session,
    common,
    exclude_newer_option,
    places_option,
    project_option,
    rank_option,
    remote_options,
    signatures_option,
)
from adapterhub.cli.options.testing import install_test_options
from adapterhub.cli.output import size_text
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.install import Install

F = TypeVar("F", bound=Callable[..., Any])


def save_options(command: F) -> F:
    """Add `--save`, `--no-sync` and `--group`."""
    for option in (
        click.option(
            "--group",
            metavar="NAME",
            shell_complete=complete_group,
            help="With --save: put the adapter into this optional group of the project.",
        ),
        click.option("--no-sync", is_flag=True, help="With --save: leave the project's adapters/ alone."),
        click.option(
            "--save", is_flag=True, help="Also add the adapter to the project: adapters.toml, lock file and adapters/."
        ),
    ):
        command = option(command)
    return command


def check_saving(*, save: bool, no_sync: bool, group: str | None, dry_run: bool, allow_base_mismatch: bool) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageProblem: some do.
    """
    if group is not None and not save:
        raise UsageProblem("`--group` needs `--save`, because a group belongs to the project")
    if no_sync and not save:
        raise UsageProblem("`--no-sync` needs `--save`; without it, nothing is synced")
    if save and dry_run:
        raise UsageProblem("`--dry-run` and `--save` exclude each other: `--dry-run` writes nothing")
    if save and allow_base_mismatch:
        hint = "without `--save` only your library gets it; `adapt init DIR --base BASE` creates a project for its base"
        raise UsageProblem(
            "`--allow-base-mismatch` and `--save` exclude each other: a project locks builds for its own base only",
            hint=hint,
        )


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option(
    "--requirements",
    "-r",
    "requirements",
    multiple=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Also install every spec in FILE, as `adapt export` writes it; `-` reads stdin.",
)
@places_option(
    "Also look in this library, directory of published builds or PEFT folder; may be repeated "
    "[default: ADAPTERHUB_SOURCES]."
)
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@rank_option
@click.option("--dry-run", is_flag=True, help="Show what would be installed, from where, and its size; change nothing.")
@click.option(
    "--allow-base-mismatch",
    is_flag=True,
    help="Accept a build made for other weights of the same shapes (a fine-tune), and record that.",
)
@click.option(
    "--accept-repository",
    "accept_repository",
    multiple=True,
    metavar="ORG/REPO",
    help="Let this repository supply an adapter whose name came from another one; may be repeated.",
)
@exclude_newer_option
@install_test_options
@save_options
@project_option
@signatures_option
@remote_options
@common
def install(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    dry_run: bool,
    allow_base_mismatch: bool,
    save: bool,
    no_sync: bool,
    group: str | None,
    **options: Any,
) -> None:
    """Install an adapter that fits a base.

    `legal-qa@base-7b` is looked up in the library, then in the places of --from, then in the namespaces of the remotes.
    `acme/legal-qa@base-7b` comes from the remote of namespace `acme`, or from the default remote. A version is
    `==1.2`, `>=1.2,<2` or `~=1.4`. An installed build is not downloaded again.

    Inside a project, the project's base applies where a spec names none, its remotes come first, and its policy
    applies. --save adds the adapter to the project: to `adapters.toml`, to the lock file and, as `adapt sync` does, to
    `adapters/`.

    \b
    Examples:
      adapt install legal-qa@base-7b --from ./published
      adapt install 'acme/legal-qa@base-7b>=1.2,<2' --rank -16 --dry-run
      adapt install acme/legal-qa@base-7b --remote ours --signatures require
      adapt install acme/legal-qa@base-7b --exclude-newer 7d
      adapt install 'acme/legal-qa~=1.2' --save
      adapt install acme/legal-qa@base-7b --test
      adapt install -r adapters.txt
    """
    check_saving(save=save, no_sync=no_sync, group=group, dry_run=dry_run, allow_base_mismatch=allow_base_mismatch)
    if not save:
        done = session.opened.install(*specs, dry_run=dry_run, allow_base_mismatch=allow_base_mismatch, **options)
        session.out.result(done, lambda: _say(session, done, dry_run=dry_run))
        return
    from adapterhub.cli.projects.lock import say_changes
    from adapterhub.cli.projects.sync import say_synced

    project = session.opened_project
    saved = project.install(*specs, group=group, sync=not no_sync, **options)

    def say() -> None:
        _say(session, saved.installs, dry_run=False)
        say_changes(session, saved.changes)
        if saved.sync is not None:
            say_synced(session, saved.sync)

    session.out.result(saved.installs, say)


def _say(session: Session, done: Sequence[Install], *, dry_run: bool) -> None:
    for one in done:
        manifest, origin = one.manifest, one.release.origin
        what = f"{one.release.full_name} {manifest.version}" + (f" (rank {manifest.rank})" if manifest.rank else "")
        if one.is_present:
            session.out.line(f"{what} is already installed: {one.folder}")
        elif dry_run:
            size = f"{size_text(one.copy_bytes)} ({one.copy_bytes:,} bytes)"
            session.out.line(f"would install {what} from {origin}: {size} to fetch")
            for entry in one.files:
                there = "" if entry.fetch else "  (already in the store)"
                session.out.line(f"  {entry.path}  {entry.size_bytes:,} bytes  {entry.sha256}{there}")
        else:
            session.out.line(f"installed {what} from {origin}  {one.folder}")
            if one.tests is None and one.has_contract:
                session.out.hint(f"it has a contract; `adapt test {one.release.full_name}` asks it on your base")
