"""`adapterhub.Project`: one project, with a method for everything that the command line does in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from adapterhub.api.aliases import TargetsLike, set_project_alias, targets_of
from adapterhub.api.describing import bill_of_lock
from adapterhub.api.installing import Requirements, ensure_upgrade, gate_of, install_specs, offers_for, specs_of
from adapterhub.api.library import Library
from adapterhub.api.opened import BaseLike, SpecLike, base_of, paths_of, spec_of
from adapterhub.core.arguments import Count, LoadIn, Precision, StrPath, Testing, parsed, path_of
from adapterhub.core.digests import Digest
from adapterhub.core.disk.home import ADAPTERS_FOLDER, LOCK_FILE, PROJECT_FILE
from adapterhub.core.display import html_table, listed
from adapterhub.core.errors import AdapterHubError, BaseNotFound, NotFound, StaleLock, UsageProblem, shown
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.core.specs import parse_name
from adapterhub.formats.documented import Documented
from adapterhub.projects import saving
from adapterhub.projects.builds import ProjectNames
from adapterhub.projects.file import create_project, write_project
from adapterhub.projects.lock.lockfile import lock_problems, previous_lock, read_lock, wanted_text
from adapterhub.projects.locking import ALL, Change, DropIn, LockOutcome, LockReport, MakeMerge, changes_between
from adapterhub.projects.places import (
    Asked,
    ProjectSources,
    SpecSources,
    Where,
    base_to_write,
    build_sources,
    editing,
    lock_now,
    save_lock,
)
from adapterhub.projects.project import find_project, read_project
from adapterhub.projects.rollback import History, plan_rollback
from adapterhub.projects.sync import Synced, SyncPlan, bring_locked, exact_list, wanted_entries
from adapterhub.projects.syncing import (
    LockMoved,
    LockPlan,
    Syncing,
    groups_there,
    plan_there,
    sync_locked,
    sync_project,
    yanked_notices,
)
from adapterhub.projects.values import Lock, LockedMerge, LockedSource
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import DropIns
    from adapterhub.api.upkeep import Removed
    from adapterhub.distribution.install import Install
    from adapterhub.distribution.outdated import Offer
    from adapterhub.formats.alias import Alias
    from adapterhub.library.upkeep.lineage import Tree
    from adapterhub.projects import values
    from adapterhub.projects.rollback import Rollback
    from adapterhub.projects.session import Session
    from adapterhub.projects.tree import Holders, Needs, ProjectTree
    from adapterhub.projects.trust import RevokedProject, TrustedProject
    from adapterhub.projects.values import Locked, MergeRequirement


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedInstalls:
    """Adapters that were installed and saved in a project: what changed in its lock, and the sync after it."""

    installs: tuple[Install, ...]
    changes: tuple[Change, ...]
    sync: Synced | None


@parsed
class Project(Documented, keys="project=folder file base", title="Init"):
    """The project in a folder: `adapters.toml`, what it wants, and `adapters.lock`, what it got.

    `library` is where its adapters are installed; default: the library of the command line. With `trust`, its servers
    are asked without the agreement that `trust()` records.

    Example:
        >>> import adapterhub
        >>> project = adapterhub.Project.create("assistant", base="base-7b")
        >>> project
        <Project .../assistant, base base-7b, 0 adapters>
    """

    folder: Annotated[Path, "its folder"]
    library: Library
    _session: Session

    def __init__(self, folder: StrPath, *, library: Library | StrPath | None = None, trust: bool = False) -> None:
        """Open a project.

        Raises:
            NotFound: the folder has no `adapters.toml`.
            Malformed: it cannot be used; every problem with its place.
        """
        self.folder = path_of(folder).absolute()
        self._read()
        opened = Library.default() if library is None else library
        self.library = opened if isinstance(opened, Library) else Library(opened)
        self._session = replace(self.library.session, project_dir=self.folder, trusts_project=trust)
        if library is None:
            self.library.session = self._session
            self._session.bind(self.library)
            self.library.resolve_name = ProjectNames(self.folder).build
        self._has_own_library = library is not None

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the project of the same folder, with the same library and trust."""
        library = self.library if self._has_own_library else None
        return _reopened, (self.folder, library, self._session.trusts_project)

    # ------------------------------------------------------------ make and read
    @classmethod
    def find(cls, start: StrPath = ".", *, library: Library | StrPath | None = None, trust: bool = False) -> Project:
        """Return the project in the nearest folder with an `adapters.toml`, from `start` upwards.

        Raises:
            NotFound: neither `start` nor a folder above it has one.
            Malformed: it cannot be used.
        """
        folder = find_project(path_of(start))
        if folder is None:
            raise NotFound(
                f"no project: neither `{Path(start).absolute()}` nor a folder above it has an `adapters.toml`",
                hint="`Project.create(folder)` makes one",
            )
        return cls(folder, library=library, trust=trust)

    @classmethod
    def create(
        cls, folder: StrPath = ".", *, base: BaseLike | None = None, library: Library | StrPath | None = None
    ) -> Project:
        """Make a project of a folder: write its `adapters.toml`. Warns if the base is not registered here yet.

        Raises:
            Conflict: it has one.
        """
        place, spec = path_of(folder), base_of(base)
        outer = find_project(place.absolute().parent)
        base_there = base_to_write(spec, place) if spec is not None else None
        create_project(place, base_there)
        made = cls(place, library=library)
        if outer is not None:
            made._session.out.note(f"`{outer}` is also a project; commands inside `{place}` use the new one")
        if base_there is not None and base_there.kind == "alias":
            try:
                made.library.bases.get(base_there.text)
            except BaseNotFound as error:
                hint = f"`adapt base add PATH --as {base_there.text}` registers it"
                made._session.out.warn(f"{error.message} is registered yet; {hint}")
        if base_there is not None and base_there.kind == "path" and not (place / path_of(base_there.text)).is_dir():
            made._session.out.warn(f"no folder `{base_there.text}` in `{place}` yet")
        return made

    @property
    def file(self) -> Path:
        """Its `adapters.toml`."""
        return self.folder / PROJECT_FILE

    @property
    def lock_file(self) -> Path:
        """Path of the lock file, which may not exist yet."""
        return self.folder / LOCK_FILE

    def _read(self) -> values.Project:
        return read_project(self.folder)

    @property
    def base(self) -> str | None:
        """As the file writes it."""
        base = self._read().base
        return str(base) if base else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters and merges that the project file asks for."""
        return tuple(str(wanted.key) for wanted in self._read().requirements)

    @property
    def locked(self) -> values.Lock:
        """What the lock file holds: `.adapters`, `.merges`, `.base`.

        Raises:
            NotFound: nothing is locked yet.
        """
        return read_lock(self.folder)

    def path(self, name: str) -> Path:
        """Return the folder of an adapter in the project's `adapters/`.

        Raises:
            NotFound: the project has no such name, or it was not synced.
        """
        place = self.folder / ADAPTERS_FOLDER / name
        if name not in self.names or not place.is_dir():
            raise NotFound(f"`{name}` is not in `{self.folder / ADAPTERS_FOLDER}`", hint="`sync` brings it")
        return place

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        project = self._read()
        base = f", base {project.base}" if project.base else ""
        count = len(project.requirements)
        return f"<Project {self.folder}{base}, {count} adapter{'s' * (count != 1)}>"

    def _repr_html_(self) -> str:
        entries: dict[str, values.LockedAdapter | values.LockedMerge] = {}
        with contextlib.suppress(NotFound):
            entries = {str(key): entry for key, entry in self.locked.entries.items()}
        rows = [
            (name, entry.version if (entry := entries.get(name)) else None, entry.digest if entry else None)
            for name in self.names
        ]
        return html_table(("name", "locked", "digest"), rows, caption=str(self.folder))

    # ------------------------------------------------------------ lock and sync
    def lock(
        self,
        *names: str,
        upgrade: bool = False,
        check: bool = False,
        places: StrPath | Iterable[StrPath] = (),
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> LockReport:
        """Lock the project: write `adapters.lock` with the digest of everything that `adapters.toml` asks for.

        Args:
            names: with `upgrade`: choose only these again.
            upgrade: choose again what is locked already.
            check: write nothing and ask no place; raise if the lock is stale.
            places: other places to look in, as `--from` names them.
            remote: ask only this server.
            token: access token for it.
            offline: look in the library and in directories only.

        Returns:
            `.lock`, and without `check` its `.changes`.

        Raises:
            StaleLock: with `check`: the lock does not answer the project file; every reason.
            AdapterNotFound, NoCompatibleRelease, ProjectConflict: no available builds satisfy the project.
            ProjectNotTrusted: a server of the project would be asked; see `trust`.
            UsageProblem: `names` without `upgrade`, or either with `check`.
        """
        if check and (upgrade or names):
            raise UsageProblem("`--check` and `--upgrade` exclude each other: `--check` changes nothing")
        if names and not upgrade:
            raise UsageProblem("names need `--upgrade`", hint=f"`adapt lock --upgrade {' '.join(names)}`")
        project = self._read()
        if check:
            locked = read_lock(self.folder)
            if problems := lock_problems(project, locked):
                raise StaleLock(str(self.lock_file), problems, hint="`adapt lock` updates it")
            return LockReport(project=self.folder, lock=locked, current=True)
        where = Where(places=paths_of(places), remote=remote, token=token, offline=offline)
        previous = previous_lock(project)
        sources = ProjectSources(self._session, project, where)
        sources.settle(previous)
        chosen_anew = ALL if upgrade and not names else names
        outcome = lock_now(self._session, project, sources, previous=previous, upgrade=chosen_anew)
        written = save_lock(self._session, project, outcome.lock)
        self._warn(outcome.warnings)
        self._warn_of_only_here(outcome.lock)
        return LockReport(
            project=self.folder,
            lock=outcome.lock,
            written=written,
            changes=outcome.changes,
            warnings=outcome.warnings,
        )

    def sync(
        self,
        *,
        frozen: bool = False,
        offline: bool = False,
        check: bool = False,
        prune: bool = False,
        groups: Sequence[str] = (),
        all_groups: bool = False,
        delete_foreign: bool = False,
        agree: Callable[[Sequence[Path]], bool] | None = None,
        signatures: SignaturePolicy | None = None,
        test: Testing | None = None,
    ) -> Synced:
        """Make the project's `adapters/` match its lock file, with links into the library.

        Args:
            frozen: never resolve; raise when the lock file does not answer the project.
            offline: open no connection.
            check: read every byte again.
            prune: remove adapters that the lock file does not list.
            groups: also these optional groups.
            all_groups: every optional group.
            delete_foreign: with `prune`: also delete folders that sync did not make.
            agree: without `delete_foreign`, is called with these folders, and returns True to delete them.
            signatures: `require`, `warn` or `off` for this call.
            test: `keep` changes folders only if every build with a contract passes it; `warn` only warns.

        Returns:
            `.lock`, `.plan`, `.tests`, and `.done` with the linked, fetched and removed builds.

        Raises:
            StaleLock, NotFound: with `frozen`.
            UsageProblem: the project lacks a group, or `delete_foreign` is given without `prune`.
            Conflict: something else lies where an adapter belongs; nothing was changed.
            DigestMismatch, AdapterNotFound, RemoteUnreachable: a build is not available; no folder changed.
            BehaviourChanged, CouldNotTell: a build does not pass its test; no folder changed.
        """
        if delete_foreign and not prune:
            raise UsageProblem(
                "`--yes` needs `--prune`, because nothing else deletes folders",
                hint="`adapt sync --prune --yes` deletes them",
            )
        project = self._read()
        _ensure_groups(project, groups)
        gate = gate_of(self._session, test)

        def delete(plan: SyncPlan) -> Sequence[Path]:
            foreign = [*(step.folder for step in plan.blocked), *plan.foreign]
            return foreign if foreign and (delete_foreign or (agree and agree(foreign))) else []

        synced = sync_project(
            self._session,
            project,
            Syncing(
                groups=None if all_groups else groups,
                is_frozen=frozen,
                offline=offline,
                reads_all=check,
                delete=delete if prune else None,
                signatures=signatures,
                test=gate.admit_locked if gate else None,
            ),
        )
        return replace(synced, tests=tuple(gate.results)) if gate else synced

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._session.out.warn(warning)

    def _warn_of_only_here(self, lock: Lock) -> None:
        """Warn of adapters that only this library has: another machine cannot fetch them."""
        keys = [entry.key for entry in lock.adapters if entry.source.is_library]
        if keys:
            told = listed([f"`{key}`" for key in keys], 5)
            self._session.out.warn(f"only this library has {told}; `adapt sync` will fail on other machines")
            self._session.out.note(
                f"hint: publish it with `adapt push {keys[0]} --to DIR` or `--to ORG/NAME`, name that place in "
                f"`[remotes]`, then run `adapt lock --upgrade {keys[0]}`"
            )

    # ------------------------------------------------------------ install and take out
    def install(
        self,
        *specs: SpecLike,
        group: str | None = None,
        sync: bool = True,
        requirements: Requirements | StrPath | Iterable[StrPath] = (),
        places: StrPath | Iterable[StrPath] = (),
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        accept_repository: str | Iterable[str] = (),
        exclude_newer: str | None = None,
        test: Testing | None = None,
        dtype: Precision | None = None,
        load_in: LoadIn | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> SavedInstalls:
        """Install adapters, save them in `adapters.toml` and `adapters.lock`, and sync.

        `group` is an optional group to put them in; `sync=False` does not change `adapters/`. The other arguments and
        the errors are those of `Library.install`.

        Raises:
            Conflict: the project uses a name for another adapter, or something else lies where one belongs in
                `adapters/`. The project is unchanged; a sync that fails leaves it saved and locked.
        """
        if group is not None:
            parse_name(group)  # before anything is installed
        session = self._session
        bounds = RankRange.of(rank)
        where = SpecSources(session, Where(places=paths_of(places), remote=remote, token=token, offline=offline))
        asked = Asked(base=base_of(base), bounds=bounds, exclude_newer=exclude_newer, accepted=accept_repository)
        done = install_specs(
            where,
            specs_of(specs, requirements),
            asked,
            signatures=signatures,
            gate=gate_of(session, test, dtype=dtype, load_in=load_in),
        )
        saved = [saving.Saved(spec=one.plan.asked.spec, bounds=bounds, plan=one.plan) for one in done]
        try:
            with editing(session.library, self.folder) as project:
                plan = saving.plan_saving(session, project, where, saved, group=group)
                lock = plan.outcome.lock
                groups = [name for one in saved if (name := lock.entries[one.spec.name].group) is not None]
                if sync:
                    plan_there(session, self.folder, lock, groups)
                saving.save(session, plan)
        except AdapterHubError:
            session.out.note("installed, but not saved: the project is unchanged")
            raise
        self._warn(plan.outcome.warnings)
        synced = None
        if sync:
            lock = read_lock(self.folder)  # another command may have saved more meanwhile
            sources = where.project_sources(self._read())
            sources.settle(lock)
            try:
                synced = sync_locked(session, self.folder, lock, sources, groups=groups, signatures=signatures)
            except AdapterHubError:
                session.out.note("saved and locked, but not synced: `adapt sync` tries again")
                raise
            done = [
                replace(one, linked=synced.plan.target.path / saved.spec.name)
                for one, saved in zip(done, saved, strict=True)
            ]
        self._warn_of_only_here(plan.outcome.lock)
        return SavedInstalls(installs=tuple(done), changes=plan.outcome.changes, sync=synced)

    def remove(self, *names: str) -> Removed:
        """Take adapters out of the project file and the lock, and remove from the library what no other name needs.

        Raises:
            NotFound: the project has no such name.
            Malformed: a merge of the project is made of one.
        """
        from adapterhub.api.upkeep import remove_saved

        return remove_saved(self._session, [spec_of(name) for name in names])

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
        return set_project_alias(self._session, name, targets_of(targets), syncs=sync, offline=offline)

    # ------------------------------------------------------------ newer and older builds
    @overload
    def upgrade(
        self,
        *names: str,
        check: Literal[True],
        dry_run: bool = ...,
        test: Testing | None = ...,
        places: StrPath | Iterable[StrPath] = ...,
        signatures: SignaturePolicy | None = ...,
        remote: str | None = ...,
        token: str | None = ...,
        offline: bool = ...,
        jobs: Count = ...,
    ) -> Sequence[Offer]: ...
    @overload
    def upgrade(
        self,
        *names: str,
        check: Literal[False] = ...,
        dry_run: bool = ...,
        test: Testing | None = ...,
        places: StrPath | Iterable[StrPath] = ...,
        signatures: SignaturePolicy | None = ...,
        remote: str | None = ...,
        token: str | None = ...,
        offline: bool = ...,
        jobs: Count = ...,
    ) -> LockPlan: ...
    def upgrade(
        self,
        *names: str,
        check: bool = False,
        dry_run: bool = False,
        test: Testing | None = None,
        places: StrPath | Iterable[StrPath] = (),
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
        jobs: Count = 8,
    ) -> LockPlan | Sequence[Offer]:
        """Lock the newest that the project allows, of everything or of `names`, and sync.

        Args:
            names: upgrade only these.
            check: change nothing, and return what each place offers: `.allowed` by the project, `.newest`, `.yanked`,
                `.problem`.
            dry_run: write nothing, and test nothing; merges are listed, not run.
            test: `keep` takes a release only if it passes the contract of the locked one; `warn` takes it with a
                warning.
            places: other places to look in, as `--from` names them.
            signatures: `require`, `warn` or `off` for this call.
            remote: ask only this server.
            token: access token for it.
            offline: look in the library and in directories only.
            jobs: ask for so many adapters at a time.

        Returns:
            `.changes` in the lock, `.folders` that changed, `.warnings`; without `dry_run` a `LockMoved` with `.lock`,
            `.sync` and `.tests`.

        Raises:
            NotFound: with `check`, nothing is locked, or the project has no adapter by a name.
            BehaviourChanged: a build cannot stay as locked, and what would replace it did not pass.
        """
        ensure_upgrade(check=check, dry_run=dry_run, test=test, signatures=signatures)
        session, project = self._session, self._read()
        where = Where(places=paths_of(places), remote=remote, token=token, offline=offline)
        if check:
            from adapterhub.projects.upgrades import project_requests

            asked = project_requests(session, project, [spec_of(name) for name in names], where)
            return offers_for(session, asked, jobs, where, project.folder)
        sources, previous = ProjectSources(session, project, where), previous_lock(project)
        sources.settle(previous)
        lock_anew = partial(lock_now, session, project, sources, previous=previous, upgrade=names or ALL)
        if dry_run:
            to_merge: set[str] = set()
            outcome = lock_anew(make_merge=_put_off(to_merge))
            self._warn(outcome.warnings)
            return self._previewed(outcome, to_merge)
        drop_ins = self._drop_ins(test, sources, signatures)
        if drop_ins is None or previous is None:
            outcome = lock_anew()
        else:
            first = lock_anew(make_merge=_put_off(set()))
            outcome = lock_anew(given=drop_ins.choose(previous, first.lock))
            drop_ins.ensure_taken(previous, outcome.lock)
        self._warn(outcome.warnings)
        is_new = save_lock(session, project, outcome.lock)
        synced = sync_locked(session, self.folder, outcome.lock, sources, signatures=signatures, is_new=is_new)
        return self._moved(outcome, synced, tuple(drop_ins.results) if drop_ins else None)

    def _drop_ins(
        self, test: Testing | None, sources: ProjectSources, signatures: SignaturePolicy | None
    ) -> DropIns | None:
        if (gate := gate_of(self._session, test)) is None:
            return None
        from adapterhub.api.steps.contracts.gating import DropIns

        def bring(lock: Lock, entries: Sequence[Locked]) -> None:
            bring_locked(gate.session.library, lock, entries, build_sources(self._session, lock, sources, signatures))

        return DropIns(gate, bring)

    def _moved(self, outcome: LockOutcome, synced: Synced, tests: tuple[DropIn, ...] | None = None) -> LockMoved:
        return LockMoved(
            project=self.folder,
            changes=outcome.changes,
            warnings=outcome.warnings,
            folders=tuple(step.folder for step, what in synced.done.steps if what != "kept"),
            lock=outcome.lock,
            sync=synced,
            tests=tests,
        )

    def _previewed(self, outcome: LockOutcome, to_merge: Collection[str]) -> LockPlan:
        plan = plan_there(self._session, self.folder, outcome.lock)
        changes = tuple(replace(c, text="merged again") if c.key in to_merge else c for c in outcome.changes)
        folders = tuple(step.folder for step in plan.steps if step.state.standing != "right")
        return LockPlan(project=self.folder, changes=changes, warnings=outcome.warnings, folders=folders)

    def rollback(self, *names: str, dry_run: bool = False, offline: bool = False) -> LockPlan:
        """Go back, under each name, to the build that the lock held before, and sync.

        If the project file asked for something else then, that entry is restored as well. Each call goes one step
        further back; `upgrade` goes forward again. Every build is brought before the first file changes.

        Returns:
            `.changes` in the lock and `.folders` that changed; with `dry_run` nothing is written.

        Raises:
            NotFound: the project has no such name, or no earlier build of it is known on this machine.
            StaleLock: the lock does not answer the project file.
            Conflict: the earlier build is for another base, of a remote that is gone, or a merge of other inputs.
            AdapterNotFound, RemoteUnreachable: the earlier build is no longer available; nothing was changed.
        """
        session, library = self._session, self._session.library
        sources = ProjectSources(session, self._read(), Where(offline=offline))
        if dry_run:
            plan, to_merge = plan_rollback(library, self._read(), names), set[str]()
            return self._previewed(self._rolled_back(plan, sources, _put_off(to_merge)), to_merge)
        with editing(library, self.folder) as present:
            plan = plan_rollback(library, present, names)
            outcome = self._rolled_back(plan, sources)
            lock = outcome.lock
            plan_there(session, self.folder, lock)
            entries = wanted_entries(lock, groups_there(self.folder, lock))
            bring_locked(library, lock, entries, build_sources(session, lock, sources))
            write_project(self.folder, plan.text)
            save_lock(session, plan.project, lock, back_to=[change.key for change in outcome.changes if change.key])
            history = History(library.store, self.folder)
            for entry in plan.entries:
                history.forget(entry.key, entry)
        self._warn([*outcome.warnings, *yanked_notices(session, plan.entries, sources)])
        for wanted in plan.restored:
            session.out.note(f"`{PROJECT_FILE}` asks for `{wanted_text(wanted)}` again")
        moved = self._moved(outcome, sync_locked(session, self.folder, lock, sources))
        return replace(moved, way_forward=self._way_forward(outcome))

    def _way_forward(self, outcome: LockOutcome) -> str:
        """Return the command for newer builds: an upgrade, unless the project file asks for other versions now."""
        asked = {wanted.key: wanted.spec for wanted in self._read().adapters}
        for change in outcome.changes:
            left, spec = change.before, asked.get(change.key) if change.key else None
            if left is not None and spec is not None and not spec.matches(left.version):
                return f"`{PROJECT_FILE}` asks for `{spec}`: change that to go forward to {left.version} again"
            if left is not None and self._session.library.yanks.places(left.digest):
                return (
                    f"{left.version} was yanked; only `=={left.version}` in `{PROJECT_FILE}` goes forward to it again"
                )
        return "`adapt upgrade` goes forward again"

    def _rolled_back(self, plan: Rollback, sources: ProjectSources, make_merge: MakeMerge | None = None) -> LockOutcome:
        """Return the lock of a plan; merges that no earlier lock has are made again."""
        sources.settle(plan.lock)
        outcome = lock_now(self._session, plan.project, sources, previous=plan.lock, make_merge=make_merge)
        return replace(outcome, changes=changes_between(plan.before, outcome.lock))

    # ------------------------------------------------------------ ask
    def tree(
        self, *names: SpecLike, invert: bool = False, holders: bool = False
    ) -> Tree | ProjectTree | Holders | Needs:
        """Return the locked builds, each with its `.parents`; `print` draws them; other names as `Library.tree`.

        Raises:
            NotFound: nothing is locked yet.
            AdapterNotFound: one is neither locked nor installed.
            UsageProblem: `invert` without an adapter, or `holders` with one.
        """
        from adapterhub.api.inspecting import users
        from adapterhub.api.steps.finding import lineage_of
        from adapterhub.projects.tree import ProjectTree

        lineage, specs = lineage_of(self._session), [spec_of(name) for name in names]
        if invert or holders:
            return users(self._session, lineage, specs, invert=invert)
        keys = [str(spec) for spec in specs]
        try:
            lock = read_lock(self.folder)
        except NotFound:
            if not keys:
                raise
            return self.library.tree(*specs)
        if not lock.entries.keys() >= set(keys):
            return self.library.tree(*specs)
        return ProjectTree.of(self.folder, lock, lineage, keys)

    def sbom(self) -> Mapping[str, Any]:
        """Return the parts of the locked adapters as a CycloneDX 1.6 document; see `Library.export`.

        Raises:
            NotFound: nothing is locked yet.
        """
        return bill_of_lock(self._session, self._read()).document

    def requirements(self, *, groups: Sequence[str] = (), all_groups: bool = False) -> Requirements:
        """Return the locked builds, one `name==version#sha256:…` each, for `install(requirements=…)`; published merges.

        Args:
            groups: with these optional groups.
            all_groups: with every optional group.

        Raises:
            NotFound: nothing is locked yet.
            UsageProblem: the lock has no adapter in a group.
        """
        return Requirements.of(exact_list(self.folder, self._session.out, groups, all_groups=all_groups))

    def trust(self, *, revoke: bool = False) -> TrustedProject | RevokedProject:
        """Agree to the servers that the project names, for its folder and the servers that its file lists now.

        With `revoke`, take the agreement back.

        Raises:
            NamespaceBound: it claims a name or a namespace of a remote of yours.
        """
        return self.library.trust_project(self.folder, revoke=revoke)


def project_of(session: Session, library: Library) -> Project:
    """Return the project of a session that is there, such as that of a command; `library` is the session's.

    Raises:
        NotFound, Malformed: there is none, or its file is unusable.
    """
    project = Project.__new__(Project)
    project.folder, project.library = session.need_project().folder, library
    project._session, project._has_own_library = session, False  # noqa: SLF001 - of this module
    return project


def _reopened(folder: Path, library: Library | None, trust: bool) -> Project:  # noqa: FBT001 - called by its place
    return Project(folder, library=library, trust=trust)


def _ensure_groups(project: values.Project, groups: Sequence[str]) -> None:
    """Raise unless the project has every group.

    Raises:
        UsageProblem: it lacks one.
    """
    unknown = [name for name in groups if name not in project.groups]
    if unknown:
        known = ", ".join(f"`{name}`" for name in project.groups)
        raise UsageProblem(
            f"the project has no group `{shown(unknown[0])}`; its groups: {known or 'none'}",
            hint="a table `[groups.NAME]` in `adapters.toml` defines a group",
        )


def _put_off(to_merge: set[str]) -> MakeMerge:
    """Note the key of a merge instead of running it; without a digest, it differs from any locked or present merge."""

    def put_off(wanted: MergeRequirement, _inputs: object) -> LockedMerge:
        to_merge.add(wanted.key)
        return LockedMerge(
            key=wanted.key,
            version=wanted.version or "",
            digest=Digest(""),
            base=None,
            rank=None,
            step=wanted.step,
            task=wanted.task,
            description=wanted.description,
            license=wanted.license,
            source=LockedSource(),
            files=(),
        )

    return put_off
