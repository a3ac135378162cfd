"""What administers a registry, each as one type: the server answers with it, commands print it, pages show it.

Answers of the server have the fields; the documents of commands have the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from adapterhub.core.dates import Moment
from adapterhub.core.digests import Digest
from adapterhub.formats.documented import Documented

Asks = Literal["off", "contract", "passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken(Documented):
    """A new token, shown only once."""

    token: str
    user: str
    role: Annotated[str, "`read`, `write` or `admin`"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(
    Documented,
    keys="id user role namespaces=globs label created=created_at.text expires=expires_at.text used=used_at.text "
    "revoked=revoked_at.text",
):
    """A token without its secret; times are RFC 3339."""

    id: int
    user: str
    label: str
    role: str
    namespaces: tuple[str, ...]
    created_at: Moment
    expires_at: Moment | None
    used_at: Moment | None
    revoked_at: Moment | None

    @property
    def globs(self) -> str:
        """Globs, separated by commas."""
        return ",".join(self.namespaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Documented, keys="user=name created=created_at.text tokens"):
    """A user of a registry, and how many of the user's tokens work; the time is RFC 3339."""

    name: str
    created_at: Moment
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry(Documented, keys="at=created_at.text actor action subject"):
    """Who created or revoked a token; the time is RFC 3339."""

    created_at: Moment
    actor: Annotated[str, "a user and the token, or a command on the server's machine"]
    action: Annotated[str, "`create` or `revoke`"]
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Documented, keys="id scope url types=type_names owner created=created_at.text waiting failed silent"):
    """A webhook without its secret; the time is RFC 3339."""

    id: int
    scope: Annotated[str, "a namespace, or a repository"]
    url: str
    types: tuple[str, ...]
    owner: Annotated[str | None, "the user who added it; null for the operator of the server"]
    created_at: Moment
    waiting: Annotated[int, "deliveries that wait"]
    failed: Annotated[int, "deliveries that failed for good"]
    silent: Annotated[bool, "true: no token of its owner may change the scope, so it gets nothing"]

    @property
    def type_names(self) -> str:
        """Event types, separated by commas; empty for all."""
        return ",".join(self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook(Documented, keys="id=webhook.id scope=webhook.scope url=webhook.url secret"):
    """A new webhook with the secret that signs its messages, shown only once."""

    webhook: Webhook
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(
    Documented,
    keys="id event type repo state attempts status problem created=created_at.text due=due_at.text ended=ended_at.text",
):
    """A delivery of one event to a webhook; times are RFC 3339."""

    id: int
    event: str
    type: str
    repo: str
    state: Annotated[str, "`waiting`, `delivered`, `failed`, or `withheld` because its owner may not know the event"]
    attempts: int
    status: Annotated[int | None, "of the last answer"]
    problem: Annotated[str | None, "of the last attempt"]
    created_at: Moment
    due_at: Annotated[Moment | None, "the next attempt"]
    ended_at: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TesterKey(Documented, keys="name fingerprint"):
    """A key whose results count in a namespace."""

    name: str
    fingerprint: Digest
    pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRule(Documented):
    """What a namespace asks of a version before it is published.

    `off` asks nothing, `contract` a contract, `passed` also a PASS by one of the keys on the base that the adapter
    declares. With `keys_only`, results by other keys are not stored.
    """

    namespace: str
    asks: Annotated[Asks, "`off`, `contract` or `passed`"] = "off"
    keys_only: Annotated[bool, "whether it stores results by its own keys only"] = False
    keys: tuple[TesterKey, ...] = ()

    def key_of(self, fingerprint: Digest) -> TesterKey | None:
        """The key with this fingerprint."""
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldName(Documented):
    """The name of an adapter in a namespace, and a repository that may release it."""

    name: str
    repo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedChange:
    """A change that the server refused: `count` times, last at `created_at` in milliseconds since 1970."""

    created_at: int
    user: str
    token_id: int | None
    repo: str
    action: str
    status: int
    code: str
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSpace(Documented, keys="dry_run commits blobs blob_bytes xorbs xorb_bytes bytes"):
    """What `gc` removed from a registry, or would remove."""

    dry_run: bool
    commits: int
    blobs: int
    blob_bytes: int
    xorbs: Annotated[int, "parts of uploads by Xet"]
    xorb_bytes: int

    @property
    def bytes(self) -> int:
        """Of the blobs and the xorbs."""
        return self.blob_bytes + self.xorb_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings(Documented):
    """The blobs that a registry's database names, and what is missing or damaged; any problem means exit code 12."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    problems: Annotated[tuple[str, ...], "one sentence per problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedRegistry(Documented):
    """The content of a registry at its new place."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    rows: Annotated[int, "of all tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRecords(Documented):
    """What a worker of a registry made until it ended."""

    records: Annotated[int, "of the weights of builds"]
    vectors: Annotated[int, "builds whose vectors were made, for search by meaning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningModel(Documented):
    """Whether a registry can search by meaning."""

    model: Annotated[str | None, "which vectors belong together: 16 hex digits; null without the model"]
    waiting: Annotated[int, "builds that wait for a worker to make their vectors"]
