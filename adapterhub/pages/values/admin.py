"""What an administrator of a registry sees. Times are in milliseconds since 1970, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.pages.values.adapters import VersionLine


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLine:
    """The facts about a token, never the token itself."""

    id: int
    user: str
    role: str
    namespaces: str
    label: str
    created_at: int
    expires_at: int | None
    used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLine:
    """A user, and how many of the user's tokens work."""

    name: str
    created_at: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """Who created or revoked a token."""

    created_at: int
    actor: str
    action: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    """Users, tokens and the end of their log; `made` is a token that was just created, shown this once."""

    users: tuple[UserLine, ...]
    tokens: tuple[TokenLine, ...]
    log: tuple[LogLine, ...]
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
class GcPreview:
    """What `adapt registry gc` would remove now."""

    files: int
    file_bytes: int
    upload_parts: int
    upload_bytes: int


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
    preview: GcPreview | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalLine:
    """A change that was refused: `count` times, last at `created_at`."""

    created_at: int
    user: str
    token_id: int | None
    repo: str
    action: str
    status: int
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsPage:
    """The newest refusals, of one user if `user` is given; the log keeps `kept`."""

    refusals: tuple[RefusalLine, ...]
    user: str
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandledPage:
    """One repository that an administrator yanks from or deletes; `repo` is empty before one is named."""

    repo: str
    versions: tuple[VersionLine, ...] = ()
    problem: str = ""
