"""The options of `install --save`, and what excludes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.core.errors import UsageProblem

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
