"""`install --save`: add installed adapters to the project and its lock file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.core.errors import AdapterHubError, UsageProblem
from adapterhub.core.specs import parse_name

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.saving import Saved
    from adapterhub.projects.values import Project

F = TypeVar("F", bound=Callable[..., Any])


def save_options(command: F) -> F:
    """Add `--save` and `--group`."""
    for option in (
        click.option(
            "--group",
            metavar="NAME",
            shell_complete=complete_group,
            help="With --save: put the adapter into this optional group of the project.",
        ),
        click.option("--save", is_flag=True, help="Also add the adapter to the project's adapters.toml and lock file."),
    ):
        command = option(command)
    return command


def project_to_save_in(
    session: Session, *, save: bool, group: str | None, dry_run: bool, allow_base_mismatch: bool
) -> Project | None:
    """The project to save to; None without `--save`.

    Raises:
        UsageProblem: options exclude each other, or the group's name is invalid.
        NotFound: there is no project here.
    """
    if group is not None and not save:
        raise UsageProblem("`--group` needs `--save`, because a group belongs to the project")
    if save and dry_run:
        raise UsageProblem("`--dry-run` and `--save` exclude each other: `--dry-run` writes nothing")
    if save and allow_base_mismatch:
        hint = "without `--save` only your library gets it; `adapt init DIR --base BASE` creates a project for its base"
        raise UsageProblem(
            "`--allow-base-mismatch` and `--save` exclude each other: a project locks builds for its own base only",
            hint=hint,
        )
    if group is not None:
        parse_name(group)  # before anything is installed
    return session.need_project() if save else None


def save_and_tell(
    session: Session, project: Project, places: SpecSources, installed: list[Saved], *, group: str | None
) -> None:
    """Save the installed adapters and print what changed in the lock.

    Raises:
        Conflict: the project cannot take them, as `plan_saving` explains.
    """
    from adapterhub.cli.options.lock_changes import tell_changes, tell_only_here
    from adapterhub.projects.saving import plan_saving, save

    try:
        saving = plan_saving(session, project, places, installed, group=group, bars=session.out)
    except AdapterHubError:
        session.out.note("installed, but not saved: the project is unchanged")
        raise
    save(session, saving)
    outcome = saving.outcome
    for warning in outcome.warnings:
        session.out.warn(warning)
    if not session.out.as_json:
        tell_changes(session, outcome.changes)
    tell_only_here(session, outcome.lock)
