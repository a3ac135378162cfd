"""The request and response models of `/api/adapt/v1`, as the OpenAPI document shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapterhub.formats.administration import Account, Delivery, Publisher, Token, User, Webhook
from adapterhub.formats.relevance import MAX_QUESTION, Matched
from adapterhub_registry import names
from adapterhub_registry.access.callers import SCOPES, Role, Scope
from adapterhub_registry.access.issuers import MOST_TOKEN_CHARACTERS
from adapterhub_registry.access.tokens import GLOB, MAX_DAYS, USER
from adapterhub_registry.access.trusted import MOST_PINS, MOST_VALUE_CHARACTERS
from adapterhub_registry.api.bodies import GuardedRoute
from adapterhub_registry.names import PART, RepoId, known_repo_id
from adapterhub_registry.outbox import MOST_IN_PAGE, MOST_URL_CHARACTERS, URL, Change
from adapterhub_registry.repos.adapter_facts import MAX_RANK
from adapterhub_registry.repos.adapters import MAX_REASON_CHARACTERS, MAX_RELEASES
from adapterhub_registry.repos.bases import BASE_DIGEST
from adapterhub_registry.repos.search import MAX_PAGE


def whole(pattern: re.Pattern[str]) -> str:
    """Return the pattern for a whole string, as OpenAPI documents have it."""
    return f"^{pattern.pattern}$"


SCOPE = f"^{PART.pattern}(/{PART.pattern})?$"
NAME, SHA256, USER_NAME = whole(names.PART), whole(names.SHA256), whole(USER)

_LINE = r"^[^\x00-\x1f\x7f]*$"
Text = Annotated[str, StringConstraints(max_length=256, pattern=_LINE)]
"""One line of text in a query."""
Pinned = Annotated[str, StringConstraints(min_length=1, max_length=MOST_VALUE_CHARACTERS)]


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
    """The version and the features of this server, and the key of its log in the form of `signed-note`."""

    version: str
    features: list[str]
    upload_modes: list[str]
    anonymous_read: bool
    log_key: str


class SearchQuery(BaseModel):
    """The conditions of a search. `base_sha256` is a prefix of any digest of the base's fingerprint.

    Adapters for its quantised copies, and other forms of it, match where manifests that the caller may read prove them.

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

    `score` is how well it fits the words if these give the order; more is better.
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

    `by` is what the scores compare; null if time gives the order.
    """

    adapters: list[ListedAdapter]
    by: Literal["words", "meaning"] | None
    next_cursor: str | None


class Yanked(ApiAnswer):
    """Why, when and by whom a version was yanked."""

    reason: str
    by: str
    at: str


class ReleasePublisher(ApiAnswer):
    """The job of a CI that released a version: who vouches for it, and what it was. The registry checked both.

    `by` is its description in words.
    """

    issuer: str
    claims: dict[str, str]
    by: str


class ReleaseFacts(ListedFacts):
    """One version of an adapter; `version` comes from its tag. `unyanked`: why it was yanked before that was undone.

    `publisher` is null unless a trusted publisher released it.
    """

    tag: str
    commit: str
    released_at: str
    yanked: Yanked | None
    unyanked: str | None = None
    publisher: ReleasePublisher | None = None


class Releases(ApiAnswer):
    """Versions of an adapter, newest first. `next_below` leads to the next page and is null on the last.

    `one_base`: those on other pages are for the same base.
    """

    repo: str
    versions: list[ReleaseFacts]
    next_below: str | None = None
    one_base: bool = True


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
    """A token to create: one's own without `user`. With `scopes`, these decide and not the role.

    By default, a granted one covers all namespaces for an admin, otherwise the user's own. One's own covers by default
    what the token covers that creates it.
    """

    user: Annotated[str, StringConstraints(pattern=whole(USER))] | None = None
    role: Role = "read"
    scopes: Annotated[list[Scope], Field(max_length=4)] = []
    namespaces: Annotated[list[Annotated[str, StringConstraints(pattern=whole(GLOB))]], Field(max_length=100)] = []
    label: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    days: Annotated[float, Field(gt=0, le=MAX_DAYS)] | None = None


class NumberPage(BaseModel):
    """A page of a list, `after` a number."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


