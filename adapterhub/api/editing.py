"""Edit a project from Python: install into it, take out of it, roll it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.aliases import TargetsLike, set_project_alias, targets_of
from adapterhub.api.opened import BaseLike, PythonSession, SpecLike, base_of, paths_of, spec_of
from adapterhub.core.arguments import StrPath, parsed
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.projects import saving
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.api.library import Library
    from adapterhub.api.steps.upgrades.projects import Preview
    from adapterhub.core.specs import AdapterName
    from adapterhub.formats.alias import Alias
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects import values


@parsed
class WithEdits:
    """Everything that changes what a project asks for or goes back to."""

    folder: Path
    library: Library
    _session: PythonSession

    def _read(self) -> values.Project:
        from adapterhub.projects.project import read_project

        return read_project(self.folder)

    def set_alias(self, name: str, targets: TargetsLike, *, sync: bool = True, offline: bool = False) -> Alias:
        """Set an alias in `adapters.toml`, lock it, and sync: `project.set_alias("prod", "legal-qa==1.2")`.

        Args:
            name: one word; the alias belongs to the project's adapter of the target.
            targets: an exact version, or several with weights above 0.
            sync: bring the targets into `adapters/`.
            offline: use no network.

        Raises:
            NotFound: the project has no such adapter.
            UsageProblem, SpecError: a target names no version, or the name or the targets are not usable.
            AdapterHubError: the versions cannot be locked; the project file is as before.
        """
        pairs = targets_of(targets)
        return set_project_alias(self._session, name, pairs, syncs=sync, offline=offline, bars=self.library.reports)

    def install(
        self,
        spec: SpecLike,
        *,
        group: str | None = None,
        sync: bool = True,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        places: StrPath | Iterable[StrPath] = (),
        exclude_newer: str | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Installed:
        """Install an adapter, save it in `adapters.toml` and `adapters.lock`, and sync, as `adapt install --save` does.

        `group` is an optional group to put it in; `sync=False` leaves `adapters/` alone. The other arguments and the
        errors are those of `Library.install`.
        """
        from adapterhub.api.steps.installing import install_all, plan_one
        from adapterhub.api.steps.projects import save_installed
        from adapterhub.projects.places import SpecSources, objection_from, project_base

        session, asked = self._session, spec_of(spec)
        where = SpecSources(session, paths_of(places), remote=remote, token=token, offline=offline)
        bounds = RankRange.of(rank)
        plan = plan_one(
            session,
            asked,
            where,
            base=base_of(base) or project_base(session),
            base_is_typed=base is not None,
            bounds=bounds,
            objection=objection_from(session, exclude_newer),
        )
        bars = self.library.reports
        (added,) = install_all(session, [plan], where, signatures, bars=bars, what=asked.full_name)
        saved = saving.Saved(spec=plan.asked.spec, bounds=bounds, plan=plan)
        save_installed(session, self.folder, where, [saved], group=group, syncs=sync, signatures=signatures, bars=bars)
        build = added.build if added else plan.present
        assert build is not None  # an install that was not refused
        return build

    def uninstall(self, *names: str) -> Sequence[Installed]:
        """Take adapters out of the project file and the lock, and remove from the library what no other name needs.

        Raises:
            NotFound: the project has no such name.
            Malformed: a merge of the project is made of one.
        """
        project = self._read()
        keys: list[AdapterName] = [saving.key_of(project, spec_of(name)) for name in names]
        builds = [
            build
            for key, name in zip(keys, names, strict=True)
            for build in saving.builds_of_key(self._session, project, key, spec_of(name))
        ]
        saving.take_out(self._session, project, keys)
        self.library.remove(builds)
        return builds

    def rollback(self, *names: str, dry_run: bool = False, offline: bool = False) -> Preview:
        """Go back, under each name, to the build that the lock held before, and sync.

        If the project file asked for something else then, that entry is restored as well. Each call goes one step
        further back; `upgrade` goes forward again.

        Returns:
            `.changes` in the lock and `.folders` that changed; with `dry_run` nothing is written.

        Raises:
            NotFound: the project has no such name, or no earlier build of it is known on this machine.
            StaleLock: the lock does not answer the project file.
            Conflict: the earlier build is for another base, of a remote that is gone, or a merge of other inputs.
            AdapterNotFound, RemoteUnreachable: the earlier build cannot be had any more; nothing was changed.
        """
        from adapterhub.api.steps.upgrades.projects import Preview, preview_rollback, roll_back
        from adapterhub.projects.places import ProjectSources

        project, bars = self._read(), self.library.reports
        sources = ProjectSources(self._session, project, offline=offline)
        if dry_run:
            return preview_rollback(self._session, project, names, sources, bars=bars)
        outcome, synced = roll_back(self._session, project, names, sources, bars=bars)
        folders = tuple(step.folder for step, what in synced.done.steps if what != "kept")
        return Preview(changes=tuple(outcome.changes), folders=folders, warnings=tuple(outcome.warnings))
