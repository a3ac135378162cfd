"""The request and response models of `/api/adapt/v1`, as the OpenAPI document shows them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapterhub.formats.administration import Delivery, LogEntry, Token, User, Webhook
from adapterhub.formats.relevance import MAX_QUESTION, Matched
from adapterhub_registry import names
from adapterhub_registry.access.tokens import GLOB, MAX_DAYS, USER, Role
from adapterhub_registry.api.bodies import GuardedRoute
from adapterhub_registry.names import PART
from adapterhub_registry.outbox import MOST_IN_PAGE, MOST_URL_CHARACTERS, URL, Change
from adapterhub_registry.repos.adapter_facts import MAX_RANK
from adapterhub_registry.repos.adapters import MAX_REASON_CHARACTERS, MAX_RELEASES
from adapterhub_registry.repos.search import BASE_DIGEST, MAX_PAGE


def whole(pattern: re.Pattern[str]) -> str:
    """The pattern for a whole string, as OpenAPI documents have it."""
    return f"^{pattern.pattern}$"


NAME, SHA256, USER_NAME = whole(names.PART), whole(names.SHA256), whole(USER)

_LINE = r"^[^\x00-\x1f\x7f]*$"
Text = Annotated[str, StringConstraints(max_length=256, pattern=_LINE)]
"""One line of text in a query."""


class ApiAnswer(BaseModel):
    """A response; later versions may add members but never remove any."""

    model_config = ConfigDict(frozen=True)


class ApiQuestion(BaseModel):
    """A request body; an unknown member is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProblemAnswer(ApiAnswer):
    """Why the server refused a request; the header `X-Error-Code` has the kind."""

    error: str


class ServerInfo(ApiAnswer):
    """The version and the features of this server."""

    version: str
    features: list[str]
    upload_modes: list[str]
    anonymous_read: bool


class SearchQuery(BaseModel):
    """The conditions of a search. `base_sha256` is a prefix of any digest of the base's fingerprint.

    Each word of `q` has to be in the name, the task, the base or the description. With `rank_by=relevance` any word
    matches, in any inflection; a server with the model for it then compares what several words mean, unless `by` says
    otherwise. `license` is as the card states it. `signed` and `tested` choose by a signature and by recorded tests.
    """

    base: Text | None = None
    base_sha256: Annotated[str, StringConstraints(pattern=whole(BASE_DIGEST))] | None = None
    task: Text | None = None
    rank_min: Annotated[int, Field(ge=0, le=MAX_RANK)] | None = None
    rank_max: Annotated[int, Field(ge=0, le=MAX_RANK)] | None = None
    peft_type: Text | None = None
    license: Text | None = None
    signed: bool | None = None
    tested: bool | None = None
    q: Annotated[str, StringConstraints(max_length=MAX_QUESTION, pattern=_LINE)] | None = None
    rank_by: Literal["newest", "relevance"] = "newest"
    by: Literal["auto", "words", "meaning"] = "auto"
    cursor: Text | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50


class ListedFacts(ApiAnswer):
    """The facts about one adapter. `digest` is the digest of its manifest, or of its list of files."""

    name: str | None
    version: str | None
    digest: str
    adapter_sha256: str | None
    base: str | None
    base_sha256: str | None
    task: str | None
    peft_type: str | None
    method: list[str]
    rank: int | None
    alpha: float | None
    target_modules: list[str]
    dtype: str | None
    parameters: int | None
    description: str


class ListedAdapter(ListedFacts):
    """The adapter that represents a repository: its newest release, or the head of `main` without releases.

    `score` says how well it fits the words where these give the order; more is better.
    """

    repo: str
    commit: str
    private: bool
    downloads: int
    last_modified: str
    score: float | None = None
    matched: Matched | None = None


class ListedAdapters(ApiAnswer):
    """One page; `next_cursor` leads to the next page and is null on the last.

    `by` is what the scores compare; null where time gives the order.
    """

    adapters: list[ListedAdapter]
    by: Literal["words", "meaning"] | None
    next_cursor: str | None


class Yanked(ApiAnswer):
    """Why, when and by whom a version was yanked."""

    reason: str
    by: str
    at: str


class ReleaseFacts(ListedFacts):
    """One version of an adapter; `version` comes from its tag. `unyanked`: why it was yanked before that was undone."""

    tag: str
    commit: str
    released_at: str
    yanked: Yanked | None
    unyanked: str | None = None


class Releases(ApiAnswer):
    """All versions of an adapter, newest first."""

    repo: str
    versions: list[ReleaseFacts]


