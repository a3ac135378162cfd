"""Hub API: model info, the listing of models, and the history of a repository."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache, partial
from html import escape
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic_core import from_json
from sqlalchemy import Row, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import Json
from adapterhub.core.errors import shown
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.bodies import ThreadedRoute, hub_router
from adapterhub_registry.api.context import (
    Registry,
    base_of,
    dumped,
    json_answer,
    next_link,
    opened_cursor,
    query_of,
    reading,
    sealed_cursor,
)
from adapterhub_registry.database.db import Database, repo_tags, repos
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.prepared import JsonList, PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import FileTree, Outline, TreeDigests, TreeFile, TreeNode, read_node, unpack
from adapterhub_registry.errors import bad_request
from adapterhub_registry.names import COMMIT, RepoId, known_repo_id
from adapterhub_registry.repos import adapter_facts, adapters, commits
from adapterhub_registry.repos.commits import tree_of
from adapterhub_registry.repos.listing import MAX_LISTED, SORTS, RepoListing, list_repos
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.storage.blobs import BlobStore

router = hub_router(ThreadedRoute)
HISTORY_PAGE = 50
LIST_PAGE = 100
FILES_OF_PAGE = 20_000


class ListQuery(BaseModel):
    """The parameters of the listing, with the Hub's names; unknown ones are ignored."""

    filter: list[str] = []
    author: str | None = None
    search: str | None = None
    pipeline_tag: str | None = None
    apps: list[str] = []
    gated: bool | None = None
    num_parameters: str | None = None
    inference: str | None = None
    inference_provider: list[str] = []
    sort: str = "lastModified"
    limit: int = Field(default=LIST_PAGE, ge=1, le=1_000_000)
    full: bool = False
    card_data: bool = Field(default=False, alias="cardData")
    config: bool = False
    expand: list[str] = []
    cursor: str | None = None

    def listing(self, position: str | None) -> RepoListing:
        """Return the query of the search, from a position in its order.

        Raises:
            HttpRefusal: 400 for an unknown order.
        """
        sort = next((known for known in SORTS if known == self.sort), None)
        if sort is None:
            raise bad_request(f"sort `{shown(self.sort)}`: expected one of {', '.join(SORTS)}")
        never = [self.inference, *self.inference_provider]
        tags = [*self.filter, self.pipeline_tag, *self.apps]
        return RepoListing(
            filters=tuple(tag for tag in tags if tag),
            author=self.author,
            search=self.search,
            gated=self.gated,
            num_parameters=self.num_parameters,
            never=tuple(text for text in never if text),
            sort=sort,
            cursor=position,
            limit=min(self.limit, MAX_LISTED),
        )

    def members(self) -> set[str]:
        """Return the members that the client requests of each repository."""
        if self.expand:
            return set(self.expand)
        members = set(LISTED)
        members |= {"siblings"} if self.full else set()
        members |= {"cardData"} if self.card_data or self.full else set()
        return members | ({"config"} if self.config else set())


@router.get("/api/models")
def list_models(request: Request) -> Response:
    """One page of repositories; `Link` leads to the next. A page with files also ends at `FILES_OF_PAGE`."""
    registry: Registry = request.app.state.registry
    with reading(request, registry) as (connection, caller):
        base, query = base_of(request, registry), query_of(request, ListQuery)
        registry.repos.check_may_read(caller)
        members, visible = query.members(), registry.repos.sight(caller)
        page = list_repos(connection, query.listing(opened_cursor(registry, query.cursor)), visible)
        outlines = commits.outlines_of(connection, page.ids) if "siblings" in members else {}
        if outlines:
            found = (outlines.get((row.id, row.head)) for row in page.rows)
            files = accumulate(one.files if one is not None else 0 for one in found)
            page = page.first(max(sum(1 for count in files if count <= FILES_OF_PAGE), 1))
        sees = partial(registry.repos.sees, caller)

        def reads(connection: Connection, row: Row[Any]) -> bool:
            return registry.repos.reads(connection, caller, row)

        wanted = WantedMembers(registry.blobs, sees, reads, members, outlines)
        first, *others = runs_of(connection, page.ids)
        said = told(connection, first, wanted)
    answer = listed(registry.db, said, others, wanted)
    headers = {}
    cursor = sealed_cursor(registry, page.next_cursor)
    if cursor is not None:
        headers["Link"] = next_link(request, f"{base}/api/models", cursor=cursor)
    return json_answer(answer, headers)


