"""The request and response models of `/api/adapt/v1`, as the OpenAPI document shows them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapterhub.formats.administration import LogEntry, Token, User
from adapterhub.formats.relevance import MAX_QUESTION
from adapterhub_registry import names
from adapterhub_registry.access.tokens import GLOB, MAX_DAYS, USER, Role
from adapterhub_registry.repos.adapter_facts import MAX_RANK
from adapterhub_registry.repos.adapter_search import BASE_DIGEST, MAX_PAGE, MAX_RELEASES
from adapterhub_registry.repos.adapters import MAX_REASON_CHARACTERS


def whole(pattern: re.Pattern[str]) -> str:
    """The pattern for a whole string, as OpenAPI documents have it."""
    return f"^{pattern.pattern}$"


NAME, SHA256, USER_NAME = whole(names.PART), whole(names.SHA256), whole(USER)

_LINE = r"^[^\x00-\x1f\x7f]*$"
Text = Annotated[str, StringConstraints(max_length=256, pattern=_LINE)]
"""One line of text in a query."""


class Answer(BaseModel):
    """A response; later versions may add members but never remove any."""

    model_config = ConfigDict(frozen=True)


class Question(BaseModel):
    """A request body; an unknown member is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(Answer):
    """Why the server refused a request; the header `X-Error-Code` has the kind."""

    error: str


class Info(Answer):
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


class Facts(Answer):
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


class Matched(Answer):
    """The part of a build's text that holds most of the words: `name`, `task`, `description` or `prompt`."""

    part: str
    text: str


class Adapter(Facts):
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


class AdapterPage(Answer):
    """One page; `next_cursor` leads to the next page and is null on the last.

    `by` is what the scores compare; null where time gives the order.
    """

    adapters: list[Adapter]
    by: Literal["words", "meaning"] | None
    next_cursor: str | None


class Yanked(Answer):
    """Why, when and by whom a version was yanked."""

    reason: str
    by: str
    at: str


class Release(Facts):
    """One version of an adapter; `version` comes from its tag. `unyanked`: why it was yanked before that was undone."""

    tag: str
    commit: str
    released_at: str
    yanked: Yanked | None
    unyanked: str | None = None


class Releases(Answer):
    """All versions of an adapter, newest first."""

    repo: str
    versions: list[Release]


class YankedRelease(Answer):
    """A yanked release; `digest` is that of its manifest."""

    repo: str
    version: str
    digest: str
    yanked: Yanked


class YankedReleases(Answer):
    """The yanked ones among the digests of a request, in repositories that the caller may read."""

    releases: list[YankedRelease]


class YankRequest(Question):
    """The version to yank and the reason, which users see."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    reason: Annotated[
        str, StringConstraints(min_length=1, max_length=MAX_REASON_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")
    ]


class UnyankRequest(Question):
    """The version to restore."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Place(Answer):
    """A file with the requested bytes."""

    repo: str
    commit: str
    path: str
    size: int


class Places(Answer):
    """The files with these bytes that the caller may read; at most 1,000, newest first."""

    sha256: str
    places: list[Place]


class ReleaseQuery(BaseModel):
    """A page of the releases in a namespace."""

    namespace: Annotated[str, StringConstraints(pattern=NAME)]
    cursor: Text | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_RELEASES)] = MAX_RELEASES


class ListedRelease(Answer):
    """A release in a namespace. `name` is the adapter's, which may differ from the repository's."""

    repo: str
    name: str | None
    version: str
    digest: str
    commit: str
    yanked: bool


class ReleasePage(Answer):
    """One page; `next_cursor` leads to the next page and is null on the last."""

    releases: list[ListedRelease]
    next_cursor: str | None


class TokenRequest(Question):
    """A token to create. By default it covers all namespaces for an admin, else the user's own."""

    user: Annotated[str, StringConstraints(pattern=whole(USER))]
    role: Role
    namespaces: Annotated[list[Annotated[str, StringConstraints(pattern=whole(GLOB))]], Field(max_length=100)] = []
    label: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    days: Annotated[float, Field(gt=0, le=MAX_DAYS)] | None = None


class TokenList(Answer):
    """Tokens, oldest first, including revoked and expired ones."""

    tokens: list[Token]


class UserList(Answer):
    """Users that have or had a token, by name."""

    users: list[User]


class Log(Answer):
    """Creations and revocations of tokens, oldest first."""

    entries: list[LogEntry]


class Health(Answer):
    """The server and its database respond."""

    status: Literal["ok"]
