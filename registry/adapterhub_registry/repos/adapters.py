"""The adapter index: a row for the head of `main` and for every released commit, and the releases.

A release is a tag `v<version>` on a commit with an adapter. Its record stays when the tag is removed, so a version
never gets other bytes. Yanking only marks it; its bytes stay, so that locked installs keep working.

The releases of removed repositories are remembered as well: their versions never get other bytes, but may return.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    false,
    insert,
    literal,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.engine import Connection

from adapterhub.core.errors import SpecError, shown
from adapterhub.core.specs import parse_released, parse_version, version_key, version_order
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.formats.relevance import Wording, wording_of
from adapterhub_registry import outbox, testing
from adapterhub_registry.access import rights
from adapterhub_registry.access.audit import By, log_change
from adapterhub_registry.access.rights import Writes, nobody
from adapterhub_registry.database.db import (
    adapters,
    blobs,
    commits,
    derived,
    insert_new,
    now_ms,
    places,
    refs,
    releases,
    repos,
    slices,
    test_rules,
    tombstones,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import put_text
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.errors import HttpRefusal, bad_request, conflict, unknown_cursor, version_not_found
from adapterhub_registry.names import key_of_version
from adapterhub_registry.outbox import EventType
from adapterhub_registry.repos.adapter_facts import AdapterFacts, facts_of, tags_of_adapter
from adapterhub_registry.storage.blobs import BlobStore

_FACTS: Final = tuple(field.name for field in fields(AdapterFacts) if field.name != "tags")
MAX_PLACES: Final = 1000
MAX_RELEASES: Final = 1000

MAX_REASON_CHARACTERS = 500

RELEASED_BUILD: Final = (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id)
"""The adapter and the release at one commit."""
_TAGGED: Final = (refs.c.repo_id == releases.c.repo_id) & (refs.c.kind == "tag") & (refs.c.name == releases.c.tag)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTag:
    """A tag that names a commit from now on. `put` writes it where that is yet to do.

    `publisher` is the job of a CI that releases by it, as `access.trusted` describes one.
    """

    name: str
    put: Callable[[], None] | None = None
    publisher: str | None = None


def index_commit(
    connection: Connection,
    blobs: BlobStore,
    repo: Row[Any],
    commit_id: str,
    files: Mapping[str, str],
    *,
    tag: NewTag | None = None,
    writes: Writes = nobody,
) -> list[str]:
    """Index the adapter of a commit and return its tags; `files` is the whole tree (path to sha256).

    Without `tag`, the commit is the new head of `main`. With `tag`, the tag now names the commit, and a version tag
    releases it; one that is yet to `put` comes with a new head. `writes` are the rights of the sender. Call it in the
    transaction of the commit or tag, after writing the ref. An unreadable file is not an error; its facts stay unknown.

    Raises:
        HttpRefusal: 409 when the version exists with other bytes, 422 when it does not meet the rule of the namespace,
            403 when the name of the adapter belongs to another repository.
    """
    adapter = facts_of(files, blobs)
    if adapter is not None and repo.gated and adapter.version is None:
        adapter = replace(adapter, description="")  # it comes from the card, which is among the files behind the gate
    before: Sequence[str] = ()
    is_head = tag is None or tag.put is not None
    if is_head:
        heads = (adapters.c.repo_id == repo.id) & adapters.c.is_head & (adapters.c.commit_id != commit_id)
        before = connection.scalars(select(adapters.c.commit_id).where(heads)).all()
        connection.execute(update(adapters).where(heads).values(is_head=False))
    if adapter is not None:
        _put(connection, repo, commit_id, adapter, is_head=is_head)
        if is_head and adapter.version is not None and adapter.name is not None:
            rights.check(connection, repo, adapter.name, writes)
            _check_release(connection, repo, adapter.version, adapter)
    if tag is not None and tag.put is not None:
        tag.put()
    if adapter is not None and tag is not None:
        named = {"tag": tag.name, "commit_id": commit_id, "publisher": tag.publisher}
        _release(connection, blobs, repo, adapter, files, named, writes)
    elif tag is not None:
        _check_tag_without_adapter(connection, repo, tag.name)
    forget(connection, repo.id, before)
    choose_listed(connection, repo.id)
    return tags_of_adapter(adapter) if adapter is not None else []


def version_of(tag: str) -> str | None:
    """Return the version of a tag: 1.2.0 for `v1.2.0`, None for any other tag."""
    try:
        return parse_version(tag[1:]) if tag.startswith("v") else None
    except SpecError:
        return None


def choose_listed(connection: Connection, repo_id: int) -> None:
    """Choose the row that represents a repository in searches; call it also after removing a tag.

    This is the newest release that has its tag and is not yanked. Without one, it is the head of `main`, unless its
    bytes were yanked or the namespace publishes only what meets its rule.
    """
    mine = adapters.c.repo_id == repo_id
    newest = select(releases.c.commit_id).join(refs, _TAGGED)
    newest = newest.where(releases.c.repo_id == repo_id, releases.c.yanked_at.is_(None))
    live = connection.scalar(newest.order_by(releases.c.place.desc()).limit(1))
    if live is None:
        yanked = select(releases.c.digest).where(releases.c.repo_id == repo_id, releases.c.yanked_at.is_not(None))
        good = adapters.c.is_head & adapters.c.digest.not_in(yanked) & ~_asks_for_tests(repo_id)
        live = connection.scalar(select(adapters.c.commit_id).where(mine, good))
    _mark_only(connection, repo_id, adapters.c.is_listed, live)
    is_yanked = select(releases.c.repo_id).where(releases.c.repo_id == repo_id, releases.c.yanked_at.is_not(None))
    warned = None
    if connection.scalar(is_yanked.limit(1)) is not None:
        warned = live or connection.scalar(select(adapters.c.commit_id).where(mine, adapters.c.is_head))
    _mark_only(connection, repo_id, adapters.c.is_warned, warned)
    write_words(connection, repo_id)


def _mark_only(connection: Connection, repo_id: int, mark: Column[bool], commit_id: str | None) -> None:
    """Let one row of a repository at most have a mark: that of this commit."""
    mine = adapters.c.repo_id == repo_id
    others = mark & (adapters.c.commit_id != (commit_id or ""))
    connection.execute(update(adapters).where(mine, others).values({mark: False}))
    if commit_id is not None:
        chosen = (adapters.c.commit_id == commit_id) & mark.is_(False)
        connection.execute(update(adapters).where(mine, chosen).values({mark: True}))


def write_words(connection: Connection, repo_id: int) -> None:
    """Store the words by which a search finds a repository; call it when its name or its builds change."""
    of_repo = select(adapters.c.commit_id).where(adapters.c.repo_id == repo_id)
    shown_builds = adapters.c.commit_id.in_(  # by an index for each
        union_all(of_repo.where(adapters.c.is_listed), of_repo.where(adapters.c.is_head))
    )
    found = select(repos.c.full_name, repos.c.gated, adapters).join_from(
        repos, adapters, adapters.c.repo_id == repos.c.id
    )
    found = found.where(repos.c.id == repo_id, shown_builds).order_by(adapters.c.is_listed.desc())
    rows = connection.execute(found).all()
    if rows:
        body = " ".join([rows[0].full_name.lower(), *(row.words for row in rows)])
        put_text(connection, repo_id, body, wording_in(rows[0]))


def follow_gate(connection: Connection, repo_id: int) -> None:
    """Let searches know as much of a repository as its gate leaves in the open; call it when the gate changes.

    The description of a build with a manifest stays. One from a card goes for good, and example prompts do while the
    repository is gated: both come from files that not every caller may read.
    """
    from_card = (adapters.c.repo_id == repo_id) & adapters.c.version.is_(None) & (adapters.c.description != "")
    about = select(adapters.c.commit_id, adapters.c.description, adapters.c.words).join(repos)
    for row in connection.execute(about.where(from_card, repos.c.gated.is_not(None))).all():
        one = from_card & (adapters.c.commit_id == row.commit_id)
        words = row.words.replace(row.description.lower(), "")
        connection.execute(update(adapters).where(one).values(description="", words=words))
    write_words(connection, repo_id)


def wording_in(row: Any) -> Wording:
    """Return the public view of a row of `adapters`, with the name and the gate of its repository."""
    name = row.full_name if row.name in {None, row.full_name.partition("/")[2]} else f"{row.full_name} {row.name}"
    examples = [] if row.gated else (row.examples or "").splitlines()
    return wording_of(name, row.task or "", row.description or "", examples)


def _asks_for_tests(repo_id: int) -> ColumnElement[bool]:
    asking = test_rules.c.namespace.in_(select(repos.c.namespace).where(repos.c.id == repo_id))
    return exists().where(asking, test_rules.c.asks != "off")


def check_arrival(connection: Connection, blobs: BlobStore, repo: Row[Any], namespace: str) -> None:
    """Raise when a repository that moves to a namespace has a version that does not meet its rule.

    Raises:
        HttpRefusal: 422.
    """
    at = (commits.c.repo_id == releases.c.repo_id) & (commits.c.id == releases.c.commit_id)
    about = select(releases.c.version, releases.c.digest, adapters.c.base_sha256, commits.c.root)
    about = about.join_from(releases, adapters, RELEASED_BUILD).join(commits, at).where(releases.c.repo_id == repo.id)
    for row in connection.execute(about.order_by(releases.c.version)).all():
        evals = FileTree(connection, repo.id, row.root).find(CONTRACT_FILE)
        build = (row.version, row.digest, row.base_sha256)
        testing.check_version(connection, blobs, repo, build, evals.sha256 if evals else None, namespace=namespace)


def yank(connection: Connection, repo: Row[Any], version: str, *, reason: str, by: By) -> None:
    """Mark a release as yanked, and log who did; yanking it again replaces the reason.

    Raises:
        HttpRefusal: 404 for an unknown version.
    """
    reason = reason[:MAX_REASON_CHARACTERS]
    log_change(connection, by, "yank", f"{version}: {reason}", repo=repo.full_name)
    user = str(by.user)
    version = _mark(connection, repo, version, yanked_at=now_ms(), yanked_by=user, yanked_reason=reason)
    record_release(connection, repo, "version.yanked", tag=f"v{version}", reason=reason, by=user)


def unyank(connection: Connection, repo: Row[Any], version: str, *, by: By) -> None:
    """Undo `yank`; raises the same errors. The reason stays: a mirror that brought it does not bring it again."""
    log_change(connection, by, "yank", f"no more of {version}", repo=repo.full_name)
    version = _mark(connection, repo, version, yanked_at=None)
    record_release(connection, repo, "version.unyanked", tag=f"v{version}")


def record_release(connection: Connection, repo: Row[Any], kind: EventType, *, tag: str, **more: object) -> bool:
    """Record an event of the release that `tag` names; of any other tag, none. Return whether it names one."""
    version = version_of(tag)
    wanted = select(releases.c.digest, releases.c.version, adapters.c.name)
    wanted = wanted.join_from(releases, adapters, RELEASED_BUILD, isouter=True).where(releases.c.repo_id == repo.id)
    key = "" if version is None else version_key(version)
    row = connection.execute(wanted.where(releases.c.version_key == key)).one_or_none()
    if row is not None:
        name = row.name or repo.full_name.partition("/")[2]
        outbox.record(connection, repo, kind, name=name, version=row.version, digest=f"sha256:{row.digest}", **more)
    return row is not None


def _mark(connection: Connection, repo: Row[Any], version: str, **values: object) -> str:
    """Change a release and return its version as it was released."""
    key = (releases.c.repo_id == repo.id) & (releases.c.version_key == key_of_version(version))
    released = connection.scalar(select(releases.c.version).where(key))
    if released is None:
        raise version_not_found(repo.full_name, version)
    connection.execute(update(releases).where(key).values(**values))
    choose_listed(connection, repo.id)
    return str(released)


def warning_for(connection: Connection, repo_id: int, commit_id: str) -> str | None:
    """Return the `X-HF-Warning` header of a commit with a yanked release; None for other commits."""
    yanked = select(releases.c.version, releases.c.yanked_reason).where(
        releases.c.repo_id == repo_id, releases.c.commit_id == commit_id, releases.c.yanked_at.is_not(None)
    )
    row = connection.execute(yanked.order_by(releases.c.version)).first()
    return None if row is None else yank_warning(row.version, row.yanked_reason)


def warnings_of(connection: Connection, repo_id: int) -> dict[str, str]:
    """As `warning_for`, of every commit of a repository that has a yanked release."""
    yanked = select(releases.c.commit_id, releases.c.version, releases.c.yanked_reason).where(
        releases.c.repo_id == repo_id, releases.c.yanked_at.is_not(None)
    )
    rows = connection.execute(yanked.order_by(releases.c.version.desc())).all()
    return {row.commit_id: yank_warning(row.version, row.yanked_reason) for row in rows}


def yank_warning(version: str, reason: str) -> str:
    """Return the `X-HF-Warning` header about a yanked version."""
    return f"yanked; version {version} was yanked: {shown(reason.encode('ascii', 'replace').decode('ascii'), 200)}"


def adapt_object(connection: Connection, repo_id: int, commit_id: str) -> dict[str, Any] | None:
    """Return the member `adapt` of model info at one commit; None without an indexed adapter."""
    row = _AT_COMMIT.first(connection, repo=repo_id, at=commit_id)
    return None if row is None else facts_json(row)


_AT_COMMIT: Final = PreparedSql(
    select(adapters).where(adapters.c.repo_id == bindparam("repo"), adapters.c.commit_id == bindparam("at"))
)


def facts_json(row: Row[Any]) -> dict[str, Any]:
    """Return an adapter's row in the form of the API."""
    return {
        "name": row.name,
        "version": row.version,
        "base_sha256": row.base_sha256,
        "task": row.task,
        "peft_type": row.peft_type,
        "rank": row.rank,
        "alpha": row.alpha,
        "dtype": row.dtype,
        "parameters": row.parameters,
        "digest": f"sha256:{row.digest}",
        "adapter_sha256": row.weights_sha256,
        "base": row.base_model,
        "method": _listed(row.methods),
        "target_modules": _listed(row.target_modules),
        "description": row.description or "",
    }


