"""The places of a project, and locking with them: the part that `lock`, `sync`, `upgrade` and `install --save` share.

A project file comes from another person. It may name servers, but none is contacted before the user trusts it
(`adapt remote trust`), none receives a token that the user did not give for its URL, and none can answer for a
namespace or a name that belongs to one of the user's own remotes.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import RemoteUnreachable
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.distribution.kind import RemoteAccess
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.projects.session import sources_from, wanted_from
from adapterhub.projects.trust import ProjectTrust, ensure_no_takeover, keeping_trust

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from adapterhub.core.specs import AdapterName, AdapterSpec, BaseSpec
    from adapterhub.distribution.install import InstallPlan
    from adapterhub.distribution.kind import Kind
    from adapterhub.distribution.resolve import Candidate, Objection
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source
    from adapterhub.projects.builds import SignatureRequirement
    from adapterhub.projects.locking import LockOutcome, MakeMerge
    from adapterhub.projects.merges import Merges
    from adapterhub.projects.session import Session
    from adapterhub.projects.sync import BuildSources
    from adapterhub.projects.sync.bringing import Brought
    from adapterhub.projects.values import (
        AdapterRequirement,
        Lock,
        Locked,
        LockedAdapter,
        LockedBase,
        LockedMerge,
        MergeRequirement,
        Project,
        ProjectRemote,
    )
    from adapterhub.trust.signing.policy import SignaturePolicy
    from adapterhub.trust.signing.trust import EffectivePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where to look: the folders of `--from`, and the options for servers. `offline` leaves these out."""

    places: tuple[Path, ...] = ()
    remote: str | None = None
    token: str | None = None
    offline: bool = False


ANYWHERE: Final = Where()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requirements of `install` on a build in addition to its spec; `base` is for specs without one."""

    base: BaseSpec | None = None
    bounds: RankRange = ANY_RANK
    allow_base_mismatch: bool = False
    exclude_newer: str | None = None
    accepted: str | Iterable[str] = ()


class _Places:
    """The user's own places, each opened once: the folders of `where`, then the servers."""

    def __init__(self, session: Session, where: Where) -> None:
        self.session, self.where = session, where
        self._disk: list[Source] | None = None

    def of_user(self, spec: AdapterSpec) -> list[Source]:
        """Return the places that the user would use outside a project.

        Offline, what the Hub's client has of the servers.
        """
        if self._disk is None:
            self._disk = sources_from(self.session, self.where.places)
        if not self.where.offline:
            return [*self._disk, *self.session.sources_of(spec, self.where.remote, token=self.where.token)]
        return [*self._disk, *([] if self.where.remote else self.session.cached_sources())]


