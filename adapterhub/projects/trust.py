"""The servers that a project names, and whether the user trusts them: only then may they be contacted.

A project file comes from another person. Trust covers the folder and everything that decides which server is contacted
for what: the servers under `[remotes]` in order, with names, namespaces and signature policies, and the servers that
only the lock file names. A change to any of these needs new trust; other edits do not. `trusted_projects.json` records
the user's agreements, readable by its owner only.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.digests import Digest, canonical_json, strict_json
from adapterhub.core.disk.files import ensure_there, not_read, read_owned, write_durably
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NamespaceBound, NotAllowed, NotFound, ProjectNotTrusted, shown
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from adapterhub.library.admission import Admission
    from adapterhub.library.remotes import Remote
    from adapterhub.projects.session import Session
    from adapterhub.projects.values import Lock, Project, ProjectRemote, Servers

_LIMIT_BYTES: Final = 16 << 20


def servers_in(session: Session, project: Project, lock: Lock | None) -> Servers:
    """Return the servers that a project adds to those of the user."""
    own = own_remotes(session)
    remotes = tuple(remote for remote in project.remotes if kind_named(remote.kind).is_server)
    known = {*(remote.url for remote in own), *(remote.address for remote in remotes)}
    locked = [] if lock is None else [entry.source for entry in lock.entries.values() if not entry.source.is_library]
    servers = {source.address for source in locked if kind_named(source.kind).is_server}
    sources = tuple(sorted(servers - known))
    strange = [remote.address for remote in remotes if not _is_own(remote, own)]
    from adapterhub.projects.values import Servers

    return Servers(remotes=remotes, sources=sources, needed=tuple(dict.fromkeys([*strange, *sources])))


def _is_own(remote: ProjectRemote, own: Sequence[Remote]) -> bool:
    """Return whether the user has the same server for the same namespaces."""
    given = {n for mine in own if mine.url == remote.address for n in mine.namespaces}
    return bool(remote.namespaces) and given >= set(remote.namespaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProject(Documented):
    """A project whose servers adapterhub may contact."""

    folder: Annotated[str, "with links resolved"]
    digest: Annotated[Digest, "of what the project says about servers"]
    remotes: Annotated[
        tuple[Mapping[str, Any], ...], "those of its file, each with `name`, `url`, `namespaces`, `signatures`"
    ]
    sources: Annotated[tuple[str, ...], "servers that only the lock file names"]

    @property
    def urls(self) -> tuple[str, ...]:
        """Every server."""
        return (*(str(remote.get("url")) for remote in self.remotes), *self.sources)

    def __str__(self) -> str:
        lines = [f"  {url}" for url in self.urls] or ["  the project names no servers of its own"]
        return "\n".join([f"trusted {self.folder}", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedProject(Documented):
    """A project that is no longer trusted."""

    project: Path
    revoked: Annotated[bool, "whether it was trusted before"]

    def __str__(self) -> str:
        return f"{self.project} {'is no longer' if self.revoked else 'was not'} trusted"


class TrustedProjects:
    """The file of the library under `root`. Cheap to create; each call reads the file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "trusted_projects.json"

    def all(self) -> list[TrustedProject]:
        """Every project that is trusted, by folder.

        Raises:
            NotAllowed: others may write the file or its folder, or it cannot be read.
            Malformed: it is not in our format.
        """
        try:
            raw = read_owned(self.path, "says which projects to trust", limit_bytes=_LIMIT_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise not_read(error, self.path, NotAllowed) from None
        try:
            return [_project(item) for item in strict_json(raw, limit_bytes=_LIMIT_BYTES)["projects"]]
        except (ValueError, KeyError, TypeError) as error:
            reason = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            hint = "mend the file, or move it away and `adapt remote trust` the projects again"
            raise Malformed(f"`{self.path}`: {shown(reason, 200)}", hint=hint) from None

    def is_trusted(self, folder: Path, servers: Servers) -> bool:
        """Return whether the user trusts every server of the project."""
        if not servers.needed:
            return True
        place = os.path.realpath(folder)
        known = next((one for one in self.all() if one.folder == place), None)
        if known is None:
            return False
        return known.digest == servers.remotes_digest and {*servers.sources} <= {*known.sources}

    def trust(self, folder: Path, servers: Servers) -> TrustedProject:
        """Trust the servers of a project; replaces its earlier record."""
        made = TrustedProject(
            folder=os.path.realpath(folder),
            digest=servers.remotes_digest,
            remotes=tuple(remote.written for remote in servers.remotes),
            sources=servers.sources,
        )
        with self._changing() as known:
            self._write([*(one for one in known if one.folder != made.folder), made])
        return made

    def revoke(self, folder: Path) -> bool:
        """Revoke the trust of a project. Returns whether it was trusted."""
        place = os.path.realpath(folder)
        with self._changing() as known:
            kept = [one for one in known if one.folder != place]
            if len(kept) != len(known):
                self._write(kept)
        return len(kept) != len(known)

    @contextmanager
    def _changing(self) -> Iterator[list[TrustedProject]]:
        with Root(self._root).lock("trust", exclusive=True):
            yield self.all()

    def _write(self, projects: Collection[TrustedProject]) -> None:
        value = {"projects": [one.to_json() for one in sorted(projects, key=lambda one: one.folder)]}
        try:
            write_durably(self.path, canonical_json(value) + b"\n", mode=0o600)
        except OSError as error:
            raise Root(self._root).explain(error) from error


def _project(item: Any) -> TrustedProject:
    folder, digest, remotes, sources = item["folder"], item["digest"], item["remotes"], item["sources"]
    texts = isinstance(folder, str) and isinstance(digest, str)
    lists = isinstance(remotes, list) and isinstance(sources, list)
    if not texts or not lists or not all(isinstance(remote, dict) for remote in remotes):
        raise ValueError("expected the texts `folder` and `digest` and the lists `remotes` and `sources`")
    return TrustedProject(
        folder=folder, digest=Digest(digest), remotes=tuple(remotes), sources=tuple(str(source) for source in sources)
    )


# ---------------------------------------------------------------- whether they may be asked
def ensure_no_takeover(project: Project, own: Sequence[Remote], admission: Admission) -> None:
    """Raise if a project claims the name or a namespace of one of the user's remotes.

    Raises:
        NamespaceBound: names both sides, and the command that would allow it.
    """
    for remote in project.remotes:
        place = remote.address
        mine = next((known for known in own if known.name == remote.name), None)
        if mine is not None and mine.url != place:
            raise NamespaceBound(
                f"`adapters.toml` uses the remote name `{remote.name}` for {place}, but your library uses it for "
                f"{mine.url}. Nothing was changed",
                hint=f"give it another name under `[remotes]`, or `adapt remote remove {remote.name}` removes yours",
            )
        for namespace in remote.namespaces:
            admission.ensure_place_allowed(place, namespace)


def own_remotes(session: Session) -> list[Remote]:
    """Return the remotes of the user, and the default server."""
    return [*session.remotes.all(), session.remote(None)]


class ProjectTrust:
    """Whether the user trusts the servers of one project; looked up before the first contact."""

    def __init__(self, session: Session, project: Project) -> None:
        self._session, self._project = session, project
        self._lock: Lock | None = None
        self._is_settled = False
        self._is_agreed = session.trusts_project

    def settle(self, lock: Lock | None, *, offline: bool) -> None:
        """Use `lock` as the current lock, and ask the user about servers that are not trusted yet. Not thread-safe."""
        self._lock, self._is_settled = lock, True
        agree = self._session.agree
        if offline or agree is None or self._agreed():
            return
        servers = self._servers()
        if agree(self._project, servers):
            TrustedProjects(self._session.root).trust(self._project.folder, servers)
            self._is_agreed = True

    def require(self) -> None:
        """Raise unless the user trusts the servers of the project.

        Raises:
            ProjectNotTrusted: lists the servers, and the command that trusts them.
        """
        if not self._agreed():
            folder = self._project.folder
            listed = [f"  {line}" for line in lines_of(self._servers())]
            raise ProjectNotTrusted(
                "\n".join([f"`{folder}` names servers that you have not trusted. None was contacted", *listed]),
                hint=f"`adapt remote trust {shlex.quote(str(folder))}` trusts them; "
                "ADAPTERHUB_TRUST_PROJECT=1 trusts them for one run, as in CI",
            )

    def require_for(self, url: str) -> None:
        """Require the same for a server of the lock, unless it is one of the user's remotes."""
        if all(known.url != url for known in own_remotes(self._session)):
            self.require()

    def _agreed(self) -> bool:
        if self._is_agreed:
            return True

        trusted = TrustedProjects(self._session.root)
        self._is_agreed = trusted.is_trusted(self._project.folder, self._servers())
        return self._is_agreed

    def _servers(self) -> Servers:
        if not self._is_settled:
            from adapterhub.projects.lock.lockfile import previous_lock

            self._lock, self._is_settled = previous_lock(self._project), True
        return servers_in(self._session, self._project, self._lock)


def lines_of(servers: Servers) -> list[str]:
    """Return a line for each server that a project adds."""
    found = []
    for remote in servers.remotes:
        what = f"for {', '.join(remote.namespaces)}" if remote.namespaces else "for every name"
        found.append(f"{remote.name}  {remote.address}  {what}")
    return [*found, *(f"adapters.lock  {shown(url, 200)}" for url in servers.sources)]


def trust_project(session: Session, folder: Path) -> TrustedProject:
    """Agree to the servers that the project in `folder` names, for its folder and the servers that its file lists now.

    Raises:
        NotFound: there is none.
        NamespaceBound: it claims a name or a namespace of a remote of the user's.
    """
    from adapterhub.library.admission import Admission
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.project import read_project

    hint = f"`adapt init {folder}` creates a project there"
    ensure_there(folder, NotFound, what="folder", hint=hint)
    if not (folder / PROJECT_FILE).is_file():
        raise NotFound(f"`{folder}` has no `{PROJECT_FILE}`", hint=hint)
    project = read_project(folder)
    ensure_no_takeover(project, session.remotes.all(), Admission(session.library))
    servers = servers_in(session, project, previous_lock(project))
    return TrustedProjects(session.root).trust(project.folder, servers)


@contextmanager
def keeping_trust(session: Session, project: Project, lock: Lock) -> Iterator[None]:
    """Keep a project trusted while this run writes `lock`, whose servers it was allowed to contact."""
    from adapterhub.projects.lock.lockfile import previous_lock

    after = servers_in(session, project, lock)
    trusted = TrustedProjects(session.root)
    was_trusted = bool(after.needed) and trusted.is_trusted(
        project.folder, servers_in(session, project, previous_lock(project))
    )
    yield
    if was_trusted and not trusted.is_trusted(project.folder, after):
        trusted.trust(project.folder, after)
