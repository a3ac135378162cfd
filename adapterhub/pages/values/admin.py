"""What an administrator of a registry sees. Times are in milliseconds since 1970, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.formats.administration import FreedSpace, LogEntry, RefusedChange, Token, User
from adapterhub.pages.values.adapters import VersionLine


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    """Users, tokens and the end of their log; `made` is a token that was just created, shown this once."""

    users: tuple[User, ...]
    tokens: tuple[Token, ...]
    log: tuple[LogEntry, ...]
    roles: tuple[str, ...]
    made: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceLine:
    """What a namespace holds."""

    namespace: str
    repos: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePage:
    """The largest namespaces with their quotas (None: no limit), and the preview that a reader asked for."""

    namespaces: tuple[NamespaceLine, ...]
    more_namespaces: int
    blobs: int
    blob_bytes: int
    namespace_bytes: int | None
    namespace_repos: int | None
    token_bytes_a_day: int | None
    preview: FreedSpace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsPage:
    """The newest refusals, of one user if `user` is given; the log keeps `kept`."""

    refusals: tuple[RefusedChange, ...]
    user: str
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandledPage:
    """One repository that an administrator yanks from or deletes; `repo` is empty before one is named."""

    repo: str
    versions: tuple[VersionLine, ...] = ()
    problem: str = ""
