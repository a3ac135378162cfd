"""Aliases such as `prod`, which move between the released versions of a repository, and names of branches and tags.

Hub clients see an alias as a branch that takes no commits: `revision="prod"` gives the files of its target with the
largest weight. Each change adds a row to `alias_moves`, which names its author; the newest row of a name counts.

The name of a released version serves that version's bytes or nothing. No branch may therefore take it, not even in a
later repository of the same name, and a tag may take it only for the same bytes (`adapters.index_commit`).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, func, insert, select, union_all, update
from sqlalchemy.engine import Connection

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, NotFound
from adapterhub.core.specs import version_key
from adapterhub.formats.alias import Alias, AliasMove, AliasTarget, check_targets, earlier, parse_alias
from adapterhub_registry import outbox
from adapterhub_registry.access import rights
from adapterhub_registry.database.db import adapters, alias_moves, lock_name, now_ms, refs, releases, repos, tombstones
from adapterhub_registry.database.search_tables import Unindexed
from adapterhub_registry.errors import HttpRefusal, alias_not_found, bad_request, conflict, version_not_found
from adapterhub_registry.names import key_of_version, parse_ref_name
from adapterhub_registry.repos.adapters import RELEASED_BUILD, version_of

KIND: Final = "alias"
MOST_ALIASES: Final = 100
"""Of one repository."""
MOST_MOVES_SHOWN: Final = 100


def set_alias(
    connection: Connection, repo: Row[Any], name: str, wanted: Sequence[tuple[str, float]], *, by: str, most_refs: int
) -> Alias:
    """Point an alias at released versions, each with a weight.

    Raises:
        HttpRefusal: 400 for targets that no alias may have, 404 for an unknown version, 409 for a yanked one, for
            versions of several adapters, or for a name that no alias may have or that a branch or tag has.
    """
    name = _parsed(name)
    lock(connection, repo)
    targets = _targets(connection, repo, name, wanted)
    if find(connection, repo, name) is None:
        check_new(connection, repo, KIND, name, most=most_refs)
        if len(all_of(connection, repo)) >= MOST_ALIASES:
            raise HttpRefusal(413, "TooLarge", f"a repository has at most {MOST_ALIASES} aliases; remove some")
    return _move(connection, repo, name, targets, action="set", by=by)


def roll_back(connection: Connection, repo: Row[Any], name: str, *, to: int | None, by: str, most_refs: int) -> Alias:
    """Point an alias at what it was one step before, or after the move number `to` of its history.

    Raises:
        HttpRefusal: 404 for an unknown alias or move; otherwise as `set_alias`.
    """
    lock(connection, repo)
    alias = ever(connection, repo, name)
    if alias is None:
        raise _unknown(repo, name)
    try:
        back = earlier(alias, to)
    except NotFound as error:
        raise HttpRefusal(404, "MoveNotFound", error.message, body={"hint": error.hint}) from None
    if not alias.targets:
        check_new(connection, repo, KIND, name, most=most_refs)
    targets = _targets(connection, repo, name, [(target.version, target.weight) for target in back])
    return _move(connection, repo, name, targets, action="rollback", by=by)


def remove(connection: Connection, repo: Row[Any], name: str, *, by: str) -> Alias:
    """Remove an alias; its history stays.

    Raises:
        HttpRefusal: 404.
    """
    lock(connection, repo)
    if find(connection, repo, name) is None:
        raise _unknown(repo, name)
    return _move(connection, repo, name, (), action="remove", by=by)


def find(connection: Connection, repo: Row[Any], name: str) -> Alias | None:
    """Return an alias with its last move; None if there is none, or it was removed."""
    alias = ever(connection, repo, name, most=1)
    return alias if alias is not None and alias.targets else None


def ever(connection: Connection, repo: Row[Any], name: str, *, most: int = MOST_MOVES_SHOWN) -> Alias | None:
    """Return an alias with its newest moves, also after its removal; None if there never was one."""
    mine = (alias_moves.c.repo_id == repo.id) & (alias_moves.c.alias == name)
    newest = select(alias_moves).where(mine).order_by(alias_moves.c.id.desc()).limit(most)
    rows = connection.execute(newest).all()
    return _alias(repo.full_name, name, list(reversed(rows))) if rows else None


def all_of(connection: Connection, repo: Row[Any]) -> list[Alias]:
    """Return the aliases of a repository, by name, each with its last move."""
    return [_alias(repo.full_name, row.alias, [row]) for row in _current(connection, repo.id)]


def named(
    connection: Connection, namespace: str, adapter: str, name: str, visible: ColumnElement[bool]
) -> list[tuple[Row[Any], Alias]]:
    """Return the repositories with that alias: only the repository `adapter` if it has it, or those with that name."""
    own_number = select(repos.c.id).where(repos.c.full_name == f"{namespace}/{adapter}")
    numbers = union_all(own_number, rights.held(adapter, namespace))
    wanted = select(repos).where(repos.c.id.in_(numbers), Unindexed(repos.c.namespace) == namespace, visible)
    found = []
    for repo in connection.execute(wanted.order_by(repos.c.full_name)).all():
        alias = find(connection, repo, name)
        if alias is not None:
            found.append((repo, alias))
    own = [(repo, alias) for repo, alias in found if repo.full_name == f"{namespace}/{adapter}"]
    return own or found


def adapter_of(connection: Connection, repo: Row[Any], digest: str) -> str | None:
    """Return the name of the adapter of a released build, as its manifest has it."""
    mine = (releases.c.repo_id == repo.id) & (releases.c.digest == digest.removeprefix("sha256:"))
    return connection.scalars(select(adapters.c.name).join_from(releases, adapters, RELEASED_BUILD).where(mine)).first()


# ------------------------------------------------------------ one move
def _move(
    connection: Connection, repo: Row[Any], name: str, targets: Sequence[AliasTarget], *, action: str, by: str
) -> Alias:
    """Record a move and point the ref; every change of an alias passes here, in the transaction of its caller."""
    before = find(connection, repo, name)
    if before is not None and before.targets == tuple(targets):
        return before
    connection.execute(
        insert(alias_moves).values(
            repo_id=repo.id,
            alias=name,
            created_at=now_ms(),
            actor=by,
            action=action,
            targets=json.dumps([target.to_json() for target in targets]),
        )
    )
    alias = ever(connection, repo, name, most=1)
    assert alias is not None  # it has the move that was just recorded
    _point_ref(connection, repo, name, alias)
    told = alias.targets or (before.targets if before else ())
    known = adapter_of(connection, repo, told[0].digest) if told else None
    outbox.record(
        connection,
        repo,
        "alias.moved",
        alias=name,
        adapter=known,
        targets=[target.to_json() for target in targets],
        before=[target.to_json() for target in before.targets] if before else [],
        action=action,
        by=by,
    )
    return alias


def _point_ref(connection: Connection, repo: Row[Any], name: str, alias: Alias) -> None:
    ref = (refs.c.repo_id == repo.id) & (refs.c.kind == KIND) & (refs.c.name == name)
    if not alias.targets:
        connection.execute(delete(refs).where(ref))
        return
    release = (releases.c.repo_id == repo.id) & (releases.c.version == alias.main.version)
    commit = connection.scalars(select(releases.c.commit_id).where(release)).one()
    if not connection.execute(update(refs).where(ref).values(commit_id=commit)).rowcount:
        row = {"repo_id": repo.id, "kind": KIND, "name": name, "commit_id": commit, "created_at": now_ms()}
        connection.execute(insert(refs).values(**row))


def _targets(
    connection: Connection, repo: Row[Any], name: str, wanted: Sequence[tuple[str, float]]
) -> tuple[AliasTarget, ...]:
    rows = {
        row.version_key: row
        for row in connection.execute(
            select(releases.c.version, releases.c.version_key, releases.c.digest, releases.c.yanked_at, adapters.c.name)
            .join(adapters, RELEASED_BUILD)
            .where(
                releases.c.repo_id == repo.id,
                releases.c.version_key.in_([key_of_version(version) for version, _ in wanted]),
            )
        )
    }
    found = []
    for version, weight in wanted:
        row = rows.get(key_of_version(version))
        if row is None:
            raise version_not_found(repo.full_name, version)
        if row.yanked_at is not None:
            raise conflict(
                f"release {version} of `{repo.full_name}` is yanked; the alias was not moved; choose another release"
            )
        found.append(AliasTarget(version=row.version, digest=Digest(f"sha256:{row.digest}"), weight=weight))
    if len({row.name for row in rows.values()}) > 1:
        raise conflict(
            f"these versions of `{repo.full_name}` are of several adapters; the alias was not moved, "
            "name versions of one adapter"
        )
    try:
        return check_targets(f"{repo.full_name}@{name}", found)
    except AdapterHubError as error:
        raise bad_request(error.message) from None


def _current(connection: Connection, repo_id: int) -> list[Row[Any]]:
    """Return the last move of each alias, by name: as many look-ups as there are aliases, however often they moved."""
    names = select(refs.c.name).where(refs.c.repo_id == repo_id, refs.c.kind == KIND).order_by(refs.c.name)
    mine = (alias_moves.c.repo_id == repo_id) & (alias_moves.c.alias == bindparam("alias"))
    last = select(alias_moves).where(mine).order_by(alias_moves.c.id.desc()).limit(1)
    rows = [connection.execute(last, {"alias": name}).one() for name in connection.scalars(names).all()]
    return [row for row in rows if json.loads(row.targets)]


def _alias(repo: str, name: str, rows: Sequence[Row[Any]]) -> Alias:
    moves = tuple(
        AliasMove(
            action=row.action,
            at=row.created_at / 1000,
            by=row.actor,
            targets=tuple(AliasTarget.from_json(one) for one in json.loads(row.targets)),
        )
        for row in rows
    )
    return Alias(adapter=repo, name=name, moves=moves)


def _parsed(name: str) -> str:
    try:
        return parse_alias(name)
    except AdapterHubError as error:
        raise conflict(error.message) from None  # not 400: the form of the request is right


def lock(connection: Connection, repo: Row[Any]) -> None:
    """Let no other transaction move an alias of this repository until this one ends."""
    lock_name(connection, f"aliases of {repo.id}")


def _unknown(repo: Row[Any], name: str) -> HttpRefusal:
    return alias_not_found(repo.full_name, name)


Kind = Literal["branch", "tag", "alias"]


def check_new(connection: Connection, repo: Row[Any], kind: Kind, name: str, *, most: int) -> None:
    """Raise unless a new branch or tag of `repo` may have this name. Blocks other new refs until the transaction ends.

    Raises:
        HttpRefusal: 400 for an invalid name, 409 for a name that is taken or belongs to a released version, 413 when
            the repository has `most` refs that name no version.
    """
    parse_ref_name(name)
    _lock_refs(connection, repo)
    named = (refs.c.repo_id == repo.id) & refs.c.kind.in_(get_args(Kind)) & (refs.c.name == name)  # an index has kinds
    taken = set(connection.scalars(select(refs.c.kind).where(named)))
    if kind != "branch" or taken & {"branch", "alias"}:  # a branch may have the name of a tag, which then means the tag
        for one in sorted(taken):
            place = "tags" if one == "tag" else "heads"
            raise conflict(f"Reference refs/{place}/{name} already exists in `{repo.full_name}`; choose another name")
    is_version = kind == "tag" and version_of(name) is not None
    if not is_version:  # the maker of a tag of a version looks afterwards whether there is one
        check_room(connection, repo, most, more=1)
    full_name = connection.scalars(select(repos.c.full_name).where(repos.c.id == repo.id)).one_or_none()
    version = _version_like(name)
    if version is None or is_version:
        return  # writing a version tag compares its bytes with the release
    key = version_key(version)
    mine = select(releases.c.version).where(releases.c.repo_id == repo.id, releases.c.version_key == key)
    held = connection.scalar(mine) or _buried(connection, full_name, [key]).get(key)
    if held is not None:
        raise _belongs(name, repo.full_name, held)


def create_ref(
    connection: Connection, repo: Row[Any], kind: Kind, name: str, commit: str, message: str | None, *, most: int
) -> None:
    """Let a new branch or tag name a commit; raises as `check_new`."""
    check_new(connection, repo, kind, name, most=most)
    row = {"repo_id": repo.id, "kind": kind, "name": name, "commit_id": commit, "message": message}
    connection.execute(insert(refs).values(**row, created_at=now_ms()))


def check_room(connection: Connection, repo: Row[Any], most: int, *, more: int = 0) -> None:
    """Raise when a repository with `more` refs has more than `most` beside the tags of its versions.

    Raises:
        HttpRefusal: 413.
    """
    mine = (refs.c.repo_id == repo.id) & (refs.c.kind == "tag")
    same = (releases.c.commit_id == refs.c.commit_id) & (releases.c.tag == refs.c.name)
    released = exists().where(releases.c.repo_id == repo.id, same)
    others = select(func.count()).where(refs.c.repo_id == repo.id, ~(mine & released))
    if (connection.scalar(others) or 0) + more > most:
        raise HttpRefusal(
            413, "TooLarge", f"a repository has at most {most} branches and tags beside those of versions; remove some"
        )


def check_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Raise when one of the refs of `repo` would name another repository's release under the new full name.

    Raises:
        HttpRefusal: 409.
    """
    _lock_refs(connection, repo)
    named = connection.execute(select(refs.c.kind, refs.c.name).where(refs.c.repo_id == repo.id)).all()
    mine = set(connection.scalars(select(releases.c.version_key).where(releases.c.repo_id == repo.id)))
    keys = {(ref.kind, ref.name): version_key(read) for ref in named if (read := _version_like(ref.name))}
    buried = _buried(connection, full_name, sorted(set(keys.values())))
    for (kind, name), key in keys.items():
        # the tag of a release of the repository: `tombstones` compared its bytes
        own = kind == "tag" and key in mine and version_of(name) is not None
        if key in buried and not own:
            raise _belongs(name, full_name, buried[key])


def _lock_refs(connection: Connection, repo: Row[Any]) -> None:
    # a branch and a tag have different keys, so no unique index stops two transactions that make one each
    lock_name(connection, f"refs of {repo.id}")


def _version_like(name: str) -> str | None:
    """Return the version that people, and case-insensitive file systems, read in a name."""
    return version_of(unicodedata.normalize("NFKC", name).casefold())


def _buried(connection: Connection, full_name: str | None, keys: list[str]) -> dict[str, str]:
    """Return the removed versions with these keys."""
    buried = (tombstones.c.full_name == full_name) & tombstones.c.version_key.in_(keys)
    rows = (
        connection.execute(select(tombstones.c.version_key, tombstones.c.version).where(buried)).all() if keys else ()
    )
    return {row.version_key: row.version for row in rows}


def _belongs(name: str, full_name: str, version: str) -> HttpRefusal:
    return conflict(
        f"`{name}` names the released version {version} of `{full_name}`, and released names never change; "
        "nothing was created, choose another name"
    )
