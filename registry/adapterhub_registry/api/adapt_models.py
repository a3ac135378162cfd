"""What `/api/adapt/v1` takes and gives, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME = r"^[A-Za-z0-9_.-]{1,96}$"
SHA256 = r"^[0-9a-f]{64}$"
MAX_RANK = 1 << 20

Text = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text as it stands in a query."""


class Answer(BaseModel):
    """What is answered; members are added in later versions, never taken away."""

    model_config = ConfigDict(frozen=True)


class Question(BaseModel):
    """What is sent; a member that is not known is a mistake, and said to be one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(Answer):
    """Why something was refused; the header `X-Error-Code` carries the kind."""

    error: str


class Info(Answer):
    """What this server is and can do."""

    version: str
    features: list[str]
    upload_modes: list[str]
    anonymous_read: bool


class SearchQuery(BaseModel):
    """What is looked for. `base_sha256` is the beginning of any digest of the base's fingerprint."""

    base: Text | None = None
    base_sha256: Annotated[str, StringConstraints(pattern=r"^(sha256:)?[0-9a-f]{8,64}$")] | None = None
    task: Text | None = None
    rank_min: Annotated[int, Field(ge=0, le=MAX_RANK)] | None = None
    rank_max: Annotated[int, Field(ge=0, le=MAX_RANK)] | None = None
    peft_type: Text | None = None
    q: Text | None = None
    cursor: Text | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class Facts(Answer):
    """What is known of one adapter. `digest` is that of its manifest, or of its list of files."""

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


class Adapter(Facts):
    """The adapter that stands for a repository: its newest release, or without one, the head of `main`."""

    repo: str
    commit: str
    private: bool
    downloads: int
    last_modified: str


class AdapterPage(Answer):
    """One page; `next_cursor` asks for the next one, null after the last."""

    adapters: list[Adapter]
    next_cursor: str | None


class Yanked(Answer):
    """Why a version should not be installed any more."""

    reason: str
    by: str
    at: str


class Release(Facts):
    """One version of an adapter; `version` is that of its tag."""

    tag: str
    commit: str
    released_at: str
    yanked: Yanked | None


class Releases(Answer):
    """All versions of an adapter, the newest first."""

    repo: str
    versions: list[Release]


class YankRequest(Question):
    """Which version, and why; users see the reason."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]


class UnyankRequest(Question):
    """Which version."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Place(Answer):
    """A file with the bytes that were asked for."""

    repo: str
    commit: str
    path: str
    size: int


class Places(Answer):
    """Where these bytes lie, as far as the caller may know; at most 1,000 places, the newest first."""

    sha256: str
    places: list[Place]


class TokenRequest(Question):
    """A token to make. Without `namespaces` it reaches all for an admin, else the user's own."""

    user: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")]
    role: Literal["read", "write", "admin"]
    namespaces: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*?-]{1,96}(/[A-Za-z0-9_.*?-]{1,96})?$")]],
        Field(max_length=100),
    ] = []
    label: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    days: Annotated[float, Field(gt=0, le=36_500)] | None = None


class TokenFacts(Answer):
    """What is known of a token, which is never the token."""

    id: int
    user: str
    label: str
    role: str
    namespaces: list[str]
    created_at: str
    expires_at: str | None
    used_at: str | None
    revoked_at: str | None


class TokenList(Answer):
    """Tokens, oldest first, revoked and expired ones too."""

    tokens: list[TokenFacts]


class NewToken(Answer):
    """A new token, in full, this once."""

    token: str


class Health(Answer):
    """The server answers and so does its database."""

    status: Literal["ok"]