class InfoQuery(BaseModel):
    """`blobs` adds sizes and digests of files; `expand` selects members."""

    blobs: bool = False
    expand: list[str] = []


@router.get("/api/models/{namespace}/{name}")
@router.get("/api/models/{namespace}/{name}/revision/{rev}")
def repo_info(request: Request) -> Response:
    """Everything about a repository at a revision; with `expand`, only the selected members."""
    registry: Registry = request.app.state.registry
    given = request.path_params
    with reading(request, registry) as (connection, caller):
        repo_id, query = known_repo_id(given["namespace"], given["name"]), query_of(request, InfoQuery)
        at = _seen(connection, registry, caller, repo_id, unquote(given.get("rev", MAIN)))
        row = at.row
        tags = tags_of(connection, [row.id])[row.id]
        info = at_head(row, tags) | documents_of(row)
        info |= at_commit(connection, registry.blobs, row, at.commit_id)
        if not registry.repos.reads(connection, caller, row):
            info["cardData"] = adapter_facts.open_part(info["cardData"])
    if query.expand:
        # leaves out unknown members (such as past likes) instead of refusing them
        info = {name: info[name] for name in info if name in query.expand or name in ALWAYS}
    root, top = (at.root, at.top) if not query.expand or "siblings" in query.expand else (None, None)
    node = None if top is None else read_node(unpack(top))
    answer = described(registry.db, info, row.id, root, with_blobs=query.blobs, top=node)
    return json_answer(answer, {"X-HF-Warning": at.warning} if at.warning else {})


class _SeenRevision(NamedTuple):
    """A repository at a commit: its row, the root of its files, that node where it was read, and the warning."""

    row: Row[Any]
    commit_id: str
    root: str
    top: bytes | None
    warning: str | None


def _seen(connection: Connection, registry: Registry, caller: Caller, repo_id: RepoId, revision: str) -> _SeenRevision:
    """Return the caller's view of this id and revision; one statement finds it where both are exact."""
    registry.repos.check_may_read(caller)
    top = commits.top_at(connection, repo_id, revision)
    if top is not None and (not top.private or caller.reaches(top.full_name)):
        row = row_of(connection, top.id)
        return _SeenRevision(row, top.commit_id, top.root, top.body, commits.warning_of(top))
    row = registry.repos.find(connection, caller, repo_id)
    commit_id = commits.find_commit(connection, row, revision)
    root = commits.tree_of(connection, row.id, commit_id).root
    return _SeenRevision(row, commit_id, root, None, adapters.warning_for(connection, row.id, commit_id))


class HistoryQuery(BaseModel):
    """A page of a history, `after` a commit; `expand[]=formatted` adds title and message as HTML."""

    limit: int = Field(default=HISTORY_PAGE, ge=1, le=1000)
    after: str | None = None
    expand: list[str] = Field(default=[], alias="expand[]")


@router.get("/api/models/{namespace}/{name}/commits/{rev}")
def list_commits(request: Request) -> Response:
    """List a revision and its ancestors, newest first; `Link` leads to the next page."""
    registry: Registry = request.app.state.registry
    given = request.path_params
    with reading(request, registry) as (connection, caller):
        repo_id, revision = known_repo_id(given["namespace"], given["name"]), unquote(given["rev"])
        base, query = base_of(request, registry), query_of(request, HistoryQuery)
        after = query.after
        if after is not None and not COMMIT.fullmatch(after):
            raise bad_request(f"after `{shown(after)}`: expected a commit id")
        at = _seen(connection, registry, caller, repo_id, after or revision)
        page, rest = commits.history(connection, at.row.id, at.commit_id, limit=query.limit)
        count = len(page) if rest is None else commits.count(connection, at.row.id, at.commit_id)
    headers = {"X-Total-Count": str(count)}
    if rest is not None:
        place = f"{base}/api/models/{repo_id}/commits/{quote(revision, safe='')}"
        headers["Link"] = next_link(request, place, after=rest)
    listed = (_commit(commit, formatted="formatted" in query.expand) for commit in page)
    return json_answer(iter([dumped(list(listed))]), headers)


def _commit(commit: Row[Any], *, formatted: bool) -> dict[str, Any]:
    found = {
        "id": commit.id,
        "title": commit.title,
        "message": commit.message,
        "date": iso_time(commit.created_at),
        "authors": [{"user": commit.author, "avatar": ""}],
    }
    if formatted:
        found["formatted"] = {"title": escape(commit.title), "message": f"<pre>{escape(commit.message)}</pre>"}
    return found


