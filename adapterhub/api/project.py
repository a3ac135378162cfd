"""`adapterhub.Project`: one project, with a function for everything that the command line does in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.editing import WithEdits
from adapterhub.api.library import Library
from adapterhub.api.opened import BaseLike, PythonSession, SpecLike, base_of, paths_of, spec_of
from adapterhub.api.steps.describing import bill_of_lock
from adapterhub.api.steps.finding import lineage_of, meant_by
from adapterhub.api.steps.projects import (
    Synced,
    current_lock,
    lock_project,
    sync_project,
    trust_project,
)
from adapterhub.api.steps.upgrades.projects import Preview, preview_upgrade, upgrade_project
from adapterhub.core.arguments import StrPath, Testing, parsed, path_of
from adapterhub.core.disk.home import ADAPTERS_FOLDER, LOCK_FILE
from adapterhub.core.display import html_table
from adapterhub.core.errors import NotFound
from adapterhub.projects.builds import ProjectNames, exact_spec
from adapterhub.projects.file.editing import create_project
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.places import ProjectSources, base_to_write
from adapterhub.projects.project import find_project
from adapterhub.projects.trusted import TrustedProjects
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.distribution.outdated import Offer
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.projects import values
    from adapterhub.projects.locking import LockOutcome
    from adapterhub.projects.trusted import TrustedProject
    from adapterhub.projects.uses import Use


@parsed
class Project(WithEdits):
    """The project in a folder: `adapters.toml`, what it wants, and `adapters.lock`, what it got.

    `library` is where its adapters are installed; default: the library of the command line. With `trust`, its servers
    are asked without the agreement that `trust()` records.

    Example:
        >>> import adapterhub
        >>> project = adapterhub.Project.create("assistant", base="base-7b")
        >>> project
        <Project .../assistant, base base-7b, 0 adapters>
    """

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
        if library is None:
            names = ProjectNames(self.folder)
            self.library.resolve_name, self.library.project_alias = names.build, names.alias
        self._session = PythonSession(
            root=self.library.root,
            out=self.library.reports,
            variables=os.environ,
            project_dir=self.folder,
            trusts_project=trust,
            opened=self.library,
        )
        if library is None:
            self.library.project_rules = self._session.project_rules
            self.library.project_bounds = self._session.project_bounds

        self._has_own_library = library is not None

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the project of the same folder, with the same library and trust."""
        library = self.library if self._has_own_library else None
        return _reopened, (self.folder, library, self._session.trusts_project)

    # ------------------------------------------------------------ make and read
    @classmethod
    def find(cls, start: StrPath = ".", *, library: Library | StrPath | None = None, trust: bool = False) -> Project:
        """The project in the nearest folder with an `adapters.toml`, from `start` upwards.

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
        """Make a project of a folder: write its `adapters.toml`.

        Raises:
            Conflict: it has one.
        """
        place, spec = path_of(folder), base_of(base)
        create_project(place, base_to_write(spec, place) if spec is not None else None)
        return cls(place, library=library)

    @property
    def base(self) -> str | None:
        """The base of the project, as its file names it."""
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
        """The folder of an adapter in the project's `adapters/`.

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
    ) -> values.Lock:
        """Lock the project: write `adapters.lock` with the digest of everything that `adapters.toml` asks for.

        Args:
            names: with `upgrade`: choose only these again.
            upgrade: choose again what is locked already.
            check: write nothing and ask no place; raise if the lock is stale.
            places: other places to look in, as `--from` names them.
            remote: ask only this server.
            token: access token for it.
            offline: look in the library and in directories only.

        Raises:
            StaleLock: with `check`: the lock does not answer the project file; every reason.
            AdapterNotFound, NoCompatibleRelease, ProjectConflict: what is wanted cannot be had.
            ProjectNotTrusted: a server of the project would be asked; see `trust`.
        """
        if check:
            return current_lock(self._read())
        return self._lock(names, paths_of(places), remote, token, upgrade=upgrade, offline=offline).lock

    def _lock(
        self,
        names: Sequence[str],
        places: tuple[Path, ...],
        remote: str | None,
        token: str | None,
        *,
        upgrade: bool,
        offline: bool,
    ) -> LockOutcome:
        outcome, _ = lock_project(
            self._session,
            self._read(),
            names,
            upgrade=upgrade or bool(names),
            offline=offline,
            remote=remote,
            token=token,
            places=places,
            bars=self.library.reports,
        )
        return outcome

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
        signatures: SignaturePolicy | None = None,
        test: Testing | None = None,
    ) -> Synced:
        """Make the project's `adapters/` match its lock file, with links into the library.

        Args:
            frozen: never resolve; raise when the lock file does not answer the project.
            offline: open no connection.
            check: read every byte again.
            prune: remove what the lock file does not ask for.
            groups: optional groups, too.
            all_groups: every optional group.
            delete_foreign: with `prune`: also delete folders that sync did not make.
            signatures: `require`, `warn` or `off` for this call.
            test: `keep` changes folders only if every build with a contract passes it; `warn` only says so.

        Returns:
            `.lock`, `.plan`, `.tests`, and `.done` with what was linked, fetched and removed.

        Raises:
            StaleLock, NotFound: with `frozen`.
            Conflict: something else lies where an adapter belongs; nothing was changed.
            DigestMismatch, AdapterNotFound, RemoteUnreachable: a build cannot be had; no folder changed.
            BehaviourChanged, CouldNotTell: a build does not pass its test; no folder changed.
        """
        from adapterhub.api.steps.contracts.syncing import SyncTest

        reports = self.library.reports
        return sync_project(
            self._session,
            self._read(),
            frozen=frozen,
            offline=offline,
            check=check,
            prune=prune,
            groups=groups,
            all_groups=all_groups,
            delete=lambda plan: [*(step.folder for step in plan.blocked), *plan.foreign] if delete_foreign else (),
            signatures=signatures,
            test=SyncTest(self._session.library, test, reports, reports) if test else None,
            bars=reports,
        )

    def upgrade(
        self,
        *names: str,
        dry_run: bool = False,
        places: StrPath | Iterable[StrPath] = (),
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
        test: Testing | None = None,
    ) -> Preview:
        """Lock the newest that the project allows, of everything or of `names`, and sync.

        Args:
            names: upgrade only these.
            dry_run: write nothing, and test nothing.
            places: other places to look in, as `--from` names them.
            signatures: `require`, `warn` or `off` for this call.
            remote: ask only this server.
            token: access token for it.
            offline: look in the library and in directories only.
            test: `keep` takes a release only if it passes the contract of the locked one; `warn` takes it, and says so.

        Returns:
            `.changes` in the lock, `.folders` that changed, `.warnings`, `.tests`.

        Raises:
            BehaviourChanged: a build cannot stay as locked, and what would replace it did not pass.
        """
        project = self._read()
        sources = ProjectSources(
            self._session, project, offline=offline, remote=remote, token=token, places=paths_of(places)
        )
        if dry_run:
            return preview_upgrade(self._session, project, names, sources, bars=self.library.reports)
        from adapterhub.api.steps.upgrades.drop_ins import UpgradeTest

        reports = self.library.reports
        tests = UpgradeTest(self._session.library, test, reports, reports) if test else None
        outcome, synced = upgrade_project(self._session, project, names, sources, signatures, test=tests, bars=reports)
        return Preview(
            changes=tuple(outcome.changes),
            folders=tuple(step.folder for step, what in synced.done.steps if what != "kept"),
            warnings=tuple(outcome.warnings),
            tests=tuple(tests.results) if tests else (),
        )

    def outdated(
        self,
        *names: str,
        places: StrPath | Iterable[StrPath] = (),
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sequence[Offer]:
        """What each place offers for what is locked: `.allowed` by the project, `.newest`, `.yanked`, `.problem`.

        Raises:
            NotFound: nothing is locked, or the project has no adapter by a name.
        """
        from adapterhub.distribution.outdated import offers
        from adapterhub.projects.upgrades import project_requests

        asked = project_requests(
            self._session,
            self._read(),
            [spec_of(name) for name in names],
            remote=remote,
            token=token,
            offline=offline,
            places=paths_of(places),
        )
        with self.library.reports.steps("check", unit="adapters") as progress:
            return offers(self.library, asked, progress)

    # ------------------------------------------------------------ ask
    def tree(self) -> Mapping[str, Node]:
        """What is locked, each name with the adapter and its `.parents`.

        Raises:
            NotFound: nothing is locked yet.
        """
        lineage = lineage_of(self._session)
        return {str(entry.key): lineage.node(entry.digest) for entry in self.locked.entries.values()}

    def why(self, name: SpecLike) -> Mapping[str, Sequence[Use]]:
        """Who needs an adapter of the project: this and other projects, merges, processes.

        Raises:
            AdapterNotFound: it is neither locked nor installed.
        """
        from adapterhub.projects.uses import Uses

        lineage = lineage_of(self._session)
        uses = Uses(self.library.root, lineage)
        return {label: uses.of(digest) for digest, label in meant_by(self._session, lineage, spec_of(name))}

    def sbom(self) -> Mapping[str, Any]:
        """What the locked adapters are made of, as a CycloneDX 1.6 document; see `Library.sbom`.

        Raises:
            NotFound: nothing is locked yet.
        """
        return bill_of_lock(self._session, self._read())

    def requirements(self) -> Sequence[str]:
        """What is locked, one `name==version#sha256:…` each, as `adapt export --requirements` writes it."""
        entries = self.locked.adapters
        return sorted(f"{exact_spec(entry)}#{entry.digest}" for entry in entries)

    def trust(self) -> TrustedProject:
        """Agree to the servers that the project names, once for its folder and what it says of servers.

        Raises:
            NamespaceBound: it claims a name or a namespace of a remote of yours.
        """
        return trust_project(self._session, self._read())

    def revoke_trust(self) -> bool:
        """Take the agreement back; returns whether there was one."""
        return TrustedProjects(self.library.root).revoke(self.folder)

    @property
    def lock_file(self) -> Path:
        """Where the lock is or will be."""
        return self.folder / LOCK_FILE


def _reopened(folder: Path, library: Library | None, trust: bool) -> Project:  # noqa: FBT001 - called by its place
    return Project(folder, library=library, trust=trust)