@lru_cache(maxsize=256)
def _listed(text: str) -> tuple[str, ...]:
    """Return the items of a list in JSON; the versions of an adapter mostly have the same ones."""
    return tuple(json.loads(text))


def _put(connection: Connection, repo: Row[Any], commit_id: str, adapter: AdapterFacts, *, is_head: bool) -> None:
    mine = (adapters.c.repo_id == repo.id) & (adapters.c.commit_id == commit_id)
    before = connection.execute(select(adapters.c.is_head).where(mine)).one_or_none()
    if before is not None:  # a commit never changes, so its facts are known
        connection.execute(update(adapters).where(mine).values(is_head=is_head or before.is_head))
        return
    key = {"repo_id": repo.id, "commit_id": commit_id, "is_head": is_head, "is_listed": False, "created_at": now_ms()}
    connection.execute(insert(adapters).values(**columns_of(adapter), **key))
    insert_new(connection, derived, [waiting_record(adapter.digest)])
    rights.push_again(connection, adapter.digest)


def columns_of(adapter: AdapterFacts) -> dict[str, Any]:
    """Return the facts of an adapter as columns of the table `adapters`."""
    words = [adapter.name, adapter.task, adapter.base_model, adapter.description, *adapter.tags]
    values = {name: getattr(adapter, name) for name in _FACTS}
    return values | {
        "methods": json.dumps(adapter.methods),
        "target_modules": json.dumps(adapter.target_modules),
        "words": " ".join(text for text in words if text).lower(),
        "examples": "\n".join(adapter.examples),
    }