class ProjectSources(_Places):
    """The places to look up a project's adapters in: its own remotes, then the user's places.

    A namespace belongs to the user's remote that has it, or to the remote of the project that claims it. Each place
    is opened once.
    """

    def __init__(self, session: Session, project: Project, where: Where = ANYWHERE) -> None:
        """Raise if the project claims names of the user.

        Raises:
            NamespaceBound: the project claims a name or a namespace of one of the user's remotes.
        """
        super().__init__(session, where)
        self._project = project
        self._directories: dict[tuple[str, str], Source] = {}
        from adapterhub.library.admission import Admission

        self._admission = Admission(session.library)
        self._trust = ProjectTrust(session, project)
        ensure_no_takeover(project, session.remotes.all(), self._admission)

    def settle(self, lock: Lock | None) -> None:
        """Ask the user on a terminal to trust the project's servers. `lock` is the content of the lock file."""
        self._trust.settle(lock, offline=self.where.offline)

    # ------------------------------------------------------------ for locking
    def __call__(self, wanted: AdapterRequirement) -> list[Source]:
        """Return the places to look up an adapter of the project in, in order.

        Raises:
            AdapterNotFound: a directory that the project names does not exist, or holds no builds.
            NamespaceBound: the adapter names a remote, but its namespace belongs to another one.
            ProjectNotTrusted: a server of the project is needed, and the user has not trusted it.
        """
        if wanted.remote is not None:
            named = next(r for r in self._project.remotes if r.name == wanted.remote)
            self._admission.ensure_place_allowed(named.address, wanted.spec.namespace)
            return self._of(named, wanted.spec)
        return self.of_spec(wanted.spec)

    def of_spec(self, spec: AdapterSpec) -> list[Source]:
        """Return the same for any spec."""
        remotes = [r for r in self._project.remotes if self._admission.may_offer(r.address, spec.namespace)]
        if self.where.remote is not None:
            named = next((r for r in remotes if r.name == self.where.remote), None)
            return self._of(named, spec) if named else self.of_user(spec)
        claimed = [r for r in remotes if spec.namespace is not None and spec.namespace in r.namespaces]
        if claimed:
            return [source for remote in claimed for source in self._of(remote, spec)]
        # a remote with namespaces serves those and bare names; a remote without serves every name
        asked = [r for r in remotes if not r.namespaces or spec.namespace is None]
        found = [source for remote in asked for source in self._of(remote, spec)]
        found += self.of_user(spec)
        return list({(source.place, source.label): source for source in found}.values())  # each place once

    def _of(self, remote: ProjectRemote, spec: AdapterSpec) -> list[Source]:
        kind = kind_named(remote.kind)
        if not kind.is_server:
            return [self._opened(kind, remote.address)]
        if self.where.offline:
            return []
        self._trust.require()
        source = self._opened(kind, remote.address, remote.name)
        if spec.namespace is not None:
            return [source]
        return [kind.within(source, namespace) for namespace in remote.namespaces]

    def _opened(self, kind: Kind, address: str, name: str = "") -> Source:
        """Open a place as the project writes it; a directory is read once, the session opens servers."""
        if kind.is_server:
            from adapterhub.library.remotes import Remote

            return self.session.project_source(Remote(name=name, url=address, kind=kind.name))
        key = kind.name, address
        if key not in self._directories:
            self._directories[key] = kind.open(address, RemoteAccess(folder=self._project.folder))
        return self._directories[key]

    # ------------------------------------------------------------ for what is locked
    def of_locked(self, entry: Locked) -> Iterator[Source]:
        """Yield the places that may have a locked build: first where it was locked from, then all others.

        Raises:
            RemoteUnreachable: it was locked from a server, no other place has it, and this is offline.
            NamespaceBound: it was locked from a place other than the remote that owns its namespace.
            ProjectNotTrusted: as above.
        """
        from adapterhub.projects.builds import exact_spec

        source, spec = entry.source, exact_spec(entry)
        kind = None if source.is_library else kind_named(source.kind)
        is_forbidden = kind is not None and kind.is_server and self.where.offline
        if kind is not None:
            hint = f"`adapt lock --upgrade {entry.key}` looks it up on the server that owns it"
            self._admission.ensure_place_allowed(source.address, spec.namespace, hint=hint)
        if kind is not None and not is_forbidden:
            if kind.is_server:
                self._trust.require_for(source.address)
            name = next((r.name for r in self._project.remotes if r.address == source.address), "")
            yield from kind.pinned(self._opened(kind, source.address, name), source.pin, spec)
        yield from self.of_spec(spec)
        if is_forbidden:
            cached = self.session.cached_sources()
            yield from (one for one in cached if self._admission.may_offer(one.place, spec.namespace))
            raise RemoteUnreachable(
                f"`{entry.key}` is locked from {source.address}, and `--offline` forbids contacting a server",
                hint="run `adapt sync` once without `--offline`",
            )

    def server_at(self, address: str) -> Source | None:
        """Return the server that builds were locked from; None if this is offline.

        Raises:
            ProjectNotTrusted: as above.
        """
        from adapterhub.distribution.remote_kinds import kind_of

        kind = kind_of(address)
        if self.where.offline or not kind.is_server:
            return None
        self._trust.require_for(address)
        return self._opened(kind, address, next((r.name for r in self._project.remotes if r.address == address), ""))

    def policy_for(self, entry: Locked) -> EffectivePolicy | None:
        """Return the project's signature policy for the remote that a build was locked from; None if it sets none."""
        return self.policy_of(entry.source.remote)

    def policy_of(self, remote: str) -> EffectivePolicy | None:
        """Return the project's signature policy for a remote. A project may require more than its user, never less."""
        from adapterhub.trust.signing.trust import EffectivePolicy

        named = next((r for r in self._project.remotes if r.name == remote), None)
        if named is None or named.signatures != "require":
            return None
        return EffectivePolicy(policy="require", where=f"remote `{named.name}` of `adapters.toml`")


