"""Hub API: model info, the listing of models, and the history of a repository."""

from __future__ import annotations

from functools import partial
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Row
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.bodies import hub_router
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
from adapterhub_registry.api.hub import model_info
from adapterhub_registry.api.hub.threads import ThreadedRoute
from adapterhub_registry.database.trees.nodes import read_node, unpack
from adapterhub_registry.errors import bad_request
from adapterhub_registry.names import COMMIT, RepoId, known_repo_id
from adapterhub_registry.repos import adapters, card, commits
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.repos.search import MAX_PAGE, SORTS, Listing, list_repos

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

    def listing(self, position: str | None) -> Listing:
        """The query of the search, from a position in its order.

        Raises:
            Refusal: 400 for an unknown order.
        """
        sort = next((known for known in SORTS if known == self.sort), None)
        if sort is None:
            raise bad_request(f"sort `{shown(self.sort)}`: expected one of {', '.join(SORTS)}")
        never = [self.inference, *self.inference_provider]
        tags = [*self.filter, self.pipeline_tag, *self.apps]
        return Listing(
            filters=tuple(tag for tag in tags if tag),
            author=self.author,
            search=self.search,
            gated=self.gated,
            num_parameters=self.num_parameters,
            never=tuple(text for text in never if text),
            sort=sort,
            cursor=position,
            limit=min(self.limit, MAX_PAGE),
        )

    def members(self) -> set[str]:
        """The members that the client requests of each repository."""
        if self.expand:
            return set(self.expand)
        members = set(model_info.LISTED)
        members |= {"siblings"} if self.full else set()
        members |= {"cardData"} if self.card_data or self.full else set()
        return members | ({"config"} if self.config else set())


@router.get("/api/models")
def list_models(request: Request) -> Response:
    """One page of repositories; `Link` leads to the next. A page with files ends at `FILES_OF_PAGE`, too."""
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

        wanted = model_info.Wanted(registry.blobs, sees, reads, members, outlines)
        first, *others = model_info.runs_of(connection, page.ids)
        told = model_info.told(connection, first, wanted)
    answer = model_info.listed(registry.db, told, others, wanted)
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
        tags = model_info.tags_of(connection, [row.id])[row.id]
        info = model_info.at_head(row, tags) | model_info.documents_of(row)
        info |= model_info.at_commit(connection, registry.blobs, row, at.commit_id)
        if not registry.repos.reads(connection, caller, row):
            info["cardData"] = card.open_part(info["cardData"])
    if query.expand:
        # leaves out unknown members (such as past likes) instead of refusing them
        info = {name: info[name] for name in info if name in query.expand or name in model_info.ALWAYS}
    root, top = (at.root, at.top) if not query.expand or "siblings" in query.expand else (None, None)
    node = None if top is None else read_node(unpack(top))
    answer = model_info.described(registry.db, info, row.id, root, with_blobs=query.blobs, top=node)
    return json_answer(answer, {"X-HF-Warning": at.warning} if at.warning else {})


class _Seen(NamedTuple):
    """A repository at a commit: its row, the root of its files, that node where it was read, and the warning."""

    row: Row[Any]
    commit_id: str
    root: str
    top: bytes | None
    warning: str | None


def _seen(connection: Connection, registry: Registry, caller: Caller, repo_id: RepoId, revision: str) -> _Seen:
    """What the caller sees by this id and revision; one statement finds it where both are exact."""
    registry.repos.check_may_read(caller)
    top = commits.top_at(connection, repo_id, revision)
    if top is not None and (not top.private or caller.reaches(top.full_name)):
        row = model_info.row_of(connection, top.id)
        return _Seen(row, top.commit_id, top.root, top.body, commits.warning_of(top))
    row = registry.repos.find(connection, caller, repo_id)
    commit_id = commits.find_commit(connection, row, revision)
    root = commits.tree_of(connection, row.id, commit_id).root
    return _Seen(row, commit_id, root, None, adapters.warning_for(connection, row.id, commit_id))


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
        "date": model_info.iso_time(commit.created_at),
        "authors": [{"user": commit.author, "avatar": ""}],
    }
    if formatted:
        found["formatted"] = {"title": escape(commit.title), "message": f"<pre>{escape(commit.message)}</pre>"}
    return found
