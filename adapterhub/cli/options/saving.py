"""`install --save`: what was installed becomes an adapter of the project, and its lock names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.core.errors import AdapterHubError, Conflict, UsageProblem
from adapterhub.core.specs import parse_name

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.distribution.choosing import RankBounds
    from adapterhub.distribution.install import Plan
    from adapterhub.library.library import Library
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.values import Project, Wanted

F = TypeVar("F", bound=Callable[..., Any])


def save_options(command: F) -> F:
    """`--save` and `--group`."""
    for option in (
        click.option(
            "--group",
            metavar="NAME",
            shell_complete=complete_group,
            help="With --save: an optional group of the project to put it in.",
        ),
        click.option("--save", is_flag=True, help="Write it into the project's adapters.toml and adapters.lock, too."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One adapter that was installed and is to be saved."""

    spec: AdapterSpec
    bounds: RankBounds
    plan: Plan


def project_to_save_in(
    session: Session, *, save: bool, group: str | None, dry_run: bool, allow_base_mismatch: bool
) -> Project | None:
    """The project to save in; None without `--save`.

    Raises:
        UsageProblem: options that do not go together, or a group that cannot be named so.
        NotFound: there is no project here.
    """
    if group is not None and not save:
        raise UsageProblem("`--group` names a group of the project, which needs `--save`")
    if save and dry_run:
        raise UsageProblem("`--dry-run` writes nothing, so it goes without `--save`")
    if save and allow_base_mismatch:
        hint = (
            "without `--save` it is installed for you alone; `adapt init DIR --base BASE` makes a project for its base"
        )
        raise UsageProblem("a project locks builds for its own base alone, so `--save` takes no mismatch", hint=hint)
    if group is not None:
        parse_name(group)  # before anything is installed
    return session.need_project() if save else None


def save_installed(
    session: Session,
    library: Library,
    project: Project,
    places: SpecSources,
    installed: list[Saved],
    *,
    group: str | None,
) -> None:
    """Write what was installed into the project file and the lock, both or neither.

    Raises:
        Conflict: a name stands for another adapter in this project, or what is wanted cannot be had together.
    """
    from adapterhub.cli.options.lock_changes import tell_changes, tell_only_here
    from adapterhub.projects.file.editing import project_of, text_of_project, with_adapter, write_project
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.locking import locked_adapter
    from adapterhub.projects.places import lock_now, save_lock
    from adapterhub.projects.values import LockedAdapter, ProjectRemote

    named: dict[str, ProjectRemote] = {one.name: one for one in project.remotes}
    text = text_of_project(project.folder)
    chosen: dict[AdapterName, LockedAdapter] = {}
    try:
        for one in installed:
            wanted = _wanted(one, project, group, places.remote if places.remote in named else None)
            text = with_adapter(text, wanted)
            chosen[wanted.key] = locked_adapter(project, library, wanted, one.plan.release, one.plan.source)
        project = project_of(text, project.folder)
        previous = previous_lock(project)
        outcome = lock_now(
            session, project, places.project_sources(project), previous=previous, given=chosen, bars=session.out
        )
    except AdapterHubError:
        session.out.note("installed, but not saved: the project is as it was")
        raise
    write_project(project.folder, text)
    save_lock(session, project, outcome.lock)
    for warning in outcome.warnings:
        session.out.warn(warning)
    if not session.out.as_json:
        tell_changes(session, outcome.changes)
    tell_only_here(session, outcome.lock)


def _wanted(one: Saved, project: Project, group: str | None, remote: str | None) -> Wanted:
    """What the project asks for from now on: what was typed, and where no version was, this one or a newer."""
    from packaging.version import Version

    from adapterhub.projects.places import base_to_write
    from adapterhub.projects.values import Wanted

    release, spec = one.plan.release, one.spec
    specifiers = spec.specifiers
    if not specifiers and spec.digest_prefix is None:
        version = Version(release.manifest.version)
        # snapshots such as `0+0123456789ab` have no order
        specifiers = f"=={version}" if version.local else f">={version}"
    base = base_to_write(spec.base, project.folder) if spec.base is not None else None
    base = None if base == project.base else base
    saved = replace(spec, namespace=release.namespace, base=base, specifiers=specifiers)
    before = next((wanted for wanted in project.adapters if wanted.key == spec.name), None)
    if before is not None and before.spec.full_name not in (saved.full_name, spec.name):
        raise Conflict(
            f"`{spec.name}` is `{before.spec.full_name}` in this project, not `{saved.full_name}`",
            hint=f'give one of them another name in the project file, as in `other-name = "{saved}"`',
        )
    return Wanted(
        key=spec.name,
        spec=saved,
        rank=one.bounds.rank,
        min_rank=one.bounds.min_rank,
        max_rank=one.bounds.max_rank,
        group=group if group is not None or before is None else before.group,
        remote=remote,
    )