class SpecSources(_Places):
    """The places where `install` looks up a spec: those of the project, or those of the user."""

    def __init__(self, session: Session, where: Where = ANYWHERE) -> None:
        super().__init__(session, where)
        self._project = session.project
        self._inside = None if self._project is None else self.project_sources(self._project)
        servers = [] if self._project is None else [r for r in self._project.remotes if kind_named(r.kind).is_server]
        if self._inside is not None and self._project is not None and servers:
            from adapterhub.projects.lock.lockfile import previous_lock

            self._inside.settle(previous_lock(self._project))

    def __call__(self, spec: AdapterSpec) -> Sequence[Source]:
        """Return the places to look in, in order."""
        return self.of_user(spec) if self._inside is None else self._inside.of_spec(spec)

    def policy_of(self, source: Source) -> EffectivePolicy | None:
        """Return the project's signature policy for builds from `source`; None if it sets none."""
        if self._inside is None or self._project is None:
            return None
        from adapterhub.projects.locking.choosing import remote_of

        return self._inside.policy_of(remote_of(self._project, source.place))

    def project_sources(self, project: Project) -> ProjectSources:
        """Return the places of a project, with the same options."""
        return ProjectSources(self.session, project, self.where)


@contextmanager
def editing(library: Library, folder: Path) -> Iterator[Project]:
    """Provide the project in `folder`, locked so that one command at a time edits its file.

    Raises:
        StoreLocked: another command is still editing it.
    """
    from adapterhub.core.disk.root import alone_in
    from adapterhub.projects.project import read_project

    with alone_in(folder, library.store, "project"):
        yield read_project(folder)


def project_base(session: Session) -> BaseSpec | None:
    """Return the base of the session's project; None outside a project, or if the project names none."""
    project = session.project
    if project is None or project.base is None:
        return None
    from adapterhub.projects.locking.choosing import in_project

    return in_project(project.base, project.folder)


def objection_from(session: Session, exclude_newer: str | None) -> Objection | None:
    """Return the objection of the project's policy, with its own `exclude_newer` replaced if one is given.

    Raises:
        UsageProblem: `exclude_newer` cannot be read.
    """
    project = session.project
    if project is None and exclude_newer is None:
        return None
    from adapterhub.projects.file import objection_of
    from adapterhub.projects.values import Policy

    policy = project.policy if project else Policy()
    if exclude_newer is not None:
        policy = replace(policy, exclude_newer=exclude_newer)
    return objection_of(policy, time.time())


def plan_one(
    session: Session,
    spec: AdapterSpec,
    sources: Sequence[Source],
    asked: Asked,
    *,
    base: BaseSpec | None = None,
    objection: Objection | None = None,
) -> InstallPlan:
    """Choose the build for one spec; `base` is for a spec without one, that of `asked` must be the spec's own.

    Raises:
        NoCompatibleRelease, AdapterNotFound, SpecError: as `plan_install` and `wanted_from`.
    """
    from adapterhub.distribution.choosing import exact_at
    from adapterhub.distribution.install import plan_install

    library = session.library
    spec, followed = exact_at(library, spec, sources)
    plan = plan_install(
        library,
        spec,
        sources,
        wanted=wanted_from(library, spec, asked.base or (base if spec.base is None else spec.base)),
        bounds=asked.bounds,
        allow_base_mismatch=asked.allow_base_mismatch,
        objection=objection,
    )
    return replace(plan, followed=followed)