class NamePage(BaseModel):
    """A page of a list, `after` a name."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[str, Field(max_length=200)] = ""


class TokenList(ApiAnswer):
    """Tokens, oldest first, including revoked and expired ones. `next_after` leads to the next page."""

    tokens: list[Token]
    next_after: int | None = None


class PublisherRequest(ApiQuestion):
    """Jobs to trust: `repo` may be new. In a claim, `*` stands for anything but `/`, and `**` for anything."""

    repo: Annotated[str, StringConstraints(pattern=SCOPE)]
    issuer: Annotated[str, StringConstraints(max_length=MOST_URL_CHARACTERS)]
    claims: Annotated[dict[Pinned, Pinned], Field(max_length=MOST_PINS)]


class PublisherList(ApiAnswer):
    """Trusted publishers, oldest first."""

    publishers: list[Publisher]


class IdentityRequest(ApiQuestion):
    """The token that a CI gave a job, whose audience is this registry, and the repository that the job publishes to."""

    repo: Annotated[str, StringConstraints(pattern=SCOPE)]
    token: Annotated[str, StringConstraints(max_length=MOST_TOKEN_CHARACTERS)]


class ExchangedToken(ApiAnswer):
    """A token with the role `write` for one repository, until `expires_at`."""

    token: str
    user: str
    repo: str
    expires_at: str


_Line = StringConstraints(min_length=1, max_length=100, pattern=_LINE)


class DeviceRequest(ApiQuestion):
    """A token to ask a person for: `client` is what the program calls itself, `scopes` the most that it needs."""

    client: Annotated[str, _Line]
    scopes: Annotated[list[Scope], Field(max_length=len(SCOPES))] = ["read", "write", "release"]
    days: Annotated[int, Field(ge=1, le=366)] = 30


class DeviceCodes(ApiAnswer):
    """What the program keeps, and what the person types on the page `verification_uri` before `expires_in` seconds."""

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: int
    interval: int


class DevicePoll(ApiQuestion):
    """The code that the program keeps."""

    device_code: Annotated[str, _Line]


class DeviceToken(ApiAnswer):
    """A token of the person who approved it, with `scopes` within `namespaces`, until `expires_at`."""

    access_token: str
    token_type: str
    expires_in: int
    user: str
    scopes: list[str]
    namespaces: list[str]
    label: str
    expires_at: str


class AccountList(ApiAnswer):
    """People of the issuer, by the name of the user. `next_after` leads to the next page."""

    accounts: list[Account]
    next_after: str | None = None


class AccountRequest(ApiQuestion):
    """A user who is there, and the subject of the person at the issuer who shall sign in as this user."""

    user: Annotated[str, StringConstraints(pattern=whole(USER))]
    subject: Annotated[str, StringConstraints(min_length=1, max_length=255)]


class UserList(ApiAnswer):
    """Users that have or had a token, by name. `next_after` leads to the next page."""

    users: list[User]
    next_after: str | None = None


class Health(ApiAnswer):
    """The server and its database respond."""

    status: Literal["ok"]


LONGEST_WAIT_S = 30
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


NamePart = Annotated[str, Path(pattern=NAME)]
ItemNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]


async def _adapter_of(namespace: NamePart, name: NamePart) -> RepoId:
    return known_repo_id(namespace, name)


AdapterOf = Annotated[RepoId, Depends(_adapter_of)]
"""The repository in the path of a URL."""

Problems = dict[int | str, dict[str, Any]]


def problems(said: Mapping[int, str]) -> Problems:
    """Return the refusals of a route, by status, for the OpenAPI document."""
    return {status: {"model": ProblemAnswer, "description": text} for status, text in said.items()}


COMMON: Final = problems(
    {
        400: "The request is malformed",
        401: "The request has no token, or an invalid one",
        422: "A member has the wrong type or exceeds a limit",
    }
)
FORBIDDEN: Final = problems({403: "The token lacks the right"})
MISSING: Final = problems({404: "Not found"})
TOO_LARGE: Final = problems({413: "The body is too large"})


def adapt_router() -> APIRouter:
    """Return a router for some of these routes; `adapt_api` takes them in."""
    return APIRouter(prefix="/api/adapt/v1", tags=["adapters"], responses=COMMON, route_class=GuardedRoute)