ALWAYS = ("_id", "id")
FEW_AT_ONCE: Final = 20
LISTED_AT_ONCE: Final = 100
CHARACTERS_AT_ONCE: Final = 1 << 20
SIBLINGS_AT_ONCE: Final = 1000
_STATE = ("sha", "createdAt", "lastModified", "private", "gated", "disabled", "downloads", "likes", "trendingScore")
LISTED = frozenset({"modelId", "author", "tags", "pipeline_tag", "library_name", *_STATE})


@lru_cache(maxsize=4096)
def iso_time(at_ms: int) -> str:
    """Return a time as `2026-11-24T10:00:00.000Z`, the only form that all clients read."""
    return dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.timezone.utc).isoformat(timespec="milliseconds")[:23] + "Z"


def public_number(row: Row[Any]) -> str:
    """Return the Hub's 24 hex digits for a repository; its own number would let clients count private ones."""
    return hashlib.sha256(f"{row.full_name} {row.created_at}".encode()).hexdigest()[:24]


def tags_of(connection: Connection, repo_ids: Iterable[int]) -> dict[int, list[str]]:
    """Return the sorted tags of some repositories."""
    wanted = list(repo_ids)
    found = dict(_TAGS.tuples(connection, numbers=json.dumps(wanted)))
    return {number: sorted(from_json(found.get(number, "[]"))) for number in wanted}


_TAGS: Final = PreparedSql(
    select(repo_tags.c.repo_id, JsonList(repo_tags.c.tag))
    .where(among(repo_tags.c.repo_id, "numbers"))
    .group_by(repo_tags.c.repo_id)
)
_ROWS: Final = PreparedSql(select(repos).where(among(repos.c.id, "numbers")))


def row_of(connection: Connection, repo_id: int) -> Row[Any]:
    """Return the row of a repository that is there."""
    row: Row[Any] = _ROWS.rows(connection, numbers=json.dumps([repo_id]))[0]
    return row


def runs_of(connection: Connection, ids: Sequence[int]) -> list[list[int]]:
    """Return some repositories in the runs in which `listed` reads them.

    `FEW_AT_ONCE` are one run, whatever their size. A run of more has at most `LISTED_AT_ONCE`, whose cards and
    configurations have at most `CHARACTERS_AT_ONCE` together.
    """
    if len(ids) <= FEW_AT_ONCE:
        return [list(ids)]
    sizes = dict(_SIZES.tuples(connection, numbers=json.dumps(list(ids))))
    runs: list[list[int]] = [[]]
    characters = 0
    for number in ids:
        characters += sizes[number]
        if runs[-1] and (characters > CHARACTERS_AT_ONCE or len(runs[-1]) == LISTED_AT_ONCE):
            runs.append([])
            characters = sizes[number]
        runs[-1].append(number)
    return runs


_SIZES: Final = PreparedSql(
    select(repos.c.id, func.length(repos.c.card) + func.length(repos.c.config)).where(among(repos.c.id, "numbers"))
)


@dataclass(frozen=True, slots=True)
class WantedMembers:
    """What a listing says of each repository: `ALWAYS`, `members`, and of its files what is known in `outlines`."""

    blobs: BlobStore
    sees: Callable[[Row[Any]], bool]
    reads: Callable[[Connection, Row[Any]], bool]
    members: AbstractSet[str]
    outlines: Mapping[tuple[int, str], Outline]


Told = tuple[dict[str, Any], int, str | None]
"""The facts of a repository, its number, and the root of its files where they are read later."""


def told(connection: Connection, ids: Sequence[int], wanted: WantedMembers) -> list[Told]:
    """Return some repositories at their heads, without those that were removed, or that the caller no longer `sees`."""
    rows = {row.id: row for row in _ROWS.rows(connection, numbers=json.dumps(ids)) if wanted.sees(row)}
    tags = tags_of(connection, rows) if "tags" in wanted.members else {}
    found: list[Told] = []
    for row in (rows[number] for number in ids if number in rows):
        info = _chosen(connection, wanted, row, tags.get(row.id, []))
        outline = wanted.outlines.get((row.id, row.head))
        root = None
        if outline is not None and outline.paths is not None:
            info["siblings"] = [{"rfilename": path} for path in outline.paths]
        elif "siblings" in wanted.members:
            root = tree_of(connection, row.id, row.head).root
        found.append((info, row.id, root))
    return found