def waiting_record(digest: str) -> dict[str, Any]:
    """Return the row in `derived` of a new build: a worker reads its weights later."""
    return {"digest": digest, "state": "waiting", "attempts": 0, "due_at": now_ms()}


def _release(
    connection: Connection,
    blobs: BlobStore,
    repo: Row[Any],
    adapter: AdapterFacts,
    files: Mapping[str, str],
    named: Mapping[str, str | None],
    writes: Writes,
) -> None:
    """Release what the tag in `named` names. A release that is there keeps who published it."""
    tag = str(named["tag"])
    version = version_of(tag)
    if version is None:
        return
    # One release at a time in a namespace: its first repository is the lock. SQLite has one writer anyway.
    first = select(repos.c.id).where(repos.c.namespace == repo.namespace).order_by(repos.c.id).limit(1)
    # without its key: a plain FOR UPDATE and an insert that refers to the row would wait for each other
    connection.execute(first.with_for_update(key_share=True)).all()
    mine = (releases.c.repo_id == repo.id) & (releases.c.version_key == version_key(version))
    if adapter.name is not None and connection.scalar(select(releases.c.version).where(mine)) is None:
        rights.claim(connection, repo, adapter.name, writes)
    if adapter.version is not None and version_key(adapter.version) != version_key(version):
        raise conflict(
            f"the tag `{tag}` is on a build whose manifest has version {adapter.version}, expected the same;"
            " nothing was released"
        )
    _check_release(connection, repo, version, adapter)
    build = (version, adapter.digest, adapter.base_sha256)
    testing.check_version(connection, blobs, repo, build, files.get(CONTRACT_FILE))
    row = {
        "repo_id": repo.id,
        "version": version,
        "namespace": repo.namespace,
        "digest": adapter.digest,
        "created_at": now_ms(),
        **named,
    }
    insert_new(connection, releases, [row])
    # Another transaction may have been faster, or the same bytes were tagged again: the stored row decides.
    _check_release(connection, repo, version, adapter)
    connection.execute(update(releases).where(mine).values(tag=tag, commit_id=named["commit_id"]))