class YankedRelease(ApiAnswer):
    """A yanked release; `digest` is that of its manifest."""

    repo: str
    version: str
    digest: str
    yanked: Yanked


class YankedReleases(ApiAnswer):
    """The yanked ones among the digests of a request, in repositories that the caller may read."""

    releases: list[YankedRelease]


class YankRequest(ApiQuestion):
    """The version to yank and the reason, which users see."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    reason: Annotated[
        str, StringConstraints(min_length=1, max_length=MAX_REASON_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")
    ]


class UnyankRequest(ApiQuestion):
    """The version to restore."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class BlobPlace(ApiAnswer):
    """A file with the requested bytes."""

    repo: str
    commit: str
    path: str
    size: int


class BlobPlaces(ApiAnswer):
    """The files with these bytes that the caller may read; at most 1,000, newest first."""

    sha256: str
    places: list[BlobPlace]


class ReleaseQuery(BaseModel):
    """A page of the releases in a namespace."""

    namespace: Annotated[str, StringConstraints(pattern=NAME)]
    cursor: Text | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_RELEASES)] = MAX_RELEASES


class ListedRelease(ApiAnswer):
    """A release in a namespace. `name` is the adapter's, which may differ from the repository's."""

    repo: str
    name: str | None
    version: str
    digest: str
    commit: str
    yanked: bool


class ReleasePage(ApiAnswer):
    """One page; `next_cursor` leads to the next page and is null on the last."""

    releases: list[ListedRelease]
    next_cursor: str | None


class TokenRequest(ApiQuestion):
    """A token to create. By default it covers all namespaces for an admin, else the user's own."""

    user: Annotated[str, StringConstraints(pattern=whole(USER))]
    role: Role
    namespaces: Annotated[list[Annotated[str, StringConstraints(pattern=whole(GLOB))]], Field(max_length=100)] = []
    label: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    days: Annotated[float, Field(gt=0, le=MAX_DAYS)] | None = None


class TokenList(ApiAnswer):
    """Tokens, oldest first, including revoked and expired ones."""

    tokens: list[Token]


class UserList(ApiAnswer):
    """Users that have or had a token, by name."""

    users: list[User]


class Log(ApiAnswer):
    """Creations and revocations of tokens, oldest first."""

    entries: list[LogEntry]


class Health(ApiAnswer):
    """The server and its database respond."""

    status: Literal["ok"]


LONGEST_WAIT_S = 30
SCOPE = f"^{PART.pattern}(/{PART.pattern})?$"
MOST_NUMBER = 2**53 - 1


class EventQuery(BaseModel):
    """Where to continue. Without `since`, the answer has no event, but the number to begin with."""

    since: Annotated[int, Field(ge=0, le=MOST_NUMBER)] | None = None
    wait: Annotated[int, Field(ge=0, le=LONGEST_WAIT_S, description="seconds to wait for an event")] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_IN_PAGE)] = 100


class EventFacts(ApiAnswer):
    """Something that changed. Numbers grow, with gaps; `data` has `repo`, and what belongs to the type."""

    id: str
    type: str
    timestamp: str
    number: int
    data: dict[str, Any]


class EventList(ApiAnswer):
    """Events in their order. Continue with `next`; with `missed`, events after `since` may be gone: look again."""

    events: list[EventFacts]
    next: int
    missed: bool


class WebhookRequest(ApiQuestion):
    """A new webhook: a namespace or `namespace/name`, an https URL, and event types (none means all)."""

    scope: Annotated[str, StringConstraints(max_length=200, pattern=SCOPE)]
    url: Annotated[str, StringConstraints(max_length=MOST_URL_CHARACTERS, pattern=whole(URL))]
    types: Annotated[list[Change], Field(max_length=16)] = Field(default_factory=list)


class WebhookList(ApiAnswer):
    """The webhooks that the caller owns."""

    webhooks: list[Webhook]


class DeliveryList(ApiAnswer):
    """The last deliveries of a webhook, newest first."""

    deliveries: list[Delivery]


PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ProblemAnswer, "description": "The request is malformed"},
    401: {"model": ProblemAnswer, "description": "The request has no token, or an invalid one"},
    422: {"model": ProblemAnswer, "description": "A member has the wrong type or exceeds a limit"},
}


def adapt_router() -> APIRouter:
    """A router for some of these routes; `adapt_api` takes them in."""
    return APIRouter(prefix="/api/adapt/v1", tags=["adapters"], responses=PROBLEMS, route_class=GuardedRoute)
