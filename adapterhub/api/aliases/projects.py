"""Aliases of a project: set in its file, locked and synced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.api.aliases.steps import Targets, weights_of
from adapterhub.api.steps.projects import sync_project
from adapterhub.core.aliases import parse_alias
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.aliases import locked_alias
from adapterhub.projects.file.editing import project_of, text_of_project, with_alias
from adapterhub.projects.lock.lockfile import previous_lock, read_lock
from adapterhub.projects.places import ProjectSources, editing, lock_now
from adapterhub.projects.saving import Saving, key_of, save

if TYPE_CHECKING:
    from adapterhub.core.aliases import Alias
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session


def set_project_alias(
    session: Session, name: str, targets: Targets, *, syncs: bool = True, offline: bool = False, bars: Bars
) -> Alias:
    """Set an alias of the session's project, lock it, and sync unless `syncs` is false.

    Raises:
        NotFound: there is no project, or it has no such adapter.
        UsageProblem, SpecError: a target names no version, or the name or the targets are not usable.
        AdapterHubError: the versions cannot be locked; the project file is as before.
    """
    project, name, weights = session.need_project(), parse_alias(name), weights_of(targets)
    keys = sorted({key_of(project, spec) for spec, _ in targets})
    if len(keys) > 1:
        raise UsageProblem(
            f"an alias belongs to one adapter, and these are {', '.join(keys)}. Nothing was changed",
            hint="set it for each adapter by itself",
        )
    versions = {spec.pinned_version: weight for (spec, _), weight in zip(targets, weights, strict=True)}
    wanted = {version: weight for version, weight in versions.items() if version is not None}
    if len(wanted) < len(targets):
        raise UsageProblem(
            "a project's alias means exact versions, each named once. Nothing was changed",
            hint=f"write `{keys[0]}==VERSION`",
        )
    with editing(session.library, project.folder) as now:
        text = with_alias(text_of_project(now.folder), keys[0], name, wanted)
        project, previous = project_of(text, now.folder), previous_lock(now)
        sources = ProjectSources(session, project, offline=offline)
        sources.settle(previous)
        outcome = lock_now(session, project, sources, previous=previous, bars=bars)
        save(session, Saving(project=project, text=text, outcome=outcome))
    for warning in outcome.warnings:
        session.out.warn(warning)
    if syncs:
        sync_project(session, project, offline=offline, delete=lambda _: (), bars=bars)
    alias = locked_alias(read_lock(project.folder).entries, keys[0], name)
    assert alias is not None  # it was just locked
    return alias