def _check_tag_without_adapter(connection: Connection, repo: Row[Any], tag: str) -> None:
    """Raise when a tag of a released version would name a commit without an adapter."""
    version = version_of(tag)
    if version is None:
        return
    key = version_key(version)
    mine = select(releases.c.version).where(releases.c.repo_id == repo.id, releases.c.version_key == key)
    released = connection.scalar(mine)
    if released is not None:
        raise _released(f"`{repo.full_name}`", released)
    check_buried_tag(connection, repo, version)


def _check_release(connection: Connection, repo: Row[Any], version: str, adapter: AdapterFacts) -> None:
    """Raise when this version of the adapter, for this base and rank, exists with another digest, or is local."""
    check_public(version)
    same_name = adapters.c.name == adapter.name if adapter.name is not None else repos.c.id == repo.id
    released = (
        select(repos.c.full_name, repos.c.private, releases.c.version)
        .join_from(releases, repos, repos.c.id == releases.c.repo_id)
        .join(adapters, RELEASED_BUILD)
        .where(releases.c.version_key == version_key(version), releases.c.digest != adapter.digest)
        .where(
            (repos.c.id == repo.id) | ((repos.c.namespace == repo.namespace) & same_name & has_build(adapters, adapter))
        )
    )
    holders = connection.execute(released.order_by(repos.c.full_name)).all()
    if holders:
        # never names a private repository: the caller may write to the namespace without seeing it
        named = [row.full_name for row in holders if row.full_name == repo.full_name or not row.private]
        holder = f"`{named[0]}`" if named else f"adapter `{adapter.name}` in `{repo.namespace}`"
        raise _released(holder, holders[0].version)
    check_buried_release(connection, repo, version, adapter)


