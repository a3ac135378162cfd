"""Repositories: access, life cycle, branches and tags.

Every function works inside the caller's transaction and takes the `Caller`. A repository that the caller may not see
is not found. The functions pass a repository as its row of the table `repos`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Row, delete, false, func, insert, or_, select, true, update
from sqlalchemy.engine import Connection

from adapterhub.core.specs import fold
from adapterhub_registry import outbox, treelog
from adapterhub_registry.access import rights
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import LOCAL, Caller, Right, reached_names, seen_with
from adapterhub_registry.access.trusted import origin_of
from adapterhub_registry.database.db import (
    add_bytes,
    insert_new,
    inserted_id,
    lock_name,
    lock_space,
    now_ms,
    places,
    redirects,
    refs,
    releases,
    repos,
    slices,
    uploads,
)
from adapterhub_registry.database.db import blobs as blobs_table
from adapterhub_registry.database.prepared import Met
from adapterhub_registry.database.trees import TreeDigests
from adapterhub_registry.errors import (
    HttpRefusal,
    bad_request,
    busy,
    conflict,
    forbidden,
    gated,
    name_reserved,
    repo_not_found,
    unauthorized,
)
from adapterhub_registry.names import RESERVED_NAMESPACES, RepoId
from adapterhub_registry.repos import adapters, aliases, commits, quotas
from adapterhub_registry.repos.aliases import Kind
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import BlobStore, StoredBlob

RepoRow = Row[Any]
MAIN: Final = "main"
HIDDEN: Final = "~"  # prefix in `folded` of private repositories; no id begins with it, so they look like no other name


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoChange:
    """New settings of a repository; None keeps a setting. `gated` is `auto`, `manual` or, for open, `no`."""

    private: bool | None = None
    gated: Literal["auto", "manual", "no"] | None = None


def _reach(caller: Caller) -> Caller:
    """Return the key of the repositories of a caller, which is equal for many."""
    return Caller(user=None, role="read", namespaces=caller.namespaces, memberships=caller.memberships)


@lru_cache(maxsize=256)
def _visible(reach: Caller, *, reads_public: bool) -> ColumnElement[bool]:
    public = repos.c.private.is_(False) if reads_public else false()
    return or_(public, reached_names(reach, repos.c.full_name))


@lru_cache(maxsize=256)
def _readable(visible: ColumnElement[bool], reach: Caller) -> ColumnElement[bool]:
    return visible & or_(repos.c.gated.is_(None), reached_names(reach, repos.c.full_name))


class Repos:
    """The repositories of one registry."""

    def __init__(self, blobs: BlobStore, *, anonymous_read: bool, limits: ServerLimits) -> None:
        self._blobs, self._limits, self._anonymous_read = blobs, limits, anonymous_read
        self.reserved = RESERVED_NAMESPACES  # in lower case; the application adds what its routes begin with

    # ------------------------------------------------------------ access
    def visible(self, caller: Caller) -> ColumnElement[bool]:
        """Return the SQL condition on `repos` for those that `caller` may see; for equal rights the same object."""
        return true() if caller.sees_all else _visible(_reach(caller), reads_public=self._reads_public(caller))

    def sight(self, caller: Caller) -> Met:
        """As `visible`, for statements that are prepared: the values are parameters."""
        return seen_with(caller, reads_public=self._reads_public(caller))

    def _reads_public(self, caller: Caller) -> bool:
        return self._anonymous_read or caller.user is not None

    def sees(self, caller: Caller, row: RepoRow) -> bool:
        """As `visible`, for a row of `repos`."""
        return (self._reads_public(caller) and not row.private) or caller.reaches(row.full_name)

    def readable(self, caller: Caller) -> ColumnElement[bool]:
        """As `visible`, for those whose files the caller may read, as far as a token decides."""
        return _readable(self.visible(caller), _reach(caller))

    def check_may_read(self, caller: Caller) -> None:
        """Raise 401 when reading needs a token and the caller has none."""
        if not self._reads_public(caller):
            raise unauthorized("this registry requires a token for reading; run `hf auth login` or set HF_TOKEN")

    def find(self, connection: Connection, caller: Caller, repo_id: RepoId) -> RepoRow:
        """Return a repository that `caller` may see, by its id in any case, or by an id that it had before.

        Raises:
            HttpRefusal: 401 when reading needs a token and the caller has none; otherwise 404.
        """
        self.check_may_read(caller)
        for wanted in _spellings(repo_id):
            rows = connection.execute(select(repos).where(wanted)).all()
            seen = [row for row in rows if not row.private or caller.reaches(row.full_name)]
            if len(seen) == 1:
                return seen[0]
        raise repo_not_found(repo_id)

    def reads(self, connection: Connection, caller: Caller, row: RepoRow | Row[Any, Any, Any]) -> bool:
        """Return whether a caller who sees a repository may read its files, and what is derived from them."""
        return not row.gated or caller.reaches(row.full_name) or rights.is_accepted(connection, row.id, caller.user)

    def find_files(self, connection: Connection, caller: Caller, repo_id: RepoId) -> RepoRow:
        """Return a repository whose files `caller` may read; a gated one accepted the user, or the token covers it."""
        row = self.find(connection, caller, repo_id)
        if not self.reads(connection, caller, row):
            raise gated(row.full_name)
        return row

    def find_file(
        self, connection: Connection, caller: Caller, repo_id: RepoId, revision: str, path: str
    ) -> commits.FoundFile:
        """Return a file at a revision, which `caller` may read; one statement where the id and the revision are exact.

        Raises:
            HttpRefusal: 401, 403 or 404 as `find_files`, 404 for an unknown revision or file.
        """
        self.check_may_read(caller)
        top = commits.top_at(connection, repo_id, revision)
        if top is not None and (not top.private or caller.reaches(top.full_name)):
            if not self.reads(connection, caller, top):
                raise gated(top.full_name)
            return commits.file_below(connection, top, path)
        row = self.find_files(connection, caller, repo_id)
        commit_id = commits.find_commit(connection, row, revision)
        entry = commits.file_at(connection, row.id, commit_id, path)
        warning = adapters.warning_for(connection, row.id, commit_id)
        return commits.FoundFile(repo_id=row.id, commit_id=commit_id, entry=entry, warning=warning)

    def find_file_in(self, caller: Caller, top: RepoRow | None, path: str) -> commits.FoundFile | None:
        """Return the same as `find_file`, using only a row of `top_at`; None if that is not enough."""
        self.check_may_read(caller)
        if top is None or ((top.private or top.gated) and not caller.reaches(top.full_name)):
            return None
        return commits.file_in(top, path)

    def find_writable(self, connection: Connection, caller: Caller, repo_id: RepoId, right: Right = "write") -> RepoRow:
        """Return a repository with which `caller` may do this.

        403 when the caller may only see it, 401 without a token.
        """
        row = self.find(connection, caller, repo_id)
        self.check_may(caller, row.full_name, right)
        return row

    def _find_own(self, connection: Connection, caller: Caller, repo_id: RepoId) -> RepoRow:
        """Return a repository that `caller` may change, only by its present id: a former one must not remove it."""
        row = self.find_writable(connection, caller, repo_id, "manage")
        if row.full_name.lower() != repo_id.lower():
            raise conflict(f"`{repo_id}` is called `{row.full_name}` now; nothing was changed, use this name")
        return row

    def check_may(self, caller: Caller, repo_id: str, right: Right) -> None:
        """Raise 401 without a token, 403 when the caller cannot do this with the repository."""
        if caller.user is None:
            raise unauthorized()
        if not caller.reaches(repo_id, right):
            what = "change" if right == "write" else f"{right} in" if right == "release" else right
            told = caller.role if caller.scopes is None else ", ".join(caller.scopes)
            raise forbidden(f"the token `{caller.label}` ({told}) cannot {what} `{repo_id}`; use one that may")

    # ------------------------------------------------------------ life
    def create(self, connection: Connection, caller: Caller, repo_id: RepoId, *, private: bool) -> RepoRow:
        """Create a repository whose first commit on `main` holds `.gitattributes`, as on the Hub.

        Raises:
            HttpRefusal: 409 when it exists, 400 when its name looks like another one.
        """
        lock_space(connection)
        self.check_may(caller, repo_id, "write")
        self._check_name_is_free(connection, repo_id)
        self._folded(connection, repo_id, private=private)
        now, namespace = now_ms(), repo_id.partition("/")[0]
        quotas.check_new_repo(connection, self._limits, namespace)
        made = connection.execute(
            insert(repos).values(
                **name_columns(repo_id, private=private),
                created_by=caller.user,
                created_at=now,
                modified_at=now,
                head="",
                most_bytes=0,
            )
        )
        number = inserted_id(made)
        connection.execute(delete(redirects).where(redirects.c.full_name == repo_id))
        head = commits.first_commit(connection, self._blobs, number, repo_id, author=str(caller.user))
        branch = {"repo_id": number, "kind": "branch", "name": MAIN, "commit_id": head, "created_at": now}
        connection.execute(insert(refs).values(branch))
        used = commits.tree_of(connection, number, head).totals().bytes
        connection.execute(update(repos).where(repos.c.id == number).values(head=head, used_bytes=used))
        _log(connection, caller, "create", repo_id, "private repository" if private else "repository")
        return connection.execute(select(repos).where(repos.c.id == number)).one()

    def _check_name_is_free(self, connection: Connection, repo_id: RepoId, *, besides: int | None = None) -> None:
        """Raise when a name is taken or looks like a public one.

        Private names are not compared, as a refusal would disclose them; they are compared when they become public.
        """
        namespace = repo_id.partition("/")[0]
        if namespace.lower() in self.reserved:
            raise name_reserved(repo_id)
        lock_name(connection, f"namespace {fold(namespace)}")
        others = repos.c.id != (besides or 0)
        if connection.scalar(select(repos.c.id).where(repos.c.full_name == repo_id, others)) is not None:
            raise conflict(f"A model repository called `{repo_id}` already exists; choose another name")
        twin = repos.c.folded == _folded_id(repo_id)
        near_namespace = (repos.c.folded_namespace == fold(namespace)) & (repos.c.namespace != namespace)
        public = select(repos.c.full_name).where(others, repos.c.private.is_(False))
        near = connection.scalar(public.where(or_(twin, near_namespace)).order_by(~twin).limit(1))
        if near is not None and near.lower() == repo_id.lower():
            raise conflict(f"A model repository called `{near}` already exists; choose another name")
        if near is not None:
            raise bad_request(f"`{repo_id}` looks too much like `{near}`; choose another name")

    def _folded(self, connection: Connection, repo_id: RepoId, *, private: bool) -> str:
        """Return the value of the column `folded`, by which no two public names look alike."""
        if private:
            return HIDDEN + repo_id
        # earlier versions wrote the folded name of private repositories, too; frees it
        stands = (repos.c.folded == _folded_id(repo_id)) & repos.c.private
        connection.execute(update(repos).where(stands).values(folded=HIDDEN + repos.c.full_name))
        return _folded_id(repo_id)

    def delete(self, connection: Connection, caller: Caller, repo_id: RepoId) -> None:
        """Remove a repository with its history; blobs stay for other repositories, and released versions stay taken."""
        row = self._find_own(connection, caller, repo_id)
        adapters.bury(connection, row)
        outbox.record(connection, row, "repository.deleted")
        connection.execute(delete(repos).where(repos.c.id == row.id))
        _log(connection, caller, "delete", row.full_name, "repository")

    def move(self, connection: Connection, caller: Caller, source: RepoId, target: RepoId) -> None:
        """Rename a repository. The old id becomes free, and leads here until another repository takes it.

        Raises:
            HttpRefusal: 409 when the new id exists, or has a released version with other bytes; 422 when a version does
                not meet the rule of the new namespace; 403 when a name belongs to another there; otherwise as `create`.
        """
        row = self._find_own(connection, caller, source)
        self.check_may(caller, target, "manage")
        self._check_name_is_free(connection, target, besides=row.id)
        folded = self._folded(connection, target, private=row.private)
        adapters.bury(connection, row)
        adapters.check_buried_arrival(connection, row, target)
        aliases.check_arrival(connection, row, target)
        namespace = target.partition("/")[0]
        if namespace != row.namespace:
            adapters.check_arrival(connection, self._blobs, row, namespace)
        named = {"full_name": target, "namespace": namespace, "folded": folded, "folded_namespace": fold(namespace)}
        connection.execute(update(repos).where(repos.c.id == row.id).values(**named))
        connection.execute(update(releases).where(releases.c.repo_id == row.id).values(namespace=namespace))
        rights.follow(connection, row, caller.writes)
        adapters.write_words(connection, row.id)
        connection.execute(delete(redirects).where(redirects.c.full_name.in_([row.full_name, target])))
        if row.full_name != target:
            _log(connection, caller, "move", row.full_name, f"repository to {target}")
            connection.execute(insert(redirects).values(full_name=row.full_name, repo_id=row.id, created_at=now_ms()))
            # not where a private one went: who reaches the old name may not reach the new one
            outbox.record(connection, row, "repository.moved", to=None if row.private else target)
            outbox.follow_move(connection, row.full_name, target)
            treelog.note_releases(connection, self._row(connection, row.id))

    def change(self, connection: Connection, caller: Caller, repo_id: RepoId, change: RepoChange) -> RepoRow:
        """Change settings and return the new row; 400 when it becomes public and looks like another public name."""
        row = self.find_writable(connection, caller, repo_id, "manage")
        values: dict[str, object] = {}
        if change.private is not None:
            name = RepoId(row.full_name)
            if row.private and not change.private:
                self._check_name_is_free(connection, name, besides=row.id)
            folded = self._folded(connection, name, private=change.private)
            values |= {"private": change.private, "folded": folded}
        if change.gated is not None:
            values["gated"] = None if change.gated == "no" else change.gated
        if values:
            connection.execute(update(repos).where(repos.c.id == row.id).values(**values))
            told = ", ".join(f"{name}: {values[name]}" for name in ("private", "gated") if name in values)
            _log(connection, caller, "settings", row.full_name, told)
        if change.gated is not None:
            adapters.follow_gate(connection, row.id)
        changed = self._row(connection, row.id)
        if changed.private != row.private:
            treelog.note_releases(connection, changed)
        return changed

    @staticmethod
    def _row(connection: Connection, repo_id: int) -> RepoRow:
        return connection.execute(select(repos).where(repos.c.id == repo_id)).one()

    # ------------------------------------------------------------ branches and tags
    def create_branch(
        self,
        connection: Connection,
        caller: Caller,
        repo_id: RepoId,
        name: str,
        *,
        start: str | None,
        overwrites: bool = False,
    ) -> None:
        """Create a branch at `start` (default: the head of `main`).

        When it exists, `overwrites` moves it to `start`, or keeps it without `start`.

        Raises:
            HttpRefusal: 409 when it exists, 403 when `main` would move.
        """
        lock_space(connection)
        row = self.find_writable(connection, caller, repo_id)
        commit = commits.find_commit(connection, row, start or MAIN)
        mine = (refs.c.repo_id == row.id) & (refs.c.kind == "branch") & (refs.c.name == name)
        if overwrites and connection.scalar(select(refs.c.name).where(mine)) is not None:
            if start is not None and name == MAIN:
                raise forbidden("Cannot move refs/heads/main; commit to it")
            if start is not None:
                connection.execute(update(refs).where(mine).values(commit_id=commit))
            return
        aliases.create_ref(connection, row, "branch", name, commit, None, most=self._limits.refs)

    def delete_branch(self, connection: Connection, caller: Caller, repo_id: RepoId, name: str) -> None:
        """Remove a branch, except `main`."""
        if name == MAIN:
            raise forbidden("Cannot delete refs/heads/main: every repository has this branch; delete another branch")
        self._delete_ref(connection, self.find_writable(connection, caller, repo_id), "branch", name)

    def create_tag(
        self,
        connection: Connection,
        caller: Caller,
        repo_id: RepoId,
        name: str,
        *,
        at: str,
        message: str | None,
        overwrites: bool = False,
    ) -> bool:
        """Create a tag at a revision. A version tag on an adapter releases that version; return whether it did.

        When it exists, `overwrites` moves it; the tag of a released version moves only to a commit with the same build.

        Raises:
            HttpRefusal: 409 when it exists, or the version has other bytes.
        """
        lock_space(connection)
        row = self.find_writable(connection, caller, repo_id, "release")
        commit = commits.find_commit(connection, row, at)
        mine = (refs.c.repo_id == row.id) & (refs.c.kind == "tag") & (refs.c.name == name)
        before = connection.scalars(select(refs.c.commit_id).where(mine)).all() if overwrites else ()
        if before:
            connection.execute(update(refs).where(mine).values(commit_id=commit))
        else:
            aliases.create_ref(connection, row, "tag", name, commit, message, most=self._limits.refs)
        digests = TreeDigests(commits.tree_of(connection, row.id, commit))
        tag = adapters.NewTag(name=name, publisher=origin_of(connection, caller))
        adapters.index_commit(connection, self._blobs, row, commit, digests, tag=tag, writes=caller.writes)
        adapters.forget(connection, row.id, before)
        is_released = adapters.record_release(connection, row, "version.published", tag=name)
        if is_released:
            _log(connection, caller, "release", row.full_name, f"tag {name}")
        else:
            aliases.check_room(connection, row, self._limits.refs)
        return is_released

    def delete_tag(self, connection: Connection, caller: Caller, repo_id: RepoId, name: str) -> None:
        """Remove a tag; the version that it released stays taken."""
        row = self.find_writable(connection, caller, repo_id, "release")
        mine = (refs.c.repo_id == row.id) & (refs.c.kind == "tag") & (refs.c.name == name)
        before = connection.scalars(select(refs.c.commit_id).where(mine)).all()
        self._delete_ref(connection, row, "tag", name)
        adapters.forget(connection, row.id, before)
        adapters.choose_listed(connection, row.id)
        adapters.record_release(connection, row, "version.deleted", tag=name)
        _log(connection, caller, "release", row.full_name, f"no more tag {name}")

    def _delete_ref(self, connection: Connection, repo: RepoRow, kind: Kind, name: str) -> None:
        gone = connection.execute(
            delete(refs).where(refs.c.repo_id == repo.id, refs.c.kind == kind, refs.c.name == name)
        )
        if not gone.rowcount:
            raise HttpRefusal(
                404,
                "RevisionNotFound",
                f"Invalid rev id: `{repo.full_name}` has no {kind} `{name}`; list its branches and tags",
            )

    # ------------------------------------------------------------ blobs
    def record_upload(
        self, connection: Connection, repo_id: int, user: str, blob: StoredBlob, *, token_id: int | None = None
    ) -> None:
        """Record an upload to a repository; commits to it may then name the blob.

        Raises:
            HttpRefusal: 404 without the repository; 400 beyond a quota; 503 when `gc` removed the bytes a moment ago.
        """
        lock_space(connection)
        repo = connection.execute(select(repos).where(repos.c.id == repo_id)).one_or_none()
        if repo is None:
            raise HttpRefusal(404, "RepoNotFound", "the repository was removed during the upload; create it again")
        quotas.take(connection, self._limits, repo, token_id=token_id, blob=blob)
        if not self._blobs.holds({blob.sha256: blob.size}):
            raise busy("the server removed an unused file with the same bytes at this moment; send it again")
        now = now_ms()
        row = {"sha256": blob.sha256, "git_sha1": blob.git_sha1, "size": blob.size, "created_at": now}
        insert_new(connection, blobs_table, [row])
        quotas.unmark(connection, [blob.sha256])
        add_bytes(connection, repo_id, blob.size)
        insert_new(
            connection,
            uploads,
            [{"repo_id": repo_id, "sha256": blob.sha256, "user_name": user, "created_at": now, "token_id": token_id}],
        )

    def keep(self, connection: Connection, repo_id: int, user: str, digests: Iterable[str]) -> set[str]:
        """Keep stored blobs for a commit that will name them, and return those that the database still knows.

        `gc` leaves uploads of the last days, so each counts as uploaded today; no quota counts it again.
        """
        lock_space(connection)
        kept: set[str] = set()
        day_ago = now_ms() - quotas.DAY_MS
        for some in slices(list(digests)):
            known = select(blobs_table.c.sha256, blobs_table.c.size).where(blobs_table.c.sha256.in_(some))
            sizes = {row.sha256: row.size for row in connection.execute(known)}
            found = list(sizes)
            add_bytes(connection, repo_id, sum(sizes.values()))
            row = {"repo_id": repo_id, "user_name": user, "created_at": now_ms(), "token_id": None}
            insert_new(connection, uploads, [row | {"sha256": sha256} for sha256 in found])
            old = (uploads.c.repo_id == repo_id) & uploads.c.sha256.in_(found) & (uploads.c.created_at < day_ago)
            connection.execute(update(uploads).where(old).values(created_at=now_ms(), token_id=None))
            kept |= set(found)
        return kept

    def known_blob(self, connection: Connection, caller: Caller, repo_id: int, sha256: str) -> StoredBlob | None:
        """Return the blob, if it was uploaded to this repository or is in one that `caller` can read.

        A digest must not be enough for access to the bytes of a private repository. A damaged blob counts as unknown.
        Only the store knows whether the bytes exist.
        """
        row = connection.execute(select(blobs_table).where(blobs_table.c.sha256 == sha256)).one_or_none()
        if row is None or row.damaged_at is not None:
            return None
        sent = select(uploads.c.sha256).where(uploads.c.repo_id == repo_id, uploads.c.sha256 == sha256)
        if connection.scalar(sent.limit(1)) is None and not self._can_read_blob(connection, caller, sha256):
            return None
        return StoredBlob(row.sha256, row.git_sha1, row.size)

    def _can_read_blob(self, connection: Connection, caller: Caller, sha256: str) -> bool:
        holders = (
            select(repos.c.id, repos.c.full_name, repos.c.gated)
            .join(places, places.c.repo_id == repos.c.id)
            .where(places.c.sha256 == sha256, self.visible(caller))
            .distinct()
        )
        return any(self.reads(connection, caller, row) for row in connection.execute(holders).all())


def _log(connection: Connection, caller: Caller, action: str, repo: str, subject: str) -> None:
    if caller.user != LOCAL:  # an import makes very many
        log_change(connection, caller.by, action, subject, repo=repo)


def _spellings(repo_id: RepoId) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on `repos` for an id, in their order: as written, in any case, a former id."""
    yield repos.c.full_name == repo_id
    in_namespace = repos.c.folded_namespace == fold(repo_id.partition("/")[0])  # has an index
    yield in_namespace & (func.lower(repos.c.full_name) == repo_id.lower())
    former = func.lower(redirects.c.full_name) == repo_id.lower()
    yield repos.c.id.in_(select(redirects.c.repo_id).where(redirects.c.full_name == repo_id))
    yield repos.c.id.in_(select(redirects.c.repo_id).where(former))


def name_columns(repo_id: RepoId, *, private: bool) -> dict[str, Any]:
    """Return the columns of a repository that hold its name, and what other names are compared with."""
    namespace = repo_id.partition("/")[0]
    folded = HIDDEN + repo_id if private else _folded_id(repo_id)
    named = {"full_name": repo_id, "namespace": namespace, "folded": folded, "folded_namespace": fold(namespace)}
    return named | {"private": private}


def _folded_id(repo_id: RepoId) -> str:
    namespace, _, name = repo_id.partition("/")
    return f"{fold(namespace)}/{fold(name)}"
