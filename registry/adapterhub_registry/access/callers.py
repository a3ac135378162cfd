"""The sender of a request: what its token, and the memberships of its user, let it do with which repositories.

A role of a token is older than scopes: `write` stands for read, write and release, and manages its repositories.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

from sqlalchemy import ColumnElement, String, bindparam, false, or_, true

from adapterhub_registry.access.audit import MACHINE, By
from adapterhub_registry.database.db import repos
from adapterhub_registry.database.prepared import Met

LOCAL: Final = MACHINE.text
Role = Literal["read", "write", "admin"]
Scope = Literal["read", "write", "release", "administer"]
Right = Literal["read", "write", "release", "manage", "administer"]
"""What one may do: `write` files, `release` versions and move aliases, `manage` the settings of a repository or remove
it, `administer` a namespace."""
ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
"""The scopes of tokens, and the roles of members, of which each includes those before it."""
SESSION: Final = "session"
"""The scope of a token that stands for a person who signed in."""
RIGHTS: Final[Mapping[str, frozenset[str]]] = {
    **{role: frozenset(SCOPES[: at + 1]) for at, role in enumerate(SCOPES[:-1])},
    "administer": frozenset(get_args(Right)),
}
"""By the role of a member."""
_OF_ROLE: Final[Mapping[str, frozenset[str]]] = {
    "read": RIGHTS["read"],
    "write": RIGHTS["release"] | {"manage"},
    "admin": RIGHTS["administer"],
}
"""By the role of a token, which may do with its repositories all that such a token could ever do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a person may do in the repositories that `globs` match."""

    globs: tuple[str, ...]
    rights: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request. The rights of its token apply in `namespaces`, which are globs over `ns/name`.

    With `memberships`, it may do there only what one of these lets the person do. Without `scopes`, the role decides.
    """

    user: str | None
    role: Role
    namespaces: tuple[str, ...]
    label: str = ""
    token_id: int | None = None
    scopes: tuple[str, ...] | None = None
    memberships: tuple[Membership, ...] | None = None
    address: str | None = None

    @property
    def rights(self) -> frozenset[str]:
        """What the token may do at most."""
        return _OF_ROLE[self.role] if self.scopes is None else _rights_in(self.scopes)

    def reaches(self, repo_id: str, right: Right = "read") -> bool:
        """Return whether the caller may do this with this repository, as far as tokens and memberships decide."""
        if right not in self.rights or not _match(repo_id, self.namespaces):
            return False
        held = self.memberships
        return held is None or any(right in one.rights and _match(repo_id, one.globs) for one in held)

    def writes(self, repo_id: str) -> bool:
        """Return whether the caller may change the files of this repository."""
        return self.reaches(repo_id, "write")

    def owns(self, scope: str, right: Right = "write") -> bool:
        """Return whether the caller may do this with this repository, or with every repository of this namespace."""
        if "/" in scope:
            return self.reaches(scope, right)
        if right not in self.rights or not _match_all_of(scope, self.namespaces):
            return False
        held = self.memberships
        return held is None or any(right in one.rights and _match_all_of(scope, one.globs) for one in held)

    def administers(self, namespace: str) -> bool:
        """Return whether the caller is a person who administers all of a namespace."""
        return self.user is not None and self.owns(namespace, "administer")

    @property
    def only_reads(self) -> bool:
        """Whether the token can change nothing."""
        return self.rights == RIGHTS["read"]

    @property
    def actor(self) -> str:
        """The caller as the logs name it."""
        return f"{self.user} (token {self.token_id})" if self.user != LOCAL else LOCAL

    @property
    def by(self) -> By:
        """The caller for the log of changes."""
        return MACHINE if self.user == LOCAL else By(self.actor, self.user, self.address)

    @property
    def is_admin(self) -> bool:
        """Whether the caller may administer the whole registry."""
        held = self.memberships
        is_held = held is None or any("*" in one.globs and "administer" in one.rights for one in held)
        return "*" in self.namespaces and "administer" in self.rights and is_held

    @property
    def sees_all(self) -> bool:
        """Whether the caller sees every repository, so that total counts disclose nothing."""
        held = self.memberships
        return _is_all(self.namespaces) and (held is None or any(_is_all(one.globs) for one in held))

    @property
    def spaces(self) -> list[str]:
        """The namespaces that the caller reaches by their names, sorted."""
        globs = (
            self.namespaces if self.memberships is None else [glob for one in self.memberships for glob in one.globs]
        )
        named = {glob.partition("/")[0] for glob in globs if self.memberships is None or _meets(glob, self.namespaces)}
        return sorted(name for name in named if not set(name) & set("*?"))


