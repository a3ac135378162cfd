"""Hub API: model info, the listing of models, and the history of a repository."""

from __future__ import annotations

from functools import partial
from html import escape
from itertools import accumulate
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy import Row

from adapterhub.core.errors import shown
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    Registry,
    RegistryOf,
    RepoOf,
    RevisionOf,
    base_of,
    json_answer,
    next_link,
    opened_cursor,
    query_of,
    reading,
    sealed_cursor,
)
from adapterhub_registry.api.hub import model_info
from adapterhub_registry.errors import bad_request
from adapterhub_registry.names import COMMIT
from adapterhub_registry.repos import adapters, commits
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.repos.search import MAX_PAGE, SORTS, Listing, list_repos

router = APIRouter(include_in_schema=False)
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
    """One page of repositories; `Link` leads to the next. A page with files ends at `FILES_OF_PAGE`, too.

    Like `resolve`, it does without the framework's dependencies, which would take a third of its time.
    """
    registry: Registry = request.app.state.registry
    with reading(request, registry) as (connection, caller):
        base, query = base_of(request, registry), query_of(request, ListQuery)
        registry.repos.check_may_read(caller)
        members, visible = query.members(), registry.repos.sight(caller)
        page = list_repos(connection, query.listing(opened_cursor(registry, query.cursor)), visible)
        tops = commits.tops_of(connection, page.ids) if "siblings" in members else {}
        if tops:
            found = (tops.get((row.id, row.head)) for row in page.rows)
            files = accumulate(top.files if top is not None else 0 for top in found)
            page = page.first(max(sum(1 for count in files if count <= FILES_OF_PAGE), 1))
    sees = partial(registry.repos.sees, caller)
    answer = model_info.listed(registry.db, registry.blobs, page.ids, sees, members, tops)
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
def repo_info(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    query: Annotated[InfoQuery, Query()],
) -> Response:
    """Everything about a repository at a revision; with `expand`, only the selected members."""
    revision = unquote(request.path_params.get("rev", MAIN))
    with registry.db.read() as connection:
        row = registry.repos.find(connection, caller, repo_id)
        commit_id = commits.find_commit(connection, row, revision)
        tags = model_info.tags_of(connection, [row.id])[row.id]
        info = model_info.at_head(row, tags) | model_info.documents_of(row)
        info |= model_info.at_commit(connection, registry.blobs, row, commit_id)
        root = commits.tree_of(connection, row.id, commit_id).root
        warning = adapters.warning_for(connection, row.id, commit_id)
    if query.expand:
        # leaves out unknown members (such as past likes) instead of refusing them
        info = {name: info[name] for name in info if name in query.expand or name in model_info.ALWAYS}
    shown_root = root if not query.expand or "siblings" in query.expand else None
    answer = model_info.described(registry.db, info, row.id, shown_root, with_blobs=query.blobs)
    return json_answer(answer, {"X-HF-Warning": warning} if warning else {})


class HistoryQuery(BaseModel):
    """A page of a history, `after` a commit; `expand[]=formatted` adds title and message as HTML."""

    limit: int = Field(default=HISTORY_PAGE, ge=1, le=1000)
    after: str | None = None
    expand: list[str] = Field(default=[], alias="expand[]")


@router.get("/api/models/{namespace}/{name}/commits/{rev}")
def list_commits(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    revision: RevisionOf,
    base: BaseUrl,
    query: Annotated[HistoryQuery, Query()],
) -> JSONResponse:
    """List a revision and its ancestors, newest first; `Link` leads to the next page."""
    after = query.after
    if after is not None and not COMMIT.fullmatch(after):
        raise bad_request(f"after `{shown(after)}`: expected a commit id")
    with registry.db.read() as connection:
        row = registry.repos.find(connection, caller, repo_id)
        start = commits.find_commit(connection, row, after or revision)
        page, rest = commits.history(connection, row, start, limit=query.limit)
        headers = {"X-Total-Count": str(commits.count(connection, row, start))}
    if rest is not None:
        place = f"{base}/api/models/{repo_id}/commits/{quote(revision, safe='')}"
        headers["Link"] = next_link(request, place, after=rest)
    return JSONResponse([_commit(commit, formatted="formatted" in query.expand) for commit in page], headers=headers)


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