def check_public(version: str) -> None:
    """Raise for a local version, which `==` reads as the one without its local part in every other tool.

    Raises:
        HttpRefusal: 422.
    """
    try:
        parse_released(version)
    except SpecError as error:
        raise HttpRefusal(422, "LocalVersion", f"version {shown(version)}: {error.reason}; {error.hint}") from None


def _released(holder: str, version: str) -> HttpRefusal:
    return conflict(
        f"release {version} of {holder} exists with other bytes; releases never change, so raise the version"
    )


def forget(connection: Connection, repo_id: int, commit_ids: Sequence[str]) -> None:
    """Remove the rows of commits that are no longer a head, and that no release and no tag names."""
    for some in slices(commit_ids):
        rows = (adapters.c.repo_id == repo_id) & adapters.c.commit_id.in_(some) & adapters.c.is_head.is_(False)
        for table, which in ((releases, true()), (refs, refs.c.kind == "tag")):
            named = (table.c.repo_id == repo_id) & (table.c.commit_id == adapters.c.commit_id)
            rows &= ~exists().where(named, which)
        connection.execute(delete(adapters).where(rows))


def yanked_of(connection: Connection, digests: Sequence[str], visible: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """Return the yanked releases with these digests, as `full_name`, `version`, `digest` and the yank's columns."""
    wanted = (
        select(repos.c.full_name, releases)
        .join_from(releases, repos, repos.c.id == releases.c.repo_id)
        .where(releases.c.digest.in_(digests), releases.c.yanked_at.is_not(None), visible)
        .order_by(repos.c.full_name, releases.c.version)
    )
    return connection.execute(wanted).all()


def places_of(connection: Connection, sha256: str, visible: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """Return the files with these bytes, as `full_name`, `gated`, `commit_id`, `path`, `size`; at most 1,000.

    The commit is the first one of the repository that added the file.
    """
    wanted: Select[Any] = (
        select(repos.c.full_name, repos.c.gated, places.c.commit_id, places.c.path, blobs.c.size)
        .join(repos, repos.c.id == places.c.repo_id)
        .join(blobs, blobs.c.sha256 == places.c.sha256)
        .join(commits, and_(commits.c.repo_id == places.c.repo_id, commits.c.id == places.c.commit_id))
        .where(places.c.sha256 == sha256, visible)
        .order_by(commits.c.created_at.desc(), repos.c.id, places.c.path)
        .limit(MAX_PLACES)
    )
    return connection.execute(wanted).all()


_VERSIONS: Final = (
    select(
        adapters,
        releases.c.version.label("released_as"),
        releases.c.tag,
        releases.c.place,
        releases.c.created_at.label("released_at"),
        releases.c.yanked_at,
        releases.c.yanked_by,
        releases.c.yanked_reason,
        releases.c.publisher,
    )
    .join_from(releases, adapters, RELEASED_BUILD)
    .join(refs, _TAGGED)
)


def versions_of(
    connection: Connection,
    repo_id: int,
    *,
    limit: int | None = None,
    below: str | None = None,
    usable: bool = False,
    digest: str | None = None,
) -> Sequence[Row[Any]]:
    """Return the releases of a repository that have their tags, with their facts; the newest version first.

    At most `limit` of them, those `below` a version, those that are `usable`: not yanked, those of the build `digest`.

    Raises:
        HttpRefusal: 400 for a malformed version.
    """
    given: dict[str, object] = {"repo": repo_id}
    if below is not None:
        key = key_of_version(below)
        if not key:
            raise bad_request(f"version `{shown(below)}`: expected one such as 1.0.0")
        given["below"] = version_order(key)
    if digest is not None:
        given["digest"] = digest
    elif limit is not None:
        given["limit"] = limit
    found = _versions(frozenset(given), usable=usable).rows(connection, **given)
    return sorted(found, key=lambda row: bytes(row.place), reverse=True)[:limit] if digest is not None else found


@lru_cache
def _versions(given: frozenset[str], *, usable: bool) -> PreparedSql:
    """Return the statement of `versions_of`, with these parameters."""
    wanted = _VERSIONS.where(releases.c.repo_id == bindparam("repo"))
    if "below" in given:
        wanted = wanted.where(releases.c.place < bindparam("below"))
    if usable:
        wanted = wanted.where(releases.c.yanked_at.is_(None))
    if "digest" in given:  # without an order, which would lead SQLite to the index of the order
        return PreparedSql(wanted.where(releases.c.digest == bindparam("digest")))
    wanted = wanted.order_by(releases.c.place.desc())
    return PreparedSql(wanted.limit(bindparam("limit", type_=Integer)) if "limit" in given else wanted)


def has_versions(connection: Connection, repo_id: int, *, more_than: int) -> bool:
    """Return whether a repository has more versions than a number."""
    return bool(_ANOTHER.tuples(connection, repo=repo_id, more_than=more_than))


_ANOTHER: Final = PreparedSql(
    select(releases.c.version)
    .where(releases.c.repo_id == bindparam("repo"))
    .limit(1)
    .offset(bindparam("more_than", type_=Integer))
)


def newest_version(connection: Connection, repo_id: int) -> Row[Any] | None:
    """Return the newest of `versions_of` that is not yanked, or the newest; None if there is none."""
    usable = versions_of(connection, repo_id, limit=1, usable=True)
    return next(iter(usable or versions_of(connection, repo_id, limit=1)), None)


def has_one_base(connection: Connection, repo_id: int, base_sha256: str | None) -> bool:
    """Return whether every build of a repository is for the base of this digest."""
    if base_sha256 is None:
        return False
    return not any(other.tuples(connection, repo=repo_id, base=base_sha256) for other in _OTHER_BASES)


def _of_other(base: ColumnElement[bool]) -> PreparedSql:
    return PreparedSql(select(literal(1)).where(adapters.c.repo_id == bindparam("repo"), base).limit(1))


_OTHER_BASES: Final = [
    _of_other(adapters.c.base_sha256.is_(None)),
    _of_other(adapters.c.base_sha256 < bindparam("base")),
    _of_other(adapters.c.base_sha256 > bindparam("base")),
]
"""Each goes by an index."""


def version_in(connection: Connection, repo_id: int, version: str) -> Row[Any] | None:
    """One of `versions_of`, however the version is spelled; None if there is none."""
    return _ONE_VERSION.first(connection, repo=repo_id, key=key_of_version(version))


_ONE_VERSION: Final = PreparedSql(
    _VERSIONS.where(releases.c.repo_id == bindparam("repo"), releases.c.version_key == bindparam("key"))
)


def releases_in(
    connection: Connection, namespace: str, visible: ColumnElement[bool], *, cursor: str | None, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """Every release in a namespace that has its tag: its repository, adapter, version, digest, commit and yank.

    Returns a page of them and the cursor of the next; None on the last.

    Raises:
        HttpRefusal: 400 for a malformed cursor.
    """
    columns = (releases.c.version, releases.c.digest, releases.c.commit_id, releases.c.yanked_at, releases.c.repo_id)
    # subqueries: PostgreSQL expects one row of a join by two columns, and sorts all releases of a namespace
    name, has_build, has_tag = (
        select(of).where(same).correlate(releases).scalar_subquery()
        for of, same in (
            (adapters.c.name, RELEASED_BUILD),
            (adapters.c.repo_id, RELEASED_BUILD),
            (refs.c.repo_id, _TAGGED),
        )
    )
    wanted: list[ColumnElement[bool]] = [of_repo := releases.c.repo_id == repos.c.id]
    wanted += [has_build.is_not(None), has_tag.is_not(None)]
    found: Select[Any] = select(repos.c.full_name).where(repos.c.namespace == namespace, visible)
    if cursor is not None:
        number, _, version = cursor.partition(" ")
        if not number.isdecimal():
            raise unknown_cursor(cursor)
        # in the order of two indexes: the first part of the condition says where to begin
        found = found.where(repos.c.id >= int(number))
        wanted.append(or_(repos.c.id > int(number), releases.c.version > version))
    mine = select(*columns, name.label("name")).where(*wanted)
    if connection.dialect.name == "postgresql":  # which would sort all releases of a repository, were they not limited
        each = mine.order_by(releases.c.version).limit(limit + 1).correlate(repos).lateral()
        found = found.add_columns(*each.c).join_from(repos, each, true()).order_by(repos.c.id, each.c.version)
    else:
        found = found.add_columns(*mine.selected_columns).join_from(repos, releases, of_repo)
        found = found.where(*wanted).order_by(repos.c.id, releases.c.version)
    rows = connection.execute(found.limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], None if last is None else f"{last.repo_id} {last.version}"


def bury(connection: Connection, repo: Row[Any], versions: Sequence[str] | None = None) -> None:
    """Record the releases of a repository that loses its name, or some `versions` of one; call it before they go."""
    # waits for a concurrent release, which refers to this row
    connection.execute(select(repos.c.id).where(repos.c.id == repo.id).with_for_update())
    about = (adapters.c.name, adapters.c.base_sha256, adapters.c.base_model, adapters.c.rank)
    mine = releases.c.repo_id == repo.id
    if versions is not None:
        mine &= releases.c.version.in_(versions)
    found = connection.execute(
        select(releases.c.version, releases.c.digest, *about)
        .join_from(releases, adapters, RELEASED_BUILD, isouter=True)
        .where(mine)
    )
    named = {"full_name": repo.full_name, "namespace": repo.namespace, "created_at": now_ms()}
    insert_new(connection, tombstones, [named | dict(row) for row in found.mappings()])


def check_buried_release(connection: Connection, repo: Row[Any], version: str, adapter: AdapterFacts) -> None:
    """Raise when a removed release of this version, under this name or of the same adapter, had another digest.

    Check the existing releases first: one that is removed meanwhile then has its tombstone.

    Raises:
        HttpRefusal: 409.
    """
    same = (tombstones.c.namespace == repo.namespace) & (tombstones.c.name == adapter.name)
    same &= has_build(tombstones, adapter)
    here = tombstones.c.full_name == repo.full_name
    other = (tombstones.c.version_key == version_key(version)) & (tombstones.c.digest != adapter.digest)
    wanted = select(tombstones.c.full_name, tombstones.c.version).where(
        other, here | (same if adapter.name is not None else false())
    )
    found = connection.execute(wanted.limit(1)).one_or_none()
    if found is not None:
        # never names another repository, which may have been private
        own = found.full_name == repo.full_name
        raise _gone(f"`{repo.full_name}`" if own else f"adapter `{adapter.name}` in `{repo.namespace}`", found.version)


def check_buried_tag(connection: Connection, repo: Row[Any], version: str | None) -> None:
    """Raise when a removed release of `repo` had this version, which a commit without an adapter cannot be."""
    if version is None:
        return
    here = (tombstones.c.full_name == repo.full_name) & (tombstones.c.version_key == version_key(version))
    buried = connection.scalar(select(tombstones.c.version).where(here))
    if buried is not None:
        raise _gone(f"`{repo.full_name}`", buried)


def check_buried_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Raise when a repository has other bytes for a version that was released under its new name."""
    same = (tombstones.c.version_key == releases.c.version_key) & (tombstones.c.digest != releases.c.digest)
    wanted = select(releases.c.version).join_from(releases, tombstones, same)
    version = connection.scalar(
        wanted.where(releases.c.repo_id == repo.id, tombstones.c.full_name == full_name).limit(1)
    )
    if version is not None:
        raise _gone(f"`{full_name}`", version)


def has_build(table: Table, adapter: AdapterFacts) -> ColumnElement[bool]:
    """Return the condition on `table` (`adapters` or `tombstones`) for the base and rank of an adapter."""
    return (
        table.c.base_sha256.is_not_distinct_from(adapter.base_sha256)
        & table.c.base_model.is_not_distinct_from(adapter.base_model)
        & table.c.rank.is_not_distinct_from(adapter.rank)
    )


def _gone(holder: str, version: str) -> Exception:
    return conflict(
        f"release {version} of {holder} was removed and had other bytes; releases never change, so raise the version"
    )