@lru_cache
def _rights_in(scopes: tuple[str, ...]) -> frozenset[str]:
    if SESSION in scopes:
        return RIGHTS["administer"]
    return frozenset({"read", *scopes, *(("manage",) if "administer" in scopes else ())})


def _match(repo_id: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(repo_id, glob) for glob in globs)


def _match_all_of(namespace: str, globs: Iterable[str]) -> bool:
    named = [glob.partition("/") for glob in globs]
    return any(name in {"*", ""} and fnmatch.fnmatchcase(namespace, space) for space, _, name in named)


def _is_all(globs: Iterable[str]) -> bool:
    return bool({"*", "*/*"} & set(globs))


def _meets(glob: str, others: Iterable[str]) -> bool:
    """Return whether a repository of the namespace of a glob may match one of `others`."""
    namespace = glob.partition("/")[0]
    return any(fnmatch.fnmatchcase(namespace, other.partition("/")[0]) for other in others)


def covers(globs: Iterable[str], wanted: str) -> bool:
    """Return whether one of `globs` matches every name that the glob `wanted` matches."""
    words = {"*": ".*", "?": "[^*]"}
    patterns = ("".join(words.get(sign, re.escape(sign)) for sign in glob) for glob in globs)
    return any(re.fullmatch(pattern, wanted) for pattern in patterns)


ANONYMOUS = Caller(user=None, role="read", namespaces=())
OPERATOR = Caller(user=LOCAL, role="admin", namespaces=("*",), label="operator")
"""A command on the server's machine, which read a running server's own token; it only administers."""


def reached_names(caller: Caller, column: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the SQL condition for a column of full names that the caller's token and memberships cover."""

    def like(globs: Iterable[str]) -> ColumnElement[bool]:
        return or_(false(), *(column.like(_like(glob), escape="\\") for glob in globs))

    granted, held = like(caller.namespaces), _held_globs(caller)
    return granted if held is None else granted & like(held)


def _held_globs(caller: Caller) -> list[str] | None:
    held = caller.memberships  # each lets its person read at least
    return None if held is None else list(dict.fromkeys(glob for one in held for glob in one.globs))


def seen_with(caller: Caller, *, reads_public: bool) -> Met:
    """Return the repositories that a caller sees, in SQL that is the same for each with as many namespaces."""
    if caller.sees_all:
        return Met([true()], {})
    held = _held_globs(caller)
    given = {f"glob_{at}": _like(glob) for at, glob in enumerate(caller.namespaces)}
    given |= {f"held_{at}": _like(glob) for at, glob in enumerate(held or ())}
    count = None if held is None else len(held)
    return Met([_seen_with(len(caller.namespaces), count, reads_public=reads_public)], given)


@lru_cache
def _seen_with(globs: int, held: int | None, *, reads_public: bool) -> ColumnElement[bool]:
    def like(name: str, count: int) -> ColumnElement[bool]:
        wanted = (bindparam(f"{name}_{at}", type_=String) for at in range(count))
        return or_(false(), *(repos.c.full_name.like(glob, escape="\\") for glob in wanted))

    public = repos.c.private.is_(False) if reads_public else false()
    return or_(public, like("glob", globs) if held is None else like("glob", globs) & like("held", held))


def _like(glob: str) -> str:
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