def listed(
    database: Database, first: list[Told], runs: Sequence[Sequence[int]], wanted: WantedMembers
) -> Iterator[bytes]:
    """JSON of the repositories in `first` and in the runs behind it, each of which it reads when its turn comes."""
    before, found = b"[", first
    for some in (*runs, None):
        for info, number, root in found:
            yield before
            yield from described(database, info, number, root, with_blobs=False)
            before = b","
        if some is not None:
            with database.read() as connection:
                found = told(connection, some, wanted)
    yield b"[]" if before == b"[" else b"]"


def _chosen(connection: Connection, wanted: WantedMembers, row: Row[Any], tags: list[str]) -> dict[str, Any]:
    info = at_head(row, tags)
    if wanted.members & {"cardData", "config"}:
        info |= documents_of(row)
        if not wanted.reads(connection, row):
            info["cardData"] = adapter_facts.open_part(info["cardData"])
    if wanted.members & {"safetensors", "baseModels", "adapt"}:
        info |= at_commit(connection, wanted.blobs, row, row.head)
    for name in info.keys() - wanted.members:
        if name not in ALWAYS:
            del info[name]
    return info


def described(
    database: Database,
    info: Mapping[str, Any],
    repo_id: int,
    root: str | None,
    *,
    with_blobs: bool,
    top: TreeNode | None = None,
) -> Iterator[bytes]:
    """JSON of one repository; with the tree's `root`, it includes the files as `siblings`, read page by page.

    With the `top` node of a tree that has no other, it also includes them, and reads nothing.
    """
    if top is not None and not top.height:
        yield dumped({**info, "siblings": [_sibling(entry, with_blobs=with_blobs) for entry in top.items]})
        return
    if root is None:
        yield dumped(info)
        return
    yield dumped(info)[:-1] + b',"siblings":['
    after, before = "", b""
    while True:
        with database.read() as connection:
            page = list(islice(FileTree(connection, repo_id, root).walk(after=after), SIBLINGS_AT_ONCE))
        if page:
            yield before + b",".join(dumped(_sibling(entry, with_blobs=with_blobs)) for entry in page)
            after, before = page[-1].path, b","
        if len(page) < SIBLINGS_AT_ONCE:
            yield b"]}"
            return


def at_head(row: Row[Any], tags: list[str]) -> dict[str, Any]:
    """Return the facts in the row of a repository."""
    return {
        "_id": public_number(row),
        "id": row.full_name,
        "modelId": row.full_name,
        "author": row.namespace,
        "sha": row.head,
        "createdAt": iso_time(row.created_at),
        "lastModified": iso_time(row.modified_at),
        "private": bool(row.private),
        "gated": row.gated or False,
        "disabled": False,
        "downloads": row.downloads,
        "likes": 0,
        "trendingScore": 0,
        "tags": tags,
        "pipeline_tag": row.pipeline_tag,
        "library_name": row.library_name,
        "usedStorage": row.used_bytes,
        "spaces": [],
    }


def documents_of(row: Row[Any]) -> dict[str, Any]:
    """Return the card and the configuration in the row of a repository."""
    return {"cardData": _document(row.card), "config": _document(row.config)}


def _document(text: str) -> Json:
    return {} if text == "{}" else json.loads(text)


def at_commit(connection: Connection, blobs: BlobStore, row: Row[Any], commit_id: str) -> dict[str, Any]:
    """Return the facts that the files of one commit add; for an older commit than the head also its card and date."""
    info: dict[str, Any] = {"sha": commit_id}
    adapt = adapters.adapt_object(connection, row.id, commit_id)
    if adapt is not None:
        info["adapt"] = adapt
        if adapt["parameters"]:
            info["safetensors"] = {"parameters": {adapt["dtype"]: adapt["parameters"]}, "total": adapt["parameters"]}
        if adapt["base"]:
            info["baseModels"] = {"relation": "adapter", "models": [{"_id": "", "id": adapt["base"]}]}
    if commit_id != row.head:
        info |= _of_older(connection, blobs, row, commit_id, TreeDigests(tree_of(connection, row.id, commit_id)))
    return info


def _of_older(
    connection: Connection, blobs: BlobStore, row: Row[Any], commit_id: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    wanted = select(commits_table.c.created_at).where(
        commits_table.c.repo_id == row.id, commits_table.c.id == commit_id
    )
    made_at = connection.scalars(wanted).one()
    return {
        "lastModified": iso_time(made_at),
        "cardData": adapter_facts.read_card(blobs, digests),
        "config": adapter_facts.read_config(blobs, digests),
    }


def _sibling(entry: TreeFile, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": entry.path}
    found: dict[str, Any] = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        found["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
    return found