def refusal_here(session: Session, candidate: Candidate) -> str | None:
    """Return why the policy of the session's project refuses a build; None if it does not, and outside a project."""
    objection = objection_from(session, None)
    return objection(candidate) if objection else None


def base_to_write(base: BaseSpec, folder: Path) -> BaseSpec:
    """Return a base as the project file in `folder` writes it: paths become relative to that folder."""
    from adapterhub.core.specs import BaseSpec

    if base.kind != "path" or path_of(base.text).is_absolute():
        return base
    path = Path(os.path.relpath(base.text, os.path.realpath(folder))).as_posix()
    return BaseSpec.parse(path if path.startswith("..") else f"./{path}")


def lock_now(
    session: Session,
    project: Project,
    sources: ProjectSources,
    *,
    previous: Lock | None,
    upgrade: Collection[str] = (),
    given: Mapping[AdapterName, LockedAdapter] | None = None,
    make_merge: MakeMerge | None = None,
) -> LockOutcome:
    """Resolve the project's requirements. Writes nothing, except that merges go into the library.

    `make_merge` replaces running the merges.

    Raises:
        As `locking.lock_project`.
    """
    from adapterhub.projects.locking import lock_project

    library = session.library

    def run_merge(wanted: MergeRequirement, inputs: Mapping[AdapterName, Locked]) -> LockedMerge:
        from adapterhub.projects.locking import ALL
        from adapterhub.projects.locking.choosing import base_choice

        base = base_choice(library, project, previous, takes_new=upgrade == ALL).locked
        return _merges(session, base, sources, sources.policy_for, wanted.key).make(wanted, inputs)

    with session.out.steps("resolve", unit="adapters") as progress:
        return lock_project(
            library,
            project,
            sources,
            previous=previous,
            upgrade=upgrade,
            make_merge=make_merge or run_merge,
            given=given,
            progress=progress,
        )


def _merges(
    session: Session,
    base: LockedBase | None,
    sources: ProjectSources,
    policy: Callable[[Locked], SignatureRequirement],
    key: AdapterName,
) -> Merges:
    from adapterhub.core.extras import extra_named

    with extra_named(f"making the merge `{key}`"):  # imports torch, for which a project without merges need not wait
        from adapterhub.projects.merges import Merges

    return Merges(
        library=session.library,
        base=base,
        places=sources.of_locked,
        policy=policy,
        bar=session.out.progress,
        steps=lambda: session.out.steps(f"merge {key}", unit="modules"),
        warn=session.out.warn,
    )


def build_sources(
    session: Session,
    lock: Lock,
    sources: ProjectSources,
    signatures: SignaturePolicy | None = None,
    test: Callable[[Lock, Sequence[Locked]], None] | None = None,
) -> BuildSources:
    """Where `sync` gets locked builds from: their places, or for merges their recipe.

    `signatures` is the policy of this run; None means the project's. `test` looks at the builds first.
    """
    from adapterhub.projects.sync import BuildSources

    def policy(entry: Locked) -> SignatureRequirement:
        return signatures or sources.policy_for(entry)

    def rebuild(entry: LockedMerge) -> Brought:
        return _merges(session, lock.base, sources, policy, entry.key).rebuild(entry)

    bar = session.out.progress
    return BuildSources(places=sources.of_locked, rebuild=rebuild, policy=policy, bar=bar, test=test)


def save_lock(session: Session, project: Project, lock: Lock, *, back_to: Collection[str] = ()) -> bool:
    """Write the lock, and record in the library which builds the project needs and had. Returns whether it changed.

    `back_to` are names that are rolled back, for which the history has nothing new.
    """
    from adapterhub.library.store.roots import KnownProjects
    from adapterhub.projects.lock.lockfile import previous_lock, write_lock
    from adapterhub.projects.rollback import History
    from adapterhub.projects.values import digests_of

    before = previous_lock(project)
    with keeping_trust(session, project, lock):
        changed = write_lock(project.folder, lock)
    if changed:
        History(session.library.store, project.folder).note(before, lock, but=back_to)
    KnownProjects(session.root).remember(project.folder, digests_of(lock))
    return changed
