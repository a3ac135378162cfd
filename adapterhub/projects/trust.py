"""Decides whether the servers that a project names may be contacted: only after the user has trusted them."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING

from adapterhub.core.errors import NamespaceBound, ProjectNotTrusted, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adapterhub.library.admission.admission import Admission
    from adapterhub.library.remotes import Remote
    from adapterhub.projects.session import Session
    from adapterhub.projects.trusted import Servers
    from adapterhub.projects.values import Lock, Project


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
                f"`adapters.toml` calls `{place}` `{remote.name}`, which is your name for {mine.url}. "
                "Nothing was changed",
                hint=f"give it another name under `[remotes]`, or `adapt remote remove {remote.name}` removes yours",
            )
        for namespace in remote.namespaces:
            admission.ensure_place_allowed(place, namespace)


def own_remotes(session: Session) -> list[Remote]:
    """The remotes of the user, and the default server."""
    return [*session.remotes.all(), session.remote(None)]


def servers_in(session: Session, project: Project, lock: Lock | None) -> Servers:
    """The servers that a project adds to those of the user."""
    from adapterhub.projects.trusted import servers_of

    return servers_of(project, lock, own_remotes(session))


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
            from adapterhub.projects.trusted import TrustedProjects

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
                hint=f"`adapt trust {shlex.quote(str(folder))}` trusts them; "
                "`--trust-project` trusts them for one run, as in CI",
            )

    def require_for(self, url: str) -> None:
        """The same for a server of the lock, unless it is one of the user's remotes."""
        if all(known.url != url for known in own_remotes(self._session)):
            self.require()

    def _agreed(self) -> bool:
        if self._is_agreed:
            return True
        from adapterhub.projects.trusted import TrustedProjects

        trusted = TrustedProjects(self._session.root)
        self._is_agreed = trusted.is_trusted(self._project.folder, self._servers())
        return self._is_agreed

    def _servers(self) -> Servers:
        if not self._is_settled:
            from adapterhub.projects.lock.lockfile import previous_lock

            self._lock, self._is_settled = previous_lock(self._project), True
        return servers_in(self._session, self._project, self._lock)


def lines_of(servers: Servers) -> list[str]:
    """A line for each server that a project adds."""
    found = []
    for remote in servers.remotes:
        what = f"for {', '.join(remote.namespaces)}" if remote.namespaces else "for every name"
        found.append(f"{remote.name}  {remote.address}  {what}")
    return [*found, *(f"adapters.lock  {shown(url, 200)}" for url in servers.sources)]


@contextlib.contextmanager
def keeping_trust(session: Session, project: Project, lock: Lock) -> Iterator[None]:
    """Keep a project trusted while this run writes `lock`, whose servers it was allowed to contact."""
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.trusted import TrustedProjects

    after = servers_in(session, project, lock)
    trusted = TrustedProjects(session.root)
    was_trusted = bool(after.needed) and trusted.is_trusted(
        project.folder, servers_in(session, project, previous_lock(project))
    )
    yield
    if was_trusted and not trusted.is_trusted(project.folder, after):
        trusted.trust(project.folder, after)
