"""The projects whose servers the user trusts: `trusted_projects.json`, readable by its owner only.

A project file comes from another person, and may name servers. Trust covers the folder and everything that decides
which server is contacted for what: the servers under `[remotes]` in order, with names, namespaces and signature
policies, and the servers that only the lock file names. A change to any of these needs new trust; other edits do not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import canonical_json, digest_of, strict_json
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.owned_file import read_owned
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NotAllowed, shown
from adapterhub.distribution.remote_kinds import kind_named, kind_to_write
from adapterhub.library.remotes import Remote
from adapterhub.projects.values import Lock, Project, ProjectRemote

_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers that a project adds.

    `remotes` are those of the project file, in order. `needed` are the URLs that need trust: remotes that the user
    does not have with the same namespaces, and servers that only the lock file names.
    """

    remotes: tuple[ProjectRemote, ...]
    sources: tuple[str, ...]
    needed: tuple[str, ...]

    @property
    def remotes_digest(self) -> str:
        """Changes with everything in the project file that decides which server is contacted for what."""
        return digest_of(canonical_json([_remote_value(remote) for remote in self.remotes]))


def servers_of(project: Project, lock: Lock | None, own: Sequence[Remote]) -> Servers:
    """The servers of a project; `own` are the user's remotes and the default server."""
    remotes = tuple(remote for remote in project.remotes if kind_named(remote.kind).is_server)
    known = {*(remote.url for remote in own), *(remote.address for remote in remotes)}
    locked = [] if lock is None else [entry.source for entry in lock.entries.values() if not entry.source.is_library]
    servers = {source.address for source in locked if kind_named(source.kind).is_server}
    sources = tuple(sorted(servers - known))
    strange = [remote.address for remote in remotes if not _is_own(remote, own)]
    return Servers(remotes=remotes, sources=sources, needed=tuple(dict.fromkeys([*strange, *sources])))


def _is_own(remote: ProjectRemote, own: Sequence[Remote]) -> bool:
    """Whether the user has the same server for the same namespaces."""
    given = {n for mine in own if mine.url == remote.address for n in mine.namespaces}
    return bool(remote.namespaces) and given >= set(remote.namespaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProject:
    """A project folder (links resolved) and its trusted servers."""

    folder: str
    digest: str
    remotes: tuple[dict[str, Any], ...]
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        return {
            "folder": self.folder,
            "digest": self.digest,
            "remotes": list(self.remotes),
            "sources": list(self.sources),
        }


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
            raise NotAllowed(f"`{self.path}` cannot be read: {error.strerror}") from None
        try:
            return [_project(item) for item in strict_json(raw, limit_bytes=_LIMIT_BYTES)["projects"]]
        except (ValueError, KeyError, TypeError) as error:
            reason = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            hint = "mend the file, or move it away and `adapt trust` the projects again"
            raise Malformed(f"`{self.path}`: {shown(reason, 200)}", hint=hint) from None

    def is_trusted(self, folder: Path, servers: Servers) -> bool:
        """Whether the user trusts every server of the project."""
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
            remotes=tuple(_remote_value(remote) for remote in servers.remotes),
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


def _remote_value(remote: ProjectRemote) -> dict[str, Any]:
    return {
        "name": remote.name,
        "url": remote.address,
        "namespaces": list(remote.namespaces),
        "signatures": remote.signatures,
        **({"kind": kind} if (kind := kind_to_write(kind_named(remote.kind))) else {}),
    }


def _project(item: Any) -> TrustedProject:  # noqa: ANN401 - any JSON value
    folder, digest, remotes, sources = item["folder"], item["digest"], item["remotes"], item["sources"]
    texts = isinstance(folder, str) and isinstance(digest, str)
    lists = isinstance(remotes, list) and isinstance(sources, list)
    if not texts or not lists or not all(isinstance(remote, dict) for remote in remotes):
        raise ValueError("expected the texts `folder` and `digest` and the lists `remotes` and `sources`")
    return TrustedProject(
        folder=folder, digest=digest, remotes=tuple(remotes), sources=tuple(str(source) for source in sources)
    )
